//! Whether a history of concurrent operations on one secret, and on its grant to a service of its own, could have happened
//! one after another, each at a moment between its call and its answer.
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of places that
//! were visited ("Testing for linearizability", 2017). Secrets are independent objects, so each has a history of its own
//! (Herlihy and Wing's locality).

use std::collections::{BTreeSet, HashSet};

use keyhole_domain::KEPT_VERSIONS;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A new secret.
    Create,
    /// The next version.
    Rotate,
    /// Back to the version before the current one.
    Rollback,
    /// Which version is current, and which is the highest.
    Read,
    /// A service of its own is granted it.
    Grant,
    /// And no longer.
    Revoke,
    /// Whether that service is granted it.
    ReadGrant,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// This version is current now.
    Version(u64),
    /// As read: the current version, and the highest kept.
    Seen(u64, u64),
    /// There is such a secret, or such a grant, already.
    Exists,
    /// There is no such secret, or no such grant.
    Missing,
    /// There is no version before the current one.
    NothingBefore,
    /// The grant is as was asked for.
    Changed,
    /// As read: whether there is the grant.
    Granted(bool),
}

/// One operation, in any unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked for.
    pub called: u64,
    /// When it was answered, and what; without an answer it may have happened at any later time, or not at all.
    pub answered: Option<(u64, Output)>,
    /// What was asked for.
    pub input: Input,
}

/// The secret as the rules have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Model {
    current: u64,
    last: u64,
    kept: BTreeSet<u64>,
    granted: bool,
}

impl Model {
    /// What an operation does, and what it answers. No secret: `last` is 0.
    fn after(&self, input: Input) -> (Self, Output) {
        match input {
            Input::Create if self.last > 0 => (self.clone(), Output::Exists),
            Input::Create => (self.next(), Output::Version(1)),
            Input::ReadGrant => (self.clone(), Output::Granted(self.granted)),
            _ if self.last == 0 => (self.clone(), Output::Missing),
            Input::Grant if self.granted => (self.clone(), Output::Exists),
            Input::Revoke if !self.granted => (self.clone(), Output::Missing),
            Input::Grant => (Self { granted: true, ..self.clone() }, Output::Changed),
            Input::Revoke => (Self { granted: false, ..self.clone() }, Output::Changed),
            Input::Rotate => (self.next(), Output::Version(self.last + 1)),
            Input::Read => {
                let highest = self.kept.last().copied().unwrap_or(0);
                (self.clone(), Output::Seen(self.current, highest))
            }
            Input::Rollback => match self.kept.range(..self.current).next_back() {
                // What is kept is only looked at again with the next rotation.
                Some(to) => (Self { current: *to, ..self.clone() }, Output::Version(*to)),
                None => (self.clone(), Output::NothingBefore),
            },
        }
    }

    fn next(&self) -> Self {
        let last = self.last + 1;
        let mut kept = self.kept.clone();
        kept.insert(last);
        let newest: BTreeSet<u64> = kept.iter().rev().take(KEPT_VERSIONS).copied().collect();
        kept.retain(|version| newest.contains(version) || *version == last);
        Self { current: last, last, kept, ..*self }
    }
}

/// The operations that no order explains, if there are any: the history is not linearizable then.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut search = Search {
        history,
        done: vec![false; history.len()],
        seen: HashSet::new(),
        deepest: 0,
        stuck: Vec::new(),
    };
    match search.from(&Model::default(), 0) {
        true => Ok(()),
        false => Err(format!(
            "no order explains these {} operations; the longest one that does explains {}, and none of these may come \
             next: {:?}",
            history.len(),
            search.deepest,
            search.stuck
        )),
    }
}

struct Search<'a> {
    history: &'a [Operation],
    done: Vec<bool>,
    seen: HashSet<(Vec<bool>, Model)>,
    deepest: usize,
    stuck: Vec<Operation>,
}

