//! The certificate that this manager proves itself with, kept among its store's own secrets: one that holds no keys of
//! the cluster, because it has only joined or was demoted, can issue none for itself.

use keyhole_proto::v1;
use keyhole_secmem::SecretBytes;
use keyhole_wire::tls::Identity;
use prost::Message;
use zeroize::Zeroizing;

/// Its name among the local secrets.
pub(crate) const OWN_CERTIFICATE: &str = "own certificate";

const FORMAT: u32 = 1;

/// A certificate with its key, and whom it trusts.
pub(crate) struct Proof {
    pub(crate) identity: Identity,
    pub(crate) roots: Vec<Vec<u8>>,
}

/// For the local secrets; an error is in words.
pub(crate) fn to_secret(identity: &Identity, roots: &[Vec<u8>]) -> Result<SecretBytes, String> {
    let record = v1::NodeIdentity {
        format: FORMAT,
        chain: identity.chain().map(|der| der.to_vec().into()).collect(),
        key: identity.key().as_slice().to_vec().into(),
        roots: roots.iter().map(|der| der.clone().into()).collect(),
        managers: Vec::new(),
        // The store vouches for it.
        sha256: bytes::Bytes::new(),
    };
    let mut bytes = Zeroizing::new(record.encode_to_vec());
    SecretBytes::copy_from(&mut bytes).map_err(|e| e.to_string())
}

/// What [`to_secret`] made.
pub(crate) fn from_secret(kept: &SecretBytes) -> Result<Proof, String> {
    let record = v1::NodeIdentity::decode(kept.as_slice()).map_err(|e| e.to_string())?;
    if record.format != FORMAT {
        return Err(format!("it has format {}, this keyhole knows format {FORMAT}", record.format));
    }
    let key = SecretBytes::copy_from(&mut Zeroizing::new(record.key.to_vec()));
    let chain = record.chain.iter().map(|der| der.to_vec()).collect();
    let identity = Identity::new(chain, key.map_err(|e| e.to_string())?);
    let roots = record.roots.iter().map(|der| der.to_vec()).collect();
    Ok(Proof { identity: identity.map_err(|e| e.to_string())?, roots })
}
