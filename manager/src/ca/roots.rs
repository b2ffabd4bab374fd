//! Whom this manager trusts: the cluster's root CA, and those before it for as long as the state says.

use std::sync::Arc;
use std::time::Duration;

use crate::authz::{Authorized, OwnWork};
use crate::clock;
use crate::shell::Shell;

/// How soon the end of a former root's time is seen.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Trusts what the state says, for as long as this manager runs; new connections are judged by it.
pub(crate) async fn keep_roots(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut applied = shell.applied(&by);
    loop {
        let wanted = shell.view(&by, |state| state.cluster().map(|it| it.roots(clock::now())));
        if let Some(roots) = wanted.filter(|wanted| *wanted != shell.tls.roots()) {
            let count = roots.len();
            match shell.tls.set_roots(roots) {
                Ok(()) => tracing::info!(count, "other root CAs are trusted from now on"),
                Err(error) => tracing::error!(%error, "cannot trust the cluster's root CAs"),
            }
        }
        if let Ok(Err(_stops)) = tokio::time::timeout(LOOK_AGAIN, applied.changed()).await {
            return;
        }
    }
}
