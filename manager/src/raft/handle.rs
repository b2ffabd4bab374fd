//! All that the rest of the manager sees of Raft: start, propose, read, hear of changes, stop.
//!
//! Depends on the other modules here. Invariant: a proposal that was answered is on disk at a quorum and applied here, so
//! that the caller's next read sees it.
use super::log::{LogStore, on_disk};
use super::machine::{Change, Live, Loader, StateMachine};
use super::policy::{LogLimits, keep_log_short, raft_config};
use super::snapshot::SnapshotData;
use super::types::{Command, Peer, TypeConfig};
use crate::keys::Kek;
use crate::store::{Store, StoreError, StoreIdentity};
use keyhole_secmem::{SecretBytes, give_back_free_memory};
use keyhole_state::{Applied, AuditRecord, Envelope, Rejected, State};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
};
use openraft::network::NetSnapshot;
use openraft::{Raft, RaftNetworkFactory, ReadPolicy};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Told the audit record of every applied command, in order, on every manager; after a crash it may be told the last
/// ones again, with their indexes.
pub type Observer = Arc<dyn Fn(&AuditRecord) + Send + Sync>;

/// Told why this manager has to stop. May be called from any thread, and more than once.
pub type OnStop = Arc<dyn Fn(String) + Send + Sync>;

/// Settings that tests and small machines change.
#[derive(Debug, Clone, Copy)]
pub struct StartOptions {
    /// A snapshot is due when the log since the last one is larger.
    pub snapshot_at_bytes: u64,
    /// Bytes of the log that stay after a snapshot, for followers a little behind.
    pub keep_log_bytes: u64,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { snapshot_at_bytes: 16 << 20, keep_log_bytes: 4 << 20 }
    }
}

/// Why Raft did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store refused to open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's content is not understood.
    #[error("{0}")]
    Content(#[from] std::io::Error),
    /// openraft refused what it found, or its settings.
    #[error("Raft does not start: {0}")]
    Raft(String),
}

/// Why a proposal or a read was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another manager leads, or none does at the moment.
    #[error("this manager does not lead the cluster{}", leader_hint(.leader))]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<Peer>,
    },
    /// Leadership was lost on the way: the command may or may not come to be.
    #[error("leadership changed on the way; look whether the command was done before repeating it")]
    Unknown,
    /// Raft has stopped.
    #[error("this manager is stopping: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn leader_hint(leader: &Option<Peer>) -> String {
    match leader {
        Some(peer) => format!("; {} does", peer.address),
        None => "; no leader is known, try again".to_owned(),
    }
}

/// A command that is in the log for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its index in the log.
    pub index: u64,
    /// What the state made of it.
    pub result: Result<Applied, Rejected>,
}

/// Raft's own view of things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub member: u64,
    /// The current term.
    pub term: u64,
    /// Who leads, as far as known.
    pub leader: Option<u64>,
    /// Whether this member leads.
    pub is_leader: bool,
    /// The last entry in the log.
    pub last_log: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The last entry that a snapshot covers.
    pub snapshot: Option<u64>,
    /// The members, and whether each has a vote.
    pub members: BTreeMap<u64, (Peer, bool)>,
}

/// Raft on this manager. Clones are the same one.
#[derive(Clone)]
pub struct RaftHandle {
    raft: Raft<TypeConfig, StateMachine>,
    store: Arc<Store>,
    live: Live,
}

impl RaftHandle {
    /// Opens the store in `folder`, loads the state and joins the cluster over `network`.
    pub async fn start<N>(
        folder: &Path,
        kek: &Kek,
        network: N,
        options: StartOptions,
        observer: Observer,
        on_stop: OnStop,
    ) -> Result<Self, StartError>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        let loader = Loader::default();
        let failed = on_stop.clone();
        let store = Store::open(
            folder,
            kek,
            Box::new(move |error| failed(error.to_string())),
            &|key, value| loader.take(key, value),
        )?;
        let store = Arc::new(store);
        let (state, meta) = loader.finish(&store)?;
        give_back_free_memory();
        let live = Live::new(state, observer);
        let machine = StateMachine::new(store.clone(), live.clone(), meta);
        let identity = store.identity().clone();
        let config = raft_config(&identity.cluster).map_err(|e| StartError::Raft(e.to_string()))?;
        let log = LogStore::new(store.clone());
        let raft = Raft::new(identity.member, Arc::new(config), network, log, machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        let limits =
            LogLimits { snapshot_at: options.snapshot_at_bytes, keep: options.keep_log_bytes };
        let stopped = move |reason| on_stop(reason);
        tokio::spawn(keep_log_short(raft.clone(), store.clone(), live.clone(), limits, stopped));
        let handle = Self { raft, store, live };
        handle.lead_if_alone().await;
        Ok(handle)
    }

