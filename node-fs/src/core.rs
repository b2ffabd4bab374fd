//! The worker's single writer: every change of what callers see happens on one thread, in one order.
//!
//! For each change: leave it to the next worker (state memory), then let the stage compute and publish
//! the next view and tell the kernel, then wake who waits for it. The state is written ahead: it has the
//! new assignment beside the record of the view before, from which the next worker computes the same
//! view. Depends on the stage, the registry and the state memory. Invariant: a worker killed at any
//! moment is followed by one that shows the view before the change, or the one after it.

pub(crate) mod records;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyhole_domain::{Assignment, Revision, TaskId, Timestamp, ValueKey};
use keyhole_view::{Refusal, ShownValue, View};
use tokio::sync::{oneshot, watch};

pub use records::RecordError;

use crate::caller::Callers;
use crate::registry::{Registry, RegistryError, Task};
use crate::stage::Stage;
use crate::state_memfd::{SavedState, SavedValues, StateMemory};
use crate::values::SealedInMemory;

/// How soon the state memory follows a sweep, which drops values that nobody can read any more.
const TIDY: Duration = Duration::from_secs(1);

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A complete change of what the managers assign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All that the node has from now on.
    pub assignment: Assignment,
    /// The values that came with it.
    pub values: Vec<(ValueKey, SealedInMemory)>,
}

impl Change {
    /// Both in one: the newer assignment, and whichever values of the two it names. A complete assignment says nothing
    /// about the one before, so nobody misses what was never shown.
    fn followed_by(self, newer: Self) -> Self {
        let named = newer.assignment.values();
        let mut values: BTreeMap<ValueKey, SealedInMemory> = self.values.into_iter().collect();
        values.extend(newer.values);
        values.retain(|key, _| named.contains(key));
        Self { assignment: newer.assignment, values: values.into_iter().collect() }
    }

    fn is_of(&self, incarnation: u64) -> bool {
        self.assignment.revision.incarnation == incarnation
    }
}

/// What happens to the core.
#[derive(Debug)]
enum Event {
    /// The managers said something.
    Assigned(Change),
    /// A task is there.
    Registered(Task, oneshot::Sender<Result<(), RegistryError>>),
    /// A task is gone; answered when it sees nothing any more.
    Ended(TaskId, oneshot::Sender<Option<Task>>),
    /// No change follows from the last one any more; the next is complete.
    Detached,
}

/// The core is gone, which happens only when the worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this worker is ending; ask again")]
pub struct Ending;

/// What is published now, for those who wait.
#[derive(Debug, Clone, Default)]
struct Published {
    /// Which view.
    revision: Revision,
    /// The live tasks, in the order of their ids.
    tasks: Arc<Vec<Task>>,
}

/// The way to the core, for all other parts. Clones share it.
#[derive(Debug, Clone)]
pub struct CoreHandle {
    events: Sender<Event>,
    stage: Arc<Stage>,
    published: watch::Receiver<Published>,
}

impl CoreHandle {
    /// What callers see.
    pub fn stage(&self) -> &Arc<Stage> {
        &self.stage
    }

    /// Takes a change up; [`CoreHandle::shown`] says when it is shown.
    pub fn assign(&self, change: Change) -> Result<(), Ending> {
        self.events.send(Event::Assigned(change)).map_err(|_| Ending)
    }

    /// Nothing builds on the last change any more: values of tasks that are not here are let go of.
    pub fn detach(&self) {
        // Refused only when the worker ends, and the values with it.
        let _ending = self.events.send(Event::Detached);
    }

    /// Registers a task: from now on its cgroup's processes are its own.
    pub async fn register(&self, task: Task) -> Result<Result<(), RegistryError>, Ending> {
        let (done, answer) = oneshot::channel();
        self.events.send(Event::Registered(task, done)).map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }

    /// Ends a task: when this returns, it sees nothing any more. `None` if there was no such task.
    pub async fn end(&self, task: TaskId) -> Result<Option<Task>, Ending> {
        let (done, answer) = oneshot::channel();
        self.events.send(Event::Ended(task, done)).map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }

