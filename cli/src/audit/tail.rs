//! `audit tail`: the last lines, and those to come, from file to file.
//!
//! It looks every 200 ms whether there is more: that works on every file system, and costs a `stat` each time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::{Place, unreadable};
use crate::console::Console;
use crate::failure::Failure;

const LOOK: Duration = Duration::from_millis(200);

/// `tail`
#[derive(Debug, Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    place: Place,
    /// Go on printing lines as they come, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
    lines: usize,
}

/// The file that is read.
struct Reading {
    number: u32,
    file: File,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
}

impl Tail {
    /// Does it.
    pub(super) async fn run(self, console: &mut Console) -> Result<(), Failure> {
        let mut last = VecDeque::new();
        let mut newest = None;
        for (number, path) in self.place.files()?.iter().rev() {
            let mut reading = Reading::open(*number, path)?;
            let text = reading.more(path)?;
            let missing = self.lines - last.len();
            for line in text.lines().rev().take(missing) {
                last.push_front(line.to_owned());
            }
            newest.get_or_insert(reading);
            if last.len() == self.lines {
                break;
            }
        }
        for line in last {
            console.line(&line)?;
        }
        match newest.filter(|_| self.follow) {
            Some(reading) => self.follow(reading, console).await,
            None => Ok(()),
        }
    }

    async fn follow(&self, mut reading: Reading, console: &mut Console) -> Result<(), Failure> {
        loop {
            // The next file is begun when this one gets no more lines: who saw it reads this one to its end.
            let files = self.place.files()?;
            let current = self.place.data_dir.join("audit");
            let text = reading.more(&current)?;
            if !text.is_empty() {
                console.print(&text)?;
            }
            match files.iter().find(|(number, _)| *number > reading.number) {
                Some((number, path)) => reading = Reading::open(*number, path)?,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

impl Reading {
    fn open(number: u32, path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Self { number, file, rest: Vec::new() })
    }

    /// The whole lines that came since the last time.
    fn more(&mut self, path: &Path) -> Result<String, Failure> {
        self.file.read_to_end(&mut self.rest).map_err(|error| unreadable(path, &error))?;
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..end).collect();
        Ok(String::from_utf8_lossy(&lines).into_owned())
    }
}
