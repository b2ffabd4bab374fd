//! The managers' own calls over the simulated network: their connections, channels, codec and deadlines, without TLS.
//!
//! Invariant: nothing is decided here; a call goes through the code that a manager uses, at both ends.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use keyhole_manager::codec::decode_envelope;
use keyhole_manager::raft::{
    Command, Dial, PeerCalls, PeerLine, Peers, RaftHandle, SnapshotData, TypeConfig, Vote,
};
use keyhole_proto::v1;
use keyhole_proto::v1::peer_server::{Peer, PeerServer};
use keyhole_wire::http2;
use keyhole_wire::tls::{ConnectError, Identity, ManagerConnection, PeerIdentity, Role};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use turmoil::net::{TcpListener, TcpStream};

use crate::cast;

/// As the managers have them.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(5);
const MAX_CALL: usize = 16 << 20;
/// Where managers hear each other.
pub(crate) const PORT: u16 = 7000;

/// Connects over the simulated network; who is there is who has the address.
pub(crate) struct SimDial;

#[tonic::async_trait]
impl Dial for SimDial {
    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }

    async fn dial(&self, address: &str) -> Result<ManagerConnection, ConnectError> {
        let timed_out =
            |_| ConnectError::TimedOut { addr: address.to_owned(), within: CONNECT_TIMEOUT };
        tokio::time::timeout(CONNECT_TIMEOUT, connect(address)).await.map_err(timed_out)?
    }
}

async fn connect(address: &str) -> Result<ManagerConnection, ConnectError> {
    let network = |source| ConnectError::Network { addr: address.to_owned(), source };
    let stream = TcpStream::connect(address).await.map_err(network)?;
    let endpoint = Endpoint::from_static("http://manager")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let channel = http2::speak(endpoint, stream).await;
    let channel = channel.map_err(|error| network(io::Error::other(error.to_string())))?;
    let manager = PeerIdentity {
        cluster: cast::cluster(),
        role: Role::Manager,
        id: cast::at(address),
        serial: String::new(),
        not_before: 0,
        not_after: u64::MAX,
        authority: Vec::new(),
        public_key: [0; 32],
        expired: false,
    };
    Ok(ManagerConnection { channel, exporter: [0; 32], manager })
}

/// The ways to other managers. They differ from a manager's in one thing: a snapshot is read before it is sent, because
/// the thread that would read it meanwhile runs beside the simulation.
pub(crate) struct SimNetwork(pub(crate) Peers);

impl RaftNetworkFactory<TypeConfig> for SimNetwork {
    type Network = SimLine;

    async fn new_client(&mut self, target: u64, node: &keyhole_manager::raft::Peer) -> SimLine {
        SimLine(self.0.new_client(target, node).await)
    }

    async fn new_heartbeat_client(
        &mut self,
        target: u64,
        node: &keyhole_manager::raft::Peer,
    ) -> SimLine {
        SimLine(self.0.new_heartbeat_client(target, node).await)
    }

    async fn new_snapshot_client(
        &mut self,
        target: u64,
        node: &keyhole_manager::raft::Peer,
    ) -> SimLine {
        SimLine(self.0.new_snapshot_client(target, node).await)
    }
}

/// The way to one other manager.
pub(crate) struct SimLine(PeerLine);

impl RaftNetworkV2<TypeConfig> for SimLine {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.0.append_entries(rpc, option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.0.vote(rpc, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.0.pre_vote(rpc, option).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.0.transfer_leader(request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        use v1::snapshot_part::Part;
        let mut parts = vec![Part::Start(self.0.snapshot_start(&vote))];
        let read = snapshot.snapshot.chunks(&snapshot.meta, &mut |chunk| {
            parts.push(Part::Chunk(chunk));
            true
        });
        read.expect("a snapshot can be read");
        let parts = parts.into_iter().map(|part| v1::SnapshotPart { part: Some(part) });
        let sending = self.0.install(futures::stream::iter(parts));
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = sending => Ok(sent?),
        }
    }
}

type Reply<T> = Result<Response<T>, Status>;

/// What other managers call: Raft's calls, and what a manager passes on for its callers.
struct SimPeer {
    calls: PeerCalls,
    replica: RaftHandle,
}

fn not_here() -> Status {
    Status::unimplemented("no part of the simulation")
}

#[tonic::async_trait]
impl Peer for SimPeer {
    type WatchSessionsStream = ReceiverStream<Result<v1::WatchSessionsReply, Status>>;

    async fn append(&self, request: Request<v1::AppendRequest>) -> Reply<v1::AppendReply> {
        self.calls.append(request.into_inner()).await.map(Response::new)
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.calls.vote(request.into_inner()).await.map(Response::new)
    }

    async fn pre_vote(&self, request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        self.calls.pre_vote(request.into_inner()).await.map(Response::new)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Reply<v1::SnapshotReply> {
        self.calls.install_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Reply<v1::TransferLeaderReply> {
        self.calls.transfer_leader(request.into_inner()).await.map(Response::new)
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        // Of whom it comes the certificate would say; here the actor does.
        let v1::ProposeRequest { envelope, proposal, term } = request.into_inner();
        let envelope = envelope.ok_or_else(not_here)?;
        let envelope = decode_envelope(envelope).map_err(|e| Status::internal(e.to_string()))?;
        let from = envelope.via;
        if let Err(why) = self.replica.read(|state| state.admit_forwarded(from, &envelope)) {
            return Ok(Response::new(v1::ProposeReply { index: 0, refused: why.to_string() }));
        }
        let command = Command { envelope: Arc::new(envelope), proposal };
        let index = self.calls.propose(command, term).await?;
        Ok(Response::new(v1::ProposeReply { index, refused: String::new() }))
    }

    async fn read_index(
        &self,
        _request: Request<v1::ReadIndexRequest>,
    ) -> Reply<v1::ReadIndexReply> {
        let index = self.calls.read_index().await?;
        Ok(Response::new(v1::ReadIndexReply { index }))
    }

    async fn progress(&self, _request: Request<v1::ProgressRequest>) -> Reply<v1::ProgressReply> {
        Err(not_here())
    }

    async fn hand_over(&self, _request: Request<v1::HandOverRequest>) -> Reply<v1::HandOverReply> {
        Err(not_here())
    }

    async fn sessions(&self, _request: Request<v1::SessionsRequest>) -> Reply<v1::SessionsReply> {
        Err(not_here())
    }

    async fn watch_sessions(
        &self,
        _request: Request<v1::WatchSessionsRequest>,
    ) -> Reply<Self::WatchSessionsStream> {
        Err(not_here())
    }
}

/// Answers other managers until this host ends.
pub(crate) async fn serve(replica: RaftHandle) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.expect("the port is free");
    let service = SimPeer { calls: PeerCalls::new(replica.clone()), replica };
    let service = PeerServer::new(service)
        .max_decoding_message_size(MAX_CALL)
        .max_encoding_message_size(MAX_CALL);
    let server = tonic::transport::Server::builder().add_service(service);
    server.serve_with_incoming(incoming(listener)).await.expect("the server runs");
}

fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Incoming>> {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Incoming(stream));
        Some((accepted, listener))
    })
}

/// A connection that a manager accepted.
struct Incoming(TcpStream);

impl Connected for Incoming {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
