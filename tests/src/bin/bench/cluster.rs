//! (e) Three managers: creates that a majority has on disk, lost leaders, and a newcomer that takes 100,000 secrets.
//!
//! Depends on the harness. Invariant: the managers are processes of their own, with files of their own on one disk; so on
//! one machine they share its CPUs and its flushes, which separate machines would not.

use std::time::{Duration, Instant};

use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, wait};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::create::{connect, create_all, create_sealed, seal};
use crate::figure::{Aim, Figure, median, quantile};
use crate::scale::memory;

/// Callers, and creates in one round.
const LEVELS: [(usize, usize); 3] = [(1, 2_000), (16, 10_000), (256, 20_000)];
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
const KILLS: usize = 20;
const SECRETS: usize = 100_000;
const CALLERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(300);
/// What takes seconds takes less, and memory has a bound, on a machine that is busy with something else, too.
const SECONDS: Aim = Aim::AtMost(20.0);
const MEMORY: Aim = Aim::AtMost(500.0);

pub(crate) fn measure() -> Vec<Figure> {
    let mut managers = Cluster::of(3);
    let runtime = Runtime::new().expect("a runtime");
    let mut figures: Vec<Figure> =
        LEVELS.iter().map(|level| create_figure(&managers, &runtime, *level)).collect();
    figures.push(failover(&mut managers, &runtime));
    figures.extend(newcomer(&mut managers, &runtime));
    figures
}

/// Callers are spread over the managers, as operators and their tools are.
fn create_figure(
    managers: &[Cluster],
    runtime: &Runtime,
    (callers, creates): (usize, usize),
) -> Figure {
    let at = |number: usize| number % managers.len();
    let sockets = (0..callers).map(|number| managers[at(number)].socket());
    let operators = runtime.block_on(async {
        let mut operators = Vec::new();
        for socket in sockets {
            operators.push(Operator::connect(socket).await.expect("it serves"));
        }
        operators
    });
    let rates: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            // Values are sealed to the manager that they are sent to.
            let sealed = |(share, by): (usize, &Operator)| {
                let name = move |number| format!("e{callers}-{round}-{share}-{number}");
                seal(by, (0..creates / managers.len()).map(name))
            };
            let shares: Vec<_> =
                operators.iter().take(managers.len()).enumerate().map(sealed).collect();
            let callers = operators.iter().enumerate();
            let callers =
                callers.map(|(number, operator)| (operator.clone(), shares[at(number)].clone()));
            runtime.block_on(create_sealed(callers, ROUND))
        })
        .collect();
    let name = format!(
        "three managers: creates, {callers} {}",
        if callers == 1 { "caller" } else { "callers" }
    );
    Figure::new('e', name, quantile(&rates, 1.0), "/s").with("median round", median(&rates))
}

/// From `kill -9` of the leader to the answer to the next write.
fn failover(managers: &mut [Cluster], runtime: &Runtime) -> Figure {
    let mut took = Vec::new();
    for round in 0..KILLS {
        let lost = Cluster::leader(managers);
        let other = (lost + 1) % managers.len();
        let operator =
            runtime.block_on(Operator::connect(managers[other].socket())).expect("it serves");
        managers[lost].stop(Signal::KILL);
        let started = Instant::now();
        let mut tries = 0;
        wait::until("a write", || {
            tries += 1;
            let name = format!("failover-{round}-{tries}");
            match runtime.block_on(operator.create(&name, b"v")) {
                Ok(_) => Ok(()),
                Err(status) => Err(status.message().to_owned()),
            }
        });
        took.push(started.elapsed().as_secs_f64());
        managers[lost].resume();
        caught_up(&managers[other], &managers[lost]);
    }
    Figure::new('e', "three managers: writes after kill -9 of the leader", median(&took), "s")
        .aim(Aim::AtMost(2.0))
        .with("kills", took.len() as f64)
        .with("slowest", quantile(&took, 1.0))
}

fn caught_up(by: &Cluster, of: &Cluster) {
    let address = of.address().to_string();
    wait::until_within(PATIENCE, "it to catch up", || {
        let list = by.keyhole([
            "manager",
            "ls",
            "--format",
            "{{.Address}} {{.Role}} {{.Status}} {{.Behind}}",
        ]);
        let there = |line: &str| {
            line.starts_with(&address) && line.contains("Voter") && line.ends_with("Reachable 0")
        };
        list.stdout.lines().any(there).then_some(()).ok_or(list.stdout)
    });
}

/// 100,000 secrets of 1 KiB: a newcomer takes them as a snapshot and what follows, and each starts anew with them.
fn newcomer(managers: &mut Vec<Cluster>, runtime: &Runtime) -> Vec<Figure> {
    let at = Cluster::leader(managers);
    let operators = runtime.block_on(connect(managers[at].socket(), CALLERS));
    let names = (0..SECRETS).map(|number| format!("n{number}"));
    runtime.block_on(create_all(&operators, names, PATIENCE));
    let filled = memory(managers[at].manager().pid());
    let started = Instant::now();
    let newcomer = managers[at].join();
    caught_up(&managers[at], &newcomer);
    let took = started.elapsed().as_secs_f64();
    managers.push(newcomer);
    let last = managers.len() - 1;
    let sent = memory(managers[at].manager().pid());
    let taken = memory(managers[last].manager().pid());
    let installed = managers[last].manager().log().contains("installing a snapshot");
    assert!(installed, "it came by a snapshot");
    let started = Instant::now();
    managers[last].restart(Signal::TERM);
    let restarted = started.elapsed().as_secs_f64();
    vec![
        Figure::new('e', "100,000 secrets: until a newcomer has them and votes", took, "s")
            .aim(SECONDS)
            .gated(),
        Figure::new('e', "100,000 secrets: its memory at most", taken.peak, "MiB")
            .aim(MEMORY)
            .gated()
            .with("its RSS MiB", taken.rss)
            .with("leader's RSS before", filled.rss)
            .with("leader's peak", sent.peak),
        Figure::new('e', "100,000 secrets: its restart until it serves", restarted, "s")
            .aim(SECONDS)
            .gated(),
    ]
}
