//! The supervisor: holds what must outlive a worker, and sees to it that one is always serving.
//!
//! It holds the FUSE connection, sealed state and values and their key (unmapped), the control socket and
//! the mount; it serves nothing, reads no secret and looks up no path under the mount: a process
//! that touches the mount it holds cannot even be killed. One thread, one loop.

mod listener;
mod pace;
mod watchdog;
mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use keyhole_secmem::{SecretFd, harden};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::attempts::Attempts;
use crate::inheritance::{Bequest, Descriptors, memfd_with};
use crate::mount::{AttachedMount, FuseControl, MountError, MountPoint, Superblock};
use crate::report::{self, Report};
use crate::sys;
use listener::ControlListener;
use pace::Pace;
use worker::Worker;

/// A worker that cannot ever serve (its settings are wrong, its token refused) exits with this
/// before it reports ready; it has said why. The supervisor then gives up. As in sysexits(3).
pub const EXIT_HOPELESS: u8 = 78;
/// A worker whose connection was aborted exits with this; the supervisor mounts afresh.
pub const EXIT_CONNECTION_LOST: u8 = 79;

/// How often the worker's health is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a worker may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The mount could not be made or placed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The control socket could not be made.
    #[error(transparent)]
    Listener(#[from] listener::ListenerError),
    /// The key for sealed state could not be made.
    #[error(transparent)]
    Key(#[from] keyhole_secmem::SecretFdError),
    /// The first worker could not be started.
    #[error("cannot start a worker: {0}")]
    Start(io::Error),
    /// The first worker said that it cannot serve.
    #[error("the node could not start; the reason is above")]
    Hopeless,
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::System { doing, source }
}

/// Makes the command of a worker, given the number of the manifest's descriptor.
pub type WorkerCommand = Box<dyn Fn(RawFd) -> Command>;

/// What a supervisor is told.
pub struct SupervisorConfig {
    /// Where to mount.
    pub mount_point: PathBuf,
    /// Where to listen for `keyhole run` and `keyhole task`.
    pub control_socket: PathBuf,
    /// How to start a worker: `keyhole node worker --config-fd N`.
    pub worker: WorkerCommand,
    /// Passed on to every worker. Paths in it must be absolute; no secret may be in it.
    pub app: serde_json::Value,
}

/// Runs a node until SIGTERM or SIGINT; SIGHUP replaces the worker. Must be called on the main
/// thread of a process that has no other thread.
pub fn run(config: SupervisorConfig) -> Result<(), SupervisorError> {
    // First of all, so that no signal can leave a mount behind.
    let signals = sys::signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
        .map_err(failed("block signals"))?;
    harden()?;
    let mount_point =
        std::path::absolute(&config.mount_point).map_err(failed("resolve --mount"))?;
    let socket =
        std::path::absolute(&config.control_socket).map_err(failed("resolve --control-socket"))?;
    let prepared = MountPoint::prepare(&mount_point)?;
    let listener = ControlListener::bind(&socket)?;
    // Nothing of ours may stand in the way of anybody's unmount.
    std::env::set_current_dir("/").map_err(failed("leave the working directory"))?;

    let mut supervisor = Supervisor {
        control: FuseControl::open().map_err(failed("open the FUSE control filesystem"))?,
        connection: Connection::create()?,
        unattached: Some(prepared),
        estate: Estate::create(listener)?,
        config: SupervisorConfig { mount_point, control_socket: socket, ..config },
        signals,
        worker: None,
        pace: Pace::default(),
        restart_at: None,
        served: false,
    };
    let result = supervisor.serve();
    supervisor.shut_down(result)
}

/// No core and no look inside, as in every process of a node; there is no plaintext here, but nothing else to show either.
fn harden() -> Result<(), SupervisorError> {
    let refused = failed("harden this process");
    let hardened = harden::forbid_dumps().map_err(io::Error::other);
    hardened.and_then(|()| harden::forbid_cores().map_err(io::Error::other)).map_err(refused)
}

/// One FUSE connection and what belongs to it alone.
struct Connection {
    device: OwnedFd,
    init: OwnedFd,
    attempts: Attempts,
    handles: OwnedFd,
    mount: Mount,
}

enum Mount {
    Detached(Superblock),
    Attached(AttachedMount),
    /// Only while one becomes the other.
    Gone,
}

impl Connection {
    fn create() -> Result<Self, SupervisorError> {
        let superblock = Superblock::create()?;
        let device = superblock.device().try_clone_to_owned();
        Ok(Self {
            device: device.map_err(failed("share the FUSE device"))?,
            init: memfd_with("keyhole-init", superblock.init())
                .map_err(failed("keep FUSE_INIT"))?,
            attempts: Attempts::create().map_err(failed("make the resend counts"))?,
            handles: memfd_with("keyhole-handles", b"")
                .map_err(failed("make the handle counts"))?,
            mount: Mount::Detached(superblock),
        })
    }

    fn attach(&mut self, at: MountPoint) -> Result<(), MountError> {
        if let Mount::Detached(superblock) = std::mem::replace(&mut self.mount, Mount::Gone) {
            self.mount = Mount::Attached(superblock.attach(at)?);
        }
        Ok(())
    }

    fn detach(&self) -> Result<(), MountError> {
        match &self.mount {
            Mount::Attached(mount) => mount.detach(),
            Mount::Detached(_) | Mount::Gone => Ok(()),
        }
    }

    /// How many requests wait for an answer; none as long as that cannot be known.
    fn waiting(&self, control: &FuseControl) -> u64 {
        let Mount::Attached(mount) = &self.mount else { return 0 };
        let waiting = mount.connection().map(|connection| control.waiting(connection));
        waiting.and_then(Result::ok).unwrap_or(0)
    }
}

/// What every worker inherits, whatever the connection.
struct Estate {
    state: OwnedFd,
    values: OwnedFd,
    key: SecretFd,
    listener: ControlListener,
    life_read: OwnedFd,
    /// Never written to: it only has to close when this process ends.
    _life_write: OwnedFd,
}

impl Estate {
    fn create(listener: ControlListener) -> Result<Self, SupervisorError> {
        let (life_read, life_write) = io::pipe().map_err(failed("make a pipe"))?;
        Ok(Self {
            state: memfd_with("keyhole-state", b"").map_err(failed("make the state memory"))?,
            values: memfd_with("keyhole-values", b"")
                .map_err(failed("make the memory of values"))?,
            key: SecretFd::create()?,
            listener,
            life_read: life_read.into(),
            _life_write: life_write.into(),
        })
    }
}

struct Supervisor {
    config: SupervisorConfig,
    signals: OwnedFd,
    control: FuseControl,
    connection: Connection,
    /// Where to attach once a worker serves; taken then.
    unattached: Option<MountPoint>,
    estate: Estate,
    worker: Option<Worker>,
    pace: Pace,
    restart_at: Option<Instant>,
    /// Whether any worker ever served.
    served: bool,
}

impl Supervisor {
    /// Returns on a signal to end, or when it cannot go on.
    fn serve(&mut self) -> Result<(), SupervisorError> {
        self.start_worker().map_err(SupervisorError::Start)?;
        loop {
            self.wait()?;
            while let Some(signal) =
                sys::read_signal(&self.signals).map_err(failed("read signals"))?
            {
                if signal != libc::SIGHUP {
                    tracing::info!(signal, "ending");
                    return Ok(());
                }
                self.replace_worker();
            }
            self.read_reports()?;
            self.bury_worker()?;
            self.check_health();
            self.restart_when_due();
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<(), SupervisorError> {
        let now = Instant::now();
        let timeout = match self.restart_at {
            Some(at) => at.saturating_duration_since(now).min(TICK),
            None => TICK,
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(worker) = &self.worker {
            fds.extend(worker.sources().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let timeout = Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(failed("wait for events")(error.into())),
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let (reports, reporter) = report::channel()?;
        let descriptors = self.descriptors(reporter.as_fd());
        let settings = (self.config.mount_point.clone(), self.config.app.clone());
        let bequest = Bequest::prepare(descriptors, settings.0, settings.1)?;
        let worker = Worker::start((self.config.worker)(bequest.number()), reports)?;
        drop(bequest);
        tracing::info!(pid = worker.pid(), "worker started");
        self.worker = Some(worker);
        self.restart_at = None;
        Ok(())
    }

    fn descriptors<'a>(&'a self, report: BorrowedFd<'a>) -> Descriptors<BorrowedFd<'a>> {
        Descriptors {
            device: self.connection.device.as_fd(),
            init: self.connection.init.as_fd(),
            attempts: self.connection.attempts.as_fd(),
            handles: self.connection.handles.as_fd(),
            state: self.estate.state.as_fd(),
            values: self.estate.values.as_fd(),
            key: self.estate.key.as_fd(),
            listener: self.estate.listener.as_fd(),
            report,
            life: self.estate.life_read.as_fd(),
        }
    }

    fn read_reports(&mut self) -> Result<(), SupervisorError> {
        let reports = self.worker.as_mut().map(Worker::read_reports).unwrap_or_default();
        if reports.contains(&Report::Ready) {
            self.worker_is_ready()?;
        }
        Ok(())
    }

    /// The mount appears only now, so that no caller ever waits for a worker that cannot start.
    fn worker_is_ready(&mut self) -> Result<(), SupervisorError> {
        if let Some(at) = self.unattached.take() {
            self.connection.attach(at)?;
        }
        if !self.served {
            self.served = true;
            eprintln!("ready: serving {}", self.config.mount_point.display());
        }
        Ok(())
    }

    /// Notices the end of a worker and plans for the next one.
    fn bury_worker(&mut self) -> Result<(), SupervisorError> {
        let Some(status) = self.worker.as_mut().and_then(Worker::ended) else {
            return Ok(());
        };
        let pid = self.worker.take().map(|worker| worker.pid());
        let code = status.code();
        if code == Some(EXIT_HOPELESS.into()) && !self.served {
            return Err(SupervisorError::Hopeless);
        }
        if code == Some(EXIT_CONNECTION_LOST.into()) {
            tracing::error!("the FUSE connection was aborted: mounting afresh");
            self.mount_afresh()?;
        }
        let now = Instant::now();
        let pause = self.pace.after_death(now);
        tracing::warn!(pid, %status, pause_ms = pause.as_millis(), "worker died; starting another");
        self.restart_at = Some(now + pause);
        Ok(())
    }

    fn mount_afresh(&mut self) -> Result<(), SupervisorError> {
        self.connection.detach()?;
        self.connection = Connection::create()?;
        self.unattached = Some(MountPoint::prepare(&self.config.mount_point)?);
        Ok(())
    }

    fn check_health(&mut self) {
        let waiting = self.connection.waiting(&self.control);
        let Some(worker) = self.worker.as_mut() else {
            return;
        };
        if let Some(stuck) = worker.judge(waiting) {
            tracing::error!(pid = worker.pid(), %stuck, "killing the worker");
            worker.kill();
        }
    }

    fn restart_when_due(&mut self) {
        let due = self.restart_at.is_some_and(|at| at <= Instant::now());
        if !due || self.worker.is_some() {
            return;
        }
        if let Err(error) = self.start_worker() {
            // Descriptors, memory or processes may be short for a while: readers wait.
            let pause = self.pace.after_death(Instant::now()).max(TICK);
            tracing::error!(%error, "cannot start a worker; trying again");
            self.restart_at = Some(Instant::now() + pause);
        }
    }

    fn replace_worker(&mut self) {
        tracing::info!("replacing the worker");
        if let Some(mut worker) = self.worker.take() {
            worker.end_within(PATIENCE);
        }
        self.restart_at = Some(Instant::now());
    }

    /// Leaves nothing behind, whatever the reason for ending; the first error counts. The socket's
    /// file goes with the estate.
    fn shut_down(mut self, result: Result<(), SupervisorError>) -> Result<(), SupervisorError> {
        // The mount first: nobody new comes in while the worker still answers those inside.
        let detached = self.connection.detach();
        if let Some(mut worker) = self.worker.take() {
            worker.end_within(PATIENCE);
        }
        result.and(detached.map_err(Into::into))
    }
}
