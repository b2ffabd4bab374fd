//! Secrets: named values with a history of versions, one of them current.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use keyhole_domain::{
    KEPT_VERSIONS, Labels, SecretId, SecretName, Timestamp, Version, check_value_len,
};

use crate::{Outcome, Rejected, RotateItem, RowKey, State, Versions, apply::Change};

/// Length of AES-GCM's tag, which every ciphertext ends with.
const TAG_BYTES: usize = 16;

/// A value as it is at rest: under a key derived from the keyring's key of `epoch` and `salt`.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedValue {
    /// Which key of the keyring.
    pub epoch: u32,
    /// Fresh for each seal; the value's own key is derived from it.
    pub salt: [u8; 32],
    /// The encrypted value and its tag.
    pub ciphertext: Vec<u8>,
}

impl SealedValue {
    /// The value's length in bytes.
    pub fn size(&self) -> u64 {
        self.ciphertext.len().saturating_sub(TAG_BYTES) as u64
    }
}

impl fmt::Debug for SealedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedValue(epoch {}, {} bytes)", self.epoch, self.size())
    }
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    /// When it was made.
    pub created_at: Timestamp,
    /// The log index that made it.
    pub index: u64,
    /// The value.
    pub value: Arc<SealedValue>,
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its id.
    pub id: SecretId,
    /// Its name.
    pub name: SecretName,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// The log index of the last change: Docker's `Version.Index`.
    pub index: u64,
    /// The version that unpinned grants show.
    pub current: Version,
    /// The highest version ever made; numbers are never reused.
    pub last: Version,
    /// The kept versions.
    pub versions: Versions,
}

impl Secret {
    fn kept(&self) -> Vec<Version> {
        self.versions.numbers().collect()
    }

    /// Drops what is beyond the last [`KEPT_VERSIONS`], except the current one and the pinned ones.
    fn prune(&mut self, pinned: &BTreeSet<Version>) -> Vec<(Version, Arc<SealedValue>)> {
        let newest = self.versions.numbers().rev().take(KEPT_VERSIONS).collect::<BTreeSet<_>>();
        let current = self.current;
        let keep = |v| v == current || newest.contains(&v) || pinned.contains(&v);
        let dropped: Vec<(Version, Arc<SealedValue>)> = self
            .versions
            .iter()
            .filter(|(version, _)| !keep(*version))
            .map(|(version, kept)| (version, kept.value.clone()))
            .collect();
        for (version, _) in &dropped {
            self.versions.remove(*version);
        }
        dropped
    }
}

impl State {
    pub(crate) fn create_secret(
        &mut self,
        (at, index): (Timestamp, u64),
        id: SecretId,
        name: &SecretName,
        labels: &Labels,
        value: &SealedValue,
    ) -> Result<Change, Rejected> {
        if self.secret_names.contains_key(name) {
            return Err(Rejected::Exists { kind: "secret", name: name.to_string() });
        }
        if self.secrets.contains_key(&id) {
            return Err(Rejected::IdTaken { kind: "secret", id: id.to_string() });
        }
        self.check_value(name, value)?;
        self.check_quota(value.size())?;
        let mut versions = Versions::default();
        let value_kept = Arc::new(value.clone());
        versions.insert(Version::FIRST, SecretVersion { created_at: at, index, value: value_kept });
        self.values.add(value);
        self.secret_names.insert(name.clone(), id);
        self.secrets.insert(
            id,
            Secret {
                id,
                name: name.clone(),
                labels: labels.clone(),
                created_at: at,
                updated_at: at,
                index,
                current: Version::FIRST,
                last: Version::FIRST,
                versions,
            },
        );
        let rows = [RowKey::Secret(id), RowKey::Version(id, Version::FIRST)];
        Ok(Change::rows(rows, Outcome::Secrets(vec![(id, Version::FIRST)])))
    }

    pub(crate) fn set_secret_labels(
        &mut self,
        (at, index): (Timestamp, u64),
        id: SecretId,
        expected: u64,
        labels: &Labels,
    ) -> Result<Change, Rejected> {
        let secret = self.secret_mut(id)?;
        if expected != 0 && expected != secret.index {
            let (name, actual) = (secret.name.to_string(), secret.index);
            return Err(Rejected::OutOfSequence { kind: "secret", name, expected, actual });
        }
        secret.labels = labels.clone();
        (secret.updated_at, secret.index) = (at, index);
        let outcome = Outcome::Secrets(vec![(id, secret.current)]);
        Ok(Change::rows([RowKey::Secret(id)], outcome))
    }

