//! The rules that operators meet, one test each (docs/SEMANTICS.md, manager's part; design section 6).

#![expect(clippy::unwrap_used, reason = "a step that fails here fails the test")]

mod managers;

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{FileMode, Labels, NodeId, SecretId, ServiceId, TaskId, Timestamp, Version};
use keyhole_state::*;

struct Cluster {
    state: State,
    index: u64,
}

fn id(n: u8) -> [u8; 16] {
    [n; 16]
}

fn value(len: usize) -> SealedValue {
    SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; len + 16] }
}

fn grant(secret: u8, target: &str, pinned: Option<u64>) -> GrantRequest {
    GrantRequest {
        secret: SecretId::from_entropy(id(secret)),
        target: target.parse().unwrap(),
        uid: 0,
        gid: 0,
        mode: FileMode::DEFAULT,
        pinned: pinned.and_then(Version::new),
    }
}

fn seal() -> KeySeal {
    KeySeal { enc: vec![1], ciphertext: vec![2] }
}

fn keys(epochs: &[u32]) -> MemberKeys {
    MemberKeys {
        ca: seal(),
        keyring: epochs.iter().map(|epoch| (*epoch, seal())).collect(),
        ca_number: 0,
        unlock: None,
    }
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        let token = TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
        let node = NodeId::from_entropy(id(99));
        cluster
            .run(Command::Init(Box::new(InitCluster {
                id: keyhole_domain::ClusterId::from_entropy(id(0)),
                ca_certificate: vec![],
                ca_key: SealedKey { seals: [(1, seal())].into() },
                value_key: SealedKey { seals: [(1, seal())].into() },
                worker_token: token.clone(),
                manager_token: token,
                certificate_seconds: 60,
                member: Member {
                    id: 1,
                    node,
                    hostname: String::new(),
                    address: "a:1".into(),
                    seal_key: [0; 32],
                    voter: true,
                },
            })))
            .unwrap();
        cluster
    }

    fn run(&mut self, command: Command) -> Result<Applied, Rejected> {
        self.index += 1;
        let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
        let result = self
            .state
            .apply(self.index, &Envelope { at: Timestamp(self.index), actor, via: 1, command });
        self.state.invariants().unwrap();
        result
    }

    fn manager(&mut self, number: u64, epochs: &[u32]) -> Result<Applied, Rejected> {
        let n = u8::try_from(number).unwrap();
        let member = Member {
            id: number,
            node: NodeId::from_entropy(id(100 + n)),
            hostname: format!("m{n}"),
            address: format!("m{n}:7070"),
            seal_key: [n; 32],
            voter: true,
        };
        self.run(Command::AddMember { member, keys: keys(epochs) })
    }

    fn create(&mut self, n: u8, name: &str) -> Result<Applied, Rejected> {
        let (id, name) = (SecretId::from_entropy(id(n)), name.parse().unwrap());
        self.run(Command::CreateSecret { id, name, labels: Labels::default(), value: value(1) })
    }

    fn rotate(&mut self, n: u8, to: u64) -> Result<Applied, Rejected> {
        let item = RotateItem {
            id: SecretId::from_entropy(id(n)),
            version: Version::new(to).unwrap(),
            value: value(1),
        };
        self.run(Command::RotateSecrets { items: vec![item] })
    }

    fn serve(
        &mut self,
        n: u8,
        grants: Vec<GrantRequest>,
        on: &[&str],
    ) -> Result<Applied, Rejected> {
        self.run(Command::CreateService {
            id: ServiceId::from_entropy(id(n)),
            name: format!("service{n}").parse().unwrap(),
            labels: Labels::default(),
            grants,
            constraints: on.iter().map(|text| text.parse().unwrap()).collect(),
        })
    }

    fn update(&mut self, n: u8, grants: Vec<GrantRequest>) -> Result<Applied, Rejected> {
        let id = ServiceId::from_entropy(id(n));
        let expected = self.state.services()[&id].index;
        let labels = Labels::default();
        self.run(Command::UpdateService { id, expected, labels, grants, constraints: vec![] })
    }

    fn claim(&mut self, task: u8, service: u8, node: u8) -> Result<Applied, Rejected> {
        self.run(Command::ClaimTask {
            id: TaskId::from_entropy(id(task)),
            service: ServiceId::from_entropy(id(service)),
            node: NodeId::from_entropy(id(node)),
            cgroup: "/x".into(),
        })
    }

    fn join(&mut self, n: u8) {
        let id = NodeId::from_entropy(id(n));
        self.run(Command::JoinNode { id, hostname: format!("host{n}") }).unwrap();
    }

    fn remove(&mut self, n: u8) -> Result<Applied, Rejected> {
        self.run(Command::RemoveSecret { id: SecretId::from_entropy(id(n)) })
    }

    fn secret(&self, n: u8) -> &Secret {
        &self.state.secrets()[&SecretId::from_entropy(id(n))]
    }
}

