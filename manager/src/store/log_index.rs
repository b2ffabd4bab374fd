//! The log as it is known in memory: its bounds, each entry's term and size, and the newest entries themselves.
//!
//! Depends on nothing but the store's types. Invariant: an entry is readable from the moment it is handed in, and stays
//! in the tail here until a commit has made it readable from the file.
use super::{LogRow, Position, StoreError};
use std::collections::VecDeque;

/// The tail keeps flushed entries up to this size, so that replication rarely reads the file.
const TAIL_BYTES: usize = 8 << 20;

#[derive(Clone, Copy)]
struct Slot {
    term: u64,
    /// Bytes of all entries up to this one, since the store was opened.
    end: u64,
}

struct TailRow {
    row: LogRow,
    /// Number of the job that writes it.
    job: u64,
}

/// Bounds, terms, sizes and the newest entries.
#[derive(Default)]
pub(crate) struct LogIndex {
    purged: Option<Position>,
    first: u64,
    slots: VecDeque<Slot>,
    /// Bytes of the entries before the first slot.
    base: u64,
    tail: VecDeque<TailRow>,
    tail_bytes: usize,
    flushed_job: u64,
}

/// What a read of the log needs: the part that is in the file, and the rows that follow it.
pub(crate) struct ReadPlan {
    pub(crate) in_file: std::ops::Range<u64>,
    pub(crate) rows: Vec<LogRow>,
}

impl LogIndex {
    pub(crate) fn new(purged: Option<Position>) -> Self {
        Self { purged, ..Self::default() }
    }

    /// Takes note of an entry that is in the file already.
    pub(crate) fn load(&mut self, index: u64, term: u64, len: usize) {
        if self.slots.is_empty() {
            self.first = index;
        }
        self.push_slot(term, len);
    }

    /// Adds entries that the job `job` will write.
    pub(crate) fn append(&mut self, rows: &[LogRow], job: u64) -> Result<(), StoreError> {
        let mut expected = self.next_index();
        for row in rows {
            if let Some(expected) = expected.filter(|expected| *expected != row.position.index) {
                return Err(StoreError::Hole { expected, found: row.position.index });
            }
            expected = Some(row.position.index + 1);
        }
        for row in rows {
            if self.slots.is_empty() {
                self.first = row.position.index;
            }
            self.push_slot(row.position.term, row.data.len());
            self.tail_bytes += row.data.len();
            self.tail.push_back(TailRow { row: row.clone(), job });
        }
        Ok(())
    }

