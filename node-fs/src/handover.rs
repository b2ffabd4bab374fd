//! Taking over a living FUSE connection from a worker that is gone.
//!
//! fuser opens every session with the FUSE_INIT handshake, which the kernel holds only once per
//! connection. So the handshake happens over a socket pair: the kernel's INIT request, kept by
//! the supervisor, goes in; the reply that comes out goes to the kernel, which takes it from the
//! first worker and answers ENOENT to the later ones. Then the real descriptor takes the place of
//! the socket, and FUSE_NOTIFY_RESEND brings back what the last worker had taken and not answered.
//!
//! Depends on fuser and [`sys`](crate::sys). Invariant: a request is lost by nobody's death but
//! the supervisor's. A request that kills workers is bounded by [`Attempts`](crate::attempts) and
//! by the supervisor's pauses.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::sys;

/// `FUSE_NOTIFY_RESEND` (linux/fuse.h, 6.9).
const NOTIFY_RESEND: i32 = 7;

/// Why a connection could not be taken over, or ended badly.
#[derive(Debug, thiserror::Error)]
#[error("FUSE connection: {doing}: {source}")]
pub struct HandoverError {
    doing: &'static str,
    source: io::Error,
}

impl HandoverError {
    fn at<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self { doing, source: source.into() }
    }
}

/// A session on the real connection that has not read anything yet.
#[derive(Debug)]
pub struct Adopted<F: Filesystem> {
    session: Session<F>,
    resends: bool,
}

/// Adopts the connection `device`, whose `FUSE_INIT` request was `init`. The filesystem's `init`
/// must ask for the same features in every worker: the kernel heeds the first one's only.
pub fn adopt<F: Filesystem>(
    filesystem: F,
    device: OwnedFd,
    init: &[u8],
    threads: usize,
) -> Result<Adopted<F>, HandoverError> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(HandoverError::at("make the handshake sockets"))?;
    rustix::net::send(&ours, init, SendFlags::empty())
        .map_err(HandoverError::at("hand FUSE_INIT to the session"))?;

    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)
        .map_err(HandoverError::at("shake hands"))?;

    let mut reply = [0_u8; 4096];
    let (length, _) = rustix::net::recv(&ours, &mut reply, RecvFlags::DONTWAIT)
        .map_err(HandoverError::at("take the reply to FUSE_INIT"))?;
    answer_init(device.as_fd(), reply.get(..length).unwrap_or_default())
        .map_err(HandoverError::at("answer FUSE_INIT"))?;
    sys::replace_fd(device.as_fd(), session.as_fd())
        .map_err(HandoverError::at("put the connection into the session"))?;
    let resends = ask_to_resend(device.as_fd())
        .map_err(HandoverError::at("ask the kernel to resend requests"))?;
    Ok(Adopted { session, resends })
}

impl<F: Filesystem> Adopted<F> {
    /// For telling the kernel what has changed; never from a service thread.
    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Whether the kernel resends what the last worker left. Before 6.9 it does not, and the
    /// callers that waited then go on waiting until the node restarts.
    pub fn resends(&self) -> bool {
        self.resends
    }

    /// Serves until the connection ends: only an abort ends it while the supervisor lives.
    pub fn run(self) -> Result<(), HandoverError> {
        self.session.run().map_err(HandoverError::at("serve"))
    }
}

/// Later workers repeat the answer to a request that is gone: `ENOENT`.
fn answer_init(device: BorrowedFd<'_>, reply: &[u8]) -> rustix::io::Result<()> {
    match rustix::io::write(device, reply) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn ask_to_resend(device: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    // struct fuse_out_header { len: u32, error: i32, unique: u64 }; a notification has unique 0.
    let mut message = [0_u8; 16];
    let header = [16_u32.to_ne_bytes(), NOTIFY_RESEND.to_ne_bytes()];
    for (bytes, field) in message.chunks_exact_mut(4).zip(header) {
        bytes.copy_from_slice(&field);
    }
    match rustix::io::write(device, &message) {
        Ok(_) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
