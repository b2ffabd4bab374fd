//! Answers to the kernel's requests. Each takes the caller as the shell resolved it; `None` is a caller that is no
//! task (unknown, raced, pid 0, host root).
//!
//! Invariant: whatever a caller is told about names comes from its own task's tree; nothing here allocates but the
//! xattr answers.

use std::time::Duration;

use keyhole_domain::TaskId;

use super::View;
use crate::layout::{Directory, Node};
use crate::tree::Tree;
use crate::xattr;
use crate::{
    Attr, Denied, FileState, Ino, Kind, Mutation, ShownFile, ShownValue, StatFs, XattrAnswer,
    open_mutates,
};

/// The name, in the caller's root, of the set of all its files as they are now. Never listed.
pub const SET: &str = ".set";

/// For how long a version that was just replaced can still be opened by its own task. An open(2) is a LOOKUP and an
/// OPEN; when a rotation comes between, the kernel tries once more, and when another one comes between those two, the
/// application would see ESTALE. A call that begins after the rotation looks the name up anew and gets the new version in
/// any case.
pub const GRACE: Duration = Duration::from_secs(1);

/// The offset in a listing after `.`, and after `..`; other entries' are far above.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;

/// The answer to LOOKUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The inode and how long its attributes may be kept.
    pub attr: Attr,
    /// How long the name may be kept: never in the caller view, for the next caller's name means another inode.
    pub name_ttl: Duration,
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its inode.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
    /// Where a listing goes on after this entry.
    pub offset: u64,
}

impl View {
    /// LOOKUP: a name of the caller's own, else ENOENT, whatever is there for others.
    ///
    /// A directory of another task, one that is gone, and a caller that is no task: ENOENT. Never to be delayed.
    pub fn lookup(
        &self,
        caller: Option<TaskId>,
        parent: Ino,
        name: &[u8],
    ) -> Result<Entry, Denied> {
        let tree = self.own_tree(caller).ok_or(Denied::NoEntry)?;
        let attr = match parent {
            Ino::ROOT if name == SET.as_bytes() => self.current_set(tree),
            _ => self
                .own_dir(tree, parent)
                .and_then(|dir| dir.find(name))
                .and_then(|node| self.node_attr(tree, node)),
        };
        attr.map(|attr| Entry { attr, name_ttl: Duration::ZERO }).ok_or(Denied::NoEntry)
    }

    /// GETATTR, which names no caller that could be trusted: who has the inode may stat it. ESTALE if there is none.
    pub fn attr(&self, ino: Ino) -> Result<Attr, Denied> {
        if ino == Ino::ROOT {
            return Ok(Attr::root(&self.facts));
        }
        if let Some((file, state)) = self.file(ino) {
            return Ok(file.attr(state));
        }
        let tree = self.current.index.get(&ino).and_then(|task| self.current.trees.get(task));
        let current = tree.and_then(|tree| tree.dir(ino));
        let past = || self.past.set_dirs.get(&ino).and_then(|set| set.layout.dir(ino));
        current.or_else(past).map(Directory::attr).ok_or(Denied::Stale)
    }

    /// OPEN: the right to read the file from now on. `flags` are open(2)'s.
    ///
    /// Another task's file: EACCES. Any flag that means to change something: EROFS. A version that is not current (nor
    /// in a set that is in use), a revoked or an unknown file: ESTALE, so that the kernel looks the name up again. A
    /// version that was replaced within [`GRACE`] is still opened; `retired_for` says how long ago that was, as far as
    /// the shell knows, and is asked for no other file.
    /// Owner and mode are not judged here: the kernel does (`default_permissions`), and only it knows supplementary groups.
    pub fn open(
        &self,
        caller: Option<TaskId>,
        ino: Ino,
        flags: i32,
        retired_for: impl FnOnce() -> Option<Duration>,
    ) -> Result<&ShownFile, Denied> {
        let Some((file, state)) = self.file(ino) else {
            return Err(if self.is_dir(ino) { Denied::IsADirectory } else { Denied::Stale });
        };
        if caller != Some(file.task) {
            return Err(Denied::NotYours);
        }
        if open_mutates(flags) {
            return Err(Denied::ReadOnly);
        }
        match state {
            FileState::Current | FileState::Pinned => Ok(file),
            FileState::Retired if retired_for().is_some_and(|time| time < GRACE) => Ok(file),
            FileState::Retired | FileState::Revoked => Err(Denied::Stale),
        }
    }

    /// READ: which bytes. It names no caller, for a buffered READ's may be gone already: the handle carries the right.
    ///
    /// A retired file: its old bytes, to the last. A revoked one: EKEYREVOKED. An unknown one: ESTALE.
    pub fn readable(&self, ino: Ino) -> Result<ShownValue, Denied> {
        match self.file(ino) {
            Some((_, FileState::Revoked)) => Err(Denied::Revoked),
            Some((file, _)) => Ok(file.shown_value()),
            None if self.is_dir(ino) => Err(Denied::IsADirectory),
            None => Err(Denied::Stale),
        }
    }

