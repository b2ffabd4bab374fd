//! A node's own files, its identity and its list of tasks, on a disk that fails: each operation fails in turn, and power is
//! lost after every one. What was acknowledged is there, and nothing by half.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use keyhole_node_fs::cgroups::CgroupRoot;
use keyhole_node_fs::join::IdentityStore;
use keyhole_node_fs::registry::Registry;
use keyhole_tests::disk::{Disk, Fault, FaultKind, Left, Shim, WatchedFolder};
use keyhole_tests::{Ground, node_files_binary};

/// The managers that the identity names, and how many tasks there are.
type Found = (Option<String>, usize);

/// What there is after each change of the script.
fn states() -> [Found; 6] {
    let (first, second) = (Some("first:1".to_owned()), Some("second:2".to_owned()));
    [
        (None, 0),
        (first, 0),
        (second.clone(), 0),
        (second.clone(), 1),
        (second.clone(), 2),
        (second, 1),
    ]
}

/// Reads the files as a node does at its start.
fn found(data: &Path) -> Result<Found, String> {
    let stored = IdentityStore::open(data).and_then(|store| store.load());
    let stored = stored.map_err(|error| error.to_string())?;
    let root = CgroupRoot::find().expect("cgroup v2");
    let tasks = Registry::restore(data, "boot".to_owned(), &root).map_err(|e| e.to_string())?;
    Ok((stored.map(|stored| stored.managers.concat()), tasks.iter().count()))
}

/// Where the script takes its identity from.
fn given(ground: &Ground) -> std::path::PathBuf {
    let folder = ground.folder().join("given");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/node.identity");
    fs::create_dir(&folder).expect("the ground is ours");
    fs::copy(golden, folder.join("identity")).expect("the folder is ours");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(folder.join("identity"), private).expect("it is ours");
    folder
}

/// What came of the script.
#[derive(Debug)]
struct Ran {
    /// How many operations there were when each change was acknowledged.
    acknowledged: Vec<usize>,
    succeeded: bool,
    error: String,
}

fn script(watched: &WatchedFolder, data: &Path, given: &Path, fault: Option<Fault>) -> Ran {
    let mut script = Command::new(node_files_binary());
    // A backtrace has frames of the machinery of panics.
    script.arg(data).arg(given).envs(watched.environment(fault)).env("RUST_BACKTRACE", "0");
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = script.spawn().expect("the binary runs");
    let mut go_on = child.stdin.take().expect("it is piped");
    let mut acknowledged = Vec::new();
    for _ in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        acknowledged.push(watched.operations());
        go_on.write_all(b"\n").expect("it waits for it");
    }
    let output = child.wait_with_output().expect("our own child");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Ran { acknowledged, succeeded: output.status.success(), error }
}

#[test]
fn each_operation_that_fails_loses_nothing_of_a_node() {
    let shim = Shim::build();
    for kind in [FaultKind::Io, FaultKind::Full, FaultKind::Half] {
        let mut count = 0;
        loop {
            let fault = Fault { kind, at: count };
            let ground = Ground::new();
            let data = ground.folder().join("n");
            let watched = WatchedFolder::new(&shim, &ground, &data);
            let ran = script(&watched, &data, &given(&ground), Some(fault));
            if !watched.has_failed(fault) {
                assert!(ran.succeeded, "without a fault: {ran:?}");
                break;
            }
            let named = ran.succeeded || ran.error.contains(&*data.display().to_string());
            assert!(named && !ran.error.contains("panic"), "{fault:?}: {ran:?}");
            let found = found(&data).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            let acknowledged = ran.acknowledged.len();
            let fits = states()[acknowledged..].contains(&found);
            // That a task has ended need not reach the disk: a restart looks at its cgroup.
            let ended = acknowledged == 5 && found == states()[4];
            assert!(fits || ended, "{fault:?}: {found:?} after {ran:?}");
            count += 1;
        }
        println!("{kind:?}: {count} operations failed in turn");
        assert!(count >= 5, "{kind:?}: only {count}");
    }
}

#[test]
fn power_that_is_lost_at_any_moment_loses_nothing_of_a_node() {
    let shim = Shim::build();
    let ground = Ground::new();
    let data = ground.folder().join("n");
    let watched = WatchedFolder::new(&shim, &ground, &data);
    let ran = script(&watched, &data, &given(&ground), None);
    assert_eq!(ran.acknowledged.len(), 5, "{ran:?}");
    let trace = watched.trace();
    for moment in 0..=trace.len() {
        let acknowledged = ran.acknowledged.partition_point(|done| *done <= moment);
        for left in Left::ALL {
            let image = ground.folder().join(format!("image-{moment}-{left:?}"));
            Disk::after(&trace[..moment]).lose_power(&data, &image, left);
            let found = found(&image).unwrap_or_else(|e| panic!("{left:?} {moment}: {e}"));
            let last = states().len().min(acknowledged + 2);
            let fits = states()[acknowledged..last].contains(&found);
            assert!(fits, "{left:?} {moment}: {found:?} after change {acknowledged}");
        }
    }
    println!("power lost at {} moments", trace.len() + 1);
}
