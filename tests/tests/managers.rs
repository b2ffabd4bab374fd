//! Several managers: joining, one history by all of them, and what goes on when one of them is gone.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyhole_tests::{Cluster, Ground, Tap, run, wait};
use rustix::process::Signal;

/// What one manager says of another, by its address.
fn told(by: &Cluster, of: &Cluster, field: &str) -> String {
    let format = format!("{{{{.Address}}}} {field}");
    let list = by.keyhole(["manager", "ls", "--format", &format]);
    let address = format!("{} ", of.address());
    let line = list.stdout.lines().find_map(|line| line.strip_prefix(&address));
    line.map_or_else(|| format!("not listed: {}", list.stderr), str::to_owned)
}

#[track_caller]
fn comes_to(by: &Cluster, of: &Cluster, field: &str, wanted: &str) {
    wait::until(&format!("{field} to be {wanted}"), || match told(by, of, field) {
        now if now == wanted => Ok(()),
        now => Err(now),
    });
}

fn create(by: &Cluster, name: &str) -> i32 {
    by.keyhole_with(["secret", "create", name, "-"], b"value").code
}

#[test]
fn every_manager_takes_every_request_and_shows_one_history() {
    let managers = Cluster::of(3);
    for round in 0..6 {
        let (writer, reader) = (&managers[round % 3], &managers[(round + 1) % 3]);
        let name = format!("s{round}");
        writer.ok_with(["secret", "create", &name, "-"], b"one");
        assert!(reader.ok(["secret", "ls", "--format", "{{.Name}}"]).contains(&name));
        reader.ok_with(["secret", "rotate", &name, "-"], b"two");
        assert_eq!(
            managers[(round + 2) % 3].ok(["secret", "inspect", "-f", "{{.CurrentVersion}}", &name]),
            "2\n"
        );
        // What is refused by the leader is refused in the same words by the others.
        let refused = reader.refused_with(["secret", "create", &name, "-"], b"x");
        assert!(refused.contains(&format!("secret {name} already exists")), "{refused}");
        writer.ok(["secret", "rm", &name]);
        let gone = reader.refused(["secret", "inspect", &name]);
        assert!(gone.contains("not found"), "{gone}");
    }
    for by in &managers {
        for of in &managers {
            assert_eq!(told(by, of, "{{.Role}} {{.Trouble}}"), "Voter ");
        }
        assert_eq!(by.ok(["cluster", "status", "-f", "{{.Health}}"]), "ok\n");
    }
}

/// Labels are changed one by one, also by managers that have not applied yet what another one has answered.
#[test]
fn labels_that_are_changed_through_several_managers_at_once_all_stay() {
    let managers = Cluster::of(3);
    let _node = managers[0].node();
    let node = managers[0].ok(["node", "ls", "-q"]);
    let node = node.trim();
    managers[0].ok_with(["secret", "create", "pw", "-"], b"x");
    let rounds = 0..8;
    let changes = managers.iter().enumerate().map(|(number, by)| {
        let labels = rounds.clone().map(|round| format!("l{number}-{round}="));
        let change = |label: String| {
            [["node", node], ["secret", "pw"]]
                .map(|[kind, name]| by.command([kind, "update", "--label-add", &label, name]))
        };
        labels.flat_map(change).collect::<Vec<_>>()
    });
    let changes: Vec<_> = changes.collect();
    std::thread::scope(|scope| {
        for one_by_one in changes {
            scope.spawn(|| {
                for change in one_by_one {
                    let ran = run(change, b"");
                    assert_eq!(ran.code, 0, "{}", ran.stderr);
                }
            });
        }
    });
    let count = "{{len .Spec.Labels}}";
    let all = format!("{}\n", rounds.len() * managers.len());
    assert_eq!(managers[1].ok(["node", "inspect", "-f", count, node]), all);
    assert_eq!(managers[2].ok(["secret", "inspect", "-f", count, "pw"]), all);
}

