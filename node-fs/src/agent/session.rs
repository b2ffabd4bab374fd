//! One stream, from its opening to its end.
//!
//! A manager ends a stream with the certificate it was opened with. So when the node has a new certificate, another
//! stream is opened beside the one that runs, and takes its place: the node is connected all the time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::Revision;
use keyhole_proto::v1;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_wire::seal::{EdgeKeyPair, Info, Protocol};
use keyhole_wire::tls::{Identity, ManagerConnection, Role, connect_manager};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::assembly::Assembly;
use super::errands::{Answer, Errand, Outcome, claimed_in};
use super::{Agent, AgentError, AgentStatus, addresses};
use crate::core::{CoreHandle, Ending, records};
use crate::join::Membership;

/// The largest part; the managers cut at about 1 MiB, and a value has 500 KiB at most.
const MAX_PART: usize = 8 << 20;
/// How long a manager may take to open a stream: it may have to catch up with what we saw.
const OPENING: Duration = Duration::from_secs(20);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How soon a call that got no answer is repeated.
const AGAIN: Duration = Duration::from_secs(1);

type Client = DispatchClient<Channel>;

/// An open stream.
#[derive(Debug)]
struct Link {
    client: Client,
    parts: Streaming<v1::AssignmentPart>,
    assembly: Assembly,
    /// What it was opened with.
    identity: Option<Arc<Identity>>,
}

/// What runs beside the stream.
enum Done {
    Errand(Answer),
    Reported(Option<Revision>),
    Opened(Box<Result<Link, AgentError>>),
}

/// How far the stream that takes this one's place is.
#[derive(Debug)]
enum Successor {
    /// The certificate is still the one in use.
    None,
    /// It is being opened; nothing is claimed meanwhile, for the manager may not know yet that the task lives.
    Opening,
    /// It is being opened, and the stream before it has ended.
    Awaited(AgentError),
}

impl Agent {
    /// Follows the manager at `addr` until something ends it; whether it ever gave an assignment.
    pub(super) async fn session(&mut self, addr: &str) -> (bool, AgentError) {
        let mut served = false;
        let Err(error) = self.follow(addr, &mut served).await;
        self.errands.recall();
        (served, error)
    }

