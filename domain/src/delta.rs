//! How an assignment differs from the one before: what travels when little changed.
//!
//! Invariant: the delta between two assignments, applied to the first, is the second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{AssignedGrant, AssignedTask, Assignment, GrantId, Revision, TaskId, ValueKey};

/// One change of what a node is assigned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignmentDelta {
    /// What it changes; `None`: nothing is taken over, it is complete.
    pub applies_to: Option<Revision>,
    /// What comes out.
    pub results_in: Revision,
    /// Tasks that are new, or changed in more than what their files show.
    pub tasks: Vec<AssignedTask>,
    /// Changed grants of tasks that are otherwise as before.
    pub grants: Vec<(TaskId, Vec<AssignedGrant>)>,
    /// Tasks that are gone.
    pub removed: Vec<TaskId>,
}

/// Why a delta does not fit what it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It follows from something else.
    #[error(
        "a change applies to revision {applies_to}, but this node has {have}: a part is missing"
    )]
    Gap {
        /// What it applies to.
        applies_to: Revision,
        /// What is there.
        have: Revision,
    },
    /// It names a task that is not there.
    #[error("a change names task {0}, which was never assigned")]
    UnknownTask(TaskId),
    /// It names a grant that the task does not have.
    #[error("a change names grant {} of task {task}, which the task does not have", grant.0)]
    UnknownGrant {
        /// The task.
        task: TaskId,
        /// The grant.
        grant: GrantId,
    },
}

impl AssignmentDelta {
    /// What leads from `before` to `after`: complete if there is nothing before, or only another incarnation.
    pub fn between(before: Option<&Assignment>, after: &Assignment) -> Self {
        let same_history = |a: &&Assignment| a.revision.incarnation == after.revision.incarnation;
        let results_in = after.revision;
        let Some(before) = before.filter(same_history) else {
            return Self { results_in, tasks: after.tasks.clone(), ..Self::default() };
        };
        let had: BTreeMap<TaskId, &AssignedTask> = before.by_id();
        let has = after.by_id();
        let gone = before.tasks.iter().map(|task| task.id).filter(|id| !has.contains_key(id));
        let mut delta = Self {
            applies_to: Some(before.revision),
            results_in,
            removed: gone.collect(),
            ..Self::default()
        };
        for task in &after.tasks {
            match had.get(&task.id).map(|had| changed_grants(had, task)) {
                Some(Some(same)) if same.is_empty() => {}
                Some(Some(grants)) => delta.grants.push((task.id, grants)),
                Some(None) | None => delta.tasks.push(task.clone()),
            }
        }
        delta
    }

    /// Whether nothing changes but the revision.
    pub fn is_empty(&self) -> bool {
        self.applies_to.is_some()
            && self.tasks.is_empty()
            && self.grants.is_empty()
            && self.removed.is_empty()
    }

    /// The grants that it brings.
    pub fn grants(&self) -> impl Iterator<Item = (TaskId, &AssignedGrant)> {
        let whole = self.tasks.iter().flat_map(|task| task.grants.iter().map(|g| (task.id, g)));
        let single =
            self.grants.iter().flat_map(|(task, grants)| grants.iter().map(|grant| (*task, grant)));
        whole.chain(single)
    }

    /// The values that it names and that `before` did not: what must come with it.
    pub fn values(&self, before: Option<&Assignment>) -> BTreeSet<ValueKey> {
        let mut named: BTreeSet<ValueKey> = self.grants().map(|(_, grant)| grant.value).collect();
        if let Some(before) = before.filter(|_| self.applies_to.is_some()) {
            for grant in before.tasks.iter().flat_map(|task| task.grants.iter()) {
                named.remove(&grant.value);
            }
        }
        named
    }

    /// The assignment that comes out. Refused as a whole when it does not follow from `before`.
    pub fn apply(self, before: Option<&Assignment>) -> Result<Assignment, DeltaError> {
        let mut tasks: BTreeMap<TaskId, AssignedTask> = match (self.applies_to, before) {
            (None, _) => BTreeMap::new(),
            (Some(applies_to), Some(before)) if before.revision == applies_to => {
                before.tasks.iter().map(|task| (task.id, task.clone())).collect()
            }
            (Some(applies_to), before) => {
                let have = before.map_or_else(Revision::default, |before| before.revision);
                return Err(DeltaError::Gap { applies_to, have });
            }
        };
        for id in &self.removed {
            tasks.remove(id).ok_or(DeltaError::UnknownTask(*id))?;
        }
        tasks.extend(self.tasks.into_iter().map(|task| (task.id, task)));
        for (id, grants) in self.grants {
            let task = tasks.get_mut(&id).ok_or(DeltaError::UnknownTask(id))?;
            let own_grants = Arc::make_mut(&mut task.grants);
            for grant in grants {
                let unknown = DeltaError::UnknownGrant { task: id, grant: grant.id };
                let own = own_grants.iter_mut().find(|own| own.id == grant.id);
                *own.ok_or(unknown)? = grant;
            }
        }
        Ok(Assignment { revision: self.results_in, tasks: tasks.into_values().collect() })
    }
}

