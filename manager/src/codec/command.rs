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
        command: Some(command_out(&envelope.command)),
    }
}

/// The envelope that a record is, every field checked.
pub fn decode_envelope(envelope: v1::Envelope) -> Result<Envelope> {
    Ok(Envelope {
        at: Timestamp(envelope.at),
        actor: actor_in(required("actor", envelope.actor)?)?,
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
        Command::SetSecretLabels { id, labels } => Out::SetSecretLabels(out::SetSecretLabels {
            id: id.to_string(),
            labels: labels_out(labels),
        }),
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
        Command::RenewOperator { id, not_after } => {
            Out::RenewOperator(out::RenewOperator { id: id.to_string(), not_after: *not_after })
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
            availability: change.availability.map_or(0, |to| availability_out(to).into()),
        }),
        Command::RemoveNode { id } => Out::RemoveNode(out::RemoveNode { id: id.to_string() }),
        Command::AddMember { member, keys } => Out::AddMember(out::AddMember {
            member: Some(member_out(member)),
            keys: Some(member_keys_out(keys)),
        }),
        Command::PromoteMember { id, keys } => {
            let keys = Some(member_keys_out(keys));
            Out::SetVoter(out::SetVoter { id: *id, voter: true, keys })
        }
        Command::DemoteMember { id } => {
            Out::SetVoter(out::SetVoter { id: *id, voter: false, keys: None })
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
        Command::RemoveMember { id } => Out::RemoveMember(out::RemoveMember { id: *id }),
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
        In::SetSecretLabels(set) => {
            Command::SetSecretLabels { id: parse("id", &set.id)?, labels: labels_in(set.labels)? }
        }
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
            Command::RenewOperator { id: parse("id", &renew.id)?, not_after: renew.not_after }
        }
        In::RemoveOperator(remove) => Command::RemoveOperator { id: parse("id", &remove.id)? },
        In::JoinNode(join) => {
            Command::JoinNode { id: parse("id", &join.id)?, hostname: join.hostname }
        }
        In::ChangeNode(change) => Command::ChangeNode {
            id: parse("id", &change.id)?,
            change: NodeChange {
                labels: change.labels.map(|set| labels_in(set.labels)).transpose()?,
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
        In::SetVoter(set) => Command::DemoteMember { id: set.id },
        In::RotateKeyring(new) => Command::RotateKeyring(Box::new(NewKey {
            epoch: new.epoch,
            key: key_in(required("key", new.key)?),
            worker_token: token_in(required("worker_token", new.worker_token)?)?,
            manager_token: token_in(required("manager_token", new.manager_token)?)?,
        })),
        In::Reseal(reseal) => Command::Reseal {
            items: reseal.items.into_iter().map(resealed_in).collect::<Result<_>>()?,
        },
        In::RemoveMember(remove) => Command::RemoveMember { id: remove.id },
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
mod tests {
    use super::*;
    use crate::codec::{decode_row, encode_row};
    use keyhole_domain::{NodeId, SecretId, ServiceId, TaskId, Version};
    use keyhole_state::{
        Availability, FormerCa, KeySeal, Member, MemberKeys, Operator, Role, Scope, SealedKey,
        SealedValue, State, TokenRecord, Unconstrained, UnlockSeal,
    };
    use prost::Message;

    fn labels() -> Labels {
        Labels::new([("k".to_owned(), "v".to_owned())].into()).unwrap()
    }

    fn value(byte: u8) -> SealedValue {
        SealedValue { epoch: 1, salt: [byte; 32], ciphertext: vec![byte; 40] }
    }

    fn key() -> SealedKey {
        let seal = KeySeal { enc: vec![1; 32], ciphertext: vec![2; 48] };
        SealedKey { seals: [(1, seal)].into() }
    }

    fn third_key() -> SealedKey {
        SealedKey { seals: key().seals.into_values().map(|seal| (3, seal)).collect() }
    }

    fn grants(secret: SecretId) -> Vec<GrantRequest> {
        let grant = GrantRequest {
            secret,
            target: "tls/key".parse().unwrap(),
            uid: 1000,
            gid: 7,
            mode: "0440".parse().unwrap(),
            pinned: Version::new(1),
        };
        let other = GrantRequest { target: "b".parse().unwrap(), pinned: None, ..grant.clone() };
        vec![grant, other]
    }

    /// One of each command, in an order in which all of them are accepted.
    fn history() -> Vec<Command> {
        let (secret, spare) = (SecretId::from_entropy([1; 16]), SecretId::from_entropy([9; 16]));
        let service = ServiceId::from_entropy([2; 16]);
        let (node, task) = (NodeId::from_entropy([3; 16]), TaskId::from_entropy([4; 16]));
        let operator = NodeId::from_entropy([12; 16]);
        let token = TokenRecord { hash: [5; 32], salt: [6; 32], epoch: 1 };
        let member = Member {
            id: 1,
            node,
            hostname: String::new(),
            address: "a:1".into(),
            seal_key: [7; 32],
            voter: true,
        };
        let second = Member {
            id: 2,
            node: NodeId::from_entropy([10; 16]),
            hostname: "beta".into(),
            address: "b:2".into(),
            ..member.clone()
        };
        let third = Member { id: 3, node: NodeId::from_entropy([11; 16]), ..second.clone() };
        let restored = TokenRecord { hash: [12; 32], salt: [13; 32], epoch: 2 };
        let seal = KeySeal { enc: vec![3; 32], ciphertext: vec![4; 48] };
        let keys = MemberKeys {
            ca: seal.clone(),
            keyring: [(1, seal)].into(),
            ca_number: 0,
            unlock: None,
        };
        let new_token = token.clone();
        let key_seal = keys.ca.clone();
        let fourth = Member { id: 4, node: NodeId::from_entropy([12; 16]), ..second.clone() };
        let constraints = vec!["node.labels.k==v".parse().unwrap()];
        let name = || "web".parse().unwrap();
        vec![
            Command::Init(Box::new(InitCluster {
                id: keyhole_domain::ClusterId::from_entropy([8; 16]),
                ca_certificate: vec![1, 2, 3],
                ca_key: key(),
                value_key: key(),
                worker_token: token.clone(),
                manager_token: token.clone(),
                certificate_seconds: 86_400,
                member,
            })),
            Command::CreateSecret {
                id: secret,
                name: "a".parse().unwrap(),
                labels: labels(),
                value: value(1),
            },
            Command::CreateSecret {
                id: spare,
                name: "b".parse().unwrap(),
                labels: labels(),
                value: value(2),
            },
            Command::SetSecretLabels { id: secret, labels: Labels::default() },
            Command::RotateSecrets {
                items: vec![RotateItem {
                    id: secret,
                    version: Version::FIRST.next(),
                    value: value(3),
                }],
            },
            Command::RollbackSecret { id: secret, to: Some(Version::FIRST) },
            Command::RemoveSecret { id: spare },
            Command::JoinNode { id: node, hostname: "alpha".into() },
            Command::ChangeNode {
                id: node,
                change: NodeChange {
                    labels: Some(labels()),
                    availability: Some(Availability::Pause),
                },
            },
            Command::CreateService {
                id: service,
                name: name(),
                labels: labels(),
                grants: grants(secret),
                constraints,
            },
            Command::UpdateService {
                id: service,
                expected: 10,
                labels: labels(),
                grants: grants(secret),
                constraints: vec![],
            },
            Command::RollbackService { id: service },
            Command::ClaimTask { id: task, service, node, cgroup: "/x".into() },
            Command::SyncTasks { node, live: vec![task], ca_number: 0 },
            Command::EndTask { id: task, node, reason: "gone".into() },
            Command::RotateToken { role: TokenRole::Manager, token },
            Command::ChangeCluster(ClusterChange {
                unconstrained: Some(Unconstrained::Deny),
                quota_bytes: Some(1 << 20),
                certificate_seconds: Some(60),
                address: Some((1, "b:2".into())),
            }),
            Command::RemoveService { id: service },
            Command::RemoveNode { id: node },
            Command::AddMember { member: second, keys: keys.clone() },
            Command::DemoteMember { id: 2 },
            Command::PromoteMember { id: 2, keys: keys.clone() },
            Command::RotateKeyring(Box::new(NewKey {
                epoch: 2,
                key: SealedKey { seals: [(1, keys.ca.clone()), (2, keys.ca)].into() },
                worker_token: TokenRecord { epoch: 2, ..new_token.clone() },
                manager_token: TokenRecord { epoch: 2, ..new_token },
            })),
            Command::Reseal {
                items: vec![ResealItem {
                    id: secret,
                    version: Version::FIRST,
                    from: 1,
                    value: SealedValue { epoch: 2, ..value(1) },
                }],
            },
            Command::RemoveMember { id: 2 },
            Command::NoteAuditHead { member: 1, seq: 7, hash: [11; 32] },
            Command::NoteBackup { recipients: vec!["age1x".into()] },
            Command::Reseal {
                items: vec![ResealItem {
                    id: secret,
                    version: Version::FIRST.next(),
                    from: 1,
                    value: SealedValue { epoch: 2, ..value(3) },
                }],
            },
            Command::Restore(Box::new(Restoration {
                member: third,
                ca_certificate: vec![4, 5, 6],
                ca_key: third_key(),
                former: FormerCa {
                    certificate: vec![1, 2, 3],
                    cross: vec![7, 8],
                    until: Timestamp(u64::MAX),
                },
                epoch: 2,
                value_key: third_key(),
                worker_token: restored.clone(),
                manager_token: restored,
            })),
            Command::ForceNewCluster { member: 3 },
            Command::RotateCa(Box::new(NewCa {
                number: 2,
                certificate: vec![14],
                key: third_key(),
                former: FormerCa {
                    certificate: vec![4, 5, 6],
                    cross: vec![15],
                    until: Timestamp(u64::MAX),
                },
            })),
            Command::NoteCertificate { member: 3, ca_number: 2 },
            Command::ForgetFormerCas,
            Command::CreateOperator(Box::new(Operator {
                id: operator,
                name: "ann@example.org".parse().unwrap(),
                role: Role::Writer,
                scope: Scope::new(&["web-*".to_owned()], &["web".to_owned()]).unwrap(),
                public_key: [12; 32],
                created_at: Timestamp(7),
                seconds: 60,
                not_after: 67,
            })),
            Command::RenewOperator { id: operator, not_after: 90 },
            Command::RemoveOperator { id: operator },
            Command::RenewStoreKeys(Box::new(NewStoreKeys {
                number: 1,
                unlock: Some(third_key()),
                why: Renewal::Autolock,
            })),
            Command::NoteStore { member: 3, under: StoreUnder { number: 1, locked: true } },
            Command::AddMember {
                member: fourth,
                keys: MemberKeys {
                    keyring: [(2, key_seal.clone())].into(),
                    ca: key_seal.clone(),
                    ca_number: 2,
                    unlock: Some(UnlockSeal { number: 1, seal: key_seal }),
                },
            },
            Command::ShowUnlockKey,
            Command::Shred,
        ]
    }

    fn actors() -> Vec<Actor> {
        let id = NodeId::from_entropy([3; 16]);
        vec![
            Actor::Local { uid: 1, gid: 2, pid: 3 },
            Actor::Operator(id),
            Actor::Node(id),
            Actor::Joiner { address: "x".into() },
            Actor::Manager(1),
        ]
    }

    /// Nobody else may do all of it.
    fn by_root(envelope: Envelope) -> Envelope {
        Envelope { actor: actors()[0].clone(), ..envelope }
    }

    #[test]
    fn every_command_and_every_row_round_trips() {
        let mut state = State::default();
        for (at, command) in history().into_iter().enumerate() {
            let actor = actors()[at % 5].clone();
            let envelope = Envelope { at: Timestamp(at as u64), actor, command };
            let bytes = encode_envelope(&envelope).encode_to_vec();
            let back = decode_envelope(v1::Envelope::decode(&*bytes).unwrap()).unwrap();
            assert_eq!(back, envelope);
            state.apply(at as u64 + 1, &by_root(envelope)).unwrap();
            state.invariants().unwrap();
            let rows: Vec<_> =
                state.row_keys().into_iter().filter_map(|key| state.row(key)).collect();
            let again = rows.iter().map(|row| decode_row(encode_row(row)).unwrap());
            assert_eq!(State::from_rows(state.index(), again), state);
        }
    }

    /// Every command of [`history`] with an actor, and every row that is there after it, as lines of hexadecimals.
    fn formats() -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let mut text = String::new();
        let mut state = State::default();
        for (at, command) in history().into_iter().enumerate() {
            let actor = actors()[at % 5].clone();
            let envelope = Envelope { at: Timestamp(at as u64), actor, command };
            text += &format!("command {}\n", hex(&encode_envelope(&envelope).encode_to_vec()));
            state.apply(at as u64 + 1, &by_root(envelope)).unwrap();
            for row in state.row_keys().into_iter().filter_map(|key| state.row(key)) {
                text += &format!("row {}\n", hex(&encode_row(&row).encode_to_vec()));
            }
        }
        text
    }

    /// What lies on disks must be read for ever. Who adds a field writes the file anew, with KEYHOLE_GOLDEN=write, and
    /// keeps the lines that are gone in `golden-former.txt`, which the test below reads.
    #[test]
    fn the_format_on_disk_is_the_golden_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/golden.txt");
        if std::env::var("KEYHOLE_GOLDEN").is_ok_and(|word| word == "write") {
            std::fs::write(path, formats()).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        for (number, (golden, now)) in (1..).zip(golden.lines().zip(formats().lines())) {
            assert_eq!(golden, now, "line {number}");
        }
        assert_eq!(golden.lines().count(), formats().lines().count());
    }

    /// What earlier builds wrote otherwise than this one.
    #[test]
    fn what_earlier_builds_wrote_is_read() {
        for line in include_str!("golden-former.txt").lines() {
            let (kind, hex) = line.split_once(' ').unwrap();
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            match kind {
                "command" => drop(decode_envelope(v1::Envelope::decode(&*bytes).unwrap()).unwrap()),
                _ => drop(crate::codec::row_from_bytes(&bytes).unwrap()),
            }
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused() {
        assert!(decode_envelope(v1::Envelope::default()).is_err());
        assert!(decode_row(v1::Row::default()).is_err());
    }
}
