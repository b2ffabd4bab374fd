//! Operators who call from elsewhere: what each role may, what each scope shows, and that removal ends all of it (G23).

use std::fmt::Write;

use keyhole_manager::authz::act;
use keyhole_manager::seal::InputFor;
use keyhole_proto::v1;
use keyhole_proto::v1::OperatorRole;
use keyhole_state::Role;
use keyhole_wire::tls::certificate::{csr_of, key_and_csr};
use tonic::Code;

use crate::support::*;
use crate::trust::{channel, every_operator_rpc};

const ROLES: [(Role, OperatorRole); 3] = [
    (Role::Admin, OperatorRole::Admin),
    (Role::Writer, OperatorRole::Writer),
    (Role::Auditor, OperatorRole::Auditor),
];

/// `create_secret` as `CreateSecret`.
pub(crate) fn request_name(method: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    method.split('_').map(capital).collect()
}

/// The table as docs/OPERATORS.md has to have it.
fn table() -> String {
    let mut text = String::from(
        "| request | if refused | admin | writer | auditor | admin with a scope | writer with a scope | \
         auditor with a scope |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (request, action, act) in act::ACTIONS {
        let Some(act) = act else { continue };
        let _ = write!(text, "| {request} | `{action}` |");
        for limited in [false, true] {
            for role in Role::ALL {
                let may = if act.is_allowed(role, limited) { "yes" } else { "–" };
                let _ = write!(text, " {may} |");
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_document_has_every_request_and_what_each_role_may() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATORS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- roles: begin -->\n", "<!-- roles: end -->\n");
    let start = text.find(begin).unwrap() + begin.len();
    let stop = text.find(end).unwrap();
    if std::env::var_os("KEYHOLE_WRITE_DOCS").is_some() {
        let whole = format!("{}{}{}", &text[..start], table(), &text[stop..]);
        std::fs::write(path, whole).unwrap();
        return;
    }
    assert_eq!(&text[start..stop], table(), "set KEYHOLE_WRITE_DOCS=1 and run this test");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_may_call_what_the_table_says_and_nothing_else() {
    let manager = TestManager::init().await;
    for (role, word) in ROLES {
        for names in [&[][..], &["web*"]] {
            let limited = !names.is_empty();
            let operator = manager.create_operator(&format!("{role}-{limited}"), word, names).await;
            let answers = every_operator_rpc(channel(&manager, &operator.live).await).await;
            let mut told = 0;
            for (method, answer) in answers {
                let request = request_name(method);
                let known = act::ACTIONS.iter().find(|(name, ..)| *name == request);
                let act = known.and_then(|(.., act)| *act).expect(method);
                let denied = answer.is_err_and(|status| status.code() == Code::PermissionDenied);
                assert_eq!(denied, !act.is_allowed(role, limited), "{role} {limited} {method}");
                told += 1;
            }
            assert_eq!(told, act::ACTIONS.iter().filter(|(.., act)| act.is_some()).count());
        }
    }
}

async fn names(operator: &mut Operator) -> (Vec<String>, Vec<String>) {
    let secrets = operator.list_secrets(v1::ListRequest {}).await.unwrap().into_inner().secrets;
    let services = operator.list_services(v1::ListRequest {}).await.unwrap().into_inner().services;
    let (mut one, mut two): (Vec<_>, Vec<_>) = (
        secrets.into_iter().map(|secret| secret.name).collect(),
        services.into_iter().map(|service| service.name).collect(),
    );
    one.sort();
    two.sort();
    (one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_shows_and_changes_its_own_names_only() {
    let manager = TestManager::init().await;
    let mut root = manager.operator().await;
    for name in ["web-a", "db"] {
        create(&mut root, name, b"one").await.unwrap();
    }
    service(&mut root, "web", &["web-a", "db"], &[]).await;
    service(&mut root, "api", &["web-a", "db"], &[]).await;
    let node = manager.join("alpha").await;
    for (n, of) in [(1, "web"), (2, "api")] {
        node.claim(&manager, n, of).await.unwrap();
    }
    let writer = manager.create_operator("ann", OperatorRole::Writer, &["web*"]).await;
    let (mut ann, exporter) = writer.connect(&manager).await;
    assert_eq!(names(&mut ann).await, (vec!["web-a".into()], vec!["web".into()]));

    let info = ann.inspect_secret(object("web-a")).await.unwrap().into_inner();
    assert_eq!(info.services, ["web"], "api uses it too");
    let tasks = ann.secret_status(object("web-a")).await.unwrap().into_inner().tasks;
    assert_eq!(tasks.len(), 1);
    let tasks = ann.node_tasks(object("alpha")).await.unwrap().into_inner().tasks;
    assert_eq!(tasks.iter().map(|task| &*task.service_name).collect::<Vec<_>>(), ["web"]);
    let spec = ann.inspect_service(object("web")).await.unwrap().into_inner().spec.unwrap();
    let shown: Vec<_> = spec.grants.iter().map(|g| (&*g.secret_name, &*g.secret_id)).collect();
    assert_eq!((shown[0].0, shown[1]), ("web-a", ("", "")), "db has neither name nor id");

    for text in ["db", "api"] {
        let nothing = format!("{text} not found");
        refused(ann.inspect_secret(object(text)).await, Code::NotFound, &nothing);
        refused(ann.secret_status(object(text)).await, Code::NotFound, &nothing);
        refused(ann.remove_secret(object(text)).await, Code::NotFound, &nothing);
        refused(ann.inspect_service(object(text)).await, Code::NotFound, &nothing);
        refused(ann.service_tasks(object(text)).await, Code::NotFound, &nothing);
        refused(ann.rollback_service(object(text)).await, Code::NotFound, &nothing);
        refused(ann.remove_service(object(text)).await, Code::NotFound, &nothing);
        let watch = v1::WatchDeliveryRequest { revision: None, secrets: vec![text.into()] };
        refused(ann.watch_delivery(watch).await.map(drop), Code::NotFound, &nothing);
    }
    let foreign = v1::CreateServiceRequest {
        name: "web-2".into(),
        grants: vec![grant("db")],
        ..Default::default()
    };
    refused(ann.create_service(foreign).await, Code::NotFound, "secret db not found");
    let nodes = v1::UpdateServiceRequest {
        service: "web".into(),
        constraint_add: vec!["node.hostname==mine".into()],
        ..Default::default()
    };
    let granted = "a secret that service web grants, or granted before is not in the scope";
    refused(ann.update_service(nodes).await, Code::PermissionDenied, granted);
    refused(ann.remove_service(object("web")).await, Code::PermissionDenied, granted);

    let over = Some(&exporter);
    let value = |value| v1::CreateSecretRequest {
        name: "web-b".into(),
        labels: Default::default(),
        value: Some(value),
    };
    let unbound = sealed(&mut ann, InputFor::Create, "web-b", b"new").await;
    refused(ann.create_secret(value(unbound)).await, Code::FailedPrecondition, "does not open");
    let bound = sealed_over(&mut ann, over, InputFor::Create, "web-b", b"new").await;
    ann.create_secret(value(bound)).await.unwrap();
    let outside = sealed_over(&mut ann, over, InputFor::Create, "other", b"new").await;
    let outside = v1::CreateSecretRequest { name: "other".into(), ..value(outside) };
    let refusal = "secret other is not in the scope of operator ann";
    refused(ann.create_secret(outside).await, Code::PermissionDenied, refusal);
    let lines = manager.audit_lines();
    let last = lines.last().unwrap();
    assert_eq!(last["refused"]["actor"]["id"], writer.id.as_str(), "{last}");
    assert_eq!(last["refused"]["action"], "secret.create");
    assert!(lines.iter().any(|line| line["actor"]["id"] == writer.id.as_str()), "who did it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_operator_is_shut_out_at_once_also_under_the_same_name() {
    let manager = TestManager::init().await;
    let mut root = manager.operator().await;
    let old = manager.create_operator("ann", OperatorRole::Admin, &[]).await;
    let (mut ann, _) = old.connect(&manager).await;
    let (mut idle, _) = old.connect(&manager).await;
    create(&mut root, "db", b"one").await.unwrap();
    service(&mut root, "web", &["db"], &[]).await;
    let node = manager.join("alpha").await;
    node.claim(&manager, 1, "web").await.unwrap();
    // It never reports, so the watch goes on until somebody ends it.
    let _silent = node.open(&manager, &[task(1)]).await;
    let revision = rotate(&mut root, "db", b"two").await.unwrap().revision;
    let request = v1::WatchDeliveryRequest { revision, secrets: vec![] };
    let mut watch = ann.watch_delivery(request).await.unwrap().into_inner();
    assert_eq!(soon("progress", watch.message()).await.unwrap().unwrap().waiting, ["alpha"]);

    root.remove_operator(object("ann")).await.unwrap();
    refused(ann.list_nodes(v1::ListRequest {}).await, Code::PermissionDenied, "not known");
    let ended = soon("the end", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    });
    refused(ended.await, Code::PermissionDenied, "not known to this cluster (any more)");
    soon("closing", async {
        while idle.list_nodes(v1::ListRequest {}).await.unwrap_err().code()
            == Code::PermissionDenied
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let new = manager.create_operator("ann", OperatorRole::Admin, &[]).await;
    assert_ne!(old.id, new.id);
    let (mut ann, _) = old.connect(&manager).await;
    refused(ann.list_nodes(v1::ListRequest {}).await, Code::PermissionDenied, "not known");
    let (mut ann, _) = new.connect(&manager).await;
    ann.list_nodes(v1::ListRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ended_opens_nothing_also_on_a_connection_that_is_open() {
    let manager = TestManager::init().await;
    let operator = manager.create_operator_for("ann", OperatorRole::Admin, &[], 10).await;
    let (mut ann, _) = operator.connect(&manager).await;
    ann.list_nodes(v1::ListRequest {}).await.unwrap();
    let expired = soon("the end", async {
        loop {
            match ann.list_nodes(v1::ListRequest {}).await {
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                ended => return ended,
            }
        }
    });
    let mend = "ask an administrator to remove this operator and create it anew";
    refused(expired.await, Code::Unauthenticated, mend);
    let (mut ann, _) = operator.connect(&manager).await;
    let csr = csr_of(&operator.key).unwrap().into();
    let renewed = ann.renew_operator(v1::RenewOperatorRequest { csr }).await;
    refused(renewed, Code::Unauthenticated, mend);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_its_own_key_and_nobody_else() {
    let manager = TestManager::init().await;
    let auditor = manager.create_operator("ann", OperatorRole::Auditor, &["web*"]).await;
    let (mut ann, _) = auditor.connect(&manager).await;
    let request = |csr: Vec<u8>| v1::RenewOperatorRequest { csr: csr.into() };
    let (_, other) = key_and_csr().unwrap();
    refused(ann.renew_operator(request(other)).await, Code::InvalidArgument, "another key");
    let own = || request(csr_of(&auditor.key).unwrap());
    let renewed = ann.renew_operator(own()).await.unwrap().into_inner();
    assert_eq!(renewed.operator.unwrap().id, auditor.id);
    let leaf = keyhole_wire::tls::PeerIdentity::from_der(&renewed.chain[0], 0).unwrap();
    assert_eq!((leaf.role, leaf.id), (keyhole_wire::tls::Role::Operator, auditor.id.clone()));
    let mut root = manager.operator().await;
    refused(root.renew_operator(own()).await, Code::FailedPrecondition, "context");
    let mut ca = v1::ca_client::CaClient::new(channel(&manager, &auditor.live).await);
    let machine = v1::RenewRequest { csr: csr_of(&auditor.key).unwrap().into() };
    refused(ca.renew(machine).await, Code::PermissionDenied, "no member");
}
