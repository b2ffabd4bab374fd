//! What a certificate says its holder is. Invariant: one word each in the subject and in the names.

use std::fmt;

/// The role in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A member of the Raft cluster; the only one that serves.
    Manager,
    /// A machine with tasks.
    Node,
    /// A person or their tool.
    Operator,
}

impl Role {
    const ALL: [Self; 3] = [Self::Manager, Self::Node, Self::Operator];

    /// The short word, which is also a DNS name of the certificate.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }

    /// The organisational unit (OU) of the subject.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Manager => "keyhole-manager",
            Self::Node => "keyhole-node",
            Self::Operator => "keyhole-operator",
        }
    }

    /// The role with this organisational unit.
    #[must_use]
    pub fn from_unit(unit: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.unit() == unit)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
