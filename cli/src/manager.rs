//! `keyhole manager run`: this machine's manager, in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use keyhole_manager::app::{self, JoinManager, ManagerConfig};

use crate::failure::Failure;
use crate::logs::LogOptions;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ManagerCommand {
    /// Run the manager, in the foreground
    #[command(after_help = "Examples:\n  \
        keyhole manager run --init --data-dir /var/lib/keyhole/manager --listen 10.0.0.1:7070\n  \
        keyhole manager run --data-dir /var/lib/keyhole/manager --listen 10.0.0.1:7070     (from then on)")]
    Run(Box<RunManager>),
}

/// `run`
#[derive(Debug, Args)]
pub(crate) struct RunManager {
    /// The folder with its store; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The address and port for nodes, managers and remote operators
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// The address that others reach it at, if not the one it listens at
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// The socket for operators on this machine
    #[arg(long, value_name = "PATH", default_value = "/run/keyhole/manager.sock")]
    pub(crate) socket: PathBuf,
    /// Make a new cluster if the folder is empty
    #[arg(long, conflicts_with = "join")]
    pub(crate) init: bool,
    /// Join the cluster of the manager there if the folder is empty
    #[arg(long, value_name = "HOST:PORT", requires = "token_file")]
    pub(crate) join: Option<String>,
    /// The file with the join token; needed once
    #[arg(long, value_name = "FILE", requires = "join")]
    pub(crate) token_file: Option<PathBuf>,
    /// The key that wraps this manager's keys, a 0600 file; by default in the data folder
    #[arg(long, value_name = "FILE")]
    pub(crate) kek_file: Option<PathBuf>,
    /// How long certificates live, from 10s up; for --init ('keyhole cluster update' changes it)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) cert_expiry: Option<Duration>,
    #[command(flatten)]
    pub(crate) logs: LogOptions,
}

impl ManagerCommand {
    /// Does it; returns when the manager has ended.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self::Run(options) = self;
        options.check()?;
        options.logs.start()?;
        start(*options)
    }
}

impl RunManager {
    fn config(self) -> ManagerConfig {
        let defaults = ManagerConfig::new(self.data_dir);
        ManagerConfig {
            listen: self.listen,
            advertise: self.advertise,
            socket: self.socket,
            init: self.init,
            join: self
                .join
                .zip(self.token_file)
                .map(|(address, token_file)| JoinManager { address, token_file }),
            kek_file: self.kek_file,
            cert_expiry: self.cert_expiry.unwrap_or(defaults.cert_expiry),
            ..defaults
        }
    }

    fn check(&self) -> Result<(), Failure> {
        match self.cert_expiry {
            Some(time) if time < Duration::from_secs(10) => Err(Failure::usage(
                "--cert-expiry is below 10s, the shortest life of a certificate",
            )),
            _ => Ok(()),
        }
    }
}

fn start(options: RunManager) -> Result<(), Failure> {
    let config = options.config();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start the manager's threads: {error}")))?;
    runtime.block_on(app::run(config)).map_err(|error| Failure::new(error.to_string()))
}
