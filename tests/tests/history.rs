//! Concurrent clients against several managers while these are killed, paused, cut off, slowed and restarted with other clocks:
//! the history of each secret, and of its grant to a service, must be linearizable.
//!
//! `KEYHOLE_SEED` repeats the choices of a run, `KEYHOLE_SOAK` makes it ten minutes long.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyhole_proto::v1;
use keyhole_tests::linearizability::{Input, Operation, Output, check};
use keyhole_tests::network::Network;
use keyhole_tests::operate::Operator;
use keyhole_tests::{Clock, Cluster, Ground, wait};
use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

const CLIENTS: usize = 6;
/// Operations on one secret before the clients go on to the next: the search for an order stays short.
const EACH: usize = 40;
const READS: [Input; 2] = [Input::Read, Input::ReadGrant];

/// Splitmix64: small, and enough to choose by.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What all clients share.
struct Shared {
    sockets: Vec<PathBuf>,
    started: Instant,
    asked: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

type History = Vec<(String, Operation)>;

/// An answer that says for certain what happened; else nobody knows.
fn certain(answer: Result<Output, Status>) -> Result<Output, Option<Status>> {
    answer.map_err(|status| match status.code() {
        Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::Aborted => Some(status),
        _ => None,
    })
}

async fn ask(operator: &Operator, name: &str, input: Input) -> Result<Output, Status> {
    let object = || v1::ObjectRequest { object: name.to_owned() };
    Ok(match input {
        Input::Create => Output::Version(operator.create(name, b"value").await?.version),
        Input::Rotate => Output::Version(operator.rotate(name, b"value").await?.version),
        Input::Rollback => {
            let request = v1::RollbackSecretRequest { secret: name.to_owned(), to: 0 };
            Output::Version(operator.api().rollback_secret(request).await?.into_inner().version)
        }
        Input::Read => {
            let info = operator.api().inspect_secret(object()).await?.into_inner();
            let highest = info.versions.iter().map(|kept| kept.version).max();
            Output::Seen(info.current, highest.unwrap_or(0))
        }
        Input::Grant => {
            // The service is no part of the history: without a grant it is as good as none.
            match operator.service(name, &[]).await {
                Err(status) if status.code() != Code::AlreadyExists => return Err(status),
                _ => {}
            }
            let grant = v1::GrantInput { source: name.to_owned(), ..Default::default() };
            update(operator, name, |request| request.secret_add.push(grant)).await?
        }
        Input::Revoke => {
            update(operator, name, |request| request.secret_rm.push(name.to_owned())).await?
        }
        Input::ReadGrant => match operator.api().inspect_service(object()).await {
            Ok(info) => {
                let grants = info.into_inner().spec.unwrap_or_default().grants;
                Output::Granted(grants.iter().any(|grant| grant.secret_name == name))
            }
            Err(status) if status.code() == Code::NotFound => Output::Granted(false),
            Err(status) => return Err(status),
        },
    })
}

/// Changes the service that is called like its secret.
async fn update(
    operator: &Operator,
    name: &str,
    change: impl FnOnce(&mut v1::UpdateServiceRequest),
) -> Result<Output, Status> {
    let mut request = v1::UpdateServiceRequest { service: name.to_owned(), ..Default::default() };
    change(&mut request);
    operator.api().update_service(request).await.map(|_| Output::Changed)
}

/// What a refusal means for the model.
fn refused(input: Input, status: &Status) -> Output {
    match (input, status.code()) {
        (_, Code::NotFound) => Output::Missing,
        (Input::Create, Code::AlreadyExists) => Output::Exists,
        // Two grants of one target.
        (Input::Grant, Code::InvalidArgument) => Output::Exists,
        (Input::Rollback, Code::FailedPrecondition) => Output::NothingBefore,
        _ => panic!("{input:?} is not refused so: {status:?}"),
    }
}

/// Asks whoever it picks until it is told to stop.
async fn client(shared: Arc<Shared>, seed: u64) -> History {
    let (mut choices, mut history) = (Choices(seed), History::new());
    let mut operators: BTreeMap<usize, Operator> = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let manager = choices.below(shared.sockets.len());
        let known = operators.remove(&manager);
        let operator = match known {
            Some(operator) => operator,
            None => {
                let connect = Operator::connect(&shared.sockets[manager]);
                match tokio::time::timeout(Duration::from_millis(300), connect).await {
                    Ok(Ok(operator)) => operator,
                    // Paused, or gone.
                    _ => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    }
                }
            }
        };
        let name = format!("s{}", shared.asked.fetch_add(1, Ordering::Relaxed) / EACH);
        let input = [
            Input::Create,
            Input::Rotate,
            Input::Rotate,
            Input::Rollback,
            Input::Read,
            Input::Read,
            Input::Grant,
            Input::Revoke,
            Input::ReadGrant,
            Input::ReadGrant,
        ][choices.below(10)];
        let called = shared.now();
        let asked = ask(&operator, &name, input);
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        let answer = certain(answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(""))));
        let answered = match answer {
            // The manager was started anew, and its key with it: nothing was done.
            Err(Some(status)) if status.message().contains("does not open") => continue,
            // Others changed the service each time that it tried: nothing was done.
            Err(Some(status)) if status.code() == Code::Aborted => continue,
            Ok(output) => Some((shared.now(), output)),
            Err(Some(status)) => Some((shared.now(), refused(input, &status))),
            Err(None) => None,
        };
        if answered.is_some() {
            operators.insert(manager, operator);
        }
        // A read without an answer says nothing.
        if answered.is_some() || !READS.contains(&input) {
            history.push((name, Operation { called, answered, input }));
        }
    }
    history
}

