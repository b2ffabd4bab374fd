//! What nodes are told: their own, at once, sealed to their stream; and how operators see how far it came.

use std::time::Instant;

use keyhole_proto::v1;
use tonic::Code;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_tasks_values_and_a_rotation_within_a_second() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    create(&mut operator, "other", b"never yours").await.unwrap();
    service(&mut operator, "web", &["db"], &[]).await;
    service(&mut operator, "api", &["other"], &[]).await;
    let node = manager.join("alpha").await;
    let mut stream = node.open(&manager, &[]).await;
    assert!(stream.next().await.unwrap().tasks.is_empty());
    let claimed = node.claim(&manager, 1, "web").await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(first.revision, claimed.revision.unwrap());
    assert_eq!(first.file(&task(1), "db"), Some(&b"one"[..]));
    assert_eq!(first.values.len(), 1, "nothing of a service without a task here");
    let started = Instant::now();
    rotate(&mut operator, "db", b"two").await.unwrap();
    let second = stream.next().await.unwrap();
    assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
    assert_eq!(second.file(&task(1), "db"), Some(&b"two"[..]));
    let grant = |received: &Received| received.tasks[&task(1)].grants[0].id;
    assert_eq!(grant(&first), grant(&second), "a rotation is no new grant");
    rotate(&mut operator, "other", b"still not").await.unwrap();
    stream.silent().await;
    operator.remove_service(object("web")).await.unwrap();
    let last = stream.next().await.unwrap();
    assert!(last.tasks.is_empty() && last.values.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_among_many_moves_one_secret_and_a_new_stream_all() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let names: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    for name in &names {
        create(&mut operator, name, &[b'x'; 64]).await.unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    service(&mut operator, "web", &names, &[]).await;
    service(&mut operator, "few", &["s7", "s8"], &[]).await;
    let node = manager.join("alpha").await;
    node.claim(&manager, 1, "web").await.unwrap();
    let mut stream = node.open(&manager, &[task(1)]).await;
    let first = stream.next().await.unwrap();
    assert!(first.complete && first.new_values == 100 && first.bytes > 10_000, "{}", first.bytes);
    rotate(&mut operator, "s7", &[b'y'; 64]).await.unwrap();
    let second = stream.next().await.unwrap();
    assert!(!second.complete && second.new_values == 1 && second.bytes < 500, "{}", second.bytes);
    assert_eq!(second.file(&task(1), "s7"), Some(&[b'y'; 64][..]));
    assert_eq!(second.file(&task(1), "s8"), Some(&[b'x'; 64][..]));
    // Another task with the same secrets: its grants, and no value again.
    node.claim(&manager, 2, "few").await.unwrap();
    let third = stream.next().await.unwrap();
    assert_eq!((third.complete, third.new_values, third.tasks.len()), (false, 0, 2));
    assert_eq!(third.file(&task(2), "s7"), Some(&[b'y'; 64][..]));
    // Back to a version that the node let go of: its value comes again.
    let back = v1::RollbackSecretRequest { secret: "s7".into(), to: 1 };
    operator.rollback_secret(back).await.unwrap();
    let fourth = stream.next().await.unwrap();
    assert_eq!((fourth.complete, fourth.new_values), (false, 1));
    assert_eq!(fourth.file(&task(2), "s7"), Some(&[b'x'; 64][..]));
    let end = v1::EndTaskRequest { id: task(1), reason: "over".into() };
    node.dispatch(&manager).await.end_task(end).await.unwrap();
    let fifth = stream.next().await.unwrap();
    assert_eq!((fifth.complete, fifth.new_values, fifth.values.len()), (false, 0, 2));
    let mut again = node.open(&manager, &[task(2)]).await;
    let whole = again.next().await.unwrap();
    assert_eq!((whole.complete, whole.new_values), (true, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_constraints_do_not_admit_gets_nothing_and_the_task_says_why() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    service(&mut operator, "web", &["db"], &["node.hostname==beta"]).await;
    let (alpha, beta) = (manager.join("alpha").await, manager.join("beta").await);
    let mut stream = alpha.open(&manager, &[]).await;
    stream.next().await.unwrap();
    let claim = alpha.claim(&manager, 1, "web").await.unwrap();
    assert!(claim.rejected.contains("node.hostname==beta"), "{}", claim.rejected);
    stream.silent().await;
    let mut admitted = beta.open(&manager, &[]).await;
    admitted.next().await.unwrap();
    assert_eq!(beta.claim(&manager, 2, "web").await.unwrap().rejected, "");
    assert_eq!(admitted.next().await.unwrap().file(&task(2), "db"), Some(&b"one"[..]));
    let tasks = operator.service_tasks(object("web")).await.unwrap().into_inner().tasks;
    let rejected = tasks.iter().find(|t| t.id == task(1)).unwrap();
    assert_eq!(rejected.state, "Rejected");
    assert!(rejected.reason.contains("node.hostname==beta"));
    // A constraint that no longer holds takes the secrets of a running task away.
    let update = v1::UpdateServiceRequest {
        service: "web".into(),
        constraint_add: vec!["node.labels.zone==eu".into()],
        ..Default::default()
    };
    operator.update_service(update).await.unwrap();
    let taken = admitted.next().await.unwrap();
    assert!(taken.tasks[&task(2)].rejected.contains("zone"), "{taken:?}");
    assert!(taken.values.is_empty() && taken.tasks[&task(2)].grants.is_empty());
    let unknown = alpha.claim(&manager, 3, "nope").await;
    refused(unknown, Code::NotFound, "service nope not found");
    refused(alpha.claim(&manager, 3, "we").await, Code::NotFound, "service we not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_assignments_come_in_parts() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        create(&mut operator, name, &vec![n as u8; 512_000]).await.unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    service(&mut operator, "web", &names, &[]).await;
    let node = manager.join("alpha").await;
    node.claim(&manager, 1, "web").await.unwrap();
    let mut stream = node.open(&manager, &[task(1)]).await;
    let received = stream.next().await.unwrap();
    assert!(received.parts >= 2, "{}", received.parts);
    for (n, name) in names.iter().enumerate() {
        assert!(received.file(&task(1), name).unwrap() == vec![n as u8; 512_000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_how_far_a_change_came() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    service(&mut operator, "web", &["db"], &[]).await;
    let (alpha, beta) = (manager.join("alpha").await, manager.join("beta").await);
    alpha.claim(&manager, 1, "web").await.unwrap();
    beta.claim(&manager, 2, "web").await.unwrap();
    let mut stream = alpha.open(&manager, &[task(1)]).await;
    let first = stream.next().await.unwrap();
    let state = |tasks: v1::TaskList, n: u8| {
        tasks.tasks.iter().find(|t| t.id == task(n)).unwrap().state.clone()
    };
    let tasks = operator.service_tasks(object("web")).await.unwrap().into_inner();
    assert_eq!(state(tasks.clone(), 1), "Pending");
    assert_eq!(state(tasks, 2), "Unreachable");
    stream.report(first.revision).await;
    let tasks = operator.node_tasks(object("alpha")).await.unwrap().into_inner();
    assert_eq!(state(tasks, 1), "Running");
    let changed = rotate(&mut operator, "db", b"two").await.unwrap();
    let watch = v1::WatchDeliveryRequest { revision: changed.revision, secrets: vec!["db".into()] };
    let mut progress = operator.watch_delivery(watch).await.unwrap().into_inner();
    let now = progress.message().await.unwrap().unwrap();
    assert_eq!((now.nodes, now.delivered), (2, 0));
    assert_eq!((now.waiting, now.unreachable), (vec!["alpha".to_owned()], vec!["beta".to_owned()]));
    let shown = |delivery: v1::SecretDelivery, n: u8| {
        let found = delivery.tasks.into_iter().find(|t| t.task == task(n)).unwrap();
        (found.version, found.entitled, found.connected)
    };
    let delivery = operator.secret_status(object("db")).await.unwrap().into_inner();
    assert_eq!(shown(delivery.clone(), 1), (1, 2, true));
    assert_eq!(shown(delivery, 2), (0, 2, false));
    let second = stream.next().await.unwrap();
    stream.report(second.revision).await;
    let done = soon("delivery", progress.message()).await.unwrap().unwrap();
    assert_eq!((done.delivered, done.waiting.len()), (1, 0));
    assert!(soon("the end", progress.message()).await.unwrap().is_none());
    let delivery = operator.secret_status(object("db")).await.unwrap().into_inner();
    assert_eq!(shown(delivery, 1), (2, 2, true));
    let node = operator.inspect_node(object("alpha")).await.unwrap().into_inner();
    assert!(node.connected && node.address.starts_with("127.0.0.1:"));
    assert_eq!(node.revision, Some(second.revision));
    // A change that does not concern a node needs no report.
    let foreign = create(&mut operator, "foreign", b"x").await.unwrap();
    let watch = v1::WatchDeliveryRequest { revision: foreign.revision, secrets: vec![] };
    let mut progress = operator.watch_delivery(watch).await.unwrap().into_inner();
    soon("delivery", async {
        while let Some(now) = progress.message().await.unwrap() {
            if now.waiting.is_empty() {
                assert_eq!(now.delivered, 1);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_says_it_still_has_is_all_that_it_has() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    service(&mut operator, "web", &["db"], &[]).await;
    let node = manager.join("alpha").await;
    for n in [1, 2] {
        node.claim(&manager, n, "web").await.unwrap();
    }
    let mut first = node.open(&manager, &[task(1), task(2)]).await;
    assert_eq!(first.next().await.unwrap().tasks.len(), 2);
    let mut second = node.open(&manager, &[task(2)]).await;
    let received = second.next().await.unwrap();
    assert_eq!(received.tasks.keys().collect::<Vec<_>>(), [&task(2)]);
    refused(last_of(&mut first).await, Code::Aborted, "another stream");
    rotate(&mut operator, "db", b"two").await.unwrap();
    assert_eq!(second.next().await.unwrap().file(&task(2), "db"), Some(&b"two"[..]));
}

/// The status that ends a stream, after what may still come.
async fn last_of(stream: &mut NodeStream) -> Result<(), tonic::Status> {
    loop {
        stream.next().await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_history_is_never_shown_and_a_future_one_not_believed() {
    let manager = TestManager::init().await;
    let node = manager.join("alpha").await;
    let last = |incarnation, index| Some(v1::RevisionRef { incarnation, index });
    let open = |last| node.open_after(&manager, &[], last);
    refused(open(last(2, 1)).await.map(drop), Code::FailedPrecondition, "older");
    open(last(0, 99)).await.unwrap().next().await.unwrap();
    let now = open(last(1, 1)).await.unwrap().next().await.unwrap().revision;
    let mut stream = open(Some(now)).await.unwrap();
    stream.next().await.unwrap();
    let future = v1::ReportRequest { revision: last(1, 1_000_000) };
    refused(stream.client.report(future).await, Code::InvalidArgument, "ahead");
    let wrong = v1::AssignmentsRequest { stream_key: vec![1; 31].into(), ..Default::default() };
    let status = stream.client.assignments(wrong).await.map(drop);
    refused(status, Code::InvalidArgument, "key");
}