#[test]
fn a_change_reaches_tasks_whichever_manager_it_and_its_node_are_on() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"0");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let nodes: Vec<_> = managers.iter().map(Cluster::node).collect();
    let tasks: Vec<_> = nodes.iter().map(|node| node.task("web")).collect();
    let shown = |value: &str| {
        for (node, task) in nodes.iter().zip(&tasks) {
            assert_eq!(task.text(node.path("pw")).as_deref(), Ok(value));
        }
    };
    for (round, by) in (1..).zip(&managers) {
        let value = format!("{round}");
        // It waits for the nodes of all managers.
        by.ok_with(["secret", "rotate", "--wait", "pw", "-"], value.as_bytes());
        shown(&value);
        let ready = "Ready\n".repeat(3);
        assert_eq!(by.ok(["node", "ls", "--format", "{{.Status}}"]), ready);
        let states = by.ok(["service", "ps", "--format", "{{.CurrentState}}", "web"]);
        assert_eq!(states.matches("Running").count(), 3, "{states}");
        let status = by.ok(["secret", "status", "--format", "{{.Version}}", "pw"]);
        assert_eq!(status, format!("{}\n", round + 1).repeat(3));
    }
    // Each node follows its manager's loss within moments; nobody reads an error meanwhile.
    for lost in 0..3 {
        managers[lost].stop(Signal::KILL);
        let other = &managers[(lost + 1) % 3];
        let value = format!("without {lost}");
        wait::until("the others to take a change", || {
            match other.keyhole_with(["secret", "rotate", "pw", "-"], value.as_bytes()) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            }
        });
        wait::until("the change at all nodes", || {
            let now: Vec<_> = nodes
                .iter()
                .zip(&tasks)
                .map(|(node, task)| task.text(node.path("pw")).expect("it is never hidden"))
                .collect();
            if now.iter().all(|now| *now == value) { Ok(()) } else { Err(format!("{now:?}")) }
        });
        managers[lost].resume();
    }
}

#[test]
fn managers_are_demoted_promoted_and_removed_and_numbers_are_not_given_again() {
    let mut managers = Cluster::of(3);
    let (gone, address) = (managers.pop().unwrap(), |m: &Cluster| m.address().to_string());
    let [first, second] = &managers[..] else { unreachable!() };
    first.ok(["manager", "demote", &address(&gone)]);
    comes_to(second, &gone, "{{.Role}}", "Learner");
    // It follows without a vote, and without the keys: others are to be asked.
    let refused = gone.refused(["secret", "ls"]);
    assert!(refused.contains("was demoted and holds no keys; ask another one"), "{refused}");
    assert_eq!(gone.ok(["cluster", "status", "-f", "{{.Health}}"]), "ok\n");
    let mut gone = gone;
    gone.restart(Signal::TERM);
    comes_to(second, &gone, "{{.Role}} {{.Status}}", "Learner Reachable");
    first.ok(["manager", "promote", &address(&gone)]);
    comes_to(second, &gone, "{{.Role}}", "Voter");
    first.ok(["manager", "rm", &address(&gone)]);
    assert_eq!(gone.manager().wait().code(), Some(1), "it learns of it and stops");
    let log = gone.manager().log();
    assert!(log.contains("was removed from the cluster"), "{log}");
    assert!(told(first, &gone, "").starts_with("not listed"));
    let third = first.join();
    comes_to(second, &third, "{{.Role}} {{.Member}}", "Voter 4");
    // Stopped while it is removed, it learns of it when it starts.
    let mut third = third;
    third.stop(Signal::TERM);
    first.ok(["manager", "rm", &address(&third)]);
    third.resume();
    assert_eq!(third.manager().wait().code(), Some(1));
    assert!(third.manager().log().contains("was removed from the cluster"));
    first.ok_with(["secret", "create", "at-last", "-"], b"v");
    assert!(second.ok(["secret", "ls"]).contains("at-last"));
}

