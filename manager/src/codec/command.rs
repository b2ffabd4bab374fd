//! Commands, with who and when.

use keyhole_domain::{Constraint, Labels, Timestamp};
use keyhole_proto::v1::{self, envelope as out};
use keyhole_state::{
    Actor, ClusterChange, Command, Envelope, GrantRequest, InitCluster, NewCa, NewKey,
    NewStoreKeys, NodeChange, Renewal, ResealItem, Restoration, RotateItem, StoreUnder, TokenRole,
};

use super::{
    DecodeError, Result, array32, availability_in, availability_out, constraints_in, former_ca_in,
    former_ca_out, key_in, key_out, labels_in, labels_out, member_in, member_keys_in,
    member_keys_out, member_out, operator_in, operator_out, optional_version, parse, request_in,
    request_out, required, token_in, token_out, unconstrained_in, unconstrained_out, value_in,
    value_out, version, version_number,
};

/// An envelope as the log's record.
pub fn encode_envelope(envelope: &Envelope) -> v1::Envelope {
    v1::Envelope {
        at: envelope.at.0,
        actor: Some(actor_out(&envelope.actor)),
        via: envelope.via,
        command: Some(command_out(&envelope.command)),
    }
}

/// The envelope that a record is, every field checked.
pub fn decode_envelope(envelope: v1::Envelope) -> Result<Envelope> {
    Ok(Envelope {
        at: Timestamp(envelope.at),
        actor: actor_in(required("actor", envelope.actor)?)?,
        via: envelope.via,
        command: command_in(required("command", envelope.command)?)?,
    })
}

fn actor_out(actor: &Actor) -> v1::Actor {
    use v1::actor::{Local, Who};
    let who = match actor {
        Actor::Local { uid, gid, pid } => Who::Local(Local { uid: *uid, gid: *gid, pid: *pid }),
        Actor::Operator(id) => Who::Operator(id.to_string()),
        Actor::Node(id) => Who::Node(id.to_string()),
        Actor::Joiner { address } => Who::Joiner(address.clone()),
        Actor::Manager(id) => Who::Manager(*id),
    };
    v1::Actor { who: Some(who) }
}

fn actor_in(actor: v1::Actor) -> Result<Actor> {
    use v1::actor::{Local, Who};
    Ok(match required("actor.who", actor.who)? {
        Who::Local(Local { uid, gid, pid }) => Actor::Local { uid, gid, pid },
        Who::Operator(id) => Actor::Operator(parse("actor.operator", &id)?),
        Who::Node(id) => Actor::Node(parse("actor.node", &id)?),
        Who::Joiner(address) => Actor::Joiner { address },
        Who::Manager(id) => Actor::Manager(id),
    })
}

