//! Nodes: the machines that mount. What is known of them is set at join or by an operator.

use keyhole_domain::{Labels, NodeFacts, NodeId, Timestamp};

use crate::{NodeChange, Outcome, Rejected, RowKey, State, apply::Change};

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// It keeps what it has and takes no more.
    Pause,
    /// Its tasks get nothing.
    Drain,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id, in its certificate too.
    pub id: NodeId,
    /// Its host name at join.
    pub hostname: String,
    /// Its labels; only operators set them.
    pub labels: Labels,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// When it joined.
    pub joined_at: Timestamp,
    /// The log index of the last change.
    pub index: u64,
    /// Whether it has shown no certificate of the current root CA yet.
    pub former_certificate: bool,
}

impl Node {
    /// What constraints may look at.
    pub fn facts(&self) -> NodeFacts<'_> {
        NodeFacts { id: self.id, hostname: &self.hostname, labels: &self.labels }
    }
}

impl State {
    pub(crate) fn join_node(
        &mut self,
        (at, index): (Timestamp, u64),
        id: NodeId,
        hostname: &str,
    ) -> Result<Change, Rejected> {
        if self.nodes.contains_key(&id) {
            return Err(Rejected::IdTaken { kind: "node", id: id.to_string() });
        }
        let node = Node {
            id,
            hostname: hostname.to_owned(),
            labels: Labels::default(),
            availability: Availability::Active,
            joined_at: at,
            index,
            former_certificate: false,
        };
        self.nodes.insert(id, node);
        Ok(Change::rows([RowKey::Node(id)], Outcome::Node(id)))
    }

    pub(crate) fn change_node(
        &mut self,
        index: u64,
        id: NodeId,
        change: &NodeChange,
    ) -> Result<Change, Rejected> {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Err(not_found(id));
        };
        if let Some(labels) = &change.labels {
            let (expected, actual) = (change.expected, node.index);
            if expected != 0 && expected != actual {
                let name = node.hostname.clone();
                return Err(Rejected::OutOfSequence { kind: "node", name, expected, actual });
            }
            node.labels = labels.clone();
        }
        node.index = index;
        if let Some(availability) = change.availability {
            node.availability = availability;
        }
        let nodes = [id].into();
        Ok(Change { nodes, ..Change::rows([RowKey::Node(id)], Outcome::Node(id)) })
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) -> Result<Change, Rejected> {
        if self.nodes.remove(&id).is_none() {
            return Err(not_found(id));
        }
        let mut change = Change::rows([RowKey::Node(id)], Outcome::Node(id));
        change.nodes.insert(id);
        let tasks: Vec<_> = self.tasks.values().filter(|task| task.node == id).collect();
        let tasks: Vec<_> = tasks.into_iter().map(|task| task.id).collect();
        for task in tasks {
            self.tasks.remove(&task);
            change.rows.insert(RowKey::Task(task));
        }
        Ok(change)
    }
}

fn not_found(id: NodeId) -> Rejected {
    Rejected::NotFound { kind: "node", name: id.to_string() }
}
