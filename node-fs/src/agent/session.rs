//! One stream, from its opening to its end.
//!
//! A manager ends a stream with the certificate it was opened with. So when the node has a new certificate, another
//! stream is opened beside the one that runs, and takes its place: the node is connected all the time. In the same way it
//! goes back to a manager that it prefers, once that one serves again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyhole_domain::Revision;
use keyhole_proto::v1;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_wire::seal::{EdgeKeyPair, Info, Protocol};
use keyhole_wire::tls::{Identity, ManagerConnection, Patience, Role, connect_manager};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::assembly::Assembly;
use super::errands::{Answer, Errand, Outcome, claimed_in};
use super::{Agent, AgentError, AgentStatus, addresses, choice};
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
/// How often a manager that the node prefers is tried, and up to how much later, so that nodes do not come all at once.
const HOMEWARD: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(10)];
/// How long one that is tried may take to open a stream: it is not needed.
const MOVING: Duration = Duration::from_secs(2);

type Client = DispatchClient<Channel>;

/// A connection to a manager of ours.
#[derive(Debug)]
struct Reached {
    addr: String,
    connection: ManagerConnection,
    /// What it was made with.
    identity: Option<Arc<Identity>>,
    patience: Patience,
}

/// An open stream.
#[derive(Debug)]
struct Link {
    addr: String,
    client: Client,
    parts: Streaming<v1::AssignmentPart>,
    assembly: Assembly,
    /// What it was opened with.
    identity: Option<Arc<Identity>>,
    patience: Patience,
    since: Instant,
}

/// What runs beside the stream.
enum Done {
    Errand(Answer),
    /// To the manager of the stream of this number.
    Reported(u64, Option<Revision>),
    Reached(Box<Result<Reached, AgentError>>, Duration),
    Opened(Box<Result<Link, AgentError>>),
}

/// How far the stream that takes this one's place is.
#[derive(Debug)]
enum Successor {
    /// There is no need of one.
    None,
    /// Its manager is being called.
    Called,
    /// It is being opened; nothing is claimed meanwhile, for the manager may not know yet that the task lives.
    Opening,
    /// It is being opened, and the stream before it has ended.
    Awaited(AgentError),
}

impl Agent {
    /// Follows the manager at `addr`, or one that takes its place, until something ends it; the one that it ended with, and
    /// whether there ever was an assignment.
    pub(super) async fn session(&mut self, addr: &str) -> (String, bool, AgentError) {
        let (mut with, mut served) = (addr.to_owned(), false);
        let Err(error) = self.follow(&mut with, &mut served).await;
        self.errands.recall();
        (with, served, error)
    }

