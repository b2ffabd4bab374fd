//! Who gets in: join tokens, certificates, roles; and that everything else is refused and recorded.

use std::path::PathBuf;
use std::time::Duration;

use keyhole_manager::authz::act;
use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_proto::v1::peer_client::PeerClient;
use keyhole_state::Role;
use keyhole_wire::tls::certificate::key_and_csr;
use keyhole_wire::tls::{Identity, LiveTls, connect};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::operators::request_name;
use crate::support::*;

/// The answers of every RPC of the Operator service, by name.
pub(crate) async fn every_operator_rpc(
    channel: Channel,
) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = OperatorClient::new(channel);
    let mut answers = Vec::new();
    macro_rules! ask {
        ($($method:ident $request:ident),* $(,)?) => {$(
            let answer = client.$method(v1::$request::default()).await.map(drop);
            answers.push((stringify!($method), answer));
        )*};
    }
    ask!(
        get_seal_key GetSealKeyRequest,
        create_secret CreateSecretRequest,
        rotate_secrets RotateSecretsRequest,
        rollback_secret RollbackSecretRequest,
        update_secret UpdateSecretRequest,
        remove_secret ObjectRequest,
        list_secrets ListRequest,
        inspect_secret ObjectRequest,
        secret_status ObjectRequest,
        watch_delivery WatchDeliveryRequest,
        create_service CreateServiceRequest,
        update_service UpdateServiceRequest,
        rollback_service ObjectRequest,
        remove_service ObjectRequest,
        list_services ListRequest,
        inspect_service ObjectRequest,
        service_tasks ObjectRequest,
        list_nodes ListRequest,
        inspect_node ObjectRequest,
        update_node UpdateNodeRequest,
        remove_node RemoveNodeRequest,
        node_tasks ObjectRequest,
        find_managers FindManagersRequest,
        list_managers ListRequest,
        promote_manager ObjectRequest,
        demote_manager ObjectRequest,
        remove_manager ObjectRequest,
        transfer_leader TransferRequest,
        cluster_status ClusterStatusRequest,
        update_cluster UpdateClusterRequest,
        rotate_keys RotateKeysRequest,
        join_token JoinTokenRequest,
        backup BackupRequest,
        create_operator CreateOperatorRequest,
        renew_operator RenewOperatorRequest,
        list_operators ListRequest,
        inspect_operator ObjectRequest,
        remove_operator ObjectRequest,
        audit_heads AuditHeadsRequest,
        rotate_store_keys RotateStoreKeysRequest,
        unlock_key UnlockKeyRequest,
        unlock UnlockRequest,
        shred ShredRequest,
        // The last: it ends certificates of the CA before.
        rotate_ca RotateCaRequest,
    );
    answers
}

async fn every_dispatch_rpc(channel: Channel) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = DispatchClient::new(channel);
    let stream_key = vec![9; 32].into();
    let open = v1::AssignmentsRequest { stream_key, ..Default::default() };
    vec![
        ("assignments", client.assignments(open).await.map(drop)),
        ("claim_task", client.claim_task(v1::ClaimTaskRequest::default()).await.map(drop)),
        ("end_task", client.end_task(v1::EndTaskRequest::default()).await.map(drop)),
        ("report", client.report(v1::ReportRequest::default()).await.map(drop)),
    ]
}

async fn every_peer_rpc(channel: Channel) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = PeerClient::new(channel);
    let part = v1::SnapshotPart::default();
    let parts = futures::stream::iter([part]);
    let mut answers = vec![("install_snapshot", client.install_snapshot(parts).await.map(drop))];
    macro_rules! ask {
        ($($method:ident $request:ident),* $(,)?) => {$(
            let answer = client.$method(v1::$request::default()).await.map(drop);
            answers.push((stringify!($method), answer));
        )*};
    }
    ask!(
        append AppendRequest,
        vote VoteRequest,
        pre_vote VoteRequest,
        transfer_leader TransferLeaderRequest,
        propose ProposeRequest,
        read_index ReadIndexRequest,
        progress ProgressRequest,
        hand_over HandOverRequest,
        sessions SessionsRequest,
        watch_sessions WatchSessionsRequest,
    );
    answers
}

