//! Every operation of the store on its disk fails in turn, and power is lost after every one: a fixed script runs again for
//! each, until it comes to its end without the fault.
//!
//! Nothing that was acknowledged is lost, nothing is there that nobody asked for, and after a failure nothing is
//! acknowledged any more. A failure says how it is replayed. The script is longer with KEYHOLE_SOAK.
use crate::damage::Model;
use crate::disk::*;
use keyhole_manager::store::StoreError;

const KINDS: [FaultKind; 5] =
    [FaultKind::Write, FaultKind::HalfWrite, FaultKind::Full, FaultKind::Resize, FaultKind::Sync];

/// What a run of the script left.
struct Ran {
    /// What the store has to hold after each job.
    states: Vec<Content>,
    /// The last job that was acknowledged, from 1 on.
    acknowledged: usize,
    /// How many operations there were when each of them was.
    operations: Vec<usize>,
}

impl Ran {
    /// Whether that is what the store held after an acknowledged job or one that came after it.
    fn fits(&self, found: &Content, acknowledged: usize) -> bool {
        self.states[acknowledged..].contains(found)
    }
}

/// Runs the script, over a stop in its middle, until its end or a failure to open.
fn run(disk: &MemDisk, what: &str) -> Ran {
    let jobs = if std::env::var_os("KEYHOLE_SOAK").is_some() { 60 } else { 12 };
    let (mut dice, mut failed) = (Dice(11), false);
    let mut model = Model { next: 1, term: 1, ..Model::default() };
    let mut ran =
        Ran { states: vec![model.content.clone()], acknowledged: 0, operations: Vec::new() };
    for _ in 0..2 {
        let store = match open(disk) {
            Ok((store, _)) => store,
            Err(error) => {
                named(&error, what);
                break;
            }
        };
        for _ in 0..jobs {
            let (done, answer) = done();
            model.step(&mut dice, &store, done);
            ran.states.push(model.content.clone());
            match answer.recv().unwrap_or(Err(StoreError::Stopped)) {
                Ok(()) => {
                    assert!(!failed, "{what}: acknowledged after a failure");
                    ran.acknowledged = ran.states.len() - 1;
                    ran.operations.push(disk.operations());
                }
                Err(error) => {
                    failed = true;
                    // Later jobs do not follow from what the store has.
                    let follows = matches!(error, StoreError::Hole { .. } | StoreError::Stopped);
                    if !follows {
                        named(&error, what);
                    }
                }
            }
        }
        assert_eq!(store.failure().is_some(), failed, "{what}");
        if failed {
            break;
        }
    }
    ran
}

#[track_caller]
fn named(error: &StoreError, what: &str) {
    assert!(error.to_string().contains("/data/store."), "{what}: names no file: {error}");
}

/// How one case is run alone.
fn replay(what: &str) -> String {
    let soak = if std::env::var_os("KEYHOLE_SOAK").is_some() { "KEYHOLE_SOAK=1 " } else { "" };
    format!(
        "{what} (replay: {soak}KEYHOLE_FAULT='{what}' cargo nextest run --workspace --test store faults)"
    )
}

/// Whether this case is to be run: all are, unless one was named.
fn asked_for(what: &str) -> bool {
    std::env::var("KEYHOLE_FAULT").map_or(true, |one| one == what)
}

/// Fails the nth operation of that kind; `false` if there are not so many.
fn fail(kind: FaultKind, after: u64) -> bool {
    let what = replay(&format!("{kind:?} {after}"));
    let disk = new_disk();
    disk.state().fault = Some(Fault { kind, after });
    let ran = run(&disk, &what);
    if disk.state().fault.is_some() {
        return false;
    }
    let images = [("killed", disk.killed()), ("power lost", disk.power_lost(&mut Dice(0), false))];
    for (end, image) in images {
        match open(&image).and_then(|(store, _)| content(&store)) {
            Ok(found) => {
                assert!(ran.fits(&found, ran.acknowledged), "{what}, {end}: something is lost");
            }
            // Half of a mark is no mark, and says so.
            Err(error) => {
                assert_eq!(kind, FaultKind::HalfWrite, "{what}, {end}: {error}");
                assert!(error.to_string().contains("/data/store.mark"), "{what}, {end}: {error}");
            }
        }
    }
    true
}

#[test]
fn each_operation_that_fails_loses_nothing_and_ends_the_store() {
    for kind in KINDS {
        let cases = 0..100_000;
        let count =
            cases.take_while(|n| !asked_for(&format!("{kind:?} {n}")) || fail(kind, *n)).count();
        println!("{kind:?}: {count} operations failed in turn");
        assert!(count >= 1, "{kind:?}: the script has none");
    }
}

#[test]
fn power_that_is_lost_after_any_operation_loses_nothing_acknowledged() {
    let disk = new_disk();
    disk.record();
    let ran = run(&disk, "no fault");
    assert_eq!(ran.acknowledged, ran.states.len() - 1, "the script comes to its end");
    for count in 0..=disk.operations() {
        let acknowledged = ran.operations.partition_point(|done| *done <= count);
        for left in [Left::Nothing, Left::AllButATornEnd, Left::TheLast] {
            let what = format!("{left:?} {count}");
            if !asked_for(&what) {
                continue;
            }
            let what = replay(&what);
            let opened = open(&disk.power_lost_after(count, left));
            let found = opened.and_then(|(store, _)| content(&store));
            let found = found.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(ran.fits(&found, acknowledged), "{what}: something is lost");
        }
    }
    println!("{} operations, power lost after each", disk.operations());
}
