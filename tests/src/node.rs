//! One node with its own data folder, mount, control socket and cgroup parent.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::binary::probe_binary;
use crate::clock::move_clock;
use crate::cluster::{Cluster, Ran, plain_command, run};
use crate::daemon::{Daemon, die_with_parent};
use crate::ground::Ground;
use crate::mounts;
use crate::probe::{Probe, RunFailed};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What a node may be told beside the usual.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// More arguments of `keyhole node run`.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// How many days after today it lives.
    pub days: i32,
    /// Its data folder, if not one of its own.
    pub data: Option<PathBuf>,
}

/// A node. Dropped: SIGTERM; if it hangs, its connection is aborted and its processes are killed.
#[derive(Debug)]
pub struct Node {
    supervisor: Daemon,
    folder: PathBuf,
    manager: String,
    options: NodeOptions,
    cgroups: PathBuf,
    ground: Arc<Ground>,
}

impl Node {
    pub(crate) fn join(cluster: &Cluster, options: NodeOptions) -> Self {
        let ground = Arc::clone(cluster.ground());
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = ground.folder().join(format!("n{number}"));
        fs::create_dir(&folder).expect("the ground is ours");
        let token = folder.join("token");
        fs::write(&token, cluster.node_token()).expect("the folder is ours");
        fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).expect("it is ours");
        let cgroups = ground.cgroup().child(&format!("n{number}"));
        let manager = cluster.address().to_string();
        let command = command(&folder, &manager, &cgroups, &options);
        let supervisor = Daemon::start(&ground, "node", command);
        let mut node = Self { supervisor, folder, manager, options, cgroups, ground };
        node.supervisor.wait_for_word("ready");
        node
    }

    /// Where its tasks find their files.
    pub fn mount(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// A path below the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        data(&self.folder, &self.options)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("n.sock")
    }

    /// Where it makes the cgroups of `keyhole run`.
    pub fn cgroups(&self) -> &Path {
        &self.cgroups
    }

    /// What the test stands on.
    pub fn ground(&self) -> &Arc<Ground> {
        &self.ground
    }

    /// The supervisor's process.
    pub fn supervisor(&mut self) -> &mut Daemon {
        &mut self.supervisor
    }

    /// The worker's pid.
    pub fn worker(&self) -> Option<i32> {
        self.supervisor.children().first().copied()
    }

    /// Ends the supervisor with a signal and waits for it.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.supervisor.signal(signal);
        self.supervisor.wait()
    }

    /// From its next start on the node lives this many days after today.
    pub fn set_days(&mut self, days: i32) {
        self.options.days = days;
    }

    /// Starts a stopped node on the same folder. The token's file is gone: a node that joined needs none.
    pub fn resume(&mut self) {
        let command = self.start_command();
        self.supervisor = Daemon::start(&self.ground, "node", command);
        self.supervisor.wait_for_word("ready");
    }

    /// What starts a stopped node again.
    pub fn start_command(&self) -> Command {
        let _ = fs::remove_file(self.folder.join("token"));
        command(&self.folder, &self.manager, &self.cgroups, &self.options)
    }

    /// The CLI's command, pointed at this node.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = plain_command();
        command.arg("--node-socket").arg(self.socket()).args(args);
        die_with_parent(&mut command, libc::SIGKILL);
        command
    }

    /// Runs the CLI.
    pub fn keyhole<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        run(self.command(args), b"")
    }

    /// Runs the CLI and gives its stdout; panics if it failed.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let ran = self.keyhole(&args);
        assert_eq!(ran.code, 0, "keyhole {args:?} failed: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// A probe as a new task of a service, by `keyhole run`.
    #[track_caller]
    pub fn task(&self, service: &str) -> Probe {
        match self.try_task(service, &[]) {
            Ok(probe) => probe,
            Err(failed) => panic!("keyhole run --service {service}: {failed:?}"),
        }
    }

    /// The same with more arguments of `keyhole run`; it may be refused.
    pub fn try_task(&self, service: &str, args: &[&str]) -> Result<Probe, RunFailed> {
        let mut command = self.command(["run", "--service", service]);
        command.args(args).arg("--").arg(probe_binary());
        Probe::start(&self.ground, &format!("task-{service}"), command)
    }

    /// A probe that is no task's.
    pub fn outsider(&self) -> Probe {
        Probe::outsider(&self.ground)
    }
}

fn data(folder: &Path, options: &NodeOptions) -> PathBuf {
    options.data.clone().unwrap_or_else(|| folder.join("data"))
}

/// `keyhole node run`.
fn command(folder: &Path, manager: &str, cgroups: &Path, options: &NodeOptions) -> Command {
    let mut command = plain_command();
    command.args(["node", "run", "--data-dir"]).arg(data(folder, options));
    command.arg("--mount").arg(folder.join("secrets"));
    command.arg("--control-socket").arg(folder.join("n.sock"));
    // A whole path; the default is one that is relative to the root of the hierarchy.
    command.arg("--cgroup-parent").arg(cgroups);
    let token = folder.join("token");
    if token.exists() {
        command.args(["--join", manager, "--token-file"]).arg(token);
    }
    command.args(&options.args).envs(options.env.iter().cloned());
    move_clock(&mut command, options.days);
    command
}

impl Drop for Node {
    fn drop(&mut self) {
        let connections = mounts::connections_below(&self.folder);
        let workers = self.supervisor.children();
        if self.supervisor.end(Duration::from_secs(5)) {
            mounts::detach_below(&self.folder);
            return;
        }
        for connection in connections {
            mounts::abort_connection(connection, self.ground.folder());
        }
        for pid in workers.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        mounts::detach_below(&self.folder);
    }
}
