//! The keys that managers keep their stores under: when each has to write its store anew, whether the cluster's unlock
//! key is to open it, and how far the shredding of what was deleted has come.
//!
//! Invariants: each demand has a new number, and with autolock a new unlock key: what opens a store as it is now opens
//! none of its older copies. A store is under an unlock key only once an operator has that.

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::Timestamp;

use crate::{KeySeal, Outcome, Rejected, RowKey, SealedKey, State, apply::Change};

/// What the managers' stores are to be kept under, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreKeys {
    /// Counts the demands for new keys.
    pub number: u64,
    /// The unlock key, sealed for those that vote; without it each store is opened by its manager's key file.
    pub unlock: Option<SealedKey>,
    /// The newest demand whose unlock key an operator has; no store is written under one that nobody has.
    pub seen: u64,
    /// What each member's store is written under, as it said.
    pub written: BTreeMap<u64, StoreWritten>,
    /// The last shredding that was asked for.
    pub shred: Option<Shred>,
}

/// What a store is written under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreUnder {
    /// The demand that it was written for; 0 for one that is as it was made.
    pub number: u64,
    /// Whether the unlock key opens it, and no key file.
    pub locked: bool,
}

/// What a member's store is written under, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreWritten {
    /// Under what.
    pub under: StoreUnder,
    /// When it said so, by its clock.
    pub at: Timestamp,
}

/// The shredding of all that was deleted before it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shred {
    /// When it was asked for.
    pub at: Timestamp,
    /// Every value has to be under this value key or a later one.
    pub epoch: u32,
    /// Once that is so: the demand that every store has to be written anew for, and its index in the log, up to which
    /// no store may keep entries.
    pub stores: Option<(u64, u64)>,
}

/// Why stores are to be written under new keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// From now on the unlock key opens them.
    Autolock,
    /// From now on key files open them.
    NoAutolock,
    /// A new unlock key.
    UnlockKey,
    /// New keys of the stores, without another reason.
    Stores,
    /// The values that are to be shredded are gone from the state.
    Shred,
}

/// A demand for new keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStoreKeys {
    /// Its number: the one after the current.
    pub number: u64,
    /// A new unlock key, sealed for all that vote; nothing without autolock.
    pub unlock: Option<SealedKey>,
    /// What it is for.
    pub why: Renewal,
}

/// The unlock key of a demand, sealed for one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnlockSeal {
    /// The demand's number.
    pub number: u64,
    /// The seal.
    pub seal: KeySeal,
}

/// What a member has to do to its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreDue {
    /// Write it anew under this.
    pub under: StoreUnder,
    /// Before that, forget the log's entries up to this index.
    pub purge: Option<u64>,
}

/// How far the last shredding is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShredStanding {
    /// Values are still under older keys.
    Values,
    /// Every value is under a new key; the leader has to ask for stores to be written anew.
    Ready,
    /// These members have not written their stores anew.
    Stores(BTreeSet<u64>),
    /// What was deleted before is gone.
    Done,
}

