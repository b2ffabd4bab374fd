//! Secrets: create, rotate, rollback, labels, remove, look. Invariant: a value comes in sealed to this process, is open
//! in locked memory while it is sealed for the log, and is never sent back.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyhole_domain::{ClusterId, SecretId, SecretName, Version, check_value_len};
use keyhole_proto::v1;
use keyhole_secmem::Key32;
use keyhole_state::{Command, Outcome, Rejected, RotateItem, SealedValue, Secret, Seen, State};
use tonic::Status;

use super::{Asked, labels};
use crate::authz::{Action, Authorized, act};
use crate::seal::{InputFor, input_aad, input_info, open_input, seal_value};
use crate::shell::{ATTEMPTS, Done, Refused, Shell, entropy, revision_out};
use crate::status::{internal, invalid, rejected};

type Reply<T> = Result<T, Status>;

pub(super) async fn seal_key(
    shell: &Shell,
    _by: &Authorized<act::GetSealKey>,
    _: v1::GetSealKeyRequest,
) -> Reply<v1::SealKey> {
    Ok(v1::SealKey {
        cluster: shell.own.cluster.to_string(),
        manager: shell.own.manager.to_string(),
        public_key: shell.input_key.public().as_bytes().to_vec().into(),
    })
}

/// The keys that a value is sealed with for the log, and the connection that it comes by.
struct ValueKey {
    cluster: ClusterId,
    epoch: u32,
    key: Arc<Key32>,
    exporter: Option<[u8; 32]>,
}

impl ValueKey {
    fn of<A: Asked>(shell: &Shell, by: &Authorized<A>) -> Reply<Self> {
        let exporter = by.subject().exporter().copied();
        shell.view_cluster(by, |_, cluster| {
            let (epoch, key) = shell.value_key(cluster)?;
            Ok(Self { cluster: cluster.id, epoch, key, exporter })
        })
    }

    /// Opens an operator's value and seals it for its place in the log.
    fn take_in(
        &self,
        shell: &Shell,
        (operation, typed): (InputFor, &str),
        input: Option<&v1::SealedInput>,
        place: (SecretId, Version),
    ) -> Reply<SealedValue> {
        let input = input.ok_or_else(|| invalid(format!("secret {typed}: no value was sent")))?;
        let info = input_info(&self.cluster, shell.own.manager.as_str(), self.exporter.as_ref());
        let aad = input_aad(operation, typed);
        let opened = open_input(&shell.input_key, &info, &aad, input).map_err(|error| {
            Status::failed_precondition(format!(
                "the value of secret {typed} does not open ({error}); if the manager was started anew just now, repeat \
                 the command"
            ))
        })?;
        check_value_len(opened.len() as u64)
            .map_err(|error| invalid(format!("secret {typed}: {error}")))?;
        seal_value(&self.key, self.epoch, &self.cluster, place, opened)
            .map_err(|error| internal("cannot seal the value", error))
    }
}

pub(super) async fn create(
    shell: &Shell,
    by: &Authorized<act::CreateSecret>,
    request: v1::CreateSecretRequest,
) -> Reply<v1::SecretChanged> {
    let name: SecretName = request.name.parse().map_err(invalid)?;
    let labels = labels::parse(request.labels)?;
    let id = SecretId::from_entropy(entropy()?);
    let typed = (InputFor::Create, request.name.as_str());
    let mut attempt = 1;
    loop {
        let key = ValueKey::of(shell, by)?;
        let value = key.take_in(shell, typed, request.value.as_ref(), (id, Version::FIRST))?;
        let (name, labels) = (name.clone(), labels.clone());
        match shell.propose(by, Command::CreateSecret { id, name, labels, value }).await {
            Ok(done) => return changed(shell, by, &done, id),
            // The value key changed on the way.
            Err(Refused::Rejected(Rejected::Epoch { .. })) if attempt < ATTEMPTS => attempt += 1,
            Err(refused) => return Err(refused.into()),
        }
    }
}

