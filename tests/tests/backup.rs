//! Backup, restore, and the last resort: what is in the file, who can open it, and what goes on after it (docs/BACKUP.md).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use age::secrecy::ExposeSecret;
use keyhole_proto::v1;
use keyhole_tests::member::Member;
use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, Ground, Node, wait};
use prost::Message;
use rustix::process::Signal;

const CANARY: &[u8] = b"canary-7f3a91c2-a-value-that-is-in-no-backup-in-clear";

fn text(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}

fn passphrase(cluster: &Cluster) -> PathBuf {
    let file = cluster.ground().folder().join("passphrase");
    fs::write(&file, "correct horse battery staple\n").expect("our folder");
    file
}

/// A new identity's file, and its recipient.
fn identity(cluster: &Cluster, name: &str) -> (PathBuf, String, age::x25519::Identity) {
    let identity = age::x25519::Identity::generate();
    let file = cluster.ground().folder().join(name);
    fs::write(&file, identity.to_string().expose_secret()).expect("our folder");
    (file, identity.to_public().to_string(), identity)
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn connected(cluster: &Cluster, nodes: usize) {
    wait::until("the nodes to be connected", || {
        match cluster.keyhole(["node", "ls", "--format", "{{.Status}}"]) {
            list if list.stdout.matches("Ready").count() == nodes => Ok(()),
            list => Err(list.stdout + &list.stderr),
        }
    });
}

/// A node believes only the CA that it has renewed to: of that the status warns before somebody needs the backup.
#[test]
fn a_node_of_a_newer_ca_does_not_follow_what_is_restored_from_before_it() {
    let mut cluster = Cluster::start();
    cluster.ok(["cluster", "update", "--cert-expiry", "60s"]);
    cluster.ok_with(["secret", "create", "pw", "-"], b"first");
    cluster.ok(["service", "create", "web", "--secret", "pw"]);
    let node = cluster.node();
    let task = node.task("web");
    let (phrase, file) = (passphrase(&cluster), cluster.ground().folder().join("backup.age"));
    cluster.ok(["cluster", "backup", "--passphrase-file", text(&phrase), text(&file)]);
    let outdated = |of: &Cluster| of.ok(["cluster", "status", "-f", "{{.BackupOfFormerCA}}"]);
    assert_eq!(outdated(&cluster), "false\n");
    assert_eq!(cluster.ok(["cluster", "ca", "--rotate", "--wait"]), "root CA 1\n");
    assert_eq!(outdated(&cluster), "true\n");
    assert!(cluster.ok(["cluster", "status"]).contains("nodes would not follow it; make another"));
    cluster.stop(Signal::KILL);
    fs::remove_dir_all(cluster.data()).expect("our folder");
    let data = cluster.data().to_owned();
    let args = ["--data-dir", text(&data), "--passphrase-file", text(&phrase)];
    cluster.ok(["cluster", "restore", "--from", text(&file)].iter().chain(&args));
    cluster.resume();
    wait::until("the node to say what is wrong", || {
        let status = node.keyhole(["node", "status", "--format", "{{.Trouble}}"]);
        match status.stdout.contains("not signed by this cluster's CA") {
            true => Ok(()),
            false => Err(status.stdout + &status.stderr),
        }
    });
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("first"), "its tasks read on");
}

