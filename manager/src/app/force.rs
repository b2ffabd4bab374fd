//! `--force-new-cluster`: one manager goes on alone where most of the others are lost for good.
//!
//! Invariant: nothing is done to a member that is alone already, so that the option may be given twice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use keyhole_state::{Actor, Command, Envelope, Health};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::StartError;
use super::init::observer;
use super::restore::this_process;
use crate::audit::AuditLog;
use crate::clock;
use crate::keys::Kek;
use crate::raft::Offline;
use crate::store::{Store, StoreError};

/// How long another manager has to be called.
const ANSWERING: Duration = Duration::from_secs(2);

/// Rewrites the store in `folder`: all that its log has is taken as decided, and its member is the only one.
pub(super) async fn alone(
    folder: &Path,
    kek: &Kek,
    audit: Arc<AuditLog>,
) -> Result<(), StartError> {
    if !Store::exists(folder) {
        let folder = folder.display().to_string();
        return Err(StoreError::NotInitialised { folder }.into());
    }
    let offline = Offline::open(folder, kek, observer(audit.clone()))?;
    let id = offline.member();
    let refused = |why: String| StartError::NotForced { folder: folder.display().to_string(), why };
    let (member, others) = offline.read(|state| {
        let others = state.members().values().filter(|member| member.id != id);
        let others: Vec<_> = others.map(|member| (member.id, member.address.clone())).collect();
        (state.members().get(&id).cloned(), others)
    });
    let member = member.ok_or_else(|| refused(format!("there is no member {id}")))?;
    if others.is_empty() && member.voter {
        tracing::warn!(
            "--force-new-cluster: this manager is the only one already; nothing was changed"
        );
        return Ok(());
    }
    let answering = answering(&others).await;
    if let Health::Whole | Health::Degraded { .. } = health(&offline, &answering) {
        let there: Vec<&str> = answering.iter().map(|(_, address)| address.as_str()).collect();
        let why =
            format!("{} can still be called, so that a majority can be there", there.join(", "));
        return Err(refused(why));
    }
    let actor: Actor = this_process();
    let command = Command::ForceNewCluster { member: id };
    let envelope = Envelope { at: clock::now(), actor: actor.clone(), via: id, command };
    offline.begin(envelope, &member).await?.map_err(|reason| {
        audit.refused_actor(&actor, "cluster.force-new", &reason.to_string());
        refused(reason.to_string())
    })?;
    let removed: Vec<&str> = others.iter().map(|(_, address)| address.as_str()).collect();
    tracing::warn!(
        removed = removed.join(", "),
        "--force-new-cluster: this manager is a cluster of its own now; the \
        others are removed and must never be started again on their folders"
    );
    Ok(())
}

/// Those others that something listens for.
async fn answering(others: &[(u64, String)]) -> Vec<(u64, String)> {
    let call = |other: (u64, String)| async move {
        let called = timeout(ANSWERING, TcpStream::connect(other.1.clone())).await;
        matches!(called, Ok(Ok(_))).then_some(other)
    };
    join_all(others.iter().cloned().map(call)).await.into_iter().flatten().collect()
}

fn health(offline: &Offline, answering: &[(u64, String)]) -> Health {
    let reached = answering.iter().map(|(id, _)| *id).chain([offline.member()]).collect();
    offline.read(|state| Health::of(&state.voters(), &reached))
}
