//! Everything that can happen to the state. A command carries all that it needs: time, ids, sealed values, actor.

use std::collections::BTreeSet;

use keyhole_domain::{
    ClusterId, Constraint, FileMode, Labels, NodeId, SecretId, SecretName, ServiceId, ServiceName,
    Target, TaskId, Timestamp, Version,
};

use crate::{
    Availability, Member, MemberKeys, NewCa, NewKey, NewStoreKeys, Operator, ResealItem,
    Restoration, SealedKey, SealedValue, StoreUnder, TokenRecord, TokenRole, Unconstrained,
};

/// Who asked, as the manager that authorised it saw him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A process on the manager's machine, by the local operator socket.
    Local {
        /// Its effective user id.
        uid: u32,
        /// Its effective group id.
        gid: u32,
        /// Its process id when it connected.
        pid: u32,
    },
    /// An operator's certificate.
    Operator(NodeId),
    /// A node's certificate.
    Node(NodeId),
    /// A machine with a join token, not yet a member.
    Joiner {
        /// Where it called from.
        address: String,
    },
    /// A manager itself.
    Manager(u64),
}

/// A command with who and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The proposing manager's clock.
    pub at: Timestamp,
    /// Who asked for it.
    pub actor: Actor,
    /// The manager that he asked, by its number; 0 if it was too old to say.
    pub via: u64,
    /// What to do.
    pub command: Command,
}

/// The first command of a cluster's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitCluster {
    /// The cluster's id.
    pub id: ClusterId,
    /// The root CA's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The root CA's key, sealed to the first member.
    pub ca_key: SealedKey,
    /// The value key of epoch 1, sealed to the first member.
    pub value_key: SealedKey,
    /// The worker join token.
    pub worker_token: TokenRecord,
    /// The manager join token.
    pub manager_token: TokenRecord,
    /// Lifetime of leaf certificates, seconds.
    pub certificate_seconds: u64,
    /// The first member.
    pub member: Member,
}

/// One rotation of a [`Command::RotateSecrets`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotateItem {
    /// The secret.
    pub id: SecretId,
    /// The version that the value was sealed for: it must be the next one.
    pub version: Version,
    /// The value.
    pub value: SealedValue,
}

/// A grant as asked for; the state gives it its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRequest {
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

/// What an operator may change of a node; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeChange {
    /// All labels anew.
    pub labels: Option<Labels>,
    /// The node's index that the labels were made from; 0: whatever it is, as in entries of before this was looked at.
    pub expected: u64,
    /// Whether it takes tasks.
    pub availability: Option<Availability>,
}

/// What can be changed of the cluster; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterChange {
    /// Whether services without constraints run anywhere.
    pub unconstrained: Option<Unconstrained>,
    /// Bytes of all values together.
    pub quota_bytes: Option<u64>,
    /// Lifetime of leaf certificates, seconds.
    pub certificate_seconds: Option<u64>,
    /// A member's new address, by its id.
    pub address: Option<(u64, String)>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the types they name")]
pub enum Command {
    /// Makes the cluster.
    Init(Box<InitCluster>),
    /// A new secret with version 1.
    CreateSecret { id: SecretId, name: SecretName, labels: Labels, value: SealedValue },
    /// New labels, whole, made from those at index `expected` (0: whatever it is, as in entries of before this was
    /// looked at); the name and values never change by this.
    SetSecretLabels { id: SecretId, expected: u64, labels: Labels },
    /// The next version of one or more secrets, all or none.
    RotateSecrets { items: Vec<RotateItem> },
    /// Moves *current* to a kept version, by default the one before.
    RollbackSecret { id: SecretId, to: Option<Version> },
    /// Removes a secret that nothing uses.
    RemoveSecret { id: SecretId },
    /// A new service.
    CreateService {
        id: ServiceId,
        name: ServiceName,
        labels: Labels,
        grants: Vec<GrantRequest>,
        constraints: Vec<Constraint>,
    },
    /// A whole new spec, if the service is still as it was at `expected` (its `Version.Index`).
    UpdateService {
        id: ServiceId,
        expected: u64,
        labels: Labels,
        grants: Vec<GrantRequest>,
        constraints: Vec<Constraint>,
    },
    /// Back to the previous spec.
    RollbackService { id: ServiceId },
    /// Removes a service; its tasks lose their secrets at once.
    RemoveService { id: ServiceId },
    /// A node says that it has a task of a service.
    ClaimTask { id: TaskId, service: ServiceId, node: NodeId, cgroup: String },
    /// A node says that a task ended.
    EndTask { id: TaskId, node: NodeId, reason: String },
    /// A node says which tasks it still has; all others of it ended.
    SyncTasks { node: NodeId, live: Vec<TaskId>, ca_number: u32 },
    /// A new operator.
    CreateOperator(Box<Operator>),
    /// An operator's certificate was made anew; until when it holds, in Unix seconds.
    RenewOperator { id: NodeId, not_after: u64, ca_number: u32 },
    /// An operator is none any more.
    RemoveOperator { id: NodeId },
    /// A machine joined.
    JoinNode { id: NodeId, hostname: String },
    /// An operator changes a node.
    ChangeNode { id: NodeId, change: NodeChange },
    /// Removes a node and ends its tasks.
    RemoveNode { id: NodeId },
    /// A manager joined; its id must be the next one.
    AddMember { member: Member, keys: MemberKeys },
    /// A manager votes and holds the keys, which are sealed for it.
    PromoteMember { id: u64, keys: MemberKeys },
    /// A manager follows without a vote and without the keys. It was decided when these were to vote; if none are given,
    /// as by earlier managers, it is done whoever votes.
    DemoteMember { id: u64, voters: BTreeSet<u64> },
    /// A manager is none any more. The voters are those of [`Self::DemoteMember`].
    RemoveMember { id: u64, voters: BTreeSet<u64> },
    /// A new value key, under which everything is sealed from now on.
    RotateKeyring(Box<NewKey>),
    /// Values that were sealed anew under the current key.
    Reseal { items: Vec<ResealItem> },
    /// Every manager's store is to be written under new keys.
    RenewStoreKeys(Box<NewStoreKeys>),
    /// A manager says what its store is written under.
    NoteStore { member: u64, under: StoreUnder },
    /// What was deleted is to be gone from every manager's disk.
    Shred,
    /// An operator is shown the unlock key.
    ShowUnlockKey,
    /// An operator has the unlock key of that demand: stores may be written under it.
    NoteUnlockKey { number: u64 },
    /// An operator has this member lead; 0 is the one that is furthest.
    TransferLeader { to: u64 },
    /// An operator is shown the join token of that role.
    ShowToken { role: TokenRole },
    /// A new join token.
    RotateToken { role: TokenRole, token: TokenRecord },
    /// Changes a setting of the cluster.
    ChangeCluster(ClusterChange),
    /// A manager says how far its own audit goes: the last line's number and hash.
    NoteAuditHead { member: u64, seq: u64, hash: [u8; 32] },
    /// A new root CA; the one before is believed meanwhile.
    RotateCa(Box<NewCa>),
    /// A manager has a certificate of that root CA, by [`crate::Cluster::ca_number`].
    NoteCertificate { member: u64, ca_number: u32 },
    /// A backup begins, to these recipients; none is a passphrase.
    NoteBackup { recipients: Vec<String> },
    /// Root CAs before this one are believed no longer.
    ForgetFormerCas,
    /// Goes on from a backup, on one manager. It makes a store and is in no log.
    Restore(Box<Restoration>),
    /// Goes on with this member alone. It rewrites a store and is in no log.
    ForceNewCluster { member: u64 },
}
