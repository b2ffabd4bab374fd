//! The node's agent: keeps one stream of assignments from any manager open, and says there which tasks
//! the node has.
//!
//! Depends on join (who we are), the core (who shows it) and wire. Invariant: tasks are claimed only over
//! a manager that has already been told which tasks live, so that none is ended for being new.

mod assembly;
mod backoff;
mod choice;
mod errands;
mod session;

use std::sync::Arc;
use std::time::Instant;

use keyhole_domain::{Revision, TaskId};
use keyhole_wire::seal::SealError;
use keyhole_wire::tls::ConnectError;
use tokio::sync::{mpsc, oneshot, watch};

pub use assembly::{StreamError, follow};
use backoff::Backoff;
use choice::{Hearing, addresses};
use errands::Errands;

use crate::core::{CoreHandle, Ending};
use crate::join::Membership;
use crate::registry::Task;

/// Why there is no stream now.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The one that answered is no manager of this cluster.
    #[error("{addr}: it is {found}, not a manager of this node's cluster")]
    NotOurs {
        /// Who was called.
        addr: String,
        /// Who answered.
        found: String,
    },
    /// The manager ended the stream.
    #[error("{addr}: {message}")]
    Status {
        /// Which manager.
        addr: String,
        /// What it said.
        message: String,
    },
    /// The node was removed from the cluster.
    #[error(
        "this node was removed from the cluster and shows nothing ({addr}: {message}): to join it again, remove the file `identity` in its data folder and start it with --join ADDR and --token-file FILE"
    )]
    Removed {
        /// Which manager.
        addr: String,
        /// What it said.
        message: String,
    },
    /// What came cannot be used.
    #[error("{addr}: {source}")]
    Stream {
        /// Which manager.
        addr: String,
        /// Why.
        source: StreamError,
    },
    /// No key for the stream could be made.
    #[error("no key for a stream: {0}")]
    Key(#[from] keyhole_secmem::LockError),
    /// The stream's keys do not fit.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The node knows no address of a manager.
    #[error("no address of a manager is known: start the node with --join ADDR")]
    NoManagers,
    /// The worker ends.
    #[error(transparent)]
    Ending(#[from] Ending),
}

impl AgentError {
    fn is_removal(&self) -> bool {
        matches!(self, Self::Removed { .. })
    }
}

/// Why a task is not claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// A manager said no.
    #[error("{0}")]
    Refused(String),
    /// The worker ends.
    #[error(transparent)]
    Ending(#[from] Ending),
}

/// How the agent fares.
#[derive(Debug, Clone, Default)]
pub struct AgentStatus {
    /// The manager whose stream is open.
    pub manager: Option<String>,
    /// Why there is none, if there is none.
    pub trouble: Option<Arc<str>>,
}

#[derive(Debug)]
enum Request {
    Claim { task: Task, reply: oneshot::Sender<Result<(), ClaimError>> },
    End { task: TaskId, reason: String },
}

/// The way to the agent. Clones share it.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    requests: mpsc::UnboundedSender<Request>,
    status: watch::Receiver<AgentStatus>,
    managers: watch::Receiver<Vec<String>>,
    ca: watch::Receiver<Vec<u8>>,
}

impl AgentHandle {
    /// Claims a task that is registered; waits until a manager has answered, however long that takes.
    pub async fn claim(&self, task: Task) -> Result<(), ClaimError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Claim { task, reply }).map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)?
    }

    /// Tells the managers that a task has ended, as soon and as often as it takes.
    pub fn end(&self, task: TaskId, reason: &str) {
        // Refused only when the worker ends; the next one does not name the task as live.
        let _ending = self.requests.send(Request::End { task, reason: reason.to_owned() });
    }

    /// How it fares now.
    pub fn status(&self) -> AgentStatus {
        self.status.borrow().clone()
    }

    /// Addresses of managers, as they are known now.
    pub fn managers(&self) -> watch::Receiver<Vec<String>> {
        self.managers.clone()
    }

    /// The id of the root CA's key, as the managers say; empty until they do.
    pub fn ca(&self) -> watch::Receiver<Vec<u8>> {
        self.ca.clone()
    }
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    membership: Membership,
    core: CoreHandle,
    /// As the operator gave them.
    configured: Vec<String>,
    /// The highest revision ever seen.
    seen: Revision,
    hearing: Hearing,
    errands: Errands,
    requests: mpsc::UnboundedReceiver<Request>,
    status: watch::Sender<AgentStatus>,
    managers: watch::Sender<Vec<String>>,
    ca: watch::Sender<Vec<u8>>,
}

/// An agent of `membership` that has not begun, and the way to it.
pub fn agent(
    membership: Membership,
    configured: Vec<String>,
    core: CoreHandle,
) -> (Agent, AgentHandle) {
    let (requests, receiver) = mpsc::unbounded_channel();
    let (status, status_out) = watch::channel(AgentStatus::default());
    let known = addresses(&membership.node, &membership.managers, &configured);
    let (managers, managers_out) = watch::channel(known);
    let (ca, ca_out) = watch::channel(Vec::new());
    let seen = core.revision();
    // Whatever the worker before this one had is claimed, or its claim was lost.
    let errands = Errands::new(core.tasks().iter().map(|task| task.id));
    let agent = Agent {
        membership,
        core,
        configured,
        seen,
        hearing: Hearing::default(),
        errands,
        requests: receiver,
        status,
        managers,
        ca,
    };
    (agent, AgentHandle { requests, status: status_out, managers: managers_out, ca: ca_out })
}

impl Agent {
    /// Until the worker ends.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut last = None;
        // What the worker before this one was told may name tasks that have ended.
        self.core.detach();
        loop {
            let known = self.managers.borrow().clone();
            let begun = Instant::now();
            let (served, error) = match choice::next(&known, last.as_deref()) {
                Some(addr) => {
                    let (over, served, error) = self.session(addr).await;
                    self.hearing.ended(&over, begun.elapsed());
                    last = Some(over);
                    (served, error)
                }
                None => (false, AgentError::NoManagers),
            };
            if let AgentError::Ending(_) = error {
                return;
            }
            self.core.detach();
            self.say(&error);
            if error.is_removal() {
                self.leave();
            }
            if served {
                backoff.reset();
            }
            if self.pause(backoff.next()).await.is_err() {
                return;
            }
        }
    }

    /// Removing a node is a revocation: what it showed is gone at once, and it says so.
    fn leave(&self) {
        for task in self.core.tasks().iter() {
            self.drop_task(task.id, "this node was removed from the cluster".to_owned());
        }
    }

    /// Waits, taking requests meanwhile.
    async fn pause(&mut self, pause: std::time::Duration) -> Result<(), Ending> {
        let sleep = tokio::time::sleep(pause);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return Ok(()),
                request = self.requests.recv() => self.errands.take(request.ok_or(Ending)?),
            }
        }
    }

    /// Once for each new reason; a manager that is away for long is not a line every five seconds.
    fn say(&self, error: &AgentError) {
        let text: Arc<str> = error.to_string().into();
        let before = self.status.borrow().clone();
        if before.trouble.as_ref() != Some(&text) {
            tracing::warn!(reason = %text, "no stream of assignments");
        }
        self.status.send_replace(AgentStatus { manager: None, trouble: Some(text) });
    }
}
