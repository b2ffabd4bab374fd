//! The root CA's succession: a new one, who has a certificate of it already, and the end of the one before.
//!
//! Invariant: a root CA is believed until everybody has been seen with a certificate of the one after it, or its time is
//! over; the new one's key is sealed for the members that vote, and no others.

use keyhole_domain::{NodeId, Timestamp};

use crate::apply::Change;
use crate::{Cluster, FormerCa, Operator, Outcome, Rejected, RowKey, SealedKey, State};

/// How long a manager that was removed is told so, nanoseconds: it asks several times a second.
const TELLING: u64 = 20_000_000_000;

/// A new root CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCa {
    /// How many there were before it.
    pub number: u32,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its key, sealed for all members that hold keys.
    pub key: SealedKey,
    /// The one before it, with the cross certificate by which those who know only that one believe the new one.
    pub former: FormerCa,
}

impl State {
    pub(crate) fn rotate_ca(&mut self, at: Timestamp, new: &NewCa) -> Result<Change, Rejected> {
        let holders = self.voters();
        let members = self.members.keys().copied().collect();
        let cluster = self.cluster_mut()?;
        let follows = new.number == cluster.ca_number + 1
            && new.former.certificate == cluster.ca_certificate
            && new.key.seals.keys().eq(holders.iter());
        if !follows {
            return Err(Rejected::CaRaced { given: new.number, current: cluster.ca_number });
        }
        cluster.succeed(at, &new.certificate, &new.key, &new.former);
        cluster.uncertified = members;
        self.mark_operators(at);
        let mut rows = vec![RowKey::Cluster];
        for node in self.nodes.values_mut() {
            node.former_certificate = true;
            rows.push(RowKey::Node(node.id));
        }
        let nodes = self.nodes.keys().copied().collect();
        Ok(Change { nodes, ..Change::rows(rows, Outcome::Done) })
    }

    /// Those whose certificates hold yet have them of a former root CA now.
    pub(crate) fn mark_operators(&mut self, at: Timestamp) {
        let holds = |operator: &&Operator| operator.not_after >= at.0 / 1_000_000_000;
        let ids = self.operators.values().filter(holds).map(|operator| operator.id).collect();
        if let Some(cluster) = &mut self.cluster {
            cluster.uncertified_operators = ids;
        }
    }

    /// A member has a certificate of that root CA.
    pub(crate) fn note_certificate(
        &mut self,
        member: u64,
        number: u32,
    ) -> Result<Change, Rejected> {
        let cluster = self.cluster_mut()?;
        let news = number == cluster.ca_number && cluster.uncertified.remove(&member);
        Ok(Change::rows(news.then_some(RowKey::Cluster), Outcome::Done))
    }

    /// Whether who has this id issues its own certificates, and never has to ask for one: a manager that votes has the root
    /// CA's key. Who asks in its name has a key of a former CA, and would get to what managers tell each other.
    pub fn issues_its_own(&self, id: NodeId) -> bool {
        self.members.values().any(|member| member.voter && member.node == id)
    }

    /// A node has shown a certificate of that root CA.
    pub(crate) fn node_certified(&mut self, id: NodeId, number: u32) -> Option<RowKey> {
        let current = self.cluster.as_ref().is_some_and(|cluster| cluster.ca_number == number);
        let node = self.nodes.get_mut(&id).filter(|node| current && node.former_certificate)?;
        node.former_certificate = false;
        Some(RowKey::Node(id))
    }

    /// Managers, nodes and operators that were last seen with a certificate of a root CA before this one.
    pub fn former_certificates(&self) -> usize {
        let nodes = self.nodes.values().filter(|node| node.former_certificate).count();
        let others =
            |cluster: &Cluster| cluster.uncertified.len() + cluster.uncertified_operators.len();
        nodes + self.cluster().map_or(0, others)
    }

    /// Whether the leader has to make a new root CA: a member that knew its key is gone, or it ends at `ends`, before
    /// those that are off now would have had to renew (`needed`).
    pub fn new_ca_is_due(&self, ends: Timestamp, needed: Timestamp) -> bool {
        self.cluster().is_some_and(|cluster| cluster.new_ca_due || ends < needed)
    }

    /// Whether root CAs before this one are believed for nobody's sake any more: all have newer certificates, or its time
    /// is over. A manager that was removed has a former certificate only, and for some time it can show it and be told.
    pub fn former_cas_are_done(&self, now: Timestamp) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        let told = cluster.removed_at.is_none_or(|at| now.0.saturating_sub(at.0) >= TELLING);
        let over = cluster.former_cas.iter().all(|former| former.until <= now);
        !cluster.former_cas.is_empty() && (over || (told && self.former_certificates() == 0))
    }
}
