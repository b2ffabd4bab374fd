//! From the parts of one stream to complete changes.
//!
//! Values are opened in the order in which they were sealed, and sealed again at once under this run's
//! key. Depends on wire's seals and the values. Invariant: what it gives out is whole, follows from what
//! the node has, brings every value that it names, and is never older than what was seen before.

use std::collections::BTreeMap;

use keyhole_domain::{Assignment, AssignmentDelta, DeltaError, Revision, TaskId, ValueKey};
use keyhole_proto::v1;
use keyhole_wire::seal::{Aad, EdgeKeyPair, Info, SealError, StreamOpener};

use crate::core::Change;
use crate::core::records::{self, RecordError};
use crate::values::{SealedInMemory, Values, ValuesError};

/// Why a stream cannot be followed any further; the node opens another one.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A change that does not follow from what the node has.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// The manager's state is older than what the node saw.
    #[error(
        "the manager offers revision {offered}, but this node has seen {seen}: going back is refused"
    )]
    WentBack {
        /// The manager's.
        offered: Revision,
        /// The node's.
        seen: Revision,
    },
    /// Parts of different changes are mixed.
    #[error("a part of revision {found} came within the change to {expected}")]
    Mixed {
        /// The part's.
        found: Revision,
        /// The change's.
        expected: Revision,
    },
    /// The first part has no key, or a later one has another.
    #[error("the stream's key came {0}")]
    Key(&'static str),
    /// A value does not open.
    #[error("secret {} version {}: {source}", key.secret, key.version)]
    Seal {
        /// Which one.
        key: ValueKey,
        /// Why.
        source: SealError,
    },
    /// The stream's key makes no context.
    #[error(transparent)]
    Context(#[from] SealError),
    /// A value cannot be kept.
    #[error(transparent)]
    Values(#[from] ValuesError),
    /// A record makes no sense.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A grant whose value did not come.
    #[error("task {task} is granted secret {} version {}, which did not come", key.secret, key.version)]
    Missing {
        /// Whose grant.
        task: TaskId,
        /// Which value.
        key: ValueKey,
    },
    /// A value of another length than its grant says.
    #[error("secret {} version {} has {found} bytes, but its grant says {expected}", key.secret, key.version)]
    Length {
        /// Which value.
        key: ValueKey,
        /// How long it is.
        found: usize,
        /// What the grant says.
        expected: u32,
    },
}

/// Follows a stream of these parts to its end or to what is wrong with it; for tests that try any bytes.
///
/// # Errors
/// The first part that cannot be followed.
pub fn follow(
    parts: impl IntoIterator<Item = v1::AssignmentPart>,
    (keys, info): (EdgeKeyPair, Info),
    values: &Values,
) -> Result<(), StreamError> {
    let mut assembly = Assembly::new(keys, info, Revision::default());
    parts.into_iter().try_for_each(|part| assembly.take(part, values).map(drop))
}

/// Follows one stream.
#[derive(Debug)]
pub(super) struct Assembly {
    keys: EdgeKeyPair,
    info: Info,
    opener: Option<StreamOpener>,
    /// The last change of this stream.
    base: Option<Assignment>,
    seen: Revision,
    partial: Option<Partial>,
}

/// A change of which parts are still to come.
#[derive(Debug)]
struct Partial {
    delta: AssignmentDelta,
    values: BTreeMap<ValueKey, (SealedInMemory, usize)>,
}

impl Assembly {
    /// `seen`: the latest revision that this node ever saw.
    pub(super) fn new(keys: EdgeKeyPair, info: Info, seen: Revision) -> Self {
        Self { keys, info, opener: None, base: None, seen, partial: None }
    }

    /// What comes from now on must not be older than this, seen meanwhile from another stream.
    pub(super) fn never_before(&mut self, seen: Revision) {
        self.seen = self.seen.max(seen);
    }

    /// Takes the next part; gives a change when it was the last one of it.
    pub(super) fn take(
        &mut self,
        part: v1::AssignmentPart,
        values: &Values,
    ) -> Result<Option<Change>, StreamError> {
        self.take_key(&part.enc)?;
        let mut partial = self.partial_for(&part)?;
        for record in &part.tasks {
            partial.delta.tasks.push(records::task(record)?);
        }
        for record in &part.changed_grants {
            partial.delta.grants.push(records::changed_grants(record)?);
        }
        for id in &part.removed_tasks {
            partial.delta.removed.push(records::parse("task id", id)?);
        }
        for record in &part.values {
            let key = records::value_key(record.key.as_ref())?;
            let opened = self.open(key, partial.delta.results_in, &record.ciphertext)?;
            let length = opened.len();
            partial.values.insert(key, (values.seal(key, opened)?, length));
        }
        if part.more {
            self.partial = Some(partial);
            return Ok(None);
        }
        self.finish(partial).map(Some)
    }

    fn take_key(&mut self, enc: &[u8]) -> Result<(), StreamError> {
        match (&self.opener, enc.is_empty()) {
            (None, false) => {
                self.opener = Some(self.keys.stream_opener(enc, &self.info)?);
                Ok(())
            }
            (Some(_), true) => Ok(()),
            (None, true) => Err(StreamError::Key("not with the first part")),
            (Some(_), false) => Err(StreamError::Key("twice")),
        }
    }

    fn open(
        &mut self,
        key: ValueKey,
        revision: Revision,
        ciphertext: &[u8],
    ) -> Result<keyhole_secmem::SecretBytes, StreamError> {
        let aad = Aad::new()
            .text(key.secret.as_str())
            .number(key.version.get())
            .number(revision.incarnation)
            .number(revision.index);
        let opener = self.opener.as_mut().ok_or(StreamError::Key("not with the first part"))?;
        opener.open(&aad, ciphertext).map_err(|source| StreamError::Seal { key, source })
    }

    /// The change that the part belongs to.
    fn partial_for(&mut self, part: &v1::AssignmentPart) -> Result<Partial, StreamError> {
        let applies_to = part.applies_to.map(|revision| records::revision(Some(revision)));
        let results_in = records::revision(part.results_in);
        if let Some(partial) = self.partial.take() {
            let AssignmentDelta { results_in: expected, applies_to: from, .. } = partial.delta;
            return match expected == results_in && from == applies_to {
                true => Ok(partial),
                false => Err(StreamError::Mixed { found: results_in, expected }),
            };
        }
        if !results_in.may_follow(self.seen) {
            return Err(StreamError::WentBack { offered: results_in, seen: self.seen });
        }
        let delta = AssignmentDelta { applies_to, results_in, ..AssignmentDelta::default() };
        Ok(Partial { delta, values: BTreeMap::new() })
    }

    fn finish(&mut self, partial: Partial) -> Result<Change, StreamError> {
        let Partial { delta, values } = partial;
        let base = self.base.as_ref().filter(|_| delta.applies_to.is_some());
        let mut absent = BTreeMap::new();
        for (task, grant) in delta.grants() {
            match values.get(&grant.value) {
                Some((_, length)) => check_length(grant.value, *length, grant.size)?,
                None => {
                    absent.insert(grant.value, task);
                }
            }
        }
        if !absent.is_empty() {
            let had = base.map(Assignment::values).unwrap_or_default();
            if let Some((key, task)) = absent.into_iter().find(|(key, _)| !had.contains(key)) {
                return Err(StreamError::Missing { task, key });
            }
        }
        let assignment = delta.apply(base)?;
        self.seen = assignment.revision;
        self.base = Some(assignment.clone());
        let values = values.into_iter().map(|(key, (sealed, _))| (key, sealed)).collect();
        Ok(Change { assignment, values })
    }
}

fn check_length(key: ValueKey, found: usize, expected: u32) -> Result<(), StreamError> {
    match u32::try_from(found) == Ok(expected) {
        true => Ok(()),
        false => Err(StreamError::Length { key, found, expected }),
    }
}

#[cfg(test)]
mod tests;
