//! Autolock and the keys of the managers' stores (GUARANTEES G24): a manager that is started is locked, tells nothing but
//! that, and opens with the unlock key only.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use keyhole_manager::keys::Kek;
use keyhole_manager::store::Store;
use keyhole_tests::{Cluster, plain_command, scan, wait};
use keyhole_wire::unlock_key::parse_unlock_key;
use rustix::process::Signal;

fn status(of: &Cluster, field: &str) -> String {
    of.keyhole(["cluster", "status", "-f", &format!("{{{{.{field}}}}}")]).stdout.trim().to_owned()
}

/// Each member's number of store keys, as one manager says.
fn behind(of: &Cluster) -> Vec<String> {
    let format = "{{range .Managers}}{{if .StoreBehind}}{{.Addr}} {{end}}{{end}}";
    let ran = of.keyhole(["cluster", "status", "-f", format]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout.split_whitespace().map(str::to_owned).collect()
}

#[track_caller]
fn all_written(of: &Cluster) {
    wait::until("all stores to be under the new keys", || match behind(of) {
        left if left.is_empty() => Ok(()),
        left => Err(left.join(" ")),
    });
}

fn lock(cluster: &Cluster) -> String {
    let told = cluster.ok(["cluster", "update", "--autolock=true"]);
    let key = told.lines().map(str::trim).find(|line| line.starts_with("KHKEY-1-"));
    key.unwrap_or_else(|| panic!("no key in {told}")).to_owned()
}

fn unlock(cluster: &Cluster, key: &str) {
    cluster.ok_with(["cluster", "unlock"], key.as_bytes());
}

fn opens(data: &Path, key: &str) -> bool {
    let key = parse_unlock_key(key.as_bytes()).unwrap();
    Store::sealed(data).unwrap().opens_with(&Kek::from_key(key, "the unlock key"))
}

#[test]
fn a_manager_that_is_started_is_locked_and_only_the_key_opens_it() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"value");
    let key = lock(&managers[0]);
    all_written(&managers[0]);
    for manager in &managers {
        assert!(!manager.data().join("kek").exists(), "no key lies beside the store");
        assert_eq!(status(manager, "Autolock"), "true");
    }
    assert_eq!(managers[1].ok(["cluster", "unlock-key", "-q"]).trim(), key);
    managers[2].stop(Signal::KILL);
    assert!(opens(managers[2].data(), &key));
    managers[0].ok_with(["secret", "rotate", "pw", "-"], b"while it was away");
    managers[2].resume_locked();

    // It says that it is locked, and nothing else to anybody.
    let locked = &managers[2];
    assert_eq!(status(locked, "Locked"), "true");
    let told = locked.ok(["cluster", "status"]);
    assert!(told.contains("locked; unlock it with 'keyhole cluster unlock'"), "{told}");
    for request in [&["secret", "ls"][..], &["cluster", "unlock-key"], &["manager", "ls"]] {
        let refused = locked.refused(request);
        assert!(refused.contains("this manager is locked"), "{refused}");
    }
    assert!(TcpStream::connect(locked.address()).is_err(), "nothing listens at its port");
    assert_eq!(
        managers[0].ok(["secret", "ls", "--format", "{{.Name}}"]),
        "pw\n",
        "the others serve"
    );

    // Other keys, and texts that are none.
    let other =
        keyhole_wire::unlock_key::unlock_key_text(&keyhole_secmem::Key32::generate().unwrap());
    let other = String::from_utf8(other.unwrap().as_slice().to_vec()).unwrap();
    let asked = Instant::now();
    let refused = locked.refused_with(["cluster", "unlock"], other.as_bytes());
    assert!(refused.contains("invalid key provided") && refused.contains("rotated"), "{refused}");
    assert!(asked.elapsed() > Duration::from_millis(900), "the next attempt has to wait");
    for (text, why) in
        [("hunter2", "not an unlock key"), ("", "no unlock key"), (&key[..30], "cut off")]
    {
        let refused = locked.refused_with(["cluster", "unlock"], text.as_bytes());
        assert!(refused.contains(why) && !refused.contains("hunter2"), "{refused}");
    }
    assert_eq!(status(locked, "Locked"), "true");
    // Who tried is known also if nobody ever opens it.
    let audit =
        |of: &Cluster| fs::read_to_string(of.data().join("audit/audit-000001.jsonl")).unwrap();
    assert_eq!(audit(locked).matches("a wrong unlock key").count(), 1);
    managers[2].stop(Signal::KILL);
    managers[2].resume_locked();
    let locked = &managers[2];

    unlock(locked, &format!("{key}\n"));
    // It catches up by itself.
    wait::until("it to have what it missed", || {
        let version = locked.keyhole(["secret", "inspect", "-f", "{{.CurrentVersion}}", "pw"]);
        if version.stdout == "2\n" { Ok(()) } else { Err(version.stderr) }
    });
    let refused = locked.refused_with(["cluster", "unlock"], key.as_bytes());
    assert!(refused.contains("not locked"), "{refused}");
    let audit = audit(locked);
    let unlocked = audit.lines().filter(|line| line.contains("\"unlocked\":{")).count();
    let wrong = audit.lines().filter(|line| line.contains("a wrong unlock key")).count();
    assert_eq!((unlocked, wrong), (1, 1), "{audit}");
    assert!(audit.contains("cluster.unlock-key.show") && !audit.contains(&key), "{audit}");
}

