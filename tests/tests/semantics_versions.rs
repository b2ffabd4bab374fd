//! docs/SEMANTICS.md, "Descriptors that travel", "Versions", "Revocation and end", "Watching", "The node's own life".

use keyhole_tests::{
    Answer, Ask, EACCES, EKEYREVOKED, ENOENT, ESTALE, Fd, FileStat, Machine, Probe,
};
use libc::{IN_ALL_EVENTS, IN_OPEN, MAP_PRIVATE, MAP_SHARED, O_RDONLY, PROT_READ, PROT_WRITE};

/// Bytes of three pages that say which version they are.
fn pages(mark: u8) -> Vec<u8> {
    vec![mark; 3 * 4096]
}

fn revoked(machine: &Machine, probe: &Probe, fd: Fd) {
    machine.until("reading to fail", || probe.pread(fd, 10, 0) == Err(EKEYREVOKED));
    assert_eq!(probe.read(fd, 10), Err(EKEYREVOKED));
    assert_eq!(probe.bytes(Ask::Sendfile(fd.0, 10)), Err(EKEYREVOKED));
}

#[test]
fn s56_a_descriptor_carries_the_right() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    machine.secret("other", "other");
    machine.service("api", &["other"]);
    for other in [machine.node.outsider(), machine.task("api")] {
        other.become_user(1000, 1000, &[]);
        let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
        let passed = task.pass(fd, &other);
        task.close(fd);
        assert_eq!(other.pread(passed, 100, 0), Ok(b"hunter2".to_vec()));
        let map = other.mmap(passed, 4096, PROT_READ, MAP_SHARED).unwrap();
        assert_eq!(other.peek(map, 0, 7), Answer::Bytes(b"hunter2".to_vec()));
        machine.rotate("pw", "rotated");
        assert_eq!(other.pread(passed, 100, 0), Ok(b"hunter2".to_vec()), "its version");
        machine.rotate("pw", "hunter2");
    }
}

#[test]
fn s57_proc_pid_fd_is_a_new_open() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    machine.service("api", &["pw"]);
    let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
    let way = format!("/proc/{}/fd/{}", task.pid(), fd.0);
    for other in [machine.node.outsider(), machine.task("api"), machine.task("web")] {
        assert_eq!(other.open(&way, O_RDONLY), Err(EACCES));
        assert_eq!(other.slurp(&way), Err(EACCES));
        let path = other.open(&way, libc::O_PATH).unwrap();
        assert_eq!(other.reopen(path, O_RDONLY), Err(EACCES));
        assert_eq!(other.stat(&way), task.fstat(fd));
    }
    let mate = task.mate();
    assert_eq!(mate.text(&way), Ok("hunter2".into()));
}

#[test]
fn s58_own_descriptors_can_be_opened_again() {
    let machine = Machine::start();
    let task = machine.web("one");
    let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
    let again = task.reopen(fd, O_RDONLY).unwrap();
    assert_eq!(task.read(fd, 2), Ok(b"on".to_vec()));
    assert_eq!(task.read(again, 3), Ok(b"one".to_vec()), "with an offset of its own");
    let second = task.number(Ask::Dup(fd.0)).unwrap();
    assert_eq!(task.read(Fd(second as i32), 3), Ok(b"e".to_vec()), "dup shares the offset");
    machine.rotate("pw", "two");
    machine.until("the past version not to be opened any more", || {
        task.reopen(fd, O_RDONLY).is_err_and(|errno| errno == ESTALE)
    });
}

