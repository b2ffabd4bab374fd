//! Who may die, and who notices.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::node::{Folder, Node, PATIENCE, abort, in_folder, is_alive, within};
use crate::served::content;

const READERS: usize = 100;

/// Threads that read one file over and over until told to stop.
struct Readers {
    stop: Arc<AtomicBool>,
    cycles: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Readers {
    fn start(path: &Path) -> Self {
        let (stop, cycles) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..READERS).map(|_| {
            let (path, stop, cycles) = (path.to_owned(), stop.clone(), cycles.clone());
            std::thread::spawn(move || {
                let expected = content();
                while !stop.load(Ordering::Relaxed) {
                    let read = read_in_pieces(&path).map_err(|error| error.to_string())?;
                    if read != expected {
                        return Err(format!("{} bytes, not the file's", read.len()));
                    }
                    cycles.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        Self { threads: threads.collect(), stop, cycles }
    }

    /// Waits until this many more cycles were completed than now.
    fn advance(&self, by: u64) {
        let target = self.cycles.load(Ordering::Relaxed) + by;
        within(PATIENCE, "readers advance", || {
            (self.cycles.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            within(PATIENCE, "a reader ends", || thread.is_finished().then_some(()));
            assert_eq!(thread.join().unwrap(), Ok(()), "a reader got an error");
        }
        self.cycles.load(Ordering::Relaxed)
    }
}

fn read_in_pieces(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut all, mut piece) = (Vec::new(), [0; 8192]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(all),
            length => all.extend_from_slice(&piece[..length]),
        }
    }
}

/// Reads on a thread, so that a hang fails the test instead of stopping it.
fn read_within(path: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || std::fs::read(path));
    within(limit, "a read returns", || thread.is_finished().then_some(()));
    thread.join().unwrap()
}

pub(crate) fn no_reader_sees_an_error_when_workers_are_killed() {
    let folder = Folder::new();
    let node = Node::start(&folder);
    let readers = Readers::start(&folder.file("plain"));
    let mut worker = node.worker(None);
    for _ in 0..20 {
        readers.advance(30);
        rustix::process::kill_process(worker, Signal::KILL).unwrap();
        worker = node.worker(Some(worker));
    }
    readers.advance(300);
    let cycles = readers.finish();
    println!("{cycles} cycles of {READERS} readers over 20 deaths");
    node.signal(Signal::TERM);
}

pub(crate) fn a_replaced_worker_is_not_noticed_either() {
    let folder = Folder::new();
    let mut node = Node::start(&folder);
    let readers = Readers::start(&folder.file("plain"));
    let mut worker = node.worker(None);
    for _ in 0..3 {
        readers.advance(30);
        node.signal(Signal::HUP);
        worker = node.worker(Some(worker));
    }
    readers.advance(100);
    readers.finish();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

pub(crate) fn sigterm_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let mut node = Node::start(&folder);
        assert_eq!(std::fs::read(folder.file("plain")).unwrap(), content());
        let [mount] = &folder.mounts()[..] else { panic!("{:?}", folder.mounts()) };
        assert_eq!(mount.fs_type, "fuse.keyhole");
        let worker = node.worker(None);
        // While it starts a thread, the C library blocks every signal; after that, none is.
        let status = format!("/proc/{}/status", worker.as_raw_nonzero());
        within(PATIENCE, "the worker blocks no signal", || {
            let status = std::fs::read_to_string(&status).unwrap();
            status.contains("\nSigBlk:\t0000000000000000\n").then_some(())
        });
        // An open file keeps the filesystem busy, which must not matter.
        let open = File::open(folder.file("plain")).unwrap();
        node.signal(signal);
        assert!(node.wait().success());
        assert!(folder.mounts().is_empty() && !folder.socket().exists() && !is_alive(worker));
        assert!(folder.path().join("mount").read_dir().unwrap().next().is_none());
        drop(open);
        assert_eq!(node.rest(), Vec::<String>::new(), "one line, `ready`, and no more");
    }
}

pub(crate) fn a_dead_supervisor_takes_its_worker_along_and_the_next_cleans_up() {
    let folder = Folder::new();
    let node = Node::start(&folder);
    let worker = node.worker(None);
    node.signal(Signal::KILL);
    within(PATIENCE, "the worker ends too", || (!is_alive(worker)).then_some(()));
    drop(node);
    assert_eq!(folder.mounts().len(), 1, "a crash leaves its mount");
    // A request that is on its way when the last descriptor goes is told ECONNABORTED; each one after that, this.
    let dead = || read_within(&folder.file("plain"), PATIENCE).unwrap_err().raw_os_error();
    within(PATIENCE, "the mount to be dead", || (dead() == Some(libc::ENOTCONN)).then_some(()));

    let mut node = Node::start(&folder);
    assert_eq!(in_folder(&folder.mounts(), &folder.path().join("mount")), 1);
    assert_eq!(std::fs::read(folder.file("plain")).unwrap(), content());
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

pub(crate) fn a_request_that_kills_workers_is_given_up() {
    let folder = Folder::new();
    let mut node = Node::start(&folder);
    let readers = Readers::start(&folder.file("plain"));
    readers.advance(10);
    let error = read_within(&folder.file("poison"), PATIENCE).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    readers.advance(100);
    readers.finish();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

pub(crate) fn a_stuck_worker_is_replaced_and_its_callers_are_served() {
    let folder = Folder::new();
    let node = Node::start(&folder);
    let start = Instant::now();
    assert_eq!(read_within(&folder.file("stuck"), PATIENCE).unwrap(), content());
    assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
    drop(node);
}

pub(crate) fn a_stopped_worker_is_replaced() {
    let folder = Folder::new();
    let node = Node::start(&folder);
    let worker = node.worker(None);
    // One heartbeat, so that the limit for a starting worker does not apply.
    std::thread::sleep(Duration::from_millis(1500));
    rustix::process::kill_process(worker, Signal::STOP).unwrap();
    assert_eq!(read_within(&folder.file("plain"), PATIENCE).unwrap(), content());
    assert_ne!(node.worker(None), worker);
    drop(node);
}

pub(crate) fn a_worker_that_cannot_serve_ends_the_node_before_it_mounts() {
    let folder = Folder::new();
    let mut node = Node::launch(&folder, &serde_json::json!({ "mode": "hopeless" }));
    assert!(!node.wait().success());
    assert!(folder.mounts().is_empty() && !folder.socket().exists());
    let [worker, supervisor] = &node.rest()[..] else { panic!("two lines") };
    assert_eq!(worker, "keyhole: the join token was refused");
    assert!(supervisor.contains("could not start"), "{supervisor}");
}

pub(crate) fn an_aborted_connection_is_mounted_afresh() {
    let folder = Folder::new();
    let mut node = Node::start(&folder);
    let before = folder.mounts();
    let worker = node.worker(None);
    abort(before[0].minor);
    within(PATIENCE, "another mount is there", || {
        let now = folder.mounts();
        (now.len() == 1 && now[0].id != before[0].id).then_some(())
    });
    node.worker(Some(worker));
    assert_eq!(read_within(&folder.file("plain"), PATIENCE).unwrap(), content());
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    assert!(folder.mounts().is_empty());
}

pub(crate) fn nothing_can_be_written_through_the_attached_mount() {
    let folder = Folder::new();
    let node = Node::start(&folder);
    let plain = folder.file("plain");
    let errors = [
        File::options().write(true).open(&plain).err(),
        File::create(folder.file("new")).err(),
        std::fs::remove_file(&plain).err(),
        std::fs::create_dir(folder.file("dir")).err(),
        std::fs::rename(&plain, folder.file("other")).err(),
        rustix::fs::chmod(&plain, rustix::fs::Mode::RUSR).err().map(Into::into),
    ];
    for error in errors {
        assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::EROFS));
    }
    drop(node);
}

pub(crate) fn a_second_node_is_refused_and_harms_nothing() {
    let folder = Folder::new();
    let first = Node::start(&folder);
    let mut second = Node::launch(&folder, &serde_json::json!({ "mode": "plain" }));
    assert!(!second.wait().success());
    let [line] = &second.rest()[..] else { panic!("one line") };
    assert!(line.contains("another Keyhole node"), "{line}");
    assert_eq!(read_within(&folder.file("plain"), PATIENCE).unwrap(), content());
    assert!(folder.socket().exists());
    drop(first);
}
