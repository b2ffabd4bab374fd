//! Random lives of a node against one naive definition: **a task sees exactly its grants.**
//!
//! [`Oracle`] holds that definition and nothing else. After each step everything that any caller can ask is asked and
//! compared: listings, lookups, opens and reads, through every inode that was ever seen.

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{AssignedTask, GrantId, TaskId, Timestamp, ValueKey, Version};
use proptest::prelude::*;

use super::fixture::{FACTS, assigned, assignment, grant, task};
use super::{Changes, SET, View};
use crate::{Denied, Ino, Kind, ShownValue};

const TASKS: u8 = 3;
/// Targets by grant; 5 conflicts with 2 and 3, 6 with 1.
const TARGETS: [&str; 7] = ["a", "tls/key", "tls/cert", "x/y/z", "x/b", "tls", "a"];
const NAMES: [&str; 10] = ["a", "b", "tls", "key", "cert", "x", "y", "z", ".set", ".hidden"];

#[derive(Debug, Clone)]
struct PlannedTask {
    assigned: bool,
    live: bool,
    rejected: bool,
    versions: Vec<Option<u64>>,
}

#[derive(Debug, Clone)]
enum Step {
    Assign(Vec<PlannedTask>),
    /// A backup is restored: the same numbers mean other bytes.
    Restore,
    Open(u8, usize),
    Close(usize),
    OpenSet(u8),
    CloseSet(usize),
    Sweep,
    Handover,
}

fn planned() -> impl Strategy<Value = PlannedTask> {
    // Conflicting grants are rare, or no task would ever be shown.
    let chance = |id: usize| if id < 5 { 0.6 } else { 0.05 };
    let version = |id| prop::option::weighted(chance(id), 1..4_u64);
    let versions = (0..TARGETS.len()).map(version).collect::<Vec<_>>();
    let mostly = prop::bool::weighted(0.85);
    (mostly, mostly, prop::bool::weighted(0.1), versions).prop_map(
        |(assigned, live, rejected, versions)| PlannedTask { assigned, live, rejected, versions },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(planned(), usize::from(TASKS)).prop_map(Step::Assign),
        1 => Just(Step::Restore),
        6 => (0..TASKS, any::<usize>()).prop_map(|(task, at)| Step::Open(task, at)),
        3 => any::<usize>().prop_map(Step::Close),
        3 => (0..TASKS).prop_map(Step::OpenSet),
        1 => any::<usize>().prop_map(Step::CloseSet),
        1 => Just(Step::Sweep),
        1 => Just(Step::Handover),
    ]
}

/// What a file is, as the design says it.
type Key = (TaskId, u64, GrantId, Version);

struct Handle {
    ino: Ino,
    key: Key,
    value: ShownValue,
    revoked: bool,
}

struct HeldSet {
    root: Ino,
    task: TaskId,
    /// Path, file, key, and whether that was revoked since.
    files: Vec<(String, Ino, Key, bool)>,
    alive: bool,
}

/// The one definition of what is right.
#[derive(Default)]
struct Oracle {
    incarnation: u64,
    plan: Vec<PlannedTask>,
    /// Task, path: what is there.
    sees: BTreeMap<TaskId, BTreeMap<String, (Key, ValueKey)>>,
}

impl Oracle {
    fn tasks(&self) -> Vec<AssignedTask> {
        let planned = (0..TASKS).zip(&self.plan).filter(|(_, plan)| plan.assigned);
        planned
            .map(|(n, plan)| {
                let versions = plan.versions.iter().enumerate();
                let grants = versions.filter_map(|(at, version)| {
                    version.map(|v| grant(at as u64 + 1, TARGETS[at], v))
                });
                let mut task = assigned(n, grants.collect());
                if plan.rejected {
                    task.rejected = Some("constraint".to_owned());
                }
                task
            })
            .collect()
    }

    fn live(&self) -> BTreeSet<TaskId> {
        (0..TASKS).zip(&self.plan).filter(|(_, plan)| plan.live).map(|(n, _)| task(n)).collect()
    }

    fn look(&mut self) {
        let live = self.live();
        self.sees.clear();
        for assigned in self.tasks() {
            let grants = &assigned.grants;
            let conflict = grants.iter().enumerate().any(|(at, grant)| {
                grants[..at].iter().any(|other| grant.target.conflicts_with(&other.target))
            });
            if live.contains(&assigned.id) && assigned.rejected.is_none() && !conflict {
                let file = |grant: &keyhole_domain::AssignedGrant| {
                    let key = (assigned.id, self.incarnation, grant.id, grant.value.version);
                    (grant.target.as_str().to_owned(), (key, grant.value))
                };
                self.sees.insert(assigned.id, grants.iter().map(file).collect());
            }
        }
    }

