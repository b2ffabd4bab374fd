//! The Dispatch service: what nodes are told, and what they say.
//!
//! Depends on the shell around the state. Invariant: the node is the one in the certificate; it gets its own assignment
//! and nothing else, each value sealed to its stream's key.

mod part;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::{Revision, ServiceId, TaskId};
use keyhole_proto::v1;
use keyhole_state::{Command, Outcome, Rejected};
use keyhole_wire::format;
use keyhole_wire::seal::{EdgePublicKey, StreamSealer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::authz::{Authorized, act};
use crate::ca;
use crate::seal::stream_info;
use crate::sessions::Peer;
use crate::shell::{Shell, revision_in, revision_out};
use crate::status::{internal, invalid, rejected};
use stream::NodeStream;

type Reply<T> = Result<Response<T>, Status>;

/// How long a node waits for a manager that is behind it.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Parts on their way to one node.
const IN_FLIGHT: usize = 2;
/// Longest text that a node may say of a task.
const MAX_TEXT: usize = 4096;

/// The service; clones share the manager.
#[derive(Clone)]
pub struct DispatchApi(pub(crate) Arc<Shell>);

#[tonic::async_trait]
impl v1::dispatch_server::Dispatch for DispatchApi {
    type AssignmentsStream = ReceiverStream<Result<v1::AssignmentPart, Status>>;

    async fn assignments(
        &self,
        request: Request<v1::AssignmentsRequest>,
    ) -> Reply<Self::AssignmentsStream> {
        let by = self.0.authorize_or_catch_up::<act::Assignments, _>(&request).await?;
        let version = format::version(request.metadata()).to_owned();
        let stream = open(&self.0, by, version, request.into_inner()).await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(stream.run(sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn claim_task(
        &self,
        request: Request<v1::ClaimTaskRequest>,
    ) -> Reply<v1::ClaimTaskReply> {
        // The service may have been made through another manager just now.
        let by = self.0.authorize_latest::<act::ClaimTask, _>(&request).await?;
        claim(&self.0, &by, request.into_inner()).await.map(Response::new)
    }

    async fn end_task(&self, request: Request<v1::EndTaskRequest>) -> Reply<v1::EndTaskReply> {
        let by = self.0.authorize_or_catch_up::<act::EndTask, _>(&request).await?;
        let request = request.into_inner();
        let command = Command::EndTask {
            id: request.id.parse().map_err(invalid)?,
            node: by.subject().id(),
            reason: text("reason", request.reason)?,
        };
        self.0.propose(&by, command).await?;
        Ok(Response::new(v1::EndTaskReply {}))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Reply<v1::ReportReply> {
        let by = self.0.authorize::<act::Report, _>(&request)?;
        let revision = revision_in(request.into_inner().revision);
        let now = self.0.view(&by, keyhole_state::State::revision);
        if revision > now {
            return Err(invalid(format!("revision {revision} is ahead of this cluster's {now}")));
        }
        self.0.sessions.reported(by.subject().id(), revision);
        Ok(Response::new(v1::ReportReply {}))
    }
}

/// Brings the state up to what the node says, and makes its stream.
async fn open(
    shell: &Arc<Shell>,
    by: Authorized<act::Assignments>,
    version: String,
    request: v1::AssignmentsRequest,
) -> Result<NodeStream, Status> {
    if let Some(why) = shell.without_nodes() {
        return Err(why);
    }
    let node = by.subject().id();
    let key = EdgePublicKey::try_from(request.stream_key.as_ref()).map_err(invalid)?;
    let live: Result<Vec<TaskId>, _> = request.live.iter().map(|id| id.parse()).collect();
    let last = revision_in(request.last);
    catch_up(shell, &by, last).await?;
    let ca_number = shell
        .view_cluster(&by, |_, cluster| Ok(ca::number_of(cluster, by.subject().authority())))?;
    let command = Command::SyncTasks { node, live: live.map_err(invalid)?, ca_number };
    shell.propose(&by, command).await?;
    let (own, exporter) = (&shell.own, by.subject().exporter());
    let info = stream_info(&own.cluster, own.manager.as_str(), node.as_str(), exporter);
    let (sealer, enc) = StreamSealer::new(&key, &info).map_err(invalid)?;
    let peer = Peer { address: by.subject().address().to_owned(), version };
    let ticket = shell.sessions.open(node, peer, last);
    Ok(NodeStream::new(shell.clone(), by, ticket, (sealer, enc)))
}

/// A node must never be shown an older history than the one it has seen.
async fn catch_up(
    shell: &Shell,
    by: &Authorized<act::Assignments>,
    last: Revision,
) -> Result<(), Status> {
    let own = shell.view(by, keyhole_state::State::revision);
    if last.incarnation > own.incarnation {
        return Err(Status::failed_precondition(format!(
            "this manager's history (incarnation {}) is older than the one that this node has seen (incarnation {}); \
             connect to another manager",
            own.incarnation, last.incarnation
        )));
    }
    let behind = last.incarnation == own.incarnation && last.index > own.index;
    if behind && !shell.wait_applied(by, last.index, CATCH_UP).await {
        return Err(Status::unavailable(format!(
            "this manager is at revision {own} and has not caught up with the node's {last}; try again, or another one"
        )));
    }
    Ok(())
}

async fn claim(
    shell: &Shell,
    by: &Authorized<act::ClaimTask>,
    request: v1::ClaimTaskRequest,
) -> Result<v1::ClaimTaskReply, Status> {
    let command = Command::ClaimTask {
        id: request.id.parse().map_err(invalid)?,
        service: service(shell, by, &request.service)?,
        node: by.subject().id(),
        cgroup: text("cgroup", request.cgroup)?,
    };
    let done = shell.propose(by, command).await?;
    match done.outcome {
        Outcome::Claimed { rejected } => Ok(v1::ClaimTaskReply {
            rejected: rejected.unwrap_or_default(),
            revision: Some(revision_out(done.revision)),
        }),
        other => Err(internal("a claim had another outcome", format!("{other:?}"))),
    }
}

/// By id or whole name; a prefix would let a node search for names.
fn service(
    shell: &Shell,
    by: &Authorized<act::ClaimTask>,
    text: &str,
) -> Result<ServiceId, Status> {
    let found = shell.view(by, |state| {
        let service = state.find_service(text).ok();
        let exact = service.filter(|s| s.id.as_str() == text || s.name.as_str() == text);
        exact.map(|service| service.id)
    });
    found.ok_or_else(|| {
        rejected(&Rejected::NotFound { kind: "service", name: text.chars().take(80).collect() })
    })
}

fn text(field: &str, text: String) -> Result<String, Status> {
    match text.len() <= MAX_TEXT && !text.contains(char::is_control) {
        true => Ok(text),
        false => Err(invalid(format!(
            "the {field} is longer than {MAX_TEXT} bytes, or has control characters"
        ))),
    }
}
