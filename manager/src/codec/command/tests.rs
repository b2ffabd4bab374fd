//! Commands as bytes: each comes back as it was, and the bytes are the golden ones.

use super::*;
use crate::codec::{decode_row, encode_row};
use keyhole_domain::{NodeId, SecretId, ServiceId, TaskId, Version};
use keyhole_state::{
    Availability, FormerCa, KeySeal, Member, MemberKeys, Operator, Role, Scope, SealedKey,
    SealedValue, State, TokenRecord, Unconstrained, UnlockSeal,
};
use prost::Message;

fn labels() -> Labels {
    Labels::new([("k".to_owned(), "v".to_owned())].into()).unwrap()
}

fn value(byte: u8) -> SealedValue {
    SealedValue { epoch: 1, salt: [byte; 32], ciphertext: vec![byte; 40] }
}

fn key() -> SealedKey {
    let seal = KeySeal { enc: vec![1; 32], ciphertext: vec![2; 48] };
    SealedKey { seals: [(1, seal)].into() }
}

fn third_key() -> SealedKey {
    SealedKey { seals: key().seals.into_values().map(|seal| (3, seal)).collect() }
}

fn grants(secret: SecretId) -> Vec<GrantRequest> {
    let grant = GrantRequest {
        secret,
        target: "tls/key".parse().unwrap(),
        uid: 1000,
        gid: 7,
        mode: "0440".parse().unwrap(),
        pinned: Version::new(1),
    };
    let other = GrantRequest { target: "b".parse().unwrap(), pinned: None, ..grant.clone() };
    vec![grant, other]
}

