//! `SecretFd`: a key that outlives its process in memory that not even the kernel maps.
//!
//! A supervisor creates it and passes the descriptor on; whoever has the descriptor maps the page when
//! it needs the key. Nothing here writes to the page after `create`.
#![expect(unsafe_code, reason = "memfd_secret and mmap deal in raw descriptors and addresses")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use crate::mapping::page_size;
use crate::wipe::ct_eq;

/// `SECRETMEM_MAGIC` of linux/magic.h: what `fstatfs` says of a memfd_secret.
const SECRETMEM_MAGIC: libc::__fsword_t = 0x5345_434d;

/// Why a secret descriptor could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFdError {
    /// The kernel has no `memfd_secret`.
    #[error(
        "this kernel gives no secret memory (memfd_secret): boot with secretmem.enable=1 on Linux 5.14 or newer built with CONFIG_SECRETMEM"
    )]
    Unsupported,
    /// The descriptor is something else.
    #[error("descriptor {fd} is not one page of secret memory (memfd_secret)")]
    NotSecret {
        /// The descriptor's number.
        fd: RawFd,
    },
    /// A system call failed.
    #[error("secret memory (memfd_secret): {call}: {source}")]
    Io {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// One page of `memfd_secret` that begins with a 32 byte key.
///
/// The key is gone when the last descriptor and the last mapping are. The descriptor is closed on
/// exec unless [`SecretFd::set_inheritable`] says otherwise.
#[derive(Debug)]
pub struct SecretFd {
    fd: OwnedFd,
}

impl SecretFd {
    /// A new page with a fresh random key.
    pub fn create() -> Result<Self, SecretFdError> {
        // SAFETY: memfd_secret takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = match RawFd::try_from(fd) {
            // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
            Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(creation_error(io::Error::last_os_error())),
        };
        // SAFETY: ftruncate takes no pointers. A page's size fits an off_t.
        let sized = unsafe { libc::ftruncate(fd.as_raw_fd(), page_size() as libc::off_t) };
        check(sized, "ftruncate")?;
        let secret = Self { fd };
        let mut page = Page::map(secret.fd.as_fd(), libc::PROT_READ | libc::PROT_WRITE)?;
        getrandom::fill(page.key_mut()).map_err(SecretFdError::Random)?;
        Ok(secret)
    }

    /// Takes over a descriptor that another process made and passed on; it is closed on exec again.
    pub fn adopt(fd: OwnedFd) -> Result<Self, SecretFdError> {
        if !is_secret_page(fd.as_fd()) {
            return Err(SecretFdError::NotSecret { fd: fd.as_raw_fd() });
        }
        let secret = Self { fd };
        secret.set_inheritable(false)?;
        Ok(secret)
    }

    /// The same for a descriptor known by its number only (from a parent process). This makes a second
    /// descriptor; the first stays open, and is closed on exec.
    pub fn from_inherited(number: RawFd) -> Result<Self, SecretFdError> {
        // SAFETY: fcntl on a number that is not a descriptor fails with EBADF.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
        check(copy, "fcntl(F_DUPFD_CLOEXEC)")?;
        // SAFETY: the kernel just gave us `copy`.
        let secret = Self::adopt(unsafe { OwnedFd::from_raw_fd(copy) })
            .map_err(|_| SecretFdError::NotSecret { fd: number })?;
        // SAFETY: as above; the number is a descriptor, or the copy would have failed.
        let closing = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        check(closing, "fcntl(F_SETFD)")?;
        Ok(secret)
    }

    /// Whether a program that this process execs gets the descriptor.
    pub fn set_inheritable(&self, inheritable: bool) -> Result<(), SecretFdError> {
        let flags = if inheritable { 0 } else { libc::FD_CLOEXEC };
        // SAFETY: F_SETFD takes no pointers.
        check(unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFD, flags) }, "fcntl(F_SETFD)")
    }

    /// Maps the key, for reading.
    pub fn map(&self) -> Result<MappedKey, SecretFdError> {
        Ok(MappedKey { page: Page::map(self.fd.as_fd(), libc::PROT_READ)? })
    }
}

impl AsFd for SecretFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for SecretFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<SecretFd> for OwnedFd {
    fn from(secret: SecretFd) -> Self {
        secret.fd
    }
}

/// The key of a [`SecretFd`], mapped read-only; unmapped when dropped, absent in forked children.
pub struct MappedKey {
    page: Page,
}

impl MappedKey {
    /// The key itself. Copies of it are the caller's to wipe; the kernel refuses (EFAULT) to read from
    /// here, so it cannot be written to a descriptor.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.page.key()
    }
}

impl PartialEq for MappedKey {
    fn eq(&self, other: &Self) -> bool {
        ct_eq(self.expose(), other.expose())
    }
}

impl Eq for MappedKey {}

impl fmt::Debug for MappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MappedKey(..)")
    }
}

/// A mapping of one secret page.
struct Page {
    start: NonNull<u8>,
}

