//! The manager's encrypted store: the Raft log, the vote, the mirrored state and this member's own secrets, in one file.
//!
//! Works on bytes; knows neither Raft nor the state's types. Depends on redb, secmem and the ciphers. Invariant: what was
//! acknowledged is on disk, complete and authentic, or the store does not open.
//!
//! A change is a job for the one writer thread ([`writer`]). What somebody waits for is committed at once, together with
//! all that is queued; mirrored state rows wait for company, because the log can rebuild them.
mod check;
mod cipher;
mod error;
mod folder;
mod layout;
mod log_index;
mod rewrite;
mod sealed;
mod view;
mod writer;

pub use check::Load;
pub use error::StoreError;
pub use folder::MarkFile;
pub use layout::{FORMAT, Position, StoreIdentity};
pub use rewrite::{OnStep, SealedFor, Step};
pub use sealed::SealedStore;
pub use view::{Row, RowsView};
pub use writer::{Done, OnFatal, RowChange, Rows, ViewDone, WriterTurns};

pub(crate) use cipher::identity_bytes;

use crate::keys::{Kek, KeyError};
use bytes::Bytes;
use check::{Checker, create_database, open_database};
use cipher::StoreCipher;
use folder::{Folder, FolderLock, Mark, name_of, open_private};
use keyhole_secmem::{Key32, SecretBytes, harden};
use layout::{HEADER, Header, META};
use log_index::LogIndex;
use prost::Message;
use redb::backends::FileBackend;
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend};
use rewrite::Wish;
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use writer::{Job, Op, Writer, write_first_tip};

/// A log entry: its place and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// Term and index.
    pub position: Position,
    /// The entry, as the caller encoded it.
    pub data: Bytes,
}

/// The open store. Dropping it commits what is queued and closes the file.
pub struct Store {
    disk: Arc<Disk>,
    identity: StoreIdentity,
    file: Arc<str>,
    shared: Arc<Shared>,
    applied: Option<Vec<u8>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The open file, and the folder's lock for as long as it is open.
pub(crate) struct Disk {
    open: RwLock<Option<OpenFile>>,
}

struct OpenFile {
    db: Arc<Database>,
    /// As soon as its key is known.
    cipher: Option<Arc<StoreCipher>>,
    _lock: Option<FolderLock>,
}

impl Disk {
    fn new(db: Database, lock: Option<FolderLock>) -> Self {
        let open = OpenFile { db: Arc::new(db), cipher: None, _lock: lock };
        Self { open: RwLock::new(Some(open)) }
    }

    pub(crate) fn db(&self) -> Result<Arc<Database>, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| open.db.clone()).ok_or(StoreError::Stopped)
    }

    /// A read of the file as it is now, and what opens its rows.
    pub(crate) fn read(
        &self,
        file: &str,
    ) -> Result<(ReadTransaction, Arc<StoreCipher>), StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_ref().ok_or(StoreError::Stopped)?;
        let cipher = open.cipher.clone().ok_or(StoreError::Stopped)?;
        let txn = open.db.begin_read().map_err(|e| StoreError::redb("read", file, e))?;
        Ok((txn, cipher))
    }

    fn unseal(&self, cipher: Arc<StoreCipher>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_mut() {
            open.cipher = Some(cipher);
        }
    }

    /// Another file is the store from now on; reads that have begun go on with the old one.
    pub(crate) fn replace(&self, db: Database, cipher: Arc<StoreCipher>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_mut() {
            (open.db, open.cipher) = (Arc::new(db), Some(cipher));
        }
    }

    fn close(&self) {
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(panic) = harden::contained(|| drop(open)) {
            tracing::error!(%panic, "closing the store failed; it is checked when it is opened");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    state: Mutex<Memory>,
}

struct Memory {
    log: LogIndex,
    vote: Option<Vec<u8>>,
    committed: Option<Position>,
    failure: Option<StoreError>,
    sealed_for: SealedFor,
    header: Header,
    next_job: u64,
    /// `None` once the store is stopped.
    queue: Option<Sender<Job>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.lock().failure.clone()
    }

    pub(crate) fn set_failure(&self, error: StoreError) {
        self.lock().failure.get_or_insert(error);
    }

    pub(crate) fn sealed_for(&self, sealed_for: SealedFor, header: Header) {
        let mut memory = self.lock();
        (memory.sealed_for, memory.header) = (sealed_for, header);
    }

    pub(crate) fn committed_up_to(&self, job: u64, vote: Option<Vec<u8>>) {
        let mut memory = self.lock();
        memory.log.flushed(job);
        memory.vote = vote;
    }
}

