//! Between the records of `dispatch.proto` and the domain's types, both ways.
//!
//! Invariant: what does not parse is refused as a whole and named; nothing is left out or guessed.

use keyhole_domain::{
    AssignedGrant, AssignedTask, FileMode, GrantId, Revision, TaskId, ValueKey, Version,
};
use keyhole_proto::v1;

/// A record that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} cannot be read; managers and nodes must run versions that fit together")]
pub struct RecordError {
    what: &'static str,
    text: String,
}

impl RecordError {
    pub(crate) fn new(what: &'static str, text: impl ToString) -> Self {
        Self { what, text: text.to_string().chars().take(120).collect() }
    }
}

/// Parses one field.
pub(crate) fn parse<T: std::str::FromStr>(
    what: &'static str,
    text: &str,
) -> Result<T, RecordError> {
    text.parse().map_err(|_| RecordError::new(what, text))
}

/// A revision; a missing one is "nothing seen yet".
pub(crate) fn revision(record: Option<v1::RevisionRef>) -> Revision {
    record.map_or_else(Revision::default, |record| Revision {
        incarnation: record.incarnation,
        index: record.index,
    })
}

pub(crate) fn revision_ref(revision: Revision) -> v1::RevisionRef {
    v1::RevisionRef { incarnation: revision.incarnation, index: revision.index }
}

pub(crate) fn value_key(record: Option<&v1::ValueRef>) -> Result<ValueKey, RecordError> {
    let record = record.ok_or_else(|| RecordError::new("value", "(missing)"))?;
    Ok(ValueKey {
        secret: parse("secret id", &record.secret)?,
        version: Version::new(record.version)
            .ok_or_else(|| RecordError::new("version", record.version))?,
    })
}

pub(crate) fn value_ref(key: ValueKey) -> v1::ValueRef {
    v1::ValueRef { secret: key.secret.to_string(), version: key.version.get() }
}

pub(crate) fn grant(record: &v1::AssignedGrantRecord) -> Result<AssignedGrant, RecordError> {
    Ok(AssignedGrant {
        id: GrantId(record.id),
        value: value_key(record.value.as_ref())?,
        size: record.size,
        name: parse("secret name", &record.name)?,
        target: parse("target", &record.target)?,
        uid: record.uid,
        gid: record.gid,
        mode: FileMode::new(record.mode).map_err(|_| RecordError::new("mode", record.mode))?,
    })
}

pub(crate) fn grant_record(grant: &AssignedGrant) -> v1::AssignedGrantRecord {
    v1::AssignedGrantRecord {
        id: grant.id.0,
        value: Some(value_ref(grant.value)),
        size: grant.size,
        name: grant.name.to_string(),
        target: grant.target.to_string(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode.bits().into(),
    }
}

pub(crate) fn task(record: &v1::AssignedTaskRecord) -> Result<AssignedTask, RecordError> {
    Ok(AssignedTask {
        id: parse("task id", &record.id)?,
        service: parse("service name", &record.service)?,
        grants: record.grants.iter().map(grant).collect::<Result<_, _>>()?,
        rejected: (!record.rejected.is_empty()).then(|| record.rejected.clone()),
    })
}

pub(crate) fn changed_grants(
    record: &v1::ChangedGrantsRecord,
) -> Result<(TaskId, Vec<AssignedGrant>), RecordError> {
    let grants = record.grants.iter().map(grant).collect::<Result<_, _>>()?;
    Ok((parse("task id", &record.task)?, grants))
}

pub(crate) fn task_record(task: &AssignedTask) -> v1::AssignedTaskRecord {
    v1::AssignedTaskRecord {
        id: task.id.to_string(),
        service: task.service.to_string(),
        grants: task.grants.iter().map(grant_record).collect(),
        rejected: task.rejected.clone().unwrap_or_default(),
    }
}
