//! Writing the whole store anew, under a new key: piece by piece between the writer's batches, then put in its place.
//!
//! Depends on redb and the cipher; works in the writer's thread. Invariant: until the new file is complete, on disk and
//! renamed, the old one is the store, and nothing that happens to the new one harms it. At every moment the two files in
//! the folder open with the key file, the key that follows it, or the unlock key.
use super::cipher::StoreCipher;
use super::folder::{Folder, Mark, name_of, open_private};
use super::layout::{FORMAT, Header, LOCALS, LOG, ROWS, Tip};
use super::view::{open_local, open_row};
use super::writer::{Batch, Job, Op};
use super::{Done, StoreError, StoreIdentity, file_backend};
use crate::keys::Kek;
use crate::store::check::create_database;
use keyhole_secmem::{Key32, SecretBytes};
use prost::Message;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable};
use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// So much is copied while a change waits at most, besides what was appended to the log since the last piece.
const PIECE_BYTES: usize = 512 << 10;

/// What a store is sealed for: the demand that it is written for, and who opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SealedFor {
    /// Counts the demands; 0 for a store as it was made.
    pub number: u64,
    /// Whether the operators' unlock key opens it, and no key file.
    pub locked: bool,
}

/// How far the writing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many rows of so many are in the new file; after all of them comes the log, piece by piece, too.
    Copied(u64, u64),
    /// The new file is complete and on disk.
    Written,
    /// The new file's mark is beside it.
    Marked,
    /// The new file is the store.
    Replaced,
    /// Its mark is the store's.
    Done,
}

/// Told how far the writing is, from the writer's thread.
pub type OnStep = Box<dyn FnMut(Step) + Send>;

/// A wish to write the store anew.
pub(crate) struct Wish {
    pub(crate) wrapped_dek: Vec<u8>,
    pub(crate) dek: Key32,
    pub(crate) sealed_for: SealedFor,
    pub(crate) on_step: OnStep,
    pub(crate) done: Done,
}

impl Wish {
    /// Draws a key for the store and wraps it.
    pub(crate) fn new(
        identity: &StoreIdentity,
        kek: &Kek,
        sealed_for: SealedFor,
        on_step: OnStep,
    ) -> Result<impl FnOnce(Done) -> Self, StoreError> {
        let dek = Key32::generate().map_err(|e| StoreError::keys("make the store's key", e))?;
        let wrapped = kek.wrap(&dek, identity);
        let wrapped_dek = wrapped.map_err(|e| StoreError::keys("wrap the store's key", e))?;
        Ok(move |done| Self { wrapped_dek, dek, sealed_for, on_step, done })
    }
}

/// A store that is being written anew.
pub(crate) struct Rewrite {
    folder: Folder,
    file: String,
    header: Header,
    sealed_for: SealedFor,
    db: Database,
    cipher: Arc<StoreCipher>,
    /// What the new file has; its counts are its own.
    tip: Tip,
    at: At,
    copied: u64,
    appended: usize,
    on_step: OnStep,
    pub(crate) done: Done,
}

/// Where the next piece begins: state rows come first, then the log.
#[derive(Clone, Copy)]
enum At {
    Rows(Bound<[u8; 16]>),
    Log,
}

/// The store's present file.
pub(crate) struct Present<'a> {
    pub(crate) db: &'a Database,
    pub(crate) cipher: &'a StoreCipher,
    pub(crate) file: &'a str,
    pub(crate) tip: &'a Tip,
}

/// The file that is the store from now on.
pub(crate) struct Rewritten {
    pub(crate) db: Database,
    pub(crate) cipher: Arc<StoreCipher>,
    pub(crate) mark: Mark,
    pub(crate) tip: Tip,
    pub(crate) sealed_for: SealedFor,
    pub(crate) header: Header,
    pub(crate) done: Done,
}