fn command_out(command: &Command) -> out::Command {
    use out::Command as Out;
    match command {
        Command::Init(init) => Out::Init(init_out(init)),
        Command::CreateSecret { id, name, labels, value } => Out::CreateSecret(out::CreateSecret {
            id: id.to_string(),
            name: name.to_string(),
            labels: labels_out(labels),
            value: Some(value_out(value)),
        }),
        Command::SetSecretLabels { id, expected, labels } => {
            Out::SetSecretLabels(out::SetSecretLabels {
                id: id.to_string(),
                expected: *expected,
                labels: labels_out(labels),
            })
        }
        Command::RotateSecrets { items } => {
            Out::RotateSecrets(out::RotateSecrets { items: items.iter().map(item_out).collect() })
        }
        Command::RollbackSecret { id, to } => {
            Out::RollbackSecret(out::RollbackSecret { id: id.to_string(), to: version_number(*to) })
        }
        Command::RemoveSecret { id } => Out::RemoveSecret(out::RemoveSecret { id: id.to_string() }),
        Command::CreateService { id, name, labels, grants, constraints } => {
            Out::CreateService(out::CreateService {
                id: id.to_string(),
                name: name.to_string(),
                spec: Some(wanted_out(labels, grants, constraints)),
            })
        }
        Command::UpdateService { id, expected, labels, grants, constraints } => {
            Out::UpdateService(out::UpdateService {
                id: id.to_string(),
                expected: *expected,
                spec: Some(wanted_out(labels, grants, constraints)),
            })
        }
        Command::RollbackService { id } => {
            Out::RollbackService(out::RollbackService { id: id.to_string() })
        }
        Command::RemoveService { id } => {
            Out::RemoveService(out::RemoveService { id: id.to_string() })
        }
        Command::ClaimTask { id, service, node, cgroup } => Out::ClaimTask(out::ClaimTask {
            id: id.to_string(),
            service: service.to_string(),
            node: node.to_string(),
            cgroup: cgroup.clone(),
        }),
        Command::EndTask { id, node, reason } => Out::EndTask(out::EndTask {
            id: id.to_string(),
            node: node.to_string(),
            reason: reason.clone(),
        }),
        Command::SyncTasks { node, live, ca_number } => Out::SyncTasks(out::SyncTasks {
            ca_number: *ca_number,
            node: node.to_string(),
            live: live.iter().map(ToString::to_string).collect(),
        }),
        Command::CreateOperator(new) => {
            Out::CreateOperator(out::CreateOperator { operator: Some(operator_out(new)) })
        }
        Command::RenewOperator { id, not_after, ca_number } => {
            Out::RenewOperator(out::RenewOperator {
                id: id.to_string(),
                not_after: *not_after,
                ca_number: *ca_number,
            })
        }
        Command::RemoveOperator { id } => {
            Out::RemoveOperator(out::RemoveOperator { id: id.to_string() })
        }
        Command::JoinNode { id, hostname } => {
            Out::JoinNode(out::JoinNode { id: id.to_string(), hostname: hostname.clone() })
        }
        Command::ChangeNode { id, change } => Out::ChangeNode(out::ChangeNode {
            id: id.to_string(),
            labels: change.labels.as_ref().map(|set| v1::LabelSet { labels: labels_out(set) }),
            expected: change.expected,
            availability: change.availability.map_or(0, |to| availability_out(to).into()),
        }),
        Command::RemoveNode { id } => Out::RemoveNode(out::RemoveNode { id: id.to_string() }),
        Command::AddMember { member, keys } => Out::AddMember(out::AddMember {
            member: Some(member_out(member)),
            keys: Some(member_keys_out(keys)),
        }),
        Command::PromoteMember { id, keys } => {
            let keys = Some(member_keys_out(keys));
            Out::SetVoter(out::SetVoter { id: *id, voter: true, keys, voters: Vec::new() })
        }
        Command::DemoteMember { id, voters } => {
            let voters = voters.iter().copied().collect();
            Out::SetVoter(out::SetVoter { id: *id, voter: false, keys: None, voters })
        }
        Command::RotateKeyring(new) => Out::RotateKeyring(out::RotateKeyring {
            epoch: new.epoch,
            key: Some(key_out(&new.key)),
            worker_token: Some(token_out(&new.worker_token)),
            manager_token: Some(token_out(&new.manager_token)),
        }),
        Command::Reseal { items } => {
            Out::Reseal(out::Reseal { items: items.iter().map(resealed_out).collect() })
        }
        Command::RemoveMember { id, voters } => Out::RemoveMember(out::RemoveMember {
            id: *id,
            voters: voters.iter().copied().collect(),
        }),
        Command::RenewStoreKeys(new) => Out::RenewStoreKeys(out::RenewStoreKeys {
            number: new.number,
            unlock: new.unlock.as_ref().map(key_out),
            why: renewal_out(new.why).into(),
        }),
        Command::NoteStore { member, under: StoreUnder { number, locked } } => {
            Out::NoteStore(out::NoteStore { member: *member, number: *number, locked: *locked })
        }
        Command::Shred => Out::Shred(out::Shred {}),
        Command::ShowUnlockKey => Out::ShowUnlockKey(out::ShowUnlockKey {}),
        Command::NoteUnlockKey { number } => {
            Out::NoteUnlockKey(out::NoteUnlockKey { number: *number })
        }
        Command::TransferLeader { to } => Out::TransferLeader(out::TransferLeader { to: *to }),
        Command::ShowToken { role } => {
            Out::ShowToken(out::ShowToken { role: role_out(*role).into() })
        }
        Command::RotateToken { role, token } => Out::RotateToken(out::RotateToken {
            role: role_out(*role).into(),
            token: Some(token_out(token)),
        }),
        Command::ChangeCluster(change) => Out::ChangeCluster(cluster_change_out(change)),
        Command::NoteAuditHead { member, seq, hash } => Out::NoteAuditHead(out::NoteAuditHead {
            member: *member,
            seq: *seq,
            hash: hash.to_vec().into(),
        }),
        Command::RotateCa(new) => Out::RotateCa(out::RotateCa {
            ca_number: new.number,
            certificate: new.certificate.clone().into(),
            key: Some(key_out(&new.key)),
            former: Some(former_ca_out(&new.former)),
        }),
        Command::NoteCertificate { member, ca_number } => {
            Out::NoteCertificate(out::NoteCertificate { member: *member, ca_number: *ca_number })
        }
        Command::NoteBackup { recipients } => {
            Out::NoteBackup(out::NoteBackup { recipients: recipients.clone() })
        }
        Command::ForgetFormerCas => Out::ForgetFormerCas(out::ForgetFormerCas {}),
        Command::Restore(new) => Out::Restore(restore_out(new)),
        Command::ForceNewCluster { member } => {
            Out::ForceNewCluster(out::ForceNewCluster { member: *member })
        }
    }
}

