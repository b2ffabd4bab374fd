//! One cycle: who am I, how old may it be, open, stat, read, judge; now and then everything else that can be asked.
//!
//! Depends on the shared numbers and the labelled values. Invariant: what a value may be is read off the board *before*
//! the open that is judged by it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use keyhole_tests::board::{Board, FLOORS, READ_AS, WHO, identity, who};
use keyhole_tests::labelled::{self, Label};
use keyhole_tests::reader::{ReaderSpec, Report, Sight};
use rustix::fs::{Access, Advice, CWD, Mode, OFlags};
use rustix::io::Errno;

/// Every so manieth cycle also asks for listings and such.
const ASIDE: u64 = 64;

pub(crate) struct Cycle<'a> {
    spec: &'a ReaderSpec,
    board: &'a Board,
    number: u64,
    /// By secret: the last sequence number that this thread saw.
    last: Vec<u64>,
    buffer: Vec<u8>,
    pub(crate) report: Report,
}

/// What an open came to.
enum Got {
    Value(Result<Label, String>),
    Refused(Errno),
}

impl<'a> Cycle<'a> {
    pub(crate) fn new(spec: &'a ReaderSpec, board: &'a Board, number: u64) -> Self {
        let files = spec.sights.iter().flat_map(|sight| &sight.files);
        let secrets = files.map(|(_, secret)| *secret as usize + 1).max().unwrap_or(0);
        let last = vec![0; secrets];
        Self { spec, board, number, last, buffer: Vec::new(), report: Report::default() }
    }

    pub(crate) fn run(&mut self) -> Result<(), String> {
        self.number += 1;
        let who = self.who();
        let Some(sight) = identity(who).and_then(|number| self.spec.sights.get(number)) else {
            return self.while_moving();
        };
        if self.number.is_multiple_of(ASIDE) && self.spec.sights.len() == 1 {
            self.aside(sight)?;
        }
        if sight.files.is_empty() {
            return self.stranger(sight);
        }
        let (path, secret) = &sight.files[self.number as usize % sight.files.len()];
        let slot = FLOORS + *secret as usize;
        let floor = self.board.get(slot).max(self.last[*secret as usize]);
        let got = self.read(path)?;
        if self.who() != who {
            return self.judge_unsure(got);
        }
        self.judge(path, *secret, floor, got)?;
        if self.spec.sights.len() > 1 {
            self.board.set(READ_AS, who);
        }
        Ok(())
    }

