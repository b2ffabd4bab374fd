//! Rows of the state.

use std::sync::Arc;

use keyhole_domain::Timestamp;
use keyhole_proto::v1;
use keyhole_state::{
    AuditHead, Cluster, Node, Row, Secret, SecretVersion, Service, Shred, StoreKeys, StoreUnder,
    StoreWritten, Task, TaskEnd, Versions,
};
use prost::Message;

use super::{
    DecodeError, Result, array32, audit_head_out, availability_in, availability_out, first_field,
    former_ca_in, former_ca_out, key_in, key_out, keyring_in, labels_in, labels_out, member_in,
    member_out, operator_in, operator_out, parse, required, spec_in, spec_out, times, token_in,
    token_out, unconstrained_in, unconstrained_out, value_in, value_out, version,
};

/// A row as the store's and a snapshot's record.
pub fn encode_row(row: &Row) -> v1::Row {
    use v1::row::Row as Out;
    let row = match row {
        Row::Cluster(cluster) => Out::Cluster(cluster_out(cluster)),
        Row::Member(member) => Out::Member(member_out(member)),
        Row::Secret(secret) => Out::Secret(secret_out(secret)),
        Row::Version(id, number, kept) => Out::Version(v1::VersionRow {
            secret: id.to_string(),
            version: number.get(),
            created_at: kept.created_at.0,
            index: kept.index,
            value: Some(value_out(&kept.value)),
        }),
        Row::Service(service) => Out::Service(service_out(service)),
        Row::Task(task) => Out::Task(task_out(task)),
        Row::Node(node) => Out::Node(node_out(node)),
        Row::Operator(operator) => Out::Operator(operator_out(operator)),
    };
    v1::Row { row: Some(row) }
}

/// The row that a record is, every field checked.
pub fn decode_row(row: v1::Row) -> Result<Row> {
    use v1::row::Row as In;
    Ok(match required("row", row.row)? {
        In::Cluster(cluster) => Row::Cluster(Box::new(cluster_in(cluster)?)),
        In::Member(member) => Row::Member(member_in(member)?),
        In::Secret(secret) => Row::Secret(secret_in(secret)?),
        In::Version(row) => {
            let kept = SecretVersion {
                created_at: Timestamp(row.created_at),
                index: row.index,
                value: Arc::new(value_in(required("version.value", row.value)?)?),
            };
            let id = parse("version.secret", &row.secret)?;
            Row::Version(id, version("version.version", row.version)?, kept)
        }
        In::Service(service) => Row::Service(service_in(service)?),
        In::Task(task) => Row::Task(task_in(task)?),
        In::Node(node) => Row::Node(node_in(node)?),
        In::Operator(operator) => Row::Operator(operator_in(operator)?),
    })
}

/// The row in the bytes of a record.
pub fn row_from_bytes(bytes: &[u8]) -> Result<Row> {
    let row = v1::Row::decode(bytes).map_err(|error| DecodeError::new("row", error))?;
    match first_field(bytes, &[]).filter(|_| row.row.is_none()) {
        Some(kind) => Err(DecodeError::unknown("row", kind)),
        None => decode_row(row),
    }
}

fn cluster_out(cluster: &Cluster) -> v1::ClusterRow {
    v1::ClusterRow {
        id: cluster.id.to_string(),
        incarnation: cluster.incarnation,
        created_at: cluster.created_at.0,
        ca_certificate: cluster.ca_certificate.clone().into(),
        ca_key: Some(key_out(&cluster.ca_key)),
        keyring: cluster.keyring.iter().map(|(epoch, key)| (*epoch, key_out(key))).collect(),
        epoch: cluster.epoch,
        worker_token: Some(token_out(&cluster.worker_token)),
        manager_token: Some(token_out(&cluster.manager_token)),
        unconstrained: unconstrained_out(cluster.unconstrained).into(),
        quota_bytes: cluster.quota_bytes,
        certificate_seconds: cluster.certificate_seconds,
        next_grant: cluster.next_grant,
        next_member: cluster.next_member,
        rekey: cluster.rekey,
        store_keys: store_keys_out(&cluster.store_keys),
        audit_heads: cluster
            .audit_heads
            .iter()
            .map(|(id, heads)| (*id, heads_out(heads)))
            .collect(),
        former_cas: cluster.former_cas.iter().map(former_ca_out).collect(),
        ca_number: cluster.ca_number,
        ca_since: cluster.ca_since.map(|at| at.0),
        keys_since: cluster.keys_since.map(|at| at.0),
        new_ca_due: cluster.new_ca_due,
        uncertified_operators: cluster
            .uncertified_operators
            .iter()
            .map(ToString::to_string)
            .collect(),
        removed_at: cluster.removed_at.map(|at| at.0),
        uncertified: cluster.uncertified.iter().copied().collect(),
        removed_managers: cluster.removed_managers.iter().map(ToString::to_string).collect(),
        last_backup_at: cluster.last_backup_at.map(|at| at.0),
    }
}

