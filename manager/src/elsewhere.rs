//! What other managers know of the nodes that are connected to them: asked for when somebody wants to see it.
//!
//! Depends on the ways to other managers. Invariant: a manager that does not answer in time is left out; its nodes then
//! count as not connected, which is all that is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use keyhole_domain::{GrantId, NodeId, Revision, TaskId, Version};
use keyhole_proto::v1;
use keyhole_proto::v1::peer_client::PeerClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::raft::Peer;
use crate::sessions::{Peer as NodePeer, SessionView, Sessions, Shown};
use crate::shell::{Shell, revision_in, revision_out};

/// How long other managers have for an answer.
const ASKING: Duration = Duration::from_secs(1);

/// The sessions of all managers, as of when they were asked.
#[derive(Debug)]
pub(crate) struct Seen {
    here: Sessions,
    there: BTreeMap<NodeId, SessionView>,
    store_work: BTreeMap<u64, String>,
}

impl Seen {
    /// Asks all other managers; of the nodes in `shown_on` they also say what these show.
    pub(crate) async fn gather(shell: &Shell, shown_on: BTreeSet<NodeId>) -> Self {
        let request =
            v1::SessionsRequest { shown_on: shown_on.iter().map(ToString::to_string).collect() };
        let asked = shell.other_managers().into_iter().map(|(member, peer)| {
            let request = request.clone();
            async move { (member, timeout(ASKING, ask(shell, member, &peer, request)).await) }
        });
        let mut there = BTreeMap::new();
        let mut store_work = BTreeMap::from([(shell.own.member, shell.store_work())]);
        for (member, answer) in join_all(asked).await {
            match answer {
                Ok(Ok(reply)) => {
                    there.extend(reply.nodes.into_iter().filter_map(session_in));
                    store_work.insert(member, reply.store_work);
                }
                Ok(Err(why)) => tracing::debug!(why, "a manager's sessions are not known"),
                Err(_elapsed) => tracing::debug!("a manager did not tell its sessions in time"),
            }
        }
        Self { here: shell.sessions.clone(), there, store_work }
    }

    /// What is known of a node, from the manager that it is connected to.
    pub(crate) fn view(&self, node: NodeId) -> SessionView {
        let here = self.here.view(node);
        match self.there.get(&node) {
            Some(there) if !here.connected => there.clone(),
            _ => here,
        }
    }

    /// What a manager is doing to its store, as far as it said.
    pub(crate) fn store_work(&self, member: u64) -> String {
        self.store_work.get(&member).cloned().unwrap_or_default()
    }

    /// How many nodes are connected to any manager.
    pub(crate) fn connected(&self) -> usize {
        let mut nodes: BTreeSet<NodeId> = self.here.connected_nodes().into_iter().collect();
        nodes.extend(self.there.keys());
        nodes.len()
    }
}

async fn ask(
    shell: &Shell,
    member: u64,
    peer: &Peer,
    request: v1::SessionsRequest,
) -> Result<v1::SessionsReply, String> {
    let question = |mut client: PeerClient<Channel>| {
        let request = request.clone();
        async move { client.sessions(request).await }
    };
    let reply = shell.ask_peer((member, peer), question).await;
    reply.map_err(|status| status.message().to_owned())
}

/// Those of other managers that are no nodes of ours are left out.
pub(crate) fn session_in(session: v1::NodeSession) -> Option<(NodeId, SessionView)> {
    let task = |shown: v1::ShownTask| {
        let grant = |grant: v1::ShownGrant| Some((GrantId(grant.id), Version::new(grant.version)?));
        let grants: Option<Vec<_>> = shown.grants.into_iter().map(grant).collect();
        Some((shown.task.parse::<TaskId>().ok()?, grants?))
    };
    let view = SessionView {
        connected: true,
        peer: NodePeer { address: session.address, version: session.version },
        revision: revision_in(session.revision),
        shown: Shown::There(session.shown.into_iter().filter_map(task).collect()),
    };
    Some((session.node.parse().ok()?, view))
}

/// The answer to another manager.
pub(crate) fn tell(shell: &Shell, request: &v1::SessionsRequest) -> v1::SessionsReply {
    let sessions = &shell.sessions;
    let shown_on: BTreeSet<&str> = request.shown_on.iter().map(String::as_str).collect();
    let session = |node: NodeId| {
        let view = sessions.view(node);
        let wanted = shown_on.contains(node.as_str());
        let shown = if wanted { view.shown.tasks() } else { BTreeMap::new() };
        let grant =
            |(id, version): (GrantId, Version)| v1::ShownGrant { id: id.0, version: version.get() };
        let task = |(task, grants): (TaskId, Vec<_>)| v1::ShownTask {
            task: task.to_string(),
            grants: grants.into_iter().map(grant).collect(),
        };
        v1::NodeSession {
            node: node.to_string(),
            address: view.peer.address,
            version: view.peer.version,
            revision: Some(revision_out(view.revision)),
            shown: shown.into_iter().map(task).collect(),
        }
    };
    let nodes = sessions.connected_nodes().into_iter().map(session).collect();
    v1::SessionsReply { nodes, store_work: shell.store_work() }
}