fn restore_out(new: &Restoration) -> out::Restore {
    out::Restore {
        member: Some(member_out(&new.member)),
        ca_certificate: new.ca_certificate.clone().into(),
        ca_key: Some(key_out(&new.ca_key)),
        former: Some(former_ca_out(&new.former)),
        epoch: new.epoch,
        value_key: Some(key_out(&new.value_key)),
        worker_token: Some(token_out(&new.worker_token)),
        manager_token: Some(token_out(&new.manager_token)),
    }
}

fn init_out(init: &InitCluster) -> out::Init {
    out::Init {
        id: init.id.to_string(),
        ca_certificate: init.ca_certificate.clone().into(),
        ca_key: Some(key_out(&init.ca_key)),
        value_key: Some(key_out(&init.value_key)),
        worker_token: Some(token_out(&init.worker_token)),
        manager_token: Some(token_out(&init.manager_token)),
        certificate_seconds: init.certificate_seconds,
        member: Some(member_out(&init.member)),
    }
}

fn item_out(item: &RotateItem) -> out::rotate_secrets::Item {
    out::rotate_secrets::Item {
        id: item.id.to_string(),
        version: item.version.get(),
        value: Some(value_out(&item.value)),
    }
}

fn resealed_out(item: &ResealItem) -> out::reseal::Item {
    out::reseal::Item {
        id: item.id.to_string(),
        version: item.version.get(),
        from: item.from,
        value: Some(value_out(&item.value)),
    }
}

fn resealed_in(item: out::reseal::Item) -> Result<ResealItem> {
    Ok(ResealItem {
        id: parse("item.id", &item.id)?,
        version: version("item.version", item.version)?,
        from: item.from,
        value: value_in(required("item.value", item.value)?)?,
    })
}

fn wanted_out(
    labels: &Labels,
    grants: &[GrantRequest],
    constraints: &[Constraint],
) -> v1::ServiceSpecRecord {
    v1::ServiceSpecRecord {
        labels: labels_out(labels),
        grants: grants.iter().map(request_out).collect(),
        constraints: constraints.iter().map(ToString::to_string).collect(),
    }
}

fn cluster_change_out(change: &ClusterChange) -> out::ChangeCluster {
    let (member, address) = change.address.clone().unwrap_or_default();
    out::ChangeCluster {
        unconstrained: change.unconstrained.map_or(0, |to| unconstrained_out(to).into()),
        quota_bytes: change.quota_bytes,
        certificate_seconds: change.certificate_seconds,
        member,
        address,
    }
}

fn renewal_out(why: Renewal) -> out::renew_store_keys::Why {
    use out::renew_store_keys::Why;
    match why {
        Renewal::Autolock => Why::Autolock,
        Renewal::NoAutolock => Why::NoAutolock,
        Renewal::UnlockKey => Why::UnlockKey,
        Renewal::Stores => Why::Stores,
        Renewal::Shred => Why::Shred,
    }
}

fn renewal_in(why: i32) -> Result<Renewal> {
    use out::renew_store_keys::Why;
    match Why::try_from(why) {
        Ok(Why::Autolock) => Ok(Renewal::Autolock),
        Ok(Why::NoAutolock) => Ok(Renewal::NoAutolock),
        Ok(Why::UnlockKey) => Ok(Renewal::UnlockKey),
        Ok(Why::Stores) => Ok(Renewal::Stores),
        Ok(Why::Shred) => Ok(Renewal::Shred),
        Ok(Why::Unspecified) | Err(_) => Err(DecodeError::missing("why")),
    }
}

fn role_out(role: TokenRole) -> v1::TokenRole {
    match role {
        TokenRole::Worker => v1::TokenRole::Worker,
        TokenRole::Manager => v1::TokenRole::Manager,
    }
}

