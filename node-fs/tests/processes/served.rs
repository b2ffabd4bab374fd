//! A worker with a small filesystem: one plain file, and files that make it misbehave.

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use keyhole_node_fs::attempts::{Attempts, Verdict};
use keyhole_node_fs::inheritance::Inheritance;
use keyhole_node_fs::meter::Meter;
use keyhole_node_fs::{handover, supervisor};

const RESENT: u64 = 1 << 63;
/// What every file holds.
pub(crate) fn content() -> Vec<u8> {
    (0..40_000_u32).map(|index| (index % 251) as u8).collect()
}

const FILES: [&str; 3] = ["plain", "poison", "stuck"];
const PLAIN: u64 = 2;
const POISON: u64 = 3;
const STUCK: u64 = 4;

/// The role `worker`.
pub(crate) fn work(manifest: i32) -> ExitCode {
    let inheritance = Inheritance::receive(manifest).unwrap();
    if !inheritance.app["show"].is_null() {
        return crate::secrets::serve(inheritance);
    }
    if inheritance.app["mode"] == "hopeless" {
        eprintln!("keyhole: the join token was refused");
        return ExitCode::from(supervisor::EXIT_HOPELESS);
    }
    let meter = Arc::new(Meter::default());
    let served =
        Served { content: content(), attempts: inheritance.attempts, meter: meter.clone() };
    let adopted = handover::adopt(served, inheritance.device, &inheritance.init, 2).unwrap();
    assert!(adopted.resends());
    let reporter = Arc::new(inheritance.reporter);
    reporter.ready().unwrap();
    reporter.start_heartbeat(meter).unwrap();
    adopted.run().unwrap();
    ExitCode::from(supervisor::EXIT_CONNECTION_LOST)
}

struct Served {
    content: Vec<u8>,
    attempts: Attempts,
    meter: Arc<Meter>,
}

impl Served {
    fn attributes(&self, ino: u64) -> FileAttr {
        let directory = ino == 1;
        FileAttr {
            ino: INodeNo(ino),
            size: if directory { 0 } else { self.content.len() as u64 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS).unwrap();
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.meter.serving();
        match FILES.iter().position(|file| *file == name) {
            Some(index) => {
                let attributes = self.attributes(PLAIN + index as u64);
                let ttl = Duration::ZERO;
                reply.entry_with_ttls(&ttl, &ttl, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _serving = self.meter.serving();
        reply.attr(&Duration::ZERO, &self.attributes(ino.0));
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _serving = self.meter.serving();
        let unique = request.unique().0;
        if self.attempts.judge(unique) == Verdict::GiveUp {
            return reply.error(Errno::EIO);
        }
        match ino.0 {
            POISON => std::process::abort(),
            // Only its first time: the next worker serves it.
            STUCK if unique & RESENT == 0 => loop {
                std::thread::park();
            },
            _ => reply.opened(FileHandle(7), FopenFlags::FOPEN_DIRECT_IO),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _serving = self.meter.serving();
        if handle.0 != 7 {
            return reply.error(Errno::EBADF);
        }
        let start = usize::try_from(offset).unwrap().min(self.content.len());
        let end = (start + size as usize).min(self.content.len());
        reply.data(&self.content[start..end]);
    }
}
const _: () = assert!(STUCK == PLAIN + 2 && POISON == PLAIN + 1);
