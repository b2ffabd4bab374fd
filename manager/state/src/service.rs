//! Services: which secrets their tasks may read, as which files, and on which nodes.

use std::collections::BTreeSet;

use keyhole_domain::{
    Constraint, FileMode, GrantId, Labels, MAX_CONSTRAINT_BYTES, MAX_CONSTRAINTS, MAX_GRANTS,
    SecretId, ServiceId, ServiceName, Target, Timestamp, Version,
};

use crate::{GrantRequest, Outcome, Rejected, RowKey, State, apply::Change};

/// A grant of a service's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its number: another one as soon as anything of it changes.
    pub id: GrantId,
    /// The secret.
    pub secret: SecretId,
    /// Where the file appears.
    pub target: Target,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// The file's permission bits.
    pub mode: FileMode,
    /// The version it stays at, if it does.
    pub pinned: Option<Version>,
}

impl Grant {
    fn is(&self, request: &GrantRequest) -> bool {
        let GrantRequest { secret, target, uid, gid, mode, pinned } = request;
        (self.secret, &self.target, self.uid) == (*secret, target, *uid)
            && (self.gid, self.mode, self.pinned) == (*gid, *mode, *pinned)
    }
}

/// What an operator set of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceSpec {
    /// Its labels.
    pub labels: Labels,
    /// Its grants, in the order given.
    pub grants: Vec<Grant>,
    /// A node must meet all of them.
    pub constraints: Vec<Constraint>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Its name.
    pub name: ServiceName,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// The log index of the last change: Docker's `Version.Index`.
    pub index: u64,
    /// The spec in force.
    pub spec: ServiceSpec,
    /// The spec before, for rollback; its secrets are in use too.
    pub previous: Option<ServiceSpec>,
}

impl Service {
    /// Every grant that keeps a secret in use: of the spec in force and of the one before.
    pub(crate) fn all_grants(&self) -> impl Iterator<Item = &Grant> {
        self.spec.grants.iter().chain(self.previous.iter().flat_map(|spec| &spec.grants))
    }
}

impl State {
    pub(crate) fn create_service(
        &mut self,
        (at, index): (Timestamp, u64),
        id: ServiceId,
        name: &ServiceName,
        (labels, requests, constraints): (&Labels, &[GrantRequest], &[Constraint]),
    ) -> Result<Change, Rejected> {
        if self.service_names.contains_key(name) {
            return Err(Rejected::Exists { kind: "service", name: name.to_string() });
        }
        if self.services.contains_key(&id) {
            return Err(Rejected::IdTaken { kind: "service", id: id.to_string() });
        }
        Self::check_constraints(constraints)?;
        let grants = self.number_grants(requests, &[])?;
        let spec =
            ServiceSpec { labels: labels.clone(), grants, constraints: constraints.to_vec() };
        self.service_names.insert(name.clone(), id);
        self.services.insert(
            id,
            Service {
                id,
                name: name.clone(),
                created_at: at,
                updated_at: at,
                index,
                spec,
                previous: None,
            },
        );
        // The cluster's row has the counter of grant ids.
        Ok(Change::rows([RowKey::Cluster, RowKey::Service(id)], Outcome::Service(id)))
    }

    pub(crate) fn update_service(
        &mut self,
        (at, index): (Timestamp, u64),
        id: ServiceId,
        expected: u64,
        (labels, requests, constraints): (&Labels, &[GrantRequest], &[Constraint]),
    ) -> Result<Change, Rejected> {
        let service = self.service(id)?;
        if service.index != expected {
            let (name, actual) = (service.name.to_string(), service.index);
            return Err(Rejected::OutOfSequence { kind: "service", name, expected, actual });
        }
        let before = service.spec.grants.clone();
        Self::check_constraints(constraints)?;
        let grants = self.number_grants(requests, &before)?;
        let spec =
            ServiceSpec { labels: labels.clone(), grants, constraints: constraints.to_vec() };
        self.replace_spec((at, index), id, spec)
    }

    pub(crate) fn rollback_service(
        &mut self,
        when: (Timestamp, u64),
        id: ServiceId,
    ) -> Result<Change, Rejected> {
        let service = self.service(id)?;
        let Some(previous) = service.previous.clone() else {
            return Err(Rejected::NoPreviousSpec { name: service.name.to_string() });
        };
        self.replace_spec(when, id, previous)
    }

