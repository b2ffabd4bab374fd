//! (b) From the exec of `keyhole secret rotate` to the first new byte in a task that runs already and polls.
//!
//! Depends on the harness. Invariant: the clock starts before the operator's process does, and stops in the task.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyhole_tests::Machine;

use crate::figure::{Aim, Figure, median, quantile};

const ROTATIONS: u32 = 200;
const WARM_UP: u32 = 5;
/// How often the task looks; it is part of the figure.
const POLL: Duration = Duration::from_micros(500);
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn measure() -> Vec<Figure> {
    let machine = Machine::start();
    machine.secret("turning", "0");
    machine.service("bench", &["source=turning,mode=0444"]);
    let mut task = Poller::start(&machine);
    let file = machine.node.ground().folder().join("value");
    let (mut seen, mut ended) = (Vec::new(), Vec::new());
    for number in 1..=WARM_UP + ROTATIONS {
        fs::write(&file, number.to_string()).expect("the folder is ours");
        let mut command = machine.cluster.command(["secret", "rotate", "turning"]);
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let (start, at) = (Instant::now(), now());
        let status = command.spawn().and_then(|mut child| child.wait());
        let command_time = start.elapsed();
        assert!(status.expect("the binary runs").success(), "rotation {number}");
        let new = task.saw(number);
        if number > WARM_UP {
            seen.push(new.saturating_sub(at).as_secs_f64() * 1e3);
            ended.push(command_time.as_secs_f64() * 1e3);
        }
    }
    let command = median(&ended);
    vec![
        Figure::new('b', "rotation, median", median(&seen), "ms")
            .aim(Aim::AtMost(20.0))
            .with("rotations", f64::from(ROTATIONS))
            .with("best ms", quantile(&seen, 0.0))
            .with("the command itself, median ms", command),
        Figure::new('b', "rotation, p99", quantile(&seen, 0.99), "ms")
            .aim(Aim::AtMost(60.0))
            .with("worst ms", quantile(&seen, 1.0)),
    ]
}

/// The time of day: two processes have no other clock in common that needs no system call of its own.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
}

/// `bench poll FILE`, in the task: a line for each change that it sees, what it is and when it was there.
pub(crate) fn poll(path: &Path) -> ExitCode {
    let mut last = Vec::new();
    let mut out = std::io::stdout();
    loop {
        // An open may find its file replaced twice meanwhile (ESTALE); the next one will do.
        if let Ok(value) = fs::read(path) {
            let at = now().as_nanos();
            if value != last {
                let line = format!("{} {at}\n", String::from_utf8_lossy(&value));
                if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                    return ExitCode::SUCCESS;
                }
                last = value;
            }
        }
        std::thread::sleep(POLL);
    }
}

/// The task. Dropped: killed.
struct Poller {
    child: Child,
    lines: Receiver<String>,
}

impl Poller {
    fn start(machine: &Machine) -> Self {
        let own = std::env::current_exe().expect("this executable has a path");
        let mut command = machine.node.command(["run", "--service", "bench", "--"]);
        command.arg(own).arg("poll").arg(machine.node.path("turning"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let mut poller = Self { child, lines };
        poller.saw(0);
        poller
    }

    /// When it saw the value.
    fn saw(&mut self, number: u32) -> Duration {
        loop {
            let line = self.lines.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|error| panic!("value {number} was not seen: {error}"));
            let (value, at) = line.split_once(' ').expect("value and time");
            if value == number.to_string() {
                return Duration::from_nanos(at.parse().expect("nanoseconds"));
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
