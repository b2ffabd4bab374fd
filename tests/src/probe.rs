//! The test's end of a probe: asks, waits for the answer with a deadline, and ends the process when dropped.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::ask::{Answer, Ask, Errno};
use crate::binary::probe_binary;
use crate::daemon::{code, die_with_parent};
use crate::ground::Ground;

/// How long one answer may take; a mount that hangs is found by this.
const LIMIT: Duration = Duration::from_secs(20);

/// A descriptor in a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fd(pub i32);

/// A process that makes system calls on request. Dropped: killed.
#[derive(Debug)]
pub struct Probe {
    child: RefCell<Child>,
    input: RefCell<Option<ChildStdin>>,
    answers: Receiver<String>,
    log: PathBuf,
    pid: i32,
    pub(crate) ground: Arc<Ground>,
}

/// A probe that did not come to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailed {
    /// Exit code.
    pub code: i32,
    /// What was said.
    pub stderr: String,
}

impl Probe {
    /// A probe in this process's own cgroup: no task.
    pub fn outsider(ground: &Arc<Ground>) -> Self {
        let command = Command::new(probe_binary());
        Self::start(ground, "outsider", command).expect("the probe runs")
    }

    /// A probe outside that has moved into a cgroup.
    pub fn in_cgroup(ground: &Arc<Ground>, cgroup: &Path) -> Self {
        let probe = Self::outsider(ground);
        probe.join(cgroup);
        probe
    }

    /// Runs a command that becomes a probe.
    pub fn start(
        ground: &Arc<Ground>,
        name: &str,
        mut command: Command,
    ) -> Result<Self, RunFailed> {
        let log = ground.log(name);
        let file = File::create(&log).expect("the ground's folder is there");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        die_with_parent(&mut command, libc::SIGKILL);
        let mut child = command.spawn().expect("the command can be started");
        let input = RefCell::new(child.stdin.take());
        let output = child.stdout.take().expect("it is piped");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        let ground = Arc::clone(ground);
        let mut probe = Self { child: RefCell::new(child), input, answers, log, pid: 0, ground };
        // `keyhole run --wait` takes longer than any call.
        match probe.answers.recv_timeout(2 * LIMIT) {
            Ok(line) => {
                probe.pid = line.parse().expect("a probe says its pid first");
                Ok(probe)
            }
            Err(_) => Err(probe.failure()),
        }
    }

    fn failure(&self) -> RunFailed {
        let mut child = self.child.borrow_mut();
        // Its output ends a moment before it does; one that hangs is not waited for long.
        let start = std::time::Instant::now();
        let mut ended = None;
        while ended.is_none() && start.elapsed() < Duration::from_secs(2) {
            ended = child.try_wait().ok().flatten();
            std::thread::yield_now();
        }
        let code = ended.map_or(-1, code);
        RunFailed { code, stderr: std::fs::read_to_string(&self.log).unwrap_or_default() }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The directory of its cgroup.
    pub fn cgroup(&self) -> PathBuf {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid));
        let text = text.expect("the probe lives");
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        crate::cgroup::cgroup_root().join(path.expect("it is in the v2 hierarchy"))
    }

    /// Another process of the same task: an outsider that joined its cgroup.
    pub fn mate(&self) -> Self {
        Self::in_cgroup(&self.ground, &self.cgroup())
    }

    /// The temporary folder of its test, which is no secret's place.
    pub fn scratch(&self) -> &Path {
        self.ground.folder()
    }

    /// Does one thing.
    #[track_caller]
    pub fn ask(&self, ask: &Ask) -> Result<Answer, Errno> {
        self.begin(ask);
        self.finish(ask)
    }

    /// Starts one thing that may take long; [`Probe::finish`] has the answer.
    #[track_caller]
    pub fn begin(&self, ask: &Ask) {
        let line = serde_json::to_string(ask).expect("a request is plain data");
        let mut input = self.input.borrow_mut();
        let input = input.as_mut().expect("it was not told to end");
        writeln!(input, "{line}").expect("the probe lives");
    }

    /// The answer to what was begun.
    #[track_caller]
    pub fn finish(&self, ask: &Ask) -> Result<Answer, Errno> {
        let Ok(line) = self.answers.recv_timeout(LIMIT) else {
            let failed = self.failure();
            panic!("{ask:?} had no answer in {LIMIT:?} from probe {}: {failed:?}", self.pid);
        };
        match serde_json::from_str(&line).expect("a probe answers in JSON") {
            Answer::Failed(errno) => Err(errno),
            answer => Ok(answer),
        }
    }

    /// Lets it end by itself (end of its input) and waits; gives the exit code.
    pub fn end(self) -> i32 {
        self.input.borrow_mut().take();
        let status = self.child.borrow_mut().wait().expect("our own child");
        code(status)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let start = std::time::Instant::now();
        // A process that hangs in a mount cannot be waited for; its node's teardown frees it.
        while matches!(child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