/// How far a change has come at the other managers' nodes, as it moves.
pub(crate) struct Elsewhere {
    told: watch::Receiver<BTreeMap<u64, Told>>,
    others: usize,
    /// Until then a manager that has said nothing yet is waited for.
    until: Instant,
    _watching: JoinSet<()>,
}

/// What one manager said last.
#[derive(Debug, Default)]
struct Told {
    nodes: BTreeMap<NodeId, bool>,
}

impl Elsewhere {
    pub(crate) fn watch(
        shell: &Arc<Shell>,
        revision: Revision,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Self {
        let request = v1::WatchSessionsRequest {
            revision: Some(revision_out(revision)),
            nodes: nodes.map(|node| node.to_string()).collect(),
        };
        let (tell, told) = watch::channel(BTreeMap::new());
        let others = shell.other_managers();
        let count = others.len();
        let mut watching = JoinSet::new();
        for (member, peer) in others {
            let (shell, request, tell) = (shell.clone(), request.clone(), tell.clone());
            watching.spawn(async move {
                if let Err(why) = listen(&shell, member, &peer, request, &tell).await {
                    tracing::debug!(member, why, "a manager does not tell how far its nodes are");
                }
                tell.send_modify(|told| drop(told.insert(member, Told::default())));
            });
        }
        Self { told, others: count, until: Instant::now() + ASKING, _watching: watching }
    }

    /// As [`Sessions::has`], for nodes that are connected to other managers.
    pub(crate) fn has(&self, node: NodeId) -> Option<bool> {
        let told = self.told.borrow();
        let said = told.values().filter_map(|told| told.nodes.get(&node).copied());
        said.reduce(|one, other| one || other)
    }

    /// Whether some manager may still have something to say for the first time.
    pub(crate) fn is_awaited(&self) -> bool {
        self.told.borrow().len() < self.others && Instant::now() < self.until
    }

    /// Until something was said, or it is no use to wait for the first word any longer.
    pub(crate) async fn moved(&mut self) {
        let (until, awaited) = (self.until, self.is_awaited());
        tokio::select! {
            moved = self.told.changed() => if moved.is_err() {
                // Everybody has said his last word.
                std::future::pending::<()>().await;
            },
            () = sleep_until(until), if awaited => {}
        }
    }
}

async fn listen(
    shell: &Shell,
    member: u64,
    peer: &Peer,
    request: v1::WatchSessionsRequest,
    tell: &watch::Sender<BTreeMap<u64, Told>>,
) -> Result<(), String> {
    let said = |status: Status| status.message().to_owned();
    let question = |mut client: PeerClient<Channel>| {
        let request = request.clone();
        async move { client.watch_sessions(request).await }
    };
    let mut replies = shell.ask_peer((member, peer), question).await.map_err(said)?;
    while let Some(reply) = replies.message().await.map_err(said)? {
        let parse = |ids: Vec<String>, has: bool| {
            ids.into_iter().filter_map(move |id| Some((id.parse().ok()?, has)))
        };
        let nodes = parse(reply.delivered, true).chain(parse(reply.waiting, false)).collect();
        tell.send_modify(|told| drop(told.insert(member, Told { nodes })));
    }
    Ok(())
}

/// Tells another manager how far its change has come at the nodes that are connected here.
pub(crate) fn tell_progress(
    sessions: Sessions,
    request: &v1::WatchSessionsRequest,
) -> ReceiverStream<Result<v1::WatchSessionsReply, Status>> {
    let revision = revision_in(request.revision);
    let nodes: Vec<NodeId> = request.nodes.iter().filter_map(|node| node.parse().ok()).collect();
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut moves = sessions.subscribe();
        let mut last = None;
        loop {
            moves.borrow_and_update();
            let mut reply = v1::WatchSessionsReply::default();
            for node in &nodes {
                match sessions.has(*node, revision) {
                    Some(true) => reply.delivered.push(node.to_string()),
                    Some(false) => reply.waiting.push(node.to_string()),
                    None => {}
                }
            }
            if last.as_ref() != Some(&reply) {
                last = Some(reply.clone());
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                moved = moves.changed() => if moved.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
