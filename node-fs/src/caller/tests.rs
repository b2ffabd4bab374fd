//! Identity of real processes and threads in real cgroups, by both ways.

use std::process::{Command, Stdio};

use super::*;
use crate::cgroups::testing::{Sleeper, scratch};

fn both(root: &Arc<CgroupRoot>) -> [Callers; 2] {
    let both = [IdentitySource::Auto, IdentitySource::Proc].map(|s| Callers::new(root.clone(), s));
    assert_eq!(both[1].source(), IdentitySource::Proc);
    both
}

#[test]
fn this_kernel_uses_pidfds() {
    let root = Arc::new(CgroupRoot::find().unwrap());
    let wanted = crate::requirements::kernel_is_at_least((6, 13));
    let source = Callers::new(root, IdentitySource::Auto).source();
    assert_eq!(source == IdentitySource::Auto, wanted);
}

#[test]
fn a_process_is_found_in_its_cgroup_and_followed_when_moved() {
    let scratch = scratch();
    let (one, two) = (scratch.create("one"), scratch.create("two"));
    let sleeper = Sleeper::inside(one.path());
    for callers in both(&scratch.root) {
        std::fs::write(one.path().join("cgroup.procs"), sleeper.pid().to_string()).unwrap();
        assert_eq!(callers.cgroup_of(sleeper.pid()), Some(one.id()));
        std::fs::write(two.path().join("cgroup.procs"), sleeper.pid().to_string()).unwrap();
        assert_eq!(callers.cgroup_of(sleeper.pid()), Some(two.id()), "{:?}", callers.source());
    }
}

#[test]
fn a_thread_is_found_by_its_own_id_also_in_a_threaded_cgroup() {
    let scratch = scratch();
    let domain = scratch.create("domain");
    let threaded = domain.path().join("threaded");
    std::fs::create_dir(&threaded).unwrap();
    std::fs::write(threaded.join("cgroup.type"), "threaded").unwrap();
    // A process with a second thread that goes into the threaded cgroup alone.
    let script = "import threading,time,sys\n\
        t=threading.Thread(target=time.sleep,args=(600,),daemon=True)\n\
        t.start(); print(t.native_id,flush=True); time.sleep(600)";
    let mut child =
        Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let tid: u32 = line.trim().parse().unwrap();
    std::fs::write(domain.path().join("cgroup.procs"), child.id().to_string()).unwrap();
    std::fs::write(threaded.join("cgroup.threads"), tid.to_string()).unwrap();
    let threaded_id = scratch.root.id_of(&threaded).unwrap();
    for callers in both(&scratch.root) {
        assert_eq!(callers.cgroup_of(child.id()), Some(domain.id()));
        assert_eq!(callers.cgroup_of(tid), Some(threaded_id), "{:?}", callers.source());
        let lineage = callers.lineage(threaded_id).unwrap();
        assert_eq!(&lineage[..2], &[threaded_id, domain.id()]);
        assert_eq!(callers.task_of(tid), None);
        let task = TaskId::from_entropy([7; 16]);
        callers.register(BTreeMap::from([(domain.id(), task)]));
        assert_eq!(callers.task_of(tid), Some(task));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn nobody_and_the_dead_are_denied() {
    let scratch = scratch();
    let cgroup = scratch.create("task");
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = child.id();
    std::fs::write(cgroup.path().join("cgroup.procs"), pid.to_string()).unwrap();
    for callers in both(&scratch.root) {
        assert_eq!(callers.cgroup_of(0), None);
        assert_eq!(callers.cgroup_of(u32::MAX), None);
        assert_eq!(callers.cgroup_of(4_194_305), None);
    }
    let callers = both(&scratch.root);
    assert!(callers.iter().all(|callers| callers.cgroup_of(pid) == Some(cgroup.id())));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(callers.iter().all(|callers| callers.cgroup_of(pid).is_none()));
}

/// The number of a dead thread, given again by the kernel to a process elsewhere, must not be
/// answered from the descriptor kept for the dead one.
#[test]
fn a_recycled_number_is_looked_up_afresh() {
    let scratch = scratch();
    let (old, new) = (scratch.create("old"), scratch.create("new"));
    let callers = Callers::new(scratch.root.clone(), IdentitySource::Auto);
    for _ in 0..20 {
        let sleeper = Sleeper::inside(old.path());
        let pid = sleeper.pid();
        assert_eq!(callers.cgroup_of(pid), Some(old.id()));
        drop(sleeper);
        let Some(recycled) = spawn_with_pid(pid) else {
            continue;
        };
        std::fs::write(new.path().join("cgroup.procs"), pid.to_string()).unwrap();
        assert_eq!(callers.cgroup_of(pid), Some(new.id()));
        drop(recycled);
        return;
    }
    panic!("the kernel never gave a number again");
}

/// Asks the kernel for a process with this very number (`ns_last_pid`), which another process of
/// the machine may snatch.
fn spawn_with_pid(pid: u32) -> Option<Killed> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
    let child = Killed(Command::new("sleep").arg("600").spawn().unwrap());
    (child.0.id() == pid).then_some(child)
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_maps_stay_within_their_bounds_and_keep_what_is_used() {
    let mut map = Bounded::new(8);
    map.insert(0, 'a');
    for key in 1..100 {
        map.insert(key, 'b');
        assert_eq!(map.get(&0), Some(&'a'), "used all the time");
        assert!(map.recent.len() + map.older.len() <= 8);
    }
    assert_eq!(map.get(&1), None);
    map.remove(&0);
    assert_eq!(map.get(&0), None);
}
