//! What strangers and mistaken programs send to every port and socket, and clocks and disks that play up: a clear error,
//! and daemons that go on.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_proto::v1::control_client::ControlClient;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_tests::member::Member;
use keyhole_tests::{
    Clock, Cluster, Daemon, ENOENT, Ground, Machine, NodeOptions, Probe, plain_command, wait,
};
use keyhole_wire::tls::{LiveTls, connect, fetch_unpinned};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Where anybody can knock.
#[derive(Debug, Clone)]
enum Door {
    Port(SocketAddr),
    Socket(PathBuf),
}

impl Door {
    fn all(machine: &Machine) -> [Self; 3] {
        [
            Self::Port(machine.cluster.address()),
            Self::Socket(machine.cluster.socket().to_owned()),
            Self::Socket(machine.node.socket()),
        ]
    }

    fn knock(&self) -> File {
        let limit = Some(Duration::from_secs(10));
        let fd: OwnedFd = match self {
            Self::Port(address) => {
                let stream = TcpStream::connect(address).expect("somebody listens");
                stream.set_write_timeout(limit).expect("a socket");
                stream.into()
            }
            Self::Socket(path) => {
                let stream = UnixStream::connect(path).expect("somebody listens");
                stream.set_write_timeout(limit).expect("a socket");
                stream.into()
            }
        };
        fd.into()
    }
}

/// A machine with one task, whose daemons must live on, the very same processes.
struct Scene {
    machine: Machine,
    task: Probe,
    round: u32,
    worker: i32,
}

impl Scene {
    fn new(machine: Machine) -> Self {
        let task = machine.web("round 0");
        let worker = machine.node.worker().expect("it has a worker");
        Self { machine, task, round: 0, worker }
    }

    /// A rotation goes the whole way, and nobody died of anything.
    #[track_caller]
    fn goes_on(&mut self) {
        self.round += 1;
        let value = format!("round {}", self.round);
        self.machine.rotate("pw", &value);
        assert_eq!(self.task.text(self.machine.at("pw")), Ok(value));
        assert!(self.machine.cluster.manager().ended().is_none());
        assert_eq!(self.machine.node.worker(), Some(self.worker));
        let logs = self.machine.node.ground().logs();
        assert!(!logs.contains("internal error"), "{logs}");
    }
}

/// What none of the doors understands, or only the beginning of what they do.
fn garbage() -> Vec<Vec<u8>> {
    let mut noise = vec![0; 64 << 10];
    getrandom::fill(&mut noise).expect("the kernel has random bytes");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frame = |length: [u8; 3], kind: u8, flags: u8, stream: u32, body: &[u8]| {
        [&preface[..], &length, &[kind, flags], &stream.to_be_bytes(), body].concat()
    };
    vec![
        Vec::new(),
        b"\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: keyhole\r\n\r\n".to_vec(),
        noise,
        vec![0; 100_000],
        // A TLS record that never comes, one that is too long, an alert, and one of SSL 3.
        vec![22, 3, 1, 2, 0, 1],
        [&[22, 3, 3, 0xff, 0xff][..], &[0; 70_000]].concat(),
        vec![21, 3, 3, 0, 2, 2, 40],
        vec![22, 3, 0, 0, 4, 1, 0, 0, 0],
        // HTTP/2: half of the preface, all of it, and frames that make no sense.
        preface[..12].to_vec(),
        preface.to_vec(),
        frame([0xff; 3], 0, 0, 1, &[0; 4096]),
        frame([0, 0, 5], 4, 0, 0, &[0; 5]),
        frame([0, 0, 9], 1, 4, 1, &[0xff; 9]),
        frame([0, 0, 4], 8, 0, 0, &[0; 4]),
        frame([0, 0, 8], 6, 0, 7, &[0; 8]),
    ]
}

