//! Reading `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! The only way Keyhole looks for mounts: a `stat` of a dead FUSE mount fails or hangs.
//! Depends on nothing; invariant: parsing never touches any path that the table names.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id; unique while the mount lives.
    pub id: u64,
    /// Id of the mount this one is attached to.
    pub parent: u64,
    /// Minor device number; for FUSE the number of the connection.
    pub minor: u32,
    /// What part of the filesystem is mounted here.
    pub root: PathBuf,
    /// Where it is attached, as seen from this process's root.
    pub mount_point: PathBuf,
    /// Per-mount options, as written.
    pub options: String,
    /// Type with subtype, such as `fuse.keyhole`.
    pub fs_type: String,
    /// Source, as given by who mounted it.
    pub source: OsString,
}

/// All mounts of this process's mount namespace.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses a whole table; a line of unknown shape is left out.
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// The mount that a path lookup of exactly `at` ends on: of those stacked there, the top one.
pub fn top_mount_at<'a>(entries: &'a [MountEntry], at: &Path) -> Option<&'a MountEntry> {
    let here = || entries.iter().filter(|entry| entry.mount_point == at);
    here().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
}

/// The id of the mount that an open descriptor is on, from its `fdinfo`.
pub fn mount_id_of(fd: impl std::os::fd::AsFd) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other("fdinfo has no mnt_id line"))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |index: usize| std::str::from_utf8(fields.get(index)?).ok();
    Some(MountEntry {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        minor: text(2)?.split_once(':')?.1.parse().ok()?,
        root: PathBuf::from(unescape(fields.get(3)?)),
        mount_point: PathBuf::from(unescape(fields.get(4)?)),
        options: text(5)?.to_owned(),
        fs_type: text(dash + 1)?.to_owned(),
        source: unescape(fields.get(dash + 2)?),
    })
}

/// Undoes the kernel's `\ooo` escapes of space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| tail.get(..3)).flatten().and_then(parse_octal);
        match octal {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn parse_octal(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 cgroup2 rw\n\
77 23 0:51 / /run/a\\040b ro,nosuid - fuse.keyhole keyhole-12-34 rw,user_id=0\n\
78 77 0:52 / /run/a\\040b ro,nosuid - fuse.keyhole keyhole-99-34 rw,user_id=0\n\
garbage\n";

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let entries = parse(TABLE);
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[1].fs_type, "cgroup2");
        assert_eq!(entries[2].mount_point, Path::new("/run/a b"));
        assert_eq!(entries[2].minor, 51);
    }

    #[test]
    fn of_stacked_mounts_the_top_one_is_found_whatever_the_order() {
        let mut entries = parse(TABLE);
        assert_eq!(top_mount_at(&entries, Path::new("/run/a b")).unwrap().id, 78);
        entries.reverse();
        assert_eq!(top_mount_at(&entries, Path::new("/run/a b")).unwrap().id, 78);
        assert!(top_mount_at(&entries, Path::new("/run")).is_none());
    }

    #[test]
    fn a_descriptor_tells_its_mount() {
        let file = std::fs::File::open("/proc/self/mountinfo").unwrap();
        let id = mount_id_of(&file).unwrap();
        let entries = read().unwrap();
        assert!(entries.iter().any(|entry| entry.id == id && entry.fs_type == "proc"));
    }
}
