//! A manager that is cut off from a quorum sends its nodes away: it could not tell them of a revocation.
//!
//! Invariant: a stream goes on only at a manager that has heard from a quorum within [`CUT_OFF`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::authz::{Authorized, OwnWork};
use crate::shell::Shell;

/// How long a manager may be without a quorum until its nodes have to look for another one, at most.
const CUT_OFF: Duration = Duration::from_secs(10);
/// How often it looks, and how long a look may take.
const LOOK: Duration = Duration::from_secs(2);

/// Looks for as long as the manager runs.
pub(crate) async fn watch_quorum(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut heard_at = Instant::now();
    loop {
        let look = Instant::now();
        // What a read would need: the leader's word, and the leader's that of a majority.
        let heard = matches!(timeout(LOOK, shell.catch_up(&by)).await, Ok(Ok(())));
        if heard {
            heard_at = look;
        }
        let cut_off = !heard && heard_at.elapsed() >= CUT_OFF - LOOK;
        if shell.set_cut_off(cut_off) {
            match cut_off {
                true => tracing::error!("cut off from the other managers: sending the nodes away"),
                false => tracing::info!("in touch with the other managers again"),
            }
        }
        sleep(LOOK).await;
    }
}
