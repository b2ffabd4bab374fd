//! The worker: everything that serves, put together. Killed at any moment, the next one goes on.
//!
//! Depends on all parts; nothing depends on it. Invariant: the filesystem is served only when all that
//! an earlier worker showed can be answered.

use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyhole_domain::{MAX_SECRET_BYTES, TaskId, Timestamp};
use keyhole_secmem::harden;
use keyhole_view::{MountFacts, View};

use crate::agent::{self, Agent, AgentHandle};
use crate::audit::{Audit, AuditError, Open};
use crate::caller::Callers;
use crate::cgroups::{AdoptError, CgroupError, CgroupRoot, TaskCgroups};
use crate::config::NodeConfig;
use crate::control::{ControlApi, NodeFacts, Tasks};
use crate::core::{Core, CoreHandle, CoreStart, now};
use crate::fuse::{Opened, Secrets};
use crate::handles::Handles;
use crate::handover::{self, HandoverError};
use crate::inheritance::{Inheritance, InheritanceError};
use crate::join::{IdentityStore, JoinError, Membership, Renewal, StoreError, renew_once};
use crate::meter::Meter;
use crate::registry::{Registry, RegistryError, boot_id};
use crate::stage::Stage;
use crate::state_memfd::{SavedState, StateMemory};
use crate::supervisor::{EXIT_CONNECTION_LOST, EXIT_HOPELESS};
use crate::values::{Values, ValuesError};

/// Threads that answer the kernel.
const SERVICE_THREADS: usize = 2;
/// How long the first start tries to reach a manager to join by.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);
/// The pause between attempts to join.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// How long a worker that is asked to end goes on: tasks often end at the same moment.
const LAST_WORDS: Duration = Duration::from_millis(200);

const _: () = assert!(MAX_SECRET_BYTES <= u32::MAX as usize);

