//! Why a request is denied, and the one table from there to errno.
//!
//! Numbers are Linux's, as on every architecture we build for; node-fs tests them against libc's.

/// A refusal. It never says whether something exists that the caller may not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// There is no such name for this caller.
    #[error("no such file for this caller")]
    NoEntry,
    /// The inode belongs to another task, or the caller is no task.
    #[error("the file belongs to another task")]
    NotYours,
    /// Nothing here is ever changed.
    #[error("the secrets are read-only")]
    ReadOnly,
    /// The inode is no longer what its name means; looking the name up again helps.
    #[error("the file is not current any more; look it up again")]
    Stale,
    /// The right to this file ended while it was open.
    #[error("the grant of this file was revoked")]
    Revoked,
    /// The file has no such extended attribute, for this caller.
    #[error("no such attribute for this caller")]
    NoAttribute,
    /// The caller's buffer is too small for the attribute.
    #[error("the buffer is too small for the attribute")]
    ShortBuffer,
    /// A directory operation on a file.
    #[error("not a directory")]
    NotADirectory,
    /// A file operation on a directory.
    #[error("is a directory")]
    IsADirectory,
}

impl Denied {
    /// The errno for the kernel, as a positive number.
    pub const fn errno(self) -> i32 {
        match self {
            // Not EACCES: that would say that the name exists for someone.
            Self::NoEntry => ENOENT,
            // ENOENT would hide that the inode exists, but who got here holds the inode already, and EACCES is
            // what a program reports well. EPERM would do too.
            Self::NotYours => EACCES,
            Self::ReadOnly => EROFS,
            // The kernel answers ESTALE from OPEN by looking the whole path up again, once.
            Self::Stale => ESTALE,
            // EIO would look like a broken disk; EKEYREVOKED prints as "Key has been revoked", which is the truth.
            Self::Revoked => EKEYREVOKED,
            // Not EOPNOTSUPP: the kernel remembers that for the whole mount, for every caller.
            Self::NoAttribute => ENODATA,
            Self::ShortBuffer => ERANGE,
            Self::NotADirectory => ENOTDIR,
            Self::IsADirectory => EISDIR,
        }
    }
}

const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EROFS: i32 = 30;
const ERANGE: i32 = 34;
const ENODATA: i32 = 61;
const ESTALE: i32 = 116;
const EKEYREVOKED: i32 = 128;
