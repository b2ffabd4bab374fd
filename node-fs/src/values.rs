//! The node's values: sealed in memory that outlives the worker, open only in a locked buffer for one answer.
//!
//! Each is sealed with AES-256-GCM under this run's key, which lies in secret memory that the
//! supervisor made, so that a later worker can open what an earlier one sealed, where it is
//! ([`ValueMemory`]). Invariant: plaintext exists in a [`Slot`] (wiped when dropped) and in the
//! kernel's pages, nowhere else.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use keyhole_domain::{MAX_SECRET_BYTES, ValueKey};
use keyhole_secmem::{
    BouncePool, LockError, MappedKey, SecretBytes, SecretFd, SecretFdError, Slot,
};
use keyhole_view::ShownValue;
use keyhole_wire::seal::Aad;

use crate::value_memory::{Held, Place, ValueMemory};

/// Buffers for answers: one for each service thread and some to spare.
const SLOTS: usize = 4;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = NONCE_LEN + TAG_LEN;

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
    /// The memory of sealed values cannot be used.
    #[error("cannot use the memory of sealed values: {0}")]
    Memory(#[from] io::Error),
}

/// A value under this run's key: nonce, tag, ciphertext. Worthless without the key, so it may lie in ordinary memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedInMemory(Held);

impl SealedInMemory {
    /// Where it is, for the state that outlives the worker.
    pub fn place(&self) -> Place {
        self.0.place()
    }
}

/// All values of the node.
#[derive(Debug)]
pub struct Values {
    key: MappedKey,
    pool: BouncePool,
    memory: Arc<ValueMemory>,
    sealed: RwLock<HashMap<ShownValue, SealedInMemory>>,
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
    /// The values that an earlier worker of this run left in `memory`, if any; `key` is this run's.
    pub fn open_in(
        key: &SecretFd,
        memory: File,
        left: impl IntoIterator<Item = (ShownValue, Place)>,
    ) -> Result<Self, ValuesError> {
        let (memory, held) = ValueMemory::open(memory, left)?;
        let sealed = held.into_iter().map(|(key, held)| (key, SealedInMemory(held))).collect();
        Ok(Self {
            key: key.map()?,
            pool: BouncePool::new(SLOTS, MAX_SECRET_BYTES)?,
            memory,
            sealed: RwLock::new(sealed),
        })
    }

    /// Seals a value as it arrived and keeps it.
    pub fn insert(&self, shown: ShownValue, value: SecretBytes) -> Result<(), ValuesError> {
        let sealed = self.seal(shown.key, value)?;
        self.insert_sealed(shown, sealed);
        Ok(())
    }

    /// Keeps a value that was sealed before.
    pub fn insert_sealed(&self, shown: ShownValue, sealed: SealedInMemory) {
        self.sealed.write().unwrap_or_else(PoisonError::into_inner).insert(shown, sealed);
    }

    /// Whether the value is here.
    pub fn contains(&self, shown: &ShownValue) -> bool {
        self.get(shown).is_some()
    }

