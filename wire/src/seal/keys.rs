//! The X25519 keys of an edge. Invariant: the secret half is in [`Key32`] except during one
//! computation.

use std::fmt;

use hpke::{Deserializable, Kem, Serializable};
use keyhole_secmem::{Key32, LockError, SecretBytes};

use super::{Aad, Info, SealError, StreamOpener, Suite, key_error};

/// Whom to seal for: an X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EdgePublicKey([u8; 32]);

impl EdgePublicKey {
    /// Takes the bytes as they came; an unusable key shows when it is sealed for.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes as they travel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for EdgePublicKey {
    type Error = SealError;

    fn try_from(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self).map_err(|_| SealError::BadKey)
    }
}

impl fmt::Debug for EdgePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "EdgePublicKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// The key pair of a receiver.
pub struct EdgeKeyPair {
    secret: Key32,
    public: EdgePublicKey,
}

impl EdgeKeyPair {
    /// A fresh pair.
    pub fn generate() -> Result<Self, LockError> {
        // Any 32 bytes are an X25519 secret: it is clamped when used.
        Ok(Self::from_secret(Key32::generate()?))
    }

    /// The pair of a secret that was kept.
    #[must_use]
    pub fn from_secret(secret: Key32) -> Self {
        let public = public_of(&secret);
        Self { secret, public }
    }

    /// The half to give away.
    #[must_use]
    pub fn public(&self) -> EdgePublicKey {
        self.public
    }

    /// The half to keep, for storing it sealed.
    #[must_use]
    pub fn secret(&self) -> &Key32 {
        &self.secret
    }

    /// Opens what `seal_one` made for this pair.
    pub fn open_one(
        &self,
        enc: &[u8],
        info: &Info,
        aad: &Aad,
        ciphertext: &[u8],
    ) -> Result<SecretBytes, SealError> {
        self.stream_opener(enc, info)?.open(aad, ciphertext)
    }

    /// The other end of a `StreamSealer` made for this pair.
    pub fn stream_opener(&self, enc: &[u8], info: &Info) -> Result<StreamOpener, SealError> {
        StreamOpener::new(self.secret.expose(), enc, info)
    }
}

impl fmt::Debug for EdgeKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EdgeKeyPair({:?})", self.public)
    }
}

fn public_of(secret: &Key32) -> EdgePublicKey {
    let mut public = [0; 32];
    // 32 bytes always parse; a zero public key would only ever refuse to seal.
    if let Ok(secret) = <Suite as Kem>::PrivateKey::from_bytes(secret.expose()).map_err(key_error) {
        Suite::sk_to_pk(&secret).write_exact(&mut public);
    }
    EdgePublicKey(public)
}
