//! docs/SEMANTICS.md, "Attributes".

use keyhole_tests::{
    Ask, EACCES, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, ERANGE, EROFS, FileStat, Machine,
};

const FUSE_MAGIC: i64 = 0x6573_5546;

fn now_nanos() -> i128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_nanos() as i128
}

#[test]
fn s31_a_files_attributes() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.secret("big", vec![7; 5000]);
    let grants = ["pw", "source=big,uid=1000,gid=2000,mode=0640"];
    machine.service("web", &grants);
    let task = machine.task("web");
    let pw = task.stat(machine.at("pw")).unwrap();
    let facts = |stat: &FileStat| (stat.mode, stat.uid, stat.gid, stat.size, stat.blocks);
    assert_eq!(facts(&pw), (libc::S_IFREG | 0o444, 0, 0, 7, 1));
    let big = task.stat(machine.at("big")).unwrap();
    assert_eq!(facts(&big), (libc::S_IFREG | 0o640, 1000, 2000, 5000, 10));
    for stat in [pw, big] {
        assert_eq!((stat.nlink, stat.block_size), (1, 4096));
    }
    let fd = task.open(machine.at("big"), libc::O_RDONLY).unwrap();
    assert_eq!(task.fstat(fd), Ok(big));
}

#[test]
fn s32_a_directorys_attributes() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["source=pw,target=a/b/key", "source=pw,target=a/c/key"]);
    let task = machine.task("web");
    let stat = |name: &str| task.stat(machine.at(name)).unwrap();
    for (name, links) in [("a", 4), ("a/b", 2)] {
        let dir = stat(name);
        assert_eq!((dir.mode, dir.uid, dir.gid), (libc::S_IFDIR | 0o555, 0, 0), "{name}");
        assert_eq!((dir.size, dir.nlink), (0, links), "{name}");
    }
    let before = stat("a");
    machine.rotate("pw", "newer");
    let newest = stat("a/b/key").times[1].max(stat("a/c/key").times[1]);
    let after = stat("a");
    assert_eq!(after.times, [newest; 3]);
    assert!(after.times[1] > before.times[1]);
    assert_eq!(after.ino, before.ino, "the directory is the same");
}

#[test]
fn s33_the_root_is_the_same_for_everyone() {
    let machine = Machine::start();
    let outsider = machine.node.outsider();
    let before = outsider.stat(machine.node.mount()).unwrap();
    machine.secret("pw", "hunter2");
    machine.service("web", &["pw", "source=pw,target=a/key"]);
    let task = machine.task("web");
    let root = task.stat(machine.node.mount()).unwrap();
    assert_eq!((root.mode, root.uid, root.gid), (libc::S_IFDIR | 0o555, 0, 0));
    assert_eq!((root.size, root.nlink, root.blocks), (0, 2, 0));
    assert_eq!(root, before, "it says nothing about any task");
    machine.rotate("pw", "longer than before");
    assert_eq!(outsider.stat(machine.node.mount()), Ok(before));
    assert!(root.times[1] <= now_nanos() && root.times[1] > now_nanos() - 3_600_000_000_000);
}

#[test]
fn s34_inode_numbers() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["pw", "source=pw,target=twin", "source=pw,target=a/key"]);
    let (first, second) = (machine.task("web"), machine.task("web"));
    let mut seen = std::collections::BTreeSet::new();
    let root = first.stat(machine.node.mount()).unwrap();
    for task in [&first, &second] {
        for name in ["pw", "twin", "a", "a/key"] {
            let stat = task.stat(machine.at(name)).unwrap();
            assert!(seen.insert(stat.ino), "{name} shares its number");
            assert_eq!(stat.dev, root.dev);
            for _ in 0..3 {
                assert_eq!(task.stat(machine.at(name)).unwrap(), stat, "{name}: the same again");
            }
        }
    }
    assert!(!seen.contains(&root.ino));
}

#[test]
fn s35_times_say_when_a_version_came() {
    let machine = Machine::start();
    let start = now_nanos();
    let task = machine.web("one");
    let pw = machine.at("pw");
    let stat = task.stat(&pw).unwrap();
    assert_eq!(stat.times, [stat.times[0]; 3]);
    assert!(stat.times[0] >= start && stat.times[0] <= now_nanos());
    for _ in 0..3 {
        task.slurp(&pw).unwrap();
    }
    assert_eq!(task.stat(&pw), Ok(stat), "reading changes nothing");
    machine.rotate("pw", "two");
    assert!(task.stat(&pw).unwrap().times[0] > stat.times[0]);
}

#[test]
fn s36_statx() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let birth = libc::STATX_BTIME;
    let (mask, attributes) = task.statx(machine.at("pw")).unwrap();
    assert_eq!(mask & libc::STATX_BASIC_STATS, libc::STATX_BASIC_STATS);
    assert_eq!(mask & birth, 0, "no birth time");
    let mount_root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    assert_eq!(attributes & mount_root, 0);
    let (_, attributes) = task.statx(machine.node.mount()).unwrap();
    assert_eq!(attributes & mount_root, mount_root);
    assert_eq!(machine.node.outsider().statx(machine.at("pw")), Err(ENOENT));
}

