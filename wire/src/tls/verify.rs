//! Who is let through a handshake: client certificates with a grace after their end, and the one
//! verifier that lets everybody through.
//!
//! Invariants: what webpki refuses is refused here, except a client's leaf that expired less than
//! [`EXPIRED_GRACE`] ago and was good until then. A client's leaf that names one of the roots is of that root.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::live::root_store;
use super::{EXPIRED_GRACE, PeerIdentity, TlsError, key_id, provider};

/// Lets callers without a certificate in; a certificate that is offered must be good, or expired
/// within the grace.
#[derive(Debug)]
pub(super) struct GraceVerifier {
    /// By any of the roots.
    any: Arc<dyn ClientCertVerifier>,
    /// If there are several: by each alone, with its key's id.
    each: Vec<(Vec<u8>, Arc<dyn ClientCertVerifier>)>,
}

impl GraceVerifier {
    /// `roots` are CA certificates in DER, `store` holds all of them.
    pub(super) fn new(roots: &[Vec<u8>], store: &Arc<RootCertStore>) -> Result<Self, TlsError> {
        let by = |store: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(store), provider()).build()
        };
        let alone = |root: &Vec<u8>| {
            Ok((key_id(root), by(&Arc::new(root_store(std::slice::from_ref(root))?))?))
        };
        let several = roots.len() > 1;
        let each = roots.iter().filter(|_| several).map(alone).collect::<Result<_, TlsError>>()?;
        Ok(Self { any: by(store)?, each })
    }

    /// A leaf that names one of the roots as its authority must be of that one: who has a certificate of a former root is
    /// told by it, and must not choose.
    fn of_authority(&self, peer: &PeerIdentity) -> &dyn ClientCertVerifier {
        let named = self.each.iter().find(|(id, _)| !id.is_empty() && *id == peer.authority);
        named.map_or(&*self.any, |(_, alone)| &**alone)
    }

    /// Whether a chain that was believed at `time`, its leaf first, would be now, but for time.
    pub(super) fn believes(&self, chain: &[CertificateDer<'_>], time: UnixTime) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        self.verify_client_cert(leaf, intermediates, time).is_ok()
    }
}

impl ClientCertVerifier for GraceVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.any.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = PeerIdentity::from_der(leaf, now.as_secs())
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        let inner = self.of_authority(&peer);
        let since_end = now.as_secs().saturating_sub(peer.not_after);
        if !peer.expired || since_end >= EXPIRED_GRACE.as_secs() {
            return inner.verify_client_cert(leaf, intermediates, now);
        }
        // Everything else about it must have been good in its last second.
        let last = UnixTime::since_unix_epoch(Duration::from_secs(peer.not_after));
        inner.verify_client_cert(leaf, intermediates, last)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// Believes any server. Only for fetching a root CA that is then checked against a join token.
#[derive(Debug)]
pub(super) struct DangerUnverified {
    algorithms: WebPkiSupportedAlgorithms,
}

impl DangerUnverified {
    pub(super) fn new() -> Self {
        Self { algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for DangerUnverified {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
