//! A restore onto a disk that fails: each operation fails in turn, and power is lost after every one. What was said to be
//! restored is there as a whole; of the rest nothing starts by half, and the restore is repeated.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use keyhole_tests::disk::{
    Case, Disk, Fault, FaultKind, Secrets, Shim, WatchedFolder, block_on, each, faults_of, listed,
    losses,
};
use keyhole_tests::{Cluster, Ground, Ran, free_address, plain_command, run};

/// A backup of a cluster that is gone.
struct Source {
    backup: PathBuf,
    identity: PathBuf,
    secrets: Secrets,
    _ground: Arc<Ground>,
}

impl Source {
    fn new() -> Self {
        let cluster = Cluster::start();
        let ground = cluster.ground().clone();
        for (name, size) in [("a", 40), ("b", 20_000), ("c", 1)] {
            cluster.ok_with(["secret", "create", name, "-"], &vec![b'x'; size]);
        }
        cluster.ok_with(["secret", "rotate", "b", "-"], &vec![b'y'; 100_000]);
        let key = age::x25519::Identity::generate();
        let (identity, backup) = (ground.folder().join("key"), ground.folder().join("backup.age"));
        fs::write(&identity, key.to_string().expose_secret()).expect("the ground is ours");
        let recipient = key.to_public().to_string();
        let file = backup.to_str().expect("our paths are UTF-8");
        cluster.ok(["cluster", "backup", "--recipient", &recipient, file]);
        let secrets = block_on(listed(cluster.socket())).expect("it serves");
        Self { backup, identity, secrets, _ground: ground }
    }

    fn restore(&self, case: &Case, environment: Vec<(String, String)>) -> Ran {
        let mut command = plain_command();
        command.args(["cluster", "restore", "--from"]).arg(&self.backup);
        command.arg("--identity-file").arg(&self.identity);
        command.arg("--data-dir").arg(&case.data).envs(environment);
        run(command, b"")
    }

    /// That nothing is there by half: what is there is all, or it is restored again, into an empty folder if files of the
    /// first attempt are named (which `by_hand` allows).
    fn is_there_or_is_restored(&self, case: &Case, done: bool, by_hand: bool) {
        let what = &case.what;
        let why = match case.reopened() {
            Ok(found) => return assert_eq!(found, self.secrets, "{what}"),
            Err(why) => why,
        };
        assert!(!done, "{what}: it was said to be restored, and does not start: {why}");
        let mut again = self.restore(case, Vec::new());
        if again.code != 0 && by_hand {
            case.is_named(&again.stderr);
            fs::remove_dir_all(&case.data).expect("the ground is ours");
            again = self.restore(case, Vec::new());
        }
        assert_eq!(again.code, 0, "{what}: not again, after {why}: {}", again.stderr);
        assert_eq!(case.reopened().as_ref(), Ok(&self.secrets), "{what}");
    }
}

fn case(address: SocketAddr, what: &str) -> Case {
    Case::new("disk_restore", address, what, &[])
}

/// A restore without a fault.
fn recorded(shim: &Shim, source: &Source, kind: Option<FaultKind>) -> (Case, WatchedFolder) {
    let case = case(free_address(), "no fault");
    let watched = WatchedFolder::new(shim, &case.ground, &case.data);
    let fault = kind.map(|kind| Fault { kind, at: u64::MAX });
    let ran = source.restore(&case, watched.environment(fault));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    (case, watched)
}

#[test]
fn a_restore_whose_disk_fails_can_be_repeated() {
    let (shim, source) = (Shim::build(), Source::new());
    for (kind, some) in [(FaultKind::Io, 10), (FaultKind::Full, 6), (FaultKind::Half, 4)] {
        let (_case, watched) = recorded(&shim, &source, Some(kind));
        each(faults_of(kind, &watched, some), |fault, address| {
            let case = case(address, &format!("{kind:?} {}", fault.at));
            let watched = WatchedFolder::new(&shim, &case.ground, &case.data);
            let ran = source.restore(&case, watched.environment(Some(fault)));
            if ran.code != 0 {
                case.is_named(&ran.stderr);
            }
            source.is_there_or_is_restored(&case, ran.code == 0, false);
        });
    }
}

#[test]
fn a_restore_whose_power_is_lost_is_whole_or_is_repeated() {
    let (shim, source) = (Shim::build(), Source::new());
    let (recorded, watched) = recorded(&shim, &source, None);
    let trace = watched.trace();
    each(losses(&trace, 8), |(moment, left), address| {
        let case = case(address, &format!("{left:?} {moment}"));
        Disk::after(&trace[..moment]).lose_power(&recorded.data, &case.data, left);
        source.is_there_or_is_restored(&case, moment == trace.len(), true);
    });
}
