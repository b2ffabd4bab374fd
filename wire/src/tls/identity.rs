//! A certificate and its private key. Invariant: they belong together, and the key's bytes are in
//! locked memory.

use std::fmt;
use std::sync::Arc;

use keyhole_secmem::SecretBytes;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::{PeerIdentity, PeerIdentityError, provider, unix_now};

/// Why a certificate and a key make no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is no certificate.
    #[error("the certificate chain is empty")]
    NoCertificate,
    /// The leaf is no certificate of a cluster.
    #[error(transparent)]
    Leaf(#[from] PeerIdentityError),
    /// The key is not usable or belongs to another certificate.
    #[error("the private key does not fit the certificate: {0}")]
    Key(rustls::Error),
}

/// What one process proves itself with.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: SecretBytes,
    certified: Arc<CertifiedKey>,
    subject: PeerIdentity,
}

impl Identity {
    /// `chain` in DER, leaf first; `key` in PKCS #8 DER.
    pub fn new(chain: Vec<Vec<u8>>, key: SecretBytes) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let subject = PeerIdentity::from_der(leaf, unix_now())?;
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        // rustls takes the key's bytes over in ordinary memory and drops them at once; the zeroing
        // allocator of the daemons wipes them then.
        let copy = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_slice().to_vec()));
        let certified =
            CertifiedKey::from_der(chain.clone(), copy, &provider()).map_err(IdentityError::Key)?;
        Ok(Self { chain, key, certified: Arc::new(certified), subject })
    }

    /// What the leaf says; `expired` as of when this was made.
    #[must_use]
    pub fn subject(&self) -> &PeerIdentity {
        &self.subject
    }

    /// The chain in DER, leaf first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// The private key in PKCS #8 DER, for storing it sealed.
    #[must_use]
    pub fn key(&self) -> &SecretBytes {
        &self.key
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("subject", &self.subject).finish_non_exhaustive()
    }
}
