//! What a node is told, and how it starts: the CLI calls [`run`] in the first process and
//! [`worker::run`](crate::worker::run) in the one that the supervisor starts.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::caller::IdentitySource;
use crate::cgroups::{CgroupError, CgroupRoot};
use crate::requirements::{self, RequirementError};
use crate::supervisor::{self, SupervisorConfig, SupervisorError};

/// The settings of a node. No secret is among them: the token is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Where the node keeps its identity, its tasks and its audit.
    pub data_dir: PathBuf,
    /// Where the files appear.
    pub mount: PathBuf,
    /// Where `keyhole run` and `keyhole task` reach the node.
    pub control_socket: PathBuf,
    /// Addresses (`HOST:PORT`) of managers.
    pub join: Vec<String>,
    /// The file with the join token; needed once.
    pub token_file: Option<PathBuf>,
    /// What the cluster is to call this machine; the kernel's name if not given.
    pub hostname: Option<String>,
    /// Below the cgroup2 root: where the cgroups of `keyhole run` are made.
    pub cgroup_parent: PathBuf,
    /// Whether `cgroup_parent` may be one that a non-root user may move processes in.
    pub allow_delegated_parent: bool,
    /// How callers are identified.
    pub identity: IdentitySource,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/keyhole/node".into(),
            mount: "/run/secrets".into(),
            control_socket: "/run/keyhole/node.sock".into(),
            join: Vec::new(),
            token_file: None,
            hostname: None,
            cgroup_parent: "keyhole".into(),
            allow_delegated_parent: false,
            identity: IdentitySource::Auto,
        }
    }
}

/// Why a node ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The machine lacks something.
    #[error(transparent)]
    Requirement(#[from] RequirementError),
    /// There is no cgroup hierarchy.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    /// A path cannot be made absolute.
    #[error("cannot resolve {}: {source}", .path.display())]
    Path {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The settings cannot be handed on.
    #[error("cannot hand the settings to the worker: {0}")]
    Settings(#[from] serde_json::Error),
    /// The supervisor ended.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
}

/// Runs a node until SIGTERM or SIGINT: the command `keyhole node run`. Must be called on the main
/// thread of a process without other threads. `worker` makes the command of a worker from the number of
/// a descriptor: `keyhole node worker --config-fd N`, which calls [`worker::run`](crate::worker::run).
pub fn run(
    config: NodeConfig,
    worker: impl Fn(RawFd) -> Command + 'static,
) -> Result<(), NodeError> {
    requirements::check()?;
    CgroupRoot::find()?;
    let config = config.absolute()?;
    supervisor::run(SupervisorConfig {
        mount_point: config.mount.clone(),
        control_socket: config.control_socket.clone(),
        worker: Box::new(worker),
        app: serde_json::to_value(&config)?,
    })?;
    Ok(())
}

impl NodeConfig {
    /// With all paths absolute, for a process in another working directory.
    fn absolute(mut self) -> Result<Self, NodeError> {
        let paths = [&mut self.data_dir, &mut self.mount, &mut self.control_socket];
        for path in paths.into_iter().chain(self.token_file.as_mut()) {
            let absolute = std::path::absolute(&*path);
            *path = absolute.map_err(|source| NodeError::Path { path: path.clone(), source })?;
        }
        Ok(self)
    }

    /// What the cluster is to call this machine.
    pub(crate) fn hostname(&self) -> String {
        let kernels = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.hostname.clone().unwrap_or_else(kernels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_reach_the_worker_as_they_were_given() {
        let config = NodeConfig {
            data_dir: "data".into(),
            token_file: Some("token".into()),
            join: vec!["m:4242".to_owned()],
            ..NodeConfig::default()
        };
        let config = config.absolute().unwrap();
        assert!(config.data_dir.is_absolute() && config.token_file.as_ref().unwrap().is_absolute());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<NodeConfig>(&text).unwrap(), config);
    }
}
