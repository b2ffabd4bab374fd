//! The audit: one line of JSON for each change and each refusal, in `DATA/audit/audit-NNNNNN.jsonl`.
//!
//! Depends on the state's audit records and the file system. Invariant: it never holds up or prevents a change: a line
//! that can't be written waits in memory, is counted, reported and tried again. A change has one line, also after a
//! restart replayed it; names are in clear, a value is never near.

mod file;
mod line;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyhole_state::{Actor, AuditRecord};

use crate::authz::Caller;
use file::AuditFile;

/// More lines than this are not kept in memory while the disk refuses them.
const WAITING: usize = 10_000;
/// Refusals recorded at once, and each second; the others are only counted.
const BURST: u32 = 50;
const EACH_SECOND: u32 = 10;

/// The audit of one manager.
#[derive(Debug)]
pub struct AuditLog {
    inner: Mutex<Inner>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    file: AuditFile,
    /// The last log index that has a line.
    last: u64,
    waiting: VecDeque<String>,
    lost: u64,
    failing: bool,
    bucket: Bucket,
}

impl AuditLog {
    /// Opens the folder, made if it is missing, and goes on after its last line.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let (file, last) = AuditFile::open(folder)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                file,
                last,
                waiting: VecDeque::new(),
                lost: 0,
                failing: false,
                bucket: Bucket::new(Instant::now()),
            }),
            refused: AtomicU64::new(0),
        })
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

    /// Counts a refusal, and writes its line unless there are too many.
    pub(crate) fn refused(&self, caller: &Caller, action: &'static str, why: &str) {
        self.refused_actor(&caller.actor(), action, why);
    }

    /// As [`Self::refused`], when the caller was let through but what he showed is not enough.
    pub(crate) fn refused_actor(&self, actor: &Actor, action: &'static str, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        if let Some(suppressed) = inner.bucket.take(Instant::now()) {
            inner.write(line::refusal(actor, action, why, suppressed));
        }
    }

    /// Requests refused since this process started.
    pub fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Tries again what could not be written, and asks the disk to keep what was. Called now and then.
    pub fn tend(&self) {
        let mut inner = self.lock();
        inner.flush();
        inner.file.sync();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, line: String) {
        if self.waiting.len() >= WAITING {
            self.lost += 1;
            return;
        }
        self.waiting.push_back(line);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(line) = self.waiting.front() {
            match self.file.append(line) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                Err(error) => return self.failed(&error),
            }
        }
        if std::mem::take(&mut self.failing) {
            let lost = std::mem::take(&mut self.lost);
            tracing::warn!(lost, "the audit is written again");
            if lost > 0 {
                self.waiting.push_back(line::lost(lost));
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            let file = self.file.name();
            tracing::error!(%error, file, "cannot write the audit; its lines wait in memory");
        }
    }
}

/// A token bucket for refusals.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
    suppressed: u64,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now, suppressed: 0 }
    }

    /// How many were left out before this one, or nothing if this one is left out too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let step = Duration::from_secs(1) / EACH_SECOND;
        let steps = now.duration_since(self.filled).as_nanos() / step.as_nanos();
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

#[cfg(test)]
mod tests {
    use super::*;
    use keyhole_domain::Timestamp;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn record(index: u64) -> AuditRecord {
        AuditRecord {
            index,
            at: Timestamp(1_790_000_000_123_456_789),
            actor: Actor::Local { uid: 0, gid: 0, pid: 7 },
            action: "secret.create",
            objects: vec!["db\"x".into()],
            refused: None,
        }
    }

    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let text: String = files.iter().map(|f| fs::read_to_string(f).unwrap()).collect();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_replayed_change_has_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let audit = AuditLog::open(&path).unwrap();
        audit.applied(&record(5));
        audit.applied(&record(5));
        audit.refused(&Caller::Unknown, "secret.rm", "no");
        drop(audit);
        let audit = AuditLog::open(&path).unwrap();
        audit.applied(&record(4));
        audit.applied(&record(5));
        audit.applied(&record(7));
        let lines = lines(&path);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0]["index"], 5);
        assert_eq!(lines[0]["at"], "2026-09-21T14:13:20.123456789Z");
        assert_eq!(lines[0]["actor"]["uid"], 0);
        assert_eq!(lines[0]["objects"][0], "db\"x");
        assert_eq!(lines[1]["refused"]["action"], "secret.rm");
        assert_eq!(lines[2]["index"], 7);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let file = fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn a_torn_last_line_does_not_swallow_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let audit = AuditLog::open(folder.path()).unwrap();
        audit.applied(&record(5));
        drop(audit);
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut text = fs::read_to_string(&file).unwrap();
        text.push_str("{\"index\":6,\"at\":\"20");
        fs::write(&file, text).unwrap();
        let audit = AuditLog::open(folder.path()).unwrap();
        audit.applied(&record(6));
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 3);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["index"], 6);
    }

    #[test]
    fn floods_of_refusals_are_counted_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let audit = AuditLog::open(folder.path()).unwrap();
        for _ in 0..1000 {
            audit.refused(&Caller::Unknown, "secret.rm", "no");
        }
        assert_eq!(audit.refusals(), 1000);
        let written = lines(folder.path()).len();
        assert!((BURST as usize..200).contains(&written), "{written}");
        let later = Instant::now() + Duration::from_secs(1);
        let suppressed = audit.lock().bucket.take(later);
        assert_eq!(suppressed, Some(1000 - written as u64));
    }

    #[test]
    fn a_disk_that_refuses_holds_nothing_up_and_gets_the_lines_later() {
        let folder = tempfile::tempdir().unwrap();
        let audit = AuditLog::open(folder.path()).unwrap();
        audit.lock().file.refuse(true);
        audit.applied(&record(1));
        audit.applied(&record(2));
        assert_eq!(lines(folder.path()).len(), 0);
        audit.lock().file.refuse(false);
        audit.tend();
        assert_eq!(lines(folder.path()).len(), 2);
    }
}
