//! The unlock key as people keep it: `KHKEY-1-<56 characters>`, the key and a checksum in base 36.
//!
//! Invariant: no error shows any of a key, and its text is in locked memory only.

use keyhole_secmem::{Key32, LockError, SecretBytes, ct_eq};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::token::base36;

const PREFIX: &str = "KHKEY-1-";
const DIGITS: usize = 56;
const CHECKSUM: usize = 4;
/// Characters of an unlock key as text.
pub const UNLOCK_KEY_LEN: usize = PREFIX.len() + DIGITS;

/// Why a text is not an unlock key. The text itself is not repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlockKeyError {
    /// It begins otherwise.
    #[error("not an unlock key: one begins with {PREFIX} (see `keyhole cluster unlock-key`)")]
    NotAKey,
    /// It has another length.
    #[error("an unlock key has {UNLOCK_KEY_LEN} characters, this has {len}: was it cut off?")]
    Length {
        /// The characters found.
        len: usize,
    },
    /// Its checksum does not fit.
    #[error("the unlock key's checksum does not fit: was it mistyped?")]
    Checksum,
    /// There is no locked memory for it.
    #[error(transparent)]
    Lock(#[from] LockError),
}

fn checksum(key: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new().chain_update(b"keyhole unlock key v1").chain_update(key).finalize();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

/// The key as text.
pub fn unlock_key_text(key: &Key32) -> Result<SecretBytes, UnlockKeyError> {
    let mut bytes = Zeroizing::new([0; 32 + CHECKSUM]);
    bytes[..32].copy_from_slice(key.expose());
    bytes[32..].copy_from_slice(&checksum(key.expose()));
    let mut text = Zeroizing::new(String::with_capacity(UNLOCK_KEY_LEN));
    text.push_str(PREFIX);
    base36::encode(&bytes[..], DIGITS, &mut text);
    let mut locked = SecretBytes::zeroed(UNLOCK_KEY_LEN)?;
    locked.as_mut_slice().copy_from_slice(text.as_bytes());
    Ok(locked)
}

/// The key that a text is; space around it does not matter.
pub fn parse_unlock_key(text: &[u8]) -> Result<Key32, UnlockKeyError> {
    let text = text.trim_ascii();
    let digits = text.strip_prefix(PREFIX.as_bytes()).ok_or(UnlockKeyError::NotAKey)?;
    if digits.len() != DIGITS {
        return Err(UnlockKeyError::Length { len: text.len() });
    }
    let digits = std::str::from_utf8(digits).map_err(|_| UnlockKeyError::Checksum)?;
    let mut bytes = Zeroizing::new([0; 32 + CHECKSUM]);
    base36::decode(digits, &mut bytes[..]).map_err(|_| UnlockKeyError::Checksum)?;
    let (key, sum) = bytes.split_at(32);
    if !ct_eq(&checksum(key), sum) {
        return Err(UnlockKeyError::Checksum);
    }
    Ok(Key32::filled_by(|out| out.copy_from_slice(key))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_text() {
        for bytes in [[0; 32], [255; 32], [7; 32]] {
            let key = Key32::from_bytes(&mut bytes.clone()).unwrap();
            let text = unlock_key_text(&key).unwrap();
            assert!(text.as_slice().starts_with(b"KHKEY-1-") && text.len() == UNLOCK_KEY_LEN);
            let typed = [b" \t", text.as_slice(), b"\r\n"].concat();
            assert!(parse_unlock_key(&typed).unwrap() == key);
        }
    }

    /// A slip of the fingers is told apart from a wrong key.
    #[test]
    fn every_changed_character_is_found_and_no_error_repeats_the_key() {
        let text = unlock_key_text(&Key32::generate().unwrap()).unwrap();
        for at in 0..text.len() {
            for other in [b'0', b'z', b'-', 0xff] {
                let mut typed = text.as_slice().to_vec();
                if std::mem::replace(&mut typed[at], other) == other {
                    continue;
                }
                let error = parse_unlock_key(&typed).map(drop).unwrap_err().to_string();
                let digits = std::str::from_utf8(&text.as_slice()[20..40]).unwrap();
                assert!(!error.contains(digits), "{error}");
            }
        }
        for cut in 0..text.len() {
            assert!(parse_unlock_key(&text.as_slice()[..cut]).is_err(), "{cut}");
        }
    }
}