#[test]
fn what_would_lose_the_quorum_is_refused_and_so_is_what_needs_one() {
    let mut managers = Cluster::of(3);
    let only = Cluster::start();
    let refused = only.refused(["manager", "rm", &only.address().to_string()]);
    assert!(refused.contains("the only one that votes"), "{refused}");
    let refused = only.refused(["manager", "transfer-leader"]);
    assert!(refused.contains("no other manager"), "{refused}");
    let refused = only.refused(["manager", "demote", "nobody"]);
    assert!(refused.contains("manager nobody not found"), "{refused}");

    let lost = (Cluster::leader(&managers) + 1) % 3;
    managers[lost].stop(Signal::KILL);
    let at = Cluster::leader(&managers);
    let other = 3 - at - lost;
    let address = managers[other].address().to_string();
    // Nobody knows yet that it is gone.
    let refused = managers[at].refused(["manager", "rm", &address]);
    assert!(refused.contains("this would lose the quorum"), "{refused}");
    comes_to(&managers[at], &managers[lost], "{{.Status}}", "Unreachable");
    let status = managers[at].ok(["cluster", "status", "-f", "{{.Health}}"]);
    assert_eq!(status, "1 of the managers that vote out of reach; 0 more may be lost\n");
    for verb in ["rm", "demote"] {
        let refused = managers[at].refused(["manager", verb, &address]);
        assert!(refused.contains("this would lose the quorum"), "{refused}");
    }
    // Without a second one nothing is decided, and that is said.
    managers[other].stop(Signal::KILL);
    let started = Instant::now();
    let refused = managers[at].refused_with(["secret", "create", "x", "-"], b"v");
    assert!(refused.contains("are most of the managers up"), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(20));
    wait::until("the loss to be seen", || {
        match managers[at].ok(["cluster", "status", "-f", "{{.Health}}"]) {
            health if health.contains("no quorum") || health.contains("no manager leads") => Ok(()),
            health => Err(health),
        }
    });
    managers[other].resume();
    wait::until("writes again", || match create(&managers[other], "again") {
        0 => Ok(()),
        code => Err(format!("exit {code}")),
    });
}

/// Writes succeed again soon after the leader was killed.
#[test]
fn a_killed_leader_is_replaced_within_two_seconds() {
    let rounds = match std::env::var_os("KEYHOLE_SOAK") {
        Some(_) => 20,
        None => 5,
    };
    let mut managers = Cluster::of(3);
    let mut took = Vec::new();
    for round in 0..rounds {
        let lost = Cluster::leader(&managers);
        let other = &managers[(lost + 1) % 3];
        create(other, &format!("before{round}"));
        let name = format!("after{round}");
        managers[lost].stop(Signal::KILL);
        let started = Instant::now();
        let other = &managers[(lost + 1) % 3];
        wait::until("a write", || match create(other, &name) {
            0 => Ok(()),
            code => Err(format!("exit {code}")),
        });
        took.push(started.elapsed());
        managers[lost].resume();
        comes_to(
            &managers[(lost + 1) % 3],
            &managers[lost],
            "{{.Status}} {{.Behind}}",
            "Reachable 0",
        );
        for by in &managers {
            assert!(by.ok(["secret", "ls", "--format", "{{.Name}}"]).contains(&name));
        }
    }
    took.sort();
    println!("writes again after {took:?}");
    assert!(took[took.len() / 2] < Duration::from_secs(2), "{took:?}");
}

