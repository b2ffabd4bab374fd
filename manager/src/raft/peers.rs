//! The way to other managers: connections that are kept, and Raft's calls on them.
//!
//! Depends on the lines, the state (for addresses) and openraft's network traits. Invariants: a call goes to the member
//! that it is meant for; a peer that was not reached is reported as unreachable, never as having granted anything.
use super::line::{Callee, Dial, Line, LineError};
use super::machine::Live;
use super::pace::{after, carrying, watched};
use super::peer_codec as codec;
use super::snapshot::SnapshotData;
use super::types::{Command, Peer, TypeConfig, Vote};
use super::wire::{vote_in, vote_out};
use crate::codec::encode_envelope;
use bytes::Bytes;
use futures::Stream;
use keyhole_domain::ClusterId;
use keyhole_proto::v1;
use keyhole_proto::v1::peer_client::PeerClient;
use keyhole_wire::http2;
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use prost::Message;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// The largest call: entries of 2 MiB, or one of the largest size.
pub(crate) const MAX_CALL: usize = 16 << 20;
/// Entries may take longer than a heartbeat: they wait for a disk, and for being carried.
const APPENDING: Duration = Duration::from_secs(2);
/// A forwarded command: the leader may have to wait for a quorum. The way to the leader comes on top.
const PROPOSING: Duration = Duration::from_secs(10);
/// A leader answers from what its followers say within a heartbeat.
const READING: Duration = Duration::from_secs(2);
/// Another service's question. Nobody needs longer but for handing the lead over, which has 3 s.
const ASKED: Duration = Duration::from_secs(5);
/// Chunks of a snapshot on their way.
const CHUNKS: usize = 2;

/// What a connection is for; a long call of one kind holds up no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Entries, and the commands of which the leader makes them.
    Log,
    /// Heartbeats, votes, and questions: what is small and wanted soon.
    Pulse,
    /// Snapshots.
    Snapshot,
}

/// Why a manager did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// This manager has no certificate to call with.
    #[error("{address} is not called: this manager has no certificate yet")]
    Unready {
        /// Where it is.
        address: String,
    },
    /// There is no connection, for all who waited for it.
    #[error(transparent)]
    Line(#[from] Arc<LineError>),
    /// It refused, or the connection ended on the way.
    #[error("{} ({})", .0.message(), .0.code())]
    Status(Status),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// An answer that is not understood.
    #[error(transparent)]
    Content(#[from] io::Error),
}

impl PeerError {
    /// Whether the call certainly had no effect.
    pub(crate) fn not_sent(&self) -> bool {
        match self {
            Self::Unready { .. } | Self::Line(_) => true,
            Self::Status(status) => {
                status.code() == Code::FailedPrecondition || http2::never_sent(status)
            }
            Self::TimedOut(_) | Self::Content(_) => false,
        }
    }
}

/// The connections to all other managers. Clones share them.
#[derive(Clone, Default)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// None before [`Peers::open`]; no connection is made until then.
    ways: OnceLock<Ways>,
    lines: Mutex<BTreeMap<(u64, Lane), Arc<Line>>>,
    removed: watch::Sender<Option<String>>,
}

/// What a call needs.
struct Ways {
    cluster: ClusterId,
    live: Live,
    dial: Arc<dyn Dial>,
}

impl Peers {
    /// From now on calls are made, on connections that `dial` makes.
    pub(super) fn open(&self, cluster: ClusterId, live: Live, dial: Arc<dyn Dial>) {
        // The second time would be with the same ones.
        let _ = self.inner.ways.set(Ways { cluster, live, dial });
    }

