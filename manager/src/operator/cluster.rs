//! The cluster itself: status, settings, join tokens.

use std::collections::BTreeSet;

use keyhole_proto::v1;
use keyhole_state::{
    Cluster, ClusterChange, Command, Health, Rejected, State, TokenRole, Unconstrained,
};
use tonic::Status;

use super::{audits, lock, managers};
use crate::authz::{Action, Authorized, act};
use crate::ca::{self, BroughtCa, CaError};
use crate::codec::unconstrained_out;
use crate::elsewhere::Seen;
use crate::raft::Status as RaftStatus;
use crate::rekey::new_key;
use crate::seal::{InputFor, input_aad, input_info, open_input};
use crate::shell::{ATTEMPTS, Refused, Shell};
use crate::status::{internal, invalid};

type Reply<T> = Result<T, Status>;

pub(super) async fn status(
    shell: &Shell,
    by: &Authorized<act::ClusterStatus>,
) -> Reply<v1::ClusterInfo> {
    describe(shell, by).await
}

pub(super) async fn update(
    shell: &Shell,
    by: &Authorized<act::UpdateCluster>,
    request: v1::UpdateClusterRequest,
) -> Reply<v1::ClusterInfo> {
    if let Some(seconds) = request.certificate_seconds {
        ca::check_lifetime(seconds).map_err(invalid)?;
    }
    let unconstrained = match v1::Unconstrained::try_from(request.unconstrained) {
        Ok(v1::Unconstrained::Unspecified) => None,
        Ok(v1::Unconstrained::Allow) => Some(Unconstrained::Allow),
        Ok(v1::Unconstrained::Deny) => Some(Unconstrained::Deny),
        Err(_) => return Err(invalid("unconstrained is allow or deny")),
    };
    let change = ClusterChange {
        unconstrained,
        quota_bytes: request.quota_bytes,
        certificate_seconds: request.certificate_seconds,
        address: None,
    };
    if change != ClusterChange::default() {
        shell.propose(by, Command::ChangeCluster(change)).await?;
    }
    if let Some(on) = request.autolock {
        lock::set_autolock(shell, by, on).await?;
    }
    if request.forget_former_cas {
        shell.propose(by, Command::ForgetFormerCas).await?;
    }
    describe(shell, by).await
}