/// Who asked another manager is told what came of it, though the leader went with his command half done.
#[test]
fn a_killed_leader_leaves_nobody_in_doubt() {
    const WRITERS: usize = 4;
    let mut managers = Cluster::of(3);
    for writer in 0..WRITERS {
        managers[0].ok_with(["secret", "create", &format!("s{writer}"), "-"], b"0");
    }
    let written = AtomicUsize::new(0);
    for _ in 0..4 {
        let lost = Cluster::leader(&managers);
        let stop = AtomicBool::new(false);
        let host =
            |at: usize| format!("unix://{}", managers[(lost + 1 + at % 2) % 3].socket().display());
        let hosts: Vec<_> = (0..WRITERS).map(host).collect();
        std::thread::scope(|scope| {
            for (writer, host) in hosts.iter().enumerate() {
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let mut command = keyhole_tests::plain_command();
                        let name = format!("s{writer}");
                        command.args(["--host", host, "secret", "rotate", &name, "-"]);
                        let ran = keyhole_tests::run(command, b"v");
                        assert_eq!(ran.code, 0, "{}", ran.stderr);
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let until = |count: usize| {
                wait::until("writes", || match written.load(Ordering::Relaxed) {
                    now if now >= count => Ok(()),
                    now => Err(now.to_string()),
                });
            };
            until(written.load(Ordering::Relaxed) + 2 * WRITERS);
            managers[lost].stop(Signal::KILL);
            until(written.load(Ordering::Relaxed) + 2 * WRITERS);
            stop.store(true, Ordering::Relaxed);
        });
        managers[lost].resume();
    }
    let versions = managers[0].ok(["secret", "ls", "--format", "{{.Version}}"]);
    let versions: usize = versions.lines().map(|line| line.parse::<usize>().unwrap()).sum();
    assert_eq!(versions, WRITERS + written.into_inner(), "each once");
}

/// All managers are restarted one after another while somebody writes and a task reads.
#[test]
fn a_rolling_restart_loses_no_write_and_no_read() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"0");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let node = managers[0].node();
    let task = node.task("web");
    let sockets: Vec<_> = managers.iter().map(|m| m.socket().to_owned()).collect();
    let (stop, path) = (AtomicBool::new(false), node.path("pw"));
    let (written, task) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                // Whoever listens is asked; what he took must be done.
                let value = (written + 1).to_string();
                let taken = sockets.iter().cycle().skip(written).take(6).any(|socket| {
                    let mut command = keyhole_tests::plain_command();
                    command.arg("--host").arg(format!("unix://{}", socket.display()));
                    command.args(["secret", "rotate", "pw", "-"]);
                    let ran = keyhole_tests::run(command, value.as_bytes());
                    let away = ran.stderr.contains("cannot reach the manager")
                        || ran.stderr.contains("is stopping")
                        || ran.stderr.contains("nothing was done");
                    assert!(ran.code == 0 || away, "{}", ran.stderr);
                    ran.code == 0
                });
                assert!(taken, "somebody takes it");
                written += 1;
            }
            written
        });
        let (stopping, read) = (&stop, path.clone());
        let reader = scope.spawn(move || {
            let mut last = 0;
            while !stopping.load(Ordering::Relaxed) {
                let now: usize = task.text(&read).unwrap().parse().unwrap();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
            task
        });
        for _ in 0..2 {
            for at in 0..3 {
                managers[at].restart(Signal::TERM);
                let by = &managers[(at + 1) % 3];
                comes_to(
                    by,
                    &managers[at],
                    "{{.Status}}",
                    match Cluster::leader(&managers) {
                        leader if leader == at => "Leader",
                        _ => "Reachable",
                    },
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
        let task = reader.join().unwrap();
        (writer.join().unwrap(), task)
    });
    assert!(written > 10, "{written}");
    let current = managers[0].ok(["secret", "inspect", "-f", "{{.CurrentVersion}}", "pw"]);
    assert_eq!(current, format!("{}\n", written + 1), "each write once");
    wait::until("the last one at the task", || match task.text(&path).unwrap() {
        now if now == written.to_string() => Ok(()),
        now => Err(now),
    });
}

/// By entries if the leader still has them, else by a snapshot; others go on writing meanwhile.
#[test]
fn a_manager_that_was_away_catches_up() {
    let mut managers = Cluster::of(3);
    let away = (Cluster::leader(&managers) + 1) % 3;
    let by = (away + 1) % 3;
    for (round, kib) in [(0, 1), (1, 450)] {
        managers[away].stop(Signal::TERM);
        // The second time more than a leader keeps of its log.
        let value = vec![7; kib << 10];
        for at in 0..60 {
            let name = format!("s{round}-{at}");
            managers[by].ok_with(["secret", "create", &name, "-"], &value);
        }
        if round == 1 {
            wait::until("a snapshot", || {
                match managers[by].ok(["cluster", "status", "-f", "{{.Raft.Snapshot}}"]) {
                    none if none == "0\n" => Err(none),
                    _ => Ok(()),
                }
            });
        }
        managers[away].resume();
        for at in 60..70 {
            managers[by].ok_with(["secret", "create", &format!("s{round}-{at}"), "-"], b"v");
        }
        let names = managers[away].ok(["secret", "ls", "--format", "{{.Name}}"]);
        assert_eq!(names.lines().filter(|n| n.starts_with(&format!("s{round}-"))).count(), 70);
    }
    let log = managers[away].manager().log();
    assert!(log.contains("installing a snapshot"), "{log}");
    // What it did not see one by one its audit says, and the others' have it.
    let verified =
        managers[by].ok(["audit", "verify", "--data-dir", managers[away].data().to_str().unwrap()]);
    let skipped = "came in a snapshot: other managers' audits have them";
    assert!(verified.contains(skipped), "{verified}");
    let other =
        managers[by].ok(["audit", "verify", "--data-dir", managers[by].data().to_str().unwrap()]);
    assert!(!other.contains(skipped), "{other}");
    // What came by the snapshot opens here: this manager can serve it.
    managers[away].ok(["service", "create", "web", "--secret", "s1-0"]);
    let node = managers[away].node();
    let task = node.task("web");
    assert_eq!(task.slurp(node.path("s1-0")).unwrap(), vec![7; 450 << 10]);
}

/// Half of the way there and back that managers bear between each other (docs/MANAGERS.md).
const HALF_WAY: Duration = Duration::from_millis(50);

/// Longer than three times as long as followers bear without a heartbeat.
const QUIET: Duration = Duration::from_secs(5);

fn led(by: &Cluster) -> String {
    by.ok(["cluster", "status", "-f", "{{.Raft.Term}} {{.Health}}"])
}

#[test]
fn managers_far_apart_keep_their_leader_and_take_every_write() {
    let managers = Cluster::far_apart(3, HALF_WAY);
    let (before, mut written) = (led(&managers[Cluster::leader(&managers)]), 0);
    assert!(before.ends_with(" ok\n"), "{before}");
    for _ in 0..2 {
        for by in &managers {
            by.ok_with(["secret", "create", &format!("s{written}"), "-"], b"v");
            written += 1;
            for by in &managers {
                assert_eq!(by.ok(["secret", "ls", "-q"]).lines().count(), written);
            }
        }
        // Entries tell of the leader, too; now there are few, and heartbeats have to.
        let quiet = Instant::now();
        while quiet.elapsed() < QUIET {
            for by in &managers {
                assert_eq!(led(by), before, "after {:?} without a write", quiet.elapsed());
            }
        }
    }
}

#[test]
fn managers_far_apart_follow_another_leader_and_catch_up_by_entries_and_by_a_snapshot() {
    let mut managers = Cluster::far_apart(3, HALF_WAY);
    // Behind what made the last one a voter: until that is over, the first two decide nothing without each other.
    for by in &managers {
        by.ok_with(["secret", "create", &format!("by-{}", by.address().port()), "-"], b"v");
    }
    for kib in [1, 450] {
        let away = Cluster::leader(&managers);
        managers[away].stop(Signal::KILL);
        let by = &managers[(away + 1) % 3];
        // The second time more than a leader keeps of its log.
        let value = vec![7; kib << 10];
        let create = |at| by.command(["secret", "create", &format!("s{kib}-{at}"), "-"]);
        let several: Vec<Vec<_>> =
            (0..4).map(|one| (0..15).map(|at| create(one * 15 + at)).collect()).collect();
        std::thread::scope(|scope| {
            for one_by_one in several {
                let value = &value;
                scope.spawn(move || {
                    for create in one_by_one {
                        let ran = run(create, value);
                        assert_eq!(ran.code, 0, "{}", ran.stderr);
                    }
                });
            }
        });
        if kib > 1 {
            wait::until("a snapshot", || {
                match by.ok(["cluster", "status", "-f", "{{.Raft.Snapshot}}"]) {
                    none if none == "0\n" => Err(none),
                    _ => Ok(()),
                }
            });
        }
        managers[away].resume();
        comes_to(
            &managers[(away + 1) % 3],
            &managers[away],
            "{{.Status}} {{.Behind}}",
            "Reachable 0",
        );
        let names = managers[away].ok(["secret", "ls", "--format", "{{.Name}}"]);
        assert_eq!(names.lines().filter(|n| n.starts_with(&format!("s{kib}-"))).count(), 60);
        let by_snapshot = managers[away].manager().log().contains("installing a snapshot");
        assert_eq!(by_snapshot, kib > 1);
    }
}

/// Two MiB of entries, which the leader sends in one call, take four seconds.
#[test]
fn a_manager_behind_a_slow_line_catches_up() {
    let managers = Cluster::of(2);
    let mut slow = managers[0].join_behind(&Tap::slow(512 << 10));
    comes_to(&managers[0], &slow, "{{.Role}} {{.Behind}}", "Voter 0");
    slow.stop(Signal::KILL);
    for at in 0..8 {
        let name = format!("s{at}");
        managers[at % 2].ok_with(["secret", "create", &name, "-"], &vec![7; 450 << 10]);
    }
    slow.resume();
    comes_to(&managers[0], &slow, "{{.Status}} {{.Behind}}", "Reachable 0");
    assert_eq!(slow.ok(["secret", "ls", "-q"]).lines().count(), 8);
    assert!(!slow.manager().log().contains("installing a snapshot"));
}

/// It learns from the newcomer that the newcomer is one.
#[test]
fn who_was_away_follows_a_leader_that_joined_meanwhile() {
    let mut managers = Cluster::of(3);
    managers[2].stop(Signal::TERM);
    let newcomer = managers[0].join();
    comes_to(&managers[0], &newcomer, "{{.Role}}", "Voter");
    let address = newcomer.address().to_string();
    let leads = |by: &Cluster| {
        by.keyhole(["manager", "ls", "-f", "status=leader", "--format", "{{.Address}}"]).stdout
    };
    managers[0].ok(["manager", "transfer-leader", &address]);
    wait::until("the newcomer to lead", || match leads(&managers[0]) {
        leader if leader.trim() == address => Ok(()),
        other => Err(other),
    });
    let audit = fs::read_to_string(managers[0].data().join("audit/audit-000001.jsonl"));
    let line = "\"action\":\"manager.transfer-leader\"";
    assert_eq!(audit.expect("its audit").matches(line).count(), 1);
    newcomer.ok_with(["secret", "create", "meanwhile", "-"], b"v");
    managers[2].resume();
    wait::until("the one that was away to catch up", || {
        let names = managers[2].keyhole(["secret", "ls", "--format", "{{.Name}}"]);
        match names.stdout == "meanwhile\n" {
            true => Ok(()),
            false => Err(names.stdout + &names.stderr),
        }
    });
    assert_eq!(leads(&managers[2]).trim(), address, "still the newcomer");
}

/// Doing without its vote needs its vote: it must not stop before.
#[test]
fn of_two_managers_either_can_be_removed_by_itself_or_by_the_other() {
    for (gone, asked) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut managers = Cluster::of(2);
        let address = managers[gone].address().to_string();
        let stays = 1 - gone;
        managers[asked].ok(["manager", "rm", &address]);
        assert_eq!(managers[gone].manager().wait().code(), Some(1));
        managers[stays].ok_with(["secret", "create", "alone", "-"], b"v");
        assert_eq!(managers[stays].ok(["manager", "ls", "--format", "{{.Status}}"]), "Leader\n");
        assert_eq!(managers[stays].ok(["cluster", "status", "-f", "{{.Health}}"]), "ok\n");
    }
}