/// Whatever is lost on the way of a new key to an operator, and though all managers stop before it is there: stores open
/// with a key that he has.
#[test]
fn no_store_is_under_an_unlock_key_that_nobody_has_seen() {
    let mut managers = Cluster::of(3);
    let unseen = |of: &Cluster| {
        wait::until("all three to wait", || {
            let told = of.ok(["cluster", "status"]);
            let waits = told.contains("stores wait until the new unlock key was seen");
            match waits && told.matches("waits for an operator to see").count() == 3 {
                true => Ok(()),
                false => Err(told),
            }
        });
    };
    // The answer has nowhere to go.
    let told = lost(&managers[0], &["cluster", "update", "--autolock=true"]);
    assert!(told.contains("No space left"), "{told}");
    unseen(&managers[0]);
    for manager in &mut managers {
        manager.stop(Signal::KILL);
    }
    for manager in &mut managers {
        manager.resume();
    }
    unseen(&managers[1]);
    let first = managers[1].ok(["cluster", "unlock-key", "-q"]).trim().to_owned();
    all_written(&managers[1]);

    let told = managers[0].keyhole(["cluster", "rotate-store-keys"]);
    assert!(told.stderr.contains("the stores wait until you have seen it"), "{told:?}");
    assert!(!told.stdout.contains("KHKEY"), "it may go to a log");
    lost(&managers[2], &["cluster", "unlock-key", "--rotate"]);
    unseen(&managers[2]);
    for manager in &mut managers {
        manager.stop(Signal::KILL);
    }
    for manager in &mut managers {
        manager.resume_locked();
        unlock(manager, &first);
    }
    let second = managers[0].ok(["cluster", "unlock-key"]);
    let second = second.lines().map(str::trim).find(|line| line.starts_with("KHKEY-1-")).unwrap();
    all_written(&managers[0]);
    for manager in &mut managers {
        manager.stop(Signal::KILL);
        assert!(opens(manager.data(), second) && !opens(manager.data(), &first));
    }
    let audit = fs::read_to_string(managers[0].data().join("audit/audit-000001.jsonl")).unwrap();
    assert_eq!(audit.matches("\"cluster.unlock-key.seen\"").count(), 2, "{audit}");
}

/// What a command said that could not write its answer.
fn lost(of: &Cluster, arguments: &[&str]) -> String {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = plain_command();
    command.env("KEYHOLE_HOST", format!("unix://{}", of.socket().display()));
    let ran = command.args(arguments).stdout(full).output().unwrap();
    assert!(!ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stderr).unwrap()
}

/// The key is in no log, audit or file of a manager, nor in the memory of one but where it is used.
#[test]
fn the_unlock_key_is_written_nowhere() {
    let mut cluster = Cluster::start();
    let key = lock(&cluster);
    all_written(&cluster);
    let raw = parse_unlock_key(key.as_bytes()).unwrap().expose().to_vec();
    let folder = cluster.ground().folder().to_owned();
    let needles =
        [scan::halves("the key", &raw), scan::halves("its text", key.as_bytes())].concat();
    let found = scan::files(&folder, &needles);
    assert!(found.hits.is_empty() && found.files > 3, "{found:?}");
    let log = cluster.manager().log();
    assert!(!log.contains(&key), "{log}");
}