/// The bounds of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// The last entry that was purged.
    pub purged: Option<Position>,
    /// The last entry; when there is none, the last purged one.
    pub last: Option<Position>,
    /// Bytes of the entries between the two.
    pub bytes: u64,
}

impl Store {
    /// Creates an empty store in `folder`, with a fresh key wrapped by `kek`.
    pub fn create(folder: &Path, identity: &StoreIdentity, kek: &Kek) -> Result<(), StoreError> {
        let folder = Folder::new(folder);
        let _lock = folder.lock()?;
        let (store, mark) = (folder.store(), folder.mark());
        if store.exists() {
            return Err(StoreError::AlreadyInitialised { folder: folder.name() });
        }
        if mark.exists() && !folder.unfinished_store().exists() {
            return Err(StoreError::Missing { file: name_of(&store), other: name_of(&mark) });
        }
        let (new_store, new_mark) = (folder.unfinished_store(), folder.unfinished_mark());
        let fresh = |path: &Path| {
            let _ = fs::remove_file(path); // what a creation that was cut short left
            open_private(path, true).map_err(|e| StoreError::io("create", &name_of(path), &e))
        };
        let backend = file_backend(fresh(&new_store)?, &name_of(&new_store))?;
        let mark_file = fresh(&new_mark)?;
        let synced =
            mark_file.try_clone().map_err(|e| StoreError::io("open", &name_of(&new_mark), &e))?;
        Self::create_on(backend, Box::new(mark_file), &name_of(&folder.store()), identity, kek)?;
        synced.sync_all().map_err(|e| StoreError::io("sync", &name_of(&new_mark), &e))?;
        for (from, to) in [(new_mark, mark), (new_store, store)] {
            fs::rename(&from, &to).map_err(|e| StoreError::io("rename", &name_of(&from), &e))?;
        }
        folder.sync()
    }

    /// As [`Self::create`], on any backend; for tests.
    pub fn create_on(
        backend: impl StorageBackend,
        mark: Box<dyn MarkFile>,
        file: &str,
        identity: &StoreIdentity,
        kek: &Kek,
    ) -> Result<(), StoreError> {
        let dek = Key32::generate().map_err(|e| StoreError::keys("make the store's key", e))?;
        let wrapped_dek =
            kek.wrap(&dek, identity).map_err(|e| StoreError::keys("wrap the store's key", e))?;
        let cipher = StoreCipher::new(dek, identity)?;
        let header =
            Header { format: FORMAT, identity: identity.clone(), wrapped_dek, locked: false };
        let mut mark = Mark { file: mark, name: mark_name(file) };
        guard("create", file, || {
            let fail = |error: redb::Error| StoreError::redb("create", file, error);
            let disk = Disk::new(create_database(backend, file)?, None);
            let mut txn = disk.db()?.begin_write().map_err(|e| fail(e.into()))?;
            txn.set_two_phase_commit(true);
            {
                let mut meta = txn.open_table(META).map_err(|e| fail(e.into()))?;
                meta.insert(HEADER, &*header.encode_to_vec()).map_err(|e| fail(e.into()))?;
            }
            let tip = write_first_tip(&txn, &cipher, file)?;
            txn.commit().map_err(|e| fail(e.into()))?;
            mark.write(&cipher, tip.seq)
        })
    }

    /// Whether `folder` holds a store.
    #[must_use]
    pub fn exists(folder: &Path) -> bool {
        Folder::new(folder).store().exists()
    }