#[test]
fn a_secret_in_use_cannot_be_removed_and_the_error_names_the_services() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![grant(1, "a", None)], &[]).unwrap();
    cluster.serve(2, vec![grant(1, "b", None)], &[]).unwrap();
    let error = cluster.remove(1).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    let text = error.to_string();
    assert!(text.contains("'db'") && text.contains("service1, service2"), "{text}");
}

#[test]
fn the_previous_spec_keeps_a_secret_in_use_so_that_rollback_never_breaks() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![grant(1, "a", None)], &[]).unwrap();
    cluster.update(1, vec![]).unwrap();
    assert!(matches!(cluster.remove(1), Err(Rejected::InUse { .. })));
    cluster.run(Command::RollbackService { id: ServiceId::from_entropy(id(1)) }).unwrap();
    cluster.update(1, vec![]).unwrap();
    cluster.update(1, vec![]).unwrap();
    cluster.remove(1).unwrap();
}

#[test]
fn names_are_unique_and_case_sensitive() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    assert_eq!(cluster.create(2, "db").unwrap_err().kind(), Kind::AlreadyExists);
    cluster.create(2, "DB").unwrap();
}

#[test]
fn a_value_sealed_for_another_version_is_refused() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    assert!(matches!(cluster.rotate(1, 3), Err(Rejected::VersionRaced { .. })));
    assert!(matches!(cluster.rotate(1, 1), Err(Rejected::VersionRaced { .. })));
    cluster.rotate(1, 2).unwrap();
    assert_eq!(cluster.secret(1).current.get(), 2);
}

#[test]
fn several_rotations_in_one_command_are_all_or_none() {
    let mut cluster = Cluster::new();
    cluster.create(1, "a").unwrap();
    cluster.create(2, "b").unwrap();
    let item = |n: u8, to: u64| RotateItem {
        id: SecretId::from_entropy(id(n)),
        version: Version::new(to).unwrap(),
        value: value(1),
    };
    let both = |b: u64| Command::RotateSecrets { items: vec![item(1, 2), item(2, b)] };
    assert!(cluster.run(both(9)).is_err());
    assert_eq!(cluster.secret(1).current, Version::FIRST);
    cluster.run(both(2)).unwrap();
    assert_eq!((cluster.secret(1).current.get(), cluster.secret(2).current.get()), (2, 2));
}

#[test]
fn rollback_moves_current_and_numbers_are_never_reused() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    cluster.rotate(1, 2).unwrap();
    let back = |to| Command::RollbackSecret { id: SecretId::from_entropy(id(1)), to };
    cluster.run(back(None)).unwrap();
    assert_eq!(cluster.secret(1).current, Version::FIRST);
    assert!(matches!(cluster.run(back(None)), Err(Rejected::NothingBefore { .. })));
    let missing = cluster.run(back(Version::new(7))).unwrap_err();
    assert!(missing.to_string().contains("kept are 1, 2"), "{missing}");
    assert!(matches!(cluster.rotate(1, 2), Err(Rejected::VersionRaced { .. })));
    cluster.rotate(1, 3).unwrap();
    assert_eq!(cluster.secret(1).current.get(), 3);
}

#[test]
fn the_last_ten_versions_the_current_and_the_pinned_are_kept() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    cluster.rotate(1, 2).unwrap();
    cluster.serve(1, vec![grant(1, "a", Some(2))], &[]).unwrap();
    for to in 3..=20 {
        cluster.rotate(1, to).unwrap();
    }
    let kept: Vec<u64> = cluster.secret(1).versions.numbers().map(|v| v.get()).collect();
    assert_eq!(kept, [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    cluster.update(1, vec![]).unwrap();
    assert!(cluster.secret(1).versions.contains(Version::new(2).unwrap()));
    cluster.update(1, vec![]).unwrap();
    assert!(!cluster.secret(1).versions.contains(Version::new(2).unwrap()));
}

#[test]
fn a_grant_keeps_its_number_until_anything_of_it_changes() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    let numbers = |cluster: &Cluster| -> Vec<u64> {
        let service = &cluster.state.services()[&ServiceId::from_entropy(id(1))];
        service.spec.grants.iter().map(|grant| grant.id.0).collect()
    };
    cluster.serve(1, vec![grant(1, "a", None), grant(1, "b", None)], &[]).unwrap();
    assert_eq!(numbers(&cluster), [1, 2]);
    let moved = GrantRequest { uid: 7, ..grant(1, "a", None) };
    cluster.update(1, vec![moved, grant(1, "b", None)]).unwrap();
    assert_eq!(numbers(&cluster), [3, 2]);
    cluster.update(1, vec![grant(1, "a", None), grant(1, "b", None)]).unwrap();
    assert_eq!(numbers(&cluster), [4, 2]);
}

