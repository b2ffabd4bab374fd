//! What a process learns from its machine besides what it is given: chance and time. Both follow from the seed here.
//!
//! Libraries draw from the system what they do not let anybody choose: the order of a hash map, which branch of a
//! `select!` is looked at first, when an election is due, a salt. All of it comes from `getrandom`, and times that are not
//! the simulation's come from `clock_gettime`; the linker takes the two functions here in place of libc's.
//!
//! Invariant: in this process no two runs with the same seed see anything different.
#![expect(unsafe_code, reason = "functions of libc are replaced, with libc's own signatures")]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds since the epoch when a simulation begins: some moment in 2026.
const BEGIN: u64 = 1_790_000_000_000_000_000;

static NOW: AtomicU64 = AtomicU64::new(BEGIN);

thread_local! {
    /// Each thread draws for itself, so that it does not matter how threads run beside each other.
    static CHANCE: Cell<u64> = const { Cell::new(0) };
}

/// From here on, all chance on this thread follows from `seed`.
pub(crate) fn begin(seed: u64) {
    CHANCE.set(seed ^ 0x6a09_e667_f3bc_c908);
}

/// So much simulated time has passed since the beginning.
pub(crate) fn set_elapsed(elapsed: std::time::Duration) {
    NOW.store(BEGIN + elapsed.as_nanos() as u64, Ordering::Relaxed);
}

/// Nanoseconds since the epoch, as everybody in the simulation sees them.
pub(crate) fn now() -> u64 {
    NOW.load(Ordering::Relaxed)
}

fn draw() -> u8 {
    let mut dice = crate::dice::Dice::new(CHANCE.get());
    let byte = dice.next();
    CHANCE.set(byte);
    (byte >> 32) as u8
}

/// In place of libc's.
///
/// # Safety
/// As for libc's: `buffer` has `len` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    len: libc::size_t,
    _flags: libc::c_uint,
) -> libc::ssize_t {
    for at in 0..len {
        // SAFETY: the caller gave `len` bytes that may be written.
        unsafe { buffer.cast::<u8>().add(at).write(draw()) };
    }
    len as libc::ssize_t
}

/// In place of libc's: each clock shows the simulation's time.
///
/// # Safety
/// As for libc's: `time` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    _clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let now = now();
    let shown = libc::timespec {
        tv_sec: (now / 1_000_000_000) as libc::time_t,
        tv_nsec: (now % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the caller gave a place that may be written.
    unsafe { time.write(shown) };
    0
}
