//! `SecretBytes`: one value of any length in locked memory of its own.
//!
//! Invariant: the bytes are in this mapping only; whatever is read into it passes through no other
//! buffer of this process.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use crate::mapping::{Guards, LockError, LockedMapping};
use crate::wipe::{ct_eq, memzero};

/// An oversized input is counted up to here, for the error's sake.
const COUNT_LIMIT: u64 = 64 << 20;

/// A value in locked, undumpable memory, wiped when dropped. It cannot be cloned, printed or
/// serialised; `==` takes a time that depends on the lengths only.
pub struct SecretBytes {
    mapping: LockedMapping,
    len: usize,
}

/// Why a value could not be read from a descriptor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// More than the limit came.
    #[error("the value has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes that came, counted up to 64 MiB.
        size: u64,
    },
    /// Nothing came.
    #[error("the value is empty")]
    Empty,
    /// The read failed.
    #[error("cannot read the value: {0}")]
    Io(#[from] io::Error),
    /// There is no memory to hold it.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl SecretBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Self, LockError> {
        Ok(Self { mapping: LockedMapping::new(len, Guards::None)?, len })
    }

    /// Takes the contents of `source` over and wipes it, also when this fails.
    pub fn copy_from(source: &mut [u8]) -> Result<Self, LockError> {
        let made = Self::zeroed(source.len()).map(|mut secret| {
            secret.as_mut_slice().copy_from_slice(source);
            secret
        });
        memzero(source);
        made
    }

    /// Reads `fd` to its end, straight into locked memory.
    ///
    /// More than `limit` bytes are refused; the rest is then read and dropped (up to 64 MiB), so that
    /// the error can tell the size.
    pub fn read_from(fd: BorrowedFd<'_>, limit: usize) -> Result<Self, ReadError> {
        // An own descriptor on the same open file, so that nothing is closed that is not ours.
        let mut file = File::from(fd.try_clone_to_owned()?);
        let mut secret = Self::zeroed(limit.saturating_add(1))?;
        let read = read_until_full(&mut file, secret.as_mut_slice())?;
        if read > limit {
            let size = count_rest(&mut file, secret.as_mut_slice(), read as u64)?;
            return Err(ReadError::TooLarge { limit, size });
        }
        if read == 0 {
            return Err(ReadError::Empty);
        }
        Ok(secret.shrunk_to(read)?)
    }

    /// The bytes. Copies of them are the caller's to wipe.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.mapping.as_slice()[..self.len]
    }

    /// The bytes, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.mapping.as_mut_slice()[..self.len]
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes and wipes the rest; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            memzero(&mut self.as_mut_slice()[len..]);
            self.len = len;
        }
    }

    /// The first `len` bytes, moved to a smaller mapping if that saves pages.
    fn shrunk_to(mut self, len: usize) -> Result<Self, LockError> {
        let page = crate::mapping::page_size();
        if len.div_ceil(page) * page >= self.mapping.capacity() {
            self.truncate(len);
            return Ok(self);
        }
        let mut smaller = Self::zeroed(len)?;
        smaller.as_mut_slice().copy_from_slice(&self.as_slice()[..len]);
        Ok(smaller)
    }
}

fn read_until_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn count_rest(file: &mut File, scratch: &mut [u8], mut size: u64) -> io::Result<u64> {
    while size < COUNT_LIMIT {
        match read_until_full(file, scratch)? {
            0 => break,
            read => size += read as u64,
        }
    }
    Ok(size)
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        ct_eq(self.as_slice(), other.as_slice())
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::testing::{alone, pipe_with, smaps_flags, vm_locked_kib};

    #[test]
    fn taking_over_wipes_the_source() {
        let mut source = *b"hunter2";
        let secret = SecretBytes::copy_from(&mut source).unwrap();
        assert_eq!(secret.as_slice(), b"hunter2");
        assert_eq!(source, [0; 7]);
    }

    #[test]
    fn truncating_wipes_the_tail() {
        let mut secret = SecretBytes::copy_from(&mut b"hunter2".to_vec()).unwrap();
        secret.truncate(99);
        assert_eq!(secret.len(), 7);
        secret.truncate(3);
        assert_eq!(secret.as_slice(), b"hun");
        assert_eq!(&secret.mapping.as_slice()[..7], b"hun\0\0\0\0");
    }

    #[test]
    fn debug_tells_the_length_only() {
        let secret = SecretBytes::copy_from(&mut b"hunter2".to_vec()).unwrap();
        assert_eq!(format!("{secret:?}"), "SecretBytes(7 bytes)");
    }

    #[test]
    fn equality_compares_contents() {
        let make = |text: &[u8]| SecretBytes::copy_from(&mut text.to_vec()).unwrap();
        assert!(make(b"one") == make(b"one"));
        assert!(make(b"one") != make(b"two"));
        assert!(make(b"one") != make(b"ones"));
        assert!(make(b"").is_empty());
    }

    #[test]
    fn a_value_is_locked_as_long_as_it_lives() {
        alone("bytes::tests::a_value_is_locked_as_long_as_it_lives", || {
            let before = vm_locked_kib();
            let secret = SecretBytes::zeroed(500_000).unwrap();
            assert!(vm_locked_kib() >= before + 488);
            assert!(smaps_flags(secret.as_slice().as_ptr() as usize).iter().any(|f| f == "lo"));
            drop(secret);
            assert_eq!(vm_locked_kib(), before);
        });
    }

    #[test]
    fn reading_takes_exactly_the_limit_and_refuses_one_more() {
        let limit = 512_000;
        let value: Vec<u8> = (0..limit).map(|i| (i % 251) as u8).collect();
        let pipe = pipe_with(value.clone());
        let secret = SecretBytes::read_from(pipe.as_fd(), limit).unwrap();
        assert!(secret.as_slice() == value);

        let pipe = pipe_with(vec![7; limit + 1]);
        let error = SecretBytes::read_from(pipe.as_fd(), limit).unwrap_err();
        assert_eq!(error.to_string(), "the value has 512001 bytes; the limit is 512000");
    }

    #[test]
    fn an_oversized_input_is_counted_to_its_end_within_bounds() {
        let pipe = pipe_with(vec![7; 3_000_000]);
        let error = SecretBytes::read_from(pipe.as_fd(), 1000).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { limit: 1000, size: 3_000_000 }), "{error}");

        let endless = File::open("/dev/zero").unwrap();
        let error = SecretBytes::read_from(endless.as_fd(), 1 << 20).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { size, .. } if size >= 64 << 20), "{error}");
    }

    #[test]
    fn an_empty_input_and_a_failing_one_are_told_apart() {
        let nothing = File::open("/dev/null").unwrap();
        assert!(matches!(SecretBytes::read_from(nothing.as_fd(), 10), Err(ReadError::Empty)));
        let folder = File::open("/").unwrap();
        assert!(matches!(SecretBytes::read_from(folder.as_fd(), 10), Err(ReadError::Io(_))));
    }

    #[test]
    fn a_small_value_read_under_a_large_limit_holds_one_page() {
        alone("bytes::tests::a_small_value_read_under_a_large_limit_holds_one_page", || {
            let before = vm_locked_kib();
            let pipe = pipe_with(b"small".to_vec());
            let secret = SecretBytes::read_from(pipe.as_fd(), 512_000).unwrap();
            assert_eq!(secret.as_slice(), b"small");
            assert_eq!(vm_locked_kib() - before, crate::mapping::page_size() as u64 / 1024);
        });
    }
}