#[test]
fn s59_rotation_keeps_what_is_open() {
    let machine = Machine::start();
    let task = machine.web("one");
    let pw = machine.at("pw");
    let mut held: Vec<(String, Fd, FileStat)> = Vec::new();
    for version in ["one", "two, longer", "3"] {
        if version != "one" {
            machine.rotate("pw", version);
        }
        assert_eq!(task.text(&pw), Ok(version.into()));
        let fd = task.open(&pw, O_RDONLY).unwrap();
        let stat = task.fstat(fd).unwrap();
        assert_eq!((stat.size, stat.nlink), (version.len() as i64, 1));
        assert!(held.iter().all(|(_, _, old)| old.ino != stat.ino), "another inode");
        held.push((version.to_owned(), fd, stat));
        for (was, fd, stat) in &held {
            assert_eq!(task.pread(*fd, 100, 0), Ok(was.clone().into_bytes()));
            let now = task.fstat(*fd).unwrap();
            assert_eq!((now.ino, now.size), (stat.ino, stat.size));
        }
    }
    let (_, last, _) = held.pop().unwrap();
    assert_eq!(task.fstat(last).unwrap().nlink, 1);
    for (was, fd, _) in held {
        machine.until("the old inode to have no link", || task.fstat(fd).unwrap().nlink == 0);
        assert_eq!(task.pread(fd, 100, 0), Ok(was.into_bytes()));
    }
}

#[test]
fn s60_a_map_keeps_its_version() {
    let machine = Machine::start();
    let task = machine.web(pages(b'1'));
    let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
    let shared = task.mmap(fd, 3 * 4096, PROT_READ, MAP_SHARED).unwrap();
    let private = task.mmap(fd, 3 * 4096, PROT_READ, MAP_PRIVATE).unwrap();
    task.close(fd);
    assert_eq!(
        task.peek(shared, 0, 1),
        Answer::Bytes(vec![b'1']),
        "only the first page is touched"
    );
    machine.rotate("pw", pages(b'2'));
    for map in [shared, private] {
        assert_eq!(task.peek(map, 0, 3 * 4096), Answer::Bytes(pages(b'1')));
    }
    assert_eq!(task.slurp(machine.at("pw")), Ok(pages(b'2')));
}

#[test]
fn s61_rollback_gives_the_old_inode() {
    let machine = Machine::start();
    let task = machine.web("one");
    let pw = machine.at("pw");
    let first = task.stat(&pw).unwrap();
    let held = task.open(&pw, O_RDONLY).unwrap();
    machine.rotate("pw", "two");
    let second = task.open(&pw, O_RDONLY).unwrap();
    machine.cluster.ok(["secret", "rollback", "pw", "--to", "1"]);
    machine.until("the old version", || task.text(&pw) == Ok("one".into()));
    assert_eq!(task.stat(&pw).unwrap().ino, first.ino);
    assert_eq!(task.fstat(held).unwrap().nlink, 1);
    assert!(task.reopen(held, O_RDONLY).is_ok(), "it is current again");
    assert_eq!(task.pread(second, 10, 0), Ok(b"two".to_vec()));
    assert_eq!(task.xattr(&pw, "user.keyhole.version"), Ok("1".into()));
    machine.rotate("pw", "three");
    assert_eq!(task.xattr(&pw, "user.keyhole.version"), Ok("3".into()), "a number is never reused");
}

#[test]
fn s62_a_pinned_grant_stays() {
    let machine = Machine::start();
    machine.secret("pw", "one");
    machine.service("web", &["pw", "source=pw,target=pinned,version=1"]);
    let task = machine.task("web");
    let before = task.stat(machine.at("pinned")).unwrap();
    for value in ["two", "three"] {
        machine.rotate("pw", value);
        assert_eq!(task.text(machine.at("pw")), Ok(value.into()));
        assert_eq!(task.text(machine.at("pinned")), Ok("one".into()));
        assert_eq!(task.stat(machine.at("pinned")), Ok(before));
    }
}

