//! docs/SEMANTICS.md, "Opening" and "Execution".

use keyhole_tests::{
    Ask, EACCES, EBADF, EEXIST, ENOENT, ENOTDIR, EPERM, EROFS, ESTALE, Machine, Probe,
};

#[test]
fn s17_opening_for_reading() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    let all = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NOATIME;
    for flags in [0, libc::O_NONBLOCK, libc::O_NOFOLLOW, libc::O_NOCTTY, libc::O_NOATIME, all] {
        let fd = task.open(&pw, flags).unwrap_or_else(|errno| panic!("{flags:#o}: {errno:?}"));
        assert_eq!(task.read(fd, 100), Ok(b"hunter2".to_vec()), "{flags:#o}");
    }
    let direct = task.open(&pw, libc::O_DIRECT).unwrap();
    assert_eq!(task.read(direct, 4096), Ok(b"hunter2".to_vec()));
    assert_eq!(task.open(&pw, libc::O_DIRECTORY), Err(ENOTDIR));
    assert!(task.open(machine.node.mount(), libc::O_DIRECTORY).is_ok());
    task.become_user(1000, 1000, &[]);
    assert_eq!(task.open(&pw, libc::O_NOATIME), Err(EPERM));
    assert!(task.open(&pw, libc::O_RDONLY).is_ok());
}

#[test]
fn s18_open_for_writing_is_erofs() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let pw = machine.at("pw");
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_WRONLY | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_APPEND,
        libc::O_APPEND,
        libc::O_RDWR | libc::O_CREAT,
    ] {
        assert_eq!(task.open(&pw, flags), Err(EROFS), "{flags:#o}");
    }
    assert_eq!(task.text(&pw), Ok("hunter2".into()));
}

#[test]
fn s19_open_never_creates() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let (pw, new) = (machine.at("pw"), machine.at("new"));
    let fd = task.open(&pw, libc::O_CREAT).unwrap();
    assert_eq!(task.read(fd, 100), Ok(b"hunter2".to_vec()));
    assert_eq!(task.open(&pw, libc::O_CREAT | libc::O_EXCL), Err(EEXIST));
    for flags in [libc::O_CREAT, libc::O_CREAT | libc::O_EXCL, libc::O_CREAT | libc::O_WRONLY] {
        assert_eq!(task.open(&new, flags), Err(EROFS), "{flags:#o}");
    }
    assert_eq!(task.open(machine.node.mount(), libc::O_TMPFILE | libc::O_RDWR), Err(EROFS));
    assert_eq!(task.names(machine.node.mount()), Ok(vec!["pw".into()]));
}

#[test]
fn s20_o_path_opens_nothing() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let fd = task.open(machine.at("pw"), libc::O_PATH).unwrap();
    assert_eq!(task.read(fd, 10), Err(EBADF));
    assert_eq!(task.pread(fd, 10, 0), Err(EBADF));
    assert_eq!(task.fstat(fd).unwrap().size, 7);
    let open = task.reopen(fd, libc::O_RDONLY).unwrap();
    assert_eq!(task.read(open, 100), Ok(b"hunter2".to_vec()));
    assert_eq!(task.reopen(fd, libc::O_RDWR), Err(EROFS));
}

#[test]
fn s21_owner_group_and_mode_are_enforced() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    let owned = "source=pw,target=owned,uid=1000,gid=2000,mode=0440";
    let owner_only = "source=pw,target=owner_only,uid=1000,gid=2000,mode=0400";
    let not_the_owner = "source=pw,target=not_the_owner,uid=1000,gid=2000,mode=0044";
    machine.service("web", &[owned, owner_only, not_the_owner]);
    let task = machine.task("web");
    let can = |probe: &Probe| {
        let names = ["owned", "owner_only", "not_the_owner"];
        names.map(|name| match probe.text(machine.at(name)) {
            Ok(text) => {
                assert_eq!(text, "hunter2");
                true
            }
            Err(errno) => {
                assert_eq!(errno, EACCES);
                false
            }
        })
    };
    let as_user = |uid, gid, groups: &[u32]| {
        let mate = task.mate();
        mate.become_user(uid, gid, groups);
        can(&mate)
    };
    assert_eq!(can(&task), [true; 3], "root passes by capability");
    assert_eq!(as_user(1000, 1000, &[]), [true, true, false], "the owner");
    assert_eq!(as_user(1001, 2000, &[]), [true, false, true], "its group");
    assert_eq!(as_user(1001, 1001, &[5, 2000]), [true, false, true], "a supplementary group");
    assert_eq!(as_user(1001, 1001, &[5]), [false, false, true], "another user");
    let bare = task.mate();
    bare.call(Ask::DropCapabilities).unwrap();
    assert_eq!(can(&bare), [false, false, true], "root without CAP_DAC_OVERRIDE");
}

