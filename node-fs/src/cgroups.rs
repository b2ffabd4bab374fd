//! The cgroup v2 hierarchy: its root, the ids of its directories, and the tasks' own cgroups.
//!
//! A cgroup is known by its id (the inode number of its directory, unique within a boot), never
//! by a name that a workload could forge. Depends on [`sys`](crate::sys) and
//! [`mountinfo`](crate::mountinfo).

mod adopt;
mod watch;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

pub use adopt::{AdoptError, Adopted};
pub use watch::{CgroupEnd, CgroupWatch};

pub use keyhole_view::cgroup::{CgroupId, CgroupPath};

use crate::{mountinfo, sys};

/// Deeper hierarchies than this are not followed (the kernel's own limit is lower in practice).
const MAX_DEPTH: usize = 256;

/// Why the cgroup hierarchy could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 mount.
    #[error(
        "no cgroup v2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount one with \"mount -t cgroup2 none /sys/fs/cgroup/unified\""
    )]
    NoHierarchy,
    /// The path is not a cgroup.
    #[error("{} is not a cgroup of the hierarchy at {}: give a directory below it", .path.display(), .root.display())]
    NotACgroup {
        /// What was given.
        path: PathBuf,
        /// Where the hierarchy is mounted.
        root: PathBuf,
    },
    /// A name that is not one plain directory.
    #[error("{name:?} cannot name a cgroup: use a path of plain directory names")]
    BadName {
        /// What was given.
        name: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} the cgroup {}: {source}", .path.display())]
    System {
        /// What was being done.
        doing: &'static str,
        /// With which directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl CgroupError {
    fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { doing, path, source }
    }
}

/// The mounted cgroup2 hierarchy.
#[derive(Debug)]
pub struct CgroupRoot {
    path: PathBuf,
    directory: File,
    id: CgroupId,
    device: u64,
}

impl CgroupRoot {
    /// Finds the hierarchy in `/proc/self/mountinfo`, be it alone (unified) or beside v1 (hybrid).
    pub fn find() -> Result<Self, CgroupError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let entries = mountinfo::read().map_err(CgroupError::system("find", &path))?;
        // A bind of a part of it may be mounted too; the one mounted at its own root serves.
        let mount = entries
            .iter()
            .filter(|entry| entry.fs_type == "cgroup2")
            .min_by_key(|entry| entry.root.as_os_str().len())
            .ok_or(CgroupError::NoHierarchy)?;
        Self::open(mount.mount_point.clone())
    }

    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let open = || -> io::Result<(File, Metadata)> {
            let directory = open_directory(&path)?;
            let metadata = directory.metadata()?;
            Ok((directory, metadata))
        };
        let (directory, metadata) = open().map_err(CgroupError::system("open", &path))?;
        Ok(Self { path, directory, id: CgroupId(metadata.ino()), device: metadata.dev() })
    }

    /// Where the hierarchy is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Id of the root cgroup.
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// The directory of a cgroup's path.
    pub fn directory_of(&self, cgroup: &CgroupPath) -> PathBuf {
        self.path.join(cgroup.as_str().trim_start_matches('/'))
    }

    /// The cgroup that a directory is, below the root.
    pub fn cgroup_of(&self, directory: &Path) -> Result<CgroupPath, CgroupError> {
        let below = directory.strip_prefix(&self.path).ok().and_then(Path::to_str);
        below.and_then(|below| CgroupPath::new(&format!("/{below}")).ok()).ok_or_else(|| {
            CgroupError::NotACgroup { path: directory.to_owned(), root: self.path.clone() }
        })
    }

    /// Opens a directory (no link) and makes sure that it is a cgroup of this hierarchy.
    pub(crate) fn open_cgroup(&self, path: &Path) -> Result<(File, CgroupId), CgroupError> {
        let open = || -> io::Result<(File, Metadata)> {
            let directory = open_directory(path)?;
            let metadata = directory.metadata()?;
            Ok((directory, metadata))
        };
        let (directory, metadata) = open().map_err(CgroupError::system("open", path))?;
        if metadata.dev() != self.device {
            return Err(CgroupError::NotACgroup { path: path.to_owned(), root: self.path.clone() });
        }
        Ok((directory, CgroupId(metadata.ino())))
    }

    /// Id of the cgroup at `path`, which must lie in this hierarchy.
    pub fn id_of(&self, path: &Path) -> Result<CgroupId, CgroupError> {
        self.open_cgroup(path).map(|(_, id)| id)
    }

    /// The cgroup with this id and its ancestors, nearest first, without the root cgroup; empty
    /// for the root. `None` when there is no such cgroup (any more).
    pub fn lineage(&self, id: CgroupId) -> Option<Arc<[CgroupId]>> {
        let mut directory = sys::open_cgroup_by_id(&self.directory, id.0).ok()?;
        let mut lineage = Vec::new();
        let mut current = CgroupId(rustix::fs::fstat(&directory).ok()?.st_ino);
        if current != id {
            return None;
        }
        while current != self.id {
            if lineage.len() == MAX_DEPTH {
                return None;
            }
            lineage.push(current);
            // Up by "..", not by name: names can be taken again by others, links cannot.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            directory = rustix::fs::openat(&directory, "..", flags, Mode::empty()).ok()?;
            let above = rustix::fs::fstat(&directory).ok()?;
            if above.st_dev != self.device || above.st_ino == current.0 {
                return None;
            }
            current = CgroupId(above.st_ino);
        }
        Some(lineage.into())
    }

    /// The path of the cgroup with this id, if it (still) is.
    pub fn path_of(&self, id: CgroupId) -> Option<PathBuf> {
        use std::os::fd::AsRawFd;
        let directory = sys::open_cgroup_by_id(&self.directory, id.0).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
        (self.id_of(&path).ok()? == id).then_some(path)
    }

    /// The cgroup that a process (`self`, or a number) is in.
    pub fn of_process(&self, process: &str) -> Result<CgroupPath, CgroupError> {
        let file = PathBuf::from(format!("/proc/{process}/cgroup"));
        let table = std::fs::read(&file).map_err(CgroupError::system("read", &file))?;
        unified_path(&table).ok_or(CgroupError::NoHierarchy)
    }
}