/// Why the writing ended early.
pub(crate) enum Broken {
    /// The store is as it was.
    Kept(StoreError),
    /// It is not known which file will be found after a crash; either opens.
    Store(StoreError),
}

impl Rewrite {
    pub(crate) fn begin(
        folder: &Folder,
        identity: &StoreIdentity,
        present: &Tip,
        wish: Wish,
    ) -> Result<Self, (StoreError, Done)> {
        let file = name_of(&folder.next_store());
        let made = StoreCipher::new(wish.dek, identity)
            .and_then(|cipher| Ok((cipher, new_database(&folder.next_store(), &file)?)));
        let (cipher, db) = match made {
            Ok(made) => made,
            Err(error) => return Err((error, wish.done)),
        };
        let header = Header {
            format: FORMAT,
            identity: identity.clone(),
            wrapped_dek: wish.wrapped_dek,
            locked: wish.sealed_for.locked,
        };
        Ok(Self {
            folder: folder.clone(),
            file,
            header,
            sealed_for: wish.sealed_for,
            db,
            cipher: Arc::new(cipher),
            tip: empty(present),
            at: At::Rows(Bound::Unbounded),
            copied: 0,
            appended: 0,
            on_step: wish.on_step,
            done: wish.done,
        })
    }

    /// Does to the new file what was just committed to the present one.
    pub(crate) fn follow(&mut self, jobs: &[Job], present: &Present<'_>) -> Result<(), StoreError> {
        if jobs.iter().any(|job| matches!(job.op, Op::Install { .. })) {
            return self.start_over(present.tip);
        }
        let fail = |error: redb::Error| StoreError::redb("write", &self.file, error);
        let mut txn = self.db.begin_write().map_err(|e| fail(e.into()))?;
        // The next piece takes it to the disk.
        txn.set_durability(Durability::None).map_err(|e| fail(e.into()))?;
        let mut batch = Batch::new(&txn, &self.cipher, &self.file)?;
        for job in jobs {
            match &job.op {
                Op::Rows { changes, .. } => changes.iter().try_for_each(|(key, value)| {
                    batch.change_row(key, value.as_deref(), &mut self.tip)
                })?,
                Op::Append(rows) => {
                    self.appended += rows.iter().map(|row| row.data.len()).sum::<usize>();
                }
                Op::TruncateAfter(last) => batch.truncate_after(*last, &mut self.tip)?,
                Op::Purge(upto) => batch.purge(*upto, &mut self.tip)?,
                // All of these are taken as they are in the end.
                Op::Vote(_) | Op::Committed(_) | Op::Local { .. } => {}
                Op::Install { .. } | Op::View(_) | Op::Rewrite(_) | Op::Flush => {}
            }
        }
        drop(batch);
        txn.commit().map_err(|e| fail(e.into()))
    }

    /// All rows were replaced: what was copied is worth nothing.
    fn start_over(&mut self, present: &Tip) -> Result<(), StoreError> {
        self.db = new_database(&self.folder.next_store(), &self.file)?;
        self.tip = empty(present);
        self.at = At::Rows(Bound::Unbounded);
        (self.copied, self.appended) = (0, 0);
        Ok(())
    }

    /// Copies the next piece; `true` when there is nothing left to copy.
    pub(crate) fn copy_piece(&mut self, present: &Present<'_>) -> Result<bool, StoreError> {
        let fail = |error: redb::Error| StoreError::redb("read", present.file, error);
        let old = present.db.begin_read().map_err(|e| fail(e.into()))?;
        let room = PIECE_BYTES + std::mem::take(&mut self.appended);
        let all = match self.at {
            At::Rows(from) => {
                self.at = self.copy_rows(&old, present, from, room)?;
                false
            }
            At::Log => self.copy_log(&old, present, room)?,
        };
        (self.on_step)(Step::Copied(self.copied, present.tip.rows));
        Ok(all)
    }