    async fn follow(&mut self, addr: &str, served: &mut bool) -> Result<Infallible, AgentError> {
        let mut link = self.opening(addr).run().await?;
        self.opened(addr);
        let mut successor = Successor::None;
        let core = self.core.clone();
        let mut work = JoinSet::new();
        let mut retry = interval(AGAIN);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reported, mut reporting) = (None, false);
        loop {
            if let Successor::None = successor {
                self.send_off(&link.client, &mut work);
            }
            tokio::select! {
                part = link.parts.message(), if !matches!(successor, Successor::Awaited(_)) => {
                    match part {
                        Ok(Some(part)) => *served |= self.take(addr, &mut link.assembly, part)?,
                        over => match (end(addr, over), &successor) {
                            (error @ AgentError::Removed { .. }, _) | (error, Successor::None) => {
                                return Err(error);
                            }
                            (error, _) => successor = Successor::Awaited(error),
                        },
                    }
                }
                request = self.requests.recv() => self.errands.take(request.ok_or(Ending)?),
                shown = core.shown(reported), if *served && !reporting => {
                    reporting = true;
                    work.spawn(report(link.client.clone(), shown?));
                }
                Some(done) = work.join_next(), if !work.is_empty() => match done {
                    Ok(Done::Errand(answer)) => self.settle(answer),
                    Ok(Done::Reported(revision)) => {
                        reporting = false;
                        reported = revision.or(reported);
                    }
                    Ok(Done::Opened(opened)) => match (*opened, successor) {
                        (Ok(next), _) => {
                            link = next;
                            link.assembly.never_before(self.seen);
                            self.opened(addr);
                            successor = Successor::None;
                        }
                        (Err(_), Successor::Awaited(error)) | (Err(error @ AgentError::Removed { .. }), _) => {
                            return Err(error);
                        }
                        (Err(error), _) => {
                            tracing::debug!(%error, "no stream with the new certificate yet");
                            successor = Successor::None;
                        }
                    },
                    Err(panicked) => return Err(status(addr, panicked.to_string())),
                },
                _ = retry.tick() => {
                    if matches!(successor, Successor::None) && !self.uses(link.identity.as_ref()) {
                        let opening = self.opening(addr);
                        work.spawn(async move { Done::Opened(Box::new(opening.run().await)) });
                        successor = Successor::Opening;
                    }
                }
            }
        }
    }

    /// Whether the certificate is still this one.
    fn uses(&self, identity: Option<&Arc<Identity>>) -> bool {
        match (self.membership.tls.identity(), identity) {
            (Some(now), Some(then)) => Arc::ptr_eq(&now, then),
            (now, then) => now.is_none() && then.is_none(),
        }
    }

    fn opening(&self, addr: &str) -> Opening {
        Opening {
            addr: addr.to_owned(),
            membership: self.membership.clone(),
            core: self.core.clone(),
            seen: self.seen,
        }
    }

    fn opened(&self, addr: &str) {
        tracing::info!(manager = addr, "stream of assignments open");
        self.status.send_replace(AgentStatus { manager: Some(addr.to_owned()), trouble: None });
    }

    /// Takes a part; whether a change was complete with it.
    fn take(
        &mut self,
        addr: &str,
        assembly: &mut Assembly,
        part: v1::AssignmentPart,
    ) -> Result<bool, AgentError> {
        if !part.managers.is_empty() {
            let known = addresses(&self.membership.node, &part.managers, &self.configured);
            self.managers.send_if_modified(|now| {
                *now != known && {
                    *now = known;
                    true
                }
            });
        }
        if !part.ca.is_empty() {
            self.ca.send_replace(part.ca.to_vec());
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

/// What it takes to open a stream.
struct Opening {
    addr: String,
    membership: Membership,
    core: CoreHandle,
    seen: Revision,
}

impl Opening {
    /// Opens the stream. When it is open, the manager knows which tasks live.
    async fn run(self) -> Result<Link, AgentError> {
        let Self { addr, membership, core, seen } = self;
        let identity = membership.tls.identity();
        let ManagerConnection { channel, exporter, manager } =
            connect_manager(&addr, &membership.tls).await?;
        let (node, cluster) = (membership.node, membership.cluster);
        if manager.role != Role::Manager || manager.cluster != cluster {
            let found = format!("{} {} of {}", manager.role.word(), manager.id, manager.cluster);
            return Err(AgentError::NotOurs { addr, found });
        }
        let keys = EdgeKeyPair::generate()?;
        let info = Info::new(Protocol::ManagerToNode, &cluster, &manager.id, node.as_str());
        let request = v1::AssignmentsRequest {
            stream_key: keys.public().as_bytes().to_vec().into(),
            last: Some(records::revision_ref(seen)),
            live: core.tasks().iter().map(|task| task.id.to_string()).collect(),
        };
        let mut client = Client::new(channel).max_decoding_message_size(MAX_PART);
        let opened = timeout(OPENING, client.assignments(request)).await;
        let parts = opened
            .map_err(|_elapsed| ended(&addr, &Status::unavailable("no stream within 20 s")))?
            .map_err(|status| ended(&addr, &status))?
            .into_inner();
        let assembly = Assembly::new(keys, info.exporter(&exporter), seen);
        Ok(Link { client, parts, assembly, identity })
    }
}

/// Why no further part comes.
fn end(addr: &str, over: Result<Option<v1::AssignmentPart>, Status>) -> AgentError {
    match over {
        Ok(_) => status(addr, "the manager closed the stream".to_owned()),
        Err(status) => ended(addr, &status),
    }
}

fn status(addr: &str, message: String) -> AgentError {
    AgentError::Status { addr: addr.to_owned(), message }
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
