//! The node's control socket: made by the supervisor so that it survives workers.
//!
//! Invariant: at no moment may anybody but root connect to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Somebody answers there.
    #[error("another Keyhole node listens on {}: stop it or choose another --control-socket", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket: remove it or choose another --control-socket", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot listen on {}: {source}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The listening socket and its file, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlListener {
    /// Listens at `path` (mode 0600), after removing the socket of a node that is gone.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenerError> {
        let failed = |source| ListenerError::System { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o755).create(folder).map_err(failed)?;
        }
        remove_stale(path)?;
        // The mask, not a later chmod: the socket is never open to others. One thread, so that
        // nothing else is made under it meanwhile.
        let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound.map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

impl Drop for ControlListener {
    /// Removes the socket file, if it is still this one.
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenerError> {
    let failed = |source| ListenerError::System { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenerError::InUse { path: path.to_owned() }),
        // Nobody listens: its owner is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_roots_alone_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/node.sock");
        let listener = ControlListener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(ControlListener::bind(&path), Err(ListenerError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_nodes_socket_is_replaced_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = ControlListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = ControlListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the socket of another is not removed");

        let file = dir.path().join("file");
        std::fs::write(&file, b"precious").unwrap();
        let refused = ControlListener::bind(&file);
        assert!(matches!(refused, Err(ListenerError::NotASocket { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }
}
