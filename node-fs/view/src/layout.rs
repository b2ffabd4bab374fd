//! Directories: a task's files arranged by their targets, with one id per directory.
//!
//! Invariant: a layout has the directories and files of one task only, whatever the assignment says.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::Arc;

use keyhole_domain::{Target, Timestamp};

use crate::ino::cookie;
use crate::{Attr, Ino, ShownFile};

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    File(Ino),
    Dir(Ino),
}

#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: Box<str>,
    pub(crate) node: Node,
}

/// One directory.
#[derive(Debug)]
pub(crate) struct Directory {
    ino: Ino,
    pub(crate) parent: Ino,
    /// By name, for lookups.
    entries: Vec<Named>,
    /// By cookie, for listings: (cookie, index into `entries`).
    order: Vec<(u64, usize)>,
    subdirs: u32,
    newest: Timestamp,
}

impl Directory {
    /// O(log n), no allocation.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Node> {
        let at = self.entries.binary_search_by(|entry| entry.name.as_bytes().cmp(name)).ok()?;
        self.entries.get(at).map(|entry| entry.node)
    }

    pub(crate) fn entries(&self) -> &[Named] {
        &self.entries
    }

    /// The entries whose cookie is above `offset`, in order.
    pub(crate) fn after(&self, offset: u64) -> impl Iterator<Item = (u64, &Named)> {
        let from = self.order.partition_point(|(cookie, _)| *cookie <= offset);
        self.order[from..]
            .iter()
            .filter_map(|(cookie, at)| self.entries.get(*at).map(|entry| (*cookie, entry)))
    }

    pub(crate) fn attr(&self) -> Attr {
        Attr::directory(self.ino, self.subdirs, self.newest)
    }
}

/// The directories of one root, by id.
#[derive(Debug)]
pub(crate) struct Layout {
    root: Ino,
    dirs: BTreeMap<Ino, Directory>,
}

/// Why a layout cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LayoutError {
    /// Two files claim one name, or one lies where the other needs a directory.
    Conflict(Target),
    /// Two directories, or a directory and a file, hash to one id.
    Collision(Ino),
}

#[derive(Clone, Copy)]
enum Draft<'a> {
    File(Ino),
    Dir(&'a str),
}

struct DraftDir<'a> {
    parent: &'a str,
    newest: Timestamp,
    entries: BTreeMap<&'a str, Draft<'a>>,
}

impl Layout {
    /// Arranges the files; `number` gives the id of a directory's path, "" being the layout's root.
    pub(crate) fn build(
        files: &[Arc<ShownFile>],
        parent_of_root: Ino,
        number: impl Fn(&str) -> Ino,
    ) -> Result<Self, LayoutError> {
        let drafts = drafts(files)?;
        let numbers: BTreeMap<&str, Ino> =
            drafts.keys().map(|path| (*path, number(path))).collect();
        let ino_of = |path: &str| numbers.get(path).copied().unwrap_or(Ino::ROOT);
        let root = ino_of("");
        let mut dirs = BTreeMap::new();
        for (path, draft) in &drafts {
            let ino = ino_of(path);
            let parent = if path.is_empty() { parent_of_root } else { ino_of(draft.parent) };
            if dirs.insert(ino, finish(ino, parent, draft, ino_of)).is_some() {
                return Err(LayoutError::Collision(ino));
            }
        }
        match files.iter().find(|file| dirs.contains_key(&file.ino)) {
            Some(file) => Err(LayoutError::Collision(file.ino)),
            None => Ok(Self { root, dirs }),
        }
    }

    pub(crate) fn root(&self) -> Ino {
        self.root
    }

    pub(crate) fn dir(&self, ino: Ino) -> Option<&Directory> {
        self.dirs.get(&ino)
    }

    /// Every directory, by id.
    pub(crate) fn dirs(&self) -> &BTreeMap<Ino, Directory> {
        &self.dirs
    }
}

fn drafts(files: &[Arc<ShownFile>]) -> Result<BTreeMap<&str, DraftDir<'_>>, LayoutError> {
    let empty = |parent| DraftDir { parent, newest: Timestamp(0), entries: BTreeMap::new() };
    let mut dirs = BTreeMap::from([("", empty(""))]);
    for file in files {
        let conflict = || LayoutError::Conflict(file.target.clone());
        let path = file.target.as_str();
        let (mut parent, mut start) = ("", 0);
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            let is_file = end == path.len();
            let dir = dirs.entry(parent).or_insert_with(|| empty(""));
            dir.newest = dir.newest.max(file.shown);
            let draft = if is_file { Draft::File(file.ino) } else { Draft::Dir(&path[..end]) };
            match (dir.entries.entry(&path[start..end]), draft) {
                (Slot::Vacant(slot), draft) => {
                    slot.insert(draft);
                }
                (Slot::Occupied(there), Draft::Dir(_)) if matches!(there.get(), Draft::Dir(_)) => {}
                (Slot::Occupied(_), _) => return Err(conflict()),
            }
            if !is_file {
                dirs.entry(&path[..end]).or_insert_with(|| empty(parent));
                (parent, start) = (&path[..end], end + 1);
            }
        }
    }
    Ok(dirs)
}

fn finish(ino: Ino, parent: Ino, draft: &DraftDir<'_>, ino_of: impl Fn(&str) -> Ino) -> Directory {
    // BTreeMap's order of str is the order of the bytes.
    let entries: Vec<Named> = draft
        .entries
        .iter()
        .map(|(name, draft)| Named {
            name: (*name).into(),
            node: match draft {
                Draft::File(ino) => Node::File(*ino),
                Draft::Dir(path) => Node::Dir(ino_of(path)),
            },
        })
        .collect();
    let mut order: Vec<(u64, usize)> =
        entries.iter().enumerate().map(|(at, entry)| (cookie(&entry.name), at)).collect();
    order.sort_unstable();
    // Equal cookies would lose a name at a buffer's end.
    let mut last = 0;
    for (cookie, _) in &mut order {
        *cookie = (*cookie).max(last + 1);
        last = *cookie;
    }
    let subdirs = entries.iter().filter(|entry| matches!(entry.node, Node::Dir(_))).count();
    Directory {
        ino,
        parent,
        order,
        // At most a directory per grant: far below u32.
        subdirs: u32::try_from(subdirs).unwrap_or(u32::MAX - 2),
        newest: draft.newest,
        entries,
    }
}
