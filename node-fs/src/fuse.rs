//! The adapter between the kernel and the view: it resolves the caller, asks, and forwards.
//!
//! No rule of who sees what is here; those are in `keyhole-view`, and errno comes from its one
//! table. Invariants: a right is given at LOOKUP, OPENDIR, OPEN and xattr calls, to a caller that
//! waits for our reply; READ has it from its handle. A LOOKUP is never delayed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use keyhole_domain::TaskId;
use keyhole_view::{
    Attr, Denied, Entry, GENERATION, Ino, Kind, Mutation, ShownFile, StatFs, XattrAnswer,
};

use crate::attempts::{Attempts, Verdict};
use crate::caller::Callers;
use crate::meter::Meter;
use crate::stage::Stage;

/// An open, for the audit.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// The file, with its task, secret and version.
    pub file: &'a ShownFile,
    /// The thread that opened it.
    pub tid: u32,
    /// Its user.
    pub uid: u32,
    /// Why it was refused; `None`: it was granted.
    pub refused: Option<Denied>,
}

/// Told of every open of a known file, before the kernel is, but for those that it is made to ask again. Runs on a service thread: it must not
/// block, nor touch the mount.
pub type OnOpen = Box<dyn Fn(Opened<'_>) + Send + Sync>;

/// The filesystem of a node.
pub struct Secrets {
    stage: Arc<Stage>,
    callers: Arc<Callers>,
    meter: Arc<Meter>,
    attempts: Attempts,
    on_open: OnOpen,
}

impl Secrets {
    /// Serves what is on `stage` to the tasks that `callers` knows.
    pub fn new(
        stage: Arc<Stage>,
        callers: Arc<Callers>,
        meter: Arc<Meter>,
        attempts: Attempts,
        on_open: OnOpen,
    ) -> Self {
        Self { stage, callers, meter, attempts, on_open }
    }

    /// Finds the answer to a request, unless it has killed too many workers.
    fn answer<T>(
        &self,
        request: &Request,
        find: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let _serving = self.meter.serving();
        match self.attempts.judge(request.unique().0) {
            Verdict::Serve => find(),
            Verdict::GiveUp => Err(Errno::EIO),
        }
    }

    fn caller(&self, request: &Request) -> Option<TaskId> {
        self.callers.task_of(request.pid())
    }

    fn find_entry(&self, request: &Request, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        let caller = self.caller(request);
        let ask = || self.stage.view().lookup(caller, parent, name.as_bytes()).map_err(errno);
        let mut entry = ask()?;
        while counts_lookups(entry.attr.ino, entry.attr.kind) {
            let ino = entry.attr.ino;
            self.stage.hold(ino).map_err(internal)?;
            // It is kept from now on if it is what the name means yet; else somebody may have
            // judged it free just before it was counted, and the name means something newer.
            match ask() {
                Ok(again) if again.attr.ino == ino => break,
                Ok(newer) => entry = newer,
                Err(errno) => {
                    self.stage.release(ino, 1);
                    return Err(errno);
                }
            }
            self.stage.release(ino, 1);
        }
        Ok(entry)
    }

    fn open_file(&self, request: &Request, ino: Ino, flags: OpenFlags) -> Result<(), Errno> {
        let caller = self.caller(request);
        self.held(ino, || {
            let view = self.stage.view();
            let note = |file, refused| {
                let (tid, uid) = (request.pid(), request.uid());
                (self.on_open)(Opened { file, tid, uid, refused });
            };
            let retired_for = || self.stage.retired_for(ino);
            let file = match (view.open(caller, ino, flags.0, retired_for), view.file(ino)) {
                (Ok(file), _) => file,
                (Err(denied), known) => {
                    if let (Some((file, _)), true) = (known, denied != Denied::Stale) {
                        note(file, Some(denied));
                    }
                    return Err(errno(denied));
                }
            };
            if !self.stage.values().contains(&file.shown_value()) {
                tracing::error!(secret = %file.value.secret, version = %file.value.version,
                    "a file is shown whose value is missing");
                return Err(Errno::EIO);
            }
            note(file, None);
            Ok(())
        })
    }

    fn open_directory(&self, request: &Request, ino: Ino) -> Result<(), Errno> {
        let caller = self.caller(request);
        self.held(ino, || self.stage.view().opendir(caller, ino).map_err(errno))
    }

    /// Counts a handle before the view is asked for it, and uncounts it when denied.
    fn held(&self, ino: Ino, ask: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        self.stage.hold(ino).map_err(internal)?;
        ask().inspect_err(|_| self.stage.release(ino, 1))
    }

    fn forget_lookups(&self, ino: Ino, count: u64) {
        // A file that the view does not know has no handles either, so nothing is uncounted.
        let is_file = self.stage.view().file(ino).is_some();
        if counts_lookups(ino, if is_file { Kind::File } else { Kind::Directory }) {
            self.stage.release(ino, count);
        }
    }
}

/// Files are kept by their handles alone; only directories by lookups as well.
fn counts_lookups(ino: Ino, kind: Kind) -> bool {
    ino != Ino::ROOT && kind == Kind::Directory
}

fn errno(denied: Denied) -> Errno {
    Errno::from_i32(denied.errno())
}

fn internal(error: io::Error) -> Errno {
    tracing::error!(%error, "cannot count a handle");
    Errno::EIO
}

fn denied(mutation: Mutation) -> Errno {
    errno(mutation.denied())
}

fn attributes(attr: &Attr) -> FileAttr {
    let time: SystemTime = UNIX_EPOCH + Duration::from_nanos(attr.time.0);
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: keyhole_view::BLOCK_BYTES,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
    }
}