#[test]
fn s37_access_judges_as_open_does() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    let grants = ["pw", "source=pw,target=locked,mode=0400", "source=pw,target=wide,mode=0777"];
    machine.service("web", &grants);
    let (root, user) = (machine.task("web"), machine.task("web"));
    user.become_user(1000, 1000, &[]);
    let (read, write, execute) = (libc::R_OK, libc::W_OK, libc::X_OK);
    for (name, mode, as_root, as_user) in [
        ("pw", libc::F_OK, Ok(()), Ok(())),
        ("pw", read, Ok(()), Ok(())),
        ("pw", write, Err(EROFS), Err(EACCES)),
        ("pw", execute, Err(EACCES), Err(EACCES)),
        ("locked", read, Ok(()), Err(EACCES)),
        ("wide", read, Ok(()), Ok(())),
        ("wide", write, Err(EROFS), Err(EROFS)),
        ("wide", execute, Err(EACCES), Err(EACCES)),
        ("", read | execute, Ok(()), Ok(())),
        ("", write, Err(EROFS), Err(EACCES)),
    ] {
        assert_eq!(root.access(machine.at(name), mode), as_root, "root, {name}, {mode}");
        assert_eq!(user.access(machine.at(name), mode), as_user, "uid 1000, {name}, {mode}");
    }
}

#[test]
fn s38_two_extended_attributes() {
    let machine = Machine::start();
    machine.secret("db.password", "one");
    machine.service("web", &["source=db.password,target=tls/pw"]);
    let task = machine.task("web");
    let pw = machine.at("tls/pw");
    let (secret, version) = ("user.keyhole.secret", "user.keyhole.version");
    assert_eq!(task.xattrs(&pw), Ok(vec![secret.into(), version.into()]));
    assert_eq!(task.xattr(&pw, secret), Ok("db.password".into()));
    assert_eq!(task.xattr(&pw, version), Ok("1".into()));
    let get = |size| task.ask(&Ask::GetXattr(pw.clone().into(), secret.into(), size));
    assert_eq!(get(0), Ok(keyhole_tests::Answer::Number(11)));
    assert_eq!(get(10), Err(ERANGE));
    assert!(get(11).is_ok());
    for other in ["user.keyhole", "user.x", "security.capability", "trusted.x"] {
        assert_eq!(task.xattr(&pw, other), Err(ENODATA), "{other}");
    }
    for folder in [machine.at("tls"), machine.at("")] {
        assert_eq!(task.xattrs(&folder), Ok(vec![]), "{folder}");
        assert_eq!(task.xattr(&folder, secret), Err(ENODATA), "{folder}");
    }
    machine.rotate("db.password", "two");
    assert_eq!(task.xattr(&pw, version), Ok("2".into()));
}

#[test]
fn s39_for_others_a_file_has_no_attributes() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    machine.service("api", &["pw"]);
    let held = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    let own = format!("/proc/self/fd/{}", held.0);
    assert_eq!(task.xattr(&own, "user.keyhole.version"), Ok("1".into()));
    for other in [machine.node.outsider(), machine.task("api")] {
        let passed = task.pass(held, &other);
        let ways =
            [format!("/proc/{}/fd/{}", task.pid(), held.0), format!("/proc/self/fd/{}", passed.0)];
        for way in ways {
            assert_eq!(other.xattrs(&way), Ok(vec![]), "{way}");
            for name in ["user.keyhole.version", "user.keyhole.secret"] {
                assert_eq!(other.xattr(&way, name), Err(ENODATA), "{way}");
                let short = Ask::GetXattr(way.clone().into(), name.into(), 1);
                assert_eq!(other.ask(&short), Err(ENODATA), "not even that it would be longer");
            }
        }
    }
}

#[test]
fn s40_statfs_says_nothing() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    let outsider = machine.node.outsider();
    let root = task.statfs(machine.node.mount()).unwrap();
    assert_eq!(root.magic, FUSE_MAGIC);
    assert_eq!(root.counts, [0; 5]);
    assert_eq!((root.block_size, root.name_max), (4096, 255));
    let flags = libc::ST_RDONLY | libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC;
    assert_eq!(root.flags & flags, flags);
    assert_eq!(task.statfs(machine.at("pw")), Ok(root));
    assert_eq!(outsider.statfs(machine.node.mount()), Ok(root));
}

#[test]
fn s41_there_are_no_file_handles() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    for path in [machine.node.mount(), machine.node.path("pw")] {
        assert_eq!(task.call(Ask::NameToHandle(path)), Err(EOPNOTSUPP));
    }
}

#[test]
fn s42_there_are_no_links() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    for path in [machine.node.mount(), machine.node.path("pw")] {
        assert_eq!(task.bytes(Ask::Readlink(path.clone())), Err(EINVAL));
        let (Ok(followed), Ok(itself)) = (task.stat(&path), task.ask(&Ask::Stat(path, false)))
        else {
            panic!("both answer")
        };
        assert_eq!(itself, keyhole_tests::Answer::Stat(followed));
    }
}
