//! State Machine Safety: if a server has applied a log entry at a given index to its state machine, no other server will
//! ever apply a different log entry for the same index (figure 3).
//!
//! What comes of it is compared, too: managers at the same index have the same state, whether they applied entries, loaded
//! rows or installed a snapshot. Invariant: it remembers each index for ever.

use std::collections::BTreeMap;

use super::Entry;

/// What was applied, and the state that it led to.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    entries: BTreeMap<u64, Entry>,
    states: BTreeMap<u64, (u64, u64)>,
}

impl Applied {
    pub(crate) fn applied(&mut self, member: u64, index: u64, entry: Entry) -> Result<(), String> {
        match *self.entries.entry(index).or_insert(entry) == entry {
            true => Ok(()),
            false => {
                Err(format!("state machine safety: m{member} applied another entry at {index}"))
            }
        }
    }

    /// The state of a manager that has applied everything up to `index`.
    pub(crate) fn state(&mut self, member: u64, index: u64, digest: u64) -> Result<(), String> {
        match *self.states.entry(index).or_insert((member, digest)) {
            (_, same) if same == digest => Ok(()),
            (other, _) => Err(format!(
                "state machine safety: m{member} has another state than m{other} at {index}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_one_entry_and_one_state() {
        let mut applied = Applied::default();
        applied.applied(1, 7, Entry { term: 1, digest: 11 }).unwrap();
        applied.applied(2, 7, Entry { term: 1, digest: 11 }).unwrap();
        assert!(applied.applied(2, 7, Entry { term: 2, digest: 11 }).is_err());
        applied.state(1, 7, 5).unwrap();
        applied.state(2, 7, 5).unwrap();
        assert!(applied.state(2, 7, 6).is_err());
    }
}