/// The cgroup2 path in a `/proc/PID/cgroup` file. `None` also for one that cannot be judged: outside
/// our cgroup namespace, removed, or not UTF-8 (a lossy copy could name another cgroup).
pub(crate) fn unified_path(table: &[u8]) -> Option<CgroupPath> {
    let line = table.split(|&byte| byte == b'\n').find(|line| line.starts_with(b"0::"))?;
    CgroupPath::from_proc(std::str::from_utf8(line).ok()?).ok()
}

fn open_directory(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// The folder of the cgroups that `keyhole run` makes: `<root>/keyhole` by default.
#[derive(Debug)]
pub struct TaskCgroups {
    root: Arc<CgroupRoot>,
    parent: PathBuf,
}

impl TaskCgroups {
    /// Opens the folder, making what is missing of it. `below_root` is relative to the hierarchy's
    /// root, or a path below where that is mounted. Refused (unless `allow_delegated`) when a non-root user may move processes about in
    /// it or above it: they could step into a task.
    pub fn open(
        root: Arc<CgroupRoot>,
        below_root: &Path,
        allow_delegated: bool,
    ) -> Result<Self, AdoptError> {
        let relative = below_root.strip_prefix(&root.path).unwrap_or(below_root);
        let plain = |part| matches!(part, Component::Normal(_));
        if relative.as_os_str().is_empty() || !relative.components().all(plain) {
            return Err(CgroupError::BadName { name: below_root.to_owned() }.into());
        }
        let mut parent = root.path.clone();
        for part in relative {
            parent.push(part);
            make_cgroup(&parent)?;
        }
        let id = root.id_of(&parent)?;
        let inside = root.cgroup_of(&parent.join("task"))?;
        adopt::judge(&root, &inside, id, &[], &[], allow_delegated)?;
        Ok(Self { root, parent })
    }

    /// Makes the empty cgroup of a task. `name` is the task's id.
    pub fn create(&self, name: &str) -> Result<OwnedCgroup, CgroupError> {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(CgroupError::BadName { name: name.into() });
        }
        let path = self.parent.join(name);
        std::fs::create_dir(&path).map_err(CgroupError::system("create", &path))?;
        let id = self.root.id_of(&path)?;
        Ok(OwnedCgroup { path, id })
    }

    /// The cgroup that an earlier process of this node made under `name`, if it is still there.
    pub fn reopen(&self, name: &str, id: CgroupId) -> Option<OwnedCgroup> {
        let path = self.parent.join(name);
        (self.root.id_of(&path).ok()? == id).then_some(OwnedCgroup { path, id })
    }
}

fn make_cgroup(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::system("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// A cgroup that this node made and has to remove. It outlives its owner's process on purpose:
/// only [`OwnedCgroup::remove`] removes it.
#[derive(Debug)]
pub struct OwnedCgroup {
    path: PathBuf,
    id: CgroupId,
}

impl OwnedCgroup {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id.
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Removes it with the empty cgroups its processes left below. A cgroup that still has
    /// processes stays, and is an error (`EBUSY`).
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_with_children(&self.path)
    }
}

/// Removes a cgroup with the empty ones below it. One with processes in it stays, and is an error (`EBUSY`).
pub fn remove_with_children(path: &Path) -> Result<(), CgroupError> {
    remove_tree(path, 0).map_err(CgroupError::system("remove", path))
}

fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() != Some(libc::EBUSY) || depth == MAX_DEPTH => {
            return Err(error);
        }
        Err(_) => {}
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), depth + 1)?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
