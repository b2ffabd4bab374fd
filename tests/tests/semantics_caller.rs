//! docs/SEMANTICS.md, "The caller": who a process is.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use keyhole_tests::{Ask, EACCES, ENOENT, Machine, NodeOptions, Probe, probe_binary};

/// The clauses hold whichever way the node asks the kernel who is calling.
fn in_both_ways(check: impl Fn(Machine)) {
    for identity in ["auto", "proc"] {
        let args = vec!["--identity".to_owned(), identity.to_owned()];
        eprintln!("--identity {identity}");
        check(Machine::start_with(NodeOptions { args, ..NodeOptions::default() }));
    }
}

#[test]
fn s01_the_cgroup_makes_the_task() {
    in_both_ways(s01);
}

fn s01(machine: Machine) {
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    assert_eq!(task.text(&pw), Ok("hunter2".into()));
    let inner = task.cgroup().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::create_dir(inner.join("innermost")).unwrap();
    for cgroup in [inner.join("innermost"), inner] {
        let below = Probe::in_cgroup(machine.node.ground(), &cgroup);
        assert_eq!(below.text(&pw), Ok("hunter2".into()), "{}", cgroup.display());
    }
    // A cgroup that ends in the task's own name is still another one.
    let name = task.cgroup().file_name().unwrap().to_string_lossy().into_owned();
    let forged = machine.node.ground().cgroup().child(&name);
    let forger = Probe::in_cgroup(machine.node.ground(), &forged);
    assert_eq!(forger.text(&pw), Err(ENOENT));
}

#[test]
fn s02_everyone_else_sees_an_empty_directory() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    assert_eq!(task.names(machine.node.mount()), Ok(vec!["pw".into()]));
    let outsider = machine.node.outsider();
    let elsewhere = machine.node.ground().cgroup().child("elsewhere");
    let other = Probe::in_cgroup(machine.node.ground(), &elsewhere);
    for probe in [&outsider, &other] {
        let entries = probe.entries(machine.node.mount()).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, [".", ".."], "host root is nobody");
        assert_eq!(probe.stat(machine.at("pw")), Err(ENOENT));
        assert_eq!(probe.slurp(machine.at("pw")), Err(ENOENT));
        assert_eq!(probe.access(machine.at("pw"), libc::F_OK), Err(ENOENT));
    }
    other.become_user(1000, 1000, &[]);
    assert_eq!(other.slurp(machine.at("pw")), Err(ENOENT));
    assert_eq!(other.names(machine.node.mount()), Ok(vec![]));
}

#[test]
fn s03_a_process_is_judged_where_it_is() {
    in_both_ways(s03);
}

fn s03(machine: Machine) {
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    let mover = machine.node.outsider();
    assert_eq!(mover.slurp(&pw), Err(ENOENT));
    mover.join(&task.cgroup());
    assert_eq!(mover.text(&pw), Ok("hunter2".into()));
    let open = mover.open(&pw, libc::O_RDONLY).unwrap();
    let out = machine.node.ground().cgroup().child("out");
    mover.join(&out);
    assert_eq!(mover.slurp(&pw), Err(ENOENT));
    assert_eq!(mover.names(machine.node.mount()), Ok(vec![]));
    assert_eq!(mover.read(open, 100), Ok(b"hunter2".to_vec()), "what was opened stays open");
}

#[test]
fn s04_the_nearest_task_decides() {
    in_both_ways(s04);
}

fn s04(machine: Machine) {
    let outer = machine.web("outer");
    machine.secret("inner", "inner");
    machine.service("inner", &["source=inner,target=pw", "inner"]);
    let cgroup = outer.cgroup().join("c");
    fs::create_dir(&cgroup).unwrap();
    let cgroup_arg = cgroup.display().to_string();
    machine.node.ok(["task", "add", "--service", "inner", "--cgroup", &cgroup_arg]);
    let inner = Probe::in_cgroup(machine.node.ground(), &cgroup);
    assert_eq!(inner.text(machine.at("pw")), Ok("inner".into()));
    assert_eq!(inner.names(machine.node.mount()), Ok(vec!["inner".into(), "pw".into()]));
    assert_eq!(outer.text(machine.at("pw")), Ok("outer".into()));
    assert_eq!(outer.names(machine.node.mount()), Ok(vec!["pw".into()]));
}

#[test]
fn s05_children_and_threads_are_the_tasks() {
    in_both_ways(s05);
}

fn s05(machine: Machine) {
    let task = machine.web("hunter2");
    let pw = || Ask::Slurp(machine.node.path("pw"));
    assert_eq!(task.bytes(Ask::Forked(Box::new(pw()))), Ok(b"hunter2".to_vec()));
    let grandchild = Ask::Forked(Box::new(Ask::Forked(Box::new(pw()))));
    assert_eq!(task.bytes(grandchild), Ok(b"hunter2".to_vec()));
    assert_eq!(task.bytes(Ask::Threaded(Box::new(pw()))), Ok(b"hunter2".to_vec()));
    let cat = task.run("/bin/cat", &[&machine.at("pw")]);
    assert_eq!(cat, Ok((0, b"hunter2".to_vec())), "after exec");
}

