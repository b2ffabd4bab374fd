//! openraft's log storage over the store.
//!
//! Depends on the store's queue. Invariant: votes, appends, truncations and purges go through the one queue in the order
//! openraft gave them, and are reported when they are on disk.
use super::types::{Entry, LogId, TypeConfig, Vote, log_id, position};
use super::wire::{entry_bytes, entry_from, vote_bytes, vote_from};
use crate::store::{Done, LogRow, Store, StoreError};
use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use tokio::sync::oneshot;

/// One read for a follower takes at most this many bytes of entries.
pub(super) const READ_BYTES: u64 = 2 << 20;

/// The log, and its readers: clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    store: Arc<Store>,
}

impl LogStore {
    /// The log in `store`.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    pub(super) fn entries(&self, range: Range<u64>, limit: u64) -> io::Result<Vec<Entry>> {
        let rows = self.store.read_log(range, limit)?;
        rows.into_iter().map(|row| entry_from(row.position, row.data)).collect()
    }
}

/// Hands a job to the store and waits until it is on disk.
pub(crate) async fn on_disk(job: impl FnOnce(Done)) -> Result<(), StoreError> {
    let (sender, receiver) = oneshot::channel();
    job(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or(Err(StoreError::Stopped))
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.entries(bounds(&range), u64::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.store.vote().as_deref().map(vote_from).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start..end, READ_BYTES)
    }

    /// Reads piece by piece: a long range to apply is never in memory as a whole.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let piece = |(log, range): (Self, Range<u64>)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let entries = log.entries(range.clone(), READ_BYTES)?;
            let Some(last) = entries.last() else { return Ok(None) };
            let rest = last.log_id.index + 1..range.end;
            Ok::<_, io::Error>(Some((
                futures::stream::iter(entries.into_iter().map(Ok)),
                (log, rest),
            )))
        };
        let pieces = futures::stream::try_unfold((self.clone(), bounds(&range)), piece);
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let bounds = self.store.log_bounds();
        Ok(LogState {
            last_purged_log_id: bounds.purged.map(log_id),
            last_log_id: bounds.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = vote_bytes(vote);
        Ok(on_disk(|done| self.store.save_vote(vote, done)).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed.as_ref().map(position));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let row = |entry: Entry| LogRow {
            position: position(&entry.log_id),
            data: entry_bytes(&entry).into(),
        };
        let rows = entries.into_iter().map(row).collect();
        let done = Box::new(|result: Result<(), StoreError>| {
            callback.io_completed(result.map_err(io::Error::from));
        });
        Ok(self.store.append(rows, done)?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let last = last_log_id.map(|id| id.index);
        Ok(on_disk(|done| self.store.truncate_after(last, done)).await?)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        // Not waited for: entries that come back after a crash are purged again.
        self.store.purge(position(&upto));
        Ok(())
    }
}