async fn every_ca_rpc(channel: Channel) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = CaClient::new(channel);
    vec![
        ("get_root_ca", client.get_root_ca(v1::GetRootCaRequest {}).await.map(drop)),
        ("join", client.join(v1::JoinRequest::default()).await.map(drop)),
        ("renew", client.renew(v1::RenewRequest::default()).await.map(drop)),
    ]
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Stranger,
    Operator(Role),
    Node,
    Manager,
    /// An operator, node or manager whose certificate outlived his place in the cluster.
    Removed,
}

impl Kind {
    /// The rule for everybody and every request, as G23 has it.
    fn may(self, service: &str, method: &str) -> bool {
        match (service, self) {
            ("ca", _) if method != "renew" => true,
            // A manager that votes issues its own.
            ("ca" | "dispatch", Self::Node) | ("peer", Self::Manager) => true,
            ("operator", Self::Operator(role)) => {
                let request = request_name(method);
                let known = act::ACTIONS.iter().find(|(name, ..)| *name == request);
                known.and_then(|(.., act)| *act).expect(method).is_allowed(role, false)
            }
            _ => false,
        }
    }
}

/// Every kind of certificate, each of somebody else, and the removed ones.
async fn everybody(manager: &TestManager) -> Vec<(&'static str, Kind, LiveTls)> {
    let mut root = manager.operator().await;
    let operator = |name, role| manager.create_operator(name, role, &[]);
    let gone = operator("gone", v1::OperatorRole::Admin).await.live;
    root.remove_operator(object("gone")).await.unwrap();
    let gone_node = manager.join("gone").await.live;
    root.remove_node(v1::RemoveNodeRequest { node: "gone".into(), force: true }).await.unwrap();
    let gone_manager = manager.join_manager("127.0.0.1:2").await.live;
    root.remove_manager(object("127.0.0.1:2")).await.unwrap();
    vec![
        ("a stranger", Kind::Stranger, manager.stranger().await),
        ("a removed operator", Kind::Removed, gone),
        ("a removed node", Kind::Removed, gone_node),
        ("a removed manager", Kind::Removed, gone_manager),
        ("a node", Kind::Node, manager.join("alpha").await.live),
        (
            "an auditor",
            Kind::Operator(Role::Auditor),
            operator("a", v1::OperatorRole::Auditor).await.live,
        ),
        (
            "a writer",
            Kind::Operator(Role::Writer),
            operator("b", v1::OperatorRole::Writer).await.live,
        ),
        ("a manager", Kind::Manager, manager.join_manager("127.0.0.1:3").await.live),
        // The last: he may do everything, and does.
        (
            "an admin",
            Kind::Operator(Role::Admin),
            operator("c", v1::OperatorRole::Admin).await.live,
        ),
    ]
}

