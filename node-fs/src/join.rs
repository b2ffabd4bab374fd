//! Who this node is: joining the cluster once, keeping the certificate, renewing it in time.
//!
//! DATA/identity (0600, folder 0700) has the certificate, its key, the roots and the managers' addresses;
//! a node that has it needs no token to start again. Depends on wire. Invariant: nothing is sent to a
//! manager but over TLS that was verified against the root that the token pins.

mod renewal;
mod store;

use std::path::{Path, PathBuf};

use keyhole_domain::{ClusterId, NodeId};
use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_wire::tls::certificate::{CertificateError, key_and_csr};
use keyhole_wire::tls::{
    ConnectError, Identity, IdentityError, LiveTls, Role, TlsError, connect, fetch_unpinned,
};
use keyhole_wire::token::{JoinToken, TokenError};
use tonic::Code;
use zeroize::Zeroizing;

pub use renewal::{Renewal, renew_once};
pub use store::{IdentityStore, StoreError};

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is none yet, and nothing to join with.
    #[error(
        "this node has not joined a cluster yet ({} is not there): give --join ADDR and --token-file FILE; `keyhole cluster join-token worker` shows the token", .identity.display()
    )]
    NotJoined {
        /// Where the identity would be.
        identity: PathBuf,
    },
    /// The token's file cannot be read.
    #[error("cannot read the token file {}: {source}", .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What is in it is no token.
    #[error("{}: {source}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TokenError,
    },
    /// The manager's root is not the one the token pins.
    #[error(
        "the manager at {addr} is not of the cluster that the join token is for: its root CA has another digest; check the address, and print the token again ('keyhole cluster join-token'), which changes with the root CA"
    )]
    WrongCluster {
        /// The manager.
        addr: String,
    },
    /// The manager cannot be reached, or does not prove itself.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The manager refused.
    #[error("the manager at {addr} refused to let this node join: {reason}")]
    Refused {
        /// The manager.
        addr: String,
        /// Its reason.
        reason: String,
    },
    /// The manager failed.
    #[error("the manager at {addr} did not answer as it should: {reason}")]
    Failed {
        /// The manager.
        addr: String,
        /// What happened.
        reason: String,
    },
    /// The new certificate does not hold now.
    #[error(
        "the certificate of this node is not valid at this machine's time (it holds from {not_before} to {not_after}, now is {now}, in seconds since 1970): set the clock, on this machine or on the manager"
    )]
    Clock {
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        not_after: u64,
        /// Unix seconds.
        now: u64,
    },
    /// It expired too long ago to be renewed.
    #[error(
        "the certificate of this node expired {days} days ago, and one expired for more than 30 days cannot be renewed: if the clock is right, remove {} and join again with a token", .identity.display()
    )]
    TooOld {
        /// How long ago.
        days: u64,
        /// The file to remove.
        identity: PathBuf,
    },
    /// The reply makes no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is another one's.
    #[error(
        "the certificate that the manager at {addr} issued is not this node's: it is of {found}"
    )]
    NotOurs {
        /// The manager.
        addr: String,
        /// Whose it is.
        found: String,
    },
    /// No key or request could be made.
    #[error(transparent)]
    Request(#[from] CertificateError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinError {
    /// Whether trying again later may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error,
                ConnectError::Refused { .. }
                    | ConnectError::TimedOut { .. }
                    | ConnectError::Network { .. }
                    | ConnectError::Closed { .. }
                    | ConnectError::Address { .. }
            ),
            Self::Failed { .. } => true,
            _ => false,
        }
    }
}

/// Who this node is, and with what it proves it.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The node's id.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// What connections are made with.
    pub tls: LiveTls,
    /// Addresses of managers, from the cluster.
    pub managers: Vec<String>,
}

impl Membership {
    /// The identity that was stored, if there is one.
    pub fn load(store: &IdentityStore) -> Result<Option<Self>, JoinError> {
        let Some(stored) = store.load()? else { return Ok(None) };
        let expired = now().saturating_sub(stored.identity.subject().not_after);
        if expired > keyhole_wire::tls::EXPIRED_GRACE.as_secs() {
            let identity = store.path().to_owned();
            return Err(JoinError::TooOld { days: expired / 86_400, identity });
        }
        let (node, cluster) = subject(&stored.identity)?;
        let tls = LiveTls::new(Some(stored.identity), stored.roots)?;
        Ok(Some(Self { node, cluster, tls, managers: stored.managers }))
    }

