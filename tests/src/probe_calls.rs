//! A probe's requests as functions: each one system call, with its result or errno.

use std::path::{Path, PathBuf};

use crate::ask::{Answer, Ask, DirEntry, Errno, FileStat, FsStat};
use crate::probe::{Fd, Probe};

/// Takes the one kind of answer that a request has.
macro_rules! answer {
    ($asked:expr, $pattern:pat => $value:expr) => {
        match $asked {
            Ok($pattern) => Ok($value),
            Ok(other) => panic!("an answer of the wrong kind: {other:?}"),
            Err(errno) => Err(errno),
        }
    };
}

fn path(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().to_owned()
}

impl Probe {
    /// A request that has no result but success.
    #[track_caller]
    pub fn call(&self, ask: Ask) -> Result<(), Errno> {
        answer!(self.ask(&ask), Answer::Done => ())
    }

    /// Moves into a cgroup.
    #[track_caller]
    pub fn join(&self, cgroup: &Path) {
        self.call(Ask::JoinCgroup(cgroup.to_owned())).expect("root can move itself");
    }

    /// Takes other ids, for good.
    #[track_caller]
    pub fn become_user(&self, uid: u32, gid: u32, groups: &[u32]) {
        self.call(Ask::Become { uid, gid, groups: groups.to_vec() }).expect("it is root yet");
    }

    /// open(2).
    #[track_caller]
    pub fn open(&self, at: impl AsRef<Path>, flags: i32) -> Result<Fd, Errno> {
        let ask = Ask::Open { dir: None, path: path(at), flags };
        answer!(self.ask(&ask), Answer::Number(fd) => Fd(fd as i32))
    }

    /// openat(2).
    #[track_caller]
    pub fn openat(&self, dir: Fd, at: impl AsRef<Path>, flags: i32) -> Result<Fd, Errno> {
        let ask = Ask::Open { dir: Some(dir.0), path: path(at), flags };
        answer!(self.ask(&ask), Answer::Number(fd) => Fd(fd as i32))
    }

    /// open(2) of `/proc/self/fd/N`: the same inode again, without its name.
    #[track_caller]
    pub fn reopen(&self, fd: Fd, flags: i32) -> Result<Fd, Errno> {
        self.open(format!("/proc/self/fd/{}", fd.0), flags)
    }

    /// close(2).
    #[track_caller]
    pub fn close(&self, fd: Fd) {
        self.call(Ask::Close(fd.0)).expect("it is open");
    }

    /// read(2).
    #[track_caller]
    pub fn read(&self, fd: Fd, len: usize) -> Result<Vec<u8>, Errno> {
        self.bytes(Ask::Read(fd.0, len))
    }

    /// pread(2).
    #[track_caller]
    pub fn pread(&self, fd: Fd, len: usize, offset: u64) -> Result<Vec<u8>, Errno> {
        self.bytes(Ask::Pread(fd.0, len, offset))
    }

    /// open, read to the end, close.
    #[track_caller]
    pub fn slurp(&self, at: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
        self.bytes(Ask::Slurp(path(at)))
    }

