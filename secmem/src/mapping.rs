//! The one way this crate gets memory: an anonymous private mapping that is locked, left out of core
//! dumps, empty in forked children, and wiped before it is let go.
//!
//! Its invariant: a `LockedMapping` exists only if every one of these was granted by the kernel. Making and unmapping
//! one is ten system calls and an interrupt on every core, for each value and derived key; so a few mappings of one page
//! are kept, wiped and still locked, for the next who asks.
#![expect(unsafe_code, reason = "mmap and its relatives deal in raw addresses")]

use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::wipe::memzero;

/// Why secret memory could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The length does not fit an address space.
    #[error("{len} bytes is more than can be mapped")]
    TooLong {
        /// The length asked for.
        len: usize,
    },
    /// `mmap`, `mprotect` or `madvise` refused.
    #[error("cannot set up {len} bytes of secret memory: {call}: {source}")]
    Map {
        /// The length of the mapping in bytes.
        len: usize,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// `mlock` refused.
    #[error(
        "cannot lock {len} bytes in memory: {source}; raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= in a unit)"
    )]
    Lock {
        /// The length of the mapping in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Whether unreadable pages stand before and after the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guards {
    None,
    Both,
}

/// How many mappings of one page are kept, of each kind. A burst of requests needs about as many as there are cores.
const SPARES: usize = 32;

/// Mappings that are nobody's: with guards, and without.
static SPARE: [Mutex<Vec<Pages>>; 2] = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];

fn spare(guards: Guards) -> MutexGuard<'static, Vec<Pages>> {
    SPARE[usize::from(guards == Guards::Both)].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locked pages; see the module's description. Not `Clone`, and without `Debug` of its contents.
pub(crate) struct LockedMapping {
    pages: Pages,
    guards: Guards,
}

/// Where a mapping is; nothing happens when it is dropped.
struct Pages {
    base: NonNull<u8>,
    total: usize,
    data: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the mapping is owned memory like a `Box<[u8]>`: `&self` only reads, `&mut self` writes.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl LockedMapping {
    /// Maps at least `len` bytes (rounded up to pages, one page at least), all zero.
    pub(crate) fn new(len: usize, guards: Guards) -> Result<Self, LockError> {
        let kept = if len <= page_size() { spare(guards).pop() } else { None };
        let pages = match kept {
            Some(pages) => pages,
            None => Pages::map(len, guards)?,
        };
        Ok(Self { pages, guards })
    }

    /// The usable bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.capacity
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        let Pages { data, capacity, .. } = self.pages;
        // SAFETY: `data` is valid for `capacity` bytes while `self` lives, and always initialised.
        unsafe { slice::from_raw_parts(data.as_ptr(), capacity) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let Pages { data, capacity, .. } = self.pages;
        // SAFETY: as for `as_slice`, and `&mut self` is the only way to it.
        unsafe { slice::from_raw_parts_mut(data.as_ptr(), capacity) }
    }

    /// The address of the first usable byte, for a caller that hands out disjoint parts itself.
    pub(crate) fn data(&self) -> NonNull<u8> {
        self.pages.data
    }
}

impl Drop for LockedMapping {
    fn drop(&mut self) {
        memzero(self.as_mut_slice());
        let Pages { base, total, data, capacity } = self.pages;
        let mut spares = spare(self.guards);
        if capacity == page_size() && spares.len() < SPARES {
            return spares.push(Pages { base, total, data, capacity });
        }
        drop(spares);
        // SAFETY: the range is exactly the mapping made in `map`, and no reference outlives `self`.
        // munmap also unlocks. It can fail only by splitting a mapping at vm.max_map_count; then the
        // wiped pages stay.
        unsafe { libc::munmap(base.as_ptr().cast(), total) };
    }
}

impl Pages {
    fn map(len: usize, guards: Guards) -> Result<Self, LockError> {
        let page = page_size();
        let guard = if guards == Guards::Both { page } else { 0 };
        let capacity =
            len.max(1).checked_next_multiple_of(page).ok_or(LockError::TooLong { len })?;
        let total = capacity.checked_add(2 * guard).ok_or(LockError::TooLong { len })?;
        let base = map_anonymous(total)?;
        // SAFETY: `guard` is at most a page, and the mapping is at least a page longer than that.
        let data = unsafe { base.add(guard) };
        let pages = Self { base, total, data, capacity };
        pages.set_up(guard).inspect_err(|_| {
            // SAFETY: the range is exactly the mapping just made, and nothing refers to it.
            unsafe { libc::munmap(base.as_ptr().cast(), total) };
        })?;
        Ok(pages)
    }

    fn set_up(&self, guard: usize) -> Result<(), LockError> {
        if guard > 0 {
            self.protect(self.base, guard)?;
            // SAFETY: `total` = guard + capacity + guard.
            self.protect(unsafe { self.data.add(self.capacity) }, guard)?;
        }
        self.advise(libc::MADV_DONTDUMP, "madvise(MADV_DONTDUMP)")?;
        self.advise(libc::MADV_WIPEONFORK, "madvise(MADV_WIPEONFORK)")?;
        self.lock()
    }

    fn protect(&self, at: NonNull<u8>, len: usize) -> Result<(), LockError> {
        // SAFETY: the range lies within this mapping, and nothing refers to it yet.
        match unsafe { libc::mprotect(at.as_ptr().cast(), len, libc::PROT_NONE) } {
            0 => Ok(()),
            _ => Err(self.map_error("mprotect")),
        }
    }

