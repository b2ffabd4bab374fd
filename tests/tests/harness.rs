//! The harness itself: what the probe is asked to do in the mount works where it may work, so that a refusal there is
//! the mount's and not the probe's; and what a test makes is gone after it, also when it panics.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use keyhole_tests::{
    Answer, Ask, EACCES, EBADF, ENOENT, Ground, Machine, Probe, TestCgroup, mounts, wait,
};
use rustix::process::{Pid, Signal, kill_process};

fn stand() -> (Arc<Ground>, Probe) {
    let ground = Arc::new(Ground::new());
    let probe = Probe::outsider(&ground);
    (ground, probe)
}

#[test]
fn what_is_refused_in_the_mount_works_elsewhere() {
    let (ground, probe) = stand();
    let at = |name: &str| ground.folder().join(name);
    fs::write(at("file"), "hunter2").unwrap();
    for ask in [
        Ask::Mkdir(at("dir")),
        Ask::Symlink("file".into(), at("link")),
        Ask::Mkfifo(at("fifo")),
        Ask::BindSocket(at("socket")),
        Ask::Link(at("file"), at("hard")),
        Ask::Rename(at("hard"), at("renamed"), 0),
        Ask::Rename(at("renamed"), at("hard"), libc::RENAME_NOREPLACE),
        Ask::Rename(at("hard"), at("file"), libc::RENAME_EXCHANGE),
        Ask::Unlink(at("hard")),
        Ask::Rmdir(at("dir")),
        Ask::Truncate(at("file"), 5),
        Ask::Chmod(at("file"), 0o640),
        Ask::Chown(at("file"), 1000, 1000),
        Ask::Touch(at("file")),
        Ask::SetXattr(at("file"), "user.keyhole.test".into()),
        Ask::RemoveXattr(at("file"), "user.keyhole.test".into()),
        Ask::NameToHandle(at("file")),
    ] {
        assert_eq!(probe.call(ask.clone()), Ok(()), "{ask:?}");
    }
    let fd = probe.open(at("file"), libc::O_RDWR).unwrap();
    assert_eq!(probe.number(Ask::Write(fd.0, b"HU".to_vec())), Ok(2));
    assert_eq!(probe.call(Ask::Ftruncate(fd.0, 4)), Ok(()));
    assert_eq!(probe.text(at("file")), Ok("HUnt".into()));
    assert_eq!(probe.call(Ask::Fallocate(fd.0)), Ok(()));
    assert_eq!(probe.call(Ask::Fchmod(fd.0, 0o600)), Ok(()));
    let second = probe.open(at("second"), libc::O_RDWR | libc::O_CREAT).unwrap();
    probe.number(Ask::Seek(fd.0, 0, libc::SEEK_SET)).unwrap();
    assert_eq!(probe.number(Ask::CopyRange(fd.0, second.0)), Ok(10));
    assert!(probe.open(ground.folder(), libc::O_TMPFILE | libc::O_RDWR).is_ok());
    assert!(probe.number(Ask::GetFlags(fd.0)).is_ok());
    let (stat, statx) = (probe.stat(at("file")).unwrap(), probe.statx(at("file")).unwrap());
    assert_eq!((stat.uid, stat.mode), (1000, libc::S_IFREG | 0o600));
    assert_ne!(statx.0 & libc::STATX_BTIME, 0, "an ordinary file has a birth time");
    assert_eq!(probe.bytes(Ask::Readlink(at("link"))), Ok(b"file".to_vec()));
    probe.close(fd);
    assert_eq!(probe.read(fd, 1), Err(EBADF));
    assert_eq!(probe.stat(at("nothing")), Err(ENOENT));
}

