//! The system's clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use keyhole_domain::Timestamp;

/// Nanoseconds since 1970; a clock before that reads as 1970.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.as_nanos());
    Timestamp(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    now().0 / 1_000_000_000
}
