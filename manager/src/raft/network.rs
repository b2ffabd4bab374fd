//! The way to other managers. For a cluster of one there is none, and it says so.
//!
//! Depends on openraft's network traits. Invariant: a peer that was not reached is reported as unreachable, never as
//! having granted anything. [`super::RaftHandle::start`] takes any factory, so a transport takes this one's place.
use super::snapshot::SnapshotData;
use super::types::{Peer, TypeConfig, Vote};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use std::future::Future;

/// Reaches no other manager.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

/// A manager that this one has no way to.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "manager {member} ({name}) at {address} cannot be reached: this manager runs alone, without a transport to others"
)]
pub struct UnreachedPeer {
    member: u64,
    name: String,
    address: String,
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = UnreachedPeer;

    async fn new_client(&mut self, target: u64, node: &Peer) -> UnreachedPeer {
        UnreachedPeer { member: target, name: node.name.clone(), address: node.address.clone() }
    }
}

impl RaftNetworkV2<TypeConfig> for UnreachedPeer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(Unreachable::new(self).into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(Unreachable::new(self).into())
    }

    /// openraft's default would grant it unasked.
    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(Unreachable::new(self).into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(Unreachable::new(self).into())
    }
}
