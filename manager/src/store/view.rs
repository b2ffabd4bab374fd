//! Reading the file: log entries, state rows as of one commit, secrets of this member.
//!
//! Depends on redb (read transactions) and the cipher. Invariant: every row that leaves here was authenticated for its
//! place; a row that does not open is an error, never skipped.
use super::cipher::{Kind, Opener, Place, StoreCipher};
use super::layout::{LOCALS, LOG, Position, ROWS};
use super::{LogRow, StoreError};
use keyhole_secmem::SecretBytes;
use redb::{ReadTransaction, ReadableTable};
use std::ops::Range;
use std::sync::Arc;

/// The state rows as of one commit, unchanged by later ones. Keeps old pages from reuse: let go of it soon.
pub struct RowsView {
    pub(crate) txn: ReadTransaction,
    pub(crate) cipher: Arc<StoreCipher>,
    pub(crate) file: Arc<str>,
    pub(crate) applied: Option<Vec<u8>>,
}

/// A state row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

impl RowsView {
    /// What the rows stand for, as given with them.
    #[must_use]
    pub fn applied(&self) -> Option<&[u8]> {
        self.applied.as_deref()
    }

    /// Calls `visit` with each row, in no particular order, until it says `false`.
    pub fn for_each(&self, visit: &mut dyn FnMut(Row) -> bool) -> Result<(), StoreError> {
        super::guard("read", &self.file, || {
            let table =
                self.txn.open_table(ROWS).map_err(|e| StoreError::redb("read", &self.file, e))?;
            let mut opener = self.cipher.opener();
            for entry in table.iter().map_err(|e| StoreError::redb("read", &self.file, e))? {
                let (name, frame) = entry.map_err(|e| StoreError::redb("read", &self.file, e))?;
                if !visit(open_row(
                    &self.cipher,
                    &mut opener,
                    &self.file,
                    &name.value(),
                    frame.value(),
                )?) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Opens the state row that lies under `name`.
pub(crate) fn open_row(
    cipher: &StoreCipher,
    opener: &mut Opener<'_>,
    file: &str,
    name: &[u8; 16],
    frame: &[u8],
) -> Result<Row, StoreError> {
    let broken = || StoreError::damaged(file, "a state row does not open");
    let content =
        opener.open(Place { kind: Kind::Row, key: name, term: 0 }, frame).map_err(|_| broken())?;
    let (key, value) = split_named(&content).ok_or_else(broken)?;
    if cipher.row_name(Kind::Row, key) != *name {
        return Err(broken());
    }
    Ok((key.to_vec(), value.to_vec()))
}

/// Opens the member's secret that lies under `name`; gives its name's length and both together.
pub(crate) fn open_local(
    cipher: &StoreCipher,
    opener: &mut Opener<'_>,
    file: &str,
    name: &[u8; 16],
    frame: &[u8],
) -> Result<(usize, SecretBytes), StoreError> {
    let broken = || StoreError::damaged(file, "a local row does not open");
    let place = Place { kind: Kind::Local, key: name, term: 0 };
    let room = SecretBytes::zeroed(Opener::secret_len(frame))
        .map_err(|e| StoreError::keys("lock a secret in memory", e))?;
    let content = opener.open_secret(place, frame, room).map_err(|_| broken())?;
    let (key, _) = split_named(content.as_slice()).ok_or_else(broken)?;
    if cipher.row_name(Kind::Local, key) != *name {
        return Err(broken());
    }
    Ok((2 + key.len(), content))
}

/// A member's secret by its name.
pub(crate) fn read_local(
    txn: &ReadTransaction,
    cipher: &StoreCipher,
    file: &str,
    name: &str,
) -> Result<Option<SecretBytes>, StoreError> {
    let hashed = cipher.row_name(Kind::Local, name.as_bytes());
    let table = txn.open_table(LOCALS).map_err(|e| StoreError::redb("read", file, e))?;
    let Some(frame) = table.get(hashed).map_err(|e| StoreError::redb("read", file, e))? else {
        return Ok(None);
    };
    let (skip, content) = open_local(cipher, &mut cipher.opener(), file, &hashed, frame.value())?;
    let rest = &content.as_slice()[skip..];
    let mut secret = SecretBytes::zeroed(rest.len())
        .map_err(|e| StoreError::keys("lock a secret in memory", e))?;
    secret.as_mut_slice().copy_from_slice(rest);
    Ok(Some(secret))
}

/// The log entries of `range`; all of them must be there.
pub(crate) fn read_log(
    txn: &ReadTransaction,
    cipher: &StoreCipher,
    file: &str,
    range: Range<u64>,
) -> Result<Vec<LogRow>, StoreError> {
    let table = txn.open_table(LOG).map_err(|e| StoreError::redb("read", file, e))?;
    let mut opener = cipher.opener();
    let mut rows = Vec::new();
    for entry in table.range(range.clone()).map_err(|e| StoreError::redb("read", file, e))? {
        let (index, frame) = entry.map_err(|e| StoreError::redb("read", file, e))?;
        let index = index.value();
        let (term, data) = opener
            .open_log(index, frame.value())
            .map_err(|_| StoreError::damaged(file, format!("log entry {index} does not open")))?;
        rows.push(LogRow { position: Position { term, index }, data: data.into() });
    }
    let complete = rows.iter().map(|row| row.position.index).eq(range.clone());
    if !complete {
        return Err(StoreError::damaged(
            file,
            format!("log entries between {} and {} are missing", range.start, range.end),
        ));
    }
    Ok(rows)
}

/// Puts a name before a content: two bytes of length, the name.
pub(crate) fn name_head(name: &[u8]) -> Result<[u8; 2], StoreError> {
    let len = u16::try_from(name.len())
        .map_err(|_| StoreError::keys("seal", "the row's key is too long"))?;
    Ok(len.to_le_bytes())
}

fn split_named(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = content.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*head)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreIdentity;
    use keyhole_secmem::Key32;

    #[test]
    fn a_row_is_only_taken_under_the_name_of_its_own_key() {
        let cipher =
            StoreCipher::new(Key32::generate().unwrap(), &StoreIdentity::default()).unwrap();
        let name = cipher.row_name(Kind::Row, b"key");
        let take = |key: &[u8]| {
            let content = [&name_head(key).unwrap()[..], key, b"value"];
            let place = Place { kind: Kind::Row, key: &name, term: 0 };
            let frame = cipher.batch().unwrap().seal(place, &content).unwrap();
            open_row(&cipher, &mut cipher.opener(), "store.redb", &name, &frame)
        };
        assert_eq!(take(b"key").unwrap(), (b"key".to_vec(), b"value".to_vec()));
        assert!(matches!(take(b"yek"), Err(StoreError::Damaged { .. })));
    }
}
