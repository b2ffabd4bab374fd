//! The disk under a daemon: fails at a chosen operation, and loses power, both without the daemon's help.
//!
//! A small library (`disk/shim.c`) is preloaded into the daemon. It counts what is done to files below one folder, lets
//! one operation fail, and keeps a trace of all that was done; of that the test makes what a loss of power after any
//! operation leaves. Invariant: what was synced, and names of which the folder was synced, are always left.

mod case;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::ground::Ground;

pub use case::*;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Which operations a fault applies to, and how they fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Any operation fails with EIO, and nothing of it is done. What a failed sync was to write is lost.
    Io,
    /// An operation that needs space fails with ENOSPC.
    Full,
    /// A write does half of its work, then fails with EIO.
    Half,
    /// The process is killed before an operation.
    Kill,
}

impl FaultKind {
    /// As the shim judges it.
    fn applies_to(self, operation: &Operation) -> bool {
        match self {
            Self::Io | Self::Kill => true,
            Self::Full => "wtcdrl".contains(operation.letter),
            Self::Half => operation.letter == 'w',
        }
    }

    /// The faults of this kind that a run with this trace would have on other files than those whose names begin so,
    /// and on every name.
    pub fn apart_from(self, files: &[&str], trace: &[Operation]) -> Vec<u64> {
        let (mut these, mut found, mut at) = (BTreeSet::new(), Vec::new(), 0);
        for operation in trace {
            let made = operation.paths().0;
            let name = made.file_name().unwrap_or_default().to_string_lossy();
            if operation.letter == 'c' && files.iter().any(|file| name.starts_with(file)) {
                these.insert(operation.inode);
            }
            if self.applies_to(operation) {
                if operation.is_of_a_name() || !these.contains(&operation.inode) {
                    found.push(at);
                }
                at += 1;
            }
        }
        found
    }
}

/// The operation that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How.
    pub kind: FaultKind,
    /// Which one of those that the kind applies to, from 0 on.
    pub at: u64,
}

/// What a loss of power leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Neither bytes nor names.
    Nothing,
    /// All names, and no bytes: as file systems that write names first.
    Names,
    /// Of the names only the last change, and no bytes: as file systems that write names in any order.
    TheLastName,
    /// All but the second half of the last write; a sector is written whole or not at all.
    AllButATornEnd,
}

impl Left {
    /// Every one.
    pub const ALL: [Self; 4] =
        [Self::Nothing, Self::Names, Self::TheLastName, Self::AllButATornEnd];
}

/// The library that is preloaded.
#[derive(Debug)]
pub struct Shim {
    folder: TempDir,
}

impl Shim {
    /// Compiles it.
    pub fn build() -> Self {
        let shim = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let source = shim.folder.path().join("shim.c");
        fs::write(&source, include_str!("disk/shim.c")).expect("the folder is ours");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).args([&shim.library(), &source]);
        assert!(cc.status().expect("a C compiler is there").success(), "{cc:?}");
        shim
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("shim.so")
    }
}

/// A folder whose operations are watched.
#[derive(Debug)]
pub struct WatchedFolder {
    folder: PathBuf,
    library: PathBuf,
    trace: PathBuf,
    count: PathBuf,
}

impl WatchedFolder {
    /// Watches `folder`, which need not be there yet; the ground keeps the trace.
    pub fn new(shim: &Shim, ground: &Ground, folder: &Path) -> Self {
        let at = |name| ground.folder().join(name);
        let (trace, count) = (at("trace"), at("count"));
        fs::write(&trace, "").expect("the ground is ours");
        fs::write(&count, [0; 16]).expect("the ground is ours");
        Self { folder: folder.to_owned(), library: shim.library(), trace, count }
    }

