//! `keyhole service`: which secrets appear where, for whom, and which nodes may have them.

mod change;
mod show;

use clap::{Args, Subcommand};
use keyhole_domain::{Constraint, GrantSpec};
use keyhole_proto::v1;

use super::tasks::{PsOptions, TaskTable};
use super::{Manager, for_each, object};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service and print its id
    #[command(after_help = "Examples:\n  \
        keyhole service create web --secret db_password\n  \
        keyhole service create --name web --constraint node.labels.zone==eu \\\n    \
        --secret source=tls_key,target=tls/key.pem,uid=33,gid=33,mode=0400\n  \
        keyhole service create old --secret source=db_password,version=3     (stays at version 3)")]
    Create(change::Create),
    /// Change a service; its running tasks see it at once
    #[command(after_help = "Examples:\n  \
        keyhole service update web --secret-add source=api_key,mode=0400\n  \
        keyhole service update web --secret-rm api_key\n  \
        keyhole service update web --constraint-add node.hostname!=test1\n  \
        keyhole service update web --label-add tier=front --label-rm old")]
    Update(change::Update),
    /// Go back to the spec before the last update
    #[command(after_help = "Examples:\n  \
        keyhole service rollback web     (done twice, it is as it was)")]
    Rollback(change::Rollback),
    /// List services
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole service ls\n  \
        keyhole service ls -f label=tier=front --format 'table {{.Name}}\\t{{.Tasks}}'\n\n\
        Fields: .ID .Name .Tasks .Secrets .Constraints .CreatedAt \
        .UpdatedAt .Labels .Label \"KEY\""
    )]
    Ls(crate::render::listing::ListOptions),
    /// Show everything about services
    #[command(after_help = "Examples:\n  \
        keyhole service inspect --pretty web\n  \
        keyhole service inspect --format '{{range .Spec.Secrets}}{{println .SecretName .File.Name}}{{end}}' web")]
    Inspect(show::Inspect),
    /// List the tasks of services
    #[command(after_help = "Examples:\n  \
        keyhole service ps web\n  \
        keyhole service ps --no-trunc -f desired-state=running web api\n\n\
        Fields: .ID .Name .Service .Node .DesiredState .CurrentState .Error .Cgroup")]
    Ps(Ps),
    /// Remove services; their tasks lose their files
    #[command(visible_alias = "remove", after_help = "Examples:\n  keyhole service rm web api")]
    Rm(Rm),
}

/// `ps`
#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    options: PsOptions,
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl ServiceCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(global, console).await,
            Self::Update(update) => update.run(global, console).await,
            Self::Rollback(rollback) => rollback.run(global, console).await,
            Self::Ls(options) => show::list(&options, global, console).await,
            Self::Inspect(inspect) => inspect.run(global, console).await,
            Self::Ps(ps) => ps.run(global, console).await,
            Self::Rm(rm) => rm.run(global, console).await,
        }
    }
}

impl Ps {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let table = TaskTable::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.service_tasks(object(name)).await?.into_inner().tasks)
        };
        let (found, outcome) = for_each(console, &self.services, fetch).await;
        if outcome.is_ok() || !found.is_empty() {
            console.print(&table.show(found.concat(), console.now())?)?;
        }
        outcome
    }
}

impl Rm {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let remove = async |console: &mut Console, name: &str| {
            manager.api.remove_service(object(name)).await?;
            console.line(name)
        };
        for_each(console, &self.services, remove).await.1
    }
}

/// The grants as written, in their order.
fn grants(specs: &[String]) -> Result<Vec<v1::GrantInput>, Failure> {
    let parsed = specs.iter().map(|text| match text.parse::<GrantSpec>() {
        Ok(spec) => Ok(v1::GrantInput {
            source: spec.source.to_string(),
            target: spec.target.to_string(),
            uid: spec.uid,
            gid: spec.gid,
            mode: spec.mode.bits().into(),
            pinned: spec.pinned.map_or(0, |version| version.get()),
        }),
        Err(error) => Err(Failure::new(error)),
    });
    parsed.collect()
}

/// The constraints in their normal form, so that adding and removing compare alike.
fn constraints(texts: &[String]) -> Result<Vec<String>, Failure> {
    let parsed = texts.iter().map(|text| match text.parse::<Constraint>() {
        Ok(constraint) => Ok(constraint.to_string()),
        Err(error) => Err(Failure::new(error)),
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_carry_every_field() {
        let specs =
            ["db".to_owned(), "source=k,target=a/b,uid=1,gid=2,mode=440,version=3".to_owned()];
        let grants = grants(&specs).unwrap();
        assert_eq!((grants[0].target.as_str(), grants[0].mode, grants[0].pinned), ("db", 0o444, 0));
        let long = &grants[1];
        assert_eq!((long.source.as_str(), long.target.as_str()), ("k", "a/b"));
        assert_eq!((long.uid, long.gid, long.mode, long.pinned), (1, 2, 0o440, 3));
    }

    #[test]
    fn mistakes_in_specs_are_refusals_with_the_field() {
        for (spec, word) in [
            ("source=db,colour=red", "colour"),
            ("source=db,mode=1777", "mode"),
            ("source=db,target=../x", ".."),
            ("", "source is required"),
        ] {
            let failure = grants(&[spec.to_owned()]).unwrap_err();
            assert!(failure.to_string().contains(word), "{spec}: {failure}");
            assert_eq!(failure.exit_code(), 1);
        }
        let failure = constraints(&["node.role==x".to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("node.role"), "{failure}");
        assert_eq!(
            constraints(&["node.labels.zone == eu".to_owned()]).unwrap(),
            ["node.labels.zone==eu"]
        );
    }
}
