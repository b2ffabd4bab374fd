//! The cluster itself: its CA, keyring, tokens, settings and counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use keyhole_domain::{ClusterId, NodeId, Timestamp};

use crate::{
    AuditHead, ClusterChange, InitCluster, Outcome, Rejected, RowKey, State, StoreKeys,
    apply::Change,
};

/// A key sealed to one member's own HPKE key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySeal {
    /// HPKE's encapsulated key.
    pub enc: Vec<u8>,
    /// The sealed 32 bytes (or DER key) and the tag.
    pub ciphertext: Vec<u8>,
}

/// A key that only members can open: one seal for each of them, by member id.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SealedKey {
    /// The seals, by member id.
    pub seals: BTreeMap<u64, KeySeal>,
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey(for members {:?})", self.seals.keys().collect::<Vec<_>>())
    }
}

impl fmt::Debug for KeySeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySeal({} bytes)", self.ciphertext.len())
    }
}

/// Whether a service without constraints may run anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unconstrained {
    /// Any node can obtain any unconstrained service's secrets.
    #[default]
    Allow,
    /// A service without constraints runs nowhere.
    Deny,
}

/// Which join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRole {
    /// For machines that mount.
    Worker,
    /// For members of the Raft cluster.
    Manager,
}

/// A join token as the state knows it: only a hash of its secret, and what a member derives that secret from again
/// (with the keyring's key of `epoch`), so that an operator can ask for the token later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Hash of the token's secret.
    pub hash: [u8; 32],
    /// Fresh for each token.
    pub salt: [u8; 32],
    /// Which key of the keyring.
    pub epoch: u32,
}

/// A root CA that was the cluster's until it was restored under a new one. Who trusts only it believes the managers by
/// `cross`, and leaves that it signed are believed, until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerCa {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The name and key of the root that came after it, signed by it, DER.
    pub cross: Vec<u8>,
    /// From then on it is worth nothing.
    pub until: Timestamp,
}

/// What exists once in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's id.
    pub id: ClusterId,
    /// Which history of it this is: 1, or the second since 1970 in which it was restored or forced to go on alone.
    pub incarnation: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// The root CA's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The root CA's private key (PKCS#8 DER), sealed.
    pub ca_key: SealedKey,
    /// The value keys by epoch, each sealed.
    pub keyring: BTreeMap<u32, SealedKey>,
    /// The epoch that new values are sealed under.
    pub epoch: u32,
    /// Since when it is this one; nothing: from the beginning.
    pub keys_since: Option<Timestamp>,
    /// The worker join token.
    pub worker_token: TokenRecord,
    /// The manager join token.
    pub manager_token: TokenRecord,
    /// Whether services without constraints run anywhere.
    pub unconstrained: Unconstrained,
    /// All values together may have this many bytes.
    pub quota_bytes: u64,
    /// Lifetime of the leaf certificates, seconds.
    pub certificate_seconds: u64,
    /// The next grant's id.
    pub next_grant: u64,
    /// The next member's id.
    pub next_member: u64,
    /// Whether somebody knows the keys who shall not any more: a new one is due.
    pub rekey: bool,
    /// What the managers' stores are kept under.
    pub store_keys: StoreKeys,
    /// How far each member's audit goes, oldest first; see [`State::audit_heads`].
    pub audit_heads: BTreeMap<u64, Vec<AuditHead>>,
    /// The root CAs before this one that are still believed, the oldest first.
    pub former_cas: Vec<FormerCa>,
    /// How many root CAs there were before this one.
    pub ca_number: u32,
    /// Since when it is this one; nothing: from the beginning.
    pub ca_since: Option<Timestamp>,
    /// Whether somebody knows the root CA's key who shall not any more: a new one is due.
    pub new_ca_due: bool,
    /// Members that have no certificate of this root CA yet.
    pub uncertified: BTreeSet<u64>,
    /// Operators whose certificates are of a root CA before this one.
    pub uncertified_operators: BTreeSet<NodeId>,
    /// When a manager was last removed.
    pub removed_at: Option<Timestamp>,
    /// The certificates' ids of managers that were removed: what they say is refused for good.
    pub removed_managers: BTreeSet<NodeId>,
    /// When the last backup was begun; as of before it in the backup itself.
    pub last_backup_at: Option<Timestamp>,
}

/// So many root CAs before the current one are believed, however many there were: verifiers (rustls-webpki) go no longer a
/// way by cross certificates, and each connection begins with all of them.
const FORMER_CAS: usize = 6;

impl Cluster {
    /// The root CAs that are believed at a time, this cluster's own first, DER.
    pub fn roots(&self, at: Timestamp) -> Vec<Vec<u8>> {
        let former = self.former_cas_at(at).map(|former| former.certificate.clone());
        std::iter::once(self.ca_certificate.clone()).chain(former).collect()
    }

