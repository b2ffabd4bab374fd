//! Raft: openraft behind our own types, over the encrypted store.
//!
//! Depends on the store, the codec and the pure state. Invariant: openraft's types are never serialised by their own means;
//! what goes to disk or wire is `store.proto`.
//!
//! Read [`handle`] first: it is all that the rest of the manager sees.
mod handle;
mod log;
mod machine;
mod membership;
mod offline;
mod peer_codec;
mod peer_service;
mod peers;
mod policy;
mod snapshot;
mod types;
mod wire;

pub use handle::{
    Committed, OUT_OF_REACH, Observer, OnStop, Progress, ProposeError, RaftHandle, StartError,
    StartOptions, Status,
};
pub use log::LogStore;
pub use machine::{Change, StateMachine};
pub(crate) use membership::keep_membership;
pub(crate) use offline::{Offline, fill};
pub(crate) use peer_service::PeerApi;
pub(crate) use peers::{MAX_CALL, removed};
pub use peers::{PeerError, Peers};
pub use snapshot::{SnapshotData, SnapshotInput};
pub use types::{Command, Peer, Response, TypeConfig};
