//! The Peer service: what other managers call.
//!
//! Depends on the gate and on openraft. Invariant: only a manager that was let in and not removed is heard, and only
//! with what is meant for this member.
use super::handle::Progress;
use super::peer_codec as codec;
use super::snapshot::SnapshotInput;
use super::wire::{vote_in, vote_out};
use crate::authz::{Action, act};
use crate::codec::decode_envelope;
use crate::elsewhere;
use crate::shell::Shell;
use crate::status::invalid;
use keyhole_proto::v1;
use openraft::alias::SnapshotOf;
use openraft::errors::{Fatal, RaftError};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Reply<T> = Result<Response<T>, Status>;

/// The service; clones share the manager.
#[derive(Clone)]
pub(crate) struct PeerApi(pub(crate) Arc<Shell>);

impl PeerApi {
    fn meant_for_us(&self, member: u64) -> Result<(), Status> {
        match member == self.0.own.member {
            true => Ok(()),
            false => Err(Status::failed_precondition(format!(
                "this is member {}, not {member}",
                self.0.own.member
            ))),
        }
    }
}

fn stopped(error: RaftError<super::TypeConfig>) -> Status {
    Status::unavailable(format!("this manager is stopping: {error}"))
}

fn ended(error: Fatal<super::TypeConfig>) -> Status {
    Status::unavailable(format!("this manager is stopping: {error}"))
}

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerApi {
    type WatchSessionsStream = ReceiverStream<Result<v1::WatchSessionsReply, Status>>;

    async fn append(&self, request: Request<v1::AppendRequest>) -> Reply<v1::AppendReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        let request = request.into_inner();
        self.meant_for_us(request.to)?;
        let call = codec::append_in(request).map_err(invalid)?;
        let reply = self.0.raft().append_entries(call).await.map_err(stopped)?;
        Ok(Response::new(codec::appended_out(reply)))
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        let request = request.into_inner();
        self.meant_for_us(request.to)?;
        let call = codec::ballot_in(request).map_err(invalid)?;
        let reply = self.0.raft().vote(call).await.map_err(stopped)?;
        Ok(Response::new(codec::voted_out(&reply)))
    }

    async fn pre_vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        let request = request.into_inner();
        self.meant_for_us(request.to)?;
        let call = codec::ballot_in(request).map_err(invalid)?;
        let reply = self.0.raft().pre_vote(call).await.map_err(stopped)?;
        Ok(Response::new(codec::voted_out(&reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Reply<v1::SnapshotReply> {
        use v1::snapshot_part::Part;
        self.0.authorize::<act::Raft, _>(&request)?;
        let mut parts = request.into_inner();
        let Some(v1::SnapshotPart { part: Some(Part::Start(start)) }) = parts.message().await?
        else {
            return Err(invalid("a snapshot begins with its vote"));
        };
        self.meant_for_us(start.to)?;
        let vote = start.vote.ok_or_else(|| invalid("a snapshot without a vote"))?;
        let vote = vote_in(vote).map_err(invalid)?;
        let mut input = SnapshotInput::default();
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Chunk(chunk)) => input.push(chunk).map_err(invalid)?,
                Some(Part::Start(_)) | None => return Err(invalid("a snapshot has one beginning")),
            }
        }
        let (meta, snapshot) = input.finish().map_err(invalid)?;
        tracing::info!(rows = ?meta.last_log_id.map(|id| id.index), "installing a snapshot");
        let snapshot = SnapshotOf::<super::TypeConfig, _> { meta, snapshot };
        let reply = self.0.raft().install_full_snapshot(vote, snapshot).await.map_err(ended)?;
        Ok(Response::new(v1::SnapshotReply { vote: Some(vote_out(&reply.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Reply<v1::TransferLeaderReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        // Everybody is told who is to lead, so that nobody waits for the old leader's lease.
        let request = request.into_inner();
        let call = codec::transfer_in(request).map_err(invalid)?;
        let reply = self.0.raft().handle_transfer_leader(call).await.map_err(ended)?;
        Ok(Response::new(codec::transferred_out(reply)))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        let by = self.0.authorize::<act::Forward, _>(&request)?;
        let envelope = request.into_inner().envelope.ok_or_else(|| invalid("no command"))?;
        let envelope = decode_envelope(envelope).map_err(invalid)?;
        let from = by.subject().member();
        if let Err(reason) = self.0.view(&by, |state| state.admit_forwarded(from, &envelope)) {
            let refused = reason.to_string();
            self.0.audit.refused_actor(&envelope.actor, act::Forward::NAME, &refused);
            return Ok(Response::new(v1::ProposeReply { index: 0, refused }));
        }
        let index = self.0.propose_forwarded(&by, envelope).await?;
        Ok(Response::new(v1::ProposeReply { index, refused: String::new() }))
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Reply<v1::ReadIndexReply> {
        let by = self.0.authorize::<act::Forward, _>(&request)?;
        let index = self.0.read_index(&by).await?;
        Ok(Response::new(v1::ReadIndexReply { index }))
    }

    async fn progress(&self, request: Request<v1::ProgressRequest>) -> Reply<v1::ProgressReply> {
        let by = self.0.authorize::<act::Forward, _>(&request)?;
        let status = self.0.replica_status(&by);
        if !status.is_leader {
            return Err(Status::failed_precondition("this manager does not lead"));
        }
        let progress = |(member, progress): (u64, Progress)| v1::MemberProgress {
            member,
            matched: progress.matched,
            silent_millis: progress.silent.map(|silent| silent.as_millis() as u64),
        };
        let members = status.others.into_iter().map(progress).collect();
        Ok(Response::new(v1::ProgressReply { last_log: status.last_log, members }))
    }

    async fn hand_over(&self, request: Request<v1::HandOverRequest>) -> Reply<v1::HandOverReply> {
        self.0.authorize::<act::Forward, _>(&request)?;
        let to = self.0.hand_over_here(request.into_inner().to).await;
        let to = to.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::HandOverReply { to }))
    }

    async fn sessions(&self, request: Request<v1::SessionsRequest>) -> Reply<v1::SessionsReply> {
        self.0.authorize::<act::Forward, _>(&request)?;
        Ok(Response::new(elsewhere::tell(&self.0.sessions, request.get_ref())))
    }

    async fn watch_sessions(
        &self,
        request: Request<v1::WatchSessionsRequest>,
    ) -> Reply<Self::WatchSessionsStream> {
        self.0.authorize::<act::Forward, _>(&request)?;
        let sessions = self.0.sessions.clone();
        Ok(Response::new(elsewhere::tell_progress(sessions, request.get_ref())))
    }
}
