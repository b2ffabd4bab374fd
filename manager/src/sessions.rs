//! Which nodes have a stream here, what was sent to each, and what each says its callers see.
//!
//! Depends on the domain only. Invariant: a node "has" a revision when it reported that revision, or when all that was
//! sent to it up to that revision is reported: a change that does not concern a node needs no message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyhole_domain::{Assignment, GrantId, NodeId, Revision, TaskId, Version};
use tokio::sync::{Notify, watch};

/// Assignments that a node was sent and has not reported; older ones are forgotten.
const HISTORY: usize = 64;

/// The live session table of this manager.
#[derive(Debug, Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sessions: BTreeMap<NodeId, Session>,
}

/// Who is at the other end of a stream, for people to see.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Where it calls from.
    pub address: String,
    /// Its version of keyhole, as it says.
    pub version: String,
}

/// One node.
#[derive(Debug)]
struct Session {
    /// The stream that it has now; 0: none.
    stream: u64,
    peer: Peer,
    wake: Arc<Notify>,
    /// Counts the changes that concern it, and up to which of them was looked at.
    wanted: u64,
    done: u64,
    sent: Revision,
    covered: Revision,
    reported: Revision,
    waiting: VecDeque<(Revision, Arc<Assignment>)>,
    delivered: Option<Arc<Assignment>>,
}

impl Session {
    fn has(&self, revision: Revision) -> bool {
        self.reported >= revision || (self.covered >= revision && self.reported >= self.sent)
    }

    /// What was sent is shown up to what was reported.
    fn deliver(&mut self) {
        while let Some((sent, _)) = self.waiting.front()
            && *sent <= self.reported
        {
            self.delivered = self.waiting.pop_front().map(|(_, sent)| sent);
        }
    }

    fn revision(&self) -> Revision {
        match self.reported >= self.sent {
            true => self.covered.max(self.reported),
            false => self.reported,
        }
    }
}

/// What is known of a node's session.
#[derive(Debug, Clone, Default)]
pub struct SessionView {
    /// Whether it has a stream now.
    pub connected: bool,
    /// Who it is.
    pub peer: Peer,
    /// The revision that its callers see, as far as it said.
    pub revision: Revision,
    /// What they see of the node's tasks.
    pub shown: Shown,
}

/// What a node's callers see, as it said: to this manager, or to another one that told this one.
#[derive(Debug, Clone)]
pub enum Shown {
    /// The assignment that it reported.
    Here(Option<Arc<Assignment>>),
    /// Its tasks' grants with their versions.
    There(BTreeMap<TaskId, Vec<(GrantId, Version)>>),
}

impl Default for Shown {
    fn default() -> Self {
        Self::Here(None)
    }
}

impl Shown {
    /// A task's grants and versions, in the assignment's order; `None` if it has not said that it has the task.
    pub fn task(&self, id: TaskId) -> Option<Vec<(GrantId, Version)>> {
        match self {
            Self::There(tasks) => tasks.get(&id).cloned(),
            Self::Here(assignment) => {
                let task = assignment.as_ref()?.tasks.iter().find(|task| task.id == id)?;
                Some(task.grants.iter().map(|grant| (grant.id, grant.value.version)).collect())
            }
        }
    }

    /// All of its tasks.
    pub fn tasks(&self) -> BTreeMap<TaskId, Vec<(GrantId, Version)>> {
        match self {
            Self::There(tasks) => tasks.clone(),
            Self::Here(assignment) => {
                let tasks = assignment.iter().flat_map(|assignment| &assignment.tasks);
                tasks.filter_map(|task| Some((task.id, self.task(task.id)?))).collect()
            }
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { table: Mutex::default(), changed: watch::channel(0).0 }) }
    }
}

impl Sessions {
    /// A new stream of a node, which has got the revision `last`; it replaces the one before.
    pub fn open(&self, node: NodeId, peer: Peer, last: Revision) -> Ticket {
        let wake = Arc::new(Notify::new());
        let mut table = self.table();
        table.next += 1;
        let stream = table.next;
        let before = table.sessions.remove(&node);
        if let Some(before) = &before {
            before.wake.notify_one();
        }
        let session = Session {
            stream,
            peer,
            wake: wake.clone(),
            wanted: 1,
            done: 0,
            // It has got that from another stream, and says itself when its callers see it.
            sent: last,
            covered: Revision::default(),
            reported: Revision::default(),
            waiting: VecDeque::new(),
            delivered: before.and_then(|before| before.delivered),
        };
        table.sessions.insert(node, session);
        drop(table);
        self.announce();
        Ticket { sessions: self.clone(), node, stream, wake }
    }

    /// A change was applied: `concerns` says whose assignment it may have changed.
    pub fn applied(&self, revision: Revision, concerns: impl Fn(&NodeId) -> bool) {
        for (node, session) in &mut self.table().sessions {
            if concerns(node) {
                session.wanted += 1;
                session.wake.notify_one();
            } else if session.done == session.wanted {
                session.covered = session.covered.max(revision);
            }
        }
        self.announce();
    }

    /// A node says which revision its callers see.
    pub fn reported(&self, node: NodeId, revision: Revision) {
        if let Some(session) = self.table().sessions.get_mut(&node) {
            session.reported = session.reported.max(revision);
            session.deliver();
        }
        self.announce();
    }

    /// Forgets a node that was removed; its stream ends.
    pub fn forget(&self, node: NodeId) {
        if let Some(session) = self.table().sessions.remove(&node) {
            session.wake.notify_one();
        }
        self.announce();
    }

