//! Mounts as `/proc/self/mountinfo` lists them, and how to be rid of one whose server is gone or hangs.
//!
//! Invariant: no path under a FUSE mount is looked up; a mount is found by the list alone.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFact {
    /// Where it is mounted.
    pub at: PathBuf,
    /// Minor number of the device: of a FUSE mount, the connection's number.
    pub minor: u32,
    /// Options of this mount (`ro,nosuid,...`).
    pub options: Vec<String>,
    /// File system type.
    pub fs_type: String,
    /// Options of the file system.
    pub super_options: String,
}

/// Every mount that this process sees. Test paths have no blanks, so nothing is unescaped.
pub fn mounts() -> Vec<MountFact> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<MountFact> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    Some(MountFact {
        at: PathBuf::from(left.get(4)?),
        minor: left.get(2)?.split_once(':')?.1.parse().ok()?,
        options: left.get(5)?.split(',').map(str::to_owned).collect(),
        fs_type: right.next()?.to_owned(),
        super_options: right.nth(1)?.to_owned(),
    })
}

/// Detaches whatever is mounted at or below a path; the newest first.
pub(crate) fn detach_below(folder: &Path) {
    for mount in mounts().iter().rev().filter(|mount| mount.at.starts_with(folder)) {
        let _ = rustix::mount::unmount(&mount.at, UnmountFlags::DETACH);
    }
}

/// The numbers of the FUSE connections mounted at or below a path.
pub(crate) fn connections_below(folder: &Path) -> Vec<u32> {
    let all = mounts();
    let ours = all.iter().filter(|mount| mount.at.starts_with(folder));
    ours.filter(|mount| mount.fs_type.starts_with("fuse")).map(|mount| mount.minor).collect()
}

/// Aborts a FUSE connection, so that everyone who waits for an answer gets an error and can end.
pub(crate) fn abort_connection(number: u32, scratch: &Path) {
    let standard = Path::new("/sys/fs/fuse/connections");
    if write_abort(standard, number) {
        return;
    }
    // fusectl is not mounted everywhere.
    let own = scratch.join("fusectl");
    let _ = fs::create_dir(&own);
    if rustix::mount::mount("none", &own, "fusectl", MountFlags::empty(), None).is_ok() {
        write_abort(&own, number);
        let _ = rustix::mount::unmount(&own, UnmountFlags::DETACH);
    }
}

fn write_abort(connections: &Path, number: u32) -> bool {
    fs::write(connections.join(number.to_string()).join("abort"), "1").is_ok()
}