/// Nobody has to know how long Raft takes to do without its vote.
#[test]
fn a_manager_can_be_stopped_as_soon_as_it_was_removed() {
    let first = Cluster::start();
    for removal in 0..9 {
        let mut gone = first.join();
        // Else it is in the middle of becoming a voter.
        if removal % 3 > 0 {
            comes_to(&first, &gone, "{{.Role}}", "Voter");
        }
        let asked = if removal % 3 == 2 { &gone } else { &first };
        asked.ok(["manager", "rm", &gone.address().to_string()]);
        gone.stop(Signal::KILL);
        first.ok_with(["secret", "create", &format!("without-{removal}"), "-"], b"v");
    }
}

/// Whoever switched it off then would leave no quorum.
#[test]
fn who_demotes_or_removes_is_told_while_the_vote_is_still_needed() {
    for verb in ["demote", "rm"] {
        let mut managers = Cluster::of(2);
        let slow = managers[0].join_behind(&Tap::slow(512 << 10));
        comes_to(&managers[0], &slow, "{{.Role}} {{.Behind}}", "Voter 0");
        // It is in reach, but the change comes to it after these, in some ten seconds.
        for at in 0..14 {
            let name = format!("s{at}");
            managers[0].ok_with(["secret", "create", &name, "-"], &vec![7; 450 << 10]);
        }
        let address = managers[1].address().to_string();
        let told = managers[0].refused(["manager", verb, &address]);
        assert!(told.contains("has not agreed to do without its vote yet: let it run"), "{told}");
        if verb == "demote" {
            assert!(told.contains("`manager ls` shows it as a learner"), "{told}");
            comes_to(&managers[0], &managers[1], "{{.Role}}", "Learner");
            managers[1].stop(Signal::KILL);
        } else {
            assert!(told.contains("it stops by itself"), "{told}");
            assert_eq!(managers[1].manager().wait().code(), Some(1));
        }
        managers[0].ok_with(["secret", "create", "without", "-"], b"v");
    }
}

