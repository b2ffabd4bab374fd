//! What operators ask of a manager over the local socket: every rule and every status, with real sockets and a real store.

use std::collections::HashMap;

use crate::support::*;
use keyhole_manager::seal::InputFor;
use keyhole_proto::v1;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_lives_through_create_rotate_rollback_and_rm_and_a_restart() {
    let mut manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let made = create(&mut operator, "db", b"one").await.unwrap();
    assert_eq!((made.id.len(), made.name.as_str(), made.version), (25, "db", 1));
    let changed = rotate(&mut operator, "db", b"two!").await.unwrap();
    assert_eq!((changed.id.as_str(), changed.version), (made.id.as_str(), 2));
    assert!(changed.revision.unwrap().index > made.revision.unwrap().index);
    manager.restart().await;
    let mut operator = manager.operator().await;
    let info = operator.inspect_secret(object("db")).await.unwrap().into_inner();
    assert_eq!((info.current, info.versions.len()), (2, 2));
    let sizes: Vec<u64> = info.versions.iter().map(|version| version.size).collect();
    assert_eq!(sizes, [3, 4]);
    let back = v1::RollbackSecretRequest { secret: made.id[..8].to_owned(), to: 0 };
    assert_eq!(operator.rollback_secret(back).await.unwrap().into_inner().version, 1);
    assert_eq!(rotate(&mut operator, "db", b"three").await.unwrap().version, 3);
    let removed = operator.remove_secret(object("db")).await.unwrap().into_inner();
    assert_eq!(removed.id, made.id);
    let all = operator.list_secrets(v1::ListRequest {}).await.unwrap().into_inner();
    assert!(all.secrets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_taken_from_1_to_512000_bytes_and_only_as_they_were_sealed() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "max", &vec![7; 512_000]).await.unwrap();
    create(&mut operator, "one", b"\0").await.unwrap();
    let large = create(&mut operator, "large", &vec![7; 512_001]).await;
    refused(large, Code::InvalidArgument, "512001");
    refused(create(&mut operator, "empty", b"").await, Code::InvalidArgument, "empty");
    let value = Some(sealed(&mut operator, InputFor::Create, "a", b"x").await);
    let other_name = v1::CreateSecretRequest { name: "b".into(), value, ..Default::default() };
    let status = operator.create_secret(other_name).await;
    refused(status, Code::FailedPrecondition, "does not open");
    let value = Some(sealed(&mut operator, InputFor::Rotate, "a", b"x").await);
    let other_use = v1::CreateSecretRequest { name: "a".into(), value, ..Default::default() };
    refused(operator.create_secret(other_use).await, Code::FailedPrecondition, "does not open");
    let none = v1::CreateSecretRequest { name: "a".into(), ..Default::default() };
    refused(operator.create_secret(none).await, Code::InvalidArgument, "no value");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_refusal_has_its_code() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    refused(create(&mut operator, "db", b"x").await, Code::AlreadyExists, "db already exists");
    refused(create(&mut operator, "d b", b"x").await, Code::InvalidArgument, "invalid secret name");
    refused(rotate(&mut operator, "nope", b"x").await, Code::NotFound, "secret nope not found");
    let back = v1::RollbackSecretRequest { secret: "db".into(), to: 0 };
    refused(operator.rollback_secret(back).await, Code::FailedPrecondition, "no version before 1");
    let back = v1::RollbackSecretRequest { secret: "db".into(), to: 9 };
    refused(operator.rollback_secret(back).await, Code::NotFound, "no version 9");
    service(&mut operator, "web", &["db"], &[]).await;
    let used = operator.remove_secret(object("db")).await;
    refused(used, Code::FailedPrecondition, "web");
    let conflict = v1::CreateServiceRequest {
        name: "twice".into(),
        grants: vec![grant("db"), grant("db")],
        ..Default::default()
    };
    refused(operator.create_service(conflict).await, Code::InvalidArgument, "conflicting target");
    let again = v1::CreateServiceRequest { name: "web".into(), ..Default::default() };
    refused(operator.create_service(again).await, Code::AlreadyExists, "web already exists");
    let quota = v1::UpdateClusterRequest { quota_bytes: Some(10), ..Default::default() };
    operator.update_cluster(quota).await.unwrap();
    let full = rotate(&mut operator, "db", b"12345678").await;
    refused(full, Code::ResourceExhausted, "quota");
    let below = v1::UpdateClusterRequest { quota_bytes: Some(1), ..Default::default() };
    refused(operator.update_cluster(below).await, Code::FailedPrecondition, "in use");
    let short = v1::UpdateClusterRequest { certificate_seconds: Some(9), ..Default::default() };
    refused(operator.update_cluster(short).await, Code::InvalidArgument, "9 s");
    refused(operator.inspect_node(object("n")).await, Code::NotFound, "node n not found");
    refused(operator.rollback_service(object("web")).await, Code::FailedPrecondition, "previous");
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_rotations_all_get_a_version_of_their_own() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    let racing = (0..6).map(|n| {
        let mut operator = operator.clone();
        tokio::spawn(async move { rotate(&mut operator, "db", &[n + 1]).await.unwrap().version })
    });
    let racing: Vec<_> = racing.collect();
    let mut versions = Vec::new();
    for one in racing {
        versions.push(one.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, [2, 3, 4, 5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_secrets_rotate_together_or_not_at_all() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    for name in ["a", "b"] {
        create(&mut operator, name, b"one").await.unwrap();
    }
    let mut items = Vec::new();
    for name in ["a", "b"] {
        let value = Some(sealed(&mut operator, InputFor::Rotate, name, b"two").await);
        items.push(v1::rotate_secrets_request::Item { secret: name.into(), value });
    }
    let request = v1::RotateSecretsRequest { items: items.clone() };
    let changed = operator.rotate_secrets(request).await.unwrap().into_inner().secrets;
    let versions: Vec<_> = changed.iter().map(|s| (s.name.as_str(), s.version)).collect();
    assert_eq!(versions, [("a", 2), ("b", 2)]);
    items[1] = items[0].clone();
    let twice = operator.rotate_secrets(v1::RotateSecretsRequest { items }).await;
    refused(twice, Code::InvalidArgument, "twice");
    let none = operator.rotate_secrets(v1::RotateSecretsRequest::default()).await;
    refused(none, Code::InvalidArgument, "no secret");
    let a = operator.inspect_secret(object("a")).await.unwrap().into_inner();
    assert_eq!(a.current, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_update_removes_first_then_adds_and_names_what_is_not_there() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    for name in ["a", "b", "c"] {
        create(&mut operator, name, b"x").await.unwrap();
    }
    let made = service(&mut operator, "web", &["a", "b"], &[]).await;
    assert!(made.warnings[0].contains("no constraint"), "{:?}", made.warnings);
    let before = operator.inspect_service(object("web")).await.unwrap().into_inner();
    let update = v1::UpdateServiceRequest {
        service: "web".into(),
        secret_rm: vec!["a".into()],
        secret_add: vec![v1::GrantInput { target: "tls/key".into(), ..grant("c") }],
        constraint_add: vec!["node.labels.zone == eu".into()],
        label_add: HashMap::from([("tier".into(), "1".into())]),
        ..Default::default()
    };
    let changed = operator.update_service(update).await.unwrap().into_inner();
    assert!(changed.warnings.is_empty());
    let after = operator.inspect_service(object("web")).await.unwrap().into_inner();
    let targets = |spec: &v1::SpecInfo| -> Vec<String> {
        spec.grants.iter().map(|grant| grant.target.clone()).collect()
    };
    let spec = after.spec.as_ref().unwrap();
    assert_eq!(targets(spec), ["b", "tls/key"]);
    assert_eq!(spec.constraints, ["node.labels.zone==eu"]);
    assert_eq!(spec.labels["tier"], "1");
    assert_eq!(spec.grants[0].id, before.spec.unwrap().grants[1].id, "untouched, so the same");
    assert_eq!(targets(after.previous.as_ref().unwrap()), ["a", "b"]);
    let rm = |what: &str| v1::UpdateServiceRequest {
        service: "web".into(),
        secret_rm: vec![what.into()],
        ..Default::default()
    };
    refused(operator.update_service(rm("a")).await, Code::NotFound, "\"a\"");
    operator.update_service(rm("tls/key")).await.unwrap();
    let unmet = v1::UpdateServiceRequest {
        service: "web".into(),
        constraint_rm: vec!["node.hostname==x".into()],
        ..Default::default()
    };
    refused(operator.update_service(unmet).await, Code::NotFound, "node.hostname==x");
    operator.rollback_service(object("web")).await.unwrap();
    let back = operator.inspect_service(object("web")).await.unwrap().into_inner();
    assert_eq!(targets(&back.spec.unwrap()), ["b", "tls/key"]);
    let racing = (0..5).map(|n| {
        let mut operator = operator.clone();
        let update = v1::UpdateServiceRequest {
            service: "web".into(),
            label_add: HashMap::from([(format!("n{n}"), String::new())]),
            ..Default::default()
        };
        tokio::spawn(async move { operator.update_service(update).await.map(|_| ()) })
    });
    for one in racing.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    let labelled = operator.inspect_service(object("web")).await.unwrap().into_inner();
    assert_eq!(labelled.spec.unwrap().labels.len(), 6);
    assert_eq!(operator.remove_service(object("web")).await.unwrap().into_inner().id, made.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_secrets_and_nodes_change_and_availability_too() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    let add = HashMap::from([("k".to_owned(), "v".to_owned())]);
    let update =
        v1::UpdateSecretRequest { secret: "db".into(), label_add: add.clone(), label_rm: vec![] };
    operator.update_secret(update.clone()).await.unwrap();
    let info = operator.inspect_secret(object("db")).await.unwrap().into_inner();
    assert_eq!(info.labels, add);
    let unknown = v1::UpdateSecretRequest { label_rm: vec!["zz".into()], ..update };
    refused(operator.update_secret(unknown).await, Code::NotFound, "\"zz\"");
    let node = manager.join("alpha").await;
    let update = v1::UpdateNodeRequest {
        node: "alpha".into(),
        label_add: add.clone(),
        label_rm: vec![],
        availability: v1::Availability::Drain.into(),
    };
    let info = operator.update_node(update).await.unwrap().into_inner();
    assert_eq!((info.id, info.labels), (node.id, add));
    assert_eq!(info.availability, i32::from(v1::Availability::Drain));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_says_how_it_is() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"12345").await.unwrap();
    let info = operator.cluster_status(v1::ClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((info.secrets, info.value_bytes, info.epoch, info.incarnation), (1, 5, 1, 1));
    assert_eq!(info.managers.len(), 1);
    assert!(info.managers[0].leader);
    assert_eq!(info.managers[0].address, manager.address());
    assert!(info.applied > 0 && info.applied <= info.last_log, "{info:?}");
    assert!(info.certificate_expires_at < info.ca_expires_at);
    assert!(info.certificate_expires_at > info.created_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_has_one_audit_line_also_after_a_restart() {
    let mut manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"hunter2-canary").await.unwrap();
    let _ = create(&mut operator, "db", b"hunter2-canary").await;
    operator.remove_secret(object("db")).await.unwrap();
    let short = |lines: &[serde_json::Value]| -> Vec<String> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        lines.iter().map(|l| format!("{} {}", text(&l["action"]), text(&l["outcome"]))).collect()
    };
    let expected =
        ["cluster.init done", "secret.create done", "secret.create refused", "secret.rm done"];
    let lines = manager.audit_lines();
    assert_eq!(short(&lines), expected);
    assert_eq!(lines[1]["objects"][0], "db");
    assert_eq!(lines[1]["actor"]["kind"], "local");
    assert_eq!(lines[1]["actor"]["uid"], 0);
    assert!(lines[2]["why"].as_str().unwrap().contains("already exists"));
    manager.restart().await;
    assert_eq!(short(&manager.audit_lines()), expected);
    let all = format!("{:?}", manager.audit_lines());
    assert!(!all.contains("canary"), "never a value");
}
