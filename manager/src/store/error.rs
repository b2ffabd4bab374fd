//! Why the store refused or failed, with the file's name and the mend.
//!
//! Depends on redb's error type only. Invariant: an error names the file it is about and never holds a key, a row's
//! content or a row's name.
use std::io;

/// A refusal or failure of the store. Cheap to clone: one failure is reported to every waiting caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The folder holds no store.
    #[error("{folder} holds no store; initialise it (--init) or join a cluster (--join)")]
    NotInitialised {
        /// The data folder.
        folder: String,
    },
    /// The folder already holds a store, so none is created.
    #[error("{folder} already holds a store; start without --init, or choose another data folder")]
    AlreadyInitialised {
        /// The data folder.
        folder: String,
    },
    /// Another process (or another handle) has the folder.
    #[error("{folder} is in use by another manager; stop that one first")]
    InUse {
        /// The data folder or the file.
        folder: String,
    },
    /// One of the two files is gone while the other is there.
    #[error(
        "{file} is missing although {other} is there; restore both from one backup, or empty the data folder and \
         join again under a new id"
    )]
    Missing {
        /// The missing file.
        file: String,
        /// The file that shows that it existed.
        other: String,
    },
    /// The file was written by a newer Keyhole.
    #[error(
        "{file} has format {found}, this keyhole knows formats up to {known}; start a newer keyhole"
    )]
    NewerFormat {
        /// The store's file.
        file: String,
        /// The version found in the file.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// The key-encryption key does not open the store's key.
    #[error(
        "the key in {kek} does not open {file}; give the key file that the store was created with (--kek-file)"
    )]
    WrongKey {
        /// The store's file.
        file: String,
        /// The key file.
        kek: String,
    },
    /// The content is not what was written: a flipped bit, a cut file, a missing row.
    #[error(
        "{file} is damaged: {what}; nothing of it is served. Restore the data folder from a backup, or empty it and \
         join again under a new id"
    )]
    Damaged {
        /// The damaged file.
        file: String,
        /// What does not fit.
        what: String,
    },
    /// The store lost commits that were acknowledged.
    #[error(
        "{file} is older than what this manager acknowledged (commit {found}, acknowledged {acknowledged}); it must \
         not vote again: remove this manager from the cluster, empty its data folder and join under a new id"
    )]
    RolledBack {
        /// The store's file.
        file: String,
        /// The last commit in the file.
        found: u64,
        /// The last commit that was acknowledged.
        acknowledged: u64,
    },
    /// No space is left for the file.
    #[error("no space left to write {file}; free space on its file system and start again")]
    Full {
        /// The file that could not grow.
        file: String,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {file}: {reason}")]
    Io {
        /// What was attempted: "read", "write", "open"...
        doing: &'static str,
        /// On which file.
        file: String,
        /// The system's words.
        reason: String,
    },
    /// Entries would leave a hole in the log, or overwrite what is there.
    #[error("the log ends before {expected}, entry {found} does not follow")]
    Hole {
        /// The index that must come next.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// Keys or randomness could not be had.
    #[error("cannot {doing}: {reason}")]
    Keys {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The store was stopped.
    #[error("the store is stopped")]
    Stopped,
}

impl StoreError {
    /// An operating system error on `file`; a full disk is told apart.
    pub(crate) fn io(doing: &'static str, file: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full { file: file.to_owned() },
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::damaged(file, error.to_string())
            }
            _ => Self::Io { doing, file: file.to_owned(), reason: error.to_string() },
        }
    }

    /// The content of `file` is not what was written.
    pub(crate) fn damaged(file: &str, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), what: what.into() }
    }

    /// An error of redb while it worked on `file`.
    pub(crate) fn redb(doing: &'static str, file: &str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) => Self::io(doing, file, &error),
            redb::Error::DatabaseAlreadyOpen => Self::InUse { folder: file.to_owned() },
            redb::Error::PreviousIo => Self::Io {
                doing,
                file: file.to_owned(),
                reason: "an earlier write failed".to_owned(),
            },
            other => Self::damaged(file, other.to_string()),
        }
    }

    /// Randomness or locked memory could not be had.
    pub(crate) fn keys(doing: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Keys { doing, reason: reason.to_string() }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}
