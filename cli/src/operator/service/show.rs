//! `keyhole service ls` and `inspect`.

use clap::Args;
use keyhole_proto::v1;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::{Manager, for_each, labels, object};
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines, pretty_list};
use crate::render::listing::{Columns, ListOptions, Listing, cell, short};
use crate::render::{natural, time};

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Tasks", "TASKS"),
        ("Secrets", "SECRETS"),
        ("Constraints", "CONSTRAINTS"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
        ("Label", "LABEL"),
    ],
    table: &["ID", "Name", "Tasks", "Secrets", "Constraints"],
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
    let mut services = manager.api.list_services(v1::ListRequest {}).await?.into_inner().services;
    services.retain(|service| {
        let subject = Subject {
            id: &service.id,
            name: &service.name,
            labels: service.spec.as_ref().map(|spec| &spec.labels),
            others: &[],
        };
        Filter::admit(&options.filters, &subject)
    });
    services.sort_by(|a, b| natural::compare(&a.name, &b.name));
    // Docker's table shortens these ids; lists for programs have them whole.
    let whole = options.quiet || options.format.is_some();
    let now = console.now();
    let rows: Vec<_> = services.iter().map(|service| row(service, whole, now)).collect();
    console.print(&listing.show(&rows)?)
}

fn row(service: &v1::ServiceInfo, whole: bool, now: u64) -> Datum {
    let spec = service.spec.clone().unwrap_or_default();
    Datum::Record(vec![
        ("ID", cell(short(&service.id, whole))),
        ("Name", cell(&service.name)),
        ("Tasks", service.running.to_string().into()),
        ("Secrets", spec.grants.len().to_string().into()),
        ("Constraints", cell(&spec.constraints.join(","))),
        ("CreatedAt", time::ago(service.created_at, now).into()),
        ("UpdatedAt", time::ago(service.updated_at, now).into()),
        ("Labels", cell(&labels::joined(&spec.labels))),
        ("Label", Datum::Lookup(spec.labels.into_iter().collect())),
    ])
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    options: InspectOptions,
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&self.options)?;
        let mut manager = Manager::connect(global).await?;
        let fetch = async |_: &mut Console, name: &str| {
            Ok(manager.api.inspect_service(object(name)).await?.into_inner())
        };
        let (found, outcome) = for_each(console, &self.services, fetch).await;
        console.print(&inspection.show(&found, datum, pretty)?)?;
        for service in &found {
            if service.spec.as_ref().is_none_or(|spec| spec.constraints.is_empty()) {
                console.warn(&format!(
                    "service {} has no constraint: any node may run it and so get its secrets",
                    service.name
                ));
            }
        }
        outcome
    }
}

fn datum(service: &v1::ServiceInfo) -> Datum {
    let spec = |spec: &Option<v1::SpecInfo>| match spec {
        Some(spec) => spec_datum(&service.name, spec),
        None => Datum::Null,
    };
    Datum::Record(vec![
        ("ID", (&service.id).into()),
        ("Version", Datum::Record(vec![("Index", service.index.into())])),
        ("CreatedAt", time::rfc3339(service.created_at).into()),
        ("UpdatedAt", time::rfc3339(service.updated_at).into()),
        ("Spec", spec(&service.spec)),
        ("PreviousSpec", spec(&service.previous)),
        ("RunningTasks", service.running.into()),
    ])
}

fn spec_datum(name: &str, spec: &v1::SpecInfo) -> Datum {
    Datum::Record(vec![
        ("Name", name.into()),
        ("Labels", Datum::labels(&spec.labels)),
        ("Secrets", Datum::List(spec.grants.iter().map(grant_datum).collect())),
        ("Constraints", Datum::texts(&spec.constraints)),
    ])
}

fn grant_datum(grant: &v1::GrantInfo) -> Datum {
    let file = Datum::Record(vec![
        ("Name", (&grant.target).into()),
        // Docker has texts for owners and a number for the mode.
        ("UID", grant.uid.to_string().into()),
        ("GID", grant.gid.to_string().into()),
        ("Mode", grant.mode.into()),
    ]);
    let pinned = match grant.pinned {
        0 => Datum::Null,
        version => version.into(),
    };
    Datum::Record(vec![
        ("File", file),
        ("SecretID", (&grant.secret_id).into()),
        ("SecretName", (&grant.secret_name).into()),
        ("PinnedVersion", pinned),
        ("GrantID", grant.id.into()),
    ])
}

fn pretty(service: &v1::ServiceInfo) -> String {
    let spec = service.spec.clone().unwrap_or_default();
    let grants: Vec<_> = spec.grants.iter().map(grant_line).collect();
    let lines = [
        ("ID", service.id.clone()),
        ("Name", service.name.clone()),
        ("Tasks", service.running.to_string()),
        ("Created at", time::rfc3339(service.created_at)),
        ("Updated at", time::rfc3339(service.updated_at)),
    ];
    pretty_lines(&lines)
        + &pretty_list("Labels", &labels::pairs(&spec.labels))
        + &pretty_list("Constraints", &spec.constraints)
        + &pretty_list("Secrets", &grants)
}

fn grant_line(grant: &v1::GrantInfo) -> String {
    let v1::GrantInfo { secret_name, target, uid, gid, mode, pinned, .. } = grant;
    let pinned = match pinned {
        0 => String::new(),
        version => format!(", version {version}"),
    };
    format!("{secret_name} as {target} (uid {uid}, gid {gid}, mode {mode:04o}{pinned})")
}