    /// Forgets the entries after `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<u64>) {
        let end = last.map_or(0, |index| index + 1);
        while !self.slots.is_empty() && self.end() > end {
            self.slots.pop_back();
        }
        while self.tail.back().is_some_and(|row| row.row.position.index >= end) {
            self.drop_tail_row(VecDeque::pop_back);
        }
    }

    /// Forgets the entries up to `upto`, inclusive.
    pub(crate) fn purge(&mut self, upto: Position) {
        while !self.slots.is_empty() && self.first <= upto.index {
            self.base = self.slots.pop_front().map_or(self.base, |slot| slot.end);
            self.first += 1;
        }
        while self.tail.front().is_some_and(|row| row.row.position.index <= upto.index) {
            self.drop_tail_row(VecDeque::pop_front);
        }
        self.purged = self.purged.max(Some(upto));
    }

    /// All jobs up to `job` are committed: their entries can be read from the file.
    pub(crate) fn flushed(&mut self, job: u64) {
        self.flushed_job = job;
        while self.tail_bytes > TAIL_BYTES && self.tail.front().is_some_and(|row| row.job <= job) {
            self.drop_tail_row(VecDeque::pop_front);
        }
    }

    /// What to read for `range`, at most `limit` bytes but at least one entry.
    pub(crate) fn plan(&self, range: std::ops::Range<u64>, limit: u64) -> ReadPlan {
        let start = range.start.max(self.first);
        let end = self.end_within(start, range.end.min(self.end()), limit).max(start);
        let tail_start = self.tail.front().map_or(self.end(), |row| row.row.position.index);
        let skip = usize::try_from(start.saturating_sub(tail_start)).unwrap_or(usize::MAX);
        let rows = self.tail.iter().skip(skip).take_while(|row| row.row.position.index < end);
        ReadPlan {
            in_file: start..end.min(tail_start).max(start),
            rows: rows.map(|row| row.row.clone()).collect(),
        }
    }

    pub(crate) fn purged(&self) -> Option<Position> {
        self.purged
    }

    /// The last entry; when there is none, what was purged last.
    pub(crate) fn last(&self) -> Option<Position> {
        let slot =
            self.slots.back().map(|slot| Position { term: slot.term, index: self.end() - 1 });
        slot.or(self.purged)
    }

    /// The size of all entries that are not purged.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_before(self.end()) - self.base
    }

    /// The size of all entries after `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        self.bytes_before(self.end()) - self.bytes_before(index.saturating_add(1))
    }

    /// The first index from which on the entries have at most `bytes` together.
    pub(crate) fn first_of_last(&self, bytes: u64) -> u64 {
        let until = self.bytes_before(self.end()).saturating_sub(bytes);
        let skipped = self.slots.partition_point(|slot| slot.end < until);
        self.first + skipped as u64 + u64::from(until > self.base)
    }

    /// The size of all entries before `index`, also of those that are gone.
    fn bytes_before(&self, index: u64) -> u64 {
        let skipped = index.min(self.end()).saturating_sub(self.first);
        let last = skipped.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        last.and_then(|at| self.slots.get(at)).map_or(self.base, |slot| slot.end)
    }

    fn next_index(&self) -> Option<u64> {
        self.last().map(|last| last.index + 1)
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn end_within(&self, start: u64, end: u64, limit: u64) -> u64 {
        let until = self.bytes_before(start).saturating_add(limit);
        let fitting = self.first + self.slots.partition_point(|slot| slot.end <= until) as u64;
        fitting.max(start + 1).min(end)
    }

    fn push_slot(&mut self, term: u64, len: usize) {
        let end = self.bytes_before(self.end()) + len as u64;
        self.slots.push_back(Slot { term, end });
    }

    fn drop_tail_row(&mut self, pop: impl FnOnce(&mut VecDeque<TailRow>) -> Option<TailRow>) {
        if let Some(row) = pop(&mut self.tail) {
            self.tail_bytes -= row.row.data.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(term: u64, index: u64, len: usize) -> LogRow {
        LogRow { position: Position { term, index }, data: vec![0; len].into() }
    }

    fn rows(range: std::ops::RangeInclusive<u64>) -> Vec<LogRow> {
        range.map(|index| row(1, index, 10)).collect()
    }

    fn planned(log: &LogIndex, range: std::ops::Range<u64>) -> (std::ops::Range<u64>, Vec<u64>) {
        let plan = log.plan(range, u64::MAX);
        (plan.in_file, plan.rows.iter().map(|row| row.position.index).collect())
    }

    #[test]
    fn entries_leave_the_tail_only_when_flushed_and_too_many() {
        let mut log = LogIndex::default();
        log.append(&[row(1, 1, TAIL_BYTES), row(1, 2, 10)], 1).unwrap();
        log.append(&[row(1, 3, 10)], 2).unwrap();
        assert_eq!(planned(&log, 1..4), (1..1, vec![1, 2, 3]));
        log.flushed(0);
        assert_eq!(planned(&log, 1..4), (1..1, vec![1, 2, 3]), "not in the file yet");
        log.flushed(1);
        assert_eq!(planned(&log, 0..9), (1..2, vec![2, 3]), "the oldest went to the file");
        assert_eq!(planned(&log, 3..9), (3..3, vec![3]));
    }

    #[test]
    fn truncated_entries_are_gone_at_once_and_replaced() {
        let mut log = LogIndex::default();
        log.append(&rows(1..=5), 1).unwrap();
        log.truncate_after(Some(2));
        assert_eq!(log.last(), Some(Position { term: 1, index: 2 }));
        log.append(&[row(7, 3, 4)], 2).unwrap();
        assert_eq!(planned(&log, 1..9).1, vec![1, 2, 3]);
        assert_eq!(log.last(), Some(Position { term: 7, index: 3 }));
        assert_eq!(log.bytes(), 24);
        log.truncate_after(None);
        assert_eq!((log.last(), log.bytes()), (None, 0));
    }

    #[test]
    fn purging_moves_the_start_even_past_the_end() {
        let mut log = LogIndex::default();
        log.append(&rows(1..=5), 1).unwrap();
        log.purge(Position { term: 1, index: 3 });
        assert_eq!(planned(&log, 0..9).1, vec![4, 5]);
        log.purge(Position { term: 2, index: 10 });
        assert!(planned(&log, 0..99).1.is_empty() && planned(&log, 0..99).0.is_empty());
        assert_eq!(log.last(), Some(Position { term: 2, index: 10 }));
        assert_eq!(
            log.append(&rows(12..=12), 2),
            Err(StoreError::Hole { expected: 11, found: 12 })
        );
        log.append(&rows(11..=12), 3).unwrap();
        assert_eq!(planned(&log, 0..99).1, vec![11, 12]);
    }

    #[test]
    fn sizes_follow_purges_and_truncations() {
        let mut log = LogIndex::default();
        log.append(&rows(1..=10), 1).unwrap();
        assert_eq!((log.bytes(), log.bytes_after(0), log.bytes_after(7)), (100, 100, 30));
        assert_eq!(log.first_of_last(100), 1);
        assert_eq!((log.first_of_last(99), log.first_of_last(25)), (2, 9));
        log.purge(Position { term: 1, index: 4 });
        log.truncate_after(Some(8));
        assert_eq!((log.bytes(), log.bytes_after(2), log.bytes_after(7)), (40, 40, 10));
        assert_eq!(
            (log.first_of_last(1000), log.first_of_last(20), log.first_of_last(0)),
            (5, 7, 9)
        );
        log.truncate_after(None);
        assert_eq!((log.bytes(), log.bytes_after(9)), (0, 0));
    }

    #[test]
    fn a_read_is_capped_in_bytes_but_never_empty() {
        let mut log = LogIndex::default();
        log.append(&rows(1..=5), 1).unwrap();
        let count = |limit| log.plan(1..6, limit).rows.len();
        assert_eq!((count(0), count(10), count(25), count(1000)), (1, 1, 2, 5));
    }
}
