//! What certificates of a cluster contain, for the CA that signs them and the tests that need some.
//!
//! Invariant: subject, names and usages follow from cluster, role and id alone; a request contributes
//! only its public key.

use std::time::Duration;

use keyhole_domain::ClusterId;
use keyhole_secmem::{LockError, SecretBytes};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKey, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};

use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest, Sha256};

use super::Role;

/// How far before its issue a certificate begins to hold, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// The last second of the year 9999, the last one that X.509 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// Why a certificate could not be described, or a request not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A time does not fit a certificate.
    #[error("{unix_seconds} s after 1970 is beyond what a certificate can say")]
    Time {
        /// The time.
        unix_seconds: u64,
    },
    /// The request does not parse, or is not signed by its own key.
    #[error("not a certificate request signed by its own key: {0}")]
    Request(rcgen::Error),
    /// The request's key is of another kind.
    #[error("the request's key is not ECDSA P-256")]
    KeyKind,
    /// The library refused.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
    /// There is no locked memory for the key.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The `not_before` of a certificate issued at `now` (Unix seconds).
#[must_use]
pub fn backdated(now: u64) -> u64 {
    now.saturating_sub(BACKDATE.as_secs())
}

/// A leaf of `cluster` for `id` in `role`, from `not_before` to `not_after` (Unix seconds, both
/// included; see [`backdated`]), with a fresh random serial number.
pub fn leaf_params(
    cluster: &ClusterId,
    role: Role,
    id: &str,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, CertificateError> {
    let mut params = params(not_before, not_after)?;
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, role.unit());
    params.distinguished_name.push(DnType::CommonName, id);
    for name in [id, role.word()] {
        params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role {
        Role::Manager => {
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
        }
        Role::Node | Role::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The root CA of `cluster`, from `not_before` to `not_after` (Unix seconds).
pub fn ca_params(
    cluster: &ClusterId,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, CertificateError> {
    let mut params = params(not_before, not_after)?;
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::CommonName, "keyhole-ca");
    // One level below, so that a new root can be signed by the old one when the CA is rotated.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A fresh ECDSA P-256 key (PKCS #8, DER) and a request (DER) that proves possession of it.
pub fn key_and_csr() -> Result<(SecretBytes, Vec<u8>), CertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let secret = SecretBytes::copy_from(&mut key.serialize_der())?;
    let request = csr_of(&secret)?;
    Ok((secret, request))
}

/// A request (DER) that proves possession of a key that is there (PKCS #8, DER).
pub fn csr_of(key: &SecretBytes) -> Result<Vec<u8>, CertificateError> {
    let der = PrivatePkcs8KeyDer::from(key.as_slice());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER), as certificates for it have it too.
#[must_use]
pub fn digest_of(key: &PublicKey) -> [u8; 32] {
    Sha256::digest(key.subject_public_key_info()).into()
}

/// The one thing that a request contributes: its public key, of which it proved possession.
pub fn csr_public_key(csr_der: &[u8]) -> Result<PublicKey, CertificateError> {
    let request = CertificateSigningRequestParams::from_der(&csr_der.into())
        .map_err(CertificateError::Request)?;
    if PublicKeyData::algorithm(&request.public_key) != &PKCS_ECDSA_P256_SHA256 {
        return Err(CertificateError::KeyKind);
    }
    Ok(request.public_key)
}

fn params(not_before: u64, not_after: u64) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + within_range(not_before)?;
    params.not_after = epoch + within_range(not_after)?;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

fn within_range(unix_seconds: u64) -> Result<Duration, CertificateError> {
    if unix_seconds > LAST_SECOND {
        return Err(CertificateError::Time { unix_seconds });
    }
    Ok(Duration::from_secs(unix_seconds))
}

/// 126 random bits; the two top ones make it positive and 16 bytes long.
fn random_serial() -> Result<SerialNumber, CertificateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(CertificateError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_manager_has_the_name_and_the_usage_to_serve() {
        let cluster = ClusterId::from_entropy([1; 16]);
        for role in [Role::Manager, Role::Node, Role::Operator] {
            let params = leaf_params(&cluster, role, "x", 0, 1).unwrap();
            let names = |text: &str| SanType::DnsName(text.try_into().unwrap());
            assert_eq!(params.subject_alt_names, [names("x"), names(role.word())]);
            let serves = params.extended_key_usages.contains(&ExtendedKeyUsagePurpose::ServerAuth);
            assert_eq!(serves, role == Role::Manager);
            assert_eq!(params.is_ca, IsCa::ExplicitNoCa);
        }
    }

    #[test]
    fn a_request_contributes_its_public_key() {
        let (secret, csr) = key_and_csr().unwrap();
        let key = KeyPair::try_from(secret.as_slice()).unwrap();
        let public = csr_public_key(&csr).unwrap();
        assert_eq!(public.der_bytes(), key.der_bytes());
        let again = csr_public_key(&csr_of(&secret).unwrap()).unwrap();
        assert_eq!(digest_of(&again), digest_of(&public));
        let leaf =
            leaf_params(&ClusterId::from_entropy([1; 16]), Role::Operator, &"a".repeat(25), 0, 1);
        let leaf = leaf.unwrap().self_signed(&key).unwrap();
        let peer = crate::tls::PeerIdentity::from_der(leaf.der(), 0).unwrap();
        assert_eq!(peer.public_key, digest_of(&public));
    }

    #[test]
    fn a_request_that_was_changed_or_is_of_another_kind_is_refused() {
        let (_, mut csr) = key_and_csr().unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(matches!(csr_public_key(&csr), Err(CertificateError::Request(_))));
        assert!(matches!(csr_public_key(b"rubbish"), Err(CertificateError::Request(_))));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(csr_public_key(csr.der()), Err(CertificateError::KeyKind)));
    }

    #[test]
    fn impossible_times_are_refused() {
        let cluster = ClusterId::from_entropy([1; 16]);
        assert!(ca_params(&cluster, 0, LAST_SECOND).is_ok());
        let refused = ca_params(&cluster, 0, LAST_SECOND + 1);
        assert!(matches!(refused, Err(CertificateError::Time { .. })));
        assert_eq!(backdated(7200), 3600);
    }
}
