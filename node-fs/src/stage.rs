//! What is shown now: the current view, its values and handles, and how each becomes the next.
//!
//! Keeps the order that `keyhole-view` asks for: a handle is counted before the view is asked; one
//! view is in place before the next is made; after each comes a sweep. Then the kernel is told.
//! Invariant: when [`Stage::publish`] returns, no new open sees what it took away, and no page of
//! it is left in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use fuser::{INodeNo, Notifier};
use keyhole_domain::{Assignment, TaskId, Timestamp, ValueKey};
use keyhole_view::{Changes, FileState, GRACE, Ino, ShownValue, View};

use crate::handles::Handles;
use crate::values::{SealedInMemory, Values};

/// The one stage of a worker, shared by the filesystem and by whoever brings assignments.
#[derive(Debug)]
pub struct Stage {
    view: ArcSwap<View>,
    /// One maker of views at a time.
    making: Mutex<()>,
    handles: Handles,
    values: Values,
    kernel: OnceLock<Notifier>,
    sweep_wanted: OnceLock<SyncSender<()>>,
    /// What changed before there was a kernel to tell.
    untold: Mutex<Changes>,
    /// What was replaced within the grace, and when.
    just_retired: Mutex<BTreeMap<Ino, Instant>>,
    grace: Duration,
}

impl Stage {
    /// Shows `view` to begin with: the empty one, or what an earlier worker left.
    pub fn new(view: View, handles: Handles, values: Values) -> Arc<Self> {
        Self::with_grace(view, handles, values, GRACE)
    }

