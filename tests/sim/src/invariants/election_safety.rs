//! Election Safety: at most one leader can be elected in a given term (figure 3). It rests on votes that are on disk
//! before they are given (section 5.2), so a vote that is on disk never changes but for a later term's, or when the term's
//! leader is known: openraft writes down, as a vote that is committed, whom a manager follows.
//!
//! Invariant: it remembers each term's leader and each manager's last vote for ever.

use std::collections::BTreeMap;

use keyhole_proto::v1;

/// Who led, and who voted for whom.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    leaders: BTreeMap<u64, u64>,
    /// Each manager's last vote: the term, whether that one leads, and who it is.
    votes: BTreeMap<u64, (u64, bool, u64)>,
}

impl Terms {
    pub(crate) fn leads(&mut self, member: u64, term: u64) -> Result<(), String> {
        match *self.leaders.entry(term).or_insert(member) {
            leader if leader == member => Ok(()),
            other => {
                Err(format!("election safety: m{other} and m{member} both lead in term {term}"))
            }
        }
    }

    /// `vote` is on the manager's disk.
    pub(crate) fn voted(&mut self, member: u64, vote: &v1::Vote) -> Result<(), String> {
        let (term, leader) = vote.leader.map_or((0, 0), |leader| (leader.term, leader.member));
        let vote = (term, vote.committed, leader);
        let before = self.votes.insert(member, vote).unwrap_or_default();
        // Ordered by term, then by whether it is committed.
        match before == vote || (before.0, before.1) < (vote.0, vote.1) {
            true => Ok(()),
            false => Err(format!(
                "election safety: m{member} voted for m{} in term {}, and then for m{leader} in term {term}",
                before.2, before.0
            )),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.leaders.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_has_one_leader() {
        let mut terms = Terms::default();
        terms.leads(1, 4).unwrap();
        terms.leads(2, 5).unwrap();
        terms.leads(1, 4).unwrap();
        assert!(terms.leads(2, 4).is_err());
    }

    #[test]
    fn a_vote_is_never_taken_back() {
        let vote = |term, member, committed| v1::Vote {
            leader: Some(v1::LeaderRef { term, member }),
            committed,
        };
        let mut terms = Terms::default();
        terms.voted(1, &vote(4, 1, false)).unwrap();
        terms.voted(1, &vote(4, 1, false)).unwrap();
        terms.voted(1, &vote(4, 2, true)).unwrap();
        assert!(terms.voted(1, &vote(4, 3, true)).is_err(), "another leader in the same term");
        let mut terms = Terms::default();
        terms.voted(1, &vote(4, 2, false)).unwrap();
        assert!(terms.voted(1, &vote(4, 3, false)).is_err(), "another one in the same term");
        let mut terms = Terms::default();
        terms.voted(1, &vote(4, 2, true)).unwrap();
        assert!(terms.voted(1, &vote(4, 2, false)).is_err(), "it was forgotten who leads");
        assert!(terms.voted(1, &v1::Vote::default()).is_err(), "it was lost");
    }
}