#[test]
fn garbage_and_half_open_connections() {
    let mut scene = Scene::new(Machine::start());
    let mut open = Vec::new();
    for door in Door::all(&scene.machine) {
        for bytes in garbage() {
            let (mut left, mut held) = (door.knock(), door.knock());
            // They may hang up in the middle of it.
            let _ = left.write_all(&bytes);
            let _ = held.write_all(&bytes);
            open.push(held);
        }
        scene.goes_on();
    }
    // Who is not understood at all is let go, not kept.
    let mut answer = Vec::new();
    let mut port = Door::Port(scene.machine.cluster.address()).knock();
    port.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = port.read_to_end(&mut answer);
    scene.goes_on();
    let _new = scene.machine.cluster.node();
    drop(open);
    scene.goes_on();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads")
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut scene = Scene::new(Machine::start());
    let mut idle = Vec::new();
    for door in Door::all(&scene.machine) {
        let started = Instant::now();
        idle.extend((0..1000).map(|_| door.knock()));
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        scene.goes_on();
    }
    // A node that joins, and an operator.
    let started = Instant::now();
    let other = scene.machine.cluster.node();
    let task = other.task("web");
    assert_eq!(task.text(other.path("pw")), Ok(format!("round {}", scene.round)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The same with those who proved nothing but speak TLS.
    let address = scene.machine.cluster.address().to_string();
    let strangers: Vec<Channel> = runtime().block_on(async {
        let mut strangers = Vec::new();
        for _ in 0..300 {
            strangers.push(fetch_unpinned(&address).await.expect("strangers may ask for the root"));
        }
        strangers
    });
    let _third = scene.machine.cluster.node();
    scene.goes_on();
    drop((idle, strangers));
}

async fn local(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    endpoint.connect().await.unwrap()
}

#[track_caller]
fn refused<T>(answer: Result<T, Status>, code: Code, why: &str) {
    let status = answer.err().expect("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(why), "{why:?} in {status:?}");
}

#[test]
fn messages_of_five_megabytes() {
    let mut scene = Scene::new(Machine::start());
    let huge = "x".repeat(5 << 20);
    let bytes: Vec<u8> = huge.clone().into();
    let machine = &scene.machine;
    let (address, token) = (machine.cluster.address(), machine.cluster.node_token());
    runtime().block_on(async {
        let mut operator = OperatorClient::new(local(machine.cluster.socket()).await);
        let value = v1::SealedInput { enc: vec![7; 32].into(), ciphertext: bytes.into() };
        let request = v1::CreateSecretRequest {
            name: "huge".into(),
            labels: Default::default(),
            value: Some(value),
        };
        refused(operator.create_secret(request).await, Code::FailedPrecondition, "does not open");
        let name = huge.repeat(2);
        let request = v1::CreateSecretRequest { name, ..Default::default() };
        refused(operator.create_secret(request).await, Code::OutOfRange, "8388608");

        let stranger = fetch_unpinned(&address.to_string()).await.unwrap();
        let request = v1::JoinRequest { token: huge.clone(), ..Default::default() };
        refused(CaClient::new(stranger).join(request).await, Code::OutOfRange, "65536");

        let member = Member::join(address, &token, "member").await.unwrap();
        let live = LiveTls::new(Some(member.identity()), member.roots()).unwrap();
        let (channel, _) = connect(&address.to_string(), &live).await.unwrap();
        let request = v1::ClaimTaskRequest { service: huge.clone(), ..Default::default() };
        let answer = DispatchClient::new(channel).claim_task(request).await;
        refused(answer, Code::OutOfRange, "1048576");

        let mut node = ControlClient::new(local(&machine.node.socket()).await);
        let request = v1::RunTaskRequest { service: huge.clone(), wait_millis: 0 };
        refused(node.run_task(request).await, Code::OutOfRange, "65536");
    });
    scene.goes_on();
}

#[test]
fn requests_of_a_newer_format() {
    fn newer<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        let agent = "keyhole/9.9.9 format/7".parse().unwrap();
        request.metadata_mut().insert("user-agent", agent);
        request
    }
    let mut scene = Scene::new(Machine::start());
    let machine = &scene.machine;
    let address = machine.cluster.address().to_string();
    let why = "format 7, and this keyhole 0.1.0 reads formats up to 1: upgrade it";
    runtime().block_on(async {
        let mut operator = OperatorClient::new(local(machine.cluster.socket()).await);
        let answer = operator.list_nodes(newer(v1::ListRequest {})).await;
        refused(answer, Code::FailedPrecondition, why);
        let stranger = fetch_unpinned(&address).await.unwrap();
        let answer = CaClient::new(stranger).get_root_ca(newer(v1::GetRootCaRequest {})).await;
        refused(answer, Code::FailedPrecondition, why);
        let mut node = ControlClient::new(local(&machine.node.socket()).await);
        let answer = node.list_tasks(newer(v1::ListTasksRequest {})).await;
        refused(answer, Code::FailedPrecondition, why);
    });
    scene.goes_on();
}

#[test]
fn certificates_of_others_and_rights_that_a_node_has_not() {
    let (ours, theirs) = (Cluster::start(), Cluster::start());
    let (token, other_token) = (ours.node_token(), theirs.node_token());
    let address = ours.address().to_string();
    runtime().block_on(async {
        let member = Member::join(ours.address(), &token, "ours").await.unwrap();
        let foreign = Member::join(theirs.address(), &other_token, "theirs").await.unwrap();
        // It knows our root, and has a certificate of another cluster.
        let eve = LiveTls::new(Some(foreign.identity()), member.roots()).unwrap();
        let error = connect(&address, &eve).await.expect_err("it is refused").to_string();
        assert!(error.contains("certificate") && error.contains(&address), "{error}");
        // And the other way round.
        let live = LiveTls::new(Some(foreign.identity()), foreign.roots()).unwrap();
        let error = connect(&address, &live).await.expect_err("it is refused").to_string();
        assert!(error.contains("not signed by this cluster's CA"), "{error}");

        // Every other RPC is in manager/tests/api/trust.rs; here are the two that would give most.
        let live = LiveTls::new(Some(member.identity()), member.roots()).unwrap();
        let (channel, _) = connect(&address, &live).await.unwrap();
        let mut operator = OperatorClient::new(channel);
        let request = v1::JoinTokenRequest { role: v1::TokenRole::Manager.into(), rotate: true };
        refused(operator.join_token(request).await, Code::PermissionDenied, "not an operator's");
        let request = v1::RemoveNodeRequest { node: member.id().to_owned(), force: true };
        refused(operator.remove_node(request).await, Code::PermissionDenied, "not an operator's");
    });
    assert_eq!(ours.ok(["node", "ls", "--format", "{{.Hostname}}"]), "ours\n");
    assert_eq!(ours.node_token(), token);
}

#[test]
fn two_nodes_on_one_data_folder() {
    let machine = Machine::start();
    let ground = machine.node.ground();
    let mut command = plain_command();
    command.args(["node", "run", "--data-dir"]).arg(machine.node.data());
    command.arg("--mount").arg(ground.folder().join("other"));
    command.arg("--control-socket").arg(ground.folder().join("other.sock"));
    let mut second = Daemon::start(ground, "second", command);
    assert_eq!(second.wait().code(), Some(1));
    let log = second.log();
    let line = log.lines().find(|line| line.starts_with("keyhole: ")).unwrap_or(&log);
    let data = machine.node.data().display().to_string();
    for part in ["another node", &data, "--data-dir"] {
        assert!(line.contains(part), "{part:?} in {log}");
    }
    let mut scene = Scene::new(machine);
    scene.goes_on();
}

#[test]
fn clocks_that_jump_while_all_runs() {
    let ground = Arc::new(Ground::new());
    let clock = Clock::new(ground.folder().join("clock"));
    let cluster = Cluster::start_in(ground, &[], clock.environment());
    let options = NodeOptions { env: clock.environment(), ..NodeOptions::default() };
    let node = cluster.node_with(options);
    let mut scene = Scene::new(Machine { node, cluster });
    let pw = scene.machine.at("pw");
    let held = scene.task.open(&pw, libc::O_RDONLY).unwrap();
    let expiry = ["node", "status", "--format", "{{.CertificateExpiresAt}}"];
    scene.goes_on();
    // Every certificate has ended at this moment; who runs renews by itself.
    let before = scene.machine.node.ok(expiry);
    clock.set_days(2);
    let limit = Duration::from_secs(60);
    wait::until_within(limit, "the node to renew its certificate", || {
        assert!(scene.task.text(&pw).is_ok(), "its tasks go on all the time");
        let now = scene.machine.node.ok(expiry);
        if now == before { Err(now) } else { Ok(()) }
    });
    scene.goes_on();
    // Back again, and further: no certificate is valid yet, the streams that are open go on.
    clock.set_days(0);
    scene.goes_on();
    clock.set_days(-3);
    scene.goes_on();
    assert_eq!(scene.task.pread(held, 7, 0), Ok(b"round 0".to_vec()), "it is that version still");
    // Who connects now, with a clock that is right, is served by a manager whose clock is, too.
    clock.set_days(0);
    wait::until_within(limit, "a new node to join", || {
        let joined = runtime().block_on(async {
            let token = scene.machine.cluster.node_token();
            Member::join(scene.machine.cluster.address(), &token, "new").await
        });
        joined.map(drop).map_err(|error| format!("{error:#}"))
    });
    scene.goes_on();
}

#[test]
fn a_full_or_read_only_disk_under_a_node() {
    let ground = Arc::new(Ground::new());
    let disk = ground.small_disk("data", 1);
    let cluster = Cluster::start_on(Arc::clone(&ground));
    let data = disk.at().join("node");
    let node = cluster.node_with(NodeOptions { data: Some(data.clone()), ..Default::default() });
    let mut scene = Scene::new(Machine { node, cluster });
    let filler = disk.at().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let refused = scene.machine.node.try_task("web", &[]).unwrap_err();
    assert_eq!(refused.code, 125);
    for part in ["tasks.json", "No space left", "data folder"] {
        assert!(refused.stderr.contains(part), "{part:?} in {}", refused.stderr);
    }
    // The tasks that run go on, and rotation reaches them.
    scene.goes_on();
    let listed = scene.machine.node.ok(["task", "ls", "-q"]);
    assert_eq!(listed.lines().count(), 1, "the refused one is not there: {listed}");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let other = scene.machine.task("web");
    assert_eq!(other.text(scene.machine.at("pw")), Ok(format!("round {}", scene.round)));
    assert_eq!(scene.machine.node.outsider().slurp(scene.machine.at("pw")), Err(ENOENT));

    // A start on a disk that takes no write at all.
    let disk = ground.small_disk("other", 1);
    disk.make_read_only();
    let mut command = plain_command();
    let address = scene.machine.cluster.address().to_string();
    let (token, new) = (ground.folder().join("token"), disk.at().join("new"));
    std::fs::write(&token, scene.machine.cluster.node_token()).unwrap();
    command.args(["node", "run", "--join", &address, "--token-file"]).arg(&token);
    command.arg("--data-dir").arg(&new).arg("--mount").arg(ground.folder().join("mount"));
    command.arg("--control-socket").arg(ground.folder().join("other.sock"));
    let mut second = Daemon::start(&ground, "second", command);
    assert_eq!(second.wait().code(), Some(1));
    let log = second.log();
    let line = log.lines().find(|line| line.starts_with("keyhole: ")).unwrap_or(&log);
    for part in [new.to_str().unwrap(), "Read-only file system"] {
        assert!(line.contains(part), "{part:?} in {log}");
    }
}
