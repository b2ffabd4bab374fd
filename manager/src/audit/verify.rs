//! Finds what of an audit's files was changed, left out, put in or cut off.
//!
//! Depends on nothing but the bytes it is given. Invariant: a problem is told for the first place that shows it, and what
//! is whole after it is still seen to be whole.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use sha2::{Digest, Sha256};

use super::chain::{Chained, Head};
use super::file::file_name;
use super::line::{FORMAT, FileStart, OfItself, Unchained};

/// What the cluster was told of an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// The last line then.
    pub head: Head,
    /// When, in nanoseconds since 1970.
    pub at: u64,
}

/// Something that was found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file's name.
    pub file: String,
    /// The line in it, from 1 on; 0 is the file as a whole.
    pub line: u64,
    /// What it is.
    pub what: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Whose audit it is.
    pub manager: String,
    /// How many files were read.
    pub files: usize,
    /// How many lines of the chain they have.
    pub lines: u64,
    /// The last one.
    pub last: Head,
    /// How many of the noted heads are lines of it.
    pub matching: usize,
    /// The newest of those.
    pub newest: Option<Noted>,
    /// What is wrong.
    pub problems: Vec<Finding>,
    /// What looks odd and is not wrong.
    pub notes: Vec<Finding>,
}

/// Reads files, oldest first.
pub struct Verifier {
    /// What was noted, by manager; nothing to look at the chain alone.
    noted: Option<BTreeMap<String, Vec<Noted>>>,
    /// Whether the files are all that there are.
    all: bool,
    /// Of this manager, by line.
    heads: BTreeMap<u64, Noted>,
    first: Option<u64>,
    before: Option<Before>,
    /// The number of the last file that named its own.
    number: u32,
    stray: Option<Stray>,
    /// The noted line that is another one now, if one is.
    rewritten: bool,
    /// Whether the file is of a newer format, and its lines are not judged.
    newer: bool,
    place: (String, u64),
    report: Report,
}

/// The line before.
struct Before {
    seq: u64,
    /// What it says its hash is, and what it is: one of them holds if only one of line and hash was changed.
    hashes: [[u8; 32]; 2],
}

/// Bytes that are no line of the chain.
struct Stray {
    place: (String, u64),
    bytes: u64,
    hash: Sha256,
    ended: bool,
}

impl Verifier {
    /// Compares with what the cluster noted of each manager, by the manager's id, or looks at the chain alone. `all` says
    /// that the files are all that there are, so that none may be missing before or after them.
    #[must_use]
    pub fn new(noted: Option<BTreeMap<String, Vec<Noted>>>, all: bool) -> Self {
        Self {
            noted,
            all,
            heads: BTreeMap::new(),
            first: None,
            before: None,
            number: 0,
            stray: None,
            rewritten: false,
            newer: false,
            place: (String::new(), 0),
            report: Report::default(),
        }
    }

