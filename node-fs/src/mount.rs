//! Making, attaching and removing the one FUSE superblock of a node.
//!
//! Runs in the supervisor only and depends on [`sys`](crate::sys) and
//! [`mountinfo`](crate::mountinfo). Invariants: only a read-only mount is ever attached; no path
//! under a FUSE mount is looked up, not even to clean up after a crash.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::mountinfo::{self, MountEntry};
use crate::sys;

const FS_TYPE: &str = "fuse.keyhole";
const INIT_WAIT: Duration = Duration::from_secs(5);
/// More stale mounts than this on one place are not the leavings of crashes.
const MAX_STALE: usize = 64;

/// Why the node's mount could not be made or placed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done, with the path if there is one.
        doing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else is mounted at the mount point.
    #[error("{} is already a mount point of type {fs_type}: unmount it or choose another --mount", .path.display())]
    Occupied {
        /// The mount point.
        path: PathBuf,
        /// What is mounted there.
        fs_type: String,
    },
    /// A living Keyhole node serves the mount point.
    #[error("another Keyhole node (pid {pid}) serves {}: stop it or choose another --mount", .path.display())]
    Served {
        /// The mount point.
        path: PathBuf,
        /// Its supervisor.
        pid: u32,
    },
    /// The mount point has files in it.
    #[error("{} is not empty: move its files away or choose another --mount", .path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point is a file, a symbolic link, or has no name.
    #[error("{} is {what}, not a directory: give the path of a directory as --mount", .path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The mount point lies inside a Keyhole mount.
    #[error("{} lies inside the Keyhole mount {}: choose another --mount", .path.display(), .outer.display())]
    Inside {
        /// The mount point.
        path: PathBuf,
        /// The mount it lies in.
        outer: PathBuf,
    },
    /// The kernel did not open the conversation.
    #[error("the kernel sent no FUSE_INIT within {} s", INIT_WAIT.as_secs())]
    NoInit,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> MountError {
    let doing = doing.into();
    move |source| MountError::System { doing, source: source.into() }
}

fn failed_io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> MountError {
    let doing = doing.into();
    move |source| MountError::System { doing, source }
}

/// An empty directory with nothing mounted on it, ready to take the mount.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    directory: OwnedFd,
}

impl MountPoint {
    /// Creates the directory if it is missing (mode 0755), removes stale Keyhole mounts of crashed
    /// nodes from it, and refuses anything that is not an empty, free directory.
    pub fn prepare(wanted: &Path) -> Result<Self, MountError> {
        let path = resolve(wanted)?;
        remove_stale(&path)?;
        let describe = |doing: &str| format!("{doing} {}", path.display());
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                return Err(MountError::NotADirectory { path, what: "a symbolic link" });
            }
            Ok(metadata) if !metadata.is_dir() => {
                return Err(MountError::NotADirectory { path, what: "a file" });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&path).map_err(failed_io(describe("create")))?;
            }
            Err(error) => return Err(failed_io(describe("look at"))(error)),
        }
        let mut files = std::fs::read_dir(&path).map_err(failed_io(describe("list")))?;
        if files.next().is_some() {
            return Err(MountError::NotEmpty { path });
        }
        let directory: OwnedFd = File::open(&path).map_err(failed_io(describe("open")))?.into();
        Ok(Self { path, directory })
    }

    /// The absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The superblock with its kernel end, not attached anywhere yet.
#[derive(Debug)]
pub struct Superblock {
    device: OwnedFd,
    mount: OwnedFd,
    init: Vec<u8>,
}

impl Superblock {
    /// Opens `/dev/fuse`, makes the superblock and reads the kernel's `FUSE_INIT` request.
    pub fn create() -> Result<Self, MountError> {
        let source = own_source().map_err(failed_io("read /proc/self/stat"))?;
        Self::create_as(&source)
    }

    fn create_as(source: &str) -> Result<Self, MountError> {
        let device: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(failed_io("open /dev/fuse"))?
            .into();
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(failed("open a FUSE filesystem context"))?;
        configure(&context, source, &device)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(failed("make the FUSE mount"))?;
        let init = read_init(&device)?;
        Ok(Self { device, mount, init })
    }

