//! A history that goes on elsewhere: backups, and the two ways to a new cluster of one.
//!
//! Invariant: what was lost is never taken up again. The incarnation rises, so that nodes refuse the history before, and
//! no number or id is given a second time. It is of the second in which the history began, so that another one from the
//! same backup is another one for nodes, too, and the later of the two is the higher.

use std::collections::BTreeMap;

use keyhole_domain::Timestamp;

use crate::apply::Change;
use crate::{
    Cluster, FormerCa, Member, Outcome, Rejected, RowKey, SealedKey, State, StoreKeys, TokenRecord,
};

/// What is new in a cluster that was restored from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    /// Its only manager, with the next number.
    pub member: Member,
    /// The new root CA's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The new root CA's key.
    pub ca_key: SealedKey,
    /// The root CA before, by which nodes find their way.
    pub former: FormerCa,
    /// The new value key's epoch; all values were sealed anew under it.
    pub epoch: u32,
    /// The new value key.
    pub value_key: SealedKey,
    /// A new worker join token.
    pub worker_token: TokenRecord,
    /// A new manager join token.
    pub manager_token: TokenRecord,
}

impl Cluster {
    /// Where the clock is behind the history before, the next number has to do.
    fn begin_history(&mut self, at: Timestamp) {
        let second = at.0 / 1_000_000_000;
        self.incarnation = second.max(self.incarnation + 1);
    }
}

impl State {
    pub(crate) fn note_backup(&mut self, at: Timestamp) -> Result<Change, Rejected> {
        self.cluster_mut()?.last_backup_at = Some(at);
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    pub(crate) fn forget_former_cas(&mut self) -> Result<Change, Rejected> {
        self.cluster_mut()?.former_cas.clear();
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    /// Goes on from a backup with one manager, another CA, other tokens and another value key. Everything else stays,
    /// with its ids and versions.
    pub(crate) fn restore(&mut self, at: Timestamp, new: &Restoration) -> Result<Change, Rejected> {
        for secret in self.secrets.values() {
            let mut epochs = secret.versions.iter().map(|(_, version)| version.value.epoch);
            if let Some(given) = epochs.find(|epoch| *epoch != new.epoch) {
                return Err(Rejected::Epoch { name: secret.name.to_string(), given });
            }
        }
        let id = new.member.id;
        let cluster = self.cluster_mut()?;
        if id != cluster.next_member {
            return Err(Rejected::IdTaken { kind: "member", id: id.to_string() });
        }
        cluster.next_member += 1;
        cluster.begin_history(at);
        cluster.succeed(at, &new.ca_certificate, &new.ca_key, &new.former);
        cluster.uncertified = [id].into();
        self.mark_operators(at);
        let cluster = self.cluster_mut()?;
        cluster.keyring = BTreeMap::from([(new.epoch, new.value_key.clone())]);
        cluster.epoch = new.epoch;
        cluster.keys_since = Some(at);
        cluster.rekey = false;
        // Its store is a new one, with a key file.
        cluster.store_keys = StoreKeys::default();
        cluster.worker_token.clone_from(&new.worker_token);
        cluster.manager_token.clone_from(&new.manager_token);
        for node in self.nodes.values_mut() {
            node.former_certificate = true;
        }
        Ok(self.stand_alone(new.member.clone()))
    }

    /// Goes on with one of the managers alone, when most of the others are lost for good.
    pub(crate) fn force_new_cluster(&mut self, at: Timestamp, id: u64) -> Result<Change, Rejected> {
        let member = self.members.get(&id).cloned().ok_or(Rejected::NoMember { id })?;
        let cluster = self.cluster_mut()?;
        if !cluster.ca_key.seals.contains_key(&id) {
            return Err(Rejected::NoKeys { id });
        }
        cluster.begin_history(at);
        let others: Vec<u64> =
            cluster.ca_key.seals.keys().copied().filter(|of| *of != id).collect();
        others.into_iter().for_each(|other| cluster.unseal_for(other));
        Ok(self.stand_alone(Member { voter: true, ..member }))
    }

    fn stand_alone(&mut self, member: Member) -> Change {
        let id = member.id;
        let before = std::mem::replace(&mut self.members, BTreeMap::from([(id, member)]));
        let others = before.values().filter(|other| other.id != id).map(|other| other.node);
        if let Some(cluster) = &mut self.cluster {
            cluster.removed_managers.extend(others);
            cluster.uncertified.retain(|of| *of == id);
            cluster.audit_heads.retain(|of, _| *of == id);
            cluster.store_keys.written.retain(|of, _| *of == id);
        }
        let members = before.into_keys().chain([id]).map(RowKey::Member);
        let rows =
            members.chain(self.nodes.keys().copied().map(RowKey::Node)).chain([RowKey::Cluster]);
        let nodes = self.nodes.keys().copied().collect();
        Change { nodes, ..Change::rows(rows, Outcome::Done) }
    }
}
