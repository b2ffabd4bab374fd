//! Which tasks show which version, and how far a change has come. Invariant: a node that is not connected is named and
//! never waited for.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyhole_domain::{NodeId, Revision, SecretId};
use keyhole_proto::v1;
use keyhole_state::{Secret, Service, Standing, State, Task};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::authz::{Authorized, act};
use crate::elsewhere::{Elsewhere, Seen};
use crate::shell::{Shell, revision_in};
use crate::status::rejected;

type Reply<T> = Result<T, Status>;
type Progress = ReceiverStream<Result<v1::DeliveryProgress, Status>>;

pub(super) async fn secret_status(
    shell: &Shell,
    by: &Authorized<act::SecretStatus>,
    request: v1::ObjectRequest,
) -> Reply<v1::SecretDelivery> {
    let users = shell.view_seen(by, |known| {
        let secret = known.find_secret(&request.object).map_err(|e| rejected(&e))?;
        let nodes = concerned(known.state, &[secret.id].into());
        Ok::<_, Status>(nodes.into_iter().map(|(node, _)| node).collect())
    })?;
    let seen = Seen::gather(shell, users).await;
    shell.view_seen(by, |known| {
        let secret = known.find_secret(&request.object).map_err(|e| rejected(&e))?;
        let live = known.state.tasks().values().filter(|task| task.end.is_none());
        let live = live.filter(|task| known.service(task.service).is_some());
        let tasks = live.flat_map(|task| deliveries(&seen, known.state, secret, task));
        Ok(v1::SecretDelivery {
            id: secret.id.to_string(),
            name: secret.name.to_string(),
            current: secret.current.get(),
            tasks: tasks.collect(),
        })
    })
}

/// One for each version that the task is entitled to: a pinned grant may stand beside one that is not.
fn deliveries(seen: &Seen, state: &State, secret: &Secret, task: &Task) -> Vec<v1::TaskDelivery> {
    let session = seen.view(task.node);
    let hostname = state.nodes().get(&task.node).map(|node| node.hostname.clone());
    let Some(service) = state.services().get(&task.service) else {
        return Vec::new();
    };
    let grants = service.spec.grants.iter().filter(|grant| grant.secret == secret.id);
    let grants_shown = session.shown.task(task.id).unwrap_or_default();
    let shown = |grant| {
        let own = grants_shown.iter().find(|(own, _)| *own == grant);
        own.map_or(0, |(_, version)| version.get())
    };
    let admitted = state.standing(task) == Standing::Admitted;
    let pairs: BTreeSet<(u64, u64)> = grants
        .map(|grant| {
            let entitled = grant.pinned.unwrap_or(secret.current).get();
            (shown(grant.id), if admitted { entitled } else { 0 })
        })
        .collect();
    let delivery = |(version, entitled)| v1::TaskDelivery {
        task: task.id.to_string(),
        service: service.name.to_string(),
        node: task.node.to_string(),
        hostname: hostname.clone().unwrap_or_default(),
        version,
        entitled,
        connected: session.connected,
    };
    pairs.into_iter().map(delivery).collect()
}

/// Sends the progress whenever it changes, until every connected node has the revision.
pub(super) fn watch(
    shell: Arc<Shell>,
    by: Authorized<act::WatchDelivery>,
    request: v1::WatchDeliveryRequest,
) -> Reply<Progress> {
    let secrets = shell.view_seen(&by, |known| {
        let find = |text: &String| known.find_secret(text).map(|secret| secret.id);
        let found: Result<BTreeSet<SecretId>, _> = request.secrets.iter().map(find).collect();
        found.map_err(|e| rejected(&e))
    })?;
    let revision = revision_in(request.revision);
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = follow(&shell, &by, (revision, &secrets), &sender) => {}
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn follow(
    shell: &Arc<Shell>,
    by: &Authorized<act::WatchDelivery>,
    (revision, secrets): (Revision, &BTreeSet<SecretId>),
    sender: &mpsc::Sender<Result<v1::DeliveryProgress, Status>>,
) {
    let mut moves = shell.sessions.subscribe();
    let nodes = shell.view(by, |state| concerned(state, secrets));
    let mut elsewhere = Elsewhere::watch(shell, revision, nodes.iter().map(|(node, _)| *node));
    let mut last = None;
    loop {
        moves.borrow_and_update();
        if let Err(removed) = shell.still_operator(by) {
            // Whoever has left is told nothing.
            let _ = sender.send(Err(rejected(&removed))).await;
            return;
        }
        let nodes = shell.view(by, |state| concerned(state, secrets));
        let progress = progress(shell, &elsewhere, revision, nodes);
        // What other managers have to say is waited for, but not for long.
        let waiting = !progress.waiting.is_empty() || elsewhere.is_awaited();
        if last.as_ref() != Some(&progress) {
            if sender.send(Ok(progress.clone())).await.is_err() {
                return;
            }
            last = Some(progress);
        }
        if !waiting {
            return;
        }
        tokio::select! {
            moved = moves.changed() => if moved.is_err() { return },
            () = elsewhere.moved() => {}
        }
    }
}

fn progress(
    shell: &Shell,
    elsewhere: &Elsewhere,
    revision: Revision,
    nodes: BTreeSet<(NodeId, String)>,
) -> v1::DeliveryProgress {
    let mut progress = v1::DeliveryProgress::default();
    for (node, hostname) in nodes {
        progress.nodes += 1;
        match shell.sessions.has(node, revision).or_else(|| elsewhere.has(node)) {
            Some(true) => progress.delivered += 1,
            Some(false) => progress.waiting.push(hostname),
            None => progress.unreachable.push(hostname),
        }
    }
    progress
}

/// The nodes with a task that is entitled to one of the secrets (to any, if none is named).
fn concerned(state: &State, secrets: &BTreeSet<SecretId>) -> BTreeSet<(NodeId, String)> {
    let uses = |service: &Service| {
        let mut grants = service.spec.grants.iter();
        secrets.is_empty() || grants.any(|grant| secrets.contains(&grant.secret))
    };
    let concerned = |task: &&Task| {
        let service = state.services().get(&task.service);
        service.is_some_and(uses) && state.standing(task) == Standing::Admitted
    };
    let tasks = state.tasks().values().filter(concerned);
    tasks
        .filter_map(|task| state.nodes().get(&task.node))
        .map(|node| (node.id, node.hostname.clone()))
        .collect()
}
