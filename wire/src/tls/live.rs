//! The identity and roots that a process uses now; both change without a restart.
//!
//! Invariant: a configuration handed out is complete (every root parsed, key and certificate fit);
//! a change that fails leaves the old one in place.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use super::verify::{DangerUnverified, GraceVerifier};
use super::{ALPN, Identity, provider};

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// No root CA was given.
    #[error("no root CA certificate to trust")]
    NoRoots,
    /// A root CA does not parse.
    #[error("root CA certificate {} is unusable: {source}", index + 1)]
    BadRoot {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A server needs a certificate.
    #[error("no certificate to serve with yet")]
    NoIdentity,
    /// The library refused.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
    /// The library refused the roots.
    #[error("cannot set up TLS: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// TLS as it is configured now. Clones share it; each new connection uses the latest.
#[derive(Clone)]
pub struct LiveTls {
    shared: Arc<Shared>,
}

struct Shared {
    current: ArcSwap<Current>,
    changing: Mutex<()>,
}

struct Current {
    identity: Option<Arc<Identity>>,
    trust: Arc<Trust>,
    server: Option<Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
}

/// Whom this side believes.
struct Trust {
    roots: Vec<Vec<u8>>,
    store: Arc<RootCertStore>,
    clients: Arc<GraceVerifier>,
}

impl Trust {
    fn new(roots: Vec<Vec<u8>>) -> Result<Arc<Self>, TlsError> {
        let store = Arc::new(root_store(&roots)?);
        let clients = Arc::new(GraceVerifier::new(&roots, &store)?);
        Ok(Arc::new(Self { roots, store, clients }))
    }
}

impl LiveTls {
    /// `roots` are CA certificates in DER; without an identity this side can only call.
    pub fn new(identity: Option<Identity>, roots: Vec<Vec<u8>>) -> Result<Self, TlsError> {
        let current = Current::new(identity.map(Arc::new), Trust::new(roots)?)?;
        let shared = Shared { current: ArcSwap::from_pointee(current), changing: Mutex::new(()) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Uses `identity` for all connections from now on; live ones keep theirs.
    pub fn set_identity(&self, identity: Identity) -> Result<(), TlsError> {
        self.change(|now| Current::new(Some(Arc::new(identity)), Arc::clone(&now.trust)))
    }

    /// Trusts `roots` (DER), and no others, for all connections from now on.
    pub fn set_roots(&self, roots: Vec<Vec<u8>>) -> Result<(), TlsError> {
        self.change(|now| Current::new(now.identity.clone(), Trust::new(roots)?))
    }

    /// The identity now.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.shared.current.load().identity.clone()
    }

    /// The roots now, in DER.
    #[must_use]
    pub fn roots(&self) -> Vec<Vec<u8>> {
        self.shared.current.load().trust.roots.clone()
    }

    /// What a new connection is accepted with.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.shared.current.load().server.clone().ok_or(TlsError::NoIdentity)
    }

    /// The same, and by whom its caller is judged.
    pub(super) fn server(&self) -> Result<(Arc<ServerConfig>, Arc<GraceVerifier>), TlsError> {
        let current = self.shared.current.load();
        let server = current.server.clone().ok_or(TlsError::NoIdentity)?;
        Ok((server, Arc::clone(&current.trust.clients)))
    }

    /// By whom callers are judged now.
    pub(super) fn clients(&self) -> Arc<GraceVerifier> {
        Arc::clone(&self.shared.current.load().trust.clients)
    }

    /// What a new connection is made with.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.shared.current.load().client)
    }

    fn change(
        &self,
        next: impl FnOnce(&Current) -> Result<Current, TlsError>,
    ) -> Result<(), TlsError> {
        let _one_at_a_time = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next(&self.shared.current.load())?;
        self.shared.current.store(Arc::new(next));
        Ok(())
    }
}

impl fmt::Debug for LiveTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveTls").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl Current {
    fn new(identity: Option<Arc<Identity>>, trust: Arc<Trust>) -> Result<Self, TlsError> {
        let server = match &identity {
            Some(identity) => Some(Arc::new(server_config(identity, &trust.clients)?)),
            None => None,
        };
        let client = Arc::new(client_config(identity.as_deref(), &trust.store)?);
        Ok(Self { identity, trust, server, client })
    }
}

pub(super) fn root_store(roots: &[Vec<u8>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        store
            .add(CertificateDer::from(root.as_slice()))
            .map_err(|source| TlsError::BadRoot { index, source })?;
    }
    if store.is_empty() { Err(TlsError::NoRoots) } else { Ok(store) }
}

fn server_config(
    identity: &Identity,
    clients: &Arc<GraceVerifier>,
) -> Result<ServerConfig, TlsError> {
    let clients: Arc<dyn ClientCertVerifier> = clients.clone();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    identity: Option<&Identity>,
    roots: &Arc<RootCertStore>,
) -> Result<ClientConfig, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_webpki_verifier(verifier);
    Ok(finished(match identity {
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()))),
        None => builder.with_no_client_auth(),
    }))
}

/// A configuration that believes any server; see [`DangerUnverified`].
pub(super) fn danger_unverified_config() -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DangerUnverified::new()))
        .with_no_client_auth();
    Ok(Arc::new(finished(config)))
}

fn finished(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}