/// Nothing, for those that are as they were made: such a row has one form.
fn store_keys_out(keys: &StoreKeys) -> Option<v1::StoreKeys> {
    use v1::store_keys;
    let written = |(id, written): (&u64, &StoreWritten)| {
        let StoreUnder { number, locked } = written.under;
        (*id, store_keys::Written { number, locked, at: written.at.0 })
    };
    let shred = |shred: &Shred| {
        let (number, index) = shred.stores.unwrap_or_default();
        store_keys::Shred { at: shred.at.0, epoch: shred.epoch, number, index }
    };
    (*keys != StoreKeys::default()).then(|| v1::StoreKeys {
        number: keys.number,
        unlock: keys.unlock.as_ref().map(key_out),
        written: keys.written.iter().map(written).collect(),
        shred: keys.shred.as_ref().map(shred),
        seen: keys.seen,
    })
}

fn store_keys_in(keys: v1::StoreKeys) -> StoreKeys {
    use v1::store_keys;
    let written = |(id, written): (u64, store_keys::Written)| {
        let under = StoreUnder { number: written.number, locked: written.locked };
        (id, StoreWritten { under, at: Timestamp(written.at) })
    };
    let shred = |shred: store_keys::Shred| Shred {
        at: Timestamp(shred.at),
        epoch: shred.epoch,
        stores: (shred.number != 0).then_some((shred.number, shred.index)),
    };
    StoreKeys {
        number: keys.number,
        unlock: keys.unlock.map(key_in),
        written: keys.written.into_iter().map(written).collect(),
        shred: keys.shred.map(shred),
        seen: keys.seen,
    }
}

fn heads_out(heads: &[AuditHead]) -> v1::AuditHeads {
    v1::AuditHeads { heads: heads.iter().map(audit_head_out).collect() }
}

fn heads_in(row: v1::AuditHeads) -> Result<Vec<AuditHead>> {
    let head = |head: v1::AuditHead| {
        let hash = array32("audit_head.hash", &head.hash)?;
        Ok(AuditHead { seq: head.seq, hash, at: Timestamp(head.at) })
    };
    row.heads.into_iter().map(head).collect()
}

fn cluster_in(row: v1::ClusterRow) -> Result<Cluster> {
    Ok(Cluster {
        id: parse("cluster.id", &row.id)?,
        incarnation: row.incarnation,
        created_at: Timestamp(row.created_at),
        ca_certificate: row.ca_certificate.into(),
        ca_key: key_in(required("cluster.ca_key", row.ca_key)?),
        keyring: keyring_in(row.keyring),
        epoch: row.epoch,
        worker_token: token_in(required("cluster.worker_token", row.worker_token)?)?,
        manager_token: token_in(required("cluster.manager_token", row.manager_token)?)?,
        unconstrained: required("cluster.unconstrained", unconstrained_in(row.unconstrained))?,
        quota_bytes: row.quota_bytes,
        certificate_seconds: row.certificate_seconds,
        next_grant: row.next_grant,
        next_member: row.next_member,
        rekey: row.rekey,
        store_keys: row.store_keys.map(store_keys_in).unwrap_or_default(),
        audit_heads: row
            .audit_heads
            .into_iter()
            .map(|(id, heads)| Ok((id, heads_in(heads)?)))
            .collect::<Result<_>>()?,
        former_cas: row.former_cas.into_iter().map(former_ca_in).collect(),
        ca_number: row.ca_number,
        ca_since: row.ca_since.map(Timestamp),
        keys_since: row.keys_since.map(Timestamp),
        new_ca_due: row.new_ca_due,
        uncertified_operators: row
            .uncertified_operators
            .iter()
            .map(|id| parse("cluster.uncertified_operators", id))
            .collect::<Result<_>>()?,
        removed_at: row.removed_at.map(Timestamp),
        uncertified: row.uncertified.into_iter().collect(),
        removed_managers: row
            .removed_managers
            .iter()
            .map(|id| parse("cluster.removed_managers", id))
            .collect::<Result<_>>()?,
        last_backup_at: row.last_backup_at.map(Timestamp),
    })
}

