//! `keyhole task`: cgroups that run already, as tasks of a service on this node.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::host;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::listing::{Columns, ListOptions, Listing, cell, short};
use crate::render::{natural, time};

/// How long the node may take to get a task its files, unless told otherwise.
pub(crate) const DEFAULT_WAIT: &str = "10s";

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Make a cgroup a task of a service, and print the task's id
    #[command(after_help = "Examples:\n  \
        keyhole task add --service web --pid $(pidof -s nginx)\n  \
        keyhole task add --service web --cgroup /sys/fs/cgroup/system.slice/nginx.service")]
    Add(Add),
    /// List the tasks of this node
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole task ls\n  \
        keyhole task ls -q -f service=web\n\n\
        Fields: .ID .Service .State .Since .Files .Cgroup .Error .Mount"
    )]
    Ls(Ls),
    /// End tasks; their processes go on, without their secrets
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  keyhole task rm $(keyhole task ls -q -f service=web)"
    )]
    Rm(Rm),
}

/// `add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The service, by name or id
    #[arg(long, value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    which: Which,
    /// Also a cgroup whose processes a user other than root may choose
    #[arg(long)]
    allow_delegated: bool,
    /// How long to wait for its files
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = DEFAULT_WAIT)]
    wait: Duration,
}

/// Which processes are meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The cgroup's directory
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// A process in the cgroup
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
}

/// `ls`
#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    list: ListOptions,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Ids or beginnings of ids
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
}

/// As the wire has it.
pub(crate) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl TaskCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Add(add) => add.run(global, console).await,
            Self::Ls(ls) => ls.run(global, console).await,
            Self::Rm(rm) => rm.run(global, console).await,
        }
    }
}

impl Add {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let request = v1::AddTaskRequest {
            service: self.service,
            which: self.which.wire()?,
            allow_delegated: self.allow_delegated,
            wait_millis: millis(self.wait),
        };
        let mut node = host::node_for(&global.node_socket, self.wait).await?;
        let work = node.add_task(request);
        let task = console.while_waiting("the task's files", work).await?.into_inner();
        if task.state != "Running" {
            console.warn(&format!("the task is {}: {}", task.state, task.reason));
        }
        console.line(&task.id)
    }
}

impl Which {
    fn wire(&self) -> Result<Option<v1::add_task_request::Which>, Failure> {
        use v1::add_task_request::Which as Wire;
        Ok(match (&self.cgroup, self.pid) {
            (Some(path), _) => {
                let path = std::path::absolute(path).map_err(|error| {
                    Failure::new(format!("--cgroup {}: {error}", path.display()))
                })?;
                let text = path.into_os_string().into_string().map_err(|path| {
                    Failure::new(format!("--cgroup {}: not UTF-8", path.to_string_lossy()))
                })?;
                Some(Wire::Cgroup(text))
            }
            (None, pid) => pid.map(Wire::Pid),
        })
    }
}

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Service", "SERVICE"),
        ("State", "STATE"),
        ("Since", "SINCE"),
        ("Files", "FILES"),
        ("Cgroup", "CGROUP"),
        ("Error", "ERROR"),
        ("Mount", "MOUNT"),
    ],
    table: &["ID", "Service", "State", "Since", "Files", "Cgroup", "Error"],
    filters: &["id", "service", "state"],
};

impl Ls {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let listing = Listing::new(&COLUMNS, &self.list)?;
        let mut node = host::node(&global.node_socket).await?;
        let mut tasks = node.list_tasks(v1::ListTasksRequest {}).await?.into_inner().tasks;
        tasks.retain(|task| {
            let subject = Subject {
                id: &task.id,
                name: &task.service,
                labels: None,
                others: &[("service", &task.service), ("state", &task.state)],
            };
            Filter::admit(&self.list.filters, &subject)
        });
        tasks.sort_by(|a, b| {
            natural::compare(&a.service, &b.service).then_with(|| a.since.cmp(&b.since))
        });
        let whole = self.no_trunc || self.list.quiet;
        let now = console.now();
        let rows: Vec<_> = tasks.iter().map(|task| row(task, whole, now)).collect();
        console.print(&listing.show(&rows)?)
    }
}

fn row(task: &v1::NodeTask, whole: bool, now: u64) -> Datum {
    Datum::Record(vec![
        ("ID", cell(short(&task.id, whole))),
        ("Service", cell(&task.service)),
        ("State", cell(&task.state)),
        ("Since", time::ago(task.since, now).into()),
        ("Files", cell(&task.files.join(","))),
        ("Cgroup", cell(&task.cgroup)),
        ("Error", cell(&task.reason)),
        ("Mount", cell(&task.mount)),
    ])
}

impl Rm {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut node = host::node(&global.node_socket).await?;
        let mut outcome = Ok(());
        for id in self.tasks {
            match node.remove_task(v1::RemoveTaskRequest { id: id.clone() }).await {
                Ok(_) => console.line(&id)?,
                Err(status) => {
                    console.report(&Failure::from(status).about(&id), 1);
                    outcome = Err(Failure::reported());
                }
            }
        }
        outcome
    }
}
