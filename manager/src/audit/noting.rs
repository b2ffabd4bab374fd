//! Tells the cluster, now and then, how far this manager's audit goes: what is edited or cut later is found by that.

use std::sync::Arc;
use std::time::Duration;

use keyhole_state::Command;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::AuditLog;
use crate::authz::{Authorized, OwnWork};
use crate::shell::Shell;

/// What was written in this time before a machine was broken into can be changed unseen.
const EVERY: Duration = Duration::from_secs(10);

/// Runs as long as the manager does.
pub(crate) async fn keep_noted(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let member = shell.own.member;
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let noted = shell.view(&by, |state| state.audit_heads(member).last().map(|head| head.seq));
        let noted = noted.unwrap_or(0);
        let audit = shell.audit.clone();
        let synced = move || {
            audit.go_on_after(noted);
            AuditLog::tend(&audit);
            audit.synced()
        };
        let Ok(head) = tokio::task::spawn_blocking(synced).await else { return };
        if head.seq > noted {
            let note = Command::NoteAuditHead { member, seq: head.seq, hash: head.hash };
            if let Err(reason) = shell.propose(&by, note).await {
                tracing::debug!(?reason, "cannot tell the cluster of the audit now");
            }
        }
    }
}