/// All that must be the same after a restore: ids, versions, times, grants.
fn facts(cluster: &Cluster) -> Vec<String> {
    let of = |args: &[&str]| cluster.ok(args);
    vec![
        of(&["secret", "inspect", "pw", "other"]),
        of(&["secret", "history", "--format", "{{.Version}} {{.Current}} {{.Pinned}}", "pw"]),
        of(&["service", "inspect", "web"]),
        of(&["service", "ps", "--format", "{{.ID}} {{.Node}}", "--no-trunc", "web"]),
        of(&["node", "ls", "--format", "{{.ID}} {{.Hostname}}"]),
        of(&["cluster", "status", "-f", "{{.ID}} {{.CreatedAt}} {{.ValueBytes}}"]),
    ]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// All managers are lost with their disks. Their cluster goes on from a backup on a fresh folder at the same address: the
/// running task reads on all the time, the node comes back by itself, a rotation reaches it.
#[test]
fn a_cluster_is_restored_and_its_nodes_follow_by_themselves() {
    let mut managers = Cluster::of(3);
    let first = &managers[0];
    first.ok_with(["secret", "create", "pw", "-"], CANARY);
    first.ok_with(["secret", "create", "other", "-"], b"other");
    first.ok_with(["secret", "rotate", "pw", "-"], b"second");
    first.ok([
        "service",
        "create",
        "web",
        "--secret",
        "pw",
        "--secret",
        "source=pw,target=old,version=1",
    ]);
    let node = first.node();
    let task = node.task("web");
    let stranger = block_on(Member::join(first.address(), &first.node_token(), "stranger"));
    let stranger = stranger.expect("it joins");
    connected(first, 1);
    let (old_worker, phrase) = (first.node_token(), passphrase(first));
    let file = first.ground().folder().join("backup.age");
    let said =
        managers[1].ok(["cluster", "backup", "--passphrase-file", text(&phrase), text(&file)]);
    assert!(said.starts_with(text(&file)), "{said}");
    let before = facts(first);
    // A task that the backup does not have keeps its files after a moment, too.
    let later = node.task("web");

    let (stop, paths) = (AtomicBool::new(false), [node.path("pw"), node.path("old")]);
    let said = std::thread::scope(|scope| {
        let (stopping, read) = (&stop, paths.clone());
        let reader = scope.spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                assert_eq!(
                    task.text(&read[1]).as_deref(),
                    Ok(std::str::from_utf8(CANARY).unwrap())
                );
                assert!(["second", "third"].contains(&task.text(&read[0]).unwrap().as_str()));
            }
            task
        });
        for manager in &mut managers {
            manager.stop(Signal::KILL);
            fs::remove_dir_all(manager.data()).expect("our folder");
        }
        let first = &mut managers[0];
        let data = first.data().to_owned();
        let args = ["--data-dir", text(&data), "--passphrase-file", text(&phrase)];
        let said = first.ok(["cluster", "restore", "--from", text(&file)].iter().chain(&args));
        assert!(said.contains(", 2 secrets, 1 services, 2 nodes"), "{said}");
        first.resume();
        connected(first, 1);
        first.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"third");
        wait::until("the task that is younger than the backup", || match later.text(&paths[0]) {
            Ok(value) if value == "third" => Ok(()),
            other => Err(format!("{other:?}")),
        });
        first.ok(["secret", "rollback", "pw"]);
        first.ok(["secret", "rollback", "pw", "--to", "3"]);
        stop.store(true, Ordering::Relaxed);
        drop(reader.join().expect("the task reads on all the time"));
        said
    });
    let (restored, lost) = managers.split_first_mut().expect("three");
    for manager in lost {
        assert!(!manager.data().exists());
    }
    let now = facts(restored);
    assert_eq!((&now[4], &now[5][..25]), (&before[4], &before[5][..25]), "the nodes, the cluster");
    assert_eq!(restored.ok(["cluster", "status", "-f", "{{.KeyEpoch}}"]), "2\n");
    let incarnation = restored.ok(["cluster", "status", "-f", "{{.Incarnation}}"]);
    assert!(said.contains(&format!("incarnation {}, ", incarnation.trim())), "{said}");
    assert_ne!(incarnation, "1\n");
    assert_eq!(restored.ok(["manager", "ls", "--format", "{{.Member}}"]), "4\n");
    let refused = block_on(Member::join(restored.address(), &old_worker, "late"));
    assert!(refused.unwrap_err().to_string().contains("root is not the token's"));
    // Who was not there has the old certificate, and is believed until the operator says otherwise.
    let manager = block_on(Operator::connect(restored.socket())).expect("it serves");
    let files = block_on(stranger.files(&["web"], manager.manager())).expect("it is believed");
    assert!(files.values().any(|file| file.bytes == CANARY));
    restored.ok(["cluster", "update", "--forget-former-ca"]);
    wait::until("the former CA to be forgotten", || {
        match block_on(stranger.files(&["web"], manager.manager())) {
            Err(_) => Ok(()),
            Ok(_) => Err("it is still believed".to_owned()),
        }
    });
    // The new keys are whole: others join with them.
    let second = restored.join();
    assert!(second.ok(["secret", "ls", "--format", "{{.Name}}"]).contains("pw"));
    let audit = audit(restored.data());
    assert!(audit.contains("\"cluster.restore\""), "{audit}");
}

