//! The processes of a dev: the manager, the node, and the task; each dies with it, whatever kills it.
//!
//! A part is this program again, as `dev-part`: it asks the kernel for a signal at its parent's death, enters its cgroup,
//! and becomes what it is to be. Both daemons have a process group of their own, so that Ctrl-C is for the dev alone, and
//! a log each.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::place::Place;
use super::terminal;
use crate::failure::Failure;

const SELF: &str = "/proc/self/exe";
/// How long a daemon may take to serve.
const START: Duration = Duration::from_secs(60);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// How long a daemon may take to end; then it is killed with its cgroup.
const END: Duration = Duration::from_secs(10);

/// `dev-part`
#[derive(Debug, Args)]
pub(crate) struct DevPart {
    /// The dev
    #[arg(long)]
    parent: u32,
    /// The cgroup to enter
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Whether the parent's death kills it, or asks it to end
    #[arg(long)]
    kill: bool,
    /// What to become
    #[arg(required = true, last = true)]
    words: Vec<OsString>,
}

impl DevPart {
    /// Becomes what it is to be; returns only if that does not work.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let signal = if self.kill { Signal::KILL } else { Signal::TERM };
        set_parent_process_death_signal(Some(signal))
            .map_err(|error| Failure::new(format!("cannot die with 'keyhole dev': {error}")))?;
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if parent != i32::try_from(self.parent).ok() {
            return Err(Failure::new("'keyhole dev' has ended"));
        }
        if let Some(cgroup) = &self.cgroup {
            let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"));
            procs.and_then(|mut procs| procs.write_all(b"0")).map_err(|error| {
                Failure::new(format!("cannot enter the cgroup {}: {error}", cgroup.display()))
            })?;
        }
        let error = std::process::Command::new(SELF).arg0("keyhole").args(self.words).exec();
        Err(Failure::new(format!("cannot start keyhole again: {error}")))
    }
}

/// This program, without any option of the caller's environment but those that point at this dev.
pub(super) fn keyhole(place: &Place, words: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = Command::new(SELF);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"KEYHOLE_") {
            command.env_remove(name);
        }
    }
    command.args(words).envs(place.environment()).kill_on_drop(true);
    command
}

fn part(place: &Place, how: &[&str]) -> Command {
    let mut command = keyhole(place, ["dev-part".into()]);
    command.args(["--parent", &std::process::id().to_string()]).args(how);
    command
}

/// Starts the command as a task.
pub(super) fn task(place: &Place, service: &str, words: &[OsString]) -> Result<Child, Failure> {
    let mut command = part(place, &["--kill", "--", "run", "--service", service, "--"]);
    command.args(words).env("PATH", path());
    command.spawn().map_err(|error| Failure::new(format!("cannot start the command: {error}")))
}

/// Where `keyhole` is found, also if it is in no folder of PATH.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if !folders.iter().any(|folder| folder.join("keyhole").exists()) {
        folders.extend(own);
    }
    std::env::join_paths(folders).unwrap_or(path)
}

/// As shells say it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Sends a signal to a child that nobody has waited for yet.
pub(super) fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it is dead already.
        let _ = kill_process(pid, signal);
    }
}

/// The daemons.
#[derive(Default)]
pub(super) struct Parts {
    manager: Option<Daemon>,
    node: Option<Daemon>,
}

impl Parts {
    /// Starts the manager.
    pub(super) fn start_manager(
        &mut self,
        place: &Place,
        words: Vec<OsString>,
    ) -> Result<(), Failure> {
        self.manager = Some(Daemon::start("manager", place, words)?);
        Ok(())
    }

    /// Starts the node and gives its pid.
    pub(super) fn start_node(
        &mut self,
        place: &Place,
        words: Vec<OsString>,
    ) -> Result<u32, Failure> {
        let node = self.node.insert(Daemon::start("node", place, words)?);
        Ok(node.child.id().unwrap_or(0))
    }

    /// Asks again until there is an answer, unless a daemon ends before.
    pub(super) async fn until<T>(
        &mut self,
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Failure> {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            failure = self.failed() => Err(failure),
            answer = timeout(START, asking) => answer.map_err(|_| {
                Failure::new(format!("nothing serves after {} s: is this machine overloaded?", START.as_secs()))
            }),
        }
    }

    /// Until a daemon has ended, which neither is to do by itself.
    pub(super) async fn failed(&mut self) -> Failure {
        tokio::select! {
            failure = end_of(self.manager.as_mut()) => failure,
            failure = end_of(self.node.as_mut()) => failure,
        }
    }

    /// Ends both in order: the node first, which unmounts.
    pub(super) async fn end(&mut self) {
        for daemon in [self.node.as_mut(), self.manager.as_mut()].into_iter().flatten() {
            signal(&daemon.child, Signal::TERM);
            let _ = timeout(END, daemon.child.wait()).await;
        }
    }
}

async fn end_of(daemon: Option<&mut Daemon>) -> Failure {
    match daemon {
        Some(daemon) => daemon.ended().await,
        None => std::future::pending().await,
    }
}

/// A daemon and its log.
struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(name: &'static str, place: &Place, words: Vec<OsString>) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(format!("cannot start the {name}: {error}"));
        let log = place.private(&format!("{name}.log"));
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
        let mut command = part(place, &["--cgroup"]);
        command.arg(place.parts_cgroup()).arg("--").args(words);
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file.map_err(failed)?);
        Ok(Self { name, child: command.spawn().map_err(failed)?, log })
    }

    async fn ended(&mut self) -> Failure {
        let Self { name, child, log } = self;
        let how = match child.wait().await {
            // Who ends the whole process group of a dev also ends a daemon that has none of its own yet.
            Ok(status) if status.signal().is_some_and(terminal::ends_a_group) => {
                return Failure::ended(exit_code(status));
            }
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let words = log.lines().rev().find_map(|line| line.strip_prefix("keyhole: "));
        Failure::new(match words {
            Some(words) => format!("the {name} of this dev has ended: {words}"),
            None => format!("the {name} of this dev has ended ({how}), and so it ends"),
        })
    }
}
