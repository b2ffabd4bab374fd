//! (a) What a read costs through the mount, against a tmpfs.
//!
//! Depends on the harness and [`cycle`](crate::cycle). Invariant: caller and worker are on one CPU in what is gated: waking
//! a sleeper on another CPU costs more than all else together on a virtual machine, and differs from run to run.

use std::fs;
use std::path::{Path, PathBuf};

use keyhole_tests::{Machine, run};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::cycle::{CycleSpec, Times};
use crate::figure::{Aim, Figure, median, quantile};

const SIZES: [(&str, usize); 3] = [("64 B", 64), ("4 KiB", 4096), ("500 KB", 500_000)];
const AIM: Aim = Aim::AtMost(15.0);
const WINDOWS: u32 = 200;
/// A window of about 2 ms: others seldom get in.
const CYCLES: u32 = 100;
/// Requests are counted over more, so that the worker's other reads do not show.
const COUNTED: u32 = 10_000;

pub(crate) fn measure() -> Vec<Figure> {
    let machine = Machine::start();
    let disk = machine.node.ground().small_disk("tmpfs", 8);
    let mut grants = Vec::new();
    for (_, size) in SIZES {
        let (name, value) = (format!("s{size}"), vec![b'k'; size]);
        machine.secret(&name, &value);
        fs::write(disk.at().join(&name), &value).expect("the disk is ours");
        grants.push(format!("source={name},mode=0444"));
    }
    machine.service("bench", &grants.iter().map(String::as_str).collect::<Vec<_>>());

    let all = sched_getaffinity(None).expect("our own");
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| all.is_set(*cpu)).expect("we run somewhere");
    let mut figures = Vec::new();
    for (where_, cpu) in [("one CPU", Some(last)), ("unpinned", None)] {
        place_worker(&machine, cpu, &all);
        for (label, size) in SIZES {
            let (file, reference) = (format!("s{size}"), disk.at().join(format!("s{size}")));
            let mut figure = ratio(&machine, &file, reference, cpu, &format!("{label}, {where_}"));
            if cpu.is_some() {
                let per_cycle = requests(&machine, &file, cpu);
                figure = figure.aim(AIM).gated().with("requests per cycle", per_cycle);
            }
            figures.push(figure);
        }
    }
    figures
}

fn ratio(
    machine: &Machine,
    file: &str,
    reference: PathBuf,
    cpu: Option<usize>,
    name: &str,
) -> Figure {
    let files = vec![machine.node.path(file), reference];
    let spec = CycleSpec { files, cpu, windows: WINDOWS, cycles: CYCLES };
    let times = in_task(machine, &spec);
    let [mount, tmpfs] = times.as_slice() else { panic!("two files were measured: {times:?}") };
    let ratios: Vec<f64> = mount.iter().zip(tmpfs).map(|(mount, tmpfs)| mount / tmpfs).collect();
    let best = |times: &[f64]| quantile(times, 0.0);
    Figure::new('a', name, best(mount) / best(tmpfs), "x")
        .with("mount µs", best(mount))
        .with("tmpfs µs", best(tmpfs))
        .with("median x", median(&ratios))
}

/// FUSE requests per cycle: each is one `read` of the worker, whatever it is answered with.
fn requests(machine: &Machine, file: &str, cpu: Option<usize>) -> f64 {
    let worker = machine.node.worker().expect("a node has a worker");
    let reads = || {
        let text = fs::read_to_string(format!("/proc/{worker}/io")).expect("the worker lives");
        let line = text.lines().find_map(|line| line.strip_prefix("syscr: "));
        line.and_then(|count| count.parse::<f64>().ok()).expect("the kernel counts reads")
    };
    let files = vec![machine.node.path(file)];
    let before = reads();
    in_task(machine, &CycleSpec { files, cpu, windows: 1, cycles: COUNTED });
    (reads() - before) / f64::from(COUNTED)
}

fn in_task(machine: &Machine, spec: &CycleSpec) -> Times {
    let own = std::env::current_exe().expect("this executable has a path");
    let mut command = machine.node.command(["run", "--service", "bench", "--"]);
    command.arg(own).arg("cycle").arg(serde_json::to_string(spec).expect("plain data"));
    let ran = run(command, b"");
    assert_eq!(ran.code, 0, "the task failed: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).expect("the task says its times")
}

/// All threads of the worker onto one CPU, or wherever they like.
fn place_worker(machine: &Machine, cpu: Option<usize>, all: &CpuSet) {
    let set = match cpu {
        Some(cpu) => {
            let mut one = CpuSet::new();
            one.set(cpu);
            one
        }
        None => *all,
    };
    let worker = machine.node.worker().expect("a node has a worker");
    for thread in numbers(Path::new(&format!("/proc/{worker}/task"))) {
        // One that ended just now needs no place.
        let _ = sched_setaffinity(Pid::from_raw(thread), &set);
    }
}

fn numbers(folder: &Path) -> Vec<i32> {
    let entries = fs::read_dir(folder).expect("the worker lives");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}
