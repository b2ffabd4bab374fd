//! Attributes of inodes and of the mount, and how long the kernel may keep them.
//!
//! Invariant: the root's attributes and statfs are the same for every caller and say nothing about any task.

use std::time::Duration;

use keyhole_domain::Timestamp;

use crate::Ino;

/// Practically without end; the kernel clamps it.
pub const FOREVER: Duration = Duration::from_secs(3_600 * 24 * 365 * 10);

/// Block size that stat(2) and statfs(2) report, in bytes.
pub const BLOCK_BYTES: u32 = 4096;

/// Longest name, in bytes.
pub const NAME_BYTES: u32 = 255;

/// What the mount itself is, the same for every caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountFacts {
    /// When it was mounted: the root's times, for ever.
    pub mounted: Timestamp,
}

/// File or directory; there is nothing else here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A secret's version.
    File,
    /// A directory.
    Directory,
}

/// What stat(2) says about an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// Bytes in the file; 0 for a directory.
    pub size: u64,
    /// Permission bits, at most 0777.
    pub mode: u16,
    /// Links: 1 while the file is current or pinned by a set, else 0; 2 and more for a directory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// atime, mtime, ctime and btime alike: when this node first showed the inode; for a directory, the newest of
    /// the files in and below it; for the root, when it was mounted.
    pub time: Timestamp,
    /// How long the kernel may keep these attributes.
    pub ttl: Duration,
}

impl Attr {
    /// 512-byte blocks, for `st_blocks`.
    pub const fn blocks(&self) -> u64 {
        self.size.div_ceil(512)
    }

    /// The root: identical for all callers, and constant, so the kernel may keep it.
    pub(crate) const fn root(facts: &MountFacts) -> Self {
        Self { ttl: FOREVER, ..Self::directory(Ino::ROOT, 0, facts.mounted) }
    }

    /// A directory, 0555 root:root. Not kept: its time and nlink change with its contents.
    pub(crate) const fn directory(ino: Ino, subdirs: u32, time: Timestamp) -> Self {
        Self {
            ino,
            kind: Kind::Directory,
            size: 0,
            mode: 0o555,
            nlink: 2 + subdirs,
            uid: 0,
            gid: 0,
            time,
            ttl: Duration::ZERO,
        }
    }
}

/// What statfs(2) says: constants, for counts would tell every caller about every task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks in all, free, and available: 0.
    pub blocks: u64,
    /// Inodes in all and free: 0.
    pub files: u64,
    /// Block and fragment size, in bytes.
    pub block_bytes: u32,
    /// Longest name, in bytes.
    pub name_bytes: u32,
}

impl StatFs {
    /// The one answer.
    pub const CONSTANT: Self =
        Self { blocks: 0, files: 0, block_bytes: BLOCK_BYTES, name_bytes: NAME_BYTES };
}
