//! The Control service: `keyhole run` and `keyhole task` on this machine.
//!
//! Depends on [`tasks`]. Invariant: only uid 0 is served, whatever the socket's mode is.

mod runtimes;
mod tasks;

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyhole_proto::v1;
use keyhole_proto::v1::control_server::{Control, ControlServer};
use keyhole_wire::format;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

pub use tasks::{TaskError, Tasks, Which};

use crate::core::{records, standing};
use crate::join::Membership;
use crate::registry::{RegistryError, Task};

/// How long `run` and `task add` wait for the files unless the caller says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The longest that a caller may wait.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Requests here are small.
const MAX_REQUEST: usize = 64 << 10;

/// What the service says of the node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Who it is.
    pub membership: Membership,
    /// Where its files are.
    pub mount: PathBuf,
    /// Workers that were started in this run of the node.
    pub worker_starts: u64,
}

/// The service.
#[derive(Debug, Clone)]
pub struct ControlApi {
    tasks: Arc<Tasks>,
    facts: Arc<NodeFacts>,
}

impl ControlApi {
    /// For the tasks of a node.
    pub fn new(tasks: Arc<Tasks>, facts: NodeFacts) -> Self {
        Self { tasks, facts: Arc::new(facts) }
    }

    /// Serves on the socket that the supervisor listens on; ends only with an error.
    pub async fn serve(self, listener: UnixListener) -> Result<(), ServeError> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let service = ControlServer::new(self).max_decoding_message_size(MAX_REQUEST);
        let service = tonic::service::interceptor::InterceptedService::new(service, only_root);
        Server::builder()
            .layer(InterceptorLayer::new(format::check))
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await?;
        Ok(())
    }

    fn describe(&self, task: &Task) -> v1::NodeTask {
        let view = self.tasks.core().stage().view();
        let (state, reason) = match standing(&view, task.id) {
            Some(Ok(())) => ("Running", String::new()),
            Some(Err(refusal)) => ("Rejected", refusal.to_string()),
            None => ("Pending", self.tasks.why_pending()),
        };
        let files: BTreeSet<_> = view.files(task.id).map(|file| file.target.to_string()).collect();
        v1::NodeTask {
            id: task.id.to_string(),
            service: task.service.clone(),
            cgroup: task.path.display().to_string(),
            state: state.to_owned(),
            reason,
            since: task.since.0,
            files: files.into_iter().collect(),
            mount: self.facts.mount.display().to_string(),
        }
    }
}

/// Why the control socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be used.
    #[error("cannot serve the control socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The server failed.
    #[error("cannot serve the control socket: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// The peer as the kernel saw it connect (SO_PEERCRED).
fn only_root(request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer.map(|peer| peer.uid()) {
        Some(0) => Ok(request),
        Some(uid) => Err(Status::permission_denied(format!(
            "the node's control socket serves root only, not uid {uid}: use sudo"
        ))),
        None => Err(Status::permission_denied("the node cannot see who is calling")),
    }
}

fn wait(millis: u32) -> Duration {
    match millis {
        0 => DEFAULT_WAIT,
        millis => Duration::from_millis(millis.into()).min(MAX_WAIT),
    }
}

#[tonic::async_trait]
impl Control for ControlApi {
    async fn run_task(
        &self,
        request: Request<v1::RunTaskRequest>,
    ) -> Result<Response<v1::NodeTask>, Status> {
        let request = request.into_inner();
        let task = self.tasks.run(request.service, wait(request.wait_millis)).await?;
        Ok(Response::new(self.describe(&task)))
    }

    async fn add_task(
        &self,
        request: Request<v1::AddTaskRequest>,
    ) -> Result<Response<v1::NodeTask>, Status> {
        use v1::add_task_request::Which as Wire;
        let request = request.into_inner();
        let which = match request.which {
            Some(Wire::Cgroup(path)) => Which::Cgroup(path.into()),
            Some(Wire::Pid(pid)) => Which::Process(pid),
            None => return Err(Status::invalid_argument("give a cgroup's directory or a pid")),
        };
        let (delegated, wait) = (request.allow_delegated, wait(request.wait_millis));
        let task = self.tasks.add(request.service, which, delegated, wait).await?;
        Ok(Response::new(self.describe(&task)))
    }

    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::NodeTaskList>, Status> {
        let tasks = self.tasks.core().tasks().iter().map(|task| self.describe(task)).collect();
        Ok(Response::new(v1::NodeTaskList { tasks }))
    }

    async fn remove_task(
        &self,
        request: Request<v1::RemoveTaskRequest>,
    ) -> Result<Response<v1::NodeTask>, Status> {
        let task = self.tasks.remove(&request.into_inner().id).await?;
        Ok(Response::new(v1::NodeTask { state: "Ended".to_owned(), ..self.describe(&task) }))
    }

    async fn node_status(
        &self,
        _: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusReply>, Status> {
        let NodeFacts { membership, mount, worker_starts } = &*self.facts;
        let expires = membership.tls.identity().map_or(0, |id| id.subject().not_after);
        let core = self.tasks.core();
        let agent = self.tasks.agent().status();
        Ok(Response::new(v1::NodeStatusReply {
            id: membership.node.to_string(),
            cluster: membership.cluster.to_string(),
            manager: agent.manager.unwrap_or_default(),
            revision: Some(records::revision_ref(core.revision())),
            mount: mount.display().to_string(),
            tasks: u32::try_from(core.tasks().len()).unwrap_or(u32::MAX),
            worker_starts: *worker_starts,
            // Certificates count in seconds.
            certificate_expires_at: expires.saturating_mul(1_000_000_000),
            trouble: agent.trouble.map(|why| why.to_string()).unwrap_or_default(),
        }))
    }
}

impl From<TaskError> for Status {
    fn from(error: TaskError) -> Self {
        let message = error.to_string();
        match error {
            TaskError::Registry(RegistryError::Unknown { .. }) => Self::not_found(message),
            TaskError::Registry(RegistryError::Ambiguous { .. }) | TaskError::Service(_) => {
                Self::invalid_argument(message)
            }
            TaskError::NoProcess { .. } => Self::not_found(message),
            TaskError::Adopt(_) | TaskError::Refused(_) | TaskError::Moved { .. } => {
                Self::failed_precondition(message)
            }
            TaskError::TimedOut { .. } => Self::deadline_exceeded(message),
            TaskError::Ending(_) => Self::unavailable(message),
            TaskError::Registry(RegistryError::File { .. } | RegistryError::NewerFormat { .. })
            | TaskError::Cgroup(_)
            | TaskError::Random(_)
            | TaskError::Failed => Self::internal(message),
        }
    }
}

#[cfg(test)]
mod tests;
