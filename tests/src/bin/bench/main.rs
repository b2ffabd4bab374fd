//! Measures what users feel, as ratios within one run: reads through the mount, rotations, creates, 100,000 secrets, three
//! managers, and 10,000 nodes.
//!
//! `bench [a|b|c|d|e|f]… [--json FILE] [--gate]`; `scripts/bench` builds it and the `keyhole` that it measures. Real daemons,
//! mounts and disks, as in the tests. Invariants: an aim is written here and nowhere else; what is measured against each
//! other is measured in turns, so that a machine that is busy with something else slows both down.

mod cluster;
mod create;
mod cycle;
mod figure;
mod load;
mod read;
mod rotate;
mod scale;

use std::path::PathBuf;
use std::process::ExitCode;

use figure::Report;

const USAGE: &str = "usage: bench [a|b|c|d|e|f]… [--json FILE] [--gate]
  a  open+fstat+read+close through the mount, against tmpfs
  b  from exec of `keyhole secret rotate` to the new bytes in a running task
  c  creates per second, against the disk's fdatasync
  d  memory and start of manager and node with 100,000 secrets
  e  three managers: creates per second, writes after a lost leader, a newcomer
  f  10,000 nodes on one manager (KEYHOLE_BENCH_NODES: another number)
  --json FILE  also writes the figures there
  --gate       exit 1 when a gated aim is missed";

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    parts: Vec<char>,
    json: Option<PathBuf>,
    gate: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        // What runs inside a task.
        ["cycle", spec] => cycle::run(spec),
        ["poll", path] => rotate::poll(path.as_ref()),
        words => match wanted(words) {
            Some(wanted) => measure(&wanted),
            None => {
                eprintln!("{USAGE}");
                ExitCode::from(2)
            }
        },
    }
}

fn wanted(words: &[&str]) -> Option<Wanted> {
    let mut wanted = Wanted::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--gate" => wanted.gate = true,
            "--json" => wanted.json = Some(words.next()?.into()),
            "a" | "b" | "c" | "d" | "e" | "f" => wanted.parts.extend(word.chars()),
            _ => return None,
        }
    }
    if wanted.parts.is_empty() {
        wanted.parts = vec!['a', 'b', 'c', 'd', 'e', 'f'];
    }
    Some(wanted)
}

fn measure(wanted: &Wanted) -> ExitCode {
    let mut report = Report::of_this_machine();
    for part in &wanted.parts {
        eprintln!("bench: {part}");
        report.figures.extend(match part {
            'a' => read::measure(),
            'b' => rotate::measure(),
            'c' => create::measure(),
            'd' => scale::measure(),
            'e' => cluster::measure(),
            _ => load::measure(),
        });
    }
    print!("{}", report.table());
    if let Some(path) = &wanted.json {
        std::fs::write(path, report.json()).expect("the file of --json can be written");
    }
    let missed = report.missed_gates();
    for name in &missed {
        eprintln!("bench: missed: {name}");
    }
    if wanted.gate && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_options_come_in_any_order_and_none_means_all() {
        let all = Wanted { parts: vec!['a', 'b', 'c', 'd', 'e', 'f'], ..Wanted::default() };
        assert_eq!(wanted(&[]), Some(all));
        let some = Wanted { parts: vec!['c', 'a'], json: Some("x".into()), gate: true };
        assert_eq!(wanted(&["c", "--json", "x", "--gate", "a"]), Some(some));
        assert_eq!(wanted(&["g"]), None);
        assert_eq!(wanted(&["--json"]), None);
    }
}
