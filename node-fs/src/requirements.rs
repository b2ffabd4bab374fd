//! What a machine must have before a node can start, each lack as one line with its mend.
//!
//! Depends on nothing of Keyhole. Invariant: checking changes nothing on the machine.

use std::io;
use std::path::{Path, PathBuf};

/// The oldest kernel that has all we cannot do without.
pub const MINIMUM_KERNEL: (u32, u32) = (6, 1);
/// From here the kernel can resend requests that a dead worker had taken (`FUSE_NOTIFY_RESEND`).
pub const RESEND_KERNEL: (u32, u32) = (6, 9);

/// Why a node cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum RequirementError {
    /// The effective user is not root.
    #[error(
        "a Keyhole node must run as root, not as uid {uid}: start it with sudo or as a system service"
    )]
    NotRoot {
        /// Effective uid of this process.
        uid: u32,
    },
    /// The kernel lacks system calls we need.
    #[error("kernel {found} is too old for a Keyhole node: boot Linux {}.{} or later", MINIMUM_KERNEL.0, MINIMUM_KERNEL.1)]
    KernelTooOld {
        /// Release as the kernel names it.
        found: String,
    },
    /// There is no FUSE device.
    #[error("{} does not exist: load the kernel module with \"modprobe fuse\", or give the container the device (--device /dev/fuse)", .path.display())]
    NoFuse {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The FUSE device cannot be opened.
    #[error("cannot open {}: {source}; in a container, give it the device (--device /dev/fuse) and CAP_SYS_ADMIN", .path.display())]
    FuseUnusable {
        /// Which device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The path is there but is no device.
    #[error("{} is not a character device: remove it and load the kernel module with \"modprobe fuse\"", .path.display())]
    NotADevice {
        /// Which path.
        path: PathBuf,
    },
}

/// Checks user, kernel and `/dev/fuse`. The cgroup hierarchy is checked by
/// [`CgroupRoot::find`](crate::cgroups::CgroupRoot::find), whose error says the mend too.
pub fn check() -> Result<(), RequirementError> {
    check_user(rustix::process::geteuid().as_raw())?;
    check_kernel(&rustix::system::uname().release().to_string_lossy())?;
    check_fuse(Path::new("/dev/fuse"))
}

/// Whether this kernel is at least `wanted`.
pub fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    parse_release(&release).is_some_and(|found| found >= wanted)
}

fn check_user(uid: u32) -> Result<(), RequirementError> {
    if uid == 0 { Ok(()) } else { Err(RequirementError::NotRoot { uid }) }
}

fn check_kernel(release: &str) -> Result<(), RequirementError> {
    match parse_release(release) {
        Some(version) if version < MINIMUM_KERNEL => {
            Err(RequirementError::KernelTooOld { found: release.to_owned() })
        }
        // A release we cannot read is not held against the machine: the first call that fails
        // names itself.
        _ => Ok(()),
    }
}

fn check_fuse(path: &Path) -> Result<(), RequirementError> {
    use std::os::unix::fs::FileTypeExt;
    let unusable = |source: io::Error| match source.raw_os_error() {
        // ENXIO, ENODEV: a node without its module behind it.
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            RequirementError::NoFuse { path: path.to_owned() }
        }
        _ => RequirementError::FuseUnusable { path: path.to_owned(), source },
    };
    let metadata = std::fs::metadata(path).map_err(unusable)?;
    if !metadata.file_type().is_char_device() {
        return Err(RequirementError::NotADevice { path: path.to_owned() });
    }
    std::fs::File::options().read(true).write(true).open(path).map_err(unusable)?;
    Ok(())
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        check().unwrap();
    }

    #[test]
    fn an_old_kernel_is_named_with_the_one_needed() {
        let text = check_kernel("5.15.0-91-generic").unwrap_err().to_string();
        assert!(text.contains("5.15.0-91-generic") && text.contains("6.1"), "{text}");
        assert!(check_kernel("6.0.19").is_err());
        check_kernel("6.1").unwrap();
        check_kernel("10.0.1").unwrap();
    }

    #[test]
    fn another_user_is_told_to_use_root() {
        let text = check_user(1000).unwrap_err().to_string();
        assert!(text.contains("uid 1000") && text.contains("sudo"), "{text}");
    }

    #[test]
    fn a_missing_or_wrong_device_is_named_with_its_mend() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fuse");
        let text = check_fuse(&path).unwrap_err().to_string();
        assert!(text.contains("modprobe fuse") && text.contains("fuse does not exist"), "{text}");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(check_fuse(&path), Err(RequirementError::NotADevice { .. })));
    }

    #[test]
    fn every_lack_is_one_line() {
        let lacks = [
            check_user(5).unwrap_err(),
            check_kernel("4.4").unwrap_err(),
            check_fuse(Path::new("/nonexistent/fuse")).unwrap_err(),
        ];
        assert!(lacks.iter().all(|lack| !lack.to_string().contains('\n')));
    }
}