pub(super) async fn rotate(
    shell: &Shell,
    by: &Authorized<act::RotateSecrets>,
    request: v1::RotateSecretsRequest,
) -> Reply<v1::SecretsChanged> {
    if request.items.is_empty() {
        return Err(invalid("no secret to rotate was named"));
    }
    let mut attempt = 1;
    loop {
        let items = rotation(shell, by, &request.items)?;
        match shell.propose(by, Command::RotateSecrets { items }).await {
            Ok(done) => return rotated(shell, by, &done),
            // The values are sealed for their versions, so they are sealed anew.
            Err(Refused::Rejected(Rejected::VersionRaced { .. } | Rejected::Epoch { .. }))
                if attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// The values, sealed for the versions that are next now.
fn rotation(
    shell: &Shell,
    by: &Authorized<act::RotateSecrets>,
    items: &[v1::rotate_secrets_request::Item],
) -> Reply<Vec<RotateItem>> {
    let key = ValueKey::of(shell, by)?;
    let next: Vec<(SecretId, Version)> = shell.view_seen(by, |seen| {
        let place = |item: &v1::rotate_secrets_request::Item| {
            let secret = seen.find_secret(&item.secret)?;
            Ok((secret.id, secret.last.next()))
        };
        let places: Result<_, Rejected> = items.iter().map(place).collect();
        places.map_err(|reason| rejected(&reason))
    })?;
    let sealed = items.iter().zip(next).map(|(item, (id, version))| {
        let typed = (InputFor::Rotate, item.secret.as_str());
        Ok(RotateItem {
            id,
            version,
            value: key.take_in(shell, typed, item.value.as_ref(), (id, version))?,
        })
    });
    sealed.collect()
}

fn rotated(
    shell: &Shell,
    by: &Authorized<act::RotateSecrets>,
    done: &Done,
) -> Reply<v1::SecretsChanged> {
    let Outcome::Secrets(made) = &done.outcome else {
        return Err(internal("a rotation gave no versions", format!("{:?}", done.outcome)));
    };
    let secrets = made.iter().map(|(id, _)| changed(shell, by, done, *id));
    Ok(v1::SecretsChanged { secrets: secrets.collect::<Reply<_>>()? })
}

pub(super) async fn rollback(
    shell: &Shell,
    by: &Authorized<act::RollbackSecret>,
    request: v1::RollbackSecretRequest,
) -> Reply<v1::SecretChanged> {
    let id = find(shell, by, &request.secret)?;
    let to = Version::new(request.to);
    let done = shell.propose(by, Command::RollbackSecret { id, to }).await?;
    changed(shell, by, &done, id)
}

pub(super) async fn update(
    shell: &Shell,
    by: &Authorized<act::UpdateSecret>,
    request: v1::UpdateSecretRequest,
) -> Reply<v1::SecretChanged> {
    let change = || {
        shell.view_seen(by, |seen| {
            let secret = seen.find_secret(&request.secret).map_err(|e| rejected(&e))?;
            let labels = labels::changed(&secret.labels, &request.label_rm, &request.label_add)?;
            let (id, expected) = (secret.id, secret.index);
            Ok((id, Command::SetSecretLabels { id, expected, labels }))
        })
    };
    let (id, done) = shell.propose_from_state(by, change).await?;
    changed(shell, by, &done, id)
}

pub(super) async fn remove(
    shell: &Shell,
    by: &Authorized<act::RemoveSecret>,
    request: v1::ObjectRequest,
) -> Reply<v1::Removed> {
    let id = find(shell, by, &request.object)?;
    shell.propose(by, Command::RemoveSecret { id }).await?;
    Ok(v1::Removed { id: id.to_string() })
}

pub(super) async fn list(
    shell: &Shell,
    by: &Authorized<act::ListSecrets>,
    _: v1::ListRequest,
) -> Reply<v1::SecretList> {
    shell.view_seen(by, |seen| {
        Ok(v1::SecretList { secrets: seen.secrets().map(|secret| info(seen, secret)).collect() })
    })
}

pub(super) async fn inspect(
    shell: &Shell,
    by: &Authorized<act::InspectSecret>,
    request: v1::ObjectRequest,
) -> Reply<v1::SecretInfo> {
    shell.view_seen(by, |seen| {
        let secret = seen.find_secret(&request.object);
        secret.map(|secret| info(seen, secret)).map_err(|e| rejected(&e))
    })
}

fn find<A: Asked>(shell: &Shell, by: &Authorized<A>, text: &str) -> Reply<SecretId> {
    shell.view_seen(by, |seen| {
        let secret = seen.find_secret(text);
        secret.map(|secret| secret.id).map_err(|e| rejected(&e))
    })
}

/// A secret as a change left it. The version is the change's own, also if somebody else was there since.
fn changed<A: Action>(
    shell: &Shell,
    by: &Authorized<A>,
    done: &Done,
    id: SecretId,
) -> Reply<v1::SecretChanged> {
    let made = match &done.outcome {
        Outcome::Secrets(made) => made.iter().find(|(secret, _)| *secret == id),
        _ => None,
    };
    let name = shell.view(by, |state| {
        let secret = state.secrets().get(&id);
        secret.map(|secret| secret.name.to_string()).unwrap_or_default()
    });
    Ok(v1::SecretChanged {
        id: id.to_string(),
        name,
        version: made.map_or(0, |(_, version)| version.get()),
        revision: Some(revision_out(done.revision)),
    })
}

fn info(seen: Seen<'_>, secret: &Secret) -> v1::SecretInfo {
    let pinned = pinned(seen.state, secret.id);
    let versions = secret.versions.iter().map(|(version, kept)| v1::VersionInfo {
        version: version.get(),
        created_at: kept.created_at.0,
        size: kept.value.size(),
        current: version == secret.current,
        pinned: pinned.contains(&version),
    });
    v1::SecretInfo {
        id: secret.id.to_string(),
        name: secret.name.to_string(),
        labels: labels::out(&secret.labels),
        created_at: secret.created_at.0,
        updated_at: secret.updated_at.0,
        index: secret.index,
        current: secret.current.get(),
        versions: versions.collect(),
        services: seen.users_of(secret.id),
    }
}

/// The versions that a service's spec, or the one before, stays at.
fn pinned(state: &State, secret: SecretId) -> BTreeSet<Version> {
    let specs = state
        .services()
        .values()
        .flat_map(|service| [Some(&service.spec), service.previous.as_ref()]);
    specs
        .flatten()
        .flat_map(|spec| &spec.grants)
        .filter(|grant| grant.secret == secret)
        .filter_map(|grant| grant.pinned)
        .collect()
}
