//! Which manager a node calls, and how soon it takes one for lost.
//!
//! Pure. Invariant: each node has an order of its own, which depends on nothing but the node and the managers.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use keyhole_domain::NodeId;
use keyhole_wire::tls::Patience;

/// How long a manager may be silent if there are others: with the connection to the next one a second in all.
const QUICK: Duration = Duration::from_millis(500);
/// The same if that was too quick, or if there is no other.
const SLOW: Duration = Duration::from_secs(5);
/// A stream that ends sooner did not last: on a slow line, or at managers that have too much to do.
const LASTED: Duration = Duration::from_secs(60);

/// The cluster's own list first; what the operator gave may be out of date. Each node has an order of its own (rendezvous
/// hashing), so that nodes spread over the managers, and those of a lost one over the others.
pub(super) fn addresses(node: &NodeId, managers: &[String], configured: &[String]) -> Vec<String> {
    let mut all = managers.to_vec();
    all.sort_by_cached_key(|manager| {
        let mut hasher = DefaultHasher::new();
        (node.as_str(), manager).hash(&mut hasher);
        hasher.finish()
    });
    all.extend(configured.iter().filter(|addr| !managers.contains(addr)).cloned());
    all
}

/// The one to call after `last`, which was lost or did not answer.
pub(super) fn next<'a>(known: &'a [String], last: Option<&str>) -> Option<&'a String> {
    let at = known.iter().position(|addr| Some(addr.as_str()) == last);
    known.get(at.map_or(0, |at| (at + 1) % known.len()))
}

/// Those that the node would rather have its stream with than with `now`, best first.
pub(super) fn better<'a>(known: &'a [String], now: &str) -> &'a [String] {
    let at = known.iter().position(|addr| addr == now);
    known.get(..at.unwrap_or(known.len())).unwrap_or(known)
}

/// How long each manager may be silent. That one was lost says nothing of the others: the next one's loss is found as soon.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// By address, where it is longer than [`QUICK`].
    silence: BTreeMap<String, Duration>,
}

impl Hearing {
    /// A stream with that manager, or an attempt at one, ended after so long.
    pub(super) fn ended(&mut self, manager: &str, lasted: Duration) {
        let longer = (self.silence(manager) * 2).min(SLOW);
        self.silence.insert(manager.to_owned(), longer);
        self.lasts(manager, lasted);
    }

    /// A stream with that manager has lasted so long.
    pub(super) fn lasts(&mut self, manager: &str, lasted: Duration) {
        if lasted >= LASTED {
            self.silence.remove(manager);
        }
    }

    fn silence(&self, manager: &str) -> Duration {
        self.silence.get(manager).copied().unwrap_or(QUICK)
    }

    /// With that one of so many managers. With a single one there is nowhere to go, and nothing is gained by haste.
    pub(super) fn patience(&self, manager: &str, managers: usize) -> Patience {
        let silence = if managers > 1 { self.silence(manager) } else { SLOW };
        // Asked a little sooner than it has to answer: both together are what a loss may take.
        let ask = silence * 3 / 5;
        Patience { connect: (silence * 2).min(SLOW), ask, answer: silence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which manager each of many nodes calls first.
    fn first(managers: &[String]) -> Vec<String> {
        let nodes = (0..3_000_u128).map(|n| NodeId::from_entropy(n.to_be_bytes()));
        nodes.map(|node| addresses(&node, managers, &[])[0].clone()).collect()
    }

    #[test]
    fn nodes_spread_over_managers_and_those_of_a_lost_one_over_the_others() {
        let managers = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let before = first(&managers);
        let mut counts = BTreeMap::new();
        before.iter().for_each(|to| *counts.entry(to).or_insert(0) += 1);
        assert!(counts.values().all(|nodes| (900..1_100).contains(nodes)), "{counts:?}");
        let after = first(&managers[1..]);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        let to_b = moved.clone().filter(|(_, after)| **after == "b:1").count();
        assert!(moved.clone().all(|(before, _)| before == "a:1"), "others stay where they are");
        assert!((400..600).contains(&to_b) && moved.count() > 900, "{to_b}");
    }

    #[test]
    fn what_the_operator_gave_comes_last_and_once() {
        let node = NodeId::from_entropy([7; 16]);
        let known = ["b:1", "a:1"].map(str::to_owned);
        let given = ["a:1", "old:1"].map(str::to_owned);
        let all = addresses(&node, &known, &given);
        assert_eq!((all.len(), all[2].as_str()), (3, "old:1"));
        assert_eq!(addresses(&node, &[], &given), given, "as he gave them");
    }

    #[test]
    fn a_lost_manager_is_not_the_next_one_unless_it_is_alone() {
        let known = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let next = |known, last| next(known, last).map(String::as_str);
        assert_eq!(next(&known, None), Some("a:1"));
        assert_eq!(next(&known, Some("a:1")), Some("b:1"));
        assert_eq!(next(&known, Some("c:1")), Some("a:1"));
        assert_eq!(next(&known, Some("gone:1")), Some("a:1"));
        assert_eq!(next(&known[..1], Some("a:1")), Some("a:1"));
        assert_eq!(next(&[], Some("a:1")), None);
    }

    #[test]
    fn a_node_prefers_the_managers_before_its_own() {
        let known = ["a:1", "b:1", "c:1"].map(str::to_owned);
        assert_eq!(better(&known, "a:1"), &known[..0]);
        assert_eq!(better(&known, "c:1"), &known[..2]);
        assert_eq!(better(&known, "gone:1"), &known[..], "one that is no manager any more");
    }

    #[test]
    fn a_lost_manager_is_left_within_a_second_unless_that_was_too_soon() {
        let mut hearing = Hearing::default();
        let patience = hearing.patience("a:1", 3);
        assert!(patience.ask + patience.answer <= Duration::from_millis(800));
        assert_eq!(hearing.patience("a:1", 1).answer, SLOW, "there is no other");
        for wanted in [1_000, 2_000, 4_000, 5_000, 5_000] {
            hearing.ended("a:1", Duration::from_secs(59));
            let patience = hearing.patience("a:1", 3);
            assert_eq!(patience.answer, Duration::from_millis(wanted));
            assert!(patience.connect <= SLOW);
        }
        hearing.lasts("a:1", Duration::from_secs(59));
        assert_eq!(hearing.patience("a:1", 2).answer, SLOW);
        hearing.lasts("a:1", LASTED);
        assert_eq!(hearing.patience("a:1", 2).answer, QUICK);
        hearing.ended("a:1", LASTED);
        assert_eq!(hearing.patience("a:1", 2).answer, QUICK, "it was lost, but had lasted");
    }

    #[test]
    fn a_second_manager_is_left_as_soon_as_the_first() {
        let mut hearing = Hearing::default();
        hearing.ended("a:1", Duration::from_secs(3));
        assert_eq!(hearing.patience("b:1", 3).answer, QUICK);
        hearing.ended("b:1", Duration::from_secs(3));
        hearing.lasts("c:1", LASTED);
        let slower = ["a:1", "b:1"].map(|addr| hearing.patience(addr, 3).answer);
        assert_eq!(slower, [QUICK * 2; 2], "each until a stream with it lasts");
    }
}
