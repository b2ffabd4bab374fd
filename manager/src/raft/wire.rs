//! Between openraft's types and `store.proto`.
//!
//! Depends on the codec. Invariant: encode is total, decode checks; a failure means another format or damage, and is
//! never skipped.
use super::types::{
    Command, Entry, LogId, Membership, Peer, SnapshotMeta, StoredMembership, Vote, log_id, position,
};
use crate::codec::{DecodeError, decode_envelope, encode_envelope, fields, first_field};
use crate::store::Position;
use keyhole_proto::v1;
use keyhole_state::RowKey;
use openraft::EntryPayload;
use prost::Message;
use prost::encoding::decode_varint;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// The format of a snapshot's header, and of the record beside the state rows.
const SNAPSHOT_FORMAT: u32 = 1;

pub(super) fn entry_out(entry: &Entry) -> v1::LogEntry {
    use v1::log_entry::Payload;
    let (payload, proposal) = match &entry.payload {
        EntryPayload::Blank => (Payload::Blank(v1::Blank {}), 0),
        EntryPayload::Normal(Command { envelope, proposal }) => {
            (Payload::Command(encode_envelope(envelope)), *proposal)
        }
        EntryPayload::Membership(membership) => {
            (Payload::Membership(membership_out(membership)), 0)
        }
    };
    v1::LogEntry { log: Some(log_out(&entry.log_id)), payload: Some(payload), proposal }
}

