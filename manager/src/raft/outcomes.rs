//! What became of the commands that were applied last, and what can be said of one whose answer was lost.
//!
//! Pure. Invariant: nobody is told that a command was discarded which is applied, or may come to be: every manager applies
//! the same entries in the same order, and entries of a term never come after those of a later one.
use super::types::Answer;
use crate::store::Position;
use std::collections::{HashMap, VecDeque};

/// So many commands may be on their way from one manager through another one.
const KEPT: usize = 4096;

/// What is looked for: a command that was sent to the leader of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Its proposal.
    pub(super) proposal: u64,
    /// It is in the log in this term, or never.
    pub(super) term: u64,
    /// What was applied here before it was sent.
    pub(super) after: u64,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was applied at this index.
    Applied(u64, Answer),
    /// It is in the log of nobody who counts, and will not be.
    Discarded,
    /// It may still come.
    Pending,
    /// It may have been applied, and what came of it is not known any more.
    Forgotten,
}

/// The outcomes of the last entries that nobody on this manager was waiting for.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// By proposal, with the index.
    kept: HashMap<u64, (u64, Answer)>,
    /// Index and proposal, in order.
    order: VecDeque<(u64, u64)>,
    last: Position,
    forgotten: u64,
}

impl Outcomes {
    /// Of what was applied up to `index` nothing is known.
    pub(super) fn since(index: u64) -> Self {
        let (kept, order) = (HashMap::new(), VecDeque::new());
        Self { kept, order, last: Position::default(), forgotten: index }
    }

    /// An entry was applied, perhaps with an outcome that somebody may ask for.
    pub(super) fn applied(&mut self, at: Position, outcome: Option<(u64, Answer)>) {
        self.last = at;
        let Some((proposal, answer)) = outcome else { return };
        if self.order.len() == KEPT
            && let Some((index, oldest)) = self.order.pop_front()
        {
            self.kept.remove(&oldest);
            self.forgotten = index;
        }
        self.kept.insert(proposal, (at.index, answer));
        self.order.push_back((at.index, proposal));
    }

    /// What became of a command, as far as can be told by now.
    pub(super) fn fate(&self, sent: Sent) -> Fate {
        if let Some((index, answer)) = self.kept.get(&sent.proposal) {
            return Fate::Applied(*index, answer.clone());
        }
        match (self.forgotten > sent.after, self.last.term > sent.term) {
            (true, _) => Fate::Forgotten,
            (false, true) => Fate::Discarded,
            (false, false) => Fate::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyhole_state::Rejected;

    const SENT: Sent = Sent { proposal: 7, term: 2, after: 10 };

    fn answer() -> Answer {
        Err(Rejected::NotInitialised)
    }

    fn at(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    #[test]
    fn a_command_is_pending_until_it_or_a_later_term_is_applied() {
        let mut outcomes = Outcomes::since(10);
        assert_eq!(outcomes.fate(SENT), Fate::Pending);
        outcomes.applied(at(2, 11), Some((8, answer())));
        outcomes.applied(at(2, 12), None);
        assert_eq!(outcomes.fate(SENT), Fate::Pending, "others of its term say nothing of it");
        let mut found = Outcomes::since(10);
        found.applied(at(2, 11), Some((7, answer())));
        found.applied(at(3, 12), None);
        assert_eq!(found.fate(SENT), Fate::Applied(11, answer()), "also once its term is over");
        outcomes.applied(at(3, 13), None);
        assert_eq!(outcomes.fate(SENT), Fate::Discarded);
    }

    #[test]
    fn what_is_not_known_is_not_said_to_be_discarded() {
        let mut outcomes = Outcomes::since(11);
        outcomes.applied(at(3, 12), None);
        assert_eq!(outcomes.fate(SENT), Fate::Forgotten, "a snapshot covers 11");
        let mut outcomes = Outcomes::since(10);
        for index in 0..=KEPT as u64 {
            outcomes.applied(at(2, 11 + index), Some((100 + index, answer())));
        }
        outcomes.applied(at(3, 9999), None);
        assert_eq!(outcomes.fate(SENT), Fate::Forgotten, "there were too many");
        let later = Sent { after: 11, ..SENT };
        assert_eq!(outcomes.fate(later), Fate::Discarded);
    }
}
