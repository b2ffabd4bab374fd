//! How rows are sealed: AES-256-GCM under a key made afresh for every batch.
//!
//! Depends on secmem and the cipher crates. Invariant: a (key, nonce) pair never occurs twice: each batch derives its
//! key from the store's key and 16 fresh random bytes, and counts its nonces, so a crash, a torn write or a copied
//! disk cannot repeat one.
use super::{StoreError, StoreIdentity};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{self, AeadInOut, KeyInit};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use keyhole_secmem::{Key32, SecretBytes};
use sha2::Sha256;
use zeroize::Zeroizing;

type Nonce = aead::Nonce<Aes256Gcm>;
type Tag = aead::Tag<Aes256Gcm>;

const FRAME_FORMAT: u8 = 1;
const SALT: usize = 16;
const TAG: usize = 16;
/// Format, salt and counter.
const FRAME_HEAD: usize = 1 + SALT + 4;

/// The tables whose rows are sealed; the word is part of a row's associated data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tip,
    Log,
    Row,
    Local,
}

impl Kind {
    fn word(self) -> &'static [u8] {
        match self {
            Self::Tip => b"tip",
            Self::Log => b"log",
            Self::Row => b"row",
            Self::Local => b"local",
        }
    }
}

/// Where a row lies: what its seal is bound to besides the store's identity.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) kind: Kind,
    pub(crate) key: &'a [u8],
    pub(crate) term: u64,
}

/// A seal that does not open: a wrong key, another place, a changed byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the seal does not open")]
pub(crate) struct BrokenSeal;

/// The store's keys.
pub(crate) struct StoreCipher {
    dek: Key32,
    row_names: Key32,
    marks: Key32,
    identity: Vec<u8>,
}

impl StoreCipher {
    pub(crate) fn new(dek: Key32, identity: &StoreIdentity) -> Result<Self, StoreError> {
        Ok(Self {
            row_names: derive(&dek, None, b"keyhole store row names v1")?,
            marks: derive(&dek, None, b"keyhole store mark v1")?,
            dek,
            identity: identity_bytes(identity),
        })
    }

    /// A sealer with a key of its own.
    pub(crate) fn batch(&self) -> Result<BatchSealer<'_>, StoreError> {
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(|e| StoreError::keys("draw a salt", e))?;
        Ok(BatchSealer {
            cipher: self.batch_cipher(&salt),
            identity: &self.identity,
            salt,
            next: 0,
        })
    }

    /// Opens rows; remembers the last batch's key, because neighbours often share it.
    pub(crate) fn opener(&self) -> Opener<'_> {
        Opener { keys: self, last: None }
    }

    /// The name under which a row's key is kept: says nothing about the key to who lacks the store's key.
    pub(crate) fn row_name(&self, kind: Kind, key: &[u8]) -> [u8; 16] {
        let tag = self.mac(&self.row_names, &[kind.word(), key]);
        let mut name = [0; 16];
        name.copy_from_slice(&tag[..16]);
        name
    }

    /// Authenticates the number in `store.mark`.
    pub(crate) fn mark_tag(&self, seq: u64) -> [u8; 32] {
        self.mac(&self.marks, &[&self.identity, &seq.to_le_bytes()])
    }

    fn mac(&self, key: &Key32, parts: &[&[u8]]) -> [u8; 32] {
        // A key of any length is a valid HMAC key; with the impossible error, nothing matches.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) else {
            return [0; 32];
        };
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn batch_cipher(&self, salt: &[u8; SALT]) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; 32]);
        expand(&self.dek, Some(salt), b"keyhole store batch v1", &mut key);
        Aes256Gcm::new((&*key).into())
    }
}

/// Seals the rows of one transaction.
pub(crate) struct BatchSealer<'a> {
    cipher: Aes256Gcm,
    identity: &'a [u8],
    salt: [u8; SALT],
    next: u32,
}

