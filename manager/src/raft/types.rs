//! The types that openraft is instantiated with.
//!
//! Depends on openraft and the pure state. Invariant: standard Raft, one leader a term, so that a log position is
//! (term, index).
use crate::store::Position;
use keyhole_state::{Applied, Envelope, Rejected};
use openraft::alias::{
    CommittedLeaderIdOf, EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf,
};
use std::fmt;
use std::sync::Arc;

/// A manager as its peers know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// Where it is reached, `host:port`.
    pub address: String,
    /// The id in its certificate.
    pub name: String,
}

/// A command in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The command.
    pub envelope: Arc<Envelope>,
    /// By this its proposer knows it again, if the answer is lost on the way; random, 0: nobody asks.
    pub proposal: u64,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("command")
    }
}

/// What applying a command gave.
pub(crate) type Answer = Result<Applied, Rejected>;
/// What applying an entry gave; `None` for entries that are no commands.
pub type Response = Option<Result<Applied, Rejected>>;

openraft::declare_raft_types!(
    /// Keyhole's choice of openraft's parameters.
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = Peer,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Entry = EntryOf<TypeConfig>;
/// A vote.
pub type Vote = VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

pub(crate) fn log_id(position: Position) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(position.term), position.index)
}

pub(crate) fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, index: id.index }
}
