//! Cases of a disk that fails: which of them are tried, how one alone is tried again, and what a manager has afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use keyhole_proto::v1;
use tonic::Status;

use super::{Fault, FaultKind, Left, Operation, WatchedFolder};
use crate::operate::Operator;
use crate::{Daemon, Ground, free_address, plain_command};

/// Names and current versions.
pub type Secrets = BTreeMap<String, u64>;

/// A manager's place for one case.
#[derive(Debug)]
pub struct Case {
    /// What it stands on.
    pub ground: Ground,
    /// The manager's folder.
    pub data: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// For messages.
    pub what: String,
    args: Vec<String>,
}

impl Case {
    /// A case of the test file of that name, of a manager that is run with these options.
    pub fn new(test: &str, address: SocketAddr, what: &str, args: &[&str]) -> Self {
        let ground = Ground::new();
        let data = ground.folder().join("m");
        let soak = if is_soak() { "KEYHOLE_SOAK=1 " } else { "" };
        let what = format!(
            "{what} (replay: {soak}KEYHOLE_FAULT='{what}' cargo nextest run --workspace --test {test})"
        );
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { ground, data, address, what, args }
    }

    /// For operators.
    pub fn socket(&self) -> PathBuf {
        self.ground.folder().join("m.sock")
    }

    /// Starts the manager, and waits until it is ready; else its last line.
    pub fn start(&self, environment: Vec<(String, String)>) -> (Daemon, Result<(), String>) {
        let mut command = plain_command();
        command.args(["manager", "run", "--data-dir"]).arg(&self.data).args(&self.args);
        command.arg("--listen").arg(self.address.to_string());
        command.arg("--socket").arg(self.socket()).envs(environment);
        let mut manager = Daemon::start(&self.ground, "manager", command);
        let ready = manager.ready();
        (manager, ready)
    }

    /// What the manager has after a start on a disk that is well; or why it does not start.
    pub fn reopened(&self) -> Result<Secrets, String> {
        let (mut manager, ready) = self.start(Vec::new());
        if let Err(line) = ready {
            self.is_named(&manager.log());
            return Err(line);
        }
        let secrets = block_on(listed(&self.socket())).expect("it serves");
        assert!(manager.terminate().success(), "{}: it does not stop cleanly", self.what);
        Ok(secrets)
    }

    /// What ended by itself named a file of its own, and did not panic.
    pub fn is_named(&self, log: &str) {
        let what = &self.what;
        assert!(!log.contains("keyhole: internal error"), "{what}: a panic:\n{log}");
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains(&self.data.display().to_string()), "{what}: names no file: {last}");
    }
}

/// Whether all cases are to be tried, however long that takes.
pub fn is_soak() -> bool {
    std::env::var_os("KEYHOLE_SOAK").is_some()
}

/// Whether that case is tried, as far as KEYHOLE_FAULT says.
pub fn asked_for(what: &str) -> bool {
    std::env::var("KEYHOLE_FAULT").map_or(true, |one| one == what)
}

/// Runs a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// What the manager at that socket has.
pub async fn listed(socket: &Path) -> Result<Secrets, Status> {
    let operator = Operator::connect(socket).await?;
    let list = operator.api().list_secrets(v1::ListRequest {}).await?.into_inner().secrets;
    Ok(list.into_iter().map(|secret| (secret.name, secret.current)).collect())
}

/// Runs every case, two at a time: each spends most of its time on waiting for an election.
pub fn each<T: Send>(cases: impl IntoIterator<Item = T>, run: impl Fn(T, SocketAddr) + Sync) {
    let cases: Mutex<Vec<T>> = Mutex::new(cases.into_iter().collect());
    let next = || cases.lock().expect("no panic while it is held").pop();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let address = free_address();
                while let Some(case) = next() {
                    run(case, address);
                }
            });
        }
    });
}

/// Those of `count` that are tried: all of them, or so many that are spread over them.
pub fn spread(count: usize, some: usize) -> BTreeSet<usize> {
    let step = if is_soak() { 1 } else { (count / some).max(1) };
    (0..count).step_by(step).collect()
}

/// Faults of that kind, of which so many operations could fail: all of them, or so many that are spread over them.
pub fn faults(kind: FaultKind, count: usize, some: usize) -> Vec<Fault> {
    tried(kind, spread(count, some))
}

/// The same of a run that was watched, and all on other files than a store and its mark.
pub fn faults_of(kind: FaultKind, watched: &WatchedFolder, some: usize) -> Vec<Fault> {
    let mut all = spread(watched.operations_of_the_kind() as usize, some);
    let others = kind.apart_from(&["store.redb", "store.mark"], &watched.trace());
    all.extend(others.into_iter().map(|at| at as usize));
    println!("{} of {} operations fail: {kind:?}", all.len(), watched.operations_of_the_kind());
    tried(kind, all)
}

fn tried(kind: FaultKind, all: BTreeSet<usize>) -> Vec<Fault> {
    let faults = all.into_iter().map(|at| Fault { kind, at: at as u64 });
    faults.filter(|fault| asked_for(&format!("{kind:?} {}", fault.at))).collect()
}

/// After how many operations of a trace power is lost, and what is left then: after all, after some that are spread over it,
/// and after each that is about a name.
pub fn losses(trace: &[Operation], some: usize) -> Vec<(usize, Left)> {
    let mut moments = spread(trace.len() + 1, some);
    moments.extend((0..trace.len()).filter(|at| trace[*at].is_of_a_name()).map(|at| at + 1));
    moments.insert(trace.len());
    println!("power is lost at {} moments of {}", moments.len(), trace.len() + 1);
    let cases = moments.into_iter().flat_map(|moment| Left::ALL.map(|left| (moment, left)));
    cases.filter(|(moment, left)| asked_for(&format!("{left:?} {moment}"))).collect()
}
