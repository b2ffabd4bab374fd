//! Why a manager does not start, or ended: one line each, with the thing and the mend.

use std::io;

use crate::audit::Unwritten;
use crate::ca::LifetimeError;
use crate::keys::KeyError;
use crate::listen::{PortError, SocketError};
use crate::store::StoreError;

/// Why a manager does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cluster did not let this manager in.
    #[error("cannot join the cluster of the manager at {address}: {why}")]
    Join {
        /// The manager that was asked.
        address: String,
        /// Why.
        why: String,
    },
    /// The join token.
    #[error("--token-file {file}: {why}")]
    Token {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// It was let in, and stopped before its store was made.
    #[error(
        "the data folder {folder} is of a join that was cut short; empty it, remove manager {manager} with 'keyhole \
         manager rm', and join again"
    )]
    HalfJoined {
        /// The folder.
        folder: String,
        /// The id that it was given.
        manager: String,
    },
    /// It is no member any more.
    #[error(
        "this manager ({manager}) was removed from the cluster: {why}; to join again, empty the data folder and start it \
         with --join"
    )]
    Removed {
        /// Its certificate's id.
        manager: String,
        /// Who says so.
        why: String,
    },
    /// This manager cannot go on alone, or must not.
    #[error(
        "--force-new-cluster: nothing was changed in {folder}: {why}; it is for one manager when most of the others are lost \
         for good"
    )]
    NotForced {
        /// The folder.
        folder: String,
        /// Why.
        why: String,
    },
    /// A lifetime out of range.
    #[error("--cert-expiry: {0}")]
    Lifetime(LifetimeError),
    /// The port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The operator socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The data folder.
    #[error("cannot {doing} the data folder {folder}: {source}; check --data-dir and its owner")]
    Folder {
        /// What was attempted.
        doing: &'static str,
        /// The folder.
        folder: String,
        /// The system's words.
        source: io::Error,
    },
    /// A folder with something else in it.
    #[error("--init: the data folder {folder} is not empty (it has {found}); give an empty one")]
    NotEmpty {
        /// The folder.
        folder: String,
        /// The first thing found in it.
        found: String,
    },
    /// A store whose cluster was never made.
    #[error("the data folder {folder} was not initialised to the end; start once more with --init")]
    HalfInitialised {
        /// The folder.
        folder: String,
    },
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It ran, and stopped without the last of its audit.
    #[error("this manager stopped and lost lines of its audit: {0}")]
    Audit(#[from] Unwritten),
    /// The clock.
    #[error(
        "this machine's clock says {now}, but the cluster's CA is valid from {from} to {until}; set the clock and start \
         again. If it is right, all managers were off when the CA ended: see 'Replace the root CA' in docs/MANAGERS.md"
    )]
    Clock {
        /// By this machine's clock.
        now: String,
        /// The CA's first second.
        from: String,
        /// The CA's last second.
        until: String,
    },
    /// This manager's own certificate.
    #[error("cannot make this manager's certificate: {why}")]
    Certificate {
        /// Why.
        why: String,
    },
    /// Something that the system refused.
    #[error("cannot {doing}: {why}")]
    System {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        why: String,
    },
    /// It ran, and then it could not go on.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    pub(super) fn system(doing: &'static str, why: impl std::fmt::Display) -> Self {
        Self::System { doing, why: why.to_string() }
    }

    pub(super) fn token(file: &std::path::Path, why: &dyn std::fmt::Display) -> Self {
        Self::Token { file: file.display().to_string(), why: why.to_string() }
    }

    pub(super) fn certificate(why: String) -> Self {
        Self::Certificate { why }
    }

    pub(super) fn serve(what: &str, error: tonic::transport::Error) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        Self::Failed(format!(
            "cannot serve {what}: {}",
            source.unwrap_or_else(|| error.to_string())
        ))
    }
}

impl From<crate::raft::StartError> for StartError {
    fn from(error: crate::raft::StartError) -> Self {
        use crate::raft::StartError as Raft;
        match error {
            Raft::Store(error) => Self::Store(error),
            Raft::Content(error) => Self::system("understand the store", error),
            Raft::Raft(why) => Self::system("start Raft", why),
        }
    }
}
