//! docs/SEMANTICS.md, "Directories".

use std::collections::BTreeSet;

use keyhole_tests::{Ask, DirEntry, EACCES, ENOENT, Fd, Machine, Probe};

fn names(entries: &[DirEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.as_str()).collect()
}

/// getdents64 until nothing more comes.
fn rest(probe: &Probe, dir: Fd, size: usize) -> Vec<DirEntry> {
    let mut all = Vec::new();
    loop {
        let some = probe.getdents(dir, size).unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

#[test]
fn s28_a_listing_is_ones_own() {
    let machine = Machine::start();
    machine.web("hunter2");
    let grants = ["pw", "source=pw,target=tls/key", "source=pw,target=tls/old/key"];
    machine.service("deep", &grants);
    let (web, deep) = (machine.task("web"), machine.task("deep"));
    assert_eq!(web.names(machine.node.mount()), Ok(vec!["pw".into()]));
    for (folder, want) in [("", ["pw", "tls"]), ("tls", ["key", "old"])] {
        let entries = deep.entries(machine.at(folder)).unwrap();
        let listed: BTreeSet<&str> = names(&entries).into_iter().collect();
        assert_eq!(listed, BTreeSet::from([".", "..", want[0], want[1]]));
        assert_eq!(entries.len(), 4, "each once");
        for entry in entries.iter().filter(|entry| entry.name != "." && entry.name != "..") {
            let stat = deep.stat(machine.node.path(folder).join(&entry.name)).unwrap();
            assert_eq!(entry.ino, stat.ino, "{}", entry.name);
            assert_eq!(entry.is_dir, stat.mode & libc::S_IFMT == libc::S_IFDIR, "{}", entry.name);
        }
        assert!(entries.iter().all(|entry| entry.name != ".set"));
    }
}

#[test]
fn s29_listings_go_on_where_they_were() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    let grants: Vec<String> = (0..60).map(|n| format!("source=pw,target=t{n:02}")).collect();
    machine.service("web", &grants.iter().map(String::as_str).collect::<Vec<_>>());
    let task = machine.task("web");
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let dir = task.open(machine.node.mount(), flags).unwrap();
    let whole = rest(&task, dir, 64 * 1024);
    assert_eq!(whole.len(), 62);
    for size in [64, 200, 1000] {
        task.number(Ask::Seek(dir.0, 0, libc::SEEK_SET)).unwrap();
        assert_eq!(rest(&task, dir, size), whole, "in pieces of {size}");
    }
    for at in [0, 1, 2, 30, 61] {
        task.number(Ask::Seek(dir.0, whole[at].offset, libc::SEEK_SET)).unwrap();
        assert_eq!(rest(&task, dir, 300), whole[at + 1..], "from position {at}");
    }
    // Half is read; then a third of the names goes and a new one comes.
    task.number(Ask::Seek(dir.0, 0, libc::SEEK_SET)).unwrap();
    let first = task.getdents(dir, 1000).unwrap();
    assert!(first.len() > 5 && first.len() < 57, "{}", first.len());
    let gone: Vec<String> = (0..60).step_by(3).map(|n| format!("t{n:02}")).collect();
    let remove = gone.iter().flat_map(|name| ["--secret-rm", name.as_str()]);
    let update: Vec<&str> = remove.chain(["--secret-add", "source=pw,target=new"]).collect();
    machine.update("web", &update);
    machine.until("the new name", || task.stat(machine.at("new")).is_ok());
    let mut seen = names(&first);
    let second = rest(&task, dir, 1000);
    seen.extend(names(&second));
    for stays in (0..60).filter(|n| n % 3 != 0).map(|n| format!("t{n:02}")) {
        assert_eq!(seen.iter().filter(|name| **name == stays).count(), 1, "{stays}");
    }
    task.number(Ask::Seek(dir.0, 0, libc::SEEK_SET)).unwrap();
    let again = rest(&task, dir, 4096);
    assert_eq!(again.len(), 2 + 40 + 1, "rewound, it shows what is there");
}

#[test]
fn s30_a_directorys_descriptor_carries_no_right() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["pw", "source=pw,target=tls/key"]);
    machine.service("api", &["source=pw,target=tls/key"]);
    let web = machine.task("web");
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    for other in [machine.node.outsider(), machine.task("api")] {
        for (folder, name) in [("", "pw"), ("tls", "key")] {
            let dir = web.open(machine.at(folder), flags).unwrap();
            let passed = web.pass(dir, &other);
            // What the other task has at that place itself is another directory.
            let foreign = folder == "tls" || other.names(machine.node.mount()) == Ok(vec![]);
            if foreign {
                assert_eq!(names(&rest(&other, passed, 4096)), [".", ".."], "{folder:?}");
            }
            assert_eq!(other.openat(passed, name, libc::O_RDONLY), Err(ENOENT), "{folder:?}");
            assert!(web.openat(dir, name, libc::O_RDONLY).is_ok());
            let again = other.reopen(passed, flags);
            match folder {
                "" => assert!(again.is_ok(), "MOUNT is everyone's"),
                _ => assert_eq!(again, Err(EACCES)),
            }
        }
    }
}
