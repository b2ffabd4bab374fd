//! How soon a dead worker is replaced. Pure: the caller brings the time.
//!
//! At once, because readers wait; with pauses after many deaths in a short time, so that a worker
//! that dies at start does not take the machine; and never "not at all".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const MANY: usize = 10;
const SHORT_TIME: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// The recent deaths.
#[derive(Debug, Default)]
pub(super) struct Pace {
    deaths: VecDeque<Instant>,
}

impl Pace {
    /// How long to wait after a death at `now`.
    pub(super) fn after_death(&mut self, now: Instant) -> Duration {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|death| now.duration_since(*death) > SHORT_TIME) {
            self.deaths.pop_front();
        }
        if self.deaths.len() >= MANY { PAUSE } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_death_within_ten_seconds_brings_a_pause_until_they_are_past() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for death in 0..9 {
            let now = start + Duration::from_millis(100 * death);
            assert_eq!(pace.after_death(now), Duration::ZERO);
        }
        assert_eq!(pace.after_death(start + Duration::from_secs(1)), PAUSE);
        assert_eq!(pace.after_death(start + Duration::from_secs(2)), PAUSE);
        assert_eq!(pace.after_death(start + Duration::from_secs(30)), Duration::ZERO);
    }
}
