//! Raft: openraft behind our own types, over the encrypted store.
//!
//! Depends on the store, the codec and the pure state. Invariant: openraft's types are never serialised by their own means;
//! what goes to disk or wire is `store.proto`.
//!
//! Read [`handle`] first: it is all that the rest of the manager sees.
pub mod decoders;
mod handle;
mod line;
mod log;
mod machine;
mod membership;
mod offline;
mod outcomes;
mod pace;
mod peer_calls;
mod peer_codec;
mod peer_service;
mod peers;
mod policy;
mod snapshot;
mod types;
mod wire;

pub use handle::{
    Committed, OUT_OF_REACH, Observed, Observer, OnStop, Progress, ProposeError, RaftHandle,
    StartError, StartOptions, Status,
};
pub use line::{Dial, LineError};
pub use log::LogStore;
pub use machine::{Change, StateMachine};
pub use membership::keep_membership;
pub(crate) use offline::{Offline, fill};
pub use peer_calls::PeerCalls;
pub(crate) use peer_calls::unavailable;
pub(crate) use peer_service::PeerApi;
pub(crate) use peers::{MAX_CALL, removed};
pub use peers::{PeerError, PeerLine, Peers};
pub use snapshot::{SnapshotData, SnapshotInput};
pub use types::{Command, Peer, Response, TypeConfig, Vote};
