//! Who may do what. Each RPC is one action; only [`Gate::authorize`] mints the [`Authorized`] that a handler takes and
//! that every read and every command of the API asks for.
//!
//! Depends on the state, wire's peer identities and the audit. Invariant: certificates prove the id; what that id may do
//! is read from the replicated state on each call. What is not allowed by an action's subject is refused, recorded and
//! counted.

mod caller;
mod subject;

pub use caller::{Caller, LocalPeer, operator_group};
pub use subject::{
    Denied, FellowManager, Holder, MemberNode, OperatorSubject, RaftPeer, Stranger, Subject,
};

use std::sync::Arc;

use keyhole_domain::NodeId;
use keyhole_state::{Act, Actor, Rejected, Scope, State};
use tonic::{Code, Request, Status};

use crate::audit::AuditLog;
use crate::raft::{RaftHandle, removed};

/// One thing that can be asked for.
pub trait Action: Send + Sync + 'static {
    /// What the audit calls it.
    const NAME: &'static str;
    /// Who may ask.
    type Subject: Subject;
    /// Whether only a manager that holds the cluster's keys can do it.
    const NEEDS_KEYS: bool;
    /// What it is among the acts of operators, if it is one of theirs.
    const ACT: Option<Act>;
}

/// Proof that a caller may do `A` now.
#[derive(Debug)]
pub struct Authorized<A: Action> {
    actor: Actor,
    subject: A::Subject,
}

impl<A: Action> Authorized<A> {
    /// Who it is, for the audit.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Who it is, with what the action needs to know of him.
    pub fn subject(&self) -> &A::Subject {
        &self.subject
    }
}

/// What a manager does of its own accord: its first command, its own address, how far its audit goes.
#[derive(Debug)]
pub struct OwnWork;

impl Action for OwnWork {
    const NAME: &'static str = "manager.own";
    type Subject = Itself;
    const NEEDS_KEYS: bool = false;
    const ACT: Option<Act> = None;
}

/// The subject of [`OwnWork`]; no caller is one.
#[derive(Debug)]
pub struct Itself(());

impl Subject for Itself {
    fn admit(_: &Caller, _: &State, _: Option<Act>) -> Result<Self, Denied> {
        Err(Denied::new(Code::PermissionDenied, "no caller is this manager itself"))
    }
}

impl Authorized<OwnWork> {
    /// This process's own work, as a member of the cluster.
    pub(crate) fn of_member(member: u64) -> Self {
        Self { actor: Actor::Manager(member), subject: Itself(()) }
    }
}

impl<A: Action<Subject = OperatorSubject>> Authorized<A> {
    /// On which names he acts, and which he sees.
    pub fn scope(&self) -> &Scope {
        self.subject.scope()
    }
}

macro_rules! actions {
    ($($subject:ident, $keys:literal: $($name:ident $text:literal),+;)*) => {
        /// Every RPC's action, what the audit calls it, and what it is among the acts of operators.
        pub const ACTIONS: &[(&str, &str, Option<Act>)] =
            &[$($((stringify!($name), $text, act_of!($subject $name)),)+)*];
        $($(
        #[doc = concat!("`", $text, "`")]
        #[derive(Debug)]
        pub struct $name;

        impl Action for $name {
            const NAME: &'static str = $text;
            type Subject = $subject;
            const NEEDS_KEYS: bool = $keys;
            const ACT: Option<Act> = act_of!($subject $name);
        }
    )+)*};
}

macro_rules! act_of {
    (OperatorSubject $name:ident) => {
        Some(Act::$name)
    };
    ($subject:ident $name:ident) => {
        None
    };
}

/// Every RPC's action.
pub mod act {
    use super::{
        Act, Action, FellowManager, Holder, MemberNode, OperatorSubject, RaftPeer, Stranger,
    };