fn audit(data: &Path) -> String {
    let files = fs::read_dir(data.join("audit")).expect("it is there");
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// What is restored is, for who looks, what was backed up: to the byte of the answers.
#[test]
fn everything_that_is_shown_is_the_same_after_a_restore() {
    let mut cluster = Cluster::start();
    for name in ["pw", "other"] {
        cluster.ok_with(["secret", "create", "--label", "a=b", name, "-"], b"one");
    }
    cluster.ok_with(["secret", "rotate", "pw", "-"], b"two");
    cluster.ok_with(["secret", "rotate", "pw", "-"], b"three");
    cluster.ok(["secret", "rollback", "pw"]);
    cluster.ok(["service", "create", "web", "--secret", "source=pw,target=t,uid=7,version=1"]);
    let mut node = cluster.node();
    let task = node.task("web");
    let (file, phrase) = (cluster.ground().folder().join("b.age"), passphrase(&cluster));
    cluster.ok(["cluster", "backup", "--passphrase-file", text(&phrase), text(&file)]);
    let before = facts(&cluster);
    cluster.stop(Signal::KILL);
    fs::remove_dir_all(cluster.data()).expect("our folder");
    let data = cluster.data().to_owned();
    cluster.ok_with(
        [
            "cluster",
            "restore",
            "--from",
            text(&file),
            "--data-dir",
            text(&data),
            "--passphrase-file",
            "-",
        ],
        b"correct horse battery staple",
    );
    cluster.resume();
    connected(&cluster, 1);
    assert_eq!(facts(&cluster), before);
    assert_eq!(task.text(node.path("t")).as_deref(), Ok("one"));
    // A node that is started anew has the old root only, and finds its way too.
    drop(task);
    node.stop(Signal::TERM);
    node.resume();
    connected(&cluster, 1);
}

/// A node renews under the new CA and trusts only that from then on.
#[test]
fn nodes_leave_the_former_ca_with_their_next_renewal() {
    let ground = std::sync::Arc::new(Ground::new());
    let mut cluster = Cluster::start_with(ground, &[]);
    cluster.ok(["cluster", "update", "--cert-expiry", "10s"]);
    let node = cluster.node();
    let (file, phrase) = (cluster.ground().folder().join("b.age"), passphrase(&cluster));
    cluster.ok(["cluster", "backup", "--passphrase-file", text(&phrase), text(&file)]);
    let former = roots(&node);
    cluster.stop(Signal::KILL);
    fs::remove_dir_all(cluster.data()).expect("our folder");
    let data = cluster.data().to_owned();
    let args = ["--data-dir", text(&data), "--passphrase-file", text(&phrase)];
    cluster.ok(["cluster", "restore", "--from", text(&file)].iter().chain(&args));
    cluster.resume();
    wait::until("the node to trust the new root alone", || match roots(&node) {
        now if now.len() == 1 && now != former => Ok(()),
        now => Err(format!("{} roots", now.len())),
    });
    cluster.ok(["cluster", "update", "--forget-former-ca"]);
    cluster.restart(Signal::TERM);
    connected(&cluster, 1);
}

fn roots(node: &Node) -> Vec<Vec<u8>> {
    let bytes = fs::read(node.data().join("identity")).expect("it has joined");
    let identity = v1::NodeIdentity::decode(&*bytes).expect("it is one");
    identity.roots.iter().map(|root| root.to_vec()).collect()
}

/// The file is private, encrypted, an age file, and nothing but the right key opens it; it is never there by half.
#[test]
fn a_backup_opens_with_its_key_only_and_has_no_value_in_clear() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], CANARY);
    let (ours, recipient, identity) = identity(&cluster, "identity");
    let (theirs, ..) = self::identity(&cluster, "another");
    let file = cluster.ground().folder().join("b.age");
    cluster.ok(["cluster", "backup", "--recipient", &recipient, text(&file)]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = cluster.refused(["cluster", "backup", "--recipient", &recipient, text(&file)]);
    assert!(refused.contains("--overwrite"), "{refused}");
    cluster.ok(["cluster", "backup", "--overwrite", "--recipient", &recipient, text(&file)]);
    let sealed = fs::read(&file).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1\n") && !has(&sealed, CANARY));
    let mut opened = Vec::new();
    let decryptor = age::Decryptor::new(&*sealed).unwrap();
    let identities = std::iter::once(&identity as &dyn age::Identity);
    decryptor.decrypt(identities).unwrap().read_to_end(&mut opened).unwrap();
    assert!(opened.starts_with(b"keyhole backup\n") && !has(&opened, CANARY));
    assert!(audit(cluster.data()).contains(&recipient), "who made a backup to whom is recorded");
    let at = cluster.ok(["cluster", "status", "-f", "{{.LastBackupAt}}"]);
    assert!(at.starts_with("20"), "{at}");

    let folder = cluster.ground().folder().join("restored");
    let restore = |unlock: &[&str]| {
        let args = ["cluster", "restore", "--from", text(&file), "--data-dir", text(&folder)];
        cluster.refused(args.iter().chain(unlock))
    };
    let phrase = passphrase(&cluster);
    let refused = restore(&["--identity-file", text(&theirs)]);
    assert!(refused.contains("none of the identities opens it"), "{refused}");
    let refused = restore(&["--identity-file", text(&phrase)]);
    assert!(refused.contains("AGE-SECRET-KEY-1"), "{refused}");
    let refused = restore(&["--passphrase-file", text(&phrase)]);
    assert!(refused.contains("give --identity-file"), "{refused}");
    assert!(!folder.exists(), "nothing is left");
    let refused = cluster.refused(["cluster", "backup", "--recipient", "age1no", "/dev/null/x"]);
    assert!(refused.contains("cannot write"), "{refused}");
    let other = cluster.ground().folder().join("other");
    let refused = cluster.refused(["cluster", "backup", "--recipient", "age1no", text(&other)]);
    assert!(refused.contains("recipient \"age1no\""), "{refused}");
    let left: Vec<_> = fs::read_dir(cluster.ground().folder()).unwrap().collect();
    assert!(
        left.iter().all(|f| !has(f.as_ref().unwrap().file_name().as_encoded_bytes(), b".part"))
    );

    // A folder with anything in it is left as it was.
    let restored =
        ["cluster", "restore", "--from", text(&file), "--identity-file", text(&ours), "--data-dir"];
    let refused = cluster.refused(restored.iter().chain(&[text(cluster.data())]));
    assert!(refused.contains("is not empty"), "{refused}");
    // Nor are another history's audit lines gone on with.
    let kept = cluster.ground().folder().join("kept");
    fs::create_dir_all(kept.join("audit")).unwrap();
    let lines = "audit/audit-000001.jsonl";
    fs::copy(cluster.data().join(lines), kept.join(lines)).unwrap();
    let refused = cluster.refused(restored.iter().chain(&[text(&kept)]));
    assert!(refused.contains("is not empty") && refused.contains(lines), "{refused}");
    fs::remove_dir_all(&kept).unwrap();
    // A wrong passphrase.
    let locked = cluster.ground().folder().join("p.age");
    cluster.ok(["cluster", "backup", "--passphrase-file", text(&phrase), text(&locked)]);
    let args = ["--data-dir", text(&folder), "--passphrase-file", "-"];
    let args = ["cluster", "restore", "--from", text(&locked)].into_iter().chain(args);
    let refused = cluster.refused_with(args, b"wrong horse");
    assert!(refused.contains("the passphrase does not open it"), "{refused}");
    assert!(!folder.exists(), "nothing is left");
}

