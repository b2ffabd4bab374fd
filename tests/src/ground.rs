//! What one test stands on: a temporary folder, a cgroup and the logs, shared by all that it starts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

use crate::cgroup::TestCgroup;
use crate::mounts;

pub(crate) const EXCHANGE: &str = "x";

/// A file system of its own for one folder.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Another size; what is there stays.
    pub fn resize(&self, mib: u32) {
        self.mount(&format!("remount,size={mib}m"));
    }

    /// No write goes to it any more.
    pub fn make_read_only(&self) {
        self.mount("remount,ro");
    }

    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "kht"]).arg(&self.at);
        assert!(mount.status().expect("mount is there").success(), "{mount:?}");
    }
}

/// Removed when the last thing that stands on it is dropped. On a panic the logs are printed first.
#[derive(Debug)]
pub struct Ground {
    logs: Mutex<Vec<PathBuf>>,
    cgroup: TestCgroup,
    folder: TempDir,
}

impl Ground {
    /// A fresh one.
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        // A short path: a unix socket's is 107 bytes at most. Others may pass through it: tests have non-root callers.
        let folder = tempfile::Builder::new().prefix("kht").tempdir().expect("a temporary folder");
        std::fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("it is ours");
        // Where probes of any user may make a socket.
        let exchange = folder.path().join(EXCHANGE);
        std::fs::create_dir(&exchange).expect("it is ours");
        std::fs::set_permissions(exchange, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("it is ours");
        Self { logs: Mutex::default(), cgroup: TestCgroup::fresh(), folder }
    }

    /// The temporary folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The test's cgroup; nodes make their tasks' cgroups below it.
    pub fn cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    /// A disk of this many MiB at a new folder below, unmounted at the end; its options can be changed.
    pub fn small_disk(&self, name: &str, mib: u32) -> SmallDisk {
        let at = self.folder().join(name);
        std::fs::create_dir(&at).expect("the folder is ours");
        let disk = SmallDisk { at };
        disk.mount(&format!("size={mib}m,mode=0700"));
        disk
    }

    /// A path for a log, printed if the test fails.
    pub fn log(&self, name: &str) -> PathBuf {
        let mut logs = self.logs.lock().expect("no panic while it is held");
        let path = self.folder().join(format!("{:02}-{name}.log", logs.len()));
        logs.push(path.clone());
        path
    }

    /// Every log so far, for a message.
    pub fn logs(&self) -> String {
        let logs = self.logs.lock().expect("no panic while it is held");
        let mut text = String::new();
        for path in logs.iter() {
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            text += &format!("--- {name} ({} lines)\n{}\n", lines.len(), tail.join("\n"));
        }
        text
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        mounts::detach_below(self.folder.path());
    }
}
