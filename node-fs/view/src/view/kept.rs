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
        let current = self.current.trees.values().filter_map(|tree| tree.set.as_ref());
        Record {
            files: self.all_files().map(|(file, state)| (file.as_ref().clone(), state)).collect(),
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

    /// This view judged again by what is held now: past files and sets that nothing holds are dropped, and what a set
    /// that is held contains is pinned. `None` if nothing is different.
    ///
    /// For the shell to call each time it has put a next view in place (a set may have been opened while that was made),
    /// and when the last handle of a past inode closed, so that its value goes at once.
    pub fn sweep(&self, held: impl Fn(Ino) -> bool) -> Option<(Self, Changes)> {
        let mut past = Past::default();
        for set in self.past.sets().filter(|set| set.is_held(&held)) {
            past.add_set(set);
        }
        let pinned = past.members(&held);
        let mut changes = Changes::default();
        for (ino, (file, was)) in &self.past.files {
            let state = past_state(*was, true, pinned.contains(ino));
            changes.note(*ino, *was, state);
            if held(*ino) || pinned.contains(ino) {
                past.files.insert(*ino, (Arc::clone(file), state));
            }
        }
        let states = |past: &Past| past.files.values().map(|(_, state)| *state).collect::<Vec<_>>();
        let same = past.set_dirs.len() == self.past.set_dirs.len()
            && past.files.len() == self.past.files.len()
            && states(&past) == states(&self.past);
        (!same).then(|| (Self { past, ..self.clone() }, changes))
    }

    pub(super) fn next_past(
        &self,
        current: &Current,
        held: &impl Fn(Ino) -> bool,
        changes: &mut Changes,
    ) -> Past {
        let mut past = Past::default();
        let was_current = self.current.trees.values().filter_map(|tree| tree.set.as_ref());
        let still_held = self.past.sets().filter(|set| set.is_held(held));
        for set in was_current.chain(still_held).filter(|set| current.can_keep(set)) {
            past.add_set(set);
        }
        let (members, pinned) = (past.members(&|_| true), past.members(held));
        for (file, was) in self.all_files().filter(|(file, _)| !current.has_file(file)) {
            let ino = file.ino;
            let state = past_state(was, current.still_grants(file), pinned.contains(&ino));
            changes.note(ino, was, state);
            if was == FileState::Current || members.contains(&ino) || held(ino) {
                past.files.insert(ino, (Arc::clone(file), state));
            }
        }
        past
    }
}

/// What becomes of a file that no name of the caller view means.
fn past_state(was: FileState, granted: bool, pinned: bool) -> FileState {
    match (was, granted, pinned) {
        (FileState::Revoked, _, _) | (_, false, _) => FileState::Revoked,
        (_, true, true) => FileState::Pinned,
        (_, true, false) => FileState::Retired,
    }
}

impl Changes {
    fn note(&mut self, ino: Ino, was: FileState, is: FileState) {
        match (was, is) {
            (FileState::Current | FileState::Pinned, FileState::Retired) => {
                self.retired.insert(ino);
            }
            (FileState::Revoked, _) => {}
            (_, FileState::Revoked) => {
                self.revoked.insert(ino);
            }
            _ => {}
        }
    }
}

impl FileSet {
    /// Whether the shell refers to any of its directories.
    fn is_held(&self, held: &impl Fn(Ino) -> bool) -> bool {
        self.layout.dirs().keys().any(|ino| held(*ino))
    }
}

impl Current {
    /// Whether the task still has the file's grant.
    fn still_grants(&self, file: &ShownFile) -> bool {
        self.trees.get(&file.task).is_some_and(|tree| {
            tree.grants.contains(&file.grant)
                && (tree.incarnation == file.incarnation
                    || tree.files.values().any(|now| now.is_of_one_grant(file)))
        })
    }

    /// Whether a set of the view before can be a past set: its task has any of its grants yet, and it is not current.
    fn can_keep(&self, set: &FileSet) -> bool {
        let root = set.layout.root();
        let is_current = self.trees.get(&set.task).is_some_and(|tree| {
            tree.set.as_ref().is_some_and(|current| current.layout.root() == root)
        });
        !is_current && set.files.iter().any(|file| self.still_grants(file))
    }
}

impl Past {
    fn add_set(&mut self, set: &Arc<FileSet>) {
        self.set_dirs.extend(set.layout.dirs().keys().map(|ino| (*ino, Arc::clone(set))));
    }

    /// Each set once.
    fn sets(&self) -> impl Iterator<Item = &Arc<FileSet>> {
        self.set_dirs.iter().filter(|(ino, set)| **ino == set.layout.root()).map(|(_, set)| set)
    }

    /// The files of the sets that are held, revoked ones too: a set is named by all its files, also in a record.
    fn members(&self, held: &impl Fn(Ino) -> bool) -> BTreeSet<Ino> {
        let sets = self.sets().filter(|set| set.is_held(held));
        sets.flat_map(|set| &set.files).map(|file| file.ino).collect()
    }
}