    async fn follow(
        &mut self,
        with: &mut String,
        served: &mut bool,
    ) -> Result<Infallible, AgentError> {
        let reached = self.call(vec![with.clone()]).run().await?;
        let mut link = self.opening(reached, OPENING).run().await?;
        self.opened(&link.addr);
        let mut successor = Successor::None;
        let mut homeward = Box::pin(sleep(homeward()));
        let core = self.core.clone();
        let mut work = JoinSet::new();
        let mut retry = interval(AGAIN);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Each stream's manager has to be told, also of what the one before knows.
        let (mut stream, mut reported, mut reporting) = (0, None, false);
        loop {
            with.clone_from(&link.addr);
            if let Successor::None | Successor::Called = successor {
                self.send_off(&link.client, &mut work);
            }
            tokio::select! {
                part = link.parts.message(), if !matches!(successor, Successor::Awaited(_)) => {
                    match part {
                        Ok(Some(part)) => *served |= self.take(&mut link, part)?,
                        over => match (end(&link.addr, over), &successor) {
                            (error, Successor::Opening) if !error.is_removal() => {
                                successor = Successor::Awaited(error);
                            }
                            (error, _) => return Err(error),
                        },
                    }
                }
                request = self.requests.recv() => self.errands.take(request.ok_or(Ending)?),
                shown = core.shown(reported), if *served && !reporting => {
                    reporting = true;
                    work.spawn(report(link.client.clone(), stream, shown?));
                }
                Some(done) = work.join_next(), if !work.is_empty() => match done {
                    Ok(Done::Errand(answer)) => self.settle(answer),
                    Ok(Done::Reported(to, revision)) => if to == stream {
                        reporting = false;
                        reported = revision.or(reported);
                    },
                    Ok(Done::Reached(reached, within)) => match *reached {
                        Ok(reached) => {
                            let opening = self.opening(reached, within);
                            work.spawn(async move { Done::Opened(Box::new(opening.run().await)) });
                            successor = Successor::Opening;
                        }
                        Err(error) => {
                            tracing::debug!(%error, "no other stream yet");
                            successor = Successor::None;
                        }
                    },
                    Ok(Done::Opened(opened)) => match (*opened, successor) {
                        (Ok(next), _) => {
                            link = next;
                            link.assembly.never_before(self.seen);
                            (stream, reported, reporting) = (stream + 1, None, false);
                            self.opened(&link.addr);
                            successor = Successor::None;
                        }
                        (Err(_), Successor::Awaited(error)) => return Err(error),
                        (Err(error), _) if error.is_removal() => return Err(error),
                        (Err(error), _) => {
                            tracing::debug!(%error, "no other stream yet");
                            successor = Successor::None;
                        }
                    },
                    Err(panicked) => return Err(status(&link.addr, panicked.to_string())),
                },
                _ = retry.tick() => {
                    if matches!(successor, Successor::None) && !self.uses(link.identity.as_ref()) {
                        let call = self.call(vec![link.addr.clone()]);
                        work.spawn(async { Done::Reached(Box::new(call.run().await), OPENING) });
                        successor = Successor::Called;
                    }
                }
                () = &mut homeward => {
                    homeward.set(sleep(self::homeward()));
                    let better = self.better(&link);
                    if matches!(successor, Successor::None) && *served && !better.is_empty() {
                        let call = self.call(better);
                        work.spawn(async { Done::Reached(Box::new(call.run().await), MOVING) });
                        successor = Successor::Called;
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

    /// The managers that are better than the one of this stream: that one too, if it would be taken for lost sooner now.
    fn better(&mut self, link: &Link) -> Vec<String> {
        self.hearing.lasts(&link.addr, link.since.elapsed());
        let known = self.managers.borrow();
        let mut better = choice::better(&known, &link.addr).to_vec();
        if self.hearing.patience(&link.addr, known.len()).answer < link.patience.answer {
            better.push(link.addr.clone());
        }
        better
    }

    fn call(&self, addrs: Vec<String>) -> Call {
        let managers = self.managers.borrow().len();
        let patient = |addr: String| {
            let patience = self.hearing.patience(&addr, managers);
            (addr, patience)
        };
        let addrs = addrs.into_iter().map(patient).collect();
        Call { addrs, membership: self.membership.clone() }
    }

    fn opening(&self, reached: Reached, within: Duration) -> Opening {
        let (membership, core) = (self.membership.clone(), self.core.clone());
        Opening { reached, within, membership, core, seen: self.seen }
    }

    fn opened(&self, addr: &str) {
        tracing::info!(manager = addr, "stream of assignments open");
        self.status.send_replace(AgentStatus { manager: Some(addr.to_owned()), trouble: None });
    }

    /// Takes a part; whether a change was complete with it.
    fn take(&mut self, link: &mut Link, part: v1::AssignmentPart) -> Result<bool, AgentError> {
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
        let change = link
            .assembly
            .take(part, self.core.stage().values())
            .map_err(|source| AgentError::Stream { addr: link.addr.clone(), source })?;
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

/// When a manager that the node prefers is tried next.
fn homeward() -> Duration {
    let mut random = [0];
    // Without randomness: at the latest.
    let part = getrandom::fill(&mut random).map_or(255, |()| u32::from(random[0]));
    let [least, more] = HOMEWARD;
    least + more * part / 255
}

/// What it takes to reach a manager.
struct Call {
    addrs: Vec<(String, Patience)>,
    membership: Membership,
}

impl Call {
    /// The first one that is there.
    async fn run(self) -> Result<Reached, AgentError> {
        let mut failed = AgentError::NoManagers;
        for (addr, patience) in &self.addrs {
            match self.reach(addr, *patience).await {
                Ok(reached) => return Ok(reached),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn reach(&self, addr: &str, patience: Patience) -> Result<Reached, AgentError> {
        let addr = addr.to_owned();
        let identity = self.membership.tls.identity();
        let connection = connect_manager(&addr, &self.membership.tls, patience).await?;
        let manager = &connection.manager;
        if manager.role != Role::Manager || manager.cluster != self.membership.cluster {
            let found = format!("{} {} of {}", manager.role.word(), manager.id, manager.cluster);
            return Err(AgentError::NotOurs { addr, found });
        }
        Ok(Reached { addr, connection, identity, patience })
    }
}

/// What it takes to open a stream.
struct Opening {
    reached: Reached,
    within: Duration,
    membership: Membership,
    core: CoreHandle,
    seen: Revision,
}

impl Opening {
    /// Opens the stream. When it is open, the manager knows which tasks live.
    async fn run(self) -> Result<Link, AgentError> {
        let Self { reached, within, membership, core, seen } = self;
        let Reached { addr, connection, identity, patience } = reached;
        let ManagerConnection { channel, exporter, manager } = connection;
        let keys = EdgeKeyPair::generate()?;
        let (node, cluster) = (&membership.node, &membership.cluster);
        let info = Info::new(Protocol::ManagerToNode, cluster, &manager.id, node.as_str());
        let request = v1::AssignmentsRequest {
            stream_key: keys.public().as_bytes().to_vec().into(),
            last: Some(records::revision_ref(seen)),
            live: core.tasks().iter().map(|task| task.id.to_string()).collect(),
        };
        let mut client = Client::new(channel).max_decoding_message_size(MAX_PART);
        let late = || Status::unavailable(format!("no stream within {} s", within.as_secs()));
        let opened = timeout(within, client.assignments(request)).await;
        let parts = opened
            .map_err(|_elapsed| ended(&addr, &late()))?
            .map_err(|status| ended(&addr, &status))?
            .into_inner();
        let assembly = Assembly::new(keys, info.exporter(&exporter), seen);
        let since = Instant::now();
        Ok(Link { addr, client, parts, assembly, identity, patience, since })
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

async fn report(mut client: Client, stream: u64, revision: Revision) -> Done {
    let request = v1::ReportRequest { revision: Some(records::revision_ref(revision)) };
    match timeout(CALL, client.report(request)).await {
        Ok(Ok(_)) => Done::Reported(stream, Some(revision)),
        Ok(Err(status)) => {
            tracing::debug!(%revision, message = status.message(), "a report was not taken");
            tokio::time::sleep(AGAIN).await;
            Done::Reported(stream, None)
        }
        Err(_elapsed) => Done::Reported(stream, None),
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
