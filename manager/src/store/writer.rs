//! The one thread that writes: drains the queue, one transaction for all it finds, then answers in order.
//!
//! A simulation has no threads: it lets the writer take its [turns](WriterTurns::turn) by hand.
//! Depends on redb and the cipher. Invariant: nothing is acknowledged before the commit that holds it and everything
//! before it is on disk; after a failed commit nothing is acknowledged any more.
use super::cipher::{BatchSealer, Kind, Place, StoreCipher};
use super::folder::{Folder, Mark};
use super::layout::{HEADER, LOCALS, LOG, META, Position, ROWS, TIP, Tip};
use super::rewrite::{Broken, Present, Rewrite, Rewritten, Wish};
use super::view::{Row, RowsView, name_head};
use super::{Disk, LogRow, Shared, StoreError, StoreIdentity, guard};
use keyhole_secmem::SecretBytes;
use prost::Message;
use redb::{Database, ReadableDatabase, Table, WriteTransaction};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

/// One transaction takes jobs up to this size.
const BATCH_BYTES: usize = 8 << 20;

/// Told when the job's commit is on disk, or why it never will be.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Told the state rows as of its place in the queue.
pub type ViewDone = Box<dyn FnOnce(Result<RowsView, StoreError>) + Send>;

/// State rows, each made when it is written.
pub type Rows = Box<dyn Iterator<Item = Row> + Send>;

/// A change of one state row: its key, and its value or `None` to delete it.
pub type RowChange = (Vec<u8>, Option<Vec<u8>>);

pub(crate) enum Op {
    Append(Vec<LogRow>),
    Vote(Vec<u8>),
    Committed(Option<Position>),
    TruncateAfter(Option<u64>),
    Purge(Position),
    Rows { changes: Vec<RowChange>, applied: Vec<u8> },
    Install { rows: Rows, applied: Vec<u8> },
    Local { name: String, secret: Option<SecretBytes> },
    View(ViewDone),
    Rewrite(Option<Box<Wish>>),
    Flush,
}

pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) op: Op,
    pub(crate) done: Option<Done>,
}

impl Job {
    /// Whether somebody waits for the disk. What nobody waits for rides with the next job that is waited for: it can
    /// be rebuilt from the log.
    fn is_urgent(&self) -> bool {
        !matches!(self.op, Op::Rows { .. } | Op::Committed(_))
    }

    fn size(&self) -> usize {
        match &self.op {
            Op::Append(rows) => rows.iter().map(|row| row.data.len() + 64).sum(),
            Op::Rows { changes, .. } => changes
                .iter()
                .map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + 64)
                .sum(),
            // It goes alone.
            Op::Install { .. } => usize::MAX / 2,
            _ => 64,
        }
    }

    pub(crate) fn fail(self, error: &StoreError) {
        match self.op {
            Op::View(reply) => reply(Err(error.clone())),
            Op::Rewrite(Some(wish)) => (wish.done)(Err(error.clone())),
            _ => {}
        }
        if let Some(done) = self.done {
            done(Err(error.clone()));
        }
    }
}

/// Called once, from the writer's thread, when the store has failed for good.
pub type OnFatal = Box<dyn FnOnce(&StoreError) + Send>;

pub(crate) struct Writer {
    pub(crate) disk: Arc<Disk>,
    pub(crate) cipher: Arc<StoreCipher>,
    pub(crate) file: Arc<str>,
    pub(crate) mark: Mark,
    pub(crate) tip: Tip,
    pub(crate) shared: Arc<Shared>,
    pub(crate) on_fatal: Option<OnFatal>,
    pub(crate) identity: StoreIdentity,
    /// Where the files are; a store in memory has none and is not written anew.
    pub(crate) folder: Option<Folder>,
    pub(crate) rewrite: Option<Rewrite>,
}

/// The writer with its queue: what its thread works on.
pub struct WriterTurns {
    writer: Writer,
    queue: Receiver<Job>,
    batch: VecDeque<Job>,
}

impl WriterTurns {
    pub(crate) fn new(writer: Writer, queue: Receiver<Job>) -> Self {
        Self { writer, queue, batch: VecDeque::new() }
    }

    /// Works until all senders are gone, then commits what is left.
    pub(crate) fn run(mut self) {
        while self.take_turn(true) {}
    }

    /// Commits what is due of the queue now, without waiting for more; `false` when no more will come.
    pub fn turn(&mut self) -> bool {
        self.take_turn(false)
    }

    fn take_turn(&mut self, wait: bool) -> bool {
        // Who writes the store anew takes what there is.
        let busy = self.writer.rewrite.is_some();
        let collected = collect(&self.queue, &mut self.batch, wait && !busy);
        if (busy || collected != Collected::NotYet) && !self.batch.is_empty() {
            self.writer.write(self.batch.drain(..).collect());
        }
        self.writer.rewrite_on();
        if collected != Collected::Over {
            return true;
        }
        if let Some(rewrite) = self.writer.rewrite.take() {
            (rewrite.done)(Err(StoreError::Stopped));
        }
        false
    }
}

