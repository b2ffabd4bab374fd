//! A store without Raft running: filled, or rewritten, as the beginning of a cluster of one.
//!
//! Depends on the store, the machine and the pure state. Invariant: the new history begins at a position after all that
//! the store ever had, so that nothing of the old log is taken up again, also if this process is killed half way.
use super::handle::{Observer, StartError};
use super::log::{LogStore, on_disk};
use super::machine::{Live, Loader, StateMachine};
use super::types::{Command, Membership, Peer, SnapshotMeta, StoredMembership, Vote, log_id};
use super::wire::{invalid, meta_bytes, row_key_bytes, vote_bytes, vote_from};
use crate::codec::encode_row;
use crate::keys::Kek;
use crate::store::{Position, Store, StoreError};
use keyhole_state::{Envelope, Member, Rejected, State};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Rows on their way to the disk.
const FILL_BYTES: usize = 4 << 20;

/// What is applied up to `at`, with one member.
fn alone(at: Position, member: &Member) -> io::Result<SnapshotMeta> {
    let peer = Peer { address: member.address.clone(), name: member.node.to_string() };
    let voters = vec![BTreeSet::from([member.id])];
    let membership = Membership::new(voters, BTreeMap::from([(member.id, peer)]));
    let membership = membership.map_err(|e| invalid(format!("membership: {e}")))?;
    let last = Some(log_id(at));
    Ok(SnapshotMeta { last_log_id: last, last_membership: StoredMembership::new(last, membership) })
}

/// No entry up to `at` is there any more, and the next election is of a higher term.
async fn forget_log(store: &Store, at: Position, member: u64) -> Result<(), StoreError> {
    store.purge(at);
    let vote = vote_bytes(&Vote::new(at.term, member));
    on_disk(|done| store.save_vote(vote, done)).await
}

/// Fills an empty store with a state, as of `at`, in which `member` is alone.
pub(crate) async fn fill(
    store: &Store,
    state: &State,
    at: Position,
    member: &Member,
) -> io::Result<()> {
    let applied = meta_bytes(&alone(at, member)?);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for key in state.row_keys() {
        let row = state.row(key).map(|row| encode_row(&row).encode_to_vec());
        bytes += row.as_ref().map_or(0, Vec::len);
        rows.push((row_key_bytes(&key), row));
        if bytes >= FILL_BYTES {
            bytes = 0;
            store.put_rows(std::mem::take(&mut rows), applied.clone());
            on_disk(|done| store.flush(done)).await?;
        }
    }
    store.put_rows(rows, applied);
    Ok(forget_log(store, at, member.id).await?)
}

/// An existing store and its state.
pub(crate) struct Offline {
    store: Arc<Store>,
    live: Live,
    machine: StateMachine,
}

impl Offline {
    /// Opens the store in `folder` and applies what is known to be committed, as a start of Raft does.
    pub(crate) fn open(folder: &Path, kek: &Kek, observer: Observer) -> Result<Self, StartError> {
        let loader = Loader::default();
        let store =
            Store::open(folder, kek, Box::new(|_| ()), &|key, value| loader.take(key, value))?;
        let store = Arc::new(store);
        let (state, meta) = loader.finish(&store)?;
        let live = Live::new(state, observer);
        let mut machine = StateMachine::new(store.clone(), live.clone(), meta);
        if let Some(committed) = store.committed() {
            machine.replay(&LogStore::new(store.clone()), committed.index)?;
        }
        Ok(Self { store, live, machine })
    }

    /// The Raft id of the member whose store it is.
    pub(crate) fn member(&self) -> u64 {
        self.store.identity().member
    }

    /// Looks at the state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.live.state())
    }

    /// Takes all that the log has as decided, applies a command as the beginning of a history of `member` alone, and
    /// closes the store.
    pub(crate) async fn begin(
        mut self,
        envelope: Envelope,
        member: &Member,
    ) -> Result<Result<(), Rejected>, StartError> {
        self.machine.replay(&LogStore::new(self.store.clone()), u64::MAX)?;
        let vote = self.store.vote().as_deref().map(vote_from).transpose()?;
        let bounds = self.store.log_bounds();
        let applied = self.machine.applied_position();
        let last = bounds.last.max(applied).unwrap_or_default();
        let term = vote.map_or(0, |vote| vote.leader_id.term).max(last.term) + 1;
        let at = Position { term, index: last.index + 1 };
        let command = Command { envelope: Arc::new(envelope), proposal: 0 };
        let begun = self.machine.begin(alone(at, member)?, &command);
        if begun.is_ok() {
            forget_log(&self.store, at, member.id).await?;
        }
        Ok(begun)
    }
}
