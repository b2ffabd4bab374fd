//! Managers, each with its own data folder, address and operator socket, and the CLI pointed at it.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::binary::keyhole_binary;
use crate::clock::{Clock, move_clock};
use crate::daemon::{Daemon, code, die_with_parent};
use crate::ground::Ground;
use crate::network::Network;
use crate::node::{Node, NodeOptions};
use crate::tap::Tap;
use crate::wait;

/// Numbers for the folders of those that join.
static MANAGERS: AtomicU32 = AtomicU32::new(2);

/// A cluster, by one manager of it: the only one, unless others joined.
#[derive(Debug)]
pub struct Cluster {
    manager: Daemon,
    address: SocketAddr,
    listen: SocketAddr,
    socket: PathBuf,
    data: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    on: Vec<String>,
    days: i32,
    ground: Arc<Ground>,
}

/// Where a manager runs, and how.
struct Place {
    /// Where others find it.
    address: SocketAddr,
    listen: SocketAddr,
    /// What runs a command there; nothing: here.
    on: Vec<String>,
    env: Vec<(String, String)>,
}

impl Place {
    fn here(env: Vec<(String, String)>) -> Self {
        let address = free_address();
        Self { address, listen: address, on: Vec::new(), env }
    }

    /// Where all that others say passes a relay.
    fn behind(tap: &Tap) -> Self {
        let here = Self::here(Vec::new());
        tap.pass_to(here.listen);
        Self { address: tap.address(), ..here }
    }
}

fn all_vote(managers: &[Cluster]) {
    wait::until("all managers to vote", || {
        let roles = managers[0].ok(["manager", "ls", "--format", "{{.Role}}"]);
        match roles == "Voter\n".repeat(managers.len()) {
            true => Ok(()),
            false => Err(roles),
        }
    });
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code; 128 + N for signal N.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Cluster {
    /// Starts a manager on an empty folder and waits until it serves.
    pub fn start() -> Self {
        Self::start_on(Arc::new(Ground::new()))
    }

    /// The same on a ground that is there.
    pub fn start_on(ground: Arc<Ground>) -> Self {
        Self::start_with(ground, &[])
    }

    /// The same with more arguments of `keyhole manager run`, also at later starts.
    pub fn start_with(ground: Arc<Ground>, args: &[&str]) -> Self {
        Self::start_in(ground, args, Vec::new())
    }

    /// The same with more environment, too.
    pub fn start_in(ground: Arc<Ground>, args: &[&str], env: Vec<(String, String)>) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self::found(ground, Place::here(env), &args)
    }

    fn found(ground: Arc<Ground>, place: Place, args: &[String]) -> Self {
        let Place { address, listen, on, env } = place;
        let (socket, data) = (ground.folder().join("m.sock"), ground.folder().join("m"));
        let mut command = manager_command(&on, &data, (listen, address), &socket);
        command.arg("--init").args(args).envs(env.iter().cloned());
        let mut manager = Daemon::start(&ground, "manager", command);
        manager.wait_for_word("ready");
        let args = args.to_vec();
        Self { manager, address, listen, socket, data, args, env, on, days: 0, ground }
    }

    /// So many managers of one cluster, all of which vote.
    pub fn of(managers: usize) -> Vec<Self> {
        let mut all = vec![Self::start()];
        while all.len() < managers {
            let next = all[0].join();
            all.push(next);
        }
        all_vote(&all);
        all
    }

    /// A manager on each of the first hosts of a network, as many as there are clocks, each by its own; all of them vote.
    pub fn on_network(ground: &Arc<Ground>, network: &Network, clocks: &[Clock]) -> Vec<Self> {
        let place = |host: usize| Place {
            address: network.address(host),
            listen: network.address(host),
            on: network.on(host),
            env: clocks[host].environment(),
        };
        let mut all = vec![Self::found(ground.clone(), place(0), &[])];
        for host in 1..clocks.len() {
            let next = all[0].join_at(place(host));
            all.push(next);
        }
        all_vote(&all);
        all
    }

    /// So many managers, all of which vote; what one says to another takes `delay` to it, and its answer back, too.
    pub fn far_apart(managers: usize, delay: Duration) -> Vec<Self> {
        let first = Place::behind(&Tap::far(delay));
        let mut all = vec![Self::found(Arc::new(Ground::new()), first, &[])];
        while all.len() < managers {
            let next = all[0].join_behind(&Tap::far(delay));
            all.push(next);
        }
        all_vote(&all);
        all
    }

    /// Which of these managers leads, as any of them says.
    pub fn leader(managers: &[Self]) -> usize {
        wait::until("a leader", || {
            let args = ["manager", "ls", "-f", "status=leader", "--format", "{{.Address}}"];
            let told = managers.iter().map(|by| by.keyhole(args).stdout);
            let at =
                |told: String| managers.iter().position(|m| m.address().to_string() == told.trim());
            told.filter_map(at).next().ok_or_else(|| "none".to_owned())
        })
    }

    /// Another manager, which joins this one's cluster and is ready.
    pub fn join(&self) -> Self {
        self.join_at(Place { on: self.on.clone(), ..Place::here(self.env.clone()) })
    }

    /// The same, where all that others say to it passes a relay.
    pub fn join_behind(&self, tap: &Tap) -> Self {
        self.join_at(Place::behind(tap))
    }

    fn join_at(&self, place: Place) -> Self {
        let number = MANAGERS.fetch_add(1, Ordering::Relaxed);
        let folder = self.ground.folder();
        let (socket, data) =
            (folder.join(format!("m{number}.sock")), folder.join(format!("m{number}")));
        let token = folder.join(format!("m{number}.token"));
        fs::write(&token, self.ok(["cluster", "join-token", "-q", "manager"])).expect("our folder");
        let Place { address, listen, on, env } = place;
        let mut command = manager_command(&on, &data, (listen, address), &socket);
        command.args(["--join", &self.address.to_string(), "--token-file"]).arg(&token);
        command.args(&self.args).envs(env.iter().cloned());
        let mut manager = Daemon::start(&self.ground, "manager", command);
        manager.wait_for_word("ready");
        let (args, ground) = (self.args.clone(), self.ground.clone());
        Self { manager, address, listen, socket, data, args, env, on, days: 0, ground }
    }

    /// What the test stands on.
    pub fn ground(&self) -> &Arc<Ground> {
        &self.ground
    }

    /// Where nodes find the manager.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The operator's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The manager's data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The manager's process.
    pub fn manager(&mut self) -> &mut Daemon {
        &mut self.manager
    }

    /// Ends the manager with a signal and waits.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.manager.signal(signal);
        self.manager.wait()
    }

    /// Starts the manager again on the same folder and address.
    pub fn restart(&mut self, signal: Signal) {
        self.stop(signal);
        self.resume();
    }

    /// From its next start on the manager lives this many days after today.
    pub fn set_days(&mut self, days: i32) {
        self.days = days;
    }

    /// Starts a manager that was stopped, and that has to be unlocked.
    pub fn resume_locked(&mut self) {
        self.resume_locked_with(&[]);
    }

    /// The same with more arguments, for this start only.
    pub fn resume_locked_with(&mut self, args: &[&str]) {
        self.begin(args);
        self.manager.wait_for_word("locked");
    }

    /// Starts a manager that was stopped, and that ends by itself; what it said.
    pub fn fails_to_start(&mut self) -> String {
        self.begin(&[]);
        self.manager.wait();
        self.manager.log()
    }

    /// Starts a manager that was stopped.
    pub fn resume(&mut self) {
        self.resume_with(&[]);
    }

    /// The same with more arguments, for this start only.
    pub fn resume_with(&mut self, args: &[&str]) {
        self.begin(args);
        self.manager.wait_for_word("ready");
    }

    fn begin(&mut self, args: &[&str]) {
        let at = (self.listen, self.address);
        let mut command = manager_command(&self.on, &self.data, at, &self.socket);
        command.args(args).args(&self.args).envs(self.env.iter().cloned());
        move_clock(&mut command, self.days);
        self.manager = Daemon::start(&self.ground, "manager", command);
    }

    /// Joins a node and waits until it is ready.
    pub fn node(&self) -> Node {
        self.node_with(NodeOptions::default())
    }

    /// Joins a node with options of its own.
    pub fn node_with(&self, options: NodeOptions) -> Node {
        Node::join(self, options)
    }

    /// A token for a new node.
    pub fn node_token(&self) -> String {
        self.ok(["cluster", "join-token", "-q", "worker"]).trim().to_owned()
    }

    /// The CLI's command, pointed at this manager.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = plain_command();
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).args(args);
        die_with_parent(&mut command, libc::SIGKILL);
        command
    }

    /// Runs the CLI with nothing on stdin.
    pub fn keyhole<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.keyhole_with(args, b"")
    }

    /// Runs the CLI with bytes on stdin.
    pub fn keyhole_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Ran {
        run(self.command(args), stdin)
    }

    /// Runs the CLI and gives its stdout; panics if it failed.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.ok_with(args, b"")
    }

    /// The same with bytes on stdin.
    #[track_caller]
    pub fn ok_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let ran = self.keyhole_with(&args, stdin);
        assert_eq!(ran.code, 0, "keyhole {args:?} failed: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Runs the CLI, which must fail with exit code 1 and one line on stderr; gives that line.
    #[track_caller]
    pub fn refused<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.refused_with(args, b"")
    }

    /// The same with bytes on stdin.
    #[track_caller]
    pub fn refused_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let ran = self.keyhole_with(&args, stdin);
        assert_eq!(ran.code, 1, "keyhole {args:?}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "one line: {}", ran.stderr);
        ran.stderr.trim_end().to_owned()
    }
}

