//! Each seed's simulation keeps every invariant (one file each in `src/invariants`) and recovers from its faults; the same
//! seed gives the same run.
//!
//! `KEYHOLE_SIM_SEED` runs one seed alone, `KEYHOLE_SOAK` runs a thousand.

use std::num::NonZeroUsize;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const SHORT: u64 = 24;
const LONG: u64 = 1000;
/// Seeds for each scene.
const SCENES: u64 = 8;

/// A process of its own: nothing that another simulation left behind has a part in it.
fn simulate(seed: u64) -> Output {
    play(seed, "faults")
}

fn play(seed: u64, scene: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyhole-sim"));
    command.arg(seed.to_string()).arg(scene).output().expect("keyhole-sim starts")
}

fn must_end_well(scene: &str) {
    for seed in 1..=SCENES {
        let output = play(seed, scene);
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        assert!(output.status.success(), "keyhole-sim {seed} {scene}:\n{}{}", said[0], said[1]);
    }
}

/// What went wrong, and how to see it again.
fn failure(seed: u64, output: &Output) -> String {
    format!(
        "{}{}replay it: KEYHOLE_SIM_SEED={seed} cargo nextest run --workspace --test simulation\n\
         with the managers' log: KEYHOLE_LOG=keyhole=debug keyhole-sim {seed}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    match std::env::var("KEYHOLE_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("KEYHOLE_SIM_SEED is a whole number");
            seed..=seed
        }
        Err(_) if std::env::var_os("KEYHOLE_SOAK").is_some() => 1..=LONG,
        Err(_) => 1..=SHORT,
    }
}

/// G7, G17 and the managers' part of G4: what was acknowledged is kept, reads see it, nodes never go back.
#[test]
fn every_seed_keeps_the_invariants_and_recovers() {
    let (seeds, started) = (seeds(), Instant::now());
    let next = AtomicU64::new(*seeds.start());
    let run = || {
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > *seeds.end() {
                return failures;
            }
            let output = simulate(seed);
            if !output.status.success() {
                failures.push(failure(seed, &output));
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it counts seeds")).collect()
    });
    println!("seeds {seeds:?} took {:?}", started.elapsed());
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n\n"));
}

/// What makes a failure worth anything: it can be seen again.
#[test]
fn a_seed_gives_the_same_run_again() {
    let (first, second, other) = (simulate(3), simulate(3), simulate(4));
    let trace = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_once("trace").expect("a run says its trace").1.to_owned()
    };
    assert!(first.status.success(), "{}", failure(3, &first));
    assert_eq!(trace(&first), trace(&second), "two runs of a seed differ");
    assert_ne!(trace(&first), trace(&other), "another seed is another run");
}

/// ADR 6: who has lost the majority falls silent, so that the follower that still hears him can give another one his vote.
#[test]
fn a_majority_that_is_connected_leads_though_the_old_leader_reaches_one_of_it() {
    must_end_well("one-in-reach");
}

/// ADR 6: a manager that reached nobody has not counted up the term meanwhile.
#[test]
fn who_comes_back_has_nobody_else_lead() {
    must_end_well("back");
}