    /// OPENDIR: anyone may open the root; another directory only its task, else EACCES; one that is gone: ESTALE.
    pub fn opendir(&self, caller: Option<TaskId>, ino: Ino) -> Result<(), Denied> {
        if ino == Ino::ROOT {
            return Ok(());
        }
        if self.own_tree(caller).is_some_and(|tree| self.own_dir(tree, ino).is_some()) {
            return Ok(());
        }
        match (self.owner(ino), self.file(ino)) {
            (None, _) => Err(Denied::Stale),
            (Some(task), _) if caller != Some(task) => Err(Denied::NotYours),
            (Some(_), Some(_)) => Err(Denied::NotADirectory),
            (Some(_), None) => Err(Denied::Stale),
        }
    }

    /// READDIR: the caller's own entries after `offset` (0: all), in an order that stays when others come and go.
    ///
    /// Judged by the caller at each call, so a directory's descriptor that was passed on shows its new owner nothing:
    /// only `.` and `..`. Hidden names are never listed.
    pub fn readdir(
        &self,
        caller: Option<TaskId>,
        ino: Ino,
        offset: u64,
    ) -> impl Iterator<Item = Listed<'_>> {
        let tree = self.own_tree(caller);
        let dir = tree.and_then(|tree| self.own_dir(tree, ino));
        let parent = dir.map_or(Ino::ROOT, |dir| dir.parent);
        let dots = [(".", ino, AFTER_DOT), ("..", parent, AFTER_DOT_DOT)];
        let dots = dots.into_iter().filter(move |(_, _, after)| *after > offset);
        let dots =
            dots.map(|(name, ino, offset)| Listed { ino, kind: Kind::Directory, name, offset });
        let entries = dir.into_iter().flat_map(move |dir| dir.after(offset));
        dots.chain(entries.filter_map(move |(offset, entry)| {
            let (ino, kind) = match entry.node {
                Node::Dir(ino) => (ino, Kind::Directory),
                Node::File(ino) if self.can_open(ino) => (ino, Kind::File),
                Node::File(_) => return None,
            };
            Some(Listed { ino, kind, name: &entry.name, offset })
        }))
    }

    /// GETXATTR with a buffer of `size` bytes, 0 asking for the length: `user.keyhole.version` and
    /// `user.keyhole.secret` of the caller's own files; everything else, and everyone else: ENODATA.
    pub fn getxattr(
        &self,
        caller: Option<TaskId>,
        ino: Ino,
        name: &[u8],
        size: u32,
    ) -> Result<XattrAnswer, Denied> {
        let file = self.own_file(caller, ino).ok_or(Denied::NoAttribute)?;
        let data = xattr::value(file, name).ok_or(Denied::NoAttribute)?;
        XattrAnswer::new(data, size)
    }

    /// LISTXATTR with a buffer of `size` bytes: the two names on the caller's own files; else an empty list.
    pub fn listxattr(
        &self,
        caller: Option<TaskId>,
        ino: Ino,
        size: u32,
    ) -> Result<XattrAnswer, Denied> {
        let own = self.own_file(caller, ino);
        XattrAnswer::new(own.map(|_| xattr::names()).unwrap_or_default(), size)
    }

    /// STATFS: constants.
    pub fn statfs(&self) -> StatFs {
        StatFs::CONSTANT
    }

    /// Any request that would change something.
    pub fn mutation(&self, mutation: Mutation) -> Denied {
        mutation.denied()
    }

    fn own_tree(&self, caller: Option<TaskId>) -> Option<&Tree> {
        caller.and_then(|task| self.current.trees.get(&task)).map(AsRef::as_ref)
    }

    /// A directory of the task itself: of its caller view, or of a set of its own.
    fn own_dir<'a>(&'a self, tree: &'a Tree, ino: Ino) -> Option<&'a Directory> {
        let past = || self.past.set_dirs.get(&ino).filter(|set| set.task == tree.task);
        tree.dir(ino).or_else(|| past().and_then(|set| set.layout.dir(ino)))
    }

    /// A file of the task itself whose grant it still has.
    fn own_file(&self, caller: Option<TaskId>, ino: Ino) -> Option<&ShownFile> {
        let (file, state) = self.file(ino)?;
        (caller == Some(file.task) && state != FileState::Revoked).then_some(file)
    }

    fn current_set(&self, tree: &Tree) -> Option<Attr> {
        let set = tree.set.as_ref()?;
        set.layout.dir(set.layout.root()).map(Directory::attr)
    }

    fn node_attr(&self, tree: &Tree, node: Node) -> Option<Attr> {
        match node {
            Node::Dir(ino) => self.own_dir(tree, ino).map(Directory::attr),
            Node::File(ino) if self.can_open(ino) => {
                self.file(ino).map(|(file, state)| file.attr(state))
            }
            Node::File(_) => None,
        }
    }

    fn can_open(&self, ino: Ino) -> bool {
        matches!(self.file(ino), Some((_, FileState::Current | FileState::Pinned)))
    }

    fn is_dir(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || (self.owner(ino).is_some() && self.file(ino).is_none())
    }
}