    /// A single voter need not wait for an election timeout.
    async fn lead_if_alone(&self) {
        if self.raft.voter_ids().eq([self.identity().member]) {
            // A failure is a stop, which is reported elsewhere.
            let _ = self.raft.trigger().elect(false).await;
        }
    }

    /// Makes this manager a cluster of one, if it is in none.
    pub async fn found(&self, own: Peer) -> Result<(), ProposeError> {
        let members = BTreeMap::from([(self.identity().member, own)]);
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(e))) => {
                Err(ProposeError::Stopped { reason: e.to_string() })
            }
            Err(RaftError::Fatal(fatal)) => {
                Err(ProposeError::Stopped { reason: fatal.to_string() })
            }
        }
    }

    /// Proposes a command; answered when it is committed and applied here.
    pub async fn propose(&self, envelope: Envelope) -> Result<Committed, ProposeError> {
        let written = self.raft.client_write(Command(Arc::new(envelope))).await;
        let written = written.map_err(|error| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => not_leader(to),
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ProposeError::Unknown,
            other => ProposeError::Stopped { reason: other.to_string() },
        })?;
        match written.data {
            Some(result) => Ok(Committed { index: written.log_id.index, result }),
            None => Err(ProposeError::Unknown),
        }
    }

    /// Looks at the state as applied here, which on a follower may be behind.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.live.state())
    }

    /// Looks at the state once it has all that was committed in the cluster before this call.
    pub async fn read_latest<R>(&self, look: impl FnOnce(&State) -> R) -> Result<R, ProposeError> {
        self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(
            |error| match error {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => not_leader(to),
                RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                    ProposeError::NotLeader { leader: None }
                }
                other => ProposeError::Stopped { reason: other.to_string() },
            },
        )?;
        Ok(self.read(look))
    }

    /// Applied changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.live.changes()
    }

    /// The index of the last applied entry, as it moves.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.live.applied()
    }

    /// Waits until `index` is applied here; `false` if that took longer than `within`.
    pub async fn wait_applied(&self, index: u64, within: Duration) -> bool {
        let mut applied = self.live.applied();
        matches!(
            tokio::time::timeout(within, applied.wait_for(|now| *now >= index)).await,
            Ok(Ok(_))
        )
    }

    /// Waits until some manager leads; `false` if that took longer than `within`.
    pub async fn wait_leader(&self, within: Duration) -> bool {
        let led = |metrics: &openraft::RaftMetrics<TypeConfig>| metrics.current_leader.is_some();
        self.raft.wait(Some(within)).metrics(led, "a leader").await.is_ok()
    }

    /// Raft's own view of things.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters: std::collections::BTreeSet<_> = membership.voter_ids().collect();
        Status {
            member: metrics.id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            is_leader: metrics.current_leader == Some(metrics.id),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            members: membership
                .nodes()
                .map(|(id, peer)| (*id, (peer.clone(), voters.contains(id))))
                .collect(),
        }
    }

    /// Whose store this is.
    #[must_use]
    pub fn identity(&self) -> &StoreIdentity {
        self.store.identity()
    }

    /// Keeps a secret of this member only, beside the replicated state; `None` removes it.
    pub async fn local_put(
        &self,
        name: &str,
        secret: Option<SecretBytes>,
    ) -> Result<(), StoreError> {
        on_disk(|done| self.store.local_put(name, secret, done)).await
    }

    /// A secret of this member.
    pub fn local_get(&self, name: &str) -> Result<Option<SecretBytes>, StoreError> {
        self.store.local_get(name)
    }

    /// openraft's handle, for a transport to hand incoming requests to.
    #[must_use]
    pub fn raft(&self) -> &Raft<TypeConfig, StateMachine> {
        &self.raft
    }

    /// Stops Raft, commits what is queued and closes the store.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "Raft ended badly");
        }
        let flushed = on_disk(|done| self.store.flush(done)).await;
        let store = self.store.clone();
        // Joins the writer's thread.
        let _ = tokio::task::spawn_blocking(move || store.stop()).await;
        flushed
    }
}

fn not_leader(to: ForwardToLeader<TypeConfig>) -> ProposeError {
    ProposeError::NotLeader { leader: to.leader_node }
}
