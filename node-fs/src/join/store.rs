//! DATA/identity: one file, so that certificate and key always belong together.

use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keyhole_proto::v1;
use keyhole_secmem::{LockError, SecretBytes, memzero};
use keyhole_wire::tls::{Identity, IdentityError};
use prost::Message;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::registry::replace_file;

const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 1 << 20;

/// Why the identity could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others could read the key.
    #[error(
        "{} may be read by others (mode {mode:04o}, owner {uid}): its key is no secret any more; remove it and join again with a token", .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
    },
    /// A newer version wrote it.
    #[error(
        "{} is of format {found}, and this keyhole knows format {FORMAT} only: start the version that wrote it, or remove the file and join again with a token", .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// It is no identity.
    #[error("{} is damaged ({reason}): restore it, or remove it and join again with a token", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no locked memory for the key.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// What was stored.
#[derive(Debug)]
pub struct Stored {
    /// Certificate and key.
    pub identity: Identity,
    /// The CA certificates to trust, in DER.
    pub roots: Vec<Vec<u8>>,
    /// Addresses of managers.
    pub managers: Vec<String>,
}

/// The file.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    path: PathBuf,
}

impl IdentityStore {
    /// The store in the data folder, which is made (0700) if it is missing.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let failed = |doing| file_error(doing, data_dir);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(failed("create the data folder"))?;
        let folder = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(data_dir, folder).map_err(failed("protect the data folder"))?;
        Ok(Self { path: data_dir.join("identity") })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the identity; `None` if this node has none yet.
    pub fn load(&self) -> Result<Option<Stored>, StoreError> {
        let failed = |doing| file_error(doing, &self.path);
        let file = match std::fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open"))?,
        };
        let metadata = file.metadata().map_err(failed("look at"))?;
        let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
        if mode & 0o077 != 0 || uid != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Exposed { path: self.path.clone(), mode, uid });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed("read"))?;
        self.decode(&bytes).map(Some)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        let stored =
            v1::NodeIdentity::decode(bytes).map_err(|error| self.damaged(error.to_string()))?;
        match stored.format {
            FORMAT => {}
            0 => return Err(self.damaged("it has no format".to_owned())),
            found => return Err(StoreError::NewerFormat { path: self.path.clone(), found }),
        }
        // Earlier builds wrote none.
        if !stored.sha256.is_empty() && stored.sha256 != digest(stored.clone()) {
            return Err(self.damaged("its digest is another one".to_owned()));
        }
        let mut key = Zeroizing::new(stored.key.to_vec());
        let key = SecretBytes::copy_from(&mut key)?;
        let chain = stored.chain.iter().map(|der| der.to_vec()).collect();
        let identity = Identity::new(chain, key)
            .map_err(|error: IdentityError| self.damaged(error.to_string()))?;
        let roots = stored.roots.iter().map(|der| der.to_vec()).collect();
        Ok(Stored { identity, roots, managers: stored.managers })
    }

    /// Puts an identity in the place of the one before.
    pub fn save(
        &self,
        identity: &Identity,
        roots: &[Vec<u8>],
        managers: &[String],
    ) -> Result<(), StoreError> {
        let mut stored = v1::NodeIdentity {
            format: FORMAT,
            chain: identity.chain().map(|der| der.to_vec().into()).collect(),
            key: identity.key().as_slice().to_vec().into(),
            roots: roots.iter().map(|der| der.clone().into()).collect(),
            managers: managers.to_vec(),
            sha256: bytes::Bytes::new(),
        };
        stored.sha256 = digest(stored.clone());
        let bytes = Zeroizing::new(stored.encode_to_vec());
        if let Ok(mut key) = stored.key.try_into_mut() {
            memzero(&mut key);
        }
        replace_file(&self.path, &bytes).map_err(file_error("write", &self.path))
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason }
    }
}

/// Over all other fields: a flipped bit of an address or of a CA's certificate would be found by nothing else.
fn digest(mut stored: v1::NodeIdentity) -> bytes::Bytes {
    stored.sha256.clear();
    let fields = Zeroizing::new(stored.encode_to_vec());
    Sha256::digest(&*fields).to_vec().into()
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { doing, path, source }
}
