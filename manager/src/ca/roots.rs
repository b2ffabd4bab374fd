//! Whom this manager trusts: the cluster's root CA, and those before it for as long as the state says.

use std::sync::Arc;
use std::time::Duration;

use keyhole_wire::tls::key_id;

use crate::authz::{Authorized, OwnWork};
use crate::clock;
use crate::shell::Shell;

/// How soon the end of a former root's time is seen.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Trusts what the state says, for as long as this manager runs; connections with certificates of others end.
pub(crate) async fn keep_roots(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut applied = shell.applied(&by);
    loop {
        let wanted = shell.view(&by, |state| state.cluster().map(|it| it.roots(clock::now())));
        let wanted = wanted.map(|roots| with_own(&shell, roots));
        if let Some(roots) = wanted.filter(|wanted| *wanted != shell.tls.roots()) {
            let count = roots.len();
            match shell.tls.set_roots(roots) {
                Ok(()) => {
                    let ended = shell.end_strange(&by).await;
                    tracing::info!(count, ended, "other root CAs are trusted from now on");
                }
                Err(error) => tracing::error!(%error, "cannot trust the cluster's root CAs"),
            }
        }
        if let Ok(Err(_stops)) = tokio::time::timeout(LOOK_AGAIN, applied.changed()).await {
            return;
        }
    }
}

/// With the root CA of this manager's own certificate: while it takes up the log, its state may still be from before that
/// CA, and only managers of that CA can bring it further.
fn with_own(shell: &Shell, mut roots: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let authority = shell.tls.identity().map(|own| own.subject().authority.clone());
    let own = |root: &Vec<u8>| authority.as_ref() == Some(&key_id(root)) && !roots.contains(root);
    let own: Vec<_> = shell.tls.roots().into_iter().filter(own).collect();
    roots.extend(own);
    roots
}
