//! Where a command writes, and what it takes for the time: the process's own streams, or a test's.
//!
//! `println!` is never used: it panics when the reader has left. Colours and progress are for terminals only, and
//! colours only for those that want them (`NO_COLOR`, `TERM=dumb`).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;
use crate::render::time;

/// How failures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// `keyhole: what went wrong`
    #[default]
    Text,
    /// `{"code":"NOT_FOUND","error":"what went wrong","exit":1,"name":"db"}`, a line each; warnings too
    Json,
}

/// A command's two streams and its clock.
pub(crate) struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    terminal: bool,
    colours: bool,
    now: fn() -> u64,
    /// How failures are written.
    pub(crate) output: Output,
}

impl Console {
    /// The process's own.
    pub(crate) fn process() -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            terminal: io::stderr().is_terminal(),
            colours: colours(&io::stderr()),
            now: time::now,
            output: Output::Text,
        }
    }

    /// A test's.
    #[cfg(test)]
    pub(crate) fn of(out: Box<dyn Write>, err: Box<dyn Write>, now: fn() -> u64) -> Self {
        Self { out, err, terminal: false, colours: false, now, output: Output::Text }
    }

    /// Nanoseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        (self.now)()
    }

    /// Writes text as it is to standard output.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Writes a line to standard output.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.print(&format!("{text}\n"))
    }

    /// Warns on standard error.
    pub(crate) fn warn(&mut self, text: &str) {
        let text = crate::render::printable(text);
        let line = match self.output {
            Output::Text => {
                format!("{}: {}: {text}", self.bold("keyhole"), self.painted(YELLOW, "warning"))
            }
            Output::Json => serde_json::json!({ "warning": text }).to_string(),
        };
        // Who closes standard error does not want to be warned.
        let _ = writeln!(self.err, "{line}");
    }

    /// Says what is waited for, in place; on a terminal only.
    pub(crate) fn progress(&mut self, text: &str) {
        if self.terminal {
            let text = crate::render::printable(text);
            let _ = write!(self.err, "\r\x1b[K{text}");
            let _ = self.err.flush();
        }
    }

    /// A question at a terminal, answered on the same line.
    pub(crate) fn ask(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes());
        let _ = self.err.flush();
    }

    /// A line for people at a terminal.
    pub(crate) fn hint(&mut self, text: &str) {
        if self.terminal {
            let _ = writeln!(self.err, "{text}");
        }
    }

    /// Awaits `work`; on a terminal, says after a moment what is waited for, and for how long already.
    pub(crate) async fn while_waiting<T>(
        &mut self,
        what: &str,
        work: impl Future<Output = T>,
    ) -> T {
        if !self.terminal {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        let began = Instant::now();
        let mut ticks = tokio::time::interval_at(began + PATIENCE, PATIENCE);
        let mut told = false;
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = ticks.tick() => {
                    told = true;
                    self.progress(&format!("waiting for {what} ({} s)", began.elapsed().as_secs()));
                }
            }
        };
        if told {
            self.progress("");
        }
        done
    }

    /// Reports a failure in one line; `exit` is the code that the program ends with for it.
    pub(crate) fn report(&mut self, failure: &Failure, exit: u8) {
        if !failure.has_message() {
            return;
        }
        let line = match self.output {
            Output::Text => format!("{}: {failure}", self.painted(RED, "keyhole")),
            Output::Json => failure.json(exit).to_string(),
        };
        let _ = writeln!(self.err, "{line}");
    }

    fn bold(&self, text: &str) -> String {
        self.painted(BOLD, text)
    }

    fn painted(&self, code: &str, text: &str) -> String {
        match self.colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

const BOLD: &str = "1";
const RED: &str = "1;31";
const YELLOW: &str = "33";

/// After this time, and again each time, a wait is told.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a stream shows colours, and its reader has not said otherwise.
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    let said = |name: &str| std::env::var_os(name).unwrap_or_default();
    stream.is_terminal() && said("NO_COLOR").is_empty() && said("TERM") != "dumb"
}
