//! Making and changing services.

use clap::Args;
use keyhole_proto::v1;

use super::{constraints, grants};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::labels::{self, Label};
use crate::operator::secret::Wait;
use crate::operator::{Manager, about, object};

const SPEC_HELP: &str = "NAME, or source=,target=,uid=,gid=,mode=[,version=N]";

/// `create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name, also as --name
    #[arg(required_unless_present = "name", conflicts_with = "name")]
    service: Option<String>,
    /// Its name, as Docker writes it
    #[arg(long)]
    name: Option<String>,
    /// A secret for its tasks: NAME, or source=,target=,uid=,gid=,mode=[,version=N]
    #[arg(long, value_name = "SPEC", long_help = format!("A secret for its tasks: {SPEC_HELP}\n\n\
        target is below /run/secrets and the source's name by default; uid and gid are numbers and 0 by default;\n\
        mode is octal and 0444 by default; version pins the grant to one version"))]
    secret: Vec<String>,
    /// Which nodes may have it: node.id, node.hostname or node.labels.KEY, == or != a value
    #[arg(long, value_name = "EXPR")]
    constraint: Vec<String>,
    /// Labels of the service
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    label: Vec<Label>,
}

/// `update`
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Add a secret: NAME, or source=,target=,uid=,gid=,mode=[,version=N]
    #[arg(long, value_name = "SPEC")]
    secret_add: Vec<String>,
    /// Remove a secret, by its name, its id or a target; removals come before additions
    #[arg(long, value_name = "SECRET|TARGET")]
    secret_rm: Vec<String>,
    /// Add a constraint
    #[arg(long, value_name = "EXPR")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "EXPR")]
    constraint_rm: Vec<String>,
    /// Add or replace a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<Label>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[command(flatten)]
    wait: Wait,
    /// Name, id or beginning of the id
    service: String,
}

/// `rollback`
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    #[command(flatten)]
    wait: Wait,
    /// Name, id or beginning of the id
    service: String,
}

impl Create {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let name = self.service.or(self.name).unwrap_or_default();
        let name: keyhole_domain::ServiceName =
            name.parse().map_err(|error| Failure::new(error).about(&name))?;
        let request = v1::CreateServiceRequest {
            name: name.to_string(),
            labels: labels::checked(&self.label)?,
            grants: grants(&self.secret)?,
            constraints: constraints(&self.constraint)?,
        };
        let mut manager = Manager::connect(global).await?;
        let made = manager.api.create_service(request).await;
        let made = made.map_err(about(name.as_str()))?.into_inner();
        warn(console, &made);
        console.line(&made.id)
    }
}

impl Update {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let request = v1::UpdateServiceRequest {
            service: self.service,
            secret_rm: self.secret_rm,
            secret_add: grants(&self.secret_add)?,
            constraint_rm: constraints(&self.constraint_rm)?,
            constraint_add: constraints(&self.constraint_add)?,
            label_rm: self.label_rm,
            label_add: labels::checked(&self.label_add)?,
        };
        let unchanged =
            v1::UpdateServiceRequest { service: request.service.clone(), ..Default::default() };
        if request == unchanged {
            return Err(Failure::usage(
                "nothing to update: give --secret-add, --secret-rm, --constraint-add, --constraint-rm, --label-add or \
                 --label-rm",
            ));
        }
        let mut manager = Manager::connect(global).await?;
        let name = request.service.clone();
        let changed = manager.api.update_service(request).await;
        let changed = changed.map_err(about(&name))?.into_inner();
        warn(console, &changed);
        console.line(&changed.name)?;
        self.wait.until(&mut manager, console, everywhere(&changed)).await
    }
}

impl Rollback {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let changed = manager.api.rollback_service(object(&self.service)).await;
        let changed = changed.map_err(about(&self.service))?.into_inner();
        warn(console, &changed);
        console.line(&changed.name)?;
        self.wait.until(&mut manager, console, everywhere(&changed)).await
    }
}

/// A secret that the service had is taken away like one that it has is given.
fn everywhere(changed: &v1::ServiceChanged) -> v1::WatchDeliveryRequest {
    v1::WatchDeliveryRequest { revision: changed.revision, secrets: Vec::new() }
}

fn warn(console: &mut Console, changed: &v1::ServiceChanged) {
    for warning in &changed.warnings {
        console.warn(warning);
    }
}
