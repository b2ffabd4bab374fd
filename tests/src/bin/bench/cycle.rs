//! Inside a task: opens, stats, reads and closes files, again and again, and says how long each took.
//!
//! Depends on nothing of Keyhole. Invariant: the files take turns in short windows, so that each is measured under the
//! same load.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CycleSpec {
    pub(crate) files: Vec<PathBuf>,
    /// The one CPU to run on.
    pub(crate) cpu: Option<usize>,
    pub(crate) windows: u32,
    /// In each window, of each file.
    pub(crate) cycles: u32,
}

/// Microseconds of one cycle, by file and window.
pub(crate) type Times = Vec<Vec<f64>>;

/// `bench cycle SPEC`: writes [`Times`] in JSON.
pub(crate) fn run(spec: &str) -> ExitCode {
    let spec: CycleSpec = serde_json::from_str(spec).expect("the bench writes what it reads");
    if let Some(cpu) = spec.cpu {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("the CPU is there");
    }
    let mut buffer = Vec::new();
    let mut times: Times = vec![Vec::new(); spec.files.len()];
    for _ in 0..spec.windows {
        for (file, times) in spec.files.iter().zip(&mut times) {
            let start = Instant::now();
            for _ in 0..spec.cycles {
                cycle(file, &mut buffer);
            }
            times.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(spec.cycles));
        }
    }
    println!("{}", serde_json::to_string(&times).expect("plain data"));
    ExitCode::SUCCESS
}

/// As most programs do it: `read` until it says that there is no more.
fn cycle(path: &PathBuf, buffer: &mut Vec<u8>) {
    let mut file = File::open(path).expect("the task may open it");
    let size = file.metadata().expect("it is open").len() as usize;
    buffer.resize(size + 1, 0);
    let mut filled = 0;
    loop {
        match file.read(&mut buffer[filled..]).expect("it is open") {
            0 => break,
            read => filled += read,
        }
    }
    assert_eq!(filled, size, "{} is whole", path.display());
}
