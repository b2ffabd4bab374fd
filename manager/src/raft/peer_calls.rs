//! What another manager's calls do here, once it is known that it may call.
//!
//! Depends on the codec of the calls and on openraft. Invariant: only what is meant for this member is done, and what
//! arrives is checked whole before openraft sees any of it.
use super::handle::{ProposeError, RaftHandle};
use super::peer_codec as codec;
use super::snapshot::SnapshotInput;
use super::types::{Command, TypeConfig};
use super::wire::{vote_in, vote_out};
use crate::status::invalid;
use futures::{Stream, StreamExt};
use keyhole_proto::v1;
use openraft::alias::SnapshotOf;
use openraft::errors::{Fatal, RaftError};
use tonic::{Code, Status};

/// The calls; clones are of the same manager.
#[derive(Clone)]
pub struct PeerCalls(RaftHandle);

fn stopped(error: RaftError<TypeConfig>) -> Status {
    Status::unavailable(format!("this manager is stopping: {error}"))
}

fn ended(error: Fatal<TypeConfig>) -> Status {
    Status::unavailable(format!("this manager is stopping: {error}"))
}

/// Why a command or a read was not done, for who asked.
pub(crate) fn unavailable(error: &ProposeError) -> Status {
    let code = match error {
        ProposeError::Unknown { .. } => Code::Unknown,
        // The caller was let in here; that the leader does not take this manager's word is no refusal of the caller.
        ProposeError::Refused { .. }
        | ProposeError::NotLeader { .. }
        | ProposeError::Stopped { .. } => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

impl PeerCalls {
    /// The calls of the manager with this Raft.
    #[must_use]
    pub fn new(replica: RaftHandle) -> Self {
        Self(replica)
    }

    fn meant_for_us(&self, member: u64) -> Result<(), Status> {
        let own = self.0.identity().member;
        match member == own {
            true => Ok(()),
            false => {
                Err(Status::failed_precondition(format!("this is member {own}, not {member}")))
            }
        }
    }

    /// Takes entries, or a heartbeat.
    pub async fn append(&self, request: v1::AppendRequest) -> Result<v1::AppendReply, Status> {
        self.meant_for_us(request.to)?;
        let call = codec::append_in(request).map_err(invalid)?;
        let reply = self.0.raft().append_entries(call).await.map_err(stopped)?;
        Ok(codec::appended_out(reply))
    }

    /// Votes.
    pub async fn vote(&self, request: v1::VoteRequest) -> Result<v1::VoteReply, Status> {
        self.meant_for_us(request.to)?;
        let call = codec::ballot_in(request).map_err(invalid)?;
        let reply = self.0.raft().vote(call).await.map_err(stopped)?;
        Ok(codec::voted_out(&reply))
    }

    /// Says whether it would vote so.
    pub async fn pre_vote(&self, request: v1::VoteRequest) -> Result<v1::VoteReply, Status> {
        self.meant_for_us(request.to)?;
        let call = codec::ballot_in(request).map_err(invalid)?;
        let reply = self.0.raft().pre_vote(call).await.map_err(stopped)?;
        Ok(codec::voted_out(&reply))
    }

    /// Takes a snapshot, once all parts of it came.
    pub async fn install_snapshot(
        &self,
        mut parts: impl Stream<Item = Result<v1::SnapshotPart, Status>> + Unpin,
    ) -> Result<v1::SnapshotReply, Status> {
        use v1::snapshot_part::Part;
        let Some(v1::SnapshotPart { part: Some(Part::Start(start)) }) =
            parts.next().await.transpose()?
        else {
            return Err(invalid("a snapshot begins with its vote"));
        };
        self.meant_for_us(start.to)?;
        let vote = start.vote.ok_or_else(|| invalid("a snapshot without a vote"))?;
        let vote = vote_in(vote).map_err(invalid)?;
        let mut input = SnapshotInput::default();
        while let Some(part) = parts.next().await.transpose()? {
            match part.part {
                Some(Part::Chunk(chunk)) => input.push(chunk).map_err(invalid)?,
                Some(Part::Start(_)) | None => return Err(invalid("a snapshot has one beginning")),
            }
        }
        let (meta, snapshot) = input.finish().map_err(invalid)?;
        tracing::info!(rows = ?meta.last_log_id.map(|id| id.index), "installing a snapshot");
        let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot };
        let reply = self.0.raft().install_full_snapshot(vote, snapshot).await.map_err(ended)?;
        Ok(v1::SnapshotReply { vote: Some(vote_out(&reply.vote)) })
    }

    /// Hears who is to lead. Everybody is told, so that nobody waits for the old leader's lease.
    pub async fn transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> Result<v1::TransferLeaderReply, Status> {
        let call = codec::transfer_in(request).map_err(invalid)?;
        let reply = self.0.raft().handle_transfer_leader(call).await.map_err(ended)?;
        Ok(codec::transferred_out(reply))
    }

    /// Proposes what another manager passed on, if this one leads in this term; its index once it is committed. The
    /// caller has asked the state whether that manager may.
    pub async fn propose(&self, command: Command, term: u64) -> Result<u64, Status> {
        match self.0.propose_here(command, term).await {
            Ok(committed) => Ok(committed.index),
            Err(error @ ProposeError::NotLeader { .. }) => {
                Err(Status::failed_precondition(error.to_string()))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Up to where a read must be applied to see all that was committed before this call, if this manager leads.
    pub async fn read_index(&self) -> Result<u64, Status> {
        let index = self.0.read_index().await;
        index.map_err(|error| Status::failed_precondition(error.to_string()))
    }
}