    /// Opens the store in `folder`, checks all of it and gives every state row to `load`.
    ///
    /// `on_fatal` is called once, from the writer's thread, when a write has failed: the process has to stop.
    pub fn open(
        folder: &Path,
        kek: &Kek,
        on_fatal: OnFatal,
        load: Load<'_>,
    ) -> Result<Self, StoreError> {
        let folder = Folder::new(folder);
        let lock = folder.lock()?;
        let (store, mark) = (folder.store(), folder.mark());
        match (store.exists(), mark.exists()) {
            (true, true) => {}
            (true, false) => {
                return Err(StoreError::Missing { file: name_of(&mark), other: name_of(&store) });
            }
            (false, true) => {
                return Err(StoreError::Missing { file: name_of(&store), other: name_of(&mark) });
            }
            (false, false) => {
                return Err(StoreError::NotInitialised { folder: folder.name() });
            }
        }
        let open = |path: &Path| {
            open_private(path, false).map_err(|e| StoreError::io("open", &name_of(path), &e))
        };
        let backend = file_backend(open(&store)?, &name_of(&store))?;
        let mark: Box<dyn MarkFile> = Box::new(open(&mark)?);
        let place = Some((folder, lock));
        Self::prepare(backend, mark, (&name_of(&store), place), kek, on_fatal, load)?.with_thread()
    }

    /// As [`Self::open`], on any backend; for tests.
    pub fn open_on(
        backend: impl StorageBackend,
        mark: Box<dyn MarkFile>,
        file: &str,
        kek: &Kek,
        on_fatal: OnFatal,
        load: Load<'_>,
    ) -> Result<Self, StoreError> {
        Self::prepare(backend, mark, (file, None), kek, on_fatal, load)?.with_thread()
    }

    /// As [`Self::open_on`], but without a thread: the caller lets the writer take its turns. For simulations, in which
    /// nothing may depend on how threads run beside each other.
    pub fn open_by_turns(
        backend: impl StorageBackend,
        mark: Box<dyn MarkFile>,
        file: &str,
        kek: &Kek,
        on_fatal: OnFatal,
        load: Load<'_>,
    ) -> Result<(Self, WriterTurns), StoreError> {
        let Prepared { store, turns } =
            Self::prepare(backend, mark, (file, None), kek, on_fatal, load)?;
        Ok((store, turns))
    }

