//! The keys that open the store: the key-encryption key in its file, and how it wraps the store's key.
//!
//! Depends on secmem and the ciphers. Invariant: key bytes are in locked memory only, but for their hexadecimal form in
//! the key file.
use crate::store::{StoreIdentity, identity_bytes};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{self, AeadInOut, KeyInit};
use keyhole_secmem::{Key32, SecretBytes};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

type Nonce = aead::Nonce<Aes256Gcm>;

const PREFIX: &str = "KH-KEK-1-";
const HEX: usize = 64;
const WRAP_FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG: usize = 16;

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key file cannot be read or written.
    #[error("cannot {doing} the key file {file}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The key file.
        file: String,
        /// The system's error.
        source: io::Error,
    },
    /// The key file lets others read it, or belongs to somebody else.
    #[error(
        "the key file {file} has mode {mode:04o} and owner {uid}; it must belong to root or to this user and be \
         readable by its owner only (chmod 600)"
    )]
    Exposed {
        /// The key file.
        file: String,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
    },
    /// The key file does not hold a key.
    #[error("{file} is not a key file: it must hold {PREFIX} and {HEX} hexadecimal digits")]
    Malformed {
        /// The key file.
        file: String,
    },
    /// A wrapped key does not open.
    #[error("the wrapped key does not open")]
    Wrong,
    /// Keys could not be drawn, or not locked in memory.
    #[error("no memory for a key: {reason}")]
    Lock {
        /// The system's words.
        reason: String,
    },
}

/// The key-encryption key: wraps the key of a store.
#[derive(Debug)]
pub struct Kek {
    key: Key32,
    name: String,
}

impl Kek {
    /// Makes a new key and writes it to `file`, which must not exist.
    pub fn create(file: &Path) -> Result<Self, KeyError> {
        let key = Key32::generate().map_err(locked)?;
        let name = file.display().to_string();
        let text = key_text(&key);
        write_private(file, &text).map_err(|source| KeyError::Io {
            doing: "create",
            file: name.clone(),
            source,
        })?;
        Ok(Self { key, name })
    }

    /// Reads the key from `file`, which only its owner (root or this user) may read.
    pub fn open(file: &Path) -> Result<Self, KeyError> {
        let name = file.display().to_string();
        let io = |source| KeyError::Io { doing: "open", file: name.clone(), source };
        let handle = File::open(file).map_err(io)?;
        let meta = handle.metadata().map_err(io)?;
        let (mode, uid) = (meta.mode() & 0o7777, meta.uid());
        if mode & 0o077 != 0 || (uid != 0 && uid != rustix::process::geteuid().as_raw()) {
            return Err(KeyError::Exposed { file: name, mode, uid });
        }
        let malformed = || KeyError::Malformed { file: name.clone() };
        let text = SecretBytes::read_from(handle.as_fd(), 1024).map_err(|_| malformed())?;
        let mut bytes = parse_key(text.as_slice()).ok_or_else(malformed)?;
        let key = Key32::from_bytes(&mut bytes).map_err(locked)?;
        Ok(Self { key, name })
    }

    /// [`Self::open`] if there is such a file, else [`Self::create`].
    pub fn open_or_create(file: &Path) -> Result<Self, KeyError> {
        if file.exists() { Self::open(file) } else { Self::create(file) }
    }

    /// A key that is in no file; for tests and for keys that an operator types.
    #[must_use]
    pub fn from_key(key: Key32, name: &str) -> Self {
        Self { key, name: name.to_owned() }
    }

