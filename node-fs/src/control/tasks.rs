//! The life of a task on this node: from a cgroup to a registered, claimed task with files, to its end.
//!
//! Depends on the core (what callers see), the agent (what managers know) and the cgroups. Invariants: a
//! task that does not get its files leaves nothing behind; an ended one sees nothing before anyone is
//! told that it ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::{ServiceName, TaskId};
use keyhole_view::Refusal;
use keyhole_view::cgroup::CgroupId;
use rustix::process::{Pid, PidfdFlags};
use tokio::time::timeout;

use super::runtimes;
use crate::agent::{AgentHandle, ClaimError};
use crate::cgroups::{AdoptError, CgroupEnd, CgroupError, CgroupRoot, CgroupWatch, TaskCgroups};
use crate::core::{CoreHandle, Ending, now};
use crate::registry::{self, RegistryError, Task};

/// Why there is no such task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No name of a service.
    #[error("{0:?} is no name or id of a service")]
    Service(String),
    /// The cgroup may not be a task.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The task cannot be stored, or is not there.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Which one.
        pid: u32,
    },
    /// The process did not stay where it was.
    #[error("process {pid} moved to another cgroup meanwhile; try again")]
    Moved {
        /// Which one.
        pid: u32,
    },
    /// It gets nothing.
    #[error("{0}")]
    Refused(String),
    /// Its files did not come in time.
    #[error("the task's files did not come within {} ms: {why}", waited.as_millis())]
    TimedOut {
        /// How long it was waited for them.
        waited: Duration,
        /// What is known about it.
        why: String,
    },
    /// The worker ends.
    #[error(transparent)]
    Ending(#[from] Ending),
    /// No randomness for an id.
    #[error("the kernel gave no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// A fault of this program.
    #[error("the task could not be made; the node's log says more")]
    Failed,
}

impl From<ClaimError> for TaskError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Refused(reason) => Self::Refused(reason),
            ClaimError::Ending(ending) => Self::Ending(ending),
        }
    }
}

impl From<Refusal> for TaskError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

/// Which cgroup to adopt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its directory.
    Cgroup(PathBuf),
    /// The one that a process is in.
    Process(u32),
}

/// The tasks of the node.
#[derive(Debug)]
pub struct Tasks {
    root: Arc<CgroupRoot>,
    cgroups: TaskCgroups,
    core: CoreHandle,
    agent: AgentHandle,
}

impl Tasks {
    /// New tasks' cgroups are made in `cgroups`.
    pub fn new(
        root: Arc<CgroupRoot>,
        cgroups: TaskCgroups,
        core: CoreHandle,
        agent: AgentHandle,
    ) -> Arc<Self> {
        Arc::new(Self { root, cgroups, core, agent })
    }

    /// What callers see.
    pub fn core(&self) -> &CoreHandle {
        &self.core
    }

    /// What managers know.
    pub fn agent(&self) -> &AgentHandle {
        &self.agent
    }

    /// Watches the tasks that were there before this worker. When the whole node `started`, nobody is on the way into
    /// an empty cgroup any more: its task ended while nobody looked.
    pub fn watch_all(self: &Arc<Self>, started: bool) {
        for task in self.core.tasks().iter() {
            self.watch(task.clone(), if started { Duration::MAX } else { age(task) });
        }
    }

    /// Makes a cgroup and a task of it; when this returns, the task's files are there.
    pub async fn run(self: &Arc<Self>, service: String, wait: Duration) -> Result<Task, TaskError> {
        check_service(&service)?;
        let tasks = self.clone();
        let work = async move {
            let id = fresh_id()?;
            let cgroup = tasks.cgroups.create(id.as_str())?;
            let (path, own) = (cgroup.path().to_owned(), true);
            let task = Task { id, service, cgroup: cgroup.id(), path, own, since: now() };
            let introduced = tasks.introduce(&task, wait).await;
            if let Err(error) = introduced {
                tasks.undo(&task, &error).await;
                if let Err(error) = cgroup.remove() {
                    tracing::warn!(%error, "a cgroup is left behind");
                }
                return Err(error);
            }
            Ok(task)
        };
        // On its own: a caller that goes away must not leave half a task behind.
        tokio::spawn(work).await.map_err(|_panicked| TaskError::Failed)?
    }

    /// Makes a task of a cgroup that is there.
    pub async fn add(
        self: &Arc<Self>,
        service: String,
        which: Which,
        allow_delegated: bool,
        wait: Duration,
    ) -> Result<Task, TaskError> {
        check_service(&service)?;
        let (path, cgroup) = adopt(&self.root, &self.core.tasks(), &which, allow_delegated)?;
        let task = Task { id: fresh_id()?, service, cgroup, path, own: false, since: now() };
        let tasks = self.clone();
        let work = async move {
            let introduced = tasks.introduce(&task, wait).await;
            if let Err(error) = introduced {
                tasks.undo(&task, &error).await;
                return Err(error);
            }
            Ok(task)
        };
        tokio::spawn(work).await.map_err(|_panicked| TaskError::Failed)?
    }