    /// As the board says it.
    fn who(&self) -> u64 {
        match self.spec.sights.len() {
            1 => who(0, Some(0)),
            _ => self.board.get(WHO),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.spec.mount.join(name)
    }

    fn open(&mut self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.report.opens += 1;
        rustix::fs::openat(CWD, self.path(name), flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn read(&mut self, name: &str) -> Result<Got, String> {
        loop {
            match self.open(name, OFlags::RDONLY) {
                // The kernel repeats an open that finds its file replaced once; a third version within one open is
                // left to the caller.
                Err(Errno::STALE) => self.report.stale += 1,
                Err(errno) => return Ok(Got::Refused(errno)),
                Ok(fd) => return self.read_open(name, fd).map(Got::Value),
            }
        }
    }

    fn read_open(&mut self, name: &str, fd: OwnedFd) -> Result<Result<Label, String>, String> {
        let failed = |what: &str, error: io::Error| format!("{name}: {what}: {error}");
        let mut file = File::from(fd);
        let size = file.metadata().map_err(|error| failed("fstat", error))?.len();
        if self.spec.cold {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
                .map_err(|errno| failed("fadvise", errno.into()))?;
        }
        self.buffer.clear();
        file.read_to_end(&mut self.buffer).map_err(|error| failed("read", error))?;
        self.report.reads += 1;
        if self.buffer.len() as u64 != size {
            return Ok(Err(format!("fstat says {size} bytes, {} were read", self.buffer.len())));
        }
        Ok(labelled::read(&self.buffer))
    }

    fn judge(&mut self, path: &str, secret: u32, floor: u64, got: Got) -> Result<(), String> {
        let label = match got {
            Got::Refused(errno) => return Err(format!("open of {path}: {errno}")),
            Got::Value(Err(wrong)) => return Err(format!("{path} is no whole value: {wrong}")),
            Got::Value(Ok(label)) => label,
        };
        if label.secret != secret {
            return Err(format!(
                "{path} shows {label:?}, which is not the caller's secret {secret}"
            ));
        }
        if label.sequence < floor {
            return Err(format!(
                "{path} shows {label:?}, but {floor} was delivered or seen before"
            ));
        }
        let last = &mut self.last[secret as usize];
        self.report.fresh += u64::from(*last != label.sequence);
        *last = label.sequence;
        Ok(())
    }

    /// The identity changed during the cycle: any of its identities' values, whole, or a refusal.
    fn judge_unsure(&mut self, got: Got) -> Result<(), String> {
        self.report.unsure += 1;
        let own = |label: &Label| {
            let files = self.spec.sights.iter().flat_map(|sight| &sight.files);
            files.map(|(_, secret)| *secret).any(|secret| secret == label.secret)
        };
        match got {
            Got::Refused(Errno::NOENT | Errno::ACCESS) => Ok(()),
            Got::Refused(errno) => Err(format!("open while being moved: {errno}")),
            Got::Value(Ok(label)) if own(&label) => Ok(()),
            Got::Value(other) => Err(format!("while being moved: {other:?}")),
        }
    }

    fn while_moving(&mut self) -> Result<(), String> {
        let sights = &self.spec.sights;
        let files = &sights[self.number as usize % sights.len()].files;
        let Some((path, _)) = files.get(self.number as usize % files.len().max(1)) else {
            return Ok(());
        };
        let path = path.clone();
        match self.read(&path) {
            Ok(got) => self.judge_unsure(got),
            // A file that is open keeps its bytes, whoever its reader has become.
            Err(wrong) => Err(format!("while being moved: {wrong}")),
        }
    }

    /// A caller that has nothing.
    fn stranger(&mut self, sight: &Sight) -> Result<(), String> {
        let name = sight.foreign[self.number as usize % sight.foreign.len()].clone();
        match self.open(&name, OFlags::RDONLY) {
            Err(Errno::NOENT) => Ok(()),
            other => Err(format!("{name}, which is another's, was opened: {other:?}")),
        }
    }

    /// Listing, names of others, access, O_PATH and opening again.
    fn aside(&mut self, sight: &Sight) -> Result<(), String> {
        self.report.listings += 1;
        let entries = std::fs::read_dir(&self.spec.mount)
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect());
        let mut names: Vec<String> = entries
            .map(|names: Vec<_>| names.iter().map(|n| n.to_string_lossy().into_owned()).collect())
            .map_err(|error| format!("readdir: {error}"))?;
        names.sort_unstable();
        if names != sight.listing {
            return Err(format!("the listing is {names:?} instead of {:?}", sight.listing));
        }
        for name in &sight.foreign {
            let path = self.path(name);
            let stat = rustix::fs::stat(&path).map(|stat| stat.st_size);
            let access = rustix::fs::access(&path, Access::EXISTS);
            if stat != Err(Errno::NOENT) || access != Err(Errno::NOENT) {
                return Err(format!("{name} is another's: stat {stat:?}, access {access:?}"));
            }
        }
        match sight.files.first() {
            Some((path, secret)) => self.by_path_descriptor(&path.clone(), *secret),
            None => Ok(()),
        }
    }

    /// An O_PATH descriptor pins the inode; opening it again is judged like any open.
    fn by_path_descriptor(&mut self, name: &str, secret: u32) -> Result<(), String> {
        rustix::fs::access(self.path(name), Access::READ_OK)
            .map_err(|errno| format!("access of {name}: {errno}"))?;
        let fd = self.open(name, OFlags::PATH).map_err(|e| format!("O_PATH of {name}: {e}"))?;
        let size = File::from(fd.try_clone().map_err(|error| error.to_string())?).metadata();
        size.map(|facts| facts.size()).map_err(|error| format!("fstat of O_PATH: {error}"))?;
        let again = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match self.open(&again, OFlags::RDONLY) {
            // It was rotated meanwhile: an inode that is past is not opened any more.
            Err(Errno::STALE) => Ok(()),
            Err(errno) => Err(format!("opening {name} again by its O_PATH descriptor: {errno}")),
            Ok(file) => {
                let floor = self.last[secret as usize];
                let value = self.read_open(name, file)?;
                self.judge(name, secret, floor, Got::Value(value))
            }
        }
    }
}
