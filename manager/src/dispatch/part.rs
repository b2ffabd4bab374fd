//! A change of an assignment as messages: about 1 MiB each, values opened and sealed again one by one while they are
//! written.
//!
//! Invariant: at any moment at most one value of a stream is open, in locked memory.

use std::collections::VecDeque;
use std::sync::Arc;

use keyhole_domain::{
    AssignedGrant, AssignedTask, Assignment, AssignmentDelta, NodeId, TaskId, ValueKey,
};
use keyhole_proto::v1;
use keyhole_state::{Cluster, SealedValue, State};
use keyhole_wire::seal::StreamSealer;
use tonic::Status;

use crate::seal::{Keyring, open_value, stream_aad};
use crate::shell::revision_out;
use crate::status::internal;

/// A part is closed when it has this many bytes.
const PART_BYTES: usize = 1 << 20;

/// All that one change is made from.
pub(super) struct Sources {
    pub(super) assignment: Arc<Assignment>,
    pub(super) delta: AssignmentDelta,
    cluster: Cluster,
    values: VecDeque<(ValueKey, Arc<SealedValue>)>,
    pub(super) managers: Vec<String>,
    /// The id of the root CA's key, if the node is to be told.
    pub(super) ca: Vec<u8>,
}

impl Sources {
    /// From what was sent before to the state now.
    pub(super) fn read(
        state: &State,
        cluster: &Cluster,
        node: NodeId,
        before: Option<&Assignment>,
    ) -> Self {
        let assignment = state.assignment(node);
        let delta = AssignmentDelta::between(before, &assignment);
        let value = |key: ValueKey| {
            let kept = state.secrets().get(&key.secret)?.versions.get(key.version)?;
            Some((key, kept.value.clone()))
        };
        let members = state.members().values();
        Self {
            values: delta.values(before).into_iter().filter_map(value).collect(),
            managers: members.map(|member| member.address.clone()).collect(),
            ca: Vec::new(),
            cluster: cluster.clone(),
            assignment: Arc::new(assignment),
            delta,
        }
    }
}

/// The messages, made one after the other.
pub(super) struct Parts {
    sources: Sources,
    tasks: VecDeque<v1::AssignedTaskRecord>,
    grants: VecDeque<v1::ChangedGrantsRecord>,
    enc: Vec<u8>,
    done: bool,
}

impl Parts {
    pub(super) fn new(sources: Sources, enc: Vec<u8>) -> Self {
        Self {
            tasks: sources.delta.tasks.iter().map(task_out).collect(),
            grants: sources.delta.grants.iter().map(changed_out).collect(),
            sources,
            enc,
            done: false,
        }
    }

    /// The next message; none after the last.
    pub(super) fn next(
        &mut self,
        keyring: &Keyring,
        sealer: &mut StreamSealer,
    ) -> Result<Option<v1::AssignmentPart>, Status> {
        if self.done {
            return Ok(None);
        }
        let Sources { delta, managers, ca, .. } = &mut self.sources;
        let mut part = v1::AssignmentPart {
            applies_to: delta.applies_to.map(revision_out),
            results_in: Some(revision_out(delta.results_in)),
            enc: std::mem::take(&mut self.enc).into(),
            managers: std::mem::take(managers),
            ca: std::mem::take(ca).into(),
            removed_tasks: std::mem::take(&mut delta.removed)
                .iter()
                .map(TaskId::to_string)
                .collect(),
            ..v1::AssignmentPart::default()
        };
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some(task) = self.tasks.pop_front()
        {
            bytes += prost::Message::encoded_len(&task);
            part.tasks.push(task);
        }
        while bytes < PART_BYTES
            && let Some(grants) = self.grants.pop_front()
        {
            bytes += prost::Message::encoded_len(&grants);
            part.changed_grants.push(grants);
        }
        while bytes < PART_BYTES
            && let Some((key, value)) = self.sources.values.pop_front()
        {
            let record = self.seal_again(keyring, sealer, key, &value)?;
            bytes += record.ciphertext.len();
            part.values.push(record);
        }
        part.more =
            !self.tasks.is_empty() || !self.grants.is_empty() || !self.sources.values.is_empty();
        self.done = !part.more;
        Ok(Some(part))
    }

    /// From the seal at rest to the stream's.
    fn seal_again(
        &self,
        keyring: &Keyring,
        sealer: &mut StreamSealer,
        key: ValueKey,
        value: &SealedValue,
    ) -> Result<v1::ValueRecord, Status> {
        let Sources { cluster, assignment, .. } = &self.sources;
        let failed = |error: &dyn std::fmt::Display| internal("cannot hand out a value", error);
        let value_key = keyring.key(cluster, value.epoch).map_err(|e| failed(&e))?;
        let place = (key.secret, key.version);
        let opened = open_value(&value_key, &cluster.id, place, value).map_err(|e| failed(&e))?;
        let aad = stream_aad(&key, assignment.revision);
        let ciphertext = sealer.seal(&aad, &opened).map_err(|e| failed(&e))?;
        Ok(v1::ValueRecord { key: Some(key_out(key)), ciphertext: ciphertext.into() })
    }
}

fn key_out(key: ValueKey) -> v1::ValueRef {
    v1::ValueRef { secret: key.secret.to_string(), version: key.version.get() }
}

fn grant_out(grant: &AssignedGrant) -> v1::AssignedGrantRecord {
    v1::AssignedGrantRecord {
        id: grant.id.0,
        value: Some(key_out(grant.value)),
        size: grant.size,
        name: grant.name.to_string(),
        target: grant.target.to_string(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode.bits().into(),
    }
}

fn changed_out((task, grants): &(TaskId, Vec<AssignedGrant>)) -> v1::ChangedGrantsRecord {
    let grants = grants.iter().map(grant_out).collect();
    v1::ChangedGrantsRecord { task: task.to_string(), grants }
}

fn task_out(task: &AssignedTask) -> v1::AssignedTaskRecord {
    v1::AssignedTaskRecord {
        id: task.id.to_string(),
        service: task.service.to_string(),
        grants: task.grants.iter().map(grant_out).collect(),
        rejected: task.rejected.clone().unwrap_or_default(),
    }
}
