//! Opening: nothing of a store is used before all of it was read and authenticated.
//!
//! Depends on redb, the cipher and the mark. Invariant: what passes is, row for row, what was last committed, and not
//! older than what was acknowledged; anything else is an error that names the file.
use super::cipher::{Opener, StoreCipher};
use super::folder::Mark;
use super::layout::{FORMAT, HEADER, Header, LOCALS, LOG, META, ROWS, TIP, Tip};
use super::log_index::LogIndex;
use super::view::{open_local, open_row};
use super::writer::TIP_PLACE;
use super::{StoreError, guard};
use prost::Message;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
};
use std::ops::Bound;
use std::thread;

/// Bytes that every redb file starts with. An empty or blanked file would otherwise pass for a new one.
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Pages of the file kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// Called with each state row, from two threads; its error refuses the store.
pub type Load<'l> = &'l (dyn Fn(&[u8], &[u8]) -> Result<(), String> + Sync);

/// Opens an existing file, with all of redb's checks.
pub(crate) fn open_database(
    backend: impl StorageBackend,
    file: &str,
) -> Result<Database, StoreError> {
    open(backend, file, true)
}

/// Opens an existing file to look at its header only.
pub(crate) fn open_header(
    backend: impl StorageBackend,
    file: &str,
) -> Result<Database, StoreError> {
    open(backend, file, false)
}

fn open(backend: impl StorageBackend, file: &str, integrity: bool) -> Result<Database, StoreError> {
    let mut magic = [0; REDB_MAGIC.len()];
    let len = backend.len().map_err(|e| StoreError::io("read", file, &e))?;
    if len < magic.len() as u64 {
        return Err(StoreError::damaged(file, format!("it has only {len} bytes")));
    }
    backend.read(0, &mut magic).map_err(|e| StoreError::io("read", file, &e))?;
    if magic != REDB_MAGIC {
        return Err(StoreError::damaged(file, "it does not start like a store"));
    }
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(integrity)
        .create_with_backend(backend)
        .map_err(|e| StoreError::redb("open", file, e))
}

/// Creates an empty database on an empty backend.
pub(crate) fn create_database(
    backend: impl StorageBackend,
    file: &str,
) -> Result<Database, StoreError> {
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|e| StoreError::redb("create", file, e))
}

/// Reads one commit of a file.
pub(crate) struct Checker<'a> {
    txn: ReadTransaction,
    file: &'a str,
}

/// What a checked store starts from.
pub(crate) struct Checked {
    pub(crate) tip: Tip,
    pub(crate) log: LogIndex,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(db: &Database, file: &'a str) -> Result<Self, StoreError> {
        let txn = db.begin_read().map_err(|e| StoreError::redb("read", file, e))?;
        Ok(Self { txn, file })
    }

    /// The header; a format that is too new is refused before anything else is looked at.
    pub(crate) fn header(&self) -> Result<Header, StoreError> {
        let bytes = self.meta(HEADER)?;
        let damaged = || StoreError::damaged(self.file, "its header is not readable");
        let found = FormatOnly::decode(&*bytes).map_err(|_| damaged())?.format;
        if found > FORMAT {
            return Err(StoreError::NewerFormat {
                file: self.file.to_owned(),
                found,
                known: FORMAT,
            });
        }
        Header::decode(&*bytes).ok().filter(|header| header.format == FORMAT).ok_or_else(damaged)
    }

    /// Reads and authenticates all that the key covers.
    pub(crate) fn content(
        &self,
        cipher: &StoreCipher,
        mark: &mut Mark,
        load: Load<'_>,
    ) -> Result<Checked, StoreError> {
        let frame = self.meta(TIP)?;
        let tip = cipher
            .opener()
            .open(TIP_PLACE, &frame)
            .ok()
            .and_then(|bytes| Tip::decode(&*bytes).ok());
        let tip = tip.ok_or_else(|| StoreError::damaged(self.file, "its tip does not open"))?;
        let acknowledged = mark.read(cipher)?;
        if tip.seq < acknowledged {
            return Err(StoreError::RolledBack {
                file: self.file.to_owned(),
                found: tip.seq,
                acknowledged,
            });
        }
        let mut opener = cipher.opener();
        let log = self.log(&tip, &mut opener)?;
        self.rows(&tip, cipher, load)?;
        self.locals(&tip, cipher, &mut opener)?;
        Ok(Checked { tip, log })
    }

