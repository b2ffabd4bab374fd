//! What the services of one manager share. Invariant: reads and commands of the API go through here and ask for an
//! [`Authorized`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyhole_domain::{ClusterId, NodeId, Revision};
use keyhole_proto::v1;
use keyhole_proto::v1::peer_client::PeerClient;
use keyhole_secmem::Key32;
use keyhole_state::{Cluster, Command, Envelope, Member, Outcome, Rejected, Seen, State};
use keyhole_wire::seal::EdgeKeyPair;
use keyhole_wire::tls::{Chosen, Connections, Identity, LiveTls, Role};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::audit::AuditLog;
use crate::authz::{Action, Authorized, Gate, OperatorSubject, OwnWork, act};
use crate::ca::kept::{self, OWN_CERTIFICATE};
use crate::raft::{
    self, Change, Peer, PeerCalls, PeerError, Progress, ProposeError, RaftHandle, SnapshotData,
    Status as RaftStatus, unavailable,
};
use crate::seal::Keyring;
use crate::sessions::Sessions;
use crate::store::Position;
use crate::{clock, status};

/// How often a command is made anew when somebody else was faster.
pub(crate) const ATTEMPTS: usize = 8;

/// How long who was removed has to read why.
const MOMENT: Duration = Duration::from_secs(1);

/// Who this manager is.
#[derive(Debug, Clone)]
pub struct OwnIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its certificate's id.
    pub manager: NodeId,
    /// Its Raft id.
    pub member: u64,
    /// Where others reach it, `host:port`.
    pub address: String,
}

/// The shared parts.
pub struct Shell {
    pub(crate) own: OwnIdentity,
    pub(crate) keyring: Keyring,
    /// This process's key, which operators seal values to; never stored.
    pub(crate) input_key: EdgeKeyPair,
    pub(crate) sessions: Sessions,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) tls: LiveTls,
    pub(crate) connections: Connections,
    gate: Gate,
    replica: RaftHandle,
    /// What is being done to the store, or why it can't be; empty: nothing.
    store_work: Mutex<String>,
    /// Whether no quorum was heard of for too long.
    cut_off: AtomicBool,
}

/// Why a command was not done.
#[derive(Debug)]
pub enum Refused {
    /// The state refused it.
    Rejected(Rejected),
    /// It is not known to be in the log.
    Unavailable(ProposeError),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Rejected(reason) => status::rejected(&reason),
            Refused::Unavailable(error) => unavailable(&error),
        }
    }
}

/// A command that was applied.
#[derive(Debug)]
pub struct Done {
    /// The revision that it made.
    pub revision: Revision,
    /// What it did.
    pub outcome: Outcome,
}

impl Shell {
    pub(crate) fn new(
        own: OwnIdentity,
        replica: RaftHandle,
        audit: Arc<AuditLog>,
        (keyring, input_key): (Keyring, EdgeKeyPair),
        tls: LiveTls,
    ) -> Self {
        Self {
            own,
            keyring,
            input_key,
            sessions: Sessions::default(),
            gate: Gate::new(replica.clone(), audit.clone()),
            audit,
            tls,
            connections: Connections::new(),
            store_work: Mutex::default(),
            cut_off: AtomicBool::new(false),
            replica,
        }
    }

    /// Lets a request through, or refuses and records it.
    pub(crate) fn authorize<A: Action, T>(
        &self,
        request: &Request<T>,
    ) -> Result<Authorized<A>, Status> {
        let by = self.gate.authorize(request)?;
        match self.without_keys().filter(|_| A::NEEDS_KEYS) {
            Some(why) => Err(why),
            None => Ok(by),
        }
    }

    /// Proposes a command in the caller's name and waits until it is applied here.
    pub(crate) async fn propose<A: Action>(
        &self,
        by: &Authorized<A>,
        command: Command,
    ) -> Result<Done, Refused> {
        let (actor, via) = (by.actor().clone(), self.keyring.own().member());
        let envelope = Envelope { at: clock::now(), actor, via, command };
        // It is judged again when it is applied; what is refused here makes no entry, and its audit lines are bounded.
        if let Err(refused) = self.replica.read(|state| state.permit(&envelope)) {
            self.audit.refused_actor(&envelope.actor, A::NAME, &refused.to_string());
            return Err(Refused::Rejected(refused));
        }
        let committed = self.replica.propose(envelope).await;
        let committed = committed.map_err(Refused::Unavailable)?;
        let applied = committed.result.map_err(Refused::Rejected)?;
        let incarnation = self.replica.read(|state| state.revision().incarnation);
        Ok(Done {
            revision: Revision { incarnation, index: committed.index },
            outcome: applied.outcome,
        })
    }

