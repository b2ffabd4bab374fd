//! What a dev has on this machine: a folder in memory, a cgroup with all its processes, and a mount.
//!
//! Folders are `<tmpfs>/keyhole-dev/N`, each locked for as long as its dev lives. Invariant: what is locked is left alone;
//! an unlocked folder is what a killed dev left, and only what its record names (the cgroup by its id, a mount only if
//! nobody serves it) is removed with it. Nothing below a mount is looked up.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyhole_node_fs::cgroups::{CgroupId, CgroupRoot, remove_with_children};
use keyhole_node_fs::mount::{MountError, remove_stale};
use keyhole_node_fs::mountinfo;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
/// More devs at a time than anybody has.
const MAX: u32 = 10_000;

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {doing} {}", path.display());
    move |error| Failure::new(format!("{what}: {error}"))
}

/// The folder of all devs, locked: nobody else makes or removes one meanwhile.
struct Base {
    path: PathBuf,
    _lock: File,
}

impl Base {
    /// In memory: nothing of a dev is ever written to a disk.
    fn standard() -> Result<Self, Failure> {
        let in_memory = |path: &&str| rustix::fs::statfs(*path).is_ok_and(|fs| fs.f_type == TMPFS);
        let parent = ["/run", "/dev/shm"].into_iter().find(in_memory).ok_or_else(|| {
            Failure::new(
                "neither /run nor /dev/shm is a tmpfs, and a dev is kept in memory: mount one with \"mount -t tmpfs \
                 none /dev/shm\"",
            )
        })?;
        Self::enter(Path::new(parent).join("keyhole-dev"))
    }

    fn enter(path: PathBuf) -> Result<Self, Failure> {
        loop {
            make_folder(&path)
                .or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                })
                .map_err(failed("make the folder", &path))?;
            let lock = match open_folder(&path) {
                // The last dev has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed("open the folder", &path))?,
            };
            let own = lock.metadata().map_err(failed("look at", &path))?;
            if own.uid() != rustix::process::geteuid().as_raw() {
                return Err(Failure::new(format!(
                    "{} is not root's: somebody else made it; remove it",
                    path.display()
                )));
            }
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|error| failed("lock", &path)(error.into()))?;
            if fs::symlink_metadata(&path).is_ok_and(|now| is_same(&now, &own)) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Removes what killed devs left; tells what could not be removed.
    fn sweep(&self) -> Result<Vec<Failure>, Failure> {
        let mut failures = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed("list", &self.path))?.flatten() {
            let Ok(lock) = open_folder(&entry.path()) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let left =
                Claim { record: Record::read(&entry.path()), folder: entry.path(), _lock: lock };
            if let Err(failure) = left.clear().and_then(|()| left.remove_folder()) {
                failures.push(Failure::new(format!("a killed dev left something: {failure}")));
            }
        }
        Ok(failures)
    }

    /// The first free number, with its cgroup.
    fn claim(&self, cgroups: &CgroupRoot) -> Result<Claim, Failure> {
        for number in 1..MAX {
            let folder = self.path.join(number.to_string());
            match make_folder(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed("make the folder", &folder))?,
            }
            let lock = open_folder(&folder).map_err(failed("open the folder", &folder))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| failed("lock", &folder)(error.into()))?;
            let mut claim = Claim { folder, record: Record::default(), _lock: lock };
            let cgroup = cgroups.path().join(format!("keyhole-dev-{number}"));
            match fs::create_dir(&cgroup) {
                Ok(()) => {
                    let id = cgroups.id_of(&cgroup).map_err(Failure::new)?;
                    claim.record.cgroup = Some((cgroup, id.0));
                    claim.note()?;
                    return Ok(claim);
                }
                // Of a machine that shares this one's cgroups, but not its memory.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    claim.remove_folder()?
                }
                Err(error) => {
                    claim.remove_folder()?;
                    return Err(failed("make the cgroup", &cgroup)(error));
                }
            }
        }
        Err(Failure::new(format!("{} is full of devs: remove some", self.path.display())))
    }
}

/// What has to be removed after a kill -9.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The cgroup's directory and its id.
    cgroup: Option<(PathBuf, u64)>,
    /// Where the node mounts.
    mount: Option<PathBuf>,
    /// Folders that were made for the mount; the deepest first.
    made: Vec<PathBuf>,
}

impl Record {
    const FILE: &str = "record.json";

