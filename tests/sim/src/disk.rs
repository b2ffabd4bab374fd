//! A manager's disk in memory: what was not synced is gone when power is.
//!
//! Invariant: what a loss of power leaves is all that was synced, and some of what was written since.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use keyhole_manager::store::MarkFile;
use redb::StorageBackend;

use crate::dice::Dice;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    live: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync.
    unsynced: Vec<Change>,
    /// All that the mark ever was: it is never synced.
    marks: Vec<Vec<u8>>,
}

enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => image.resize(*len, 0),
        Change::Write(at, data) => {
            let end = (at + data.len()).min(image.len());
            if *at < end {
                image[*at..end].copy_from_slice(&data[..end - at]);
            }
        }
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    fn with(image: Vec<u8>, mark: Option<Vec<u8>>) -> Self {
        Self(Arc::new(Mutex::new(Content {
            live: image.clone(),
            synced: image,
            unsynced: Vec::new(),
            marks: mark.into_iter().collect(),
        })))
    }

    pub(crate) fn mark(&self) -> Box<dyn MarkFile> {
        Box::new(SimMark(self.clone()))
    }

    /// What the process leaves when it is killed: the system still writes everything. What the process does to the disk
    /// after that is not seen any more.
    pub(crate) fn after_kill(&self) -> Self {
        let content = self.content();
        Self::with(content.live.clone(), content.marks.last().cloned())
    }

    /// What the machine leaves when it loses power: of what was not synced, some sectors of the first writes.
    pub(crate) fn after_power_loss(&self, dice: &mut Dice) -> Self {
        let content = self.content();
        let mut image = content.synced.clone();
        let reached = match dice.once_in(2) {
            true => 0,
            false => dice.below(content.unsynced.len() as u64 + 1) as usize,
        };
        for change in &content.unsynced[..reached] {
            match change {
                Change::Resize(_) => apply(&mut image, change),
                Change::Write(at, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if !dice.once_in(4) {
                            apply(&mut image, &Change::Write(at + n * SECTOR, sector.to_vec()));
                        }
                    }
                }
            }
        }
        // The mark may be any that it was since the store was made; it is never ahead of what was acknowledged.
        let marks = &content.marks;
        let mark = marks.get(dice.below(marks.len().max(1) as u64) as usize).cloned();
        Self::with(image, mark)
    }
}

impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let content = self.content();
        out.copy_from_slice(content.live.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Resize(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let Content { synced, unsynced, .. } = &mut *self.content();
        unsynced.drain(..).for_each(|change| apply(synced, &change));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}

impl SimDisk {
    fn change(&self, change: Change) {
        let mut content = self.content();
        apply(&mut content.live, &change);
        content.unsynced.push(change);
    }
}

#[derive(Debug)]
struct SimMark(SimDisk);

impl MarkFile for SimMark {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.0.content().marks.last().cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.content().marks.push(bytes.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> SimDisk {
        let disk = SimDisk::default();
        disk.set_len(4096).unwrap();
        disk.write(0, b"synced").unwrap();
        disk.sync_data().unwrap();
        disk.write(1024, b"not synced").unwrap();
        disk
    }

    fn bytes(disk: &SimDisk, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        disk.read(at, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_kill_leaves_everything() {
        assert_eq!(bytes(&written().after_kill(), 1024, 10), b"not synced");
    }

    #[test]
    fn a_loss_of_power_leaves_what_was_synced_and_maybe_more() {
        let mut dice = Dice::new(1);
        let mut kept = 0;
        for _ in 0..100 {
            let left = written().after_power_loss(&mut dice);
            assert_eq!(bytes(&left, 0, 6), b"synced");
            kept += u32::from(bytes(&left, 1024, 10) == b"not synced");
        }
        assert!((5..95).contains(&kept), "{kept} of 100");
    }
}