/// The binary without any setting of the caller's environment.
pub fn plain_command() -> Command {
    command_on(&[])
}

/// The same, run by other words ([`Network::on`]); by none: here.
pub fn command_on(on: &[String]) -> Command {
    let mut command = match on {
        [] => Command::new(keyhole_binary()),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(keyhole_binary());
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEYHOLE_") {
            command.env_remove(name);
        }
    }
    command
}

/// `keyhole manager run` on a folder, where it listens and others find it.
fn manager_command(
    on: &[String],
    data: &Path,
    (listen, address): (SocketAddr, SocketAddr),
    socket: &Path,
) -> Command {
    let mut command = command_on(on);
    command.args(["manager", "run", "--data-dir"]).arg(data);
    command.arg("--listen").arg(listen.to_string()).arg("--socket").arg(socket);
    if address != listen {
        command.arg("--advertise").arg(address.to_string());
    }
    command
}

/// Runs a command to its end.
pub fn run(mut command: Command, stdin: &[u8]) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the keyhole binary runs");
    let mut input = child.stdin.take().expect("it is piped");
    let bytes = stdin.to_vec();
    // A command may end without reading its input.
    let feeder = std::thread::spawn(move || drop(input.write_all(&bytes)));
    let output = child.wait_with_output().expect("our own child");
    feeder.join().expect("it does not panic");
    Ran {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An address that no other test process can take: the host part is this process's pid.
pub fn free_address() -> SocketAddr {
    let pid = std::process::id();
    let host = Ipv4Addr::new(127, 64 | (pid >> 16) as u8, (pid >> 8) as u8, pid as u8);
    let listener = TcpListener::bind((host, 0)).expect("a loopback address");
    listener.local_addr().expect("it is bound")
}
