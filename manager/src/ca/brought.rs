//! A root CA that an operator brings: its certificate and its key, and whether the cluster can live by them.
//!
//! Depends on wire's rules for roots. Invariant: nothing of the cluster changes before what the root signs was believed,
//! in a trial, by a peer that trusts it alone and by one that trusts only the CA before it.

use keyhole_domain::{ClusterId, NodeId};
use keyhole_secmem::{LockError, SecretBytes};
use keyhole_state::{Cluster, NewCa, State};
use keyhole_wire::tls::certificate::{backdated, leaf_params};
use keyhole_wire::tls::{EXPIRED_GRACE, Role, RootError, check_chain, check_root, key_id};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CaError, issuer, key_pair, new_ca_of};
use crate::clock;
use crate::seal::MemberKey;

/// The bytes that the key's file may have; one of RSA with 8192 bits has 6,400.
const MOST_KEY: usize = 16 << 10;

/// Why a root CA is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BroughtError {
    /// The key's file is something else.
    #[error(
        "the CA's key is no unencrypted PKCS #8 key in PEM ('BEGIN PRIVATE KEY') of ECDSA (P-256, P-384, P-521), Ed25519 or \
         RSA; make it one with 'openssl pkcs8 -topk8 -nodes'"
    )]
    Key,
    /// The key is another certificate's.
    #[error("the CA's key does not belong to the CA's certificate; give the two that do")]
    NotItsKey,
    /// The certificate is no root's, or not a usable one.
    #[error("the CA's certificate can't be the cluster's: {0}")]
    Root(#[from] RootError),
    /// Its key is believed already.
    #[error(
        "the CA's key is that of a root CA which the cluster believes already; bring one with a new key, or see with \
         'keyhole cluster status' until when a former one is believed"
    )]
    Known,
    /// A trial showed that peers refuse what it signs.
    #[error(
        "certificates of this CA would not be believed ({0}); make one without nameConstraints"
    )]
    NotBelieved(rustls::Error),
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// A root CA's certificate (DER) with its key (PKCS #8, DER).
pub(crate) struct BroughtCa {
    certificate: Vec<u8>,
    key: SecretBytes,
}

impl BroughtCa {
    /// Takes the certificate in DER and the key in PEM, if they belong together.
    pub(crate) fn new(certificate: Vec<u8>, key_pem: &SecretBytes) -> Result<Self, BroughtError> {
        if key_pem.len() > MOST_KEY {
            return Err(BroughtError::Key);
        }
        // The parser's copy is in ordinary memory; the zeroing allocator of the daemons wipes it when it is dropped here.
        let der = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_slice());
        let der = der.map_err(|_| BroughtError::Key)?;
        let mut key = SecretBytes::zeroed(der.secret_pkcs8_der().len())?;
        key.as_mut_slice().copy_from_slice(der.secret_pkcs8_der());
        let pair = key_pair(&key).map_err(|_| BroughtError::Key)?;
        let parsed = X509Certificate::from_der(&certificate);
        let (_, parsed) = parsed.map_err(|_| RootError::NotACertificate)?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(BroughtError::NotItsKey);
        }
        Ok(Self { certificate, key })
    }

    /// Certificate and key.
    pub(super) fn pair(&self) -> (&[u8], &SecretBytes) {
        (&self.certificate, &self.key)
    }

    /// It, as the root CA that follows the current one, once all was checked.
    pub(crate) fn follow(
        &self,
        state: &State,
        cluster: &Cluster,
        own: &MemberKey,
    ) -> Result<NewCa, CaError> {
        let now = clock::unix_seconds();
        // As long as the one before is believed, and then for the life of a certificate.
        let until = now + EXPIRED_GRACE.as_secs() + cluster.certificate_seconds;
        check_root(&self.certificate, now..=until).map_err(BroughtError::Root)?;
        let id = key_id(&self.certificate);
        if cluster.roots(clock::now()).iter().any(|root| key_id(root) == id) {
            return Err(BroughtError::Known.into());
        }
        let new = new_ca_of(state, cluster, own, self.pair())?;
        self.try_out(&cluster.id, (&new.former.certificate, &new.former.cross), now)?;
        Ok(new)
    }

    /// A leaf of it, shown to who trusts it alone and to who trusts only the CA before it.
    pub(super) fn try_out(
        &self,
        cluster: &ClusterId,
        (former, cross): (&[u8], &[u8]),
        now: u64,
    ) -> Result<(), CaError> {
        let id = NodeId::from_entropy([0; 16]).to_string();
        let params = leaf_params(cluster, Role::Manager, &id, backdated(now), now + 60)?;
        let issuer = issuer(&self.certificate, &self.key)?;
        let leaf = params.signed_by(&KeyPair::generate()?, &issuer)?;
        for root in [self.certificate.as_slice(), former] {
            let believed = check_chain(leaf.der(), cross, root, now);
            believed.map_err(BroughtError::NotBelieved)?;
        }
        Ok(())
    }
}
