//! The audit: one line of JSON for each change and each refusal, in `DATA/audit/audit-NNNNNN.jsonl`.
//!
//! Depends on the state's audit records and the file system. Invariant: it never holds up or prevents a change: a line
//! that can't be written waits in memory, is counted, reported and tried again. A change has one line, also after a
//! restart replayed it; names are in clear, a value is never near. Each line is chained to the one before (`chain`), and
//! the cluster is told every few seconds how far the chain is on the disk (`noting`), so that [`Verifier`] finds what was
//! changed, left out or cut off.

mod chain;
mod file;
mod line;
mod noting;
mod syslog;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyhole_state::{Actor, AuditRecord, Envelope};

use crate::authz::Caller;
use file::AuditFile;
use syslog::Syslog;

pub use chain::Head;
pub use file::files;
pub(crate) use noting::{keep_noted, note};
pub use verify::{Finding, Noted, Report, Verifier};

/// A file that is at least this long is followed by a new one, unless another size was asked for.
pub const FILE_BYTES: u64 = 64 << 20;
/// Shorter files than this would be more header than lines.
pub const LEAST_FILE_BYTES: u64 = 4 << 10;

/// More lines than this are not kept in memory while the disk refuses them.
const WAITING: usize = 10_000;
/// Refusals that have a line of their own at once; of the others lines say how many.
const BURST: u32 = 50;
/// How often one more has, of those who have a certificate or are on this machine.
const KNOWN: Duration = Duration::from_millis(100);
/// Of anybody who reaches the port, and is not to fill the disk: some 2 MB a day.
const STRANGERS: Duration = Duration::from_secs(10);

/// Whose audit it is.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The cluster's id.
    pub cluster: String,
    /// The manager's certificate's id.
    pub manager: String,
    /// The manager's Raft id.
    pub member: u64,
}

/// What the disk does not have of an audit that ends.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// They are in memory only.
    #[error(
        "the last lines of the audit ({lines}) could not be written to {file}: {why}; make room there, or mend the disk"
    )]
    Lines {
        /// How many.
        lines: u64,
        /// Where they belong.
        file: String,
        /// The system's words.
        why: io::Error,
    },
    /// They are in the file, as long as the machine runs.
    #[error(
        "the last lines of the audit may not be on the disk, for {file} could not be synced: {why}; look after the disk"
    )]
    Sync {
        /// Where they are.
        file: String,
        /// The system's words.
        why: io::Error,
    },
}

/// The audit of one manager.
#[derive(Debug)]
pub struct AuditLog {
    inner: Mutex<Inner>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    /// Until it is known, lines wait.
    writer: Option<Writer>,
    file: AuditFile,
    /// The last line that the disk has.
    synced: Head,
    /// What the cluster was told last, and the files had.
    told: Head,
    syslog: Option<Syslog>,
    /// The last log index that has a line.
    last: u64,
    waiting: VecDeque<Waiting>,
    lost: u64,
    /// Why lines wait.
    failing: Option<io::Error>,
    known: Bucket,
    strangers: Bucket,
}

/// A line that is not in the file yet.
#[derive(Debug)]
struct Waiting {
    record: String,
    /// Whether syslog has it.
    copied: bool,
}

impl From<String> for Waiting {
    fn from(record: String) -> Self {
        Self { record, copied: false }
    }
}

