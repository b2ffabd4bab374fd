//! Changes of a secret that need no value: rollback and labels.

use clap::Args;
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::labels::{self, Label};
use crate::operator::{Manager, about};

/// `rollback`
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Name, id or beginning of the id
    secret: String,
    /// The version to go back to; without it, the one before the current
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    #[command(flatten)]
    wait: super::delivery::Wait,
}

/// `update`
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Add or replace a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label_add: Vec<Label>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Name, id or beginning of the id
    secret: String,
}

impl Rollback {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let name = self.secret;
        let request = v1::RollbackSecretRequest { secret: name.clone(), to: self.to.unwrap_or(0) };
        let changed = manager.api.rollback_secret(request).await;
        let changed = changed.map_err(about(&name))?.into_inner();
        console.line(&format!("{}: version {}", changed.name, changed.version))?;
        self.wait.run(&mut manager, console, &[changed]).await
    }
}

impl Update {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        if self.label_add.is_empty() && self.label_rm.is_empty() {
            return Err(Failure::usage(
                "nothing to update: give --label-add or --label-rm (a new value comes with 'keyhole secret rotate')",
            ));
        }
        let label_add = labels::checked(&self.label_add)?;
        let mut manager = Manager::connect(global).await?;
        let name = self.secret;
        let request =
            v1::UpdateSecretRequest { secret: name.clone(), label_add, label_rm: self.label_rm };
        let changed = manager.api.update_secret(request).await;
        let changed = changed.map_err(about(&name))?.into_inner();
        console.line(&changed.name)
    }
}
