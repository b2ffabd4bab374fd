//! The worker is killed again and again under a hundred readers, also with no manager in reach: no reader sees an error.
//!
//! The supervisor keeps the mount, the state and the boot key; a new worker takes over, and the requests that the old
//! one had taken are sent again by the kernel.

use std::time::{Duration, Instant};

use keyhole_tests::board::{Board, FLOORS, STOP};
use keyhole_tests::labelled::{Label, value};
use keyhole_tests::operate::Operator;
use keyhole_tests::reader::{Reader, ReaderSpec, Sight};
use keyhole_tests::{Cluster, Node, wait};
use rustix::process::{Pid, Signal, kill_process};

const FILES: u32 = 4;
const READERS: u32 = 100;

/// Kills the worker and waits until another one is there.
fn kill_worker(node: &Node) -> Duration {
    let old = node.worker().expect("a worker runs");
    let start = Instant::now();
    kill_process(Pid::from_raw(old).expect("a pid"), Signal::KILL).expect("root may");
    wait::until("another worker", || match node.worker() {
        Some(new) if new != old => Ok(()),
        other => Err(format!("{other:?}")),
    });
    start.elapsed()
}

/// Rotates; whether the node then reported it. A node whose worker was killed just now is not connected, and nobody
/// waits for it.
fn rotate(cluster: &Cluster, name: &str, bytes: &[u8]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let operator = Operator::connect(cluster.socket()).await.expect("the manager runs");
        let acked = operator.rotate(name, bytes).await.expect("it rotates");
        let progress = operator.delivered(acked.revision).await.expect("a progress");
        assert_eq!(progress.nodes, 1, "{progress:?}");
        progress.delivered == 1
    })
}

#[test]
fn a_hundred_readers_notice_no_death_of_the_worker() {
    let soak = std::env::var_os("KEYHOLE_SOAK").is_some();
    let kills = if soak { 500 } else { 20 };
    let mut cluster = Cluster::start();
    let node = cluster.node();
    let board = Board::create(&cluster.ground().folder().join("board"), 16);
    let name = |n: u32| format!("s{n}");
    for secret in 0..FILES {
        let bytes = value(Label { secret, sequence: 1 });
        cluster.ok_with(["secret", "create", &name(secret), "-"], &bytes);
        board.set(FLOORS + secret as usize, 1);
    }
    let grants: Vec<String> = (0..FILES).flat_map(|n| ["--secret".to_owned(), name(n)]).collect();
    cluster.ok(["service", "create", "web"].map(str::to_owned).into_iter().chain(grants));
    let task = node.task("web");
    let spec = ReaderSpec {
        board: board.path().to_owned(),
        cgroup: Some(task.cgroup()),
        mount: node.mount(),
        threads: READERS,
        done: None,
        sights: vec![Sight {
            files: (0..FILES).map(|n| (name(n), n)).collect(),
            listing: (0..FILES).map(name).collect(),
            foreign: vec!["nothing".to_owned()],
        }],
        stop: STOP,
        cold: true,
    };
    let mut readers = Reader::start("a hundred threads", &spec);
    let alone = kills / 2;
    for number in 1..=kills {
        // Anywhere in the life of a worker: while it starts, while it serves, while it takes an assignment.
        std::thread::sleep(Duration::from_millis(number * 37 % 90));
        if number == alone {
            cluster.stop(Signal::KILL);
        }
        kill_worker(&node);
        if number == alone {
            // It serves what it was left by the one before, with nobody to ask.
            std::thread::sleep(Duration::from_millis(100));
            kill_worker(&node);
            cluster.resume();
        } else if number % 3 == 0 {
            let sequence = number + 1;
            let secret = (number / 3) as u32 % FILES;
            let bytes = value(Label { secret, sequence });
            if rotate(&cluster, &name(secret), &bytes) {
                board.set(FLOORS + secret as usize, sequence);
            }
        }
        assert!(!readers.ended(), "after {number} deaths: {:?}", readers.finish());
    }
    board.set(STOP, 1);
    let report = readers.finish();
    println!("{kills} deaths and one more without a manager: {report:?}");
    println!("longest pause of a reader: {:.1} ms", report.longest_micros as f64 / 1e3);
    assert!(report.reads > 1_000 && report.fresh > 0, "{report:?}");
    assert!(report.longest_micros < 10_000_000, "a reader waited too long: {report:?}");
}
