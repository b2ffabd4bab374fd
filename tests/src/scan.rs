//! Looking for a canary: in a process's memory, in files, in argv and environ of every process.
//!
//! Depends on /proc; needs root (the daemons are not dumpable). Invariant: what could not be read is named, never passed
//! over in silence.

#![expect(unsafe_code, reason = "memmem(3) is the one search that is fast in unoptimised tests")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use crate::mounts::mounts;

/// How much is read at once.
const CHUNK: usize = 4 << 20;

/// Something to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    /// What it is, for messages.
    pub what: String,
    bytes: Vec<u8>,
}

/// Both halves of a canary, as they are.
pub fn halves(what: &str, canary: &[u8]) -> Vec<Needle> {
    let (first, last) = canary.split_at(canary.len() / 2);
    let needle = |half: &str, bytes: &[u8]| Needle {
        what: format!("{half} half of {what}"),
        bytes: bytes.to_vec(),
    };
    vec![needle("first", first), needle("last", last)]
}

/// Both halves as they are and as a program might print them: hex, base 64, numbers, escapes.
pub fn printed_halves(what: &str, canary: &[u8]) -> Vec<Needle> {
    let mut all = halves(what, canary);
    for plain in all.clone() {
        let printed = |how: &str, text: String| Needle {
            what: format!("{} as {how}", plain.what),
            bytes: text.into_bytes(),
        };
        let bytes = &plain.bytes;
        let each = |format: &dyn Fn(&u8) -> String| bytes.iter().map(format).collect::<Vec<_>>();
        all.push(printed("hex", each(&|b| format!("{b:02x}")).concat()));
        all.push(printed("HEX", each(&|b| format!("{b:02X}")).concat()));
        all.push(printed("numbers", each(&u8::to_string).join(", ")));
        all.push(printed("short numbers", each(&u8::to_string).join(",")));
        all.push(printed("escapes", bytes.escape_ascii().to_string()));
        all.push(printed("octal", each(&|b| format!("\\{b:03o}")).concat()));
        for skip in 0..3 {
            all.push(printed("base 64", base64(&bytes[skip..])));
        }
    }
    all
}

/// Only whole groups of three bytes, so that whatever follows does not matter.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |group: &[u8]| {
        let number = group.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(number >> shift) as usize & 63]))
    };
    bytes.chunks_exact(3).flat_map(digits).collect()
}

/// What a scan of one process found.
#[derive(Debug, Default)]
pub struct MemoryScan {
    /// Where which needle was.
    pub hits: Vec<String>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Mappings that are readable for the process and could not be read, by their names.
    pub unreadable: Vec<String>,
}

/// Every readable mapping of a process, from its first to its last byte.
pub fn memory(pid: i32, needles: &[Needle]) -> MemoryScan {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut scan = MemoryScan::default();
    let overlap = needles.iter().map(|needle| needle.bytes.len()).max().unwrap_or(1) - 1;
    let mut buffer = vec![0; CHUNK + overlap];
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|p| p.starts_with('r')))
    {
        let (range, _) = line.split_once(' ').expect("a line of maps");
        let (start, end) = range.split_once('-').expect("a range");
        let bound = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let (start, end) = (bound(start), bound(end));
        let name = line.split_whitespace().nth(5).unwrap_or("anonymous");
        let mut at = start;
        while at < end {
            let want = (end - at).min(buffer.len() as u64) as usize;
            match memory.read_at(&mut buffer[..want], at) {
                Ok(0) | Err(_) => {
                    // The process runs: it may have unmapped this since its maps were read.
                    if is_mapped(pid, range) {
                        scan.unreadable.push(format!("{name} at {at:x}"));
                    }
                    break;
                }
                Ok(got) => {
                    scan.bytes += got as u64;
                    let place = |needle: &Needle, offset: usize| {
                        format!(
                            "{} in {name} at {:x} (of {range})",
                            needle.what,
                            at + offset as u64
                        )
                    };
                    for needle in needles {
                        if let Some(offset) = find(&buffer[..got], &needle.bytes) {
                            scan.hits.push(place(needle, offset));
                        }
                    }
                    at += if at + (got as u64) < end && got > overlap {
                        (got - overlap) as u64
                    } else {
                        got as u64
                    };
                }
            }
        }
    }
    scan
}

fn is_mapped(pid: i32, range: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    maps.lines().any(|line| line.starts_with(range))
}

/// What a scan of a folder found.
#[derive(Debug, Default)]
pub struct FileScan {
    /// Where which needle was.
    pub hits: Vec<String>,
    /// Files that were read.
    pub files: u64,
}

/// Every regular file at or below a path, without going into mounts or along links.
pub fn files(top: &Path, needles: &[Needle]) -> FileScan {
    let mounted: Vec<PathBuf> = mounts().into_iter().map(|mount| mount.at).collect();
    let mut scan = FileScan::default();
    let mut left = vec![top.to_owned()];
    while let Some(path) = left.pop() {
        // Not stat: nothing below a mount is asked.
        if path != top && mounted.contains(&path) {
            continue;
        }
        let Ok(facts) = fs::symlink_metadata(&path) else { continue };
        if facts.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if facts.is_file() {
            scan.files += 1;
            scan.hits.extend(file(&path, needles));
        } else {
            let kind = facts.file_type();
            assert!(kind.is_socket() || kind.is_symlink() || kind.is_fifo(), "{}", path.display());
        }
    }
    scan
}

/// One file.
pub fn file(path: &Path, needles: &[Needle]) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    if let Err(error) = read {
        return vec![format!("{} cannot be read: {error}", path.display())];
    }
    let found = needles.iter().filter(|needle| find(&bytes, &needle.bytes).is_some());
    found.map(|needle| format!("{} in {}", needle.what, path.display())).collect()
}

/// argv and environ of every process there is now.
pub fn arguments(needles: &[Needle]) -> Vec<String> {
    let mut hits = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        for name in ["cmdline", "environ"].iter().filter(|_| is_process) {
            // It may have ended.
            let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
            let found = needles.iter().filter(|needle| find(&bytes, &needle.bytes).is_some());
            hits.extend(found.map(|needle| {
                let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
                format!(
                    "{} in {name} of {}",
                    needle.what,
                    text.chars().take(200).collect::<String>()
                )
            }));
        }
    }
    hits
}

/// The first place of a needle.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    // SAFETY: both ranges are slices, and the answer is null or in the first one.
    let found = unsafe {
        libc::memmem(hay.as_ptr().cast(), hay.len(), needle.as_ptr().cast(), needle.len())
    };
    (!found.is_null()).then(|| found as usize - hay.as_ptr() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_printing_is_found() {
        let canary: Vec<u8> = (130..178).collect();
        let needles = printed_halves("the canary", &canary);
        let hits = |text: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("log"), text).unwrap();
            files(folder.path(), &needles).hits.len()
        };
        assert_eq!(hits(b"nothing"), 0);
        assert_eq!(hits(&canary), 2);
        assert!(hits(format!("x {canary:?}").as_bytes()) >= 2);
        assert!(hits(format!("{canary:02x?}").replace(", ", "").as_bytes()) >= 2);
        for lead in ["", "a", "ab"] {
            let all = [lead.as_bytes(), &canary, b"abcde"].concat();
            assert!(hits(base64(&all).as_bytes()) >= 2, "lead {lead:?}");
        }
    }
}
