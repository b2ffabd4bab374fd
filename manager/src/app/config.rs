//! What a manager is started with. Invariant: what can be wrong in it is said before anything is touched.

use std::path::PathBuf;
use std::time::Duration;

use super::StartError;
use crate::ca::check_lifetime;

/// Where to join an existing cluster.
#[derive(Debug, Clone)]
pub struct JoinManager {
    /// A manager's `host:port`.
    pub address: String,
    /// The file with the manager join token.
    pub token_file: PathBuf,
}

/// The options of `keyhole manager run`.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Where the store, the audit and (by default) the key file lie.
    pub data_dir: PathBuf,
    /// The port to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// How others reach this manager, `host:port`; without it the address that was bound.
    pub advertise: Option<String>,
    /// The operator socket.
    pub socket: PathBuf,
    /// Whether an empty data folder may be initialised as a new cluster.
    pub init: bool,
    /// Joins an existing cluster instead.
    pub join: Option<JoinManager>,
    /// Makes a cluster of this manager alone, of the data folder of one whose others are lost for good.
    pub force_new_cluster: bool,
    /// The key-encryption key's file; by default `kek` in the data folder.
    pub kek_file: Option<PathBuf>,
    /// Lifetime of the leaf certificates of a new cluster; a whole number of seconds.
    pub cert_expiry: Duration,
    /// How many bytes a file of the audit has until the next one is begun.
    pub audit_file_bytes: u64,
    /// A socket of syslog that gets a copy of each line of the audit.
    pub audit_syslog: Option<PathBuf>,
}

impl ManagerConfig {
    /// With the defaults of the CLI.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: "0.0.0.0:7070".to_owned(),
            advertise: None,
            socket: "/run/keyhole/manager.sock".into(),
            init: false,
            join: None,
            force_new_cluster: false,
            kek_file: None,
            cert_expiry: Duration::from_secs(crate::ca::DEFAULT_CERTIFICATE_SECONDS),
            audit_file_bytes: crate::audit::FILE_BYTES,
            audit_syslog: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), StartError> {
        check_lifetime(self.cert_expiry.as_secs()).map_err(StartError::Lifetime)
    }

    pub(super) fn kek(&self) -> PathBuf {
        self.kek_file.clone().unwrap_or_else(|| self.data_dir.join("kek"))
    }
}