impl Writer {
    fn write(&mut self, mut jobs: Vec<Job>) {
        if let Some(error) = self.shared.failure() {
            jobs.into_iter().for_each(|job| job.fail(&error));
            return;
        }
        match self.commit(&mut jobs) {
            Ok(()) => self.acknowledge(jobs),
            Err(error) => self.fail(jobs, &error),
        }
    }

    fn commit(&mut self, jobs: &mut [Job]) -> Result<(), StoreError> {
        let file = self.file.clone();
        let tip = guard("write", &file, || self.transact(jobs))?;
        // The mark follows the commit and precedes every acknowledgement: whatever was acknowledged is in a commit
        // whose number the mark knows.
        self.mark.write(&self.cipher, tip.seq)?;
        self.tip = tip;
        self.follow(jobs);
        Ok(())
    }

    /// Does to the file that is to be the store what was done to the store.
    fn follow(&mut self, jobs: &[Job]) {
        let Some(mut rewrite) = self.rewrite.take() else { return };
        let followed = guard("write", &self.file, || {
            let db = self.disk.db()?;
            rewrite.follow(jobs, &present(&db, &self.cipher, &self.file, &self.tip))
        });
        match followed {
            Ok(()) => self.rewrite = Some(rewrite),
            Err(error) => self.keep((error, rewrite.done)),
        }
    }

    fn begin_rewrite(&mut self, wish: Wish) {
        let Some(folder) = self.folder.clone().filter(|_| self.rewrite.is_none()) else {
            let reason = "it is under way already, or the store is in no folder";
            return self.keep((StoreError::keys("write the store anew", reason), wish.done));
        };
        match Rewrite::begin(&folder, &self.identity, &self.tip, wish) {
            Ok(rewrite) => self.rewrite = Some(rewrite),
            Err(failed) => self.keep(failed),
        }
    }

    /// The next piece of the file that is to be the store; after the last one it is.
    fn rewrite_on(&mut self) {
        let Some(mut rewrite) = self.rewrite.take() else { return };
        let (file, cipher, tip) = (self.file.clone(), self.cipher.clone(), self.tip.clone());
        let db = match self.disk.db() {
            Ok(db) => db,
            Err(error) => return self.keep((error, rewrite.done)),
        };
        let present = present(&db, &cipher, &file, &tip);
        match guard("write", &file, || rewrite.copy_piece(&present)) {
            Ok(false) => self.rewrite = Some(rewrite),
            Ok(true) => match rewrite.finish(&present) {
                Ok(rewritten) => self.adopt(rewritten),
                Err((Broken::Kept(error), done)) => self.keep((error, done)),
                Err((Broken::Store(error), done)) => {
                    self.fail(Vec::new(), &error);
                    done(Err(error));
                }
            },
            Err(error) => self.keep((error, rewrite.done)),
        }
    }

    fn adopt(&mut self, new: Rewritten) {
        self.cipher = new.cipher;
        self.mark = new.mark;
        self.tip = new.tip;
        self.disk.replace(new.db, self.cipher.clone());
        self.shared.sealed_for(new.sealed_for, new.header);
        (new.done)(Ok(()));
    }

    /// The store is as it was.
    fn keep(&mut self, (error, done): (StoreError, Done)) {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.rewrite.is_none()) {
            Rewrite::abandon(folder);
        }
        done(Err(error));
    }

    fn transact(&self, jobs: &mut [Job]) -> Result<Tip, StoreError> {
        let fail = |error: redb::Error| StoreError::redb("write", &self.file, error);
        let db = self.disk.db()?;
        let mut txn = db.begin_write().map_err(|e| fail(e.into()))?;
        txn.set_two_phase_commit(true);
        let mut tip = self.tip.clone();
        Batch::new(&txn, &self.cipher, &self.file)?.write_all(jobs, &mut tip)?;
        txn.commit().map_err(|e| fail(e.into()))?;
        Ok(tip)
    }

    fn acknowledge(&mut self, jobs: Vec<Job>) {
        let last = jobs.last().map_or(0, |job| job.number);
        self.shared.committed_up_to(last, self.tip.vote.clone());
        for job in jobs {
            match job.op {
                Op::View(reply) => reply(self.view()),
                Op::Rewrite(Some(wish)) => self.begin_rewrite(*wish),
                _ => {}
            }
            if let Some(done) = job.done {
                done(Ok(()));
            }
        }
    }

    fn view(&self) -> Result<RowsView, StoreError> {
        guard("read", &self.file, || {
            Ok(RowsView {
                txn: self
                    .disk
                    .db()?
                    .begin_read()
                    .map_err(|e| StoreError::redb("read", &self.file, e))?,
                cipher: self.cipher.clone(),
                file: self.file.clone(),
                applied: self.tip.applied.clone(),
            })
        })
    }

    fn fail(&mut self, jobs: Vec<Job>, error: &StoreError) {
        tracing::error!(%error, "the store has failed; nothing more is acknowledged");
        self.shared.set_failure(error.clone());
        // Before anybody is answered: of the reasons to stop that follow from this one, it is the first.
        if let Some(on_fatal) = self.on_fatal.take() {
            on_fatal(error);
        }
        // It lacks what the store may have beyond its tip, and would be taken for the store all the same.
        if let Some(rewrite) = self.rewrite.take() {
            self.keep((error.clone(), rewrite.done));
        }
        jobs.into_iter().for_each(|job| job.fail(error));
    }
}

