//! The seal of the state: AES-256-GCM under a key that is fresh for each record.
//!
//! The record's key is derived from the key of this run and 32 random bytes, so that no nonce can ever
//! be used twice, however often the state is written. Invariant: derived keys live for one call.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use keyhole_secmem::{Key32, LockError, MappedKey};
use keyhole_wire::seal::Aad;
use sha2::Sha256;

const INFO: &[u8] = b"keyhole node state v1";

/// Why the state could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum StateSealError {
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// It does not open.
    #[error("the state that the last worker left does not open: it is damaged, or of another run")]
    NotAuthentic,
    /// It is too long for the cipher.
    #[error("a state of {len} bytes is too long to seal")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// There is no locked memory for the key.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Seals and opens with the key of this run.
pub(super) struct StateSeal {
    key: MappedKey,
}

impl std::fmt::Debug for StateSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StateSeal(..)")
    }
}

impl StateSeal {
    pub(super) fn new(key: MappedKey) -> Self {
        Self { key }
    }

    /// Seals in place; gives salt and tag.
    pub(super) fn seal(
        &self,
        aad: &Aad,
        record: &mut [u8],
    ) -> Result<([u8; 32], [u8; 16]), StateSealError> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)?;
        let len = record.len();
        let tag = self
            .cipher(&salt)?
            .encrypt_inout_detached(&Nonce::default(), aad.as_bytes(), record.into())
            .map_err(|_| StateSealError::TooLong { len })?;
        Ok((salt, tag.into()))
    }

    /// Opens in place; what `record` has after an error means nothing.
    pub(super) fn open(
        &self,
        salt: &[u8; 32],
        aad: &Aad,
        record: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), StateSealError> {
        self.cipher(salt)?
            .decrypt_inout_detached(
                &Nonce::default(),
                aad.as_bytes(),
                record.into(),
                &Tag::from(*tag),
            )
            .map_err(|_| StateSealError::NotAuthentic)
    }

    fn cipher(&self, salt: &[u8; 32]) -> Result<Aes256Gcm, StateSealError> {
        let mut derived = Ok(());
        let key = Key32::filled_by(|key| {
            derived = Hkdf::<Sha256>::new(Some(salt), self.key.expose()).expand(INFO, key);
        })?;
        // 32 bytes are never too long to derive.
        derived.map_err(|_| StateSealError::TooLong { len: 32 })?;
        Ok(Aes256Gcm::new(key.expose().into()))
    }
}
