//! Values as the worker keeps them: sealed under the key of this run of the node, in ordinary memory.
//!
//! Depends on secmem only. Invariant: a value opens only under the name it was sealed under, and its
//! plaintext is only ever in locked memory.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use bytes::{Bytes, BytesMut};
use keyhole_domain::ValueKey;
use keyhole_secmem::{LockError, MappedKey, SecretBytes};
use keyhole_wire::seal::Aad;

const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
    /// The seal does not open.
    #[error("a sealed {what} does not open: it was changed, or sealed under another key or name")]
    NotAuthentic {
        /// `value` or `state`.
        what: &'static str,
    },
    /// There is no locked memory for the plaintext.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Nonce, ciphertext, tag. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedValue(Bytes);

impl SealedValue {
    /// The length of the plaintext.
    pub fn plain_len(&self) -> usize {
        self.0.len().saturating_sub(NONCE_LEN + TAG_LEN)
    }

    /// The bytes, for the state that the next worker takes up.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Takes bytes as they came; whether they are a seal shows when they are opened.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

/// Seals and opens with the key of this run, which stays in secret memory but for the moment of use.
pub struct Vault {
    key: MappedKey,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

impl Vault {
    /// A vault over the key that the supervisor holds.
    pub fn new(key: MappedKey) -> Self {
        Self { key }
    }

    /// Seals a value under its name.
    pub fn seal(&self, name: ValueKey, plain: &SecretBytes) -> Result<SealedValue, VaultError> {
        let mut work = SecretBytes::zeroed(plain.len())?;
        work.as_mut_slice().copy_from_slice(plain.as_slice());
        let (nonce, tag) = self.encrypt(value_aad(name).as_bytes(), work.as_mut_slice())?;
        let mut sealed = BytesMut::with_capacity(NONCE_LEN + work.len() + TAG_LEN);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(work.as_slice());
        sealed.extend_from_slice(&tag);
        Ok(SealedValue(sealed.freeze()))
    }

    /// Opens a value into the beginning of `into`, which must be locked memory; gives its length.
    pub fn open(
        &self,
        name: ValueKey,
        sealed: &SealedValue,
        into: &mut [u8],
    ) -> Result<usize, VaultError> {
        const FAILED: VaultError = VaultError::NotAuthentic { what: "value" };
        let (nonce, rest) = sealed.0.split_first_chunk::<NONCE_LEN>().ok_or(FAILED)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(FAILED)?;
        let into = into.get_mut(..body.len()).ok_or(FAILED)?;
        into.copy_from_slice(body);
        match self.decrypt(nonce, value_aad(name).as_bytes(), into, tag) {
            true => Ok(body.len()),
            false => {
                keyhole_secmem::memzero(into);
                Err(FAILED)
            }
        }
    }

    /// Seals `data`, which is no secret by itself, in place: gives nonce and tag.
    pub(crate) fn encrypt(
        &self,
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<([u8; NONCE_LEN], [u8; TAG_LEN]), VaultError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(VaultError::Random)?;
        let tag = self
            .cipher()
            .encrypt_inout_detached(&Nonce::from(nonce), aad, data.into())
            .map_err(|_too_long| VaultError::NotAuthentic { what: "state" })?;
        Ok((nonce, tag.into()))
    }

    /// Opens in place; whether it is authentic. What `data` has after a failure means nothing.
    pub(crate) fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        let (nonce, tag) = (Nonce::from(*nonce), Tag::from(*tag));
        self.cipher().decrypt_inout_detached(&nonce, aad, data.into(), &tag).is_ok()
    }

    /// Made for each use and wiped after it, so that no expanded key lies about.
    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose().into())
    }
}

fn value_aad(name: ValueKey) -> Aad {
    Aad::new()
        .text("keyhole node value v1")
        .text(name.secret.as_str())
        .number(name.version.get())
}

#[cfg(test)]
pub(crate) mod tests {
    use keyhole_domain::{SecretId, Version};
    use keyhole_secmem::SecretFd;

    use super::*;

    pub(crate) fn vault() -> Vault {
        Vault::new(SecretFd::create().unwrap().map().unwrap())
    }

    pub(crate) fn name(secret: u8, version: u64) -> ValueKey {
        ValueKey {
            secret: SecretId::from_entropy([secret; 16]),
            version: Version::new(version).unwrap(),
        }
    }

    fn secret(bytes: &[u8]) -> SecretBytes {
        SecretBytes::copy_from(&mut bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_value_opens_under_its_own_name_only() {
        let vault = vault();
        let sealed = vault.seal(name(1, 1), &secret(b"hunter2")).unwrap();
        assert_eq!(sealed.plain_len(), 7);
        assert!(!sealed.as_bytes().windows(7).any(|window| window == b"hunter2"));
        let mut out = [0; 16];
        assert_eq!(vault.open(name(1, 1), &sealed, &mut out).unwrap(), 7);
        assert_eq!(&out[..7], b"hunter2");
        for other in [name(2, 1), name(1, 2)] {
            let mut out = [7; 16];
            assert!(vault.open(other, &sealed, &mut out).is_err());
            assert_eq!(&out[..7], [0; 7], "nothing of a failed opening is left");
        }
        assert!(self::vault().open(name(1, 1), &sealed, &mut out).is_err(), "another run's key");
    }

    #[test]
    fn every_seal_of_one_value_differs() {
        let vault = vault();
        let once = vault.seal(name(1, 1), &secret(b"x")).unwrap();
        assert_ne!(once, vault.seal(name(1, 1), &secret(b"x")).unwrap());
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_noticed() {
        let vault = vault();
        let sealed = vault.seal(name(1, 1), &secret(b"hunter2")).unwrap();
        let mut out = [0; 64];
        for bit in 0..sealed.as_bytes().len() * 8 {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let changed = SealedValue::from_bytes(bytes.into());
            assert!(vault.open(name(1, 1), &changed, &mut out).is_err(), "bit {bit}");
        }
        for len in 0..sealed.as_bytes().len() {
            let cut = SealedValue::from_bytes(sealed.as_bytes().slice(..len));
            assert!(vault.open(name(1, 1), &cut, &mut out).is_err(), "{len} bytes");
        }
        let mut short = [0; 3];
        assert!(vault.open(name(1, 1), &sealed, &mut short).is_err());
    }
}
