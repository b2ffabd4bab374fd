//! `keyhole node ls`, `inspect`, `update`, `ps` and `rm`: the cluster's nodes as operators see them.

use clap::{Args, ValueEnum};
use keyhole_proto::v1;

use super::labels::{self, Label};
use super::tasks::{PsOptions, TaskTable};
use super::{Manager, about, for_each, object};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines, pretty_list};
use crate::render::listing::{Columns, ListOptions, Listing, cell};
use crate::render::{natural, time};

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("Revision", "REVISION"),
        ("Tasks", "TASKS"),
        ("Address", "ADDRESS"),
        ("JoinedAt", "JOINED"),
        ("Labels", "LABELS"),
        ("Label", "LABEL"),
    ],
    table: &[
        "ID",
        "Hostname",
        "Status",
        "Availability",
        "ManagerStatus",
        "EngineVersion",
        "Revision",
    ],
    filters: &["id", "name", "names", "label", "node.label", "status", "availability"],
};

/// `ls`
pub(crate) async fn list(
    options: &ListOptions,
    global: &Global,
    console: &mut Console,
) -> Result<(), Failure> {
    let listing = Listing::new(&COLUMNS, options)?;
    let mut manager = Manager::connect(global).await?;
    let mut nodes = manager.api.list_nodes(v1::ListRequest {}).await?.into_inner().nodes;
    nodes.retain(|node| {
        let subject = Subject {
            id: &node.id,
            name: &node.hostname,
            labels: Some(&node.labels),
            others: &[("status", status(node)), ("availability", availability(node))],
        };
        Filter::admit(&options.filters, &subject)
    });
    nodes.sort_by(|a, b| natural::compare(&a.hostname, &b.hostname).then_with(|| a.id.cmp(&b.id)));
    let now = console.now();
    let rows: Vec<_> = nodes.iter().map(|node| row(node, now)).collect();
    console.print(&listing.show(&rows)?)
}

fn status(node: &v1::NodeInfo) -> &'static str {
    if node.connected { "Ready" } else { "Down" }
}

fn availability(node: &v1::NodeInfo) -> &'static str {
    match node.availability() {
        v1::Availability::Pause => "Pause",
        v1::Availability::Drain => "Drain",
        v1::Availability::Active => "Active",
        v1::Availability::Unspecified => "Unknown",
    }
}

fn revision(node: &v1::NodeInfo) -> String {
    match node.revision {
        Some(revision) if revision.index > 0 => {
            format!("{}.{}", revision.incarnation, revision.index)
        }
        _ => "-".to_owned(),
    }
}

fn row(node: &v1::NodeInfo, now: u64) -> Datum {
    Datum::Record(vec![
        ("ID", cell(&node.id)),
        ("Hostname", cell(&node.hostname)),
        ("Status", status(node).into()),
        ("Availability", availability(node).into()),
        // As Docker has it for a node that is no manager, and no node is one here.
        ("ManagerStatus", "".into()),
        ("EngineVersion", (&node.version).into()),
        ("Revision", revision(node).into()),
        ("Tasks", node.tasks.to_string().into()),
        ("Address", cell(&node.address)),
        ("JoinedAt", time::ago(node.joined_at, now).into()),
        ("Labels", cell(&labels::joined(&node.labels))),
        ("Label", Datum::Lookup(node.labels.clone().into_iter().collect())),
    ])
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    options: InspectOptions,
    /// Host names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Inspect {
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.inspect_node(object(name)).await?.into_inner())
        };
        let (found, outcome) = for_each(console, &self.nodes, fetch).await;
        console.print(&inspection.show(&found, datum, pretty)?)?;
        outcome
    }
}

fn datum(node: &v1::NodeInfo) -> Datum {
    let state = if node.connected { "ready" } else { "down" };
    Datum::Record(vec![
        ("ID", (&node.id).into()),
        ("Version", Datum::Record(vec![("Index", node.index.into())])),
        ("CreatedAt", time::rfc3339(node.joined_at).into()),
        (
            "Spec",
            Datum::Record(vec![
                ("Labels", Datum::labels(&node.labels)),
                ("Availability", availability(node).to_lowercase().into()),
            ]),
        ),
        (
            "Description",
            Datum::Record(vec![
                ("Hostname", (&node.hostname).into()),
                ("Engine", Datum::Record(vec![("EngineVersion", (&node.version).into())])),
            ]),
        ),
        ("Status", Datum::Record(vec![("State", state.into()), ("Addr", (&node.address).into())])),
        ("Revision", revision(node).into()),
        ("Tasks", node.tasks.into()),
    ])
}

fn pretty(node: &v1::NodeInfo) -> String {
    let lines = [
        ("ID", node.id.clone()),
        ("Hostname", node.hostname.clone()),
        ("Joined at", time::rfc3339(node.joined_at)),
        ("Status", status(node).to_owned()),
        ("Availability", availability(node).to_owned()),
        ("Address", node.address.clone()),
        ("Version", node.version.clone()),
        ("Revision", revision(node)),
        ("Tasks", node.tasks.to_string()),
    ];
    pretty_lines(&lines) + &pretty_list("Labels", &labels::pairs(&node.labels))
}

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Availability {
    /// It takes tasks
    Active,
    /// It keeps its tasks and takes no new ones
    Pause,
    /// It is to be emptied
    Drain,
}

impl Availability {
    fn wire(self) -> v1::Availability {
        match self {
            Self::Active => v1::Availability::Active,
            Self::Pause => v1::Availability::Pause,
            Self::Drain => v1::Availability::Drain,
        }
    }
}

/// `update`
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Add or replace a label; constraints look at them
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<Label>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Whether it takes tasks
    #[arg(long, value_enum)]
    availability: Option<Availability>,
    /// Host name, id or beginning of the id
    node: String,
}

impl Update {
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        if self.label_add.is_empty() && self.label_rm.is_empty() && self.availability.is_none() {
            return Err(Failure::usage(
                "nothing to update: give --label-add, --label-rm or --availability",
            ));
        }
        let availability = self.availability.map(Availability::wire).unwrap_or_default();
        let request = v1::UpdateNodeRequest {
            node: self.node.clone(),
            label_add: labels::checked(&self.label_add)?,
            label_rm: self.label_rm,
            availability: availability.into(),
        };
        let mut manager = Manager::connect(global).await?;
        manager.api.update_node(request).await.map_err(about(&self.node))?;
        console.line(&self.node)
    }
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Also nodes that are connected; their tasks lose their files at once
    #[arg(short, long)]
    force: bool,
    /// Host names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let force = self.force;
        let remove = async |console: &mut Console, name: &str| {
            let request = v1::RemoveNodeRequest { node: name.to_owned(), force };
            manager.api.remove_node(request).await?;
            console.line(name)
        };
        for_each(console, &self.nodes, remove).await.1
    }
}

/// `ps`
#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    options: PsOptions,
    /// Host names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Ps {
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let table = TaskTable::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.node_tasks(object(name)).await?.into_inner().tasks)
        };
        let (found, outcome) = for_each(console, &self.nodes, fetch).await;
        if outcome.is_ok() || !found.is_empty() {
            console.print(&table.show(found.concat(), console.now())?)?;
        }
        outcome
    }
}
