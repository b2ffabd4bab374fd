//! Who opened what: a JSON line for each OPEN in DATA/audit/opens.jsonl (0600).
//!
//! A thread writes what a bounded queue brings. Depends on nothing of Keyhole but the domain's names.
//! Invariants: a reader is never held up; lines that had to be dropped are counted in a line of their
//! own; no value is ever written.

mod log;
mod time;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use keyhole_domain::{TaskId, Timestamp};
use serde::Serialize;

use log::Log;

/// Lines that may wait.
const QUEUE: usize = 8192;

/// Why the audit cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the audit in {}: {source}; check the data folder and its disk", .path.display())]
pub struct AuditError {
    path: std::path::PathBuf,
    source: io::Error,
}

/// One OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// When.
    pub at: Timestamp,
    /// The task that owns the file.
    pub task: TaskId,
    /// Its service, as it was asked for.
    pub service: String,
    /// The secret's name.
    pub secret: String,
    /// Its version.
    pub version: u64,
    /// The file's path below the mount.
    pub target: String,
    /// Who opened it.
    pub uid: u32,
    /// The thread that did.
    pub pid: u32,
    /// Why it was refused; `None`: it was allowed.
    pub refused: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    event: &'static str,
    task: &'a str,
    service: &'a str,
    secret: &'a str,
    version: u64,
    target: &'a str,
    uid: u32,
    pid: u32,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Dropped {
    at: String,
    event: &'static str,
    count: u64,
}

/// The way to the audit. Clones share it.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: SyncSender<Open>,
    dropped: Arc<AtomicU64>,
}

impl Audit {
    /// Opens the log in the data folder and starts the thread.
    pub fn start(data_dir: &Path) -> Result<Self, AuditError> {
        let folder = data_dir.join("audit");
        let failed = |source| AuditError { path: folder.clone(), source };
        let log = Log::open(&folder).map_err(failed)?;
        let (queue, opens) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(log, &opens, &lost))
            .map_err(failed)?;
        Ok(Self { queue, dropped })
    }

    /// Notes an OPEN. Never waits.
    pub fn record(&self, open: Open) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(open)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(mut log: Log, opens: &Receiver<Open>, dropped: &AtomicU64) {
    let mut next = opens.recv().ok();
    while let Some(open) = next {
        note_dropped(&mut log, dropped);
        if !log.write(&line(&open)) {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        next = opens.try_recv().ok().or_else(|| {
            note_dropped(&mut log, dropped);
            log.flush();
            opens.recv().ok()
        });
    }
}

fn note_dropped(log: &mut Log, dropped: &AtomicU64) {
    let count = dropped.swap(0, Ordering::Relaxed);
    if count == 0 {
        return;
    }
    let at = time::rfc3339(crate::core::now());
    let line = encode(&Dropped { at, event: "dropped", count });
    if !log.write(&line) {
        dropped.fetch_add(count, Ordering::Relaxed);
    }
}

fn line(open: &Open) -> Vec<u8> {
    encode(&Line {
        at: time::rfc3339(open.at),
        event: "open",
        task: open.task.as_str(),
        service: &open.service,
        secret: &open.secret,
        version: open.version,
        target: &open.target,
        uid: open.uid,
        pid: open.pid,
        outcome: if open.refused.is_none() { "allowed" } else { "refused" },
        reason: open.refused.as_deref(),
    })
}

fn encode(line: &impl Serialize) -> Vec<u8> {
    // Strings and numbers always encode.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests;
