//! A root CA that comes from elsewhere: what must hold of its certificate, so that everybody in the cluster believes what
//! its key signs.
//!
//! Invariant: of a certificate that passed [`check_root`], all that other certificates repeat (subject, key id) can be
//! read and written again.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{DistinguishedName, DnType, DnValue};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{Error, RootCertStore};
use x509_parser::der_parser::asn1_rs::{Oid, Tag};
use x509_parser::der_parser::parse_der;
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS,
};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};
use x509_parser::x509::AttributeTypeAndValue;

use super::{SERVER_NAME, key_id, provider};

/// The bytes that a root CA's certificate may have; most have less than 2,000.
pub const MAX_ROOT_BYTES: usize = 8 << 10;

/// Names in a subject that rcgen has no word for: serialNumber, emailAddress, domainComponent.
const OTHER_NAMES: [&[u64]; 3] =
    [&[2, 5, 4, 5], &[1, 2, 840, 113_549, 1, 9, 1], &[0, 9, 2342, 19_200_300, 100, 1, 25]];

/// Extensions that a root may have as critical ones: two are looked at here, and nameConstraints by TLS itself.
const HEEDED: [Oid<'static>; 3] =
    [OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS];

const DAY: u64 = 24 * 3600;

/// Why a certificate can't be a cluster's root CA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// It is too long.
    #[error("it has {len} bytes, and {MAX_ROOT_BYTES} are the most")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// It is something else.
    #[error("it is no X.509 certificate of version 3")]
    NotACertificate,
    /// Another one signed it, or nobody did.
    #[error(
        "it is not signed by its own key (or by an algorithm that TLS 1.3 does without); bring a root, not a CA below one"
    )]
    NotSelfSigned,
    /// It may sign nothing.
    #[error("it is no CA's: make one with basicConstraints CA:TRUE")]
    NotACa,
    /// It may not sign the one that comes after it.
    #[error(
        "it may sign no CA (pathlen:0), but signs the root that comes after it; make one without a pathlen"
    )]
    PathLength,
    /// It may not sign certificates.
    #[error("its keyUsage is without keyCertSign; make one with it, or without a keyUsage")]
    KeyUsage,
    /// It demands something that nobody here would heed.
    #[error("it has the critical extension {0}, which is not known here; make one without it")]
    Critical(String),
    /// Nothing tells its leaves from those of other CAs.
    #[error("it has no subjectKeyIdentifier; make one with it ('openssl req -x509' does)")]
    NoKeyId,
    /// The subject can't be repeated.
    #[error(
        "its subject can't be repeated in other certificates: make one with C, ST, L, O, OU, CN, DC, serialNumber or \
         emailAddress, each once at most, in UTF-8 or ASCII"
    )]
    Subject,
    /// It begins later.
    #[error("it does not hold yet; check the clocks, or wait")]
    NotYet,
    /// It ends early.
    #[error("it holds for {days} more days, and {needed} are needed; bring one that holds longer")]
    EndsSoon {
        /// How long it holds.
        days: u64,
        /// How long it must hold.
        needed: u64,
    },
}

/// Checks the certificate `der` of a root CA that is to hold through `time` (Unix seconds).
pub fn check_root(der: &[u8], time: RangeInclusive<u64>) -> Result<(), RootError> {
    if der.len() > MAX_ROOT_BYTES {
        return Err(RootError::TooLong { len: der.len() });
    }
    let root = parsed(der)?;
    let unreadable = |_| RootError::NotACertificate;
    let is_own = root.subject().as_raw() == root.issuer().as_raw() && signs(&root, &root);
    if !is_own {
        return Err(RootError::NotSelfSigned);
    }
    let constraints = root.basic_constraints().map_err(unreadable)?;
    let constraints = constraints.filter(|it| it.value.ca).ok_or(RootError::NotACa)?;
    if constraints.value.path_len_constraint == Some(0) {
        return Err(RootError::PathLength);
    }
    if root.key_usage().map_err(unreadable)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(RootError::KeyUsage);
    }
    if key_id(der).is_empty() {
        return Err(RootError::NoKeyId);
    }
    // TLS takes no notice of them in a root; whoever made it means them.
    let unheeded = |oid: &Oid<'_>| !HEEDED.contains(oid);
    let extensions = root.extensions().iter();
    if let Some(other) =
        extensions.filter(|it| it.critical).map(|it| &it.oid).find(|it| unheeded(it))
    {
        return Err(RootError::Critical(other.to_id_string()));
    }
    subject_of(der)?;
    check_validity(&root, time)
}