pub(super) fn entry_in(entry: v1::LogEntry) -> io::Result<Entry> {
    use v1::log_entry::Payload;
    let log_id = entry.log.as_ref().map(log_in);
    let log_id = log_id.ok_or_else(|| invalid("a log entry without a place".to_owned()))?;
    let bad = |why: String| invalid(format!("log entry {}: {why}", log_id.index));
    let payload = match entry.payload {
        Some(Payload::Blank(_)) => EntryPayload::Blank,
        Some(Payload::Command(envelope)) => {
            let envelope = decode_envelope(envelope).map_err(|e| bad(e.to_string()))?;
            let envelope = Arc::new(envelope);
            EntryPayload::Normal(Command { envelope, proposal: entry.proposal })
        }
        Some(Payload::Membership(membership)) => {
            EntryPayload::Membership(membership_in(membership)?)
        }
        None => return Err(bad(DecodeError::missing("payload").to_string())),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn entry_bytes(entry: &Entry) -> Vec<u8> {
    entry_out(entry).encode_to_vec()
}

/// The entry in `bytes`, which must be the one of `at`.
pub(crate) fn entry_from(at: Position, bytes: bytes::Bytes) -> io::Result<Entry> {
    let bad = |why: &dyn std::fmt::Display| invalid(format!("log entry {}: {why}", at.index));
    let entry = v1::LogEntry::decode(bytes.clone()).map_err(|e| bad(&e))?;
    if let Some(unknown) = unknown_in(&entry, &bytes) {
        return Err(bad(&unknown));
    }
    let found = entry.log.map(|log| position(&log_in(&log)));
    match found == Some(at) {
        true => entry_in(entry),
        false => Err(bad(&"it is another one")),
    }
}

/// What a newer keyhole wrote into an entry, by its number.
fn unknown_in(entry: &v1::LogEntry, bytes: &[u8]) -> Option<DecodeError> {
    use v1::log_entry::Payload;
    match &entry.payload {
        None => first_field(bytes, &[1, 5]).map(|kind| DecodeError::unknown("payload", kind)),
        Some(Payload::Command(envelope)) if envelope.command.is_none() => {
            let (_, mut command) = fields(bytes).find(|(number, _)| *number == 3)?;
            decode_varint(&mut command).ok()?;
            first_field(command, &[1, 2, 3]).map(|kind| DecodeError::unknown("command", kind))
        }
        Some(_) => None,
    }
}

pub(super) fn vote_out(vote: &Vote) -> v1::Vote {
    let leader = v1::LeaderRef { term: vote.leader_id.term, member: vote.leader_id.voted_for };
    v1::Vote { leader: Some(leader), committed: vote.committed }
}

pub(super) fn vote_in(vote: v1::Vote) -> io::Result<Vote> {
    let leader = vote.leader.ok_or_else(|| invalid("vote: no leader".to_owned()))?;
    Ok(match vote.committed {
        true => Vote::new_committed(leader.term, leader.member),
        false => Vote::new(leader.term, leader.member),
    })
}

pub(crate) fn vote_bytes(vote: &Vote) -> Vec<u8> {
    vote_out(vote).encode_to_vec()
}

pub(crate) fn vote_from(bytes: &[u8]) -> io::Result<Vote> {
    vote_in(v1::Vote::decode(bytes).map_err(|e| invalid(format!("vote: {e}")))?)
}

/// What state rows stand for: the last applied entry and the membership as of then.
pub(crate) fn header_out(meta: &SnapshotMeta, rows: u64) -> v1::SnapshotHeader {
    v1::SnapshotHeader {
        format: SNAPSHOT_FORMAT,
        last: meta.last_log_id.as_ref().map(log_out),
        membership: Some(v1::StoredMembership {
            log: meta.last_membership.log_id().as_ref().map(log_out),
            membership: Some(membership_out(meta.last_membership.membership())),
        }),
        rows,
    }
}

pub(crate) fn header_in(header: v1::SnapshotHeader) -> io::Result<SnapshotMeta> {
    if header.format != SNAPSHOT_FORMAT {
        return Err(invalid(format!(
            "a snapshot has format {}, this keyhole knows format {SNAPSHOT_FORMAT}",
            header.format
        )));
    }
    let stored = header.membership.unwrap_or_default();
    let membership = membership_in(stored.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: header.last.as_ref().map(log_in),
        last_membership: StoredMembership::new(stored.log.as_ref().map(log_in), membership),
    })
}

pub(crate) fn meta_bytes(meta: &SnapshotMeta) -> Vec<u8> {
    header_out(meta, 0).encode_to_vec()
}

pub(crate) fn meta_from(bytes: &[u8]) -> io::Result<SnapshotMeta> {
    let header = v1::SnapshotHeader::decode(bytes).map_err(|e| invalid(format!("applied: {e}")))?;
    header_in(header)
}

/// The key under which a row of the state is stored.
pub(crate) fn row_key_bytes(key: &RowKey) -> Vec<u8> {
    match key {
        RowKey::Cluster => "cluster".to_owned(),
        RowKey::Member(id) => format!("member/{id}"),
        RowKey::Secret(id) => format!("secret/{id}"),
        RowKey::Version(id, version) => format!("version/{id}/{}", version.get()),
        RowKey::Service(id) => format!("service/{id}"),
        RowKey::Task(id) => format!("task/{id}"),
        RowKey::Node(id) => format!("node/{id}"),
        RowKey::Operator(id) => format!("operator/{id}"),
    }
    .into_bytes()
}

pub(super) fn log_out(id: &LogId) -> v1::LogRef {
    let Position { term, index } = position(id);
    v1::LogRef { leader: Some(v1::LeaderRef { term, member: 0 }), index }
}

pub(super) fn log_in(log: &v1::LogRef) -> LogId {
    let term = log.leader.as_ref().map_or(0, |leader| leader.term);
    log_id(Position { term, index: log.index })
}

fn membership_out(membership: &Membership) -> v1::Membership {
    let set = |members: &std::collections::BTreeSet<u64>| v1::MemberSet {
        members: members.iter().copied().collect(),
    };
    let node = |(id, peer): (&u64, &Peer)| {
        (*id, v1::RaftNode { address: peer.address.clone(), name: peer.name.clone() })
    };
    v1::Membership {
        voters: membership.get_joint_config().iter().map(set).collect(),
        nodes: membership.nodes().map(node).collect(),
    }
}

fn membership_in(membership: v1::Membership) -> io::Result<Membership> {
    let voters: Vec<_> =
        membership.voters.into_iter().map(|set| set.members.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Peer> = membership
        .nodes
        .into_iter()
        .map(|(id, node)| (id, Peer { address: node.address, name: node.name }))
        .collect();
    if voters.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, nodes).map_err(|e| invalid(format!("membership: {e}")))
}

pub(crate) fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyhole_domain::{NodeId, Timestamp};
    use keyhole_state::{Actor, Envelope};

    fn membership() -> Membership {
        let peer = |n: u64| Peer { address: format!("10.0.0.{n}:7000"), name: format!("m{n}") };
        let sets = vec![[1, 2].into(), [2, 3].into()];
        Membership::new(sets, (1..=4).map(|n| (n, peer(n))).collect::<BTreeMap<_, _>>()).unwrap()
    }

    /// The rule of CHANGELOG, managers have to be updated before a new command is used, where it was not followed.
    #[test]
    fn what_a_newer_keyhole_wrote_is_named_by_its_number_and_by_this_version() {
        let log = v1::LogRef { leader: Some(v1::LeaderRef { term: 1, member: 1 }), index: 7 };
        let at = position(&log_in(&log));
        let entry = v1::LogEntry { log: Some(log), payload: None, proposal: 5 }.encode_to_vec();
        let actor = v1::Actor { who: Some(v1::actor::Who::Manager(1)) };
        let mut command =
            v1::Envelope { at: 3, actor: Some(actor), via: 1, command: None }.encode_to_vec();
        prost::encoding::string::encode(99, &"new".to_owned(), &mut command);
        let mut of_command = entry.clone();
        prost::encoding::bytes::encode(3, &command, &mut of_command);
        let mut of_entry = entry;
        prost::encoding::bytes::encode(77, &b"new".to_vec(), &mut of_entry);
        let mut row = Vec::new();
        prost::encoding::string::encode(88, &"new".to_owned(), &mut row);
        let said = |bytes: Vec<u8>| entry_from(at, bytes.into()).unwrap_err().to_string();
        for (said, place, kind) in [
            (said(of_command), "log entry 7: field command:", "kind 99"),
            (said(of_entry), "log entry 7: field payload:", "kind 77"),
            (crate::codec::row_from_bytes(&row).unwrap_err().to_string(), "field row:", "kind 88"),
        ] {
            assert!(said.contains(place) && said.contains(kind), "{said}");
            assert!(said.contains(concat!("keyhole ", env!("CARGO_PKG_VERSION"))), "{said}");
        }
    }

    #[test]
    fn votes_entries_and_headers_come_back_as_they_were() {
        for vote in [Vote::new(3, 2), Vote::new_committed(4, 1)] {
            assert_eq!(vote_from(&vote_bytes(&vote)).unwrap(), vote);
        }
        let at = Position { term: 3, index: 9 };
        let actor = Actor::Manager(2);
        let command = keyhole_state::Command::RemoveOperator { id: NodeId::from_entropy([4; 16]) };
        let envelope = Arc::new(Envelope { at: Timestamp(5), actor, via: 1, command });
        let command = EntryPayload::Normal(Command { envelope, proposal: u64::MAX });
        for payload in [EntryPayload::Blank, command, EntryPayload::Membership(membership())] {
            let entry = Entry { log_id: log_id(at), payload };
            assert_eq!(entry_from(at, entry_bytes(&entry).into()).unwrap(), entry);
            let elsewhere = Position { term: 3, index: 8 };
            assert!(entry_from(elsewhere, entry_bytes(&entry).into()).is_err());
        }
        for meta in [
            SnapshotMeta::default(),
            SnapshotMeta {
                last_log_id: Some(log_id(at)),
                last_membership: StoredMembership::new(Some(log_id(at)), membership()),
            },
        ] {
            assert_eq!(meta_from(&meta_bytes(&meta)).unwrap(), meta);
        }
    }

    #[test]
    fn a_newer_format_is_an_error() {
        let newer = v1::SnapshotHeader { format: 2, ..Default::default() };
        assert!(header_in(newer).unwrap_err().to_string().contains("format 2"));
        let at = Position { term: 1, index: 1 };
        let unknown = v1::LogEntry { log: Some(log_out(&log_id(at))), payload: None, proposal: 0 };
        assert!(entry_from(at, unknown.encode_to_vec().into()).is_err());
    }
}
