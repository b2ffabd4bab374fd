//! `keyhole secret`: Docker's verbs, and what versions add to them.

mod change;
mod delivery;
mod rotate;
mod show;

pub(super) use delivery::Wait;

use clap::{Args, Subcommand};
use keyhole_domain::SecretName;
use keyhole_proto::v1;

use super::labels::{self, Label};
use super::{Manager, about, for_each, object};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::value::{self, Operation};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Create a secret from a file or standard input, and print its id
    #[command(after_help = "Examples:\n  \
        openssl rand -base64 32 | keyhole secret create db_password -\n  \
        keyhole secret create -l env=prod tls_key ./key.pem")]
    Create(Create),
    /// Give secrets a new value, in place: running tasks see it at their next open
    #[command(after_help = "Examples:\n  \
        keyhole secret rotate db_password ./new_password\n  \
        openssl rand -base64 32 | keyhole secret rotate --wait db_password -\n  \
        keyhole secret rotate tls_cert=cert.pem tls_key=key.pem     (both in one step)")]
    Rotate(rotate::Rotate),
    /// Make an earlier version current again
    #[command(after_help = "Examples:\n  \
        keyhole secret rollback db_password            (the version before)\n  \
        keyhole secret rollback db_password --to 3")]
    Rollback(change::Rollback),
    /// Change the labels of a secret
    #[command(after_help = "Examples:\n  \
        keyhole secret update --label-add env=prod --label-add owner=web db_password\n  \
        keyhole secret update --label-rm owner db_password")]
    Update(change::Update),
    /// List secrets
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole secret ls -f label=env=prod\n  \
        keyhole secret ls -q -f name=db_\n  \
        keyhole secret ls --format 'table {{.Name}}\\t{{.Version}}'\n\n\
        Fields: .ID .Name .Version .CreatedAt .UpdatedAt .Services .Labels .Label \"KEY\""
    )]
    Ls(crate::render::listing::ListOptions),
    /// Show everything about secrets but their values
    #[command(after_help = "Examples:\n  \
        keyhole secret inspect db_password\n  \
        keyhole secret inspect --format '{{.CurrentVersion}}' db_password\n  \
        keyhole secret inspect --format '{{json .Spec.Labels}}' db_password")]
    Inspect(show::Inspect),
    /// Remove secrets that no service uses
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  \
        keyhole secret rm old_password old_key\n  \
        keyhole secret rm $(keyhole secret ls -q -f label=env=test)"
    )]
    Rm(Rm),
    /// List the versions of a secret
    #[command(after_help = "Examples:\n  \
        keyhole secret history db_password\n  \
        keyhole secret history -f pinned=yes --format '{{.Version}} {{.CreatedAt}}' db_password\n\n\
        Fields: .Version .CreatedAt .Size .Current .Pinned")]
    History(show::History),
    /// Show which task has which version of a secret
    #[command(after_help = "Examples:\n  \
        keyhole secret status db_password\n  \
        keyhole secret status -q -f state=behind db_password     (ids of tasks that lag)\n\n\
        Fields: .ID .Service .Node .NodeID .Version .Entitled .State")]
    Status(delivery::Status),
}

/// `create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Labels of the secret
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    label: Vec<Label>,
    /// Its name
    name: String,
    /// The file with its value, or - for standard input
    file: Option<std::path::PathBuf>,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SECRET")]
    secrets: Vec<String>,
}

impl SecretCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(global, console).await,
            Self::Rotate(rotate) => rotate.run(global, console).await,
            Self::Rollback(rollback) => rollback.run(global, console).await,
            Self::Update(update) => update.run(global, console).await,
            Self::Ls(options) => show::list(&options, global, console).await,
            Self::Inspect(inspect) => inspect.run(global, console).await,
            Self::Rm(rm) => rm.run(global, console).await,
            Self::History(history) => history.run(global, console).await,
            Self::Status(status) => status.run(global, console).await,
        }
    }
}

impl Create {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        value::protect_process()?;
        let name: SecretName =
            self.name.parse().map_err(|error| Failure::new(error).about(&self.name))?;
        let labels = labels::checked(&self.label)?;
        let file = self.file.ok_or_else(|| {
            Failure::usage("secret file is required: give a file name, or - for standard input")
        })?;
        let value = value::read(console, name.as_str(), &file)?;
        let mut manager = Manager::connect(global).await?;
        let receiver = manager.receiver().await?;
        let request = v1::CreateSecretRequest {
            value: Some(receiver.seal(Operation::Create, name.as_str(), &value)?),
            name: self.name,
            labels,
        };
        drop(value);
        let made = manager.api.create_secret(request).await;
        let made = made.map_err(about(name.as_str()))?.into_inner();
        console.line(&made.id)
    }
}

impl Rm {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let remove = async |console: &mut Console, name: &str| {
            manager.api.remove_secret(object(name)).await?;
            console.line(name)
        };
        for_each(console, &self.secrets, remove).await.1
    }
}
