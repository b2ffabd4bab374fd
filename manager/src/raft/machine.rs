//! openraft's state machine: the pure state in memory, mirrored as rows through the store's queue.
//!
//! Depends on the pure state, the codec and the store. Invariant: entries are applied in the log's order and exactly
//! once to the state; who waits for a position learns of it only after the state is there.
use super::handle::{Observed, Observer};
use super::log::{LogStore, READ_BYTES, on_disk};
use super::outcomes::{Fate, Outcomes, Sent};
use super::snapshot::{SnapshotBuilder, SnapshotData, StoredRows};
use super::types::{
    Command, Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig, position,
};
use super::wire::{meta_bytes, meta_from, row_key_bytes};
use crate::codec::{encode_row, row_from_bytes};
use crate::store::{Position, RowChange, Store};
use futures::{Stream, StreamExt};
use keyhole_domain::NodeId;
use keyhole_state::{Applied, Rejected, Row, RowKey, State, audit};
use openraft::alias::SnapshotOf;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::{broadcast, watch};

/// How many changes a slow subscriber may be behind before it has to look at everything.
const CHANGES: usize = 1024;

/// The log moved on.
#[derive(Debug, Clone)]
pub struct Change {
    /// Up to here.
    pub index: u64,
    /// The nodes whose assignment may have changed.
    pub nodes: Arc<BTreeSet<NodeId>>,
    /// Whether an operator or a manager may be new, another, or gone.
    pub callers: bool,
}

/// The state and who listens to it. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Live {
    inner: Arc<LiveInner>,
}

struct LiveInner {
    state: RwLock<State>,
    changes: broadcast::Sender<Change>,
    applied: watch::Sender<u64>,
    observer: Observer,
    /// What came of the last entries that nobody here waits for: another manager may have proposed them for this one.
    outcomes: Mutex<Outcomes>,
}

impl Live {
    pub(crate) fn new(state: State, observer: Observer) -> Self {
        let applied = watch::channel(state.index()).0;
        let outcomes = Mutex::new(Outcomes::since(state.index()));
        let changes = broadcast::channel(CHANGES).0;
        Self {
            inner: Arc::new(LiveInner {
                state: RwLock::new(state),
                changes,
                applied,
                observer,
                outcomes,
            }),
        }
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.inner.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.subscribe()
    }

    /// What became of a command, unless its proposer here was told.
    pub(super) fn fate(&self, sent: Sent) -> Fate {
        self.outcomes().fate(sent)
    }

    fn outcomes(&self) -> MutexGuard<'_, Outcomes> {
        self.inner.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.inner.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn announce(&self, index: u64, nodes: BTreeSet<NodeId>, callers: bool) {
        self.inner.applied.send_replace(index);
        // Nobody listening is fine.
        let _ = self.inner.changes.send(Change { index, nodes: Arc::new(nodes), callers });
    }
}

/// The replicated state on this member.
pub struct StateMachine {
    store: Arc<Store>,
    live: Live,
    meta: SnapshotMeta,
    /// Whether there is a snapshot to hand out: logs may have been purged that only it replaces.
    snapshotted: bool,
}

/// Collects a store's rows while it opens, and makes the state of them.
#[derive(Default)]
pub(crate) struct Loader {
    rows: Mutex<Vec<Row>>,
}

impl Loader {
    pub(crate) fn take(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let row = row_from_bytes(value).map_err(|e| format!("state row: {e}"))?;
        if row_key_bytes(&row.key()) != key {
            return Err("a state row lies under another's key".to_owned());
        }
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        Ok(())
    }

    pub(crate) fn finish(self, store: &Store) -> io::Result<(State, SnapshotMeta)> {
        let meta = store.applied().as_deref().map(meta_from).transpose()?.unwrap_or_default();
        let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let rows = self.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((State::from_rows(index, rows), meta))
    }
}

impl StateMachine {
    pub(crate) fn new(store: Arc<Store>, live: Live, meta: SnapshotMeta) -> Self {
        let snapshotted = store.log_bounds().purged.is_some();
        Self { store, live, meta, snapshotted }
    }

    /// A state machine over a store that was just opened, and whose rows nobody else needs; for storage tests.
    pub fn open(
        folder: &std::path::Path,
        kek: &crate::keys::Kek,
        observer: Observer,
    ) -> Result<(Arc<Store>, Self), super::StartError> {
        let loader = Loader::default();
        let store =
            Store::open(folder, kek, Box::new(|_| ()), &|key, value| loader.take(key, value))?;
        let store = Arc::new(store);
        let (state, meta) = loader.finish(&store)?;
        let live = Live::new(state, observer);
        Ok((store.clone(), Self::new(store, live, meta)))
    }

