//! The managers that are members of the cluster. What is said here is what is wanted; Raft's own membership follows it.

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{NodeId, Timestamp};

use crate::{Cluster, KeySeal, Outcome, Rejected, RowKey, State, UnlockSeal, apply::Change};

/// A manager that is a member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its Raft id; from a counter, never reused.
    pub id: u64,
    /// Its certificate's id.
    pub node: NodeId,
    /// Its host name when it joined, for people; empty for one that was made before that was kept.
    pub hostname: String,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Its own HPKE public key (X25519), for [`crate::SealedKey`].
    pub seal_key: [u8; 32],
    /// Whether it is to vote; until it has caught up, it does not.
    pub voter: bool,
}

/// The cluster's keys, sealed for one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberKeys {
    /// The root CA's key.
    pub ca: KeySeal,
    /// The value keys, by epoch.
    pub keyring: BTreeMap<u32, KeySeal>,
    /// Which root CA's key it is, by [`Cluster::ca_number`].
    pub ca_number: u32,
    /// The unlock key, with autolock.
    pub unlock: Option<UnlockSeal>,
}

/// Raft's membership as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaftMembers {
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that are told everything and do not vote.
    pub learners: BTreeSet<u64>,
    /// Of the learners those that have nearly all of the log.
    pub caught_up: BTreeSet<u64>,
    /// Of those the ones that do not know the last change of the membership yet.
    pub untold: BTreeSet<u64>,
    /// Who leads, and asks.
    pub leader: u64,
}

/// What a cluster can still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Every voter is in reach.
    Whole,
    /// Some are not; so many more may be lost before nothing can be decided.
    Degraded {
        /// How many are out of reach.
        missing: usize,
        /// How many more may be.
        spare: usize,
    },
    /// Nothing can be decided.
    NoQuorum {
        /// How many are in reach.
        have: usize,
        /// How many must be.
        needed: usize,
    },
}

impl Health {
    /// Of those that vote, with those that are reached.
    #[must_use]
    pub fn of(voters: &BTreeSet<u64>, reached: &BTreeSet<u64>) -> Self {
        let (have, needed) = (voters.intersection(reached).count(), voters.len() / 2 + 1);
        match voters.len() - have {
            _ if have < needed => Self::NoQuorum { have, needed },
            0 => Self::Whole,
            missing => Self::Degraded { missing, spare: have - needed },
        }
    }
}

/// One change of Raft's membership, or of who makes the changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipStep {
    /// One that votes leads from now on.
    HandOver,
    /// This member is told everything from now on.
    AddLearner(u64),
    /// These vote, and no others.
    SetVoters(BTreeSet<u64>),
    /// These are told nothing any more.
    Remove(BTreeSet<u64>),
}

impl State {
    pub(crate) fn add_member(
        &mut self,
        member: &Member,
        keys: &MemberKeys,
    ) -> Result<Change, Rejected> {
        let taken = self.nodes.contains_key(&member.node)
            || self.members.values().any(|known| known.node == member.node)
            || self.was_removed(member.node.as_str());
        if taken {
            return Err(Rejected::IdTaken { kind: "manager", id: member.node.to_string() });
        }
        let cluster = self.cluster_mut()?;
        if member.id != cluster.next_member {
            return Err(Rejected::IdTaken { kind: "member", id: member.id.to_string() });
        }
        cluster.seal_for(member.id, keys)?;
        cluster.next_member += 1;
        self.members.insert(member.id, member.clone());
        Ok(Change::rows([RowKey::Cluster, RowKey::Member(member.id)], Outcome::Done))
    }

    /// Gives a member its vote and the keys.
    pub(crate) fn promote(&mut self, id: u64, keys: &MemberKeys) -> Result<Change, Rejected> {
        let member = self.members.get_mut(&id).ok_or(Rejected::NoMember { id })?;
        if member.voter {
            return Ok(Change::rows([], Outcome::Done));
        }
        let cluster = self.cluster.as_mut().ok_or(Rejected::NotInitialised)?;
        cluster.seal_for(id, keys)?;
        member.voter = true;
        Ok(Change::rows([RowKey::Cluster, RowKey::Member(id)], Outcome::Done))
    }

    /// Takes a member's vote and its seals of the keys. It has known them, so new ones are due.
    pub(crate) fn demote(
        &mut self,
        id: u64,
        decided_on: &BTreeSet<u64>,
    ) -> Result<Change, Rejected> {
        self.still_vote(id, decided_on)?;
        self.someone_votes_without(id)?;
        let member = self.members.get_mut(&id).ok_or(Rejected::NoMember { id })?;
        member.voter = false;
        self.cluster_mut()?.unseal_for(id);
        Ok(Change::rows([RowKey::Cluster, RowKey::Member(id)], Outcome::Done))
    }

    pub(crate) fn remove_member(
        &mut self,
        at: Timestamp,
        id: u64,
        decided_on: &BTreeSet<u64>,
    ) -> Result<Change, Rejected> {
        self.still_vote(id, decided_on)?;
        self.someone_votes_without(id)?;
        let removed = self.members.remove(&id).ok_or(Rejected::NoMember { id })?;
        let cluster = self.cluster_mut()?;
        cluster.removed_managers.insert(removed.node);
        cluster.removed_at = Some(at);
        cluster.unseal_for(id);
        cluster.store_keys.forget(id);
        cluster.audit_heads.remove(&id);
        cluster.uncertified.remove(&id);
        Ok(Change::rows([RowKey::Cluster, RowKey::Member(id)], Outcome::Done))
    }