/// Any changed bit and any missing end is found, said in one line, and leaves no folder.
#[test]
fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], &[7; 200_000]);
    let (key, recipient, _) = identity(&cluster, "identity");
    let folder = cluster.ground().folder();
    let (file, damaged, data) =
        (folder.join("b.age"), folder.join("d.age"), folder.join("restored"));
    cluster.ok(["cluster", "backup", "--recipient", &recipient, text(&file)]);
    let whole = fs::read(&file).unwrap();
    let args = [
        "cluster",
        "restore",
        "--from",
        text(&damaged),
        "--identity-file",
        text(&key),
        "--data-dir",
        text(&data),
    ];
    let refuse = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).unwrap();
        let refused = cluster.refused(args);
        assert!(refused.contains(text(&damaged)), "{what}: {refused}");
        assert!(!data.exists(), "{what}: nothing is left");
    };
    for part in 0..24 {
        let at = part * (whole.len() - 1) / 23;
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (part % 8);
        refuse(&flipped, &format!("bit {} of byte {at}", part % 8));
        refuse(&whole[..at], &format!("cut at {at}"));
    }
    // Cut between two of age's pieces, and with something behind it.
    refuse(&whole[..whole.len() - (whole.len() - 200) % (65_536 + 16)], "cut at a piece");
    refuse(&[&whole[..], b"x"].concat(), "longer");
    fs::write(&damaged, &whole).unwrap();
    cluster.ok(args);
    assert!(data.join("store.redb").exists() && !data.join("restoring").exists());
}