    fn copy_rows(
        &mut self,
        old: &ReadTransaction,
        present: &Present<'_>,
        from: Bound<[u8; 16]>,
        room: usize,
    ) -> Result<At, StoreError> {
        let reading = |error: redb::Error| StoreError::redb("read", present.file, error);
        let writing = |error: redb::Error| StoreError::redb("write", &self.file, error);
        let table = old.open_table(ROWS).map_err(|e| reading(e.into()))?;
        let txn = self.db.begin_write().map_err(|e| writing(e.into()))?;
        let mut batch = Batch::new(&txn, &self.cipher, &self.file)?;
        let (mut opener, mut bytes, mut at) = (present.cipher.opener(), 0, At::Log);
        for entry in table.range((from, Bound::Unbounded)).map_err(|e| reading(e.into()))? {
            let (name, frame) = entry.map_err(|e| reading(e.into()))?;
            let (name, frame) = (name.value(), frame.value());
            let (key, value) = open_row(present.cipher, &mut opener, present.file, &name, frame)?;
            batch.change_row(&key, Some(&value), &mut self.tip)?;
            self.copied += 1;
            bytes += frame.len();
            if bytes >= room {
                at = At::Rows(Bound::Excluded(name));
                break;
            }
        }
        drop(batch);
        txn.commit().map_err(|e| writing(e.into()))?;
        Ok(at)
    }

    fn copy_log(
        &mut self,
        old: &ReadTransaction,
        present: &Present<'_>,
        room: usize,
    ) -> Result<bool, StoreError> {
        let reading = |error: redb::Error| StoreError::redb("read", present.file, error);
        let writing = |error: redb::Error| StoreError::redb("write", &self.file, error);
        let table = old.open_table(LOG).map_err(|e| reading(e.into()))?;
        let txn = self.db.begin_write().map_err(|e| writing(e.into()))?;
        let mut batch = Batch::new(&txn, &self.cipher, &self.file)?;
        let next = self.tip.next_index().unwrap_or(present.tip.log_first);
        let (mut opener, mut bytes, mut all) = (present.cipher.opener(), 0, true);
        for entry in table.range(next..).map_err(|e| reading(e.into()))? {
            let (index, frame) = entry.map_err(|e| reading(e.into()))?;
            let (index, frame) = (index.value(), frame.value());
            let opened = opener.open_log(index, frame);
            let (term, data) = opened.map_err(|_| {
                StoreError::damaged(present.file, format!("log entry {index} does not open"))
            })?;
            batch.append_sealed(term, index, &data, &mut self.tip)?;
            bytes += frame.len();
            if bytes >= room {
                all = false;
                break;
            }
        }
        drop(batch);
        txn.commit().map_err(|e| writing(e.into()))?;
        Ok(all)
    }

    /// Completes the new file and puts it in the present one's place.
    pub(crate) fn finish(mut self, present: &Present<'_>) -> Result<Rewritten, (Broken, Done)> {
        let completed = self.complete(present).and_then(|tip| {
            (self.on_step)(Step::Written);
            let mark = self.next_mark(tip.seq)?;
            (self.on_step)(Step::Marked);
            Ok((tip, mark))
        });
        let (tip, mark) = match completed {
            Ok(completed) => completed,
            Err(error) => return Err((Broken::Kept(error), self.done)),
        };
        let (folder, on_step) = (&self.folder, &mut self.on_step);
        let replaced = rename(&folder.next_store(), &folder.store());
        if let Err(error) = replaced {
            return Err((Broken::Kept(error), self.done));
        }
        let placed = folder.sync().and_then(|()| {
            on_step(Step::Replaced);
            rename(&folder.next_mark(), &folder.mark())?;
            folder.sync()?;
            on_step(Step::Done);
            Ok(())
        });
        match placed {
            Ok(()) => Ok(Rewritten {
                db: self.db,
                cipher: self.cipher,
                mark,
                tip,
                sealed_for: self.sealed_for,
                header: self.header,
                done: self.done,
            }),
            Err(error) => Err((Broken::Store(error), self.done)),
        }
    }