    /// Where every value is, for the state that outlives the worker.
    pub fn places(&self) -> Vec<(ShownValue, Place)> {
        let all = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(shown, sealed)| (*shown, sealed.place())).collect()
    }

    /// The memory that they are in.
    pub fn memory(&self) -> &ValueMemory {
        &self.memory
    }

    /// Drops all values but the wanted ones.
    pub fn retain(&self, wanted: impl Fn(&ShownValue) -> bool) {
        let mut all = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|shown, _| wanted(shown));
    }

    /// Opens a value into a locked buffer; waits while all are in use.
    pub fn open(&self, shown: &ShownValue) -> Result<OpenValue, ValuesError> {
        let key = &shown.key;
        let sealed = self.get(shown).ok_or(ValuesError::Missing { key: *key })?;
        let not_authentic = || ValuesError::NotAuthentic { key: *key };
        let length = usize::try_from(sealed.place().length).unwrap_or(usize::MAX);
        let length = length.checked_sub(HEAD_LEN).ok_or_else(not_authentic)?;
        let mut slot = self.pool.take();
        slot.used(length);
        let buffer = slot.get_mut(..length).ok_or(ValuesError::TooLarge { key: *key, length })?;
        let (mut nonce, mut tag) = ([0; NONCE_LEN], [0; TAG_LEN]);
        sealed.0.read(&mut [&mut nonce, &mut tag, &mut *buffer])?;
        self.cipher()
            .decrypt_inout_detached(&nonce.into(), aad(key).as_bytes(), buffer.into(), &tag.into())
            .map_err(|_| not_authentic())?;
        Ok(OpenValue { slot, length })
    }

    /// Seals a value without counting it among these yet.
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
        Ok(SealedInMemory(self.memory.keep(&[&nonce, &tag, value.as_slice()])?))
    }

    fn get(&self, shown: &ShownValue) -> Option<SealedInMemory> {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner).get(shown).cloned()
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
    use std::os::unix::fs::FileExt;

    use keyhole_domain::{SecretId, Version};

    use super::*;
    use crate::value_memory;

    fn key(secret: u8, version: u64) -> ShownValue {
        let version = Version::new(version).unwrap();
        let key = ValueKey { secret: SecretId::from_entropy([secret; 16]), version };
        ShownValue { incarnation: 1, key }
    }

    fn secret(bytes: &[u8]) -> SecretBytes {
        SecretBytes::copy_from(&mut bytes.to_vec()).unwrap()
    }

    /// A run of a node: its key and its memory.
    struct Run(SecretFd, File);

    impl Run {
        fn new() -> Self {
            Self(SecretFd::create().unwrap(), value_memory::memfd())
        }

        /// A worker that knows where these are.
        fn worker(&self, left: Vec<(ShownValue, Place)>) -> Values {
            Values::open_in(&self.0, self.1.try_clone().unwrap(), left).unwrap()
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; self.1.metadata().unwrap().len() as usize];
            self.1.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    }

    #[test]
    fn a_value_comes_back_in_parts_and_ends_where_it_ends() {
        let values = Run::new().worker(Vec::new());
        values.insert(key(1, 1), secret(b"correct horse")).unwrap();
        let open = values.open(&key(1, 1)).unwrap();
        assert_eq!(open.part(0, 4096), b"correct horse");
        assert_eq!(open.part(8, 3), b"hor");
        assert_eq!(open.part(13, 1), b"");
        assert_eq!(open.part(u64::MAX, u32::MAX), b"");
    }

    #[test]
    fn the_largest_value_fits_and_one_byte_more_does_not() {
        let values = Run::new().worker(Vec::new());
        values.insert(key(1, 1), secret(&vec![7; MAX_SECRET_BYTES])).unwrap();
        let open = values.open(&key(1, 1)).unwrap();
        assert_eq!(open.part(0, u32::MAX), vec![7; MAX_SECRET_BYTES]);
        let refused = values.insert(key(1, 2), secret(&vec![7; MAX_SECRET_BYTES + 1]));
        assert!(matches!(refused, Err(ValuesError::TooLarge { .. })));
    }

    #[test]
    fn the_next_worker_opens_what_this_one_sealed_and_no_other_run_can() {
        let run = Run::new();
        let values = run.worker(Vec::new());
        values.insert(key(1, 1), secret(b"s3cret")).unwrap();
        assert!(!run.bytes().windows(6).any(|window| window == b"s3cret"));
        let places = values.places();

        let next = run.worker(places.clone());
        assert_eq!(next.open(&key(1, 1)).unwrap().part(0, 99), b"s3cret");

        let other = Run(SecretFd::create().unwrap(), run.1);
        let other = other.worker(places);
        assert!(matches!(other.open(&key(1, 1)), Err(ValuesError::NotAuthentic { .. })));
    }

    #[test]
    fn a_seal_is_bound_to_its_secret_and_version_and_to_every_byte() {
        let run = Run::new();
        let values = run.worker(Vec::new());
        values.insert(key(1, 1), secret(b"s3cret")).unwrap();
        let place = values.places()[0].1;
        for elsewhere in [key(2, 1), key(1, 2)] {
            let values = run.worker(vec![(elsewhere, place)]);
            assert!(matches!(values.open(&elsewhere), Err(ValuesError::NotAuthentic { .. })));
        }
        let bytes = run.bytes();
        for at in 0..place.length {
            let byte = bytes[(place.offset + at) as usize];
            run.1.write_all_at(&[byte ^ 1], place.offset + at).unwrap();
            assert!(values.open(&key(1, 1)).is_err(), "byte {at}");
            run.1.write_all_at(&[byte], place.offset + at).unwrap();
        }
        assert_eq!(values.open(&key(1, 1)).unwrap().part(0, 99), b"s3cret");
        let cut = Place { length: HEAD_LEN as u64 - 1, ..place };
        let values = run.worker(vec![(key(1, 1), cut)]);
        assert!(matches!(values.open(&key(1, 1)), Err(ValuesError::NotAuthentic { .. })));
    }

    #[test]
    fn equal_values_never_seal_alike_and_unwanted_ones_go() {
        let run = Run::new();
        let values = run.worker(Vec::new());
        let nonce = || {
            let at = values.places()[0].1.offset as usize;
            run.bytes()[at..at + NONCE_LEN].to_vec()
        };
        values.insert(key(1, 1), secret(b"same")).unwrap();
        let first = nonce();
        values.insert(key(1, 1), secret(b"same")).unwrap();
        assert_ne!(first, nonce());

        values.insert(key(2, 1), secret(b"other")).unwrap();
        values.retain(|wanted| *wanted == key(2, 1));
        assert!(!values.contains(&key(1, 1)) && values.contains(&key(2, 1)));
        assert!(matches!(values.open(&key(1, 1)), Err(ValuesError::Missing { .. })));
        assert!(values.memory().has_dropped(), "its memory is given back with the next state");
    }
}
