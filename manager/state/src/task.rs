//! Tasks: what nodes say they run. A claim is remembered also when it is refused, so that `service ps` can say why.

use std::collections::BTreeSet;

use keyhole_domain::{NodeId, ServiceId, TaskId, Timestamp};

use crate::{Availability, Outcome, Rejected, RowKey, Standing, State, apply::Change};

/// How many ended tasks of a service are remembered (Docker's task history limit).
const HISTORY: usize = 5;

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// When the manager was told.
    pub at: Timestamp,
    /// Whether it never got anything, because the node may not hold it.
    pub rejected: bool,
    /// Why, in words.
    pub reason: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The service it is an instance of.
    pub service: ServiceId,
    /// The node that claims it.
    pub node: NodeId,
    /// Its cgroup on that node, as the node says; for display only.
    pub cgroup: String,
    /// When it was claimed.
    pub claimed_at: Timestamp,
    /// How it ended, if it did.
    pub end: Option<TaskEnd>,
}

impl State {
    pub(crate) fn claim_task(
        &mut self,
        at: Timestamp,
        id: TaskId,
        service: ServiceId,
        node: NodeId,
        cgroup: &str,
    ) -> Result<Change, Rejected> {
        self.service(service)?;
        let Some(claimant) = self.nodes.get(&node) else {
            return Err(Rejected::NotAMember { node });
        };
        let paused = claimant.availability == Availability::Pause;
        if let Some(known) = self.tasks.get(&id) {
            // Claiming again what one has is how a node makes sure after a lost answer.
            let same = known.node == node && known.service == service && known.end.is_none();
            return match same {
                true => Ok(self.claimed(id, None)),
                false => Err(Rejected::IdTaken { kind: "task", id: id.to_string() }),
            };
        }
        let task = Task { id, service, node, cgroup: cgroup.to_owned(), claimed_at: at, end: None };
        let reason = match self.standing(&task) {
            Standing::Rejected(reason) => Some(reason),
            _ if paused => Some("the node is paused and takes no new tasks".to_owned()),
            _ => None,
        };
        let end = reason.clone().map(|reason| TaskEnd { at, rejected: true, reason });
        self.tasks.insert(id, Task { end, ..task });
        let mut change = self.claimed(id, reason);
        self.forget_history(service, &mut change);
        Ok(change)
    }

    fn claimed(&self, id: TaskId, rejected: Option<String>) -> Change {
        let nodes = self.tasks.get(&id).map(|task| task.node).into_iter().collect();
        Change { nodes, ..Change::rows([RowKey::Task(id)], Outcome::Claimed { rejected }) }
    }

    pub(crate) fn end_task(
        &mut self,
        at: Timestamp,
        id: TaskId,
        node: NodeId,
        reason: &str,
    ) -> Result<Change, Rejected> {
        match self.tasks.get(&id) {
            Some(task) if task.node != node => {
                return Err(Rejected::NotYourTask { task: id.to_string() });
            }
            // Ended or forgotten already: the node says it again after a lost answer.
            Some(task) if task.end.is_some() => return Ok(Change::rows([], Outcome::Done)),
            None => return Ok(Change::rows([], Outcome::Done)),
            Some(_) => {}
        }
        Ok(self.end_tasks(at, [id], reason))
    }

    pub(crate) fn sync_tasks(
        &mut self,
        at: Timestamp,
        node: NodeId,
        live: &[TaskId],
        ca_number: u32,
    ) -> Result<Change, Rejected> {
        if !self.nodes.contains_key(&node) {
            return Err(Rejected::NotAMember { node });
        }
        let live: BTreeSet<&TaskId> = live.iter().collect();
        let gone: Vec<TaskId> = self
            .live_tasks(node)
            .filter(|task| !live.contains(&task.id))
            .map(|task| task.id)
            .collect();
        let mut change = self.end_tasks(at, gone, "the node no longer has it");
        change.rows.extend(self.node_certified(node, ca_number));
        Ok(change)
    }

    fn end_tasks(
        &mut self,
        at: Timestamp,
        ids: impl IntoIterator<Item = TaskId>,
        reason: &str,
    ) -> Change {
        let mut change = Change::rows([], Outcome::Done);
        for id in ids {
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            task.end = Some(TaskEnd { at, rejected: false, reason: reason.to_owned() });
            let (node, service) = (task.node, task.service);
            change.nodes.insert(node);
            change.rows.insert(RowKey::Task(id));
            self.forget_history(service, &mut change);
        }
        change
    }

    fn forget_history(&mut self, service: ServiceId, change: &mut Change) {
        let mut ended: Vec<(Timestamp, TaskId)> = self
            .tasks
            .values()
            .filter(|task| task.service == service)
            .filter_map(|task| task.end.as_ref().map(|end| (end.at, task.id)))
            .collect();
        ended.sort_unstable();
        let excess = ended.len().saturating_sub(HISTORY);
        for (_, id) in ended.into_iter().take(excess) {
            self.tasks.remove(&id);
            change.rows.insert(RowKey::Task(id));
        }
    }

    /// The tasks of a node that have not ended.
    pub(crate) fn live_tasks(&self, node: NodeId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |task| task.node == node && task.end.is_none())
    }
}
