//! What reads a root CA that an operator brings and a certificate that was kept, for tests that try any bytes on it.
//!
//! Invariant: nothing is decided here; each function does what the manager does, and forgets what came of it.

use keyhole_domain::ClusterId;
use keyhole_secmem::SecretBytes;
use keyhole_wire::tls::check_root;

use super::{BroughtCa, BroughtError, CaError, cross_sign, kept};

/// A root CA's certificate (DER) and key (PEM), brought at `now` (Unix seconds) to follow the CA `former` (DER and PKCS #8)
/// and to be followed by it again. An error that is none of [`BroughtError`] is one that comes too late: it was taken.
pub fn brought(
    certificate: Vec<u8>,
    key_pem: &SecretBytes,
    former: (&[u8], &SecretBytes),
    now: u64,
) -> Result<(), CaError> {
    let cluster = ClusterId::from_entropy([0; 16]);
    let brought = BroughtCa::new(certificate, key_pem)?;
    let own = brought.pair();
    check_root(own.0, now..=now).map_err(BroughtError::Root)?;
    let cross = cross_sign(&cluster, own, former, u64::MAX)?;
    brought.try_out(&cluster, (former.0, &cross), now)?;
    cross_sign(&cluster, former, own, u64::MAX).map(drop)
}

/// What a manager keeps of its own certificate.
pub fn kept(bytes: &SecretBytes) -> Result<(), String> {
    kept::from_secret(bytes).map(drop)
}
