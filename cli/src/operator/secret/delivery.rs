//! Who has which version: `--wait` after a change, and `keyhole secret status`.

use std::time::Duration;

use clap::Args;
use keyhole_proto::v1;
use tokio::time::{Instant, timeout_at};

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::{Manager, about, object};
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::listing::{Columns, ListOptions, Listing, cell, short};
use crate::render::natural;

/// Waiting until a change has arrived.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait until all connected nodes show the change
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time, with exit code 1
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "wait")]
    wait_timeout: Option<Duration>,
}

impl Wait {
    /// Waits for changed secrets, if that was asked for.
    pub(super) async fn run(
        &self,
        manager: &mut Manager,
        console: &mut Console,
        changed: &[v1::SecretChanged],
    ) -> Result<(), Failure> {
        let revisions = changed.iter().filter_map(|c| c.revision);
        let revision = revisions.max_by_key(|r| (r.incarnation, r.index));
        let secrets = changed.iter().map(|c| c.id.clone()).collect();
        self.until(manager, console, v1::WatchDeliveryRequest { revision, secrets }).await
    }

    /// Waits for a revision on the nodes that have one of the secrets (on all with tasks, if none is named), if that was
    /// asked for.
    pub(in crate::operator) async fn until(
        &self,
        manager: &mut Manager,
        console: &mut Console,
        request: v1::WatchDeliveryRequest,
    ) -> Result<(), Failure> {
        if !self.wait {
            return Ok(());
        }
        // A century is forever to a person at a terminal, and no overflow to a clock.
        const CENTURY: Duration = Duration::from_secs(3_600 * 24 * 36_500);
        let failed = |status: tonic::Status| {
            Failure::while_waiting("the change is made", "secret status", &status)
        };
        let mut stream = manager.api.watch_delivery(request).await.map_err(failed)?.into_inner();
        let patience = self.wait_timeout.unwrap_or(CENTURY).min(CENTURY);
        let deadline = Instant::now() + patience;
        let mut last = v1::DeliveryProgress::default();
        let ended = loop {
            match timeout_at(deadline, stream.message()).await {
                Err(_) => break Err(Failure::new(late(&last, patience))),
                Ok(Err(status)) => break Err(failed(status)),
                Ok(Ok(None)) => break Ok(()),
                Ok(Ok(Some(progress))) => {
                    console.progress(&progress_line(&progress));
                    last = progress;
                }
            }
        };
        console.progress("");
        ended?;
        if !last.unreachable.is_empty() {
            console.warn(&format!(
                "not delivered to {}: no connection; they get it when they connect again",
                last.unreachable.join(", ")
            ));
        }
        if !last.waiting.is_empty() {
            return Err(Failure::new(format!(
                "the manager stopped watching before {} had it; look with 'keyhole secret status'",
                last.waiting.join(", ")
            )));
        }
        Ok(())
    }
}

fn progress_line(progress: &v1::DeliveryProgress) -> String {
    let v1::DeliveryProgress { nodes, delivered, waiting, .. } = progress;
    match waiting.as_slice() {
        [] => format!("delivered to {delivered} of {nodes} nodes"),
        waiting => {
            let shown = waiting.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if waiting.len() > 5 { ", ..." } else { "" };
            format!("delivered to {delivered} of {nodes} nodes; waiting for {shown}{more}")
        }
    }
}

fn late(last: &v1::DeliveryProgress, patience: Duration) -> String {
    let waiting = match last.waiting.as_slice() {
        [] => "the manager's answer".to_owned(),
        nodes => nodes.join(", "),
    };
    format!(
        "after {} still waiting for {waiting}; the change itself is made; look with 'keyhole secret status'",
        humantime::format_duration(patience)
    )
}

/// `status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Name, id or beginning of the id
    secret: String,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    list: ListOptions,
}

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "TASK"),
        ("Service", "SERVICE"),
        ("Node", "NODE"),
        ("NodeID", "NODE ID"),
        ("Version", "VERSION"),
        ("Entitled", "ENTITLED"),
        ("State", "STATE"),
    ],
    table: &["ID", "Service", "Node", "Version", "Entitled", "State"],
    filters: &["id", "service", "node", "state"],
};

impl Status {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let listing = Listing::new(&COLUMNS, &self.list)?;
        let mut manager = Manager::connect(global).await?;
        let delivery = manager.api.secret_status(object(&self.secret)).await;
        let mut delivery = delivery.map_err(about(&self.secret))?.into_inner();
        delivery.tasks.sort_by(|a, b| {
            let by = |x: &v1::TaskDelivery, y: &v1::TaskDelivery| {
                natural::compare(&x.service, &y.service)
            };
            by(a, b)
                .then_with(|| natural::compare(&a.hostname, &b.hostname))
                .then_with(|| a.task.cmp(&b.task))
        });
        let whole = self.no_trunc || self.list.quiet;
        let rows = delivery.tasks.iter().filter(|task| {
            let others = [
                ("service", task.service.as_str()),
                ("node", &task.hostname),
                ("state", state(task)),
            ];
            let subject =
                Subject { id: &task.task, name: &task.service, labels: None, others: &others };
            Filter::admit(&self.list.filters, &subject)
        });
        let rows: Vec<_> = rows.map(|task| row(task, whole)).collect();
        console.print(&listing.show(&rows)?)
    }
}

fn state(task: &v1::TaskDelivery) -> &'static str {
    match task {
        v1::TaskDelivery { connected: false, .. } => "unreachable",
        v1::TaskDelivery { version: 0, .. } => "pending",
        v1::TaskDelivery { version, entitled, .. } if version == entitled => "current",
        _ => "behind",
    }
}

fn row(task: &v1::TaskDelivery, whole: bool) -> Datum {
    let version = match task.version {
        0 => "-".to_owned(),
        version => version.to_string(),
    };
    Datum::Record(vec![
        ("ID", cell(short(&task.task, whole))),
        ("Service", cell(&task.service)),
        ("Node", cell(&task.hostname)),
        ("NodeID", cell(&task.node)),
        ("Version", version.into()),
        ("Entitled", task.entitled.to_string().into()),
        ("State", state(task).into()),
    ])
}
