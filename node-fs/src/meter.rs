//! Measures whether the service threads get anywhere, for the worker's heartbeat.
//!
//! Depends on nothing. Invariant: metering never blocks a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// What happened to requests so far.
#[derive(Debug, Default)]
pub struct Meter {
    completed: AtomicU64,
    held: AtomicU64,
    in_service: Mutex<Vec<Option<Instant>>>,
}

/// One look at a [`Meter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Requests that a service thread has finished with.
    pub completed: u64,
    /// Requests that are waiting on purpose, without a service thread.
    pub held: u64,
    /// How long the oldest request has been on a service thread.
    pub oldest: Duration,
}

impl Meter {
    /// Notes that a service thread took a request; it has finished when the guard is dropped.
    pub fn serving(&self) -> Serving<'_> {
        let mut in_service = self.in_service.lock().unwrap_or_else(PoisonError::into_inner);
        let free = in_service.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            in_service.push(None);
            in_service.len() - 1
        });
        if let Some(entry) = in_service.get_mut(slot) {
            *entry = Some(Instant::now());
        }
        Serving { meter: self, slot }
    }

    /// Notes that a request waits on purpose until the guard is dropped.
    pub fn holding(self: &std::sync::Arc<Self>) -> Holding {
        self.held.fetch_add(1, Ordering::Relaxed);
        Holding(self.clone())
    }

    /// The numbers now.
    pub fn read(&self) -> Reading {
        let oldest = match self.in_service.try_lock() {
            Ok(in_service) => in_service.iter().flatten().min().map(Instant::elapsed),
            Err(TryLockError::Poisoned(in_service)) => {
                in_service.get_ref().iter().flatten().min().map(Instant::elapsed)
            }
            // Somebody is at it right now: that is progress.
            Err(TryLockError::WouldBlock) => None,
        };
        Reading {
            completed: self.completed.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            oldest: oldest.unwrap_or_default(),
        }
    }
}

/// A request on a service thread.
#[derive(Debug)]
pub struct Serving<'a> {
    meter: &'a Meter,
    slot: usize,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut in_service = self.meter.in_service.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = in_service.get_mut(self.slot) {
            *entry = None;
        }
        self.meter.completed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request that waits on purpose.
#[derive(Debug)]
pub struct Holding(std::sync::Arc<Meter>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_oldest_request_in_service_is_seen_and_finished_ones_are_counted() {
        let meter = Arc::new(Meter::default());
        assert_eq!(meter.read(), Reading::default());
        let stuck = meter.serving();
        drop(meter.serving());
        drop(meter.serving());
        let held = meter.holding();
        std::thread::sleep(Duration::from_millis(5));
        let reading = meter.read();
        assert_eq!((reading.completed, reading.held), (2, 1));
        assert!(reading.oldest >= Duration::from_millis(5));
        drop((stuck, held));
        assert_eq!(meter.read(), Reading { completed: 3, held: 0, oldest: Duration::ZERO });
    }
}
