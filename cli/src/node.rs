//! `keyhole node`: `run` is this machine's node, in the foreground; the rest is for operators.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};
use keyhole_node_fs::caller::IdentitySource;
use keyhole_node_fs::config::{NodeConfig, NodeError};
use keyhole_node_fs::supervisor::SupervisorError;
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::host;
use crate::logs::LogOptions;
use crate::operator::node as operator;
use crate::render::datum::Datum;
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines};
use crate::render::listing::ListOptions;
use crate::render::time;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run this machine's node, in the foreground
    #[command(after_help = "Examples:\n  \
        keyhole node run --data-dir /var/lib/keyhole/node --mount /run/secrets \\\n    \
        --join 10.0.0.1:7070 --token-file /run/keyhole-token\n  \
        keyhole node run --data-dir /var/lib/keyhole/node --mount /run/secrets     (from then on)")]
    Run(Box<RunNode>),
    /// The serving process of a node; started by 'node run' only
    #[command(hide = true)]
    Worker(Worker),
    /// Show how this machine's node is
    #[command(after_help = "Examples:\n  \
        keyhole node status\n  \
        keyhole node status --format '{{.Manager}} {{.Trouble}}'")]
    Status(Status),
    /// List the nodes of the cluster
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole node ls\n  \
        keyhole node ls -f label=zone=eu -f status=down --format '{{.Hostname}} {{.Address}}'\n\n\
        Fields: .ID .Hostname .Status .Availability .ManagerStatus .EngineVersion .Revision .Tasks \
        .Address .JoinedAt .Labels .Label \"KEY\""
    )]
    Ls(ListOptions),
    /// Show everything about nodes
    #[command(after_help = "Examples:\n  \
        keyhole node inspect --pretty alpha\n  \
        keyhole node inspect --format '{{json .Spec.Labels}}' alpha")]
    Inspect(operator::Inspect),
    /// Change a node's labels or availability
    #[command(after_help = "Examples:\n  \
        keyhole node update --label-add zone=eu alpha\n  \
        keyhole node update --availability pause alpha")]
    Update(operator::Update),
    /// List the tasks of nodes
    #[command(after_help = "Examples:\n  \
        keyhole node ps alpha\n  \
        keyhole node ps -f service=web --format '{{.ID}} {{.CurrentState}}' alpha beta\n\n\
        Fields: .ID .Name .Service .Node .DesiredState .CurrentState .Error .Cgroup")]
    Ps(operator::Ps),
    /// Remove nodes from the cluster
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  \
        keyhole node rm alpha\n  \
        keyhole node rm --force alpha     (also while it is connected)"
    )]
    Rm(operator::Rm),
}

/// `run`
#[derive(Debug, Args)]
pub(crate) struct RunNode {
    /// The folder with its identity; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where tasks find their secrets
    #[arg(long, value_name = "DIR", default_value = "/run/secrets")]
    pub(crate) mount: PathBuf,
    /// The socket for 'run' and 'task' on this machine
    #[arg(long, value_name = "PATH", default_value = "/run/keyhole/node.sock")]
    pub(crate) control_socket: PathBuf,
    /// A manager to join at, if this node was never joined
    #[arg(long, value_name = "HOST:PORT", requires = "token_file")]
    pub(crate) join: Option<String>,
    /// The file with the join token; needed once
    #[arg(long, value_name = "FILE", requires = "join")]
    pub(crate) token_file: Option<PathBuf>,
    /// The host name to join with; by default the machine's
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// The cgroup under which 'run' makes its own; a path below the root of the cgroup v2 hierarchy [default: keyhole]
    #[arg(long, value_name = "DIR")]
    pub(crate) cgroup_parent: Option<PathBuf>,
    /// Allow a --cgroup-parent that a user other than root may move processes in
    #[arg(long)]
    pub(crate) allow_delegated_parent: bool,
    /// How to tell who is reading: the fastest way that the kernel has, or /proc
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) identity: Identity,
    #[command(flatten)]
    pub(crate) logs: LogOptions,
}

/// How callers are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Identity {
    /// By pidfd where the kernel can, else by /proc
    Auto,
    /// By /proc
    Proc,
}

/// `worker`
#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The inherited descriptor that says what else was handed over
    #[arg(long, value_name = "FD")]
    pub(crate) config_fd: RawFd,
    #[command(flatten)]
    pub(crate) logs: LogOptions,
}

