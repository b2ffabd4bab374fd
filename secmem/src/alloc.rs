//! The global allocator of both daemons: whatever is freed is wiped first.
//!
//! Buffers of tonic, h2, prost and rustls are not ours to wipe one by one; this wipes them all. Its
//! invariant: no block goes back to the system allocator with its contents.
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait over raw blocks")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use crate::wipe::keep_stores;

/// The system allocator, except that every block is overwritten with zeros before it is freed.
///
/// `realloc` always moves: the system's own could leave the old copy behind.
#[derive(Debug, Clone, Copy, Default)]
pub struct ZeroingAllocator;

// SAFETY: every call is forwarded to `System` with the caller's layout, or (realloc) made of an alloc,
// a copy of the smaller size and a dealloc with the layouts that belong to the two blocks.
unsafe impl GlobalAlloc for ZeroingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` is live and `layout.size()` bytes long, by the caller's promise; nobody else
        // may look at it any more.
        unsafe {
            ptr::write_bytes(block, 0, layout.size());
            keep_stores(block);
            System.dealloc(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size`, rounded up to the alignment, fits an isize. The
        // old block is freed only after the new one holds its contents.
        unsafe {
            let new_layout = Layout::from_size_align_unchecked(new_size, layout.align());
            let moved = System.alloc(new_layout);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Gives pages of the heap that hold nothing back to the system. For after a piece of work that took much memory for a
/// moment: the system's allocator keeps what was freed below something that stays.
pub fn give_back_free_memory() {
    // Others than glibc's do it by themselves, or cannot.
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions, and may run beside other threads' calls.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_goes_back_although_something_above_it_stays() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        alone("alloc::tests::free_memory_goes_back_although_something_above_it_stays", || {
            let mut blocks: Vec<Vec<u8>> = (0..20_000).map(|_| vec![7; 4000]).collect();
            let last = blocks.pop();
            drop(blocks);
            let before = resident();
            give_back_free_memory();
            assert!(resident() + 50_000 < before, "{before} {}", resident());
            drop(last);
        });
    }
    use crate::testing::{alone, contains, memory_at};

    const PATTERN: &[u8] = b"zeroing-allocator-canary-7f1c";

    /// Allocates, writes the pattern at 64 (past what malloc's free lists overwrite), frees, and reads
    /// the freed block through /proc/self/mem.
    fn left_behind(allocator: &impl GlobalAlloc) -> Vec<u8> {
        let layout = Layout::from_size_align(256, 16).unwrap();
        // SAFETY: the block is written within its 256 bytes and freed once with its own layout.
        let address = unsafe {
            let block = allocator.alloc(layout);
            assert!(!block.is_null());
            ptr::copy_nonoverlapping(PATTERN.as_ptr(), block.add(64), PATTERN.len());
            keep_stores(block);
            let address = block as usize;
            allocator.dealloc(block, layout);
            address
        };
        memory_at(address, 256)
    }

    #[test]
    fn a_freed_block_holds_nothing() {
        assert!(contains(&left_behind(&System), PATTERN), "the check itself must see a leak");
        assert!(!contains(&left_behind(&ZeroingAllocator), PATTERN));
    }

    #[test]
    fn a_moved_block_keeps_its_contents_and_leaves_none_behind() {
        let layout = Layout::from_size_align(256, 16).unwrap();
        // SAFETY: blocks are used within their sizes and freed once with the layout of their size.
        unsafe {
            let block = ZeroingAllocator.alloc(layout);
            ptr::copy_nonoverlapping(PATTERN.as_ptr(), block.add(64), PATTERN.len());
            keep_stores(block);
            let old = block as usize;
            let moved = ZeroingAllocator.realloc(block, layout, 4000);
            let kept = std::slice::from_raw_parts(moved.add(64), PATTERN.len()) == PATTERN;
            let left = memory_at(old, 256);
            ZeroingAllocator.dealloc(moved, Layout::from_size_align(4000, 16).unwrap());
            assert!(kept);
            assert!(!contains(&left, PATTERN));
        }
    }
}