#[test]
fn s22_another_tasks_inode_is_eacces() {
    let machine = Machine::start();
    let web = machine.web("hunter2");
    machine.service("api", &["pw"]);
    let (api, outsider) = (machine.task("api"), machine.node.outsider());
    let held = web.open(machine.at("pw"), libc::O_PATH).unwrap();
    for other in [&api, &outsider, &machine.task("web")] {
        let passed = web.pass(held, other);
        assert_eq!(other.reopen(passed, libc::O_RDONLY), Err(EACCES));
        assert_eq!(other.reopen(passed, libc::O_RDWR), Err(EROFS), "the mount is read-only first");
    }
    let mate = web.mate();
    let passed = web.pass(held, &mate);
    let open = mate.reopen(passed, libc::O_RDONLY).unwrap();
    assert_eq!(mate.read(open, 100), Ok(b"hunter2".to_vec()), "the same task's process");
}

#[test]
fn s23_a_past_inode_is_estale() {
    let machine = Machine::start();
    let task = machine.web("one");
    let pw = machine.at("pw");
    let past = task.open(&pw, libc::O_PATH).unwrap();
    let open = task.open(&pw, libc::O_RDONLY).unwrap();
    machine.rotate("pw", "two");
    assert_eq!(task.text(&pw), Ok("two".into()), "by path at once");
    for held in [past, open] {
        machine.until("the second of grace to pass", || match task.reopen(held, libc::O_RDONLY) {
            Ok(again) => {
                assert_eq!(task.read(again, 10), Ok(b"one".to_vec()), "never another version");
                task.close(again);
                false
            }
            Err(errno) => {
                assert_eq!(errno, ESTALE);
                true
            }
        });
    }
    assert_eq!(task.read(open, 10), Ok(b"one".to_vec()));
    for turn in 0..50 {
        machine.rotate("pw", format!("turn {turn}"));
        assert_eq!(task.text(&pw), Ok(format!("turn {turn}")), "by path never");
    }
}

#[test]
fn s54_nothing_can_be_executed() {
    let machine = Machine::start();
    machine.secret("script", "#!/bin/sh\necho ran\n");
    machine.secret("program", std::fs::read("/bin/true").unwrap());
    let grants = ["source=script,mode=0555", "source=program,mode=0777"];
    machine.service("web", &grants);
    let task = machine.task("web");
    for name in ["script", "program"] {
        assert_eq!(task.run(machine.at(name), &[]), Err(EACCES), "{name}");
    }
    let by_shell = task.run("/bin/sh", &[&machine.at("script")]);
    assert_eq!(by_shell, Ok((0, b"ran\n".to_vec())), "reading is reading");
    let refused = machine.cluster.refused([
        "service",
        "create",
        "suid",
        "--secret",
        "source=program,mode=4555",
    ]);
    assert!(refused.contains("4555"), "{refused}");
    assert_eq!(machine.node.outsider().run(machine.at("script"), &[]), Err(ENOENT));
}

#[test]
fn s55_nothing_can_be_mapped_for_execution() {
    let machine = Machine::start();
    machine.secret("program", std::fs::read("/bin/true").unwrap());
    machine.service("web", &["source=program,mode=0777"]);
    let task = machine.task("web");
    let fd = task.open(machine.at("program"), libc::O_RDONLY).unwrap();
    for sharing in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        assert_eq!(task.mmap(fd, 4096, prot, sharing), Err(EPERM));
        assert!(task.mmap(fd, 4096, libc::PROT_READ, sharing).is_ok());
    }
}
