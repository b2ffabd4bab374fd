//! The kinds of callers that actions are for. Invariant: `admit` allows by naming what is allowed; all else is denied
//! with a reason that tells the caller what to do.

use keyhole_domain::NodeId;
use keyhole_state::{Act, Scope, State};
use keyhole_wire::tls::{PeerIdentity, Role};
use tonic::Code;

use super::{Caller, LocalPeer};
use crate::clock;

/// Why a caller may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// `Unauthenticated` if the caller did not prove who he is, else `PermissionDenied`.
    pub code: Code,
    /// For the caller.
    pub why: String,
    /// For a manager that was removed: its certificate's id.
    pub removed_manager: Option<String>,
}

impl Denied {
    pub(super) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into(), removed_manager: None }
    }
}

/// A kind of caller.
pub trait Subject: Sized + Send + Sync {
    /// The caller as this kind, if he is one now and, an operator, may do `act`.
    fn admit(caller: &Caller, state: &State, act: Option<Act>) -> Result<Self, Denied>;
}

/// Who administers the cluster: somebody on a manager's machine, or the holder of an operator's certificate.
#[derive(Debug)]
pub struct OperatorSubject {
    id: Option<NodeId>,
    scope: Scope,
    exporter: Option<[u8; 32]>,
    authority: Vec<u8>,
}

impl OperatorSubject {
    /// The id in the certificate; none has who called by the socket.
    pub fn id(&self) -> Option<NodeId> {
        self.id
    }

    /// On which names he acts, and which he sees.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The exporter of the TLS connection that he called on, if it is one.
    pub fn exporter(&self) -> Option<&[u8; 32]> {
        self.exporter.as_ref()
    }

    /// The id of the key of the CA that signed his certificate; empty without one.
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }
}

impl Subject for OperatorSubject {
    fn admit(caller: &Caller, state: &State, act: Option<Act>) -> Result<Self, Denied> {
        match caller {
            Caller::Local(peer) if peer.is_admin() => {
                Ok(Self { id: None, scope: Scope::ALL, exporter: None, authority: Vec::new() })
            }
            Caller::Local(LocalPeer { uid, .. }) => Err(Denied::new(
                Code::PermissionDenied,
                format!("user {uid} is neither root nor in the group 'keyhole'"),
            )),
            Caller::Remote(peer) => remote_operator(caller, state, act).map(|(id, scope)| Self {
                id: Some(id),
                scope,
                exporter: Some(peer.exporter),
                authority: peer.identity.as_ref().map_or_else(Vec::new, |it| it.authority.clone()),
            }),
            Caller::Unknown => Err(no_certificate()),
        }
    }
}

/// The certificate proves the id; the rest is the state's.
fn remote_operator(
    caller: &Caller,
    state: &State,
    act: Option<Act>,
) -> Result<(NodeId, Scope), Denied> {
    let denied = |why: String| Denied::new(Code::PermissionDenied, why);
    let identity = valid(caller, state)?;
    if identity.role != Role::Operator {
        return Err(denied(format!("a {}'s certificate is not an operator's", identity.role)));
    }
    let act = act.ok_or_else(|| denied("no operator does this".to_owned()))?;
    let id = identity.id.parse().map_err(|_| no_certificate())?;
    let operator = state.admit_operator(id, act).map_err(|refused| denied(refused.to_string()))?;
    match identity.public_key == operator.public_key {
        true => Ok((id, operator.scope.clone())),
        false => {
            Err(denied(format!("the certificate of operator {} has another key", operator.name)))
        }
    }
}

/// A machine of the cluster.
#[derive(Debug)]
pub struct MemberNode {
    id: NodeId,
    exporter: [u8; 32],
    authority: Vec<u8>,
    address: String,
    not_after: u64,
}

