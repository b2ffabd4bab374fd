//! A value at rest: AES-256-GCM under a key that only this one value has.
//!
//! Invariant: the key comes from the keyring's key and 32 fresh random bytes, so the all-zero nonce is used once for
//! each key, and two racing rotations share nothing.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use keyhole_domain::{ClusterId, SecretId, Version};
use keyhole_secmem::{Key32, LockError, SecretBytes};
use keyhole_state::SealedValue;
use keyhole_wire::seal::Aad;
use sha2::Sha256;

const INFO: &[u8] = b"keyhole value v1";
const TAG_LEN: usize = 16;

/// Why a value could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The tag does not match: another record's value, another key, or a changed byte.
    #[error(
        "the stored value of secret {secret} version {version} does not open under key epoch {epoch}"
    )]
    NotAuthentic {
        /// The secret.
        secret: SecretId,
        /// The version.
        version: Version,
        /// The key's epoch.
        epoch: u32,
    },
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No randomness.
    #[error("the kernel gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// Which value: what its seal is bound to.
fn aad(cluster: &ClusterId, secret: SecretId, version: Version, epoch: u32) -> Aad {
    Aad::new()
        .text(cluster.as_str())
        .text(secret.as_str())
        .number(version.get())
        .number(u64::from(epoch))
}

fn cipher(key: &Key32, salt: &[u8; 32]) -> Result<Aes256Gcm, LockError> {
    let mut derived = Ok(());
    let value_key = Key32::filled_by(|out| {
        derived = Hkdf::<Sha256>::new(Some(salt), key.expose()).expand(INFO, out);
    })?;
    match derived {
        Ok(()) => Ok(Aes256Gcm::new(value_key.expose().into())),
        // HKDF-SHA256 gives up to 8160 bytes; 32 are asked for.
        Err(_) => unreachable!("32 bytes are within HKDF's reach"),
    }
}

/// Seals a value for the version that it will be; consumes it, because it is encrypted in place.
pub fn seal_value(
    key: &Key32,
    epoch: u32,
    cluster: &ClusterId,
    (secret, version): (SecretId, Version),
    mut value: SecretBytes,
) -> Result<SealedValue, ValueError> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt)?;
    let aad = aad(cluster, secret, version, epoch);
    let sealed = cipher(key, &salt)?.encrypt_inout_detached(
        &[0; 12].into(),
        aad.as_bytes(),
        value.as_mut_slice().into(),
    );
    let tag = sealed.map_err(|_| ValueError::NotAuthentic { secret, version, epoch })?;
    let mut ciphertext = Vec::with_capacity(value.len() + TAG_LEN);
    ciphertext.extend_from_slice(value.as_slice());
    ciphertext.extend_from_slice(&tag);
    Ok(SealedValue { epoch, salt, ciphertext })
}

/// Opens a value at rest.
pub fn open_value(
    key: &Key32,
    cluster: &ClusterId,
    (secret, version): (SecretId, Version),
    sealed: &SealedValue,
) -> Result<SecretBytes, ValueError> {
    let epoch = sealed.epoch;
    let broken = || ValueError::NotAuthentic { secret, version, epoch };
    let (body, tag) = sealed.ciphertext.split_last_chunk::<TAG_LEN>().ok_or_else(broken)?;
    let mut value = SecretBytes::zeroed(body.len())?;
    value.as_mut_slice().copy_from_slice(body);
    let aad = aad(cluster, secret, version, epoch);
    cipher(key, &sealed.salt)?
        .decrypt_inout_detached(
            &[0; 12].into(),
            aad.as_bytes(),
            value.as_mut_slice().into(),
            tag.into(),
        )
        .map_err(|_| broken())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (SecretId, Version) {
        (SecretId::from_entropy([1; 16]), Version::FIRST)
    }

    fn sealed(key: &Key32) -> SealedValue {
        let value = SecretBytes::copy_from(&mut b"hunter2".to_vec()).unwrap();
        seal_value(key, 1, &ClusterId::from_entropy([2; 16]), place(), value).unwrap()
    }

    #[test]
    fn a_value_opens_where_it_belongs_and_nowhere_else() {
        let key = Key32::generate().unwrap();
        let cluster = ClusterId::from_entropy([2; 16]);
        let value = sealed(&key);
        assert_eq!(value.size(), 7);
        let opened = open_value(&key, &cluster, place(), &value).unwrap();
        assert_eq!(opened.as_slice(), b"hunter2");
        let refused = |key: &Key32, cluster: &ClusterId, place, value: &SealedValue| {
            assert!(open_value(key, cluster, place, value).is_err());
        };
        refused(&Key32::generate().unwrap(), &cluster, place(), &value);
        refused(&key, &ClusterId::from_entropy([3; 16]), place(), &value);
        let (secret, version) = place();
        refused(&key, &cluster, (secret, version.next()), &value);
        refused(&key, &cluster, (SecretId::from_entropy([9; 16]), version), &value);
        let (mut epoch, mut salt, mut text) = (value.clone(), value.clone(), value.clone());
        epoch.epoch = 2;
        salt.salt[0] ^= 1;
        text.ciphertext[0] ^= 1;
        for changed in [epoch, salt, text] {
            refused(&key, &cluster, place(), &changed);
        }
    }

    #[test]
    fn two_seals_of_one_value_share_nothing() {
        let key = Key32::generate().unwrap();
        let (one, other) = (sealed(&key), sealed(&key));
        assert_ne!(one.salt, other.salt);
        assert_ne!(one.ciphertext, other.ciphertext);
    }
}
