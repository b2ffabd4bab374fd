//! One request, one system call.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use keyhole_tests::{Answer, Ask, DirEntry, EBADF, Errno, FileStat, FsStat};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{
    self as rfs, Access, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags,
    RawDir, RenameFlags, SeekFrom, StatxFlags, Timestamps, XattrFlags, inotify,
};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::raw::{self, Map};
use crate::state::State;

type Done = Result<Answer, Errno>;

fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

fn io_errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(0))
}

fn done(result: rustix::io::Result<()>) -> Done {
    result.map(|()| Answer::Done).map_err(errno)
}

fn io_done(result: std::io::Result<()>) -> Done {
    result.map(|()| Answer::Done).map_err(io_errno)
}

/// Does what is asked.
pub(crate) fn perform(state: &mut State, ask: Ask) -> Done {
    match ask {
        Ask::Become { .. }
        | Ask::DropCapabilities
        | Ask::JoinCgroup(_)
        | Ask::Unshare(_)
        | Ask::MountsPrivate
        | Ask::Bind { .. }
        | Ask::Remount { .. }
        | Ask::Chdir(_)
        | Ask::WriteFile(..)
        | Ask::Run(..) => become_other(ask),
        Ask::Forked(ask) => {
            raw::forked(move || perform(state, *ask).unwrap_or_else(Answer::Failed))
        }
        Ask::Threaded(ask) => std::thread::scope(|scope| {
            let thread = scope.spawn(|| perform(&mut State::default(), *ask));
            thread.join().expect("the thread answers")
        }),
        Ask::Mmap(fd, len, prot, flags) => {
            let map = Map::new(state.fd(fd)?, len, prot, flags)?;
            Ok(Answer::Number(state.keep_map(map)))
        }
        Ask::Peek(map, offset, len) => {
            let map = state.map(map);
            raw::forked(|| Answer::Bytes(map.peek(offset, len)))
        }
        Ask::Poke(map, offset, byte) => {
            state.map(map).poke(offset, byte);
            Ok(Answer::Done)
        }
        Ask::Listen(_) | Ask::SendFd(..) | Ask::ReceiveFd | Ask::Watch(..) | Ask::Events(..) => {
            exchange(state, ask)
        }
        Ask::Stat(..)
        | Ask::Statx(_)
        | Ask::Access(..)
        | Ask::ListXattr(_)
        | Ask::GetXattr(..)
        | Ask::Statfs(_)
        | Ask::NameToHandle(_)
        | Ask::Readlink(_)
        | Ask::List(_)
        | Ask::Slurp(_) => look(ask),
        Ask::Open { .. }
        | Ask::Close(_)
        | Ask::Dup(_)
        | Ask::Read(..)
        | Ask::Pread(..)
        | Ask::Readv(..)
        | Ask::Seek(..)
        | Ask::Sendfile(..)
        | Ask::Splice(..)
        | Ask::Poll(_)
        | Ask::Flock(..)
        | Ask::Fstat(_)
        | Ask::Getdents(..) => read(state, ask),
        _ => mutate(state, ask),
    }
}

/// What changes the process itself, or something outside the mount.
fn become_other(ask: Ask) -> Done {
    match ask {
        Ask::Become { uid, gid, groups } => {
            let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&groups).map_err(errno)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(errno)?;
            done(rustix::thread::set_thread_res_uid(uid, uid, uid))
        }
        Ask::DropCapabilities => {
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            done(rustix::thread::set_capabilities(None, sets))
        }
        Ask::JoinCgroup(path) => io_done(std::fs::write(path.join("cgroup.procs"), "0")),
        Ask::Unshare(bits) => raw::unshare(bits).map(|()| Answer::Done),
        Ask::MountsPrivate => done(rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )),
        Ask::Bind { from, to } => done(rustix::mount::mount_bind(from, to)),
        Ask::Remount { at, flags } => {
            let flags = MountFlags::from_bits_retain(flags as u32) | MountFlags::BIND;
            done(rustix::mount::mount_remount(at, flags, ""))
        }
        Ask::Chdir(path) => done(rustix::process::chdir(path)),
        Ask::WriteFile(path, bytes) => io_done(std::fs::write(path, bytes)),
        Ask::Run(program, args) => {
            let output = Command::new(program).args(args).output().map_err(io_errno)?;
            Ok(Answer::Ran(output.status.code().unwrap_or(-1), output.stdout))
        }
        other => unreachable!("{other:?} is done elsewhere"),
    }
}