    /// Ends the task whose id begins with `prefix`: it sees nothing when this returns. Its processes go
    /// on; a cgroup that the node made is removed when they end.
    pub async fn remove(&self, prefix: &str) -> Result<Task, TaskError> {
        let tasks = self.core.tasks();
        let id = registry::find(tasks.iter(), prefix)?.id;
        let unknown = || RegistryError::Unknown { prefix: prefix.to_owned() };
        let task = self.core.end(id).await?.ok_or_else(unknown)?;
        self.agent.end(id, "removed by `keyhole task rm`");
        tracing::info!(task = %id, "task removed");
        Ok(task)
    }

    /// Why a task's files are not there yet.
    pub fn why_pending(&self) -> String {
        let status = self.agent.status();
        match (status.manager, status.trouble) {
            (Some(manager), _) => format!("the manager at {manager} has not assigned it yet"),
            (None, Some(trouble)) => format!("no manager in reach: {trouble}"),
            (None, None) => "no manager in reach yet".to_owned(),
        }
    }

    /// Registers, claims and waits.
    async fn introduce(self: &Arc<Self>, task: &Task, wait: Duration) -> Result<(), TaskError> {
        self.core.register(task.clone()).await??;
        tracing::info!(task = %task.id, service = task.service, cgroup = %task.path.display(), "task registered");
        self.watch(task.clone(), Duration::ZERO);
        let files = async {
            self.agent.claim(task.clone()).await?;
            self.core.settled(task.id).await??;
            Ok(())
        };
        match timeout(wait, files).await {
            Ok(result) => result,
            Err(_elapsed) => Err(TaskError::TimedOut { waited: wait, why: self.why_pending() }),
        }
    }

    async fn undo(&self, task: &Task, error: &TaskError) {
        tracing::warn!(task = %task.id, service = task.service, %error, "the task is not started");
        // Ending: the next worker drops it, for nobody will enter its cgroup.
        let _ended = self.core.end(task.id).await;
        self.agent.end(task.id, &format!("not started: {error}"));
    }

    /// Ends the task when its cgroup does.
    fn watch(self: &Arc<Self>, task: Task, age: Duration) {
        let tasks = self.clone();
        tokio::spawn(async move {
            let end = match CgroupWatch::open(&tasks.root, &task.path, task.cgroup) {
                Ok(watch) => watch.ended(age).await,
                Err(_) => CgroupEnd::Removed,
            };
            tasks.ended(&task, end).await;
        });
    }

    async fn ended(&self, task: &Task, end: CgroupEnd) {
        let reason = match end {
            CgroupEnd::Emptied => "its last process ended",
            CgroupEnd::NeverPopulated => "no process is in its cgroup",
            CgroupEnd::Removed => "its cgroup was removed",
        };
        if let Ok(Some(_)) = self.core.end(task.id).await {
            tracing::info!(task = %task.id, service = task.service, reason, "task ended");
            self.agent.end(task.id, reason);
        }
        let own = task.own.then(|| self.cgroups.reopen(task.id.as_str(), task.cgroup)).flatten();
        if let Some(Err(error)) = own.map(|cgroup| cgroup.remove()) {
            tracing::warn!(%error, "a task's cgroup is left behind");
        }
    }
}

/// How long it has been a task, by this machine's clock; nothing if that was set back meanwhile.
fn age(task: &Task) -> Duration {
    Duration::from_nanos(now().0.saturating_sub(task.since.0))
}

/// The cgroup to make a task of, judged beside the tasks that are there.
fn adopt(
    root: &CgroupRoot,
    tasks: &[Task],
    which: &Which,
    allow_delegated: bool,
) -> Result<(PathBuf, CgroupId), TaskError> {
    let tasks: Vec<(TaskId, CgroupId)> = tasks.iter().map(|task| (task.id, task.cgroup)).collect();
    let runtimes = runtimes::running(root);
    let adopt = |path: &std::path::Path| root.adopt(path, &tasks, &runtimes, allow_delegated);
    let adopted = match which {
        Which::Cgroup(path) => adopt(path)?,
        Which::Process(pid) => {
            // While we hold this, the number means this process, or nothing.
            let process = hold_process(*pid)?;
            let place = root.of_process(&pid.to_string());
            let place = place.map_err(|_| TaskError::NoProcess { pid: *pid })?;
            let adopted = adopt(&root.directory_of(&place))?;
            let again = root.of_process(&pid.to_string()).ok();
            if !lives(&process) {
                return Err(TaskError::NoProcess { pid: *pid });
            }
            if again.as_ref() != Some(&place) {
                return Err(TaskError::Moved { pid: *pid });
            }
            adopted
        }
    };
    Ok((adopted.directory, adopted.id))
}

/// A name or an id, so that nothing else gets into lists and logs.
fn check_service(text: &str) -> Result<(), TaskError> {
    let id = text.parse::<keyhole_domain::ServiceId>().is_ok();
    match id || text.parse::<ServiceName>().is_ok() {
        true => Ok(()),
        false => Err(TaskError::Service(text.chars().take(80).collect())),
    }
}

fn fresh_id() -> Result<TaskId, TaskError> {
    let mut entropy = [0; 16];
    getrandom::fill(&mut entropy)?;
    Ok(TaskId::from_entropy(entropy))
}

fn hold_process(pid: u32) -> Result<std::os::fd::OwnedFd, TaskError> {
    let none = || TaskError::NoProcess { pid };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
    rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(|_| none())
}

/// A pidfd becomes readable when its process ends.
fn lives(process: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(0))
}

#[cfg(test)]
mod tests;
