//! Numbers that processes share through a file: what was delivered, who a caller is now, when to stop.
//!
//! Depends on nothing. Invariant: a number is read whole (it is written together with its complement).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Not 0: everyone who looks here stops.
pub const STOP: usize = 0;
/// The same, for the moved process.
pub const STOP_MOVED: usize = 1;
/// Who the moved process is; see [`who`].
pub const WHO: usize = 2;
/// The last number at [`WHO`] as which the moved process has read a value, from the open to the last byte.
pub const READ_AS: usize = 3;
/// From here on, by secret: the sequence number that every later open must show at least.
pub const FLOORS: usize = 4;

const IDENTITIES: u64 = 8;

/// The number for [`WHO`]: an identity from 0 up, or none while it is being moved; and the how manieth change this is, so
/// that a number never comes twice.
pub fn who(change: u64, identity: Option<u64>) -> u64 {
    change * IDENTITIES + identity.map_or(0, |identity| identity + 1)
}

/// The identity that a number says.
pub fn identity(who: u64) -> Option<usize> {
    (who % IDENTITIES).checked_sub(1).map(|identity| identity as usize)
}

const SLOT: usize = 16;

/// The shared numbers; all are 0 at first.
#[derive(Debug)]
pub struct Board {
    file: File,
    path: PathBuf,
}

impl Board {
    /// A new one.
    pub fn create(path: &Path, slots: usize) -> Self {
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path);
        let board = Self { file: file.expect("the test's own folder"), path: path.to_owned() };
        (0..slots).for_each(|slot| board.set(slot, 0));
        board
    }

    /// One that is there.
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self { file: file.expect("the test made it"), path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a number.
    pub fn set(&self, slot: usize, number: u64) {
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&(!number).to_le_bytes());
        self.file.write_all_at(&bytes, (slot * SLOT) as u64).expect("the file is open");
    }

    /// Reads a number.
    pub fn get(&self, slot: usize) -> u64 {
        loop {
            let mut bytes = [0; SLOT];
            self.file.read_exact_at(&mut bytes, (slot * SLOT) as u64).expect("the slot exists");
            let word = |at: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[at..at + 8]);
                u64::from_le_bytes(word)
            };
            if word(0) == !word(8) {
                return word(0);
            }
        }
    }
}
