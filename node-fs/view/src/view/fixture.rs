//! Assignments in few words, for the tests beside.

use std::collections::BTreeSet;

use keyhole_domain::{
    AssignedGrant, AssignedTask, Assignment, GrantId, Revision, SecretId, TaskId, Timestamp,
    ValueKey, Version,
};

use super::View;
use crate::MountFacts;

pub(super) const FACTS: MountFacts = MountFacts { mounted: Timestamp(5) };

pub(super) fn task(n: u8) -> TaskId {
    TaskId::from_entropy([n; 16])
}

pub(super) fn version(n: u64) -> Version {
    Version::new(n).unwrap()
}

/// Grant `id` of secret `id`, at `target` and version `v`; all its other fields follow from the numbers.
pub(super) fn grant(id: u64, target: &str, v: u64) -> AssignedGrant {
    let byte = u8::try_from(id).unwrap();
    AssignedGrant {
        id: GrantId(id),
        value: ValueKey { secret: SecretId::from_entropy([byte; 16]), version: version(v) },
        size: u32::try_from(id * 1000 + v).unwrap(),
        name: format!("secret{id}").parse().unwrap(),
        target: target.parse().unwrap(),
        uid: 1000 + u32::from(byte),
        gid: 100,
        mode: "0440".parse().unwrap(),
    }
}

pub(super) fn assigned(n: u8, grants: Vec<AssignedGrant>) -> AssignedTask {
    AssignedTask {
        id: task(n),
        service: "web".parse().unwrap(),
        grants: grants.into(),
        rejected: None,
    }
}

pub(super) fn assignment(incarnation: u64, tasks: Vec<AssignedTask>) -> Assignment {
    Assignment { revision: Revision { incarnation, index: 1 }, tasks }
}

/// The next view, all assigned tasks being live and nothing held.
pub(super) fn then(view: &View, tasks: Vec<AssignedTask>) -> View {
    let live: BTreeSet<TaskId> = tasks.iter().map(|task| task.id).collect();
    view.next(&assignment(1, tasks), &live, Timestamp(10), |_| false).0
}

pub(super) fn first(tasks: Vec<AssignedTask>) -> View {
    then(&View::empty(FACTS), tasks)
}