    /// Proposes a command that `make` makes of the state as it is, and again of what it then is, if that was changed
    /// meanwhile, through whichever manager.
    pub(crate) async fn propose_from_state<A: Action, I>(
        &self,
        by: &Authorized<A>,
        make: impl Fn() -> Result<(I, Command), Status>,
    ) -> Result<(I, Done), Status> {
        let mut attempt = 1;
        loop {
            let (id, command) = make()?;
            match self.propose(by, command).await {
                Ok(done) => return Ok((id, done)),
                Err(Refused::Rejected(Rejected::OutOfSequence { .. })) if attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    /// As [`Self::authorize`], by a state that has all that was committed before this call; what the handler then looks
    /// at does so too.
    pub(crate) async fn authorize_latest<A: Action, T: Send + Sync>(
        &self,
        request: &Request<T>,
    ) -> Result<Authorized<A>, Status> {
        self.replica.catch_up().await.map_err(|error| unavailable(&error))?;
        self.authorize(request)
    }

    /// As [`Self::authorize`], but nobody is refused for what this manager has not heard of yet: another one may have
    /// let him in.
    pub(crate) async fn authorize_or_catch_up<A: Action, T: Send + Sync>(
        &self,
        request: &Request<T>,
    ) -> Result<Authorized<A>, Status> {
        match self.gate.refuses::<A, T>(request) {
            true => self.authorize_latest(request).await,
            false => self.authorize(request),
        }
    }

    /// Proposes what another manager passed on, if this one leads in this term; its index once it is committed.
    pub(crate) async fn propose_forwarded(
        &self,
        _by: &Authorized<act::Forward>,
        command: raft::Command,
        term: u64,
    ) -> Result<u64, Status> {
        self.peer_calls().propose(command, term).await
    }

    /// Up to where a read must be applied to see all that was committed before this call, if this manager leads.
    pub(crate) async fn read_index(&self, _by: &Authorized<act::Forward>) -> Result<u64, Status> {
        self.peer_calls().read_index().await
    }

    /// If this manager leads: lets another one lead; 0 is the one that is furthest.
    pub(crate) async fn hand_over_here(&self, to: u64) -> Result<u64, String> {
        self.replica.hand_over((to != 0).then_some(to)).await
    }

    /// Lets another manager lead than the one that does; 0 is the one that is furthest.
    pub(crate) async fn hand_over(&self, to: u64) -> Result<u64, Status> {
        let refused = Status::failed_precondition;
        let status = self.replica.status();
        if status.is_leader {
            return self.hand_over_here(to).await.map_err(refused);
        }
        let (leader, peer) = self.leader(&status)?;
        let question = |mut client: PeerClient<Channel>| async move {
            client.hand_over(v1::HandOverRequest { to }).await
        };
        Ok(self.ask_peer((leader, &peer), question).await?.to)
    }

    /// How the leader sees the others, with the last entry of its log.
    pub(crate) async fn progress(&self) -> Result<(u64, BTreeMap<u64, Progress>), Status> {
        let reply = loop {
            let status = self.replica.status();
            if status.is_leader {
                return Ok((status.last_log, status.others));
            }
            let (leader, peer) = self.leader(&status)?;
            let question = |mut client: PeerClient<Channel>| async move {
                client.progress(v1::ProgressRequest {}).await
            };
            let another = |now: &RaftStatus| now.leader.is_some_and(|now| now != leader);
            tokio::select! {
                reply = self.ask_peer((leader, &peer), question) => break reply?,
                // One that fell silent need not be waited for.
                () = self.replica.until_status(another) => {}
            }
        };
        let progress = |member: v1::MemberProgress| {
            let silent = member.silent_millis.map(Duration::from_millis);
            (member.member, Progress { matched: member.matched, silent })
        };
        Ok((reply.last_log, reply.members.into_iter().map(progress).collect()))
    }

    fn leader(&self, status: &RaftStatus) -> Result<(u64, Peer), Status> {
        let leader = status.leader.filter(|leader| *leader != self.own.member);
        let peer = leader.and_then(|id| Some((id, status.members.get(&id)?.0.clone())));
        peer.ok_or_else(|| unavailable(&ProposeError::NotLeader { leader: None }))
    }

    /// What other managers' calls do here.
    pub(crate) fn peer_calls(&self) -> PeerCalls {
        PeerCalls::new(self.replica.clone())
    }

    /// All other managers.
    pub(crate) fn other_managers(&self) -> Vec<(u64, Peer)> {
        let others = |state: &State| {
            let members = state.members().values().filter(|member| member.id != self.own.member);
            let peer = |member: &Member| Peer {
                address: member.address.clone(),
                name: member.node.to_string(),
            };
            members.map(|member| (member.id, peer(member))).collect()
        };
        self.replica.read(others)
    }

    /// Asks another manager.
    pub(crate) async fn ask_peer<R, F>(
        &self,
        at: (u64, &Peer),
        question: impl Fn(PeerClient<Channel>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.replica.peers().ask(at, question).await.map_err(|error| match error {
            PeerError::Status(status) => status,
            other => Status::unavailable(other.to_string()),
        })
    }

    /// Looks at the state for the caller.
    pub(crate) fn view<A: Action, R>(
        &self,
        _by: &Authorized<A>,
        look: impl FnOnce(&State) -> R,
    ) -> R {
        self.replica.read(look)
    }

    /// As [`Self::view`], as far as the operator's scope shows it.
    pub(crate) fn view_seen<A: Action<Subject = OperatorSubject>, R>(
        &self,
        by: &Authorized<A>,
        look: impl FnOnce(Seen<'_>) -> R,
    ) -> R {
        self.replica.read(|state| look(state.seen_by(by.scope())))
    }

    /// As [`Self::view`], once the cluster is made.
    pub(crate) fn view_cluster<A: Action, R>(
        &self,
        by: &Authorized<A>,
        look: impl FnOnce(&State, &Cluster) -> Result<R, Status>,
    ) -> Result<R, Status> {
        self.view(by, |state| match state.cluster() {
            Some(cluster) => look(state, cluster),
            None => Err(status::rejected(&Rejected::NotInitialised)),
        })
    }

    /// Waits until this manager has applied `index`.
    pub(crate) async fn wait_applied<A: Action>(
        &self,
        _by: &Authorized<A>,
        index: u64,
        within: Duration,
    ) -> bool {
        self.replica.wait_applied(index, within).await
    }

    /// The state's rows as of now, with the position that they stand for; nothing that was applied before is missing.
    pub(crate) async fn rows(
        &self,
        _by: &Authorized<act::Backup>,
    ) -> Result<(Position, SnapshotData), Status> {
        let rows = self.replica.rows().await;
        rows.map_err(|error| status::internal("cannot read the state", error))
    }

    /// The value key that new values are sealed under.
    pub(crate) fn value_key(&self, cluster: &Cluster) -> Result<(u32, Arc<Key32>), Status> {
        let key = self.keyring.key(cluster, cluster.epoch);
        let key = key.map_err(|e| status::internal("cannot use the keyring", e))?;
        Ok((cluster.epoch, key))
    }

    /// Ends the connections whose certificates are not believed any more; how many.
    pub(crate) async fn end_strange<A: Action>(&self, _by: &Authorized<A>) -> usize {
        let (connections, tls) = (self.connections.clone(), self.tls.clone());
        let ended = tokio::task::spawn_blocking(move || connections.strange(&tls).close()).await;
        // Who can't be judged goes, and may come back.
        ended.unwrap_or_else(|_panicked| self.connections.close_all())
    }

    /// The index of the last applied entry, as it moves.
    pub(crate) fn applied<A: Action>(&self, _by: &Authorized<A>) -> watch::Receiver<u64> {
        self.replica.applied()
    }

    /// This manager's store and log, for its own work.
    pub(crate) fn own_replica(&self, _by: &Authorized<OwnWork>) -> &RaftHandle {
        &self.replica
    }

    /// Notes what is being done to the store; whether that is new.
    pub(crate) fn set_store_work(&self, text: String) -> bool {
        let mut work = self.store_work.lock().unwrap_or_else(PoisonError::into_inner);
        let new = *work != text;
        *work = text;
        new
    }

    /// What is being done to the store.
    pub(crate) fn store_work(&self) -> String {
        self.store_work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps this manager's certificate for its next start.
    pub(crate) async fn keep_certificate<A: Action>(
        &self,
        _by: &Authorized<A>,
        identity: &Identity,
    ) -> Result<(), String> {
        let kept = kept::to_secret(identity, &self.tls.roots())?;
        let put = self.replica.local_put(OWN_CERTIFICATE, Some(kept)).await;
        put.map_err(|error| error.to_string())
    }

    /// Waits until the state has all that was committed before this call.
    pub(crate) async fn catch_up<A: Action>(&self, _by: &Authorized<A>) -> Result<(), String> {
        self.replica.catch_up().await.map_err(|error| error.to_string())
    }

    /// Notes whether this manager is cut off, and wakes the streams of nodes if that is new.
    pub(crate) fn set_cut_off(&self, cut_off: bool) -> bool {
        let new = self.cut_off.swap(cut_off, Ordering::Relaxed) != cut_off;
        if new {
            self.sessions.applied(self.replica.read(State::revision), |_| true);
        }
        new
    }

    /// Why this manager may not have a node's stream, if it may not.
    pub(crate) fn without_nodes(&self) -> Option<Status> {
        match self.cut_off.load(Ordering::Relaxed) {
            true => Some(Status::unavailable(
                "this manager is cut off from the other managers; connect to another one",
            )),
            false => self.without_keys(),
        }
    }

    /// Why this manager can open no value and sign no certificate, if it can't.
    pub(crate) fn without_keys(&self) -> Option<Status> {
        let (member, others) = self.replica.read(|state| {
            let holders = state.members().values().filter(|member| member.voter);
            let others: Vec<_> = holders.map(|member| member.address.clone()).collect();
            (state.members().get(&self.own.member).map(|member| member.voter), others)
        });
        match member {
            Some(true) => None,
            Some(false) => Some(Status::unavailable(format!(
                "this manager was demoted and holds no keys; ask another one ({})",
                others.join(", ")
            ))),
            None => Some(Status::unavailable(
                "this manager has joined and not been told the cluster's state yet; try again",
            )),
        }
    }

    /// Whether a node that was let through is still one of the cluster.
    pub(crate) fn still_member(&self, node: NodeId) -> bool {
        self.gate.still_member(node)
    }

    /// Whether an operator that was let through is still one.
    pub(crate) fn still_operator<A: Action>(&self, by: &Authorized<A>) -> Result<(), Rejected> {
        self.gate.still_operator(by.actor())
    }

    /// Raft's own figures.
    pub(crate) fn replica_status<A: Action>(&self, _by: &Authorized<A>) -> RaftStatus {
        self.replica.status()
    }

    /// Waits until Raft is as `is` wants it, or for so long.
    pub(crate) async fn wait_raft<A: Action>(
        &self,
        _by: &Authorized<A>,
        within: Duration,
        is: impl Fn(&RaftStatus) -> bool,
    ) -> bool {
        self.replica.wait_status(within, is).await
    }

    /// Passes changes that are applied from now on to the sessions, until this manager stops.
    pub(crate) fn follow_changes(self: Arc<Self>) -> impl Future<Output = ()> {
        // Now, not when the task first runs: a node may open its stream before that.
        let changes = self.replica.subscribe();
        self.pass_on(changes)
    }

    async fn pass_on(self: Arc<Self>, mut changes: Receiver<Change>) {
        self.follow_keys();
        loop {
            match changes.recv().await {
                Ok(change) => self.changed(&change),
                // What was missed may concern everybody.
                Err(RecvError::Lagged(_)) => {
                    let revision = self.replica.read(State::revision);
                    self.sessions.applied(revision, |_| true);
                    self.end_removed_callers();
                    self.follow_keys();
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// No key stays in memory that the state has no more.
    fn follow_keys(&self) {
        self.replica.read(|state| {
            if let Some(cluster) = state.cluster() {
                self.keyring.follow(cluster);
            }
        });
    }

    fn changed(&self, change: &Change) {
        self.follow_keys();
        if change.callers {
            self.end_removed_callers();
        }
        let incarnation = self.replica.read(|state| state.revision().incarnation);
        let revision = Revision { incarnation, index: change.index };
        self.sessions.applied(revision, |node| change.nodes.contains(node));
        for node in change.nodes.iter().filter(|node| !self.still_member(**node)) {
            self.sessions.forget(*node);
            close_soon(self.connections.of_peer(node.as_str()));
        }
    }

    /// Ends the connections of operators and managers that are none any more. What a removed manager asks on a new one is
    /// answered with that.
    fn end_removed_callers(&self) {
        close_soon(self.connections.gone(Role::Operator, |id| {
            let known =
                |state: &State| id.parse().is_ok_and(|id| state.operators().contains_key(&id));
            self.replica.read(known)
        }));
        let stays = |id: &str| !self.replica.read(|state| state.was_removed(id));
        close_soon(self.connections.gone(Role::Manager, stays));
    }
}

/// Ends connections a moment later: who is at their other ends is told why first. What they ask until then is refused.
fn close_soon(connections: Chosen) {
    tokio::spawn(async move {
        tokio::time::sleep(MOMENT).await;
        connections.close();
    });
}

/// A fresh id's 16 random bytes.
pub(crate) fn entropy() -> Result<[u8; 16], Status> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(status::internal("the kernel gave no random bytes", error)),
    }
}

/// A revision on the wire.
pub(crate) fn revision_out(revision: Revision) -> v1::RevisionRef {
    v1::RevisionRef { incarnation: revision.incarnation, index: revision.index }
}

/// A revision from the wire; none is "nothing seen yet".
pub(crate) fn revision_in(revision: Option<v1::RevisionRef>) -> Revision {
    revision.map_or_else(Revision::default, |revision| Revision {
        incarnation: revision.incarnation,
        index: revision.index,
    })
}