fn command_in(command: out::Command) -> Result<Command> {
    use out::Command as In;
    Ok(match command {
        In::Init(init) => Command::Init(Box::new(init_in(init)?)),
        In::CreateSecret(create) => Command::CreateSecret {
            id: parse("id", &create.id)?,
            name: parse("name", &create.name)?,
            labels: labels_in(create.labels)?,
            value: value_in(required("value", create.value)?)?,
        },
        In::SetSecretLabels(set) => Command::SetSecretLabels {
            id: parse("id", &set.id)?,
            expected: set.expected,
            labels: labels_in(set.labels)?,
        },
        In::RotateSecrets(rotate) => Command::RotateSecrets {
            items: rotate.items.into_iter().map(item_in).collect::<Result<_>>()?,
        },
        In::RollbackSecret(rollback) => Command::RollbackSecret {
            id: parse("id", &rollback.id)?,
            to: optional_version(rollback.to),
        },
        In::RemoveSecret(remove) => Command::RemoveSecret { id: parse("id", &remove.id)? },
        In::CreateService(create) => {
            let (labels, grants, constraints) = wanted_in(create.spec)?;
            let (id, name) = (parse("id", &create.id)?, parse("name", &create.name)?);
            Command::CreateService { id, name, labels, grants, constraints }
        }
        In::UpdateService(update) => {
            let (labels, grants, constraints) = wanted_in(update.spec)?;
            let (id, expected) = (parse("id", &update.id)?, update.expected);
            Command::UpdateService { id, expected, labels, grants, constraints }
        }
        In::RollbackService(rollback) => {
            Command::RollbackService { id: parse("id", &rollback.id)? }
        }
        In::RemoveService(remove) => Command::RemoveService { id: parse("id", &remove.id)? },
        In::ClaimTask(claim) => Command::ClaimTask {
            id: parse("id", &claim.id)?,
            service: parse("service", &claim.service)?,
            node: parse("node", &claim.node)?,
            cgroup: claim.cgroup,
        },
        In::EndTask(end) => Command::EndTask {
            id: parse("id", &end.id)?,
            node: parse("node", &end.node)?,
            reason: end.reason,
        },
        In::SyncTasks(sync) => Command::SyncTasks {
            ca_number: sync.ca_number,
            node: parse("node", &sync.node)?,
            live: sync.live.iter().map(|id| parse("live", id)).collect::<Result<_>>()?,
        },
        In::CreateOperator(create) => {
            let operator = operator_in(required("operator", create.operator)?)?;
            Command::CreateOperator(Box::new(operator))
        }
        In::RenewOperator(renew) => {
            let (not_after, ca_number) = (renew.not_after, renew.ca_number);
            Command::RenewOperator { id: parse("id", &renew.id)?, not_after, ca_number }
        }
        In::RemoveOperator(remove) => Command::RemoveOperator { id: parse("id", &remove.id)? },
        In::JoinNode(join) => {
            Command::JoinNode { id: parse("id", &join.id)?, hostname: join.hostname }
        }
        In::ChangeNode(change) => Command::ChangeNode {
            id: parse("id", &change.id)?,
            change: NodeChange {
                labels: change.labels.map(|set| labels_in(set.labels)).transpose()?,
                expected: change.expected,
                availability: availability_in(change.availability),
            },
        },
        In::RemoveNode(remove) => Command::RemoveNode { id: parse("id", &remove.id)? },
        In::AddMember(add) => Command::AddMember {
            member: member_in(required("member", add.member)?)?,
            keys: member_keys_in(required("keys", add.keys)?)?,
        },
        In::SetVoter(set) if set.voter => Command::PromoteMember {
            id: set.id,
            keys: member_keys_in(required("keys", set.keys)?)?,
        },
        In::SetVoter(set) => {
            Command::DemoteMember { id: set.id, voters: set.voters.into_iter().collect() }
        }
        In::RotateKeyring(new) => Command::RotateKeyring(Box::new(NewKey {
            epoch: new.epoch,
            key: key_in(required("key", new.key)?),
            worker_token: token_in(required("worker_token", new.worker_token)?)?,
            manager_token: token_in(required("manager_token", new.manager_token)?)?,
        })),
        In::Reseal(reseal) => Command::Reseal {
            items: reseal.items.into_iter().map(resealed_in).collect::<Result<_>>()?,
        },
        In::RemoveMember(remove) => {
            Command::RemoveMember { id: remove.id, voters: remove.voters.into_iter().collect() }
        }
        In::RenewStoreKeys(new) => Command::RenewStoreKeys(Box::new(NewStoreKeys {
            number: new.number,
            why: renewal_in(new.why)?,
            unlock: new.unlock.map(key_in),
        })),
        In::NoteStore(note) => Command::NoteStore {
            member: note.member,
            under: StoreUnder { number: note.number, locked: note.locked },
        },
        In::Shred(out::Shred {}) => Command::Shred,
        In::ShowUnlockKey(out::ShowUnlockKey {}) => Command::ShowUnlockKey,
        In::NoteUnlockKey(out::NoteUnlockKey { number }) => Command::NoteUnlockKey { number },
        In::TransferLeader(transfer) => Command::TransferLeader { to: transfer.to },
        In::ShowToken(show) => Command::ShowToken { role: role_in(show.role)? },
        In::RotateToken(rotate) => Command::RotateToken {
            role: role_in(rotate.role)?,
            token: token_in(required("token", rotate.token)?)?,
        },
        In::ChangeCluster(change) => Command::ChangeCluster(cluster_change_in(change)),
        In::NoteAuditHead(note) => Command::NoteAuditHead {
            member: note.member,
            seq: note.seq,
            hash: array32("hash", &note.hash)?,
        },
        In::RotateCa(new) => Command::RotateCa(Box::new(NewCa {
            number: new.ca_number,
            certificate: new.certificate.into(),
            key: key_in(required("key", new.key)?),
            former: former_ca_in(required("former", new.former)?),
        })),
        In::NoteCertificate(note) => {
            Command::NoteCertificate { member: note.member, ca_number: note.ca_number }
        }
        In::NoteBackup(note) => Command::NoteBackup { recipients: note.recipients },
        In::ForgetFormerCas(_) => Command::ForgetFormerCas,
        In::Restore(new) => Command::Restore(Box::new(restore_in(new)?)),
        In::ForceNewCluster(force) => Command::ForceNewCluster { member: force.member },
    })
}

