//! The kinds of callers that actions are for. Invariant: `admit` allows by naming what is allowed; all else is denied
//! with a reason that tells the caller what to do.

use keyhole_domain::NodeId;
use keyhole_state::State;
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
    /// The caller as this kind, if he is one now.
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied>;
}

/// An administrator of the cluster.
#[derive(Debug)]
pub struct OperatorSubject(());

impl Subject for OperatorSubject {
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied> {
        match caller {
            Caller::Local(peer) if peer.is_admin() => Ok(Self(())),
            Caller::Local(LocalPeer { uid, .. }) => Err(Denied::new(
                Code::PermissionDenied,
                format!("user {uid} is neither root nor in the group 'keyhole'"),
            )),
            Caller::Remote(_) | Caller::Unknown => {
                let identity = valid(caller, state)?;
                Err(match identity.role {
                    // The state does not know operators yet, and a certificate alone could not be revoked.
                    Role::Operator => Denied::new(
                        Code::PermissionDenied,
                        format!("operator {} is not known to this cluster", identity.id),
                    ),
                    Role::Node | Role::Manager => Denied::new(
                        Code::PermissionDenied,
                        format!("a {}'s certificate is not an operator's", identity.role),
                    ),
                })
            }
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
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied> {
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
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied> {
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
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied> {
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
    fn admit(caller: &Caller, _: &State) -> Result<Self, Denied> {
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
    fn admit(caller: &Caller, state: &State) -> Result<Self, Denied> {
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
            "the certificate has expired; it can only be renewed (is one of the clocks wrong?)",
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