#[test]
fn targets_conflict_after_normalising() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    for (a, b) in [("foo", "/run/secrets/foo"), ("a//b", "a/b"), ("a", "a/b")] {
        let result = cluster.serve(1, vec![grant(1, a, None), grant(1, b, None)], &[]);
        assert!(matches!(result, Err(Rejected::TargetConflict { .. })), "{a} {b}");
    }
    cluster.serve(1, vec![grant(1, "a", None), grant(1, "b", None)], &[]).unwrap();
}

/// A command, a row and a backup's record each have to fit into one message.
#[test]
fn constraints_have_a_limit_in_number_and_in_bytes() {
    let mut cluster = Cluster::new();
    let numbered: Vec<_> = (0..=128).map(|n| format!("node.hostname!=h{n}")).collect();
    let of = |texts: &[String]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let long = format!("node.labels.{}==x", "k".repeat(64 * 1024));
    for (n, texts) in (1..).zip([&numbered[..], &[long][..]]) {
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let refused = cluster.serve(n, vec![], &texts).unwrap_err();
        assert!(matches!(refused, Rejected::TooManyConstraints { .. }), "{refused}");
    }
    let texts: Vec<_> = numbered[..128].iter().map(String::as_str).collect();
    cluster.serve(1, vec![], &texts).unwrap();
    let id = ServiceId::from_entropy(id(1));
    let refused = cluster.run(Command::UpdateService {
        id,
        expected: cluster.state.services()[&id].index,
        labels: Labels::default(),
        grants: vec![],
        constraints: of(&numbered),
    });
    assert!(matches!(refused, Err(Rejected::TooManyConstraints { count: 129, .. })));
}

#[test]
fn a_node_that_may_not_hold_a_service_gets_nothing_and_its_task_says_why() {
    let mut cluster = Cluster::new();
    cluster.join(1);
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![grant(1, "a", None)], &["node.hostname==other"]).unwrap();
    let applied = cluster.claim(1, 1, 1).unwrap();
    let Outcome::Claimed { rejected: Some(reason) } = applied.outcome else { panic!() };
    assert!(reason.contains("host1") && reason.contains("node.hostname==other"), "{reason}");
    assert!(cluster.state.assignment(NodeId::from_entropy(id(1))).tasks.is_empty());
    let task = &cluster.state.tasks()[&TaskId::from_entropy(id(1))];
    assert_eq!(cluster.state.standing(task), Standing::Rejected(reason));
}

#[test]
fn a_running_task_loses_its_files_when_its_node_is_no_longer_admitted() {
    let mut cluster = Cluster::new();
    cluster.join(1);
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![grant(1, "a", None)], &["node.labels.zone!=eu"]).unwrap();
    cluster.claim(1, 1, 1).unwrap();
    let on = NodeId::from_entropy(id(1));
    assert_eq!(cluster.state.assignment(on).tasks[0].grants.len(), 1);
    let labels = Labels::new(BTreeMap::from([("zone".into(), "eu".into())])).unwrap();
    let change = NodeChange { labels: Some(labels), ..NodeChange::default() };
    let applied = cluster.run(Command::ChangeNode { id: on, change }).unwrap();
    assert!(applied.nodes.contains(&on));
    let assigned = &cluster.state.assignment(on).tasks[0];
    assert!(assigned.grants.is_empty() && assigned.rejected.is_some());
}

