//! What must hold after every command. Tests call it after each one; a breach is a bug, never an operator's mistake.

use std::collections::BTreeSet;

use keyhole_domain::KEPT_VERSIONS;

use crate::keyring::ValueCount;
use crate::{Service, State};

impl State {
    /// The first broken invariant, in words.
    pub fn invariants(&self) -> Result<(), String> {
        self.names_match()?;
        self.versions_are_kept()?;
        self.grants_resolve()?;
        self.tasks_belong()?;
        self.members_hold_the_keys()?;
        self.operators_are_apart()?;
        self.stores_are_members()?;
        self.audit_heads_rise()
    }

    fn audit_heads_rise(&self) -> Result<(), String> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        for (member, heads) in &cluster.audit_heads {
            if !self.members.contains_key(member) || !heads.is_sorted_by(|a, b| a.seq < b.seq) {
                return Err(format!("the audit heads of member {member}: {heads:?}"));
            }
        }
        Ok(())
    }

    fn stores_are_members(&self) -> Result<(), String> {
        let Some(keys) = self.cluster.as_ref().map(|cluster| &cluster.store_keys) else {
            return Ok(());
        };
        for (id, written) in &keys.written {
            if !self.members.contains_key(id) || written.under.number > keys.number {
                return Err(format!("the store of member {id}: {written:?} of {}", keys.number));
            }
        }
        if keys.seen > keys.number {
            return Err(format!("unlock key {} of {} was seen", keys.seen, keys.number));
        }
        match keys.shred.and_then(|shred| shred.stores) {
            Some((number, _)) if number > keys.number => {
                Err(format!("shredding waits for {number} of {}", keys.number))
            }
            _ => Ok(()),
        }
    }

    fn members_hold_the_keys(&self) -> Result<(), String> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        if self.voters().is_empty() {
            return Err("nobody votes".into());
        }
        if let Some(id) = self.members.keys().find(|id| **id >= cluster.next_member) {
            return Err(format!("member {id} is from the future"));
        }
        let unlock = &cluster.store_keys.unlock;
        for key in cluster.keyring.values().chain([&cluster.ca_key]).chain(unlock) {
            if !key.seals.keys().eq(self.voters().iter()) {
                return Err(format!("{key:?} is not sealed for exactly those that vote"));
            }
        }
        Ok(())
    }

    fn operators_are_apart(&self) -> Result<(), String> {
        let names: BTreeSet<_> = self.operators.values().map(|one| &one.name).collect();
        match names.len() == self.operators.len() {
            true => Ok(()),
            false => Err("two operators have one name".into()),
        }
    }

    fn names_match(&self) -> Result<(), String> {
        let secrets: BTreeSet<_> = self.secrets.values().map(|s| (s.name.clone(), s.id)).collect();
        let index: BTreeSet<_> = self.secret_names.iter().map(|(n, id)| (n.clone(), *id)).collect();
        if secrets != index {
            return Err("the index of secret names differs from the secrets".into());
        }
        let services: BTreeSet<_> =
            self.services.values().map(|s| (s.name.clone(), s.id)).collect();
        let index: BTreeSet<_> =
            self.service_names.iter().map(|(n, id)| (n.clone(), *id)).collect();
        match services == index {
            true => Ok(()),
            false => Err("the index of service names differs from the services".into()),
        }
    }

    fn versions_are_kept(&self) -> Result<(), String> {
        let mut values = ValueCount::default();
        for secret in self.secrets.values() {
            let name = &secret.name;
            if !secret.versions.contains(secret.current) {
                return Err(format!("secret {name}: current version {} is gone", secret.current));
            }
            if secret.versions.numbers().next_back().is_none_or(|newest| newest > secret.last) {
                return Err(format!("secret {name}: a version is above the last one made"));
            }
            let pinned = self.pinned_versions(secret.id).len();
            if secret.versions.len() > KEPT_VERSIONS + pinned + 1 {
                return Err(format!("secret {name}: {} versions kept", secret.versions.len()));
            }
            secret.versions.iter().for_each(|(_, version)| values.add(&version.value));
        }
        let keys = self.cluster.as_ref().map(|cluster| &cluster.keyring);
        if let Some(lost) =
            values.by_epoch.keys().find(|e| !keys.is_some_and(|k| k.contains_key(e)))
        {
            return Err(format!("values are under key epoch {lost}, which is gone"));
        }
        match values == self.values {
            true => Ok(()),
            false => Err(format!("{:?} counted, {values:?} kept", self.values)),
        }
    }

    fn grants_resolve(&self) -> Result<(), String> {
        let next = self.cluster.as_ref().map_or(1, |cluster| cluster.next_grant);
        for service in self.services.values() {
            let name = &service.name;
            for grant in service.all_grants() {
                let Some(secret) = self.secrets.get(&grant.secret) else {
                    return Err(format!("service {name}: target {} has no secret", grant.target));
                };
                if grant.pinned.is_some_and(|pinned| !secret.versions.contains(pinned)) {
                    return Err(format!(
                        "service {name}: a pinned version of {} is gone",
                        secret.name
                    ));
                }
                if grant.id.0 >= next {
                    return Err(format!("service {name}: grant {} is from the future", grant.id.0));
                }
            }
            Self::targets_are_apart(service)?;
        }
        Ok(())
    }

    fn targets_are_apart(service: &Service) -> Result<(), String> {
        let grants = &service.spec.grants;
        for (at, first) in grants.iter().enumerate() {
            for second in grants.iter().skip(at + 1) {
                if first.target.conflicts_with(&second.target) {
                    return Err(format!("service {}: {} twice", service.name, second.target));
                }
            }
        }
        Ok(())
    }

    fn tasks_belong(&self) -> Result<(), String> {
        for task in self.tasks.values() {
            if !self.services.contains_key(&task.service) {
                return Err(format!("task {} is of no service", task.id));
            }
            if !self.nodes.contains_key(&task.node) {
                return Err(format!("task {} is on no node", task.id));
            }
        }
        Ok(())
    }
}
