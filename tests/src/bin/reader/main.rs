//! A process that opens, reads and judges secrets until it is told to stop.
//!
//! Its one argument is a [`ReaderSpec`] in JSON. It says `ready`, and in the end one [`Report`] in JSON. Invariant: it
//! stops at the first thing that is wrong and exits with 1.

mod cycle;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyhole_tests::board::{Board, STOP};
use keyhole_tests::reader::{ReaderSpec, Report};

use cycle::Cycle;

/// Between two cycles of those that stay: on two cores, readers that never pause leave too little for a rotation every 5 ms.
const PACE: Duration = Duration::from_micros(700);

fn main() -> ExitCode {
    let spec = std::env::args().nth(1).expect("one argument");
    let spec: ReaderSpec = serde_json::from_str(&spec).expect("a specification");
    if let Some(cgroup) = &spec.cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0").expect("root may move itself");
    }
    // The daemons under test come first: many readers must not keep rotations from happening.
    rustix::process::nice(10).expect("anyone may be nice");
    println!("ready");
    let (done, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        let work = |number| work(&spec, number, &done, &failed);
        let threads: Vec<_> =
            (0..spec.threads).map(|number| scope.spawn(move || work(number))).collect();
        let reports = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        reports.fold(Report::default(), |sum, report| sum.plus(&report))
    });
    println!("{}", serde_json::to_string(&report).expect("plain data"));
    if report.wrong.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One thread's cycles.
fn work(spec: &ReaderSpec, number: u32, done: &AtomicU64, failed: &AtomicBool) -> Report {
    let board = Board::open(&spec.board);
    let mut cycle = Cycle::new(spec, &board, u64::from(number) * 7);
    loop {
        if failed.load(Ordering::Relaxed) || board.get(spec.stop) != 0 {
            return cycle.report;
        }
        if let Some(slot) = spec.done {
            board.set(slot, done.fetch_add(1, Ordering::Relaxed));
        }
        let start = Instant::now();
        let outcome = cycle.run();
        let micros = start.elapsed().as_micros() as u64;
        if spec.stop == STOP {
            std::thread::sleep(PACE);
        }
        cycle.report.longest_micros = cycle.report.longest_micros.max(micros);
        if let Err(wrong) = outcome {
            failed.store(true, Ordering::Relaxed);
            cycle.report.wrong = Some(wrong);
            return cycle.report;
        }
    }
}
