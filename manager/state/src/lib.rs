//! The cluster's state machine, pure: commands in, events out, the same on every replica.
//!
//! No clock, no randomness, no files, no Raft types: times, ids and sealed values arrive inside the command. It holds
//! values and keys only sealed, so its `Debug`, the log, snapshots and followers never see plaintext. Read
//! [`State::apply`] first, then [`State::assignment`], which is least privilege in one function.

mod apply;
mod assignment;
mod audit;
mod audit_head;
mod ca;
mod cluster;
mod command;
mod forward;
mod invariants;
mod keyring;
mod member;
mod node;
mod operator;
mod permit;
mod rejected;
mod resolve;
mod restore;
mod row;
mod scope;
mod secret;
mod service;
mod state;
mod store_keys;
mod task;
mod versions;

pub use apply::{Applied, Outcome};
pub use assignment::Standing;
pub use audit::{AuditRecord, audit};
pub use audit_head::AuditHead;
pub use ca::NewCa;
pub use cluster::{Cluster, FormerCa, KeySeal, SealedKey, TokenRecord, TokenRole, Unconstrained};
pub use command::{
    Actor, ClusterChange, Command, Envelope, GrantRequest, InitCluster, NodeChange, RotateItem,
};
pub use keyring::{NewKey, PlacedValue, ResealItem};
pub use member::{Health, Member, MemberKeys, MembershipStep, RaftMembers};
pub use node::{Availability, Node};
pub use operator::{Operator, Role};
pub use permit::Act;
pub use rejected::{Kind, Rejected};
pub use restore::Restoration;
pub use row::{Row, RowKey};
pub use scope::{Pattern, Scope, ScopeError, Seen};
pub use secret::{SealedValue, Secret, SecretVersion};
pub use service::{Grant, Service, ServiceSpec};
pub use state::State;
pub use store_keys::{
    NewStoreKeys, Renewal, Shred, ShredStanding, StoreDue, StoreKeys, StoreUnder, StoreWritten,
    UnlockSeal,
};
pub use task::{Task, TaskEnd};
pub use versions::Versions;
