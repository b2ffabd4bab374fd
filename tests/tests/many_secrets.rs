//! A node with 10,000 secrets, and what one change of one of them costs.

use std::sync::Arc;
use std::time::Duration;

use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, Ground, Probe, Tap, wait};

const SERVICES: usize = 10;
/// As many as one service may have.
const GRANTS: usize = 1_000;
const CALLERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(120);

fn secret(service: usize, number: usize) -> String {
    format!("s{service}-{number}")
}

/// Creates the secrets of a service, some at a time, then the service.
async fn fill(operator: &Operator, service: usize) {
    let names: Vec<String> = (0..GRANTS).map(|number| secret(service, number)).collect();
    let callers = names.chunks(GRANTS / CALLERS + 1).map(<[String]>::to_vec).map(|names| {
        let operator = operator.clone();
        tokio::spawn(async move {
            for name in names {
                operator.create(&name, &[b'1'; 64]).await.expect("a new secret");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no panic");
    }
    let grants: Vec<_> = names.iter().map(|name| (name.clone(), format!("d/{name}"), 0)).collect();
    operator.service(&format!("service{service}"), &grants).await.expect("a new service");
}

/// A change moves one grant and one value, however much the node holds (docs/ARCHITECTURE.md, a change's way, 5).
#[test]
fn a_rotation_among_ten_thousand_secrets_moves_under_two_kilobytes() {
    let tap = Tap::default();
    let advertise = tap.address().to_string();
    let cluster = Cluster::start_with(Arc::new(Ground::new()), &["--advertise", &advertise]);
    tap.pass_to(cluster.address());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let operator = runtime.block_on(async {
        let operator = Operator::connect(cluster.socket()).await.expect("the manager answers");
        for service in 0..SERVICES {
            fill(&operator, service).await;
        }
        operator
    });
    let node = cluster.node();
    let tasks: Vec<Probe> = (0..SERVICES)
        .map(|service| {
            let cgroup = node.ground().cgroup().child(&format!("t{service}"));
            let probe = Probe::in_cgroup(node.ground(), &cgroup);
            let (name, cgroup) = (format!("service{service}"), cgroup.display().to_string());
            node.ok(["task", "add", "--wait", "60s", "--service", &name, "--cgroup", &cgroup]);
            probe
        })
        .collect();
    for (service, task) in tasks.iter().enumerate() {
        let listed = task.names(node.path("d")).expect("its directory");
        assert_eq!(listed.len(), GRANTS, "service{service}");
    }
    let all = tap.bytes();
    assert!(all > (SERVICES * GRANTS * 64) as u64, "they came through the tap: {all}");

    let name = secret(7, 700);
    let file = node.path(&format!("d/{name}"));
    for round in 2..=6_u8 {
        let before = tap.bytes();
        let value = vec![b'0' + round; 1024];
        runtime.block_on(async {
            let rotated = operator.rotate(&name, &value).await.expect("a rotation");
            let progress = operator.delivered(rotated.revision).await.expect("its delivery");
            assert_eq!((progress.delivered, progress.waiting.len()), (1, 0));
        });
        let moved = tap.bytes() - before;
        wait::until_within(PATIENCE, "the new value in the task", || {
            let read = tasks[7].slurp(&file).map_err(|errno| format!("{errno:?}"))?;
            (read == value).then_some(()).ok_or_else(|| "an old one".to_owned())
        });
        println!("a rotation of 1 KiB among {} secrets moves {moved} bytes", SERVICES * GRANTS);
        assert!((1024..2048).contains(&moved), "{moved} bytes");
    }
}
