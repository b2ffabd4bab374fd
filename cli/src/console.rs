//! Where a command writes, and what it takes for the time: the process's own streams, or a test's.
//!
//! `println!` is never used: it panics when the reader has left.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;
use crate::render::time;

/// How failures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// `keyhole: what went wrong`
    #[default]
    Text,
    /// `{"error":"what went wrong","code":"NOT_FOUND"}`
    Json,
}

/// A command's two streams and its clock.
pub(crate) struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    terminal: bool,
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
            now: time::now,
            output: Output::Text,
        }
    }

    /// A test's.
    #[cfg(test)]
    pub(crate) fn of(out: Box<dyn Write>, err: Box<dyn Write>, now: fn() -> u64) -> Self {
        Self { out, err, terminal: false, now, output: Output::Text }
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
        // Who closes standard error does not want to be warned.
        let _ = writeln!(self.err, "keyhole: warning: {text}");
    }

    /// Says what is waited for, in place; on a terminal only.
    pub(crate) fn progress(&mut self, text: &str) {
        if self.terminal {
            let text = crate::render::printable(text);
            let _ = write!(self.err, "\r\x1b[K{text}");
            let _ = self.err.flush();
        }
    }

    /// A line for people at a terminal.
    pub(crate) fn hint(&mut self, text: &str) {
        if self.terminal {
            let _ = writeln!(self.err, "{text}");
        }
    }

    /// Reports a failure in one line.
    pub(crate) fn report(&mut self, failure: &Failure) {
        if !failure.has_message() {
            return;
        }
        let line = match self.output {
            Output::Text => format!("keyhole: {failure}"),
            Output::Json => {
                let code = failure.code();
                serde_json::json!({"error": failure.to_string(), "code": code}).to_string()
            }
        };
        let _ = writeln!(self.err, "{line}");
    }
}