fn restore_in(new: out::Restore) -> Result<Restoration> {
    Ok(Restoration {
        member: member_in(required("member", new.member)?)?,
        ca_certificate: new.ca_certificate.into(),
        ca_key: key_in(required("ca_key", new.ca_key)?),
        former: former_ca_in(required("former", new.former)?),
        epoch: new.epoch,
        value_key: key_in(required("value_key", new.value_key)?),
        worker_token: token_in(required("worker_token", new.worker_token)?)?,
        manager_token: token_in(required("manager_token", new.manager_token)?)?,
    })
}

fn init_in(init: out::Init) -> Result<InitCluster> {
    Ok(InitCluster {
        id: parse("id", &init.id)?,
        ca_certificate: init.ca_certificate.into(),
        ca_key: key_in(required("ca_key", init.ca_key)?),
        value_key: key_in(required("value_key", init.value_key)?),
        worker_token: token_in(required("worker_token", init.worker_token)?)?,
        manager_token: token_in(required("manager_token", init.manager_token)?)?,
        certificate_seconds: init.certificate_seconds,
        member: member_in(required("member", init.member)?)?,
    })
}

fn item_in(item: out::rotate_secrets::Item) -> Result<RotateItem> {
    Ok(RotateItem {
        id: parse("item.id", &item.id)?,
        version: version("item.version", item.version)?,
        value: value_in(required("item.value", item.value)?)?,
    })
}

type Wanted = (Labels, Vec<GrantRequest>, Vec<Constraint>);

fn wanted_in(spec: Option<v1::ServiceSpecRecord>) -> Result<Wanted> {
    let spec = required("spec", spec)?;
    Ok((
        labels_in(spec.labels)?,
        spec.grants.iter().map(request_in).collect::<Result<_>>()?,
        constraints_in(&spec.constraints)?,
    ))
}

fn cluster_change_in(change: out::ChangeCluster) -> ClusterChange {
    ClusterChange {
        unconstrained: unconstrained_in(change.unconstrained),
        quota_bytes: change.quota_bytes,
        certificate_seconds: change.certificate_seconds,
        address: (change.member != 0).then_some((change.member, change.address)),
    }
}

fn role_in(role: i32) -> Result<TokenRole> {
    match v1::TokenRole::try_from(role) {
        Ok(v1::TokenRole::Worker) => Ok(TokenRole::Worker),
        Ok(v1::TokenRole::Manager) => Ok(TokenRole::Manager),
        Ok(v1::TokenRole::Unspecified) | Err(_) => Err(DecodeError::missing("role")),
    }
}

#[cfg(test)]
mod tests;
