//! A manager that joins, by a snapshot and the entries after it, on a disk that fails: each operation fails in turn, and
//! power is lost before it. Those who are there go on in any case, and it joins after all: where it stopped, or anew.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use keyhole_proto::v1;
use keyhole_tests::disk::{
    Case, Disk, Fault, FaultKind, Left, Secrets, Shim, WatchedFolder, block_on, faults, listed,
};
use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, Daemon, free_address, wait};

/// A manager that has dropped the beginning of its log: who joins it takes a snapshot.
struct Leader {
    cluster: Cluster,
    token: PathBuf,
    secrets: Secrets,
}

impl Leader {
    fn new() -> Self {
        let cluster = Cluster::start();
        block_on(async {
            let operator = Operator::connect(cluster.socket()).await.expect("it serves");
            operator.create("a", b"one").await.expect("a secret");
            operator.create("large", &vec![7; 450 << 10]).await.expect("a secret");
            // More than a leader keeps of its log.
            for _ in 0..45 {
                operator.rotate("large", &vec![7; 450 << 10]).await.expect("a version");
            }
            let object = v1::ObjectRequest { object: "large".to_owned() };
            operator.api().remove_secret(object).await.expect("it goes");
            operator.create("b", &vec![8; 20_000]).await.expect("a secret");
        });
        wait::until("a snapshot", || {
            match cluster.ok(["cluster", "status", "-f", "{{.Raft.Snapshot}}"]) {
                none if none == "0\n" => Err(none),
                _ => Ok(()),
            }
        });
        let secrets = block_on(listed(cluster.socket())).expect("it serves");
        let token = cluster.ground().folder().join("token");
        Self { cluster, token, secrets }
    }

    /// A place for another manager, which may join.
    fn case(&self, address: SocketAddr, what: &str) -> Case {
        self.admit();
        let (to, token) = (self.cluster.address().to_string(), self.token.to_str());
        let args = ["--join", &to, "--token-file", token.expect("our paths are UTF-8")];
        Case::new("disk_join", address, what, &args)
    }

    /// The token changes with each manager that is removed.
    fn admit(&self) {
        let token = self.cluster.ok(["cluster", "join-token", "-q", "manager"]);
        fs::write(&self.token, token).expect("the ground is ours");
    }

    /// The ids of all other members; first of those that were let in and never came.
    fn others(&self) -> Vec<String> {
        let all = self.cluster.ok(["manager", "ls", "--format", "{{.Role}} {{.Address}} {{.ID}}"]);
        let own = format!(" {} ", self.cluster.address());
        let mut others: Vec<&str> = all.lines().filter(|line| !line.contains(&own)).collect();
        others.sort();
        others.iter().filter_map(|line| line.split(' ').next_back()).map(str::to_owned).collect()
    }

    /// Whether a manager has all, and takes requests.
    fn is_all_at(&self, case: &Case) -> Result<(), String> {
        match block_on(listed(&case.socket())) {
            Ok(found) if found == self.secrets => Ok(()),
            other => Err(format!("{}: {other:?}", case.what)),
        }
    }

    /// It has joined and gets all; then it is removed again.
    fn has_it_all(&self, case: &Case, mut joiner: Daemon) {
        wait::until("all secrets there", || self.is_all_at(case));
        self.remove_others();
        joiner.terminate();
    }

    fn remove_others(&self) {
        for id in self.others() {
            wait::until("its removal", || match self.cluster.keyhole(["manager", "rm", &id]) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            });
        }
    }
}

/// How many operations it takes to join.
fn recorded(shim: &Shim, leader: &Leader, kind: FaultKind) -> usize {
    let case = leader.case(free_address(), "no fault");
    let watched = WatchedFolder::new(shim, &case.ground, &case.data);
    let (joiner, ready) = case.start(watched.environment(Some(Fault { kind, at: u64::MAX })));
    ready.expect("it joins on a disk that is well");
    wait::until("all secrets there", || leader.is_all_at(&case));
    assert!(joiner.log().contains("installing a snapshot"), "{}", joiner.log());
    let operations = watched.operations_of_the_kind() as usize;
    leader.has_it_all(&case, joiner);
    operations
}

/// Joins with a fault; then on a disk that is well.
fn one_fails(shim: &Shim, leader: &Leader, fault: Fault, address: SocketAddr) {
    let case = leader.case(address, &format!("{:?} {}", fault.kind, fault.at));
    let what = &case.what;
    let watched = WatchedFolder::new(shim, &case.ground, &case.data);
    let (mut joiner, ready) = case.start(watched.environment(Some(fault)));
    wait::until("the fault", || match watched.has_failed(fault) || joiner.ended().is_some() {
        true => Ok(()),
        // Not every run of it does as much.
        false => leader.is_all_at(&case),
    });
    if fault.kind == FaultKind::Kill {
        joiner.kill();
        let disk = Disk::after(&watched.trace());
        let _ = fs::remove_dir_all(&case.data);
        disk.lose_power(&case.data, &case.data, Left::ALL[fault.at as usize % 4]);
    } else {
        match joiner.ended() {
            Some(_) => case.is_named(&joiner.log()),
            None => {
                joiner.terminate();
            }
        }
    }
    let (joiner, again) = case.start(Vec::new());
    match again {
        Ok(()) => leader.has_it_all(&case, joiner),
        Err(line) => {
            assert!(ready.is_err(), "{what}: it had joined, and does not start any more: {line}");
            assert!(!joiner.log().contains("keyhole: internal error"), "{what}: {}", joiner.log());
            println!("{what}: {line}");
            // What was begun there is of no use; those who are there must not need it.
            leader.remove_others();
            fs::remove_dir_all(&case.data).expect("the ground is ours");
            leader.admit();
            let (joiner, anew) = case.start(Vec::new());
            anew.unwrap_or_else(|line| panic!("{what}: it can't join anew: {line}"));
            leader.has_it_all(&case, joiner);
        }
    }
    assert_eq!(leader.others(), [""; 0], "{what}");
}

fn each_fails(kind: FaultKind, some: usize) {
    let (shim, leader, address) = (Shim::build(), Leader::new(), free_address());
    let count = recorded(&shim, &leader, kind);
    let faults = faults(kind, count, some);
    println!("{} of {count} operations: {kind:?}", faults.len());
    faults.into_iter().for_each(|fault| one_fails(&shim, &leader, fault, address));
}

#[test]
fn a_manager_whose_disk_fails_while_it_joins_joins_after_all() {
    each_fails(FaultKind::Io, 10);
}

#[test]
fn a_manager_that_loses_power_while_it_joins_joins_after_all() {
    each_fails(FaultKind::Kill, 10);
}
