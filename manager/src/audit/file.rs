//! The audit's files: appended to, never rewritten, a new one when the last is large. Invariant: each line is whole; a
//! line that was cut short stays alone on its line.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file larger than this is followed by a new one.
const FILE_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct AuditFile {
    folder: PathBuf,
    number: u32,
    file: File,
    bytes: u64,
    /// Whether the last write left a part of a line.
    torn: bool,
    unsynced: bool,
    #[cfg(test)]
    refusing: bool,
}

impl AuditFile {
    /// The newest file, or the first one, and the last log index that the files have.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, u64)> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let numbers = numbers(folder)?;
        let mut last = None;
        for number in numbers.iter().rev() {
            last = last_index(&path(folder, *number))?;
            if last.is_some() {
                break;
            }
        }
        let number = numbers.last().copied().unwrap_or(1);
        let file = append_to(&path(folder, number))?;
        let bytes = file.metadata()?.len();
        let torn = bytes > 0 && !ends_with_newline(&path(folder, number))?;
        let opened = Self {
            folder: folder.to_owned(),
            number,
            file,
            bytes,
            torn,
            unsynced: false,
            #[cfg(test)]
            refusing: false,
        };
        Ok((opened, last.unwrap_or(0)))
    }

    /// The file that is written now.
    pub(super) fn name(&self) -> String {
        path(&self.folder, self.number).display().to_string()
    }

    /// Appends a line with one write.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        #[cfg(test)]
        if self.refusing {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.bytes >= FILE_BYTES {
            self.next_file()?;
        }
        let start = if self.torn { "\n" } else { "" };
        let text = format!("{start}{line}\n");
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.bytes += written as u64;
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsynced = true;
        Ok(())
    }

    /// Asks the disk to keep the lines; a failure shows at the next write.
    pub(super) fn sync(&mut self) {
        if std::mem::take(&mut self.unsynced)
            && let Err(error) = self.file.sync_data()
        {
            tracing::error!(%error, file = self.name(), "cannot sync the audit");
        }
    }

    fn next_file(&mut self) -> io::Result<()> {
        self.sync();
        let file = append_to(&path(&self.folder, self.number + 1))?;
        self.number += 1;
        (self.file, self.bytes, self.torn) = (file, 0, false);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn refuse(&mut self, refuse: bool) {
        self.refusing = refuse;
    }
}

fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("audit-{number:06}.jsonl"))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number: Option<u32> = name
            .to_str()
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl"))
            .and_then(|number| number.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The index of the last whole line of a change.
fn last_index(path: &Path) -> io::Result<Option<u64>> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut line, mut last) = (Vec::new(), None);
    while reader.read_until(b'\n', &mut line)? > 0 {
        let whole = line.ends_with(b"\n");
        let rest = line.strip_prefix(super::line::CHANGE_START.as_bytes());
        let digits: Vec<u8> = rest
            .filter(|_| whole)
            .unwrap_or_default()
            .iter()
            .copied()
            .take_while(u8::is_ascii_digit)
            .collect();
        last = String::from_utf8_lossy(&digits).parse().ok().or(last);
        line.clear();
    }
    Ok(last)
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path)?;
    let mut last = [0];
    file.read_exact_at(&mut last, file.metadata()?.len().saturating_sub(1))?;
    Ok(last == *b"\n")
}