    fn keys(&self, task: TaskId) -> impl Iterator<Item = Key> {
        self.sees.get(&task).into_iter().flat_map(|files| files.values().map(|(key, _)| *key))
    }

    fn is_current(&self, key: Key) -> bool {
        self.keys(key.0).any(|current| current == key)
    }

    fn still_granted(&self, key: Key) -> bool {
        self.keys(key.0).any(|now| now.2 == key.2)
    }

    /// Whether a file that was (not) revoked before is so now.
    fn revoked(&self, key: Key, before: bool) -> bool {
        !self.still_granted(key) || (before && !self.is_current(key))
    }
}

struct Node {
    view: View,
    oracle: Oracle,
    handles: Vec<Handle>,
    sets: Vec<HeldSet>,
    /// Every inode ever seen, and what it was.
    files: BTreeMap<Ino, Key>,
    inos: BTreeMap<Key, Ino>,
    dirs: BTreeMap<Ino, TaskId>,
    /// Current one view ago: kept without being held.
    grace: BTreeSet<Ino>,
    clock: u64,
}

impl Node {
    fn new() -> Self {
        let mut oracle = Oracle { incarnation: 1, ..Oracle::default() };
        oracle.look();
        Self {
            view: View::empty(FACTS),
            oracle,
            handles: Vec::new(),
            sets: Vec::new(),
            files: BTreeMap::new(),
            inos: BTreeMap::new(),
            dirs: BTreeMap::new(),
            grace: BTreeSet::new(),
            clock: 100,
        }
    }