    fn apply_entry(&mut self, entry: Entry, awaited: bool) -> Response {
        let id = entry.log_id;
        let mut proposal = 0;
        let response = match entry.payload {
            EntryPayload::Normal(command) => {
                proposal = command.proposal;
                Some(self.apply_command(&id, &command))
            }
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.meta.last_membership = StoredMembership::new(Some(id), membership);
                None
            }
        };
        self.meta.last_log_id = Some(id);
        let (rows, nodes) = match &response {
            Some(Ok(applied)) => (applied.rows.clone(), applied.nodes.clone()),
            Some(Err(_)) => Default::default(),
            None => {
                self.live.change(|state| state.skip(id.index));
                Default::default()
            }
        };
        self.store.put_rows(self.row_changes(&rows), meta_bytes(&self.meta));
        let kept = response.as_ref().filter(|_| !awaited && proposal != 0);
        let outcome = kept.map(|outcome| (proposal, outcome.clone()));
        self.live.outcomes().applied(position(&id), outcome);
        let calls = |key: &RowKey| matches!(key, RowKey::Operator(_) | RowKey::Member(_));
        self.live.announce(id.index, nodes, rows.iter().any(calls));
        response
    }

    /// Applies what the log has beyond the rows, up to index `last`. What was not committed must only be applied where nobody
    /// is left who could decide otherwise.
    pub(super) fn replay(&mut self, log: &LogStore, last: u64) -> io::Result<()> {
        each(log, self.next()..=last, |entry| drop(self.apply_entry(entry, false)))
    }

    /// What the state would say to a command at `index`, after all that the log has. Nothing is applied.
    pub(super) fn judge(
        &self,
        log: &LogStore,
        (index, command): (u64, &Command),
    ) -> io::Result<Result<(), Rejected>> {
        let mut state = self.live.state().clone();
        each(log, self.next()..=u64::MAX, |entry| match entry.payload {
            EntryPayload::Normal(command) => {
                drop(state.apply(entry.log_id.index, &command.envelope));
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => state.skip(entry.log_id.index),
        })?;
        Ok(state.apply(index, &command.envelope).map(drop))
    }

    fn next(&self) -> u64 {
        self.meta.last_log_id.as_ref().map_or(0, |last| last.index + 1)
    }

    /// The last entry that is applied.
    pub(super) fn applied_position(&self) -> Option<Position> {
        self.meta.last_log_id.as_ref().map(position)
    }

    /// Applies a command that is in no log, as the beginning of another history.
    pub(super) fn begin(&mut self, meta: SnapshotMeta, command: &Command) -> Result<(), Rejected> {
        let Some(id) = meta.last_log_id else { return Ok(()) };
        let applied = self.apply_command(&id, command)?;
        self.store.put_rows(self.row_changes(&applied.rows), meta_bytes(&meta));
        self.meta = meta;
        Ok(())
    }

    fn apply_command(&self, id: &LogId, command: &Command) -> Result<Applied, Rejected> {
        let envelope = &*command.envelope;
        let (names, result) = self.live.change(|state| {
            let names = state.audit_objects(&envelope.command);
            (names, state.apply(id.index, envelope))
        });
        if let Some(record) = audit(id.index, envelope, names, &result) {
            (self.live.inner.observer)(Observed::Applied(&record));
        }
        result
    }

    fn row_changes(&self, keys: &BTreeSet<RowKey>) -> Vec<RowChange> {
        let state = self.live.state();
        let value = |key: &RowKey| state.row(*key).map(|row| encode_row(&row).encode_to_vec());
        keys.iter().map(|key| (row_key_bytes(key), value(key))).collect()
    }
}

/// Takes each entry of the log in a range, a piece at a time.
fn each(log: &LogStore, range: RangeInclusive<u64>, mut take: impl FnMut(Entry)) -> io::Result<()> {
    let mut next = *range.start();
    loop {
        let end = range.end().saturating_add(1).max(next);
        let entries = log.entries(next..end, READ_BYTES)?;
        let Some(last) = entries.last() else { return Ok(()) };
        next = last.log_id.index + 1;
        entries.into_iter().for_each(&mut take);
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.meta.last_log_id, self.meta.last_membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            tracing::trace!(index = entry.index(), "apply");
            let response = self.apply_entry(entry, responder.is_some());
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.snapshotted = true;
        SnapshotBuilder::new(&self.store)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let rows = Arc::new(snapshot.into_rows()?);
        let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let from = self.meta.last_log_id.as_ref().map_or(0, |id| id.index) + 1;
        // As with each change, before the store has it: a crash in between makes a line too many, and none too few.
        if from <= index {
            (self.live.inner.observer)(Observed::Skipped { from, to: index });
        }
        let stored = Box::new(StoredRows::new(rows.clone()));
        let applied = meta_bytes(meta);
        on_disk(|done| self.store.install_rows(stored, applied, done)).await?;
        // The store has given its part back by now.
        let rows = Arc::try_unwrap(rows).unwrap_or_else(|shared| (*shared).clone());
        let nodes = self.live.change(|state| {
            let mut nodes: BTreeSet<_> = state.nodes().keys().copied().collect();
            *state = State::from_rows(index, rows);
            nodes.extend(state.nodes().keys().copied());
            nodes
        });
        self.meta = meta.clone();
        self.snapshotted = true;
        *self.live.outcomes() = Outcomes::since(index);
        self.live.announce(index, nodes, true);
        Ok(())
    }

    /// The rows are always there, so the current snapshot is made when it is asked for, as of now.
    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        match self.snapshotted {
            true => SnapshotBuilder::new(&self.store).build_snapshot().await.map(Some),
            false => Ok(None),
        }
    }
}