    /// Where the key came from, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Wraps the key of a store. The wrapped key opens only with this key and for this identity.
    pub fn wrap(&self, dek: &Key32, identity: &StoreIdentity) -> Result<Vec<u8>, KeyError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(locked)?;
        let mut sealed = Zeroizing::new(*dek.expose());
        let tag = self
            .cipher()
            .encrypt_inout_detached(
                &Nonce::from(nonce),
                &wrap_aad(identity),
                sealed.as_mut_slice().into(),
            )
            .map_err(|_| KeyError::Wrong)?;
        let mut wrapped = vec![WRAP_FORMAT];
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(sealed.as_slice());
        wrapped.extend_from_slice(&tag);
        Ok(wrapped)
    }

    /// Opens what [`Self::wrap`] made.
    pub fn unwrap(&self, wrapped: &[u8], identity: &StoreIdentity) -> Result<Key32, KeyError> {
        let rest = wrapped.strip_prefix(&[WRAP_FORMAT]).ok_or(KeyError::Wrong)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(KeyError::Wrong)?;
        let (sealed, tag) = rest.split_first_chunk::<32>().ok_or(KeyError::Wrong)?;
        let tag: &[u8; TAG] = tag.try_into().map_err(|_| KeyError::Wrong)?;
        let mut key = Zeroizing::new(*sealed);
        self.cipher()
            .decrypt_inout_detached(
                &Nonce::from(*nonce),
                &wrap_aad(identity),
                key.as_mut_slice().into(),
                tag.into(),
            )
            .map_err(|_| KeyError::Wrong)?;
        Key32::from_bytes(&mut key).map_err(locked)
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose().into())
    }
}

fn wrap_aad(identity: &StoreIdentity) -> Vec<u8> {
    let mut aad = b"keyhole wrapped store key v1".to_vec();
    aad.extend_from_slice(&identity_bytes(identity));
    aad
}

fn key_text(key: &Key32) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new(Vec::with_capacity(PREFIX.len() + HEX + 1));
    text.extend_from_slice(PREFIX.as_bytes());
    for byte in key.expose() {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text.push(b'\n');
    text
}

fn parse_key(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.strip_prefix(PREFIX.as_bytes())?.trim_ascii_end();
    if digits.len() != HEX {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?];
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

/// Writes a new file in full, or leaves none.
fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut draft = file.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    let _ = fs::remove_file(draft); // what a creation that was cut short left
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    handle.write_all(content)?;
    handle.sync_all()?;
    // A link, unlike a rename, never replaces a key that is there.
    let linked = fs::hard_link(draft, file);
    fs::remove_file(draft)?;
    linked?;
    let folder =
        file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn locked(error: impl std::fmt::Display) -> KeyError {
    KeyError::Lock { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn identity() -> StoreIdentity {
        StoreIdentity { cluster: "c".into(), manager: "m".into(), member: 1 }
    }

    #[test]
    fn a_key_file_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kek");
        let made = Kek::open_or_create(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with(PREFIX) && text.len() == PREFIX.len() + HEX + 1);
        let read = Kek::open_or_create(&file).unwrap();
        assert!(made.key == read.key);
        let again = Kek::create(&file).map(|_| ()).unwrap_err();
        assert!(matches!(again, KeyError::Io { .. }), "an existing key is never replaced: {again}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn an_exposed_or_malformed_key_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kek");
        Kek::create(&file).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let error = Kek::open(&file).map(|_| ()).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
        for text in ["", "KH-KEK-1-00", "KH-KEK-2-", &format!("{PREFIX}{}", "g".repeat(HEX))] {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            let error = Kek::open(&file).map(|_| ()).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(file.to_str().unwrap()));
        }
    }

    #[test]
    fn a_wrapped_key_opens_with_its_key_for_its_identity_only() {
        let kek = Kek::from_key(Key32::generate().unwrap(), "test");
        let dek = Key32::generate().unwrap();
        let wrapped = kek.wrap(&dek, &identity()).unwrap();
        assert!(kek.unwrap(&wrapped, &identity()).unwrap() == dek);
        assert!(wrapped != kek.wrap(&dek, &identity()).unwrap(), "a fresh nonce each time");
        let foreign = StoreIdentity { member: 2, ..identity() };
        assert!(matches!(kek.unwrap(&wrapped, &foreign), Err(KeyError::Wrong)));
        let other = Kek::from_key(Key32::generate().unwrap(), "other");
        assert!(matches!(other.unwrap(&wrapped, &identity()), Err(KeyError::Wrong)));
        for bit in 0..wrapped.len() * 8 {
            let mut bad = wrapped.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(kek.unwrap(&bad, &identity()).is_err(), "bit {bit}");
        }
        assert!(kek.unwrap(&wrapped[..wrapped.len() - 1], &identity()).is_err());
    }
}