    /// Nothing, if it was never written.
    fn read(folder: &Path) -> Self {
        let text = fs::read(folder.join(Self::FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

/// A locked folder and what its record names.
struct Claim {
    folder: PathBuf,
    record: Record,
    _lock: File,
}

impl Claim {
    /// Put in place as a whole: a kill leaves the old record or the new one.
    fn note(&self) -> Result<(), Failure> {
        let path = self.folder.join(Record::FILE);
        let new = self.folder.join("record.new");
        let text = serde_json::to_vec(&self.record)
            .map_err(|error| Failure::new(format!("--mount: the path is unusable: {error}")))?;
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(failed("write", &path))
    }

    /// Removes everything but the folder: processes, cgroup, mount, and the folders made for it.
    fn clear(&self) -> Result<(), Failure> {
        if let Some((path, id)) = &self.record.cgroup {
            let root = CgroupRoot::find().map_err(Failure::new)?;
            if root.id_of(path).is_ok_and(|now| now == CgroupId(*id)) {
                end_cgroup(path).map_err(failed("end all processes of the cgroup", path))?;
            }
        }
        if let Some(mount) = &self.record.mount {
            match remove_stale(mount) {
                // Another node has taken the place meanwhile.
                Ok(()) | Err(MountError::Served { .. }) => {}
                Err(error) => return Err(Failure::new(error)),
            }
        }
        for folder in &self.record.made {
            // In use or with files of others: no longer ours.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    fn remove_folder(&self) -> Result<(), Failure> {
        let mounts = mountinfo::read().map_err(failed("look for mounts in", &self.folder))?;
        if let Some(inside) =
            mounts.iter().find(|mount| mount.mount_point.starts_with(&self.folder))
        {
            let at = inside.mount_point.display();
            return Err(Failure::new(format!("{at} is still mounted: unmount it")));
        }
        fs::remove_dir_all(&self.folder).map_err(failed("remove", &self.folder))
    }
}

/// Kills what is in it until nothing is, and removes it.
fn end_cgroup(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + GONE;
    loop {
        fs::write(path.join("cgroup.kill"), "1")?;
        wait_until_empty(path, deadline)?;
        match remove_with_children(path) {
            Ok(()) => return Ok(()),
            // Somebody stepped in meanwhile.
            Err(_) if Instant::now() < deadline => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn wait_until_empty(path: &Path, deadline: Instant) -> io::Result<()> {
    let events = File::open(path.join("cgroup.events"))?;
    loop {
        let mut text = [0; 256];
        let length = events.read_at(&mut text, 0)?;
        if String::from_utf8_lossy(&text[..length]).contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "some do not end"));
        }
        let left =
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))?;
    }
}

/// Passable for tasks of any user, listed by root alone.
fn make_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o711))
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The place of a dev that runs.
pub(super) struct Place {
    claim: Claim,
    cgroup: PathBuf,
    mount: PathBuf,
}

impl Place {
    /// Removes what killed devs left, and makes a place; also tells what could not be removed.
    pub(super) fn make(mount: Option<&Path>) -> Result<(Self, Vec<Failure>), Failure> {
        let cgroups = CgroupRoot::find().map_err(Failure::new)?;
        let base = Base::standard()?;
        let left = base.sweep()?;
        let claim = base.claim(&cgroups)?;
        drop(base);
        let cgroup = claim.record.cgroup.as_ref().map(|(path, _)| path.clone());
        let mut place =
            Self { mount: claim.folder.join("secrets"), cgroup: cgroup.unwrap_or_default(), claim };
        match place.furnish(mount) {
            Ok(()) => Ok((place, left)),
            Err(failure) => place.remove().and(Err(failure)),
        }
    }

    fn furnish(&mut self, mount: Option<&Path>) -> Result<(), Failure> {
        for cgroup in [self.parts_cgroup(), self.tasks_cgroup()] {
            fs::create_dir(&cgroup).map_err(failed("make the cgroup", &cgroup))?;
        }
        let private = self.claim.folder.join("private");
        let made = DirBuilder::new().mode(0o700).create(&private);
        made.map_err(failed("make the folder", &private))?;
        if let Some(mount) = mount {
            self.mount_at(mount)?;
        }
        self.claim.record.mount = Some(self.mount.clone());
        self.claim.note()
    }

    /// Makes the folders above the mount; the node makes the last one. The path becomes what mountinfo will have.
    fn mount_at(&mut self, wanted: &Path) -> Result<(), Failure> {
        let path = std::path::absolute(wanted).map_err(failed("resolve --mount", wanted))?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Failure::usage(format!("--mount {}: give a folder", wanted.display())));
        };
        let mounts = mountinfo::read().map_err(failed("look for mounts at", &path))?;
        let is_there = |path: &&Path| {
            mounts.iter().any(|mount| mount.mount_point == **path)
                || fs::symlink_metadata(path).is_ok()
        };
        self.claim.record.made =
            path.ancestors().take_while(|path| !is_there(path)).map(Path::to_owned).collect();
        self.claim.note()?;
        let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.map_err(failed("make the folder", parent))?;
        let parent = parent.canonicalize().map_err(failed("resolve --mount", parent))?;
        self.mount = parent.join(name);
        Ok(())
    }

    /// Where tasks find their secrets.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// A file that is root's alone.
    pub(super) fn private(&self, name: &str) -> PathBuf {
        self.claim.folder.join("private").join(name)
    }

    pub(super) fn manager_socket(&self) -> PathBuf {
        self.claim.folder.join("manager.sock")
    }

    pub(super) fn node_socket(&self) -> PathBuf {
        self.claim.folder.join("node.sock")
    }

    /// Where the daemons are.
    pub(super) fn parts_cgroup(&self) -> PathBuf {
        self.cgroup.join("parts")
    }

    /// Where the cgroups of tasks are made.
    pub(super) fn tasks_cgroup(&self) -> PathBuf {
        self.cgroup.join("tasks")
    }

    /// What a command needs to find this dev.
    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("KEYHOLE_HOST", format!("unix://{}", self.manager_socket().display())),
            ("KEYHOLE_NODE_SOCKET", self.node_socket().display().to_string()),
            ("KEYHOLE_SECRETS", self.mount.display().to_string()),
        ]
    }

    /// Kills what still runs as a task.
    pub(super) fn end_tasks(&self) {
        // An error means that there is no such cgroup any more.
        let _ = fs::write(self.tasks_cgroup().join("cgroup.kill"), "1");
    }

    /// Removes all of it, and the folder of all devs with the last one.
    pub(super) fn remove(self) -> Result<(), Failure> {
        self.claim.clear()?;
        let base = Base::standard()?;
        self.claim.remove_folder()?;
        // Others may be there.
        let _ = fs::remove_dir(&base.path);
        Ok(())
    }
}
