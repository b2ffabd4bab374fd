//! (f) Many nodes on one manager: 10,000 streams of assignments over TLS 1.3, each with a task.
//!
//! Depends on the harness. Invariants: each node is a real one to the manager: it joins with the token, proves itself by a
//! certificate of its own, and opens what it is sent; only what a node does with it then is left out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyhole_tests::Cluster;
use keyhole_tests::member::{Member, Stream};
use keyhole_tests::operate::Operator;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::figure::{Figure, median, quantile};
use crate::scale::memory;

const NODES: usize = 10_000;
/// So many at a time, below what a manager takes of those without a certificate.
const AT_ONCE: usize = 64;
const VALUE: [u8; 1024] = [b'k'; 1024];

/// A connected node, and how long that took: from the first byte to its files.
type Connected = (Stream, f64);

pub(crate) fn measure() -> Vec<Figure> {
    let nodes = match std::env::var("KEYHOLE_BENCH_NODES") {
        Ok(number) => number.parse().expect("KEYHOLE_BENCH_NODES is a number of nodes"),
        Err(_) => NODES,
    };
    allow_files();
    let mut cluster = Cluster::start();
    let runtime = Runtime::new().expect("a runtime");
    let operator = runtime.block_on(Operator::connect(cluster.socket())).expect("it serves");
    runtime.block_on(async {
        operator.create("pw", &VALUE).await.expect("a new secret");
        let grants = [("pw".to_owned(), "pw".to_owned(), 0)];
        operator.service("web", &grants).await.expect("a new service");
    });
    let started = Instant::now();
    let members = runtime.block_on(join(cluster.address(), &cluster.node_token(), nodes));
    let joined = started.elapsed().as_secs_f64();
    let before = memory(cluster.manager().pid());
    let started = Instant::now();
    let connected = runtime.block_on(connect(members, operator.manager()));
    let all = started.elapsed().as_secs_f64();
    let after = memory(cluster.manager().pid());
    let (streams, took): (Vec<_>, Vec<_>) = connected.into_iter().unzip();
    let reached = runtime.block_on(rotate(&operator, streams));
    let count = nodes as f64;
    let name = |what: &str| format!("{nodes} nodes: {what}");
    vec![
        Figure::new('f', name("until all have their files"), all, "s")
            .with("each, median ms", median(&took))
            .with("99 %", quantile(&took, 0.99))
            .with("joining before that s", joined),
        Figure::new(
            'f',
            name("manager's memory for each"),
            (after.rss - before.rss) * 1024.0 / count,
            "KiB",
        )
        .with("manager's RSS MiB", after.rss),
        Figure::new('f', name("until the last has a rotation"), quantile(&reached, 1.0), "ms")
            .with("median", median(&reached))
            .with("first", quantile(&reached, 0.0)),
    ]
}

/// Each node is a descriptor here, too, and the usual limit is for small programs.
fn allow_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.expect("up to the maximum anybody may");
}

async fn join(address: SocketAddr, token: &str, nodes: usize) -> Vec<Member> {
    let (turns, token) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::<str>::from(token));
    let mut joining = JoinSet::new();
    for number in 0..nodes {
        let (turns, token) = (turns.clone(), token.clone());
        joining.spawn(async move {
            let _turn = turns.acquire().await.expect("it is open");
            Member::join(address, &token, &format!("load-{number}")).await.expect("it joins")
        });
    }
    joining.join_all().await
}

async fn connect(members: Vec<Member>, manager: &str) -> Vec<Connected> {
    let (turns, manager) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::<str>::from(manager));
    let mut connecting = JoinSet::new();
    for member in members {
        let (turns, manager) = (turns.clone(), manager.clone());
        connecting.spawn(async move {
            let _turn = turns.acquire().await.expect("it is open");
            let started = Instant::now();
            let (stream, first) = member.open(&["web"], &manager).await.expect("a stream");
            assert_eq!(first.values.len(), 1, "its task has its file");
            (stream, started.elapsed().as_secs_f64() * 1e3)
        });
    }
    connecting.join_all().await
}

/// Until each node has opened the next version, in milliseconds from when the operator asked for it.
async fn rotate(operator: &Operator, streams: Vec<Stream>) -> Vec<f64> {
    let mut waiting = JoinSet::new();
    let started = Instant::now();
    for mut stream in streams {
        waiting.spawn(async move {
            loop {
                let change = stream.next().await.expect("it goes on");
                if change.values.keys().any(|(_, version)| *version == 2) {
                    return (stream, started.elapsed());
                }
            }
        });
    }
    let asked = started.elapsed();
    operator.rotate("pw", b"second").await.expect("a new version");
    let reached = waiting.join_all().await;
    let since = |at: Duration| at.saturating_sub(asked).as_secs_f64() * 1e3;
    reached.iter().map(|(_, at)| since(*at)).collect()
}
