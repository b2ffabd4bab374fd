//! `BouncePool`: a few locked buffers that values are opened into for the moment of an answer.
//!
//! Invariant: a slot belongs to one holder at a time and is wiped before the next one gets it.
#![expect(unsafe_code, reason = "slots are disjoint parts of one mapping")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::mapping::{Guards, LockError, LockedMapping};
use crate::wipe::memzero;

/// A fixed number of equal buffers in one locked, undumpable mapping. Clones share them.
#[derive(Clone)]
pub struct BouncePool {
    shared: Arc<Shared>,
}

struct Shared {
    mapping: LockedMapping,
    slot_len: usize,
    slots: usize,
    free: Mutex<Vec<usize>>,
    returned: Condvar,
}

impl BouncePool {
    /// `slots` buffers of `slot_len` bytes each.
    pub fn new(slots: usize, slot_len: usize) -> Result<Self, LockError> {
        let len = slots.checked_mul(slot_len).ok_or(LockError::TooLong { len: usize::MAX })?;
        let shared = Shared {
            mapping: LockedMapping::new(len, Guards::None)?,
            slot_len,
            slots,
            free: Mutex::new((0..slots).collect()),
            returned: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The length of a slot in bytes.
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.shared.slot_len
    }

    /// A slot; waits until one is free.
    #[must_use]
    pub fn take(&self) -> Slot {
        let mut free = self.shared.free();
        loop {
            if let Some(index) = free.pop() {
                return self.slot(index);
            }
            free = self.shared.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slot, if one is free now.
    #[must_use]
    pub fn try_take(&self) -> Option<Slot> {
        let index = self.shared.free().pop()?;
        Some(self.slot(index))
    }

    fn slot(&self, index: usize) -> Slot {
        Slot { used: self.shared.slot_len, index, shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for BouncePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BouncePool({} x {} bytes)", self.shared.slots, self.shared.slot_len)
    }
}

/// One buffer of a [`BouncePool`]: all zero when taken, wiped and given back when dropped.
pub struct Slot {
    shared: Arc<Shared>,
    index: usize,
    used: usize,
}

impl Slot {
    /// Says that only the first `n` bytes were written, which spares wiping the rest. Without it the
    /// whole slot is wiped.
    pub fn used(&mut self, n: usize) {
        self.used = n.min(self.shared.slot_len);
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let len = self.shared.slot_len;
        // SAFETY: `index` < slots, so the part lies within the mapping, which `shared` keeps alive;
        // the free list gave `index` to this slot alone.
        unsafe {
            let start = self.shared.mapping.data().add(self.index * len);
            slice::from_raw_parts(start.as_ptr(), len)
        }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.shared.slot_len;
        // SAFETY: as for `deref`; `&mut self` makes this the only reference to the part.
        unsafe {
            let start = self.shared.mapping.data().add(self.index * len);
            slice::from_raw_parts_mut(start.as_ptr(), len)
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let used = self.used;
        memzero(&mut self[..used]);
        self.shared.free().push(self.index);
        self.shared.returned.notify_one();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} bytes)", self.shared.slot_len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::testing::{alone, is_asleep, smaps_flags, vm_locked_kib};

    #[test]
    fn a_slot_comes_back_empty() {
        let pool = BouncePool::new(1, 1000).unwrap();
        let mut slot = pool.take();
        slot.fill(0xee);
        drop(slot);
        assert!(pool.take().iter().all(|b| *b == 0));
    }

    #[test]
    fn only_the_used_part_needs_wiping() {
        let pool = BouncePool::new(1, 1000).unwrap();
        let mut slot = pool.take();
        slot[..10].fill(0xee);
        slot.used(10);
        drop(slot);
        assert!(pool.take().iter().all(|b| *b == 0));
    }

    #[test]
    fn slots_do_not_overlap_and_run_out() {
        let pool = BouncePool::new(3, 100).unwrap();
        let mut slots: Vec<_> = (0..3).map(|_| pool.take()).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.fill(i as u8 + 1);
        }
        for (i, slot) in slots.iter().enumerate() {
            assert!(slot.iter().all(|b| *b == i as u8 + 1));
        }
        assert!(pool.try_take().is_none());
        slots.pop();
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn an_empty_pool_makes_the_next_one_wait() {
        let pool = BouncePool::new(1, 8).unwrap();
        let held = pool.take();
        let (tell, told) = mpsc::channel();
        let waiting = pool.clone();
        let waiter = thread::spawn(move || {
            // SAFETY: gettid has no preconditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            drop(waiting.take());
            tell.send(0).unwrap();
        });
        let thread = told.recv().unwrap();
        while !is_asleep(thread) {
            thread::yield_now();
        }
        assert!(told.try_recv().is_err());
        drop(held);
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(0), "nobody woke it");
        waiter.join().unwrap();
    }

    #[test]
    fn the_whole_pool_is_locked() {
        alone("pool::tests::the_whole_pool_is_locked", || {
            let before = vm_locked_kib();
            let pool = BouncePool::new(4, 128 << 10).unwrap();
            assert_eq!(vm_locked_kib() - before, 512);
            let flags = smaps_flags(pool.take().as_ptr() as usize);
            assert!(flags.iter().any(|f| f == "lo") && flags.iter().any(|f| f == "dd"));
        });
    }
}