/// Why a worker cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It was not started by a supervisor.
    #[error(transparent)]
    Inheritance(#[from] InheritanceError),
    /// Its settings make no sense.
    #[error("the supervisor's settings cannot be read: {0}")]
    Settings(#[from] serde_json::Error),
    /// Memory dumps cannot be forbidden.
    #[error("cannot protect this process's memory: {0}")]
    Harden(String),
    /// Another node works on the data folder.
    #[error(
        "another node works on {}: end it, or give this one a --data-dir of its own", .path.display()
    )]
    InUse {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// It is no member of a cluster, and cannot become one.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cgroup hierarchy cannot be used.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    /// The folder of tasks' cgroups cannot be used.
    #[error("--cgroup-parent: {0}")]
    Parent(#[from] AdoptError),
    /// The tasks cannot be restored.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The audit cannot be kept.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Values cannot be kept.
    #[error(transparent)]
    Values(#[from] ValuesError),
    /// The key of this run cannot be used.
    #[error(transparent)]
    Key(#[from] keyhole_secmem::SecretFdError),
    /// The connection to the kernel cannot be taken over, or was lost.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn failed(doing: &'static str) -> impl FnOnce(std::io::Error) -> WorkerError {
    move |source| WorkerError::System { doing, source }
}

impl WorkerError {
    /// What the supervisor is to make of it: only what another worker could do no better is hopeless.
    fn exit_code(&self) -> u8 {
        match self {
            Self::System { .. } | Self::Handover(_) => 1,
            _ => EXIT_HOPELESS,
        }
    }
}

/// Runs a worker: the hidden command `keyhole node worker --config-fd N`. To be called first thing in
/// the process, when it has no other threads; gives the process's exit code. Its errors are one line
/// each on standard error.
pub fn run(config_fd: RawFd) -> u8 {
    harden::install_panic_hook();
    match serve(config_fd) {
        Ok(()) => EXIT_CONNECTION_LOST,
        Err(error) => {
            eprintln!("keyhole: {error}");
            error.exit_code()
        }
    }
}

fn serve(config_fd: RawFd) -> Result<(), WorkerError> {
    let inheritance = Inheritance::receive(config_fd)?;
    protect()?;
    let config: NodeConfig = serde_json::from_value(inheritance.app.clone())?;
    let store = IdentityStore::open(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("agent")
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let membership = runtime.block_on(become_member(&config, &store))?;
    let Inheritance {
        device, init, attempts, handles, state, values, key, listener, reporter, ..
    } = inheritance;

    let root = Arc::new(CgroupRoot::find()?);
    let cgroups =
        TaskCgroups::open(root.clone(), &config.cgroup_parent, config.allow_delegated_parent)?;
    let callers = Arc::new(Callers::new(root.clone(), config.identity));
    let audit = Audit::start(&config.data_dir)?;
    let (memory, found) = StateMemory::open(state, key.map()?);
    let found = found.unwrap_or_else(|error| {
        tracing::error!(%error, "starting without the state of the last worker");
        None
    });
    let registry = registry(&config.data_dir, found.as_ref(), &root)?;
    let saved = start_from(found);
    let worker_starts = saved.worker_starts;
    let held = saved.values.iter().map(|(key, place)| (*key, *place));
    let values = Values::open_in(&key, values, held)?;
    let stage = stage(&saved, handles, values);
    let (core, handle) = Core::resume(CoreStart {
        saved,
        memory,
        registry,
        stage: stage.clone(),
        callers: callers.clone(),
    });

    let meter = Arc::new(Meter::default());
    let on_open = Box::new(audited(audit, handle.clone()));
    let secrets = Secrets::new(stage.clone(), callers, meter.clone(), attempts, on_open);
    let adopted = handover::adopt(secrets, device, &init, SERVICE_THREADS)?;
    stage.connect(adopted.notifier()).map_err(failed("start the sweeper"))?;
    core.start().map_err(failed("start the core"))?;

    let (agent, agent_handle) =
        agent::agent(membership.clone(), config.join.clone(), handle.clone());
    let renewal =
        Renewal::new(membership.clone(), store, (agent_handle.managers(), agent_handle.ca()));
    let facts = NodeFacts { membership, mount: config.mount.clone(), worker_starts };
    let parts =
        Parts { agent, agent_handle, renewal, core: handle, root, cgroups, facts, listener };
    runtime.block_on(async { parts.start() });
    let reporter = Arc::new(reporter);
    reporter.ready().map_err(failed("report to the supervisor"))?;
    reporter.start_heartbeat(meter).map_err(failed("start the heartbeat"))?;
    tracing::info!(worker_starts, "serving");
    Ok(adopted.run()?)
}

fn protect() -> Result<(), WorkerError> {
    harden::forbid_dumps().map_err(|error| WorkerError::Harden(error.to_string()))?;
    harden::forbid_cores().map_err(|error| WorkerError::Harden(error.to_string()))
}

/// Held for as long as this process lives, however it ends.
fn lock(data_dir: &Path) -> Result<std::fs::File, WorkerError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = data_dir.join("lock");
    let mut options = std::fs::File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(failed("open the lock file of the data folder"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(WorkerError::InUse { path: data_dir.to_owned() }),
    }
}

/// The identity that is stored, or a new one. A stored one needs no manager, unless it has expired:
/// then it is renewed before anything else is done with it.
async fn become_member(
    config: &NodeConfig,
    store: &IdentityStore,
) -> Result<Membership, JoinError> {
    if let Some(membership) = Membership::load(store)? {
        let own = membership.tls.identity();
        if own.is_some_and(|own| own.subject().expired) {
            renew_expired(config, &membership, store).await;
        }
        return Ok(membership);
    }
    let (Some(token), false) = (&config.token_file, config.join.is_empty()) else {
        return Err(JoinError::NotJoined { identity: store.path().to_owned() });
    };
    let hostname = config.hostname();
    let deadline = Instant::now() + JOIN_PATIENCE;
    let mut at = config.join.iter().cycle();
    loop {
        let Some(addr) = at.next() else {
            return Err(JoinError::NotJoined { identity: store.path().to_owned() });
        };
        match Membership::join(addr, token, &hostname, store).await {
            Ok(membership) => {
                tracing::info!(node = %membership.node, cluster = %membership.cluster, "joined");
                return Ok(membership);
            }
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                tracing::debug!(%error, "cannot join yet; trying again");
                tokio::time::sleep(JOIN_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Once by each manager; the renewal goes on trying. Tasks keep what they have meanwhile.
async fn renew_expired(config: &NodeConfig, membership: &Membership, store: &IdentityStore) {
    for addr in membership.managers.iter().chain(&config.join) {
        match renew_once(addr, membership, store).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the node's certificate has expired"),
        }
    }
}

/// The tasks of the worker before this one; at the start of a node, those whose cgroup still lives.
fn registry(
    data_dir: &Path,
    found: Option<&SavedState>,
    root: &CgroupRoot,
) -> Result<Registry, RegistryError> {
    let boot = boot_id()?;
    match found {
        Some(saved) => Ok(Registry::resume(data_dir, boot, saved.registered.iter().cloned())),
        None => Registry::restore(data_dir, boot, root),
    }
}

/// What to start from, counting this start.
fn start_from(found: Option<SavedState>) -> SavedState {
    let mut saved = found.unwrap_or_default();
    if saved.mounted == Timestamp::default() {
        saved.mounted = now();
    }
    saved.worker_starts += 1;
    saved
}

fn stage(saved: &SavedState, handles: Handles, values: Values) -> Arc<Stage> {
    let facts = MountFacts { mounted: saved.mounted };
    Stage::new(View::resume(facts, saved.record.clone()), handles, values)
}

/// Notes each open; runs on service threads, so it only fills in and queues.
fn audited(audit: Audit, core: CoreHandle) -> impl Fn(Opened<'_>) + Send + Sync {
    move |opened| {
        let file = opened.file;
        audit.record(Open {
            at: now(),
            task: file.task,
            service: service_of(&core, file.task),
            secret: file.secret.to_string(),
            version: file.value.version.get(),
            target: file.target.to_string(),
            uid: opened.uid,
            pid: opened.tid,
            refused: opened.refused.map(|denied| denied.to_string()),
        });
    }
}

fn service_of(core: &CoreHandle, task: TaskId) -> String {
    let tasks = core.tasks();
    let found = tasks.binary_search_by_key(&task, |task| task.id).ok();
    found.and_then(|at| tasks.get(at)).map(|task| task.service.clone()).unwrap_or_default()
}

/// SIGTERM: ends this process once what has just ended was told and tidied up.
async fn end_on_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut asked) => {
            asked.recv().await;
            tokio::time::sleep(LAST_WORDS).await;
            std::process::exit(0);
        }
        Err(error) => {
            tracing::warn!(%error, "cannot wait for SIGTERM: it ends this worker at once")
        }
    }
}

/// What runs on the runtime, beside the service threads.
struct Parts {
    agent: Agent,
    agent_handle: AgentHandle,
    renewal: Renewal,
    core: CoreHandle,
    root: Arc<CgroupRoot>,
    cgroups: TaskCgroups,
    facts: NodeFacts,
    listener: UnixListener,
}

impl Parts {
    fn start(self) {
        let tasks = Tasks::new(self.root, self.cgroups, self.core, self.agent_handle);
        tasks.watch_all(self.facts.worker_starts == 1);
        tokio::spawn(end_on_signal());
        tokio::spawn(self.agent.run());
        tokio::spawn(self.renewal.run());
        let control = ControlApi::new(tasks, self.facts);
        tokio::spawn(async move {
            if let Err(error) = control.serve(self.listener).await {
                tracing::error!(%error, "`keyhole run` and `keyhole task` do not work");
            }
        });
    }
}
