//! Who a certificate says its holder is. Invariant: a subject with anything more or less than one
//! cluster, one role and one id is refused.

use keyhole_domain::{ClusterId, NodeId};
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::{
    OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT,
};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Name};

use super::Role;

/// What a leaf certificate says. The chain was verified by TLS before; whether the id is still a
/// member is the replicated state's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The cluster (O).
    pub cluster: ClusterId,
    /// The role (OU).
    pub role: Role,
    /// The id of 25 characters (CN).
    pub id: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// Unix seconds from which it holds.
    pub not_before: u64,
    /// The last Unix second in which it holds.
    pub not_after: u64,
    /// The key id of the CA that signed it; empty if it does not say.
    pub authority: Vec<u8>,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub public_key: [u8; 32],
    /// Whether it had expired when it was read; such a peer may renew and nothing else.
    pub expired: bool,
}

/// Why a certificate is none of a cluster's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerIdentityError {
    /// It is no X.509 certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// The subject has other attributes, or one twice.
    #[error("the certificate's subject is not exactly one O, one OU and one CN")]
    Subject,
    /// The O is no cluster id.
    #[error("the certificate's O is no cluster id")]
    Cluster,
    /// The OU is no role.
    #[error("the certificate's OU is no role of keyhole")]
    Role,
    /// The CN is no id.
    #[error("the certificate's CN is no id of 25 characters")]
    Id,
    /// The validity is before 1970.
    #[error("the certificate's validity is out of range")]
    Validity,
}

impl PeerIdentity {
    /// Reads the leaf certificate `der`; `now` in Unix seconds decides `expired`.
    pub fn from_der(der: &[u8], now: u64) -> Result<Self, PeerIdentityError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| PeerIdentityError::NotACertificate)?;
        if !rest.is_empty() {
            return Err(PeerIdentityError::NotACertificate);
        }
        let subject = Subject::of(certificate.subject())?;
        let seconds = |time: i64| u64::try_from(time).map_err(|_| PeerIdentityError::Validity);
        let not_after = seconds(certificate.validity().not_after.timestamp())?;
        Ok(Self {
            cluster: subject.cluster.parse().map_err(|_| PeerIdentityError::Cluster)?,
            role: Role::from_unit(subject.unit).ok_or(PeerIdentityError::Role)?,
            id: parse_id(subject.name)?,
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: seconds(certificate.validity().not_before.timestamp())?,
            not_after,
            authority: authority(&certificate),
            public_key: Sha256::digest(certificate.public_key().raw).into(),
            expired: now > not_after,
        })
    }
}

/// The id of a CA's key, which its leaves name as their authority; empty if the certificate has none.
#[must_use]
pub fn key_id(ca_der: &[u8]) -> Vec<u8> {
    let Ok((_, ca)) = X509Certificate::from_der(ca_der) else { return Vec::new() };
    let id = |extension: &ParsedExtension<'_>| match extension {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    };
    ca.extensions().iter().find_map(|it| id(it.parsed_extension())).unwrap_or_default()
}

fn authority(leaf: &X509Certificate<'_>) -> Vec<u8> {
    let id = |extension: &ParsedExtension<'_>| match extension {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            authority.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    };
    leaf.extensions().iter().find_map(|it| id(it.parsed_extension())).unwrap_or_default()
}

/// Managers, nodes and operators have ids of one shape.
fn parse_id(text: &str) -> Result<String, PeerIdentityError> {
    let id: NodeId = text.parse().map_err(|_| PeerIdentityError::Id)?;
    Ok(id.to_string())
}

struct Subject<'a> {
    cluster: &'a str,
    unit: &'a str,
    name: &'a str,
}

impl<'a> Subject<'a> {
    fn of(name: &'a X509Name<'_>) -> Result<Self, PeerIdentityError> {
        let (mut cluster, mut unit, mut common) = (None, None, None);
        for attribute in name.iter_attributes() {
            let oid = attribute.attr_type();
            let place = if *oid == OID_X509_ORGANIZATION_NAME {
                &mut cluster
            } else if *oid == OID_X509_ORGANIZATIONAL_UNIT {
                &mut unit
            } else if *oid == OID_X509_COMMON_NAME {
                &mut common
            } else {
                return Err(PeerIdentityError::Subject);
            };
            let text = attribute.as_str().map_err(|_| PeerIdentityError::Subject)?;
            if place.replace(text).is_some() {
                return Err(PeerIdentityError::Subject);
            }
        }
        match (cluster, unit, common) {
            (Some(cluster), Some(unit), Some(name)) => Ok(Self { cluster, unit, name }),
            _ => Err(PeerIdentityError::Subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;
    use crate::tls::certificate::leaf_params;

    const ID: &str = "abcdefghijklmnopqrstuvwxy";

    fn leaf() -> CertificateParams {
        leaf_params(&cluster(), Role::Node, ID, 1_000, 2_000).unwrap()
    }

    fn cluster() -> ClusterId {
        ClusterId::from_entropy([3; 16])
    }

    fn read(params: &CertificateParams, now: u64) -> Result<PeerIdentity, PeerIdentityError> {
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        PeerIdentity::from_der(certificate.der(), now)
    }

    #[test]
    fn a_leaf_says_who_its_holder_is() {
        let peer = read(&leaf(), 2_000).unwrap();
        assert_eq!((peer.cluster, peer.role, peer.id.as_str()), (cluster(), Role::Node, ID));
        assert_eq!((peer.not_before, peer.not_after, peer.expired), (1_000, 2_000, false));
        assert!(peer.serial.len() >= 30);
        assert!(read(&leaf(), 2_001).unwrap().expired);
        assert_ne!(peer.serial, read(&leaf(), 0).unwrap().serial);
    }

    #[test]
    fn a_subject_with_more_less_or_other_is_refused() {
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = leaf();
            change(&mut params);
            read(&params, 0).unwrap_err()
        };
        let subject = PeerIdentityError::Subject;
        let name = |kind: DnType| {
            move |p: &mut CertificateParams| {
                p.distinguished_name.remove(kind.clone());
            }
        };
        assert_eq!(with(&name(DnType::OrganizationName)), subject);
        assert_eq!(with(&name(DnType::CommonName)), subject);
        assert_eq!(with(&|p| p.distinguished_name.push(DnType::CountryName, "CH")), subject);
        // The number of O given another way is a second O.
        let second = DnType::CustomDnType(vec![2, 5, 4, 10]);
        assert_eq!(with(&|p| p.distinguished_name.push(second.clone(), "x")), subject);
        let set = |kind: DnType, text: &'static str| {
            move |p: &mut CertificateParams| p.distinguished_name.push(kind.clone(), text)
        };
        assert_eq!(with(&set(DnType::OrganizationName, "acme")), PeerIdentityError::Cluster);
        assert_eq!(with(&set(DnType::OrganizationalUnitName, "manager")), PeerIdentityError::Role);
        assert_eq!(with(&set(DnType::CommonName, "web-1")), PeerIdentityError::Id);
    }

    #[test]
    fn rubbish_is_no_certificate() {
        let certificate = leaf().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let mut longer = certificate.der().to_vec();
        longer.push(0);
        for der in [&b""[..], b"x", &longer] {
            let refused = PeerIdentity::from_der(der, 0);
            assert_eq!(refused, Err(PeerIdentityError::NotACertificate));
        }
    }
}
