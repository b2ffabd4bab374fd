//! Waiting for a condition that has no event of its own: asked again and again, until a deadline.

use std::time::{Duration, Instant};

/// Long enough for a busy machine; nothing that works comes near it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until there is an answer; `Err` says what is missing yet, and is shown when the deadline passes.
pub fn until<T>(what: &str, ask: impl FnMut() -> Result<T, String>) -> T {
    until_within(PATIENCE, what, ask)
}

/// As [`until`], with a deadline of one's own.
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(missing) if start.elapsed() > limit => {
                panic!("waited {:.1} s for {what}: {missing}", start.elapsed().as_secs_f32())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