/// `status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Format with fields: 'json' or any text with {{.ID}}
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl NodeCommand {
    /// Whether it is a daemon, which has its own runtime and takes the whole process.
    pub(crate) fn daemon(self) -> Result<Result<(), Failure>, Self> {
        match self {
            Self::Run(options) => Ok(options.logs.start().and_then(|()| start(*options))),
            Self::Worker(worker) => work(worker),
            other => Err(other),
        }
    }

    /// Does the verbs that ask somebody.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Run(_) | Self::Worker(_) => Ok(()),
            Self::Status(status) => status.run(global, console).await,
            Self::Ls(options) => operator::list(&options, global, console).await,
            Self::Inspect(inspect) => inspect.run(global, console).await,
            Self::Update(update) => update.run(global, console).await,
            Self::Ps(ps) => ps.run(global, console).await,
            Self::Rm(rm) => rm.run(global, console).await,
        }
    }
}

fn start(options: RunNode) -> Result<(), Failure> {
    let logs = options.logs.arguments();
    let worker = move |config_fd: RawFd| {
        let mut command = Command::new("/proc/self/exe");
        command.args(["node", "worker", "--config-fd", &config_fd.to_string()]).args(&logs);
        command
    };
    match keyhole_node_fs::config::run(options.config(), worker) {
        Ok(()) => Ok(()),
        // The worker has said why, in its own line.
        Err(NodeError::Supervisor(SupervisorError::Hopeless)) => std::process::exit(1),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

fn work(worker: Worker) -> ! {
    // A worker that can't log still serves; what it says then is lost, not what it does.
    if let Err(failure) = worker.logs.start() {
        eprintln!("keyhole: {failure}");
    }
    std::process::exit(keyhole_node_fs::worker::run(worker.config_fd).into())
}

impl RunNode {
    fn config(self) -> NodeConfig {
        let defaults = NodeConfig::default();
        NodeConfig {
            data_dir: self.data_dir,
            mount: self.mount,
            control_socket: self.control_socket,
            join: self.join.into_iter().collect(),
            token_file: self.token_file,
            hostname: self.hostname,
            cgroup_parent: self.cgroup_parent.unwrap_or(defaults.cgroup_parent),
            identity: match self.identity {
                Identity::Auto => IdentitySource::Auto,
                Identity::Proc => IdentitySource::Proc,
            },
            allow_delegated_parent: self.allow_delegated_parent,
        }
    }
}

impl Status {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&InspectOptions {
            pretty: self.format.is_none(),
            format: self.format,
        })?;
        let mut node = host::node(&global.node_socket).await?;
        let status = node.node_status(v1::NodeStatusRequest {}).await?.into_inner();
        let now = console.now();
        console.print(&inspection.show(&[status], datum, |status| pretty(status, now))?)
    }
}

fn revision(status: &v1::NodeStatusReply) -> String {
    match status.revision {
        Some(revision) => format!("{}.{}", revision.incarnation, revision.index),
        None => "-".to_owned(),
    }
}

fn datum(status: &v1::NodeStatusReply) -> Datum {
    Datum::Record(vec![
        ("ID", (&status.id).into()),
        ("Cluster", (&status.cluster).into()),
        ("Manager", (&status.manager).into()),
        ("Trouble", (&status.trouble).into()),
        ("Revision", revision(status).into()),
        ("Mount", (&status.mount).into()),
        ("Tasks", status.tasks.into()),
        ("WorkerStarts", status.worker_starts.into()),
        ("CertificateExpiresAt", time::rfc3339(status.certificate_expires_at).into()),
    ])
}

fn pretty(status: &v1::NodeStatusReply, now: u64) -> String {
    let manager = match (status.manager.as_str(), status.trouble.as_str()) {
        ("", "") => "none yet".to_owned(),
        ("", trouble) => format!("none; tasks keep what they have ({trouble})"),
        (manager, _) => manager.to_owned(),
    };
    pretty_lines(&[
        ("ID", status.id.clone()),
        ("Cluster", status.cluster.clone()),
        ("Manager", manager),
        ("Revision", revision(status)),
        ("Mount", status.mount.clone()),
        ("Tasks", status.tasks.to_string()),
        ("Worker starts", status.worker_starts.to_string()),
        ("Certificate", format!("expires {}", time::until(status.certificate_expires_at, now))),
    ])
}
