//! The Peer service: what other managers call.
//!
//! Depends on the gate and on what the calls do. Invariant: only a manager that was let in and not removed is heard.
use super::handle::Progress;
use super::types::Command;
use crate::authz::{Action, act};
use crate::codec::decode_envelope;
use crate::elsewhere;
use crate::shell::Shell;
use crate::status::invalid;
use keyhole_proto::v1;
use keyhole_state::Envelope;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Reply<T> = Result<Response<T>, Status>;

/// The service; clones share the manager.
#[derive(Clone)]
pub(crate) struct PeerApi(pub(crate) Arc<Shell>);

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerApi {
    type WatchSessionsStream = ReceiverStream<Result<v1::WatchSessionsReply, Status>>;

    async fn append(&self, request: Request<v1::AppendRequest>) -> Reply<v1::AppendReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        self.0.peer_calls().append(request.into_inner()).await.map(Response::new)
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        self.0.peer_calls().vote(request.into_inner()).await.map(Response::new)
    }

    async fn pre_vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        self.0.peer_calls().pre_vote(request.into_inner()).await.map(Response::new)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Reply<v1::SnapshotReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        self.0.peer_calls().install_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Reply<v1::TransferLeaderReply> {
        self.0.authorize::<act::Raft, _>(&request)?;
        self.0.peer_calls().transfer_leader(request.into_inner()).await.map(Response::new)
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        let by = self.0.authorize::<act::Forward, _>(&request)?;
        let v1::ProposeRequest { envelope, proposal, term } = request.into_inner();
        let envelope = envelope.ok_or_else(|| invalid("no command"))?;
        let from = by.subject().member();
        // Who passes it on is who its certificate says.
        let envelope = Envelope { via: from, ..decode_envelope(envelope).map_err(invalid)? };
        let admit = || self.0.view(&by, |state| state.admit_forwarded(from, &envelope));
        if admit().is_err() {
            // A new leader may not have applied yet what its predecessor has answered.
            self.0.read_index(&by).await?;
        }
        if let Err(reason) = admit() {
            let refused = reason.to_string();
            self.0.audit.refused_forwarded(&envelope, act::Forward::NAME, &refused);
            return Ok(Response::new(v1::ProposeReply { index: 0, refused }));
        }
        let command = Command { envelope: Arc::new(envelope), proposal };
        let index = self.0.propose_forwarded(&by, command, term).await?;
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
        Ok(Response::new(elsewhere::tell(&self.0, request.get_ref())))
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
