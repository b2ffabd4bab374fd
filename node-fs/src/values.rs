//! The node's values: sealed in ordinary memory, open only in a locked buffer for one answer.
//!
//! Each is sealed with AES-256-GCM under this run's key, which lies in secret memory that the
//! supervisor made, so that a later worker can open what an earlier one sealed. Invariant:
//! plaintext exists in a [`Slot`] (wiped when dropped) and in the kernel's pages, nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use keyhole_domain::{MAX_SECRET_BYTES, ValueKey};
use keyhole_secmem::{
    BouncePool, LockError, MappedKey, SecretBytes, SecretFd, SecretFdError, Slot,
};
use keyhole_wire::seal::Aad;

/// Buffers for answers: one for each service thread and some to spare.
const SLOTS: usize = 4;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Why a value could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// There is no such value on this node.
    #[error("secret {} version {} is not on this node", key.secret, key.version)]
    Missing {
        /// Which one.
        key: ValueKey,
    },
    /// It does not open: a changed byte, another key or another version's seal.
    #[error("secret {} version {} does not open under this node's key", key.secret, key.version)]
    NotAuthentic {
        /// Which one.
        key: ValueKey,
    },
    /// It is larger than any secret may be.
    #[error("secret {} version {} has {length} bytes, more than {MAX_SECRET_BYTES}", key.secret, key.version)]
    TooLarge {
        /// Which one.
        key: ValueKey,
        /// Its length.
        length: usize,
    },
    /// The key could not be mapped.
    #[error(transparent)]
    Key(#[from] SecretFdError),
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No randomness.
    #[error("the kernel gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// A value under this run's key. Worthless without it, so it may lie in ordinary memory and in the
/// state that the supervisor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedInMemory {
    nonce: [u8; NONCE_LEN],
    /// Ciphertext, then the tag.
    bytes: Box<[u8]>,
}

impl SealedInMemory {
    /// As bytes, for the state that outlives the worker.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.nonce[..], &self.bytes].concat()
    }

    /// From [`SealedInMemory::to_bytes`]; whether it is authentic shows when it is opened.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (nonce, bytes) = bytes.split_first_chunk::<NONCE_LEN>()?;
        (bytes.len() >= TAG_LEN).then(|| Self { nonce: *nonce, bytes: bytes.into() })
    }
}

/// All values of the node.
#[derive(Debug)]
pub struct Values {
    key: MappedKey,
    pool: BouncePool,
    sealed: RwLock<HashMap<ValueKey, Arc<SealedInMemory>>>,
}

/// One value, open. Wiped when dropped.
#[derive(Debug)]
pub struct OpenValue {
    slot: Slot,
    length: usize,
}

impl OpenValue {
    /// The bytes from `offset` on, at most `size`; none beyond the end.
    pub fn part(&self, offset: u64, size: u32) -> &[u8] {
        let value = self.slot.get(..self.length).unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(value.len());
        let end = start.saturating_add(size as usize).min(value.len());
        value.get(start..end).unwrap_or_default()
    }
}

impl Values {
    /// No values yet; `key` is this run's.
    pub fn new(key: &SecretFd) -> Result<Self, ValuesError> {
        Ok(Self {
            key: key.map()?,
            pool: BouncePool::new(SLOTS, MAX_SECRET_BYTES)?,
            sealed: RwLock::default(),
        })
    }

    /// Seals a value as it arrived and keeps it.
    pub fn insert(&self, key: ValueKey, value: SecretBytes) -> Result<(), ValuesError> {
        let sealed = self.seal(key, value)?;
        self.insert_sealed(key, sealed);
        Ok(())
    }

    /// Keeps a value that an earlier worker of this run sealed.
    pub fn insert_sealed(&self, key: ValueKey, sealed: SealedInMemory) {
        let mut all = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, Arc::new(sealed));
    }

    /// Whether the value is here.
    pub fn contains(&self, key: &ValueKey) -> bool {
        self.get(key).is_some()
    }

    /// Every value, sealed, for the state that outlives the worker.
    pub fn all_sealed(&self) -> Vec<(ValueKey, Arc<SealedInMemory>)> {
        let all = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(key, sealed)| (*key, sealed.clone())).collect()
    }

    /// Drops all values but the wanted ones.
    pub fn retain(&self, wanted: impl Fn(&ValueKey) -> bool) {
        let mut all = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, _| wanted(key));
    }

    /// Opens a value into a locked buffer; waits while all are in use.
    pub fn open(&self, key: &ValueKey) -> Result<OpenValue, ValuesError> {
        let sealed = self.get(key).ok_or(ValuesError::Missing { key: *key })?;
        let not_authentic = || ValuesError::NotAuthentic { key: *key };
        let (ciphertext, tag) =
            sealed.bytes.split_last_chunk::<TAG_LEN>().ok_or_else(not_authentic)?;
        let length = ciphertext.len();
        let mut slot = self.pool.take();
        slot.used(length);
        let buffer = slot.get_mut(..length).ok_or(ValuesError::TooLarge { key: *key, length })?;
        buffer.copy_from_slice(ciphertext);
        self.cipher()
            .decrypt_inout_detached(
                &sealed.nonce.into(),
                aad(key).as_bytes(),
                buffer.into(),
                tag.into(),
            )
            .map_err(|_| not_authentic())?;
        Ok(OpenValue { slot, length })
    }

    /// Seals a value without keeping it yet.
    pub fn seal(
        &self,
        key: ValueKey,
        mut value: SecretBytes,
    ) -> Result<SealedInMemory, ValuesError> {
        let length = value.len();
        if length > MAX_SECRET_BYTES {
            return Err(ValuesError::TooLarge { key, length });
        }
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        let tag = self
            .cipher()
            .encrypt_inout_detached(
                &nonce.into(),
                aad(&key).as_bytes(),
                value.as_mut_slice().into(),
            )
            // Only a text beyond 64 GiB fails to encrypt.
            .map_err(|_| ValuesError::TooLarge { key, length })?;
        let bytes = [value.as_slice(), &tag].concat().into_boxed_slice();
        Ok(SealedInMemory { nonce, bytes })
    }

    fn get(&self, key: &ValueKey) -> Option<Arc<SealedInMemory>> {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Made for each use: its round keys are wiped when dropped.
    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose().into())
    }
}

