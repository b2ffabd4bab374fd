//! A command is done once, and never when its caller was told that it was not.
//!
//! The promise is Keyhole's (GUARANTEES, G17): a command whose leader was lost is proposed again only when nobody who counts
//! has it. Done twice, it would be refused the second time, and the caller with it. Invariant: who was told nothing certain
//! is told nothing here.

use std::collections::BTreeSet;

use keyhole_state::State;

/// All that callers were told not to be done.
#[derive(Debug, Default)]
pub(crate) struct Undone {
    /// Of the values that the commands would have left.
    marks: BTreeSet<u64>,
}

impl Undone {
    /// A caller was told that the command with this value was refused, or will not come to be.
    pub(crate) fn told(&mut self, mark: u64) {
        self.marks.insert(mark);
    }

    /// A manager's state has nothing of them.
    pub(crate) fn holds(&self, member: u64, state: &State) -> Result<(), String> {
        for (id, secret) in state.secrets() {
            for (version, kept) in secret.versions.iter() {
                let salt = kept.value.salt.first_chunk().copied();
                let mark = salt.map_or(0, u64::from_le_bytes);
                if self.marks.contains(&mark) {
                    return Err(format!(
                        "done once: secret {id} version {version} is on m{member} at {}, and its caller was told \
                         that it was not made",
                        state.index()
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keyhole_domain::Labels;
    use keyhole_state::Command;

    use super::*;
    use crate::cast;

    #[test]
    fn what_was_said_not_to_be_done_is_nowhere() {
        let mut state = State::default();
        state.apply(1, &cast::envelope(1, cast::init())).unwrap();
        let create = Command::CreateSecret {
            id: cast::secret(1),
            name: "a".parse().unwrap(),
            labels: Labels::default(),
            value: cast::value(7, 10),
        };
        state.apply(2, &cast::envelope(1, create)).unwrap();
        let mut undone = Undone::default();
        undone.told(8);
        undone.holds(1, &state).unwrap();
        undone.told(7);
        assert!(undone.holds(1, &state).unwrap_err().contains("was not made"));
    }
}
