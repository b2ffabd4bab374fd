//! TLS between all parts of a cluster: version 1.3 only, aws-lc-rs, hybrid key exchange first, no
//! resumption, certificates of the cluster's own CA on both sides.
//!
//! A certificate proves an id and names a role; what that id may do is decided elsewhere, on each
//! call. Invariant: the process-wide default provider and the system's roots are never consulted.

pub mod certificate;
mod client;
mod connections;
mod identity;
mod live;
mod peer;
mod role;
mod root;
mod server;
mod verify;

pub use client::{
    ConnectError, Exporter, ManagerConnection, Patience, connect, connect_manager, fetch_unpinned,
};
pub use connections::{Chosen, Connections};
pub use identity::{Identity, IdentityError};
pub use live::{LiveTls, TlsError};
pub use peer::{PeerIdentity, PeerIdentityError, key_id};
pub use role::Role;
pub use root::{MAX_ROOT_BYTES, RootError, check_chain, check_root, subject_of};
pub use server::{Limits, PeerInfo, TlsConn, incoming};

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// How long after its end a client certificate still opens a connection (marked as expired), so that
/// a machine that was off can renew.
pub const EXPIRED_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

const ALPN: &[u8] = b"h2";
const EXPORTER_LABEL: &[u8] = b"EXPORTER-keyhole-v1";

/// The name that clients ask for: only manager certificates carry it.
const SERVER_NAME: &str = "manager";

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
