//! Object ids: 25 characters of base 36, like Docker's, one type per kind of object.

use std::fmt;
use std::str::FromStr;

/// Characters in an id.
pub const ID_LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} id {text:?} is not 25 characters of 0-9 and a-z")]
pub struct IdError {
    kind: &'static str,
    text: String,
}

/// 128 bits as 25 base-36 digits, most significant first (36^25 > 2^128, so every value fits).
fn encode(entropy: [u8; 16]) -> [u8; ID_LEN] {
    let mut number = u128::from_be_bytes(entropy);
    let mut text = [b'0'; ID_LEN];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(number % 36) as usize];
        number /= 36;
    }
    text
}

fn is_digit(byte: &u8) -> bool {
    byte.is_ascii_digit() || byte.is_ascii_lowercase()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// The id that 16 bytes of fresh randomness make; the caller brings the randomness.
            pub fn from_entropy(entropy: [u8; 16]) -> Self {
                Self(encode(entropy))
            }

            /// The 25 characters.
            pub fn as_str(&self) -> &str {
                // Only ASCII digits and letters are ever stored.
                std::str::from_utf8(&self.0).unwrap_or_default()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                match <[u8; ID_LEN]>::try_from(text.as_bytes()) {
                    Ok(bytes) if bytes.iter().all(is_digit) => Ok(Self(bytes)),
                    _ => Err(IdError { kind: $kind, text: text.chars().take(64).collect() }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}

ids! {
    /// A cluster, made once at `--init`.
    ClusterId, "cluster";
    /// A secret; survives rotation, never reused after removal.
    SecretId, "secret";
    /// A service.
    ServiceId, "service";
    /// One running instance of a service on one node.
    TaskId, "task";
    /// A machine: node or manager; never reused after removal.
    NodeId, "node";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_round_trips_through_text() {
        for entropy in [[0; 16], [0xff; 16], [7; 16]] {
            let id = SecretId::from_entropy(entropy);
            assert_eq!(id.as_str().len(), ID_LEN);
            assert_eq!(id.as_str().parse::<SecretId>(), Ok(id));
        }
        assert_ne!(SecretId::from_entropy([0; 16]), SecretId::from_entropy([1; 16]));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "abc", "ABCDEFGHIJKLMNOPQRSTUVWXY", &"a".repeat(26), "é23456789012345678901234"]
        {
            assert!(text.parse::<NodeId>().is_err(), "{text:?}");
        }
        for byte in 0..128_u8 {
            let text = char::from(byte).to_string().repeat(ID_LEN);
            assert_eq!(text.parse::<NodeId>().is_ok(), DIGITS.contains(&byte), "{text:?}");
        }
    }
}