    /// Header, this member's secrets, and the tip; all of it is on disk then.
    fn complete(&mut self, present: &Present<'_>) -> Result<Tip, StoreError> {
        let old = present.db.begin_read();
        let old = old.map_err(|e| StoreError::redb("read", present.file, e))?;
        let fail = |error: redb::Error| StoreError::redb("write", &self.file, error);
        let mut txn = self.db.begin_write().map_err(|e| fail(e.into()))?;
        txn.set_two_phase_commit(true);
        let mut batch = Batch::new(&txn, &self.cipher, &self.file)?;
        self.tip.locals = 0;
        copy_locals(&old, present, &mut batch, &mut self.tip)?;
        let copied = [self.tip.rows, self.tip.log_len, self.tip.locals];
        let tip = Tip { key_number: self.sealed_for.number, ..present.tip.clone() };
        if copied != [tip.rows, tip.log_len, tip.locals] {
            let what = format!("{copied:?} rows, entries and secrets were copied of {tip:?}");
            return Err(StoreError::damaged(&self.file, what));
        }
        let mut tip = tip;
        batch.header(&self.header.encode_to_vec())?;
        batch.write_all(&mut [], &mut tip)?;
        txn.commit().map_err(|e| fail(e.into()))?;
        Ok(tip)
    }

    fn next_mark(&self, seq: u64) -> Result<Mark, StoreError> {
        let path = self.folder.next_mark();
        let name = name_of(&path);
        let _ = fs::remove_file(&path); // what one that was cut short left
        let file = open_private(&path, true).map_err(|e| StoreError::io("create", &name, &e))?;
        let synced = file.try_clone().map_err(|e| StoreError::io("open", &name, &e))?;
        let mut mark = Mark { file: Box::new(file), name: name_of(&self.folder.mark()) };
        mark.write(&self.cipher, seq)?;
        synced.sync_all().map_err(|e| StoreError::io("sync", &name, &e))?;
        self.folder.sync()?;
        Ok(mark)
    }

    /// Removes what was written of the new file.
    pub(crate) fn abandon(folder: &Folder) {
        for path in [folder.next_store(), folder.next_mark()] {
            // It may not be there; the next attempt begins with removing it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Nothing copied of this.
fn empty(present: &Tip) -> Tip {
    Tip { purged: present.purged, log_first: present.log_first, ..Tip::default() }
}

fn copy_locals(
    old: &ReadTransaction,
    present: &Present<'_>,
    batch: &mut Batch<'_>,
    tip: &mut Tip,
) -> Result<(), StoreError> {
    let reading = |error: redb::Error| StoreError::redb("read", present.file, error);
    let table = old.open_table(LOCALS).map_err(|e| reading(e.into()))?;
    let mut opener = present.cipher.opener();
    for entry in table.iter().map_err(|e| reading(e.into()))? {
        let (name, frame) = entry.map_err(|e| reading(e.into()))?;
        let (name, frame) = (name.value(), frame.value());
        let (skip, content) = open_local(present.cipher, &mut opener, present.file, &name, frame)?;
        let (head, rest) = content.as_slice().split_at(skip);
        let mut secret = SecretBytes::zeroed(rest.len())
            .map_err(|e| StoreError::keys("lock a secret in memory", e))?;
        secret.as_mut_slice().copy_from_slice(rest);
        // Two bytes of the head are the name's length.
        batch.change_local(&head[2..], Some(secret), tip)?;
    }
    Ok(())
}

fn new_database(path: &Path, file: &str) -> Result<Database, StoreError> {
    let _ = fs::remove_file(path); // what one that was cut short left
    let made = open_private(path, true).map_err(|e| StoreError::io("create", file, &e))?;
    create_database(file_backend(made, file)?, file)
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|e| StoreError::io("rename", &name_of(from), &e))
}
