//! Which inodes the kernel still refers to: open handles, and lookups of directories.
//!
//! Counts are kept in a memfd as they change, so that they outlive the worker as the handles do.
//! Invariant: an inode that is referred to never counts as free. The other way round is possible:
//! a request that a dead worker had counted is sent again and counted again, and a FORGET that it
//! had read is lost; then an old version is kept until its task ends.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyhole_view::Ino;

const ENTRY_LEN: usize = 16;

/// The counts of one connection.
#[derive(Debug)]
pub struct Handles {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    file: File,
    entries: HashMap<Ino, Entry>,
    free: Vec<usize>,
    /// Entries in the file, free ones too.
    length: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    index: usize,
    count: u64,
}

impl Handles {
    /// The table that an earlier worker left in a memfd; an empty memfd is an empty table.
    pub fn load(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        let mut table = Table { file, entries: HashMap::new(), free: Vec::new(), length: 0 };
        for (index, entry) in bytes.as_chunks::<ENTRY_LEN>().0.iter().enumerate() {
            let (ino, count) = decode(entry);
            table.length += 1;
            match count {
                0 => table.free.push(index),
                _ => {
                    table.entries.insert(ino, Entry { index, count });
                }
            }
        }
        Ok(Self { table: Mutex::new(table) })
    }

    /// Counts one more reference. To be called before the view is asked, and undone if it denies.
    pub fn add(&self, ino: Ino) -> io::Result<()> {
        let mut table = self.table();
        let entry = match table.entries.get(&ino) {
            Some(entry) => Entry { count: entry.count.saturating_add(1), ..*entry },
            None => Entry { index: table.vacant(), count: 1 },
        };
        table.write(ino, entry)?;
        table.entries.insert(ino, entry);
        Ok(())
    }

    /// Counts `count` references less; whether none is left.
    pub fn remove(&self, ino: Ino, count: u64) -> bool {
        let mut table = self.table();
        let Some(entry) = table.entries.get(&ino).copied() else { return true };
        let entry = Entry { count: entry.count.saturating_sub(count), ..entry };
        if let Err(error) = table.write(ino, entry) {
            // The next worker will keep the file for longer than it needs to.
            tracing::warn!(%error, "cannot note the end of a handle");
        }
        if entry.count > 0 {
            table.entries.insert(ino, entry);
            return false;
        }
        table.entries.remove(&ino);
        table.free.push(entry.index);
        true
    }

    /// Whether anything refers to the inode.
    pub fn held(&self, ino: Ino) -> bool {
        self.table().entries.contains_key(&ino)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn vacant(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.length += 1;
            self.length - 1
        })
    }

    fn write(&self, ino: Ino, entry: Entry) -> io::Result<()> {
        let mut bytes = [0; ENTRY_LEN];
        let (number, count) = bytes.split_at_mut(8);
        number.copy_from_slice(&ino.0.to_ne_bytes());
        count.copy_from_slice(&entry.count.to_ne_bytes());
        self.file.write_all_at(&bytes, (entry.index * ENTRY_LEN) as u64)
    }
}

fn decode(entry: &[u8; ENTRY_LEN]) -> (Ino, u64) {
    let mut halves = entry.as_chunks::<8>().0.iter().map(|half| u64::from_ne_bytes(*half));
    (Ino(halves.next().unwrap_or_default()), halves.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd() -> OwnedFd {
        rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn an_inode_is_held_until_its_last_reference_goes() {
        let handles = Handles::load(memfd()).unwrap();
        let ino = Ino(7);
        assert!(!handles.held(ino));
        handles.add(ino).unwrap();
        handles.add(ino).unwrap();
        assert!(!handles.remove(ino, 1) && handles.held(ino));
        assert!(handles.remove(ino, 1) && !handles.held(ino));
        assert!(handles.remove(ino, 5), "more than there are is no harm");
    }

    #[test]
    fn the_next_worker_finds_the_counts_and_reuses_free_entries() {
        let fd = memfd();
        let load = || Handles::load(fd.try_clone().unwrap()).unwrap();
        let first = load();
        for ino in 1..=100 {
            first.add(Ino(ino)).unwrap();
            first.add(Ino(ino)).unwrap();
        }
        for ino in 1..=50 {
            first.remove(Ino(ino), 2);
        }
        let second = load();
        assert!((1..=50).all(|ino| !second.held(Ino(ino))));
        assert!((51..=100).all(|ino| !second.remove(Ino(ino), 1) && second.held(Ino(ino))));
        for ino in 201..=250 {
            second.add(Ino(ino)).unwrap();
        }
        let third = load();
        assert!((201..=250).all(|ino| third.held(Ino(ino))));
        assert_eq!(File::from(fd.try_clone().unwrap()).metadata().unwrap().len(), 1600);
    }
}