    fn advise(&self, advice: libc::c_int, call: &'static str) -> Result<(), LockError> {
        // SAFETY: the range is exactly this mapping's data.
        match unsafe { libc::madvise(self.data.as_ptr().cast(), self.capacity, advice) } {
            0 => Ok(()),
            _ => Err(self.map_error(call)),
        }
    }

    fn lock(&self) -> Result<(), LockError> {
        // SAFETY: the range is exactly this mapping's data.
        match unsafe { libc::mlock(self.data.as_ptr().cast(), self.capacity) } {
            0 => Ok(()),
            _ => Err(LockError::Lock { len: self.capacity, source: io::Error::last_os_error() }),
        }
    }

    fn map_error(&self, call: &'static str) -> LockError {
        LockError::Map { len: self.total, call, source: io::Error::last_os_error() }
    }
}

fn map_anonymous(len: usize) -> Result<NonNull<u8>, LockError> {
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let failed = || LockError::Map { len, call: "mmap", source: io::Error::last_os_error() };
    if base == libc::MAP_FAILED {
        return Err(failed());
    }
    NonNull::new(base.cast()).ok_or_else(failed)
}

/// Bytes in a page.
pub(crate) fn page_size() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: sysconf has no preconditions.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, in_child, memory_at, smaps_flags, vm_locked_kib};

    #[test]
    fn pages_are_locked_and_left_out_of_dumps_and_forks() {
        alone("mapping::tests::pages_are_locked_and_left_out_of_dumps_and_forks", || {
            let before = vm_locked_kib();
            let mapping = LockedMapping::new(1 << 20, Guards::None).unwrap();
            assert!(vm_locked_kib() >= before + 1024);
            let flags = smaps_flags(mapping.data().as_ptr() as usize);
            for flag in ["lo", "dd", "wf"] {
                assert!(flags.iter().any(|f| f == flag), "{flag} is missing in {flags:?}");
            }
        });
    }

    #[test]
    fn guard_pages_stand_on_both_sides() {
        let mapping = LockedMapping::new(32, Guards::Both).unwrap();
        let (start, end) = (mapping.data().as_ptr() as usize, mapping.capacity());
        for beyond in [start - 1, start + end] {
            let flags = smaps_flags(beyond);
            let open = flags.iter().any(|f| f == "rd" || f == "wr");
            assert!(!open, "{flags:?}");
        }
    }

    #[test]
    fn a_forked_child_sees_zeros() {
        let mut mapping = LockedMapping::new(100, Guards::None).unwrap();
        mapping.as_mut_slice().fill(0x5a);
        // SAFETY: the child only reads memory and leaves through _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let wiped = mapping.as_slice().iter().all(|b| *b == 0);
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(if wiped { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `child` is our own child and `status` a valid place.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child read the parent's bytes");
        assert!(mapping.as_slice().iter().all(|b| *b == 0x5a));
    }

    #[test]
    fn dropping_unmaps() {
        let mapping = LockedMapping::new(page_size() + 1, Guards::Both).unwrap();
        let address = mapping.data().as_ptr() as usize;
        assert!(!memory_at(address, 1).is_empty());
        drop(mapping);
        assert!(memory_at(address, 1).is_empty());
    }

    #[test]
    fn one_page_is_kept_wiped_and_locked_for_the_next() {
        alone("mapping::tests::one_page_is_kept_wiped_and_locked_for_the_next", || {
            for guards in [Guards::None, Guards::Both] {
                let mut mapping = LockedMapping::new(100, guards).unwrap();
                let address = mapping.data().as_ptr() as usize;
                mapping.as_mut_slice().fill(0x5a);
                drop(mapping);
                let kept = memory_at(address, page_size());
                assert!(kept.len() == page_size() && kept.iter().all(|b| *b == 0));
                let flags = smaps_flags(address);
                assert!(["lo", "dd", "wf"].iter().all(|flag| flags.iter().any(|f| f == flag)));
                let next = LockedMapping::new(page_size(), guards).unwrap();
                assert_eq!(next.data().as_ptr() as usize, address);
                let other = LockedMapping::new(1, guards).unwrap();
                assert_ne!(other.data(), next.data(), "it is one holder's");
            }
        });
    }

    #[test]
    fn no_more_are_kept_than_a_burst_needs() {
        alone("mapping::tests::no_more_are_kept_than_a_burst_needs", || {
            let before = vm_locked_kib();
            let kib = |pages: usize| (pages * page_size() / 1024) as u64;
            let many: Vec<_> = (0..1000).map(|_| LockedMapping::new(1, Guards::None)).collect();
            assert!(vm_locked_kib() >= before + kib(1000));
            drop(many);
            assert!(vm_locked_kib() <= before + kib(SPARES));
        });
    }

    #[test]
    fn a_refused_lock_is_an_error_that_says_what_to_raise() {
        let name = "mapping::tests::a_refused_lock_is_an_error_that_says_what_to_raise";
        in_child(name, |_| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: plain system calls on a process of our own.
            unsafe {
                assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none), 0);
                assert_eq!(libc::setgid(65534), 0);
                assert_eq!(libc::setuid(65534), 0);
            }
            let error = LockedMapping::new(100, Guards::None).err().unwrap().to_string();
            assert!(error.contains("RLIMIT_MEMLOCK"), "{error}");
            println!("child is done");
        })
        .assert_prints("child is done");
    }

    #[test]
    fn an_impossible_length_is_refused() {
        assert!(matches!(
            LockedMapping::new(usize::MAX, Guards::None),
            Err(LockError::TooLong { .. })
        ));
        assert!(matches!(
            LockedMapping::new(usize::MAX / 2, Guards::None),
            Err(LockError::Map { .. })
        ));
    }
}