    /// What a manager shows with its leaf, for those that trust a former root only; DER, the newest first.
    pub fn crosses(&self, at: Timestamp) -> Vec<Vec<u8>> {
        self.former_cas_at(at).map(|former| former.cross.clone()).rev().collect()
    }

    /// Whether the last backup is of before this root CA: who has a certificate of this one would not follow what is
    /// restored from it.
    pub fn backup_is_of_former_ca(&self) -> bool {
        self.last_backup_at.is_some_and(|at| self.ca_since.is_some_and(|since| at < since))
    }

    /// Takes the next root CA.
    pub(crate) fn succeed(
        &mut self,
        at: Timestamp,
        certificate: &[u8],
        key: &SealedKey,
        former: &FormerCa,
    ) {
        self.ca_number += 1;
        self.ca_since = Some(at);
        self.new_ca_due = false;
        self.ca_certificate = certificate.to_vec();
        self.ca_key = key.clone();
        self.former_cas.retain(|former| at < former.until);
        self.former_cas.push(former.clone());
    }

    fn former_cas_at(&self, at: Timestamp) -> impl DoubleEndedIterator<Item = &FormerCa> {
        let newest = self.former_cas.iter().rev().take(FORMER_CAS).rev();
        newest.filter(move |former| at < former.until)
    }
}

impl State {
    pub(crate) fn init(&mut self, at: Timestamp, init: &InitCluster) -> Result<Change, Rejected> {
        if let Some(cluster) = &self.cluster {
            return Err(Rejected::AlreadyInitialised { cluster: cluster.id });
        }
        self.cluster = Some(Cluster {
            id: init.id,
            incarnation: 1,
            created_at: at,
            ca_certificate: init.ca_certificate.clone(),
            ca_key: init.ca_key.clone(),
            keyring: BTreeMap::from([(1, init.value_key.clone())]),
            epoch: 1,
            keys_since: None,
            worker_token: init.worker_token.clone(),
            manager_token: init.manager_token.clone(),
            unconstrained: Unconstrained::Allow,
            quota_bytes: keyhole_domain::DEFAULT_QUOTA_BYTES,
            certificate_seconds: init.certificate_seconds,
            next_grant: 1,
            next_member: init.member.id + 1,
            rekey: false,
            store_keys: StoreKeys::default(),
            audit_heads: BTreeMap::new(),
            former_cas: Vec::new(),
            ca_number: 0,
            ca_since: None,
            new_ca_due: false,
            uncertified: BTreeSet::new(),
            uncertified_operators: BTreeSet::new(),
            removed_at: None,
            removed_managers: BTreeSet::new(),
            last_backup_at: None,
        });
        let key = RowKey::Member(init.member.id);
        self.members.insert(init.member.id, init.member.clone());
        Ok(Change::rows([RowKey::Cluster, key], Outcome::Done))
    }

    pub(crate) fn rotate_token(
        &mut self,
        role: TokenRole,
        token: &TokenRecord,
    ) -> Result<Change, Rejected> {
        let cluster = self.cluster_mut()?;
        // It would be derived from a key that nothing else needs any more, and that may be gone.
        if token.epoch != cluster.epoch {
            return Err(Rejected::KeyringRaced { given: token.epoch, current: cluster.epoch });
        }
        match role {
            TokenRole::Worker => cluster.worker_token = token.clone(),
            TokenRole::Manager => cluster.manager_token = token.clone(),
        }
        self.drop_unused_keys();
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }

    pub(crate) fn change_cluster(&mut self, change: &ClusterChange) -> Result<Change, Rejected> {
        let used = self.values.bytes;
        if let Some(quota) = change.quota_bytes.filter(|quota| *quota < used) {
            return Err(Rejected::QuotaBelowUse { quota, used });
        }
        let mut rows = vec![RowKey::Cluster];
        if let Some((id, address)) = &change.address {
            let member = self.members.get_mut(id).ok_or(Rejected::NoMember { id: *id })?;
            member.address.clone_from(address);
            rows.push(RowKey::Member(*id));
        }
        let cluster = self.cluster_mut()?;
        cluster.quota_bytes = change.quota_bytes.unwrap_or(cluster.quota_bytes);
        cluster.certificate_seconds =
            change.certificate_seconds.unwrap_or(cluster.certificate_seconds);
        cluster.unconstrained = change.unconstrained.unwrap_or(cluster.unconstrained);
        let nodes = match change.unconstrained {
            Some(_) => self.nodes.keys().copied().collect(),
            None => BTreeSet::new(),
        };
        Ok(Change { nodes, ..Change::rows(rows, Outcome::Done) })
    }

    pub(crate) fn cluster_mut(&mut self) -> Result<&mut Cluster, Rejected> {
        self.cluster.as_mut().ok_or(Rejected::NotInitialised)
    }
}
