//! The daemons' lives: restarts, kills and ends of manager, node and worker, with tasks that go on.

use std::path::Path;

use keyhole_tests::{Cluster, ENOENT, Machine, NodeOptions, mounts, wait};
use rustix::process::{Pid, Signal, kill_process};

fn is_mounted(at: &Path) -> bool {
    mounts().iter().any(|mount| mount.at == at)
}

#[test]
fn a_restarted_manager_knows_everything_and_tasks_go_on() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    machine.rotate("pw", "two");
    let shown = machine.cluster.ok(["secret", "inspect", "pw"]);
    for (signal, next) in [(Signal::TERM, "three"), (Signal::KILL, "four")] {
        machine.cluster.stop(signal);
        assert!(task.text(machine.at("pw")).is_ok(), "with no manager in reach");
        machine.cluster.resume();
        if next == "three" {
            assert_eq!(machine.cluster.ok(["secret", "inspect", "pw"]), shown);
        }
        // The node connects again by itself; --wait names it until then, or waits for it.
        machine
            .until("the node to be back", || machine.cluster.ok(["node", "ls"]).contains("Ready"));
        machine.rotate("pw", next);
        assert_eq!(task.text(machine.at("pw")), Ok(next.into()));
    }
    assert_eq!(machine.node.ok(["task", "ls", "-q"]).lines().count(), 1);
}

#[test]
fn a_manager_that_is_ended_ends_cleanly() {
    let mut cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    let status = cluster.stop(Signal::TERM);
    assert!(status.success(), "{status}");
    let ran = cluster.keyhole(["secret", "ls"]);
    assert_eq!(ran.code, 1);
    let socket = cluster.socket().display().to_string();
    assert!(ran.stderr.contains(&socket), "where it was looked for: {}", ran.stderr);
    cluster.resume();
    assert_eq!(cluster.ok(["secret", "ls", "--format", "{{.Name}}"]), "pw\n");
}

#[test]
fn a_restarted_node_keeps_the_tasks_whose_cgroup_lives() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    machine.node.stop(Signal::TERM);
    assert!(!is_mounted(&machine.node.mount()));
    assert_eq!(task.stat(machine.at("pw")), Err(ENOENT), "an empty directory");
    machine.rotate("pw", "two");
    machine.node.resume();
    machine.until("the task's file", || task.text(machine.at("pw")) == Ok("two".into()));
    machine.rotate("pw", "three");
    assert_eq!(task.text(machine.at("pw")), Ok("three".into()));
}

#[test]
fn a_task_that_ended_while_its_node_was_down_is_dropped() {
    let mut machine = Machine::start();
    let (lives, ended) = (machine.web("one"), machine.task("web"));
    let cgroup = ended.cgroup();
    machine.node.stop(Signal::TERM);
    ended.end();
    machine.node.resume();
    machine.until("the task's file", || lives.text(machine.at("pw")) == Ok("one".into()));
    // Nobody is on the way into a cgroup that is empty when its node starts.
    let limit = std::time::Duration::from_secs(10);
    wait::until_within(limit, "the other task to be over", || {
        match machine.node.ok(["task", "ls", "-q"]) {
            listed if listed.lines().count() == 1 => Ok(()),
            listed => Err(listed),
        }
    });
    machine.until("its cgroup to be removed", || !cgroup.exists());
    machine.until("the manager to know", || {
        let states = ["service", "ps", "--format", "{{.CurrentState}}", "web"];
        machine.cluster.ok(states).matches("Running").count() == 1
    });
}

#[test]
fn a_killed_nodes_stale_mount_is_cleaned_at_the_next_start() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    let worker = machine.node.worker().expect("it has a worker");
    machine.node.stop(Signal::KILL);
    machine.until("the worker to die with its supervisor", || {
        !Path::new(&format!("/proc/{worker}")).exists()
    });
    assert!(is_mounted(&machine.node.mount()), "nobody could unmount it");
    machine.node.resume();
    let mount = machine.node.mount();
    assert_eq!(mounts().iter().filter(|found| found.at == mount).count(), 1);
    machine.until("the task's file", || task.text(machine.at("pw")) == Ok("one".into()));
}

#[test]
fn a_node_that_is_ended_unmounts_although_the_mount_is_in_use() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    let _held = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    task.call(keyhole_tests::Ask::Chdir(machine.node.mount())).unwrap();
    let socket = machine.node.socket();
    assert!(is_mounted(&machine.node.mount()) && socket.exists());
    let status = machine.node.stop(Signal::TERM);
    assert!(status.success(), "{status}");
    assert!(!is_mounted(&machine.node.mount()) && !socket.exists());
}

#[test]
fn the_mount_is_read_only_and_strict() {
    let machine = Machine::start();
    let all = mounts();
    let mount = all.iter().find(|mount| mount.at == machine.node.mount()).unwrap();
    assert_eq!(mount.fs_type, "fuse.keyhole");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(mount.options.iter().any(|found| found == option), "{option}: {mount:?}");
    }
    for option in ["default_permissions", "allow_other"] {
        assert!(mount.super_options.contains(option), "{option}: {mount:?}");
    }
}

