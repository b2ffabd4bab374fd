//! What all hosts of a simulation share, and what the one who watches it sees.
//!
//! Invariant: nothing here changes what a manager does; hosts learn of each other by the network only.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use keyhole_domain::AssignmentDelta;
use keyhole_manager::raft::RaftHandle;
use keyhole_manager::store::Store;

use crate::dice::Dice;
use crate::disk::SimDisk;
use crate::invariants::Watch;

/// A manager that runs.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) replica: RaftHandle,
    pub(crate) store: Arc<Store>,
}

/// What a manager is told to do by whoever runs the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take another manager in.
    Join(u64),
    /// Give a manager a vote.
    Promote(u64),
    /// Take a manager's vote.
    Demote(u64),
    /// Take a manager out.
    Remove(u64),
    /// Let another one lead.
    HandOver,
    /// Write something: the cluster works again.
    Prove,
}

/// How much was done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) written: u64,
    pub(crate) rejected: u64,
    pub(crate) undone: u64,
    pub(crate) unknown: u64,
    pub(crate) read: u64,
    pub(crate) unread: u64,
    pub(crate) shown: u64,
    pub(crate) refused: u64,
    pub(crate) kills: u64,
    pub(crate) power_losses: u64,
    pub(crate) cuts: u64,
    pub(crate) leaders: u64,
    pub(crate) snapshots: u64,
}

/// A hash of all that happened, in order.
#[derive(Default)]
pub(crate) struct Trace(DefaultHasher);

impl Trace {
    pub(crate) fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.finish()
    }
}

/// The shared part.
pub(crate) struct Inner {
    pub(crate) disks: BTreeMap<u64, SimDisk>,
    pub(crate) running: BTreeMap<u64, Running>,
    /// Who has begun how often.
    lives: BTreeMap<u64, u64>,
    pub(crate) orders: BTreeMap<u64, VecDeque<Order>>,
    /// Disks that take long.
    pub(crate) slow: BTreeMap<u64, bool>,
    /// Deltas on their way to nodes; what travels is their number.
    pub(crate) letters: BTreeMap<u64, AssignmentDelta>,
    pub(crate) next_letter: u64,
    /// Numbers of secrets that were asked for.
    pub(crate) next_secret: u64,
    /// Marks of values that were asked for.
    pub(crate) next_mark: u64,
    /// Whether the clients rest.
    pub(crate) quiet: bool,
    /// Managers that have proven that they work.
    pub(crate) proven: BTreeMap<u64, u64>,
    pub(crate) watch: Watch,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    /// The first thing that must not be, and when it was seen.
    pub(crate) broken: Option<String>,
}

/// The world. Clones are the same one.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) seed: u64,
    inner: Arc<Mutex<Inner>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            inner: Arc::new(Mutex::new(Inner {
                disks: BTreeMap::new(),
                running: BTreeMap::new(),
                lives: BTreeMap::new(),
                orders: BTreeMap::new(),
                slow: BTreeMap::new(),
                letters: BTreeMap::new(),
                next_letter: 1,
                next_secret: 1,
                next_mark: 1,
                quiet: false,
                proven: BTreeMap::new(),
                watch: Watch::default(),
                trace: Trace::default(),
                counts: Counts::default(),
                broken: None,
            })),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Dice for the next life of the host with this number.
    pub(crate) fn begin_life(&self, host: u64) -> Dice {
        let mut inner = self.lock();
        let life = inner.lives.entry(host).or_default();
        *life += 1;
        Dice::for_number(self.seed, host * 1_000_000 + *life)
    }

    /// Notes what must not be.
    pub(crate) fn broken(&self, what: String) {
        self.lock().broken.get_or_insert(what);
    }
}

impl Inner {
    /// Notes the first breach.
    pub(crate) fn check(&mut self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.broken.get_or_insert(what);
        }
    }
}
