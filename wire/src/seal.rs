//! Sealing at the edge: HPKE (RFC 9180, base mode) with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! AES-256-GCM.
//!
//! A value is sealed when it enters a process and opened only in the memory of the one that needs it,
//! so that the buffers of gRPC and TLS never hold it. Invariant: a plaintext is only ever in
//! [`SecretBytes`]; every seal is bound by [`Info`] to its two ends and by [`Aad`] to its record.

mod context;
mod keys;

pub use context::{Aad, Info, Protocol};
pub use keys::{EdgeKeyPair, EdgePublicKey};

use hpke::aead::{AeadCtxR, AeadCtxS, AeadTag, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, HpkeError, Kem, OpModeR, OpModeS, Serializable};
use keyhole_secmem::{LockError, SecretBytes};

type Suite = X25519HkdfSha256;
type Tag = AeadTag<AesGcm256>;

/// Bytes that a seal is longer than its plaintext.
pub const TAG_LEN: usize = 16;

/// `info` has to fit HPKE's own 16 bit length together with a few bytes of HPKE's.
const INFO_LIMIT: usize = 60_000;

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The receiver's public key, or the sender's encapsulated one, is no usable X25519 key.
    #[error("the peer's X25519 key is unusable")]
    BadKey,
    /// The ciphertext is shorter than a tag.
    #[error("a sealed value of {len} bytes is too short: it has {TAG_LEN} at least")]
    TooShort {
        /// The ciphertext's length.
        len: usize,
    },
    /// The tag does not match.
    #[error(
        "the sealed value does not open: it was made for another receiver, connection or record, or was changed"
    )]
    NotAuthentic,
    /// The context was used too often.
    #[error("this sealing context is used up; open a new stream")]
    UsedUp,
    /// The ids are too long.
    #[error("the context of {len} bytes is too long to bind; the limit is {INFO_LIMIT}")]
    InfoTooLong {
        /// The length of the encoded info.
        len: usize,
    },
    /// There is no locked memory for the plaintext.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// One sealed value with the key it was encapsulated under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedOne {
    /// The encapsulated key, 32 bytes.
    pub enc: Vec<u8>,
    /// Ciphertext, then tag.
    pub ciphertext: Vec<u8>,
}

/// Seals one value for `to`.
pub fn seal_one(
    to: &EdgePublicKey,
    info: &Info,
    aad: &Aad,
    plaintext: &SecretBytes,
) -> Result<SealedOne, SealError> {
    let (mut sealer, enc) = StreamSealer::new(to, info)?;
    Ok(SealedOne { enc, ciphertext: sealer.seal(aad, plaintext)? })
}

/// Seals values in order for one receiver; each takes the next number of the HPKE context.
pub struct StreamSealer {
    context: Box<AeadCtxS<AesGcm256, HkdfSha256, Suite>>,
}

impl StreamSealer {
    /// A context for `to`, and the encapsulated key that its [`StreamOpener`] needs.
    pub fn new(to: &EdgePublicKey, info: &Info) -> Result<(Self, Vec<u8>), SealError> {
        let key = <Suite as Kem>::PublicKey::from_bytes(to.as_bytes()).map_err(key_error)?;
        let info = bounded(info)?;
        let (enc, context) =
            hpke::setup_sender::<AesGcm256, HkdfSha256, Suite>(&OpModeS::Base, &key, info)
                .map_err(key_error)?;
        Ok((Self { context: Box::new(context) }, enc.to_bytes().to_vec()))
    }

    /// The next value, sealed: ciphertext, then tag.
    pub fn seal(&mut self, aad: &Aad, plaintext: &SecretBytes) -> Result<Vec<u8>, SealError> {
        let mut buffer = SecretBytes::zeroed(plaintext.len())?;
        buffer.as_mut_slice().copy_from_slice(plaintext.as_slice());
        let tag = self
            .context
            .seal_inout_detached(buffer.as_mut_slice().into(), aad.as_bytes())
            .map_err(open_error)?;
        let mut ciphertext = Vec::with_capacity(buffer.len() + TAG_LEN);
        ciphertext.extend_from_slice(buffer.as_slice());
        ciphertext.extend_from_slice(&tag.to_bytes());
        Ok(ciphertext)
    }
}

impl std::fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamSealer(..)")
    }
}

/// Opens what one [`StreamSealer`] sealed, in the same order. After an error only the value that was
/// due opens; drop the stream.
pub struct StreamOpener {
    context: Box<AeadCtxR<AesGcm256, HkdfSha256, Suite>>,
}

impl StreamOpener {
    fn new(secret: &[u8; 32], enc: &[u8], info: &Info) -> Result<Self, SealError> {
        let secret = <Suite as Kem>::PrivateKey::from_bytes(secret).map_err(key_error)?;
        let enc = <Suite as Kem>::EncappedKey::from_bytes(enc).map_err(key_error)?;
        let info = bounded(info)?;
        let context = hpke::setup_receiver::<AesGcm256, HkdfSha256, Suite>(
            &OpModeR::Base,
            &secret,
            &enc,
            info,
        )
        .map_err(key_error)?;
        Ok(Self { context: Box::new(context) })
    }

    /// The next value.
    pub fn open(&mut self, aad: &Aad, ciphertext: &[u8]) -> Result<SecretBytes, SealError> {
        let too_short = SealError::TooShort { len: ciphertext.len() };
        let (body, tag) = ciphertext.split_last_chunk::<TAG_LEN>().ok_or(too_short)?;
        let tag = Tag::from_bytes(tag).map_err(open_error)?;
        let mut buffer = SecretBytes::zeroed(body.len())?;
        buffer.as_mut_slice().copy_from_slice(body);
        self.context
            .open_inout_detached(buffer.as_mut_slice().into(), aad.as_bytes(), &tag)
            .map_err(open_error)?;
        Ok(buffer)
    }
}

impl std::fmt::Debug for StreamOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamOpener(..)")
    }
}

fn bounded(info: &Info) -> Result<&[u8], SealError> {
    let bytes = info.as_bytes();
    if bytes.len() > INFO_LIMIT {
        return Err(SealError::InfoTooLong { len: bytes.len() });
    }
    Ok(bytes)
}

/// Every failure of a set-up is a key that is no key, or one that yields an all-zero secret.
fn key_error(_: HpkeError) -> SealError {
    SealError::BadKey
}

fn open_error(error: HpkeError) -> SealError {
    match error {
        HpkeError::MessageLimitReached => SealError::UsedUp,
        _ => SealError::NotAuthentic,
    }
}

#[cfg(test)]
mod tests;
