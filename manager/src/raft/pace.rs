//! How long another manager may take, by what a call carries.
//!
//! Depends on nothing else here. Invariant: what goes on over the slowest line that is borne is not given up, however large
//! it is; what stands still is.
use futures::{Stream, StreamExt, stream};
use prost::Message;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// What the slowest line carries in a second. On it, what HTTP/2 lets be on its way (1 MiB) takes four seconds, which the
/// keepalive's question behind it still bears.
const SLOWEST: usize = 256 << 10;
/// How long a snapshot may stand still: its parts, of a MiB or two, are on their way for less.
const RESTING: Duration = Duration::from_secs(30);

/// How long a call may take that carries so many bytes, and `base` without them.
pub(super) fn carrying(base: Duration, bytes: usize) -> Duration {
    base + Duration::from_secs(bytes.div_ceil(SLOWEST) as u64)
}

/// Ends after this time.
pub(super) async fn after(within: Duration) -> Duration {
    sleep(within).await;
    within
}

/// What was taken of a snapshot.
#[derive(Default)]
struct Taken {
    bytes: usize,
    all: bool,
}

impl Taken {
    fn take(&mut self, part: Option<&impl Message>) {
        match part {
            Some(part) => self.bytes += part.encoded_len(),
            None => self.all = true,
        }
    }

    /// Once all of it is taken it has to arrive, and to be installed.
    fn may_rest(&self) -> Duration {
        carrying(RESTING, if self.all { self.bytes } else { 0 })
    }
}

/// The parts of a snapshot, and what ends when nothing became of them for long: none was taken, or all were.
pub(super) fn watched<P: Message>(
    parts: impl Stream<Item = P>,
) -> (impl Stream<Item = P>, impl Future<Output = Duration>) {
    let taken = Arc::new(watch::Sender::new(Taken::default()));
    let tell = taken.clone();
    let parts = parts.map(Some).chain(stream::once(ready(None))).filter_map(move |part| {
        tell.send_modify(|taken| taken.take(part.as_ref()));
        ready(part)
    });
    let standstill = async move {
        let mut told = taken.subscribe();
        loop {
            let rest = told.borrow_and_update().may_rest();
            if timeout(rest, told.changed()).await.is_err() {
                return rest;
            }
        }
    };
    (parts, standstill)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::time::Instant;

    /// So many parts of a MiB, one after another.
    fn parts(count: usize, each: Duration) -> impl Stream<Item = Vec<u8>> {
        stream::iter(0..count).then(move |_| sleep(each).map(|()| vec![0; 1 << 20]))
    }

    #[test]
    fn a_call_may_take_as_long_as_the_slowest_line_needs_for_it() {
        let base = Duration::from_secs(2);
        assert_eq!(carrying(base, 0), base);
        assert_eq!(carrying(base, 1), Duration::from_secs(3));
        assert_eq!(carrying(base, 16 << 20), Duration::from_secs(66));
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_takes_as_long_as_it_goes_on() {
        let (parts, standstill) = watched(parts(100, RESTING - Duration::from_secs(1)));
        tokio::select! {
            count = parts.count() => assert_eq!(count, 100),
            rested = standstill => panic!("given up after {rested:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_stands_still_is_given_up() {
        let began = Instant::now();
        let some = parts(3, Duration::from_secs(1)).chain(stream::pending());
        let (parts, standstill) = watched(some);
        tokio::select! {
            count = parts.count() => panic!("all {count} parts"),
            rested = standstill => assert_eq!(rested, RESTING),
        }
        assert_eq!(began.elapsed().as_secs(), 3 + RESTING.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_installed_in_the_time_that_its_size_takes() {
        let (parts, standstill) = watched(parts(8, Duration::ZERO));
        assert_eq!(parts.count().await, 8);
        // A part is a little more than a MiB, so that they take a second more.
        assert_eq!(standstill.await, RESTING + Duration::from_secs(8 * 4 + 1));
    }
}
