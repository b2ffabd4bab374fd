//! What a [`Probe`](crate::Probe) is asked to do, and what it answers: one JSON value a line.
//!
//! Depends on nothing of Keyhole. Invariant: one `Ask` is one system call (or the few that one libc function makes),
//! done by the probe's own process, so that its identity and its errno are what a test looks at.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Take other ids, for good: setgroups, setresgid, setresuid.
    Become {
        /// Real, effective, saved and file system uid.
        uid: u32,
        /// And gid.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
    },
    /// Keep the ids and lose every capability, for good.
    DropCapabilities,
    /// Move into a cgroup.
    JoinCgroup(PathBuf),
    /// unshare(2) with `CLONE_NEW*` bits. A new pid namespace is for children only.
    Unshare(u32),
    /// Makes `/` and all below it a private mount, so that nothing mounted later leaves this namespace.
    MountsPrivate,
    /// mount(2) with MS_BIND.
    Bind {
        /// What.
        from: PathBuf,
        /// Where.
        to: PathBuf,
    },
    /// mount(2) with MS_BIND | MS_REMOUNT and these flags.
    Remount {
        /// Which mount.
        at: PathBuf,
        /// `MS_*` bits.
        flags: u64,
    },
    /// chdir(2).
    Chdir(PathBuf),
    /// Create or overwrite an ordinary file.
    WriteFile(PathBuf, Vec<u8>),
    /// Do it in a forked child and answer for it.
    Forked(Box<Ask>),
    /// Do it on another thread and answer for it.
    Threaded(Box<Ask>),
    /// Run a program to its end.
    Run(PathBuf, Vec<String>),

    /// openat(AT_FDCWD or `dir`).
    Open {
        /// Directory descriptor.
        dir: Option<i32>,
        /// Path.
        path: PathBuf,
        /// open(2) flags.
        flags: i32,
    },
    /// close(2).
    Close(i32),
    /// dup(2).
    Dup(i32),
    /// read(2).
    Read(i32, usize),
    /// pread(2): length, offset.
    Pread(i32, usize, u64),
    /// readv(2) into buffers of these sizes; the answer has the bytes joined.
    Readv(i32, Vec<usize>),
    /// lseek(2): offset, whence.
    Seek(i32, i64, i32),
    /// open, read to the end, close.
    Slurp(PathBuf),
    /// sendfile(2) of at most so many bytes into a pipe that is read back.
    Sendfile(i32, usize),
    /// splice(2) of at most so many bytes into a pipe that is read back.
    Splice(i32, usize),
    /// poll(2) for POLLIN | POLLPRI without waiting; the answer is `revents`.
    Poll(i32),
    /// flock(2) with `LOCK_*` bits.
    Flock(i32, i32),

    /// fstatat(2); the flag says whether to follow links.
    Stat(PathBuf, bool),
    /// fstat(2).
    Fstat(i32),
    /// statx(2) of everything.
    Statx(PathBuf),
    /// faccessat(2) with effective ids: `R_OK` and so on.
    Access(PathBuf, u32),
    /// listxattr(2).
    ListXattr(PathBuf),
    /// getxattr(2): name, size of the buffer.
    GetXattr(PathBuf, String, usize),
    /// statfs(2).
    Statfs(PathBuf),
    /// name_to_handle_at(2).
    NameToHandle(PathBuf),
    /// readlink(2).
    Readlink(PathBuf),
    /// Every entry of a directory, `.` and `..` too.
    List(PathBuf),
    /// One getdents64(2) with a buffer of so many bytes.
    Getdents(i32, usize),

    /// write(2).
    Write(i32, Vec<u8>),
    /// truncate(2).
    Truncate(PathBuf, u64),
    /// ftruncate(2).
    Ftruncate(i32, u64),
    /// fallocate(2).
    Fallocate(i32),
    /// copy_file_range(2): from, to.
    CopyRange(i32, i32),
    /// chmod(2).
    Chmod(PathBuf, u32),
    /// fchmod(2).
    Fchmod(i32, u32),
    /// chown(2) to uid and gid.
    Chown(PathBuf, u32, u32),
    /// utimensat(2) to now.
    Touch(PathBuf),
    /// mkdir(2).
    Mkdir(PathBuf),
    /// rmdir(2).
    Rmdir(PathBuf),
    /// unlink(2).
    Unlink(PathBuf),
    /// renameat2(2) with flags.
    Rename(PathBuf, PathBuf, u32),
    /// link(2).
    Link(PathBuf, PathBuf),
    /// symlink(2): target, name.
    Symlink(PathBuf, PathBuf),
    /// mknod(2) of a FIFO.
    Mkfifo(PathBuf),
    /// bind(2) of a unix socket.
    BindSocket(PathBuf),
    /// setxattr(2).
    SetXattr(PathBuf, String),
    /// removexattr(2).
    RemoveXattr(PathBuf, String),
    /// ioctl FS_IOC_GETFLAGS.
    GetFlags(i32),
    /// ioctl FS_IOC_SETFLAGS.
    SetFlags(i32),

    /// mmap(2): length, prot, flags; answers with a number for the map.
    Mmap(i32, usize, i32, i32),
    /// Reads so many bytes at an offset of a map, in a forked child: bytes, or the signal that it died of.
    Peek(usize, usize, usize),
    /// Writes one byte into a map, in this process.
    Poke(usize, usize, u8),

    /// Listens on a unix socket.
    Listen(PathBuf),
    /// Sends a descriptor to who listens there (SCM_RIGHTS).
    SendFd(PathBuf, i32),
    /// Accepts one connection on the listening socket and receives a descriptor.
    ReceiveFd,
    /// A new inotify descriptor with one watch: path, `IN_*` bits.
    Watch(PathBuf, u32),
    /// The events that are there, waiting at most so many milliseconds for the first.
    Events(i32, u32),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; nothing to say.
    Done,
    /// The call failed.
    Failed(Errno),
    /// A descriptor, an offset, a bit mask.
    Number(i64),
    /// Data.
    Bytes(Vec<u8>),
    /// stat(2).
    Stat(FileStat),
    /// statx(2): the mask and the attributes' bits.
    Statx(u32, u64),
    /// statfs(2).
    Statfs(FsStat),
    /// Entries of a directory.
    Entries(Vec<DirEntry>),
    /// The child died of a signal.
    Signal(i32),
    /// A program ended: exit code, stdout.
    Ran(i32, Vec<u8>),
    /// inotify events: mask, name.
    Events(Vec<(u32, String)>),
}