fn check_validity(root: &X509Certificate<'_>, time: RangeInclusive<u64>) -> Result<(), RootError> {
    let (now, until) = time.into_inner();
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let end = seconds(root.validity().not_after.timestamp());
    if seconds(root.validity().not_before.timestamp()) > now {
        return Err(RootError::NotYet);
    }
    if end < until {
        let needed = until.saturating_sub(now).div_ceil(DAY);
        return Err(RootError::EndsSoon { days: end.saturating_sub(now) / DAY, needed });
    }
    Ok(())
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, RootError> {
    match X509Certificate::from_der(der) {
        Ok(([], root)) if root.version() == X509Version::V3 => Ok(root),
        _ => Err(RootError::NotACertificate),
    }
}

fn signs(issuer: &X509Certificate<'_>, signed: &X509Certificate<'_>) -> bool {
    let key = &issuer.public_key().subject_public_key.data;
    let (message, signature) = (signed.tbs_certificate.as_ref(), &signed.signature_value.data);
    let known = provider().signature_verification_algorithms.all;
    known.iter().any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
}

/// The subject of the CA certificate `der`, for one that is to have the same.
pub fn subject_of(der: &[u8]) -> Result<DistinguishedName, RootError> {
    let mut name = DistinguishedName::new();
    let root = parsed(der)?;
    // What the parser does not understand it leaves out, with all that follows.
    if parse_der(root.subject().as_raw()).is_err() {
        return Err(RootError::Subject);
    }
    for part in root.subject().iter() {
        let mut attributes = part.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err(RootError::Subject);
        };
        let (kind, value) = attribute_of(attribute).ok_or(RootError::Subject)?;
        if name.get(&kind).is_some() {
            return Err(RootError::Subject);
        }
        name.push(kind, value);
    }
    if name.iter().next().is_some() { Ok(name) } else { Err(RootError::Subject) }
}

/// Only known kinds: rcgen's encoder panics on some numbers that can be decoded.
fn attribute_of(attribute: &AttributeTypeAndValue<'_>) -> Option<(DnType, DnValue)> {
    let number: Vec<u64> = attribute.attr_type().iter()?.collect();
    let kind = match DnType::from_oid(&number) {
        DnType::CustomDnType(number) if !OTHER_NAMES.contains(&number.as_slice()) => return None,
        kind => kind,
    };
    let text = std::str::from_utf8(attribute.attr_value().data).ok()?;
    let value = match attribute.attr_value().tag() {
        Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
        Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
        Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
        _ => return None,
    };
    Some((kind, value))
}