fn aad(key: &ValueKey) -> Aad {
    Aad::new().text("keyhole node value v1").text(key.secret.as_str()).number(key.version.get())
}

#[cfg(test)]
mod tests {
    use keyhole_domain::{SecretId, Version};

    use super::*;

    fn key(secret: u8, version: u64) -> ValueKey {
        let version = Version::new(version).unwrap();
        ValueKey { secret: SecretId::from_entropy([secret; 16]), version }
    }

    fn secret(bytes: &[u8]) -> SecretBytes {
        SecretBytes::copy_from(&mut bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_value_comes_back_in_parts_and_ends_where_it_ends() {
        let values = Values::new(&SecretFd::create().unwrap()).unwrap();
        values.insert(key(1, 1), secret(b"correct horse")).unwrap();
        let open = values.open(&key(1, 1)).unwrap();
        assert_eq!(open.part(0, 4096), b"correct horse");
        assert_eq!(open.part(8, 3), b"hor");
        assert_eq!(open.part(13, 1), b"");
        assert_eq!(open.part(u64::MAX, u32::MAX), b"");
    }

    #[test]
    fn the_largest_value_fits_and_one_byte_more_does_not() {
        let values = Values::new(&SecretFd::create().unwrap()).unwrap();
        values.insert(key(1, 1), secret(&vec![7; MAX_SECRET_BYTES])).unwrap();
        let open = values.open(&key(1, 1)).unwrap();
        assert_eq!(open.part(0, u32::MAX), vec![7; MAX_SECRET_BYTES]);
        let refused = values.insert(key(1, 2), secret(&vec![7; MAX_SECRET_BYTES + 1]));
        assert!(matches!(refused, Err(ValuesError::TooLarge { .. })));
    }

    #[test]
    fn the_next_worker_opens_what_this_one_sealed_and_no_other_run_can() {
        let run = SecretFd::create().unwrap();
        let values = Values::new(&run).unwrap();
        values.insert(key(1, 1), secret(b"s3cret")).unwrap();
        let (_, sealed) = values.all_sealed().remove(0);
        let bytes = sealed.to_bytes();
        assert!(!bytes.windows(6).any(|window| window == b"s3cret"));

        let next = Values::new(&run).unwrap();
        next.insert_sealed(key(1, 1), SealedInMemory::from_bytes(&bytes).unwrap());
        assert_eq!(next.open(&key(1, 1)).unwrap().part(0, 99), b"s3cret");

        let other = Values::new(&SecretFd::create().unwrap()).unwrap();
        other.insert_sealed(key(1, 1), SealedInMemory::from_bytes(&bytes).unwrap());
        assert!(matches!(other.open(&key(1, 1)), Err(ValuesError::NotAuthentic { .. })));
    }

    #[test]
    fn a_seal_is_bound_to_its_secret_and_version_and_to_every_byte() {
        let values = Values::new(&SecretFd::create().unwrap()).unwrap();
        values.insert(key(1, 1), secret(b"s3cret")).unwrap();
        let bytes = values.all_sealed().remove(0).1.to_bytes();
        for elsewhere in [key(2, 1), key(1, 2)] {
            values.insert_sealed(elsewhere, SealedInMemory::from_bytes(&bytes).unwrap());
            assert!(matches!(values.open(&elsewhere), Err(ValuesError::NotAuthentic { .. })));
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            values.insert_sealed(key(1, 1), SealedInMemory::from_bytes(&changed).unwrap());
            assert!(values.open(&key(1, 1)).is_err(), "byte {at}");
        }
        assert_eq!(SealedInMemory::from_bytes(&bytes[..NONCE_LEN + TAG_LEN - 1]), None);
    }

    #[test]
    fn equal_values_never_seal_alike_and_unwanted_ones_go() {
        let values = Values::new(&SecretFd::create().unwrap()).unwrap();
        values.insert(key(1, 1), secret(b"same")).unwrap();
        let first = values.all_sealed().remove(0).1;
        values.insert(key(1, 1), secret(b"same")).unwrap();
        assert_ne!(first.to_bytes()[..NONCE_LEN], values.all_sealed()[0].1.to_bytes()[..NONCE_LEN]);

        values.insert(key(2, 1), secret(b"other")).unwrap();
        values.retain(|wanted| *wanted == key(2, 1));
        assert!(!values.contains(&key(1, 1)) && values.contains(&key(2, 1)));
        assert!(matches!(values.open(&key(1, 1)), Err(ValuesError::Missing { .. })));
    }
}