    /// Why this manager is no member any more, once another one has said so.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<Option<String>> {
        self.inner.removed.subscribe()
    }

    /// Asks the leader of a term to propose a command.
    pub(crate) async fn propose(
        &self,
        leader: (u64, &Peer),
        command: &Command,
        term: u64,
    ) -> Result<v1::ProposeReply, PeerError> {
        let envelope = Some(encode_envelope(&command.envelope));
        let request = v1::ProposeRequest { envelope, proposal: command.proposal, term };
        let limit = after(carrying(PROPOSING, request.encoded_len()));
        let call = |mut client: PeerClient<Channel>| async move { client.propose(request).await };
        self.call(leader, Lane::Log, limit, call).await
    }

    /// Asks the leader up to where a read must be applied.
    pub(crate) async fn read_index(&self, leader: u64, peer: &Peer) -> Result<u64, PeerError> {
        let call = |mut client: PeerClient<Channel>| async move {
            client.read_index(v1::ReadIndexRequest {}).await
        };
        Ok(self.call((leader, peer), Lane::Pulse, after(READING), call).await?.index)
    }

    /// Asks a manager another service's question; once more if the kept connection turns out to be dead.
    pub(crate) async fn ask<R, F>(
        &self,
        (member, peer): (u64, &Peer),
        question: impl Fn(PeerClient<Channel>) -> F,
    ) -> Result<R, PeerError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut again = true;
        loop {
            let line = self.line((member, peer), Lane::Pulse)?;
            let answer = line.ask(after(ASKED), &question).await;
            self.heed(&line, &answer);
            match answer {
                Err(PeerError::Status(status))
                    if http2::never_sent(&status) && std::mem::take(&mut again) => {}
                answer => return answer,
            }
        }
    }

    async fn call<R, F>(
        &self,
        (member, peer): (u64, &Peer),
        lane: Lane,
        limit: impl Future<Output = Duration>,
        call: impl FnOnce(PeerClient<Channel>) -> F,
    ) -> Result<R, PeerError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let line = self.line((member, peer), lane)?;
        let answer = line.ask(limit, call).await;
        self.heed(&line, &answer);
        answer
    }

    /// The kept connection, or a new one.
    fn line(&self, (member, peer): (u64, &Peer), lane: Lane) -> Result<Arc<Line>, PeerError> {
        let Some(Ways { cluster, live, dial }) = self.inner.ways.get() else {
            return Err(PeerError::Unready { address: peer.address.clone() });
        };
        // What an operator or the manager itself changed counts, not what it joined with.
        let known = live.state().members().get(&member).map(|member| member.address.clone());
        let address = known.unwrap_or_else(|| peer.address.clone());
        let mut lines = self.lines();
        let kept = lines.get(&(member, lane));
        if let Some(line) = kept.filter(|line| line.leads(&address, dial.identity().as_ref())) {
            return Ok(line.clone());
        }
        let callee = Callee { cluster: *cluster, name: peer.name.clone(), address };
        let line = Arc::new(Line::open(dial.clone(), callee));
        lines.insert((member, lane), line.clone());
        Ok(line)
    }

    /// Gives a connection up that may be dead without knowing it. A call that ran out of time does not say so much.
    fn heed<R>(&self, line: &Arc<Line>, answer: &Result<R, PeerError>) {
        let over = match answer {
            Ok(_) => false,
            Err(PeerError::TimedOut(_)) => line.is_silent(),
            Err(PeerError::Status(status)) => {
                !matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument)
            }
            Err(_) => true,
        };
        if over {
            // Another one may have taken its place.
            self.lines().retain(|_, kept| !Arc::ptr_eq(kept, line));
        }
        if let Err(PeerError::Status(status)) = answer
            && is_removal(status)
        {
            self.inner.removed.send_replace(Some(status.message().to_owned()));
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<(u64, Lane), Arc<Line>>> {
        self.inner.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells a removal from any other refusal.
const REMOVED: &[u8] = b"removed";

/// The refusal of a manager that was removed, which is for good.
pub(crate) fn removed(why: String) -> Status {
    Status::with_details(Code::PermissionDenied, why, Bytes::from_static(REMOVED))
}

fn is_removal(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.details() == REMOVED
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = PeerLine;

    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerLine {
        PeerLine { peers: self.clone(), target, node: node.clone(), lane: Lane::Log }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> PeerLine {
        PeerLine { peers: self.clone(), target, node: node.clone(), lane: Lane::Pulse }
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> PeerLine {
        PeerLine { peers: self.clone(), target, node: node.clone(), lane: Lane::Snapshot }
    }
}

/// The way to one other manager, as openraft uses it.
pub struct PeerLine {
    peers: Peers,
    target: u64,
    node: Peer,
    lane: Lane,
}

impl PeerLine {
    /// What a snapshot's parts begin with.
    #[must_use]
    pub fn snapshot_start(&self, vote: &Vote) -> v1::SnapshotStart {
        v1::SnapshotStart { to: self.target, vote: Some(vote_out(vote)) }
    }

    /// Sends the parts of a snapshot, and waits until it is installed, for as long as it goes on.
    pub async fn install(
        &self,
        parts: impl Stream<Item = v1::SnapshotPart> + Send + 'static,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (parts, standstill) = watched(parts);
        let call =
            |mut client: PeerClient<Channel>| async move { client.install_snapshot(parts).await };
        let understand = |reply: v1::SnapshotReply| {
            let vote = reply.vote.ok_or_else(|| io::Error::other("an answer without a vote"))?;
            Ok(SnapshotResponse::new(vote_in(vote)?))
        };
        self.call((self.lane, standstill), call, understand).await
    }

    async fn call<R, T, F>(
        &self,
        (lane, limit): (Lane, impl Future<Output = Duration>),
        call: impl FnOnce(PeerClient<Channel>) -> F,
        understand: impl FnOnce(R) -> io::Result<T>,
    ) -> Result<T, RPCError<TypeConfig>>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let answer = self.peers.call((self.target, &self.node), lane, limit, call).await;
        let understood = answer.and_then(|answer| Ok(understand(answer)?));
        understood.map_err(|error| {
            tracing::debug!(member = self.target, address = %self.node.address, %error, "not reached");
            Unreachable::new(&error).into()
        })
    }
}

impl RaftNetworkV2<TypeConfig> for PeerLine {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = codec::append_out(self.target, rpc);
        let within = match request.entries.is_empty() {
            true => option.soft_ttl(),
            false => carrying(APPENDING, request.encoded_len()),
        };
        let call = |mut client: PeerClient<Channel>| async move { client.append(request).await };
        self.call((self.lane, after(within)), call, codec::appended_in).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = codec::ballot_out(self.target, &rpc);
        let call = |mut client: PeerClient<Channel>| async move { client.vote(request).await };
        self.call((Lane::Pulse, after(option.soft_ttl())), call, codec::voted_in).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = codec::ballot_out(self.target, &rpc);
        let call = |mut client: PeerClient<Channel>| async move { client.pre_vote(request).await };
        self.call((Lane::Pulse, after(option.soft_ttl())), call, codec::voted_in).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = codec::transfer_out(&request);
        let call =
            |mut client: PeerClient<Channel>| async move { client.transfer_leader(request).await };
        self.call((Lane::Pulse, after(option.soft_ttl())), call, codec::transferred_in).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (sender, parts) = mpsc::channel(CHUNKS);
        let start = self.snapshot_start(&vote);
        // Reads a database: not for the threads that everything else runs on.
        let reading = tokio::task::spawn_blocking(move || send_parts(start, &snapshot, &sender));
        let sending = self.install(ReceiverStream::new(parts));
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = sending => sent,
        };
        match reading.await {
            Ok(Err(error)) => Err(Unreachable::new(&error).into()),
            Ok(Ok(())) | Err(_) => Ok(sent?),
        }
    }
}

/// Stops early, without an error, when nobody takes the parts any more.
fn send_parts(
    start: v1::SnapshotStart,
    snapshot: &SnapshotOf<TypeConfig, SnapshotData>,
    to: &mpsc::Sender<v1::SnapshotPart>,
) -> io::Result<()> {
    use v1::snapshot_part::Part;
    let send = |part| to.blocking_send(v1::SnapshotPart { part: Some(part) }).is_ok();
    if !send(Part::Start(start)) {
        return Ok(());
    }
    snapshot.snapshot.chunks(&snapshot.meta, &mut |chunk| send(Part::Chunk(chunk)))
}

#[cfg(test)]
mod tests;
