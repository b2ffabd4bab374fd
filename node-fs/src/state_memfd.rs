//! What one worker leaves to the next: a sealed record in memory that the supervisor holds.
//!
//! A record is written beside the current one and becomes current by one small write of the header, so
//! that a worker killed at any moment leaves the old record or the new one, whole. Depends on the view,
//! the registry and the vault. Invariant: everything but lengths is sealed under the key of this run.

mod record;
mod seal;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use keyhole_proto::v1;
use keyhole_secmem::MappedKey;
use keyhole_wire::seal::Aad;
use prost::Message;
use rustix::fs::FallocateFlags;

pub use record::{SavedState, SavedValues};
use seal::StateSeal;
pub use seal::StateSealError;

const MAGIC: [u8; 8] = *b"keyhole\0";
/// Raised when a worker cannot read what an earlier version wrote.
const FORMAT: u64 = 2;
/// Where records begin: the header has a page of its own.
const START: u64 = 4096;
const HEADER_LEN: usize = 88;

/// Why the state could not be kept or taken up.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The memory could not be read or written.
    #[error("cannot {doing} the state that workers hand on: {source}")]
    Memory {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// It was left by a worker of another version.
    #[error("the last worker left its state in format {found}; this one knows {FORMAT}")]
    Format {
        /// The format found.
        found: u64,
    },
    /// It is damaged, or not of this run.
    #[error(transparent)]
    Sealed(#[from] StateSealError),
    /// It opens, but makes no sense.
    #[error("the state that the last worker left makes no sense: {reason}")]
    Senseless {
        /// Why.
        reason: String,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> StateError {
    move |source| StateError::Memory { doing, source }
}

/// Where the current record is, and how it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    format: u64,
    number: u64,
    offset: u64,
    len: u64,
    salt: [u8; 32],
    tag: [u8; 16],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let [format, number, offset, len] =
            [self.format, self.number, self.offset, self.len].map(u64::to_le_bytes);
        let fields: [&[u8]; 7] = [&MAGIC, &format, &number, &offset, &len, &self.salt, &self.tag];
        let mut rest = bytes.as_mut_slice();
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        bytes
    }

    /// `None` for memory that nobody wrote to.
    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Option<Self>, StateError> {
        if bytes == &[0; HEADER_LEN] {
            return Ok(None);
        }
        let (numbers, seal) = bytes.split_at(40);
        let mut numbers = numbers.as_chunks::<8>().0.iter();
        let magic = numbers.next();
        let mut number = || numbers.next().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (format, sequence, offset, len) = (number(), number(), number(), number());
        if magic != Some(&MAGIC) || format != FORMAT {
            return Err(StateError::Format { found: format });
        }
        let (salt, tag) = seal.split_at(32);
        let short = |_| StateError::Format { found: format };
        Ok(Some(Self {
            format,
            number: sequence,
            offset,
            len,
            salt: salt.try_into().map_err(short)?,
            tag: tag.try_into().map_err(short)?,
        }))
    }

    fn region(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len)
    }

    /// The record belongs to this header alone.
    fn aad(&self) -> Aad {
        Aad::new()
            .text("keyhole node state")
            .number(self.format)
            .number(self.number)
            .number(self.offset)
            .number(self.len)
    }
}

/// One thing to do to the memory; a worker may die between any two, and within a write of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Give memory back.
    Clear(Range<u64>),
    /// Write a record where no current one is.
    Record(u64, Vec<u8>),
    /// Make it current: one write within a page, which no signal divides.
    Header([u8; HEADER_LEN]),
}

/// The memory, with what is current in it.
#[derive(Debug)]
pub struct StateMemory {
    file: File,
    seal: StateSeal,
    current: Option<Header>,
}

impl StateMemory {
    /// Takes the memory up, with what the last worker left in it. Memory that cannot be understood is
    /// given back with the reason: the next record replaces it.
    pub fn open(file: File, key: MappedKey) -> (Self, Result<Option<SavedState>, StateError>) {
        let mut memory = Self { file, seal: StateSeal::new(key), current: None };
        let found = memory.load();
        (memory, found)
    }

    fn load(&mut self) -> Result<Option<SavedState>, StateError> {
        let length = self.file.metadata().map_err(failed("look at"))?.len();
        if length < START {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_LEN];
        self.file.read_exact_at(&mut bytes, 0).map_err(failed("read"))?;
        let Some(header) = Header::decode(&bytes)? else { return Ok(None) };
        if header.offset < START || header.region().end > length {
            return Err(StateError::Senseless { reason: "its record lies outside".to_owned() });
        }
        let len = usize::try_from(header.len)
            .map_err(|_| StateError::Senseless { reason: "its record is too long".to_owned() })?;
        let mut record = vec![0; len];
        self.file.read_exact_at(&mut record, header.offset).map_err(failed("read"))?;
        self.seal.open(&header.salt, &header.aad(), &mut record, &header.tag)?;
        self.current = Some(header);
        let state = v1::NodeState::decode(record.as_slice())
            .map_err(|error| StateError::Senseless { reason: error.to_string() })?;
        let state = SavedState::try_from(state)
            .map_err(|error| StateError::Senseless { reason: error.to_string() })?;
        Ok(Some(state))
    }

    /// Makes `state` the one that the next worker finds.
    pub fn save(&mut self, state: &SavedState) -> Result<(), StateError> {
        let last = self.current.as_ref().map_or(0, |header| header.len);
        // A little more than the last one: a record that outgrows it is copied once.
        let capacity = usize::try_from(last + last / 8).unwrap_or(0);
        let (header, steps) = self.plan(state.encode(capacity))?;
        for step in steps {
            apply(&self.file, &step)?;
        }
        self.current = Some(header);
        Ok(())
    }

    fn plan(&self, mut record: Vec<u8>) -> Result<(Header, Vec<Step>), StateError> {
        let current = self.current.as_ref();
        let len = record.len() as u64;
        let old = current.map_or(START..START, Header::region);
        let offset = place(&old, len);
        let mut header = Header {
            format: FORMAT,
            number: current.map_or(0, |header| header.number) + 1,
            offset,
            len,
            salt: [0; 32],
            tag: [0; 16],
        };
        (header.salt, header.tag) = self.seal.seal(&header.aad(), &mut record)?;
        let steps = vec![
            // What a killed worker left unfinished.
            Step::Clear(around(&old, offset)),
            Step::Record(offset, record),
            Step::Header(header.encode()),
            Step::Clear(old),
        ];
        Ok((header, steps))
    }
}

/// A page-aligned place for `len` bytes beside `old`: before it if there is room, else after it.
fn place(old: &Range<u64>, len: u64) -> u64 {
    if START + len <= old.start { START } else { old.end.next_multiple_of(4096) }
}

/// The side of `old` that `offset` is on.
fn around(old: &Range<u64>, offset: u64) -> Range<u64> {
    if offset < old.start { START..old.start } else { offset..u64::MAX }
}

fn apply(file: &File, step: &Step) -> Result<(), StateError> {
    match step {
        Step::Clear(range) => clear(file, range).map_err(failed("clear")),
        Step::Record(offset, bytes) => file.write_all_at(bytes, *offset).map_err(failed("write")),
        Step::Header(bytes) => file.write_all_at(bytes, 0).map_err(failed("write")),
    }
}

/// Gives the memory of whole pages back and zeroes the rest.
fn clear(file: &File, range: &Range<u64>) -> io::Result<()> {
    let end = range.end.min(file.metadata()?.len());
    if range.start >= end {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.start, end - range.start)?)
}

#[cfg(test)]
mod tests;