impl MemberNode {
    /// Its id, from its certificate.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The exporter of the TLS connection that it called on.
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// The id of the key of the CA that signed its certificate.
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// Where it called from.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The last second of its certificate.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}

impl Subject for MemberNode {
    fn admit(caller: &Caller, state: &State, _: Option<Act>) -> Result<Self, Denied> {
        let identity = valid(caller, state)?;
        if identity.role != Role::Node {
            let why = format!("a {}'s certificate is not a node's", identity.role);
            return Err(Denied::new(Code::PermissionDenied, why));
        }
        let id = member(identity, state)?;
        match caller {
            Caller::Remote(peer) => Ok(Self {
                id,
                exporter: peer.exporter,
                authority: identity.authority.clone(),
                address: peer.addr.to_string(),
                not_after: identity.not_after,
            }),
            Caller::Local(_) | Caller::Unknown => Err(no_certificate()),
        }
    }
}

/// Another manager of the cluster.
#[derive(Debug)]
pub struct FellowManager {
    member: u64,
}

impl FellowManager {
    /// Its Raft id.
    pub fn member(&self) -> u64 {
        self.member
    }
}

impl Subject for FellowManager {
    fn admit(caller: &Caller, state: &State, _: Option<Act>) -> Result<Self, Denied> {
        let identity = manager(caller, state)?;
        if state.cluster().is_none() {
            return Ok(Self { member: 0 });
        }
        let known = state.members().values().find(|member| member.node.as_str() == identity.id);
        known.map(|member| Self { member: member.id }).ok_or_else(|| {
            let why = format!("manager {} is no member of this cluster", identity.id);
            Denied::new(Code::PermissionDenied, why)
        })
    }
}

/// Another manager that this cluster's CA has let in and that was not removed since. It may have joined while this one was
/// away, and be the one from which it learns of that; what it says is judged by Raft's own rules.
#[derive(Debug)]
pub struct RaftPeer(());

impl Subject for RaftPeer {
    fn admit(caller: &Caller, state: &State, _: Option<Act>) -> Result<Self, Denied> {
        manager(caller, state).map(|_| Self(()))
    }
}

/// A manager's certificate, of one that was not removed.
fn manager<'a>(caller: &'a Caller, state: &State) -> Result<&'a PeerIdentity, Denied> {
    // Who has just joined knows no state yet; TLS has checked that the caller is of the cluster that it joined.
    let identity = match (state.cluster(), caller) {
        (None, Caller::Remote(peer)) => peer.identity.as_ref().ok_or_else(no_certificate)?,
        _ => valid(caller, state)?,
    };
    match identity.role {
        Role::Manager if state.was_removed(&identity.id) => Err(Denied {
            code: Code::PermissionDenied,
            why: format!("manager {} was removed from this cluster", identity.id),
            removed_manager: Some(identity.id.clone()),
        }),
        Role::Manager => Ok(identity),
        role => {
            let why = format!("a {role}'s certificate is not a manager's");
            Err(Denied::new(Code::PermissionDenied, why))
        }
    }
}

/// Anybody who reached the port.
#[derive(Debug)]
pub struct Stranger {
    address: String,
}

impl Stranger {
    /// Where he called from.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Subject for Stranger {
    fn admit(caller: &Caller, _: &State, _: Option<Act>) -> Result<Self, Denied> {
        match caller {
            Caller::Remote(peer) => Ok(Self { address: peer.addr.to_string() }),
            Caller::Local(_) | Caller::Unknown => Err(no_certificate()),
        }
    }
}

/// Who holds a certificate that may be renewed: also for some time after it has expired.
#[derive(Debug)]
pub struct Holder {
    id: NodeId,
    role: Role,
}

impl Holder {
    /// The id in the certificate.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The role in the certificate.
    pub fn role(&self) -> Role {
        self.role
    }
}

impl Subject for Holder {
    fn admit(caller: &Caller, state: &State, _: Option<Act>) -> Result<Self, Denied> {
        let identity = certificate(caller, state)?;
        Ok(Self { id: member(identity, state)?, role: identity.role })
    }
}

fn no_certificate() -> Denied {
    Denied::new(Code::Unauthenticated, "no client certificate; join the cluster first")
}

/// A certificate of this cluster, expired or not.
fn certificate<'a>(caller: &'a Caller, state: &State) -> Result<&'a PeerIdentity, Denied> {
    let Caller::Remote(peer) = caller else {
        return Err(no_certificate());
    };
    let identity = peer.identity.as_ref().ok_or_else(no_certificate)?;
    let ours = state.cluster().is_some_and(|c| c.id == identity.cluster);
    match ours {
        true => Ok(identity),
        false => Err(Denied::new(
            Code::PermissionDenied,
            format!("a certificate of another cluster ({})", identity.cluster),
        )),
    }
}

