//! HTTP/2 on one connection, which is known to be served before anything is asked on it.
//!
//! Invariant: a [`Channel`] from here never reconnects by itself.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

use crate::format::USER_AGENT;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpeakError {
    /// HTTP/2 could not be set up.
    #[error(transparent)]
    Setup(#[from] Error),
    /// The connection ended, with the system's reason or TLS's.
    #[error(transparent)]
    Stream(io::Error),
    /// Nobody read from it.
    #[error("the connection was given up")]
    Silent,
}

/// The connection had ended before a request was made on it.
#[derive(Debug, thiserror::Error)]
#[error("the connection ended")]
struct Ended;

/// Whether a call that failed was not even sent, because its connection had ended before.
#[must_use]
pub fn never_sent(failed: &Status) -> bool {
    let mut cause = failed.source();
    while let Some(error) = cause {
        if error.is::<Ended>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Speaks HTTP/2 on `stream` as `endpoint` says, from when the other side has said its first word: a request on a
/// connection that a stopping server has not taken up yet would be lost without a word.
pub async fn speak<S>(endpoint: Endpoint, stream: S) -> Result<Channel, SpeakError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (tell, first) = oneshot::channel();
    let once = Arc::new(Mutex::new(Some(FirstRead { stream, tell: Some(tell) })));
    let connector = service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.map(TokioIo::new).ok_or(Ended) }
    });
    let channel = endpoint.user_agent(USER_AGENT)?.connect_with_connector(connector).await?;
    match first.await {
        Ok(Ok(())) => Ok(channel),
        Ok(Err(error)) => Err(SpeakError::Stream(error)),
        Err(_dropped) => Err(SpeakError::Silent),
    }
}

/// Tells how the first read ended.
struct FirstRead<S> {
    stream: S,
    tell: Option<oneshot::Sender<io::Result<()>>>,
}

impl<S: AsyncRead + Unpin> FirstRead<S> {
    /// A write that fails before the first read may have been answered by an alert that waits to be
    /// read; it says more than the broken pipe.
    fn tell_failed_write(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let Some(tell) = self.tell.take() else { return error };
        let kind = error.kind();
        let mut scratch = [0; 1];
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut scratch));
        let reason = match read {
            Poll::Ready(Err(reason)) => reason,
            _ => error,
        };
        // A failed send means that the caller gave up.
        drop(tell.send(Err(reason)));
        kind.into()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstRead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let Some(tell) = self.tell.take() else {
            return Poll::Ready(outcome);
        };
        let nothing = buffer.filled().len() == before;
        // A failed send means that the caller gave up.
        Poll::Ready(match outcome {
            Ok(()) => {
                let told = if nothing { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) };
                drop(tell.send(told));
                Ok(())
            }
            Err(error) => {
                let kind = error.kind();
                drop(tell.send(Err(error)));
                Err(kind.into())
            }
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FirstRead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(outcome.map_err(|error| self.tell_failed_write(cx, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(outcome.map_err(|error| self.tell_failed_write(cx, error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
