//! A manager whose store only the operators' unlock key opens: it waits for it at its operator socket, and opens nothing
//! else.

use crate::listen::{OperatorSocket, serve_locked};
use crate::operator::{LockedApi, Unlocked};
use crate::store::Store;

use super::{ManagerConfig, StartError};

/// The key, once it was given; nothing where none is needed.
pub(super) async fn unlocked(config: &ManagerConfig) -> Result<Option<Unlocked>, StartError> {
    if !Store::exists(&config.data_dir) {
        return Ok(None);
    }
    let sealed = Store::sealed(&config.data_dir)?;
    if !sealed.is_locked() {
        return Ok(None);
    }
    let socket = OperatorSocket::bind(&config.socket)?;
    let api = LockedApi::new(sealed).map_err(|e| StartError::system("wait for a key", e))?;
    tracing::warn!(socket = %config.socket.display(),
        "locked: this manager waits for 'keyhole cluster unlock' on its machine");
    let served = serve_locked(api.clone(), socket).await;
    served.map_err(|e| StartError::serve("the operator socket", e))?;
    tracing::info!("unlocked");
    Ok(api.into_key().await)
}
