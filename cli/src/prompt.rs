//! Asking at a terminal for what must not be seen. Invariant: the answer goes straight into locked memory, and the
//! terminal shows what is typed again afterwards, also when Ctrl-C ended the asking.

use std::io;

use keyhole_secmem::SecretBytes;
use rustix::process::{Signal, kill_current_process_group};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

use crate::console::Console;
use crate::failure::Failure;

/// The keys that end a program (Ctrl-C, Ctrl-\), and what may stand for the end of a line.
const ENDING: [(SpecialCodeIndex, SpecialCodeIndex, Signal); 2] = [
    (SpecialCodeIndex::VINTR, SpecialCodeIndex::VEOL, Signal::INT),
    (SpecialCodeIndex::VQUIT, SpecialCodeIndex::VEOL2, Signal::QUIT),
];

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
    let mut line = SecretBytes::zeroed(limit).map_err(|e| odd(&e))?;
    tcsetattr(&stdin, OptionalActions::Drain, &hidden(&shown)).map_err(|e| odd(&e))?;
    // Whoever answers as soon as he is asked is not shown either.
    console.ask(question);
    let read = rustix::io::read(&stdin, line.as_mut_slice());
    tcsetattr(&stdin, OptionalActions::Now, &shown).map_err(|e| odd(&e))?;
    console.ask("\n");
    line.truncate(read.map_err(|e| odd(&e))?);
    match ended_by(&shown, &line) {
        Some(signal) => {
            // As the terminal does it: a script that runs this ends, too.
            kill_current_process_group(signal).map_err(|e| odd(&e))?;
            Err(Failure::new("no answer was given; nothing was done"))
        }
        None => Ok(line),
    }
}

/// Shows nothing that is typed. A signal would end this process before it could undo that, so the keys that send one end
/// the line.
fn hidden(shown: &Termios) -> Termios {
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    for (key, end, _) in ENDING {
        hidden.special_codes[end] = shown.special_codes[key];
    }
    hidden
}

/// The signal of the key that ended the line, if it was one of those.
fn ended_by(shown: &Termios, line: &SecretBytes) -> Option<Signal> {
    let last = *line.as_slice().last()?;
    let ending =
        ENDING.into_iter().find(|(key, ..)| last != 0 && shown.special_codes[*key] == last);
    ending.map(|(.., signal)| signal)
}
