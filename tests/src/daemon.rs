//! One daemon under test: its process, its log, its end.

#![expect(unsafe_code, reason = "a child's death signal can be set only between fork and exec")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::ground::Ground;
use crate::wait;

/// How long a daemon may take to say that it is ready, and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A running daemon. Dropped: SIGTERM, then SIGKILL.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    lines: Receiver<String>,
    reader: JoinHandle<()>,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; both its outputs go to a log. It gets SIGTERM if the thread that started it ends without it.
    pub fn start(ground: &Ground, name: &str, mut command: Command) -> Self {
        let log = ground.log(name);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("a second descriptor"))
            .stderr(writer);
        die_with_parent(&mut command, libc::SIGTERM);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        // The command holds the pipe's write end: without this the reader would never see the end.
        drop(command);
        let mut file = File::create(&log).expect("the ground's folder is there");
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let _ = writeln!(file, "{line}");
                let _ = sender.send(line);
            }
        });
        Self { name: name.to_owned(), child, ended: None, lines, reader, log }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line with this word among those it has not shown yet. Panics when it ends first.
    pub fn wait_for_word(&mut self, word: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
                    if words.any(|found| found.eq_ignore_ascii_case(word)) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} did not say {word:?} in {LIMIT:?}:\n{}", self.name, self.log())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait();
                    panic!("{} ended ({status}) before {word:?}:\n{}", self.name, self.log())
                }
            }
        }
    }

    /// Waits until it says that it is ready; if it ends before, gives its last line.
    pub fn ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        let mut last = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(": ready ") => return Ok(()),
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} neither serves nor ends:\n{}", self.name, self.log())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.wait();
                    return Err(last);
                }
            }
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let status = wait::until(&format!("{name} to end"), || {
            self.ended().ok_or_else(|| "it runs".to_owned())
        });
        // Its last words may be on their way yet; a child that it left behind may keep the pipe open.
        let start = Instant::now();
        while !self.reader.is_finished() && start.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        status
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
        }
        self.ended
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).expect("our own child can be signalled");
        }
    }

    /// SIGTERM, and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Ends it without any panic; whether it went by itself within the limit.
    pub(crate) fn end(&mut self, limit: Duration) -> bool {
        let end = |daemon: &mut Self, signal, limit: Duration| {
            let _ = kill_process(Pid::from_child(&daemon.child), signal);
            let start = Instant::now();
            while start.elapsed() < limit {
                if matches!(daemon.child.try_wait(), Ok(Some(_)) | Err(_)) {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            false
        };
        if self.ended.is_some() || matches!(self.child.try_wait(), Ok(Some(_))) {
            return true;
        }
        end(self, Signal::TERM, limit) || {
            eprintln!("{} did not end in {limit:?} after SIGTERM", self.name);
            end(self, Signal::KILL, limit);
            false
        }
    }

    /// Pids of its children.
    pub fn children(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end(Duration::from_secs(5));
    }
}

/// The child gets `signal` when the thread that starts it ends: nothing outlives a test that was killed.
pub(crate) fn die_with_parent(command: &mut Command, signal: i32) {
    let set = move || {
        rustix::process::set_parent_process_death_signal(Signal::from_named_raw(signal))?;
        Ok(())
    };
    // SAFETY: one system call, which is all that may be done between fork and exec of a threaded process.
    unsafe { command.pre_exec(set) };
}

/// Exit code, or 128 + the signal as shells say.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
