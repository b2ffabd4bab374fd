//! How often a request was tried by workers that died of it.
//!
//! The kernel marks a request that it sends again (`FUSE_NOTIFY_RESEND`) with bit 63 of its
//! number. A request that kills each worker would come back for ever; here the number of its
//! returns is kept in a memfd that outlives workers, and at the limit it is answered `EIO`.
//! Invariant: counted before it is served, and requests that never came back cost nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// `FUSE_UNIQUE_RESEND` (linux/fuse.h).
const RESENT: u64 = 1 << 63;
/// A request that came back this often is given up.
pub const MAX_RETURNS: u64 = 5;
/// Requests remembered; older ones are overwritten. Far more than are ever in flight at once.
const ENTRIES: usize = 256;
const ENTRY_LEN: usize = 16;

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Serve,
    /// It outlived too many workers: answer `EIO` and touch nothing for it.
    GiveUp,
}

/// The counts, shared with earlier and later workers.
#[derive(Debug)]
pub struct Attempts {
    file: File,
    /// Guards read-modify-write among the threads of this worker; there is one worker at a time.
    writing: Mutex<()>,
}

impl Attempts {
    /// An empty table in a fresh memfd.
    pub fn create() -> io::Result<Self> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("keyhole-attempts", flags)?);
        file.set_len((ENTRIES * ENTRY_LEN + 8) as u64)?;
        Ok(Self::from(OwnedFd::from(file)))
    }

    /// Judges the request with this number, as the kernel wrote it.
    pub fn judge(&self, unique: u64) -> Verdict {
        if unique & RESENT == 0 {
            return Verdict::Serve;
        }
        // A table that cannot be written must not stop the service: the supervisor's pauses
        // still bound a loop of crashes.
        match self.count(unique & !RESENT) {
            Ok(returns) if returns >= MAX_RETURNS => Verdict::GiveUp,
            Ok(_) => Verdict::Serve,
            Err(error) => {
                tracing::warn!(%error, "cannot count a resent request");
                Verdict::Serve
            }
        }
    }

    fn count(&self, unique: u64) -> io::Result<u64> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for index in 0..ENTRIES {
            if self.read(index * ENTRY_LEN)? == unique {
                let returns = self.read(index * ENTRY_LEN + 8)? + 1;
                self.write(index * ENTRY_LEN + 8, returns)?;
                return Ok(returns);
            }
        }
        let cursor = ENTRIES * ENTRY_LEN;
        let next = self.read(cursor)?;
        let index = usize::try_from(next % ENTRIES as u64).unwrap_or_default();
        self.write(index * ENTRY_LEN + 8, 1)?;
        self.write(index * ENTRY_LEN, unique)?;
        self.write(cursor, next + 1)?;
        Ok(1)
    }

    fn read(&self, offset: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, offset as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn write(&self, offset: usize, value: u64) -> io::Result<()> {
        self.file.write_all_at(&value.to_ne_bytes(), offset as u64)
    }
}

impl From<OwnedFd> for Attempts {
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), writing: Mutex::new(()) }
    }
}

impl AsFd for Attempts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_outlives_five_workers_is_given_up_by_the_next() {
        let supervisor = Attempts::create().unwrap();
        let worker = || Attempts::from(supervisor.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(worker().judge(42), Verdict::Serve);
        for _ in 1..MAX_RETURNS {
            assert_eq!(worker().judge(42 | RESENT), Verdict::Serve);
            assert_eq!(worker().judge(43), Verdict::Serve);
        }
        assert_eq!(worker().judge(42 | RESENT), Verdict::GiveUp);
        assert_eq!(worker().judge(44 | RESENT), Verdict::Serve);
    }

    #[test]
    fn the_oldest_counts_are_overwritten() {
        let attempts = Attempts::create().unwrap();
        for unique in 0..3 * ENTRIES as u64 {
            assert_eq!(attempts.count(unique + 1).unwrap(), 1);
        }
        assert_eq!(attempts.count(3 * ENTRIES as u64).unwrap(), 2);
        assert_eq!(attempts.count(1).unwrap(), 1);
    }

    #[test]
    fn a_broken_table_lets_requests_through() {
        let attempts = Attempts::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        assert_eq!(attempts.judge(RESENT | 1), Verdict::Serve);
    }
}
