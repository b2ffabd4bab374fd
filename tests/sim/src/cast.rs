//! Who takes part: managers `m1` to `m5`, nodes `n1` and `n2`, and the secrets that they share.
//!
//! Invariant: names and ids follow from numbers; a manager's number is its Raft id, which is never given twice.

use keyhole_domain::{ClusterId, NodeId, SecretId, ServiceId, TaskId, Timestamp};
use keyhole_manager::keys::Kek;
use keyhole_manager::raft::Peer;
use keyhole_manager::store::StoreIdentity;
use keyhole_secmem::Key32;
use keyhole_state::{
    Actor, Command, Envelope, InitCluster, KeySeal, Member, MemberKeys, SealedKey, SealedValue,
    TokenRecord,
};

use crate::machine;
use crate::network::PORT;

/// The managers that there may be; the first three are there from the beginning.
pub(crate) const MANAGERS: u64 = 5;
/// The managers that a cluster begins with.
pub(crate) const FOUNDERS: u64 = 3;
/// The nodes.
pub(crate) const NODES: u64 = 2;

pub(crate) fn cluster() -> ClusterId {
    ClusterId::from_entropy([200; 16])
}

/// The id in a manager's certificate.
fn certificate(member: u64) -> NodeId {
    NodeId::from_entropy([100 + member as u8; 16])
}

pub(crate) fn manager_host(member: u64) -> String {
    format!("m{member}")
}

pub(crate) fn node_host(node: u64) -> String {
    format!("n{node}")
}

fn address(member: u64) -> String {
    format!("{}:{PORT}", manager_host(member))
}

/// The certificate's id of who listens at an address.
pub(crate) fn at(address_of: &str) -> String {
    let member = (1..=MANAGERS).find(|member| address(*member) == address_of);
    member.map_or_else(String::new, |member| certificate(member).to_string())
}

pub(crate) fn peer(member: u64) -> Peer {
    Peer { address: address(member), name: certificate(member).to_string() }
}

pub(crate) fn identity(member: u64) -> StoreIdentity {
    let manager = certificate(member).to_string();
    StoreIdentity { cluster: cluster().to_string(), manager, member }
}

pub(crate) fn kek(member: u64) -> Kek {
    let key = Key32::from_bytes(&mut [member as u8; 32]).expect("memory can be locked");
    Kek::from_key(key, "the simulation's key")
}

pub(crate) fn node(number: u64) -> NodeId {
    NodeId::from_entropy([number as u8; 16])
}

pub(crate) fn task(number: u64) -> TaskId {
    TaskId::from_entropy([number as u8; 16])
}

pub(crate) fn service() -> ServiceId {
    ServiceId::from_entropy([1; 16])
}

/// The id of the secret with this number.
pub(crate) fn secret(number: u64) -> SecretId {
    let mut entropy = [7; 16];
    entropy[..8].copy_from_slice(&number.to_le_bytes());
    SecretId::from_entropy(entropy)
}

/// A value that nobody opens; it is told from others by `mark`.
pub(crate) fn value(mark: u64, size: usize) -> SealedValue {
    let mut salt = [0; 32];
    salt[..8].copy_from_slice(&mark.to_le_bytes());
    SealedValue { epoch: 1, salt, ciphertext: vec![mark as u8; size + 16] }
}

fn seal() -> KeySeal {
    KeySeal { enc: vec![1; 32], ciphertext: vec![2; 48] }
}

/// The cluster's keys, sealed for a member; nobody opens them.
pub(crate) fn keys() -> MemberKeys {
    MemberKeys { ca: seal(), ca_number: 0, unlock: None, keyring: [(1, seal())].into() }
}

pub(crate) fn member(number: u64) -> Member {
    Member {
        id: number,
        node: certificate(number),
        hostname: manager_host(number),
        address: address(number),
        seal_key: [3; 32],
        voter: true,
    }
}

pub(crate) fn init() -> Command {
    let token = |n| TokenRecord { hash: [n; 32], salt: [n; 32], epoch: 1 };
    let sealed = || SealedKey { seals: [(1, seal())].into() };
    Command::Init(Box::new(InitCluster {
        id: cluster(),
        ca_certificate: vec![1, 2, 3],
        ca_key: sealed(),
        value_key: sealed(),
        worker_token: token(1),
        manager_token: token(2),
        certificate_seconds: 86400,
        member: member(1),
    }))
}

/// A command that somebody asks the manager `by` for.
pub(crate) fn envelope(by: u64, command: Command) -> Envelope {
    let actor = match &command {
        Command::AddMember { .. } | Command::JoinNode { .. } => {
            Actor::Joiner { address: by.to_string() }
        }
        Command::ClaimTask { node, .. } => Actor::Node(*node),
        _ => Actor::Local { uid: 0, gid: 0, pid: 1 },
    };
    Envelope { at: Timestamp(machine::now()), actor, via: by, command }
}
