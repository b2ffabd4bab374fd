//! One stream, from its opening to its end.

use std::time::Duration;

use keyhole_domain::Revision;
use keyhole_proto::v1;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_wire::seal::{EdgeKeyPair, Info, Protocol};
use keyhole_wire::tls::{ManagerConnection, Role, connect_manager};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::assembly::Assembly;
use super::errands::{Answer, Errand, Outcome, claimed_in};
use super::{Agent, AgentError, AgentStatus, addresses};
use crate::core::{Ending, records};

/// The largest part; the managers cut at about 1 MiB, and a value has 500 KiB at most.
const MAX_PART: usize = 8 << 20;
/// How long a manager may take to open a stream: it may have to catch up with what we saw.
const OPENING: Duration = Duration::from_secs(20);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How soon a call that got no answer is repeated.
const AGAIN: Duration = Duration::from_secs(1);

type Client = DispatchClient<Channel>;

/// What runs beside the stream.
enum Done {
    Errand(Answer),
    Reported(Option<Revision>),
}

impl Agent {
    /// Follows the manager at `addr` until something ends it; whether it ever gave an assignment.
    pub(super) async fn session(&mut self, addr: &str) -> (bool, AgentError) {
        let mut served = false;
        let result = self.follow(addr, &mut served).await;
        self.errands.recall();
        let error = match result {
            Err(error) => error,
            Ok(()) => {
                let message = "the manager closed the stream".to_owned();
                AgentError::Status { addr: addr.to_owned(), message }
            }
        };
        (served, error)
    }

    async fn follow(&mut self, addr: &str, served: &mut bool) -> Result<(), AgentError> {
        let connection = connect_manager(addr, &self.membership.tls).await?;
        let (client, mut parts, mut assembly) = self.open(addr, connection).await?;
        let core = self.core.clone();
        let mut work = JoinSet::new();
        let mut retry = interval(AGAIN);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reported, mut reporting) = (None, false);
        loop {
            tokio::select! {
                part = parts.message() => {
                    let Some(part) = part.map_err(|status| ended(addr, &status))? else {
                        return Ok(());
                    };
                    if self.take(addr, &mut assembly, part)? {
                        *served = true;
                    }
                    self.send_off(&client, &mut work);
                }
                request = self.requests.recv() => {
                    self.errands.take(request.ok_or(Ending)?);
                    self.send_off(&client, &mut work);
                }
                shown = core.shown(reported), if *served && !reporting => {
                    reporting = true;
                    work.spawn(report(client.clone(), shown?));
                }
                Some(done) = work.join_next(), if !work.is_empty() => match done {
                    Ok(Done::Errand(answer)) => {
                        self.settle(answer);
                        self.send_off(&client, &mut work);
                    }
                    Ok(Done::Reported(revision)) => {
                        reporting = false;
                        reported = revision.or(reported);
                    }
                    Err(_panicked) => return Ok(()),
                },
                _ = retry.tick() => self.send_off(&client, &mut work),
            }
        }
    }

    /// Opens the stream. When it is open, the manager knows which tasks live.
    async fn open(
        &self,
        addr: &str,
        connection: ManagerConnection,
    ) -> Result<(Client, Streaming<v1::AssignmentPart>, Assembly), AgentError> {
        let ManagerConnection { channel, exporter, manager } = connection;
        let (node, cluster) = (self.membership.node, self.membership.cluster);
        if manager.role != Role::Manager || manager.cluster != cluster {
            let found = format!("{} {} of {}", manager.role.word(), manager.id, manager.cluster);
            return Err(AgentError::NotOurs { addr: addr.to_owned(), found });
        }
        let keys = EdgeKeyPair::generate()?;
        let info = Info::new(Protocol::ManagerToNode, &cluster, &manager.id, node.as_str());
        let request = v1::AssignmentsRequest {
            stream_key: keys.public().as_bytes().to_vec().into(),
            last: Some(records::revision_ref(self.seen)),
            live: self.core.tasks().iter().map(|task| task.id.to_string()).collect(),
        };
        let mut client = Client::new(channel).max_decoding_message_size(MAX_PART);
        let opened = timeout(OPENING, client.assignments(request)).await;
        let parts = opened
            .map_err(|_elapsed| ended(addr, &Status::unavailable("no stream within 20 s")))?
            .map_err(|status| ended(addr, &status))?
            .into_inner();
        let assembly = Assembly::new(keys, info.exporter(&exporter), self.seen);
        tracing::info!(manager = addr, "stream of assignments open");
        let status = AgentStatus { manager: Some(addr.to_owned()), trouble: None };
        self.status.send_replace(status);
        Ok((client, parts, assembly))
    }

    /// Takes a part; whether a change was complete with it.
    fn take(
        &mut self,
        addr: &str,
        assembly: &mut Assembly,
        part: v1::AssignmentPart,
    ) -> Result<bool, AgentError> {
        if !part.managers.is_empty() {
            let known = addresses(&part.managers, &self.configured);
            self.managers.send_if_modified(|now| {
                *now != known && {
                    *now = known;
                    true
                }
            });
        }
        let change = assembly
            .take(part, self.core.stage().values())
            .map_err(|source| AgentError::Stream { addr: addr.to_owned(), source })?;
        let Some(change) = change else { return Ok(false) };
        self.seen = change.assignment.revision;
        let lost = self.errands.compare(&change.assignment, &self.core.tasks());
        self.core.assign(change)?;
        for task in lost {
            self.drop_task(task, "the managers no longer have it".to_owned());
        }
        Ok(true)
    }

    fn settle(&mut self, answer: Answer) {
        if let Some((task, reason)) = self.errands.answered(answer) {
            self.drop_task(task, reason);
        }
    }

    /// Its processes go on, without secrets; its cgroup is removed when they end.
    pub(super) fn drop_task(&self, task: keyhole_domain::TaskId, reason: String) {
        tracing::error!(%task, reason, "the task is no longer one of the cluster: it sees nothing now");
        let core = self.core.clone();
        tokio::spawn(async move { core.end(task).await });
    }

    /// Makes the calls that are due.
    fn send_off(&mut self, client: &Client, work: &mut JoinSet<Done>) {
        for errand in self.errands.due() {
            work.spawn(run_errand(client.clone(), errand));
        }
    }
}

