//! What one node needs, and nothing more: its tasks, their grants, and which values those name.
//!
//! Values travel beside an assignment, sealed; here they are only named, by [`ValueKey`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{
    FileMode, GrantId, Revision, SecretId, SecretName, ServiceName, Target, TaskId, Version,
};

/// One version of one secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueKey {
    /// The secret.
    pub secret: SecretId,
    /// The version.
    pub version: Version,
}

/// One file of one task, resolved to a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedGrant {
    /// The grant.
    pub id: GrantId,
    /// Which bytes the file has.
    pub value: ValueKey,
    /// The value's length in bytes: the file's size.
    pub size: u32,
    /// The secret's name, for `user.keyhole.secret` and the audit.
    pub name: SecretName,
    /// Where the file appears.
    pub target: Target,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// The file's permission bits.
    pub mode: FileMode,
}

/// One task and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedTask {
    /// The task.
    pub id: TaskId,
    /// The service it is an instance of.
    pub service: ServiceName,
    /// Its files; no two targets conflict. Shared by all who have the task as it is.
    pub grants: Arc<[AssignedGrant]>,
    /// Why this node gets nothing for the task, if so; then `grants` is empty.
    pub rejected: Option<String>,
}

/// All that one node needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    /// The state it was made from.
    pub revision: Revision,
    /// The node's tasks, in the order of their ids.
    pub tasks: Vec<AssignedTask>,
}

impl Assignment {
    /// Every value that a task of this node may read.
    pub fn values(&self) -> BTreeSet<ValueKey> {
        self.tasks.iter().flat_map(|task| task.grants.iter()).map(|grant| grant.value).collect()
    }

    pub(crate) fn by_id(&self) -> BTreeMap<TaskId, &AssignedTask> {
        self.tasks.iter().map(|task| (task.id, task)).collect()
    }
}
