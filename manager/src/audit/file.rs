//! The audit's files: appended to, never rewritten, a new one when the last is large. Invariant: each line that is there
//! is whole and in the chain; a piece of a line that a crash left stays, and the next line vouches for its bytes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Writer;
use super::chain::{Chained, Head};
use super::line::{self, OfItself};

/// What the audit leaves of a disk that the store is on too, which could keep no revocation without room. Of a disk that has
/// less than eight times that: an eighth.
const LEFT_TO_STORE: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct AuditFile {
    folder: PathBuf,
    /// Whether the folder is on the disk of the one that it is in.
    beside_store: bool,
    number: u32,
    file: Arc<File>,
    /// A file that is at least this long is followed by a new one.
    limit: u64,
    /// Up to here the file ends in a line of the chain.
    whole: u64,
    /// Whether there may be something after that.
    torn: bool,
    /// The last line.
    head: Head,
    #[cfg(test)]
    refusing: bool,
}

impl AuditFile {
    /// The newest file, or the first one, and the last log index that the files have.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<(Self, u64)> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let files = files(folder)?;
        let (mut newest, mut head, mut index) = (None, None, None);
        for (_, path) in files.iter().rev() {
            let found = Ends::of(path)?;
            (head, index) = (head.or(found.head), index.or(found.index));
            newest.get_or_insert((found.whole, found.newer));
            if head.is_some() && index.is_some() {
                break;
            }
        }
        let number = files.last().map_or(1, |(number, _)| *number);
        let (number, whole) = match newest.unwrap_or((0, false)) {
            // What a newer keyhole wrote stays as it is: its readers expect its lines.
            (_, true) => (number.saturating_add(1), 0),
            (whole, false) => (number, whole),
        };
        let file = append_to(folder, number)?;
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        for made in [folder, parent] {
            File::open(made)?.sync_all()?;
        }
        let opened = Self {
            folder: folder.to_owned(),
            beside_store: file.metadata()?.dev() == parent.metadata()?.dev(),
            number,
            torn: file.metadata()?.len() > whole,
            file: Arc::new(file),
            limit,
            whole,
            head: head.unwrap_or_default(),
            #[cfg(test)]
            refusing: false,
        };
        Ok((opened, index.unwrap_or(0)))
    }

    /// The file that is written now.
    pub(super) fn name(&self) -> String {
        path(&self.folder, self.number).display().to_string()
    }

    /// The last line, and the file that it is in; all files before that are on the disk.
    pub(super) fn end(&self) -> (Head, Arc<File>) {
        (self.head, self.file.clone())
    }

    /// The line of this number as the files have it now, if they do.
    pub(super) fn line(&self, seq: u64) -> io::Result<Option<Head>> {
        for (_, path) in files(&self.folder)?.iter().rev() {
            let mut first = None;
            let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line)? > 0 {
                let head = line.strip_suffix(b"\n").and_then(Chained::parse).map(|line| line.head);
                if head.is_some_and(|head| head.seq == seq) {
                    return Ok(head);
                }
                first = first.or(head);
                line.clear();
            }
            if first.is_some_and(|first| first.seq < seq) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Takes the numbers up to this one for lines that are gone.
    pub(super) fn skip_to(&mut self, seq: u64) {
        self.head.seq = self.head.seq.max(seq);
    }

    /// Appends a record with one write, and gives its line; where it is due, lines about the file itself come first.
    pub(super) fn append(&mut self, writer: &Writer, record: &str) -> io::Result<String> {
        #[cfg(test)]
        if self.refusing {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.leaves_room()?;
        if self.whole >= self.limit && !self.torn && self.number < u32::MAX {
            self.next_file()?;
        }
        let piece = self.piece()?;
        let mut records = Vec::new();
        if self.whole == 0 {
            records.push(line::file(self.number, writer, &self.head));
        }
        if !piece.is_empty() {
            records.push(line::unchained(&piece));
        }
        records.push(record.to_owned());
        let start = if piece.is_empty() { "" } else { "\n" };
        let (mut text, mut head, mut last) = (start.to_owned(), self.head, String::new());
        for record in &records {
            (last, head) = head.extend(record);
            text.push_str(&last);
            text.push('\n');
        }
        let before = self.file.metadata()?.len();
        if let Err(error) = (&*self.file).write_all(text.as_bytes()) {
            // A piece that cannot be cut off again is vouched for by the next line.
            self.torn = self.file.set_len(before).is_err() || self.torn;
            return Err(error);
        }
        (self.head, self.torn) = (head, false);
        self.whole = before + text.len() as u64;
        Ok(last)
    }

    /// Whether a line takes nothing of what is the store's.
    fn leaves_room(&self) -> io::Result<()> {
        if !self.beside_store {
            return Ok(());
        }
        let disk = rustix::fs::fstatvfs(&self.file)?;
        let [free, all] = [disk.f_bavail, disk.f_blocks].map(|n| n.saturating_mul(disk.f_frsize));
        match free < LEFT_TO_STORE.min(all / 8) {
            true => {
                let why = format!("the last {free} bytes of its disk are left to the store");
                Err(io::Error::new(io::ErrorKind::StorageFull, why))
            }
            false => Ok(()),
        }
    }

    /// What is after the last line, with the line break that ends it.
    fn piece(&self) -> io::Result<Vec<u8>> {
        let mut piece = Vec::new();
        if self.torn {
            let length = self.file.metadata()?.len().saturating_sub(self.whole);
            piece.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            self.file.read_exact_at(&mut piece, self.whole)?;
            if !piece.is_empty() {
                piece.push(b'\n');
            }
        }
        Ok(piece)
    }

    fn next_file(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let file = append_to(&self.folder, self.number + 1)?;
        File::open(&self.folder)?.sync_all()?;
        self.number += 1;
        // It is there already if a write to it failed, or the folder could not be synced.
        self.torn = file.metadata()?.len() > 0;
        (self.file, self.whole) = (Arc::new(file), 0);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn refuse(&mut self, refuse: bool) {
        self.refusing = refuse;
    }
}

/// The audit's files in a folder, by number, oldest first.
///
/// # Errors
/// The folder can't be read.
pub fn files(folder: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let number: Option<u32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl"))
            .and_then(|number| number.parse().ok());
        files.extend(number.map(|number| (number, entry.path())));
    }
    files.sort_unstable();
    Ok(files)
}

pub(super) fn file_name(number: u32) -> String {
    format!("audit-{number:06}.jsonl")
}

fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(file_name(number))
}

fn append_to(folder: &Path, number: u32) -> io::Result<File> {
    let path = path(folder, number);
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// Where a file's lines end.
#[derive(Default)]
struct Ends {
    /// The last line of the chain.
    head: Option<Head>,
    /// How long the file is up to its end.
    whole: u64,
    /// The log index of the last change.
    index: Option<u64>,
    /// Whether a newer keyhole wrote it.
    newer: bool,
}

impl Ends {
    fn of(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
        let (mut line, mut ends, mut length) = (Vec::new(), Self::default(), 0);
        while reader.read_until(b'\n', &mut line)? > 0 {
            length += line.len() as u64;
            if let Some(chained) = line.strip_suffix(b"\n").and_then(Chained::parse) {
                (ends.head, ends.whole) = (Some(chained.head), length);
                ends.index = line::index(chained.body).or(ends.index);
                if let Some(OfItself::File(start)) = OfItself::read(chained.body) {
                    ends.newer |= start.is_newer();
                }
            }
            line.clear();
        }
        Ok(ends)
    }
}