/// The grants that differ, if the tasks are the same but for these.
fn changed_grants(had: &AssignedTask, has: &AssignedTask) -> Option<Vec<AssignedGrant>> {
    let same_ids = || had.grants.iter().map(|g| g.id).eq(has.grants.iter().map(|g| g.id));
    if had.service != has.service || had.rejected != has.rejected || !same_ids() {
        return None;
    }
    let pairs = had.grants.iter().zip(has.grants.iter());
    Some(pairs.filter(|(had, has)| had != has).map(|(_, has)| has.clone()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FileMode, SecretId, Version};

    fn id(n: u8) -> TaskId {
        TaskId::from_entropy([n; 16])
    }

    fn grant(id: u8, version: u64) -> AssignedGrant {
        AssignedGrant {
            id: GrantId(id.into()),
            value: ValueKey {
                secret: SecretId::from_entropy([id % 3; 16]),
                version: Version::new(version).unwrap(),
            },
            size: 1,
            name: "pw".parse().unwrap(),
            target: format!("pw{id}").parse().unwrap(),
            uid: 0,
            gid: 0,
            mode: FileMode::DEFAULT,
        }
    }

    /// Its number, its grants with their versions, whether it is rejected.
    type TaskFacts = (u8, Vec<(u8, u64)>, bool);

    fn assignment(revision: u64, tasks: &[TaskFacts]) -> Assignment {
        let task = |(n, grants, rejected): &TaskFacts| AssignedTask {
            id: id(*n),
            service: "web".parse().unwrap(),
            grants: grants.iter().map(|(id, version)| grant(*id, *version)).collect(),
            rejected: rejected.then(|| "no".to_owned()),
        };
        let tasks: BTreeMap<TaskId, AssignedTask> =
            tasks.iter().map(task).map(|task| (task.id, task)).collect();
        let revision = Revision { incarnation: 1, index: revision };
        Assignment { revision, tasks: tasks.into_values().collect() }
    }

    fn any_assignment(revision: u64) -> impl Strategy<Value = Assignment> {
        let grants = proptest::collection::btree_map(0..5_u8, 1..4_u64, 0..4);
        let task = (0..5_u8, grants, any::<bool>())
            .prop_map(|(n, grants, rejected)| (n, grants.into_iter().collect(), rejected));
        proptest::collection::vec(task, 0..5).prop_map(move |tasks| assignment(revision, &tasks))
    }

    proptest! {
        #[test]
        fn applied_to_the_first_it_gives_the_second_with_the_values_that_the_first_had_not(
            before in any_assignment(3),
            after in any_assignment(4),
        ) {
            for before in [None, Some(&before)] {
                let delta = AssignmentDelta::between(before, &after);
                let had = before.map(Assignment::values).unwrap_or_default();
                prop_assert!(delta.values(before).is_disjoint(&had));
                let mut has = had;
                has.extend(delta.values(before));
                prop_assert!(after.values().is_subset(&has));
                prop_assert_eq!(delta.is_empty(), before.is_some_and(|b| b.tasks == after.tasks));
                prop_assert_eq!(delta.apply(before), Ok(after.clone()));
            }
        }
    }

    #[test]
    fn a_rotation_is_one_grant_and_one_value() {
        let grants = |version| (0..5).map(|id| (id, if id == 2 { version } else { 1 })).collect();
        let before = assignment(3, &[(1, grants(1), false), (2, Vec::new(), true)]);
        let after = assignment(9, &[(1, grants(2), false), (2, Vec::new(), true)]);
        let delta = AssignmentDelta::between(Some(&before), &after);
        assert_eq!((delta.tasks.len(), delta.removed.len()), (0, 0));
        assert_eq!(delta.grants, [(id(1), vec![grant(2, 2)])]);
        assert_eq!(delta.values(Some(&before)), [grant(2, 2).value].into());
    }

    #[test]
    fn another_incarnation_takes_nothing_over() {
        let before = assignment(3, &[(1, vec![(1, 1)], false)]);
        let mut after = before.clone();
        after.revision = Revision { incarnation: 2, index: 1 };
        let delta = AssignmentDelta::between(Some(&before), &after);
        assert_eq!((delta.applies_to, delta.values(Some(&before)).len()), (None, 1));
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let base = assignment(3, &[(1, vec![(1, 1)], false)]);
        let delta = || AssignmentDelta { applies_to: Some(base.revision), ..Default::default() };
        let gap = AssignmentDelta { applies_to: Some(assignment(2, &[]).revision), ..delta() };
        assert!(matches!(gap.clone().apply(Some(&base)), Err(DeltaError::Gap { .. })));
        assert!(matches!(gap.apply(None), Err(DeltaError::Gap { .. })));
        let gone = AssignmentDelta { removed: vec![id(2)], ..delta() };
        assert_eq!(gone.apply(Some(&base)), Err(DeltaError::UnknownTask(id(2))));
        let task = AssignmentDelta { grants: vec![(id(2), vec![grant(1, 1)])], ..delta() };
        assert_eq!(task.apply(Some(&base)), Err(DeltaError::UnknownTask(id(2))));
        let other = AssignmentDelta { grants: vec![(id(1), vec![grant(2, 1)])], ..delta() };
        assert!(matches!(other.apply(Some(&base)), Err(DeltaError::UnknownGrant { .. })));
    }
}
