//! Who is a member and for how long: join tokens that are replaced, and nodes that are removed.

use std::os::unix::fs::MetadataExt;

use keyhole_tests::{Cluster, Daemon, EKEYREVOKED, ENOENT, Machine, NodeOptions, scan, wait};
use rustix::process::Signal;

#[test]
fn a_replaced_token_is_refused_and_who_joined_with_it_stays() {
    let cluster = Cluster::start();
    let mut node = cluster.node();
    let old = cluster.node_token();
    let said = cluster.ok(["cluster", "join-token", "--rotate", "worker"]);
    assert!(said.contains("replaced") && !said.contains(&old), "{said}");
    let new = cluster.node_token();
    assert!(new != old && said.contains(&new));

    let ground = cluster.ground();
    let token = ground.folder().join("token");
    std::fs::write(&token, &old).unwrap();
    let mut command = keyhole_tests::plain_command();
    command.args(["node", "run", "--join", &cluster.address().to_string(), "--token-file"]);
    command.arg(&token).arg("--data-dir").arg(ground.folder().join("late"));
    command.arg("--mount").arg(ground.folder().join("late-secrets"));
    command.arg("--control-socket").arg(ground.folder().join("late.sock"));
    let mut late = Daemon::start(ground, "late", command);
    assert_eq!(late.wait().code(), Some(1));
    let log = late.log();
    let complaints: Vec<&str> = log.lines().filter(|line| line.starts_with("keyhole: ")).collect();
    assert_eq!(complaints.len(), 1, "one line: {log}");
    for part in ["not valid", "keyhole cluster join-token worker"] {
        assert!(complaints[0].contains(part), "{part:?} in {log}");
    }
    assert!(!log.contains(old.rsplit('-').next().unwrap()), "the token itself is never said");

    // Also over a restart, which needs no token.
    node.stop(Signal::TERM);
    node.resume();
    let _other = cluster.node();
    wait::until("both nodes to be connected", || {
        let listed = cluster.ok(["node", "ls", "--format", "{{.Status}}"]);
        if listed == "Ready\nReady\n" { Ok(()) } else { Err(listed) }
    });
}

/// How many bytes the supervisor holds for workers to come.
fn kept_state(supervisor: i32) -> u64 {
    let descriptors = std::fs::read_dir(format!("/proc/{supervisor}/fd")).expect("it lives");
    let memfds = descriptors.flatten().map(|entry| entry.path()).filter(|path| {
        let target = std::fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("/memfd:")
    });
    memfds.map(|path| std::fs::metadata(path).expect("a memfd").blocks() * 512).sum()
}

#[test]
fn a_removed_node_is_wiped_at_once_and_says_so_at_its_next_start() {
    let mut machine = Machine::start();
    let mut canary = vec![0; 300_000];
    getrandom::fill(&mut canary).unwrap();
    let task = machine.web(&canary);
    let pw = machine.at("pw");
    let held = task.open(&pw, libc::O_RDONLY).unwrap();
    assert!(task.slurp(&pw).unwrap() == canary);
    let supervisor = machine.node.supervisor().pid();
    assert!(kept_state(supervisor) > 300_000, "sealed, for the next worker");
    let id = machine.cluster.ok(["node", "ls", "-q"]);

    let refused = machine.cluster.refused(["node", "rm", id.trim()]);
    assert!(refused.contains("connected") && refused.contains("--force"), "{refused}");
    machine.cluster.ok(["node", "rm", "--force", id.trim()]);
    machine.until("the session to end", || task.open(&pw, libc::O_RDONLY) == Err(ENOENT));
    assert_eq!(task.names(machine.node.mount()), Ok(vec![]));
    machine.until("reading to fail", || task.pread(held, 10, 0) == Err(EKEYREVOKED));
    assert_eq!(machine.node.ok(["task", "ls", "-q"]), "");
    let needles = scan::halves("the value", &canary[..96]);
    let worker = machine.node.worker().expect("a worker runs");
    assert_eq!(scan::memory(worker, &needles).hits, [""; 0]);
    machine.until("the values to go from the kept state", || kept_state(supervisor) < 100_000);

    let removed = |text: &str| {
        for part in ["removed from the cluster", "identity", "--join", "--token-file"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    };
    let status = ["node", "status", "--format", "{{.Trouble}}"];
    removed(&machine.node.ok(status));
    machine.node.stop(Signal::TERM);
    machine.node.resume();
    machine.until("it to be told", || !machine.node.ok(status).trim().is_empty());
    removed(&machine.node.ok(status));
    let log = machine.node.supervisor().log();
    removed(log.lines().find(|line| line.contains("WARN")).unwrap_or(&log));
    assert_eq!(task.slurp(&pw), Err(ENOENT));
    let refused = machine.node.try_task("web", &["--wait", "1s"]).unwrap_err();
    assert_eq!(refused.code, 125);

    // What it says to do works.
    machine.node.stop(Signal::TERM);
    std::fs::remove_file(machine.node.data().join("identity")).unwrap();
    let node = machine
        .cluster
        .node_with(NodeOptions { data: Some(machine.node.data()), ..NodeOptions::default() });
    let task = node.task("web");
    assert!(task.slurp(node.path("pw")).unwrap() == canary);
}