    /// The live tasks, in the order of their ids.
    pub fn tasks(&self) -> Arc<Vec<Task>> {
        self.published.borrow().tasks.clone()
    }

    /// The revision that callers see, and of which the kernel was told.
    pub fn revision(&self) -> Revision {
        self.published.borrow().revision
    }

    /// Waits until another revision than `than` is shown.
    pub async fn shown(&self, than: Option<Revision>) -> Result<Revision, Ending> {
        let mut published = self.published.clone();
        let other = |now: &Published| Some(now.revision) != than;
        published.wait_for(other).await.map(|now| now.revision).map_err(|_| Ending)
    }

    /// Waits until the task is shown, or refused with the reason.
    pub async fn settled(&self, task: TaskId) -> Result<Result<(), Refusal>, Ending> {
        let mut published = self.published.clone();
        loop {
            published.borrow_and_update();
            if let Some(standing) = standing(&self.stage.view(), task) {
                return Ok(standing);
            }
            published.changed().await.map_err(|_| Ending)?;
        }
    }
}

/// Whether a task is shown, or why not; `None` while its files are on their way.
pub fn standing(view: &View, task: TaskId) -> Option<Result<(), Refusal>> {
    match view.refusals().get(&task) {
        Some(refusal) => Some(Err(refusal.clone())),
        None => view.tasks().any(|shown| shown == task).then_some(Ok(())),
    }
}

/// What a worker starts with.
#[derive(Debug)]
pub struct CoreStart {
    /// What the last worker left; the default if there was none.
    pub saved: SavedState,
    /// Where to leave it to the next one.
    pub memory: StateMemory,
    /// The live tasks.
    pub registry: Registry,
    /// What callers see: already the view of `saved`, with its values.
    pub stage: Arc<Stage>,
    /// Who callers are.
    pub callers: Arc<Callers>,
}

/// The single writer.
#[derive(Debug)]
pub struct Core {
    stage: Arc<Stage>,
    callers: Arc<Callers>,
    assignment: Assignment,
    registry: Registry,
    memory: StateMemory,
    mounted: Timestamp,
    worker_starts: u64,
    refused: BTreeMap<TaskId, Refusal>,
    events: Receiver<Event>,
    /// Taken out of `events` too early.
    waiting: Option<Event>,
    published: watch::Sender<Published>,
    /// The view that the state memory has; `None` while it is behind.
    saved: Option<Arc<View>>,
}

impl Core {
    /// Takes the state up: when this returns, all that the last worker showed can be served. Nothing
    /// changes it until [`Core::start`].
    pub fn resume(start: CoreStart) -> (Self, CoreHandle) {
        let CoreStart { saved, memory, registry, stage, callers } = start;
        let (events, receiver) = channel();
        let (published, published_out) = watch::channel(Published::default());
        let handle = CoreHandle { events, stage: stage.clone(), published: published_out };
        let at = if saved.at == Timestamp::default() { now() } else { saved.at };
        let mut core = Self {
            stage,
            callers,
            assignment: saved.assignment,
            registry,
            memory,
            mounted: saved.mounted,
            worker_starts: saved.worker_starts,
            refused: BTreeMap::new(),
            events: receiver,
            waiting: None,
            published,
            saved: None,
        };
        // With the time that the last worker had: it may have shown this view already.
        core.show_at(at, Vec::new());
        (core, handle)
    }

    /// Begins to take changes, on a thread of its own.
    pub fn start(self) -> io::Result<()> {
        std::thread::Builder::new().name("core".to_owned()).spawn(move || self.run())?;
        Ok(())
    }

    /// Until nobody can send anything any more.
    fn run(mut self) {
        while let Some(event) = self.next() {
            self.step(event);
        }
    }

    /// The next event; when there is none, the state memory is brought up to what is shown.
    fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.waiting.take() {
            return Some(event);
        }
        match self.events.try_recv() {
            Ok(event) => return Some(event),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        loop {
            self.tidy();
            match self.events.recv_timeout(TIDY) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Assigned(change) => {
                let change = self.newest(change);
                self.assign(change);
            }
            Event::Registered(task, done) => {
                let added = self.registry.add(task);
                self.show(Vec::new());
                // Who asked may have given up; then the end of the task will be seen.
                drop(done.send(added));
            }
            Event::Ended(task, done) => {
                let ended = self.registry.remove(task);
                self.show(Vec::new());
                drop(done.send(ended));
            }
            Event::Detached => {
                let before = self.assignment.tasks.len();
                self.assignment.tasks.retain(|task| self.registry.get(task.id).is_some());
                if self.assignment.tasks.len() != before {
                    self.show(Vec::new());
                }
            }
        }
    }

