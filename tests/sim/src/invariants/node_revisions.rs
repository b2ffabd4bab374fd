//! A node never sees a revision go back, whichever manager it follows, and a revision is the same wherever it is seen.
//!
//! The promise is Keyhole's (GUARANTEES, G6). Invariant: what a node showed is remembered for ever.

use std::collections::BTreeMap;

use keyhole_domain::{Assignment, NodeId, Revision};

use crate::cast;

/// What nodes showed.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    last: BTreeMap<u64, Revision>,
    assignments: BTreeMap<(NodeId, Revision), Assignment>,
}

impl Shown {
    /// A node shows this from now on, as a manager said.
    pub(crate) fn shown(
        &mut self,
        number: u64,
        manager: u64,
        assignment: &Assignment,
    ) -> Result<(), String> {
        let revision = assignment.revision;
        let before = self.last.insert(number, revision).unwrap_or_default();
        if revision < before {
            return Err(format!(
                "node revisions: n{number} showed {before}, and then {revision}, of m{manager}"
            ));
        }
        let known = self.assignments.entry((cast::node(number), revision));
        match known.or_insert_with(|| assignment.clone()) == assignment {
            true => Ok(()),
            false => Err(format!(
                "node revisions: n{number} was shown something else as {revision}, of m{manager}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use keyhole_domain::AssignedTask;

    use super::*;

    fn at(index: u64, tasks: Vec<AssignedTask>) -> Assignment {
        Assignment { revision: Revision { incarnation: 1, index }, tasks }
    }

    #[test]
    fn a_node_goes_forward_and_a_revision_is_one() {
        let mut shown = Shown::default();
        shown.shown(1, 1, &at(3, vec![])).unwrap();
        shown.shown(2, 1, &at(2, vec![])).unwrap();
        shown.shown(1, 2, &at(4, vec![])).unwrap();
        assert!(shown.shown(1, 2, &at(3, vec![])).is_err(), "it went back");
        let task = AssignedTask {
            id: cast::task(1),
            service: "web".parse().unwrap(),
            grants: [].into(),
            rejected: None,
        };
        assert!(shown.shown(2, 2, &at(2, vec![task])).is_err(), "something else at 2");
    }
}