    fn log(&self, tip: &Tip, opener: &mut Opener<'_>) -> Result<LogIndex, StoreError> {
        let mut log = LogIndex::new(tip.purged);
        let mut expected = tip.log_first..tip.log_first.saturating_add(tip.log_len);
        for entry in self.table(LOG)?.iter().map_err(|e| self.fail(e))? {
            let (index, frame) = entry.map_err(|e| self.fail(e))?;
            let index = index.value();
            let (term, data) = opener.open_log(index, frame.value()).map_err(|_| {
                StoreError::damaged(self.file, format!("log entry {index} does not open"))
            })?;
            if expected.next() != Some(index) {
                return Err(StoreError::damaged(
                    self.file,
                    format!("log entry {index} is out of place"),
                ));
            }
            log.load(index, term, data.len());
        }
        match expected.next() {
            Some(index) => {
                Err(StoreError::damaged(self.file, format!("log entry {index} is missing")))
            }
            None => Ok(log),
        }
    }

    /// Names are spread evenly, so a half of them is half of the work: one on a thread of its own, one on this.
    fn rows(&self, tip: &Tip, cipher: &StoreCipher, load: Load<'_>) -> Result<(), StoreError> {
        let mut middle = [0; 16];
        middle[0] = 0x80;
        let count = thread::scope(|scope| {
            let lower = (Bound::Unbounded, Bound::Excluded(middle));
            let lower = thread::Builder::new()
                .name("store-reader".to_owned())
                .spawn_scoped(scope, move || self.rows_of(lower, cipher, load))
                .map_err(|e| StoreError::io("start a thread to read", self.file, &e))?;
            let upper = self.rows_of((Bound::Included(middle), Bound::Unbounded), cipher, load);
            let lower = lower.join().unwrap_or_else(|_| {
                Err(StoreError::damaged(self.file, "its state rows cannot be read".to_owned()))
            });
            Ok(lower? + upper?)
        })?;
        self.same_count("state rows", count, tip.rows)
    }

    /// Reads the rows of these names and says how many they are.
    fn rows_of(
        &self,
        names: (Bound<[u8; 16]>, Bound<[u8; 16]>),
        cipher: &StoreCipher,
        load: Load<'_>,
    ) -> Result<u64, StoreError> {
        guard("read", self.file, || {
            let mut opener = cipher.opener();
            let mut count = 0;
            let rows = self.table(ROWS)?.range(names);
            for entry in rows.map_err(|e| self.fail(e))? {
                let (name, frame) = entry.map_err(|e| self.fail(e))?;
                let name = name.value();
                let (key, value) = open_row(cipher, &mut opener, self.file, &name, frame.value())?;
                load(&key, &value).map_err(|reason| StoreError::damaged(self.file, reason))?;
                count += 1;
            }
            Ok(count)
        })
    }

    fn locals(
        &self,
        tip: &Tip,
        cipher: &StoreCipher,
        opener: &mut Opener<'_>,
    ) -> Result<(), StoreError> {
        let mut count = 0;
        for entry in self.table(LOCALS)?.iter().map_err(|e| self.fail(e))? {
            let (name, frame) = entry.map_err(|e| self.fail(e))?;
            open_local(cipher, opener, self.file, &name.value(), frame.value())?;
            count += 1;
        }
        self.same_count("local rows", count, tip.locals)
    }

    fn same_count(&self, what: &str, found: u64, expected: u64) -> Result<(), StoreError> {
        if found == expected {
            return Ok(());
        }
        Err(StoreError::damaged(self.file, format!("it has {found} {what} instead of {expected}")))
    }

    fn meta(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let row = self.table(META)?.get(key).map_err(|e| self.fail(e))?;
        let row =
            row.ok_or_else(|| StoreError::damaged(self.file, format!("its {key} is missing")))?;
        Ok(row.value().to_vec())
    }

    fn table<K: redb::Key, V: redb::Value>(
        &self,
        table: redb::TableDefinition<'_, K, V>,
    ) -> Result<ReadOnlyTable<K, V>, StoreError> {
        self.txn.open_table(table).map_err(|e| StoreError::redb("read", self.file, e))
    }

    fn fail(&self, error: redb::StorageError) -> StoreError {
        StoreError::redb("read", self.file, error)
    }
}

/// Reads the format of a header that may be newer than this program.
#[derive(Clone, PartialEq, Message)]
struct FormatOnly {
    #[prost(uint32, tag = "1")]
    format: u32,
}