    fn prepare(
        backend: impl StorageBackend,
        mark: Box<dyn MarkFile>,
        (file, place): (&str, Option<(Folder, FolderLock)>),
        kek: &Kek,
        on_fatal: OnFatal,
        load: Load<'_>,
    ) -> Result<Prepared, StoreError> {
        let (folder, lock) = place.unzip();
        let mut mark = Mark { file: mark, name: mark_name(file) };
        let (disk, header, cipher, checked) = guard("open", file, || {
            let disk = Disk::new(open_database(backend, file)?, lock);
            let checker = Checker::new(&*disk.db()?, file)?;
            let header = checker.header()?;
            let dek = kek
                .unwrap(&header.wrapped_dek, &header.identity)
                .map_err(|e| unwrap_error(e, file, kek))?;
            let cipher = StoreCipher::new(dek, &header.identity)?;
            if let Some(folder) = &folder {
                mark.settle(folder, &cipher)?;
            }
            let checked = checker.content(&cipher, &mut mark, load)?;
            drop(checker);
            let cipher = Arc::new(cipher);
            disk.unseal(cipher.clone());
            Ok((disk, header, cipher, checked))
        })?;
        let (sender, queue) = channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(Memory {
                log: checked.log,
                vote: checked.tip.vote.clone(),
                committed: checked.tip.committed,
                failure: None,
                sealed_for: SealedFor { number: checked.tip.key_number, locked: header.locked },
                header: header.clone(),
                next_job: 1,
                queue: Some(sender),
            }),
        });
        let applied = checked.tip.applied.clone();
        let (disk, identity) = (Arc::new(disk), header.identity);
        let file = Arc::<str>::from(file);
        let writer = Writer {
            disk: disk.clone(),
            cipher,
            file: file.clone(),
            mark,
            tip: checked.tip,
            shared: shared.clone(),
            on_fatal: Some(on_fatal),
            identity: identity.clone(),
            folder,
            rewrite: None,
        };
        let turns = WriterTurns::new(writer, queue);
        let writer = Mutex::new(None);
        let store = Self { disk, identity, file, shared, applied, writer };
        Ok(Prepared { store, turns })
    }

    /// What the state rows stood for when the store was opened, as given with them.
    #[must_use]
    pub fn applied(&self) -> Option<Vec<u8>> {
        self.applied.clone()
    }

    /// Whose store this is.
    #[must_use]
    pub fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    /// Why the store has failed, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.shared.failure()
    }

    /// Appends entries; they can be read when this returns, and are on disk when `done` is called.
    pub fn append(&self, rows: Vec<LogRow>, done: Done) -> Result<(), StoreError> {
        let mut memory = self.shared.lock();
        let job = memory.next_job;
        memory.log.append(&rows, job)?;
        memory.push(Op::Append(rows), Some(done));
        Ok(())
    }

    /// Saves the vote, in order with the log.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        self.shared.lock().push(Op::Vote(vote), Some(done));
    }

    /// The last vote that is on disk.
    #[must_use]
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.shared.lock().vote.clone()
    }

    /// Notes what is committed in the cluster; reaches the disk with the next job that is waited for.
    pub fn save_committed(&self, position: Option<Position>) {
        let mut memory = self.shared.lock();
        memory.committed = position;
        memory.push(Op::Committed(position), None);
    }

    /// What [`Self::save_committed`] noted last.
    #[must_use]
    pub fn committed(&self) -> Option<Position> {
        self.shared.lock().committed
    }

    /// Forgets the entries after `last` (all, if `None`): at once for readers, on disk when `done` is called.
    pub fn truncate_after(&self, last: Option<u64>, done: Done) {
        let mut memory = self.shared.lock();
        memory.log.truncate_after(last);
        memory.push(Op::TruncateAfter(last), Some(done));
    }

    /// Forgets the entries up to `upto`, inclusive; the file follows by itself.
    pub fn purge(&self, upto: Position) {
        let mut memory = self.shared.lock();
        memory.log.purge(upto);
        memory.push(Op::Purge(upto), None);
    }

    /// The bounds of the log, with all jobs handed in so far.
    #[must_use]
    pub fn log_bounds(&self) -> LogBounds {
        let memory = self.shared.lock();
        LogBounds {
            purged: memory.log.purged(),
            last: memory.log.last(),
            bytes: memory.log.bytes(),
        }
    }

    /// Bytes of the entries after `index`; of all, if `None`.
    #[must_use]
    pub fn log_bytes_after(&self, index: Option<u64>) -> u64 {
        let memory = self.shared.lock();
        index.map_or(memory.log.bytes(), |index| memory.log.bytes_after(index))
    }

    /// The first index from which on the entries have at most `bytes` together.
    #[must_use]
    pub fn first_index_of_last(&self, bytes: u64) -> u64 {
        self.shared.lock().log.first_of_last(bytes)
    }

    /// The entries of `range` that the log holds: at most `limit` bytes of them, but at least one.
    pub fn read_log(&self, range: Range<u64>, limit: u64) -> Result<Vec<LogRow>, StoreError> {
        guard("read", &self.file, || {
            // The transaction starts under the lock: what is planned to be in the file is in this commit.
            let (plan, (txn, cipher)) = {
                let memory = self.shared.lock();
                let plan = memory.log.plan(range, limit);
                if plan.in_file.is_empty() {
                    return Ok(plan.rows);
                }
                (plan, self.disk.read(&self.file)?)
            };
            let mut rows = view::read_log(&txn, &cipher, &self.file, plan.in_file)?;
            rows.extend(plan.rows);
            Ok(rows)
        })
    }

    /// Mirrors changes of the state, with the encoded position that they lead to. Reaches the disk with the next job
    /// that is waited for.
    pub fn put_rows(&self, changes: Vec<RowChange>, applied: Vec<u8>) {
        self.shared.lock().push(Op::Rows { changes, applied }, None);
    }

    /// Replaces all state rows.
    pub fn install_rows(&self, rows: Rows, applied: Vec<u8>, done: Done) {
        self.shared.lock().push(Op::Install { rows, applied }, Some(done));
    }

    /// Commits all that is queued and hands out the state rows as of then.
    pub fn view(&self, reply: ViewDone) {
        self.shared.lock().push(Op::View(reply), None);
    }

    /// Commits all that is queued.
    pub fn flush(&self, done: Done) {
        self.shared.lock().push(Op::Flush, Some(done));
    }

    /// Keeps (or, with `None`, removes) a secret of this member only.
    pub fn local_put(&self, name: &str, secret: Option<SecretBytes>, done: Done) {
        self.shared.lock().push(Op::Local { name: name.to_owned(), secret }, Some(done));
    }

    /// A secret of this member, as last committed.
    pub fn local_get(&self, name: &str) -> Result<Option<SecretBytes>, StoreError> {
        guard("read", &self.file, || {
            let (txn, cipher) = self.disk.read(&self.file)?;
            view::read_local(&txn, &cipher, &self.file, name)
        })
    }

    /// Writes the whole store anew under a new key that `kek` wraps, while it serves; `done` is called when the new file
    /// is the store, or why it stays as it was.
    pub fn rewrite(&self, kek: &Kek, sealed_for: SealedFor, on_step: OnStep, done: Done) {
        match Wish::new(&self.identity, kek, sealed_for, on_step) {
            Ok(wish) => {
                self.shared.lock().push(Op::Rewrite(Some(Box::new(wish(done)))), None);
            }
            Err(error) => done(Err(error)),
        }
    }

    /// What the store is sealed for.
    #[must_use]
    pub fn sealed_for(&self) -> SealedFor {
        self.shared.lock().sealed_for
    }

    /// What can be said of it without its key.
    #[must_use]
    pub fn as_sealed(&self) -> SealedStore {
        SealedStore::of(self.shared.lock().header.clone())
    }

    /// Commits what is queued and closes the file; later jobs fail. An open view keeps it until it is dropped.
    pub fn stop(&self) {
        self.shared.lock().queue = None;
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            self.shared.set_failure(StoreError::Stopped);
        }
        self.disk.close();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A store whose writer does not run yet.