fn secret_out(secret: &Secret) -> v1::SecretRow {
    v1::SecretRow {
        id: secret.id.to_string(),
        name: secret.name.to_string(),
        labels: labels_out(&secret.labels),
        created_at: secret.created_at.0,
        updated_at: secret.updated_at.0,
        index: secret.index,
        current: secret.current.get(),
        last: secret.last.get(),
    }
}

fn secret_in(row: v1::SecretRow) -> Result<Secret> {
    let (created_at, updated_at) = times(row.created_at, row.updated_at);
    Ok(Secret {
        id: parse("secret.id", &row.id)?,
        name: parse("secret.name", &row.name)?,
        labels: labels_in(row.labels)?,
        created_at,
        updated_at,
        index: row.index,
        current: version("secret.current", row.current)?,
        last: version("secret.last", row.last)?,
        versions: Versions::default(),
    })
}

fn service_out(service: &Service) -> v1::ServiceRow {
    v1::ServiceRow {
        id: service.id.to_string(),
        name: service.name.to_string(),
        created_at: service.created_at.0,
        updated_at: service.updated_at.0,
        index: service.index,
        spec: Some(spec_out(&service.spec)),
        previous: service.previous.as_ref().map(spec_out),
    }
}

fn service_in(row: v1::ServiceRow) -> Result<Service> {
    let (created_at, updated_at) = times(row.created_at, row.updated_at);
    Ok(Service {
        id: parse("service.id", &row.id)?,
        name: parse("service.name", &row.name)?,
        created_at,
        updated_at,
        index: row.index,
        spec: spec_in(required("service.spec", row.spec)?)?,
        previous: row.previous.map(spec_in).transpose()?,
    })
}

fn task_out(task: &Task) -> v1::TaskRow {
    v1::TaskRow {
        id: task.id.to_string(),
        service: task.service.to_string(),
        node: task.node.to_string(),
        cgroup: task.cgroup.clone(),
        claimed_at: task.claimed_at.0,
        end: task.end.as_ref().map(|end| v1::task_row::End {
            at: end.at.0,
            rejected: end.rejected,
            reason: end.reason.clone(),
        }),
    }
}

fn task_in(row: v1::TaskRow) -> Result<Task> {
    Ok(Task {
        id: parse("task.id", &row.id)?,
        service: parse("task.service", &row.service)?,
        node: parse("task.node", &row.node)?,
        cgroup: row.cgroup,
        claimed_at: Timestamp(row.claimed_at),
        end: row.end.map(|end| TaskEnd {
            at: Timestamp(end.at),
            rejected: end.rejected,
            reason: end.reason,
        }),
    })
}

fn node_out(node: &Node) -> v1::NodeRow {
    v1::NodeRow {
        id: node.id.to_string(),
        hostname: node.hostname.clone(),
        labels: labels_out(&node.labels),
        availability: availability_out(node.availability).into(),
        joined_at: node.joined_at.0,
        index: node.index,
        former_certificate: node.former_certificate,
    }
}

fn node_in(row: v1::NodeRow) -> Result<Node> {
    Ok(Node {
        id: parse("node.id", &row.id)?,
        hostname: row.hostname,
        labels: labels_in(row.labels)?,
        availability: required("node.availability", availability_in(row.availability))?,
        joined_at: Timestamp(row.joined_at),
        index: row.index,
        former_certificate: row.former_certificate,
    })
}
