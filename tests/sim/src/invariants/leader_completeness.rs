//! Leader Completeness: if a log entry is committed in a given term, then that entry will be present in the logs of the
//! leaders for all higher-numbered terms (figure 3; `LeaderHasAllAckedValues` in J. Vanlightly's TLA+ specification).
//!
//! An entry is known to be committed when some manager has applied it; the term in which that was seen is the term in
//! which it was committed, or a later one, so that no leader is asked for more than the property says.

use std::collections::BTreeMap;

use super::{Entry, Log};

/// What was committed, by index, and in which term that was seen.
#[derive(Debug, Default)]
pub(crate) struct Committed(BTreeMap<u64, (Entry, u64)>);

impl Committed {
    pub(crate) fn committed(&mut self, index: u64, entry: Entry, term: u64) {
        let (_, seen) = self.0.entry(index).or_insert((entry, term));
        *seen = term.min(*seen);
    }

    pub(crate) fn leads(&self, member: u64, term: u64, log: &Log) -> Result<(), String> {
        let purged = log.purged.map_or(0, |purged| purged.index);
        for (index, (entry, seen)) in self.0.range(purged + 1..) {
            if *seen <= term && log.entries.get(index) != Some(entry) {
                return Err(format!(
                    "leader completeness: m{member} leads in term {term} without the entry at {index}, which \
                     was committed in term {seen}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_of;
    use super::*;

    #[test]
    fn a_leader_has_what_was_committed_before() {
        let mut committed = Committed::default();
        committed.committed(1, Entry { term: 1, digest: 11 }, 1);
        committed.committed(2, Entry { term: 2, digest: 12 }, 3);
        committed.leads(1, 3, &log_of(None, &[(1, 1, 11), (2, 2, 12), (3, 3, 13)])).unwrap();
        committed.leads(1, 3, &log_of(Some((2, 2)), &[])).unwrap();
        committed.leads(1, 2, &log_of(None, &[(1, 1, 11)])).unwrap();
        assert!(committed.leads(1, 3, &log_of(None, &[(1, 1, 11)])).is_err(), "it lacks one");
        assert!(
            committed.leads(1, 3, &log_of(Some((1, 1)), &[(3, 2, 12)])).is_err(),
            "another one"
        );
    }
}