/// A certificate that holds now: a connection may be older than the end of its certificate.
fn valid<'a>(caller: &'a Caller, state: &State) -> Result<&'a PeerIdentity, Denied> {
    let identity = certificate(caller, state)?;
    let expired = identity.expired || identity.not_after < clock::unix_seconds();
    match expired {
        false => Ok(identity),
        true => Err(Denied::new(
            Code::Unauthenticated,
            match identity.role {
                Role::Operator => {
                    "the operator's certificate has expired; ask an administrator to remove this operator and create it \
                     anew (is one of the clocks wrong?)"
                }
                Role::Node | Role::Manager => {
                    "the certificate has expired; it can only be renewed (is one of the clocks wrong?)"
                }
            },
        )),
    }
}

/// Whether the id is still a member, in the role of its certificate.
fn member(identity: &PeerIdentity, state: &State) -> Result<NodeId, Denied> {
    let id: Option<NodeId> = identity.id.parse().ok();
    let known = |id: &NodeId| match identity.role {
        Role::Node => state.nodes().contains_key(id),
        Role::Manager => state.members().values().any(|member| member.node == *id),
        Role::Operator => false,
    };
    id.filter(known).ok_or_else(|| {
        let (role, id) = (identity.role, &identity.id);
        let why = format!("{role} {id} is no member of this cluster (any more); join it again");
        Denied::new(Code::PermissionDenied, why)
    })
}

#[cfg(test)]
mod tests {
    use keyhole_domain::{ClusterId, Timestamp};
    use keyhole_state::{
        Actor, Command, Envelope, InitCluster, KeySeal, Member, Operator, Role as OperatorRole,
        SealedKey, TokenRecord,
    };
    use keyhole_wire::tls::PeerInfo;

    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_entropy([n; 16])
    }

    /// A cluster with operator 2, whose key has the digest 2.
    fn state() -> State {
        let seal = KeySeal { enc: vec![1], ciphertext: vec![2] };
        let key = SealedKey { seals: [(1, seal)].into() };
        let token = TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
        let member = Member {
            id: 1,
            node: id(1),
            hostname: String::new(),
            address: "a:1".into(),
            seal_key: [0; 32],
            voter: true,
        };
        let init = InitCluster {
            id: ClusterId::from_entropy([0; 16]),
            ca_certificate: vec![],
            ca_key: key.clone(),
            value_key: key,
            worker_token: token.clone(),
            manager_token: token,
            certificate_seconds: 60,
            member,
        };
        let operator = Operator {
            id: id(2),
            name: "ann".parse().unwrap(),
            role: OperatorRole::Auditor,
            scope: Scope::ALL,
            public_key: [2; 32],
            created_at: Timestamp(1),
            seconds: 60,
            not_after: u64::MAX,
        };
        let mut state = State::default();
        let commands = [Command::Init(Box::new(init)), Command::CreateOperator(Box::new(operator))];
        for (index, command) in (1..).zip(commands) {
            let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
            state.apply(index, &Envelope { at: Timestamp(1), actor, via: 1, command }).unwrap();
        }
        state
    }

    fn refused(change: impl FnOnce(&mut PeerIdentity), act: Option<Act>) -> Option<String> {
        let mut identity = PeerIdentity {
            cluster: ClusterId::from_entropy([0; 16]),
            role: Role::Operator,
            id: id(2).to_string(),
            serial: String::new(),
            not_before: 0,
            not_after: u64::MAX,
            public_key: [2; 32],
            authority: Vec::new(),
            expired: false,
        };
        change(&mut identity);
        let addr = ([127, 0, 0, 1], 1).into();
        let peer = PeerInfo { addr, identity: Some(identity), exporter: [0; 32] };
        let admitted = OperatorSubject::admit(&Caller::Remote(Box::new(peer)), &state(), act);
        admitted.err().map(|denied| denied.why)
    }

    #[test]
    fn a_certificate_counts_with_its_own_key_and_for_acts_of_its_role_only() {
        let look = Some(Act::ListSecrets);
        assert_eq!(refused(|_| (), look), None);
        for (why, words) in [
            (refused(|one| one.public_key = [3; 32], look), "has another key"),
            (refused(|one| one.id = id(3).to_string(), look), "not known"),
            (refused(|one| one.role = Role::Node, look), "is not an operator's"),
            (refused(|one| one.not_after = 1, look), "has expired"),
            (
                refused(|one| one.cluster = ClusterId::from_entropy([1; 16]), look),
                "another cluster",
            ),
            (refused(|_| (), Some(Act::CreateSecret)), "auditor"),
            (refused(|_| (), None), "no operator does this"),
        ] {
            let why = why.unwrap_or_default();
            assert!(why.contains(words), "{words}: {why:?}");
        }
    }
}
