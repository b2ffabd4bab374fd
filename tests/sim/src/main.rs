//! Simulations of several managers and nodes: the managers' own Raft, store, state and calls, over a network, disks and
//! clocks that follow from a seed.
//!
//! `keyhole-sim SEED` runs one and prints a hash of all that happened; it exits 1 and says what must not have been. With the
//! name of a [scene](run::Scene) that one is played instead of faults from the seed. One process runs one seed, so that nothing is left of another one. Depends on the manager; read [`run`] first, then
//! [`invariants`]. Invariant: the same seed gives the same run.

mod cast;
mod clients;
mod dice;
mod disk;
mod faults;
mod invariants;
mod machine;
mod manager;
mod network;
mod nodes;
mod run;
mod world;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let seed = args.next().and_then(|text| text.parse().ok());
    let scene = args.next().map_or(Ok(run::Scene::Faults), |text| text.parse());
    let (Some(seed), Ok(scene)) = (seed, scene) else {
        eprintln!("usage: keyhole-sim SEED [faults|one-in-reach|back]");
        return ExitCode::from(2);
    };
    // What a task panics with is the end of the whole simulation.
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("seed {seed}: {panic}");
        std::process::exit(1);
    }));
    let log = EnvFilter::builder().with_default_directive(LevelFilter::OFF.into());
    let log = log.with_env_var("KEYHOLE_LOG").from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).init();
    machine::begin(seed);
    let ended = run::run(seed, scene);
    println!(
        "seed {seed}: trace {:016x}, {:?} simulated, {:?}",
        ended.trace, ended.after, ended.counts
    );
    match ended.broken {
        None => ExitCode::SUCCESS,
        Some(broken) => {
            eprintln!("seed {seed}, after {:?}: {broken}", ended.after);
            ExitCode::FAILURE
        }
    }
}
