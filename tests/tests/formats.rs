//! Data and messages of an earlier build: a committed data folder is opened, a committed message is read.
//!
//! `golden/manager.tar.gz` is the data folder of a manager that had one secret with two versions, rolled back to the
//! first, and a service. `KEYHOLE_GOLDEN=write` makes it and the messages anew; that is for a new format, beside the old.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use keyhole_node_fs::join::IdentityStore;
use keyhole_proto::v1;
use keyhole_tests::{Cluster, Ground, NodeOptions};
use prost::Message;
use rustix::process::Signal;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn is_writing() -> bool {
    std::env::var("KEYHOLE_GOLDEN").is_ok_and(|word| word == "write")
}

#[track_caller]
fn tar(args: &[&str], archive: &std::path::Path, folder: &std::path::Path) {
    let mut tar = Command::new("tar");
    tar.arg(args[0]).arg(archive).arg("-C").arg(folder).args(&args[1..]);
    assert!(tar.status().expect("tar is there").success(), "{tar:?}");
}

fn write_manager() {
    let mut cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "-l", "env=prod", "pw", "-"], b"first");
    cluster.ok_with(["secret", "rotate", "pw", "-"], b"second");
    cluster.ok(["secret", "rollback", "pw"]);
    let grant = "source=pw,target=db/pw,mode=0440";
    let here = "node.hostname==golden";
    cluster.ok(["service", "create", "web", "--secret", grant, "--constraint", here]);
    cluster.stop(Signal::TERM);
    let names = ["-czf", "store.redb", "store.mark", "kek"];
    tar(&names, &golden("manager.tar.gz"), cluster.data());
}

#[test]
fn a_data_folder_of_format_1_is_opened_with_all_that_is_in_it() {
    if is_writing() {
        write_manager();
    }
    let ground = Arc::new(Ground::new());
    let data = ground.folder().join("m");
    std::fs::create_dir(&data).unwrap();
    tar(&["-xzf"], &golden("manager.tar.gz"), &data);
    let cluster = Cluster::start_on(ground);
    let shown = cluster.ok(["secret", "ls", "--format", "{{.Name}} {{.Version}} {{.Labels}}"]);
    assert_eq!(shown, "pw 1 env=prod\n");
    let history = cluster.ok(["secret", "history", "pw", "--format", "{{.Version}} {{.Current}}"]);
    assert_eq!(history, "2 no\n1 yes\n");
    let args = vec!["--hostname".to_owned(), "golden".to_owned()];
    let node = cluster.node_with(NodeOptions { args, ..NodeOptions::default() });
    let task = node.task("web");
    assert_eq!(task.text(node.path("db/pw")), Ok("first".to_owned()));
    cluster.ok(["secret", "rollback", "--wait", "--to", "2", "pw"]);
    assert_eq!(task.text(node.path("db/pw")), Ok("second".to_owned()));
}

#[test]
fn a_nodes_identity_of_format_1_is_read_and_a_newer_one_is_refused() {
    let (file, facts) = (golden("node.identity"), golden("node.txt"));
    if is_writing() {
        std::fs::copy(Cluster::start().node().data().join("identity"), &file).unwrap();
    }
    let ground = Ground::new();
    let store = IdentityStore::open(&ground.folder().join("n")).unwrap();
    let put = |bytes: &[u8]| {
        std::fs::write(store.path(), bytes).unwrap();
        std::fs::set_permissions(store.path(), Permissions::from_mode(0o600)).unwrap();
    };
    let bytes = std::fs::read(&file).unwrap();
    put(&bytes);
    let stored = store.load().unwrap().unwrap();
    let subject = stored.identity.subject();
    let now = format!(
        "{} {} of cluster {} until {}, {} key bytes, {} roots, managers {:?}\n",
        subject.role.word(),
        subject.id,
        subject.cluster,
        subject.not_after,
        stored.identity.key().len(),
        stored.roots.len(),
        stored.managers,
    );
    if is_writing() {
        std::fs::write(&facts, &now).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&facts).unwrap(), now);
    let mut newer = v1::NodeIdentity::decode(&*bytes).unwrap();
    newer.format = 2;
    put(&newer.encode_to_vec());
    let refused = store.load().unwrap_err().to_string();
    assert!(refused.contains("format 2") && refused.contains("format 1 only"), "{refused}");
}

/// "bit flips": an identity is what was written, or is refused by its name.
#[test]
fn a_flipped_bit_of_a_nodes_identity_is_found() {
    let ground = Ground::new();
    let store = IdentityStore::open(&ground.folder().join("n")).unwrap();
    std::fs::copy(golden("node.identity"), store.path()).unwrap();
    std::fs::set_permissions(store.path(), Permissions::from_mode(0o600)).unwrap();
    let first = store.load().unwrap().unwrap();
    store.save(&first.identity, &first.roots, &first.managers).unwrap();
    let bytes = std::fs::read(store.path()).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(store.path(), bad).unwrap();
        match store.load() {
            Ok(found) => {
                let found = found.expect("the file is there");
                assert!(found.identity.chain().eq(first.identity.chain()), "byte {at}");
                assert_eq!(found.identity.key().as_slice(), first.identity.key().as_slice());
                assert_eq!((&found.roots, &found.managers), (&first.roots, &first.managers));
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("/n/identity"), "byte {at}: {error}");
            }
        }
    }
    assert!(refused >= bytes.len() - 2, "{refused} of {} flips were found", bytes.len());
}

fn part() -> v1::AssignmentPart {
    let revision = |index| Some(v1::RevisionRef { incarnation: 1, index });
    let value = || Some(v1::ValueRef { secret: "s".repeat(25), version: 2 });
    let grant = v1::AssignedGrantRecord {
        id: 1,
        value: value(),
        size: 3,
        name: "pw".into(),
        target: "db/pw".into(),
        uid: 4,
        gid: 5,
        mode: 0o440,
    };
    v1::AssignmentPart {
        applies_to: revision(6),
        results_in: revision(7),
        enc: vec![8; 32].into(),
        tasks: vec![v1::AssignedTaskRecord {
            id: "t".repeat(25),
            service: "web".into(),
            grants: vec![grant.clone()],
            rejected: "why".into(),
        }],
        removed_tasks: vec!["u".repeat(25)],
        values: vec![v1::ValueRecord { key: value(), ciphertext: vec![9; 19].into() }],
        removed_values: vec![v1::ValueRef { secret: "v".repeat(25), version: 1 }],
        more: true,
        managers: vec!["127.0.0.1:7070".into()],
        changed_grants: vec![v1::ChangedGrantsRecord { task: "w".repeat(25), grants: vec![grant] }],
        ca: vec![10; 20].into(),
    }
}

#[test]
fn a_node_and_a_manager_of_two_builds_understand_each_other() {
    let revision = Some(v1::RevisionRef { incarnation: 1, index: 2 });
    let messages = [
        ("part", part().encode_to_vec()),
        (
            "request",
            v1::AssignmentsRequest {
                stream_key: vec![1; 32].into(),
                last: revision,
                live: vec!["t".repeat(25)],
            }
            .encode_to_vec(),
        ),
        (
            "claim",
            v1::ClaimTaskRequest { id: "t".repeat(25), service: "web".into(), cgroup: "/c".into() }
                .encode_to_vec(),
        ),
        ("report", v1::ReportRequest { revision }.encode_to_vec()),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let now: String =
        messages.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    let path = golden("dispatch.txt");
    if is_writing() {
        std::fs::write(&path, &now).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), now);
}