/// Longer than a manager waits for a sign of life.
const PAUSE: Duration = Duration::from_secs(12);

/// Who reads it may ask somebody for a password first, as ssh does.
#[test]
fn a_backup_waits_for_who_reads_it() {
    let cluster = Cluster::start();
    for n in 0..8 {
        cluster.ok_with(["secret", "create", &format!("s{n}"), "-"], &[b'x'; 500 << 10]);
    }
    let (key, recipient, _) = identity(&cluster, "identity");
    let mut command = cluster.command(["cluster", "backup", "--recipient", &recipient, "-"]);
    let mut backup = command.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(PAUSE);
    let mut bytes = Vec::new();
    backup.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(backup.wait().unwrap().success(), "{} bytes", bytes.len());
    let folder = cluster.ground().folder();
    let (file, data) = (folder.join("b.age"), folder.join("restored"));
    fs::write(&file, bytes).unwrap();
    let from = ["cluster", "restore", "--from", text(&file), "--identity-file", text(&key)];
    cluster.ok(from.iter().chain(&["--data-dir", text(&data)]));
}

/// The folder of the audit may be a disk of its own, and that one read-only or full: no store is made of which the audit
/// has no line.
#[test]
fn a_restore_that_the_audit_cannot_tell_of_makes_nothing() {
    let cluster = Cluster::start();
    let (key, recipient, _) = identity(&cluster, "identity");
    let folder = cluster.ground().folder();
    let (file, data) = (folder.join("b.age"), folder.join("restored"));
    cluster.ok(["cluster", "backup", "--recipient", &recipient, text(&file)]);
    fs::create_dir(&data).unwrap();
    let disk = cluster.ground().small_disk("restored/audit", 1);
    let args = ["--identity-file", text(&key), "--data-dir", text(&data)];
    let restore = ["cluster", "restore", "--from", text(&file)];
    let refuse = |why: &str| {
        let refused = cluster.refused(restore.iter().chain(&args));
        assert!(refused.contains(text(disk.at())) && refused.contains(why), "{refused}");
        let left = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["audit"], "{why}");
        assert_eq!(fs::read_dir(disk.at()).unwrap().count(), 0, "{why}");
    };
    // Full, by a file that nobody sees any more.
    let filler = disk.at().join("filler");
    let mut full = fs::File::create(&filler).unwrap();
    fs::remove_file(&filler).unwrap();
    while full.write_all(&[0; 4096]).is_ok() {}
    refuse("nothing was restored: the last lines of the audit (1) could not be written");
    drop(full);
    disk.make_read_only();
    refuse("cannot keep the audit in");
    disk.resize(1);
    cluster.ok(restore.iter().chain(&args));
    let lines = fs::read_to_string(data.join("audit/audit-000001.jsonl")).unwrap();
    assert!(lines.contains("\"action\":\"cluster.restore\""), "{lines}");
}

