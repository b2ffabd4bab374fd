//! All that the rest of the manager sees of Raft: start, propose, read, hear of changes, stop.
//!
//! Depends on the other modules here. Invariant: a proposal that was answered is on disk at a quorum and applied here, so
//! that the caller's next read sees it.
use super::line::Dial;
use super::log::{LogStore, on_disk};
use super::machine::{Change, Live, Loader, StateMachine};
use super::outcomes::{Fate, Sent};
use super::peers::Peers;
use super::policy::{LogLimits, keep_log_short, raft_config};
use super::snapshot::{SnapshotBuilder, SnapshotData};
use super::types::{Command, LogId, Peer, TypeConfig, position};
use crate::keys::Kek;
use crate::store::{
    Load, OnFatal, OnStep, Position, SealedFor, SealedStore, Store, StoreError, StoreIdentity,
};
use keyhole_domain::ClusterId;
use keyhole_secmem::{SecretBytes, give_back_free_memory};
use keyhole_state::{Applied, AuditRecord, Envelope, Rejected, State};
use openraft::alias::{CommittedLeaderIdOf, WatchReceiverOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::metrics::RaftServerMetrics;
use openraft::network::NetSnapshot;
use openraft::{
    Instant as _, Raft, RaftMetrics, RaftNetworkFactory, RaftSnapshotBuilder, ReadPolicy,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout};

/// What becomes of the log on this manager, for its audit.
#[derive(Debug, Clone, Copy)]
pub enum Observed<'a> {
    /// The record of an applied command.
    Applied(&'a AuditRecord),
    /// A snapshot is taken for what came of the entries from one index to another, which are not applied here.
    Skipped {
        /// The first index.
        from: u64,
        /// The last one.
        to: u64,
    },
}

/// Told of every entry, in order, on every manager; after a crash it may be told of the last ones again, with their
/// indexes.
pub type Observer = Arc<dyn Fn(Observed<'_>) + Send + Sync>;

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
        /// The leader, if one is known: its number, and where it is.
        leader: Option<(u64, Peer)>,
    },
    /// The leader does not do that for this manager.
    #[error("the leader refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// It did not show in time whether the command will come to be.
    #[error("{why}; look whether the command was done before repeating it")]
    Unknown {
        /// What came between.
        why: String,
    },
    /// Raft has stopped.
    #[error("this manager is stopping: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn leader_hint(leader: &Option<(u64, Peer)>) -> String {
    match leader {
        Some((_, peer)) => format!("; {} does, and is not reached", peer.address),
        None => "; none does: are most of the managers up and in reach of each other? Try again"
            .to_owned(),
    }
}

/// How long a command or a read waits for a manager to lead. An election takes two seconds at most.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a leader waits until others have a command; one that is cut off does not learn whether they do.
const COMMITTED: Duration = Duration::from_secs(20);
/// How long another manager has to take the lead.
const HANDED_OVER: Duration = Duration::from_secs(3);
/// How long a follower may take to apply what the leader has, before it asks again.
const CATCHING_UP: Duration = Duration::from_secs(2);
/// How soon a leader that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(100);

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
    /// The entry that made the membership what it is.
    pub membership: u64,
    /// The members, and whether each has a vote.
    pub members: BTreeMap<u64, (Peer, bool)>,
    /// On the leader: how far each other one is, and when it last answered.
    pub others: BTreeMap<u64, Progress>,
}

/// How a member follows, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The last entry that it has on disk.
    pub matched: u64,
    /// How long ago it last answered; `None`: never to this leader.
    pub silent: Option<Duration>,
}

/// Who has not answered for so long is out of reach; a heartbeat goes out four times a second.
pub const OUT_OF_REACH: Duration = Duration::from_secs(2);

