//! What must hold at every moment, one file each. Four are those of the Raft paper: D. Ongaro and J. Ousterhout,
//! "In Search of an Understandable Consensus Algorithm" (extended version), figure 3; the others are Keyhole's promises.
//!
//! Invariant: nothing is asked of the manager's own bookkeeping but what it has on its disk and in its state; a check
//! remembers over restarts.

pub(crate) mod acknowledged;
mod done_once;
mod election_safety;
mod leader_completeness;
mod log_matching;
mod node_revisions;
mod state_machine_safety;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use keyhole_manager::codec::encode_row;
use keyhole_manager::store::{LogBounds, LogRow, Position, Store};
use keyhole_proto::v1;
use keyhole_state::State;
use openraft::async_runtime::watch::WatchReceiver;
use prost::Message;

use crate::world::Running;

/// So many indexes apart, states are compared; each manager is seen between two ticks only, at some of them.
const COMPARED: u64 = 4;

/// A manager's log: what it has after `purged`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Log {
    purged: Option<Position>,
    entries: BTreeMap<u64, Entry>,
}

/// An entry, told from others by a digest of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    pub(crate) digest: u64,
}

impl Log {
    /// The term of the entry at `index`, if it is known.
    fn term(&self, index: u64) -> Option<u64> {
        let purged = self.purged.filter(|purged| purged.index == index).map(|purged| purged.term);
        self.entries.get(&index).map(|entry| entry.term).or(purged)
    }

    fn last(&self) -> Option<Position> {
        let last = self.entries.last_key_value();
        last.map(|(index, entry)| Position { term: entry.term, index: *index }).or(self.purged)
    }
}

/// What is known of a manager that runs.
#[derive(Default)]
struct Seen {
    bounds: Option<LogBounds>,
    log: Log,
    term: u64,
    leads: bool,
    applied: u64,
    vote: Option<Vec<u8>>,
}

/// What one look found; part of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Look {
    pub(crate) term: u64,
    pub(crate) leads: bool,
    pub(crate) last: (u64, u64),
    pub(crate) applied: u64,
}

/// All invariants, and what they remember.
#[derive(Default)]
pub(crate) struct Watch {
    seen: BTreeMap<u64, Seen>,
    election: election_safety::Terms,
    matching: log_matching::Entries,
    completeness: leader_completeness::Committed,
    machine: state_machine_safety::Applied,
    pub(crate) acknowledged: acknowledged::Acknowledged,
    pub(crate) undone: done_once::Undone,
    pub(crate) revisions: node_revisions::Shown,
}

impl Watch {
    /// A manager ended; what it had in memory is nothing to hold it to.
    pub(crate) fn ended(&mut self, member: u64) {
        self.seen.remove(&member);
    }

    /// Looks at a manager; what it found, if something is new.
    pub(crate) fn look(&mut self, member: u64, running: &Running) -> Result<Option<Look>, String> {
        let (term, leads) = {
            let metrics = running.replica.raft().metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_term, metrics.state.is_leader())
        };
        let bounds = running.store.log_bounds();
        let applied = running.replica.read(State::index);
        let vote = running.store.vote();
        let seen = self.seen.entry(member).or_default();
        if (seen.bounds, seen.term, seen.leads, seen.applied)
            == (Some(bounds), term, leads, applied)
            && seen.vote == vote
        {
            return Ok(None);
        }
        if seen.vote != vote {
            let decoded = v1::Vote::decode(vote.as_deref().unwrap_or_default());
            self.election.voted(member, &decoded.map_err(|e| e.to_string())?)?;
        }
        if seen.bounds != Some(bounds) {
            let fresh = read(&running.store, &mut seen.log, bounds)?;
            for index in fresh {
                self.matching.entry(member, index, &seen.log)?;
            }
        }
        let before = std::mem::replace(&mut seen.applied, applied);
        (seen.bounds, seen.vote) = (Some(bounds), vote);
        for index in before + 1..=applied {
            if let Some(entry) = seen.log.entries.get(&index) {
                self.completeness.committed(index, *entry, term);
                self.machine.applied(member, index, *entry)?;
            }
        }
        if applied != before && applied.is_multiple_of(COMPARED) {
            running.replica.read(|state| self.machine.state(member, applied, digest(state)))?;
            running.replica.read(|state| self.acknowledged.holds(member, state))?;
            running.replica.read(|state| self.undone.holds(member, state))?;
        }
        if leads && (!seen.leads || seen.term != term) {
            self.election.leads(member, term)?;
            self.completeness.leads(member, term, &seen.log)?;
        }
        (seen.term, seen.leads) = (term, leads);
        let last = seen.log.last().map_or((0, 0), |last| (last.term, last.index));
        Ok(Some(Look { term, leads, last, applied }))
    }

    /// The managers have the same, and all that was acknowledged.
    pub(crate) fn settled(&mut self, member: u64, state: &State) -> Result<(), String> {
        self.machine.state(member, state.index(), digest(state))?;
        state.invariants().map_err(|why| format!("state of m{member}: {why}"))?;
        self.acknowledged.holds(member, state)?;
        self.undone.holds(member, state)
    }

    /// The terms that had a leader.
    pub(crate) fn led_terms(&self) -> u64 {
        self.election.count()
    }

    /// The first entry that a manager still has.
    pub(crate) fn purged(&self, member: u64) -> u64 {
        self.seen.get(&member).and_then(|seen| seen.log.purged).map_or(0, |purged| purged.index)
    }
}

/// Brings what is known of a log to what the store has; the indexes that are new.
fn read(store: &Store, log: &mut Log, bounds: LogBounds) -> Result<Vec<u64>, String> {
    log.purged = bounds.purged;
    if let Some(purged) = bounds.purged {
        log.entries = log.entries.split_off(&(purged.index + 1));
    }
    let known = log.entries.last_key_value().map(|(index, entry)| (*index, *entry));
    let rows = |from| store.read_log(from..u64::MAX, u64::MAX).map_err(|e| e.to_string());
    let extended = match known {
        Some((index, entry)) => {
            let rows = rows(index)?;
            rows.first()
                .is_some_and(|row| row.position.index == index && of(row) == entry)
                .then_some(rows)
        }
        None => None,
    };
    let rows = match extended {
        Some(rows) => rows,
        // Something was truncated.
        None => {
            log.entries.clear();
            rows(0)?
        }
    };
    let skipped = log.entries.len().min(1);
    let fresh = rows.iter().skip(skipped).map(|row| (row.position.index, of(row)));
    let fresh: Vec<(u64, Entry)> = fresh.collect();
    log.entries.extend(fresh.iter().copied());
    Ok(fresh.into_iter().map(|(index, _)| index).collect())
}

fn of(row: &LogRow) -> Entry {
    let mut hasher = DefaultHasher::new();
    hasher.write(&row.data);
    Entry { term: row.position.term, digest: hasher.finish() }
}

fn digest(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for key in state.row_keys() {
        let row = state.row(key).map(|row| encode_row(&row).encode_to_vec());
        hasher.write(&row.unwrap_or_default());
    }
    hasher.finish()
}

#[cfg(test)]
pub(crate) fn log_of(purged: Option<(u64, u64)>, entries: &[(u64, u64, u64)]) -> Log {
    Log {
        purged: purged.map(|(term, index)| Position { term, index }),
        entries: entries
            .iter()
            .map(|(term, index, digest)| (*index, Entry { term: *term, digest: *digest }))
            .collect(),
    }
}