    pub(crate) fn rotate_secrets(
        &mut self,
        (at, index): (Timestamp, u64),
        items: &[RotateItem],
    ) -> Result<Change, Rejected> {
        self.check_rotation(items)?;
        let mut change = Change::rows([], Outcome::Done);
        let mut made = Vec::new();
        for item in items {
            change.nodes.extend(self.nodes_with_secret(item.id));
            let secret = self.secret_mut(item.id)?;
            let value = Arc::new(item.value.clone());
            let version = SecretVersion { created_at: at, index, value };
            secret.versions.insert(item.version, version);
            (secret.current, secret.last) = (item.version, item.version);
            (secret.updated_at, secret.index) = (at, index);
            self.values.add(&item.value);
            change.rows.extend([RowKey::Secret(item.id), RowKey::Version(item.id, item.version)]);
            self.prune_versions([item.id].into(), &mut change);
            made.push((item.id, item.version));
        }
        Ok(Change { outcome: Outcome::Secrets(made), ..change })
    }

    /// All or nothing: every item is checked before the first one is applied.
    fn check_rotation(&self, items: &[RotateItem]) -> Result<(), Rejected> {
        let mut seen = BTreeSet::new();
        for item in items {
            let secret = self.secret(item.id)?;
            if !seen.insert(item.id) {
                return Err(Rejected::Twice { name: secret.name.to_string() });
            }
            let next = secret.last.next();
            if item.version != next {
                let name = secret.name.to_string();
                return Err(Rejected::VersionRaced { name, given: item.version, next });
            }
            self.check_value(&secret.name, &item.value)?;
        }
        self.check_quota(items.iter().map(|item| item.value.size()).sum())
    }

    pub(crate) fn rollback_secret(
        &mut self,
        (at, index): (Timestamp, u64),
        id: SecretId,
        to: Option<Version>,
    ) -> Result<Change, Rejected> {
        let nodes = self.nodes_with_secret(id);
        let secret = self.secret_mut(id)?;
        let (name, current) = (secret.name.to_string(), secret.current);
        let to = match to {
            Some(version) if secret.versions.contains(version) => version,
            Some(version) => {
                return Err(Rejected::NoVersion { name, version, kept: secret.kept() });
            }
            None => match secret.versions.numbers().rfind(|version| *version < current) {
                Some(version) => version,
                None => {
                    return Err(Rejected::NothingBefore { name, current, kept: secret.kept() });
                }
            },
        };
        secret.current = to;
        (secret.updated_at, secret.index) = (at, index);
        let outcome = Outcome::Secrets(vec![(id, to)]);
        Ok(Change { nodes, ..Change::rows([RowKey::Secret(id)], outcome) })
    }

    pub(crate) fn remove_secret(&mut self, id: SecretId) -> Result<Change, Rejected> {
        let secret = self.secret(id)?;
        let services = self.services_using(id);
        if !services.is_empty() {
            return Err(Rejected::InUse { name: secret.name.to_string(), services });
        }
        let name = secret.name.clone();
        let mut change = Change::rows([RowKey::Secret(id)], Outcome::Done);
        if let Some(secret) = self.secrets.remove(&id) {
            for (version, kept) in secret.versions.iter() {
                self.values.remove(&kept.value);
                change.rows.insert(RowKey::Version(id, version));
            }
        }
        self.secret_names.remove(&name);
        Ok(change)
    }

    /// Drops the versions of these secrets that nothing keeps any more.
    pub(crate) fn prune_versions(&mut self, secrets: BTreeSet<SecretId>, change: &mut Change) {
        for id in secrets {
            let pinned = self.pinned_versions(id);
            let Some(secret) = self.secrets.get_mut(&id) else {
                continue;
            };
            for (version, value) in secret.prune(&pinned) {
                self.values.remove(&value);
                change.rows.insert(RowKey::Version(id, version));
            }
        }
    }

    pub(crate) fn secret(&self, id: SecretId) -> Result<&Secret, Rejected> {
        self.secrets.get(&id).ok_or_else(|| not_found(id))
    }

    fn secret_mut(&mut self, id: SecretId) -> Result<&mut Secret, Rejected> {
        self.secrets.get_mut(&id).ok_or_else(|| not_found(id))
    }

    fn check_value(&self, name: &SecretName, value: &SealedValue) -> Result<(), Rejected> {
        check_value_len(value.size())
            .map_err(|error| Rejected::Value { name: name.to_string(), error })?;
        let cluster = self.cluster.as_ref().ok_or(Rejected::NotInitialised)?;
        if value.epoch != cluster.epoch {
            return Err(Rejected::Epoch { name: name.to_string(), given: value.epoch });
        }
        Ok(())
    }

    fn check_quota(&self, wanted: u64) -> Result<(), Rejected> {
        let quota = self.cluster.as_ref().ok_or(Rejected::NotInitialised)?.quota_bytes;
        if self.values.bytes.saturating_add(wanted) > quota {
            return Err(Rejected::Quota { quota, used: self.values.bytes, wanted });
        }
        Ok(())
    }
}

fn not_found(id: SecretId) -> Rejected {
    Rejected::NotFound { kind: "secret", name: id.to_string() }
}
