//! Who is at the other end of a connection, as the kernel or TLS says it. Invariant: nothing here comes from a request's
//! content.

use std::fs;

use keyhole_domain::NodeId;
use keyhole_state::Actor;
use keyhole_wire::tls::{PeerInfo, Role};
use tonic::Request;

/// The group whose members administer the cluster over the local socket.
const GROUP: &str = "keyhole";

/// A process on this machine, as the kernel named it when it connected to the operator socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPeer {
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its process id.
    pub pid: u32,
}

impl LocalPeer {
    /// Root, and the members of the group `keyhole`.
    pub(crate) fn is_admin(self) -> bool {
        self.uid == 0 || in_group(self, &read("/etc/group"), || read("/etc/passwd"))
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// The id of the group `keyhole`, if this machine has it.
#[must_use]
pub fn operator_group() -> Option<u32> {
    group(&read("/etc/group")).map(|(gid, _)| gid)
}

/// Id and members.
fn group(groups: &str) -> Option<(u32, Vec<&str>)> {
    let fields = groups.lines().map(|line| line.split(':'));
    fields.into_iter().find_map(|mut fields| {
        let named = fields.next() == Some(GROUP);
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').collect();
        named.then_some((gid, members))
    })
}

fn in_group(peer: LocalPeer, groups: &str, users: impl FnOnce() -> String) -> bool {
    let Some((gid, members)) = group(groups) else {
        return false;
    };
    if peer.gid == gid {
        return true;
    }
    let uid = peer.uid.to_string();
    users().lines().any(|line| {
        let mut fields = line.split(':');
        let (name, user) = (fields.next().unwrap_or_default(), fields.nth(1));
        let primary = fields.next().and_then(|text| text.parse::<u32>().ok());
        user == Some(uid.as_str()) && (members.contains(&name) || primary == Some(gid))
    })
}

/// Whoever sent a request.
#[derive(Debug, Clone)]
pub enum Caller {
    /// By the operator socket.
    Local(LocalPeer),
    /// By TLS, with or without a certificate.
    Remote(Box<PeerInfo>),
    /// By neither; nothing is allowed to it.
    Unknown,
}

impl Caller {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let extensions = request.extensions();
        match (extensions.get::<LocalPeer>(), extensions.get::<PeerInfo>()) {
            (Some(local), None) => Self::Local(*local),
            (None, Some(peer)) => Self::Remote(Box::new(peer.clone())),
            // Neither, or both, which no listener makes.
            (None, None) | (Some(_), Some(_)) => Self::Unknown,
        }
    }

    /// Whether it called by the operator socket.
    pub(crate) fn is_local<T>(request: &Request<T>) -> bool {
        matches!(Self::of(request), Self::Local(_))
    }

    /// Who it says it is, for the audit; whether that is enough is decided elsewhere.
    pub(crate) fn actor(&self) -> Actor {
        let address = match self {
            Self::Local(local) => {
                return Actor::Local { uid: local.uid, gid: local.gid, pid: local.pid };
            }
            Self::Unknown => "unknown".to_owned(),
            Self::Remote(peer) => match certificate(peer) {
                Some((Role::Operator, id)) => return Actor::Operator(id),
                Some((Role::Node | Role::Manager, id)) => return Actor::Node(id),
                None => peer.addr.to_string(),
            },
        };
        Actor::Joiner { address }
    }
}

fn certificate(peer: &PeerInfo) -> Option<(Role, NodeId)> {
    let identity = peer.identity.as_ref()?;
    Some((identity.role, identity.id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "root:x:0:\nkeyholes:x:8:eve\nkeyhole:x:77:ann,bob\n";
    const USERS: &str =
        "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:\nprim:x:1002:77::/:\neve:x:1003:8::/:\n";

    fn admitted(uid: u32, gid: u32, groups: &str) -> bool {
        let peer = LocalPeer { uid, gid, pid: 1 };
        in_group(peer, groups, || USERS.to_owned())
    }

    #[test]
    fn the_groups_members_are_admins_and_nobody_else() {
        assert!(admitted(1000, 1000, GROUPS), "listed in the group");
        assert!(admitted(1002, 1002, GROUPS), "by the primary group");
        assert!(admitted(4711, 77, GROUPS), "by the effective group");
        assert!(!admitted(1003, 8, GROUPS), "a group with a longer name");
        assert!(!admitted(4711, 4711, GROUPS), "no user of this machine");
        assert!(!admitted(1000, 1000, "root:x:0:\n"), "no such group");
        assert_eq!(group(GROUPS).unwrap().0, 77);
    }
}
