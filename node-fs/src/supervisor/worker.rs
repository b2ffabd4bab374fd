//! One worker process, from its start to its burial.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::watchdog::{Stuck, Watchdog};
use crate::report::{Report, ReportReader};

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    pidfd: OwnedFd,
    reports: ReportReader,
    watchdog: Watchdog,
}

impl Worker {
    /// Starts one, which inherits whatever is inheritable now.
    pub(super) fn start(mut command: Command, reports: ReportReader) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            // Ctrl-C on a terminal is for the supervisor, which ends its worker in order.
            .process_group(0)
            .spawn()?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = pidfd.inspect_err(|_| {
            let _dead = child.kill();
            let _status = child.wait();
        })?;
        Ok(Self { child, pidfd, reports, watchdog: Watchdog::new(Instant::now()) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What to wait for.
    pub(super) fn sources(&self) -> [BorrowedFd<'_>; 2] {
        [self.pidfd.as_fd(), self.reports.as_fd()]
    }

    pub(super) fn read_reports(&mut self) -> Vec<Report> {
        let reports = self.reports.read();
        for report in &reports {
            if let Report::Alive(reading) = report {
                self.watchdog.alive(*reading, Instant::now());
            }
        }
        reports
    }

    pub(super) fn judge(&mut self, waiting: u64) -> Option<Stuck> {
        self.watchdog.judge(waiting, Instant::now())
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(super) fn kill(&mut self) {
        // An error means that it is dead already.
        let _dead = self.child.kill();
    }

    /// Asks it to end, kills it when it does not within `patience`, and waits until it is gone.
    pub(super) fn end_within(&mut self, patience: Duration) {
        let _dead = rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM);
        let timeout = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if !matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1)) {
            tracing::warn!(pid = self.pid(), "the worker does not end: killing it");
            self.kill();
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "cannot wait for the worker");
        }
    }
}
