//! The manager: a shell around the pure state machine that keeps it, replicates it and serves it.
//!
//! Depends on domain, state, proto, wire and secmem. Invariant: plaintext of values is never here but for the moment of
//! re-sealing.

pub mod codec;
pub mod keys;
pub mod raft;
pub mod store;
