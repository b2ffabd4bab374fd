//! What outlives its name: files that are open, sets that are in use, and both across a change of worker.
//!
//! Invariant: a revoked file never becomes readable again by anything but a new assignment that has the same grant
//! at the same version.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyhole_domain::TaskId;

use super::{Changes, Current, Past, View};
use crate::tree::FileSet;
use crate::{FileState, Ino, MountFacts, ShownFile};

/// A set of files that was shown together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSet {
    /// Whose.
    pub task: TaskId,
    /// The files.
    pub files: Vec<Ino>,
}

/// What a worker leaves to the next one, beside the assignment and the open handles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Every file that exists, with what became of it.
    pub files: Vec<(ShownFile, FileState)>,
    /// Every set that exists.
    pub sets: Vec<KeptSet>,
}

impl View {
    /// All that the next worker needs beside the assignment, so that no reader sees the change.
    pub fn record(&self) -> Record {
        let current = self
            .current
            .trees
            .values()
            .filter_map(|tree| tree.set.as_ref());
        Record {
            files: self
                .all_files()
                .map(|(file, state)| (file.as_ref().clone(), state))
                .collect(),
            sets: current
                .chain(self.past.sets())
                .map(|set| KeptSet {
                    task: set.task,
                    files: set.files.iter().map(|file| file.ino).collect(),
                })
                .collect(),
        }
    }

    /// The view of a worker that takes over: files that are open can be read at once; names and tasks come with
    /// [`View::next`], which must run before anything is served.
    ///
    /// A record that does not fit together (its numbers were made by another rule) loses what does not fit.
    pub fn resume(facts: MountFacts, record: Record) -> Self {
        let mut view = Self::empty(facts);
        for (file, state) in record.files {
            if view.numbering.file(&file.key()) == file.ino {
                view.past.files.insert(file.ino, (Arc::new(file), state));
            }
        }
        for kept in record.sets {
            let file = |ino: &Ino| view.past.files.get(ino).map(|(file, _)| Arc::clone(file));
            let files: Option<Vec<_>> = kept.files.iter().map(file).collect();
            let set = files
                .filter(|files| files.iter().all(|file| file.task == kept.task))
                .and_then(|files| FileSet::build(kept.task, files, view.numbering).ok());
            if let Some(set) = set {
                view.past.add_set(&Arc::new(set));
            }
        }
        view
    }

    /// This view without the past files and sets that nothing holds any more; `None` if there are none to drop.
    ///
    /// For the shell to call when the last handle of a past inode closed, so that its value goes at once.
    pub fn sweep(&self, held: impl Fn(Ino) -> bool) -> Option<Self> {
        let mut past = Past::default();
        for set in self.past.sets().filter(|set| set.is_held(&held)) {
            past.add_set(set);
        }
        let pinned = past.pinned();
        for (ino, (file, state)) in &self.past.files {
            let state = match *state {
                FileState::Pinned if !pinned.contains(ino) => FileState::Retired,
                state => state,
            };
            if held(*ino) || state == FileState::Pinned {
                past.files.insert(*ino, (Arc::clone(file), state));
            }
        }
        let same = past.files.len() == self.past.files.len()
            && past.set_dirs.len() == self.past.set_dirs.len();
        (!same).then(|| Self {
            past,
            ..self.clone()
        })
    }

    pub(super) fn next_past(
        &self,
        current: &Current,
        held: &impl Fn(Ino) -> bool,
        changes: &mut Changes,
    ) -> Past {
        let mut past = Past::default();
        let was_current = self
            .current
            .trees
            .values()
            .filter_map(|tree| tree.set.as_ref());
        let still_held = self.past.sets().filter(|set| set.is_held(held));
        for set in was_current
            .chain(still_held)
            .filter(|set| current.can_keep(set))
        {
            past.add_set(set);
        }
        let pinned = past.pinned();
        for (file, was) in self.all_files().filter(|(file, _)| !current.has_file(file)) {
            let state = match was {
                FileState::Revoked => FileState::Revoked,
                _ if !current.still_grants(file) => FileState::Revoked,
                _ if pinned.contains(&file.ino) => FileState::Pinned,
                _ => FileState::Retired,
            };
            match (was, state) {
                (FileState::Current | FileState::Pinned, FileState::Retired) => {
                    changes.retired.insert(file.ino);
                }
                (before, FileState::Revoked) if before != FileState::Revoked => {
                    changes.revoked.insert(file.ino);
                }
                _ => {}
            }
            if was == FileState::Current || state == FileState::Pinned || held(file.ino) {
                past.files.insert(file.ino, (Arc::clone(file), state));
            }
        }
        past
    }
}

impl FileSet {
    /// Whether the shell refers to any of its directories.
    fn is_held(&self, held: &impl Fn(Ino) -> bool) -> bool {
        self.layout.dirs().keys().any(|ino| held(*ino))
    }
}

impl Current {
    /// Whether the task still has the grant, of this incarnation.
    fn still_grants(&self, file: &ShownFile) -> bool {
        self.trees.get(&file.task).is_some_and(|tree| {
            tree.incarnation == file.incarnation && tree.grants.contains(&file.grant)
        })
    }

    /// Whether a set of the view before can be a past set: its task has any of its grants yet, and it is not current.
    fn can_keep(&self, set: &FileSet) -> bool {
        let root = set.layout.root();
        let is_current = self.trees.get(&set.task).is_some_and(|tree| {
            tree.set
                .as_ref()
                .is_some_and(|current| current.layout.root() == root)
        });
        !is_current && set.files.iter().any(|file| self.still_grants(file))
    }
}

impl Past {
    fn add_set(&mut self, set: &Arc<FileSet>) {
        self.set_dirs
            .extend(set.layout.dirs().keys().map(|ino| (*ino, Arc::clone(set))));
    }

    /// Each set once.
    fn sets(&self) -> impl Iterator<Item = &Arc<FileSet>> {
        self.set_dirs
            .iter()
            .filter(|(ino, set)| **ino == set.layout.root())
            .map(|(_, set)| set)
    }

    fn pinned(&self) -> BTreeSet<Ino> {
        self.sets()
            .flat_map(|set| &set.files)
            .map(|file| file.ino)
            .collect()
    }
}