    fn with_grace(view: View, handles: Handles, values: Values, grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::from_pointee(view),
            making: Mutex::default(),
            handles,
            values,
            kernel: OnceLock::new(),
            sweep_wanted: OnceLock::new(),
            untold: Mutex::default(),
            just_retired: Mutex::default(),
            grace,
        })
    }

    /// Connects the stage to the kernel and starts the thread that lets go of what nobody holds
    /// any more. To be called once, before the session runs.
    pub fn connect(self: &Arc<Self>, kernel: Notifier) -> io::Result<()> {
        // One waiting wish is enough: a sweep looks at everything.
        let (sender, wishes) = sync_channel(1);
        // The first one tells the kernel what changed before; it may wait for the session to run.
        let _first = sender.try_send(());
        if self.kernel.set(kernel).is_err() || self.sweep_wanted.set(sender).is_err() {
            return Err(io::Error::other("the stage is connected already"));
        }
        let stage = Arc::downgrade(self);
        let sweeper = move || sweep_on_demand(&wishes, &stage);
        std::thread::Builder::new().name("sweeper".to_owned()).spawn(sweeper)?;
        Ok(())
    }

    /// The view now. It may be replaced at any moment; what it answered stays true of it.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The values, for inserting those of the next assignment before it is published; only the
    /// thread that publishes may insert.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Shows an assignment to the tasks that are `live` from now on. `now` is the time of files that
    /// are new. Never to be called from a service thread: the kernel waits for reads in flight.
    pub fn publish(
        &self,
        assignment: &Assignment,
        live: &BTreeSet<TaskId>,
        now: Timestamp,
    ) -> Changes {
        self.publish_with([], assignment, live, now)
    }

    /// [`Stage::publish`] with values that come with the assignment: kept first, so that no sweep in
    /// between takes them for unused.
    pub fn publish_with(
        &self,
        values: impl IntoIterator<Item = (ValueKey, SealedInMemory)>,
        assignment: &Assignment,
        live: &BTreeSet<TaskId>,
        now: Timestamp,
    ) -> Changes {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in values {
            let incarnation = assignment.revision.incarnation;
            self.values.insert_sealed(ShownValue { incarnation, key }, value);
        }
        let (next, mut changes) = self.view().next(assignment, live, now, |ino| self.is_kept(ino));
        self.start_grace(&changes.retired);
        self.view.store(Arc::new(next));
        if let Some((_, swept)) = self.sweep_in_place() {
            merge(&mut changes, swept);
        }
        // The changes are marked in the view; now the kernel and the values follow.
        self.tell_kernel(&changes);
        // Assigned values stay although their task may not be live yet.
        let mut wanted = self.view().values();
        let incarnation = assignment.revision.incarnation;
        let assigned = assignment.values().into_iter();
        wanted.extend(assigned.map(|key| ShownValue { incarnation, key }));
        self.values.retain(|shown| wanted.contains(shown));
        changes
    }

    fn sweep(&self) {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let untold = std::mem::take(&mut *self.untold());
        self.tell_kernel(&untold);
        self.just_retired().retain(|_, since| since.elapsed() < self.grace);
        let Some((before, changes)) = self.sweep_in_place() else { return };
        self.tell_kernel(&changes);
        // Only what was shown: those of the next assignment may be coming in right now.
        let (shown, wanted) = (before.values(), self.view().values());
        self.values.retain(|value| wanted.contains(value) || !shown.contains(value));
    }

    /// The view before, and what changed, if anything did.
    fn sweep_in_place(&self) -> Option<(Arc<View>, Changes)> {
        let before = self.view.load_full();
        let (next, changes) = before.sweep(|ino| self.is_kept(ino))?;
        self.view.store(Arc::new(next));
        Some((before, changes))
    }

    /// Names are not invalidated: the kernel keeps none (timeout 0), and doing so would unmount what
    /// a task has bound over one.
    fn tell_kernel(&self, changes: &Changes) {
        let Some(kernel) = self.kernel.get() else {
            return merge(&mut self.untold(), changes.clone());
        };
        // From offset 0 to the end: all pages. A negative offset: attributes only.
        let pages = changes.revoked.iter().map(|ino| (ino, 0));
        let attributes = changes.retired.iter().map(|ino| (ino, -1));
        for (ino, offset) in pages.chain(attributes) {
            if let Err(error) = kernel.inval_inode(INodeNo(ino.0), offset, 0) {
                tracing::error!(%ino, %error, "the kernel keeps what it should drop");
            }
        }
    }

    fn untold(&self) -> MutexGuard<'_, Changes> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago a newer version took a file's name, while the grace of that lasts.
    pub(crate) fn retired_for(&self, ino: Ino) -> Option<Duration> {
        let time = self.just_retired().get(&ino)?.elapsed();
        (time < self.grace).then_some(time)
    }

    fn is_kept(&self, ino: Ino) -> bool {
        self.handles.held(ino) || self.retired_for(ino).is_some()
    }

    fn start_grace(&self, retired: &BTreeSet<Ino>) {
        if retired.is_empty() || self.grace.is_zero() {
            return;
        }
        let now = Instant::now();
        self.just_retired().extend(retired.iter().map(|ino| (*ino, now)));
        self.want_sweep();
    }

    /// When the next file's grace ends, if one has any.
    fn grace_left(&self) -> Option<Duration> {
        let oldest = self.just_retired().values().min().copied()?;
        Some(self.grace.saturating_sub(oldest.elapsed()))
    }

    fn just_retired(&self) -> MutexGuard<'_, BTreeMap<Ino, Instant>> {
        self.just_retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want_sweep(&self) {
        if let Some(wanted) = self.sweep_wanted.get() {
            // Full: a sweep that has not begun yet will see this too.
            let _already_wanted = wanted.try_send(());
        }
    }

    /// Counts a reference of the kernel; to be undone with [`Stage::release`].
    pub(crate) fn hold(&self, ino: Ino) -> io::Result<()> {
        self.handles.add(ino)
    }

    /// Counts references less. When the last one goes, what only they kept is let go of.
    pub(crate) fn release(&self, ino: Ino, count: u64) {
        if self.handles.remove(ino, count) && self.is_past(ino) {
            self.want_sweep();
        }
    }

    /// Whether an inode can be here only because it was held. (A current directory counts, too: the
    /// sweep finds nothing then.)
    fn is_past(&self, ino: Ino) -> bool {
        let view = self.view();
        match view.file(ino) {
            Some((_, state)) => state != FileState::Current,
            None => ino != Ino::ROOT && view.attr(ino).is_ok(),
        }
    }
}

/// Sweeps when somebody wishes and when a grace ends.
fn sweep_on_demand(wishes: &Receiver<()>, stage: &Weak<Stage>) {
    let mut grace_left = None;
    loop {
        let wish = match grace_left {
            Some(limit) => wishes.recv_timeout(limit),
            None => wishes.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let Some(stage) = stage.upgrade().filter(|_| wish != Err(RecvTimeoutError::Disconnected))
        else {
            return;
        };
        stage.sweep();
        grace_left = stage.grace_left();
    }
}

fn merge(changes: &mut Changes, more: Changes) {
    changes.retired.extend(more.retired);
    changes.revoked.extend(more.revoked);
    changes.stale_names.extend(more.stale_names);
    // What was revoked in the second step loses its pages, not its attributes alone.
    let revoked = &changes.revoked;
    changes.retired.retain(|ino| !revoked.contains(ino));
}

#[cfg(test)]
mod tests;