#[test]
fn the_probe_maps_forks_and_becomes_another_user() {
    let (ground, probe) = stand();
    let file = ground.folder().join("file");
    fs::write(&file, vec![7; 5000]).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let fd = probe.open(&file, libc::O_RDWR).unwrap();
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let map = probe.mmap(fd, 4 * 4096, prot, libc::MAP_SHARED).unwrap();
    probe.call(Ask::Poke(map, 1, 9)).unwrap();
    assert_eq!(probe.peek(map, 0, 3), Answer::Bytes(vec![7, 9, 7]));
    assert_eq!(probe.peek(map, 8192, 1), Answer::Signal(libc::SIGBUS));
    let forked = Ask::Forked(Box::new(Ask::Pread(fd.0, 2, 0)));
    assert_eq!(probe.bytes(forked), Ok(vec![7, 9]));
    assert_eq!(probe.run("/bin/echo", &["hi"]), Ok((0, b"hi\n".to_vec())));
    let other = Probe::outsider(&ground);
    let passed = probe.pass(fd, &other);
    assert_eq!(other.pread(passed, 2, 0), Ok(vec![7, 9]));
    let watcher = probe.watch(ground.folder(), libc::IN_OPEN).unwrap();
    other.slurp(&file).unwrap();
    assert!(probe.events(watcher, 5000).contains(&(libc::IN_OPEN, "file".to_owned())));
    assert_eq!(probe.events(watcher, 0), []);
    other.become_user(1000, 1000, &[1001]);
    assert_eq!(other.slurp(&file), Err(EACCES));
    probe.call(Ask::DropCapabilities).unwrap();
    assert!(probe.slurp(&file).is_ok(), "root owns it");
    assert_eq!(probe.end(), 0);
}

/// As by a test that was killed and had this process's id.
#[test]
fn a_cgroup_that_was_left_behind_is_passed_over() {
    let first = TestCgroup::fresh();
    let name = first.path().file_name().unwrap().to_str().unwrap();
    let (start, number) = name.rsplit_once('-').unwrap();
    let next = format!("{start}-{}", number.parse::<u32>().unwrap() + 1);
    let left = first.path().with_file_name(next);
    fs::create_dir(&left).unwrap();
    let left = TestCgroup::adopt(&left);
    assert_ne!(TestCgroup::fresh().path(), left.path());
}

#[test]
fn a_test_leaves_nothing_behind_when_it_panics() {
    let left = std::sync::Mutex::new(None);
    let panic = std::panic::catch_unwind(|| {
        let ground = Arc::new(Ground::new());
        let cgroup = ground.cgroup().child("busy");
        fs::create_dir(cgroup.join("below")).unwrap();
        let probe = Probe::in_cgroup(&ground, &cgroup.join("below"));
        let target = ground.folder().join("mounted");
        fs::create_dir(&target).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &target, "tmpfs", none, None).unwrap();
        let facts = (ground.folder().to_owned(), ground.cgroup().path().to_owned(), probe.pid());
        *left.lock().unwrap() = Some(facts);
        panic!("as a failing test does");
    });
    assert!(panic.is_err());
    let (folder, cgroup, pid) = left.lock().unwrap().take().expect("it got that far");
    assert!(!folder.exists() && !cgroup.exists());
    assert!(mounts().iter().all(|mount| !mount.at.starts_with(&folder)));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_node_that_hangs_is_torn_down() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let worker = machine.node.worker().expect("it has a worker");
    let Machine { mut node, cluster } = machine;
    let (mount, cgroup) = (node.mount(), node.ground().cgroup().path().to_owned());
    let pids = [node.supervisor().pid(), worker, task.pid()];
    node.supervisor().signal(Signal::STOP);
    kill_process(Pid::from_raw(worker).unwrap(), Signal::STOP).unwrap();
    // It waits in the kernel for an answer that nobody will give, and cannot even be killed.
    task.begin(&Ask::Slurp(mount.join("pw")));
    drop(node);
    drop(task);
    drop(cluster);
    assert!(mounts().iter().all(|found| found.at != mount));
    assert!(!cgroup.exists());
    for pid in pids {
        wait::until("its processes to be gone", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie has ended; who reaps it is another matter.
            if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
        });
    }
}

#[test]
fn a_cgroup_with_a_stubborn_process_is_removed() {
    let ground = Arc::new(Ground::new());
    let cgroup = TestCgroup::fresh();
    let inner = cgroup.child("inner");
    let probe = Probe::in_cgroup(&ground, &inner);
    let path = cgroup.path().to_owned();
    drop(cgroup);
    assert!(!path.exists());
    drop(probe);
}
