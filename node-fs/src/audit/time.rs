//! Times as RFC 3339 writes them, in UTC.

use keyhole_domain::Timestamp;

/// `2026-08-01T12:34:56.789012Z`.
pub(super) fn rfc3339(at: Timestamp) -> String {
    let (seconds, micros) = (at.0 / 1_000_000_000, at.0 / 1000 % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted
/// from March, so that the leap day is the last one of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days.min(day_of_era)) / 365;
    let first_of_year = 365 * year_of_era + year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - first_of_year;
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_798_761_600, "2027-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(Timestamp(seconds * 1_000_000_000)), text);
        }
        assert_eq!(rfc3339(Timestamp(1_234_567_999)), "1970-01-01T00:00:01.234567Z");
    }

    #[test]
    fn days_follow_each_other() {
        let mut before = civil(0);
        for days in 1..200_000 {
            let now = civil(days);
            assert!(now > before && now.2 <= 31 && (1..=12).contains(&now.1), "{now:?}");
            assert!(now.2 == before.2 + 1 || now.2 == 1, "{before:?} {now:?}");
            before = now;
        }
    }
}
