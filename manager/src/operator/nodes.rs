//! Nodes: look, labels and availability, remove. Invariant: only operators change what is known of a node.

use std::collections::BTreeSet;

use keyhole_domain::NodeId;
use keyhole_proto::v1;
use keyhole_state::{Availability, Command, Node, NodeChange, State};
use tonic::Status;

use super::labels;
use crate::authz::{Action, Authorized, act};
use crate::codec::availability_out;
use crate::elsewhere::Seen;
use crate::shell::{Shell, revision_out};
use crate::status::{invalid, rejected};

type Reply<T> = Result<T, Status>;

pub(super) async fn list(
    shell: &Shell,
    by: &Authorized<act::ListNodes>,
    _: v1::ListRequest,
) -> Reply<v1::NodeList> {
    let seen = Seen::gather(shell, BTreeSet::new()).await;
    shell.view(by, |state| {
        let nodes = state.nodes().values();
        Ok(v1::NodeList { nodes: nodes.map(|node| info(&seen, state, node)).collect() })
    })
}

pub(super) async fn inspect(
    shell: &Shell,
    by: &Authorized<act::InspectNode>,
    request: v1::ObjectRequest,
) -> Reply<v1::NodeInfo> {
    let seen = Seen::gather(shell, BTreeSet::new()).await;
    shell.view(by, |state| {
        let node = state.find_node(&request.object);
        node.map(|node| info(&seen, state, node)).map_err(|e| rejected(&e))
    })
}

pub(super) async fn update(
    shell: &Shell,
    by: &Authorized<act::UpdateNode>,
    request: v1::UpdateNodeRequest,
) -> Reply<v1::NodeInfo> {
    let availability = availability(request.availability)?;
    let touched = !request.label_add.is_empty() || !request.label_rm.is_empty();
    let change = || {
        shell.view(by, |state| {
            let node = state.find_node(&request.node).map_err(|e| rejected(&e))?;
            let labels = labels::changed(&node.labels, &request.label_rm, &request.label_add)?;
            let labels = touched.then_some(labels);
            let change = NodeChange { labels, expected: node.index, availability };
            Ok((node.id, Command::ChangeNode { id: node.id, change }))
        })
    };
    let (id, _) = shell.propose_from_state(by, change).await?;
    let seen = Seen::gather(shell, BTreeSet::new()).await;
    shell.view(by, |state| match state.nodes().get(&id) {
        Some(node) => Ok(info(&seen, state, node)),
        None => Err(Status::not_found(format!("node {id} not found"))),
    })
}

fn availability(number: i32) -> Reply<Option<Availability>> {
    match v1::Availability::try_from(number) {
        Ok(v1::Availability::Unspecified) => Ok(None),
        Ok(v1::Availability::Active) => Ok(Some(Availability::Active)),
        Ok(v1::Availability::Pause) => Ok(Some(Availability::Pause)),
        Ok(v1::Availability::Drain) => Ok(Some(Availability::Drain)),
        Err(_) => Err(invalid(format!(
            "unknown availability {number}; known are active, pause and drain"
        ))),
    }
}

pub(super) async fn remove(
    shell: &Shell,
    by: &Authorized<act::RemoveNode>,
    request: v1::RemoveNodeRequest,
) -> Reply<v1::Removed> {
    let (id, hostname) = find(shell, by, &request.node)?;
    let seen = Seen::gather(shell, BTreeSet::new()).await;
    if !request.force && seen.view(id).connected {
        return Err(Status::failed_precondition(format!(
            "node {hostname} is connected; stop it first, or use --force"
        )));
    }
    shell.propose(by, Command::RemoveNode { id }).await?;
    Ok(v1::Removed { id: id.to_string() })
}

fn find<A: Action>(shell: &Shell, by: &Authorized<A>, text: &str) -> Reply<(NodeId, String)> {
    shell.view(by, |state| {
        let node = state.find_node(text);
        node.map(|node| (node.id, node.hostname.clone())).map_err(|e| rejected(&e))
    })
}

fn info(seen: &Seen, state: &State, node: &Node) -> v1::NodeInfo {
    let session = seen.view(node.id);
    let live = |task: &&keyhole_state::Task| task.node == node.id && task.end.is_none();
    let tasks = state.tasks().values().filter(live).count();
    v1::NodeInfo {
        id: node.id.to_string(),
        hostname: node.hostname.clone(),
        labels: labels::out(&node.labels),
        availability: availability_out(node.availability).into(),
        joined_at: node.joined_at.0,
        index: node.index,
        connected: session.connected,
        address: session.peer.address,
        revision: Some(revision_out(session.revision)),
        version: session.peer.version,
        tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
    }
}
