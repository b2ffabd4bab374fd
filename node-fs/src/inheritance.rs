//! What a worker gets from its supervisor: descriptors, and a manifest that says which is which.
//!
//! Both sides are here so that they cannot drift apart. The manifest travels in a memfd, never in
//! argv or the environment. Invariant: a worker whose supervisor is gone does not live on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use keyhole_secmem::SecretFd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::attempts::Attempts;
use crate::handles::Handles;
use crate::report::Reporter;
use crate::sys;

/// Raised when a field changes its meaning: supervisor and worker may be of different builds.
const FORMAT: u32 = 2;
const MAX_MANIFEST: usize = 1 << 20;

/// Why a worker could not take up its inheritance.
#[derive(Debug, thiserror::Error)]
pub enum InheritanceError {
    /// There is no manifest at that descriptor.
    #[error(
        "descriptor {fd} holds no manifest of a Keyhole supervisor ({source}): workers are started by \"keyhole node run\", not by hand"
    )]
    NoManifest {
        /// The number given.
        fd: RawFd,
        /// What was wrong with it.
        source: io::Error,
    },
    /// The supervisor is of an incompatible build.
    #[error(
        "the supervisor speaks handover format {found}, this worker format {FORMAT}: restart the node"
    )]
    Format {
        /// The supervisor's format.
        found: u32,
    },
    /// The supervisor died first.
    #[error("the supervisor (pid {supervisor}) is gone: this worker ends")]
    Orphan {
        /// Who it was.
        supervisor: u32,
    },
    /// A descriptor is not what the manifest says.
    #[error("the inherited {what} (descriptor {fd}) cannot be used: {source}")]
    Descriptor {
        /// Which one.
        what: &'static str,
        /// Its number.
        fd: RawFd,
        /// What was wrong with it.
        source: io::Error,
    },
}

/// The manifest, as written to the memfd.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    supervisor: u32,
    mount_point: PathBuf,
    descriptors: Descriptors<RawFd>,
    app: serde_json::Value,
}

/// One of each descriptor that a worker inherits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Descriptors<T> {
    /// The kernel end of the FUSE connection.
    pub(crate) device: T,
    /// A memfd with the bytes of the `FUSE_INIT` request.
    pub(crate) init: T,
    /// A memfd with the counts of resent requests.
    pub(crate) attempts: T,
    /// A memfd with the counts of open handles.
    pub(crate) handles: T,
    /// A memfd for the worker's sealed state.
    pub(crate) state: T,
    /// A memfd for sealed values.
    pub(crate) values: T,
    /// The secret memory with the key that seals it.
    pub(crate) key: T,
    /// The control socket.
    pub(crate) listener: T,
    /// The pipe for reports to the supervisor.
    pub(crate) report: T,
    /// A pipe that ends when the supervisor does.
    pub(crate) life: T,
}

impl<T> Descriptors<T> {
    fn each(&self) -> [&T; 10] {
        [
            &self.device,
            &self.init,
            &self.attempts,
            &self.handles,
            &self.state,
            &self.values,
            &self.key,
            &self.listener,
            &self.report,
            &self.life,
        ]
    }
}

/// A manifest in a memfd, with its descriptors open across exec until this is dropped.
#[derive(Debug)]
pub(crate) struct Bequest<'a> {
    manifest: OwnedFd,
    descriptors: Descriptors<BorrowedFd<'a>>,
}

impl<'a> Bequest<'a> {
    /// Writes the manifest. Only a process without other threads may do this: any child started
    /// before the drop inherits everything.
    pub(crate) fn prepare(
        descriptors: Descriptors<BorrowedFd<'a>>,
        mount_point: PathBuf,
        app: serde_json::Value,
    ) -> io::Result<Self> {
        let manifest = Manifest {
            format: FORMAT,
            supervisor: std::process::id(),
            mount_point,
            descriptors: numbers(&descriptors),
            app,
        };
        let memfd = memfd_with("keyhole-manifest", &serde_json::to_vec(&manifest)?)?;
        let bequest = Self { manifest: memfd, descriptors };
        bequest.set_inheritable(true)?;
        Ok(bequest)
    }

    /// The number to give to the worker.
    pub(crate) fn number(&self) -> RawFd {
        self.manifest.as_raw_fd()
    }

    fn set_inheritable(&self, inheritable: bool) -> io::Result<()> {
        use rustix::io::FdFlags;
        let flags = if inheritable { FdFlags::empty() } else { FdFlags::CLOEXEC };
        rustix::io::fcntl_setfd(&self.manifest, flags)?;
        for fd in self.descriptors.each() {
            rustix::io::fcntl_setfd(fd, flags)?;
        }
        Ok(())
    }
}

impl Drop for Bequest<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set_inheritable(false) {
            tracing::error!(%error, "cannot close descriptors to later children");
        }
    }
}

fn numbers(descriptors: &Descriptors<BorrowedFd<'_>>) -> Descriptors<RawFd> {
    Descriptors {
        device: descriptors.device.as_raw_fd(),
        init: descriptors.init.as_raw_fd(),
        attempts: descriptors.attempts.as_raw_fd(),
        handles: descriptors.handles.as_raw_fd(),
        state: descriptors.state.as_raw_fd(),
        values: descriptors.values.as_raw_fd(),
        key: descriptors.key.as_raw_fd(),
        listener: descriptors.listener.as_raw_fd(),
        report: descriptors.report.as_raw_fd(),
        life: descriptors.life.as_raw_fd(),
    }
}

/// A memfd (closed on exec) with this content.
pub(crate) fn memfd_with(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(memfd);
    file.write_all_at(content, 0)?;
    Ok(file.into())
}