#[test]
fn a_manager_that_was_away_while_the_key_was_rotated_opens_with_the_one_before() {
    let mut managers = Cluster::of(3);
    let old = lock(&managers[0]);
    all_written(&managers[0]);
    managers[1].stop(Signal::KILL);
    let told = managers[0].ok(["cluster", "unlock-key", "--rotate"]);
    assert!(told.contains("still opens with the one before"), "{told}");
    let new = managers[0].ok(["cluster", "unlock-key", "-q"]).trim().to_owned();
    assert!(new != old && told.contains(&new));
    let away = managers[1].address().to_string();
    wait::until("only the one that is away to be behind", || match behind(&managers[0]) {
        left if left == [away.clone()] => Ok(()),
        left => Err(left.join(" ")),
    });
    let named = managers[0].ok(["cluster", "status"]);
    let line = named.lines().find(|line| line.contains(&away)).unwrap_or_default();
    assert!(line.contains("not under the new keys"), "{named}");
    managers[1].resume_locked();
    let refused = managers[1].refused_with(["cluster", "unlock"], new.as_bytes());
    assert!(refused.contains("it still opens with the one before"), "{refused}");
    unlock(&managers[1], &old);
    all_written(&managers[0]);
    managers[1].stop(Signal::KILL);
    assert!(opens(managers[1].data(), &new) && !opens(managers[1].data(), &old));
    managers[1].resume_locked();
    unlock(&managers[1], &new);

    // Without autolock each has a key file again.
    managers[2].ok(["cluster", "update", "--autolock=false"]);
    all_written(&managers[0]);
    let refused = managers[0].refused(["cluster", "unlock-key"]);
    assert!(refused.contains("autolock is not turned on"), "{refused}");
    for manager in &mut managers {
        manager.restart(Signal::KILL);
    }
    // Who joins a locked cluster is locked, and a demoted one is not.
    let key = lock(&managers[0]);
    let joined = managers[0].join();
    managers.push(joined);
    all_written(&managers[0]);
    managers[3].stop(Signal::TERM);
    managers[3].resume_locked();
    unlock(&managers[3], &key);
    managers[0].ok(["manager", "demote", &managers[3].address().to_string()]);
    all_written(&managers[0]);
    managers[3].restart(Signal::TERM);
}

#[test]
fn a_manager_that_is_killed_while_its_store_is_written_anew_goes_on_after() {
    let mut cluster = Cluster::start();
    let value = vec![7; 60_000];
    for number in 0..30 {
        cluster.ok_with(["secret", "create", &format!("s{number}"), "-"], &value);
    }
    for round in 1..=6u64 {
        let format = "{{.StoreKeys}}";
        cluster.ok(["cluster", "rotate-store-keys"]);
        // At another moment each time.
        std::thread::sleep(Duration::from_millis(round * 17 % 90));
        cluster.restart(Signal::KILL);
        assert_eq!(cluster.ok(["cluster", "status", "-f", format]).trim(), round.to_string());
        all_written(&cluster);
    }
    assert_eq!(cluster.ok(["secret", "ls", "-q"]).lines().count(), 30);
    let mut left: Vec<_> = fs::read_dir(cluster.data())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["audit", "kek", "store.mark", "store.redb"]);
}

/// Force asks for no less than a start does, and the one that is alone stays locked at its next start.
#[test]
fn a_locked_manager_goes_on_alone_by_force_once_it_is_unlocked() {
    let mut managers = Cluster::of(3);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"value");
    let key = lock(&managers[0]);
    all_written(&managers[0]);
    managers[2].ok(["secret", "ls"]);
    for manager in &mut managers {
        manager.stop(Signal::KILL);
    }
    let mut third = managers.pop().unwrap();
    third.resume_locked_with(&["--force-new-cluster"]);
    assert!(third.refused(["secret", "ls"]).contains("this manager is locked"));
    assert!(!third.manager().log().contains("is a cluster of its own now"));
    unlock(&third, &key);
    let served = |third: &Cluster| {
        wait::until("its secret", || {
            let ran = third.keyhole(["secret", "ls", "--format", "{{.Name}}"]);
            if ran.stdout == "pw\n" { Ok(()) } else { Err(ran.stderr) }
        });
    };
    served(&third);
    assert_eq!(third.ok(["manager", "ls", "--format", "{{.Member}} {{.Role}}"]), "3 Voter\n");
    assert_eq!(status(&third, "Autolock"), "true");
    all_written(&third);
    let key = third.ok(["cluster", "unlock-key", "-q"]);
    third.stop(Signal::TERM);
    third.resume_locked();
    unlock(&third, &key);
    served(&third);
    assert!(!third.data().join("kek").exists());
}

/// An operator may bring the next key where the manager can write none.
#[test]
fn the_next_key_may_be_brought_and_an_exposed_one_is_refused() {
    let mut cluster = Cluster::start();
    let next = cluster.data().join("kek.next");
    Kek::create(&next).unwrap();
    let brought = fs::read(&next).unwrap();
    let exposed = |file: &Path, mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    };
    exposed(&next, 0o644);
    cluster.ok(["cluster", "rotate-store-keys"]);
    wait::until("its trouble to be shown", || {
        let told = cluster.ok(["cluster", "status"]);
        let shown = told.contains("kek.next has mode 0644") && told.contains("chmod 600");
        if shown { Ok(()) } else { Err(told) }
    });
    exposed(&next, 0o600);
    all_written(&cluster);
    let kek = cluster.data().join("kek");
    assert!(fs::read(&kek).unwrap() == brought && !next.exists());
    cluster.restart(Signal::TERM);
    cluster.stop(Signal::TERM);
    exposed(&kek, 0o640);
    let log = cluster.fails_to_start();
    assert!(log.contains("has mode 0640") && log.contains("chmod 600"), "{log}");
}