fn present<'a>(
    db: &'a Database,
    cipher: &'a StoreCipher,
    file: &'a str,
    tip: &'a Tip,
) -> Present<'a> {
    Present { db, cipher, file, tip }
}

/// What there is to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collected {
    /// Somebody waits for it, or it is large enough.
    Due,
    /// It waits for company.
    NotYet,
    /// No more will come.
    Over,
}

/// Adds work to the batch until there is some that somebody waits for, or enough of the other; with `wait`, waits for it.
fn collect(queue: &Receiver<Job>, batch: &mut VecDeque<Job>, wait: bool) -> Collected {
    let mut urgent = batch.iter().any(Job::is_urgent);
    let mut bytes: usize = batch.iter().map(Job::size).sum();
    loop {
        let due = urgent || bytes >= BATCH_BYTES;
        let next = match due || !wait {
            true => queue.try_recv(),
            false => queue.recv().map_err(TryRecvError::from),
        };
        match next {
            Ok(job) => {
                urgent |= job.is_urgent();
                bytes += job.size();
                batch.push_back(job);
            }
            Err(TryRecvError::Empty) if due => return Collected::Due,
            Err(TryRecvError::Empty) => return Collected::NotYet,
            Err(TryRecvError::Disconnected) => return Collected::Over,
        }
        if bytes >= BATCH_BYTES {
            return Collected::Due;
        }
    }
}

/// The open tables of one transaction.
pub(crate) struct Batch<'t> {
    meta: Table<'t, &'static str, &'static [u8]>,
    log: Table<'t, u64, &'static [u8]>,
    rows: Table<'t, [u8; 16], &'static [u8]>,
    locals: Table<'t, [u8; 16], &'static [u8]>,
    cipher: &'t StoreCipher,
    sealer: BatchSealer<'t>,
    file: &'t str,
}

impl<'t> Batch<'t> {
    pub(crate) fn new(
        txn: &'t WriteTransaction,
        cipher: &'t StoreCipher,
        file: &'t str,
    ) -> Result<Self, StoreError> {
        let fail = |error: redb::TableError| StoreError::redb("write", file, error);
        Ok(Self {
            meta: txn.open_table(META).map_err(fail)?,
            log: txn.open_table(LOG).map_err(fail)?,
            rows: txn.open_table(ROWS).map_err(fail)?,
            locals: txn.open_table(LOCALS).map_err(fail)?,
            cipher,
            sealer: cipher.batch()?,
            file,
        })
    }

    pub(crate) fn write_all(mut self, jobs: &mut [Job], tip: &mut Tip) -> Result<(), StoreError> {
        for job in jobs {
            self.write(&mut job.op, tip)?;
        }
        tip.seq += 1;
        let frame = self.sealer.seal(TIP_PLACE, &[&tip.encode_to_vec()])?;
        self.meta.insert(TIP, &*frame).map_err(|e| failed(self.file, e))?;
        Ok(())
    }

    fn write(&mut self, op: &mut Op, tip: &mut Tip) -> Result<(), StoreError> {
        match op {
            Op::Append(rows) => rows.iter().try_for_each(|row| self.append(row, tip)),
            Op::Vote(vote) => {
                tip.vote = Some(std::mem::take(vote));
                Ok(())
            }
            Op::Committed(position) => {
                tip.committed = *position;
                Ok(())
            }
            Op::TruncateAfter(last) => self.truncate_after(*last, tip),
            Op::Purge(upto) => self.purge(*upto, tip),
            Op::Rows { changes, applied } => {
                tip.applied = Some(std::mem::take(applied));
                changes
                    .iter()
                    .try_for_each(|(key, value)| self.change_row(key, value.as_deref(), tip))
            }
            Op::Install { rows, applied } => {
                self.rows.retain(|_, _| false).map_err(|e| failed(self.file, e))?;
                tip.rows = 0;
                tip.applied = Some(std::mem::take(applied));
                rows.try_for_each(|(key, value)| self.change_row(&key, Some(&value), tip))
            }
            Op::Local { name, secret } => self.change_local(name.as_bytes(), secret.take(), tip),
            Op::View(_) | Op::Rewrite(_) | Op::Flush => Ok(()),
        }
    }

