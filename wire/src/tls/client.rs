//! Calling a manager: one connection, made now, with an error that says what to do.
//!
//! Invariant: a [`Channel`] from here never reconnects by itself, so that the exporter returned with
//! it belongs to every call made on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as RustlsError};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::live::danger_unverified_config;
use super::{EXPORTER_LABEL, LiveTls, PeerIdentity, SERVER_NAME, unix_now};
use crate::http2::{self, SpeakError};

/// Bytes that only the two ends of one connection know.
pub type Exporter = [u8; 32];

/// How long the other side may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// To be connected.
    pub connect: Duration,
    /// Until it is asked whether it is still there, when it says nothing.
    pub ask: Duration,
    /// To answer that; then the connection has ended.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { connect: five, ask: five, answer: five }
    }
}

/// Why there is no connection to a manager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address does not resolve.
    #[error("{addr}: {source}; give the address of a manager as HOST:PORT")]
    Address {
        /// The address called.
        addr: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nothing listens there.
    #[error(
        "{addr}: connection refused; is `keyhole manager run` started there, with this --listen address?"
    )]
    Refused {
        /// The address called.
        addr: String,
    },
    /// Nothing answered in time.
    #[error(
        "{addr}: no answer within {} s; check the address, the firewall and that the manager runs",
        .within.as_secs()
    )]
    TimedOut {
        /// The address called.
        addr: String,
        /// How long was waited.
        within: Duration,
    },
    /// The network refused.
    #[error("{addr}: {source}")]
    Network {
        /// The address called.
        addr: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The manager's certificate does not hold at this machine's time.
    #[error(
        "{addr}: the manager's certificate is {state} by this machine's clock; check the clocks of both machines"
    )]
    Clock {
        /// The address called.
        addr: String,
        /// `expired` or `not valid yet`.
        state: &'static str,
    },
    /// The manager's certificate is of a CA that is not trusted.
    #[error(
        "{addr}: the manager's certificate is not signed by this cluster's CA; is it a manager of another cluster?"
    )]
    Foreign {
        /// The address called.
        addr: String,
    },
    /// The certificate is this cluster's, but not a manager's.
    #[error("{addr}: its certificate is not a manager's; give the address of a manager")]
    NotAManager {
        /// The address called.
        addr: String,
    },
    /// The manager refused the certificate of this side.
    #[error("{addr}: the manager refuses this side's certificate: {reason}")]
    OwnCertificate {
        /// The address called.
        addr: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// It speaks something else than TLS 1.3.
    #[error("{addr}: it does not speak TLS 1.3; is it a keyhole manager? ({source})")]
    NotTls {
        /// The address called.
        addr: String,
        /// What TLS said.
        source: RustlsError,
    },
    /// It ended the connection.
    #[error("{addr}: the manager ended the connection: {source}")]
    Closed {
        /// The address called.
        addr: String,
        /// How it ended.
        source: io::Error,
    },
    /// TLS itself could not be set up.
    #[error("{addr}: {source}")]
    Setup {
        /// The address called.
        addr: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Connects to the manager at `addr` (`HOST:PORT`) now, with what `live` says now. The channel ends
/// with its connection; connect again then.
pub async fn connect(addr: &str, live: &LiveTls) -> Result<(Channel, Exporter), ConnectError> {
    let connected = connect_with(addr, live.client_config(), Patience::default()).await;
    connected.map(|(channel, exporter, _)| (channel, exporter))
}

/// One connection to a manager that proved who it is.
#[derive(Debug, Clone)]
pub struct ManagerConnection {
    /// For calls; it ends with the connection.
    pub channel: Channel,
    /// Bytes that only the two ends of this connection know.
    pub exporter: Exporter,
    /// What the manager's certificate says.
    pub manager: PeerIdentity,
}

/// [`connect`], telling also which manager answered.
pub async fn connect_manager(
    addr: &str,
    live: &LiveTls,
    patience: Patience,
) -> Result<ManagerConnection, ConnectError> {
    let (channel, exporter, leaf) = connect_with(addr, live.client_config(), patience).await?;
    let manager =
        PeerIdentity::from_der(&leaf, unix_now()).map_err(|source| setup(addr, source))?;
    Ok(ManagerConnection { channel, exporter, manager })
}

/// Connects without knowing whom to trust, only to fetch the root CA and check it against a join
/// token. Nothing else may be sent or believed on this channel.
pub async fn fetch_unpinned(addr: &str) -> Result<Channel, ConnectError> {
    let config = danger_unverified_config().map_err(|source| setup(addr, source))?;
    connect_with(addr, config, Patience::default()).await.map(|(channel, _, _)| channel)
}

async fn connect_with(
    addr: &str,
    config: Arc<ClientConfig>,
    patience: Patience,
) -> Result<(Channel, Exporter, Vec<u8>), ConnectError> {
    let within = patience.connect;
    match timeout(within, connect_now(addr, config, patience)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(ConnectError::TimedOut { addr: addr.to_owned(), within }),
    }
}

async fn connect_now(
    addr: &str,
    config: Arc<ClientConfig>,
    patience: Patience,
) -> Result<(Channel, Exporter, Vec<u8>), ConnectError> {
    let tcp = dial(addr, patience).await?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|source| setup(addr, source))?;
    let tls = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| explain(addr, error))?;
    let exporter = tls
        .get_ref()
        .1
        .export_keying_material([0; 32], EXPORTER_LABEL, None)
        .map_err(|source| setup(addr, source))?;
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.map(|leaf| leaf.to_vec()).unwrap_or_default();
    let channel = speak_http2(addr, tls, patience).await?;
    Ok((channel, exporter, leaf))
}

