//! One root CA after another: the new one's certificate, and the end of the one before, as the state asks for it.
//!
//! Depends on the shell and the seals. Invariant: a root's private key is open only while it signs or is sealed; whoever
//! leads next goes on where the last one stopped.

use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::Timestamp;
use keyhole_secmem::SecretBytes;
use keyhole_state::{Cluster, Command, FormerCa, Member, NewCa, State};
use keyhole_wire::tls::{EXPIRED_GRACE, key_id};
use tonic::Status;

use super::{CaError, cross_sign, expires_at, new_root, validity};
use crate::authz::{Action, Authorized, OwnWork};
use crate::clock;
use crate::seal::{KeyringError, MemberKey, Purpose, seal_key_for_members};
use crate::shell::{Refused, Shell};

/// How soon something that is due by the clock is seen.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// The root CA of `cluster` as one that was: by its cross certificate those who know only it believe the one after it, for
/// as long as who was off may renew.
pub(crate) fn former_ca(
    cluster: &Cluster,
    new: (&[u8], &SecretBytes),
    old_key: &SecretBytes,
) -> Result<FormerCa, CaError> {
    let until = renewable_until();
    let certificate = cluster.ca_certificate.clone();
    let cross = cross_sign(&cluster.id, new, (&certificate, old_key), until)?;
    Ok(FormerCa { certificate, cross, until: seconds(until) })
}

/// Until when who is off now may renew, Unix seconds.
fn renewable_until() -> u64 {
    clock::unix_seconds() + EXPIRED_GRACE.as_secs()
}

fn seconds(unix: u64) -> Timestamp {
    Timestamp(unix.saturating_mul(1_000_000_000))
}

/// A root CA made here, as the one that follows the current one.
pub(crate) fn new_ca(state: &State, cluster: &Cluster, own: &MemberKey) -> Result<NewCa, CaError> {
    let (from, _) = validity(&cluster.ca_certificate);
    let (certificate, key) = new_root(&cluster.id, Some(from))?;
    new_ca_of(state, cluster, own, (&certificate, &key))
}

/// That root CA as the one that follows the current one.
pub(crate) fn new_ca_of(
    state: &State,
    cluster: &Cluster,
    own: &MemberKey,
    (certificate, new_key): (&[u8], &SecretBytes),
) -> Result<NewCa, CaError> {
    let old_key = own.open(&cluster.id, Purpose::Ca, &cluster.ca_key)?;
    let holders = state.members().values().filter(|member: &&Member| member.voter);
    let key = seal_key_for_members(&cluster.id, Purpose::Ca, new_key, holders);
    let key = key.map_err(|error| KeyringError::Seal { key: "CA's key", error })?;
    let former = former_ca(cluster, (certificate, new_key), &old_key)?;
    Ok(NewCa { number: cluster.ca_number + 1, certificate: certificate.to_vec(), key, former })
}

/// Does what is due for as long as this manager runs.
pub(crate) async fn keep_ca(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut applied = shell.applied(&by);
    loop {
        applied.borrow_and_update();
        match step(&shell, &by).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a change of the root CA has to wait");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        // What is due may be a matter of time.
        if let Ok(Err(_stops)) = tokio::time::timeout(LOOK_AGAIN, applied.changed()).await {
            return;
        }
    }
}

/// Whether there was something to do.
async fn step(shell: &Shell, by: &Authorized<OwnWork>) -> Result<bool, String> {
    let leads = shell.replica_status(by).is_leader;
    let due = shell.view(by, |state| match state.cluster() {
        Some(cluster) => due(shell, leads, state, cluster),
        None => Ok(None),
    });
    let Some(command) = due.map_err(|error| error.to_string())? else { return Ok(false) };
    match shell.propose(by, command).await {
        // Somebody else was faster; what is due now is looked up anew.
        Ok(_) | Err(Refused::Rejected(_)) => Ok(true),
        Err(Refused::Unavailable(error)) => Err(error.to_string()),
    }
}

fn due(
    shell: &Shell,
    leads: bool,
    state: &State,
    cluster: &Cluster,
) -> Result<Option<Command>, CaError> {
    let own = shell.own.member;
    if cluster.uncertified.contains(&own) && is_of(shell, cluster) {
        return Ok(Some(Command::NoteCertificate { member: own, ca_number: cluster.ca_number }));
    }
    let (ends, needed) = (expires_at(&cluster.ca_certificate), renewable_until());
    if leads && state.new_ca_is_due(seconds(ends), seconds(needed)) {
        let gone = cluster.new_ca_due;
        tracing::info!(
            ends,
            gone,
            "the root CA ends soon, or a member that knew its key is gone: making a new one"
        );
        let new = new_ca(state, cluster, shell.keyring.own())?;
        return Ok(Some(Command::RotateCa(Box::new(new))));
    }
    let done = leads && state.former_cas_are_done(clock::now());
    Ok(done.then_some(Command::ForgetFormerCas))
}

/// Whether this manager's certificate is of the current root CA.
fn is_of(shell: &Shell, cluster: &Cluster) -> bool {
    let own = shell.tls.identity();
    own.is_some_and(|own| own.subject().authority == key_id(&cluster.ca_certificate))
}

/// Until this manager proves itself by the current root CA, which is a moment after it came.
pub(crate) async fn succeeded<A: Action>(shell: &Shell, by: &Authorized<A>) -> Result<(), Status> {
    const LOOK: Duration = Duration::from_millis(10);
    const PATIENCE: Duration = Duration::from_secs(5);
    let settled = async {
        while shell.view(by, |state| state.cluster().is_some_and(|it| !is_of(shell, it))) {
            tokio::time::sleep(LOOK).await;
        }
    };
    let late = |_| {
        Status::unavailable("this manager has no certificate of the new root CA yet; try again")
    };
    tokio::time::timeout(PATIENCE, settled).await.map_err(late)
}

/// Until this manager's certificate is of another root CA than the current one.
pub(super) async fn until_succeeded(shell: &Shell, by: &Authorized<OwnWork>) {
    let mut applied = shell.applied(by);
    let mut known = None;
    loop {
        let now = shell.view(by, |state| state.cluster().map(|cluster| cluster.ca_number));
        if now.is_some() && now != known {
            known = now;
            if shell.view(by, |state| state.cluster().is_some_and(|it| !is_of(shell, it))) {
                return;
            }
        }
        if applied.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
