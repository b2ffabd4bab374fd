//! docs/SEMANTICS.md, "Names": what resolves, for whom.

use keyhole_tests::{ENAMETOOLONG, ENOENT, ENOTDIR, Machine};

#[test]
fn s11_a_name_is_there_for_those_who_have_it() {
    let machine = Machine::start();
    let web = machine.web("hunter2");
    machine.secret("key", "k");
    machine.service("api", &["key"]);
    let api = machine.task("api");
    assert_eq!(web.text(machine.at("pw")), Ok("hunter2".into()));
    assert_eq!(api.text(machine.at("key")), Ok("k".into()));
    for name in ["key", "nothing"] {
        assert_eq!(web.stat(machine.at(name)), Err(ENOENT), "{name}");
        assert_eq!(web.open(machine.at(name), libc::O_RDONLY), Err(ENOENT), "{name}");
        assert_eq!(web.open(machine.at(name), libc::O_PATH), Err(ENOENT), "{name}");
        assert_eq!(web.access(machine.at(name), libc::F_OK), Err(ENOENT), "{name}");
        assert_eq!(web.xattrs(machine.at(name)), Err(ENOENT), "{name}");
        assert_eq!(web.statfs(machine.at(name)), Err(ENOENT), "{name}");
    }
    assert_eq!(api.stat(machine.at("pw")), Err(ENOENT));
}

#[test]
fn s12_names_are_bytes() {
    let machine = Machine::start();
    machine.secret("pw", "small");
    let longest = "l".repeat(255);
    let long = format!("source=pw,target={longest}");
    machine.service("web", &["pw", "source=pw,target=PW", "source=pw,target=schlüssel", &long]);
    let task = machine.task("web");
    assert_ne!(task.stat(machine.at("pw")).unwrap().ino, task.stat(machine.at("PW")).unwrap().ino);
    assert_eq!(task.stat(machine.at("Pw")), Err(ENOENT));
    assert_eq!(task.text(machine.at("schlüssel")), Ok("small".into()));
    // The same letters in another normal form are other bytes.
    assert_eq!(task.stat(machine.at("schlu\u{308}ssel")), Err(ENOENT));
    assert_eq!(task.text(machine.at(&longest)), Ok("small".into()));
    assert_eq!(task.stat(machine.at(&"l".repeat(256))), Err(ENOENT));
    assert_eq!(task.stat(machine.at(&"l".repeat(5000))), Err(ENAMETOOLONG));
}

#[test]
fn s13_targets_with_slashes_make_directories() {
    let machine = Machine::start();
    machine.web("hunter2");
    let grants = ["source=pw,target=tls/a/key", "source=pw,target=tls/cert", "pw"];
    machine.service("deep", &grants);
    let deep = machine.task("deep");
    let web = machine.task("web");
    for name in ["tls/a/key", "tls/cert", "tls/a/../cert", "tls/./cert", "tls//cert"] {
        assert_eq!(deep.text(machine.at(name)), Ok("hunter2".into()), "{name}");
    }
    assert_eq!(deep.names(machine.at("tls")), Ok(vec!["a".into(), "cert".into()]));
    assert_eq!(deep.stat(machine.at("tls/nothing")), Err(ENOENT));
    assert_eq!(deep.stat(machine.at("pw/x")), Err(ENOTDIR));
    assert_eq!(deep.stat(machine.at("pw/")), Err(ENOTDIR));
    let dir = deep.open(machine.at("tls"), libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert!(deep.openat(dir, "a/key", libc::O_RDONLY).is_ok());
    assert_eq!(web.stat(machine.at("tls")), Err(ENOENT), "nobody else has that directory");
    assert_eq!(web.stat(machine.at("tls/cert")), Err(ENOENT));
}

#[test]
fn s14_no_name_is_remembered_between_callers() {
    let machine = Machine::start();
    let web = machine.web("of web");
    machine.secret("other", "of api, longer");
    machine.service("api", &["source=other,target=pw"]);
    let api = machine.task("api");
    let outsider = machine.node.outsider();
    let pw = machine.at("pw");
    for _ in 0..200 {
        assert_eq!(web.text(&pw), Ok("of web".into()));
        assert_eq!(outsider.stat(&pw), Err(ENOENT));
        assert_eq!(api.text(&pw), Ok("of api, longer".into()));
        assert_eq!(web.stat(&pw).unwrap().size, 6);
        assert_eq!(api.stat(&pw).unwrap().size, 14);
    }
}

#[test]
fn s15_names_come_and_go_with_their_grants() {
    let machine = Machine::start();
    let task = machine.web("hunter2");
    machine.secret("late", "late");
    let late = machine.at("late");
    for _ in 0..3 {
        assert_eq!(task.stat(&late), Err(ENOENT));
        machine.update("web", &["--secret-add", "late"]);
        machine.until("the grant to come", || task.text(&late) == Ok("late".into()));
        assert_eq!(task.names(machine.node.mount()), Ok(vec!["late".into(), "pw".into()]));
        machine.update("web", &["--secret-rm", "late"]);
        machine.until("the grant to go", || task.stat(&late) == Err(ENOENT));
        assert_eq!(task.names(machine.node.mount()), Ok(vec!["pw".into()]));
    }
}

#[test]
fn s16_a_set_stays_what_it_was() {
    let machine = Machine::start();
    machine.secret("cert", "cert 1");
    machine.secret("key", "key 1");
    machine.service("web", &["source=cert,target=tls/cert", "source=key,target=tls/key"]);
    let task = machine.task("web");
    assert_eq!(task.names(machine.node.mount()), Ok(vec!["tls".into()]), "it is not listed");
    for flags in [libc::O_PATH, libc::O_RDONLY] {
        let before = task.text(machine.at("tls/key")).unwrap();
        let set = task.open(machine.at(".set"), flags | libc::O_DIRECTORY).unwrap();
        let read = |name: &str| {
            let fd = task.openat(set, name, libc::O_RDONLY).unwrap();
            String::from_utf8(task.read(fd, 100).unwrap()).unwrap()
        };
        assert_eq!(read("tls/key"), before);
        machine.rotate("cert", format!("cert of {flags}"));
        machine.rotate("key", format!("key of {flags}"));
        assert_eq!(read("tls/key"), before);
        assert_eq!(read("tls/cert")[4..], before[3..], "both of one moment");
        assert_eq!(task.text(machine.at("tls/key")), Ok(format!("key of {flags}")));
        assert_eq!(task.text(machine.at(".set/tls/key")), Ok(format!("key of {flags}")));
        task.close(set);
    }
    assert_eq!(machine.node.outsider().stat(machine.at(".set")), Err(ENOENT));
}
