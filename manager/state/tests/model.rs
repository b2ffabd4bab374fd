//! The state machine under random commands: invariants after each, replicas equal, and assignments against a naive
//! oracle that says what "a task sees exactly its service's grants" means.

#![expect(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{
    Constraint, FileMode, Labels, NodeId, SecretId, ServiceId, TaskId, Timestamp, Version,
};
use keyhole_state::*;
use proptest::prelude::*;

const NODES: u8 = 3;

fn secret(n: u8) -> SecretId {
    SecretId::from_entropy([n; 16])
}
fn service(n: u8) -> ServiceId {
    ServiceId::from_entropy([n; 16])
}
fn node(n: u8) -> NodeId {
    NodeId::from_entropy([n; 16])
}
fn task(n: u8) -> TaskId {
    TaskId::from_entropy([n; 16])
}

fn value(len: usize) -> SealedValue {
    SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; len + 16] }
}

fn seal() -> KeySeal {
    KeySeal { enc: vec![1], ciphertext: vec![2] }
}

fn zone(n: u8) -> Labels {
    Labels::new(BTreeMap::from([("zone".to_owned(), format!("z{n}"))])).unwrap()
}

fn init() -> Envelope {
    let key = SealedKey { seals: [(1, seal())].into() };
    let token = TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
    envelope(Command::Init(Box::new(InitCluster {
        id: keyhole_domain::ClusterId::from_entropy([0; 16]),
        ca_certificate: vec![],
        ca_key: key.clone(),
        value_key: key,
        worker_token: token.clone(),
        manager_token: token,
        certificate_seconds: 86_400,
        member: Member {
            id: 1,
            node: node(200),
            hostname: String::new(),
            address: "a:1".into(),
            seal_key: [0; 32],
            voter: true,
        },
    })))
}

fn envelope(command: Command) -> Envelope {
    Envelope { at: Timestamp(1), actor: Actor::Local { uid: 0, gid: 0, pid: 1 }, via: 1, command }
}

fn grant() -> impl Strategy<Value = GrantRequest> {
    let target = prop::sample::select(vec!["a", "b", "a/b", "tls/key", "tls/cert"]);
    (0..4u8, target, 0..2u32, prop::option::of(1..4u64)).prop_map(|(n, target, uid, pinned)| {
        GrantRequest {
            secret: secret(n),
            target: target.parse().unwrap(),
            uid,
            gid: 0,
            mode: FileMode::DEFAULT,
            pinned: pinned.and_then(Version::new),
        }
    })
}

fn constraints() -> impl Strategy<Value = Vec<Constraint>> {
    let one = (0..NODES, any::<bool>()).prop_map(|(zone, equal)| {
        let operator = if equal { "==" } else { "!=" };
        format!("node.labels.zone{operator}z{zone}").parse().unwrap()
    });
    prop::collection::vec(one, 0..2)
}

fn command() -> impl Strategy<Value = Command> {
    let grants = || prop::collection::vec(grant(), 0..3);
    let name = |n: u8| format!("s{n}");
    prop_oneof![
        3 => (0..4u8, 0..3usize).prop_map(move |(n, len)| Command::CreateSecret {
            id: secret(n), name: name(n).parse().unwrap(), labels: Labels::default(), value: value(len),
        }),
        6 => prop::collection::vec((0..4u8, 1..6u64), 1..3).prop_map(|items| Command::RotateSecrets {
            items: items.into_iter().map(|(n, version)| RotateItem {
                id: secret(n), version: Version::new(version).unwrap(), value: value(1),
            }).collect(),
        }),
        2 => (0..4u8, prop::option::of(1..5u64)).prop_map(|(n, to)| Command::RollbackSecret {
            id: secret(n), to: to.and_then(Version::new),
        }),
        1 => (0..4u8).prop_map(|n| Command::RemoveSecret { id: secret(n) }),
        3 => (0..3u8, grants(), constraints()).prop_map(move |(n, grants, constraints)| {
            Command::CreateService {
                id: service(n), name: name(n).parse().unwrap(), labels: Labels::default(), grants, constraints,
            }
        }),
        3 => (0..3u8, 1..60u64, grants(), constraints()).prop_map(|(n, expected, grants, constraints)| {
            Command::UpdateService { id: service(n), expected, labels: Labels::default(), grants, constraints }
        }),
        1 => (0..3u8).prop_map(|n| Command::RollbackService { id: service(n) }),
        1 => (0..3u8).prop_map(|n| Command::RemoveService { id: service(n) }),
        4 => (0..8u8, 0..3u8, 0..NODES).prop_map(|(n, of, on)| Command::ClaimTask {
            id: task(n), service: service(of), node: node(on), cgroup: "/x".into(),
        }),
        1 => (0..8u8, 0..NODES).prop_map(|(n, on)| Command::EndTask {
            id: task(n), node: node(on), reason: "end".into(),
        }),
        1 => (0..NODES, prop::collection::vec(0..8u8, 0..3)).prop_map(|(on, live)| Command::SyncTasks {
            node: node(on), live: live.into_iter().map(task).collect(), ca_number: 0,
        }),
        3 => (0..NODES).prop_map(|n| Command::JoinNode { id: node(n), hostname: format!("h{n}") }),
        2 => (0..NODES, 0..NODES, 0..3u8).prop_map(|(n, z, a)| Command::ChangeNode {
            id: node(n),
            change: NodeChange {
                labels: Some(zone(z)),
                expected: 0,
                availability: Some([Availability::Active, Availability::Pause, Availability::Drain][a as usize]),
            },
        }),
        1 => (0..NODES).prop_map(|n| Command::RemoveNode { id: node(n) }),
        1 => (1..6u64).prop_map(|id| Command::AddMember {
            member: Member {
                id, node: node(200 + id as u8), hostname: format!("m{id}"), address: format!("m{id}:1"), seal_key: [0; 32],
                voter: true,
            },
            keys: MemberKeys { ca: seal(), keyring: [(1, seal())].into(), ca_number: 0, unlock: None },
        }),
        1 => (1..6u64).prop_map(|id| Command::PromoteMember {
            id,
            keys: MemberKeys { ca: seal(), keyring: [(1, seal())].into(), ca_number: 0, unlock: None },
        }),
        1 => (1..6u64).prop_map(|id| Command::DemoteMember { id, voters: [].into() }),
        1 => (1..6u64).prop_map(|id| Command::RemoveMember { id, voters: [].into() }),
        1 => (1..6u64, 1..60u64).prop_map(|(member, seq)| Command::NoteAuditHead { member, seq, hash: [1; 32] }),
        1 => any::<bool>().prop_map(|deny| Command::ChangeCluster(ClusterChange {
            unconstrained: Some(if deny { Unconstrained::Deny } else { Unconstrained::Allow }),
            ..ClusterChange::default()
        })),
    ]
}

