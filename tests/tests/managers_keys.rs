//! Several managers and their value keys: who goes leaves none behind that anything is sealed under, and none stays in memory.

use std::fs;

use keyhole_tests::{Cluster, wait};
use rustix::process::Signal;

/// Who knew the keys and is gone knows none that anything is sealed under.
#[test]
fn keys_rotate_when_a_manager_goes_and_when_an_operator_says_so() {
    let mut managers = Cluster::of(3);
    let node = managers[1].node();
    for at in 0..150 {
        managers[at % 3].ok_with(["secret", "create", &format!("s{at}"), "-"], b"value");
    }
    managers[0].ok_with(["secret", "rotate", "s7", "-"], b"second");
    managers[0].ok(["service", "create", "web", "--secret", "s7"]);
    let task = node.task("web");
    let token = managers[0].ok(["cluster", "join-token", "-q", "manager"]);
    let keys = |by: &Cluster| by.ok(["cluster", "status", "-f", "{{.KeyEpoch}} {{.UnderOldKeys}}"]);
    assert_eq!(keys(&managers[0]), "1 0\n");
    assert_eq!(managers[1].ok(["cluster", "rotate-keys", "--wait"]), "key epoch 2\n");
    assert_eq!(keys(&managers[2]), "2 0\n");
    assert_ne!(managers[0].ok(["cluster", "join-token", "-q", "manager"]), token);
    // What was sealed anew opens, on every manager, also after a restart.
    task.text(node.path("s7")).unwrap();
    let gone = managers.pop().unwrap();
    managers[0].ok(["manager", "rm", &gone.address().to_string()]);
    wait::until("a new key, and all under it", || match keys(&managers[0]) {
        now if now == "3 0\n" => Ok(()),
        now => Err(now),
    });
    managers.iter_mut().for_each(|manager| manager.restart(Signal::KILL));
    let other = managers[1].node();
    let here = other.task("web");
    assert_eq!(here.text(other.path("s7")), Ok("second".to_owned()));
    managers[0].ok(["secret", "rollback", "s7"]);
    wait::until("the first version", || match here.text(other.path("s7")) {
        Ok(text) if text == "value" => Ok(()),
        now => Err(format!("{now:?}")),
    });
}

/// KEYS "What protects what": a value key goes from memory with the cluster's. Each lies in a locked page of its own.
#[test]
fn a_manager_keeps_no_value_key_that_the_cluster_has_dropped() {
    let mut manager = Cluster::start();
    manager.ok_with(["secret", "create", "pw", "-"], b"value");
    let status = format!("/proc/{}/status", manager.manager().pid());
    let locked = || -> u64 {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    manager.ok(["cluster", "rotate-keys", "--wait"]);
    let before = locked();
    for _ in 0..16 {
        manager.ok(["cluster", "rotate-keys", "--wait"]);
    }
    wait::until("no more memory to be locked than before", || match locked() {
        now if now <= before => Ok(()),
        now => Err(format!("{now} KiB, and {before} before")),
    });
}

/// ARCHITECTURE, "Keys follow membership": whoever leads next goes on where the last one stopped.
#[test]
fn a_leader_that_is_killed_while_values_are_sealed_anew_is_followed_there() {
    const VALUES: usize = 40;
    for count in [1, 3] {
        let mut managers = Cluster::of(count);
        // Each is a command of its own.
        let value = vec![7; 300 << 10];
        for at in 0..VALUES {
            managers[0].ok_with(["secret", "create", &format!("s{at}"), "-"], &value);
        }
        let lead = Cluster::leader(&managers);
        managers[lead].ok(["cluster", "rotate-keys"]);
        wait::until("some to be sealed anew", || match resealed(&managers[lead]) {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        });
        managers[lead].stop(Signal::KILL);
        let done = resealed(&managers[lead]);
        assert!(done < VALUES / 2, "it was killed too late: {done} of {VALUES}");
        managers[lead].resume();
        wait::until("all to be sealed anew", || {
            match managers[lead].ok(["cluster", "status", "-f", "{{.KeyEpoch}} {{.UnderOldKeys}}"])
            {
                now if now == "2 0\n" => Ok(()),
                now => Err(now),
            }
        });
    }
}

/// How many values a manager's audit tells of as sealed anew.
fn resealed(manager: &Cluster) -> usize {
    let files = fs::read_dir(manager.data().join("audit")).unwrap();
    let lines = |path| fs::read_to_string(path).unwrap();
    let resealed = |file: String| file.matches("\"cluster.reseal\"").count();
    files.map(|file| resealed(lines(file.unwrap().path()))).sum()
}
