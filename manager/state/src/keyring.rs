//! The keyring: a new value key, values sealed anew under it, and old keys that go when nothing needs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyhole_domain::{SecretId, Timestamp, Version};

use crate::{Outcome, Rejected, RowKey, SealedKey, SealedValue, State, TokenRecord, apply::Change};

/// A new value key, and the join tokens that are derived from it: who knew the old key could derive the old ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Its epoch: the one after the current.
    pub epoch: u32,
    /// The key, sealed for all members that hold keys.
    pub key: SealedKey,
    /// The new worker token.
    pub worker_token: TokenRecord,
    /// The new manager token.
    pub manager_token: TokenRecord,
}

/// One value that was sealed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResealItem {
    /// The secret.
    pub id: SecretId,
    /// Which version of it.
    pub version: Version,
    /// The epoch that it was sealed under before.
    pub from: u32,
    /// The same value, under the current epoch's key.
    pub value: SealedValue,
}

/// How many values there are and how large they are, by the key that they are sealed under.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ValueCount {
    pub(crate) bytes: u64,
    pub(crate) by_epoch: BTreeMap<u32, u64>,
}

impl ValueCount {
    pub(crate) fn add(&mut self, value: &SealedValue) {
        self.bytes += value.size();
        *self.by_epoch.entry(value.epoch).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, value: &SealedValue) {
        self.bytes -= value.size();
        if let Some(count) = self.by_epoch.get_mut(&value.epoch) {
            *count -= 1;
            if *count == 0 {
                self.by_epoch.remove(&value.epoch);
            }
        }
    }
}

/// A value with its place.
pub type PlacedValue = (SecretId, Version, Arc<SealedValue>);

impl State {
    pub(crate) fn rotate_keyring(
        &mut self,
        at: Timestamp,
        new: &NewKey,
    ) -> Result<Change, Rejected> {
        let holders = self.voters();
        let cluster = self.cluster_mut()?;
        if new.epoch != cluster.epoch + 1 || !new.key.seals.keys().eq(holders.iter()) {
            return Err(Rejected::KeyringRaced { given: new.epoch, current: cluster.epoch });
        }
        cluster.keyring.insert(new.epoch, new.key.clone());
        cluster.epoch = new.epoch;
        cluster.keys_since = Some(at);
        cluster.worker_token = new.worker_token.clone();
        cluster.manager_token = new.manager_token.clone();
        cluster.rekey = false;
        self.drop_unused_keys();
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    /// Takes values that are still what they were when they were sealed anew; others have been dropped meanwhile.
    pub(crate) fn reseal(&mut self, items: &[ResealItem]) -> Result<Change, Rejected> {
        let current = self.cluster_mut()?.epoch;
        let mut rows = vec![RowKey::Cluster];
        for item in items {
            let Some(secret) = self.secrets.get_mut(&item.id) else { continue };
            let Some(kept) = secret.versions.get(item.version) else { continue };
            let same = kept.value.epoch == item.from && kept.value.size() == item.value.size();
            if !same || item.value.epoch != current {
                continue;
            }
            let value = Arc::new(item.value.clone());
            self.values.remove(&kept.value);
            self.values.add(&value);
            let kept = crate::SecretVersion { value, ..kept.clone() };
            secret.versions.insert(item.version, kept);
            rows.push(RowKey::Version(item.id, item.version));
        }
        self.drop_unused_keys();
        Ok(Change::rows(rows, Outcome::Done))
    }

    /// Old keys are needed for values and for tokens that were made with them.
    pub(crate) fn drop_unused_keys(&mut self) {
        let values = &self.values.by_epoch;
        if let Some(cluster) = self.cluster.as_mut() {
            let tokens = [cluster.worker_token.epoch, cluster.manager_token.epoch];
            let current = cluster.epoch;
            let used = |epoch: &u32| {
                *epoch == current || tokens.contains(epoch) || values.contains_key(epoch)
            };
            cluster.keyring.retain(|epoch, _| used(epoch));
        }
    }

    /// How many values are sealed under older keys than the current one.
    pub fn values_under_old_keys(&self) -> u64 {
        let current = self.cluster.as_ref().map_or(0, |cluster| cluster.epoch);
        self.values.by_epoch.iter().filter(|(epoch, _)| **epoch != current).map(|(_, n)| n).sum()
    }

    /// The next values under older keys, from a secret on: up to `count`, and of `bytes` together but for the last one.
    pub fn next_to_reseal(
        &self,
        from: Option<SecretId>,
        count: usize,
        mut bytes: u64,
    ) -> Vec<PlacedValue> {
        let current = self.cluster.as_ref().map_or(0, |cluster| cluster.epoch);
        let start = from.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Included);
        let secrets = self.secrets.range((start, std::ops::Bound::Unbounded));
        let values = secrets.flat_map(|(id, secret)| {
            secret.versions.iter().map(|(version, kept)| (*id, version, kept.value.clone()))
        });
        values
            .filter(|(_, _, value)| value.epoch != current)
            .take_while(|(_, _, value)| {
                let fits = bytes > 0;
                bytes = bytes.saturating_sub(value.size());
                fits
            })
            .take(count)
            .collect()
    }
}
