//! The two doors of a manager: a TLS port for nodes, and a unix socket for local operators.
//!
//! Depends on tonic and wire's TLS. Invariant: who is at the other end comes from the kernel or from TLS, and is in every
//! request's extensions; what nobody asked for is bounded.

mod socket;

use socket::OpenCount;
pub use socket::{OperatorSocket, SocketError};

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use keyhole_proto::v1::ca_server::CaServer;
use keyhole_proto::v1::dispatch_server::DispatchServer;
use keyhole_proto::v1::operator_server::{Operator, OperatorServer};
use keyhole_proto::v1::peer_server::PeerServer;
use keyhole_wire::format;
use keyhole_wire::tls::{Limits, incoming};
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::{Error, Server};
use tonic::{Request, Status};
use tower::layer::util::{Identity, Stack};

use crate::ca::CaApi;
use crate::dispatch::DispatchApi;
use crate::operator::{LockedApi, OperatorApi};
use crate::raft::{MAX_CALL, PeerApi};

/// Sixteen values of the largest size fit one request.
const MAX_REQUEST: usize = 8 << 20;
const MAX_STREAMS: u32 = 256;
const MAX_HEADERS: u32 = 16 << 10;
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long operators who are connected are waited for when the manager stops.
const LINGER: Duration = Duration::from_millis(300);

/// Why the port can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(source))]
pub struct PortError {
    address: String,
    source: std::io::Error,
}

fn hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, InvalidInput, PermissionDenied};
    match error.kind() {
        AddrInUse => "; another process has this port: stop it, or choose another --listen",
        AddrNotAvailable => "; this machine has no such address: choose another --listen",
        PermissionDenied => "; ports below 1024 are for root: choose another --listen",
        InvalidInput => "; write --listen as HOST:PORT",
        _ => "",
    }
}

/// Takes the port, before anything else is done.
pub async fn bind_port(address: &str) -> Result<(TcpListener, SocketAddr), PortError> {
    let failed = |source| PortError { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What is common to both doors.
fn server() -> Server<Stack<InterceptorLayer<CheckFormat>, Identity>> {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(InterceptorLayer::new(format::check as CheckFormat))
}

type CheckFormat = fn(Request<()>) -> Result<Request<()>, Status>;

/// The services of one manager.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) ca: CaApi,
    pub(crate) dispatch: DispatchApi,
    pub(crate) operator: OperatorApi,
    pub(crate) peer: PeerApi,
}

impl Services {
    fn operator(&self) -> OperatorServer<OperatorApi> {
        OperatorServer::new(self.operator.clone()).max_decoding_message_size(MAX_REQUEST)
    }

    /// Serves the TLS port until `stop`.
    pub(crate) async fn serve_port(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let shell = &self.operator.0;
        let connections = shell.connections.clone();
        let accepted = incoming(listener, shell.tls.clone(), Limits::default(), connections);
        let dispatch = DispatchServer::new(self.dispatch.clone());
        let peer = PeerServer::new(self.peer.clone())
            .max_decoding_message_size(MAX_CALL)
            .max_encoding_message_size(MAX_CALL);
        let ca = CaServer::new(self.ca.clone()).max_decoding_message_size(64 << 10);
        server()
            .add_service(ca)
            .add_service(peer)
            .add_service(dispatch.max_decoding_message_size(1 << 20))
            .add_service(self.operator())
            .serve_with_incoming_shutdown(accepted, stop)
            .await
    }

    /// Serves the operator socket until `stop`; who is connected then may still say what he came for.
    pub(crate) async fn serve_socket(
        self,
        socket: OperatorSocket,
        stop: impl Future<Output = ()> + Clone + Send + 'static,
    ) -> Result<(), Error> {
        serve_socket(self.operator(), socket, stop).await
    }
}

/// Serves the operator socket of a locked manager until it is unlocked.
pub(crate) async fn serve_locked(api: LockedApi, socket: OperatorSocket) -> Result<(), Error> {
    let opened = {
        let api = api.clone();
        async move { api.opened().await }
    };
    serve_socket(OperatorServer::new(api), socket, opened.boxed().shared()).await
}

async fn serve_socket<T: Operator>(
    service: OperatorServer<T>,
    socket: OperatorSocket,
    stop: impl Future<Output = ()> + Clone + Send + 'static,
) -> Result<(), Error> {
    let open = OpenCount::default();
    let accepted = socket.accepted(open.clone(), stop.clone());
    let leaving = async move {
        stop.await;
        // A command line asks more than once on its connection; who lingers is not waited for.
        let _ = tokio::time::timeout(LINGER, open.none()).await;
    };
    server().add_service(service).serve_with_incoming_shutdown(Box::pin(accepted), leaving).await
}
