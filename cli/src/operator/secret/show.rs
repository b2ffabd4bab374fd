//! `keyhole secret ls`, `inspect` and `history`: everything but the value.

use clap::Args;
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::{Manager, about, for_each, labels, object};
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines, pretty_list};
use crate::render::listing::{Columns, ListOptions, Listing, cell};
use crate::render::{natural, size, time};

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Version", "VERSION"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Services", "SERVICES"),
        ("Labels", "LABELS"),
        ("Label", "LABEL"),
    ],
    table: &["ID", "Name", "Version", "CreatedAt", "UpdatedAt"],
    filters: &["id", "name", "names", "label"],
};

/// `ls`
pub(super) async fn list(
    options: &ListOptions,
    global: &Global,
    console: &mut Console,
) -> Result<(), Failure> {
    let listing = Listing::new(&COLUMNS, options)?;
    let mut manager = Manager::connect(global).await?;
    let mut secrets = manager.api.list_secrets(v1::ListRequest {}).await?.into_inner().secrets;
    secrets.retain(|secret| {
        let subject = Subject {
            id: &secret.id,
            name: &secret.name,
            labels: Some(&secret.labels),
            others: &[],
        };
        Filter::admit(&options.filters, &subject)
    });
    secrets.sort_by(|a, b| natural::compare(&a.name, &b.name));
    let now = console.now();
    let rows: Vec<_> = secrets.iter().map(|secret| row(secret, now)).collect();
    console.print(&listing.show(&rows)?)
}

fn row(secret: &v1::SecretInfo, now: u64) -> Datum {
    Datum::Record(vec![
        ("ID", cell(&secret.id)),
        ("Name", cell(&secret.name)),
        ("Version", secret.current.to_string().into()),
        ("CreatedAt", time::ago(secret.created_at, now).into()),
        ("UpdatedAt", time::ago(secret.updated_at, now).into()),
        ("Services", cell(&secret.services.join(","))),
        ("Labels", cell(&labels::joined(&secret.labels))),
        ("Label", Datum::Lookup(secret.labels.clone().into_iter().collect())),
    ])
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    options: InspectOptions,
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SECRET")]
    secrets: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.inspect_secret(object(name)).await?.into_inner())
        };
        let (found, outcome) = for_each(console, &self.secrets, fetch).await;
        console.print(&inspection.show(&found, datum, pretty)?)?;
        outcome
    }
}

fn datum(secret: &v1::SecretInfo) -> Datum {
    let versions = secret.versions.iter().map(|version| {
        Datum::Record(vec![
            ("Version", version.version.into()),
            ("CreatedAt", time::rfc3339(version.created_at).into()),
            ("Size", version.size.into()),
            ("Current", version.current.into()),
            ("Pinned", version.pinned.into()),
        ])
    });
    Datum::Record(vec![
        ("ID", (&secret.id).into()),
        ("Version", Datum::Record(vec![("Index", secret.index.into())])),
        ("CreatedAt", time::rfc3339(secret.created_at).into()),
        ("UpdatedAt", time::rfc3339(secret.updated_at).into()),
        (
            "Spec",
            Datum::Record(vec![
                ("Name", (&secret.name).into()),
                ("Labels", Datum::labels(&secret.labels)),
            ]),
        ),
        ("CurrentVersion", secret.current.into()),
        ("Versions", Datum::List(versions.collect())),
        ("Services", Datum::texts(&secret.services)),
    ])
}

fn pretty(secret: &v1::SecretInfo) -> String {
    let lines = [
        ("ID", secret.id.clone()),
        ("Name", secret.name.clone()),
        ("Version", secret.current.to_string()),
        ("Created at", time::rfc3339(secret.created_at)),
        ("Updated at", time::rfc3339(secret.updated_at)),
    ];
    pretty_lines(&lines)
        + &pretty_list("Labels", &labels::pairs(&secret.labels))
        + &pretty_list("Services", &secret.services)
}

/// `history`
#[derive(Debug, Args)]
pub(crate) struct History {
    #[command(flatten)]
    list: ListOptions,
    /// Name, id or beginning of the id
    secret: String,
}

static HISTORY: Columns = Columns {
    headings: &[
        ("ID", "VERSION"),
        ("Version", "VERSION"),
        ("CreatedAt", "CREATED"),
        ("Size", "SIZE"),
        ("Current", "CURRENT"),
        ("Pinned", "PINNED"),
    ],
    table: &["Version", "CreatedAt", "Size", "Current", "Pinned"],
    filters: &["id", "current", "pinned"],
};

impl History {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let listing = Listing::new(&HISTORY, &self.list)?;
        let mut manager = Manager::connect(global).await?;
        let secret = manager.api.inspect_secret(object(&self.secret)).await;
        let secret = secret.map_err(about(&self.secret))?.into_inner();
        let mut versions = secret.versions;
        versions.sort_by_key(|version| std::cmp::Reverse(version.version));
        let now = console.now();
        let mut rows = Vec::new();
        for version in &versions {
            let number = version.version.to_string();
            let others = [("current", yes(version.current)), ("pinned", yes(version.pinned))];
            let subject =
                Subject { id: &number, name: &secret.name, labels: None, others: &others };
            if Filter::admit(&self.list.filters, &subject) {
                rows.push(version_row(version, now));
            }
        }
        console.print(&listing.show(&rows)?)
    }
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

fn version_row(version: &v1::VersionInfo, now: u64) -> Datum {
    Datum::Record(vec![
        ("ID", version.version.to_string().into()),
        ("Version", version.version.to_string().into()),
        ("CreatedAt", time::ago(version.created_at, now).into()),
        ("Size", size::human(version.size).into()),
        ("Current", yes(version.current).into()),
        ("Pinned", yes(version.pinned).into()),
    ])
}
