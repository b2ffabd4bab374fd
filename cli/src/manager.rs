//! `keyhole manager`: `run` is this machine's manager, in the foreground; the rest is for operators.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use keyhole_manager::app::{self, JoinManager, ManagerConfig};
use keyhole_manager::audit::LEAST_FILE_BYTES;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::logs::LogOptions;
use crate::operator::manager::{self as operator, Managers, TransferLeader};
use crate::render::listing::ListOptions;
use crate::render::size;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ManagerCommand {
    /// Run the manager, in the foreground
    #[command(after_help = "Examples:\n  \
        keyhole manager run --init --data-dir /var/lib/keyhole/manager --listen 10.0.0.1:7070\n  \
        keyhole manager run --join 10.0.0.1:7070 --token-file /run/keyhole-token \\\n    \
        --data-dir /var/lib/keyhole/manager --listen 10.0.0.2:7070     (on the next machine)\n  \
        keyhole manager run --data-dir /var/lib/keyhole/manager --listen 10.0.0.1:7070     (from then on)")]
    Run(Box<RunManager>),
    /// List the managers of the cluster
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole manager ls\n  \
        keyhole manager ls -f status=unreachable --format '{{.Hostname}} {{.Trouble}}'\n\n\
        Fields: .ID .Hostname .Status .Role .Address .Behind .Member .Trouble"
    )]
    Ls(ListOptions),
    /// Let managers vote again, once they have caught up
    #[command(after_help = "Examples:\n  keyhole manager promote manager-3")]
    Promote(Managers),
    /// Take the vote from managers; they go on following
    #[command(after_help = "Examples:\n  keyhole manager demote manager-3")]
    Demote(Managers),
    /// Remove managers from the cluster; each stops when it learns of it
    #[command(visible_alias = "remove", after_help = "Examples:\n  keyhole manager rm manager-3")]
    Rm(Managers),
    /// Let another manager lead
    #[command(after_help = "Examples:\n  \
        keyhole manager transfer-leader\n  \
        keyhole manager transfer-leader manager-2")]
    TransferLeader(TransferLeader),
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
    /// Make a cluster of this manager alone: only when most of the others are lost for good
    #[arg(long, conflicts_with_all = ["init", "join"])]
    pub(crate) force_new_cluster: bool,
    /// The key that wraps this manager's keys, a 0600 file; by default in the data folder
    #[arg(long, value_name = "FILE")]
    pub(crate) kek_file: Option<PathBuf>,
    /// How long certificates live, from 10s up; for --init ('keyhole cluster update' changes it)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) cert_expiry: Option<Duration>,
    /// A file of the audit is followed by a new one when it is this long, from 4KiB up [default: 64MiB]
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) audit_file_size: Option<u64>,
    /// A datagram socket of syslog that gets a copy of each line of the audit, such as /dev/log
    #[arg(long, value_name = "PATH")]
    pub(crate) audit_syslog: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) logs: LogOptions,
}

impl ManagerCommand {
    /// Runs the manager, if that is the verb, until it has ended; else gives the verb back.
    pub(crate) fn daemon(self) -> Result<Result<(), Failure>, Self> {
        match self {
            Self::Run(options) => Ok(options.run()),
            other => Err(other),
        }
    }

    /// Does what operators ask for.
    pub(crate) async fn ask(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            // Done before, by `daemon`.
            Self::Run(_) => Ok(()),
            Self::Ls(options) => operator::list(&options, global, console).await,
            Self::Promote(managers) => managers.promote(global, console).await,
            Self::Demote(managers) => managers.demote(global, console).await,
            Self::Rm(managers) => managers.remove(global, console).await,
            Self::TransferLeader(transfer) => transfer.run(global, console).await,
        }
    }
}

impl RunManager {
    /// Returns when the manager has ended.
    fn run(self) -> Result<(), Failure> {
        self.check()?;
        self.logs.start()?;
        start(self)
    }

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
            force_new_cluster: self.force_new_cluster,
            kek_file: self.kek_file,
            cert_expiry: self.cert_expiry.unwrap_or(defaults.cert_expiry),
            audit_file_bytes: self.audit_file_size.unwrap_or(defaults.audit_file_bytes),
            audit_syslog: self.audit_syslog,
            ..defaults
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.cert_expiry.is_some_and(|time| time < Duration::from_secs(10)) {
            return Err(Failure::usage(
                "--cert-expiry is below 10s, the shortest life of a certificate",
            ));
        }
        match self.audit_file_size {
            Some(size) if size < LEAST_FILE_BYTES => {
                Err(Failure::usage("--audit-file-size is below 4KiB, the shortest file"))
            }
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
