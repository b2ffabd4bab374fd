//! What a worker tells its supervisor: that it serves, and that it is alive.
//!
//! Fixed records over a pipe, small enough that each write is whole or not at all (pipe(7)).
//! Invariant: reporting never blocks the worker, whatever the supervisor does.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::meter::{Meter, Reading};

/// How often a worker shows that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
const RECORD_LEN: usize = 32;
const READY: u64 = 1;
const ALIVE: u64 = 2;

/// One message of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It serves the filesystem.
    Ready,
    /// It is alive, with these numbers.
    Alive(Reading),
}

/// The worker's end.
#[derive(Debug)]
pub struct Reporter {
    pipe: File,
}

/// The supervisor's end.
#[derive(Debug)]
pub struct ReportReader {
    pipe: OwnedFd,
}

/// Makes a pipe for reports. Both ends are close-on-exec and never block.
pub fn channel() -> io::Result<(ReportReader, Reporter)> {
    let (read, write) = io::pipe()?;
    rustix::io::ioctl_fionbio(&read, true)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((ReportReader { pipe: read.into() }, Reporter::from(OwnedFd::from(write))))
}

impl Reporter {
    /// Tells the supervisor that this worker serves.
    pub fn ready(&self) -> io::Result<()> {
        self.send(Report::Ready)
    }

    /// Starts the heartbeat of this worker on a thread of its own.
    pub fn start_heartbeat(self: Arc<Self>, meter: Arc<Meter>) -> io::Result<()> {
        let beat = move || {
            loop {
                // A full pipe means a supervisor that does not look; the next beat will do.
                let _unread = self.send(Report::Alive(meter.read()));
                std::thread::sleep(HEARTBEAT);
            }
        };
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat)?;
        Ok(())
    }

    fn send(&self, report: Report) -> io::Result<()> {
        match rustix::io::write(&self.pipe, &encode(report)) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<OwnedFd> for Reporter {
    fn from(fd: OwnedFd) -> Self {
        Self { pipe: File::from(fd) }
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl AsFd for ReportReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl ReportReader {
    /// All reports that are there now.
    pub fn read(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut record = [0; RECORD_LEN];
        while let Ok(RECORD_LEN) = rustix::io::read(&self.pipe, &mut record) {
            reports.extend(decode(&record));
        }
        reports
    }
}

fn encode(report: Report) -> [u8; RECORD_LEN] {
    let fields = match report {
        Report::Ready => [READY, 0, 0, 0],
        Report::Alive(reading) => {
            let oldest = u64::try_from(reading.oldest.as_millis()).unwrap_or(u64::MAX);
            [ALIVE, reading.completed, reading.held, oldest]
        }
    };
    let mut record = [0; RECORD_LEN];
    for (bytes, field) in record.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_ne_bytes());
    }
    record
}

fn decode(record: &[u8; RECORD_LEN]) -> Option<Report> {
    let mut fields = record.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    match fields.next()? {
        READY => Some(Report::Ready),
        ALIVE => Some(Report::Alive(Reading {
            completed: fields.next()?,
            held: fields.next()?,
            oldest: Duration::from_millis(fields.next()?),
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_whole_and_in_order() {
        let (reader, reporter) = channel().unwrap();
        assert!(reader.read().is_empty());
        let alive = Reading { completed: 7, held: 2, oldest: Duration::from_millis(1500) };
        reporter.ready().unwrap();
        reporter.send(Report::Alive(alive)).unwrap();
        assert_eq!(reader.read(), [Report::Ready, Report::Alive(alive)]);
    }

    #[test]
    fn a_supervisor_that_does_not_read_blocks_nobody() {
        let (_reader, reporter) = channel().unwrap();
        for _ in 0..10_000 {
            reporter.ready().unwrap();
        }
    }
}
