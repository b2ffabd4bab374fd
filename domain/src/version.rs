//! Versions of a secret, revisions of the state, and times.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// A version of one secret: 1, 2, 3…; never reused, also not after a rollback.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(NonZeroU64);

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("version {text:?} is not a whole number from 1 up")]
pub struct VersionError {
    text: String,
}

impl Version {
    /// The version that `create` makes.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// A version from its number; zero is none.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The version after this one; saturates at the (unreachable) end.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number
            .and_then(Self::new)
            .ok_or_else(|| VersionError { text: text.chars().take(32).collect() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A point in the cluster's history: ordered by incarnation, then by log index.
///
/// A restore raises the incarnation, so that a node never takes an older history for a newer one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Revision {
    /// Which history of the cluster: 1, or the second since 1970 in which it was restored or forced to go on alone, and
    /// always more than before; 0 only in "nothing seen yet".
    pub incarnation: u64,
    /// The log index of the last change.
    pub index: u64,
}

impl Revision {
    /// Whether a node that has seen `seen` may show this: it is of some history, and not older.
    #[must_use]
    pub fn may_follow(self, seen: Self) -> bool {
        self.incarnation > 0 && self >= seen
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.index)
    }
}

/// Nanoseconds since 1970-01-01 UTC, as the proposing manager's clock said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_back_in_no_history() {
        let at = |incarnation, index| Revision { incarnation, index };
        assert!(at(1, 7).may_follow(at(1, 7)) && at(1, 8).may_follow(at(1, 7)));
        assert!(at(2, 1).may_follow(at(1, 7)), "a restore begins another history");
        assert!(!at(1, 6).may_follow(at(1, 7)) && !at(1, 9).may_follow(at(2, 1)));
        assert!(!at(0, 9).may_follow(Revision::default()), "of no history");
    }

    #[test]
    fn versions_start_at_one() {
        assert_eq!("1".parse::<Version>().unwrap(), Version::FIRST);
        assert_eq!(Version::FIRST.next().get(), 2);
        for text in ["", "0", "-1", "+1", "v1", "1.0", "99999999999999999999"] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_restored_history_is_newer() {
        let old = Revision { incarnation: 1, index: 900 };
        let restored = Revision { incarnation: 2, index: 5 };
        assert!(restored > old);
    }
}