    // The second word: whether a manager needs the cluster's keys for it.
    actions! {
        OperatorSubject, true:
            GetSealKey "cluster.seal-key",
            CreateSecret "secret.create",
            RotateSecrets "secret.rotate",
            RollbackSecret "secret.rollback",
            UpdateSecret "secret.update",
            RemoveSecret "secret.rm",
            ListSecrets "secret.ls",
            InspectSecret "secret.inspect",
            SecretStatus "secret.status",
            WatchDelivery "secret.watch",
            CreateService "service.create",
            UpdateService "service.update",
            RollbackService "service.rollback",
            RemoveService "service.rm",
            ListServices "service.ls",
            InspectService "service.inspect",
            ServiceTasks "service.ps",
            ListNodes "node.ls",
            InspectNode "node.inspect",
            UpdateNode "node.update",
            RemoveNode "node.rm",
            NodeTasks "node.ps",
            UpdateCluster "cluster.update",
            FindManagers "manager.find",
            PromoteManager "manager.promote",
            DemoteManager "manager.demote",
            RemoveManager "manager.rm",
            TransferLeader "manager.transfer-leader",
            RotateKeys "cluster.rotate-keys",
            RotateCa "cluster.ca.rotate",
            CreateOperator "operator.create",
            RenewOperator "operator.renew",
            ListOperators "operator.ls",
            InspectOperator "operator.inspect",
            RemoveOperator "operator.rm",
            RotateStoreKeys "cluster.rotate-store-keys",
            Shred "cluster.shred",
            UnlockKey "cluster.unlock-key",
            JoinToken "cluster.join-token",
            Backup "cluster.backup";
        OperatorSubject, false:
            ClusterStatus "cluster.status",
            ListManagers "manager.ls",
            Unlock "cluster.unlock",
            AuditHeads "audit.heads";
        MemberNode, true:
            Assignments "dispatch.assignments",
            ClaimTask "task.claim",
            EndTask "task.end",
            Report "dispatch.report";
        Stranger, true:
            Join "node.join";
        Stranger, false:
            GetRootCa "ca.root";
        Holder, true:
            Renew "ca.renew";
        RaftPeer, false:
            Raft "manager.raft";
        FellowManager, false:
            Forward "manager.forward";
    }
}

/// Lets callers through, or not.
pub struct Gate {
    replica: RaftHandle,
    audit: Arc<AuditLog>,
}

impl Gate {
    pub(crate) fn new(replica: RaftHandle, audit: Arc<AuditLog>) -> Self {
        Self { replica, audit }
    }

    /// The only way to an [`Authorized`] for a caller.
    pub fn authorize<A: Action, T>(&self, request: &Request<T>) -> Result<Authorized<A>, Status> {
        let caller = Caller::of(request);
        match self.replica.read(|state| A::Subject::admit(&caller, state, A::ACT)) {
            Ok(subject) => Ok(Authorized { actor: caller.actor(), subject }),
            Err(denied) => {
                self.audit.refused(&caller, A::NAME, &denied.why);
                Err(match denied.removed_manager {
                    // While Raft counts its vote, it must not be told to stop.
                    Some(id) if !self.replica.votes(&id) => removed(denied.why),
                    _ => Status::new(denied.code, denied.why),
                })
            }
        }
    }

    /// Whether a caller would be refused by what is applied here.
    pub(crate) fn refuses<A: Action, T>(&self, request: &Request<T>) -> bool {
        let caller = Caller::of(request);
        self.replica.read(|state| A::Subject::admit(&caller, state, A::ACT).is_err())
    }

    /// Whether an operator that was let through may stay: what he waits for is ended when he is removed.
    pub(crate) fn still_operator(&self, by: &Actor) -> Result<(), Rejected> {
        match by {
            Actor::Operator(id) if !self.replica.read(|s| s.operators().contains_key(id)) => {
                Err(Rejected::UnknownOperator { id: *id })
            }
            _ => Ok(()),
        }
    }

    /// Whether a node that was let through may stay: streams ask at each change.
    pub(crate) fn still_member(&self, node: NodeId) -> bool {
        self.replica.read(|state| state.nodes().contains_key(&node))
    }
}