/// What needs a path only and changes nothing.
fn look(ask: Ask) -> Done {
    match ask {
        Ask::Slurp(path) => std::fs::read(path).map(Answer::Bytes).map_err(io_errno),
        Ask::Stat(path, follow) => {
            let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
            let stat = rfs::statat(CWD, path, flags).map_err(errno)?;
            Ok(Answer::Stat(facts(&stat)))
        }
        Ask::Statx(path) => {
            let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
            let statx = rfs::statx(CWD, path, AtFlags::empty(), all).map_err(errno)?;
            Ok(Answer::Statx(statx.stx_mask, statx.stx_attributes.bits()))
        }
        Ask::Access(path, mode) => {
            let access = Access::from_bits_retain(mode);
            done(rfs::accessat(CWD, path, access, AtFlags::EACCESS))
        }
        Ask::ListXattr(path) => {
            let mut names = vec![0; 4096];
            let len = rfs::listxattr(path, &mut names[..]).map_err(errno)?;
            names.truncate(len);
            Ok(Answer::Bytes(names))
        }
        Ask::GetXattr(path, name, size) => get_xattr(&path, &name, size),
        Ask::Statfs(path) => {
            let stat = rfs::statfs(path).map_err(errno)?;
            Ok(Answer::Statfs(FsStat {
                magic: stat.f_type,
                counts: [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree],
                block_size: stat.f_bsize,
                name_max: stat.f_namelen,
                flags: stat.f_flags as u64,
            }))
        }
        Ask::NameToHandle(path) => raw::name_to_handle(&path).map(|()| Answer::Done),
        Ask::Readlink(path) => {
            let link = rfs::readlinkat(CWD, path, Vec::new()).map_err(errno)?;
            Ok(Answer::Bytes(link.into_bytes()))
        }
        Ask::List(path) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rfs::openat(CWD, path, flags, Mode::empty()).map_err(errno)?;
            let mut all = Vec::new();
            loop {
                let some = entries(&dir, 64 * 1024)?;
                if some.is_empty() {
                    return Ok(Answer::Entries(all));
                }
                all.extend(some);
            }
        }
        other => unreachable!("{other:?} is done elsewhere"),
    }
}

fn get_xattr(path: &Path, name: &str, size: usize) -> Done {
    if size == 0 {
        let len = rfs::getxattr_query(path, name).map_err(errno)?;
        return Ok(Answer::Number(len as i64));
    }
    let mut value = vec![0; size];
    let len = rfs::getxattr(path, name, &mut value[..]).map_err(errno)?;
    value.truncate(len);
    Ok(Answer::Bytes(value))
}

fn facts(stat: &rfs::Stat) -> FileStat {
    let time = |seconds: i64, nanos: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    FileStat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size,
        blocks: stat.st_blocks,
        block_size: stat.st_blksize,
        times: [
            time(stat.st_atime, stat.st_atime_nsec),
            time(stat.st_mtime, stat.st_mtime_nsec),
            time(stat.st_ctime, stat.st_ctime_nsec),
        ],
    }
}

fn entries(dir: impl AsFd, size: usize) -> Result<Vec<DirEntry>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); size];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.map_err(errno)?;
        found.push(DirEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            ino: entry.ino(),
            is_dir: entry.file_type() == FileType::Directory,
            offset: entry.next_entry_cookie() as i64,
        });
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(found)
}