/// Raft on this manager. Clones are the same one.
#[derive(Clone)]
pub struct RaftHandle {
    raft: Raft<TypeConfig, StateMachine>,
    store: Arc<Store>,
    live: Live,
    /// The way to the leader, where there are several managers.
    peers: Peers,
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
        let open =
            |on_fatal, load: Load<'_>| Store::open(folder, kek, on_fatal, load).map(Arc::new);
        Self::start_on(open, network, options, observer, on_stop).await
    }

    /// As [`Self::start`], on the store that `open` gives; for simulations.
    pub async fn start_on<N>(
        open: impl FnOnce(OnFatal, Load<'_>) -> Result<Arc<Store>, StoreError>,
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
        let on_fatal: OnFatal = Box::new(move |error| failed(error.to_string()));
        let store = open(on_fatal, &|key, value| loader.take(key, value))?;
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
        let handle = Self { raft, store, live, peers: Peers::default() };
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

    /// Calls other managers by `peers`, which the network is too; `dial` makes the connections.
    #[must_use]
    pub fn with_peers(self, peers: Peers, cluster: ClusterId, dial: impl Dial) -> Self {
        peers.open(cluster, self.live.clone(), Arc::new(dial));
        Self { peers, ..self }
    }

    /// The ways to other managers.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Proposes a command here, or by the leader; answered when it is committed and applied here. However often leaders
    /// change meanwhile, it is done once.
    pub async fn propose(&self, envelope: Envelope) -> Result<Committed, ProposeError> {
        let envelope = Arc::new(envelope);
        let command = Command { envelope, proposal: fresh_proposal()? };
        let mut patience = self.patience();
        loop {
            match self.propose_once(&command).await {
                Err(ProposeError::NotLeader { .. }) if patience.once_more().await => {}
                done => return done,
            }
        }
    }

    /// [`ProposeError::NotLeader`] means that the command will not come to be, and may be proposed again.
    async fn propose_once(&self, command: &Command) -> Result<Committed, ProposeError> {
        let (term, leader, peer) =
            self.leading().ok_or(ProposeError::NotLeader { leader: None })?;
        let after = *self.live.applied().borrow();
        let sent = Sent { proposal: command.proposal, term, after };
        let told = if leader == self.identity().member {
            // Not settled after it: its outcome is told to its responder, which is gone then, and kept nowhere.
            let here = timeout(COMMITTED, self.propose_here(command.clone(), term)).await;
            here.map_err(|_elapsed| unknown("most of the managers did not take it in time"))?
                .map(Some)
        } else {
            tokio::select! {
                told = self.propose_there(term, (leader, peer), command) => told.map(|()| None),
                // If the leader is gone, its answer does not come.
                () = self.until_after(term) => Err(changed()),
            }
        };
        match told {
            Ok(Some(committed)) => Ok(committed),
            // It is committed, or may be; what came of it is the same here.
            Ok(None) | Err(ProposeError::Unknown { .. }) => {
                let late = |_elapsed| unknown("the leader did not answer, and none came after it");
                timeout(PATIENCE, self.settle(sent)).await.map_err(late)?
            }
            Err(error) => Err(error),
        }
    }

    /// Proposes a command if this manager leads in this term.
    pub(super) async fn propose_here(
        &self,
        command: Command,
        term: u64,
    ) -> Result<Committed, ProposeError> {
        let stopped =
            |fatal: Fatal<TypeConfig>| ProposeError::Stopped { reason: fatal.to_string() };
        let (responder, answer) = ProgressResponder::complete_only();
        let leader = CommittedLeaderIdOf::<TypeConfig>::new(term);
        let write = self.raft.write(command).with_leader(leader).responder(responder);
        write.await.map_err(stopped)?;
        match answer.await {
            Ok(Ok(written)) => {
                let index = written.log_id.index;
                let result = written.data.ok_or_else(changed)?;
                Ok(Committed { index, result })
            }
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => Err(not_leader(to)),
            // It may be in the log by now, and on its way to others.
            Ok(Err(_)) | Err(_) => Err(changed()),
        }
    }

    /// Has the leader of a term propose a command.
    async fn propose_there(
        &self,
        term: u64,
        (leader, peer): (u64, Peer),
        command: &Command,
    ) -> Result<(), ProposeError> {
        match self.peers.propose((leader, &peer), command, term).await {
            Ok(reply) if reply.refused.is_empty() => Ok(()),
            Ok(reply) => Err(ProposeError::Refused { reason: reply.refused }),
            Err(error) => {
                tracing::debug!(leader, %error, "the leader did not take a command");
                Err(match error.not_sent() {
                    true => ProposeError::NotLeader { leader: Some((leader, peer)) },
                    false => changed(),
                })
            }
        }
    }

    /// Waits until a term is over as far as this manager knows, or Raft stops here.
    async fn until_after(&self, term: u64) {
        let mut metrics = self.raft.server_metrics();
        // An error says that Raft has stopped.
        let _ = metrics.wait_until(|now| now.vote.leader_id.term > term).await;
    }

    /// Waits until it shows what became of a command: all that is committed is applied here, too.
    async fn settle(&self, sent: Sent) -> Result<Committed, ProposeError> {
        let (mut applied, mut metrics) = (self.live.applied(), self.raft.server_metrics());
        loop {
            applied.mark_unchanged();
            match self.live.fate(sent) {
                Fate::Applied(index, result) => return Ok(Committed { index, result }),
                Fate::Discarded => return Err(ProposeError::NotLeader { leader: None }),
                Fate::Forgotten => return Err(changed()),
                Fate::Pending => {}
            }
            tokio::select! {
                _ = applied.changed() => {}
                running = metrics.changed() => if running.is_err() {
                    let why = self.raft.metrics().borrow_watched().running_state.clone().err();
                    let why = why.map_or_else(String::new, |fatal| format!(": {fatal}"));
                    return Err(unknown(&format!("this manager is stopping{why}")));
                },
            }
        }
    }

    /// The term, and who leads in it.
    fn leading(&self) -> Option<(u64, u64, Peer)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let peer = metrics.membership_config.membership().get_node(&leader)?;
        Some((metrics.vote.leader_id.term, leader, peer.clone()))
    }

    fn patience(&self) -> Patience {
        let metrics = self.raft.server_metrics();
        let leader = metrics.borrow_watched().current_leader;
        Patience { metrics, leader, until: Instant::now() + PATIENCE }
    }

    /// Looks at the state as applied here, which on a follower may be behind.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.live.state())
    }

    /// Waits until the state here has all that was committed in the cluster before this call.
    pub async fn catch_up(&self) -> Result<(), ProposeError> {
        let mut patience = self.patience();
        loop {
            let caught_up = match self.read_index().await {
                Err(ProposeError::NotLeader { leader: Some((leader, peer)) }) => {
                    self.catch_up_with(leader, peer).await
                }
                here => here.map(drop),
            };
            match caught_up {
                Err(ProposeError::NotLeader { .. }) if patience.once_more().await => {}
                done => return done,
            }
        }
    }

    async fn catch_up_with(&self, leader: u64, peer: Peer) -> Result<(), ProposeError> {
        match self.peers.read_index(leader, &peer).await {
            Ok(index) if self.wait_applied(index, CATCHING_UP).await => return Ok(()),
            Ok(index) => tracing::debug!(leader, index, "what the leader has is not here yet"),
            Err(error) => tracing::debug!(leader, %error, "the leader does not say how far it is"),
        }
        Err(ProposeError::NotLeader { leader: Some((leader, peer)) })
    }

    /// If this manager leads: waits until the state has all that was committed before this call; up to where that is.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        read.map(|read| read.index()).map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => not_leader(to),
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                ProposeError::NotLeader { leader: None }
            }
            other => ProposeError::Stopped { reason: other.to_string() },
        })
    }

    /// Looks at the state once it has all that was committed in the cluster before this call.
    pub async fn read_latest<R>(&self, look: impl FnOnce(&State) -> R) -> Result<R, ProposeError> {
        self.catch_up().await?;
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
        matches!(timeout(within, applied.wait_for(|now| *now >= index)).await, Ok(Ok(_)))
    }

    /// Waits until some manager leads; `false` if that took longer than `within`.
    pub async fn wait_leader(&self, within: Duration) -> bool {
        let led = |metrics: &RaftMetrics<TypeConfig>| metrics.current_leader.is_some();
        self.raft.wait(Some(within)).metrics(led, "a leader").await.is_ok()
    }

    /// The state's rows as of now, with the position that they stand for.
    pub(crate) async fn rows(&self) -> std::io::Result<(Position, SnapshotData)> {
        let built = SnapshotBuilder::new(&self.store).build_snapshot().await?;
        let last = built.meta.last_log_id.as_ref().map(position);
        Ok((last.unwrap_or_default(), built.snapshot))
    }

    /// If this manager leads: lets another one lead, by default the one that is furthest, and waits until this manager
    /// does not any more. Who leads then.
    pub async fn hand_over(&self, wanted: Option<u64>) -> Result<u64, String> {
        let status = self.status();
        if !status.is_leader {
            return Err("this manager does not lead".to_owned());
        }
        let ready = |(id, progress): &(&u64, &Progress)| {
            let votes = status.members.get(id).is_some_and(|(_, voter)| *voter);
            let reached = progress.silent.is_some_and(|silent| silent < OUT_OF_REACH);
            votes && reached && wanted.is_none_or(|to| to == **id)
        };
        let best = status.others.iter().filter(ready).max_by_key(|(_, progress)| progress.matched);
        let Some((&to, _)) = best else {
            return Err(match wanted {
                Some(to) => format!("manager {to} does not vote, or is not in reach"),
                None => "no other manager that votes is in reach".to_owned(),
            });
        };
        let stopped = |fatal: Fatal<TypeConfig>| fatal.to_string();
        self.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let own = status.member;
        let led = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.current_leader.is_some_and(|leader| leader != own)
        };
        let moved = self.raft.wait(Some(HANDED_OVER)).metrics(led, "another leader").await;
        match moved.ok().and_then(|metrics| metrics.current_leader) {
            Some(leader) if leader == to || wanted.is_none() => Ok(leader),
            Some(leader) => Err(format!("manager {leader} has taken the lead, and not {to}")),
            None => Err(format!("manager {to} did not take the lead in time")),
        }
    }

    /// Waits until Raft is as `is` wants it; `false` if that took longer than `within`.
    pub async fn wait_status(&self, within: Duration, is: impl Fn(&Status) -> bool) -> bool {
        timeout(within, self.until_status(is)).await.is_ok()
    }

    /// Waits until Raft is as `is` wants it; for ever if it stops before.
    pub async fn until_status(&self, is: impl Fn(&Status) -> bool) {
        let mut metrics = self.raft.metrics();
        while !is(&status(&metrics.borrow_and_update())) {
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether the manager with this certificate's id has a vote.
    #[must_use]
    pub fn votes(&self, name: &str) -> bool {
        self.status().members.values().any(|(peer, votes)| *votes && peer.name == name)
    }

    /// Raft's own view of things.
    #[must_use]
    pub fn status(&self) -> Status {
        status(&self.raft.metrics().borrow_watched())
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

    /// What the store is sealed for.
    #[must_use]
    pub fn store_sealed_for(&self) -> SealedFor {
        self.store.sealed_for()
    }

    /// What can be said of the store without its key.
    #[must_use]
    pub fn store_sealed(&self) -> SealedStore {
        self.store.as_sealed()
    }

    /// Writes the store anew under a new key that `kek` wraps, while it serves.
    pub async fn rewrite_store(
        &self,
        kek: &Kek,
        sealed_for: SealedFor,
        on_step: OnStep,
    ) -> Result<(), StoreError> {
        on_disk(|done| self.store.rewrite(kek, sealed_for, on_step, done)).await
    }

    /// Forgets the log up to an index that is applied here, inclusive.
    pub async fn forget_log(&self, index: u64) -> Result<(), String> {
        let mut metrics = self.raft.metrics();
        loop {
            let covered = metrics.borrow_and_update().snapshot.map_or(0, |id| id.index);
            if self.store.log_bounds().purged.is_some_and(|purged| purged.index >= index) {
                return Ok(());
            }
            let asked = match covered < index {
                true => self.raft.trigger().snapshot().await,
                false => self.raft.trigger().purge_log(index).await,
            };
            asked.map_err(|error| error.to_string())?;
            // A follower may be reading what is to go.
            let _ = timeout(AGAIN, metrics.changed()).await;
        }
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

/// Goes on trying while no leader takes something, for as long as an election may last.
struct Patience {
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    leader: Option<u64>,
    until: Instant,
}

impl Patience {
    /// Waits for another leader, or a moment: the same one may only be out of reach. `false` when it is enough.
    async fn once_more(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        let another = async {
            while self.metrics.borrow_watched().current_leader == self.leader {
                if self.metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        // The time is up, or there is another one: both are a reason to ask again.
        let _ = timeout(AGAIN, another).await;
        self.leader = self.metrics.borrow_watched().current_leader;
        true
    }
}

/// Told from all others on their way at the same time.
fn fresh_proposal() -> Result<u64, ProposeError> {
    let mut bytes = [0; 8];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| ProposeError::Stopped { reason: error.to_string() })?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn unknown(why: &str) -> ProposeError {
    ProposeError::Unknown { why: why.to_owned() }
}

fn changed() -> ProposeError {
    unknown("leadership changed on the way")
}

fn not_leader(to: ForwardToLeader<TypeConfig>) -> ProposeError {
    ProposeError::NotLeader { leader: to.leader_id.zip(to.leader_node) }
}

fn status(metrics: &RaftMetrics<TypeConfig>) -> Status {
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
        membership: membership.log_id().as_ref().map_or(0, |id| id.index),
        members: membership
            .nodes()
            .map(|(id, peer)| (*id, (peer.clone(), voters.contains(id))))
            .collect(),
        others: others(metrics),
    }
}

fn others(metrics: &RaftMetrics<TypeConfig>) -> BTreeMap<u64, Progress> {
    let heard = metrics.heartbeat.iter().flatten();
    let heard: BTreeMap<u64, Duration> =
        heard.filter_map(|(id, at)| Some((*id, at.as_ref()?.elapsed()))).collect();
    let replication = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
    let progress = |(id, matched): (&u64, &Option<LogId>)| {
        let matched = matched.as_ref().map_or(0, |matched| matched.index);
        (*id, Progress { matched, silent: heard.get(id).copied() })
    };
    replication.map(progress).collect()
}