/// The connection to it is dead, and nothing but the question finds that out.
#[test]
fn a_manager_asks_one_that_was_restarted_on_a_new_connection() {
    let mut managers = Cluster::of(3);
    let node = managers[0].node();
    let on = || node.ok(["node", "status", "--format", "{{.Manager}}"]).trim().to_owned();
    let at = wait::until("the node to be on one of them", || {
        let home = on();
        managers.iter().position(|m| m.address().to_string() == home).ok_or(home)
    });
    let home = managers[at].address().to_string();
    let (asked, leads) = ((at + 1) % 3, (at + 2) % 3);
    let lead = managers[leads].address().to_string();
    managers[asked].ok(["manager", "transfer-leader", &lead]);
    let said = |by: &Cluster| by.ok(["node", "ls", "--format", "{{.Status}}"]);
    assert_eq!(said(&managers[asked]), "Ready\n");
    managers[at].restart(Signal::KILL);
    wait::until_within(Duration::from_secs(45), "the node to be back home", || match on() {
        now if now == home => Ok(()),
        now => Err(now),
    });
    assert_eq!(said(&managers[asked]), "Ready\n");
}

/// Its vote would be missed at once, and could not be taken back.
#[test]
fn a_manager_that_is_promoted_while_it_is_off_votes_when_it_is_back() {
    let mut managers = Cluster::of(2);
    let stays = Cluster::leader(&managers);
    let off = 1 - stays;
    let address = managers[off].address().to_string();
    managers[stays].ok(["manager", "demote", &address]);
    managers[off].stop(Signal::TERM);
    comes_to(&managers[stays], &managers[off], "{{.Status}}", "Unreachable");
    managers[stays].ok(["manager", "promote", &address]);
    managers[stays].ok_with(["secret", "create", "meanwhile", "-"], b"v");
    managers[off].resume();
    comes_to(&managers[stays], &managers[off], "{{.Role}}", "Voter");
    assert_eq!(managers[off].ok(["secret", "ls", "--format", "{{.Name}}"]), "meanwhile\n");
}

