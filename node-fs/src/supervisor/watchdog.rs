//! When a worker counts as stuck. Pure: the caller brings time and numbers.
//!
//! A stuck worker hangs its callers for ever, beyond the reach of SIGKILL; a killed one hands
//! its requests to the next. So in doubt it is killed.

use std::fmt;
use std::time::{Duration, Instant};

use crate::meter::Reading;

/// A request may be on a service thread this long.
const LIMIT: Duration = Duration::from_secs(10);
/// A worker may take this long until its first heartbeat.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Why a worker is to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// It never reported anything.
    Silent,
    /// Its heartbeat stopped.
    NoHeartbeat,
    /// One request is on a service thread for too long.
    OldRequest,
    /// Requests wait in the kernel and none gets answered.
    NoProgress,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "it did not report within 60 s of its start",
            Self::NoHeartbeat => "no heartbeat for 10 s",
            Self::OldRequest => "a request is being served for more than 10 s",
            Self::NoProgress => "requests are waiting and none was answered for 10 s",
        })
    }
}

/// What is known of one worker's progress.
#[derive(Debug)]
pub(super) struct Watchdog {
    started: Instant,
    heartbeat: Option<Instant>,
    reading: Reading,
    progress: Instant,
}

impl Watchdog {
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, heartbeat: None, reading: Reading::default(), progress: now }
    }

    /// Takes note of a heartbeat.
    pub(super) fn alive(&mut self, reading: Reading, now: Instant) {
        if reading.completed != self.reading.completed {
            self.progress = now;
        }
        self.reading = reading;
        self.heartbeat = Some(now);
    }

    /// Whether the worker is stuck, after all heartbeats until `now` were noted. `waiting` is how
    /// many requests the kernel has waiting for an answer.
    pub(super) fn judge(&mut self, waiting: u64, now: Instant) -> Option<Stuck> {
        let Some(heartbeat) = self.heartbeat else {
            return (now.duration_since(self.started) > START_LIMIT).then_some(Stuck::Silent);
        };
        if waiting <= self.reading.held {
            self.progress = now;
        }
        if now.duration_since(heartbeat) > LIMIT {
            Some(Stuck::NoHeartbeat)
        } else if self.reading.oldest > LIMIT {
            Some(Stuck::OldRequest)
        } else if now.duration_since(self.progress) > LIMIT {
            Some(Stuck::NoProgress)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: u64 = 0;
    const BUSY: u64 = 3;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn reading(completed: u64, held: u64, oldest: u64) -> Reading {
        Reading { completed, held, oldest: seconds(oldest) }
    }

    #[test]
    fn a_worker_that_stops_beating_is_stuck_and_a_starting_one_gets_longer() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start);
        assert_eq!(dog.judge(BUSY, start + seconds(59)), None);
        assert_eq!(dog.judge(IDLE, start + seconds(61)), Some(Stuck::Silent));
        dog.alive(Reading::default(), start + seconds(61));
        assert_eq!(dog.judge(IDLE, start + seconds(70)), None);
        assert_eq!(dog.judge(IDLE, start + seconds(72)), Some(Stuck::NoHeartbeat));
    }

    #[test]
    fn one_old_request_is_enough_although_others_get_through() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start);
        dog.alive(reading(5, 0, 9), start);
        assert_eq!(dog.judge(BUSY, start), None);
        dog.alive(reading(50, 0, 11), start + seconds(1));
        assert_eq!(dog.judge(BUSY, start + seconds(1)), Some(Stuck::OldRequest));
    }

    #[test]
    fn waiting_requests_without_any_progress_are_noticed_and_held_ones_are_not() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start);
        for second in 0..=10 {
            dog.alive(reading(5, 0, 0), start + seconds(second));
            assert_eq!(dog.judge(BUSY, start + seconds(second)), None);
        }
        dog.alive(reading(5, 0, 0), start + seconds(11));
        assert_eq!(dog.judge(BUSY, start + seconds(11)), Some(Stuck::NoProgress));

        let mut dog = Watchdog::new(start);
        for second in 0..60 {
            dog.alive(reading(5, 3, 0), start + seconds(second));
            assert_eq!(dog.judge(BUSY, start + seconds(second)), None, "held on purpose");
        }
        let mut dog = Watchdog::new(start);
        for second in 0..60 {
            dog.alive(reading(second, 0, 0), start + seconds(second));
            assert_eq!(dog.judge(BUSY, start + seconds(second)), None, "others get through");
        }
    }
}