/// What a node may be told, found the long way round: every (task, target) -> (secret, version).
type Files = BTreeMap<(TaskId, String), (SecretId, Version)>;

fn oracle(state: &State, on: NodeId) -> Files {
    let mut files = Files::new();
    let Some(machine) = state.nodes().get(&on) else {
        return files;
    };
    let deny = state.cluster().unwrap().unconstrained == Unconstrained::Deny;
    for one in state.tasks().values().filter(|t| t.node == on && t.end.is_none()) {
        let spec = &state.services()[&one.service].spec;
        let admitted = machine.availability != Availability::Drain
            && !(deny && spec.constraints.is_empty())
            && spec.constraints.iter().all(|c| c.admits(&machine.facts()));
        if !admitted {
            continue;
        }
        for grant in &spec.grants {
            let version = grant.pinned.unwrap_or(state.secrets()[&grant.secret].current);
            files.insert((one.id, grant.target.to_string()), (grant.secret, version));
        }
    }
    files
}

fn assigned(state: &State, on: NodeId) -> Files {
    let assignment = state.assignment(on);
    let mut files = Files::new();
    for task in &assignment.tasks {
        assert!(task.rejected.is_none() || task.grants.is_empty(), "rejected, yet with grants");
        for grant in task.grants.iter() {
            let value = (grant.value.secret, grant.value.version);
            assert_eq!(files.insert((task.id, grant.target.to_string()), value), None);
        }
    }
    let values: BTreeSet<_> = assignment.values().iter().map(|v| (v.secret, v.version)).collect();
    assert_eq!(values, files.values().copied().collect(), "values beyond the files");
    files
}

/// The rows that a follower of the changes has, for the mirror in the store.
fn mirror(rows: &mut BTreeMap<RowKey, Row>, state: &State, applied: &Applied) {
    for key in &applied.rows {
        match state.row(*key) {
            Some(row) => rows.insert(*key, row),
            None => rows.remove(key),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn assignments_are_exactly_the_grants(commands in prop::collection::vec(command(), 1..60)) {
        let (mut one, mut two) = (State::default(), State::default());
        let mut rows = BTreeMap::new();
        let applied = one.apply(1, &init()).unwrap();
        two.apply(1, &init()).unwrap();
        mirror(&mut rows, &one, &applied);
        for (at, command) in commands.into_iter().enumerate() {
            let (index, envelope) = (at as u64 + 2, envelope(command));
            let before = one.clone();
            let result = one.apply(index, &envelope);
            prop_assert_eq!(&result, &two.apply(index, &envelope));
            prop_assert_eq!(&one, &two, "two replicas of one log differ");
            prop_assert_eq!(one.invariants(), Ok(()));
            match &result {
                Ok(applied) => {
                    mirror(&mut rows, &one, applied);
                    // A node that is not named as touched is told nothing new.
                    for on in (0..NODES).map(node).filter(|on| !applied.nodes.contains(on)) {
                        let (old, new) = (before.assignment(on), one.assignment(on));
                        prop_assert_eq!(old.tasks, new.tasks, "{:?} not named: {:?}", on, envelope);
                    }
                }
                Err(_) => {
                    let mut same = before.clone();
                    same.skip(index);
                    prop_assert_eq!(&same, &one, "a refused command changed something");
                }
            }
            for on in (0..NODES).map(node) {
                prop_assert_eq!(assigned(&one, on), oracle(&one, on));
            }
            let loaded = State::from_rows(one.index(), rows.values().cloned());
            prop_assert_eq!(&loaded, &one, "the mirrored rows are not the state");
        }
    }
}
