//! A dev and whoever started it: signals, and what to type next.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::Instant;

use super::place::Place;
use crate::failure::Failure;

/// How long a command that was asked to end may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Above the hint, for the shell.
pub(super) const SHELL: &str = "This shell is a task of the service 'dev', with a manager and a node of its own; when it ends, they end.\n";
/// In the hint, for the shell.
pub(super) const OWN: &str =
    "  keyhole service update dev --secret-add db_password        (now this shell finds it, too)\n";
/// Above the hint, when there is neither shell nor command.
pub(super) const SERVING: &str =
    "A manager and a node serve until Ctrl-C; then nothing of them is left.\n";

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ctrl-C or Ctrl-\.
    Interrupt(Signal),
    /// SIGTERM, or the terminal is gone.
    End(Signal),
    /// Patience is over.
    Now,
}

impl Asked {
    /// As shells say that a signal ended a command.
    pub(super) fn exit_code(self) -> u8 {
        let signal = match self {
            Self::Interrupt(signal) | Self::End(signal) => signal,
            Self::Now => Signal::KILL,
        };
        u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
    }
}

/// The signals that no longer end this process by themselves.
pub(super) struct Signals {
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    pub(super) fn take() -> Result<Self, Failure> {
        let take = |kind| {
            unix::signal(kind)
                .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))
        };
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            quit: take(SignalKind::quit())?,
            terminate: take(SignalKind::terminate())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt(Signal::INT),
            _ = self.quit.recv() => Asked::Interrupt(Signal::QUIT),
            _ = self.terminate.recv() => Asked::End(Signal::TERM),
            _ = self.hangup.recv() => Asked::End(Signal::HUP),
        }
    }
}

/// Whether a terminal or a supervisor sends that signal to a whole process group: one of [`Signals`].
pub(super) fn ends_a_group(signal: i32) -> bool {
    [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP].map(Signal::as_raw).contains(&signal)
}

/// When patience is over, from now.
pub(super) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// Until then; for ever without one.
pub(super) async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What to type next, with `more` for the shell.
pub(super) fn hint(place: &Place, more: &str) -> String {
    let exports = place.environment().map(|(name, value)| format!("{name}={}", quoted(&value)));
    let (mount, exports) = (place.mount(), exports.join(" "));
    format!(
        "Tasks find their secrets in {}. Try:\n\n  \
         printf 'correct horse' | keyhole secret create db_password -\n  \
         keyhole service create web --secret source=db_password,target=db/password\n  \
         keyhole run --service web -- cat {}/db/password\n  \
         printf 'battery staple' | keyhole secret rotate db_password - --wait\n{more}\n\
         In another terminal, first:\n\n  \
         export {exports}\n",
        mount.display(),
        quoted(mount),
    )
}

/// As a shell takes it for one word.
fn quoted(path: impl AsRef<Path>) -> String {
    let text = path.as_ref().display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_safe_to_paste() {
        assert_eq!(quoted("unix:///run/x-1/a.sock"), "unix:///run/x-1/a.sock");
        assert_eq!(quoted("/a b/$(c)'"), r"'/a b/$(c)'\'''");
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Asked::Interrupt(Signal::INT).exit_code(), 130);
        assert_eq!(Asked::End(Signal::TERM).exit_code(), 143);
        assert_eq!(Asked::Now.exit_code(), 137);
    }
}
