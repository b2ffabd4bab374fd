//! Tasks of a service or of a node, and what state each is in. Invariant: a task that its node may not hold is always
//! shown, with the reason.

use std::collections::BTreeMap;

use keyhole_domain::{AssignedGrant, Assignment};
use keyhole_proto::v1;
use keyhole_state::{Seen as Known, Standing, State, Task};
use tonic::Status;

use crate::authz::{Authorized, act};
use crate::elsewhere::Seen;
use crate::sessions::SessionView;
use crate::shell::Shell;
use crate::status::rejected;

type Reply<T> = Result<T, Status>;

pub(super) async fn of_service(
    shell: &Shell,
    by: &Authorized<act::ServiceTasks>,
    request: v1::ObjectRequest,
) -> Reply<v1::TaskList> {
    let find = |seen: Known<'_>| {
        let service = seen.find_service(&request.object);
        service.map(|service| service.id).map_err(|e| rejected(&e))
    };
    let nodes = shell.view_seen(by, |known| {
        let id = find(known)?;
        let tasks = known.state.tasks().values().filter(|task| task.service == id);
        Ok::<_, Status>(tasks.map(|task| task.node).collect())
    })?;
    let seen = Seen::gather(shell, nodes).await;
    shell.view_seen(by, |known| {
        let id = find(known)?;
        Ok(tasks(&seen, known.state, |task| task.service == id))
    })
}

pub(super) async fn of_node(
    shell: &Shell,
    by: &Authorized<act::NodeTasks>,
    request: v1::ObjectRequest,
) -> Reply<v1::TaskList> {
    let node = shell.view(by, |state| {
        let node = state.find_node(&request.object);
        node.map(|node| node.id).map_err(|e| rejected(&e))
    })?;
    let seen = Seen::gather(shell, [node].into()).await;
    Ok(shell.view_seen(by, |known| {
        let shown = |task: &Task| task.node == node && known.service(task.service).is_some();
        tasks(&seen, known.state, shown)
    }))
}

fn tasks(seen: &Seen, state: &State, wanted: impl Fn(&Task) -> bool) -> v1::TaskList {
    let mut nodes = BTreeMap::new();
    let tasks = state.tasks().values().filter(|task| wanted(task)).map(|task| {
        let node = nodes.entry(task.node).or_insert_with(|| OnNode {
            entitled: state.assignment(task.node),
            session: seen.view(task.node),
        });
        info(state, task, node)
    });
    v1::TaskList { tasks: tasks.collect() }
}

/// What a node should have, and what it says.
struct OnNode {
    entitled: Assignment,
    session: SessionView,
}

fn info(state: &State, task: &Task, on: &OnNode) -> v1::TaskInfo {
    let service = state.services().get(&task.service);
    let node = state.nodes().get(&task.node);
    let (word, reason) = standing(state, task, on);
    v1::TaskInfo {
        id: task.id.to_string(),
        service_id: task.service.to_string(),
        service_name: service.map(|s| s.name.to_string()).unwrap_or_default(),
        node_id: task.node.to_string(),
        node_hostname: node.map(|n| n.hostname.clone()).unwrap_or_default(),
        cgroup: task.cgroup.clone(),
        claimed_at: task.claimed_at.0,
        state: word.to_owned(),
        reason,
        ended_at: task.end.as_ref().map_or(0, |end| end.at.0),
    }
}

/// Docker's words, with what the node said.
fn standing(state: &State, task: &Task, on: &OnNode) -> (&'static str, String) {
    match state.standing(task) {
        Standing::Rejected(reason) => ("Rejected", reason),
        Standing::Ended => {
            let reason = task.end.as_ref().map(|end| end.reason.clone());
            ("Complete", reason.unwrap_or_default())
        }
        Standing::Admitted => admitted(task, on),
    }
}

fn admitted(task: &Task, on: &OnNode) -> (&'static str, String) {
    let OnNode { entitled, session } = on;
    let entitled = entitled.tasks.iter().find(|own| own.id == task.id);
    if let Some(reason) = entitled.and_then(|own| own.rejected.clone()) {
        return ("Rejected", reason);
    }
    if !session.connected {
        return ("Unreachable", "its node is not connected".to_owned());
    }
    let ids = |grants: &[AssignedGrant]| -> Vec<u64> { grants.iter().map(|g| g.id.0).collect() };
    let wanted = entitled.map(|own| ids(&own.grants));
    let shown = session.shown.task(task.id);
    let shown = shown.map(|own| own.into_iter().map(|(id, _)| id.0).collect());
    match wanted == shown {
        true => ("Running", String::new()),
        false => ("Pending", "its node has not said that it has it".to_owned()),
    }
}