    /// The kernel end: whoever reads it serves the filesystem.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The bytes of the kernel's one `FUSE_INIT` request.
    pub fn init(&self) -> &[u8] {
        &self.init
    }

    /// Attaches the read-only mount.
    pub fn attach(self, at: MountPoint) -> Result<AttachedMount, MountError> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&self.mount, "", &at.directory, "", flags)
            .map_err(failed(format!("mount on {}", at.path.display())))?;
        let id = mountinfo::mount_id_of(&self.mount)
            .map_err(failed_io("read the number of the mount"))?;
        let connection = mountinfo::read()
            .map_err(failed_io("read /proc/self/mountinfo"))?
            .iter()
            .find(|entry| entry.id == id)
            .map(|entry| entry.minor);
        Ok(AttachedMount { device: self.device, mount: self.mount, path: at.path, connection })
    }
}

/// The mount where callers see it. Dropping it leaves it attached, without a server.
#[derive(Debug)]
pub struct AttachedMount {
    device: OwnedFd,
    mount: OwnedFd,
    path: PathBuf,
    connection: Option<u32>,
}

impl AttachedMount {
    /// Where it is attached.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel end.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The connection's number in the kernel's FUSE control filesystem.
    pub fn connection(&self) -> Option<u32> {
        self.connection
    }

    /// A detached writable mount of the same superblock, for the notifier's renames. Nobody but
    /// its holder can reach it; it must never be attached.
    pub fn writable_clone(&self) -> Result<OwnedFd, MountError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = rustix::mount::open_tree(&self.mount, "", flags)
            .map_err(failed("clone the FUSE mount"))?;
        sys::mount_setattr(&clone, 0, sys::MOUNT_ATTR_RDONLY)
            .map_err(failed_io("make the detached mount writable"))?;
        Ok(clone)
    }

    /// Detaches this mount, wherever it now is, with what others mounted on top of it; users of it
    /// keep it until they leave.
    pub fn detach(&self) -> Result<(), MountError> {
        let id = mountinfo::mount_id_of(&self.mount)
            .map_err(failed_io("read the number of the mount"))?;
        // Through the descriptor, not the path, so that only this mount and those stacked on it
        // can be hit; the kernel takes the top one each time.
        let link = format!("/proc/self/fd/{}", self.mount.as_raw_fd());
        for _ in 0..MAX_STALE {
            let entries = mountinfo::read().map_err(failed_io("read /proc/self/mountinfo"))?;
            if entries.iter().all(|entry| entry.id != id) {
                break;
            }
            match rustix::mount::unmount(&link, UnmountFlags::DETACH) {
                // EINVAL: it went meanwhile.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    return Err(failed(format!("unmount {}", self.path.display()))(error));
                }
            }
        }
        Ok(())
    }
}

/// The kernel's FUSE control filesystem, mounted for this process alone: hosts need not have it at
/// `/sys/fs/fuse/connections`.
#[derive(Debug)]
pub struct FuseControl {
    root: OwnedFd,
}

impl FuseControl {
    /// Mounts it, attached nowhere.
    pub fn open() -> io::Result<Self> {
        let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::empty();
        let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self { root })
    }

    /// How many requests of a connection wait for an answer.
    pub fn waiting(&self, connection: u32) -> io::Result<u64> {
        let mut text = String::new();
        self.file(connection, "waiting", OFlags::RDONLY)?.read_to_string(&mut text)?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Ends a connection: all who wait in it get an error, and nobody can use it any more.
    pub fn abort(&self, connection: u32) -> io::Result<()> {
        self.file(connection, "abort", OFlags::WRONLY)?.write_all(b"1")
    }

    fn file(&self, connection: u32, name: &str, flags: OFlags) -> io::Result<File> {
        let path = format!("{connection}/{name}");
        let flags = flags | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.root, path, flags, Mode::empty())?))
    }
}

