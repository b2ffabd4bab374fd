//! What both ends of a connection share: which format they speak, how values are sealed for one receiver, how a
//! newcomer knows the cluster by its join token, and how TLS proves who speaks.
//!
//! Depends on `keyhole-domain` and `keyhole-secmem` only; neither managers nor nodes are known here.
//! Its invariant: a plaintext is in [`keyhole_secmem::SecretBytes`] or nowhere.

pub mod format;
pub mod http2;
pub mod seal;
pub mod tls;
pub mod token;
pub mod unlock_key;
