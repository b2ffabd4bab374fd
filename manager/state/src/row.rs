//! Rows: the pieces that the state is stored in. A change names the rows that it touched, and only those are written.

use keyhole_domain::{NodeId, SecretId, ServiceId, TaskId, Version};

use crate::{Cluster, Member, Node, Operator, Secret, SecretVersion, Service, Task};

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each names what it is the row of")]
pub enum RowKey {
    Cluster,
    Member(u64),
    Secret(SecretId),
    Version(SecretId, Version),
    Service(ServiceId),
    Task(TaskId),
    Node(NodeId),
    Operator(NodeId),
}

/// A row's content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the row of what it holds")]
pub enum Row {
    Cluster(Box<Cluster>),
    Member(Member),
    /// Without its versions, which have rows of their own: a rotation writes one value, not ten.
    Secret(Secret),
    Version(SecretId, Version, SecretVersion),
    Service(Service),
    Task(Task),
    Node(Node),
    Operator(Operator),
}

impl Row {
    /// The row's key.
    pub fn key(&self) -> RowKey {
        match self {
            Self::Cluster(_) => RowKey::Cluster,
            Self::Member(member) => RowKey::Member(member.id),
            Self::Secret(secret) => RowKey::Secret(secret.id),
            Self::Version(id, version, _) => RowKey::Version(*id, *version),
            Self::Service(service) => RowKey::Service(service.id),
            Self::Task(task) => RowKey::Task(task.id),
            Self::Node(node) => RowKey::Node(node.id),
            Self::Operator(operator) => RowKey::Operator(operator.id),
        }
    }
}