/// What goes wrong, one thing at a time.
struct Faults<'a> {
    managers: &'a mut [Cluster],
    clocks: &'a [Clock],
    network: &'a Network,
    choices: Choices,
}

impl Faults<'_> {
    fn leader(&self) -> usize {
        for by in self.managers.iter() {
            let mut command = by.command(["manager", "ls", "-f", "status=leader"]);
            command.args(["--format", "{{.Address}}"]);
            let said = keyhole_tests::run(command, b"").stdout;
            let at = |m: &Cluster| m.address().to_string() == said.trim();
            if let Some(leader) = self.managers.iter().position(at) {
                return leader;
            }
        }
        0
    }

    fn signal(&mut self, at: usize, signal: Signal) {
        kill_process(Pid::from_raw(self.managers[at].manager().pid()).unwrap(), signal).unwrap();
    }

    /// One fault, for a moment; a majority is left alone, so that the clients find somebody.
    fn strike(&mut self) -> &'static str {
        let hosts = self.network.hosts();
        let leader = self.leader();
        let other = (leader + 1 + self.choices.below(hosts - 1)) % hosts;
        let moment = Duration::from_millis(300 + self.choices.next() % 1500);
        let kind = self.choices.below(10);
        match kind {
            0 | 1 => {
                let lost = if kind == 0 { leader } else { other };
                self.managers[lost].stop(Signal::KILL);
                std::thread::sleep(moment);
                self.managers[lost].resume();
                "killed"
            }
            2 => {
                self.managers[leader].restart(Signal::TERM);
                "restarted"
            }
            3 => {
                self.signal(leader, Signal::STOP);
                std::thread::sleep(moment);
                self.signal(leader, Signal::CONT);
                "paused"
            }
            4 => {
                self.network.isolate(leader);
                std::thread::sleep(moment);
                self.network.heal();
                "isolated"
            }
            5 | 6 => {
                // In one direction only: to one other, or to all.
                for at in (0..hosts).filter(|at| *at != leader && (kind == 6 || *at == other)) {
                    self.network.cut(leader, at);
                }
                std::thread::sleep(moment);
                self.network.heal();
                "cut in one direction"
            }
            7 | 8 => {
                self.network.slow(if kind == 7 { leader } else { other });
                std::thread::sleep(moment);
                self.network.heal();
                "slowed"
            }
            _ => {
                let seconds = self.choices.below(1200) as i64 - 600;
                self.clocks[leader].set_seconds(seconds);
                std::thread::sleep(moment);
                self.clocks[leader].set_seconds(0);
                "moved its clock"
            }
        }
    }
}

fn run(hosts: usize) {
    let seconds = if std::env::var_os("KEYHOLE_SOAK").is_some() { 600 } else { 20 };
    let seed = std::env::var("KEYHOLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYHOLE_SEED={seed}");
    let network = Network::new(hosts);
    let ground = Arc::new(Ground::new());
    let clocks: Vec<Clock> =
        (0..hosts).map(|at| Clock::new(ground.folder().join(format!("clock{at}")))).collect();
    let mut managers = Cluster::on_network(&ground, &network, &clocks);
    let shared = Arc::new(Shared {
        sockets: managers.iter().map(|manager| manager.socket().to_owned()).collect(),
        started: Instant::now(),
        asked: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|at| runtime.spawn(client(shared.clone(), seed ^ (at as u64 + 1) << 32)))
        .collect();
    let mut faults = Faults {
        managers: &mut managers,
        clocks: &clocks,
        network: &network,
        choices: Choices(seed),
    };
    let mut struck: BTreeMap<&str, usize> = BTreeMap::new();
    while shared.started.elapsed() < Duration::from_secs(seconds) {
        *struck.entry(faults.strike()).or_default() += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    shared.stop.store(true, Ordering::Relaxed);
    let mut history: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for client in clients {
        for (name, operation) in runtime.block_on(client).unwrap() {
            history.entry(name).or_default().push(operation);
        }
    }
    // What was acknowledged is there in the end, at every manager.
    for manager in &managers {
        wait::until("the manager to answer", || match manager.keyhole(["secret", "ls", "-q"]) {
            ran if ran.code == 0 => Ok(()),
            ran => Err(ran.stderr),
        });
        let operator = runtime.block_on(Operator::connect(manager.socket())).unwrap();
        for (name, operations) in &mut history {
            for input in READS {
                let called = shared.now();
                let read = certain(runtime.block_on(ask(&operator, name, input)));
                let output = match read {
                    Ok(output) => output,
                    Err(Some(status)) => refused(input, &status),
                    Err(None) => panic!("no answer in peace"),
                };
                let answered = Some((shared.now(), output));
                operations.push(Operation { called, answered, input });
            }
        }
    }
    let (mut operations, mut lost) = (0, 0);
    for (name, history) in &mut history {
        history.sort_by_key(|operation| operation.called);
        operations += history.len();
        lost += history.iter().filter(|operation| operation.answered.is_none()).count();
        if let Err(why) = check(history) {
            panic!("{name}: {why}\n{history:#?}");
        }
    }
    println!(
        "{operations} operations on {} secrets, {lost} without an answer; {struck:?}",
        history.len()
    );
    assert!(operations > 300, "{operations} operations show little");
}

#[test]
fn a_history_of_three_managers_is_linearizable() {
    run(3);
}

#[test]
fn a_history_of_five_managers_is_linearizable() {
    run(5);
}
