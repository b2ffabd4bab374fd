//! `keyhole manager ls`, `promote`, `demote`, `rm` and `transfer-leader`: the managers as operators see them.

use clap::Args;
use keyhole_proto::v1;

use super::{Manager, about, for_each, object};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::listing::{Columns, ListOptions, Listing, cell};
use crate::render::natural;

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Role", "ROLE"),
        ("Address", "ADDRESS"),
        ("Behind", "BEHIND"),
        ("Member", "MEMBER"),
        ("Trouble", "TROUBLE"),
    ],
    table: &["ID", "Hostname", "Status", "Role", "Address", "Behind", "Trouble"],
    filters: &["id", "name", "names", "status", "role"],
};

/// `ls`
pub(crate) async fn list(
    options: &ListOptions,
    global: &Global,
    console: &mut Console,
) -> Result<(), Failure> {
    let listing = Listing::new(&COLUMNS, options)?;
    let mut manager = Manager::connect(global).await?;
    let mut managers = manager.api.list_managers(v1::ListRequest {}).await?.into_inner().managers;
    managers.retain(|manager| {
        let subject = Subject {
            id: &manager.id,
            name: &manager.hostname,
            labels: None,
            others: &[("status", status(manager)), ("role", role(manager))],
        };
        Filter::admit(&options.filters, &subject)
    });
    managers.sort_by(|a, b| {
        natural::compare(&a.hostname, &b.hostname).then_with(|| a.member.cmp(&b.member))
    });
    let rows: Vec<_> = managers.iter().map(row).collect();
    console.print(&listing.show(&rows)?)
}

/// Docker's words.
pub(super) fn status(manager: &v1::ManagerInfo) -> &'static str {
    match (manager.leader, manager.reached) {
        (true, _) => "Leader",
        (false, true) => "Reachable",
        (false, false) => "Unreachable",
    }
}

pub(super) fn role(manager: &v1::ManagerInfo) -> &'static str {
    if manager.voter { "Voter" } else { "Learner" }
}

fn row(manager: &v1::ManagerInfo) -> Datum {
    Datum::Record(vec![
        ("ID", cell(&manager.id)),
        ("Hostname", cell(&manager.hostname)),
        ("Status", status(manager).into()),
        ("Role", role(manager).into()),
        ("Address", cell(&manager.address)),
        ("Behind", manager.behind.to_string().into()),
        ("Member", manager.member.to_string().into()),
        ("Trouble", (&manager.trouble).into()),
    ])
}

/// The managers that a verb is about.
#[derive(Debug, Args)]
pub(crate) struct Managers {
    /// Ids, beginnings of ids, host names or addresses
    #[arg(required = true, value_name = "MANAGER")]
    managers: Vec<String>,
}

impl Managers {
    /// `promote`
    pub(crate) async fn promote(
        self,
        global: &Global,
        console: &mut Console,
    ) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let promote = async |console: &mut Console, name: &str| {
            let found = manager.api.promote_manager(object(name)).await?.into_inner();
            tell(console, &found)
        };
        for_each(console, &self.managers, promote).await.1
    }

    /// `demote`
    pub(crate) async fn demote(
        self,
        global: &Global,
        console: &mut Console,
    ) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let demote = async |console: &mut Console, name: &str| {
            let found = manager.api.demote_manager(object(name)).await?.into_inner();
            tell(console, &found)
        };
        for_each(console, &self.managers, demote).await.1
    }

    /// `rm`
    pub(crate) async fn remove(
        self,
        global: &Global,
        console: &mut Console,
    ) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let remove = async |console: &mut Console, name: &str| {
            manager.api.remove_manager(object(name)).await?;
            console.line(name)
        };
        for_each(console, &self.managers, remove).await.1
    }
}

/// The id, and on standard error what is still to happen.
fn tell(console: &mut Console, manager: &v1::ManagerInfo) -> Result<(), Failure> {
    if manager.voter != manager.voter_wanted {
        console.warn(&format!("manager {}: {}", manager.hostname, manager.trouble));
    }
    console.line(&manager.id)
}

/// `transfer-leader`
#[derive(Debug, Args)]
pub(crate) struct TransferLeader {
    /// The manager that is to lead; by default the one that is furthest
    #[arg(value_name = "MANAGER")]
    manager: Option<String>,
}

impl TransferLeader {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let to = self.manager.unwrap_or_default();
        let request = v1::TransferRequest { to: to.clone() };
        let moved = manager.api.transfer_leader(request).await;
        let leader = match to.as_str() {
            "" => moved?,
            name => moved.map_err(about(name))?,
        };
        console.line(&leader.into_inner().id)
    }
}