#[test]
fn a_worker_restarts_without_a_manager() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    let held = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    machine.cluster.stop(Signal::KILL);
    for signal in [Signal::KILL, Signal::HUP] {
        let worker = machine.node.worker().expect("it has a worker");
        match signal {
            Signal::HUP => machine.node.supervisor().signal(signal),
            _ => kill_process(Pid::from_raw(worker).unwrap(), signal).unwrap(),
        }
        machine.until("another worker", || machine.node.worker().is_some_and(|w| w != worker));
        assert_eq!(task.text(machine.at("pw")), Ok("one".into()));
        assert_eq!(task.pread(held, 10, 0), Ok(b"one".to_vec()));
        assert_eq!(machine.node.outsider().slurp(machine.at("pw")), Err(ENOENT));
        assert_eq!(machine.node.ok(["task", "ls", "-q"]).lines().count(), 1);
    }
    machine.cluster.resume();
    machine.until("the node to be back", || machine.cluster.ok(["node", "ls"]).contains("Ready"));
    machine.rotate("pw", "two");
    assert_eq!(task.text(machine.at("pw")), Ok("two".into()));
}

#[test]
fn two_nodes_each_hold_their_own_tasks() {
    let cluster = Cluster::start();
    let named = |name: &str| NodeOptions {
        args: vec!["--hostname".into(), name.into()],
        ..NodeOptions::default()
    };
    let (alpha, beta) = (cluster.node_with(named("alpha")), cluster.node_with(named("beta")));
    // Its mount is ready before its connection is.
    keyhole_tests::wait::until("both nodes to be connected", || {
        let listed = cluster.ok(["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
        if listed == "alpha Ready\nbeta Ready\n" { Ok(()) } else { Err(listed) }
    });
    cluster.ok_with(["secret", "create", "pw", "-"], b"hunter2");
    let only = "node.hostname==alpha";
    cluster.ok(["service", "create", "web", "--secret", "pw", "--constraint", only]);
    let task = alpha.task("web");
    assert_eq!(task.text(alpha.path("pw")), Ok("hunter2".into()));
    assert_eq!(task.slurp(beta.path("pw")), Err(ENOENT), "a task of one node is nobody on another");
    assert_eq!(beta.try_task("web", &["--wait", "3s"]).unwrap_err().code, 125);
    let refused = cluster.refused(["node", "rm", "alpha"]);
    assert!(refused.contains("alpha"), "{refused}");
    cluster.ok(["node", "rm", "--force", "alpha"]);
    keyhole_tests::wait::until("the removed node's task to lose its file", || {
        match task.slurp(alpha.path("pw")) {
            Err(ENOENT) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(cluster.ok(["node", "ls", "--format", "{{.Hostname}}"]), "beta\n");
}

#[test]
fn a_cluster_that_was_off_for_three_days_comes_back_by_itself() {
    let mut machine = Machine::start();
    let task = machine.web("one");
    machine.node.stop(Signal::TERM);
    machine.cluster.stop(Signal::TERM);
    // Every certificate has expired meanwhile.
    machine.cluster.set_days(3);
    machine.node.set_days(3);
    machine.cluster.resume();
    machine.node.resume();
    machine.until("the task's file", || task.text(machine.at("pw")) == Ok("one".into()));
    machine.rotate("pw", "two");
    assert_eq!(task.text(machine.at("pw")), Ok("two".into()));
}

/// Every certificate has expired meanwhile, also that of a manager which was demoted and can issue none for itself.
#[test]
fn several_managers_that_were_off_for_three_days_come_back_by_themselves() {
    let mut managers = Cluster::of(4);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"one");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let mut node = managers[1].node();
    let task = node.task("web");
    let demoted = managers[3].address().to_string();
    managers[0].ok(["manager", "demote", &demoted]);
    let settled = ["cluster", "status", "-f", "{{.CANumber}} {{.UnderOldKeys}}"];
    let is = |by: &Cluster, what: &str, words: &[&str], wanted: &str| {
        wait::until(what, || match by.ok(words) {
            now if now == wanted => Ok(()),
            now => Err(now),
        });
    };
    is(&managers[0], "the demoted one's keys to be replaced", &settled, "1 0\n");
    node.stop(Signal::TERM);
    for manager in &mut managers {
        manager.stop(Signal::TERM);
        manager.set_days(3);
    }
    node.set_days(3);
    managers.iter_mut().for_each(Cluster::resume);
    node.resume();
    wait::until("the task's file", || match task.text(node.path("pw")) {
        Ok(text) if text == "one" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let statuses =
        ["manager", "ls", "--format", "{{.Status}} {{.Behind}}", "-f", "status=unreachable"];
    is(&managers[1], "all managers to believe each other", &statuses, "");
    managers[2].ok_with(["secret", "rotate", "--wait", "pw", "-"], b"two");
    assert_eq!(task.text(node.path("pw")), Ok("two".into()));
    managers[0].ok(["manager", "promote", &demoted]);
    let voters = ["manager", "ls", "-f", "role=voter", "--format", "{{.Role}}"];
    is(&managers[3], "it to vote again", &voters, &"Voter\n".repeat(4));
}

#[test]
fn certificates_renew_while_all_runs() {
    let cluster = Cluster::start();
    cluster.ok(["cluster", "update", "--cert-expiry", "10s"]);
    let machine = Machine { node: cluster.node(), cluster };
    let task = machine.web("one");
    let expires = || machine.node.ok(["node", "status", "--format", "{{.CertificateExpiresAt}}"]);
    // Until the second certificate is replaced too, and with it the stream that was opened with it.
    let mut seen = vec![expires()];
    for round in 0.. {
        // The node is connected all the time, or --wait would not wait for it.
        let value = format!("value {round}");
        machine.rotate("pw", &value);
        assert_eq!(task.text(machine.at("pw")), Ok(value), "after {} renewals", seen.len() - 1);
        let now = expires();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        if seen.len() == 4 {
            break;
        }
    }
}