fn configure(context: &OwnedFd, source: &str, device: &OwnedFd) -> Result<(), MountError> {
    let device = device.as_raw_fd().to_string();
    let settings = [
        ("source", source),
        ("subtype", "keyhole"),
        ("fd", device.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in settings {
        rustix::mount::fsconfig_set_string(context, key, value)
            .map_err(failed(format!("set the mount option {key}={value}")))?;
    }
    for key in ["allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(context, key)
            .map_err(failed(format!("set the mount option {key}")))?;
    }
    rustix::mount::fsconfig_create(context).map_err(failed("make the FUSE superblock"))
}

fn read_init(device: &OwnedFd) -> Result<Vec<u8>, MountError> {
    let timeout = rustix::event::Timespec { tv_sec: INIT_WAIT.as_secs() as i64, tv_nsec: 0 };
    let mut ready = [PollFd::new(device, PollFlags::IN)];
    rustix::event::poll(&mut ready, Some(&timeout)).map_err(failed("wait for FUSE_INIT"))?;
    if !ready.iter().any(|fd| fd.revents().contains(PollFlags::IN)) {
        return Err(MountError::NoInit);
    }
    // The kernel refuses to write into less than 8 KiB (FUSE_MIN_READ_BUFFER).
    let mut buffer = vec![0_u8; 64 * 1024];
    let read = rustix::io::read(device, &mut buffer).map_err(failed("read FUSE_INIT"))?;
    buffer.truncate(read);
    Ok(buffer)
}

/// Makes the path absolute and free of links without ever looking at its last component, which
/// may be a dead mount.
fn resolve(wanted: &Path) -> Result<PathBuf, MountError> {
    let doing = || format!("resolve {}", wanted.display());
    let absolute = std::path::absolute(wanted).map_err(failed_io(doing()))?;
    let (Some(parent), Some(name)) = (absolute.parent(), last_name(&absolute)) else {
        return Err(MountError::NotADirectory { path: absolute, what: "no name of its own" });
    };
    refuse_inside(parent, wanted)?;
    if !parent.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed_io(format!("create {}", parent.display())))?;
    }
    let parent = parent.canonicalize().map_err(failed_io(doing()))?;
    refuse_inside(&parent, wanted)?;
    Ok(parent.join(name))
}

fn last_name(path: &Path) -> Option<&OsStr> {
    path.components().next_back().and_then(|last| match last {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    })
}

fn refuse_inside(directory: &Path, wanted: &Path) -> Result<(), MountError> {
    let entries = mountinfo::read().map_err(failed_io("read /proc/self/mountinfo"))?;
    let outer = entries
        .into_iter()
        .find(|entry| entry.fs_type == FS_TYPE && directory.starts_with(&entry.mount_point));
    match outer {
        Some(entry) => {
            Err(MountError::Inside { path: wanted.to_owned(), outer: entry.mount_point })
        }
        None => Ok(()),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    // Whatever the umask: tasks of any user must be able to enter.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Detaches what crashed nodes left at `path`, an absolute path without links. Anything else mounted there is an error.
pub fn remove_stale(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STALE {
        let entries = mountinfo::read().map_err(failed_io("read /proc/self/mountinfo"))?;
        let Some(top) = mountinfo::top_mount_at(&entries, path) else {
            return Ok(());
        };
        if top.fs_type != FS_TYPE {
            let fs_type = top.fs_type.clone();
            return Err(MountError::Occupied { path: path.to_owned(), fs_type });
        }
        if let Some(pid) = living_owner(top) {
            return Err(MountError::Served { path: path.to_owned(), pid });
        }
        rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(failed(format!("remove the stale mount on {}", path.display())))?;
    }
    Err(MountError::Occupied { path: path.to_owned(), fs_type: FS_TYPE.to_owned() })
}

/// The source names the supervisor that holds the connection, so that a later node can tell a
/// crashed mount from a served one without touching it: `keyhole-PID-STARTTIME`.
fn own_source() -> io::Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).ok_or_else(|| io::Error::other("no start time in it"))?;
    Ok(format!("keyhole-{pid}-{start}"))
}

fn living_owner(entry: &MountEntry) -> Option<u32> {
    let mut parts = entry.source.to_str()?.strip_prefix("keyhole-")?.split('-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let start: u64 = parts.next()?.parse().ok()?;
    (start_time(pid) == Some(start)).then_some(pid)
}

/// When a process started, in clock ticks since boot; `None` if it is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; the fields after it may not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // starttime is field 22, the state is field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests;
