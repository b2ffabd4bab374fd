//! Cgroups of our own for tests, removed also when a test fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CgroupRoot, OwnedCgroup, TaskCgroups};

pub(crate) struct Scratch {
    pub(crate) root: Arc<CgroupRoot>,
    pub(crate) cgroups: TaskCgroups,
    path: PathBuf,
}

/// A folder in the hierarchy that no other test uses.
pub(crate) fn scratch() -> Scratch {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let root = Arc::new(CgroupRoot::find().unwrap());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = PathBuf::from(format!("keyhole-unit-{}-{number}", std::process::id()));
    let cgroups = TaskCgroups::open(root.clone(), &name, false).unwrap();
    let path = root.path().join(name);
    Scratch { root, cgroups, path }
}

impl Scratch {
    pub(crate) fn create(&self, name: &str) -> OwnedCgroup {
        self.cgroups.create(name).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = super::remove_tree(&self.path, 0) {
            eprintln!("left behind: {}: {error}", self.path.display());
        }
    }
}

/// A process that does nothing in a cgroup until dropped.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn inside(cgroup: &Path) -> Self {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let sleeper = Self(child);
        std::fs::write(cgroup.join("cgroup.procs"), sleeper.pid().to_string()).unwrap();
        sleeper
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
