//! (d) Memory and start of a manager and of a node with 100,000 secrets of 1 KiB.
//!
//! Depends on the harness. Invariant: the node's memory counts what it keeps for its next worker, which is in no process's
//! own figure.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, Node, Probe, wait};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::create::{connect, create_all};
use crate::figure::{Aim, Figure};

const SERVICES: usize = 100;
/// As many as one service may have.
const GRANTS: usize = 1_000;
const CALLERS: usize = 64;
const MEMORY: Aim = Aim::AtMost(250.0);
const START: Aim = Aim::AtMost(2.0);
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn measure() -> Vec<Figure> {
    let mut cluster = Cluster::start();
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(fill(&cluster));
    let filled = memory(cluster.manager().pid());
    let manager_start = timed(|| cluster.restart(Signal::TERM));
    let manager = memory(cluster.manager().pid());

    let mut node = cluster.node();
    let tasks = Tasks::new(&node);
    let added = timed(|| tasks.add_all(&node));
    tasks.wait();
    let used = node_memory(&mut node);
    let serving = memory(cluster.manager().pid());
    node.stop(Signal::TERM);
    let mut node_start = 0.0;
    let node_back = timed(|| {
        node_start = timed(|| node.resume());
        tasks.wait();
    });
    let again = node_memory(&mut node);
    let mib = |figure: &str, value: f64| Figure::new('d', figure, value, "MiB").aim(MEMORY);
    vec![
        mib("manager's memory (RSS)", manager.rss)
            .with("PSS", manager.pss)
            .with("peak", manager.peak)
            .with("when just filled", filled.rss)
            .with("with a node connected", serving.rss),
        Figure::new('d', "manager's restart until it serves", manager_start, "s").aim(START),
        mib("node's memory (RSS and kept state)", used.all())
            .with("worker", used.worker.rss)
            .with("its peak", used.worker.peak)
            .with("supervisor", used.supervisor.rss)
            .with("kept state", used.kept)
            .with("after a restart", again.all()),
        Figure::new('d', "node's restart until it serves", node_start, "s").aim(START),
        Figure::new('d', "node's restart until the last file is there", node_back, "s")
            .with("adding 100 tasks s", added),
    ]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn secret(service: usize, number: usize) -> String {
    format!("s{service}-{number}")
}

/// All secrets, and the services that grant them.
async fn fill(cluster: &Cluster) {
    let operators = connect(cluster.socket(), CALLERS).await;
    for service in 0..SERVICES {
        let names = (0..GRANTS).map(|number| secret(service, number));
        create_all(&operators, names, PATIENCE).await;
        grant(operators.first().expect("there is a caller"), service).await;
    }
}

async fn grant(operator: &Operator, service: usize) {
    let grants: Vec<_> =
        (0..GRANTS).map(|number| (secret(service, number), format!("f{number}"), 0)).collect();
    operator.service(&format!("service{service}"), &grants).await.expect("a new service");
}

/// A process for each service, in a cgroup of its own.
struct Tasks {
    probes: Vec<Probe>,
    cgroups: Vec<PathBuf>,
    /// The last file of each service.
    file: PathBuf,
}

impl Tasks {
    fn new(node: &Node) -> Self {
        let cgroup = |service| node.ground().cgroup().child(&format!("t{service}"));
        let cgroups: Vec<PathBuf> = (0..SERVICES).map(cgroup).collect();
        let probe = |cgroup: &PathBuf| Probe::in_cgroup(node.ground(), cgroup);
        let probes = cgroups.iter().map(probe).collect();
        Self { probes, cgroups, file: node.path(&format!("f{}", GRANTS - 1)) }
    }

    fn add_all(&self, node: &Node) {
        for (service, cgroup) in self.cgroups.iter().enumerate() {
            let cgroup = cgroup.display().to_string();
            let service = format!("service{service}");
            node.ok(["task", "add", "--wait", "60s", "--service", &service, "--cgroup", &cgroup]);
        }
    }

    /// Until each reads its last file.
    fn wait(&self) {
        for probe in &self.probes {
            wait::until_within(PATIENCE, "a task's last file", || {
                let read = probe.slurp(&self.file).map_err(|errno| format!("{errno:?}"))?;
                (read.len() == 1024).then_some(()).ok_or_else(|| format!("{} bytes", read.len()))
            });
        }
    }
}

/// MiB of one process.
pub(crate) struct Memory {
    pub(crate) rss: f64,
    pss: f64,
    pub(crate) peak: f64,
}

pub(crate) fn memory(pid: i32) -> Memory {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process lives");
    let (rollup, status) = (read("smaps_rollup"), read("status"));
    let mib = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.map(|kib: f64| kib / 1024.0).expect("the kernel says it")
    };
    Memory { rss: mib(&rollup, "Rss:"), pss: mib(&rollup, "Pss:"), peak: mib(&status, "VmHWM:") }
}

struct NodeMemory {
    supervisor: Memory,
    worker: Memory,
    /// What memfds hold, which no process has mapped.
    kept: f64,
}

impl NodeMemory {
    fn all(&self) -> f64 {
        self.supervisor.rss + self.worker.rss + self.kept
    }
}

fn node_memory(node: &mut Node) -> NodeMemory {
    let supervisor = node.supervisor().pid();
    let fds = fs::read_dir(format!("/proc/{supervisor}/fd")).expect("the supervisor lives");
    let memfds = fds.flatten().map(|entry| entry.path()).filter(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
    });
    let bytes: u64 =
        memfds.filter_map(|path| fs::metadata(path).ok()).map(|facts| facts.blocks() * 512).sum();
    NodeMemory {
        worker: memory(node.worker().expect("a node has a worker")),
        supervisor: memory(supervisor),
        kept: bytes as f64 / f64::from(1 << 20),
    }
}