    pub(crate) fn remove_service(&mut self, id: ServiceId) -> Result<Change, Rejected> {
        let name = self.service(id)?.name.clone();
        let mut change = Change::rows([RowKey::Service(id)], Outcome::Service(id));
        let tasks: Vec<_> =
            self.tasks.values().filter(|task| task.service == id).map(|task| task.id).collect();
        for task in tasks {
            if let Some(task) = self.tasks.remove(&task) {
                change.nodes.insert(task.node);
                change.rows.insert(RowKey::Task(task.id));
            }
        }
        self.service_names.remove(&name);
        if let Some(service) = self.services.remove(&id) {
            let secrets = service.all_grants().map(|grant| grant.secret).collect();
            self.prune_versions(secrets, &mut change);
        }
        Ok(change)
    }

    fn replace_spec(
        &mut self,
        (at, index): (Timestamp, u64),
        id: ServiceId,
        spec: ServiceSpec,
    ) -> Result<Change, Rejected> {
        let nodes = self.nodes_with_service(id);
        let Some(service) = self.services.get_mut(&id) else {
            return Err(not_found(id));
        };
        let dropped = service.previous.replace(std::mem::replace(&mut service.spec, spec));
        (service.updated_at, service.index) = (at, index);
        let rows = [RowKey::Cluster, RowKey::Service(id)];
        let mut change = Change { nodes, ..Change::rows(rows, Outcome::Service(id)) };
        // What only the dropped spec pinned need not be kept any longer.
        let secrets = dropped.iter().flat_map(|spec| &spec.grants).map(|g| g.secret).collect();
        self.prune_versions(secrets, &mut change);
        Ok(change)
    }

    /// Checks the grants and numbers them; one that stays as it was keeps its number, so its inode stays too.
    fn number_grants(
        &mut self,
        requests: &[GrantRequest],
        before: &[Grant],
    ) -> Result<Vec<Grant>, Rejected> {
        self.check_grants(requests)?;
        let mut next = self.cluster_mut()?.next_grant;
        let mut number = |request: &GrantRequest| {
            before.iter().find(|grant| grant.is(request)).map_or_else(
                || {
                    next += 1;
                    GrantId(next - 1)
                },
                |grant| grant.id,
            )
        };
        let grants = requests
            .iter()
            .map(|request| Grant {
                id: number(request),
                secret: request.secret,
                target: request.target.clone(),
                uid: request.uid,
                gid: request.gid,
                mode: request.mode,
                pinned: request.pinned,
            })
            .collect();
        self.cluster_mut()?.next_grant = next;
        Ok(grants)
    }

    fn check_constraints(constraints: &[Constraint]) -> Result<(), Rejected> {
        let count = constraints.len();
        let bytes = constraints.iter().map(|constraint| constraint.to_string().len()).sum();
        match count > MAX_CONSTRAINTS || bytes > MAX_CONSTRAINT_BYTES {
            true => Err(Rejected::TooManyConstraints { count, bytes }),
            false => Ok(()),
        }
    }

    fn check_grants(&self, requests: &[GrantRequest]) -> Result<(), Rejected> {
        if requests.len() > MAX_GRANTS {
            return Err(Rejected::TooManyGrants { count: requests.len() });
        }
        for request in requests {
            let secret = self.secret(request.secret)?;
            if let Some(version) = request.pinned
                && !secret.versions.contains(version)
            {
                let kept = secret.versions.numbers().collect();
                return Err(Rejected::NoVersion { name: secret.name.to_string(), version, kept });
            }
        }
        // Sorted by target, a conflict is always between neighbours in the order of path components.
        let mut sorted: Vec<&GrantRequest> = requests.iter().collect();
        sorted.sort_by(|a, b| a.target.components().cmp(b.target.components()));
        for pair in sorted.windows(2) {
            if let [first, second] = pair
                && first.target.conflicts_with(&second.target)
            {
                return Err(Rejected::TargetConflict {
                    first: self.secret(first.secret)?.name.to_string(),
                    second: self.secret(second.secret)?.name.to_string(),
                    target: second.target.clone(),
                });
            }
        }
        Ok(())
    }

    /// Names of the services that use a secret, in the order of the names.
    pub(crate) fn services_using(&self, secret: SecretId) -> Vec<String> {
        self.service_names
            .iter()
            .filter(|(_, id)| {
                let uses = |service: &Service| service.all_grants().any(|g| g.secret == secret);
                self.services.get(id).is_some_and(uses)
            })
            .map(|(name, _)| name.to_string())
            .collect()
    }

    pub(crate) fn pinned_versions(&self, secret: SecretId) -> BTreeSet<Version> {
        self.services
            .values()
            .flat_map(Service::all_grants)
            .filter(|grant| grant.secret == secret)
            .filter_map(|grant| grant.pinned)
            .collect()
    }

    pub(crate) fn service(&self, id: ServiceId) -> Result<&Service, Rejected> {
        self.services.get(&id).ok_or_else(|| not_found(id))
    }
}

fn not_found(id: ServiceId) -> Rejected {
    Rejected::NotFound { kind: "service", name: id.to_string() }
}
