//! The raw system calls of the node: what neither `std` nor `rustix` offers safely.
//!
//! The only module of this crate that may use `unsafe`. It depends on nothing of Keyhole.
//! Invariant: every function is safe to call with any argument; a wrong one is an `io::Error`.
#![expect(unsafe_code, reason = "raw system calls that rustix does not have")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Mount attribute bits of `mount_setattr(2)` that we change after mounting.
pub const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears `MOUNT_ATTR_*` bits of the one mount that `mount` refers to.
pub fn mount_setattr(mount: impl AsFd, set: u64, clear: u64) -> io::Result<()> {
    let attr = MountAttr { set, clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a constant C string, `attr` outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct pidfd_info`, first published size of 64 bytes (linux/pidfd.h, 6.13).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    credentials: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_PID: u64 = 1;
const PIDFD_INFO_CGROUP: u64 = 4;
/// `_IOWR(0xFF, 11, 64 bytes)`; later kernels accept the first published size for ever.
const PIDFD_GET_INFO: u64 = 0xC040_FF0B;
const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// What the kernel says about the thread behind a pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadInfo {
    /// Thread id in the pid namespace of the pidfd's opener.
    pub tid: u32,
    /// Id of the cgroup2 directory the thread is in; `None` if the kernel did not say.
    pub cgroup: Option<u64>,
}

/// `PIDFD_GET_INFO` on a pidfd opened with `PIDFD_THREAD`. `ESRCH`: the thread is gone;
/// `ENOTTY`: a kernel older than 6.13.
pub fn pidfd_info(pidfd: impl AsFd) -> io::Result<ThreadInfo> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_PID | PIDFD_INFO_CGROUP, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the 64 bytes that the request number announces.
    let result =
        unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let cgroup = (info.mask & PIDFD_INFO_CGROUP != 0).then_some(info.cgroup_id);
    Ok(ThreadInfo { tid: info.pid, cgroup })
}

/// `struct file_handle` with the eight bytes of a kernfs handle.
#[repr(C)]
struct KernfsHandle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// `FILEID_KERNFS` (linux/exportfs.h).
const FILEID_KERNFS: i32 = 0xfe;

/// Opens (`O_PATH`) the directory of the cgroup2 hierarchy that has this id. `hierarchy` is any
/// descriptor on that mount. `ESTALE`: there is no such cgroup any more.
pub fn open_cgroup_by_id(hierarchy: impl AsFd, id: u64) -> io::Result<OwnedFd> {
    let mut handle = KernfsHandle { bytes: 8, kind: FILEID_KERNFS, id };
    // SAFETY: `handle` has the layout of struct file_handle with 8 bytes of payload.
    let fd = unsafe {
        libc::open_by_handle_at(
            hierarchy.as_fd().as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    owned(fd)
}

/// Makes the descriptor number of `onto` refer to the open file of `from` (close-on-exec).
/// Whatever `onto` referred to is closed; its owner goes on, unknowing, with the new file.
pub fn replace_fd(from: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are open; ownership of the number `onto` stays where it is.
    let result = unsafe { libc::dup3(from.as_raw_fd(), onto.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a file with the tokio runtime for `POLLPRI`, the signal of kernfs files.
pub fn watch_priority(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the file keeps its descriptor until the AsyncFd, which we give no `&mut` to, goes.
    let watched = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    watched.map_err(|error| error.into_parts().1)
}

/// Takes ownership of a descriptor inherited over exec and marks it close-on-exec. A number that
/// is not open, or one of the three standard streams, is an error.
///
/// Call it once for each number that the parent announced, before anything else opens files.
pub fn inherit_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD on any number is harmless; it fails when the number is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    owned(number)
}

/// Blocks `signals` in this thread (and those it starts later) and gives a descriptor that
/// becomes readable when one of them arrives.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid, writable signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` is initialised; a wrong number is an error and changes nothing.
        if unsafe { libc::sigaddset(&raw mut set, signal) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: `set` is initialised; no old mask is asked for.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: `set` is initialised.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Lets all signals through in this thread. A child process starts with the mask of its parent's
/// thread, which [`signal_fd`] has changed.
pub fn unblock_signals() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid, writable signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` is initialised; no old mask is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) }
    {
        0 => Ok(()),
        failed => Err(io::Error::from_raw_os_error(failed)),
    }
}

/// The next signal number waiting on a descriptor of [`signal_fd`], if there is one.
pub fn read_signal(fd: impl AsFd) -> io::Result<Option<i32>> {
    let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut record) {
        Ok(read) if read == record.len() => {
            let [a, b, c, d, ..] = record;
            Ok(Some(i32::from_ne_bytes([a, b, c, d])))
        }
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller just received this descriptor from the kernel or from its parent process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_inherited_number_that_is_not_open_is_refused() {
        assert_eq!(inherit_fd(987_654).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(inherit_fd(1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn replace_fd_redirects_a_number_owned_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let session = std::fs::File::create(&path).unwrap();
        let real = std::fs::File::open("/proc/self/status").unwrap();
        replace_fd(real.as_fd(), session.as_fd()).unwrap();
        assert_eq!(session.metadata().unwrap().dev(), real.metadata().unwrap().dev());
    }

    #[test]
    fn a_signal_is_read_from_its_descriptor() {
        std::thread::spawn(|| {
            let fd = signal_fd(&[libc::SIGUSR2]).unwrap();
            assert_eq!(read_signal(&fd).unwrap(), None);
            // SAFETY: SIGUSR2 is blocked in this thread, so it only becomes pending.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(read_signal(&fd).unwrap(), Some(libc::SIGUSR2));
        })
        .join()
        .unwrap();
    }
}