impl AuditLog {
    /// Opens the folder, made if it is missing, and goes on after its last line. Files are `file_bytes` long, or a line
    /// more; `syslog` is a socket that gets a copy of each line.
    pub fn open(folder: &Path, file_bytes: u64, syslog: Option<&Path>) -> io::Result<Self> {
        let (file, last) = AuditFile::open(folder, file_bytes)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                writer: None,
                file,
                synced: Head::default(),
                told: Head::default(),
                syslog: syslog.map(Syslog::new).transpose()?,
                last,
                waiting: VecDeque::new(),
                lost: 0,
                failing: None,
                known: Bucket::new(Instant::now(), KNOWN),
                strangers: Bucket::new(Instant::now(), STRANGERS),
            }),
            refused: AtomicU64::new(0),
        })
    }

    /// Says whose audit it is, and up to which line the cluster was told of it; from now on lines are written.
    pub fn begin(&self, writer: Writer, noted: Head) {
        let mut inner = self.lock();
        inner.writer = Some(writer);
        inner.go_on_after(noted);
        inner.flush();
    }

    /// Writes the line of an applied command, unless it has one already.
    pub fn applied(&self, record: &AuditRecord) {
        let mut inner = self.lock();
        if record.index <= inner.last {
            return;
        }
        inner.last = record.index;
        inner.write(line::change(record));
    }

    /// Writes that the changes from one log index to another are not in this audit, for a snapshot came in their place.
    pub(crate) fn skipped(&self, from: u64, to: u64) {
        let mut inner = self.lock();
        // Those that have a line were applied before a crash took their rows.
        let from = from.max(inner.last.saturating_add(1));
        if from <= to {
            inner.write(line::snapshot(from, to));
        }
    }

    /// Counts a refusal, and writes its line unless there are too many.
    pub(crate) fn refused(&self, caller: &Caller, action: &'static str, why: &str) {
        self.refused_actor(&caller.actor(), action, why);
    }

    /// As [`Self::refused`], when the caller was let through but what he showed is not enough.
    pub(crate) fn refused_actor(&self, actor: &Actor, action: &'static str, why: &str) {
        self.refuse(actor, 0, action, why);
    }

    /// As [`Self::refused`], for what another manager passed on.
    pub(crate) fn refused_forwarded(&self, passed_on: &Envelope, action: &'static str, why: &str) {
        self.refuse(&passed_on.actor, passed_on.via, action, why);
    }

    fn refuse(&self, actor: &Actor, via: u64, action: &'static str, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let bucket = match actor {
            Actor::Joiner { .. } => &mut inner.strangers,
            _ => &mut inner.known,
        };
        if let Some(suppressed) = bucket.take(Instant::now()) {
            inner.write(line::refusal((actor, via), action, why, suppressed));
        }
    }

    /// Writes that an operator unlocked this manager.
    pub(crate) fn unlocked(&self, by: &Actor) {
        self.lock().write(line::unlocked(by));
    }

    /// Requests refused since this process started.
    pub fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Tries again what could not be written, says how many refusals have no line, and asks the disk to keep what was
    /// written. Called now and then.
    pub fn tend(&self) {
        // What fails is in the log, and is tried again.
        let _ = self.keep();
    }

    /// As [`Self::tend`], for the last time: what cannot be written now never will be.
    pub(crate) fn close(&self) -> Result<(), Unwritten> {
        let synced = self.keep();
        let mut inner = self.lock();
        let file = inner.file.name();
        match inner.failing.take() {
            Some(why) => {
                let lines = inner.waiting.len() as u64 + inner.lost;
                Err(Unwritten::Lines { lines, file, why })
            }
            None => synced.map_err(|why| Unwritten::Sync { file, why }),
        }
    }

    fn keep(&self) -> io::Result<()> {
        let (head, file) = {
            let mut inner = self.lock();
            inner.count_refusals();
            inner.flush();
            if let Some(syslog) = &mut inner.syslog {
                syslog.report();
            }
            let (head, file) = inner.file.end();
            if head == inner.synced {
                return Ok(());
            }
            (head, file)
        };
        // Changes do not wait for the disk meanwhile.
        let synced = file.sync_data();
        let mut inner = self.lock();
        match &synced {
            Ok(()) if head.seq < inner.synced.seq => {}
            Ok(()) => inner.synced = head,
            Err(error) => {
                let file = inner.file.name();
                tracing::error!(%error, file, "cannot sync the audit");
            }
        }
        synced
    }

    /// The last line that the disk keeps, as far as is known.
    pub(crate) fn synced(&self) -> Head {
        self.lock().synced
    }

    /// As [`Self::begin`] does, when the cluster turns out to have been told of more.
    pub(crate) fn go_on_after(&self, noted: Head) {
        self.lock().go_on_after(noted);
    }

    /// The cluster was told of this line, which this process wrote.
    pub(crate) fn told(&self, head: Head) {
        self.lock().told = head;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// If the cluster was told of more lines than there are, or of another last one, says so in a line, and goes on after
    /// them: what was done to the files stays seen.
    fn go_on_after(&mut self, noted: Head) {
        if std::mem::replace(&mut self.told, noted) == noted {
            return;
        }
        let (last, noted, hash) = (self.file.end().0.seq, noted.seq, noted.hash);
        if last < noted {
            tracing::error!(
                last,
                noted,
                "lines of the audit are missing: its files were cut, or put back"
            );
            self.file.skip_to(noted);
            self.waiting.push_front(line::missing(last + 1, noted).into());
            self.flush();
            return;
        }
        match self.file.line(noted) {
            Ok(Some(line)) if line.hash != hash => {
                tracing::error!(line = noted, "lines of the audit are not those that were written");
                self.waiting.push_front(line::rewritten(noted).into());
                self.flush();
            }
            Ok(_) => {}
            Err(error) => {
                let file = self.file.name();
                tracing::error!(%error, file, "cannot compare the audit with what the cluster was told");
            }
        }
    }

    /// The last refusals of a flood have none after them that could tell of them.
    fn count_refusals(&mut self) {
        let of = |bucket: &mut Bucket| std::mem::take(&mut bucket.suppressed);
        match of(&mut self.known) + of(&mut self.strangers) {
            0 => {}
            refusals => self.write(line::suppressed(refusals)),
        }
    }

    fn write(&mut self, line: String) {
        if self.waiting.len() >= WAITING {
            self.lost += 1;
            if let Some(syslog) = &mut self.syslog {
                syslog.send(&line);
            }
            return;
        }
        self.waiting.push_back(line.into());
        self.flush();
    }

    fn flush(&mut self) {
        let Some(writer) = &self.writer else { return };
        while let Some(Waiting { record, copied }) = self.waiting.front() {
            match self.file.append(writer, record) {
                Ok(line) => {
                    if let (Some(syslog), false) = (&mut self.syslog, copied) {
                        syslog.send(&line);
                    }
                    self.waiting.pop_front();
                }
                Err(error) => return self.failed(error),
            }
        }
        let lost = std::mem::take(&mut self.lost);
        if self.failing.take().is_some() {
            tracing::warn!(lost, "the audit is written again");
        }
        if lost > 0 {
            self.waiting.push_back(line::lost(lost).into());
            self.flush();
        }
    }

    fn failed(&mut self, error: io::Error) {
        if self.failing.is_none() {
            let file = self.file.name();
            tracing::error!(%error, file, "cannot write the audit; its lines wait in memory");
        }
        self.failing = Some(error);
        // Syslog need not wait for the disk; as there is no line yet, it gets neither number nor hash.
        if let Some(syslog) = &mut self.syslog {
            for new in self.waiting.iter_mut().filter(|waiting| !waiting.copied) {
                syslog.send(&new.record);
                new.copied = true;
            }
        }
    }
}

/// A token bucket for refusals.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// After which there is one more.
    step: Duration,
    filled: Instant,
    suppressed: u64,
}

impl Bucket {
    fn new(now: Instant, step: Duration) -> Self {
        Self { tokens: BURST, step, filled: now, suppressed: 0 }
    }

    /// How many were left out before this one, or nothing if this one is left out too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let steps = now.duration_since(self.filled).as_nanos() / self.step.as_nanos();
        let steps = u32::try_from(steps).unwrap_or(BURST).min(BURST);
        if steps > 0 {
            self.tokens = self.tokens.saturating_add(steps).min(BURST);
            self.filled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}