/// Whether who trusts `root` (DER) alone believes `leaf` (DER), shown with `between`, to be a manager's at `now` (Unix
/// seconds), at either end of a connection; the error is what TLS would say.
pub fn check_chain(leaf: &[u8], between: &[u8], root: &[u8], now: u64) -> Result<(), Error> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from(root))?;
    let store = Arc::new(store);
    let odd = |error: VerifierBuilderError| Error::General(error.to_string());
    let server = WebPkiServerVerifier::builder_with_provider(Arc::clone(&store), provider());
    let server = server.build().map_err(odd)?;
    let client = WebPkiClientVerifier::builder_with_provider(store, provider());
    let client = client.build().map_err(odd)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|e| Error::General(e.to_string()))?;
    let (leaf, between) = (CertificateDer::from(leaf), &[CertificateDer::from(between)]);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    server.verify_server_cert(&leaf, between, &name, &[], now)?;
    client.verify_client_cert(&leaf, between, now).map(drop)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use super::*;

    const NOW: u64 = 1_000_000_000;
    const NEEDED: RangeInclusive<u64> = NOW..=NOW + 31 * DAY;

    /// As an organisation would make one, from a day ago for a hundred days.
    fn root() -> CertificateParams {
        let mut params = CertificateParams::default();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(NOW - DAY);
        params.not_after = epoch + Duration::from_secs(NOW + 100 * DAY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn der(params: &CertificateParams) -> Vec<u8> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn refused(change: impl FnOnce(&mut CertificateParams)) -> RootError {
        let mut params = root();
        change(&mut params);
        check_root(&der(&params), NEEDED).unwrap_err()
    }

    #[test]
    fn a_root_of_any_organisation_passes_with_its_subject() {
        let mut params = root();
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let name = &mut params.distinguished_name;
        name.push(DnType::CountryName, DnValue::PrintableString("CH".try_into().unwrap()));
        name.push(
            DnType::CustomDnType(OTHER_NAMES[2].into()),
            DnValue::Ia5String("example".try_into().unwrap()),
        );
        name.push(DnType::OrganizationName, "Beispiel für alle");
        let root = der(&params);
        assert_eq!(check_root(&root, NEEDED), Ok(()));
        // Byte by byte, or chains through it would end here.
        let mut again = params.clone();
        again.distinguished_name = subject_of(&root).unwrap();
        let again = der(&again);
        let subject = |der| parsed(der).unwrap().subject().as_raw().to_vec();
        assert_eq!(subject(&again), subject(&root));
    }

    #[test]
    fn what_can_sign_nothing_that_is_believed_is_refused_with_the_reason() {
        assert_eq!(refused(|it| it.is_ca = IsCa::ExplicitNoCa), RootError::NotACa);
        assert_eq!(refused(|it| it.is_ca = IsCa::NoCa), RootError::NotACa);
        let none_below = IsCa::Ca(BasicConstraints::Constrained(0));
        assert_eq!(refused(|it| it.is_ca = none_below), RootError::PathLength);
        let crls_only = vec![KeyUsagePurpose::CrlSign];
        assert_eq!(refused(|it| it.key_usages = crls_only), RootError::KeyUsage);
        let later = rcgen::date_time_ymd(2002, 1, 1);
        assert_eq!(refused(|it| it.not_before = later), RootError::NotYet);
        let soon = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW + 30 * DAY);
        let ends = RootError::EndsSoon { days: 30, needed: 31 };
        assert_eq!(refused(|it| it.not_after = soon), ends);
    }

    #[test]
    fn a_subject_that_cannot_be_repeated_is_refused() {
        let empty = |it: &mut CertificateParams| it.distinguished_name = DistinguishedName::new();
        assert_eq!(refused(empty), RootError::Subject);
        // The same attribute by its other name is a second one.
        let twice = |it: &mut CertificateParams| {
            it.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "again");
        };
        assert_eq!(refused(twice), RootError::Subject);
        let strange = |it: &mut CertificateParams| {
            it.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 65]), "pseudonym");
        };
        assert_eq!(refused(strange), RootError::Subject);
    }

    #[test]
    fn who_is_signed_by_another_or_was_changed_is_no_root() {
        let (above, key) = (root(), KeyPair::generate().unwrap());
        let issuer = Issuer::from_params(&above, &key);
        let below = root().signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        assert_eq!(check_root(below.der(), NEEDED), Err(RootError::NotSelfSigned), "same names");
        let mut changed = der(&root());
        let last = changed.len() - 1;
        changed[last] ^= 1;
        assert_eq!(check_root(&changed, NEEDED), Err(RootError::NotSelfSigned));
        changed.push(0);
        assert_eq!(check_root(&changed, NEEDED), Err(RootError::NotACertificate));
        assert_eq!(check_root(b"", NEEDED), Err(RootError::NotACertificate));
        let long = vec![0x30; MAX_ROOT_BYTES + 1];
        assert_eq!(check_root(&long, NEEDED), Err(RootError::TooLong { len: long.len() }));
    }
}
