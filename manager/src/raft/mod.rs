//! Raft: openraft behind our own types, over the encrypted store.
//!
//! Depends on the store, the codec and the pure state. Invariant: openraft's types are never serialised by their own means;
//! what goes to disk or wire is `store.proto`.
//!
//! Read [`handle`] first: it is all that the rest of the manager sees.
mod handle;
mod log;
mod machine;
mod network;
mod policy;
mod snapshot;
mod types;
mod wire;

pub use handle::{
    Committed, Observer, OnStop, ProposeError, RaftHandle, StartError, StartOptions, Status,
};
pub use log::LogStore;
pub use machine::{Change, StateMachine};
pub use network::{NoPeers, UnreachedPeer};
pub use snapshot::{SnapshotData, SnapshotInput};
pub use types::{Command, Peer, Response, TypeConfig};
