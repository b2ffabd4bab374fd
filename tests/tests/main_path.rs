//! The operator's path through the CLI, end to end: secrets, services, and the tasks that read them.

use keyhole_tests::{Ask, Cluster, EACCES, ENOENT, Machine};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn is_id(text: &str) -> bool {
    text.len() == 25 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[test]
fn secrets_are_created_from_files_and_stdin_and_read_back_exactly() {
    let machine = Machine::start();
    let folder = machine.node.ground().folder().to_owned();
    let large: Vec<u8> = (0..512_000usize).map(|at| (at * 7 + at / 256) as u8).collect();
    let values: [(&str, &[u8]); 4] =
        [("one", b"\0"), ("line", b"a\r\nb\n"), ("all", &large[..256]), ("large", &large)];
    for (name, value) in values {
        let file = folder.join(name);
        std::fs::write(&file, value).unwrap();
        let by_file = format!("{name}-file");
        let id = machine.cluster.ok(["secret", "create", &by_file, file.to_str().unwrap()]);
        assert!(is_id(id.trim_end()), "create prints the id alone: {id:?}");
        machine.secret(&format!("{name}-stdin"), value);
    }
    let names: Vec<String> = values
        .iter()
        .flat_map(|(name, _)| [format!("{name}-file"), format!("{name}-stdin")])
        .collect();
    machine.service("web", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let task = machine.task("web");
    for (name, value) in values {
        for way in ["file", "stdin"] {
            let read = task.slurp(machine.at(&format!("{name}-{way}"))).unwrap();
            assert!(read == value, "{name} by {way}");
        }
    }
}

#[test]
fn values_out_of_bounds_are_refused() {
    let cluster = Cluster::start();
    let refused = cluster.refused_with(["secret", "create", "big", "-"], &vec![7; 512_001]);
    for part in ["512000", "512001", "big"] {
        assert!(refused.replace(',', "").contains(part), "{part}: {refused}");
    }
    let refused = cluster.refused_with(["secret", "create", "none", "-"], b"");
    assert!(refused.contains("empty") && refused.contains("none"), "{refused}");
    assert_eq!(cluster.ok(["secret", "ls", "-q"]), "", "nothing was made");
    let refused = cluster.refused_with(["secret", "create", "pw!", "-"], b"v");
    assert!(refused.contains("pw!"), "{refused}");
}

#[test]
fn nothing_prints_a_value() {
    let machine = Machine::start();
    let canary = "kanarienvogel-5d81";
    machine.secret("pw", canary);
    machine.rotate("pw", format!("{canary}-2"));
    machine.service("web", &["pw"]);
    let _task = machine.task("web");
    for args in [
        &["secret", "ls"][..],
        &["secret", "ls", "--format", "json"],
        &["secret", "inspect", "pw"],
        &["secret", "inspect", "--pretty", "pw"],
        &["secret", "history", "pw"],
        &["secret", "status", "pw"],
        &["service", "inspect", "web"],
        &["cluster", "status"],
    ] {
        let ran = machine.cluster.keyhole(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(canary), "{args:?}");
    }
    assert!(!machine.node.ground().logs().contains(canary));
}

#[test]
fn listing_and_inspecting_secrets() {
    let cluster = Cluster::start();
    let id = cluster.ok_with(["secret", "create", "-l", "env=prod", "pw10", "-"], b"v");
    cluster.ok_with(["secret", "create", "pw9", "-"], b"v");
    assert_eq!(cluster.ok(["secret", "ls", "--format", "{{.Name}}"]), "pw9\npw10\n");
    let filtered = cluster.ok(["secret", "ls", "-q", "-f", "label=env=prod"]);
    assert_eq!(filtered, id);
    let shown = json(&cluster.ok(["secret", "inspect", "pw10"]));
    let secret = &shown.as_array().expect("an array, as Docker's")[0];
    assert_eq!(secret["ID"], id.trim_end());
    assert!(secret["Version"]["Index"].as_u64().is_some_and(|index| index > 0));
    assert_eq!(secret["Spec"]["Name"], "pw10");
    assert_eq!(secret["Spec"]["Labels"]["env"], "prod");
    assert_eq!(secret["CurrentVersion"], 1);
    for time in ["CreatedAt", "UpdatedAt"] {
        let text = secret[time].as_str().unwrap();
        assert!(text.ends_with('Z') && text.len() >= 20, "{text}");
    }
    let by_prefix = json(&cluster.ok(["secret", "inspect", &id[..12]]));
    assert_eq!(by_prefix, shown, "a beginning of the id names it");
    let refused = cluster.refused_with(["secret", "create", "pw9", "-"], b"v");
    assert!(refused.contains("pw9") && refused.contains("already exists"), "{refused}");
    let refused = cluster.refused(["secret", "inspect", "nothing"]);
    assert!(refused.contains("nothing") && refused.contains("not found"), "{refused}");
}

#[test]
fn a_secret_in_use_stays() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.ok_with(["secret", "create", "free", "-"], b"v");
    for service in ["web", "api"] {
        cluster.ok(["service", "create", service, "--secret", "pw"]);
    }
    let refused = cluster.refused(["secret", "rm", "pw"]);
    for part in ["pw", "web", "api", "in use"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let ran = cluster.keyhole(["secret", "rm", "pw", "free", "nothing"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "free\n"), "it goes on: {}", ran.stderr);
    cluster.ok(["service", "update", "web", "--secret-rm", "pw"]);
    cluster.ok(["service", "rm", "api"]);
    let refused = cluster.refused(["secret", "rm", "pw"]);
    assert!(refused.contains("web") && !refused.contains("api"), "the previous spec: {refused}");
    cluster.ok(["service", "rm", "web"]);
    assert_eq!(cluster.ok(["secret", "rm", "pw"]), "pw\n");
    assert_eq!(cluster.ok(["secret", "ls", "-q"]), "");
}

#[test]
fn rotating_and_rolling_back() {
    let machine = Machine::start();
    let cluster = &machine.cluster;
    let task = machine.web("one");
    let pw = machine.at("pw");
    let rotated = cluster.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"two");
    assert!(rotated.contains("pw") && rotated.contains("version 2"), "{rotated}");
    assert_eq!(task.text(&pw), Ok("two".into()), "the moment that --wait returned");
    machine.rotate("pw", "three");
    cluster.ok(["secret", "rollback", "--wait", "pw"]);
    assert_eq!(task.text(&pw), Ok("two".into()));
    cluster.ok(["secret", "rollback", "--wait", "pw", "--to", "1"]);
    assert_eq!(task.text(&pw), Ok("one".into()));
    machine.rotate("pw", "four");
    assert_eq!(task.xattr(&pw, "user.keyhole.version"), Ok("4".into()), "the highest and one");
    let history = cluster.ok(["secret", "history", "pw"]);
    assert_eq!(history.lines().count(), 5, "a heading and four versions:\n{history}");
    let refused = cluster.refused(["secret", "rollback", "pw", "--to", "9"]);
    assert!(refused.contains("pw") && refused.contains('9'), "{refused}");
    let status = cluster.ok(["secret", "status", "pw"]);
    assert!(status.contains("web") && status.contains("current"), "{status}");

    machine.secret("key", "key 1");
    machine.update("web", &["--secret-add", "key"]);
    let (a, b) = (task.scratch().join("a"), task.scratch().join("b"));
    std::fs::write(&a, "five").unwrap();
    std::fs::write(&b, "key 2").unwrap();
    let (a, b) = (format!("pw={}", a.display()), format!("key={}", b.display()));
    cluster.ok(["secret", "rotate", "--wait", &a, &b]);
    assert_eq!(task.text(&pw), Ok("five".into()));
    assert_eq!(task.text(machine.at("key")), Ok("key 2".into()));
}

#[test]
fn services_and_the_rules_of_grants() {
    let machine = Machine::start();
    let cluster = &machine.cluster;
    machine.secret("pw", "hunter2");
    machine.secret("key", "k");
    let long = "source=pw,target=db/pw,uid=1000,gid=1000,mode=0400";
    let ran = cluster
        .keyhole(["service", "create", "--name", "web", "--secret", long, "--secret", "key"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(is_id(ran.stdout.trim_end()), "{}", ran.stdout);
    assert!(
        ran.stderr.contains("constraint"),
        "any node may run it, and that is said: {}",
        ran.stderr
    );
    let task = machine.task("web");
    let stat = task.stat(machine.at("db/pw")).unwrap();
    assert_eq!((stat.uid, stat.gid, stat.mode & 0o7777), (1000, 1000, 0o400));
    let shown = json(&cluster.ok(["service", "inspect", "web"]));
    assert_eq!(shown[0]["Spec"]["Name"], "web");
    assert_eq!(shown[0]["Spec"]["Secrets"].as_array().map(Vec::len), Some(2));
    assert!(cluster.ok(["service", "ls"]).contains("web"));
    for (spec, parts) in [
        ("nothing", &["nothing", "not found"][..]),
        ("source=pw,target=../x", &["..", "x"]),
        ("source=pw,target=/etc/passwd", &["/etc/passwd", "/run/secrets"]),
        ("source=pw,target=key", &["pw", "key", "conflict"]),
        ("source=pw,target=db", &["conflict", "db"]),
        ("source=pw,mode=1777", &["1777"]),
        ("source=pw,mode=9", &["9"]),
        ("source=pw,uid=x", &["uid", "x"]),
        ("source=pw,version=9", &["9"]),
        ("target=x", &["source"]),
    ] {
        let refused = cluster.refused(["service", "update", "web", "--secret-add", spec]);
        for part in parts {
            assert!(refused.contains(part), "{spec}: {part:?} in {refused}");
        }
    }
    assert_eq!(task.names(machine.node.mount()), Ok(vec!["db".into(), "key".into()]));
    let refused = cluster.refused(["service", "update", "web", "--secret-rm", "other"]);
    assert!(refused.contains("other"), "{refused}");
    machine.update("web", &["--secret-rm", "key"]);
    machine.until("the file to go", || task.stat(machine.at("key")) == Err(ENOENT));
    cluster.ok(["service", "rollback", "web"]);
    machine.until("the file to come back", || task.text(machine.at("key")) == Ok("k".into()));
    assert_eq!(cluster.ok(["service", "rm", "web"]), "web\n");
    machine.until("all to go", || task.names(machine.node.mount()) == Ok(vec![]));
    assert_eq!(task.slurp(machine.at("db/pw")), Err(ENOENT));
}

#[test]
fn constraints_decide_which_nodes_hold_a_task() {
    let machine = Machine::start();
    let cluster = &machine.cluster;
    machine.secret("pw", "hunter2");
    let only = "node.labels.zone==eu";
    cluster.ok(["service", "create", "web", "--secret", "pw", "--constraint", only]);
    let failed = machine.node.try_task("web", &["--wait", "3s"]).unwrap_err();
    assert_eq!(failed.code, 125, "{failed:?}");
    assert!(failed.stderr.contains("zone"), "the reason: {failed:?}");
    let ps = cluster.ok(["service", "ps", "--no-trunc", "web"]);
    assert!(ps.contains("Rejected") && ps.contains("zone"), "{ps}");

    let node = cluster.ok(["node", "ls", "-q"]);
    cluster.ok(["node", "update", "--label-add", "zone=eu", node.trim()]);
    let task = machine.task("web");
    assert_eq!(task.text(machine.at("pw")), Ok("hunter2".into()));
    assert!(cluster.ok(["service", "ps", "web"]).contains("Running"));
    let held = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    cluster.ok(["node", "update", "--label-rm", "zone", node.trim()]);
    machine.until("the files to go", || task.names(machine.node.mount()) == Ok(vec![]));
    machine.until("reads to fail", || task.pread(held, 10, 0) == Err(keyhole_tests::EKEYREVOKED));
    let ps = cluster.ok(["service", "ps", "--no-trunc", "web"]);
    assert!(ps.contains("Rejected") && ps.contains("zone"), "{ps}");
    cluster.ok(["node", "update", "--label-add", "zone=eu", node.trim()]);
    machine.until("them to come back", || task.text(machine.at("pw")) == Ok("hunter2".into()));

    cluster.ok(["service", "create", "free", "--secret", "pw"]);
    cluster.ok(["cluster", "update", "--unconstrained", "deny"]);
    let failed = machine.node.try_task("free", &["--wait", "3s"]).unwrap_err();
    assert!(failed.stderr.contains("constraint"), "{failed:?}");
    let refused = cluster.refused(["service", "update", "web", "--constraint-add", "node.role==x"]);
    assert!(refused.contains("node.role"), "{refused}");
}

#[test]
fn run_becomes_the_command() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["source=pw,uid=1000,gid=2000,mode=0440"]);
    let pw = machine.at("pw");
    let run = |args: &[&str]| machine.node.keyhole(["run", "--service", "web"].iter().chain(args));
    let read = run(&["--", "cat", &pw]);
    assert_eq!((read.code, read.stdout.as_str()), (0, "hunter2"), "{}", read.stderr);
    assert_eq!(run(&["--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(run(&["--", "sh", "-c", "kill -TERM $$"]).code, 128 + libc::SIGTERM);
    assert_eq!(run(&["--", "keyhole-no-such-command"]).code, 127);
    assert_eq!(run(&["--", "/etc/passwd"]).code, 126);
    let ids = run(&[
        "--uid",
        "1000",
        "--gid",
        "2000",
        "--",
        "sh",
        "-c",
        &format!("id -u; id -G; cat {pw}"),
    ]);
    assert_eq!(ids.stdout, "1000\n2000\nhunter2", "{}", ids.stderr);
    let other = run(&["--uid", "1001", "--gid", "1001", "--", "cat", &pw]);
    assert_ne!(other.code, 0);
    let unknown = machine.node.keyhole(["run", "--service", "nothing", "--", "true"]);
    assert_eq!(unknown.code, 125);
    assert!(
        unknown.stderr.contains("nothing") && unknown.stderr.contains("not found"),
        "{unknown:?}"
    );
    machine.until("all tasks to end", || machine.node.ok(["task", "ls", "-q"]).is_empty());
    let ps = machine.cluster.ok(["service", "ps", "web"]);
    assert!(!ps.contains("Running"), "{ps}");
    let left = std::fs::read_dir(machine.node.cgroups()).unwrap();
    let left = left.flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(left, 0, "its cgroups are removed");
}

/// The words of `keyhole task add`.
fn add<'a>(args: &[&'a str]) -> Vec<&'a str> {
    ["task", "add", "--service", "web"].iter().chain(args).copied().collect()
}

#[test]
fn cgroups_that_run_already_become_tasks() {
    let machine = Machine::start();
    machine.secret("pw", "hunter2");
    machine.service("web", &["pw"]);
    let ground = machine.node.ground();
    let (by_path, by_pid) = (ground.cgroup().child("path"), ground.cgroup().child("pid"));
    let first = keyhole_tests::Probe::in_cgroup(ground, &by_path);
    let second = keyhole_tests::Probe::in_cgroup(ground, &by_pid);
    let (path, pid) = (by_path.display().to_string(), second.pid().to_string());
    assert_eq!(first.slurp(machine.at("pw")), Err(ENOENT));
    let id = machine.node.ok(add(&["--cgroup", &path]));
    assert!(is_id(id.trim_end()), "{id:?}");
    machine.node.ok(add(&["--pid", &pid]));
    for probe in [&first, &second] {
        assert_eq!(probe.text(machine.at("pw")), Ok("hunter2".into()));
    }
    let listed = machine.node.ok(["task", "ls", "--no-trunc"]);
    assert!(listed.contains(id.trim_end()) && listed.contains("web"), "{listed}");
    let refused = |args: &[&str], part: &str| {
        let ran = machine.node.keyhole(add(args));
        assert_eq!(ran.code, 1, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(part), "{args:?}: {part:?} in {}", ran.stderr);
    };
    refused(&["--cgroup", &path], id.trim_end());
    refused(&["--cgroup", &ground.cgroup().path().display().to_string()], "holds task");
    refused(&["--cgroup", &keyhole_tests::cgroup_root().display().to_string()], "root cgroup");
    refused(&["--cgroup", "/tmp"], "/tmp");
    refused(&["--pid", "1"], "root cgroup");
    refused(&["--pid", "4194303"], "4194303");
    let delegated = ground.cgroup().child("delegated");
    std::fs::create_dir(delegated.join("inner")).unwrap();
    std::os::unix::fs::chown(delegated.join("cgroup.procs"), Some(1000), None).unwrap();
    let inner = delegated.join("inner").display().to_string();
    refused(&["--cgroup", &inner], "1000");
    machine.node.ok(add(&["--cgroup", &inner, "--allow-delegated"]));
    machine.node.ok(["task", "rm", id.trim_end()]);
    assert_eq!(first.slurp(machine.at("pw")), Err(ENOENT));
    assert_eq!(second.text(machine.at("pw")), Ok("hunter2".into()));
    let ran = machine.node.keyhole(["task", "rm", id.trim_end()]);
    assert!(ran.code == 1 && ran.stderr.contains(id.trim_end()), "{ran:?}");
    assert_eq!(second.end(), 0);
    machine.until("the task by pid to end", || {
        !machine.node.ok(["task", "ls", "--no-trunc"]).contains(&by_pid.display().to_string())
    });
}

#[test]
fn only_root_reaches_the_node_and_the_manager() {
    let machine = Machine::start();
    machine.web("hunter2");
    let keyhole = keyhole_tests::keyhole_binary();
    let readable = machine.node.ground().folder().join("keyhole");
    std::fs::copy(keyhole, &readable).unwrap();
    let user = machine.node.outsider();
    user.become_user(1000, 1000, &[]);
    let node = machine.node.socket().display().to_string();
    let manager = format!("unix://{}", machine.cluster.socket().display());
    let (code, _) = user.run(&readable, &["--node-socket", &node, "task", "ls"]).unwrap();
    assert_eq!(code, 1);
    let (code, _) = user.run(&readable, &["--host", &manager, "secret", "ls"]).unwrap();
    assert_eq!(code, 1);
    assert_eq!(user.slurp(machine.cluster.data().join("audit")), Err(EACCES));
    assert_eq!(user.call(Ask::WriteFile(machine.node.data().join("x"), vec![1])), Err(EACCES));
}

#[test]
fn what_was_done_is_audited_and_no_value_with_it() {
    let machine = Machine::start();
    let task = machine.web("kanarienvogel-77");
    task.slurp(machine.at("pw")).unwrap();
    let outsider = machine.node.outsider();
    let held = task.open(machine.at("pw"), libc::O_PATH).unwrap();
    let passed = task.pass(held, &outsider);
    assert_eq!(outsider.reopen(passed, libc::O_RDONLY), Err(EACCES));
    let opens = machine.node.data().join("audit/opens.jsonl");
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&opens).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    machine.until("both opens to be recorded", || {
        let lines = lines();
        let of = |pid: i32| lines.iter().any(|line| line["pid"].as_i64() == Some(pid.into()));
        of(task.pid()) && of(outsider.pid())
    });
    let text = std::fs::read_to_string(&opens).unwrap();
    assert!(text.contains("\"pw\"") && text.contains("\"web\""), "{text}");
    assert!(!text.contains("kanarienvogel"));
    let folder = std::fs::read_dir(machine.cluster.data().join("audit")).unwrap();
    let audit: String =
        folder.flatten().map(|entry| std::fs::read_to_string(entry.path()).unwrap()).collect();
    for part in ["pw", "web"] {
        assert!(audit.contains(part), "{part}: {audit}");
    }
    assert!(!audit.contains("kanarienvogel"));
}
