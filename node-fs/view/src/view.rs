//! The view of every task of the node: an immutable snapshot, replaced as a whole.
//!
//! The shell keeps it in one atomic pointer. **Order that the shell must keep:** it counts a handle as held *before*
//! it asks [`View::open`] or [`View::opendir`] (and uncounts it when denied); it puts one view in place before it makes
//! the next; and when a next view is in place, it calls [`View::sweep`]. Then nothing is dropped between a successful
//! open and its first read: what was current in a view is kept in the one after it in any case, and from the sweep on
//! for as long as it is held.
//!
//! Invariants: one inode number is one (task, incarnation, grant, version) in every view; all that a caller can reach
//! comes from its own task's tree; a task with any fault is refused as a whole.

mod answer;
mod kept;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod rules_test;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyhole_domain::{AssignedTask, Assignment, Revision, TaskId, Timestamp};

pub use answer::{Entry, GRACE, Listed, SET};
pub use kept::{KeptSet, Record};

use crate::ino::Numbering;
use crate::tree::{FileSet, Tree};
use crate::{FileState, Ino, MountFacts, Refusal, ShownFile, ShownValue};

/// What every caller sees.
#[derive(Debug, Clone)]
pub struct View {
    facts: MountFacts,
    numbering: Numbering,
    revision: Revision,
    current: Arc<Current>,
    past: Past,
}

/// What the shell must tell the kernel after it has put the new view in place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Files that neither their name nor a set means any more: nlink is 0 now, open files keep them.
    /// Invalidate their attributes.
    pub retired: BTreeSet<Ino>,
    /// Files whose grant or task is gone: reads fail from now on. Drop their attributes and pages.
    pub revoked: BTreeSet<Ino>,
    /// Names that mean another inode or nothing: (directory, name). In the caller view names are never cached, so
    /// invalidating them only frees memory there.
    pub stale_names: BTreeSet<(Ino, Box<str>)>,
}

impl Changes {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.retired.is_empty() && self.revoked.is_empty() && self.stale_names.is_empty()
    }
}

#[derive(Debug, Default)]
struct Current {
    trees: BTreeMap<TaskId, Arc<Tree>>,
    refused: BTreeMap<TaskId, Refusal>,
    /// Whose every number of the trees is.
    index: BTreeMap<Ino, TaskId>,
}

#[derive(Debug, Clone, Default)]
struct Past {
    /// Files of no tree, with what became of them.
    files: BTreeMap<Ino, (Arc<ShownFile>, FileState)>,
    /// Sets that are not their task's current one, by the number of each of their directories.
    set_dirs: BTreeMap<Ino, Arc<FileSet>>,
}

impl View {
    /// The view before any assignment: an empty directory for everyone.
    pub fn empty(facts: MountFacts) -> Self {
        Self {
            facts,
            numbering: Numbering::SHA256,
            revision: Revision::default(),
            current: Arc::default(),
            past: Past::default(),
        }
    }

    /// The view of `assignment`, and how it differs from this one.
    ///
    /// A task is shown if it is assigned, `live` and not refused; otherwise it sees nothing and its files are revoked.
    /// `now` becomes the time of files that were not shown before. `held` says whether the shell has open handles (or,
    /// for a directory, any reference) on a number; see the module's head for when to count.
    pub fn next(
        &self,
        assignment: &Assignment,
        live: &BTreeSet<TaskId>,
        now: Timestamp,
        held: impl Fn(Ino) -> bool,
    ) -> (Self, Changes) {
        let current = self.next_current(assignment, live, now);
        let mut changes = Changes {
            stale_names: stale_names(&self.current.trees, &current.trees),
            ..Changes::default()
        };
        let past = self.next_past(&current, &held, &mut changes);
        let next =
            Self { revision: assignment.revision, current: Arc::new(current), past, ..*self };
        (next, changes)
    }

