//! Why a command changed nothing. Deterministic, and worded for the operator.

use keyhole_domain::{
    ClusterId, LabelsError, MAX_CONSTRAINT_BYTES, MAX_CONSTRAINTS, MAX_GRANTS, NodeId, Target,
    Version,
};

use crate::Role;

/// What sort of refusal it is; the shell maps it to a gRPC status (design section 6, point 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The thing is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// It can't be done in the state that things are in.
    FailedPrecondition,
    /// Somebody else was faster; try again.
    Aborted,
    /// The request is wrong in itself.
    InvalidArgument,
    /// A limit would be passed.
    ResourceExhausted,
    /// Who asks may not.
    PermissionDenied,
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Rejected {
    #[error("this cluster is not initialised; start its first manager with --init")]
    NotInitialised,
    #[error("this cluster is initialised already, as {cluster}")]
    AlreadyInitialised { cluster: ClusterId },
    #[error("{kind} {name} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("{kind} {name} is ambiguous ({count} matches found); give more of the id")]
    Ambiguous { kind: &'static str, name: String, count: usize },
    #[error("{kind} {name} already exists")]
    Exists { kind: &'static str, name: String },
    #[error("{kind} id {id} is taken; try again")]
    IdTaken { kind: &'static str, id: String },
    #[error("secret '{name}' is in use by the following service(s): {}; remove it from them first \
             (a service's previous spec counts until the service is updated again)", services.join(", "))]
    InUse { name: String, services: Vec<String> },
    #[error(
        "secret {name}: version {given} was sealed, but {next} is next; somebody else rotated it, try again"
    )]
    VersionRaced { name: String, given: Version, next: Version },
    #[error("secret {name} is named twice in one command")]
    Twice { name: String },
    #[error("secret {name} has no version {version}; kept are {}", list(kept))]
    NoVersion { name: String, version: Version, kept: Vec<Version> },
    #[error("secret {name} has no version before {current}; kept are {}", list(kept))]
    NothingBefore { name: String, current: Version, kept: Vec<Version> },
    #[error("secret {name}: {error}")]
    Value { name: String, error: keyhole_domain::ValueLenError },
    #[error("secret {name}: its value was sealed under key epoch {given}, which is not known")]
    Epoch { name: String, given: u32 },
    #[error(
        "the quota of {quota} bytes would be passed: {used} are used and {wanted} more are wanted; \
             remove secrets, or raise it with 'keyhole cluster update --quota'"
    )]
    Quota { quota: u64, used: u64, wanted: u64 },
    #[error("a quota of {quota} bytes is below the {used} bytes in use")]
    QuotaBelowUse { quota: u64, used: u64 },
    #[error("secret references '{first}' and '{second}' have a conflicting target: '{target}'")]
    TargetConflict { first: String, second: String, target: Target },
    #[error("{count} grants given; a service has at most {MAX_GRANTS}")]
    TooManyGrants { count: usize },
    #[error(
        "{count} constraints of {bytes} bytes given; a service has at most {MAX_CONSTRAINTS} of \
             {MAX_CONSTRAINT_BYTES} bytes in all"
    )]
    TooManyConstraints { count: usize, bytes: usize },
    #[error(
        "update out of sequence: {kind} {name} is at {actual}, the change was made from {expected}; \
             look at it again and repeat"
    )]
    OutOfSequence { kind: &'static str, name: String, expected: u64, actual: u64 },
    #[error("service {name} has no previous spec to roll back to")]
    NoPreviousSpec { name: String },
    #[error("no member has the id {id}")]
    NoMember { id: u64 },
    #[error(
        "manager {id} is the only one that votes; without it the cluster could decide nothing: join or promote another \
         one first"
    )]
    LastVoter { id: u64 },
    #[error(
        "without manager {id} {left} would vote, of which {needed} must be in reach, and {have} are: this would lose the \
         quorum; bring the others back first"
    )]
    QuorumLost { id: u64, left: usize, needed: usize, have: usize },
    #[error(
        "which managers vote has changed meanwhile, and whether the cluster can do without manager {id} was looked at \
         before; repeat the command"
    )]
    VotersChanged { id: u64 },
    #[error(
        "the keyring is at epoch {current}, and a key of epoch {given} does not follow it, or not for all managers; try \
         again"
    )]
    KeyringRaced { given: u32, current: u32 },
    #[error(
        "the root CA is number {current}, and number {given} does not follow it, or not for all managers; try again"
    )]
    CaRaced { given: u32, current: u32 },
    #[error("autolock is {}; see 'keyhole cluster update --autolock'", if *on { "on already" } else { "not turned on" })]
    Autolock { on: bool },
    #[error(
        "the keys of the managers' stores are at number {current}, and number {given} does not follow it, or not for all \
         managers; try again"
    )]
    StoreKeysRaced { given: u64, current: u64 },
    #[error("manager {from} passed on {why}")]
    NotForwarded { from: u64, why: &'static str },
    #[error(
        "manager {member} says that its audit ends at line {seq}, and it was at line {noted} already: its files were \
         cut, or put back; look with 'keyhole audit verify' there"
    )]
    AuditWentBack { member: u64, seq: u64, noted: u64 },
    #[error(
        "operator {id} is not known to this cluster (any more); ask an administrator for a new certificate"
    )]
    UnknownOperator { id: NodeId },
    #[error("operator {name} is {}{role}{}, which may not do this", article(role), limit(limited))]
    NotYourRole { name: String, role: Role, limited: bool },
    #[error("{what} is not in the scope of operator {name}")]
    OutOfScope { name: String, what: String },
    #[error("no operator does this")]
    NotAnOperators,
    #[error("the cluster's keys changed while they were sealed for member {id}; try again")]
    KeysRaced { id: u64 },
    #[error(
        "member {id} does not vote and so has no keys: it cannot go on alone; force the manager of a voter, or restore \
         a backup"
    )]
    NoKeys { id: u64 },
    #[error("node {node} is no member of this cluster (any more); join it again")]
    NotAMember { node: NodeId },
    #[error("task {task} belongs to another node")]
    NotYourTask { task: String },
    #[error(transparent)]
    Labels(#[from] LabelsError),
}

