//! The cluster's CA: its root, made here or brought by an operator, the leaves that it issues, join tokens.
//!
//! Depends on rcgen, wire's certificate shapes and the keyring. Invariant: a leaf's id and role come from a join token or
//! from the replicated state; a request contributes only its public key. The root's private key is open only while it
//! signs.

mod brought;
pub mod decoders;
pub(crate) mod kept;
mod own;
mod roots;
mod service;
mod succession;
mod token;

pub(crate) use brought::BroughtCa;
pub use brought::BroughtError;
pub(crate) use own::{keep_renewed, own_identity};
pub(crate) use roots::keep_roots;
pub use service::CaApi;
pub(crate) use succession::{former_ca, keep_ca, new_ca, new_ca_of, succeeded};
pub(crate) use token::{current_token, new_token};

use keyhole_domain::{ClusterId, NodeId};
use keyhole_secmem::{LockError, SecretBytes};
use keyhole_state::Cluster;
use keyhole_wire::tls::certificate::{
    CertificateError, backdated, ca_params, csr_public_key, leaf_params,
};
use keyhole_wire::tls::{Role, RootError, key_id, subject_of};
use rcgen::{
    BasicConstraints, IsCa, Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock;
use crate::seal::{KeyringError, MemberKey, Purpose};

/// The shortest lifetime of a leaf; only tests want one that short.
pub const MIN_CERTIFICATE_SECONDS: u64 = 10;
/// The lifetime of a leaf unless the operator sets another.
pub const DEFAULT_CERTIFICATE_SECONDS: u64 = 24 * 3600;
/// The longest one: what must last longer than a year is no leaf.
pub const MAX_CERTIFICATE_SECONDS: u64 = 366 * 24 * 3600;
/// The root's lifetime.
const ROOT_SECONDS: u64 = 20 * 365 * 24 * 3600;

/// A lifetime that leaves can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a certificate lifetime of {seconds} s is out of range: it may be {MIN_CERTIFICATE_SECONDS} s to \
     {MAX_CERTIFICATE_SECONDS} s (366 days)"
)]
pub struct LifetimeError {
    seconds: u64,
}

/// Checks a leaf's lifetime, in seconds.
pub fn check_lifetime(seconds: u64) -> Result<(), LifetimeError> {
    match (MIN_CERTIFICATE_SECONDS..=MAX_CERTIFICATE_SECONDS).contains(&seconds) {
        true => Ok(()),
        false => Err(LifetimeError { seconds }),
    }
}

/// Why the CA could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A certificate or a request could not be made or read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The signature could not be made.
    #[error("cannot sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// The CA's key is not this member's to use.
    #[error(transparent)]
    Key(#[from] KeyringError),
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No randomness.
    #[error("the kernel gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// A certificate and its key do not make an identity.
    #[error(transparent)]
    Identity(#[from] keyhole_wire::tls::IdentityError),
    /// A root's certificate is not one that others can follow.
    #[error("the root CA's certificate: {0}")]
    Root(#[from] RootError),
    /// The root CA that an operator brought is not taken.
    #[error(transparent)]
    Brought(#[from] BroughtError),
}

/// A new root: its certificate (DER) and its private key (PKCS #8, DER). It holds from `from` (Unix seconds) on if it
/// follows one that does: a leader whose clock has jumped ahead makes one that others can believe, too.
pub fn new_root(cluster: &ClusterId, from: Option<u64>) -> Result<(Vec<u8>, SecretBytes), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let now = clock::unix_seconds();
    let from = from.unwrap_or(u64::MAX).min(backdated(now));
    let params = ca_params(cluster, from, now + ROOT_SECONDS)?;
    let certificate = params.self_signed(&key)?;
    let secret = SecretBytes::copy_from(&mut key.serialize_der())?;
    Ok((certificate.der().to_vec(), secret))
}

/// The name, key and key id of the root `new` that comes after `former`, signed by `former`'s key, until `until` (Unix
/// seconds): by it those who trust only the former one believe what the new one signs.
pub(crate) fn cross_sign(
    cluster: &ClusterId,
    (new, new_key): (&[u8], &SecretBytes),
    (former, former_key): (&[u8], &SecretBytes),
    until: u64,
) -> Result<Vec<u8>, CaError> {
    let (from, to) = validity(former);
    let mut params = ca_params(cluster, from, until.min(to))?;
    params.distinguished_name = subject_of(new)?;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(new));
    // It may be followed by others in its turn, each signed by the one before.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed = params.signed_by(&key_pair(new_key)?, &issuer(former, former_key)?)?;
    Ok(signed.der().to_vec())
}

/// The number of the root CA with this key's id; of all others that of the one before the current.
pub(crate) fn number_of(cluster: &Cluster, authority: &[u8]) -> u32 {
    let current = key_id(&cluster.ca_certificate) == authority;
    if current { cluster.ca_number } else { cluster.ca_number.saturating_sub(1) }
}

/// When a certificate begins and ends to hold, in Unix seconds; zeros if it can't be read.
pub(crate) fn validity(der: &[u8]) -> (u64, u64) {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return (0, 0);
    };
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()))
}

/// When a certificate ends, in Unix seconds.
pub(crate) fn expires_at(der: &[u8]) -> u64 {
    validity(der).1
}

/// Whom a leaf is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder {
    pub(crate) id: NodeId,
    pub(crate) role: Role,
}

/// Signs a leaf for the public key of a request, for as long as machines' leaves live.
pub(crate) fn issue(
    cluster: &Cluster,
    own: &MemberKey,
    holder: Holder,
    csr: &[u8],
) -> Result<Vec<u8>, CaError> {
    let end = clock::unix_seconds().saturating_add(cluster.certificate_seconds);
    issue_until(cluster, own, holder, csr, end)
}

/// The same, until another second.
pub(crate) fn issue_until(
    cluster: &Cluster,
    own: &MemberKey,
    holder: Holder,
    csr: &[u8],
    end: u64,
) -> Result<Vec<u8>, CaError> {
    let public_key = csr_public_key(csr)?;
    let now = clock::unix_seconds();
    let end = end.min(expires_at(&cluster.ca_certificate));
    let id = holder.id.to_string();
    let params = leaf_params(&cluster.id, holder.role, &id, backdated(now), end)?;
    let key = own.open(&cluster.id, Purpose::Ca, &cluster.ca_key)?;
    let issuer = issuer(&cluster.ca_certificate, &key)?;
    Ok(params.signed_by(&public_key, &issuer)?.der().to_vec())
}

fn key_pair(key: &SecretBytes) -> Result<KeyPair, CaError> {
    let der = PrivatePkcs8KeyDer::from(key.as_slice());
    Ok(KeyPair::try_from(&der)?)
}

fn issuer(
    certificate: &[u8],
    key: &SecretBytes,
) -> Result<Issuer<'static, impl SigningKey>, CaError> {
    let certificate = CertificateDer::from(certificate.to_vec());
    Ok(Issuer::from_ca_cert_der(&certificate, key_pair(key)?)?)
}
