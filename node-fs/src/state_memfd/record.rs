//! The state as plain types, and its encoding (`node_state.proto`).
//!
//! Invariant: a state that was saved is taken up equal, or not at all.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use keyhole_domain::{AssignedGrant, Assignment, TaskId, Timestamp};
use keyhole_proto::v1;
use keyhole_view::cgroup::CgroupId;
use keyhole_view::{FileState, Ino, KeptSet, Record, ShownFile, ShownValue};
use prost::Message;

use crate::core::records::{self, RecordError};
use crate::registry::Task;
use crate::value_memory::Place;

/// Where each sealed value is.
pub type SavedValues = BTreeMap<ShownValue, Place>;

/// All that the next worker needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedState {
    /// What the managers said last.
    pub assignment: Assignment,
    /// The values of it, and of files that are still open.
    pub values: SavedValues,
    /// The live tasks.
    pub registered: Vec<Task>,
    /// What the kernel may still refer to.
    pub record: Record,
    /// The root's times.
    pub mounted: Timestamp,
    /// The time of files that are assigned and not in `record`.
    pub at: Timestamp,
    /// Workers that were started in this run of the node.
    pub worker_starts: u64,
}

impl SavedState {
    /// As one `NodeState`, made piece by piece: messages that follow each other are one to who reads them, and only one
    /// piece at a time is in memory twice. `capacity` is about how long it will be.
    pub(super) fn encode(&self, capacity: usize) -> Vec<u8> {
        let SavedState { assignment, values, registered, record, mounted, at, worker_starts } =
            self;
        let mut bytes = Vec::with_capacity(capacity);
        let mut add = |piece: v1::NodeState| bytes.extend_from_slice(&piece.encode_to_vec());
        let empty = v1::NodeState::default;
        add(v1::NodeState {
            revision: Some(records::revision_ref(assignment.revision)),
            registered: registered.iter().map(registered_task).collect(),
            mounted: mounted.0,
            at: at.0,
            worker_starts: *worker_starts,
            ..empty()
        });
        for task in &assignment.tasks {
            add(v1::NodeState { tasks: vec![records::task_record(task)], ..empty() });
        }
        for (value, place) in values {
            add(v1::NodeState { values: vec![held_value(*value, *place)], ..empty() });
        }
        for (file, state) in &record.files {
            add(v1::NodeState { files: vec![known_file(file, *state)], ..empty() });
        }
        for set in &record.sets {
            add(v1::NodeState { sets: vec![known_set(set)], ..empty() });
        }
        bytes
    }
}

fn held_value(value: ShownValue, place: Place) -> v1::HeldValue {
    let ShownValue { incarnation, key } = value;
    let Place { offset, length } = place;
    v1::HeldValue { key: Some(records::value_ref(key)), incarnation, offset, length }
}

fn registered_task(task: &Task) -> v1::RegisteredTask {
    v1::RegisteredTask {
        id: task.id.to_string(),
        service: task.service.clone(),
        cgroup: task.cgroup.0,
        path: task.path.as_os_str().as_bytes().to_vec().into(),
        own: task.own,
        since: task.since.0,
    }
}

fn known_file(file: &ShownFile, state: FileState) -> v1::KnownFile {
    v1::KnownFile {
        ino: file.ino.0,
        task: file.task.to_string(),
        incarnation: file.incarnation,
        grant: Some(records::grant_record(&AssignedGrant {
            id: file.grant,
            value: file.value,
            size: file.size,
            name: file.secret.clone(),
            target: file.target.clone(),
            uid: file.uid,
            gid: file.gid,
            mode: file.mode,
        })),
        shown: file.shown.0,
        state: match state {
            FileState::Current => 1,
            FileState::Pinned => 2,
            FileState::Retired => 3,
            FileState::Revoked => 4,
        },
    }
}

fn known_set(set: &KeptSet) -> v1::KnownSet {
    v1::KnownSet { task: set.task.to_string(), files: set.files.iter().map(|ino| ino.0).collect() }
}

impl TryFrom<v1::NodeState> for SavedState {
    type Error = RecordError;

    fn try_from(state: v1::NodeState) -> Result<Self, RecordError> {
        let tasks = state.tasks.iter().map(records::task).collect::<Result<_, _>>()?;
        let revision = records::revision(state.revision);
        let value = |held: v1::HeldValue| {
            let key = records::value_key(held.key.as_ref())?;
            // A worker of an earlier build has values of one incarnation only.
            let incarnation = match held.incarnation {
                0 => revision.incarnation,
                named => named,
            };
            Ok((
                ShownValue { incarnation, key },
                Place { offset: held.offset, length: held.length },
            ))
        };
        let set = |set: v1::KnownSet| {
            let files = set.files.into_iter().map(Ino).collect();
            Ok(KeptSet { task: records::parse("task id", &set.task)?, files })
        };
        Ok(Self {
            assignment: Assignment { revision, tasks },
            values: state.values.into_iter().map(value).collect::<Result<_, RecordError>>()?,
            registered: state.registered.into_iter().map(task).collect::<Result<_, _>>()?,
            record: Record {
                files: state.files.into_iter().map(file).collect::<Result<_, _>>()?,
                sets: state.sets.into_iter().map(set).collect::<Result<_, RecordError>>()?,
            },
            mounted: Timestamp(state.mounted),
            at: Timestamp(state.at),
            worker_starts: state.worker_starts,
        })
    }
}

fn task(task: v1::RegisteredTask) -> Result<Task, RecordError> {
    Ok(Task {
        id: records::parse("task id", &task.id)?,
        service: task.service,
        cgroup: CgroupId(task.cgroup),
        path: PathBuf::from(OsStr::from_bytes(&task.path)),
        own: task.own,
        since: Timestamp(task.since),
    })
}

fn file(known: v1::KnownFile) -> Result<(ShownFile, FileState), RecordError> {
    let task: TaskId = records::parse("task id", &known.task)?;
    let grant = known.grant.ok_or_else(|| RecordError::new("grant", "(missing)"))?;
    let grant = records::grant(&grant)?;
    let state = match known.state {
        1 => FileState::Current,
        2 => FileState::Pinned,
        3 => FileState::Retired,
        4 => FileState::Revoked,
        other => return Err(RecordError::new("file state", other)),
    };
    let file = ShownFile {
        ino: Ino(known.ino),
        task,
        incarnation: known.incarnation,
        grant: grant.id,
        value: grant.value,
        size: grant.size,
        secret: grant.name,
        target: grant.target,
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode,
        shown: Timestamp(known.shown),
    };
    Ok((file, state))
}
