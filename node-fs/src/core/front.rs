//! The core's face to the service threads: one snapshot to answer from, and the counts of what is held.
//!
//! Invariant: a snapshot is complete in itself (view, values and tasks of one moment), so that a
//! reader who loads it once never meets a view without its values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use arc_swap::{ArcSwap, Guard};
use keyhole_domain::{TaskId, ValueKey};
use keyhole_view::cgroup::CgroupId;
use keyhole_view::{FileState, Ino, View};

use super::{Event, Held, SealedValue};

/// Sealed values by name.
pub type Values = BTreeMap<ValueKey, SealedValue>;

/// All that answers come from, as of one moment.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What each task sees.
    pub view: View,
    /// The values of the view's files, sealed.
    pub values: Arc<Values>,
    /// The live tasks by cgroup; [`nearest`](keyhole_view::cgroup::nearest) finds a caller's.
    pub tasks: Arc<BTreeMap<CgroupId, TaskId>>,
    /// The services of the live tasks, as they were asked for.
    pub services: Arc<BTreeMap<TaskId, String>>,
}

/// What the service threads work with.
#[derive(Debug)]
pub struct Front {
    shown: ArcSwap<Shown>,
    held: Held,
    core: Sender<Event>,
    /// Whether the core was told already that something was given back.
    told: AtomicBool,
}

impl Front {
    pub(super) fn new(shown: Shown, held: Held, core: Sender<Event>) -> Self {
        Self { shown: ArcSwap::from_pointee(shown), held, core, told: AtomicBool::new(false) }
    }

    /// The snapshot of now; load it once for each request.
    pub fn load(&self) -> Guard<Arc<Shown>> {
        self.shown.load()
    }

    /// The snapshot of now, to keep for longer.
    pub fn load_full(&self) -> Arc<Shown> {
        self.shown.load_full()
    }

    /// Counts a handle (or a reference to a directory), *before* the view is asked for it.
    pub fn hold(&self, ino: Ino) {
        self.held.hold(ino);
    }

    /// Gives back what [`Front::hold`] counted: at RELEASE, at FORGET of a directory with its count, and
    /// when the view denied it.
    pub fn release(&self, ino: Ino, n: u64) {
        if self.held.release(ino, n) {
            self.gone(ino);
        }
    }

    /// FORGET of any inode. For a directory, [`Front::release`] too.
    pub fn forget(&self, ino: Ino) {
        if self.held.forget(ino) {
            self.gone(ino);
        }
    }

    /// Whether anything may refer to the inode.
    pub fn is_held(&self, ino: Ino) -> bool {
        self.held.is_held(ino)
    }

    pub(super) fn publish(&self, shown: Shown) {
        self.shown.store(Arc::new(shown));
    }

    /// To be called by the core before it sweeps: what is given back from now on is told again.
    pub(super) fn listen_again(&self) {
        self.told.store(false, Ordering::SeqCst);
    }

    fn gone(&self, ino: Ino) {
        // A current file stays whoever holds it.
        let current = matches!(self.load().view.file(ino), Some((_, FileState::Current)));
        if !current && !self.told.swap(true, Ordering::SeqCst) {
            // Nobody listens only when the worker ends.
            let _ended = self.core.send(Event::GivenBack);
        }
    }
}