/// A new value key; everything is sealed anew under it in the background.
pub(super) async fn rotate_keys(
    shell: &Shell,
    by: &Authorized<act::RotateKeys>,
    _: v1::RotateKeysRequest,
) -> Reply<v1::ClusterInfo> {
    for attempt in 1.. {
        let new = shell.view_cluster(by, |state, cluster| {
            new_key(state, cluster).map_err(|e| internal("cannot rotate the value keys", e))
        })?;
        match shell.propose(by, Command::RotateKeyring(Box::new(new))).await {
            Ok(_) => break,
            Err(Refused::Rejected(Rejected::KeyringRaced { .. })) if attempt < ATTEMPTS => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    describe(shell, by).await
}

/// A new root CA, made here or brought; the one before is believed until all nodes, managers and operators have a
/// certificate of the new one.
pub(super) async fn rotate_ca(
    shell: &Shell,
    by: &Authorized<act::RotateCa>,
    request: v1::RotateCaRequest,
) -> Reply<v1::ClusterInfo> {
    let brought = request.brought.map(|sent| brought_ca(shell, by, sent)).transpose()?;
    for attempt in 1.. {
        let new = shell.view_cluster(by, |state, cluster| {
            let new = match &brought {
                Some(root) => root.follow(state, cluster, shell.keyring.own()),
                None => ca::new_ca(state, cluster, shell.keyring.own()),
            };
            new.map_err(|error| match error {
                CaError::Brought(error) => invalid(error),
                error => internal("cannot make a new root CA", error),
            })
        })?;
        match shell.propose(by, Command::RotateCa(Box::new(new))).await {
            Ok(_) => break,
            Err(Refused::Rejected(Rejected::CaRaced { .. })) if attempt < ATTEMPTS => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    describe(shell, by).await
}

fn brought_ca(
    shell: &Shell,
    by: &Authorized<act::RotateCa>,
    sent: v1::BroughtCa,
) -> Reply<BroughtCa> {
    let key = sent.key.ok_or_else(|| invalid("the CA's key was not sent"))?;
    let info = input_info(&shell.own.cluster, shell.own.manager.as_str(), by.subject().exporter());
    let aad = input_aad(InputFor::RotateCa, "CA key");
    let key = open_input(&shell.input_key, &info, &aad, &key).map_err(|error| {
        Status::failed_precondition(format!(
            "the CA's key does not open ({error}); if the manager was started anew just now, repeat the command"
        ))
    })?;
    BroughtCa::new(sent.certificate.to_vec(), &key).map_err(invalid)
}

pub(super) async fn join_token(
    shell: &Shell,
    by: &Authorized<act::JoinToken>,
    request: v1::JoinTokenRequest,
) -> Reply<v1::JoinTokenReply> {
    let role = match v1::TokenRole::try_from(request.role) {
        Ok(v1::TokenRole::Worker) => TokenRole::Worker,
        Ok(v1::TokenRole::Manager) => TokenRole::Manager,
        Ok(v1::TokenRole::Unspecified) | Err(_) => {
            return Err(invalid("a join token is for a worker or for a manager"));
        }
    };
    if !request.rotate {
        shell.propose(by, Command::ShowToken { role }).await?;
    }
    for attempt in 1.. {
        if !request.rotate {
            break;
        }
        let token = shell.view_cluster(by, |_, cluster| {
            let key = shell.value_key(cluster)?;
            let token = ca::new_token(&cluster.ca_certificate, role, key);
            token.map_err(|e| internal("cannot make a join token", e))
        })?;
        match shell.propose(by, Command::RotateToken { role, token }).await {
            Ok(_) => break,
            Err(Refused::Rejected(Rejected::KeyringRaced { .. })) if attempt < ATTEMPTS => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    let token = shell.view_cluster(by, |_, cluster| {
        ca::current_token(cluster, role, &shell.keyring)
            .map_err(|e| internal("cannot derive the join token", e))
    })?;
    Ok(v1::JoinTokenReply { token: token.reveal().to_string(), address: shell.own.address.clone() })
}

pub(super) async fn describe<A: Action>(
    shell: &Shell,
    by: &Authorized<A>,
) -> Reply<v1::ClusterInfo> {
    let mut managers = managers::seen(shell, by).await;
    let seen = Seen::gather(shell, BTreeSet::new()).await;
    let connected = seen.connected();
    for manager in &mut managers {
        manager.store_work = seen.store_work(manager.member);
    }
    let raft = shell.replica_status(by);
    let health = health(&raft, &managers);
    shell.view_cluster(by, |state, cluster| {
        let connected = u32::try_from(connected).unwrap_or(u32::MAX);
        Ok(v1::ClusterInfo { managers, connected, health, ..info(shell, state, cluster, &raft) })
    })
}

/// In words; "ok" if there is nothing to say.
fn health(raft: &RaftStatus, managers: &[v1::ManagerInfo]) -> String {
    let of = |is: fn(&v1::ManagerInfo) -> bool| -> BTreeSet<u64> {
        managers.iter().filter(|manager| is(manager)).map(|manager| manager.member).collect()
    };
    if raft.leader.is_none() {
        return "no manager leads: nothing can be changed; running tasks keep their secrets"
            .to_owned();
    }
    match Health::of(&of(|manager| manager.voter), &of(|manager| manager.reached)) {
        Health::Whole => "ok".to_owned(),
        Health::Degraded { missing, spare } => {
            format!("{missing} of the managers that vote out of reach; {spare} more may be lost")
        }
        Health::NoQuorum { have, needed } => format!(
            "no quorum: {have} of the managers that vote in reach, {needed} are needed; nothing can be changed, running \
             tasks keep their secrets"
        ),
    }
}

fn info(shell: &Shell, state: &State, cluster: &Cluster, raft: &RaftStatus) -> v1::ClusterInfo {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let own = shell.tls.identity();
    v1::ClusterInfo {
        id: cluster.id.to_string(),
        incarnation: cluster.incarnation,
        created_at: cluster.created_at.0,
        term: raft.term,
        last_log: raft.last_log,
        applied: state.index(),
        snapshot: raft.snapshot.unwrap_or(0),
        unconstrained: unconstrained_out(cluster.unconstrained).into(),
        quota_bytes: cluster.quota_bytes,
        value_bytes: state.value_bytes(),
        certificate_seconds: cluster.certificate_seconds,
        ca_expires_at: ca::expires_at(&cluster.ca_certificate).saturating_mul(1_000_000_000),
        certificate_expires_at: own
            .map_or(0, |own| own.subject().not_after)
            .saturating_mul(1_000_000_000),
        secrets: count(state.secrets().len()),
        services: count(state.services().len()),
        nodes: count(state.nodes().len()),
        connected: 0,
        managers: Vec::new(),
        under_old_keys: state.values_under_old_keys(),
        audits: audits::newest(state),
        health: String::new(),
        locked: false,
        autolock: cluster.store_keys.unlock.is_some(),
        unlock_key_unseen: state.unlock_key_is_unseen(),
        store_number: cluster.store_keys.number,
        shred: lock::shred_info(state),
        epoch: cluster.epoch,
        backup_of_former_ca: cluster.backup_is_of_former_ca(),
        last_backup_at: cluster.last_backup_at.map_or(0, |at| at.0),
        former_cas_until: cluster.former_cas.iter().map(|ca| ca.until.0).max().unwrap_or(0),
        ca_number: cluster.ca_number,
        ca_since: cluster.ca_since.unwrap_or(cluster.created_at).0,
        keys_since: cluster.keys_since.unwrap_or(cluster.created_at).0,
        former_certificates: count(state.former_certificates()),
        ca_certificate: cluster.ca_certificate.clone().into(),
        refused: shell.audit.refusals(),
    }
}
