//! `keyhole run` as a process: what the command gets, and the exit codes.
//!
//! The node's side is answered here, with real cgroups; needs root and a cgroup v2 hierarchy, and fails without.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test binary")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use keyhole_proto::v1::control_server::{Control, ControlServer};
use keyhole_proto::v1::*;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// A cgroup of this test's own; its processes have ended when it is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let root = mount.expect("no cgroup v2 hierarchy").split(' ').nth(4).unwrap();
        let name = tempfile::Builder::new().prefix("keyhole-cli-test-").tempdir_in(root);
        Self(name.unwrap().keep())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[derive(Clone, Default)]
struct Node {
    cgroup: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl Control for Node {
    async fn run_task(
        &self,
        request: Request<RunTaskRequest>,
    ) -> Result<Response<NodeTask>, Status> {
        let RunTaskRequest { service, wait_millis } = request.into_inner();
        self.seen.lock().unwrap().push(format!("run {service} {wait_millis}"));
        if service != "web" {
            return Err(Status::not_found(format!("service {service} not found")));
        }
        Ok(Response::new(NodeTask {
            id: "t1".to_owned(),
            cgroup: self.cgroup.display().to_string(),
            ..Default::default()
        }))
    }

    async fn add_task(&self, _: Request<AddTaskRequest>) -> Result<Response<NodeTask>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<NodeTaskList>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn remove_task(
        &self,
        request: Request<RemoveTaskRequest>,
    ) -> Result<Response<NodeTask>, Status> {
        self.seen.lock().unwrap().push(format!("remove {}", request.into_inner().id));
        Ok(Response::new(NodeTask::default()))
    }

    async fn node_status(
        &self,
        _: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A node that listens, and a place for files.
struct Setup {
    node: Node,
    cgroup: Cgroup,
    folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Setup {
    fn new() -> Self {
        let cgroup = Cgroup::new();
        let node = Node { cgroup: cgroup.0.clone(), ..Node::default() };
        let folder = tempfile::tempdir().unwrap();
        // Commands with other ids read files here.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let runtime = Runtime::new().unwrap();
        let guard = runtime.enter();
        let listener = UnixListener::bind(folder.path().join("node.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(ControlServer::new(node.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(server);
        drop(guard);
        Self { node, cgroup, folder, _runtime: runtime }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyhole"));
        command.arg("--node-socket").arg(self.folder.path().join("node.sock"));
        command.args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn script(&self, contents: &str) -> PathBuf {
        let path = self.folder.path().join("script");
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn seen(&self) -> Vec<String> {
        self.node.seen.lock().unwrap().clone()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().skip(1).collect()
}

#[test]
fn the_command_is_this_process_in_the_tasks_cgroup_with_its_exit_code() {
    let setup = Setup::new();
    let words = ["run", "--service", "web", "--wait", "3s", "--", "sh", "-c"];
    let script = "echo $$ $0; cat /proc/self/cgroup; exit 7";
    let child = setup
        .command(&[&words[..], &[script, "-x"]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let out = text(&output.stdout);
    assert!(out.starts_with(&format!("{pid} -x\n")), "{out}");
    let name = setup.cgroup.0.file_name().unwrap().to_str().unwrap();
    assert!(out.contains(&format!("0::/{name}\n")), "{out}");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(setup.seen(), ["run web 3000"]);
}

#[test]
fn the_command_has_the_given_ids_only_and_no_trace_of_ours() {
    let setup = Setup::new();
    let words = ["run", "--service", "web", "--uid", "1234", "--gid", "77", "--", "cat"];
    let output = setup.run(&[&words[..], &["/proc/self/status"]].concat());
    let status = text(&output.stdout);
    assert_eq!(field(status, "Uid:"), ["1234"; 4]);
    assert_eq!(field(status, "Gid:"), ["77"; 4]);
    assert_eq!(field(status, "Groups:"), ["77"]);
    assert_eq!(field(status, "CapEff:"), ["0000000000000000"]);
    assert_eq!(field(status, "SigBlk:"), ["0000000000000000"]);
    let ignored = u64::from_str_radix(field(status, "SigIgn:")[0], 16).unwrap();
    assert_eq!(ignored & (1 << 12), 0, "SIGPIPE is ignored");

    let only_uid = setup.run(&["run", "--service", "web", "--uid", "9", "--", "id", "-g"]);
    assert_eq!(text(&only_uid.stdout), "9\n");

    let direct = Command::new("cat").arg("/proc/self/limits").output().unwrap();
    let limits = setup.run(&["run", "--service", "web", "--", "cat", "/proc/self/limits"]);
    assert_eq!(text(&limits.stdout), text(&direct.stdout));

    let fds = setup.run(&["run", "--service", "web", "--", "sh", "-c", "ls /proc/$$/fd"]);
    let direct = Command::new("sh").args(["-c", "ls /proc/$$/fd"]).stdin(Stdio::null()).output();
    assert_eq!(text(&fds.stdout), text(&direct.unwrap().stdout));
}

#[test]
fn a_refusal_is_125_with_the_nodes_words() {
    let setup = Setup::new();
    let output = setup.run(&["run", "--service", "none", "--", "true"]);
    assert_eq!(text(&output.stderr), "keyhole: service none not found\n");
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn what_is_not_there_makes_no_task() {
    let setup = Setup::new();
    let output = setup.run(&["run", "--service", "web", "--", "keyhole-no-such-command"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("keyhole-no-such-command"));
    let output = setup.run(&["run", "--service", "web", "--", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(126));
    assert_eq!(setup.seen(), [""; 0]);
}

#[test]
fn a_task_whose_command_does_not_start_is_removed() {
    let setup = Setup::new();
    let script = setup.script("#!/nonexistent/interpreter\n");
    let script = script.to_str().unwrap();
    let output = setup.run(&["run", "--service", "web", "--", script]);
    assert!(text(&output.stderr).contains(script), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(setup.seen(), ["run web 10000", "remove t1"]);
}

#[test]
fn a_task_is_removed_also_when_the_ids_were_dropped_already() {
    let setup = Setup::new();
    let script = setup.script("#!/bin/sh\n");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
    let script = script.to_str().unwrap();
    let output = setup.run(&["run", "--service", "web", "--uid", "1234", "--", script]);
    assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(126));
    assert_eq!(setup.seen(), ["run web 10000", "remove t1"]);
}

#[test]
fn a_cgroup_that_is_gone_is_named() {
    let setup = Setup::new();
    std::fs::remove_dir(&setup.cgroup.0).unwrap();
    let output = setup.run(&["run", "--service", "web", "--", "true"]);
    let err = text(&output.stderr);
    assert!(err.contains(setup.cgroup.0.to_str().unwrap()), "{err}");
    assert_eq!(output.status.code(), Some(125));
}
