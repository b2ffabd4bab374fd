//! A manager whose store only the operators' unlock key opens: it waits for it at its operator socket, and opens nothing
//! else.

use std::sync::Arc;

use super::init::keep_audit;
use super::{ManagerConfig, StartError};
use crate::audit::{AuditLog, Head, Writer};
use crate::keys::Kek;
use crate::listen::{OperatorSocket, serve_locked};
use crate::operator::LockedApi;
use crate::store::{Store, StoreIdentity};

/// The key, once it was given, and the audit of who gave it; nothing where none is needed.
pub(super) async fn unlocked(
    config: &ManagerConfig,
) -> Result<Option<(Kek, Arc<AuditLog>)>, StartError> {
    if !Store::exists(&config.data_dir) {
        return Ok(None);
    }
    let sealed = Store::sealed(&config.data_dir)?;
    if !sealed.is_locked() {
        return Ok(None);
    }
    let audit = keep_audit(config)?;
    let StoreIdentity { cluster, manager, member } = sealed.identity().clone();
    // What the cluster was told of it is in the store.
    audit.begin(Writer { cluster, manager, member }, Head::default());
    let socket = OperatorSocket::bind(&config.socket)?;
    let api = LockedApi::new(sealed, audit.clone());
    let api = api.map_err(|e| StartError::system("wait for a key", e))?;
    tracing::warn!(socket = %config.socket.display(),
        "locked: this manager waits for 'keyhole cluster unlock' on its machine");
    let served = serve_locked(api.clone(), socket).await;
    served.map_err(|e| StartError::serve("the operator socket", e))?;
    tracing::info!("unlocked");
    Ok(api.into_key().await.map(|kek| (kek, audit)))
}
