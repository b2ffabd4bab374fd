//! Services: create, update, rollback, remove, look. Invariant: an update is a whole new spec made from the one that the
//! state had at a known index; the state refuses it if somebody else was faster, and then it is made anew.

use keyhole_domain::{
    Constraint, FileMode, Labels, SecretId, ServiceId, ServiceName, Target, Version,
};
use keyhole_proto::v1;
use keyhole_state::{
    Command, Grant, GrantRequest, Seen, Service, ServiceSpec, Standing, State, Unconstrained,
};
use tonic::Status;

use super::{Asked, labels};
use crate::authz::{Action, Authorized, act};
use crate::shell::{Done, Shell, entropy, revision_out};
use crate::status::{invalid, rejected};

type Reply<T> = Result<T, Status>;

/// A spec as asked for.
struct Wanted {
    labels: Labels,
    grants: Vec<GrantRequest>,
    constraints: Vec<Constraint>,
}

pub(super) async fn create(
    shell: &Shell,
    by: &Authorized<act::CreateService>,
    request: v1::CreateServiceRequest,
) -> Reply<v1::ServiceChanged> {
    let name: ServiceName = request.name.parse().map_err(invalid)?;
    let constraints = request.constraints.iter().map(|text| constraint(text));
    let wanted = Wanted {
        labels: labels::parse(request.labels)?,
        grants: shell.view_seen(by, |seen| grants(seen, &request.grants))?,
        constraints: constraints.collect::<Reply<_>>()?,
    };
    let id = ServiceId::from_entropy(entropy()?);
    let command = Command::CreateService {
        id,
        name,
        labels: wanted.labels,
        grants: wanted.grants,
        constraints: wanted.constraints,
    };
    let done = shell.propose(by, command).await?;
    changed(shell, by, &done, id)
}

pub(super) async fn update(
    shell: &Shell,
    by: &Authorized<act::UpdateService>,
    request: v1::UpdateServiceRequest,
) -> Reply<v1::ServiceChanged> {
    let update = || {
        shell.view_seen(by, |seen| {
            let service = seen.find_service(&request.service).map_err(|e| rejected(&e))?;
            let wanted = updated(seen, service, &request)?;
            let command = Command::UpdateService {
                id: service.id,
                expected: service.index,
                labels: wanted.labels,
                grants: wanted.grants,
                constraints: wanted.constraints,
            };
            Ok((service.id, command))
        })
    };
    let (id, done) = shell.propose_from_state(by, update).await?;
    changed(shell, by, &done, id)
}

pub(super) async fn rollback(
    shell: &Shell,
    by: &Authorized<act::RollbackService>,
    request: v1::ObjectRequest,
) -> Reply<v1::ServiceChanged> {
    let id = find(shell, by, &request.object)?;
    let done = shell.propose(by, Command::RollbackService { id }).await?;
    changed(shell, by, &done, id)
}

pub(super) async fn remove(
    shell: &Shell,
    by: &Authorized<act::RemoveService>,
    request: v1::ObjectRequest,
) -> Reply<v1::Removed> {
    let id = find(shell, by, &request.object)?;
    shell.propose(by, Command::RemoveService { id }).await?;
    Ok(v1::Removed { id: id.to_string() })
}

pub(super) async fn list(
    shell: &Shell,
    by: &Authorized<act::ListServices>,
    _: v1::ListRequest,
) -> Reply<v1::ServiceList> {
    shell.view_seen(by, |seen| {
        let services = seen.services();
        Ok(v1::ServiceList { services: services.map(|service| info(seen, service)).collect() })
    })
}

pub(super) async fn inspect(
    shell: &Shell,
    by: &Authorized<act::InspectService>,
    request: v1::ObjectRequest,
) -> Reply<v1::ServiceInfo> {
    shell.view_seen(by, |seen| {
        let service = seen.find_service(&request.object);
        service.map(|service| info(seen, service)).map_err(|e| rejected(&e))
    })
}

fn find<A: Asked>(shell: &Shell, by: &Authorized<A>, text: &str) -> Reply<ServiceId> {
    shell.view_seen(by, |seen| {
        let service = seen.find_service(text);
        service.map(|service| service.id).map_err(|e| rejected(&e))
    })
}

/// The whole new spec: removals first, then additions.
fn updated(seen: Seen<'_>, service: &Service, request: &v1::UpdateServiceRequest) -> Reply<Wanted> {
    let spec = &service.spec;
    let mut kept: Vec<&Grant> = spec.grants.iter().collect();
    for text in &request.secret_rm {
        kept = without(seen, service, kept, text)?;
    }
    let mut wanted: Vec<GrantRequest> = kept.into_iter().map(again).collect();
    wanted.extend(grants(seen, &request.secret_add)?);
    Ok(Wanted {
        labels: labels::changed(&spec.labels, &request.label_rm, &request.label_add)?,
        grants: wanted,
        constraints: constraints(service, request)?,
    })
}