impl BatchSealer<'_> {
    /// Seals `content` for `place`.
    pub(crate) fn seal(
        &mut self,
        place: Place<'_>,
        content: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        let (mut frame, nonce) = self.begin(place, content.iter().map(|part| part.len()).sum())?;
        let head = frame.len();
        content.iter().for_each(|part| frame.extend_from_slice(part));
        let tag = self.encrypt(&nonce, place, &mut frame[head..])?;
        frame.extend_from_slice(&tag);
        Ok(frame)
    }

    /// As [`Self::seal`] for what must not lie in ordinary memory: it is encrypted in place and only then copied.
    pub(crate) fn seal_secret(
        &mut self,
        place: Place<'_>,
        mut content: SecretBytes,
    ) -> Result<Vec<u8>, StoreError> {
        let (mut frame, nonce) = self.begin(place, content.len())?;
        let tag = self.encrypt(&nonce, place, content.as_mut_slice())?;
        frame.extend_from_slice(content.as_slice());
        frame.extend_from_slice(&tag);
        Ok(frame)
    }

    fn begin(&mut self, place: Place<'_>, len: usize) -> Result<(Vec<u8>, Nonce), StoreError> {
        let counter = self.next;
        self.next = counter
            .checked_add(1)
            .ok_or_else(|| StoreError::keys("seal", "too many rows in one batch"))?;
        let mut frame = Vec::with_capacity(FRAME_HEAD + 8 + len + TAG);
        frame.push(FRAME_FORMAT);
        frame.extend_from_slice(&self.salt);
        frame.extend_from_slice(&counter.to_le_bytes());
        if place.kind == Kind::Log {
            frame.extend_from_slice(&place.term.to_le_bytes());
        }
        Ok((frame, nonce(counter)))
    }

    fn encrypt(
        &self,
        nonce: &Nonce,
        place: Place<'_>,
        content: &mut [u8],
    ) -> Result<Tag, StoreError> {
        self.cipher
            .encrypt_inout_detached(nonce, &aad(self.identity, place), content.into())
            .map_err(|_| StoreError::keys("seal", "the row is too long"))
    }
}

/// Opens sealed rows.
pub(crate) struct Opener<'a> {
    keys: &'a StoreCipher,
    last: Option<([u8; SALT], Aes256Gcm)>,
}

impl Opener<'_> {
    /// Opens an ordinary row.
    pub(crate) fn open(&mut self, place: Place<'_>, frame: &[u8]) -> Result<Vec<u8>, BrokenSeal> {
        let (head, body) = self.parse(place.kind, frame)?;
        let mut content = body.to_vec();
        let len = self.decrypt(head, place, &mut content)?;
        content.truncate(len);
        Ok(content)
    }

    /// Opens a log row; its term is in the frame and authenticated.
    pub(crate) fn open_log(
        &mut self,
        index: u64,
        frame: &[u8],
    ) -> Result<(u64, Vec<u8>), BrokenSeal> {
        let term = frame
            .get(FRAME_HEAD..FRAME_HEAD + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes);
        let term = term.ok_or(BrokenSeal)?;
        let place = Place { kind: Kind::Log, key: &index.to_le_bytes(), term };
        Ok((term, self.open(place, frame)?))
    }

    /// Opens a row straight into locked memory.
    pub(crate) fn open_secret(
        &mut self,
        place: Place<'_>,
        frame: &[u8],
        mut content: SecretBytes,
    ) -> Result<SecretBytes, BrokenSeal> {
        let (head, body) = self.parse(place.kind, frame)?;
        if content.len() != body.len() {
            return Err(BrokenSeal);
        }
        content.as_mut_slice().copy_from_slice(body);
        let len = self.decrypt(head, place, content.as_mut_slice())?;
        content.truncate(len);
        Ok(content)
    }

    /// Length of the locked memory that [`Self::open_secret`] needs for `frame`.
    pub(crate) fn secret_len(frame: &[u8]) -> usize {
        frame.len().saturating_sub(FRAME_HEAD)
    }

    fn parse<'f>(&self, kind: Kind, frame: &'f [u8]) -> Result<(&'f [u8], &'f [u8]), BrokenSeal> {
        let head = FRAME_HEAD + if kind == Kind::Log { 8 } else { 0 };
        if frame.len() < head + TAG || frame[0] != FRAME_FORMAT {
            return Err(BrokenSeal);
        }
        Ok(frame.split_at(head))
    }

    fn decrypt(
        &mut self,
        head: &[u8],
        place: Place<'_>,
        sealed: &mut [u8],
    ) -> Result<usize, BrokenSeal> {
        let salt: [u8; SALT] = head[1..1 + SALT].try_into().map_err(|_| BrokenSeal)?;
        let counter = head[1 + SALT..FRAME_HEAD]
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| BrokenSeal)?;
        if self.last.as_ref().is_none_or(|(known, _)| *known != salt) {
            self.last = Some((salt, self.keys.batch_cipher(&salt)));
        }
        let (_, cipher) = self.last.as_ref().ok_or(BrokenSeal)?;
        let len = sealed.len() - TAG;
        let (content, tag) = sealed.split_at_mut(len);
        let tag: &[u8; TAG] = (&*tag).try_into().map_err(|_| BrokenSeal)?;
        cipher
            .decrypt_inout_detached(
                &nonce(counter),
                &aad(&self.keys.identity, place),
                content.into(),
                tag.into(),
            )
            .map_err(|_| BrokenSeal)?;
        Ok(len)
    }
}