#[test]
fn s63_a_changed_grant_is_a_new_one() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    let old = task.stat(&pw).unwrap();
    let held = task.open(&pw, O_RDONLY).unwrap();
    let add = "source=pw,uid=1000,gid=1000,mode=0400";
    machine.update("web", &["--secret-rm", "pw", "--secret-add", add]);
    machine.until("the new owner", || task.stat(&pw).is_ok_and(|stat| stat.uid == 1000));
    let new = task.stat(&pw).unwrap();
    assert_eq!(new.mode & 0o7777, 0o400);
    assert_ne!(new.ino, old.ino);
    assert_eq!(task.text(&pw), Ok("hunter2".into()));
    revoked(&machine, &task, held);
}

#[test]
fn s64_two_grants_of_one_secret_are_two_files() {
    let machine = Machine::start();
    machine.secret("pw", "one");
    let grants = ["source=pw,target=a,uid=1,mode=0400", "source=pw,target=b,uid=2,gid=3,mode=0440"];
    machine.service("web", &grants);
    let task = machine.task("web");
    let facts = |name: &str| {
        let stat = task.stat(machine.at(name)).unwrap();
        (stat.uid, stat.gid, stat.mode & 0o7777)
    };
    for value in ["two", "three"] {
        machine.rotate("pw", value);
        assert_eq!((facts("a"), facts("b")), ((1, 0, 0o400), (2, 3, 0o440)));
        for name in ["a", "b"] {
            assert_eq!(task.text(machine.at(name)), Ok(value.into()));
        }
    }
}

#[test]
fn s65_a_removed_grant_is_gone_also_where_it_is_open() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.secret("other", "other");
    machine.service("web", &["pw", "other"]);
    let task = machine.task("web");
    let pw = machine.at("pw");
    let held = task.open(&pw, O_RDONLY).unwrap();
    let other = task.open(machine.at("other"), O_RDONLY).unwrap();
    let path = task.open(&pw, libc::O_PATH).unwrap();
    assert_eq!(task.pread(held, 10, 0), Ok(b"hunter2".to_vec()), "its page is cached");
    machine.update("web", &["--secret-rm", "pw"]);
    machine.until("the name to go", || task.open(&pw, O_RDONLY) == Err(ENOENT));
    revoked(&machine, &task, held);
    assert_eq!(task.fstat(held).unwrap().size, 7);
    assert_eq!(task.reopen(path, O_RDONLY), Err(ESTALE));
    assert_eq!(task.names(machine.node.mount()), Ok(vec!["other".into()]));
    assert_eq!(task.pread(other, 10, 0), Ok(b"other".to_vec()), "the rest stays");
}

#[test]
fn s66_revoked_maps_raise_sigbus() {
    let machine = Machine::start();
    let task = machine.web(pages(b'1'));
    let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
    let shared = task.mmap(fd, 3 * 4096, PROT_READ, MAP_SHARED).unwrap();
    let own = task.mmap(fd, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE).unwrap();
    for map in [shared, own] {
        assert_eq!(task.peek(map, 0, 3 * 4096), Answer::Bytes(pages(b'1')));
    }
    task.call(Ask::Poke(own, 10, b'x')).unwrap();
    machine.update("web", &["--secret-rm", "pw"]);
    revoked(&machine, &task, fd);
    for page in 0..3 {
        let at = page * 4096;
        assert_eq!(task.peek(shared, at, 1), Answer::Signal(libc::SIGBUS), "page {page}");
    }
    assert_eq!(task.peek(own, 9, 3), Answer::Bytes(b"1x1".to_vec()), "written: its own");
    assert_eq!(task.peek(own, 4096, 1), Answer::Signal(libc::SIGBUS), "not written");
}

#[test]
fn s67_a_removed_task_is_an_outsider() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    let held = task.open(&pw, O_RDONLY).unwrap();
    let id = machine.node.ok(["task", "ls", "-q"]);
    machine.node.ok(["task", "rm", id.trim()]);
    assert_eq!(task.open(&pw, O_RDONLY), Err(ENOENT), "from the moment that the command returned");
    assert_eq!(task.names(machine.node.mount()), Ok(vec![]));
    revoked(&machine, &task, held);
}

