//! What the kernel may still refer to: open handles, and references to directories.
//!
//! Invariant: nothing that could be in use counts as free. After a worker took over, every inode that
//! was known before counts as held until the kernel forgets it, for its handles were counted by others.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyhole_view::Ino;

/// The counts. Shared by the service threads and the core; no lock is kept over anything slow.
#[derive(Debug, Default)]
pub struct Held {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    own: HashMap<Ino, u64>,
    adopted: HashSet<Ino>,
}

impl Held {
    /// Counts these as held until they are forgotten.
    pub(crate) fn adopting(inos: impl IntoIterator<Item = Ino>) -> Self {
        let adopted = inos.into_iter().collect();
        Self { counts: Mutex::new(Counts { own: HashMap::new(), adopted }) }
    }

    /// Whether anything may refer to the inode.
    pub fn is_held(&self, ino: Ino) -> bool {
        let counts = self.counts();
        counts.own.contains_key(&ino) || counts.adopted.contains(&ino)
    }

    /// Counts one more reference: an open handle, or the answer to a LOOKUP of a directory.
    pub fn hold(&self, ino: Ino) {
        *self.counts().own.entry(ino).or_default() += 1;
    }

    /// Counts `n` fewer; whether the inode is free now and was not before.
    ///
    /// Handles that an earlier worker gave out are released here too and were never counted.
    pub fn release(&self, ino: Ino, n: u64) -> bool {
        let mut counts = self.counts();
        let Some(count) = counts.own.get_mut(&ino) else { return false };
        *count = count.saturating_sub(n);
        if *count > 0 {
            return false;
        }
        counts.own.remove(&ino);
        !counts.adopted.contains(&ino)
    }

    /// The kernel dropped the inode: all that earlier workers gave out on it is gone. Whether the
    /// inode is free now and was not before.
    pub fn forget(&self, ino: Ino) -> bool {
        let mut counts = self.counts();
        counts.adopted.remove(&ino) && !counts.own.contains_key(&ino)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    #[test]
    fn the_last_release_frees() {
        let held = Held::default();
        held.hold(INO);
        held.hold(INO);
        assert!(!held.release(INO, 1));
        assert!(held.is_held(INO));
        assert!(held.release(INO, 1));
        assert!(!held.is_held(INO));
        assert!(!held.release(INO, 1), "only the last release says so");
    }

    #[test]
    fn what_an_earlier_worker_gave_out_is_held_until_it_is_forgotten() {
        let held = Held::adopting([INO]);
        assert!(held.is_held(INO));
        assert!(!held.release(INO, 1), "a handle of the earlier worker");
        held.hold(INO);
        assert!(!held.release(INO, 1), "there may be others of the earlier worker");
        assert!(held.is_held(INO));
        assert!(held.forget(INO));
        assert!(!held.is_held(INO));
        assert!(!held.forget(INO));
    }
}