#[test]
fn s06_ids_do_not_make_a_task() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["pw", "source=pw,target=locked,mode=0400"]);
    let task = machine.task("web");
    let setuid = task.scratch().join("setuid-probe");
    fs::copy(probe_binary(), &setuid).unwrap();
    fs::set_permissions(&setuid, PermissionsExt::from_mode(0o4755)).unwrap();
    let outsider = machine.node.outsider();
    for probe in [&task, &outsider] {
        probe.become_user(1000, 1000, &[]);
    }
    let locked = machine.at("locked");
    assert_eq!(task.text(machine.at("pw")), Ok("hunter2".into()));
    assert_eq!(task.slurp(&locked), Err(EACCES));
    assert_eq!(task.run(&setuid, &["slurp", &locked]), Ok((0, b"hunter2".to_vec())));
    assert_eq!(outsider.run(&setuid, &["slurp", &locked]), Ok((libc::ENOENT, vec![])));
}

#[test]
fn s07_another_pid_namespace_changes_nothing() {
    in_both_ways(s07);
}

fn s07(machine: Machine) {
    let task = machine.web("hunter2");
    let outsider = machine.node.outsider();
    for probe in [&task, &outsider] {
        probe.call(Ask::Unshare(libc::CLONE_NEWPID as u32)).unwrap();
    }
    let slurp = || Ask::Forked(Box::new(Ask::Slurp(machine.node.path("pw"))));
    assert_eq!(task.bytes(slurp()), Ok(b"hunter2".to_vec()));
    assert_eq!(outsider.bytes(slurp()), Err(ENOENT));
}

#[test]
fn s08_another_mount_namespace_and_a_bind_change_nothing() {
    in_both_ways(s08);
}

fn s08(machine: Machine) {
    let task = machine.web("hunter2");
    let outsider = machine.node.outsider();
    let bind = task.scratch().join("bind");
    fs::create_dir(&bind).unwrap();
    for probe in [&task, &outsider] {
        probe.call(Ask::Unshare(libc::CLONE_NEWNS as u32)).unwrap();
        probe.call(Ask::MountsPrivate).unwrap();
        probe.call(Ask::Bind { from: machine.node.mount(), to: bind.clone() }).unwrap();
    }
    for path in [bind.clone(), machine.node.mount()] {
        assert_eq!(task.text(path.join("pw")), Ok("hunter2".into()));
        assert_eq!(task.names(&path), Ok(vec!["pw".into()]));
        assert_eq!(outsider.slurp(path.join("pw")), Err(ENOENT));
        assert_eq!(outsider.names(&path), Ok(vec![]));
    }
    // The bind itself is not what lets one in: who is in the task and finds it sees the task's.
    outsider.join(&task.cgroup());
    assert_eq!(outsider.text(bind.join("pw")), Ok("hunter2".into()));
}

#[test]
fn s09_another_user_namespace_changes_only_how_owners_show() {
    in_both_ways(s09);
}

fn s09(machine: Machine) {
    machine.secret("pw", "hunter2");
    let shifted = "source=pw,target=shifted,uid=100000,gid=100000,mode=0400";
    let grants = ["pw", "source=pw,target=locked,mode=0400", shifted];
    machine.service("web", &grants);
    let task = machine.task("web");
    let outsider = machine.node.outsider();
    for probe in [&task, &outsider] {
        probe.call(Ask::Unshare(libc::CLONE_NEWUSER as u32)).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", probe.pid()), "0 100000 65536").unwrap();
        }
        probe.become_user(0, 0, &[]);
    }
    let stat = |name: &str| task.stat(machine.at(name)).unwrap();
    assert_eq!((stat("shifted").uid, stat("shifted").gid), (0, 0));
    assert_eq!((stat("locked").uid, stat("locked").gid), (65534, 65534));
    assert_eq!(task.text(machine.at("shifted")), Ok("hunter2".into()));
    assert_eq!(task.text(machine.at("pw")), Ok("hunter2".into()), "0444: everyone's bits");
    assert_eq!(task.slurp(machine.at("locked")), Err(EACCES), "root of the namespace is not ours");
    assert_eq!(outsider.slurp(machine.at("pw")), Err(ENOENT));
    assert_eq!(outsider.names(machine.node.mount()), Ok(vec![]));
}

#[test]
fn s10_ways_around_the_name_judge_who_looks() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    task.call(Ask::Chdir(machine.node.mount())).unwrap();
    let outsider = machine.node.outsider();
    let of = |pid: i32, link: &str| format!("/proc/{pid}/{link}");
    let root = format!("{}{}", of(task.pid(), "root"), machine.node.mount().display());
    for folder in [root, of(task.pid(), "cwd")] {
        assert_eq!(outsider.names(&folder), Ok(vec![]), "{folder}");
        assert_eq!(outsider.slurp(format!("{folder}/pw")), Err(ENOENT), "{folder}");
        assert_eq!(task.text(format!("{folder}/pw")), Ok("hunter2".into()), "{folder}");
    }
    let through = format!("{}{}", of(outsider.pid(), "root"), machine.at("pw"));
    assert_eq!(task.text(through), Ok("hunter2".into()), "the outsider's way, the task's right");
}