    /// The environment of a daemon that is watched.
    pub fn environment(&self, fault: Option<Fault>) -> Vec<(String, String)> {
        let kind = match fault.map(|fault| fault.kind) {
            None => "none",
            Some(FaultKind::Io) => "io",
            Some(FaultKind::Full) => "full",
            Some(FaultKind::Half) => "half",
            Some(FaultKind::Kill) => "kill",
        };
        let text = |path: &Path| path.display().to_string();
        let settings = [
            ("LD_PRELOAD", text(&self.library)),
            ("KHDISK_FOLDER", text(&self.folder)),
            ("KHDISK_TRACE", text(&self.trace)),
            ("KHDISK_COUNT", text(&self.count)),
            ("KHDISK_KIND", kind.to_owned()),
            ("KHDISK_AT", fault.map_or(0, |fault| fault.at).to_string()),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// How many operations were done or failed so far.
    pub fn operations(&self) -> usize {
        self.counter(0) as usize
    }

    /// How many operations the kind of the fault applied to.
    pub fn operations_of_the_kind(&self) -> u64 {
        self.counter(1)
    }

    /// Whether the operation that is to fail did.
    pub fn has_failed(&self, fault: Fault) -> bool {
        self.counter(1) > fault.at
    }

    fn counter(&self, number: usize) -> u64 {
        let bytes = fs::read(&self.count).expect("it is ours");
        u64::from_le_bytes(bytes[number * 8..][..8].try_into().expect("eight bytes"))
    }

    /// All operations that left something, in their order.
    pub fn trace(&self) -> Vec<Operation> {
        let bytes = fs::read(&self.trace).expect("it is ours");
        let mut rest = bytes.as_slice();
        std::iter::from_fn(|| Operation::read(&mut rest)).collect()
    }
}

/// One operation of a trace.
#[derive(Debug, Clone)]
pub struct Operation {
    letter: char,
    failed: bool,
    inode: u64,
    at: u64,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Operation {
    fn read(rest: &mut &[u8]) -> Option<Self> {
        let (head, tail) = rest.split_at_checked(40)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight"));
        let (first, tail) = tail.split_at(number(24) as usize);
        let (second, tail) = tail.split_at(number(32) as usize);
        *rest = tail;
        Some(Self {
            letter: char::from(head[0]),
            failed: head[4] != 0,
            inode: number(8),
            at: number(16),
            first: first.to_vec(),
            second: second.to_vec(),
        })
    }

    /// Whether it is about a name: a file or folder made, renamed, linked or removed.
    pub fn is_of_a_name(&self) -> bool {
        "cdrlu".contains(self.letter)
    }

    fn paths(&self) -> (PathBuf, PathBuf) {
        let path = |bytes: &[u8]| PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
        (path(&self.first), path(&self.second))
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Resize(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Resize(length) => bytes.resize(*length as usize, 0),
            Self::Write(at, data) => {
                let (at, end) = (*at as usize, *at as usize + data.len());
                bytes.resize(bytes.len().max(end), 0);
                bytes[at..end].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Default)]
struct FileState {
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

/// What a name stands for: a folder, or a file by its number.
type Names = BTreeMap<PathBuf, Option<usize>>;

/// What became of a name.
#[derive(Debug)]
struct NameChange {
    gone: Option<PathBuf>,
    came: Option<(PathBuf, Option<usize>)>,
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        names.extend(self.came.clone());
    }

    fn is_in(&self, folder: &Path) -> bool {
        let path = self.gone.as_ref().or(self.came.as_ref().map(|(path, _)| path));
        path.is_some_and(|path| path.parent() == Some(folder))
    }
}

/// The disk as it is after some operations of a trace.
#[derive(Debug, Default)]
pub struct Disk {
    files: Vec<FileState>,
    by_inode: BTreeMap<u64, usize>,
    folders: BTreeMap<u64, PathBuf>,
    names: Names,
    synced_names: Names,
    /// Unless it was synced.
    last_name: Option<NameChange>,
    /// The file that the last operation wrote to.
    last_written: Option<usize>,
}

impl Disk {
    /// The disk after these operations; it began without the folder.
    pub fn after(operations: &[Operation]) -> Self {
        let mut disk = Self::default();
        for operation in operations {
            disk.last_written = None;
            disk.take(operation);
        }
        disk
    }

    /// As it is with this folder on it, all of it synced.
    pub fn of(folder: &Path, operations: &[Operation]) -> Self {
        let mut disk = Self::default();
        disk.load(folder);
        disk.synced_names = disk.names.clone();
        for operation in operations {
            disk.last_written = None;
            disk.take(operation);
        }
        disk
    }

    fn load(&mut self, folder: &Path) {
        let inode = |path: &Path| fs::metadata(path).expect("it is there").ino();
        self.folders.insert(inode(folder), folder.to_owned());
        for entry in fs::read_dir(folder).expect("it is a folder") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                self.names.insert(path.clone(), None);
                self.load(&path);
            } else if path.is_file() {
                let file = self.new_file(inode(&path));
                self.files[file].synced = fs::read(&path).expect("it can be read");
                self.names.insert(path, Some(file));
            }
        }
    }

    fn new_file(&mut self, inode: u64) -> usize {
        self.files.push(FileState::default());
        self.by_inode.insert(inode, self.files.len() - 1);
        self.files.len() - 1
    }

    fn take(&mut self, operation: &Operation) {
        let (from, to) = operation.paths();
        match operation.letter {
            'c' => {
                let file = self.new_file(operation.inode);
                self.rename(None, Some((from, Some(file))));
            }
            'd' => {
                // The folder that is watched may be it: its own name is not ours to judge.
                self.folders.insert(operation.inode, from.clone());
                self.rename(None, Some((from, None)));
            }
            'r' => {
                let file = self.names.get(&from).copied();
                self.rename(Some(from), file.map(|file| (to, file)));
            }
            'l' => {
                let file = self.names.get(&from).copied().expect("what is linked is there");
                self.rename(None, Some((to, file)));
            }
            'u' => self.rename(Some(from), None),
            's' => self.sync(operation),
            'w' => self.change(operation, Change::Write(operation.at, operation.first.clone())),
            't' => self.change(operation, Change::Resize(operation.at)),
            other => panic!("operation {other:?} of the trace is none"),
        }
    }

    fn rename(&mut self, gone: Option<PathBuf>, came: Option<(PathBuf, Option<usize>)>) {
        let change = NameChange { gone, came };
        change.apply(&mut self.names);
        self.last_name = Some(change);
    }

    fn change(&mut self, operation: &Operation, change: Change) {
        let file = *self.by_inode.get(&operation.inode).expect("it was made before");
        self.files[file].unsynced.push(change);
        self.last_written = Some(file);
    }

    fn sync(&mut self, operation: &Operation) {
        if let Some(folder) = self.folders.get(&operation.inode) {
            if !operation.failed {
                let here = |path: &&PathBuf| path.parent() == Some(folder);
                self.synced_names.retain(|path, _| !here(&path));
                let names = self.names.iter().filter(|(path, _)| here(path));
                self.synced_names.extend(names.map(|(path, file)| (path.clone(), *file)));
                self.last_name = self.last_name.take().filter(|change| !change.is_in(folder));
            }
            return;
        }
        let file = *self.by_inode.get(&operation.inode).expect("it was made before");
        let FileState { synced, unsynced } = &mut self.files[file];
        for change in unsynced.drain(..).filter(|_| !operation.failed) {
            change.apply(synced);
        }
    }

    /// Makes `to` what `folder` is after power was lost.
    pub fn lose_power(&self, folder: &Path, to: &Path, left: Left) {
        let mut names = match left {
            Left::Nothing | Left::TheLastName => self.synced_names.clone(),
            Left::Names | Left::AllButATornEnd => self.names.clone(),
        };
        if let (Left::TheLastName, Some(last)) = (left, &self.last_name) {
            last.apply(&mut names);
        }
        let new = |path: &Path| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        new(to);
        for (path, file) in &names {
            let Ok(name) = path.strip_prefix(folder) else { continue };
            let is_held = name.ancestors().skip(1).all(|above| {
                above.as_os_str().is_empty() || names.contains_key(&folder.join(above))
            });
            if name.as_os_str().is_empty() || !is_held {
                continue;
            }
            match file {
                None => new(&to.join(name)),
                Some(file) => {
                    let options = fs::File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(to.join(name));
                    let written =
                        options.and_then(|out| out.write_all_at(&self.bytes(*file, left), 0));
                    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                }
            }
        }
    }

    fn bytes(&self, file: usize, left: Left) -> Vec<u8> {
        let FileState { synced, unsynced } = &self.files[file];
        let mut bytes = synced.clone();
        if left == Left::AllButATornEnd {
            let mut changes = unsynced.clone();
            if let (true, Some(Change::Write(at, data))) =
                (self.last_written == Some(file), changes.last_mut())
            {
                let torn = (*at as usize + data.len() / 2) / SECTOR * SECTOR;
                data.truncate(torn.saturating_sub(*at as usize));
            }
            changes.iter().for_each(|change| change.apply(&mut bytes));
        }
        bytes
    }
}