struct Prepared {
    store: Store,
    turns: WriterTurns,
}

impl Prepared {
    fn with_thread(self) -> Result<Store, StoreError> {
        let Self { mut store, turns } = self;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || turns.run())
            .map_err(|e| StoreError::io("start the writer of", &store.file, &e))?;
        store.writer = Mutex::new(Some(thread));
        Ok(store)
    }
}

impl Memory {
    fn push(&mut self, op: Op, done: Option<Done>) {
        let job = Job { number: self.next_job, op, done };
        self.next_job += 1;
        let refused = match &self.queue {
            Some(queue) => queue.send(job).err().map(|e| e.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            job.fail(self.failure.as_ref().unwrap_or(&StoreError::Stopped));
        }
    }
}

/// Runs `work` on `file`; a panic in it, which redb may raise on a damaged file, becomes an error.
pub(crate) fn guard<T>(
    doing: &'static str,
    file: &str,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match harden::contained(work) {
        Ok(result) => result,
        Err(panic) => {
            Err(StoreError::damaged(file, format!("{panic} (while trying to {doing} it)")))
        }
    }
}

fn file_backend(file: File, name: &str) -> Result<FileBackend, StoreError> {
    FileBackend::new(file).map_err(|e| StoreError::redb("open", name, e))
}

fn mark_name(file: &str) -> String {
    name_of(&Path::new(file).with_extension("mark"))
}

fn unwrap_error(error: KeyError, file: &str, kek: &Kek) -> StoreError {
    match error {
        KeyError::Lock { reason } => StoreError::keys("lock the store's key in memory", reason),
        _ => StoreError::WrongKey { file: file.to_owned(), kek: kek.name().to_owned() },
    }
}
