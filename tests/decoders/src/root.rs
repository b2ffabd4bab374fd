//! A root CA that an operator brings, and what the cluster makes of it.
//!
//! Invariant: what is taken as a root can be followed by the cluster's next one, and its name repeated byte by byte.

use std::sync::LazyLock;

use keyhole_domain::ClusterId;
use keyhole_manager::ca::{CaError, decoders};
use keyhole_secmem::SecretBytes;
use keyhole_wire::tls::certificate::ca_params;
use keyhole_wire::tls::{check_chain, check_root, subject_of};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SigningKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pieces;

const NOW: u64 = 1_800_000_000;

/// The key (Ed25519, PKCS #8) of the root CAs among the seeds; it is nobody's.
pub const ROOT_KEY: [u8; 48] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20\
                                 the key of a root CA for fuzzers";

/// The same as an object.
static KEY: LazyLock<KeyPair> = LazyLock::new(|| {
    let key = PrivatePkcs8KeyDer::from(ROOT_KEY.as_slice());
    KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519).expect("it is one")
});

/// The root CA that the cluster has.
static FORMER: LazyLock<(Vec<u8>, SecretBytes)> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("there are random bytes");
    let params = ca_params(&ClusterId::from_entropy([0; 16]), NOW - 9, NOW + 9).expect("a time");
    let root = params.self_signed(&key).expect("it can be signed");
    let secret = SecretBytes::copy_from(&mut key.serialize_der()).expect("there is memory");
    (root.der().to_vec(), secret)
});

/// Three pieces: the certificate in DER, its key in PEM, and what is said to be a manager's certificate under it. The first
/// is read as it is, and signed anew, as by a CA that wanted it to be like that.
pub(crate) fn root(bytes: &[u8]) {
    let mut pieces = pieces(bytes);
    let mut next = || pieces.next().unwrap_or_default();
    let (certificate, key, leaf) = (next(), next(), next());
    let key = SecretBytes::copy_from(&mut key.to_vec()).expect("there is memory");
    for root in [Some(certificate.to_vec()), signed_anew(certificate)].into_iter().flatten() {
        let _ = check_chain(leaf, &root, &root, NOW);
        if check_root(&root, NOW..=NOW).is_ok() {
            is_repeated(&root);
        }
        let former = (FORMER.0.as_slice(), &FORMER.1);
        match decoders::brought(root, &key, former, NOW) {
            Ok(()) | Err(CaError::Brought(_)) => {}
            Err(late) => panic!("it is taken, and then: {late}"),
        }
    }
}

fn is_repeated(root: &[u8]) {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject_of(root).expect("it was looked at");
    let again = params.self_signed(&*KEY).expect("it can be signed");
    assert_eq!(subject(again.der()), subject(root), "who follows it has another name");
}

fn subject(der: &[u8]) -> Option<&[u8]> {
    Some(X509Certificate::from_der(der).ok()?.1.tbs_certificate.subject.as_raw())
}

/// A certificate with all that it says, signed by [`ROOT_KEY`]; nothing if it is none.
pub fn signed_anew(der: &[u8]) -> Option<Vec<u8>> {
    let said = X509Certificate::from_der(der).ok()?.1.tbs_certificate.as_ref().to_vec();
    let signature = KEY.sign(&said).ok()?;
    let algorithm = element(0x30, b"\x06\x03\x2b\x65\x70");
    let signature = element(0x03, &[&[0], signature.as_slice()].concat());
    Some(element(0x30, &[said, algorithm, signature].concat()))
}

/// One element of DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let length = match content.len() {
        0..0x80 => vec![low],
        0x80..0x100 => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag], length.as_slice(), content].concat()
}
