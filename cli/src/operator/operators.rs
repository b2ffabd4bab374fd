//! `keyhole operator`: who may ask from elsewhere than a manager's machine, and what.
//!
//! Invariant: an operator's key is made here, and goes nowhere but into the file that was asked for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keyhole_proto::v1;
use keyhole_wire::tls::certificate::{csr_of, key_and_csr};

use super::{Manager, about, for_each, object};
use crate::args::Global;
use crate::console::Console;
use crate::context::bundle::{Bundle, NewFile};
use crate::context::kept::{Context, Contexts};
use crate::failure::Failure;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines};
use crate::render::listing::{Columns, ListOptions, Listing, cell};
use crate::render::{natural, time};
use crate::value;

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Role", "ROLE"),
        ("Secrets", "SECRETS"),
        ("Services", "SERVICES"),
        ("Expires", "EXPIRES"),
        ("CreatedAt", "CREATED"),
    ],
    table: &["ID", "Name", "Role", "Secrets", "Services", "Expires"],
    filters: &["id", "name", "names", "role"],
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Create an operator, and write the file that makes somebody it
    #[command(after_help = "Examples:\n  \
        keyhole operator create ann --role admin --out ann.toml\n  \
        keyhole operator create ci --role writer --secrets 'web-*' --services web --expiry 30d --out ci.toml\n  \
        keyhole operator create watch --role auditor --out watch.toml\n\n\
        Give the file to who is to be the operator, by a way that only he can read; he keeps it with\n\
        'keyhole context create NAME --from FILE'. The key in it is nowhere else.")]
    Create(Create),
    /// Renew the certificate of a context before it ends, for as long again
    #[command(after_help = "Examples:\n  \
        keyhole operator renew\n  \
        keyhole --context prod operator renew     (from a timer, once a month)\n\n\
        It also learns the cluster's CA anew.")]
    Renew,
    /// List operators
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole operator ls\n  \
        keyhole operator ls -f role=admin --format '{{.Name}} {{.Expires}}'\n\n\
        Fields: .ID .Name .Role .Secrets .Services .Expires .CreatedAt"
    )]
    Ls(ListOptions),
    /// Show everything about operators
    #[command(after_help = "Examples:\n  \
        keyhole operator inspect ann\n  \
        keyhole operator inspect --format '{{.ExpiresAt}}' ann")]
    Inspect(Inspect),
    /// Remove operators; their certificates and open connections end at once
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  \
        keyhole operator rm ann"
    )]
    Rm(Rm),
}

/// What an operator is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Everything
    Admin,
    /// Change secrets and services
    Writer,
    /// Look, and change nothing
    Auditor,
}

/// `create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// What it may
    #[arg(long, value_enum)]
    role: Role,
    /// Only secrets with such names: web-*, db_?
    #[arg(long, value_name = "PATTERN")]
    secrets: Vec<String>,
    /// Only services with such names
    #[arg(long, value_name = "PATTERN")]
    services: Vec<String>,
    /// How long its certificates live: 90d, 12h
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = humantime::parse_duration)]
    expiry: Duration,
    /// The file to write; it must not be there
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    options: InspectOptions,
    /// Names or ids
    #[arg(required = true, value_name = "OPERATOR")]
    operators: Vec<String>,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names or ids
    #[arg(required = true, value_name = "OPERATOR")]
    operators: Vec<String>,
}

impl OperatorCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(global, console).await,
            Self::Renew => renew(global, console).await,
            Self::Ls(options) => list(&options, global, console).await,
            Self::Inspect(inspect) => inspect.run(global, console).await,
            Self::Rm(rm) => rm.run(global, console).await,
        }
    }
}

impl Create {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        value::protect_process()?;
        let role = match self.role {
            Role::Admin => v1::OperatorRole::Admin,
            Role::Writer => v1::OperatorRole::Writer,
            Role::Auditor => v1::OperatorRole::Auditor,
        };
        let mut manager = Manager::connect(global).await?;
        let mut file = NewFile::create(&self.out)?;
        let (key, csr) = key_and_csr().map_err(Failure::new)?;
        let request = v1::CreateOperatorRequest {
            name: self.name.clone(),
            role: role.into(),
            secrets: self.secrets,
            services: self.services,
            seconds: self.expiry.as_secs(),
            csr: csr.into(),
        };
        let made = manager.api.create_operator(request).await;
        let made = made.map_err(about(&self.name))?.into_inner();
        file.write(&Bundle::new(&made, &key)).map_err(|failure| {
            Failure::new(format!(
                "{failure}; operator {0} was made and nobody can use it: 'keyhole operator rm {0}'",
                self.name
            ))
        })?;
        file.keep();
        console.hint(&format!(
            "{} has the operator's key; take it there with 'keyhole context create NAME --from {}'.",
            self.out.display(),
            self.out.display()
        ));
        console.line(&made.operator.unwrap_or_default().id)
    }
}

async fn renew(global: &Global, console: &mut Console) -> Result<(), Failure> {
    value::protect_process()?;
    let context = Contexts::chosen(global)?.ok_or_else(|| {
        Failure::usage("only a context has a certificate to renew; name one with --context")
    })?;
    let (context, ends) = renewed(global, context).await?;
    let left = time::until(ends, console.now());
    console.line(&format!("{}: expires {left}", context.name))
}