    /// Joins by the manager at `addr` and keeps the identity.
    pub async fn join(
        addr: &str,
        token_file: &Path,
        hostname: &str,
        store: &IdentityStore,
    ) -> Result<Self, JoinError> {
        let token = read_token(token_file)?;
        let root = pinned_root(addr, &token).await?;
        let (channel, _) = connect(addr, &LiveTls::new(None, vec![root.clone()])?).await?;
        let (key, csr) = key_and_csr()?;
        let request = v1::JoinRequest {
            token: token.reveal().to_string(),
            csr: csr.into(),
            hostname: hostname.to_owned(),
            ..v1::JoinRequest::default()
        };
        let reply = CaClient::new(channel)
            .join(request)
            .await
            .map_err(|status| refused(addr, &status))?
            .into_inner();
        let issued = Issued::new(addr, reply, key, vec![root])?;
        let (node, cluster) = subject(&issued.identity)?;
        store.save(&issued.identity, &issued.roots, &issued.managers)?;
        let tls = LiveTls::new(Some(issued.identity), issued.roots)?;
        Ok(Self { node, cluster, tls, managers: issued.managers })
    }
}

/// A checked reply of the CA.
struct Issued {
    identity: Identity,
    roots: Vec<Vec<u8>>,
    managers: Vec<String>,
}

impl Issued {
    /// `roots`: to be kept if the reply names none.
    fn new(
        addr: &str,
        reply: v1::Certificate,
        key: keyhole_secmem::SecretBytes,
        roots: Vec<Vec<u8>>,
    ) -> Result<Self, JoinError> {
        let chain = reply.chain.iter().map(|der| der.to_vec()).collect();
        let identity = Identity::new(chain, key)?;
        let found = identity.subject();
        let ours = found.role == Role::Node
            && found.id == reply.id
            && found.cluster.as_str() == reply.cluster;
        if !ours {
            let found = format!("{} {} of cluster {}", found.role.word(), found.id, found.cluster);
            return Err(JoinError::NotOurs { addr: addr.to_owned(), found });
        }
        let (not_before, not_after, now) = (found.not_before, found.not_after, now());
        if now < not_before || now > not_after {
            return Err(JoinError::Clock { not_before, not_after, now });
        }
        let named: Vec<Vec<u8>> = reply.roots.iter().map(|der| der.to_vec()).collect();
        let roots = if named.is_empty() { roots } else { named };
        Ok(Self { identity, roots, managers: reply.managers })
    }
}

fn read_token(path: &Path) -> Result<JoinToken, JoinError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| JoinError::TokenFile { path: path.to_owned(), source })?;
    JoinToken::parse(&Zeroizing::new(text))
        .map_err(|source| JoinError::Token { path: path.to_owned(), source })
}

/// The root CA certificate, believed only because the token has its digest.
async fn pinned_root(addr: &str, token: &JoinToken) -> Result<Vec<u8>, JoinError> {
    let channel = fetch_unpinned(addr).await?;
    let root = CaClient::new(channel)
        .get_root_ca(v1::GetRootCaRequest {})
        .await
        .map_err(|status| failed(addr, &status))?
        .into_inner()
        .certificate;
    match token.pins(&root) {
        true => Ok(root.to_vec()),
        false => Err(JoinError::WrongCluster { addr: addr.to_owned() }),
    }
}

fn subject(identity: &Identity) -> Result<(NodeId, ClusterId), JoinError> {
    let subject = identity.subject();
    let node = subject.id.parse();
    let wrong = |_| JoinError::Identity(keyhole_wire::tls::PeerIdentityError::Id.into());
    Ok((node.map_err(wrong)?, subject.cluster))
}

fn refused(addr: &str, status: &tonic::Status) -> JoinError {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound => {
            JoinError::Refused { addr: addr.to_owned(), reason: status.message().to_owned() }
        }
        _ => failed(addr, status),
    }
}

fn failed(addr: &str, status: &tonic::Status) -> JoinError {
    let reason = format!("{}: {}", status.code(), status.message());
    JoinError::Failed { addr: addr.to_owned(), reason }
}

fn now() -> u64 {
    crate::core::now().0 / 1_000_000_000
}