    /// The same as text.
    #[track_caller]
    pub fn text(&self, at: impl AsRef<Path>) -> Result<String, Errno> {
        self.slurp(at).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A request that answers with bytes.
    #[track_caller]
    pub fn bytes(&self, ask: Ask) -> Result<Vec<u8>, Errno> {
        answer!(self.ask(&ask), Answer::Bytes(bytes) => bytes)
    }

    /// A request that answers with a number.
    #[track_caller]
    pub fn number(&self, ask: Ask) -> Result<i64, Errno> {
        answer!(self.ask(&ask), Answer::Number(number) => number)
    }

    /// stat(2).
    #[track_caller]
    pub fn stat(&self, at: impl AsRef<Path>) -> Result<FileStat, Errno> {
        answer!(self.ask(&Ask::Stat(path(at), true)), Answer::Stat(stat) => stat)
    }

    /// fstat(2).
    #[track_caller]
    pub fn fstat(&self, fd: Fd) -> Result<FileStat, Errno> {
        answer!(self.ask(&Ask::Fstat(fd.0)), Answer::Stat(stat) => stat)
    }

    /// statx(2): mask and attributes.
    #[track_caller]
    pub fn statx(&self, at: impl AsRef<Path>) -> Result<(u32, u64), Errno> {
        answer!(self.ask(&Ask::Statx(path(at))), Answer::Statx(mask, bits) => (mask, bits))
    }

    /// statfs(2).
    #[track_caller]
    pub fn statfs(&self, at: impl AsRef<Path>) -> Result<FsStat, Errno> {
        answer!(self.ask(&Ask::Statfs(path(at))), Answer::Statfs(stat) => stat)
    }

    /// faccessat(2) with effective ids.
    #[track_caller]
    pub fn access(&self, at: impl AsRef<Path>, mode: i32) -> Result<(), Errno> {
        self.call(Ask::Access(path(at), mode as u32))
    }

    /// getxattr(2) with a large buffer.
    #[track_caller]
    pub fn xattr(&self, at: impl AsRef<Path>, name: &str) -> Result<String, Errno> {
        let value = self.bytes(Ask::GetXattr(path(at), name.to_owned(), 256))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// listxattr(2).
    #[track_caller]
    pub fn xattrs(&self, at: impl AsRef<Path>) -> Result<Vec<String>, Errno> {
        let names = self.bytes(Ask::ListXattr(path(at)))?;
        let names = String::from_utf8_lossy(&names).into_owned();
        Ok(names.split_terminator('\0').map(str::to_owned).collect())
    }

    /// Every entry of a directory, as getdents64(2) gives them.
    #[track_caller]
    pub fn entries(&self, at: impl AsRef<Path>) -> Result<Vec<DirEntry>, Errno> {
        answer!(self.ask(&Ask::List(path(at))), Answer::Entries(entries) => entries)
    }

    /// One getdents64(2).
    #[track_caller]
    pub fn getdents(&self, fd: Fd, size: usize) -> Result<Vec<DirEntry>, Errno> {
        answer!(self.ask(&Ask::Getdents(fd.0, size)), Answer::Entries(entries) => entries)
    }

    /// The names in a directory without `.` and `..`, sorted.
    #[track_caller]
    pub fn names(&self, at: impl AsRef<Path>) -> Result<Vec<String>, Errno> {
        let entries = self.entries(at)?.into_iter().map(|entry| entry.name);
        let mut names: Vec<String> = entries.filter(|name| name != "." && name != "..").collect();
        names.sort();
        Ok(names)
    }

    /// mmap(2): the number of the map.
    #[track_caller]
    pub fn mmap(&self, fd: Fd, len: usize, prot: i32, flags: i32) -> Result<usize, Errno> {
        self.number(Ask::Mmap(fd.0, len, prot, flags)).map(|map| map as usize)
    }

    /// Reads a map: bytes, or the signal that reading it raises.
    #[track_caller]
    pub fn peek(&self, map: usize, offset: usize, len: usize) -> Answer {
        self.ask(&Ask::Peek(map, offset, len)).expect("a map can be looked at")
    }

    /// Runs a program: exit code and stdout.
    #[track_caller]
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<(i32, Vec<u8>), Errno> {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        answer!(self.ask(&Ask::Run(path(program), args)), Answer::Ran(code, out) => (code, out))
    }

    /// inotify events within so many milliseconds.
    #[track_caller]
    pub fn events(&self, watcher: Fd, millis: u32) -> Vec<(u32, String)> {
        let asked = self.ask(&Ask::Events(watcher.0, millis));
        answer!(asked, Answer::Events(events) => events).expect("the watcher is open")
    }

    /// A new inotify descriptor with one watch.
    #[track_caller]
    pub fn watch(&self, at: impl AsRef<Path>, bits: u32) -> Result<Fd, Errno> {
        self.number(Ask::Watch(path(at), bits)).map(|fd| Fd(fd as i32))
    }

    /// Hands a descriptor to another probe over a unix socket; gives its number there.
    #[track_caller]
    pub fn pass(&self, fd: Fd, to: &Self) -> Fd {
        let socket = self.ground.folder().join(crate::ground::EXCHANGE);
        let socket = socket.join(format!("{}-{}-{}", self.pid(), to.pid(), fd.0));
        to.call(Ask::Listen(socket.clone())).expect("a new socket");
        self.call(Ask::SendFd(socket.clone(), fd.0)).expect("the socket is there");
        let received = to.number(Ask::ReceiveFd).expect("a descriptor was sent");
        let _ = std::fs::remove_file(socket);
        Fd(received as i32)
    }
}
