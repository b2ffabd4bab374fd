//! An assignment as messages: about 1 MiB each, values opened and sealed again one by one while they are written.
//!
//! Invariant: at any moment at most one value of a stream is open, in locked memory.

use std::collections::VecDeque;
use std::sync::Arc;

use keyhole_domain::{AssignedGrant, AssignedTask, Assignment, NodeId, ValueKey};
use keyhole_proto::v1;
use keyhole_state::{Cluster, SealedValue, State};
use keyhole_wire::seal::StreamSealer;
use tonic::Status;

use crate::seal::{Keyring, open_value, stream_aad};
use crate::shell::revision_out;
use crate::status::internal;

/// A part is closed when it has this many bytes.
const PART_BYTES: usize = 1 << 20;

/// All that one complete assignment is made from.
pub(super) struct Sources {
    pub(super) assignment: Arc<Assignment>,
    cluster: Cluster,
    values: VecDeque<(ValueKey, Arc<SealedValue>)>,
    managers: Vec<String>,
}

impl Sources {
    /// As of the state now.
    pub(super) fn read(state: &State, cluster: &Cluster, node: NodeId) -> Self {
        let assignment = state.assignment(node);
        let value = |key: ValueKey| {
            let kept = state.secrets().get(&key.secret)?.versions.get(&key.version)?;
            Some((key, kept.value.clone()))
        };
        let members = state.members().values();
        Self {
            values: assignment.values().into_iter().filter_map(value).collect(),
            managers: members.map(|member| member.address.clone()).collect(),
            cluster: cluster.clone(),
            assignment: Arc::new(assignment),
        }
    }
}

/// The messages, made one after the other.
pub(super) struct Parts {
    sources: Sources,
    tasks: VecDeque<v1::AssignedTaskRecord>,
    enc: Vec<u8>,
    done: bool,
}

impl Parts {
    pub(super) fn new(sources: Sources, enc: Vec<u8>) -> Self {
        Self {
            tasks: sources.assignment.tasks.iter().map(task_out).collect(),
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
        let mut part = v1::AssignmentPart {
            results_in: Some(revision_out(self.sources.assignment.revision)),
            enc: std::mem::take(&mut self.enc).into(),
            managers: std::mem::take(&mut self.sources.managers),
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
            && let Some((key, value)) = self.sources.values.pop_front()
        {
            let record = self.seal_again(keyring, sealer, key, &value)?;
            bytes += record.ciphertext.len();
            part.values.push(record);
        }
        part.more = !self.tasks.is_empty() || !self.sources.values.is_empty();
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

fn task_out(task: &AssignedTask) -> v1::AssignedTaskRecord {
    let grant = |grant: &AssignedGrant| v1::AssignedGrantRecord {
        id: grant.id.0,
        value: Some(key_out(grant.value)),
        size: grant.size,
        name: grant.name.to_string(),
        target: grant.target.to_string(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode.bits().into(),
    };
    v1::AssignedTaskRecord {
        id: task.id.to_string(),
        service: task.service.to_string(),
        grants: task.grants.iter().map(grant).collect(),
        rejected: task.rejected.clone().unwrap_or_default(),
    }
}
