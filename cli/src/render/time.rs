//! Times: RFC 3339 where they are exact, Docker's "2 minutes ago" where people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970 as RFC 3339 with nanoseconds, in UTC.
pub(crate) fn rfc3339(nanos: u64) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// How long `then` lies before `now`: "2 minutes ago". A time to come counts as just now.
pub(crate) fn ago(then: u64, now: u64) -> String {
    format!("{} ago", duration(now.saturating_sub(then) / 1_000_000_000))
}

/// How long from `now` to `then`: "in 3 hours", or "expired".
pub(crate) fn until(then: u64, now: u64) -> String {
    match then.checked_sub(now) {
        Some(left) => format!("in {}", duration(left / 1_000_000_000)),
        None => format!("{} ago", duration((now - then) / 1_000_000_000)),
    }
}

/// Docker's words for a time of that many seconds.
pub(crate) fn duration(seconds: u64) -> String {
    let minutes = seconds / 60;
    // Rounded to the nearest hour, as go-units does.
    let hours = (seconds + 1_800) / 3_600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3_600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_dockers() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (2 * 3_600, "2 hours"),
            (47 * 3_600, "47 hours"),
            (48 * 3_600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (730 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_is_no_mistake() {
        assert_eq!(ago(2_000_000_000, 1_000_000_000), "Less than a second ago");
        assert_eq!(ago(0, 120_000_000_000), "2 minutes ago");
        assert_eq!(until(120_000_000_000, 0), "in 2 minutes");
        assert_eq!(until(0, 120_000_000_000), "2 minutes ago");
    }

    #[test]
    fn exact_times_have_nanoseconds_and_a_z() {
        assert_eq!(rfc3339(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
    }
}
