//! The operations that would change something. All of them fail, for every caller, on every node.

use crate::Denied;

/// A FUSE request that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// `O_CREAT` of a name that is not there.
    Create,
    /// `O_TMPFILE`.
    Tmpfile,
    /// mknod(2), and sockets bound below the mount.
    Mknod,
    /// mkdir(2).
    Mkdir,
    /// symlink(2).
    Symlink,
    /// link(2).
    Link,
    /// unlink(2).
    Unlink,
    /// rmdir(2).
    Rmdir,
    /// rename(2), also with flags.
    Rename,
    /// chmod, chown, truncate, utimensat.
    Setattr,
    /// write(2), also on a file that was opened for reading only.
    Write,
    /// fallocate(2).
    Fallocate,
    /// copy_file_range(2) into a file here.
    CopyFileRange,
    /// setxattr(2).
    Setxattr,
    /// removexattr(2).
    Removexattr,
}

impl Mutation {
    /// Every mutation, for the tests that try each.
    pub const ALL: [Self; 15] = [
        Self::Create,
        Self::Tmpfile,
        Self::Mknod,
        Self::Mkdir,
        Self::Symlink,
        Self::Link,
        Self::Unlink,
        Self::Rmdir,
        Self::Rename,
        Self::Setattr,
        Self::Write,
        Self::Fallocate,
        Self::CopyFileRange,
        Self::Setxattr,
        Self::Removexattr,
    ];

    /// The answer: EROFS, whoever asks and whatever it names. The kernel may refuse earlier with another errno
    /// (EACCES, EEXIST, EXDEV); docs/SEMANTICS.md has the table.
    pub const fn denied(self) -> Denied {
        match self {
            Self::Create
            | Self::Tmpfile
            | Self::Mknod
            | Self::Mkdir
            | Self::Symlink
            | Self::Link
            | Self::Unlink
            | Self::Rmdir
            | Self::Rename
            | Self::Setattr
            | Self::Write
            | Self::Fallocate
            | Self::CopyFileRange
            | Self::Setxattr
            | Self::Removexattr => Denied::ReadOnly,
        }
    }
}

// open(2)'s flags on x86-64, aarch64, riscv64 and s390x (asm-generic/fcntl.h).
const O_ACCMODE: i32 = 0o3;
const O_CREAT: i32 = 0o100;
const O_TRUNC: i32 = 0o1000;
const O_APPEND: i32 = 0o2000;
const O_TMPFILE_BIT: i32 = 0o20_000_000;

/// Whether open(2) flags ask to change anything.
///
/// O_APPEND without write access changes nothing, and the kernel lets it pass on a read-only mount; it is refused
/// all the same, for such a caller means to write.
pub const fn open_mutates(flags: i32) -> bool {
    flags & (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | O_TMPFILE_BIT) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_is_erofs() {
        for mutation in Mutation::ALL {
            assert_eq!(mutation.denied().errno(), 30, "{mutation:?}");
        }
    }

    #[test]
    fn only_plain_reading_passes() {
        // O_RDONLY with O_NONBLOCK, O_DIRECT, O_LARGEFILE, O_NOATIME, O_CLOEXEC, __FMODE_EXEC.
        for flags in [0, 0o4000, 0o40000, 0o100_000, 0o1_000_000, 0o2_000_000, 0o40] {
            assert!(!open_mutates(flags), "{flags:o}");
        }
        for flags in [1, 2, 3, 0o100, 0o1000, 0o2000, 0o20_200_000, 0o1002] {
            assert!(open_mutates(flags), "{flags:o}");
        }
    }
}