/// Another manager may not have applied yet what its caller has made it from.
#[test]
fn labels_and_specs_made_of_what_is_no_more_are_refused() {
    let mut cluster = Cluster::new();
    cluster.join(1);
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![], &[]).unwrap();
    let (node, secret, service) = (
        NodeId::from_entropy(id(1)),
        SecretId::from_entropy(id(1)),
        ServiceId::from_entropy(id(1)),
    );
    let labels = |zone: &str| Labels::new([("zone".to_owned(), zone.to_owned())].into()).unwrap();
    let of_node = |expected, zone| {
        let change = NodeChange { labels: Some(labels(zone)), expected, availability: None };
        Command::ChangeNode { id: node, change }
    };
    let of_secret =
        |expected, zone| Command::SetSecretLabels { id: secret, expected, labels: labels(zone) };
    let of_service = |expected, zone| Command::UpdateService {
        id: service,
        expected,
        labels: labels(zone),
        grants: vec![],
        constraints: vec![],
    };
    let at = |state: &State| {
        let (node, secret) = (&state.nodes()[&node], &state.secrets()[&secret]);
        [node.index, secret.index, state.services()[&service].index]
    };
    let made_from = at(&cluster.state);
    let change = |zone| {
        let [node, secret, service] = made_from;
        [of_node(node, zone), of_secret(secret, zone), of_service(service, zone)]
    };
    for (kind, (first, second)) in
        ["node", "secret", "service"].into_iter().zip(change("eu").into_iter().zip(change("us")))
    {
        cluster.run(first).unwrap();
        let refused = cluster.run(second).unwrap_err();
        assert!(matches!(refused, Rejected::OutOfSequence { .. }), "{refused}");
        assert!(refused.to_string().contains(kind), "{refused}");
    }
    let state = &cluster.state;
    assert_eq!(state.nodes()[&node].labels.value("zone"), Some("eu"));
    assert_eq!(state.secrets()[&secret].labels.value("zone"), Some("eu"));
    assert_eq!(state.services()[&service].spec.labels.value("zone"), Some("eu"));
    assert_eq!(at(state).iter().filter(|index| made_from.contains(index)).count(), 0);
    // An entry of before this was looked at.
    cluster.run(of_node(0, "us")).unwrap();
    cluster.run(of_secret(0, "us")).unwrap();
}

#[test]
fn a_removed_node_gets_nothing() {
    let mut cluster = Cluster::new();
    cluster.join(1);
    cluster.create(1, "db").unwrap();
    cluster.serve(1, vec![grant(1, "a", None)], &[]).unwrap();
    cluster.claim(1, 1, 1).unwrap();
    let on = NodeId::from_entropy(id(1));
    let applied = cluster.run(Command::RemoveNode { id: on }).unwrap();
    assert!(applied.nodes.contains(&on));
    assert!(cluster.state.assignment(on).tasks.is_empty());
    assert!(matches!(cluster.claim(2, 1, 1), Err(Rejected::NotAMember { .. })));
}

#[test]
fn nobody_ends_or_takes_over_another_nodes_task() {
    let mut cluster = Cluster::new();
    cluster.join(1);
    cluster.join(2);
    cluster.serve(1, vec![], &[]).unwrap();
    cluster.claim(1, 1, 1).unwrap();
    let (task, other) = (TaskId::from_entropy(id(1)), NodeId::from_entropy(id(2)));
    let end = Command::EndTask { id: task, node: other, reason: "mine".into() };
    assert!(matches!(cluster.run(end), Err(Rejected::NotYourTask { .. })));
    assert!(matches!(cluster.claim(1, 1, 2), Err(Rejected::IdTaken { .. })));
}

#[test]
fn the_quota_counts_every_kept_version() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    let quota = |bytes| {
        Command::ChangeCluster(ClusterChange { quota_bytes: Some(bytes), ..Default::default() })
    };
    cluster.run(quota(2)).unwrap();
    cluster.rotate(1, 2).unwrap();
    let error = cluster.rotate(1, 3).unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert!(matches!(cluster.run(quota(1)), Err(Rejected::QuotaBelowUse { .. })));
}

#[test]
fn sizes_are_checked_again_when_applied() {
    let mut cluster = Cluster::new();
    for (len, fits) in [(0, false), (1, true), (512_000, true), (512_001, false)] {
        let (id, name) = (SecretId::from_entropy([len as u8; 16]), format!("s{len}"));
        let name = name.parse().unwrap();
        let labels = Labels::default();
        let result = cluster.run(Command::CreateSecret { id, name, labels, value: value(len) });
        assert_eq!(result.is_ok(), fits, "{len}");
    }
}

#[test]
fn objects_are_found_by_id_then_name_then_unique_prefix() {
    let mut cluster = Cluster::new();
    cluster.create(1, "db").unwrap();
    cluster.create(2, "other").unwrap();
    let first = cluster.secret(1).id;
    assert_eq!(cluster.state.find_secret("db").unwrap().id, first);
    assert_eq!(cluster.state.find_secret(first.as_str()).unwrap().id, first);
    let ids: Vec<String> = cluster.state.secrets().keys().map(ToString::to_string).collect();
    let shared = ids[0].bytes().zip(ids[1].bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(cluster.state.find_secret(&ids[0][..=shared]).unwrap().id.to_string(), ids[0]);
    if shared > 0 {
        let error = cluster.state.find_secret(&ids[0][..shared]).unwrap_err();
        assert!(matches!(error, Rejected::Ambiguous { count: 2, .. }), "{error}");
    }
    for text in ["", "d", "no such", "\0"] {
        if !ids.iter().any(|id| !text.is_empty() && id.starts_with(text)) {
            assert_eq!(
                cluster.state.find_secret(text).unwrap_err().kind(),
                Kind::NotFound,
                "{text:?}"
            );
        }
    }
}
