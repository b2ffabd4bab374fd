//! How long to wait before the next attempt: 100 ms to 5 s, with jitter, so that nodes do not come back
//! all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The pauses between attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// After a success.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The next pause: half of it certain, half of it random.
    pub(super) fn next(&mut self) -> Duration {
        let mut random = [0];
        // Without randomness: the whole pause.
        let part = getrandom::fill(&mut random).map_or(255, |()| u32::from(random[0]));
        let pause = self.next / 2 + self.next * part / 510;
        self.next = (self.next * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_begin_again_after_a_success() {
        let mut backoff = Backoff::default();
        let within = |pause: Duration, whole: Duration| pause >= whole / 2 && pause <= whole;
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert!(within(backoff.next(), Duration::from_millis(whole)));
        }
        backoff.reset();
        assert!(within(backoff.next(), FIRST));
    }
}
