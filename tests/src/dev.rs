//! A `keyhole dev` under test, what it has on this machine, and what of that is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::cgroup_root;
use crate::cluster::{Ran, plain_command, run};
use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::mounts::mounts;
use crate::wait;

/// `keyhole dev` with these arguments.
pub fn dev_command(args: &[&str]) -> Command {
    let mut command = plain_command();
    command.arg("dev").args(args);
    command
}

/// What one dev has on this machine.
#[derive(Debug, Clone)]
pub struct Traces {
    /// Its folder.
    pub folder: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Where its tasks find their files.
    pub mount: PathBuf,
    /// Numbers are given again, inodes are not.
    inodes: [Option<u64>; 2],
    pids: Vec<i32>,
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

impl Traces {
    /// Of the dev with this control socket and mount, with all processes that it has now.
    pub fn of(node_socket: &Path, mount: &Path) -> Self {
        let folder = node_socket.parent().expect("it is in the dev's folder").to_owned();
        let number = folder.file_name().expect("it has a name").to_string_lossy();
        let cgroup = cgroup_root().join(format!("keyhole-dev-{number}"));
        let (inodes, pids) = ([inode(&folder), inode(&cgroup)], processes(&cgroup));
        Self { folder, cgroup, mount: mount.to_owned(), inodes, pids }
    }

    /// The same for a dev that may have ended by now: its folder and cgroup had these inodes while it ran.
    pub fn had(mut self, folder: u64, cgroup: u64) -> Self {
        self.inodes = [Some(folder), Some(cgroup)];
        self
    }

    /// What is still there, in words.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (path, known) in [&self.folder, &self.cgroup].into_iter().zip(self.inodes) {
            if inode(path).is_some_and(|now| Some(now) == known) {
                left.push(path.display().to_string());
            }
        }
        // Where a folder is gone, what is mounted at its path is another dev's.
        let other = self.mount.starts_with(&self.folder) && inode(&self.folder) != self.inodes[0];
        if !other && mounts().iter().any(|mount| mount.at == self.mount) {
            left.push(format!("a mount at {}", self.mount.display()));
        }
        left.extend(self.alive().iter().map(|pid| format!("process {pid}")));
        left
    }

    /// Waits until nothing is there.
    #[track_caller]
    pub fn gone(&self) {
        wait::until("nothing to be left", || match self.left() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join(", ")),
        });
    }

    /// Those of its processes that live.
    pub fn alive(&self) -> Vec<i32> {
        // Neither a zombie's nor a stranger's cgroup is one of its own.
        let here = |pid: &i32| {
            let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let name = self.cgroup.file_name().expect("it has a name").to_string_lossy();
            let zombie = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
            });
            !zombie && table.contains(&format!("0::/{name}/"))
        };
        self.pids.iter().copied().filter(here).collect()
    }

    /// Its process with this word in the command line.
    #[track_caller]
    pub fn process(&self, words: &str) -> i32 {
        let is_it = |pid: &&i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
        };
        *self.pids.iter().find(is_it).unwrap_or_else(|| panic!("no {words:?} in {:?}", self.pids))
    }

    /// Kills all of them at one moment, as far as that is possible.
    pub fn kill_all(&self) {
        self.pids.iter().for_each(|pid| kill(*pid));
    }
}

/// SIGKILL.
pub fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|pid| pid.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// A dev that serves until it is ended.
#[derive(Debug)]
pub struct Dev {
    /// Its process.
    pub daemon: Daemon,
    environment: Vec<(String, String)>,
}

impl Dev {
    /// Starts one with more arguments and waits until it serves.
    pub fn start(ground: &Ground, args: &[&str]) -> Self {
        Self::start_by(ground, dev_command(args))
    }

    /// The same with a command of one's own.
    pub fn start_by(ground: &Ground, command: Command) -> Self {
        let mut daemon = Daemon::start(ground, "dev", command);
        let line = daemon.wait_for_word("export");
        let words = line.split_whitespace().filter_map(|word| word.split_once('='));
        let environment = words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { daemon, environment }
    }

    fn value(&self, name: &str) -> PathBuf {
        let found = self.environment.iter().find(|(found, _)| found == name);
        PathBuf::from(&found.unwrap_or_else(|| panic!("no {name}")).1)
    }

    /// Where its tasks find their files.
    pub fn mount(&self) -> PathBuf {
        self.value("KEYHOLE_SECRETS")
    }

    /// What it has now.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.value("KEYHOLE_NODE_SOCKET"), &self.mount())
    }

    /// The CLI, pointed at it as it said.
    pub fn keyhole(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut command = plain_command();
        command.args(args).envs(self.environment.iter().cloned());
        run(command, stdin)
    }

    /// The same; panics if it failed.
    #[track_caller]
    pub fn ok(&self, args: &[&str], stdin: &[u8]) -> String {
        let ran = self.keyhole(args, stdin);
        assert_eq!(ran.code, 0, "keyhole {args:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }
}