/// G23: what a certificate is for is all that it opens.
#[tokio::test(flavor = "multi_thread")]
async fn every_certificate_opens_its_own_requests_of_all_services_and_no_other() {
    let manager = TestManager::init().await;
    let mut tried = 0;
    for (who, kind, live) in everybody(&manager).await {
        let asked = [
            ("ca", every_ca_rpc(channel(&manager, &live).await).await),
            ("dispatch", every_dispatch_rpc(channel(&manager, &live).await).await),
            ("peer", every_peer_rpc(channel(&manager, &live).await).await),
            ("operator", every_operator_rpc(channel(&manager, &live).await).await),
        ];
        for (service, answers) in asked {
            assert_eq!(answers.len(), rpcs(service), "{service}");
            for (method, answer) in answers {
                let code = answer.err().map(|status| status.code());
                let denied = matches!(code, Some(Code::PermissionDenied | Code::Unauthenticated));
                let may = kind.may(service, method);
                assert_eq!(denied, !may, "{who} {service} {method}: {code:?}");
                if denied {
                    let stranger = matches!(kind, Kind::Stranger);
                    assert_eq!(code == Some(Code::Unauthenticated), stranger, "{who} {method}");
                }
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 9 * ["ca", "dispatch", "peer", "operator"].map(rpcs).iter().sum::<usize>());
}

/// The matrix above has every service that a port serves; `control` is the node's own socket.
#[test]
fn no_service_is_left_out() {
    let folder = format!("{}/../proto/keyhole/v1", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let serves = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains("\nservice ");
    let mut found: Vec<_> = files
        .filter(serves)
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, ["ca", "control", "dispatch", "operator", "peer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_managers_are_heard_as_managers() {
    let manager = TestManager::init().await;
    let node = manager.join("alpha").await;
    let answers = every_peer_rpc(channel(&manager, &node.live).await).await;
    assert_eq!(answers.len(), rpcs("peer"));
    all_refused(answers, Code::PermissionDenied);
    let stranger = manager.stranger().await;
    all_refused(every_peer_rpc(channel(&manager, &stranger).await).await, Code::Unauthenticated);
}

/// It speaks for its callers, but not for another manager.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_manager_passes_on_is_audited_with_its_own_number() {
    let manager = TestManager::init().await;
    let beta = manager.join_manager("127.0.0.1:2").await;
    let mut peer = PeerClient::new(channel(&manager, &beta.live).await);
    let who = v1::actor::Who::Local(v1::actor::Local { uid: 0, gid: 0, pid: 7 });
    let status =
        manager.operator().await.cluster_status(v1::ClusterStatusRequest {}).await.unwrap();
    let term = status.into_inner().term;
    let mut pass_on = async |command| {
        let actor = Some(v1::Actor { who: Some(who.clone()) });
        let envelope = v1::Envelope { at: 1, actor, via: 1, command: Some(command) };
        let request = v1::ProposeRequest { envelope: Some(envelope), proposal: 7, term };
        peer.propose(request).await.unwrap().into_inner()
    };
    let id = beta.id.clone();
    let remove = v1::envelope::RemoveOperator { id: id.clone() };
    let taken = pass_on(v1::envelope::Command::RemoveOperator(remove)).await;
    assert!(taken.index > 0, "{}", taken.refused);
    let renew = v1::envelope::RenewOperator { id, ..Default::default() };
    let refused = pass_on(v1::envelope::Command::RenewOperator(renew)).await.refused;
    assert!(refused.contains("what an operator does not do"), "{refused}");
    soon("both lines", async {
        loop {
            let lines = manager.audit_lines();
            let done = lines.iter().find(|line| line["action"] == "operator.rm");
            let refused = lines.iter().find(|line| line["refused"]["action"] == "manager.forward");
            if let (Some(done), Some(refused)) = (done, refused) {
                assert_eq!((&done["via"], &done["actor"]["pid"]), (&2.into(), &7.into()));
                assert_eq!(refused["refused"]["via"], 2);
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn all_refused(answers: Vec<(&'static str, Result<(), Status>)>, code: Code) {
    for (method, answer) in answers {
        let status = answer.expect_err(method);
        assert_eq!(status.code(), code, "{method}: {status:?}");
    }
}

pub(crate) async fn channel(manager: &TestManager, live: &LiveTls) -> Channel {
    connect(&manager.address(), live).await.unwrap().0
}

/// The RPCs of the `.proto` file, so that a new one can't be left out of the table.
fn rpcs(service: &str) -> usize {
    let file = format!("{}/../proto/keyhole/v1/{service}.proto", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.trim_start().starts_with("rpc ")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_call_no_operator_rpc_and_is_recorded() {
    let manager = TestManager::init().await;
    let node = manager.join("alpha").await;
    let answers = every_operator_rpc(channel(&manager, &node.live).await).await;
    assert_eq!(answers.len(), rpcs("operator"));
    all_refused(answers, Code::PermissionDenied);
    let refusals: Vec<_> = manager
        .audit_lines()
        .into_iter()
        .filter(|line| line["refused"]["actor"]["id"] == node.id.as_str())
        .collect();
    assert_eq!(refusals.len(), rpcs("operator"));
    assert!(refusals.iter().any(|line| line["refused"]["action"] == "cluster.join-token"));
    let mut operator = manager.operator().await;
    let status = operator.cluster_status(v1::ClusterStatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().refused, refusals.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_only_the_root_and_joining_are_open() {
    let manager = TestManager::init().await;
    let stranger = manager.stranger().await;
    let operator = every_operator_rpc(channel(&manager, &stranger).await).await;
    all_refused(operator, Code::Unauthenticated);
    let dispatch = every_dispatch_rpc(channel(&manager, &stranger).await).await;
    assert_eq!(dispatch.len(), rpcs("dispatch"));
    all_refused(dispatch, Code::Unauthenticated);
    let mut ca = CaClient::new(channel(&manager, &stranger).await);
    refused(ca.renew(v1::RenewRequest::default()).await, Code::Unauthenticated, "certificate");
    ca.get_root_ca(v1::GetRootCaRequest {}).await.unwrap();
    let node = manager.join("alpha").await;
    all_admitted(every_dispatch_rpc(channel(&manager, &node.live).await).await);
}

/// Wrong requests, but from one who may ask.
fn all_admitted(answers: Vec<(&'static str, Result<(), Status>)>) {
    for (method, answer) in answers {
        if let Err(status) = answer {
            let denied = [Code::Unauthenticated, Code::PermissionDenied];
            assert!(!denied.contains(&status.code()), "{method}: {status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_socket_serves_operators_and_nobody_joins_by_it() {
    let manager = TestManager::init().await;
    let local = unix(&manager.path("run/manager.sock")).await.unwrap();
    all_admitted(every_operator_rpc(local.clone()).await);
    let mut ca = CaClient::new(local);
    let status = ca.get_root_ca(v1::GetRootCaRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_current_token_joins() {
    let manager = TestManager::init().await;
    let old = manager.token(false).await;
    assert_eq!(old, manager.token(false).await, "it can be asked for again");
    manager.join_with("alpha", &old).await.unwrap();
    let new = manager.token(true).await;
    assert_ne!(old, new);
    let join = |token: String| {
        let manager = &manager;
        async move { manager.join_with("beta", &token).await.map(|node| node.id) }
    };
    refused(join(old.clone()).await, Code::PermissionDenied, "not valid");
    refused(join("KH-1-short".into()).await, Code::PermissionDenied, "parts");
    let foreign = TestManager::init().await.token(false).await;
    refused(join(foreign).await, Code::PermissionDenied, "another cluster");
    let role = v1::TokenRole::Manager.into();
    let request = v1::JoinTokenRequest { role, rotate: false };
    let reply = manager.operator().await.join_token(request).await.unwrap().into_inner();
    assert_eq!(reply.address, manager.address());
    refused(join(reply.token).await, Code::InvalidArgument, "X25519 key");
    join(new.clone()).await.unwrap();
    refused(
        manager.join_with("bad name", &new).await.map(|node| node.id),
        Code::InvalidArgument,
        "host name",
    );
    let nodes = manager.operator().await.list_nodes(v1::ListRequest {}).await.unwrap();
    let names: Vec<_> = nodes.into_inner().nodes.into_iter().map(|node| node.hostname).collect();
    assert_eq!(names.len(), 2);
    let shown = |role: &str, verb: &str| {
        let action = format!("cluster.join-token.{verb}");
        let lines = manager.audit_lines();
        lines.iter().filter(|l| l["action"] == *action && l["objects"][0] == role).count()
    };
    assert_eq!(
        (shown("worker", "show"), shown("manager", "show")),
        (2, 1),
        "each time that it was"
    );
    assert_eq!((shown("worker", "rotate"), shown("manager", "rotate")), (1, 0));
    let audit = format!("{:?}", manager.audit_lines());
    let secret = old.rsplit('-').next().unwrap();
    assert!(!audit.contains(secret), "no token in the audit");
    assert!(audit.contains("not valid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_decides_neither_role_nor_id() {
    let manager = TestManager::init().await;
    let live = manager.stranger().await;
    let mut ca = CaClient::new(channel(&manager, &live).await);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["manager".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "keyhole-manager");
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let token = manager.token(false).await;
    let request =
        v1::JoinRequest { token, csr: csr.into(), hostname: "eve".into(), ..Default::default() };
    let answer = ca.join(request).await.unwrap().into_inner();
    let leaf = keyhole_wire::tls::PeerIdentity::from_der(&answer.chain[0], 0).unwrap();
    assert_eq!((leaf.role, leaf.id), (keyhole_wire::tls::Role::Node, answer.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_shut_out_at_once() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let node = manager.join("alpha").await;
    let idle = channel(&manager, &node.live).await;
    let mut stream = node.open(&manager, &[]).await;
    stream.next().await.unwrap();
    let remove = |force| v1::RemoveNodeRequest { node: "alpha".into(), force };
    refused(operator.remove_node(remove(false)).await, Code::FailedPrecondition, "connected");
    operator.remove_node(remove(true)).await.unwrap();
    refused(stream.next().await, Code::PermissionDenied, "removed");
    let report = v1::ReportRequest::default();
    soon("closing", async {
        loop {
            let mut client = DispatchClient::new(idle.clone());
            let status = client.report(report).await.unwrap_err();
            if status.code() != Code::PermissionDenied {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut again = node.dispatch(&manager).await;
    refused(again.report(report).await, Code::PermissionDenied, "no member");
    let (_, csr) = key_and_csr().unwrap();
    let mut ca = CaClient::new(channel(&manager, &node.live).await);
    let renewed = ca.renew(v1::RenewRequest { csr: csr.into() }).await;
    refused(renewed, Code::PermissionDenied, "no member");
}

/// What it has opened before tells it nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_managers_connections_end() {
    let manager = TestManager::init().await;
    let node = manager.join("alpha").await;
    let _stream = node.open(&manager, &[]).await;
    let beta = manager.join_manager("127.0.0.1:2").await;
    let mut peer = PeerClient::new(channel(&manager, &beta.live).await);
    let request = v1::WatchSessionsRequest { nodes: vec![node.id.clone()], ..Default::default() };
    let mut told = peer.watch_sessions(request).await.unwrap().into_inner();
    told.message().await.unwrap().unwrap();
    manager.operator().await.remove_manager(object(&beta.id)).await.unwrap();
    soon("its end", async { while let Ok(Some(_)) = told.message().await {} }).await;
    let mut again = PeerClient::new(channel(&manager, &beta.live).await);
    let sessions = again.sessions(v1::SessionsRequest::default()).await;
    refused(sessions, Code::PermissionDenied, "removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_task_is_not_ended() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    service(&mut operator, "web", &["db"], &[]).await;
    let (alpha, beta) = (manager.join("alpha").await, manager.join("beta").await);
    assert_eq!(alpha.claim(&manager, 1, "web").await.unwrap().rejected, "");
    let end = v1::EndTaskRequest { id: task(1), reason: "gone".into() };
    let stolen = beta.dispatch(&manager).await.end_task(end.clone()).await;
    refused(stolen, Code::FailedPrecondition, "another node");
    refused(beta.claim(&manager, 1, "web").await, Code::Aborted, "taken");
    beta.open(&manager, &[]).await.next().await.unwrap();
    let tasks = operator.service_tasks(object("web")).await.unwrap().into_inner().tasks;
    assert_eq!((tasks.len(), tasks[0].ended_at), (1, 0));
    alpha.dispatch(&manager).await.end_task(end).await.unwrap();
    let tasks = operator.service_tasks(object("web")).await.unwrap().into_inner().tasks;
    assert_eq!((tasks[0].state.as_str(), tasks[0].reason.as_str()), ("Complete", "gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_may_only_renew_and_the_managers_own_never_expires() {
    let manager = TestManager::init_with(Duration::from_secs(10)).await;
    let node = manager.join("alpha").await;
    let old = manager.stranger().await;
    let before = channel(&manager, &node.live).await;
    let mut stream = node.open(&manager, &[]).await;
    stream.next().await.unwrap();
    let end = node.live.identity().unwrap().subject().not_after;
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    while now().as_secs() <= end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    refused(stream.next().await, Code::Unauthenticated, "expired");
    all_refused(every_dispatch_rpc(before).await, Code::Unauthenticated);
    // The manager still proves itself with a certificate that holds: it renewed its own.
    let now_expired = channel(&manager, &node.live).await;
    all_refused(every_dispatch_rpc(now_expired.clone()).await, Code::Unauthenticated);
    let (key, csr) = key_and_csr().unwrap();
    let request = v1::RenewRequest { csr: csr.into() };
    let answer = CaClient::new(now_expired).renew(request).await.unwrap().into_inner();
    assert_eq!(answer.id, node.id);
    let chain = answer.chain.iter().map(|der| der.to_vec()).collect();
    old.set_identity(Identity::new(chain, key).unwrap()).unwrap();
    all_admitted(every_dispatch_rpc(channel(&manager, &old).await).await);
}
