//! Cgroups of one test: all below one directory that no other test uses, removed with everything in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mounts::mounts;
use crate::wait;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A cgroup directory that is removed, with its processes and children, when dropped.
#[derive(Debug)]
pub struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    /// A fresh cgroup directly below the root of the cgroup v2 hierarchy.
    pub fn fresh() -> Self {
        let root = cgroup_root();
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("kht-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Self { path },
                // A test with this process's id was killed, and could not remove its own.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("root can make a cgroup: {error}"),
            }
        }
    }

    /// One that is there already.
    pub fn adopt(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new cgroup below it; it goes with its parent.
    pub fn child(&self, name: &str) -> PathBuf {
        let child = self.path.join(name);
        fs::create_dir(&child).expect("root can make a cgroup");
        child
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // Kills every process below as well.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let removed = std::panic::catch_unwind(|| {
            wait::until("the test's cgroups to be empty", || remove(&self.path))
        });
        if removed.is_err() {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

/// The root of the cgroup v2 hierarchy.
pub fn cgroup_root() -> PathBuf {
    let all = mounts();
    let root = all.into_iter().find(|mount| mount.fs_type == "cgroup2");
    root.expect("a cgroup v2 hierarchy is mounted").at
}

/// Leaf to root.
fn remove(path: &Path) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}