    /// Whether a certificate's id was a manager's that was removed.
    pub fn was_removed(&self, manager: &str) -> bool {
        let removed = self.cluster().map(|cluster| &cluster.removed_managers);
        removed.is_some_and(|removed| removed.iter().any(|id| id.as_str() == manager))
    }

    fn someone_votes_without(&self, id: u64) -> Result<(), Rejected> {
        match self.members.values().any(|member| member.voter && member.id != id) {
            true => Ok(()),
            false => Err(Rejected::LastVoter { id }),
        }
    }

    /// Two removals may each leave a majority in reach, and both together none.
    fn still_vote(&self, id: u64, decided_on: &BTreeSet<u64>) -> Result<(), Rejected> {
        match decided_on.is_empty() || *decided_on == self.voters() {
            true => Ok(()),
            false => Err(Rejected::VotersChanged { id }),
        }
    }

    /// The members that are to vote.
    pub fn voters(&self) -> BTreeSet<u64> {
        self.members.values().filter(|member| member.voter).map(|member| member.id).collect()
    }

    /// Whether the cluster could still decide anything if this member had no vote: of those that vote now and
    /// are to vote, a majority of the rest must be reached.
    ///
    /// # Errors
    /// [`Rejected::QuorumLost`] with the numbers; [`Rejected::LastVoter`] if it is the only one.
    pub fn quorum_without(
        &self,
        id: u64,
        voting: &BTreeSet<u64>,
        reached: &BTreeSet<u64>,
    ) -> Result<(), Rejected> {
        self.someone_votes_without(id)?;
        // Raft may not have followed the last change yet.
        let mut left: BTreeSet<u64> = voting.intersection(&self.voters()).copied().collect();
        if !left.remove(&id) {
            return Ok(());
        }
        let (needed, have) = (left.len() / 2 + 1, left.intersection(reached).count());
        match have >= needed {
            true => Ok(()),
            false => Err(Rejected::QuorumLost { id, left: left.len(), needed, have }),
        }
    }

    /// What Raft's membership has to become next to be as it is wanted here; one step at a time.
    pub fn membership_step(&self, raft: &RaftMembers) -> Option<MembershipStep> {
        // Who has no vote holds no keys either, and is no follower of anybody who could say that he has caught up.
        if !raft.voters.contains(&raft.leader) {
            return Some(MembershipStep::HandOver);
        }
        let known = |id: &u64| raft.voters.contains(id) || raft.learners.contains(id);
        if let Some(id) = self.members.keys().find(|id| !known(id)) {
            return Some(MembershipStep::AddLearner(*id));
        }
        let wanted = self.voters();
        let ready = wanted.intersection(&raft.learners).filter(|id| raft.caught_up.contains(id));
        let voters: BTreeSet<u64> =
            raft.voters.intersection(&wanted).chain(ready).copied().collect();
        // A cluster always has a voter; who has nobody to take his place keeps his vote for now.
        if !voters.is_empty() && voters != raft.voters {
            return Some(MembershipStep::SetVoters(voters));
        }
        // Who is not told any more never learns that nobody waits for him; who is behind has heard less already.
        let told = raft.learners.difference(&raft.untold);
        let gone: BTreeSet<u64> =
            told.filter(|id| !self.members.contains_key(id)).copied().collect();
        (!gone.is_empty()).then_some(MembershipStep::Remove(gone))
    }

    /// The member that a text names: its certificate's id, its host name, its address, or its number.
    pub fn find_member(&self, text: &str) -> Result<&Member, Rejected> {
        let by = |fits: &dyn Fn(&Member) -> bool| -> Vec<&Member> {
            self.members.values().filter(|member| fits(member)).collect()
        };
        let exact: [&dyn Fn(&Member) -> bool; 3] = [
            &|member| member.node.as_str() == text || member.id.to_string() == text,
            &|member| !text.is_empty() && (member.hostname == text || member.address == text),
            &|member| !text.is_empty() && member.node.as_str().starts_with(text),
        ];
        let found = exact.into_iter().map(by).find(|found| !found.is_empty());
        let name = text.chars().take(80).collect();
        match found.as_deref() {
            Some([member]) => Ok(member),
            Some(several) => {
                Err(Rejected::Ambiguous { kind: "manager", name, count: several.len() })
            }
            None => Err(Rejected::NotFound { kind: "manager", name }),
        }
    }
}

impl Cluster {
    /// Drops a member's seals; if it had any, it has known the keys.
    pub(crate) fn unseal_for(&mut self, id: u64) {
        let knew = self.ca_key.seals.remove(&id).is_some();
        self.rekey |= knew;
        self.new_ca_due |= knew;
        self.keyring.values_mut().for_each(|key| drop(key.seals.remove(&id)));
        self.store_keys.unseal_for(id);
    }

    /// Takes a member's seals, which must be of the keys that there are now.
    fn seal_for(&mut self, id: u64, keys: &MemberKeys) -> Result<(), Rejected> {
        if !self.keyring.keys().eq(keys.keyring.keys()) || self.ca_number != keys.ca_number {
            return Err(Rejected::KeysRaced { id });
        }
        self.store_keys.seal_for(id, keys.unlock.as_ref())?;
        self.ca_key.seals.insert(id, keys.ca.clone());
        for (epoch, seal) in &keys.keyring {
            if let Some(key) = self.keyring.get_mut(epoch) {
                key.seals.insert(id, seal.clone());
            }
        }
        Ok(())
    }
}
