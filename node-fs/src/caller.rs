//! Who is calling: from the thread id in a FUSE header to a cgroup id.
//!
//! Depends on [`cgroups`](crate::cgroups) and [`sys`](crate::sys). Invariant: an answer is the
//! cgroup of the very thread that waits for our reply, or `None`, which means deny. That holds
//! for LOOKUP, OPENDIR, OPEN and xattr calls, whose caller is pinned until we reply; never ask
//! for a READ (its caller may be gone and the number taken).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use keyhole_domain::TaskId;
use keyhole_view::cgroup::{CgroupId, nearest};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::cgroups::{CgroupRoot, unified_path};
use crate::sys;

/// Threads whose pidfd is kept; each costs a descriptor.
const KEPT_PIDFDS: usize = 512;
/// Cgroups whose ancestors are remembered.
const KEPT_LINEAGES: usize = 8192;

/// How callers are identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentitySource {
    /// `PIDFD_GET_INFO` where the kernel has it (6.13), else `/proc`.
    #[default]
    Auto,
    /// `/proc/TID/cgroup`, whatever the kernel has.
    Proc,
}

/// Resolves callers. Shared by all service threads.
#[derive(Debug)]
pub struct Callers {
    root: Arc<CgroupRoot>,
    pidfds: Option<Mutex<Bounded<u32, OwnedFd>>>,
    lineages: Mutex<Bounded<CgroupId, Arc<[CgroupId]>>>,
    registered: ArcSwap<BTreeMap<CgroupId, TaskId>>,
}

impl Callers {
    /// Chooses the way once: by what the kernel has, or as forced by `source`.
    pub fn new(root: Arc<CgroupRoot>, source: IdentitySource) -> Self {
        let pidfd = source == IdentitySource::Auto && kernel_has_pidfd_info();
        Self {
            root,
            pidfds: pidfd.then(|| Mutex::new(Bounded::new(KEPT_PIDFDS))),
            lineages: Mutex::new(Bounded::new(KEPT_LINEAGES)),
            registered: ArcSwap::default(),
        }
    }

    /// Which way is used.
    pub fn source(&self) -> IdentitySource {
        if self.pidfds.is_some() { IdentitySource::Auto } else { IdentitySource::Proc }
    }

    /// The cgroup of the thread `tid`. `None` for pid 0 (a caller outside our pid namespace, or
    /// the kernel itself), for one that is gone, and when anything is in doubt.
    pub fn cgroup_of(&self, tid: u32) -> Option<CgroupId> {
        let pid = i32::try_from(tid).ok().and_then(Pid::from_raw)?;
        match &self.pidfds {
            Some(pidfds) => cgroup_by_pidfd(&mut lock(pidfds), tid, pid),
            None => self.cgroup_by_proc(tid),
        }
    }

    /// The cgroup and its ancestors, nearest first, without the root. `None` if it is gone and
    /// was never asked for before. Remembered: a cgroup cannot move, and ids never recur.
    pub fn lineage(&self, id: CgroupId) -> Option<Arc<[CgroupId]>> {
        if let Some(known) = lock(&self.lineages).get(&id) {
            return Some(known.clone());
        }
        let lineage = self.root.lineage(id)?;
        lock(&self.lineages).insert(id, lineage.clone());
        Some(lineage)
    }

    /// Says which cgroups are tasks from now on.
    pub fn register(&self, tasks: BTreeMap<CgroupId, TaskId>) {
        self.registered.store(Arc::new(tasks));
    }

    /// The task of the thread `tid`: that of the nearest registered cgroup.
    pub fn task_of(&self, tid: u32) -> Option<TaskId> {
        let lineage = self.lineage(self.cgroup_of(tid)?)?;
        nearest(&lineage, &self.registered.load())
    }

    /// The slow way: the name that `/proc` gives, checked to be still this thread's and still the
    /// same directory after its id was read.
    fn cgroup_by_proc(&self, tid: u32) -> Option<CgroupId> {
        let read = || std::fs::read(format!("/proc/{tid}/cgroup")).ok();
        let path = unified_path(&read()?)?;
        let directory = self.root.directory_of(&path);
        let id = self.root.id_of(&directory).ok()?;
        let unchanged = unified_path(&read()?)? == path && self.root.id_of(&directory).ok()? == id;
        unchanged.then_some(id)
    }
}

fn cgroup_by_pidfd(pidfds: &mut Bounded<u32, OwnedFd>, tid: u32, pid: Pid) -> Option<CgroupId> {
    if let Some(pidfd) = pidfds.get(&tid) {
        match sys::pidfd_info(pidfd) {
            Ok(info) if info.tid == tid => return info.cgroup.map(CgroupId),
            // The thread of that name is gone; another may have its number now.
            _ => pidfds.remove(&tid),
        }
    }
    let pidfd = open_thread(pid).ok()?;
    let info = sys::pidfd_info(&pidfd).ok()?;
    if info.tid != tid {
        return None;
    }
    pidfds.insert(tid, pidfd);
    info.cgroup.map(CgroupId)
}

fn open_thread(pid: Pid) -> io::Result<OwnedFd> {
    // PIDFD_THREAD is O_EXCL: the thread itself, also when it does not lead its process.
    let thread = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());
    Ok(rustix::process::pidfd_open(pid, thread)?)
}

fn kernel_has_pidfd_info() -> bool {
    let own = open_thread(rustix::thread::gettid());
    own.and_then(sys::pidfd_info).is_ok_and(|info| info.cgroup.is_some())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A map that forgets what was not used since half its capacity was filled.
#[derive(Debug)]
struct Bounded<K, V> {
    recent: HashMap<K, V>,
    older: HashMap<K, V>,
    half: usize,
}

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    fn new(capacity: usize) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), half: capacity / 2 }
    }

    fn get(&mut self, key: &K) -> Option<&V> {
        if let Some(value) = self.older.remove(key) {
            self.insert(*key, value);
        }
        self.recent.get(key)
    }

    fn insert(&mut self, key: K, value: V) {
        if self.recent.len() >= self.half {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.recent.remove(key);
        self.older.remove(key);
    }
}

#[cfg(test)]
mod tests;