/// Two of three are lost for good. The third goes on alone with everything that was acknowledged, and tasks with it.
#[test]
fn one_of_three_managers_goes_on_alone_by_force() {
    let mut managers = Cluster::of(3);
    let node = managers[0].node();
    managers[0].ok_with(["secret", "create", "pw", "-"], b"first");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    let task = node.task("web");
    let refused = Cluster::start().keyhole(["manager", "run", "--init", "--force-new-cluster"]);
    assert!(refused.stderr.contains("cannot be used with"), "{}", refused.stderr);
    for at in 0..20 {
        managers[at % 3].ok_with(["secret", "create", &format!("s{at}"), "-"], b"v");
    }
    managers[2].ok(["secret", "ls"]);
    // While most of them answer it is refused: nothing is lost.
    managers[2].stop(Signal::TERM);
    let (address, socket) = (managers[2].address().to_string(), managers[2].socket().to_owned());
    let data = managers[2].data().to_owned();
    let run = ["manager", "run", "--force-new-cluster", "--listen", &address];
    let folders = ["--socket", text(&socket), "--data-dir", text(&data)];
    let refused = managers[2].keyhole(run.iter().chain(&folders));
    assert!(refused.stderr.contains("a majority can be there"), "{}", refused.stderr);
    managers[2].resume();
    managers[2].ok(["secret", "ls"]);
    for manager in &mut managers {
        manager.stop(Signal::KILL);
    }
    let mut third = managers.pop().unwrap();
    let before = fs::read(third.data().join("store.redb")).unwrap();
    third.resume_with(&["--force-new-cluster"]);
    assert_ne!(before, fs::read(third.data().join("store.redb")).unwrap());
    assert!(third.manager().log().contains("is a cluster of its own now"));
    assert_eq!(third.ok(["manager", "ls", "--format", "{{.Member}} {{.Role}}"]), "3 Voter\n");
    let names = third.ok(["secret", "ls", "--format", "{{.Name}}"]);
    for at in 0..20 {
        assert!(names.lines().any(|name| name == format!("s{at}")), "{names}");
    }
    connected(&third, 1);
    third.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"second");
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("second"));
    let incarnation = third.ok(["cluster", "status", "-f", "{{.Incarnation}}"]);
    assert_ne!(incarnation, "1\n");
    // Given once more it does nothing.
    third.stop(Signal::TERM);
    third.resume_with(&["--force-new-cluster"]);
    assert!(third.manager().log().contains("nothing was changed"));
    assert_eq!(third.ok(["cluster", "status", "-f", "{{.Incarnation}}"]), incarnation);
    connected(&third, 1);
    third.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"third");
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("third"));
    // Those that come back belong to a history that is over: the node does not go back to it. Where it has a certificate of
    // the new CA already, it does not even believe them.
    let told = ["older than the one that this node has seen", "not signed by this cluster's CA"];
    third.stop(Signal::TERM);
    for manager in &mut managers {
        manager.resume();
    }
    wait::until("the node to say what is wrong", || {
        let status = node.keyhole(["node", "status", "--format", "{{.Trouble}}"]);
        match told.iter().any(|why| status.stdout.contains(why)) {
            true => Ok(()),
            false => Err(status.stdout + &status.stderr),
        }
    });
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("third"));
    third.resume();
    let fourth = third.join();
    assert!(fourth.ok(["manager", "ls", "--format", "{{.Member}}"]).contains('4'));
}
