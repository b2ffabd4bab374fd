//! One task's part of a view: its files, its directories in the caller view, and its current set.
//!
//! Invariant: a tree is complete or it is not: a task with any fault gets a [`Refusal`] and sees nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyhole_domain::{AssignedTask, GrantId, Target, TaskId, Timestamp, Version};
use sha2::{Digest, Sha256};

use crate::ino::{FileKey, Numbering};
use crate::layout::{Layout, LayoutError};
use crate::{Ino, ShownFile};

/// Why a task sees nothing. The node reports it and `service ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The manager said so.
    #[error("the manager refuses the task: {reason}")]
    ByManager {
        /// Its reason.
        reason: String,
    },
    /// The assignment has the task twice: which of the two is meant cannot be known.
    #[error("the assignment lists the task twice; this is a fault of the manager")]
    ListedTwice,
    /// The assignment has one grant twice in the task.
    #[error("the assignment has grant {} twice in the task; this is a fault of the manager", grant.0)]
    GrantTwice {
        /// The grant.
        grant: GrantId,
    },
    /// Two files cannot both be where they should.
    #[error(
        "target {target} conflicts with another target of the task; change one of the two grants"
    )]
    TargetConflict {
        /// The later one.
        target: Target,
    },
    /// A file changed without a new number: the kernel may still have the old one's pages and attributes.
    #[error(
        "grant {} version {version} changed without a new number; grant it again under a new one",
        grant.0
    )]
    Changed {
        /// The grant.
        grant: GrantId,
        /// The version.
        version: Version,
    },
    /// A node id that something else has already. It goes away with a new grant or a new task.
    #[error("inode number {ino} is taken by another file; start the task again")]
    Collision {
        /// The number.
        ino: Ino,
    },
}

impl From<LayoutError> for Refusal {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Conflict(target) => Self::TargetConflict { target },
            LayoutError::Collision(ino) => Self::Collision { ino },
        }
    }
}

/// An immutable directory with all files of a task as they were together.
#[derive(Debug)]
pub(crate) struct FileSet {
    pub(crate) task: TaskId,
    pub(crate) files: Vec<Arc<ShownFile>>,
    pub(crate) layout: Layout,
}

impl FileSet {
    /// Named by its contents: the same files are the same set, whatever the revision.
    pub(crate) fn build(
        task: TaskId,
        mut files: Vec<Arc<ShownFile>>,
        numbering: Numbering,
    ) -> Result<Self, LayoutError> {
        files.sort_by(|a, b| a.target.cmp(&b.target));
        let mut hash = Sha256::new_with_prefix(b"keyhole set 1\0");
        for file in &files {
            // Targets have no NUL, so the parts cannot run into each other.
            hash.update(file.target.as_str());
            hash.update([0]);
            hash.update(file.ino.0.to_be_bytes());
        }
        let contents: [u8; 32] = hash.finalize().into();
        let layout =
            Layout::build(&files, Ino::ROOT, |path| numbering.set_dir(&task, &contents, path))?;
        Ok(Self { task, files, layout })
    }
}

/// One task's part of a view.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) task: TaskId,
    source: AssignedTask,
    pub(crate) incarnation: u64,
    pub(crate) grants: BTreeSet<GrantId>,
    pub(crate) files: BTreeMap<Ino, Arc<ShownFile>>,
    /// The caller view; its root is [`Ino::ROOT`].
    pub(crate) layout: Layout,
    /// None without files.
    pub(crate) set: Option<Arc<FileSet>>,
}

impl Tree {
    /// Makes a task's tree; `prior` is the file that had an inode number before, if any.
    pub(crate) fn build<'a>(
        source: &AssignedTask,
        incarnation: u64,
        now: Timestamp,
        numbering: Numbering,
        prior: impl Fn(Ino) -> Option<&'a ShownFile>,
    ) -> Result<Self, Refusal> {
        if let Some(reason) = &source.rejected {
            return Err(Refusal::ByManager { reason: reason.clone() });
        }
        let task = source.id;
        let mut grants = BTreeSet::new();
        let mut files = BTreeMap::new();
        for grant in source.grants.iter() {
            if !grants.insert(grant.id) {
                return Err(Refusal::GrantTwice { grant: grant.id });
            }
            let version = grant.value.version;
            let key = FileKey { task, incarnation, grant: grant.id, version };
            let ino = numbering.file(&key);
            let mut file = ShownFile::new(key, ino, grant, now);
            match prior(ino) {
                None => {}
                Some(before) if before.is_same(&file) => file.shown = before.shown,
                Some(before) if before.key() == key => {
                    return Err(Refusal::Changed { grant: grant.id, version });
                }
                Some(_) => return Err(Refusal::Collision { ino }),
            }
            if files.insert(ino, Arc::new(file)).is_some() {
                return Err(Refusal::Collision { ino });
            }
        }
        let all: Vec<Arc<ShownFile>> = files.values().cloned().collect();
        let layout = Layout::build(&all, Ino::ROOT, |path| match path {
            "" => Ino::ROOT,
            path => numbering.caller_dir(&task, path),
        })?;
        let set = match all.is_empty() {
            true => None,
            false => Some(Arc::new(FileSet::build(task, all, numbering)?)),
        };
        Ok(Self { task, source: source.clone(), incarnation, grants, files, layout, set })
    }

    /// Whether this tree is still right for the task.
    pub(crate) fn is_of(&self, source: &AssignedTask, incarnation: u64) -> bool {
        self.incarnation == incarnation && self.source == *source
    }

    /// Every number that this tree takes, but the root's.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = Ino> {
        let set = self.set.iter().flat_map(|set| set.layout.dirs().keys());
        self.files
            .keys()
            .chain(self.layout.dirs().keys())
            .chain(set)
            .copied()
            .filter(|ino| *ino != Ino::ROOT)
    }

    /// A directory of this task's caller view or current set.
    pub(crate) fn dir(&self, ino: Ino) -> Option<&crate::layout::Directory> {
        let in_set = || self.set.as_ref().and_then(|set| set.layout.dir(ino));
        self.layout.dir(ino).or_else(in_set)
    }
}