impl Search<'_> {
    fn from(&mut self, model: &Model, depth: usize) -> bool {
        let open = || self.history.iter().zip(&self.done).filter(|(_, done)| !**done);
        let first_answer = open().filter_map(|(op, _)| Some(op.answered?.0)).min();
        let Some(first_answer) = first_answer else {
            // What was never answered need not have happened.
            return true;
        };
        if depth >= self.deepest {
            self.deepest = depth;
            let next = open().filter(|(op, _)| op.called <= first_answer);
            self.stuck = next.map(|(op, _)| *op).collect();
        }
        for at in 0..self.history.len() {
            let op = self.history[at];
            if self.done[at] || op.called > first_answer {
                continue;
            }
            let (after, output) = model.after(op.input);
            if op.answered.is_some_and(|(_, answer)| answer != output) {
                continue;
            }
            self.done[at] = true;
            if self.seen.insert((self.done.clone(), after.clone())) && self.from(&after, depth + 1)
            {
                return true;
            }
            self.done[at] = false;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, answered: u64, input: Input, output: Output) -> Operation {
        Operation { called, answered: Some((answered, output)), input }
    }

    fn lost(called: u64, input: Input) -> Operation {
        Operation { called, answered: None, input }
    }

    use Input::{Create, Grant, Read, ReadGrant, Revoke, Rollback, Rotate};
    use Output::{Changed, Exists, Granted, Missing, NothingBefore, Seen, Version};

    #[test]
    fn what_happened_in_order_is_fine() {
        check(&[
            op(0, 1, Read, Missing),
            op(2, 3, Create, Version(1)),
            op(4, 5, Create, Exists),
            op(6, 7, Rollback, NothingBefore),
            op(8, 9, Rotate, Version(2)),
            op(10, 11, Rollback, Version(1)),
            op(12, 13, Read, Seen(1, 2)),
            op(14, 15, Rotate, Version(3)),
        ])
        .unwrap();
    }

    #[test]
    fn concurrent_operations_may_have_any_order() {
        let history = [
            op(0, 9, Create, Version(1)),
            op(1, 9, Rotate, Version(3)),
            op(2, 9, Rotate, Version(2)),
            op(3, 5, Read, Seen(1, 1)),
            op(6, 8, Read, Seen(3, 3)),
        ];
        check(&history).unwrap();
    }

    #[test]
    fn a_stale_read_a_lost_change_and_a_change_done_twice_are_found() {
        let created = op(0, 1, Create, Version(1));
        let stale = [created, op(2, 3, Rotate, Version(2)), op(4, 5, Read, Seen(1, 1))];
        let lost_change = [created, op(2, 3, Rotate, Version(2)), op(4, 5, Rotate, Version(2))];
        let twice = [created, op(2, 3, Rotate, Version(3)), op(4, 5, Read, Seen(3, 3))];
        let back = [
            created,
            op(2, 9, Rotate, Version(2)),
            op(3, 4, Read, Seen(2, 2)),
            op(5, 6, Read, Seen(1, 1)),
        ];
        for bad in [&stale[..], &lost_change, &twice, &back] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_never_answered_may_have_happened_late_or_never() {
        let created = op(0, 1, Create, Version(1));
        check(&[created, lost(2, Rotate), op(3, 4, Read, Seen(1, 1))]).unwrap();
        check(&[created, lost(2, Rotate), op(3, 4, Read, Seen(1, 1)), op(5, 6, Read, Seen(2, 2))])
            .unwrap();
        let not_yet = [created, op(2, 3, Read, Seen(2, 2)), lost(4, Rotate)];
        assert!(check(&not_yet).is_err(), "it was not asked for yet");
    }

    #[test]
    fn old_versions_are_dropped_as_the_rules_say() {
        let mut history = vec![op(0, 1, Create, Version(1))];
        for version in 2..=13 {
            let at = version * 2;
            history.push(op(at, at + 1, Rotate, Version(version)));
        }
        for (step, to) in (4..=12).rev().enumerate() {
            let at = 100 + step as u64 * 2;
            history.push(op(at, at + 1, Rollback, Version(to)));
        }
        history.push(op(200, 201, Rollback, NothingBefore));
        check(&history).unwrap();
    }

    #[test]
    fn a_stale_grant_a_lost_one_and_one_made_twice_are_found() {
        let created = op(0, 1, Create, Version(1));
        let granted = op(2, 3, Grant, Changed);
        check(&[
            op(0, 1, Grant, Missing),
            op(0, 1, ReadGrant, Granted(false)),
            op(2, 3, Create, Version(1)),
            op(4, 5, Grant, Changed),
            op(6, 7, Grant, Exists),
            op(8, 9, Rotate, Version(2)),
            op(10, 11, ReadGrant, Granted(true)),
            op(12, 13, Revoke, Changed),
            op(14, 15, Revoke, Missing),
            op(16, 17, ReadGrant, Granted(false)),
        ])
        .unwrap();
        let concurrent = [op(4, 9, Revoke, Changed), op(5, 6, ReadGrant, Granted(false))];
        check(&[&[created, granted][..], &concurrent].concat()).unwrap();
        let stale = [created, granted, op(4, 5, ReadGrant, Granted(false))];
        let after_the_end =
            [created, granted, op(4, 5, Revoke, Changed), op(6, 7, ReadGrant, Granted(true))];
        let lost_change = [created, granted, op(4, 5, Revoke, Missing)];
        let twice = [created, granted, op(4, 5, Grant, Changed)];
        let back = [
            created,
            op(2, 9, Grant, Changed),
            op(3, 4, ReadGrant, Granted(true)),
            op(5, 6, ReadGrant, Granted(false)),
        ];
        let of_nothing = [op(0, 1, Grant, Changed), op(2, 3, Read, Missing)];
        let none_asked = [created, op(2, 3, ReadGrant, Granted(true)), lost(4, Grant)];
        for bad in
            [&stale[..], &after_the_end, &lost_change, &twice, &back, &of_nothing, &none_asked]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
