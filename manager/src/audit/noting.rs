//! Tells the cluster, now and then, how far this manager's audit goes: what is edited or cut later is found by that.

use std::sync::Arc;
use std::time::Duration;

use keyhole_state::{Command, State};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{AuditLog, Head};
use crate::authz::{Authorized, OwnWork};
use crate::shell::Shell;

/// What was written in this time before a machine was broken into can be changed unseen.
const EVERY: Duration = Duration::from_secs(10);

impl Head {
    /// The last line that the cluster was told of this member's audit.
    pub(crate) fn noted(state: &State, member: u64) -> Self {
        let last = state.audit_heads(member).last();
        last.map_or_else(Self::default, |head| Self { seq: head.seq, hash: head.hash })
    }
}

/// Runs as long as the manager does.
pub(crate) async fn keep_noted(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        note(&shell, &by).await;
    }
}

/// Tells it now.
pub(crate) async fn note(shell: &Shell, by: &Authorized<OwnWork>) {
    let member = shell.own.member;
    let noted = shell.view(by, |state| Head::noted(state, member));
    let audit = shell.audit.clone();
    let synced = move || {
        audit.go_on_after(noted);
        AuditLog::tend(&audit);
        audit.synced()
    };
    let Ok(head) = tokio::task::spawn_blocking(synced).await else { return };
    if head.seq > noted.seq {
        let note = Command::NoteAuditHead { member, seq: head.seq, hash: head.hash };
        match shell.propose(by, note).await {
            Ok(_) => shell.audit.told(head),
            Err(reason) => tracing::debug!(?reason, "cannot tell the cluster of the audit now"),
        }
    }
}
