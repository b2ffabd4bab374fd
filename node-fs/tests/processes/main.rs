//! Supervisor, worker and callers as real processes over a real mount: what happens when they die.
//!
//! This binary is all of them: `supervise` and `worker` are roles it starts itself in; without a
//! role it is the test runner (the part of libtest's command line that cargo and nextest use).
#![expect(clippy::unwrap_used, reason = "a test binary")]

mod deaths;
mod node;
mod secrets;
mod served;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    (
        "no_reader_sees_an_error_when_workers_are_killed",
        deaths::no_reader_sees_an_error_when_workers_are_killed,
    ),
    ("a_replaced_worker_is_not_noticed_either", deaths::a_replaced_worker_is_not_noticed_either),
    ("sigterm_leaves_nothing_behind", deaths::sigterm_leaves_nothing_behind),
    (
        "a_dead_supervisor_takes_its_worker_along_and_the_next_cleans_up",
        deaths::a_dead_supervisor_takes_its_worker_along_and_the_next_cleans_up,
    ),
    ("a_request_that_kills_workers_is_given_up", deaths::a_request_that_kills_workers_is_given_up),
    (
        "a_stuck_worker_is_replaced_and_its_callers_are_served",
        deaths::a_stuck_worker_is_replaced_and_its_callers_are_served,
    ),
    ("a_stopped_worker_is_replaced", deaths::a_stopped_worker_is_replaced),
    (
        "a_worker_that_cannot_serve_ends_the_node_before_it_mounts",
        deaths::a_worker_that_cannot_serve_ends_the_node_before_it_mounts,
    ),
    ("an_aborted_connection_is_mounted_afresh", deaths::an_aborted_connection_is_mounted_afresh),
    (
        "nothing_can_be_written_through_the_attached_mount",
        deaths::nothing_can_be_written_through_the_attached_mount,
    ),
    (
        "a_second_node_is_refused_and_harms_nothing",
        deaths::a_second_node_is_refused_and_harms_nothing,
    ),
    (
        "each_task_sees_its_own_files_and_others_see_nothing",
        views::each_task_sees_its_own_files_and_others_see_nothing,
    ),
    (
        "the_kernel_checks_modes_and_nothing_can_be_changed",
        views::the_kernel_checks_modes_and_nothing_can_be_changed,
    ),
    (
        "an_open_file_keeps_its_version_until_it_is_revoked",
        views::an_open_file_keeps_its_version_until_it_is_revoked,
    ),
    ("rotation_is_never_seen_torn_mixed_or_late", views::rotation_is_never_seen_torn_mixed_or_late),
    (
        "tasks_keep_their_secrets_through_the_workers_death",
        views::tasks_keep_their_secrets_through_the_workers_death,
    ),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    }
    match args.first().map(String::as_str) {
        Some("supervise") => node::supervise(PathBuf::from(&args[1]), &args[2]),
        Some("worker") => served::work(args[1].parse().unwrap()),
        Some("reader") => views::read_until_told(args[1].parse().unwrap()),
        _ => run_tests(&args),
    }
}

fn run_tests(args: &[String]) -> ExitCode {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| {
        let matches = |filter: &&String| {
            if has("--exact") { *filter == name } else { name.contains(*filter) }
        };
        // Of `--format terse` the value looks like a filter.
        let mut filters = filters.iter().filter(|filter| **filter != "terse").copied().peekable();
        filters.peek().is_none() || filters.any(|filter| matches(&filter))
    };
    let tests = TESTS.iter().filter(|(name, _)| !has("--ignored") && chosen(name));
    for (name, test) in tests {
        if has("--list") {
            println!("{name}: test");
        } else {
            println!("test {name} ...");
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}