    /// Changes that came while the last one was made count as one: under rotations that are faster than this node, callers
    /// are one change behind, never a queue of them.
    fn newest(&mut self, mut change: Change) -> Change {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Assigned(newer) if newer.is_of(change.assignment.revision.incarnation) => {
                    change = change.followed_by(newer);
                }
                other => {
                    self.waiting = Some(other);
                    break;
                }
            }
        }
        change
    }

    /// All assigned values are kept, also those of a task that has just ended: the next change counts on them. It comes at
    /// once, for the managers are told of the end; and if they cannot be, [`CoreHandle::detach`] lets go of them.
    ///
    /// A version's bytes never change within an incarnation: what is held already stays. In another one the same names may
    /// mean other bytes: they are other values, in other files, and take the names in one step.
    fn assign(&mut self, change: Change) {
        let Change { assignment, mut values } = change;
        let incarnation = assignment.revision.incarnation;
        let held = |key| self.stage.values().contains(&ShownValue { incarnation, key });
        values.retain(|(key, _)| !held(*key));
        self.assignment = assignment;
        self.show(values);
    }

    fn show(&mut self, values: Vec<(ValueKey, SealedInMemory)>) {
        self.show_at(now(), values);
    }

    /// Shows what is assigned and registered now; `at` becomes the time of new files.
    fn show_at(&mut self, at: Timestamp, values: Vec<(ValueKey, SealedInMemory)>) {
        self.saved = None;
        self.save(at, &values);
        let live = self.registry.ids();
        self.callers.register(self.registry.by_cgroup());
        self.stage.publish_with(values, &self.assignment, &live, at);
        self.log_refusals();
        let tasks = Arc::new(self.registry.iter().cloned().collect());
        self.published.send_replace(Published { revision: self.assignment.revision, tasks });
    }

    fn log_refusals(&mut self) {
        let refused = self.stage.view().refusals().clone();
        for (task, refusal) in &refused {
            if self.refused.get(task) != Some(refusal) {
                tracing::warn!(%task, %refusal, "the task sees nothing");
            }
        }
        self.refused = refused;
    }

    fn tidy(&mut self) {
        let shown = self.stage.view().clone();
        let saved = self.saved.as_ref().is_some_and(|saved| Arc::ptr_eq(saved, &shown));
        let tidy = saved && !self.stage.values().memory().has_dropped();
        if !tidy && self.save(now(), &[]) {
            self.saved = Some(shown);
        }
    }

    /// Leaves what is assigned and shown now to the next worker; whether it could.
    fn save(&mut self, at: Timestamp, arriving: &[(ValueKey, SealedInMemory)]) -> bool {
        let view = self.stage.view().clone();
        let memory = self.stage.values().memory();
        let dropped = memory.take_dropped();
        let mut values: SavedValues = self.stage.values().places().into_iter().collect();
        let incarnation = self.assignment.revision.incarnation;
        let named = |key| ShownValue { incarnation, key };
        values.extend(arriving.iter().map(|(key, value)| (named(*key), value.place())));
        let state = SavedState {
            assignment: self.assignment.clone(),
            values,
            registered: self.registry.iter().cloned().collect(),
            record: view.record(),
            mounted: self.mounted,
            at,
            worker_starts: self.worker_starts,
        };
        // A right that ends must end now, also if the next worker hears of it only from a manager.
        if let Err(error) = self.memory.save(&state) {
            tracing::error!(%error, "a new worker would start behind");
            memory.put_back(dropped);
            return false;
        }
        if let Err(error) = memory.reclaim(dropped) {
            tracing::error!(%error, "cannot give memory of values back");
        }
        true
    }
}

#[cfg(test)]
mod tests;
