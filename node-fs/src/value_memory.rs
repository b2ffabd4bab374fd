//! Where sealed values lie: memory that the supervisor holds, so that the next worker finds them where they are.
//!
//! Depends on nothing of Keyhole. Invariant: a place that a saved state may name is not written to before a later state
//! has been saved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FallocateFlags;

/// Places begin at multiples of this, so that what is given back is soon of use again.
const UNIT: u64 = 64;

/// A stretch of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Place {
    /// The end of all that it takes.
    fn end(self) -> u64 {
        self.offset.saturating_add(self.length).next_multiple_of(UNIT)
    }
}

/// The memory, shared by all who hold a place in it.
#[derive(Debug)]
pub struct ValueMemory {
    file: File,
    space: Mutex<Space>,
}

#[derive(Debug, Default)]
struct Space {
    /// Nothing is beyond it.
    end: u64,
    /// Free stretches by offset, and the same by length.
    free: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
    /// Nobody's any more, but a saved state may still name them.
    dropped: Vec<Place>,
}

/// Bytes in the memory; their place is given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Held(Arc<Holder>);

#[derive(Debug)]
struct Holder {
    memory: Arc<ValueMemory>,
    place: Place,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.memory.space().dropped.push(self.place);
    }
}

/// The same bytes, not equal ones.
impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Held {
    /// Where it is.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// Fills these one after the other with the bytes.
    pub fn read(&self, parts: &mut [&mut [u8]]) -> io::Result<()> {
        let Holder { memory, place } = &*self.0;
        let mut at = place.offset;
        for part in parts {
            memory.file.read_exact_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl ValueMemory {
    /// Takes the memory up with what an earlier worker's state names in it; all else is given back.
    pub fn open<K: Ord>(
        file: File,
        named: impl IntoIterator<Item = (K, Place)>,
    ) -> io::Result<(Arc<Self>, BTreeMap<K, Held>)> {
        let named: BTreeMap<K, Place> = named.into_iter().collect();
        let places: BTreeSet<Place> = named.values().copied().collect();
        let mut space = Space::default();
        for place in places {
            space.add_free(space.end, place.offset);
            space.end = space.end.max(place.end());
        }
        file.set_len(space.end)?;
        for (offset, length) in &space.free {
            clear(&file, *offset, *length)?;
        }
        let memory = Arc::new(Self { file, space: Mutex::new(space) });
        let hold = |place| Held(Arc::new(Holder { memory: memory.clone(), place }));
        let held = named.into_iter().map(|(key, place)| (key, hold(place))).collect();
        Ok((memory, held))
    }

    /// Keeps these bytes, one part after the other.
    pub fn keep(self: &Arc<Self>, parts: &[&[u8]]) -> io::Result<Held> {
        let length = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let offset = self.space().take(length.next_multiple_of(UNIT));
        // Given back when the writing fails.
        let held = Held(Arc::new(Holder { memory: self.clone(), place: Place { offset, length } }));
        let mut at = offset;
        for part in parts {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(held)
    }

    /// Takes what was dropped so far; to be asked for before a state is made that does not name it.
    pub fn take_dropped(&self) -> Vec<Place> {
        std::mem::take(&mut self.space().dropped)
    }

    /// Whether there is anything to take.
    pub fn has_dropped(&self) -> bool {
        !self.space().dropped.is_empty()
    }

    /// The state that does not name these any more has been saved: their memory is given back.
    pub fn reclaim(&self, dropped: Vec<Place>) -> io::Result<()> {
        let mut space = self.space();
        for place in &dropped {
            space.give(place.offset, place.end() - place.offset);
        }
        // All under the lock, for nobody may take it meanwhile.
        if let Some((offset, length)) = space.free_at(space.end)
            && offset + length == space.end
        {
            space.remove_free(offset, length);
            space.end = offset;
            self.file.set_len(offset)?;
        }
        // Joined with its neighbours: a page is given back only as a whole.
        let stretches: BTreeMap<u64, u64> =
            dropped.iter().filter_map(|place| space.free_at(place.offset)).collect();
        stretches.into_iter().try_for_each(|(offset, length)| clear(&self.file, offset, length))
    }

    /// The state could not be saved.
    pub fn put_back(&self, dropped: Vec<Place>) {
        self.space().dropped.extend(dropped);
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    /// The smallest free stretch that is large enough, or else the end.
    fn take(&mut self, length: u64) -> u64 {
        let fitting = self.by_length.range((length, 0)..).next().copied();
        let Some((found, offset)) = fitting else {
            let offset = self.end;
            self.end += length;
            return offset;
        };
        self.remove_free(offset, found);
        self.add_free(offset + length, offset + found);
        offset
    }

    /// Joins what is given back with its free neighbours.
    fn give(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((before, length)) = self.free.range(..offset).next_back().map(|(o, l)| (*o, *l))
            && before + length == start
        {
            self.remove_free(before, length);
            start = before;
        }
        if let Some(after) = self.free.get(&end).copied() {
            self.remove_free(end, after);
            end += after;
        }
        self.add_free(start, end);
    }

    /// The free stretch around an offset.
    fn free_at(&self, offset: u64) -> Option<(u64, u64)> {
        self.free.range(..=offset).next_back().map(|(start, length)| (*start, *length))
    }

    fn add_free(&mut self, start: u64, end: u64) {
        if start < end {
            self.free.insert(start, end - start);
            self.by_length.insert((end - start, start));
        }
    }

    fn remove_free(&mut self, offset: u64, length: u64) {
        self.free.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

/// Gives the memory of whole pages back and zeroes the rest.
fn clear(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, length)?)
}

/// Memory for a test.
#[cfg(test)]
pub(crate) fn memfd() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    File::from(rustix::fs::memfd_create("values-test", flags).unwrap())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn fresh() -> (File, Arc<ValueMemory>) {
        let file = memfd();
        let (memory, held) = ValueMemory::open::<u8>(file.try_clone().unwrap(), []).unwrap();
        assert!(held.is_empty());
        (file, memory)
    }

    fn read(held: &Held) -> Vec<u8> {
        let length = usize::try_from(held.place().length).unwrap();
        let (mut head, mut body) = (vec![0; 2], vec![0; length - 2]);
        held.read(&mut [&mut head, &mut body]).unwrap();
        [head, body].concat()
    }

    /// What is held never overlaps, whatever is dropped and saved in between; the seed makes it repeatable.
    #[test]
    fn nothing_that_is_held_or_may_be_named_is_written_over() {
        let (file, memory) = fresh();
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        let bytes = |n: u32| n.to_le_bytes().repeat(1 + (n as usize * 7) % 300);
        let mut named: BTreeMap<u32, Place> = BTreeMap::new();
        let mut seed = 1_u32;
        for n in 0..2000_u32 {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let body = bytes(n);
            held.insert(n, memory.keep(&[&body[..1], &body[1..]]).unwrap());
            let oldest = held.keys().next().copied();
            if seed & 0x3_0000 != 0 && held.len() > 20 {
                held.remove(&((seed >> 8) % n)).or_else(|| held.remove(&oldest?));
            }
            if n % 37 == 0 {
                let dropped = memory.take_dropped();
                named = held.iter().map(|(n, held)| (*n, held.place())).collect();
                memory.reclaim(dropped).unwrap();
            }
            if n % 101 == 0 {
                // A worker that dies now leaves what the last state named.
                let copy = memfd();
                let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
                file.read_exact_at(&mut all, 0).unwrap();
                copy.write_all_at(&all, 0).unwrap();
                let (_, found) = ValueMemory::open(copy, named.clone()).unwrap();
                assert!(found.iter().all(|(n, held)| read(held) == bytes(*n)), "{n}");
            }
        }
        assert!(held.iter().all(|(n, held)| read(held) == bytes(*n)));
    }

    #[test]
    fn what_is_given_back_is_used_again_and_its_pages_are_free() {
        let (file, memory) = fresh();
        let keep = || memory.keep(&[&[7; 100_000]]).unwrap();
        let first: Vec<Held> = (0..10).map(|_| keep()).collect();
        drop(first);
        assert!(memory.has_dropped());
        assert!(keep().place().offset >= 1_000_000, "a state may name the others");
        let dropped = memory.take_dropped();
        memory.put_back(dropped);
        let dropped = memory.take_dropped();
        memory.reclaim(dropped).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 8192, "pages are given back");
        let all = memory.keep(&[&[7; 1_000_000]]).unwrap();
        assert_eq!(all.place().offset, 0, "neighbours are joined");
    }

    #[test]
    fn the_next_worker_finds_what_was_named_and_the_rest_is_cleared() {
        let (file, memory) = fresh();
        let [a, b, c] = [1_u8, 2, 3].map(|n| memory.keep(&[&[n; 5001]]).unwrap());
        let named = [('a', a.place()), ('c', c.place())];
        let (next, found) = ValueMemory::open(file.try_clone().unwrap(), named).unwrap();
        assert_eq!(read(&found[&'a']), [1; 5001]);
        assert_eq!(read(&found[&'c']), [3; 5001]);
        let mut gone = [9; 5001];
        file.read_exact_at(&mut gone, b.place().offset).unwrap();
        assert_eq!(gone, [0; 5001]);
        assert_eq!(next.keep(&[&[4; 5001]]).unwrap().place(), b.place());
    }
}