/// The grants but those of a secret, or else but the one with that target.
fn without<'a>(
    seen: Seen<'_>,
    service: &Service,
    grants: Vec<&'a Grant>,
    text: &str,
) -> Reply<Vec<&'a Grant>> {
    let secret: Option<SecretId> = seen.find_secret(text).ok().map(|secret| secret.id);
    let target: Option<Target> = text.parse().ok();
    let of_secret = |grant: &Grant| Some(grant.secret) == secret;
    let at_target = |grant: &Grant| Some(&grant.target) == target.as_ref();
    let granted = grants.iter().any(|grant| of_secret(grant));
    let count = grants.len();
    let kept: Vec<&Grant> = grants
        .into_iter()
        .filter(|grant| !if granted { of_secret(grant) } else { at_target(grant) })
        .collect();
    match kept.len() < count {
        true => Ok(kept),
        false => Err(Status::not_found(format!(
            "service {} has no grant of a secret, nor at a target, {text:?}",
            service.name
        ))),
    }
}

/// A grant as it is; asked for again, it keeps its number.
fn again(grant: &Grant) -> GrantRequest {
    GrantRequest {
        secret: grant.secret,
        target: grant.target.clone(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode,
        pinned: grant.pinned,
    }
}

fn constraints(service: &Service, request: &v1::UpdateServiceRequest) -> Reply<Vec<Constraint>> {
    let mut wanted = service.spec.constraints.clone();
    for text in &request.constraint_rm {
        let unwanted = constraint(text)?;
        let before = wanted.len();
        wanted.retain(|kept| *kept != unwanted);
        if wanted.len() == before {
            let name = &service.name;
            let why = format!("service {name} has no constraint {unwanted}");
            return Err(Status::not_found(why));
        }
    }
    for text in &request.constraint_add {
        let added = constraint(text)?;
        if !wanted.contains(&added) {
            wanted.push(added);
        }
    }
    Ok(wanted)
}

fn constraint(text: &str) -> Reply<Constraint> {
    text.parse().map_err(invalid)
}

fn grants(seen: Seen<'_>, inputs: &[v1::GrantInput]) -> Reply<Vec<GrantRequest>> {
    inputs.iter().map(|input| grant(seen, input)).collect()
}

fn grant(seen: Seen<'_>, input: &v1::GrantInput) -> Reply<GrantRequest> {
    let secret = seen.find_secret(&input.source).map_err(|e| rejected(&e))?;
    let target = match input.target.as_str() {
        "" => secret.name.as_str(),
        target => target,
    };
    // "No id" to the kernel, which would leave the owner as it is.
    if input.uid == u32::MAX || input.gid == u32::MAX {
        let most = u32::MAX - 1;
        let why = format!("secret {}: uid and gid are numbers from 0 to {most}", secret.name);
        return Err(invalid(why));
    }
    Ok(GrantRequest {
        secret: secret.id,
        target: target.parse().map_err(invalid)?,
        uid: input.uid,
        gid: input.gid,
        mode: FileMode::new(input.mode).map_err(invalid)?,
        pinned: Version::new(input.pinned),
    })
}

fn changed<A: Action>(
    shell: &Shell,
    by: &Authorized<A>,
    done: &Done,
    id: ServiceId,
) -> Reply<v1::ServiceChanged> {
    let (name, warnings) = shell.view(by, |state| {
        let service = state.services().get(&id);
        let warnings = service.and_then(|service| warning(state, service));
        (service.map(|s| s.name.to_string()), warnings)
    });
    Ok(v1::ServiceChanged {
        id: id.to_string(),
        name: name.unwrap_or_default(),
        revision: Some(revision_out(done.revision)),
        warnings: warnings.into_iter().collect(),
    })
}

fn warning(state: &State, service: &Service) -> Option<String> {
    let open = service.spec.constraints.is_empty() && !service.spec.grants.is_empty();
    let setting = state.cluster().map(|cluster| cluster.unconstrained)?;
    open.then(|| match setting {
        Unconstrained::Allow => format!(
            "service {} has no constraint: any node of the cluster may run it and read its secrets; \
             add --constraint to name the nodes",
            service.name
        ),
        Unconstrained::Deny => format!(
            "service {} has no constraint, so no node may run it (unconstrained=deny); add --constraint",
            service.name
        ),
    })
}

fn info(seen: Seen<'_>, service: &Service) -> v1::ServiceInfo {
    let state = seen.state;
    let running = state
        .tasks()
        .values()
        .filter(|task| task.service == service.id && state.standing(task) == Standing::Admitted)
        .count();
    v1::ServiceInfo {
        id: service.id.to_string(),
        name: service.name.to_string(),
        created_at: service.created_at.0,
        updated_at: service.updated_at.0,
        index: service.index,
        spec: Some(spec(seen, &service.spec)),
        previous: service.previous.as_ref().map(|before| spec(seen, before)),
        running: u32::try_from(running).unwrap_or(u32::MAX),
    }
}

/// A secret out of the caller's scope has neither id nor name; its file is the service's, and is shown.
fn spec(seen: Seen<'_>, spec: &ServiceSpec) -> v1::SpecInfo {
    let known = |grant: &Grant| seen.secret(grant.secret);
    let grants = spec.grants.iter().map(|grant| v1::GrantInfo {
        id: grant.id.0,
        secret_id: known(grant).map(|secret| secret.id.to_string()).unwrap_or_default(),
        secret_name: known(grant).map(|secret| secret.name.to_string()).unwrap_or_default(),
        target: grant.target.to_string(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode.bits().into(),
        pinned: grant.pinned.map_or(0, Version::get),
    });
    v1::SpecInfo {
        labels: labels::out(&spec.labels),
        grants: grants.collect(),
        constraints: spec.constraints.iter().map(ToString::to_string).collect(),
    }
}
