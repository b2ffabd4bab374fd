//! One file: one version of one grant of one task. Immutable for as long as its inode exists.

use std::time::Duration;

use keyhole_domain::{
    AssignedGrant, FileMode, GrantId, SecretName, Target, TaskId, Timestamp, ValueKey,
};

use crate::ino::FileKey;
use crate::{Attr, FOREVER, Ino, Kind};

/// A file as it was first shown. Plain data, so that a worker can hand it to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownFile {
    /// Its inode.
    pub ino: Ino,
    /// The task that owns it, and the only one that may open it.
    pub task: TaskId,
    /// The cluster's incarnation that it comes from.
    pub incarnation: u64,
    /// The grant that shows it.
    pub grant: GrantId,
    /// Which bytes it has.
    pub value: ValueKey,
    /// How many.
    pub size: u32,
    /// The secret's name, for `user.keyhole.secret` and the audit.
    pub secret: SecretName,
    /// Where it appears.
    pub target: Target,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits; the kernel enforces them.
    pub mode: FileMode,
    /// When this node first showed it.
    pub shown: Timestamp,
}

/// Which bytes: a version of a secret, as one incarnation of the cluster counts it. After a restore the same number may
/// mean other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShownValue {
    /// The incarnation that counted.
    pub incarnation: u64,
    /// The secret and its version.
    pub key: ValueKey,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileState {
    /// Its name means it: it can be looked up, opened and read.
    Current,
    /// A newer version has its name, but a set that is still in use contains it: as good as current there.
    Pinned,
    /// A newer version has its name: files already open keep it, no new open.
    Retired,
    /// Its grant or its task is gone: nothing can be done with it, also on files already open.
    Revoked,
}

impl ShownFile {
    pub(crate) fn new(key: FileKey, ino: Ino, grant: &AssignedGrant, shown: Timestamp) -> Self {
        Self {
            ino,
            task: key.task,
            incarnation: key.incarnation,
            grant: grant.id,
            value: grant.value,
            size: grant.size,
            secret: grant.name.clone(),
            target: grant.target.clone(),
            uid: grant.uid,
            gid: grant.gid,
            mode: grant.mode,
            shown,
        }
    }

    /// Which bytes it has, in all of the node's life.
    pub fn shown_value(&self) -> ShownValue {
        ShownValue { incarnation: self.incarnation, key: self.value }
    }

    /// Whether the two are of one grant. Within an incarnation its number says it; after a restore a number may be given
    /// again, and only what is granted in the same way is the same.
    pub(crate) fn is_of_one_grant(&self, other: &Self) -> bool {
        (self.task, self.grant, self.value.secret, &self.target)
            == (other.task, other.grant, other.value.secret, &other.target)
            && (self.uid, self.gid, self.mode) == (other.uid, other.gid, other.mode)
    }

    pub(crate) fn key(&self) -> FileKey {
        FileKey {
            task: self.task,
            incarnation: self.incarnation,
            grant: self.grant,
            version: self.value.version,
        }
    }

    /// Whether the two are one file: everything but the time.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let Self {
            ino,
            task,
            incarnation,
            grant,
            value,
            size,
            secret,
            target,
            uid,
            gid,
            mode,
            shown: _,
        } = self;
        (ino, task, incarnation, grant, value, size)
            == (
                &other.ino,
                &other.task,
                &other.incarnation,
                &other.grant,
                &other.value,
                &other.size,
            )
            && (secret, target, uid, gid, mode)
                == (&other.secret, &other.target, &other.uid, &other.gid, &other.mode)
    }

    /// Attributes of a current file never change, so the kernel may keep them; a past one's link count does.
    pub(crate) fn attr(&self, state: FileState) -> Attr {
        Attr {
            ino: self.ino,
            kind: Kind::File,
            size: u64::from(self.size),
            mode: self.mode.bits(),
            nlink: match state {
                FileState::Current | FileState::Pinned => 1,
                FileState::Retired | FileState::Revoked => 0,
            },
            uid: self.uid,
            gid: self.gid,
            time: self.shown,
            ttl: match state {
                FileState::Current => FOREVER,
                _ => Duration::ZERO,
            },
        }
    }
}