/// One of each command, in an order in which all of them are accepted.
fn history() -> Vec<Command> {
    let (secret, spare) = (SecretId::from_entropy([1; 16]), SecretId::from_entropy([9; 16]));
    let service = ServiceId::from_entropy([2; 16]);
    let (node, task) = (NodeId::from_entropy([3; 16]), TaskId::from_entropy([4; 16]));
    let operator = NodeId::from_entropy([12; 16]);
    let token = TokenRecord { hash: [5; 32], salt: [6; 32], epoch: 1 };
    let member = Member {
        id: 1,
        node,
        hostname: String::new(),
        address: "a:1".into(),
        seal_key: [7; 32],
        voter: true,
    };
    let second = Member {
        id: 2,
        node: NodeId::from_entropy([10; 16]),
        hostname: "beta".into(),
        address: "b:2".into(),
        ..member.clone()
    };
    let third = Member { id: 3, node: NodeId::from_entropy([11; 16]), ..second.clone() };
    let restored = TokenRecord { hash: [12; 32], salt: [13; 32], epoch: 2 };
    let seal = KeySeal { enc: vec![3; 32], ciphertext: vec![4; 48] };
    let keys =
        MemberKeys { ca: seal.clone(), keyring: [(1, seal)].into(), ca_number: 0, unlock: None };
    let new_token = token.clone();
    let key_seal = keys.ca.clone();
    let fourth = Member { id: 4, node: NodeId::from_entropy([12; 16]), ..second.clone() };
    let constraints = vec!["node.labels.k==v".parse().unwrap()];
    let name = || "web".parse().unwrap();
    vec![
        Command::Init(Box::new(InitCluster {
            id: keyhole_domain::ClusterId::from_entropy([8; 16]),
            ca_certificate: vec![1, 2, 3],
            ca_key: key(),
            value_key: key(),
            worker_token: token.clone(),
            manager_token: token.clone(),
            certificate_seconds: 86_400,
            member,
        })),
        Command::CreateSecret {
            id: secret,
            name: "a".parse().unwrap(),
            labels: labels(),
            value: value(1),
        },
        Command::CreateSecret {
            id: spare,
            name: "b".parse().unwrap(),
            labels: labels(),
            value: value(2),
        },
        Command::SetSecretLabels { id: secret, expected: 2, labels: Labels::default() },
        Command::RotateSecrets {
            items: vec![RotateItem { id: secret, version: Version::FIRST.next(), value: value(3) }],
        },
        Command::RollbackSecret { id: secret, to: Some(Version::FIRST) },
        Command::RemoveSecret { id: spare },
        Command::JoinNode { id: node, hostname: "alpha".into() },
        Command::ChangeNode {
            id: node,
            change: NodeChange {
                labels: Some(labels()),
                expected: 8,
                availability: Some(Availability::Pause),
            },
        },
        Command::CreateService {
            id: service,
            name: name(),
            labels: labels(),
            grants: grants(secret),
            constraints,
        },
        Command::UpdateService {
            id: service,
            expected: 10,
            labels: labels(),
            grants: grants(secret),
            constraints: vec![],
        },
        Command::RollbackService { id: service },
        Command::ClaimTask { id: task, service, node, cgroup: "/x".into() },
        Command::SyncTasks { node, live: vec![task], ca_number: 0 },
        Command::EndTask { id: task, node, reason: "gone".into() },
        Command::RotateToken { role: TokenRole::Manager, token },
        Command::ChangeCluster(ClusterChange {
            unconstrained: Some(Unconstrained::Deny),
            quota_bytes: Some(1 << 20),
            certificate_seconds: Some(60),
            address: Some((1, "b:2".into())),
        }),
        Command::RemoveService { id: service },
        Command::RemoveNode { id: node },
        Command::AddMember { member: second, keys: keys.clone() },
        Command::DemoteMember { id: 2, voters: [].into() },
        Command::PromoteMember { id: 2, keys: keys.clone() },
        Command::RotateKeyring(Box::new(NewKey {
            epoch: 2,
            key: SealedKey { seals: [(1, keys.ca.clone()), (2, keys.ca)].into() },
            worker_token: TokenRecord { epoch: 2, ..new_token.clone() },
            manager_token: TokenRecord { epoch: 2, ..new_token },
        })),
        Command::Reseal {
            items: vec![ResealItem {
                id: secret,
                version: Version::FIRST,
                from: 1,
                value: SealedValue { epoch: 2, ..value(1) },
            }],
        },
        Command::RemoveMember { id: 2, voters: [].into() },
        Command::NoteAuditHead { member: 1, seq: 7, hash: [11; 32] },
        Command::NoteBackup { recipients: vec!["age1x".into()] },
        Command::Reseal {
            items: vec![ResealItem {
                id: secret,
                version: Version::FIRST.next(),
                from: 1,
                value: SealedValue { epoch: 2, ..value(3) },
            }],
        },
        Command::Restore(Box::new(Restoration {
            member: third,
            ca_certificate: vec![4, 5, 6],
            ca_key: third_key(),
            former: FormerCa {
                certificate: vec![1, 2, 3],
                cross: vec![7, 8],
                until: Timestamp(u64::MAX),
            },
            epoch: 2,
            value_key: third_key(),
            worker_token: restored.clone(),
            manager_token: restored,
        })),
        Command::ForceNewCluster { member: 3 },
        Command::RotateCa(Box::new(NewCa {
            number: 2,
            certificate: vec![14],
            key: third_key(),
            former: FormerCa {
                certificate: vec![4, 5, 6],
                cross: vec![15],
                until: Timestamp(u64::MAX),
            },
        })),
        Command::NoteCertificate { member: 3, ca_number: 2 },
        Command::ForgetFormerCas,
        Command::CreateOperator(Box::new(Operator {
            id: operator,
            name: "ann@example.org".parse().unwrap(),
            role: Role::Writer,
            scope: Scope::new(&["web-*".to_owned()], &["web".to_owned()]).unwrap(),
            public_key: [12; 32],
            created_at: Timestamp(7),
            seconds: 60,
            not_after: 67,
        })),
        Command::RenewOperator { id: operator, not_after: 90, ca_number: 1 },
        Command::RemoveOperator { id: operator },
        Command::RenewStoreKeys(Box::new(NewStoreKeys {
            number: 1,
            unlock: Some(third_key()),
            why: Renewal::Autolock,
        })),
        Command::NoteStore { member: 3, under: StoreUnder { number: 1, locked: true } },
        Command::AddMember {
            member: fourth,
            keys: MemberKeys {
                keyring: [(2, key_seal.clone())].into(),
                ca: key_seal.clone(),
                ca_number: 2,
                unlock: Some(UnlockSeal { number: 1, seal: key_seal }),
            },
        },
        Command::ShowUnlockKey,
        Command::NoteUnlockKey { number: 1 },
        Command::Shred,
        Command::ShowToken { role: TokenRole::Worker },
        Command::TransferLeader { to: 2 },
        Command::DemoteMember { id: 4, voters: [3, 4].into() },
        Command::RemoveMember { id: 4, voters: [3].into() },
    ]
}

