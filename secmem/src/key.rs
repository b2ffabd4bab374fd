//! `Key32`: a 32 byte key between two guard pages.
//!
//! For the few keys a process holds (about 20 KiB of address space and three mappings each); values
//! by the thousand are kept sealed instead.

use std::fmt;

use crate::mapping::{Guards, LockError, LockedMapping};
use crate::wipe::{ct_eq, memzero};

/// A 32 byte key in locked, undumpable memory, wiped when dropped.
pub struct Key32 {
    mapping: LockedMapping,
}

impl Key32 {
    /// A fresh random key.
    pub fn generate() -> Result<Self, LockError> {
        let mut key = Self::zeroed()?;
        getrandom::fill(key.expose_mut()).map_err(LockError::Random)?;
        Ok(key)
    }

    /// Takes a key over and wipes `source`, also when this fails.
    pub fn from_bytes(source: &mut [u8; 32]) -> Result<Self, LockError> {
        let made = Self::filled_by(|key| *key = *source);
        memzero(source);
        made
    }

    /// A key that `fill` writes in place, so that a derived key is never anywhere else.
    pub fn filled_by(fill: impl FnOnce(&mut [u8; 32])) -> Result<Self, LockError> {
        let mut key = Self::zeroed()?;
        fill(key.expose_mut());
        Ok(key)
    }

    /// A second copy, as well guarded as this one.
    pub fn try_clone(&self) -> Result<Self, LockError> {
        Self::filled_by(|copy| copy.copy_from_slice(self.expose()))
    }

    /// The key itself. Copies of it are the caller's to wipe.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        match self.mapping.as_slice().first_chunk() {
            Some(key) => key,
            None => unreachable!("a mapping is a page at least"),
        }
    }

    fn expose_mut(&mut self) -> &mut [u8; 32] {
        match self.mapping.as_mut_slice().first_chunk_mut() {
            Some(key) => key,
            None => unreachable!("a mapping is a page at least"),
        }
    }

    fn zeroed() -> Result<Self, LockError> {
        Ok(Self { mapping: LockedMapping::new(32, Guards::Both)? })
    }
}

impl PartialEq for Key32 {
    fn eq(&self, other: &Self) -> bool {
        ct_eq(self.expose(), other.expose())
    }
}

impl Eq for Key32 {}

impl fmt::Debug for Key32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key32(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, smaps_flags, vm_locked_kib};

    #[test]
    fn taking_over_wipes_the_source() {
        let mut source = [9; 32];
        let key = Key32::from_bytes(&mut source).unwrap();
        assert_eq!(key.expose(), &[9; 32]);
        assert_eq!(source, [0; 32]);
        assert!(key == key.try_clone().unwrap());
    }

    #[test]
    fn generated_keys_differ() {
        assert!(Key32::generate().unwrap() != Key32::generate().unwrap());
    }

    #[test]
    fn debug_tells_nothing() {
        assert_eq!(format!("{:?}", Key32::from_bytes(&mut [7; 32]).unwrap()), "Key32(..)");
    }

    #[test]
    fn every_key_of_a_hundred_is_locked() {
        alone("key::tests::every_key_of_a_hundred_is_locked", || {
            let before = vm_locked_kib();
            let keys: Vec<_> = (0..100).map(|_| Key32::generate().unwrap()).collect();
            let page_kib = crate::mapping::page_size() as u64 / 1024;
            assert_eq!(vm_locked_kib() - before, 100 * page_kib);
            for key in &keys {
                let flags = smaps_flags(key.expose().as_ptr() as usize);
                assert!(flags.iter().any(|f| f == "lo") && flags.iter().any(|f| f == "dd"));
            }
        });
    }
}
