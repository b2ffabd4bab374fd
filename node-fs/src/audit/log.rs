//! The files of the audit: the current one and the four before it, 64 MiB each.
//!
//! Invariant: a line is in one file as a whole, and a failure to write loses lines, never the thread.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const ROTATE_AT: u64 = 64 << 20;
const KEPT: u32 = 4;
const NAME: &str = "opens.jsonl";

/// The current file.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    file: BufWriter<File>,
    length: u64,
    rotate_at: u64,
    /// Whether the last write failed, so that it is said once.
    failing: bool,
}

impl Log {
    /// Opens the log, or begins it.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        Self::open_rotating_at(folder, ROTATE_AT)
    }

    pub(super) fn open_rotating_at(folder: &Path, rotate_at: u64) -> io::Result<Self> {
        let file = open(&folder.join(NAME))?;
        let length = file.metadata()?.len();
        let mut log = Self {
            folder: folder.to_owned(),
            file: BufWriter::new(file),
            length,
            rotate_at,
            failing: false,
        };
        log.end_cut_line()?;
        Ok(log)
    }

    /// A worker that was killed may have left half a line.
    fn end_cut_line(&mut self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut last = [b'\n'];
        if self.length > 0 {
            File::open(self.folder.join(NAME))?.read_exact_at(&mut last, self.length - 1)?;
        }
        if last != [b'\n'] {
            self.file.write_all(b"\n")?;
            self.length += 1;
        }
        Ok(())
    }

    /// Writes a line; whether it could.
    pub(super) fn write(&mut self, line: &[u8]) -> bool {
        let written = self.try_write(line);
        self.judge(written)
    }

    /// Makes sure that what was written can be seen by others.
    pub(super) fn flush(&mut self) {
        let flushed = self.file.flush();
        self.judge(flushed);
    }

    fn judge(&mut self, result: io::Result<()>) -> bool {
        let failed = result.is_err();
        if let Err(error) = result
            && !self.failing
        {
            tracing::error!(%error, folder = %self.folder.display(), "cannot write the audit of opens");
        }
        self.failing = failed;
        !failed
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + line.len() as u64 > self.rotate_at {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.length += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let old = |n: u32| match n {
            0 => self.folder.join(NAME),
            n => self.folder.join(format!("{NAME}.{n}")),
        };
        for n in (0..KEPT).rev() {
            match std::fs::rename(old(n), old(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = BufWriter::new(open(&old(0))?);
        self.length = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}
