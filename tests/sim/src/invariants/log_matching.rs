//! Log Matching: if two logs contain an entry with the same index and term, then the logs are identical in all entries up
//! through the given index (figure 3).
//!
//! By induction that is: whatever has the same index and term is the same, and follows one of the same term. Invariant: it
//! remembers each entry that any log ever had, so that logs of different moments are held against each other, too.

use std::collections::BTreeMap;

use super::Log;

/// All entries that ever were, by index and term: the digest, and the term of the entry before.
#[derive(Debug, Default)]
pub(crate) struct Entries(BTreeMap<(u64, u64), (u64, Option<u64>)>);

impl Entries {
    /// `log` has a new entry at `index`.
    pub(crate) fn entry(&mut self, member: u64, index: u64, log: &Log) -> Result<(), String> {
        let Some(entry) = log.entries.get(&index) else { return Ok(()) };
        let before = index.checked_sub(1).and_then(|before| log.term(before));
        let place = (index, entry.term);
        let (digest, follows) = *self.0.entry(place).or_insert((entry.digest, before));
        if digest != entry.digest {
            return Err(format!(
                "log matching: m{member} has another entry at {index} of term {}",
                entry.term
            ));
        }
        match (follows, before) {
            (Some(follows), Some(before)) if follows != before => Err(format!(
                "log matching: the entry at {index} of term {} follows one of term {before} on m{member}, and \
                 of term {follows} elsewhere",
                entry.term
            )),
            (None, Some(_)) => {
                self.0.insert(place, (digest, before));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_of;
    use super::*;

    #[test]
    fn one_place_has_one_entry_with_one_past() {
        let mut entries = Entries::default();
        let log = log_of(None, &[(1, 1, 11), (1, 2, 12), (2, 3, 13)]);
        (1..=3).for_each(|index| entries.entry(1, index, &log).unwrap());
        entries.entry(2, 3, &log_of(Some((1, 2)), &[(2, 3, 13)])).unwrap();
        entries.entry(2, 3, &log_of(None, &[(3, 3, 99)])).unwrap();
        assert!(
            entries.entry(2, 3, &log_of(Some((1, 2)), &[(2, 3, 14)])).is_err(),
            "another entry"
        );
        assert!(entries.entry(2, 3, &log_of(Some((2, 2)), &[(2, 3, 13)])).is_err(), "another past");
    }
}