/// It joined, and got its task, while the one manager that is left of three was off.
#[test]
fn a_node_that_a_manager_has_not_heard_of_yet_keeps_its_files() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"v");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    managers[2].stop(Signal::TERM);
    let node = managers[0].node();
    let task = node.task("web");
    let trouble = || node.ok(["node", "status", "--format", "{{.Trouble}}"]);
    let mut others = managers.split_off(1);
    others[0].stop(Signal::KILL);
    managers[0].stop(Signal::KILL);
    others[1].resume();
    let behind = format!("{}: ", others[1].address());
    wait::until("the node to be put off by the one that is behind", || match trouble() {
        why if why.contains(&behind) && why.contains("this manager does not lead the cluster") => {
            Ok(())
        }
        why => Err(why),
    });
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("v"));
    managers[0].resume();
    others[0].resume();
    wait::until("the node to be back", || match trouble() {
        why if why == "\n" => Ok(()),
        why => Err(why),
    });
    others[1].ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("w"));
}

/// Nothing says that it is gone: no connection ends. When it is back, so are its nodes. Each manager in turn, for a machine
/// may halt for a moment itself; the one that leads last: no manager lets nodes in before there is a new leader.
#[test]
fn a_manager_that_falls_silent_is_left_within_a_second_and_gone_back_to() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"none");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let nodes: Vec<_> = (0..6).map(|at| managers[at % 3].node()).collect();
    let tasks: Vec<_> = nodes.iter().map(|node| node.task("web")).collect();
    let on = |at: usize| nodes[at].ok(["node", "status", "--format", "{{.Manager}}"]);
    let homes: Vec<_> = (0..nodes.len()).map(on).collect();
    let read = || -> Vec<_> {
        nodes.iter().zip(&tasks).map(|(node, task)| task.text(node.path("pw")).unwrap()).collect()
    };
    // Most nodes are with those that do not lead.
    let least = (0..3).min_by_key(|at| {
        let address = format!("{}\n", managers[*at].address());
        homes.iter().filter(|home| **home == address).count()
    });
    let least = least.unwrap();
    if Cluster::leader(&managers) != least {
        let address = managers[least].address().to_string();
        managers[0].ok(["manager", "transfer-leader", &address]);
    }
    let mut all = Vec::new();
    for silent in [(least + 1) % 3, (least + 2) % 3, least] {
        let leads = Cluster::leader(&managers) == silent;
        let lost = format!("{}\n", managers[silent].address());
        // Those too that have just lost another one.
        let its: Vec<_> = (0..nodes.len()).filter(|at| on(*at) == lost).collect();
        if its.is_empty() {
            continue;
        }
        managers[silent].manager().signal(Signal::STOP);
        let (started, mut left) = (Instant::now(), Vec::new());
        wait::until("its nodes to leave it", || {
            for at in &its {
                let now = on(*at);
                if now != lost && now != "\n" && !left.iter().any(|(gone, _)| gone == at) {
                    left.push((*at, started.elapsed()));
                }
            }
            if left.len() == its.len() { Ok(()) } else { Err(format!("{left:?} of {its:?}")) }
        });
        println!(
            "left after {left:?}{}",
            if leads { ", when there was a leader again" } else { "" }
        );
        let slowest = left.last().expect("it has some").1;
        match leads {
            // The election's two seconds, and the node's own.
            true => assert!(slowest < Duration::from_secs(3), "{left:?}"),
            false => all.extend(left.iter().map(|(_, after)| *after)),
        }
        let other = &managers[(silent + 1) % 3];
        let value = silent.to_string();
        wait::until("the others to take a change", || {
            match other.keyhole_with(["secret", "rotate", "pw", "-"], value.as_bytes()) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            }
        });
        wait::until("the change at all nodes", || match read() {
            now if now.iter().all(|now| *now == value) => Ok(()),
            now => Err(format!("{now:?}")),
        });
        managers[silent].manager().signal(Signal::CONT);
        let unreachable = ["manager", "ls", "-q", "-f", "status=unreachable"];
        wait::until("all managers", || match managers[(silent + 1) % 3].ok(unreachable) {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        });
    }
    let before = read();
    wait::until_within(Duration::from_secs(60), "all nodes to go back", || {
        let now: Vec<_> = (0..nodes.len()).map(on).collect();
        if now == homes { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(read(), before, "nothing goes back");
    all.sort();
    assert!(all[all.len() / 2] < Duration::from_secs(1), "{all:?}");
}

/// It could not tell them of a revocation.
#[test]
fn a_manager_without_a_quorum_sends_its_nodes_away_and_tasks_read_on() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"v");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let node = managers[0].node();
    let task = node.task("web");
    let on = node.ok(["node", "status", "--format", "{{.Manager}}"]);
    let others = |managers: &mut [Cluster], signal| {
        let elsewhere = |manager: &&mut Cluster| manager.address().to_string() != on.trim();
        let others: Vec<_> = managers.iter_mut().filter(elsewhere).collect();
        assert_eq!(others.len(), 2, "the node is on one of them: {on}");
        others.into_iter().for_each(|other| other.manager().signal(signal));
    };
    others(&mut managers, Signal::STOP);
    let trouble = || node.ok(["node", "status", "--format", "{{.Trouble}}"]);
    wait::until("the node to be sent away", || match trouble() {
        why if why.contains("cut off from the other managers") => Ok(()),
        why => Err(why),
    });
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("v"));
    others(&mut managers, Signal::CONT);
    wait::until("the node to be back", || match trouble() {
        why if why == "\n" => Ok(()),
        why => Err(why),
    });
    managers[0].ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("w"));
}

/// Nobody has to find out by waiting that a leader has stopped. Killed, it would tell nobody.
#[test]
fn a_leader_that_stops_has_another_one_lead_first() {
    let args = ["--log-level", "info,openraft=info"];
    let first = Cluster::start_with(Arc::new(Ground::new()), &args);
    let (second, third) = (first.join(), first.join());
    let mut managers = vec![first, second, third];
    for at in 0..3 {
        comes_to(&managers[0], &managers[at], "{{.Role}}", "Voter");
    }
    let asked = |manager: &mut Cluster| {
        let log = manager.manager().log();
        log.lines().filter(|line| line.contains("Transfer Leader from")).count()
    };
    let before: Vec<usize> = managers.iter_mut().map(asked).collect();
    let stopped = Cluster::leader(&managers);
    managers[stopped].stop(Signal::TERM);
    let next = Cluster::leader(&managers);
    assert_ne!(next, stopped);
    assert_eq!(asked(&mut managers[next]), before[next] + 1, "it found out by itself");
}
