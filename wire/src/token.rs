//! Join tokens: `KH-1-<digest of the root CA>-<secret>`, both in base 36.
//!
//! The digest pins the CA on first contact, the secret proves that the newcomer was invited. The
//! cluster keeps only [`JoinToken::hash`]. Invariant: no error and no `Debug` shows any of a token.

pub(crate) mod base36;

use std::fmt;

use keyhole_secmem::ct_eq;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

const PREFIX: &str = "KH";
const FORMAT: &str = "1";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;
const SECRET_LABEL: &[u8] = b"keyhole join token v1";

/// Why a text is not a join token. The text itself is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin with `KH-`.
    #[error("not a join token: one begins with KH-1- (see `keyhole cluster join-token`)")]
    NotAToken,
    /// It is of another format.
    #[error(
        "this join token is of a format that this keyhole does not know (it knows KH-1-): use the keyhole version of the managers"
    )]
    UnknownFormat,
    /// It has more or fewer parts.
    #[error("a join token has 4 parts joined by dashes; this one has {parts}: was it cut off?")]
    Parts {
        /// The parts found.
        parts: usize,
    },
    /// A part has the wrong length.
    #[error(
        "the {part} of this join token has {len} characters instead of {wanted}: was it cut off?"
    )]
    Length {
        /// `CA digest` or `secret`.
        part: &'static str,
        /// The characters found.
        len: usize,
        /// The characters wanted.
        wanted: usize,
    },
    /// A part has a character that is no digit, or is too large a number.
    #[error(
        "the {part} of this join token is not a number in base 36 (0-9, a-z): was it mistyped?"
    )]
    Digits {
        /// `CA digest` or `secret`.
        part: &'static str,
    },
}

/// The kernel gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random bytes: {0}")]
pub struct TokenRandomError(getrandom::Error);

/// An invitation into a cluster.
pub struct JoinToken {
    ca_digest: [u8; 32],
    secret: Zeroizing<[u8; 16]>,
}

impl JoinToken {
    /// A new token of the cluster whose root CA certificate is `ca_der`.
    pub fn generate(ca_der: &[u8]) -> Result<Self, TokenRandomError> {
        let mut secret = Zeroizing::new([0; 16]);
        getrandom::fill(secret.as_mut()).map_err(TokenRandomError)?;
        Ok(Self { ca_digest: ca_digest(ca_der), secret })
    }

    /// The token with this secret, which is wiped; for the cluster's managers, who derive it.
    #[must_use]
    pub fn from_secret(ca_der: &[u8], secret: &mut [u8; 16]) -> Self {
        let token = Self { ca_digest: ca_digest(ca_der), secret: Zeroizing::new(*secret) };
        secret.zeroize();
        token
    }

    /// Reads a token; blanks around it are ignored.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::NotAToken);
        }
        if parts.next().is_some_and(|format| format != FORMAT) {
            return Err(TokenError::UnknownFormat);
        }
        match (parts.next(), parts.next(), parts.count()) {
            (Some(digest), Some(secret), 0) => Ok(Self {
                ca_digest: decode("CA digest", digest, DIGEST_DIGITS)?,
                secret: Zeroizing::new(decode("secret", secret, SECRET_DIGITS)?),
            }),
            _ => Err(TokenError::Parts { parts: text.trim().split('-').count() }),
        }
    }

    /// The token as a text to hand over; wiped when dropped.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(96));
        for part in [PREFIX, "-", FORMAT, "-"] {
            text.push_str(part);
        }
        base36::encode(&self.ca_digest, DIGEST_DIGITS, &mut text);
        text.push('-');
        base36::encode(self.secret.as_ref(), SECRET_DIGITS, &mut text);
        text
    }

    /// What the cluster keeps of it: SHA-256 of a label and the secret.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(SECRET_LABEL);
        hasher.update(self.secret.as_ref());
        hasher.finalize().into()
    }

    /// Whether this is the token that `hash` was kept of; in constant time.
    #[must_use]
    pub fn verify(&self, hash: &[u8; 32]) -> bool {
        ct_eq(&self.hash(), hash)
    }

    /// The digest of the root CA certificate that this token trusts.
    #[must_use]
    pub fn ca_digest(&self) -> &[u8; 32] {
        &self.ca_digest
    }

    /// Whether `ca_der` is the root CA certificate that this token trusts.
    #[must_use]
    pub fn pins(&self, ca_der: &[u8]) -> bool {
        ct_eq(&ca_digest(ca_der), &self.ca_digest)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

/// SHA-256 of a CA certificate in DER.
#[must_use]
pub fn ca_digest(ca_der: &[u8]) -> [u8; 32] {
    Sha256::digest(ca_der).into()
}

fn decode<const N: usize>(
    part: &'static str,
    digits: &str,
    wanted: usize,
) -> Result<[u8; N], TokenError> {
    let len = digits.chars().count();
    if len != wanted {
        return Err(TokenError::Length { part, len, wanted });
    }
    let mut bytes = [0; N];
    if base36::decode(digits, &mut bytes).is_err() {
        bytes.zeroize();
        return Err(TokenError::Digits { part });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &[u8] = b"a certificate";

    #[test]
    fn a_token_survives_its_text() {
        let token = JoinToken::generate(CA).unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), "KH-1-".len() + 50 + 1 + 25);
        let read = JoinToken::parse(&format!(" {}\n", text.as_str())).unwrap();
        assert_eq!(read.hash(), token.hash());
        assert!(read.pins(CA) && !read.pins(b"another"));
        assert_eq!(read.reveal(), text);
    }

    #[test]
    fn extreme_numbers_survive() {
        for byte in [0, 0xff] {
            let token = JoinToken { ca_digest: [byte; 32], secret: Zeroizing::new([byte; 16]) };
            let read = JoinToken::parse(&token.reveal()).unwrap();
            assert_eq!((read.ca_digest, *read.secret), ([byte; 32], [byte; 16]));
        }
    }

    #[test]
    fn only_the_right_secret_verifies() {
        let (token, other) = (JoinToken::generate(CA).unwrap(), JoinToken::generate(CA).unwrap());
        assert!(token.verify(&token.hash()));
        assert!(!token.verify(&other.hash()));
    }

    #[test]
    fn errors_help_and_never_repeat_the_token() {
        let text = JoinToken::generate(CA).unwrap().reveal();
        let (rest, secret) = text.rsplit_once('-').unwrap();
        let cases = [
            (format!("SWMTKN-1-{secret}-{secret}"), "begins with KH-1-"),
            (String::new(), "begins with KH-1-"),
            (text.replacen("KH-1", "KH-2", 1), "does not know"),
            (rest.to_owned(), "has 3"),
            (format!("{}-x", text.as_str()), "has 5"),
            ("KH".to_owned(), "has 1"),
            (text[..text.len() - 1].to_owned(), "secret of this join token has 24 characters"),
            (format!("{rest}-{}", secret.to_uppercase()), "not a number"),
            (format!("{rest}-{}", "z".repeat(25)), "not a number"),
            (format!("KH-1-{}-{secret}", "z".repeat(50)), "CA digest of this join token is not"),
        ];
        for (bad, wanted) in cases {
            let error = JoinToken::parse(&bad).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
            assert!(!error.to_string().contains(&secret[..8]), "{error}");
            assert!(!format!("{error:?}").contains(&secret[..8]));
        }
        assert_eq!(format!("{:?}", JoinToken::parse(&text).unwrap()), "JoinToken(..)");
    }
}
