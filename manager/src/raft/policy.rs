//! When to take a snapshot and what of the log to keep, both by bytes; openraft's own policies count entries, and an
//! entry may be half a megabyte.
//!
//! Depends on openraft's handle and the store's bounds. Invariant: nothing is purged that a snapshot does not cover
//! (openraft refuses it too).
use super::machine::{Live, StateMachine};
use super::types::TypeConfig;
use crate::store::Store;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Config, ConfigError, Raft, SnapshotPolicy};
use std::sync::Arc;

/// Byte limits of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLimits {
    /// A snapshot is due when the log is larger than this.
    pub(crate) snapshot_at: u64,
    /// What stays for followers that are a little behind.
    pub(crate) keep: u64,
}

/// openraft's settings. Its defaults (elections after 150 ms, snapshots by count) are not for us.
pub(crate) fn raft_config(cluster: &str) -> Result<Config, ConfigError> {
    Config {
        cluster_name: cluster.to_owned(),
        // A dead leader's lease lasts as long as the longest timeout, and only then the timeout begins: 1.2 to 1.6 s after
        // its last heartbeat another one asks for votes (ADR 6).
        election_timeout_min: 400,
        election_timeout_max: 800,
        // Three quarters of it, and of the shortest timeout, are what heartbeats and votes are given to be answered: this
        // says how far apart managers may be. Entries and snapshots have limits of their own.
        heartbeat_interval: 200,
        // A leader that a majority does not answer is silent for so long: the lease that it gave a follower ends, and
        // the longest timeout begins after it twice, also for one whose log is behind (ADR 6).
        quorum_loss_probe_interval: Some(2400),
        // A manager that comes back is found again soon.
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        // A leader that comes back may lack entries that its followers have of its own term.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
}

/// Runs until Raft stops; `stopped` is told why, if it was not asked to.
pub(crate) async fn keep_log_short(
    raft: Raft<TypeConfig, StateMachine>,
    store: Arc<Store>,
    live: Live,
    limits: LogLimits,
    stopped: impl FnOnce(String) + Send,
) {
    let mut applied = live.applied();
    let mut metrics = raft.metrics();
    let mut pending = None;
    let mut purged = 0;
    loop {
        let covered = {
            let seen = metrics.borrow_and_update();
            match &seen.running_state {
                Ok(()) => {}
                Err(Fatal::Stopped) => return,
                Err(fatal) => return stopped(fatal.to_string()),
            }
            seen.snapshot.map(|id| id.index)
        };
        pending = pending.filter(|since| covered <= *since);
        let keep_from = store.first_index_of_last(limits.keep);
        let purgeable = covered.unwrap_or(0).min(keep_from.saturating_sub(1));
        // A failure here is a stop, which the metrics tell.
        if purgeable > purged {
            purged = purgeable;
            let _ = raft.trigger().purge_log(purgeable).await;
        }
        // What is not applied yet is in no snapshot: one at the same place would never be seen to be done.
        let moved = *applied.borrow_and_update() > covered.unwrap_or(0);
        if pending.is_none() && moved && store.log_bytes_after(covered) > limits.snapshot_at {
            pending = Some(covered);
            let _ = raft.trigger().snapshot().await;
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::network::RPCOption;
    use std::time::Duration;

    /// docs/MANAGERS.md, "How far apart they may be".
    #[test]
    fn heartbeats_and_votes_have_time_for_the_longest_lines() {
        let config = raft_config("c").unwrap();
        let answered = |ttl| RPCOption::new(Duration::from_millis(ttl)).soft_ttl();
        assert_eq!(answered(config.heartbeat_interval), Duration::from_millis(150));
        assert_eq!(answered(config.election_timeout_min), Duration::from_millis(300));
    }
}