async fn dial(addr: &str, patience: Patience) -> Result<TcpStream, ConnectError> {
    let resolved = lookup_host(addr)
        .await
        .map_err(|source| ConnectError::Address { addr: addr.to_owned(), source })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in resolved {
        match TcpStream::connect(candidate).await {
            Ok(tcp) => {
                tcp.set_nodelay(true).map_err(|error| explain(addr, error))?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(match last.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused { addr: addr.to_owned() },
        io::ErrorKind::TimedOut => {
            ConnectError::TimedOut { addr: addr.to_owned(), within: patience.connect }
        }
        io::ErrorKind::NotFound => ConnectError::Address { addr: addr.to_owned(), source: last },
        _ => ConnectError::Network { addr: addr.to_owned(), source: last },
    })
}

/// Starts HTTP/2 and waits for the manager's first bytes: in TLS 1.3 a refusal of our certificate
/// arrives only after the handshake, in their place.
async fn speak_http2(
    addr: &str,
    tls: TlsStream<TcpStream>,
    patience: Patience,
) -> Result<Channel, ConnectError> {
    let endpoint = Endpoint::from_static("http://manager")
        .http2_keep_alive_interval(patience.ask)
        .keep_alive_timeout(patience.answer)
        .keep_alive_while_idle(true);
    http2::speak(endpoint, tls).await.map_err(|error| match error {
        SpeakError::Setup(source) => setup(addr, source),
        SpeakError::Stream(source) => explain(addr, source),
        SpeakError::Silent => ConnectError::Closed { addr: addr.to_owned(), source: ended() },
    })
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection to the manager ended")
}

fn setup(addr: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::Setup { addr: addr.to_owned(), source: source.into() }
}

/// What an error of the stream means, for a person.
fn explain(addr: &str, error: io::Error) -> ConnectError {
    let addr = addr.to_owned();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
        Some(RustlsError::InvalidCertificate(reason)) => explain_certificate(addr, reason),
        Some(RustlsError::AlertReceived(alert)) => explain_alert(addr, *alert),
        Some(other) => ConnectError::NotTls { addr, source: other.clone() },
        None => ConnectError::Closed { addr, source: error },
    }
}

fn explain_certificate(addr: String, reason: &CertificateError) -> ConnectError {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ConnectError::Clock { addr, state: "expired" }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ConnectError::Clock { addr, state: "not valid yet" }
        }
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. } => ConnectError::NotAManager { addr },
        _ => ConnectError::Foreign { addr },
    }
}

fn explain_alert(addr: String, alert: AlertDescription) -> ConnectError {
    let reason = match alert {
        AlertDescription::CertificateExpired => {
            "it is expired for too long or not valid yet by the manager's clock; check the clocks of both machines, or join again"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is not signed by the manager's CA; was this machine joined to another cluster?"
        }
        AlertDescription::CertificateRevoked => "it was revoked; join again",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it is no client certificate of a cluster; join again",
        other => {
            return ConnectError::NotTls { addr, source: RustlsError::AlertReceived(other) };
        }
    };
    ConnectError::OwnCertificate { addr, reason }
}