fn list(versions: &[Version]) -> String {
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn article(role: &Role) -> &'static str {
    match role {
        Role::Admin | Role::Auditor => "an ",
        Role::Writer => "a ",
    }
}

fn limit(limited: &bool) -> &'static str {
    match limited {
        true => " with a scope",
        false => "",
    }
}

impl Rejected {
    /// What sort of refusal it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::NoVersion { .. } | Self::NoMember { .. } => {
                Kind::NotFound
            }
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::NotInitialised
            | Self::AlreadyInitialised { .. }
            | Self::InUse { .. }
            | Self::NothingBefore { .. }
            | Self::NoPreviousSpec { .. }
            | Self::NotAMember { .. }
            | Self::LastVoter { .. }
            | Self::NoKeys { .. }
            | Self::QuorumLost { .. }
            | Self::QuotaBelowUse { .. }
            | Self::NotForwarded { .. }
            | Self::Autolock { .. }
            | Self::AuditWentBack { .. }
            | Self::NotYourTask { .. } => Kind::FailedPrecondition,
            Self::VersionRaced { .. }
            | Self::OutOfSequence { .. }
            | Self::IdTaken { .. }
            | Self::KeysRaced { .. }
            | Self::VotersChanged { .. }
            | Self::KeyringRaced { .. }
            | Self::CaRaced { .. }
            | Self::StoreKeysRaced { .. }
            | Self::Epoch { .. } => Kind::Aborted,
            Self::Ambiguous { .. }
            | Self::Twice { .. }
            | Self::Value { .. }
            | Self::TargetConflict { .. }
            | Self::TooManyGrants { .. }
            | Self::TooManyConstraints { .. }
            | Self::Labels(_) => Kind::InvalidArgument,
            Self::UnknownOperator { .. }
            | Self::NotYourRole { .. }
            | Self::OutOfScope { .. }
            | Self::NotAnOperators => Kind::PermissionDenied,
            Self::Quota { .. } => Kind::ResourceExhausted,
        }
    }
}