    /// The state that this view shows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The tasks that are shown, in the order of their ids.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.current.trees.keys().copied()
    }

    /// The current files of a task, none if it is not shown.
    pub fn files(&self, task: TaskId) -> impl Iterator<Item = &ShownFile> {
        let tree = self.current.trees.get(&task);
        tree.into_iter().flat_map(|tree| tree.files.values()).map(Arc::as_ref)
    }

    /// The tasks that were assigned and live, but see nothing, and why.
    pub fn refusals(&self) -> &BTreeMap<TaskId, Refusal> {
        &self.current.refused
    }

    /// Every value that a reader may still ask for: the shell keeps these and drops the others.
    pub fn values(&self) -> BTreeSet<ShownValue> {
        self.all_files()
            .filter(|(_, state)| *state != FileState::Revoked)
            .map(|(file, _)| file.shown_value())
            .collect()
    }

    /// A file by its number, with what became of it.
    pub fn file(&self, ino: Ino) -> Option<(&ShownFile, FileState)> {
        let tree = self.current.index.get(&ino).and_then(|task| self.current.trees.get(task));
        match tree.and_then(|tree| tree.files.get(&ino)) {
            Some(file) => Some((file, FileState::Current)),
            None => self.past.files.get(&ino).map(|(file, state)| (file.as_ref(), *state)),
        }
    }

    fn all_files(&self) -> impl Iterator<Item = (&Arc<ShownFile>, FileState)> {
        let current = self.current.trees.values().flat_map(|tree| tree.files.values());
        let past = self.past.files.values().map(|(file, state)| (file, *state));
        current.map(|file| (file, FileState::Current)).chain(past)
    }

    fn next_current(
        &self,
        assignment: &Assignment,
        live: &BTreeSet<TaskId>,
        now: Timestamp,
    ) -> Current {
        let mut current = Current::default();
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<TaskId> =
            assignment.tasks.iter().map(|task| task.id).filter(|id| !seen.insert(*id)).collect();
        for source in assignment.tasks.iter().filter(|task| live.contains(&task.id)) {
            let tree = match twice.contains(&source.id) {
                true => Err(Refusal::ListedTwice),
                false => self.tree(source, assignment.revision.incarnation, now),
            };
            match tree.and_then(|tree| self.claim(&current.index, tree)) {
                Ok(tree) => current.add(tree),
                Err(refusal) => {
                    current.refused.insert(source.id, refusal);
                }
            }
        }
        current
    }

    fn tree(
        &self,
        source: &AssignedTask,
        incarnation: u64,
        now: Timestamp,
    ) -> Result<Arc<Tree>, Refusal> {
        match self.current.trees.get(&source.id) {
            Some(tree) if tree.is_of(source, incarnation) => Ok(Arc::clone(tree)),
            _ => {
                let prior = |ino| self.file(ino).map(|(file, _)| file);
                Tree::build(source, incarnation, now, self.numbering, prior).map(Arc::new)
            }
        }
    }

    /// Checks that a tree's numbers are nobody else's, in the new view as in this one: who had a number keeps it.
    fn claim(&self, taken: &BTreeMap<Ino, TaskId>, tree: Arc<Tree>) -> Result<Arc<Tree>, Refusal> {
        let before = self.current.trees.get(&tree.task);
        if before.is_some_and(|before| Arc::ptr_eq(before, &tree)) {
            // It has its numbers already, and no newcomer got one of them.
            return Ok(tree);
        }
        let mut own = BTreeSet::new();
        for ino in tree.numbers() {
            let before = self.owner(ino).is_some_and(|task| task != tree.task);
            let was_file = self.file(ino).is_some() != tree.files.contains_key(&ino);
            let changed_kind = self.owner(ino).is_some() && was_file;
            if !own.insert(ino) || before || changed_kind || taken.contains_key(&ino) {
                return Err(Refusal::Collision { ino });
            }
        }
        Ok(tree)
    }

    /// Whose a number is, if anyone's.
    fn owner(&self, ino: Ino) -> Option<TaskId> {
        let past_file = || self.past.files.get(&ino).map(|(file, _)| file.task);
        let past_dir = || self.past.set_dirs.get(&ino).map(|set| set.task);
        self.current.index.get(&ino).copied().or_else(past_file).or_else(past_dir)
    }
}

impl Current {
    fn add(&mut self, tree: Arc<Tree>) {
        self.index.extend(tree.numbers().map(|ino| (ino, tree.task)));
        self.trees.insert(tree.task, tree);
    }

    fn has_file(&self, file: &ShownFile) -> bool {
        self.trees.get(&file.task).is_some_and(|tree| tree.files.contains_key(&file.ino))
    }
}

/// Names of the caller view whose meaning ended.
fn stale_names(
    old: &BTreeMap<TaskId, Arc<Tree>>,
    new: &BTreeMap<TaskId, Arc<Tree>>,
) -> BTreeSet<(Ino, Box<str>)> {
    let mut stale = BTreeSet::new();
    for (task, before) in old {
        let after = new.get(task);
        if after.is_some_and(|after| Arc::ptr_eq(before, after)) {
            continue;
        }
        for (ino, dir) in before.layout.dirs() {
            let now = after.and_then(|tree| tree.layout.dir(*ino));
            for entry in dir.entries() {
                if now.and_then(|dir| dir.find(entry.name.as_bytes())) != Some(entry.node) {
                    stale.insert((*ino, entry.name.clone()));
                }
            }
        }
        let set = |tree: &Tree| tree.set.as_ref().map(|set| set.layout.root());
        if set(before).is_some() && after.and_then(|tree| set(tree)) != set(before) {
            stale.insert((Ino::ROOT, SET.into()));
        }
    }
    stale
}
