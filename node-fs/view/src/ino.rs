//! Node ids: computed from what a node is, never counted, so that a restarted worker gives the same ones.
//!
//! Invariant: two different nodes of one `View` never share an id. The hash makes that likely, and `View::next`
//! makes it certain, by refusing the task that would collide.

use std::fmt;

use keyhole_domain::{GrantId, TaskId, Version};
use sha2::{Digest, Sha256};

/// The generation of every inode: ids are never given to another node, so there is only one.
pub const GENERATION: u64 = 0;

const HASH_BITS: u64 = (1 << 62) - 1;
/// Set in every computed id, so that none is 0 (no node) or 1 (the root).
const TAG: u64 = 1 << 62;

/// A FUSE node id, which is also the file's inode number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

impl Ino {
    /// The mount's root: the caller view, one id for every caller.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a file is: its id says exactly this.
///
/// The incarnation belongs to it: after a restore the cluster counts grants and versions from the backup again, so
/// the same numbers may come to mean other bytes, and the kernel may still hold pages of the first ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct FileKey {
    pub(crate) task: TaskId,
    pub(crate) incarnation: u64,
    pub(crate) grant: GrantId,
    pub(crate) version: Version,
}

/// How names become numbers; tests put a weak hash here to meet collisions.
#[derive(Clone, Copy)]
pub(crate) struct Numbering(pub(crate) fn(Sha256) -> u64);

impl Numbering {
    pub(crate) const SHA256: Self = Self(first_eight);

    /// One id per (task, grant, version), the same in the caller view and in a task directory.
    pub(crate) fn file(self, key: &FileKey) -> Ino {
        self.ino(
            Sha256::new_with_prefix(b"keyhole ino file 1\0")
                .chain_update(key.task.as_str())
                .chain_update(key.incarnation.to_be_bytes())
                .chain_update(key.grant.0.to_be_bytes())
                .chain_update(key.version.get().to_be_bytes()),
        )
    }

    /// A directory of the caller view; `path` is never empty, for the root has its own id.
    pub(crate) fn caller_dir(self, task: &TaskId, path: &str) -> Ino {
        self.ino(
            Sha256::new_with_prefix(b"keyhole ino caller dir 1\0")
                .chain_update(task.as_str())
                .chain_update(path),
        )
    }

    /// A directory of an immutable set, named by all that the set contains.
    pub(crate) fn set_dir(self, task: &TaskId, contents: &[u8; 32], path: &str) -> Ino {
        self.ino(
            Sha256::new_with_prefix(b"keyhole ino set dir 1\0")
                .chain_update(task.as_str())
                .chain_update(contents)
                .chain_update(path),
        )
    }

    fn ino(self, hash: Sha256) -> Ino {
        Ino((self.0)(hash) & HASH_BITS | TAG)
    }
}

impl fmt::Debug for Numbering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Numbering")
    }
}

fn first_eight(hash: Sha256) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Where a name stands in a listing: depends on the name alone, so that a reader that goes on after the listing
/// changed neither misses nor repeats a name that stayed.
pub(crate) fn cookie(name: &str) -> u64 {
    first_eight(Sha256::new_with_prefix(b"keyhole cookie 1\0").chain_update(name)) & HASH_BITS | TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FileKey {
        FileKey {
            task: TaskId::from_entropy([7; 16]),
            incarnation: 1,
            grant: GrantId(3),
            version: Version::FIRST,
        }
    }

    #[test]
    fn file_ids_are_pinned_across_releases() {
        // A worker of another release must give the ids that the kernel already knows.
        assert_eq!(Numbering::SHA256.file(&key()), Ino(6_670_880_858_620_698_547));
    }

    #[test]
    fn every_part_of_a_key_changes_the_id() {
        let n = Numbering::SHA256;
        let mut ids = vec![n.file(&key())];
        for other in [
            FileKey { task: TaskId::from_entropy([8; 16]), ..key() },
            FileKey { incarnation: 2, ..key() },
            FileKey { grant: GrantId(4), ..key() },
            FileKey { version: Version::FIRST.next(), ..key() },
        ] {
            ids.push(n.file(&other));
        }
        let task = key().task;
        ids.push(n.caller_dir(&task, "tls"));
        ids.push(n.caller_dir(&task, "tls/a"));
        ids.push(n.caller_dir(&TaskId::from_entropy([8; 16]), "tls"));
        ids.push(n.set_dir(&task, &[0; 32], "tls"));
        ids.push(n.set_dir(&task, &[1; 32], "tls"));
        ids.push(n.set_dir(&task, &[1; 32], ""));
        let count = ids.len();
        assert!(
            ids.iter().all(|id| id.0 >> 62 == 1),
            "the tag, and a positive number for signed readers"
        );
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
