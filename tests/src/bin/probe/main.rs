//! A process that makes system calls on request: started in a task's cgroup, it shows what the task sees.
//!
//! Reads one `Ask` a line from stdin and writes one `Answer` a line to stdout, the first line being its pid. With
//! the arguments `slurp PATH` it writes the file to stdout instead (for tests of setuid programs). One thread, but
//! for `Ask::Threaded`.

mod calls;
mod raw;
mod state;

use std::io::{BufRead, Write};
use std::process::ExitCode;

use keyhole_tests::Answer;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => serve(),
        [verb, path] if verb == "slurp" => slurp(path),
        _ => {
            eprintln!("usage: probe [slurp PATH]");
            ExitCode::from(2)
        }
    }
}

fn slurp(path: &str) -> ExitCode {
    match std::fs::read(path).and_then(|bytes| std::io::stdout().write_all(&bytes)) {
        Ok(()) => ExitCode::SUCCESS,
        // The errno is the exit code: a parent needs no text.
        Err(error) => ExitCode::from(error.raw_os_error().map_or(255, |errno| errno as u8)),
    }
}

fn serve() -> ExitCode {
    let mut state = state::State::default();
    let mut stdout = std::io::stdout();
    if writeln!(stdout, "{}", std::process::id()).and_then(|()| stdout.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return ExitCode::FAILURE };
        let ask = serde_json::from_str(&line).expect("the harness writes what it reads");
        let answer = calls::perform(&mut state, ask).unwrap_or_else(Answer::Failed);
        let answer = serde_json::to_string(&answer).expect("an answer is plain data");
        if writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