// SAFETY: the page is written in `SecretFd::create` only, before anyone else can have mapped it.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn map(fd: BorrowedFd<'_>, prot: libc::c_int) -> Result<Self, SecretFdError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), page_size(), prot, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        let failed = |call| SecretFdError::Io { call, source: io::Error::last_os_error() };
        if start == libc::MAP_FAILED {
            return Err(failed("mmap"));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| failed("mmap"))?;
        let page = Self { start };
        // SAFETY: the range is the mapping just made.
        let kept =
            unsafe { libc::madvise(start.as_ptr().cast(), page_size(), libc::MADV_DONTFORK) };
        check(kept, "madvise(MADV_DONTFORK)")?;
        Ok(page)
    }

    fn key(&self) -> &[u8; 32] {
        // SAFETY: the page is mapped for reading while `self` lives, and holds 32 bytes at least.
        unsafe { self.start.cast().as_ref() }
    }

    /// Only for a page mapped with PROT_WRITE, that is in `SecretFd::create`.
    fn key_mut(&mut self) -> &mut [u8; 32] {
        // SAFETY: the page is mapped for writing there, and `&mut self` makes this the only reference.
        unsafe { self.start.cast().as_mut() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the mapping made in `map`; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), page_size()) };
    }
}

fn is_secret_page(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: all-zero is a valid value of both structs, and both calls write within them.
    unsafe {
        let mut filesystem: libc::statfs = std::mem::zeroed();
        let mut file: libc::stat = std::mem::zeroed();
        libc::fstatfs(fd.as_raw_fd(), &raw mut filesystem) == 0
            && libc::fstat(fd.as_raw_fd(), &raw mut file) == 0
            && filesystem.f_type == SECRETMEM_MAGIC
            && file.st_size == page_size() as libc::off_t
    }
}

fn creation_error(source: io::Error) -> SecretFdError {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => SecretFdError::Unsupported,
        _ => SecretFdError::Io { call: "memfd_secret", source },
    }
}

fn check(result: libc::c_int, call: &'static str) -> Result<(), SecretFdError> {
    if result < 0 {
        return Err(SecretFdError::Io { call, source: io::Error::last_os_error() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use super::*;
    use crate::testing::{closes_on_exec, in_child_with, memory_at};

    #[test]
    fn every_map_of_one_descriptor_shows_one_random_key() {
        let (one, other) = (SecretFd::create().unwrap(), SecretFd::create().unwrap());
        assert!(one.map().unwrap() == one.map().unwrap());
        assert!(one.map().unwrap() != other.map().unwrap());
        assert_ne!(one.map().unwrap().expose(), &[0; 32]);
        assert_eq!(format!("{:?}", one.map().unwrap()), "MappedKey(..)");
    }

    #[test]
    fn the_kernel_itself_cannot_read_the_key() {
        let key = SecretFd::create().unwrap().map().unwrap();
        assert!(memory_at(key.expose().as_ptr() as usize, 32).is_empty());
    }

    #[test]
    fn it_is_closed_on_exec_until_told_otherwise() {
        let secret = SecretFd::create().unwrap();
        assert!(closes_on_exec(secret.as_raw_fd()));
        secret.set_inheritable(true).unwrap();
        assert!(!closes_on_exec(secret.as_raw_fd()));
        let adopted = SecretFd::adopt(secret.into()).unwrap();
        assert!(closes_on_exec(adopted.as_raw_fd()));
    }

    #[test]
    fn a_program_maps_the_key_that_its_parent_made() {
        let name = "fd::tests::a_program_maps_the_key_that_its_parent_made";
        let secret = SecretFd::create().unwrap();
        secret.set_inheritable(true).unwrap();
        let sum = |key: &MappedKey| key.expose().iter().map(|b| u64::from(*b)).sum::<u64>();
        let wanted = sum(&secret.map().unwrap());
        in_child_with(name, &secret.as_raw_fd().to_string(), |number| {
            let number = number.parse().unwrap();
            let inherited = SecretFd::from_inherited(number).unwrap();
            assert!(closes_on_exec(number));
            println!("sum {}", sum(&inherited.map().unwrap()));
        })
        .assert_prints(&format!("sum {wanted}\n"));
    }

    #[test]
    fn another_kind_of_file_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        let refused = SecretFd::from_inherited(number).unwrap_err();
        assert!(matches!(refused, SecretFdError::NotSecret { fd } if fd == number), "{refused}");
        assert!(SecretFd::adopt(file.into()).is_err());
        let closed = SecretFd::create().unwrap().fd.into_raw_fd();
        // SAFETY: `closed` was given up by `into_raw_fd` and is closed once.
        unsafe { libc::close(closed) };
        assert!(matches!(SecretFd::from_inherited(closed), Err(SecretFdError::Io { .. })));
    }

    #[test]
    fn a_kernel_without_it_is_named_with_the_mend() {
        let error = creation_error(io::Error::from_raw_os_error(libc::ENOSYS)).to_string();
        assert!(error.contains("secretmem.enable=1"), "{error}");
    }
}
