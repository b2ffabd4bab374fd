//! An acknowledged version never disappears, and a read sees all that was acknowledged before it began.
//!
//! The promises are Keyhole's (GUARANTEES, G7 and G17): a caller that was told of a version finds it with its value
//! on every manager that has come so far, as long as it is one of the newest of its secret. Invariant: only what was
//! acknowledged is asked for.

use std::collections::BTreeMap;

use keyhole_domain::{KEPT_VERSIONS, SecretId, Version};
use keyhole_state::State;

/// A version that a caller was told of, and the mark of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: SecretId,
    pub(crate) version: Version,
    pub(crate) mark: u64,
}

/// All that was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    /// The highest index that any caller was told of.
    floor: u64,
    /// By secret and version: the mark, and the index that made it.
    versions: BTreeMap<SecretId, BTreeMap<Version, (u64, u64)>>,
}

impl Acknowledged {
    /// A caller was told that the entry at `index` was decided, and made this version.
    pub(crate) fn written(&mut self, index: u64, kept: Option<Kept>) {
        self.floor = self.floor.max(index);
        if let Some(Kept { id, version, mark }) = kept {
            self.versions.entry(id).or_default().insert(version, (mark, index));
        }
    }

    /// What a read that begins now has to see.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// A read that began when `floor` was acknowledged was answered from `state`.
    pub(crate) fn read(&self, member: u64, state: &State, floor: u64) -> Result<(), String> {
        match state.index() >= floor {
            true => self.holds(member, state),
            false => Err(format!(
                "stale read: m{member} answered as of {}, but {floor} was acknowledged before",
                state.index()
            )),
        }
    }

    /// A manager's state holds each version that was acknowledged up to its index.
    pub(crate) fn holds(&self, member: u64, state: &State) -> Result<(), String> {
        for (id, versions) in &self.versions {
            for (version, (mark, index)) in versions.iter().rev().take(KEPT_VERSIONS) {
                if *index <= state.index() {
                    holds_one(state, *id, *version, *mark).map_err(|why| {
                        format!(
                            "acknowledged version: secret {id} version {version}, made at {index}, {why} on \
                             m{member} at {}",
                            state.index()
                        )
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn holds_one(state: &State, id: SecretId, version: Version, mark: u64) -> Result<(), &'static str> {
    let secret = state.secrets().get(&id).ok_or("is gone with its secret")?;
    if secret.last < version {
        return Err("is gone");
    }
    if version.get() + KEPT_VERSIONS as u64 <= secret.last.get() {
        return Ok(());
    }
    let kept = secret.versions.get(version).ok_or("is gone, and others after it are there")?;
    match kept.value.salt[..8] == mark.to_le_bytes() {
        true => Ok(()),
        false => Err("has another value"),
    }
}

#[cfg(test)]
mod tests {
    use keyhole_domain::Labels;
    use keyhole_state::Command;

    use super::*;
    use crate::cast;

    fn state() -> State {
        let create = Command::CreateSecret {
            id: cast::secret(1),
            name: "a".parse().unwrap(),
            labels: Labels::default(),
            value: cast::value(7, 10),
        };
        let mut state = State::default();
        for (index, command) in [cast::init(), create].into_iter().enumerate() {
            state.apply(index as u64 + 1, &cast::envelope(1, command)).unwrap();
        }
        state
    }

    fn kept(version: u64, mark: u64) -> Option<Kept> {
        Some(Kept { id: cast::secret(1), version: Version::new(version).unwrap(), mark })
    }

    #[test]
    fn what_was_acknowledged_is_there_from_its_index_on() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.written(2, kept(1, 7));
        acknowledged.written(3, kept(2, 8));
        acknowledged.holds(1, &state()).unwrap();
        let mut later = state();
        later.skip(3);
        assert!(acknowledged.holds(1, &later).unwrap_err().contains("is gone"));
        acknowledged.written(2, kept(1, 9));
        assert!(acknowledged.holds(1, &state()).unwrap_err().contains("another value"));
    }

    #[test]
    fn a_read_is_not_behind_what_was_acknowledged_before_it() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.written(2, kept(1, 7));
        acknowledged.read(1, &state(), 2).unwrap();
        assert!(acknowledged.read(1, &state(), 3).is_err());
    }
}