    fn held(&self) -> BTreeSet<Ino> {
        let handles = self.handles.iter().map(|handle| handle.ino);
        handles.chain(self.sets.iter().map(|set| set.root)).collect()
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Assign(plan) => {
                self.oracle.plan = plan.clone();
                self.assign();
            }
            Step::Restore => {
                self.oracle.incarnation += 1;
                self.assign();
            }
            Step::Open(n, at) => self.open(task(*n), *at),
            Step::Close(at) if !self.handles.is_empty() => {
                self.handles.swap_remove(at % self.handles.len());
                self.sweep();
            }
            Step::OpenSet(n) => self.open_set(task(*n)),
            Step::CloseSet(at) if !self.sets.is_empty() => {
                self.sets.swap_remove(at % self.sets.len());
                self.sweep();
            }
            Step::Close(_) | Step::CloseSet(_) => {}
            Step::Sweep => self.sweep(),
            Step::Handover => self.hand_over(),
        }
        self.check();
    }

    fn sweep(&mut self) {
        let held = self.held();
        if let Some((view, changes)) = self.view.sweep(|ino| held.contains(&ino)) {
            assert!(changes.revoked.is_empty() && changes.stale_names.is_empty());
            self.view = view;
        }
        assert!(self.view.sweep(|ino| held.contains(&ino)).is_none());
        self.grace.clear();
    }

    fn assign(&mut self) {
        let was: BTreeSet<Ino> = (0..TASKS)
            .flat_map(|n| self.oracle.keys(task(n)).collect::<Vec<_>>())
            .map(|key| self.inos[&key])
            .collect();
        let held = self.held();
        self.oracle.look();
        self.clock += 1;
        let assignment = assignment(self.oracle.incarnation, self.oracle.tasks());
        let (next, changes) =
            self.view.next(&assignment, &self.oracle.live(), Timestamp(self.clock), |ino| {
                held.contains(&ino)
            });
        self.check_changes(&next, &changes, &was);
        self.view = next;
        self.grace = was;
        for handle in &mut self.handles {
            handle.revoked = self.oracle.revoked(handle.key, handle.revoked);
        }
        for set in &mut self.sets {
            for (_, _, key, revoked) in &mut set.files {
                *revoked = self.oracle.revoked(*key, *revoked);
            }
            let keys: BTreeSet<Key> = set.files.iter().map(|(_, _, key, _)| *key).collect();
            let is_current = keys == self.oracle.keys(set.task).collect();
            let any = keys.iter().any(|key| self.oracle.still_granted(*key));
            set.alive = is_current || (set.alive && any);
        }
    }

    /// Whatever the kernel may have kept of the view before is named.
    fn check_changes(&self, next: &View, changes: &Changes, was: &BTreeSet<Ino>) {
        for ino in was {
            let key = self.files[ino];
            let current = self.oracle.is_current(key);
            let granted = self.oracle.still_granted(key);
            assert_eq!(changes.revoked.contains(ino), !granted, "revoked {key:?}");
            let nlink = next.attr(*ino).unwrap().nlink;
            assert_eq!(nlink, u32::from(granted && !changes.retired.contains(ino)), "{key:?}");
            assert!(!current || nlink == 1);
        }
        for n in 0..TASKS {
            let dirs = [Ino::ROOT].into_iter().chain(self.dirs.keys().copied());
            for (dir, name) in dirs.flat_map(|dir| NAMES.map(|name| (dir, name))) {
                let ino = |view: &View| {
                    let entry = view.lookup(Some(task(n)), dir, name.as_bytes());
                    entry.ok().map(|entry| entry.attr.ino)
                };
                let before = ino(&self.view);
                let is_set = self.view.past.set_dirs.contains_key(&dir)
                    || self.view.current.trees.values().any(|tree| {
                        tree.set.as_ref().is_some_and(|set| set.layout.dir(dir).is_some())
                    });
                if before.is_some() && before != ino(next) && !is_set {
                    assert!(changes.stale_names.contains(&(dir, name.into())), "{dir} {name}");
                }
            }
        }
    }

    fn open(&mut self, task: TaskId, at: usize) {
        let Some(files) = self.oracle.sees.get(&task).filter(|files| !files.is_empty()) else {
            return;
        };
        let (path, (key, value)) = files.iter().nth(at % files.len()).unwrap();
        let ino = resolve(&self.view, task, Ino::ROOT, path).unwrap();
        assert_eq!(self.view.open(Some(task), ino, 0, || None).unwrap().value, *value);
        let value = ShownValue { incarnation: key.1, key: *value };
        self.handles.push(Handle { ino, key: *key, value, revoked: false });
    }

    fn open_set(&mut self, task: TaskId) {
        let entry = self.view.lookup(Some(task), Ino::ROOT, SET.as_bytes());
        let files = self.oracle.sees.get(&task).filter(|files| !files.is_empty());
        let Some(files) = files else {
            assert_eq!(entry, Err(Denied::NoEntry));
            return;
        };
        let root = entry.unwrap().attr.ino;
        assert_eq!(self.view.opendir(Some(task), root), Ok(()));
        let files =
            files.iter().map(|(path, (key, _))| (path.clone(), self.inos[key], *key, false));
        self.sets.push(HeldSet { root, task, files: files.collect(), alive: true });
    }

    fn hand_over(&mut self) {
        let held = self.held();
        let resumed = View::resume(FACTS, self.view.record());
        for handle in &self.handles {
            assert_eq!(resumed.readable(handle.ino), self.view.readable(handle.ino));
        }
        let assignment = assignment(self.oracle.incarnation, self.oracle.tasks());
        let (next, changes) =
            resumed.next(&assignment, &self.oracle.live(), Timestamp(9_999), |ino| {
                held.contains(&ino)
            });
        assert!(changes.revoked.is_empty(), "a change of worker revokes nothing");
        for ino in self.files.keys() {
            let now = |view: &View| view.file(*ino).map(|(file, state)| (file.clone(), state));
            if let Some(after) = now(&next) {
                assert_eq!(Some(after), now(&self.view), "also its time and state stay");
            }
        }
        self.view = next;
        self.grace.clear();
    }

    fn check(&mut self) {
        let callers: Vec<Option<TaskId>> = (0..TASKS + 1).map(|n| Some(task(n))).collect();
        for caller in callers.into_iter().chain([None]) {
            self.check_names(caller);
            self.check_inodes(caller);
        }
        self.check_handles();
        self.check_sets();
        let root = self.view.attr(Ino::ROOT).unwrap();
        assert_eq!(root, View::empty(FACTS).attr(Ino::ROOT).unwrap(), "the root tells nothing");
    }

    /// Listings and lookups of the caller view, from the root down.
    fn check_names(&mut self, caller: Option<TaskId>) {
        let mut found = BTreeMap::new();
        let mut dirs = vec![(String::new(), Ino::ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            let listed: BTreeMap<&str, (Ino, Kind)> = self
                .view
                .readdir(caller, dir, 2)
                .map(|entry| (entry.name, (entry.ino, entry.kind)))
                .collect();
            for name in NAMES.iter().filter(|name| **name != SET) {
                let looked = self.view.lookup(caller, dir, name.as_bytes());
                let looked = looked.ok().map(|entry| (entry.attr.ino, entry.attr.kind));
                assert_eq!(looked, listed.get(name).copied(), "listing is lookups: {path}{name}");
            }
            for (name, (ino, kind)) in listed {
                assert_eq!(self.view.attr(ino).unwrap().kind, kind);
                let path = format!("{path}{name}");
                match kind {
                    Kind::File => {
                        assert!(found.insert(path, ino).is_none());
                    }
                    Kind::Directory => {
                        let owner = *self.dirs.entry(ino).or_insert(caller.unwrap());
                        assert_eq!(Some(owner), caller, "a directory is of one task");
                        dirs.push((format!("{path}/"), ino));
                    }
                }
            }
        }
        let sees = caller.and_then(|task| self.oracle.sees.get(&task));
        let expected: Vec<&String> = sees.into_iter().flat_map(BTreeMap::keys).collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected, "a task sees exactly its grants");
        for (path, ino) in found {
            let (key, value) = sees.unwrap()[&path];
            assert_eq!(*self.files.entry(ino).or_insert(key), key, "one inode, one file");
            assert_eq!(*self.inos.entry(key).or_insert(ino), ino, "one file, one inode");
            assert_eq!(self.view.readable(ino), Ok(ShownValue { incarnation: key.1, key: value }));
        }
    }

    /// Everything ever seen, asked by this caller.
    fn check_inodes(&self, caller: Option<TaskId>) {
        let pinned: BTreeSet<Ino> = self
            .sets
            .iter()
            .filter(|set| set.alive)
            .flat_map(|set| set.files.iter().filter(|file| !file.3).map(|file| file.1))
            .collect();
        let held = self.held();
        for (ino, key) in &self.files {
            let opened = self.view.open(caller, *ino, 0, || None);
            let xattr = self.view.getxattr(caller, *ino, b"user.keyhole.secret", 0);
            if caller != Some(key.0) {
                assert!(opened.is_err() && xattr.is_err(), "another task's file");
                let names = self.view.listxattr(caller, *ino, 0);
                assert_eq!(names, Ok(crate::XattrAnswer::Size(0)));
                continue;
            }
            let current = self.oracle.is_current(*key);
            if current || pinned.contains(ino) {
                assert!(opened.is_ok(), "{key:?} {opened:?}");
            } else {
                assert!(opened.is_err(), "{key:?} is past");
                let kept = held.contains(ino) || self.grace.contains(ino);
                assert!(kept || self.view.readable(*ino).is_err() || self.in_held_set(*ino));
            }
            if !self.oracle.still_granted(*key) {
                assert!(self.view.readable(*ino).is_err(), "after revoking nothing");
                assert!(xattr.is_err());
            }
        }
        for (dir, owner) in &self.dirs {
            if caller != Some(*owner) {
                assert!(self.view.opendir(caller, *dir).is_err());
                assert_eq!(self.view.readdir(caller, *dir, 2).count(), 0);
                for name in NAMES {
                    let looked = self.view.lookup(caller, *dir, name.as_bytes());
                    assert_eq!(looked, Err(Denied::NoEntry));
                }
            }
        }
    }

    fn in_held_set(&self, ino: Ino) -> bool {
        self.sets.iter().any(|set| set.files.iter().any(|file| file.1 == ino))
    }

    fn check_handles(&self) {
        for handle in &self.handles {
            let expected = if handle.revoked { Err(Denied::Revoked) } else { Ok(handle.value) };
            assert_eq!(self.view.readable(handle.ino), expected, "{:?}", handle.key);
            assert!(handle.revoked || self.view.values().contains(&handle.value));
        }
    }

    fn check_sets(&self) {
        for set in &self.sets {
            let visible = self.oracle.sees.contains_key(&set.task);
            let caller = Some(set.task);
            assert_eq!(self.view.opendir(caller, set.root).is_ok(), visible && set.alive);
            for (path, ino, key, revoked) in &set.files {
                let expected = (visible && set.alive && !revoked).then_some(*ino);
                assert_eq!(resolve(&self.view, set.task, set.root, path), expected, "{key:?}");
                for n in (0..TASKS).filter(|n| task(*n) != set.task) {
                    assert_eq!(resolve(&self.view, task(n), set.root, path), None);
                    assert_eq!(self.view.readdir(Some(task(n)), set.root, 2).count(), 0);
                }
            }
        }
    }
}

fn resolve(view: &View, task: TaskId, root: Ino, path: &str) -> Option<Ino> {
    path.split('/').try_fold(root, |dir, name| {
        view.lookup(Some(task), dir, name.as_bytes()).ok().map(|entry| entry.attr.ino)
    })
}

proptest! {
    #[test]
    fn a_task_sees_exactly_its_grants(steps in prop::collection::vec(step(), 1..20)) {
        let mut node = Node::new();
        for step in &steps {
            node.run(step);
        }
    }
}
