//! The command line as a whole: global options, nouns and verbs.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};

use crate::audit::AuditCommand;
use crate::console::Output;
use crate::context::ContextCommand;
use crate::failure::Failure;
use crate::host::{Host, NODE_SOCKET};
use crate::operator::cluster::ClusterCommand;
use crate::operator::operators::OperatorCommand;
use crate::operator::secret::SecretCommand;
use crate::operator::service::ServiceCommand;
use crate::{complete, dev, man, manager, node, run, task};

/// Secrets for tasks: kept encrypted on a few managers, shown as files to the tasks that were granted them
#[derive(Debug, Parser)]
#[command(
    name = "keyhole",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        openssl rand -base64 32 | keyhole secret create db_password -\n  \
        keyhole service create web --secret source=db_password,uid=33,mode=0400\n  \
        keyhole run --service web -- ./app            (on a node; reads /run/secrets/db_password)\n  \
        keyhole secret rotate --wait db_password ./new_password\n\n\
        Every option can also come from the environment and from a TOML file (--config): --listen of\n\
        'keyhole manager run' is KEYHOLE_MANAGER_RUN_LISTEN, or 'listen' in the table [manager.run].\n\
        Exit codes: 0 done, 1 refused or failed, 2 usage; 'run' has those of its command, and 125 to 127."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where the manager is: unix:///PATH or tcp://HOST:PORT; by default unix:///run/keyhole/manager.sock, or the context's
    #[arg(
        short = 'H',
        long,
        global = true,
        env = "KEYHOLE_HOST",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) host: Option<Host>,
    /// The context to use, in place of the one in use ('keyhole context ls')
    #[arg(
        short = 'c',
        long,
        global = true,
        env = "KEYHOLE_CONTEXT",
        value_name = "CONTEXT",
        help_heading = "Global options"
    )]
    pub(crate) context: Option<String>,
    /// The folder of contexts; by default ~/.keyhole/contexts
    #[arg(
        long,
        global = true,
        env = "KEYHOLE_CONTEXT_DIR",
        value_name = "FOLDER",
        help_heading = "Global options",
        hide_short_help = true
    )]
    pub(crate) context_dir: Option<PathBuf>,
    /// The operator's certificate, for tcp:// (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options",
        hide_short_help = true
    )]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's private key (PEM, PKCS #8)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options",
        hide_short_help = true
    )]
    pub(crate) key: Option<PathBuf>,
    /// The cluster's CA certificate (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options",
        hide_short_help = true
    )]
    pub(crate) ca: Option<PathBuf>,
    /// Where this machine's node is; for run and task
    #[arg(long, global = true, env = "KEYHOLE_NODE_SOCKET", value_name = "PATH", default_value = NODE_SOCKET,
          help_heading = "Global options")]
    pub(crate) node_socket: PathBuf,
    /// A TOML file with options
    #[arg(
        long,
        global = true,
        env = "KEYHOLE_CONFIG",
        hide_short_help = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// How failures are written to standard error
    #[arg(
        long,
        global = true,
        value_enum,
        hide_short_help = true,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Global options"
    )]
    pub(crate) output: Output,
}

impl Global {
    /// Decides which of host and context counts: what was typed before what was set elsewhere, else the host.
    pub(crate) fn settle(&mut self, matches: &ArgMatches) -> Result<(), Failure> {
        let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (typed("host"), typed("context")) {
            (true, true) => Err(Failure::usage(
                "give either --host or --context: both say where the manager is",
            )),
            (false, true) => {
                self.host = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, rotate and remove secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Grant secrets to services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Run this machine's node, and manage the nodes of the cluster
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Look at the cluster, let machines join, change settings
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Create, list and remove operators who ask from elsewhere
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Keep several clusters, and say which one is meant
    #[command(subcommand)]
    Context(ContextCommand),
    /// Run this machine's manager
    #[command(subcommand)]
    Manager(manager::ManagerCommand),
    /// Verify and follow the audit of this machine's manager
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Run a command as a task of a service
    #[command(after_help = run::EXAMPLES)]
    Run(run::Run),
    /// Make tasks of processes that run already, on this node
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Try it all: a manager and a node for one shell or command, in memory, gone at the end
    #[command(after_help = dev::EXAMPLES)]
    Dev(dev::Dev),
    /// A process of 'dev'; started by it only
    #[command(hide = true)]
    DevPart(dev::DevPart),
    /// Print the script that makes a shell complete commands, options and names
    #[command(after_help = complete::EXAMPLES)]
    Completion(complete::Completion),
    /// Write the manual pages of all commands
    #[command(after_help = man::EXAMPLES)]
    Man(man::Manual),
}