/// What needs a descriptor and changes nothing.
fn read(state: &mut State, ask: Ask) -> Done {
    match ask {
        Ask::Open { dir, path, flags } => {
            let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC;
            let mode = Mode::from_bits_retain(0o600);
            let fd = match dir {
                Some(dir) => rfs::openat(state.fd(dir)?, path, flags, mode),
                None => rfs::openat(CWD, path, flags, mode),
            };
            Ok(Answer::Number(state.keep(fd.map_err(errno)?)))
        }
        Ask::Close(fd) => state.close(fd).map(|()| Answer::Done),
        Ask::Dup(fd) => {
            let second = raw::dup(state.fd(fd)?)?;
            Ok(Answer::Number(state.keep(second)))
        }
        Ask::Read(fd, len) => {
            let mut bytes = vec![0; len];
            let got = rustix::io::read(state.fd(fd)?, &mut bytes).map_err(errno)?;
            bytes.truncate(got);
            Ok(Answer::Bytes(bytes))
        }
        Ask::Pread(fd, len, offset) => {
            let mut bytes = vec![0; len];
            let got = rustix::io::pread(state.fd(fd)?, &mut bytes, offset).map_err(errno)?;
            bytes.truncate(got);
            Ok(Answer::Bytes(bytes))
        }
        Ask::Readv(fd, sizes) => {
            let mut parts: Vec<Vec<u8>> = sizes.into_iter().map(|size| vec![0; size]).collect();
            let mut slices: Vec<_> = parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
            let got = rustix::io::readv(state.fd(fd)?, &mut slices).map_err(errno)?;
            let mut bytes = parts.concat();
            bytes.truncate(got);
            Ok(Answer::Bytes(bytes))
        }
        Ask::Seek(fd, offset, whence) => {
            let to = match whence {
                libc::SEEK_SET => SeekFrom::Start(offset as u64),
                libc::SEEK_CUR => SeekFrom::Current(offset),
                libc::SEEK_END => SeekFrom::End(offset),
                libc::SEEK_DATA => SeekFrom::Data(offset as u64),
                _ => SeekFrom::Hole(offset as u64),
            };
            let at = rfs::seek(state.fd(fd)?, to).map_err(errno)?;
            Ok(Answer::Number(at as i64))
        }
        Ask::Sendfile(fd, len) => {
            let (reader, writer) = std::io::pipe().map_err(io_errno)?;
            let sent = rfs::sendfile(&writer, state.fd(fd)?, None, len).map_err(errno)?;
            raw::drain(reader, sent).map(Answer::Bytes)
        }
        Ask::Splice(fd, len) => raw::splice(state.fd(fd)?, len).map(Answer::Bytes),
        Ask::Poll(fd) => {
            let fd = state.fd(fd)?;
            let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::PRI)];
            rustix::event::poll(&mut polled, Some(&Timespec::default())).map_err(errno)?;
            Ok(Answer::Number(i64::from(polled[0].revents().bits())))
        }
        Ask::Flock(fd, bits) => {
            let operation = match bits {
                libc::LOCK_SH => FlockOperation::NonBlockingLockShared,
                libc::LOCK_EX => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::Unlock,
            };
            done(rfs::flock(state.fd(fd)?, operation))
        }
        Ask::Fstat(fd) => {
            let stat = rfs::fstat(state.fd(fd)?).map_err(errno)?;
            Ok(Answer::Stat(facts(&stat)))
        }
        Ask::Getdents(fd, size) => entries(state.fd(fd)?, size).map(Answer::Entries),
        other => unreachable!("{other:?} is done elsewhere"),
    }
}