/// An errno that prints by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Errno(pub i32);

/// stat(2)'s fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// `st_mode`, type and permissions.
    pub mode: u32,
    /// `st_nlink`.
    pub nlink: u64,
    /// `st_uid`.
    pub uid: u32,
    /// `st_gid`.
    pub gid: u32,
    /// `st_size`.
    pub size: i64,
    /// `st_blocks`.
    pub blocks: i64,
    /// `st_blksize`.
    pub block_size: i64,
    /// atime, mtime, ctime in nanoseconds.
    pub times: [i128; 3],
}

/// statfs(2)'s fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStat {
    /// `f_type`.
    pub magic: i64,
    /// `f_blocks`, `f_bfree`, `f_bavail`, `f_files`, `f_ffree`.
    pub counts: [u64; 5],
    /// `f_bsize`.
    pub block_size: i64,
    /// `f_namelen`.
    pub name_max: i64,
    /// `f_flags` (`ST_*`).
    pub flags: u64,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// `d_ino`.
    pub ino: u64,
    /// `d_type` is DT_DIR.
    pub is_dir: bool,
    /// `d_off`.
    pub offset: i64,
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name);
        match name {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}: {}", self.0, std::io::Error::from_raw_os_error(self.0)),
        }
    }
}

macro_rules! names {
    ($($name:ident)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            pub const $name: Errno = Errno(libc::$name);
        )*
        const NAMES: &[(i32, &str)] = &[$((libc::$name, stringify!($name))),*];
    };
}

names! {
    EACCES EBADF EBUSY EEXIST EINVAL EIO EISDIR EKEYREVOKED ELOOP ENAMETOOLONG ENODATA ENOENT ENOSYS ENOTCONN ENOTDIR
    ENOTTY ENXIO EOPNOTSUPP EPERM ERANGE EROFS ESTALE ETXTBSY EXDEV
}
