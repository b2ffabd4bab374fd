//! Accepting connections: a stream of finished handshakes for tonic's `serve_with_incoming`.
//!
//! Invariant: nothing that a caller does or leaves undone holds up another caller's handshake or ends
//! the stream; the stream ends only with its consumer.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConnection;
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::connections::{Presented, Registration};
use super::{Connections, EXPORTER_LABEL, LiveTls, PeerIdentity, unix_now};

/// How long to wait after `accept` failed (EMFILE and the like), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server allows to strangers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// So many handshakes are under way at a time; one more takes the place of the oldest.
    pub handshakes: usize,
    /// So many connections without a certificate are open at a time; one more takes the place of the oldest.
    pub strangers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10), handshakes: 256, strangers: 256 }
    }
}

/// Accepts on `listener` with what `live` says at that moment; lists what it accepts in
/// `connections`.
pub fn incoming(
    listener: TcpListener,
    live: LiveTls,
    limits: Limits,
    connections: Connections,
) -> impl Stream<Item = io::Result<TlsConn>> + Send + Unpin + 'static {
    let (sender, receiver) = mpsc::channel(16);
    let acceptor = Acceptor { live, limits, connections, sender };
    tokio::spawn(acceptor.run(listener));
    ReceiverStream::new(receiver)
}

#[derive(Clone)]
struct Acceptor {
    live: LiveTls,
    limits: Limits,
    connections: Connections,
    sender: mpsc::Sender<io::Result<TlsConn>>,
}

impl Acceptor {
    /// Until nobody takes connections any more.
    async fn run(self, listener: TcpListener) {
        let sender = self.sender.clone();
        tokio::select! {
            () = sender.closed() => {}
            () = self.accept_all(listener) => {}
        }
    }

    async fn accept_all(self, listener: TcpListener) {
        let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((stream, addr)) => {
                    handshakes.retain(|handshake| !handshake.is_finished());
                    // Who connects and says nothing must not keep others out.
                    if handshakes.len() >= self.limits.handshakes.max(1)
                        && let Some(oldest) = handshakes.pop_front()
                    {
                        oldest.abort();
                    }
                    let handshake = tokio::spawn(self.clone().finish(stream, addr));
                    handshakes.push_back(handshake.abort_handle());
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn finish(self, stream: TcpStream, addr: SocketAddr) {
        match timeout(self.limits.handshake_timeout, self.handshake(stream, addr)).await {
            // A failed send means that the server is gone.
            Ok(Ok(conn)) => drop(self.sender.send(Ok(conn)).await),
            Ok(Err(error)) => debug!(%addr, %error, "a handshake failed"),
            Err(_elapsed) => debug!(%addr, "a handshake took too long"),
        }
    }

    async fn handshake(&self, stream: TcpStream, addr: SocketAddr) -> io::Result<TlsConn> {
        stream.set_nodelay(true)?;
        let (config, clients) = self.live.server().map_err(io::Error::other)?;
        let accepted = TlsAcceptor::from(config).accept(stream).into_fallible().await;
        let stream = match accepted {
            Ok(stream) => stream,
            Err((error, stream)) => {
                hear_out(stream).await;
                return Err(error);
            }
        };
        let info = PeerInfo::of(stream.get_ref().1, addr)?;
        let presented = info.presented(stream.get_ref().1);
        let registration = self.connections.register(presented.clone(), self.limits.strangers);
        // Others may be trusted since this began; who looked for strangers then has not seen it.
        let now = self.live.clients();
        if let Some(peer) = presented.filter(|_| !Arc::ptr_eq(&clients, &now))
            && !now.believes(&peer.chain, peer.at)
        {
            return Err(closed());
        }
        Ok(TlsConn { stream: Box::new(stream), info, registration })
    }
}

/// The caller is to read why he was refused: what he sent and nobody read would reset the connection before he does.
async fn hear_out(mut stream: TcpStream) {
    // An error ends it as well, and the handshake's time is all he has.
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}

/// Who is at the other end of a connection; in the extensions of each request on it.
#[derive(Clone)]
pub struct PeerInfo {
    /// Where the peer calls from.
    pub addr: SocketAddr,
    /// What its certificate says; none if it offered none.
    pub identity: Option<PeerIdentity>,
    /// Bytes that only the two ends of this connection know (RFC 8446, section 7.5), to bind seals
    /// to it.
    pub exporter: [u8; 32],
}

impl PeerInfo {
    fn of(connection: &ServerConnection, addr: SocketAddr) -> io::Result<Self> {
        let identity = match connection.peer_certificates().and_then(<[_]>::first) {
            Some(leaf) => Some(PeerIdentity::from_der(leaf, unix_now()).map_err(io::Error::other)?),
            None => None,
        };
        let exporter = connection
            .export_keying_material([0; 32], EXPORTER_LABEL, None)
            .map_err(io::Error::other)?;
        Ok(Self { addr, identity, exporter })
    }

    fn presented(&self, connection: &ServerConnection) -> Option<Arc<Presented>> {
        let chain = connection.peer_certificates()?.to_vec();
        let identity = self.identity.clone()?;
        Some(Arc::new(Presented { identity, chain, at: UnixTime::now() }))
    }
}

impl fmt::Debug for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerInfo")
            .field("addr", &self.addr)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A connection after its handshake.
pub struct TlsConn {
    stream: Box<TlsStream<TcpStream>>,
    info: PeerInfo,
    registration: Registration,
}

impl TlsConn {
    /// Who is at the other end.
    #[must_use]
    pub fn info(&self) -> &PeerInfo {
        &self.info
    }

    /// TLS's own facts about the connection.
    #[must_use]
    pub fn tls(&self) -> &ServerConnection {
        self.stream.get_ref().1
    }
}

impl Connected for TlsConn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "this peer's connections were ended")
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.registration.poll_closed(cx).is_ready() {
            return Poll::Ready(Err(closed()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.registration.is_closed() {
            return Poll::Ready(Err(closed()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.registration.is_closed() {
            return Poll::Ready(Err(closed()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for TlsConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsConn").field(&self.info).finish()
    }
}
