//! Where the manager is (`--host`) and where the node is (`--node-socket`), and connecting to them.
//!
//! A connection is made at once and once: what goes wrong names the address and the mend.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use keyhole_proto::v1;
use keyhole_proto::v1::control_client::ControlClient;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_wire::http2::{self, SpeakError};
use keyhole_wire::tls::{self, ConnectError, Exporter, LiveTls};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;

/// Where the manager's socket is unless told otherwise.
pub(crate) const MANAGER_SOCKET: &str = "/run/keyhole/manager.sock";
/// The same as one writes it after `--host`.
pub(crate) const MANAGER_HOST: &str = "unix:///run/keyhole/manager.sock";
/// Where the node's socket is unless told otherwise.
pub(crate) const NODE_SOCKET: &str = "/run/keyhole/node.sock";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take; a quorum that cannot be reached is reported sooner by the manager itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the manager is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// Its socket on this machine.
    Unix(PathBuf),
    /// Its port, with an operator's certificate.
    Tcp(String),
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path {
                "" => {
                    Err(format!("{text:?} names no socket; write unix:///run/keyhole/manager.sock"))
                }
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            return match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
                Some(port) if port > 0 => Ok(Self::Tcp(address.to_owned())),
                _ => Err(format!("{text:?} needs a host and a port: tcp://HOST:PORT")),
            };
        }
        Err(format!("{text:?} is neither unix:///PATH nor tcp://HOST:PORT"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// A channel to the manager at a unix socket.
pub(crate) async fn manager_over_unix(path: &Path) -> Result<Channel, Failure> {
    unix(path, ANSWER_TIMEOUT).await.map_err(|error| {
        let mend = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "run this as root or as a member of the group keyhole"
            }
            _ => "is it running? set --host or KEYHOLE_HOST if it is elsewhere",
        };
        Failure::new(format!(
            "cannot reach the manager at unix://{}: {}; {mend}",
            path.display(),
            plain(&error)
        ))
    })
}

/// Why a manager is not the one to ask.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// There is no connection to it.
    Connect(ConnectError),
    /// It serves nobody at the moment, in its own words.
    Cannot(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Cannot(why) => f.write_str(why),
        }
    }
}

/// A manager that serves.
pub(crate) struct Serving {
    /// To it.
    pub(crate) channel: Channel,
    /// Of the connection.
    pub(crate) exporter: Exporter,
    /// Where it says that managers are; nothing, if it is too old to say.
    pub(crate) managers: Vec<String>,
}

/// The first of several managers that serves, tried in turn: each next one when the one before has failed, or has said
/// nothing for a moment. If none does, what each said.
pub(crate) async fn manager_over_tls(
    addresses: &[String],
    live: &LiveTls,
) -> Result<Serving, Vec<Unfit>> {
    const HEAD_START: Duration = Duration::from_millis(300);
    let (mut trying, mut failed) = (JoinSet::new(), Vec::new());
    let mut next = addresses.iter().cloned();
    loop {
        if let Some(address) = next.next() {
            trying.spawn(serving(address, live.clone()));
        }
        tokio::select! {
            done = trying.join_next() => match done {
                Some(Ok(Ok(serving))) => return Ok(serving),
                Some(Ok(Err(error))) => failed.push(error),
                Some(Err(_)) => {}
                None => return Err(failed),
            },
            () = sleep(HEAD_START), if next.len() > 0 => {}
        }
    }
}

/// Connects, and makes a call that every role may make and that changes nothing: a manager that is cut off from the others,
/// was demoted or is joining still refuses it as it would any other, before anything is asked that must not be asked twice.
async fn serving(address: String, live: LiveTls) -> Result<Serving, Unfit> {
    let (channel, exporter) = tls::connect(&address, &live).await.map_err(Unfit::Connect)?;
    let request = v1::FindManagersRequest {};
    match OperatorClient::new(channel.clone()).find_managers(request).await {
        Err(status) if status.code() == Code::Unavailable || status.source().is_some() => {
            Err(Unfit::Cannot(format!("{address}: {}", Failure::from(status))))
        }
        // Any other refusal the request itself will meet, too.
        answer => {
            let managers = answer.map_or(Vec::new(), |found| found.into_inner().managers);
            Ok(Serving { channel, exporter, managers })
        }
    }
}

/// A client of the node at a unix socket.
pub(crate) async fn node(path: &Path) -> Result<ControlClient<Channel>, Failure> {
    node_for(path, Duration::ZERO).await
}

/// A client of the node for a request that may take `wait` longer than others.
pub(crate) async fn node_for(
    path: &Path,
    wait: Duration,
) -> Result<ControlClient<Channel>, Failure> {
    let patience = ANSWER_TIMEOUT.saturating_add(wait);
    let channel = unix(path, patience).await.map_err(|error| {
        let mend = match error.kind() {
            io::ErrorKind::PermissionDenied => "run this as root",
            _ => "is 'keyhole node run' running? set --node-socket or KEYHOLE_NODE_SOCKET if it is elsewhere",
        };
        Failure::new(format!(
            "cannot reach the node at {}: {}; {mend}",
            path.display(),
            plain(&error)
        ))
    })?;
    Ok(ControlClient::new(channel))
}

/// The connection is made here, so that its error is the operating system's own.
async fn unix(path: &Path, patience: Duration) -> io::Result<Channel> {
    let stream =
        timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await.map_err(|_| silence())??;
    let endpoint = Endpoint::from_static("http://keyhole.invalid").timeout(patience);
    let spoken = timeout(CONNECT_TIMEOUT, http2::speak(endpoint, stream)).await;
    spoken.map_err(|_| silence())?.map_err(|error| match error {
        SpeakError::Stream(error) => error,
        other => io::Error::other(other),
    })
}

fn silence() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 seconds")
}

/// "No such file or directory", without the number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_sockets_or_ports() {
        let unix: Host = MANAGER_HOST.parse().unwrap();
        assert_eq!(unix, Host::Unix("/run/keyhole/manager.sock".into()));
        assert_eq!(unix.to_string(), MANAGER_HOST);
        let tcp: Host = "tcp://[::1]:4333".parse().unwrap();
        assert_eq!(tcp, Host::Tcp("[::1]:4333".into()));
        for text in [
            "",
            "unix://",
            "tcp://",
            "tcp://host",
            "tcp://:1",
            "tcp://h:0",
            "tcp://h:x",
            "http://h:1",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_the_mend() {
        let path = Path::new("/nonexistent/manager.sock");
        let error = manager_over_unix(path).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot reach the manager at unix:///nonexistent/manager.sock: No such file or directory; is it \
             running? set --host or KEYHOLE_HOST if it is elsewhere"
        );
        let error = node(path).await.unwrap_err().to_string();
        assert!(error.contains("KEYHOLE_NODE_SOCKET"), "{error}");
    }
}
