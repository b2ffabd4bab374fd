//! The composition root of `keyhole manager run`: from a configuration to a manager that serves.
//!
//! Depends on everything else here. Invariant: the doors open last, when the store is whole, Raft leads, and the
//! certificate is fresh; every failure before that is one line that names the thing and the mend.

mod config;
mod error;
mod force;
mod init;
mod join;
mod locked;
mod restore;

pub use config::{JoinManager, ManagerConfig};
pub use error::StartError;
pub use restore::{Restore, RestoreError, Restored, restore};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use keyhole_secmem::harden;
use keyhole_state::State;
use keyhole_wire::seal::EdgeKeyPair;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::audit::{AuditLog, keep_noted, note};
use crate::authz::Authorized;
use crate::ca::{CaApi, keep_ca, keep_renewed, keep_roots};
use crate::cut_off::watch_quorum;
use crate::dispatch::DispatchApi;
use crate::key_place::KeyPlace;
use crate::keys::Kek;
use crate::listen::{OperatorSocket, Services, bind_port};
use crate::operator::OperatorApi;
use crate::raft::{PeerApi, RaftHandle, Status, keep_membership};
use crate::rekey::keep_keyring;
use crate::shell::Shell;
use crate::store_keys::keep_store_keys;
use init::{Opened, announce_address};

/// Calls under way have this long to end when the manager stops.
const GRACE: Duration = Duration::from_secs(1);
/// How long a manager that was removed stays for a vote that it may be asked for.
const LAST_VOTE: Duration = Duration::from_secs(2);
/// How long it stays then for the leader to hear that it knows, which takes as long as a write and an answer.
const LAST_ANSWER: Duration = Duration::from_millis(250);
/// How often the audit's leftovers are tended to.
const TEND: Duration = Duration::from_secs(1);

/// Runs a manager as a process: hardens it, serves until SIGTERM or SIGINT, stops cleanly.
///
/// An error is one line for standard error; the process then exits with 1.
pub async fn run(config: ManagerConfig) -> Result<(), StartError> {
    harden_process()?;
    raise_descriptor_limit();
    let signals = |kind| signal(kind).map_err(|e| StartError::system("wait for signals", e));
    let (mut term, mut int) =
        (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    config.check()?;
    let unlocked = tokio::select! {
        unlocked = locked::unlocked(&config) => unlocked?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    let running = Manager::start_unlocked(config, unlocked).await?;
    let stop = running.stopper();
    let stopping = tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: stopping"),
            _ = int.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.send_replace(true);
    });
    let ended = running.wait().await;
    stopping.abort();
    ended
}

/// No dumps, no cores, and panics that say where but never what.
pub fn harden_process() -> Result<(), StartError> {
    harden::install_panic_hook();
    harden::forbid_dumps().map_err(|e| StartError::system("harden this process", e))?;
    harden::forbid_cores().map_err(|e| StartError::system("harden this process", e))
}

/// Each node and each caller is a descriptor, and the usual limit is for small programs.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// A manager.
#[derive(Debug)]
pub struct Manager;

impl Manager {
    /// Opens (or initialises) the store, once it is unlocked if it is locked, leads the cluster, and serves.
    pub async fn start(config: ManagerConfig) -> Result<Running, StartError> {
        config.check()?;
        let unlocked = locked::unlocked(&config).await?;
        Self::start_unlocked(config, unlocked).await
    }

    async fn start_unlocked(
        config: ManagerConfig,
        unlocked: Option<(Kek, Arc<AuditLog>)>,
    ) -> Result<Running, StartError> {
        let (listener, address) = bind_port(&config.listen).await?;
        let opened = init::open(&config, address, unlocked).await?;
        let socket = OperatorSocket::bind(&config.socket)?;
        let (replica, failed) = (opened.replica.clone(), opened.failed.clone());
        let shell = assemble(opened)?;
        let services = Services {
            ca: CaApi(shell.clone()),
            dispatch: DispatchApi(shell.clone()),
            operator: OperatorApi(shell.clone()),
            peer: PeerApi(shell.clone()),
        };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(shell.clone().follow_changes());
        tasks.spawn(keep_renewed(shell.clone(), Authorized::of_member(shell.own.member)));
        tasks.spawn(keep_roots(shell.clone(), Authorized::of_member(shell.own.member)));
        tasks.spawn(keep_ca(shell.clone(), Authorized::of_member(shell.own.member)));
        tasks.spawn(tend_audit(shell.audit.clone()));
        tasks.spawn(watch_quorum(shell.clone(), Authorized::of_member(shell.own.member)));
        tasks.spawn(keep_keyring(shell.clone(), Authorized::of_member(shell.own.member)));
        let (by, place) = (Authorized::of_member(shell.own.member), KeyPlace::new(config.kek()));
        tasks.spawn(keep_store_keys(shell.clone(), by, place));
        tasks.spawn(keep_noted(shell.clone(), Authorized::of_member(shell.own.member)));
        tasks.spawn(keep_membership(replica.clone()));
        tasks.spawn(announce_address(replica.clone(), shell.own.clone()));
        let (close_socket, socket_closing) = watch::channel(false);
        let (close_port, port_closing) = watch::channel(false);
        let port = services.clone().serve_port(listener, until(port_closing));
        let mut doors = JoinSet::new();
        doors.spawn(async move { port.await.map_err(|e| StartError::serve("the port", e)) });
        doors.spawn(async move {
            let served = services.serve_socket(socket, until(socket_closing).shared()).await;
            served.map_err(|e| StartError::serve("the operator socket", e))
        });
        tracing::info!(%address, socket = %config.socket.display(), cluster = %shell.own.cluster,
            manager = %shell.own.manager, "ready");
        let close = [close_socket, close_port];
        let life = Life { shell, doors, close, tasks, stopped, replica, failed };
        Ok(Running {
            address,
            socket: config.socket,
            stop: Arc::new(stop),
            ended: tokio::spawn(life.run()),
        })
    }
}

