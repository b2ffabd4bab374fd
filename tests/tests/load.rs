//! The load generator with a few nodes, so that it works when it is wanted: `scripts/soak` has 10,000.

use std::process::Command;

use keyhole_tests::{bench_binary, run};

#[test]
fn every_node_of_a_load_gets_its_files_and_a_rotation() {
    let mut bench = Command::new(bench_binary());
    bench.arg("f").env("KEYHOLE_BENCH_NODES", "200");
    let ran = run(bench, b"");
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    println!("{}", ran.stdout);
    for figure in ["have their files", "memory for each", "has a rotation"] {
        assert!(ran.stdout.contains(figure), "{}", ran.stdout);
    }
}