fn reply_xattr(answer: Result<XattrAnswer, Errno>, reply: ReplyXattr) {
    match answer {
        Ok(XattrAnswer::Size(size)) => reply.size(size),
        Ok(XattrAnswer::Data(data)) => reply.data(&data),
        Err(errno) => reply.error(errno),
    }
}

fn reply_empty(answer: Result<(), Errno>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Secrets {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without the first, one blocked LOOKUP stalls every name in the root. With the second,
        // nobody gets at inodes by file handle. A kernel without one does without.
        for wanted in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_NO_EXPORT_SUPPORT] {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "this kernel's FUSE does not have it");
            }
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.answer(request, || self.find_entry(request, Ino(parent.0), name)) {
            Ok(Entry { attr, name_ttl }) => reply.entry_with_ttls(
                &attr.ttl,
                &name_ttl,
                &attributes(&attr),
                Generation(GENERATION),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        let _serving = self.meter.serving();
        self.forget_lookups(Ino(ino.0), count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.answer(request, || self.stage.view().attr(Ino(ino.0)).map_err(errno)) {
            Ok(attr) => reply.attr(&attr.ttl, &attributes(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.answer(request, || self.open_file(request, Ino(ino.0), flags)) {
            Ok(()) => {
                // The inode's content never changes, so its pages stay good; nothing is written, so
                // there is nothing to flush.
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(ino.0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let value = self.answer(request, || {
            let key = self.stage.view().readable(Ino(ino.0)).map_err(errno)?;
            self.stage.values().open(&key).or_else(|error| {
                // It may have been revoked since, and its value dropped.
                self.stage.view().readable(Ino(ino.0)).map_err(errno)?;
                tracing::error!(%error, "cannot answer a read");
                Err(Errno::EIO)
            })
        });
        match value {
            Ok(value) => reply.data(value.part(offset, size)),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let released = self.answer(request, || {
            self.stage.release(Ino(ino.0), 1);
            Ok(())
        });
        reply_empty(released, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.answer(request, || self.open_directory(request, Ino(ino.0))) {
            // Never cached: the root lists something else to everyone.
            Ok(()) => reply.opened(FileHandle(ino.0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let filled = self.answer(request, || {
            let caller = self.caller(request);
            let view = self.stage.view();
            for entry in view.readdir(caller, Ino(ino.0), offset) {
                let number = INodeNo(entry.ino.0);
                if reply.add(number, entry.offset, file_type(entry.kind), entry.name) {
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let released = self.answer(request, || {
            self.stage.release(Ino(ino.0), 1);
            Ok(())
        });
        reply_empty(released, reply);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let answer = self.answer(request, || {
            let caller = self.caller(request);
            let view = self.stage.view();
            view.getxattr(caller, Ino(ino.0), name.as_bytes(), size).map_err(errno)
        });
        reply_xattr(answer, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let answer = self.answer(request, || {
            let caller = self.caller(request);
            self.stage.view().listxattr(caller, Ino(ino.0), size).map_err(errno)
        });
        reply_xattr(answer, reply);
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.answer(request, || Ok(self.stage.view().statfs())) {
            Ok(StatFs { blocks, files, block_bytes, name_bytes }) => {
                let size = block_bytes;
                reply.statfs(blocks, blocks, blocks, files, files, size, name_bytes, size);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        // There are no links, so the kernel never asks.
        reply.error(Errno::EINVAL);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks by itself from now on (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(denied(Mutation::Setattr));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(denied(Mutation::Mknod));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(denied(Mutation::Mkdir));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(denied(Mutation::Unlink));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(denied(Mutation::Rmdir));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(denied(Mutation::Symlink));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(denied(Mutation::Rename));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(denied(Mutation::Link));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(denied(Mutation::Write));
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(denied(Mutation::Create));
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(denied(Mutation::Setxattr));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(denied(Mutation::Removexattr));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(denied(Mutation::Fallocate));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(denied(Mutation::CopyFileRange));
    }
}
