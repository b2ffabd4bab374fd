//! The manager: a shell around the pure state machine that keeps it, replicates it and serves it.
//!
//! Depends on domain, state, proto, wire and secmem. Invariant: plaintext of values is never here but for the moment of
//! re-sealing.

pub mod app;
pub mod audit;
pub mod authz;
pub mod backup;
pub mod ca;
mod clock;
pub mod codec;
mod cut_off;
pub mod dispatch;
mod elsewhere;
pub mod key_place;
pub mod keys;
pub mod listen;
pub mod operator;
pub mod raft;
mod rekey;
pub mod seal;
pub mod sessions;
pub mod shell;
pub mod status;
pub mod store;
mod store_keys;