    /// Reads the next file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn file(&mut self, name: &str, mut reader: impl BufRead) -> io::Result<()> {
        self.stray_is_a_problem();
        (self.place, self.newer) = ((name.to_owned(), 0), false);
        self.report.files += 1;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            self.place.1 += 1;
            match line.strip_suffix(b"\n").and_then(Chained::parse) {
                Some(chained) => self.chained(&chained),
                None if self.newer => {}
                None => self.stray(&line),
            }
            line.clear();
        }
        Ok(())
    }

    /// What came of it.
    #[must_use]
    pub fn finish(mut self) -> Report {
        match &self.stray {
            Some(stray) if !stray.ended => {
                let stray = self.stray.take();
                self.note_stray(
                    stray,
                    "a piece of a line: the manager is writing it, or was interrupted",
                );
            }
            _ => self.stray_is_a_problem(),
        }
        if self.first.is_none() {
            self.problem("there is no line of an audit in it");
        }
        self.compare();
        self.report
    }

    fn problem(&mut self, what: impl Into<String>) {
        let (file, line) = self.place.clone();
        self.report.problems.push(Finding { file, line, what: what.into() });
    }

    fn stray(&mut self, bytes: &[u8]) {
        let stray = self.stray.get_or_insert_with(|| Stray {
            place: self.place.clone(),
            bytes: 0,
            hash: Sha256::new(),
            ended: true,
        });
        stray.bytes += bytes.len() as u64;
        stray.hash.update(bytes);
        stray.ended = bytes.ends_with(b"\n");
    }

    fn stray_is_a_problem(&mut self) {
        if let Some(stray) = self.stray.take() {
            let (file, line) = stray.place;
            let what = "no line of the chain: it was changed, or put in".to_owned();
            self.report.problems.push(Finding { file, line, what });
        }
    }

    fn note_stray(&mut self, stray: Option<Stray>, what: &str) {
        self.report.notes.extend(stray.map(|stray| {
            let (file, line) = stray.place;
            Finding { file, line, what: what.to_owned() }
        }));
    }

    fn chained(&mut self, line: &Chained<'_>) {
        self.report.lines += 1;
        let of_itself = OfItself::read(line.body);
        if let Some(OfItself::File(start)) = of_itself.as_ref().filter(|_| !self.newer)
            && start.is_newer()
        {
            self.newer = true;
            self.problem(format!(
                "it is of format {}, and this keyhole {} reads formats up to {FORMAT}: its lines were not judged; verify \
                 them with the keyhole that wrote them",
                start.format,
                env!("CARGO_PKG_VERSION")
            ));
        }
        if self.newer {
            // What follows it in a file of its own is judged again.
            self.before = Some(Before { seq: line.head.seq, hashes: [line.head.hash; 2] });
            self.first.get_or_insert(line.head.seq);
            self.report.last = line.head;
            return;
        }
        match &of_itself {
            Some(OfItself::Unchained(said)) => match self.stray.take() {
                Some(stray) if Unchained::new(stray.bytes, stray.hash.clone()) == *said => {
                    self.note_stray(
                        Some(stray),
                        "a piece of a line that an interrupted manager left, as it said later",
                    );
                }
                other => {
                    self.stray = other;
                    self.stray_is_a_problem();
                    self.problem(
                        "it tells of a piece of a line before it that is not there as it was",
                    );
                }
            },
            Some(OfItself::Rewritten(rewritten)) => {
                self.stray_is_a_problem();
                self.problem(format!(
                    "the manager found here that the files had been rewritten: line {} of the chain was another one",
                    rewritten.line
                ));
            }
            Some(OfItself::Snapshot(skipped)) => {
                self.stray_is_a_problem();
                let (file, line) = self.place.clone();
                let what = format!(
                    "the changes of index {} to {} came in a snapshot: other managers' audits have them",
                    skipped.from, skipped.to
                );
                self.report.notes.push(Finding { file, line, what });
            }
            // The file's own line comes before the one that explains what is before both.
            Some(OfItself::File(_)) => {}
            _ => self.stray_is_a_problem(),
        }
        let start = match of_itself {
            Some(OfItself::File(start)) => Some(start),
            _ => None,
        };
        if let Some(start) = &start {
            self.starts(start);
        }
        self.follow(line, start.as_ref());
        if let Some(start) = start {
            self.number = start.number;
        }
    }

    fn starts(&mut self, start: &FileStart) {
        if self.report.manager.is_empty() {
            self.report.manager.clone_from(&start.manager);
            let noted = self.noted.as_ref().map(|noted| noted.get(&start.manager));
            match noted {
                Some(Some(heads)) => {
                    self.heads = heads.iter().map(|noted| (noted.head.seq, *noted)).collect();
                }
                Some(None) => self.problem(format!(
                    "the cluster that was asked knows no manager {} of cluster {}; --offline looks at the files alone",
                    start.manager, start.cluster
                )),
                None => {}
            }
        } else if self.report.manager != start.manager {
            self.problem(format!(
                "from here on it is the audit of another manager, {}",
                start.manager
            ));
        }
    }

    /// Judges a line by the one before.
    fn follow(&mut self, line: &Chained<'_>, start: Option<&FileStart>) {
        let Head { seq, hash } = line.head;
        let mut computed = hash;
        match self.before.take() {
            None => {
                let before = start.and_then(FileStart::follows);
                if seq > 1 && self.all {
                    self.missing(1, seq - 1, start);
                }
                match before {
                    Some(before) => computed = line.hash_after(&before),
                    None => self.problem(
                        "the first line does not say what it follows, so nothing vouches for it",
                    ),
                }
                if computed != hash {
                    self.problem("it was changed: it does not have its hash");
                }
            }
            Some(before) if seq <= before.seq => {
                self.problem(format!(
                    "line {seq} of the chain comes after line {}: it was put in or moved",
                    before.seq
                ));
                self.before = Some(before);
                return;
            }
            Some(before) if seq > before.seq + 1 => self.missing(before.seq + 1, seq - 1, start),
            Some(before) => {
                let fits = before.hashes.iter().any(|before| line.hash_after(before) == hash);
                if !fits {
                    computed = before.hashes.first().map_or(hash, |before| line.hash_after(before));
                    self.problem(
                        "it was changed, or the line before it: it does not have its hash",
                    );
                }
            }
        }
        self.before = Some(Before { seq, hashes: [hash, computed] });
        self.first.get_or_insert(seq);
        self.report.last = line.head;
        self.matches(line.head);
    }

    fn missing(&mut self, from: u64, to: u64, start: Option<&FileStart>) {
        let lines = match from == to {
            true => format!("line {from} of the chain is"),
            false => format!("lines {from} to {to} of the chain are"),
        };
        let last = start.map_or(0, |start| start.number.saturating_sub(1));
        let files = match self.number.saturating_add(1) {
            first if first > last => String::new(),
            first if first == last => format!("; {} is not there", file_name(first)),
            first => format!("; {} to {} are not there", file_name(first), file_name(last)),
        };
        self.problem(format!("{lines} missing before it{files}"));
    }

    /// Compares a line with what was noted of it.
    fn matches(&mut self, head: Head) {
        match self.heads.remove(&head.seq) {
            Some(noted) if noted.head == head => {
                self.report.matching += 1;
                self.report.newest = Some(noted);
            }
            Some(noted) if !self.rewritten => {
                self.rewritten = true;
                let since = match &self.report.newest {
                    Some(good) => format!("after line {} of the chain", good.head.seq),
                    None => "somewhere before".to_owned(),
                };
                self.problem(format!(
                    "it is not the line {} that was there at {}: the files were rewritten from {since} on",
                    noted.head.seq,
                    moment(noted.at)
                ));
            }
            _ => {}
        }
    }

    /// What was noted and never came.
    fn compare(&mut self) {
        let last = self.report.last.seq;
        if let Some((seq, noted)) =
            self.heads.last_key_value().filter(|(seq, _)| self.all && **seq > last)
        {
            self.problem(format!(
                "cut off: the files end at line {last} of the chain, and line {seq} was there at {}",
                moment(noted.at)
            ));
        }
    }
}

fn moment(nanos: u64) -> String {
    use std::time::{Duration, UNIX_EPOCH};
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}
