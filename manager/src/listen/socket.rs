//! The operator socket: made with its final mode before anybody can connect, removed when the manager stops.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use crate::authz::{LocalPeer, operator_group};

const BACKLOG: u32 = 128;
/// After a failed accept (EMFILE and the like), so as not to spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no operator socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something else lies at its path.
    #[error("{path} is there already and is no socket; remove it, or choose another --socket")]
    Occupied {
        /// The path.
        path: String,
    },
    /// Another process serves it.
    #[error("{path} is served by another process; stop that one, or choose another --socket")]
    InUse {
        /// The path.
        path: String,
    },
    /// The system refused.
    #[error(
        "cannot {doing} the socket {path}: {source}; check the folder, or choose another --socket"
    )]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The path.
        path: String,
        /// The system's words.
        source: io::Error,
    },
}

/// The listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct OperatorSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl OperatorSocket {
    /// Makes the socket, 0660 and of the group `keyhole` if there is one, in place of a stale one.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |doing| {
            move |source| SocketError::Io { doing, path: path.display().to_string(), source }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(failed("make the folder of"))?;
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(failed("make"))?;
        socket.bind(path).map_err(failed("bind"))?;
        // Nobody can connect before listen(), so nobody sees another mode than this.
        restrict(path).map_err(failed("restrict"))?;
        let listener = socket.listen(BACKLOG).map_err(failed("listen on"))?;
        let inode = fs::metadata(path).map_err(failed("look at"))?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// The connections that it gets until `closing`; then its file goes, and the stream waits without an end.
    pub(super) fn accepted(
        self,
        open: OpenCount,
        closing: impl Future<Output = ()> + Send + 'static,
    ) -> impl Stream<Item = io::Result<LocalConn>> + Send {
        let accepted = futures::stream::unfold((self, open), |(socket, open)| async move {
            loop {
                let accepted = socket.listener.accept().await;
                match accepted.and_then(|(stream, _)| LocalConn::new(stream, &open)) {
                    Ok(conn) => return Some((Ok(conn), (socket, open))),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a local connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        accepted.take_until(Box::pin(closing)).chain(futures::stream::pending())
    }
}

/// Counts the connections that are open.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenCount(Arc<watch::Sender<usize>>);

impl OpenCount {
    /// Until there is none.
    pub(super) async fn none(&self) {
        // The sender is here, so that the wait ends by the count only.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }

    fn one(&self) -> OpenOne {
        self.0.send_modify(|open| *open += 1);
        OpenOne(self.clone())
    }
}

/// One open connection.
#[derive(Debug)]
struct OpenOne(OpenCount);

impl Drop for OpenOne {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

impl Drop for OperatorSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the operator socket");
        }
    }
}

fn restrict(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    match operator_group() {
        Some(gid) => chown(path, None, Some(gid)),
        None => {
            tracing::warn!("there is no group 'keyhole': only root may use the operator socket");
            Ok(())
        }
    }
}

/// Removes what a manager that was killed left behind; a socket that answers is left alone.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let name = || path.display().to_string();
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::Occupied { path: name() });
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: name() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| SocketError::Io { doing: "remove the stale", path: name(), source }),
        Err(source) => Err(SocketError::Io { doing: "try", path: name(), source }),
    }
}

/// A local connection, with who made it.
#[derive(Debug)]
pub(super) struct LocalConn {
    stream: UnixStream,
    peer: LocalPeer,
    _open: OpenOne,
}

impl LocalConn {
    fn new(stream: UnixStream, open: &OpenCount) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let peer = LocalPeer {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
        };
        Ok(Self { stream, peer, _open: open.one() })
    }
}

impl Connected for LocalConn {
    type ConnectInfo = LocalPeer;

    fn connect_info(&self) -> LocalPeer {
        self.peer
    }
}

impl AsyncRead for LocalConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for LocalConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/manager.sock");
        let socket = OperatorSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o660);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
        assert!(matches!(OperatorSocket::bind(&path), Err(SocketError::InUse { .. })));
        drop(socket);
        assert!(!path.exists(), "its file goes with it");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "what a killed process leaves");
        drop(OperatorSocket::bind(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(OperatorSocket::bind(&path), Err(SocketError::Occupied { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
