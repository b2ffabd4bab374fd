//! Least privilege in one place: what a node is told, and why a task gets nothing.

use std::collections::BTreeSet;

use keyhole_domain::{
    AssignedGrant, AssignedTask, Assignment, NodeId, SecretId, ServiceId, ValueKey,
};

use crate::{Availability, Grant, Node, Service, State, Task, Unconstrained};

/// What a task is entitled to now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It gets its service's secrets.
    Admitted,
    /// The node may not hold it; with the reason.
    Rejected(String),
    /// It ended.
    Ended,
}

impl State {
    /// All that one node needs: the tasks that it claimed and that have not ended, and their files.
    ///
    /// A node that is no member gets nothing. A task that its node may not hold is named with the reason, and with no
    /// grant. Nothing of a service without a task on the node is ever in it.
    pub fn assignment(&self, node: NodeId) -> Assignment {
        let tasks = match self.nodes.contains_key(&node) {
            true => self.live_tasks(node).filter_map(|task| self.assigned(task)).collect(),
            false => Vec::new(),
        };
        Assignment { revision: self.revision(), tasks }
    }

    /// Whether a task's node may hold it now.
    pub fn standing(&self, task: &Task) -> Standing {
        if let Some(end) = &task.end {
            return match end.rejected {
                true => Standing::Rejected(end.reason.clone()),
                false => Standing::Ended,
            };
        }
        let (Some(service), Some(node)) =
            (self.services.get(&task.service), self.nodes.get(&task.node))
        else {
            return Standing::Ended;
        };
        self.refusal(service, node).map_or(Standing::Admitted, Standing::Rejected)
    }

    fn refusal(&self, service: &Service, node: &Node) -> Option<String> {
        if node.availability == Availability::Drain {
            return Some(format!("node {} is drained", node.hostname));
        }
        let constraints = &service.spec.constraints;
        let deny = self
            .cluster
            .as_ref()
            .is_none_or(|cluster| cluster.unconstrained == Unconstrained::Deny);
        if constraints.is_empty() && deny {
            return Some(format!(
                "service {} has no constraint, and this cluster asks for one (unconstrained=deny)",
                service.name
            ));
        }
        let facts = node.facts();
        let unmet = constraints.iter().find(|constraint| !constraint.admits(&facts))?;
        Some(format!("node {} does not meet the constraint {unmet}", node.hostname))
    }

    fn assigned(&self, task: &Task) -> Option<AssignedTask> {
        let service = self.services.get(&task.service)?;
        let (grants, rejected) = match self.standing(task) {
            Standing::Admitted => self.resolve_grants(service),
            Standing::Rejected(reason) => (Vec::new(), Some(reason)),
            Standing::Ended => return None,
        };
        let grants = grants.into();
        Some(AssignedTask { id: task.id, service: service.name.clone(), grants, rejected })
    }

    /// Every grant with the version it shows; if one can't be delivered, none is, and the reason says which.
    fn resolve_grants(&self, service: &Service) -> (Vec<AssignedGrant>, Option<String>) {
        let resolved: Result<Vec<AssignedGrant>, String> =
            service.spec.grants.iter().map(|grant| self.resolve_grant(grant)).collect();
        match resolved {
            Ok(grants) => (grants, None),
            Err(reason) => (Vec::new(), Some(reason)),
        }
    }

    fn resolve_grant(&self, grant: &Grant) -> Result<AssignedGrant, String> {
        let missing = || format!("the secret of target {} is gone", grant.target);
        let secret = self.secrets.get(&grant.secret).ok_or_else(missing)?;
        let version = grant.pinned.unwrap_or(secret.current);
        let kept = secret
            .versions
            .get(version)
            .ok_or_else(|| format!("secret {} has no version {version}", secret.name))?;
        Ok(AssignedGrant {
            id: grant.id,
            value: ValueKey { secret: secret.id, version },
            size: u32::try_from(kept.value.size()).unwrap_or(u32::MAX),
            name: secret.name.clone(),
            target: grant.target.clone(),
            uid: grant.uid,
            gid: grant.gid,
            mode: grant.mode,
        })
    }

    pub(crate) fn nodes_with_service(&self, service: ServiceId) -> BTreeSet<NodeId> {
        let live = self.tasks.values().filter(|task| task.end.is_none());
        live.filter(|task| task.service == service).map(|task| task.node).collect()
    }

    pub(crate) fn nodes_with_secret(&self, secret: SecretId) -> BTreeSet<NodeId> {
        let grants = |service: &Service| service.spec.grants.iter().any(|g| g.secret == secret);
        let services: BTreeSet<ServiceId> =
            self.services.values().filter(|s| grants(s)).map(|service| service.id).collect();
        let live = self.tasks.values().filter(|task| task.end.is_none());
        live.filter(|task| services.contains(&task.service)).map(|task| task.node).collect()
    }
}
