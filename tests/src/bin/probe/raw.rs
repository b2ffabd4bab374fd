//! The system calls that have no safe wrapper: maps that may fault, fork, truncate by path, file handles, sendmsg.

#![expect(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use keyhole_tests::{Answer, Errno};

/// A mapping, looked at by raw reads only: a page of it may be gone at any time.
pub(crate) struct Map {
    at: *mut u8,
    len: usize,
}

fn last() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("test paths have no NUL")
}

impl Map {
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        len: usize,
        prot: i32,
        flags: i32,
    ) -> Result<Self, Errno> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(last()) } else { Ok(Self { at: at.cast(), len }) }
    }

    /// Copies bytes out; a page that cannot be had raises SIGBUS.
    pub(crate) fn peek(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len, "inside the map");
        // SAFETY: inside the mapping, which lives until `Drop`. Volatile: another process may change the bytes.
        (offset..offset + len).map(|at| unsafe { self.at.add(at).read_volatile() }).collect()
    }

    pub(crate) fn poke(&mut self, offset: usize, byte: u8) {
        assert!(offset < self.len, "inside the map");
        // SAFETY: as above; a test pokes only maps that it made writable.
        unsafe { self.at.add(offset).write_volatile(byte) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used by nobody after this.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Answers for a forked child. The child has this process's single thread, so it may run any code.
pub(crate) fn forked(work: impl FnOnce() -> Answer) -> Result<Answer, Errno> {
    let (mut reader, mut writer) = std::io::pipe().map_err(|_| last())?;
    // SAFETY: this process has one thread, so no lock can be held by another one at the fork.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(last());
    }
    if pid == 0 {
        let answer = serde_json::to_vec(&work()).expect("an answer is plain data");
        let written = writer.write_all(&answer);
        // SAFETY: ends the child at once; nothing of the parent's is flushed or dropped twice.
        unsafe { libc::_exit(i32::from(written.is_err())) };
    }
    drop(writer);
    let mut answer = Vec::new();
    reader.read_to_end(&mut answer).map_err(|_| last())?;
    let mut status = 0;
    // SAFETY: waits for our own child, with a place for its status.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if libc::WIFSIGNALED(status) {
        return Ok(Answer::Signal(libc::WTERMSIG(status)));
    }
    Ok(serde_json::from_slice(&answer).expect("a child that was not killed answers"))
}

/// unshare(2).
pub(crate) fn unshare(bits: u32) -> Result<(), Errno> {
    // SAFETY: tests unshare namespaces only; the descriptor table and the memory stay shared.
    if unsafe { libc::unshare(bits as i32) } < 0 { Err(last()) } else { Ok(()) }
}

/// truncate(2).
pub(crate) fn truncate(path: &Path, len: u64) -> Result<(), Errno> {
    let path = c_path(path);
    // SAFETY: a NUL-terminated path that outlives the call.
    let result = unsafe { libc::truncate(path.as_ptr(), len as libc::off_t) };
    if result < 0 { Err(last()) } else { Ok(()) }
}

/// name_to_handle_at(2): only whether it is supported.
pub(crate) fn name_to_handle(path: &Path) -> Result<(), Errno> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let path = c_path(path);
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount_id = 0i32;
    // SAFETY: the kernel writes at most `bytes` into `data`, and the mount's id; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0,
        )
    };
    if result < 0 { Err(last()) } else { Ok(()) }
}

/// FS_IOC_SETFLAGS with no flag, and FS_IOC_GETFLAGS.
pub(crate) fn flags_ioctl(fd: BorrowedFd<'_>, set: bool) -> Result<i64, Errno> {
    let mut flags: libc::c_long = 0;
    let request = if set { libc::FS_IOC_SETFLAGS } else { libc::FS_IOC_GETFLAGS };
    // SAFETY: both requests take a pointer to a long at most, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut flags) };
    if result < 0 { Err(last()) } else { Ok(flags) }
}

/// A second descriptor of the same open file.
pub(crate) fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|_| last())
}

/// Sends one descriptor over a connected socket.
pub(crate) fn send_fd(socket: &impl AsRawFd, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0u8; 1];
    let mut space = [0usize; 8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: an all-zero msghdr is valid; the pointers set below outlive the call, and `space` is aligned and larger
    // than one control message with one descriptor.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let control = libc::CMSG_FIRSTHDR(&raw const message);
        (*control).cmsg_level = libc::SOL_SOCKET;
        (*control).cmsg_type = libc::SCM_RIGHTS;
        (*control).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(control).cast::<i32>().write_unaligned(fd.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
    };
    if sent < 0 { Err(last()) } else { Ok(()) }
}

/// Receives one descriptor from a connected socket.
pub(crate) fn receive_fd(socket: &impl AsRawFd) -> Result<OwnedFd, Errno> {
    let mut byte = [0u8; 1];
    let mut space = [0usize; 8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: as in `send_fd`; the descriptor that the kernel installed is ours alone.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&space);
        if libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) < 0 {
            return Err(last());
        }
        let control = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!control.is_null(), "a descriptor came with the byte");
        Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(control).cast::<i32>().read_unaligned()))
    }
}

/// What is in a pipe now.
pub(crate) fn drain(mut pipe: impl Read, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    pipe.read_exact(&mut bytes).map_err(|_| last())?;
    Ok(bytes)
}

/// splice(2) into a fresh pipe.
pub(crate) fn splice(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>, Errno> {
    let (reader, writer) = std::io::pipe().map_err(|_| last())?;
    let null = std::ptr::null_mut();
    // SAFETY: no offsets are given, and both descriptors are open.
    let moved = unsafe { libc::splice(fd.as_raw_fd(), null, writer.as_raw_fd(), null, len, 0) };
    if moved < 0 { Err(last()) } else { drain(File::from(OwnedFd::from(reader)), moved as usize) }
}