#[test]
fn s68_a_task_that_ended_takes_its_descriptors_along() {
    let machine = Machine::start();
    let outsider = machine.node.outsider();
    machine.web("hunter2").end();
    for gone_by_removal in [false, true] {
        let task = machine.task("web");
        let fd = task.open(machine.at("pw"), O_RDONLY).unwrap();
        let passed = task.pass(fd, &outsider);
        assert_eq!(outsider.pread(passed, 10, 0), Ok(b"hunter2".to_vec()));
        let cgroup = task.cgroup();
        assert_eq!(task.end(), 0);
        if gone_by_removal {
            // The node may have removed it already.
            let _ = std::fs::remove_dir(&cgroup);
        }
        revoked(&machine, &outsider, passed);
        machine.until("the cgroup to be removed", || !cgroup.exists());
    }
    machine.until("no task to be left", || machine.node.ok(["task", "ls", "-q"]).is_empty());
}

#[test]
fn s69_watchers_of_the_mount_see_names_of_opens() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let outsider = machine.node.outsider();
    outsider.become_user(1000, 1000, &[]);
    let watcher = outsider.watch(machine.node.mount(), IN_ALL_EVENTS).unwrap();
    task.slurp(machine.at("pw")).unwrap();
    let seen = outsider.events(watcher, 5000);
    assert!(seen.contains(&(IN_OPEN, "pw".into())), "this is what the clause warns of: {seen:?}");
    assert_eq!(outsider.slurp(machine.at("pw")), Err(ENOENT));
}

#[test]
fn s70_rotation_is_silent() {
    let machine = Machine::start();
    let task = machine.web("one");
    let held = task.open(machine.at("pw"), O_RDONLY).unwrap();
    let folder = task.watch(machine.node.mount(), IN_ALL_EVENTS).unwrap();
    let file = task.watch(machine.at("pw"), IN_ALL_EVENTS).unwrap();
    machine.rotate("pw", "two");
    // An event that is sure to come, after those that could have.
    assert_eq!(task.text(machine.at("pw")), Ok("two".into()));
    task.pread(held, 10, 0).unwrap();
    let changes =
        libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVE | libc::IN_CLOSE_WRITE | libc::IN_DELETE;
    for watcher in [folder, file] {
        let seen = task.events(watcher, 5000);
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|(mask, _)| mask & changes == 0), "{seen:?}");
    }
}

#[test]
fn s71_the_workers_death_is_not_seen() {
    let machine = Machine::start();
    let task = machine.web(pages(b'1'));
    let pw = machine.at("pw");
    let stat = task.stat(&pw).unwrap();
    let held = task.open(&pw, O_RDONLY).unwrap();
    for _ in 0..3 {
        let worker = machine.node.worker().expect("it has a worker");
        let pid = rustix::process::Pid::from_raw(worker).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_eq!(task.slurp(&pw), Ok(pages(b'1')), "it waits for the next worker");
        assert_eq!(task.stat(&pw), Ok(stat));
        assert_eq!(task.pread(held, 10, 4096), Ok(vec![b'1'; 10]));
        assert_eq!(machine.node.outsider().slurp(&pw), Err(ENOENT));
        machine.until("another worker", || {
            machine.node.worker().is_some_and(|successor| successor != worker)
        });
    }
}

#[test]
fn s72_a_removed_node_shows_nothing() {
    let mut machine = Machine::start();
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    let held = task.open(&pw, O_RDONLY).unwrap();
    machine.cluster.restart(rustix::process::Signal::KILL);
    assert_eq!(task.text(&pw), Ok("hunter2".into()), "out of reach is not removed");
    let node = machine.cluster.ok(["node", "ls", "-q"]);
    machine.cluster.ok(["node", "rm", "--force", node.trim()]);
    machine.until("the name to go", || task.open(&pw, O_RDONLY) == Err(ENOENT));
    assert_eq!(task.names(machine.node.mount()), Ok(vec![]));
    revoked(&machine, &task, held);
}
