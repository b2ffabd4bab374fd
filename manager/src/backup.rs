//! Backups: one age file with all rows of the state at one index, and the keys that open what they have sealed.
//!
//! Depends on age, the codec, the seals and the rows that Raft's snapshots have too. Invariant: keys leave this process
//! only within age's encryption; a file that was cut, changed, or is of another kind is never taken for a backup.

mod read;
mod write;

pub use read::{BackupError, BackupReader, Unlock};
pub(crate) use write::{Backup, SealTo};

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// The first line within the encryption.
const MAGIC: &[u8] = b"keyhole backup\n";
/// The format of the records after it.
pub const FORMAT: u32 = 1;
/// Longer records are none: rows come about 1 MiB at a time, and the largest has little more than 512 kB.
const MAX_RECORD: u32 = 8 << 20;

/// Passes bytes on and hashes them.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(bytes.get(..read).unwrap_or(bytes));
        Ok(read)
    }
}
