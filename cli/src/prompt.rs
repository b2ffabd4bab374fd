//! Asking at a terminal for what must not be seen. Invariant: the answer goes straight into locked memory, and the
//! terminal shows what is typed again afterwards.

use std::io;

use keyhole_secmem::SecretBytes;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::console::Console;
use crate::failure::Failure;

/// One line of at most so many bytes from the terminal at standard input, which does not show it.
pub(crate) fn hidden_line(
    console: &mut Console,
    question: &str,
    limit: usize,
) -> Result<SecretBytes, Failure> {
    let odd = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot ask at the terminal: {error}; give it on standard input"))
    };
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin).map_err(|e| odd(&e))?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    let mut line = SecretBytes::zeroed(limit).map_err(|e| odd(&e))?;
    tcsetattr(&stdin, OptionalActions::Drain, &hidden).map_err(|e| odd(&e))?;
    // Whoever answers as soon as he is asked is not shown either.
    console.ask(question);
    let read = rustix::io::read(&stdin, line.as_mut_slice());
    tcsetattr(&stdin, OptionalActions::Now, &shown).map_err(|e| odd(&e))?;
    console.ask("\n");
    line.truncate(read.map_err(|e| odd(&e))?);
    Ok(line)
}