/// Everything but the doors.
fn assemble(opened: Opened) -> Result<Arc<Shell>, StartError> {
    let input = EdgeKeyPair::generate().map_err(|e| StartError::system("make the input key", e))?;
    let Opened { replica, keyring, own, audit, tls, .. } = opened;
    Ok(Arc::new(Shell::new(own, replica, audit, (keyring, input), tls)))
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A dropped sender stops the manager too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn tend_audit(audit: Arc<AuditLog>) {
    loop {
        tokio::time::sleep(TEND).await;
        let audit = audit.clone();
        if tokio::task::spawn_blocking(move || audit.tend()).await.is_err() {
            return;
        }
    }
}

/// The tasks of a running manager.
struct Life {
    shell: Arc<Shell>,
    doors: JoinSet<Result<(), StartError>>,
    /// Ends the operator socket, then the port: what operators are waiting for needs the other managers.
    close: [watch::Sender<bool>; 2],
    tasks: JoinSet<()>,
    stopped: watch::Receiver<bool>,
    replica: RaftHandle,
    failed: watch::Receiver<Option<String>>,
}

impl Life {
    async fn run(mut self) -> Result<(), StartError> {
        let ended = tokio::select! {
            () = until(self.stopped.clone()) => Ok(()),
            why = word(&mut self.failed) => Err(StartError::Failed(why)),
            why = removal(self.shell.own.member, self.replica.clone()) => Err(StartError::Removed {
                manager: self.shell.own.manager.to_string(),
                why,
            }),
            door = self.doors.join_next() => match door {
                Some(Ok(Err(error))) => Err(error),
                _ => Err(StartError::Failed("a listener ended by itself".to_owned())),
            },
        };
        if ended.is_ok() {
            // What was written since the last time can be changed unseen otherwise until the next start.
            let by = Authorized::of_member(self.shell.own.member);
            let _ = tokio::time::timeout(GRACE, note(&self.shell, &by)).await;
            // The others need not find out by waiting; a failure means that there is none who could lead.
            match self.replica.hand_over(None).await {
                Ok(to) => tracing::info!(to, "handed the lead over"),
                Err(why) => tracing::debug!(why, "did not hand the lead over"),
            }
        }
        for (door, close) in self.close.iter().enumerate() {
            close.send_replace(true);
            if door == 1 {
                // Streams of nodes never end by themselves.
                self.shell.connections.close_all();
            }
            // Whoever is not done by then is cut off.
            let _ = tokio::time::timeout(GRACE, self.doors.join_next()).await;
        }
        self.doors.shutdown().await;
        self.tasks.shutdown().await;
        let replica = self.replica.shutdown().await;
        let audit = self.shell.audit.close();
        match ended.and(replica.map_err(StartError::Store)) {
            Ok(()) => Ok(audit?),
            Err(reason) => {
                if let Err(error) = audit {
                    tracing::error!("stopped: {error}");
                }
                Err(reason)
            }
        }
    }
}

/// Until this manager is no member any more: by its own state, or by the word of one that knows more. As long as it has
/// a vote it stays: the others may need it to take that away, and then to hear that it knows. Whoever gives that word may
/// tell it nothing else, though.
async fn removal(member: u64, replica: RaftHandle) -> String {
    let votes = |raft: &Status| raft.members.get(&member).is_some_and(|(_, votes)| *votes);
    let mut told = replica.peers().removed();
    let told = async {
        let why = word(&mut told).await;
        replica.wait_status(LAST_VOTE, |raft| !votes(raft)).await;
        why
    };
    let gone = async {
        replica
            .until_status(|raft| !votes(raft) && replica.read(|state| removed(state, member)))
            .await;
        "an operator removed it".to_owned()
    };
    let why = tokio::select! {
        why = told => why,
        why = gone => why,
    };
    // Nothing says when its answer has arrived; without it the leader waits until this manager is out of reach.
    tokio::time::sleep(LAST_ANSWER).await;
    why
}

fn removed(state: &State, member: u64) -> bool {
    let known = state.cluster().is_some_and(|cluster| cluster.next_member > member);
    known && !state.members().contains_key(&member)
}

/// Until there is a reason to stop.
async fn word(reason: &mut watch::Receiver<Option<String>>) -> String {
    let why = reason.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        // Nobody is left who could give one.
        None => std::future::pending().await,
    }
}

/// A manager that serves.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    socket: PathBuf,
    stop: Arc<watch::Sender<bool>>,
    ended: JoinHandle<Result<(), StartError>>,
}

impl Running {
    /// Where the port is, also when port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator socket is.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Sending `true` stops the manager.
    #[must_use]
    pub fn stopper(&self) -> Arc<watch::Sender<bool>> {
        self.stop.clone()
    }

    /// Until the manager was stopped, or failed.
    pub async fn wait(self) -> Result<(), StartError> {
        match self.ended.await {
            Ok(ended) => ended,
            Err(error) => Err(StartError::system("run the manager", error)),
        }
    }

    /// Stops it and waits until its store is closed.
    pub async fn shutdown(self) -> Result<(), StartError> {
        self.stop.send_replace(true);
        self.wait().await
    }
}
