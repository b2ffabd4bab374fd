//! Readers: processes that open, read and judge secrets as fast as they can, and the test's handle on one.
//!
//! The work is in the binary `reader`; here are what it is told, what it says in the end, and [`Reader`]. A reader ends
//! with an error at the first thing that is wrong. Invariant: what is right is told before it starts (its own files and
//! listing) or lies on the [`Board`](crate::board::Board) (how old a value may be).

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::binary::reader_binary;
use crate::daemon::die_with_parent;

/// What a caller has a right to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sight {
    /// Its files: path below the mount, number of the secret.
    pub files: Vec<(String, u32)>,
    /// The names in its root, sorted.
    pub listing: Vec<String>,
    /// Names that others have and it has not.
    pub foreign: Vec<String>,
}

/// What a reader is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReaderSpec {
    /// The shared numbers.
    pub board: PathBuf,
    /// The cgroup that it moves into first.
    pub cgroup: Option<PathBuf>,
    /// Where the files are.
    pub mount: PathBuf,
    /// How many threads do the work.
    pub threads: u32,
    /// The place on the board where it says how many cycles its threads have done, if anybody wants to know.
    pub done: Option<usize>,
    /// The place on the board that says when to stop.
    pub stop: usize,
    /// Who it may be. More than one: the board says which one it is at the moment.
    pub sights: Vec<Sight>,
    /// Drop the pages of each file before it is read, so that the read reaches the node.
    pub cold: bool,
}

/// What a reader says in the end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Opens, of own and of foreign names.
    pub opens: u64,
    /// Values that were read and judged.
    pub reads: u64,
    /// Listings, with all that goes along.
    pub listings: u64,
    /// Reads that showed another sequence number than the thread's last one of that secret.
    pub fresh: u64,
    /// Cycles whose identity changed meanwhile, so that only the value's wholeness was judged.
    pub unsure: u64,
    /// Opens that ended in ESTALE because the file changed twice meanwhile, and were repeated.
    pub stale: u64,
    /// The longest cycle.
    pub longest_micros: u64,
    /// The first thing that was wrong.
    pub wrong: Option<String>,
}

impl Report {
    /// Both together.
    pub fn plus(self, other: &Self) -> Self {
        Self {
            opens: self.opens + other.opens,
            reads: self.reads + other.reads,
            listings: self.listings + other.listings,
            fresh: self.fresh + other.fresh,
            unsure: self.unsure + other.unsure,
            stale: self.stale + other.stale,
            longest_micros: self.longest_micros.max(other.longest_micros),
            wrong: self.wrong.or_else(|| other.wrong.clone()),
        }
    }
}

/// A running reader. Dropped: killed.
#[derive(Debug)]
pub struct Reader {
    name: String,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Reader {
    /// Starts one and waits until it is in its cgroup and reads.
    pub fn start(name: &str, spec: &ReaderSpec) -> Self {
        let mut command = Command::new(reader_binary());
        command.arg(serde_json::to_string(spec).expect("plain data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut command, libc::SIGKILL);
        let mut child = command.spawn().expect("the reader can be started");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a pipe");
        assert_eq!(line.trim(), "ready", "reader {name} did not come to read");
        Self { name: name.to_owned(), child, output }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// SIGKILL in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Moves it into another cgroup.
    pub fn move_to(&self, cgroup: &Path) {
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(procs, self.pid().to_string()).expect("root moves processes");
    }

    /// Waits for its end and what it says. Panics if something was wrong.
    #[track_caller]
    pub fn finish(mut self) -> Report {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("a pipe");
        let status = self.child.wait().expect("our own child");
        let name = &self.name;
        let report: Report = serde_json::from_str(text.trim())
            .unwrap_or_else(|error| panic!("reader {name} ({status}) said {text:?}: {error}"));
        if let Some(wrong) = &report.wrong {
            panic!("reader {name}: {wrong}\n{report:?}");
        }
        report
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let start = std::time::Instant::now();
        // A process that hangs in a mount cannot be waited for; its node's teardown frees it.
        while !self.ended() && start.elapsed().as_secs() < 5 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
