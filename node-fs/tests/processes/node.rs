//! A node under test: a supervisor process on a folder of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use keyhole_node_fs::mount::FuseControl;
use keyhole_node_fs::mountinfo::{self, MountEntry};
use keyhole_node_fs::supervisor::{self, SupervisorConfig};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The role `supervise`.
pub(crate) fn supervise(folder: PathBuf, app: &str) -> ExitCode {
    let config = SupervisorConfig {
        mount_point: folder.join("mount"),
        control_socket: folder.join("node.sock"),
        worker: Box::new(|manifest| {
            let mut command = Command::new("/proc/self/exe");
            command.arg("worker").arg(manifest.to_string());
            command
        }),
        app: serde_json::from_str(app).unwrap(),
    };
    match supervisor::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyhole: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of a node; whatever is mounted in it goes when this does.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("node.sock")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join("mount").join(name)
    }

    pub(crate) fn mounts(&self) -> Vec<MountEntry> {
        let mut mounts = mountinfo::read().unwrap();
        mounts.retain(|entry| entry.mount_point.starts_with(self.path()));
        mounts
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for entry in self.mounts().iter().rev() {
            abort(entry.minor);
            let _ = rustix::mount::unmount(&entry.mount_point, UnmountFlags::DETACH);
        }
    }
}

/// Ends a connection and with it every caller that hangs in it.
pub(crate) fn abort(connection: u32) {
    let _ = FuseControl::open().unwrap().abort(connection);
}

/// A supervisor process; killed when dropped.
pub(crate) struct Node {
    child: Child,
    lines: Receiver<String>,
}

impl Node {
    /// Starts one and waits until it says that it serves.
    pub(crate) fn start(folder: &Folder) -> Self {
        Self::start_with(folder, &serde_json::json!({ "mode": "plain" }))
    }

    pub(crate) fn start_with(folder: &Folder, app: &serde_json::Value) -> Self {
        let node = Self::launch(folder, app);
        let ready = format!("ready: serving {}/mount", folder.path().display());
        // With a log, its lines come before.
        let logging = std::env::var_os("RUST_LOG").is_some();
        let first = std::iter::repeat_with(|| node.line()).find(|line| !logging || *line == ready);
        assert_eq!(first, Some(ready));
        node
    }

    pub(crate) fn launch(folder: &Folder, app: &serde_json::Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("supervise")
            .arg(folder.path())
            .arg(app.to_string())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = follow(child.stderr.take().unwrap());
        Self { child, lines }
    }

    /// The next line it (or a worker of its) writes to standard error; it must come in time.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// All lines that are left once it has ended.
    pub(crate) fn rest(self) -> Vec<String> {
        self.lines.iter().collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        within(PATIENCE, "the supervisor ends", || self.child.try_wait().unwrap())
    }

    /// The worker that is running now, other than `not`.
    pub(crate) fn worker(&self, not: Option<Pid>) -> Pid {
        let pid = self.child.id();
        within(PATIENCE, "a worker is there", || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let first = children.unwrap().split_whitespace().next()?.parse().ok();
            first.and_then(Pid::from_raw).filter(|found| Some(*found) != not)
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("| {line}");
            let _ = sender.send(line);
        }
    });
    lines
}

/// Asks until there is an answer.
pub(crate) fn within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

pub(crate) fn in_folder(entries: &[MountEntry], at: &Path) -> usize {
    entries.iter().filter(|entry| entry.mount_point == at).count()
}