/// The context with a new certificate, and when that ends. If the root CA is another one it is renewed once more: by showing
/// the new certificate, after which nobody has to believe the former CA for this operator's sake.
pub(super) async fn renewed(global: &Global, context: Context) -> Result<(Context, u64), Failure> {
    let (now, ends) = renewed_once(global, &context).await?;
    match now.bundle.is_of_ca_of(&context.bundle) {
        true => Ok((now, ends)),
        false => renewed_once(global, &now).await,
    }
}

async fn renewed_once(global: &Global, context: &Context) -> Result<(Context, u64), Failure> {
    let mut manager = Manager::of_context(context).await?;
    let unusable =
        |why: String| Failure::new(format!("context {} is unusable: {why}", context.name));
    let key = context.bundle.key().map_err(unusable)?;
    let request = v1::RenewOperatorRequest { csr: csr_of(&key).map_err(Failure::new)?.into() };
    let renewed = manager.api.renew_operator(request).await?.into_inner();
    let mut bundle = Bundle::new(&renewed, &key);
    bundle.follow(&context.bundle);
    let (name, folder) = (context.name.clone(), context.folder.clone());
    let context = Context { name, folder, bundle };
    Contexts::of(global)?.replace(&context)?;
    Ok((context, renewed.operator.unwrap_or_default().expires_at))
}

/// As it is typed and shown.
pub(crate) fn role_word(role: v1::OperatorRole) -> &'static str {
    match role {
        v1::OperatorRole::Admin => "admin",
        v1::OperatorRole::Writer => "writer",
        v1::OperatorRole::Auditor => "auditor",
        v1::OperatorRole::Unspecified => "unknown",
    }
}

/// No pattern is all of them.
fn patterns(patterns: &[String]) -> String {
    match patterns {
        [] => "*".to_owned(),
        some => some.join(","),
    }
}

async fn list(
    options: &ListOptions,
    global: &Global,
    console: &mut Console,
) -> Result<(), Failure> {
    let listing = Listing::new(&COLUMNS, options)?;
    let mut manager = Manager::connect(global).await?;
    let found = manager.api.list_operators(v1::ListRequest {}).await?.into_inner();
    let mut operators = found.operators;
    operators.retain(|operator| {
        let subject = Subject {
            id: &operator.id,
            name: &operator.name,
            labels: None,
            others: &[("role", role_word(operator.role()))],
        };
        Filter::admit(&options.filters, &subject)
    });
    operators.sort_by(|a, b| natural::compare(&a.name, &b.name));
    let now = console.now();
    let rows: Vec<_> = operators.iter().map(|operator| row(operator, now)).collect();
    console.print(&listing.show(&rows)?)
}

fn row(operator: &v1::OperatorInfo, now: u64) -> Datum {
    Datum::Record(vec![
        ("ID", cell(&operator.id)),
        ("Name", cell(&operator.name)),
        ("Role", role_word(operator.role()).into()),
        ("Secrets", cell(&patterns(&operator.secrets))),
        ("Services", cell(&patterns(&operator.services))),
        ("Expires", time::until(operator.expires_at, now).into()),
        ("CreatedAt", time::ago(operator.created_at, now).into()),
    ])
}

impl Inspect {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.inspect_operator(object(name)).await?.into_inner())
        };
        let (found, outcome) = for_each(console, &self.operators, fetch).await;
        let now = console.now();
        console.print(&inspection.show(&found, datum, |operator| pretty(operator, now))?)?;
        outcome
    }
}

fn datum(operator: &v1::OperatorInfo) -> Datum {
    let list = |texts: &[String]| Datum::List(texts.iter().map(Into::into).collect());
    Datum::Record(vec![
        ("ID", (&operator.id).into()),
        ("Name", (&operator.name).into()),
        ("Role", role_word(operator.role()).into()),
        ("Secrets", list(&operator.secrets)),
        ("Services", list(&operator.services)),
        ("CreatedAt", time::rfc3339(operator.created_at).into()),
        ("ExpiresAt", time::rfc3339(operator.expires_at).into()),
        ("CertificateSeconds", operator.seconds.into()),
    ])
}

fn pretty(operator: &v1::OperatorInfo, now: u64) -> String {
    let lifetime = Duration::from_secs(operator.seconds);
    pretty_lines(&[
        ("ID", operator.id.clone()),
        ("Name", operator.name.clone()),
        ("Role", role_word(operator.role()).to_owned()),
        ("Secrets", patterns(&operator.secrets)),
        ("Services", patterns(&operator.services)),
        ("Created at", time::rfc3339(operator.created_at)),
        ("Certificates", format!("live {}", humantime::format_duration(lifetime))),
        ("Newest", format!("expires {}", time::until(operator.expires_at, now))),
    ])
}

impl Rm {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let remove = async |console: &mut Console, name: &str| {
            manager.api.remove_operator(object(name)).await?;
            console.line(name)
        };
        for_each(console, &self.operators, remove).await.1
    }
}
