//! What lies where in `store.redb`: tables, the plain header, the sealed tip.
//!
//! Depends on redb and prost's derive. Invariant: only the header is readable without the key; everything that counts or
//! names something is in sealed rows.
use prost::Message;
use redb::TableDefinition;

/// The newest format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Two rows: [`HEADER`] in clear, [`TIP`] sealed.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Log index -> sealed entry.
pub(crate) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Keyed hash of a row's key -> sealed key and value: the mirrored state.
pub(crate) const ROWS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("rows");
/// Keyed hash of a name -> sealed name and secret: what belongs to this member only.
pub(crate) const LOCALS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("locals");

/// Key of the header in [`META`].
pub(crate) const HEADER: &str = "header";
/// Key of the tip in [`META`].
pub(crate) const TIP: &str = "tip";

/// The place of an entry in the Raft log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct Position {
    /// The term of the leader that wrote the entry.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// The index in the log.
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

/// Whose store this is. Bound into every sealed row.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct StoreIdentity {
    /// The cluster's id.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// The manager's id (its certificate's common name).
    #[prost(string, tag = "2")]
    pub manager: String,
    /// The Raft member number, never reused in a cluster.
    #[prost(uint64, tag = "3")]
    pub member: u64,
}

/// The one row in clear. Tag 1 stays the format in every future version.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Header {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(message, required, tag = "2")]
    pub(crate) identity: StoreIdentity,
    /// The store's key, wrapped by the key-encryption key.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) wrapped_dek: Vec<u8>,
    /// Whether the operators' unlock key wraps it, and no key file.
    #[prost(bool, tag = "4")]
    pub(crate) locked: bool,
}

/// What one commit left behind; written in every transaction, so that it always fits the other tables.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Tip {
    /// Counts commits; never goes back.
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    /// Index of the first log row, when there is one.
    #[prost(uint64, tag = "2")]
    pub(crate) log_first: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) log_len: u64,
    #[prost(message, optional, tag = "4")]
    pub(crate) purged: Option<Position>,
    #[prost(uint64, tag = "5")]
    pub(crate) rows: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) locals: u64,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub(crate) vote: Option<Vec<u8>>,
    #[prost(message, optional, tag = "8")]
    pub(crate) committed: Option<Position>,
    /// The applied position and membership that the state rows stand for, as the caller encoded them.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub(crate) applied: Option<Vec<u8>>,
    /// The demand for new keys that this file was written for.
    #[prost(uint64, tag = "10")]
    pub(crate) key_number: u64,
}

impl Tip {
    /// The index that the next appended entry must have, once there is or was any.
    pub(crate) fn next_index(&self) -> Option<u64> {
        match (self.log_len, self.purged) {
            (0, None) => None,
            (0, Some(purged)) => Some(purged.index + 1),
            (len, _) => Some(self.log_first + len),
        }
    }

    /// Forgets the entries after `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<u64>) {
        let end = last.map_or(0, |index| index + 1);
        self.log_len = end.saturating_sub(self.log_first).min(self.log_len);
    }

    /// Forgets the entries up to `upto`, inclusive.
    pub(crate) fn purge(&mut self, upto: Position) {
        let end = self.log_first + self.log_len;
        let first = upto.index + 1;
        if first > self.log_first {
            self.log_len = end.saturating_sub(first);
            self.log_first = first;
        }
        self.purged = self.purged.max(Some(upto));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip(first: u64, len: u64) -> Tip {
        Tip { log_first: first, log_len: len, ..Tip::default() }
    }

    #[test]
    fn truncation_and_purge_keep_the_bounds() {
        let mut t = tip(3, 5); // 3..=7
        t.truncate_after(Some(5));
        assert_eq!((t.log_first, t.log_len), (3, 3));
        t.truncate_after(Some(9));
        assert_eq!(t.log_len, 3, "nothing after the end to forget");
        t.purge(Position { term: 1, index: 3 });
        assert_eq!((t.log_first, t.log_len, t.next_index()), (4, 2, Some(6)));
        t.purge(Position { term: 2, index: 9 });
        assert_eq!((t.log_first, t.log_len, t.next_index()), (10, 0, Some(10)));
        t.truncate_after(None);
        assert_eq!(t.log_len, 0);
        assert_eq!(tip(0, 0).next_index(), None);
    }
}