/// The identity as part of associated data, each field with its length.
pub(crate) fn identity_bytes(identity: &StoreIdentity) -> Vec<u8> {
    let mut bytes = Vec::new();
    field(&mut bytes, b"keyhole store v1");
    field(&mut bytes, identity.cluster.as_bytes());
    field(&mut bytes, identity.manager.as_bytes());
    bytes.extend_from_slice(&identity.member.to_le_bytes());
    bytes
}

fn aad(identity: &[u8], place: Place<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(identity.len() + place.key.len() + 32);
    bytes.extend_from_slice(identity);
    field(&mut bytes, place.kind.word());
    field(&mut bytes, place.key);
    bytes.extend_from_slice(&place.term.to_le_bytes());
    bytes
}

fn field(bytes: &mut Vec<u8>, content: &[u8]) {
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
}

fn nonce(counter: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

fn derive(key: &Key32, salt: Option<&[u8]>, info: &[u8]) -> Result<Key32, StoreError> {
    let mut bytes = Zeroizing::new([0; 32]);
    expand(key, salt, info, &mut bytes);
    Key32::from_bytes(&mut bytes).map_err(|e| StoreError::keys("lock a key in memory", e))
}

/// HKDF-SHA256. 32 bytes are one block of it: the expansion cannot fail.
fn expand(key: &Key32, salt: Option<&[u8]>, info: &[u8], out: &mut [u8; 32]) {
    if Hkdf::<Sha256>::new(salt, key.expose()).expand(info, out).is_err() {
        unreachable!("HKDF-SHA256 gives up to 8160 bytes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn identity(member: u64) -> StoreIdentity {
        StoreIdentity { cluster: "cluster".into(), manager: "manager".into(), member }
    }

    fn cipher(member: u64) -> StoreCipher {
        StoreCipher::new(Key32::from_bytes(&mut [7; 32]).unwrap(), &identity(member)).unwrap()
    }

    const PLACE: Place<'static> = Place { kind: Kind::Row, key: b"k", term: 0 };

    #[test]
    fn a_seal_opens_only_where_it_was_made() {
        let keys = cipher(1);
        let frame = keys.batch().unwrap().seal(PLACE, &[b"con", b"tent"]).unwrap();
        assert_eq!(keys.opener().open(PLACE, &frame).unwrap(), b"content");
        for other in [
            Place { key: b"j", ..PLACE },
            Place { kind: Kind::Local, ..PLACE },
            Place { kind: Kind::Tip, ..PLACE },
            Place { term: 1, ..PLACE },
        ] {
            assert_eq!(keys.opener().open(other, &frame), Err(BrokenSeal));
        }
        assert_eq!(
            cipher(2).opener().open(PLACE, &frame),
            Err(BrokenSeal),
            "another member's store"
        );
    }

    #[test]
    fn every_flipped_bit_and_every_cut_breaks_the_seal() {
        let keys = cipher(1);
        let place = Place { kind: Kind::Log, key: &9u64.to_le_bytes(), term: 3 };
        let frame = keys.batch().unwrap().seal(place, &[b"entry"]).unwrap();
        assert_eq!(keys.opener().open_log(9, &frame).unwrap(), (3, b"entry".to_vec()));
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.opener().open_log(9, &bad), Err(BrokenSeal), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert_eq!(keys.opener().open_log(9, &frame[..len]), Err(BrokenSeal), "length {len}");
        }
    }

    #[test]
    fn salts_and_counters_never_repeat() {
        let keys = cipher(1);
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let mut batch = keys.batch().unwrap();
            for _ in 0..5 {
                let frame = batch.seal(PLACE, &[b"same"]).unwrap();
                assert!(
                    seen.insert(frame[1..FRAME_HEAD].to_vec()),
                    "salt and counter occurred before"
                );
            }
        }
        let salts: HashSet<_> = seen.iter().map(|head| &head[..SALT]).collect();
        assert_eq!(salts.len(), 200);
    }
}
