//! Tasks in tables: `service ps` and `node ps`, with Docker's columns.

use keyhole_proto::v1;

use crate::failure::Failure;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::listing::{Columns, ListOptions, Listing, cell, short};
use crate::render::{natural, time};

/// `ps`
#[derive(Debug, clap::Args)]
pub(crate) struct PsOptions {
    #[command(flatten)]
    list: ListOptions,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
}

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Service", "SERVICE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Cgroup", "CGROUP"),
    ],
    table: &["ID", "Name", "Node", "DesiredState", "CurrentState", "Error"],
    filters: &["id", "name", "names", "node", "service", "desired-state", "state"],
};

/// A table of tasks whose options are checked.
pub(crate) struct TaskTable<'a> {
    options: &'a PsOptions,
    listing: Listing,
}

impl<'a> TaskTable<'a> {
    /// Checks the options.
    pub(crate) fn new(options: &'a PsOptions) -> Result<Self, Failure> {
        let listing = Listing::new(&COLUMNS, &options.list)?;
        Ok(Self { options, listing })
    }

    /// The text for these tasks: by service, live before ended, newest first.
    pub(crate) fn show(&self, mut tasks: Vec<v1::TaskInfo>, now: u64) -> Result<String, Failure> {
        tasks.sort_by(|a, b| {
            natural::compare(&a.service_name, &b.service_name)
                .then_with(|| (a.ended_at != 0).cmp(&(b.ended_at != 0)))
                .then_with(|| b.claimed_at.cmp(&a.claimed_at))
                .then_with(|| a.id.cmp(&b.id))
        });
        tasks.dedup_by(|a, b| a.id == b.id);
        let whole = self.options.no_trunc || self.options.list.quiet;
        let rows: Vec<_> = tasks
            .iter()
            .filter(|task| self.admits(task))
            .map(|task| row(task, whole, now))
            .collect();
        self.listing.show(&rows)
    }

    fn admits(&self, task: &v1::TaskInfo) -> bool {
        let others = [
            ("node", task.node_hostname.as_str()),
            ("node", task.node_id.as_str()),
            ("service", task.service_name.as_str()),
            ("service", task.service_id.as_str()),
            ("desired-state", desired(task)),
            ("state", task.state.as_str()),
        ];
        let subject = Subject {
            id: &task.id,
            name: &format!("{}.{}", task.service_name, task.id),
            labels: None,
            others: &others,
        };
        Filter::admit(&self.options.list.filters, &subject)
    }
}

/// A task lives as long as its cgroup does; nobody but its processes decides that.
fn desired(task: &v1::TaskInfo) -> &'static str {
    if task.ended_at == 0 { "Running" } else { "Shutdown" }
}

fn row(task: &v1::TaskInfo, whole: bool, now: u64) -> Datum {
    let since = match task.ended_at {
        0 => task.claimed_at,
        ended => ended,
    };
    let node = match task.node_hostname.as_str() {
        "" => short(&task.node_id, whole),
        name => name,
    };
    let id = short(&task.id, whole);
    Datum::Record(vec![
        ("ID", cell(id)),
        ("Name", cell(&format!("{}.{id}", task.service_name))),
        ("Service", cell(&task.service_name)),
        ("Node", cell(node)),
        ("DesiredState", desired(task).into()),
        ("CurrentState", cell(&format!("{} {}", task.state, lowered(&time::ago(since, now))))),
        ("Error", cell(&task.reason)),
        ("Cgroup", cell(&task.cgroup)),
    ])
}

/// "Running less than a second ago", "Running about a minute ago".
fn lowered(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next();
    first.into_iter().flat_map(char::to_lowercase).chain(chars).collect()
}