fn actors() -> Vec<Actor> {
    let id = NodeId::from_entropy([3; 16]);
    vec![
        Actor::Local { uid: 1, gid: 2, pid: 3 },
        Actor::Operator(id),
        Actor::Node(id),
        Actor::Joiner { address: "x".into() },
        Actor::Manager(1),
    ]
}

/// Nobody else may do all of it.
fn by_root(envelope: Envelope) -> Envelope {
    Envelope { actor: actors()[0].clone(), ..envelope }
}

#[test]
fn every_command_and_every_row_round_trips() {
    let mut state = State::default();
    for (at, command) in history().into_iter().enumerate() {
        let actor = actors()[at % 5].clone();
        let envelope = Envelope { at: Timestamp(at as u64), actor, via: at as u64, command };
        let bytes = encode_envelope(&envelope).encode_to_vec();
        let back = decode_envelope(v1::Envelope::decode(&*bytes).unwrap()).unwrap();
        assert_eq!(back, envelope);
        state.apply(at as u64 + 1, &by_root(envelope)).unwrap();
        state.invariants().unwrap();
        let rows: Vec<_> = state.row_keys().into_iter().filter_map(|key| state.row(key)).collect();
        let again = rows.iter().map(|row| decode_row(encode_row(row)).unwrap());
        assert_eq!(State::from_rows(state.index(), again), state);
    }
}

/// Every command of [`history`] with an actor, and every row that is there after it, as lines of hexadecimals.
fn formats() -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut text = String::new();
    let mut state = State::default();
    for (at, command) in history().into_iter().enumerate() {
        let actor = actors()[at % 5].clone();
        let via = u64::from(at % 5 == 4);
        let envelope = Envelope { at: Timestamp(at as u64), actor, via, command };
        text += &format!("command {}\n", hex(&encode_envelope(&envelope).encode_to_vec()));
        state.apply(at as u64 + 1, &by_root(envelope)).unwrap();
        for row in state.row_keys().into_iter().filter_map(|key| state.row(key)) {
            text += &format!("row {}\n", hex(&encode_row(&row).encode_to_vec()));
        }
    }
    text
}

/// What lies on disks must be read for ever. Who adds a field writes the file anew, with KEYHOLE_GOLDEN=write, and
/// keeps the lines that are gone in `golden-former.txt`, which the test below reads.
#[test]
fn the_format_on_disk_is_the_golden_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/golden.txt");
    if std::env::var("KEYHOLE_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(path, formats()).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (number, (golden, now)) in (1..).zip(golden.lines().zip(formats().lines())) {
        assert_eq!(golden, now, "line {number}");
    }
    assert_eq!(golden.lines().count(), formats().lines().count());
}

/// What earlier builds wrote otherwise than this one.
#[test]
fn what_earlier_builds_wrote_is_read() {
    for line in include_str!("../golden-former.txt").lines() {
        let (kind, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        match kind {
            "command" => drop(decode_envelope(v1::Envelope::decode(&*bytes).unwrap()).unwrap()),
            _ => drop(crate::codec::row_from_bytes(&bytes).unwrap()),
        }
    }
}

#[test]
fn what_a_newer_version_wrote_is_refused() {
    assert!(decode_envelope(v1::Envelope::default()).is_err());
    assert!(decode_row(v1::Row::default()).is_err());
}