/// What would change something in the mount.
fn mutate(state: &mut State, ask: Ask) -> Done {
    let mode = Mode::from_bits_retain;
    match ask {
        Ask::Write(fd, bytes) => {
            let wrote = rustix::io::write(state.fd(fd)?, &bytes).map_err(errno)?;
            Ok(Answer::Number(wrote as i64))
        }
        Ask::Truncate(path, len) => raw::truncate(&path, len).map(|()| Answer::Done),
        Ask::Ftruncate(fd, len) => done(rfs::ftruncate(state.fd(fd)?, len)),
        Ask::Fallocate(fd) => done(rfs::fallocate(state.fd(fd)?, FallocateFlags::empty(), 0, 10)),
        Ask::CopyRange(from, to) => {
            let copied = rfs::copy_file_range(state.fd(from)?, None, state.fd(to)?, None, 10);
            Ok(Answer::Number(copied.map_err(errno)? as i64))
        }
        Ask::Chmod(path, bits) => done(rfs::chmodat(CWD, path, mode(bits), AtFlags::empty())),
        Ask::Fchmod(fd, bits) => done(rfs::fchmod(state.fd(fd)?, mode(bits))),
        Ask::Chown(path, uid, gid) => {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            done(rfs::chownat(CWD, path, uid, gid, AtFlags::empty()))
        }
        Ask::Touch(path) => {
            let now = Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            done(rfs::utimensat(CWD, path, &times, AtFlags::empty()))
        }
        Ask::Mkdir(path) => done(rfs::mkdirat(CWD, path, mode(0o755))),
        Ask::Rmdir(path) => done(rfs::unlinkat(CWD, path, AtFlags::REMOVEDIR)),
        Ask::Unlink(path) => done(rfs::unlinkat(CWD, path, AtFlags::empty())),
        Ask::Rename(from, to, flags) => {
            let flags = RenameFlags::from_bits_retain(flags);
            done(rfs::renameat_with(CWD, from, CWD, to, flags))
        }
        Ask::Link(from, to) => done(rfs::linkat(CWD, from, CWD, to, AtFlags::empty())),
        Ask::Symlink(target, name) => done(rfs::symlinkat(target, CWD, name)),
        Ask::Mkfifo(path) => done(rfs::mknodat(CWD, path, FileType::Fifo, mode(0o600), 0)),
        Ask::BindSocket(path) => io_done(UnixListener::bind(path).map(drop)),
        Ask::SetXattr(path, name) => done(rfs::setxattr(path, name, b"x", XattrFlags::empty())),
        Ask::RemoveXattr(path, name) => done(rfs::removexattr(path, name)),
        Ask::GetFlags(fd) => raw::flags_ioctl(state.fd(fd)?, false).map(Answer::Number),
        Ask::SetFlags(fd) => raw::flags_ioctl(state.fd(fd)?, true).map(Answer::Number),
        other => unreachable!("{other:?} is done elsewhere"),
    }
}

/// Descriptors from process to process, and what inotify says.
fn exchange(state: &mut State, ask: Ask) -> Done {
    match ask {
        Ask::Listen(path) => {
            state.listener = Some(UnixListener::bind(path).map_err(io_errno)?);
            Ok(Answer::Done)
        }
        Ask::SendFd(path, fd) => {
            let socket = UnixStream::connect(path).map_err(io_errno)?;
            raw::send_fd(&socket, state.fd(fd)?).map(|()| Answer::Done)
        }
        Ask::ReceiveFd => {
            let listener = state.listener.as_ref().ok_or(EBADF)?;
            let (socket, _) = listener.accept().map_err(io_errno)?;
            let fd = raw::receive_fd(&socket)?;
            Ok(Answer::Number(state.keep(fd)))
        }
        Ask::Watch(path, bits) => {
            let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
            let watcher = inotify::init(flags).map_err(errno)?;
            let bits = inotify::WatchFlags::from_bits_retain(bits);
            inotify::add_watch(&watcher, path, bits).map_err(errno)?;
            Ok(Answer::Number(state.keep(watcher)))
        }
        Ask::Events(watcher, millis) => {
            let watcher = state.fd(watcher)?;
            let limit = Timespec {
                tv_sec: i64::from(millis / 1000),
                tv_nsec: i64::from(millis % 1000) * 1_000_000,
            };
            let mut polled = [PollFd::from_borrowed_fd(watcher, PollFlags::IN)];
            if rustix::event::poll(&mut polled, Some(&limit)).map_err(errno)? == 0 {
                return Ok(Answer::Events(Vec::new()));
            }
            let mut buffer = [MaybeUninit::uninit(); 8192];
            let mut reader = inotify::Reader::new(watcher, &mut buffer);
            let mut events = Vec::new();
            // Ends with EAGAIN: the descriptor does not block.
            while let Ok(event) = reader.next() {
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                events.push((event.events().bits(), name.unwrap_or_default()));
            }
            Ok(Answer::Events(events))
        }
        other => unreachable!("{other:?} is done elsewhere"),
    }
}