impl State {
    pub(crate) fn renew_store_keys(&mut self, new: &NewStoreKeys) -> Result<Change, Rejected> {
        let (index, voters) = (self.index, self.voters());
        let ready = self.shredding() == Some(ShredStanding::Ready);
        let keys = &mut self.cluster_mut()?.store_keys;
        let locked = keys.unlock.is_some();
        let wanted = match new.why {
            Renewal::Autolock if locked => return Err(Rejected::Autolock { on: true }),
            Renewal::NoAutolock | Renewal::UnlockKey if !locked => {
                return Err(Rejected::Autolock { on: false });
            }
            Renewal::Autolock => true,
            Renewal::NoAutolock => false,
            Renewal::UnlockKey | Renewal::Stores | Renewal::Shred => locked,
        };
        let sealed = new.unlock.as_ref().is_none_or(|key| key.seals.keys().eq(voters.iter()));
        let due = new.why != Renewal::Shred || ready;
        if new.number != keys.number + 1 || wanted != new.unlock.is_some() || !sealed || !due {
            return Err(Rejected::StoreKeysRaced { given: new.number, current: keys.number });
        }
        keys.number = new.number;
        keys.unlock.clone_from(&new.unlock);
        if let Some(shred) = keys.shred.as_mut().filter(|_| new.why == Renewal::Shred) {
            shred.stores = Some((new.number, index));
        }
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    /// Asks for a new value key, and then for stores without what was under the old one.
    pub(crate) fn shred(&mut self, at: Timestamp) -> Result<Change, Rejected> {
        let cluster = self.cluster_mut()?;
        cluster.rekey = true;
        let epoch = cluster.epoch + 1;
        cluster.store_keys.shred = Some(Shred { at, epoch, stores: None });
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    /// An operator is shown the unlock key: nothing changes, but it is in the audit.
    pub(crate) fn show_unlock_key(&mut self) -> Result<Change, Rejected> {
        match self.cluster_mut()?.store_keys.unlock {
            Some(_) => Ok(Change::rows([], Outcome::Done)),
            None => Err(Rejected::Autolock { on: false }),
        }
    }

    /// An operator has the unlock key of a demand: stores may be written under it.
    pub(crate) fn note_unlock_key(&mut self, number: u64) -> Result<Change, Rejected> {
        let keys = &mut self.cluster_mut()?.store_keys;
        if keys.unlock.is_none() {
            return Err(Rejected::Autolock { on: false });
        }
        if number != keys.number {
            return Err(Rejected::StoreKeysRaced { given: number, current: keys.number });
        }
        keys.seen = number;
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    pub(crate) fn note_store(
        &mut self,
        at: Timestamp,
        member: u64,
        under: StoreUnder,
    ) -> Result<Change, Rejected> {
        if !self.members.contains_key(&member) {
            return Err(Rejected::NoMember { id: member });
        }
        let keys = &mut self.cluster_mut()?.store_keys;
        if under.number > keys.number {
            return Err(Rejected::StoreKeysRaced { given: under.number, current: keys.number });
        }
        keys.written.insert(member, StoreWritten { under, at });
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    /// What a member's store is to be written under. Who does not vote has no unlock key, and opens his by a key file.
    fn store_wanted(&self, member: u64) -> StoreUnder {
        let keys = self.cluster.as_ref().map(|cluster| &cluster.store_keys);
        let unlock = keys.and_then(|keys| keys.unlock.as_ref());
        StoreUnder {
            number: keys.map_or(0, |keys| keys.number),
            locked: unlock.is_some_and(|key| key.seals.contains_key(&member)),
        }
    }

    /// Whether there is an unlock key that no operator has yet.
    pub fn unlock_key_is_unseen(&self) -> bool {
        let keys = self.cluster.as_ref().map(|cluster| &cluster.store_keys);
        keys.is_some_and(|keys| keys.unlock.is_some() && keys.seen < keys.number)
    }

    /// Whether a member's store, which is under `has` now, waits for an operator to have the unlock key.
    pub fn store_waits_for_unlock_key(&self, member: u64, has: StoreUnder) -> bool {
        let unseen = self.store_wanted(member).locked && self.unlock_key_is_unseen();
        unseen && self.store_is_to_change(member, has)
    }

    fn store_is_to_change(&self, member: u64, has: StoreUnder) -> bool {
        let wanted = self.store_wanted(member);
        // A store that is ahead of this state knows more than it.
        self.members.contains_key(&member) && has != wanted && has.number <= wanted.number
    }

    /// What a member has to do to its store, which is under `has` now.
    pub fn store_due(&self, member: u64, has: StoreUnder) -> Option<StoreDue> {
        let wanted = self.store_wanted(member);
        let waits = self.store_waits_for_unlock_key(member, has);
        if waits || !self.store_is_to_change(member, has) {
            return None;
        }
        let shred = self.cluster.as_ref().and_then(|cluster| cluster.store_keys.shred);
        let stores = shred.and_then(|shred| shred.stores);
        let purge = stores.filter(|(number, _)| has.number < *number).map(|(_, index)| index);
        Some(StoreDue { under: wanted, purge })
    }

    /// What a member's store is written under, as it said last.
    pub fn store_written(&self, member: u64) -> StoreWritten {
        let written = self.cluster.as_ref().and_then(|c| c.store_keys.written.get(&member));
        written.copied().unwrap_or_default()
    }

    /// Whether a member's store is still written under other keys than it is to be.
    pub fn store_is_behind(&self, member: u64) -> bool {
        self.store_written(member).under != self.store_wanted(member)
    }

    /// How far the last shredding is, if there was one.
    pub fn shredding(&self) -> Option<ShredStanding> {
        let cluster = self.cluster.as_ref()?;
        let shred = cluster.store_keys.shred?;
        let Some((number, _)) = shred.stores else {
            // A key is kept for as long as a value is under it.
            let clean = cluster.keyring.keys().all(|epoch| *epoch >= shred.epoch);
            return Some(if clean { ShredStanding::Ready } else { ShredStanding::Values });
        };
        let left = |id: &&u64| self.store_written(**id).under.number < number;
        let left: BTreeSet<u64> = self.members.keys().filter(left).copied().collect();
        Some(if left.is_empty() { ShredStanding::Done } else { ShredStanding::Stores(left) })
    }
}

impl StoreKeys {
    /// Drops what is known of a member that is gone; its disk counts no more.
    pub(crate) fn forget(&mut self, member: u64) {
        self.unseal_for(member);
        self.written.remove(&member);
    }

    /// Drops a member's seal of the unlock key.
    pub(crate) fn unseal_for(&mut self, member: u64) {
        if let Some(key) = &mut self.unlock {
            key.seals.remove(&member);
        }
    }

    /// Takes a member's seal of the unlock key, which must be of the one that there is now.
    pub(crate) fn seal_for(
        &mut self,
        id: u64,
        unlock: Option<&UnlockSeal>,
    ) -> Result<(), Rejected> {
        match (&mut self.unlock, unlock) {
            (None, None) => Ok(()),
            (Some(key), Some(sealed)) if sealed.number == self.number => {
                key.seals.insert(id, sealed.seal.clone());
                Ok(())
            }
            _ => Err(Rejected::KeysRaced { id }),
        }
    }
}