    /// Whether a connected node has a revision; `None` if it is not connected.
    pub fn has(&self, node: NodeId, revision: Revision) -> Option<bool> {
        let table = self.table();
        let session = table.sessions.get(&node).filter(|s| s.stream != 0)?;
        Some(session.has(revision))
    }

    /// What is known of a node.
    pub fn view(&self, node: NodeId) -> SessionView {
        let table = self.table();
        let Some(session) = table.sessions.get(&node) else {
            return SessionView::default();
        };
        SessionView {
            connected: session.stream != 0,
            peer: session.peer.clone(),
            revision: session.revision(),
            shown: Shown::Here(session.delivered.clone()),
        }
    }

    /// All nodes that are connected.
    pub fn connected_nodes(&self) -> Vec<NodeId> {
        let table = self.table();
        table.sessions.iter().filter(|(_, s)| s.stream != 0).map(|(node, _)| *node).collect()
    }

    /// How many nodes are connected.
    pub fn connected(&self) -> usize {
        let connected = |session: &&Session| session.stream != 0;
        self.table().sessions.values().filter(connected).count()
    }

    /// Moves whenever something here does.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn announce(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the table; the node counts as gone when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    sessions: Sessions,
    node: NodeId,
    stream: u64,
    wake: Arc<Notify>,
}

impl Ticket {
    /// Until something concerns this node, or another stream took its place.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Up to which change the next look at the state will cover, or nothing if the place is another stream's.
    pub fn begin(&self) -> Option<u64> {
        self.with(|session| session.wanted)
    }

    /// The state was looked at, at `revision`; `sent` is what was sent because of it, if anything was.
    pub fn finish(&self, wanted: u64, revision: Revision, sent: Option<Arc<Assignment>>) {
        self.with(|session| {
            session.done = wanted;
            session.covered = session.covered.max(revision);
            if let Some(assignment) = sent {
                session.sent = revision;
                session.waiting.push_back((revision, assignment));
                if session.waiting.len() > HISTORY {
                    session.waiting.pop_front();
                }
                // A node that has it from another stream may have said so already, and says nothing twice.
                session.deliver();
            }
        });
        self.sessions.announce();
    }

    fn with<R>(&self, change: impl FnOnce(&mut Session) -> R) -> Option<R> {
        let mut table = self.sessions.table();
        let session = table.sessions.get_mut(&self.node)?;
        (session.stream == self.stream).then(|| change(session))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.with(|session| session.stream = 0).is_some() {
            self.sessions.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_entropy([n; 16])
    }

    fn at(index: u64) -> Revision {
        Revision { incarnation: 1, index }
    }

    fn send(ticket: &Ticket, index: u64) {
        let wanted = ticket.begin().unwrap();
        ticket.finish(wanted, at(index), Some(Arc::default()));
    }

    #[test]
    fn a_node_has_what_it_reported_and_what_did_not_concern_it_since() {
        let sessions = Sessions::default();
        assert_eq!(sessions.has(node(1), at(1)), None);
        let ticket = sessions.open(node(1), Peer::default(), Revision::default());
        send(&ticket, 5);
        assert_eq!(sessions.has(node(1), at(5)), Some(false));
        sessions.reported(node(1), at(5));
        assert_eq!(sessions.has(node(1), at(5)), Some(true));
        assert_eq!(sessions.has(node(1), at(6)), Some(false));
        sessions.applied(at(6), |_| false);
        assert_eq!(sessions.has(node(1), at(6)), Some(true));
        assert_eq!(sessions.view(node(1)).revision, at(6));
    }

    #[test]
    fn a_later_foreign_change_does_not_hide_one_that_is_still_to_be_sent() {
        let sessions = Sessions::default();
        let ticket = sessions.open(node(1), Peer::default(), Revision::default());
        send(&ticket, 5);
        sessions.reported(node(1), at(5));
        sessions.applied(at(6), |_| true);
        let wanted = ticket.begin().unwrap();
        sessions.applied(at(7), |_| false);
        assert_eq!(sessions.has(node(1), at(6)), Some(false));
        ticket.finish(wanted, at(7), Some(Arc::default()));
        assert_eq!(sessions.has(node(1), at(6)), Some(false), "sent, not reported");
        sessions.reported(node(1), at(7));
        assert_eq!(sessions.has(node(1), at(7)), Some(true));
    }

    #[test]
    fn what_a_node_got_from_another_stream_is_shown_when_it_says_so() {
        let sessions = Sessions::default();
        let ticket = sessions.open(node(1), Peer::default(), at(5));
        assert_eq!(sessions.has(node(1), at(5)), Some(false), "its callers may not see it yet");
        sessions.applied(at(6), |_| false);
        assert_eq!(sessions.has(node(1), at(6)), Some(false));
        sessions.reported(node(1), at(5));
        assert_eq!(sessions.has(node(1), at(5)), Some(true));
        send(&ticket, 5);
        assert_eq!(sessions.has(node(1), at(5)), Some(true));
        let shown = sessions.view(node(1)).shown;
        assert!(matches!(shown, Shown::Here(Some(_))), "it was reported before it was sent");
    }

    #[test]
    fn the_second_stream_of_a_node_replaces_the_first() {
        let sessions = Sessions::default();
        let first = sessions.open(node(1), Peer::default(), Revision::default());
        let second = sessions.open(node(1), Peer::default(), Revision::default());
        assert!(first.begin().is_none());
        drop(first);
        assert!(sessions.view(node(1)).connected, "the old one's end is not the new one's");
        drop(second);
        assert!(!sessions.view(node(1)).connected);
        assert_eq!(sessions.has(node(1), at(0)), None);
    }
}