/// A manager of our own cluster denies a valid certificate its stream only when the node is no member (any more).
fn ended(addr: &str, status: &Status) -> AgentError {
    let (addr, message) = (addr.to_owned(), format!("{} ({})", status.message(), status.code()));
    match status.code() {
        Code::PermissionDenied => AgentError::Removed { addr, message },
        _ => AgentError::Status { addr, message },
    }
}

async fn report(mut client: Client, revision: Revision) -> Done {
    let request = v1::ReportRequest { revision: Some(records::revision_ref(revision)) };
    match timeout(CALL, client.report(request)).await {
        Ok(Ok(_)) => Done::Reported(Some(revision)),
        Ok(Err(status)) => {
            tracing::debug!(%revision, message = status.message(), "a report was not taken");
            tokio::time::sleep(AGAIN).await;
            Done::Reported(None)
        }
        Err(_elapsed) => Done::Reported(None),
    }
}

async fn run_errand(mut client: Client, errand: Errand) -> Done {
    let answer = match errand {
        Errand::Claim(task, request) => {
            let call = timeout(CALL, client.claim_task(request)).await;
            Answer::Claim(task, judge(call, |reply| judge_claim(&reply)))
        }
        Errand::End(task, request) => {
            let call = timeout(CALL, client.end_task(request)).await;
            Answer::End(task, judge(call, |_| Outcome::Done(())))
        }
    };
    if matches!(answer, Answer::Claim(_, Outcome::Lost) | Answer::End(_, Outcome::Lost)) {
        tokio::time::sleep(AGAIN).await;
    }
    Done::Errand(answer)
}

fn judge_claim(reply: &v1::ClaimTaskReply) -> Outcome<Revision> {
    match reply.rejected.is_empty() {
        true => Outcome::Done(claimed_in(reply)),
        false => Outcome::Refused(reply.rejected.clone()),
    }
}

fn judge<R, T>(
    call: Result<Result<tonic::Response<R>, Status>, tokio::time::error::Elapsed>,
    accepted: impl FnOnce(R) -> Outcome<T>,
) -> Outcome<T> {
    match call {
        Ok(Ok(reply)) => accepted(reply.into_inner()),
        Ok(Err(status)) if is_final(status.code()) => Outcome::Refused(status.message().to_owned()),
        Ok(Err(_)) | Err(_) => Outcome::Lost,
    }
}

/// What will not change by asking again.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::PermissionDenied
    )
}