/// Everything a worker starts with.
#[derive(Debug)]
pub struct Inheritance {
    /// The kernel end of the FUSE connection; for [`adopt`](crate::handover::adopt).
    pub device: OwnedFd,
    /// The kernel's `FUSE_INIT` request; for [`adopt`](crate::handover::adopt).
    pub init: Vec<u8>,
    /// Counts of resent requests.
    pub attempts: Attempts,
    /// Counts of open handles.
    pub handles: Handles,
    /// Memory that outlives this worker, for sealed state only. Empty in the node's first worker.
    pub state: File,
    /// Memory that outlives this worker, for sealed values only.
    pub values: File,
    /// The key of this node's run: seals values in memory and the state.
    pub key: SecretFd,
    /// The control socket, listening.
    pub listener: UnixListener,
    /// For telling the supervisor that this worker serves.
    pub reporter: Reporter,
    /// Where the filesystem is or will be attached. Never look it up.
    pub mount_point: PathBuf,
    /// The settings that the supervisor was given for its workers.
    pub app: serde_json::Value,
}

impl Inheritance {
    /// Takes everything over, lets signals through again (the supervisor blocks them) and ties this
    /// process's life to the supervisor's. To be called first thing, once, before other threads
    /// start, with the number from the command line.
    pub fn receive(manifest_fd: RawFd) -> Result<Self, InheritanceError> {
        let no_manifest = |source| InheritanceError::NoManifest { fd: manifest_fd, source };
        let bytes = sys::inherit_fd(manifest_fd).and_then(read_whole).map_err(no_manifest)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| no_manifest(error.into()))?;
        if manifest.format != FORMAT {
            return Err(InheritanceError::Format { found: manifest.format });
        }
        let numbers = &manifest.descriptors;
        let take = |what, fd| sys::inherit_fd(fd).map_err(descriptor_error(what, fd));
        sys::unblock_signals().map_err(no_manifest)?;
        raise_descriptor_limit();
        die_with(manifest.supervisor, take("life line", numbers.life)?)?;
        let init = take("FUSE_INIT", numbers.init)?;
        Ok(Self {
            device: take("FUSE device", numbers.device)?,
            init: read_whole(init).map_err(descriptor_error("FUSE_INIT", numbers.init))?,
            attempts: Attempts::from(take("resend counts", numbers.attempts)?),
            handles: Handles::load(take("handle counts", numbers.handles)?)
                .map_err(descriptor_error("handle counts", numbers.handles))?,
            state: File::from(take("state", numbers.state)?),
            values: File::from(take("values", numbers.values)?),
            key: SecretFd::adopt(take("key", numbers.key)?)
                .map_err(|error| descriptor_error("key", numbers.key)(io::Error::other(error)))?,
            listener: UnixListener::from(take("control socket", numbers.listener)?),
            reporter: Reporter::from(take("report pipe", numbers.report)?),
            mount_point: manifest.mount_point,
            app: manifest.app,
        })
    }
}

fn descriptor_error(what: &'static str, fd: RawFd) -> impl FnOnce(io::Error) -> InheritanceError {
    move |source| InheritanceError::Descriptor { what, fd, source }
}

fn read_whole(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_MANIFEST {
        return Err(io::Error::other(format!("it has {length} bytes")));
    }
    let mut bytes = vec![0; length];
    // At offset 0: the descriptor's position is shared with every other worker's.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Ends this process when the supervisor ends: by the parent-death signal, and (should the
/// supervisor's thread, not its process, have been what the kernel watches) by a pipe.
fn die_with(supervisor: u32, life: OwnedFd) -> Result<(), InheritanceError> {
    let orphan = || InheritanceError::Orphan { supervisor };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|_refused| orphan())?;
    // It may have died before the signal was asked for.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent.and_then(|pid| u32::try_from(pid).ok()) != Some(supervisor) {
        return Err(orphan());
    }
    let wait = move || {
        let mut byte = [0];
        loop {
            match rustix::io::read(&life, &mut byte) {
                Err(rustix::io::Errno::INTR) => {}
                _ => end_now(),
            }
        }
    };
    std::thread::Builder::new()
        .name("life-line".to_owned())
        .spawn(wait)
        .map_err(|source| InheritanceError::Descriptor { what: "life line", fd: -1, source })?;
    Ok(())
}

/// Each caller that is known by a pidfd costs a descriptor, each node stream and client another.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn end_now() -> ! {
    let _refused = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_worker_started_by_hand_is_told_so() {
        let error = Inheritance::receive(987_654).unwrap_err().to_string();
        assert!(error.contains("keyhole node run"), "{error}");
        let junk = memfd_with("junk", b"{}").unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(junk);
        let error = Inheritance::receive(number).unwrap_err().to_string();
        assert!(error.contains("no manifest"), "{error}");
    }

    #[test]
    fn descriptors_are_inheritable_only_while_a_worker_is_started() {
        let fds: Vec<OwnedFd> = (0..10).map(|_| memfd_with("x", b"x").unwrap()).collect();
        let [a, b, c, d, e, f, g, h, i, j] = &fds[..] else { unreachable!() };
        let closes = |fd: &OwnedFd| {
            rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        };
        let descriptors = Descriptors {
            device: a.as_fd(),
            init: b.as_fd(),
            attempts: c.as_fd(),
            state: d.as_fd(),
            key: e.as_fd(),
            listener: f.as_fd(),
            report: g.as_fd(),
            life: h.as_fd(),
            handles: i.as_fd(),
            values: j.as_fd(),
        };
        let bequest = Bequest::prepare(descriptors, "/m".into(), serde_json::Value::Null).unwrap();
        assert!(!fds.iter().any(closes));
        drop(bequest);
        assert!(fds.iter().all(closes));
    }
}