    pub(crate) fn header(&mut self, header: &[u8]) -> Result<(), StoreError> {
        self.meta.insert(HEADER, header).map(drop).map_err(|e| failed(self.file, e))
    }

    pub(crate) fn truncate_after(
        &mut self,
        last: Option<u64>,
        tip: &mut Tip,
    ) -> Result<(), StoreError> {
        tip.truncate_after(last);
        self.forget_log(last.map_or(0, |index| index + 1)..)
    }

    pub(crate) fn purge(&mut self, upto: Position, tip: &mut Tip) -> Result<(), StoreError> {
        tip.purge(upto);
        self.forget_log(..=upto.index)
    }

    fn append(&mut self, row: &LogRow, tip: &mut Tip) -> Result<(), StoreError> {
        self.append_sealed(row.position.term, row.position.index, &row.data, tip)
    }

    /// Seals an entry for its place.
    pub(crate) fn append_sealed(
        &mut self,
        term: u64,
        index: u64,
        data: &[u8],
        tip: &mut Tip,
    ) -> Result<(), StoreError> {
        let expected = tip.next_index().unwrap_or(index);
        if expected != index {
            return Err(StoreError::Hole { expected, found: index });
        }
        let place = Place { kind: Kind::Log, key: &index.to_le_bytes(), term };
        let frame = self.sealer.seal(place, &[data])?;
        self.log.insert(index, &*frame).map_err(|e| failed(self.file, e))?;
        if tip.log_len == 0 {
            tip.log_first = index;
        }
        tip.log_len += 1;
        Ok(())
    }

    fn forget_log(&mut self, range: impl std::ops::RangeBounds<u64>) -> Result<(), StoreError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.log.retain_in(range, |_, _| false).map_err(|e| failed(self.file, e))
    }

    pub(crate) fn change_row(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        tip: &mut Tip,
    ) -> Result<(), StoreError> {
        let name = self.cipher.row_name(Kind::Row, key);
        let existed = match value {
            Some(value) => {
                let place = Place { kind: Kind::Row, key: &name, term: 0 };
                let frame = self.sealer.seal(place, &[&name_head(key)?, key, value])?;
                self.rows.insert(name, &*frame).map(|old| old.is_some())
            }
            None => self.rows.remove(name).map(|old| old.is_some()),
        };
        let existed = existed.map_err(|e| failed(self.file, e))?;
        tip.rows = tip.rows + u64::from(value.is_some()) - u64::from(existed);
        Ok(())
    }

    pub(crate) fn change_local(
        &mut self,
        key: &[u8],
        secret: Option<SecretBytes>,
        tip: &mut Tip,
    ) -> Result<(), StoreError> {
        let name = self.cipher.row_name(Kind::Local, key);
        let present = secret.is_some();
        let existed = match secret {
            Some(secret) => {
                let named = named_secret(key, &secret)?;
                let place = Place { kind: Kind::Local, key: &name, term: 0 };
                let frame = self.sealer.seal_secret(place, named)?;
                self.locals.insert(name, &*frame).map(|old| old.is_some())
            }
            None => self.locals.remove(name).map(|old| old.is_some()),
        };
        let existed = existed.map_err(|e| failed(self.file, e))?;
        tip.locals = tip.locals + u64::from(present) - u64::from(existed);
        Ok(())
    }
}

/// Where the tip is sealed to.
pub(crate) const TIP_PLACE: Place<'static> = Place { kind: Kind::Tip, key: b"", term: 0 };

fn named_secret(key: &[u8], secret: &SecretBytes) -> Result<SecretBytes, StoreError> {
    let start = 2 + key.len();
    let mut named = SecretBytes::zeroed(start + secret.len())
        .map_err(|e| StoreError::keys("lock a secret in memory", e))?;
    let bytes = named.as_mut_slice();
    bytes[..2].copy_from_slice(&name_head(key)?);
    bytes[2..start].copy_from_slice(key);
    bytes[start..].copy_from_slice(secret.as_slice());
    Ok(named)
}

/// Writes the first tip of a new store within the transaction that creates it.
pub(crate) fn write_first_tip(
    txn: &WriteTransaction,
    cipher: &StoreCipher,
    file: &str,
) -> Result<Tip, StoreError> {
    let mut tip = Tip::default();
    Batch::new(txn, cipher, file)?.write_all(&mut [], &mut tip)?;
    Ok(tip)
}

fn failed(file: &str, error: redb::StorageError) -> StoreError {
    StoreError::redb("write", file, error)
}
