//! What callers see after each change, and after the worker that made it died.

use std::fs::File;
use std::os::fd::OwnedFd;

use keyhole_domain::{AssignedGrant, AssignedTask, FileMode, GrantId, SecretId, Version};
use keyhole_secmem::{SecretBytes, SecretFd};
use keyhole_view::cgroup::CgroupId;
use keyhole_view::{FileState, Ino, MountFacts, ShownValue};

use super::*;
use crate::caller::IdentitySource;
use crate::cgroups::CgroupRoot;
use crate::handles::Handles;
use crate::values::Values;

/// What outlives a worker.
struct Estate {
    state: OwnedFd,
    handles: OwnedFd,
    values: OwnedFd,
    key: SecretFd,
    folder: tempfile::TempDir,
}

fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("keyhole-core-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

impl Estate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretFd::create().unwrap();
        Self { state: memfd(), handles: memfd(), values: memfd(), key, folder }
    }

    /// A worker that takes over, as worker.rs does it.
    fn worker(&self) -> (Core, CoreHandle) {
        let state = File::from(self.state.try_clone().unwrap());
        let (memory, found) = StateMemory::open(state, self.key.map().unwrap());
        let saved = found.unwrap().unwrap_or_default();
        let tasks = saved.registered.clone();
        let registry = Registry::resume(self.folder.path(), "boot".to_owned(), tasks);
        let values = File::from(self.values.try_clone().unwrap());
        let held = saved.values.iter().map(|(key, place)| (*key, *place));
        let values = Values::open_in(&self.key, values, held).unwrap();
        let view = View::resume(MountFacts { mounted: saved.mounted }, saved.record.clone());
        let handles = Handles::load(self.handles.try_clone().unwrap()).unwrap();
        let stage = Stage::new(view, handles, values);
        let root = Arc::new(CgroupRoot::find().unwrap());
        let callers = Arc::new(Callers::new(root, IdentitySource::Auto));
        Core::resume(CoreStart { saved, memory, registry, stage, callers })
    }
}

fn task(n: u8) -> Task {
    Task {
        id: TaskId::from_entropy([n; 16]),
        service: "web".to_owned(),
        cgroup: CgroupId(n.into()),
        path: "/cg".into(),
        own: true,
        since: Timestamp(1),
    }
}

fn key(version: u64) -> ValueKey {
    let version = Version::new(version).unwrap();
    ValueKey { secret: SecretId::from_entropy([9; 16]), version }
}

fn shown(version: u64) -> ShownValue {
    ShownValue { incarnation: 1, key: key(version) }
}

fn at(incarnation: u64, index: u64) -> Revision {
    Revision { incarnation, index }
}

/// Task `n` has one file, at this version of one secret.
fn assigned(n: u8, version: u64, size: usize) -> AssignedTask {
    let grant = AssignedGrant {
        id: GrantId(n.into()),
        value: key(version),
        size: size.try_into().unwrap(),
        name: "pw".parse().unwrap(),
        target: "pw".parse().unwrap(),
        uid: 0,
        gid: 0,
        mode: FileMode::DEFAULT,
    };
    let id = task(n).id;
    AssignedTask { id, service: "web".parse().unwrap(), grants: [grant].into(), rejected: None }
}

fn change(core: &CoreHandle, revision: Revision, version: u64, bytes: &[u8]) -> Change {
    let plain = SecretBytes::copy_from(&mut bytes.to_vec()).unwrap();
    let sealed = core.stage().values().seal(key(version), plain).unwrap();
    let tasks = vec![assigned(1, version, bytes.len())];
    Change { assignment: Assignment { revision, tasks }, values: vec![(key(version), sealed)] }
}

/// The file that the task finds under its name.
fn file(core: &CoreHandle, n: u8) -> Option<Ino> {
    core.stage().view().files(task(n).id).next().map(|file| file.ino)
}

/// What a reader of the inode gets.
fn read(core: &CoreHandle, ino: Ino) -> Option<Vec<u8>> {
    let key = core.stage().view().readable(ino).ok()?;
    Some(core.stage().values().open(&key).unwrap().part(0, u32::MAX).to_vec())
}

fn register(core: &mut Core, n: u8) {
    let (done, mut answer) = oneshot::channel();
    core.step(Event::Registered(task(n), done));
    answer.try_recv().unwrap().unwrap();
}

#[test]
fn a_task_sees_its_files_when_it_is_both_registered_and_assigned() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"one")));
    assert_eq!(file(&handle, 1), None, "assigned only");
    register(&mut core, 1);
    let ino = file(&handle, 1).unwrap();
    assert_eq!(read(&handle, ino).unwrap(), b"one");
    assert_eq!(handle.revision(), at(1, 3));
    let (done, mut answer) = oneshot::channel();
    core.step(Event::Ended(task(1).id, done));
    assert_eq!(answer.try_recv().unwrap(), Some(task(1)));
    assert_eq!((file(&handle, 1), read(&handle, ino)), (None, None));
}

#[test]
fn the_values_of_an_ended_task_stay_only_as_long_as_a_change_may_build_on_them() {
    for by_change in [true, false] {
        let estate = Estate::new();
        let (mut core, handle) = estate.worker();
        register(&mut core, 1);
        core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"one")));
        core.step(Event::Ended(task(1).id, oneshot::channel().0));
        if by_change {
            // The managers, who have not heard of the end yet, give another task the same secret, and send no value.
            register(&mut core, 2);
            let tasks = vec![assigned(1, 1, 3), assigned(2, 1, 3)];
            let assignment = Assignment { revision: at(1, 4), tasks };
            core.step(Event::Assigned(Change { assignment, values: Vec::new() }));
            let ino = file(&handle, 2).unwrap();
            assert_eq!(read(&handle, ino).unwrap(), b"one");
            let assignment = Assignment { revision: at(1, 5), tasks: Vec::new() };
            core.step(Event::Assigned(Change { assignment, values: Vec::new() }));
        } else {
            core.step(Event::Detached);
        }
        assert!(!handle.stage().values().contains(&shown(1)));
    }
}

#[test]
fn the_memory_of_values_that_are_gone_is_given_back_with_the_next_state() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    let memory = File::from(estate.values.try_clone().unwrap());
    let kept = || std::os::unix::fs::MetadataExt::blocks(&memory.metadata().unwrap()) * 512;
    register(&mut core, 1);
    for version in 1..=20 {
        let value = vec![b'x'; 50_000];
        core.step(Event::Assigned(change(&handle, at(1, version), version, &value)));
    }
    assert!(kept() >= 50_000);
    core.step(Event::Ended(task(1).id, oneshot::channel().0));
    core.step(Event::Detached);
    assert!(!handle.stage().values().contains(&shown(20)));
    core.tidy();
    assert_eq!(kept(), 0);
    // A change that never came to be named by a state leaves nothing either.
    drop(change(&handle, at(1, 21), 21, &[b'x'; 50_000]));
    assert!(kept() >= 50_000);
    core.tidy();
    assert_eq!(kept(), 0);
}

#[test]
fn the_next_worker_shows_the_same_inodes_and_open_files_go_on() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    register(&mut core, 1);
    core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"one")));
    let old = file(&handle, 1).unwrap();
    handle.stage().hold(old).unwrap();
    core.step(Event::Assigned(change(&handle, at(1, 4), 2, b"second")));
    let new = file(&handle, 1).unwrap();
    core.tidy();
    let attr = handle.stage().view().attr(new).unwrap();
    drop((core, handle));
    let (_core, handle) = estate.worker();
    assert_eq!(file(&handle, 1), Some(new));
    assert_eq!(handle.stage().view().attr(new).unwrap(), attr);
    assert_eq!(read(&handle, new).unwrap(), b"second");
    assert_eq!(read(&handle, old).unwrap(), b"one", "it is still open");
    assert_eq!(handle.revision(), at(1, 4));
    handle.stage().release(old, 1);
    drop(handle);
    let (mut core, handle) = estate.worker();
    core.tidy();
    assert_eq!(read(&handle, old), None, "closed, and gone");
}

#[test]
fn a_worker_killed_between_leaving_a_change_and_showing_it_is_followed_by_one_that_shows_it() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    register(&mut core, 1);
    core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"one")));
    let old = file(&handle, 1).unwrap();
    handle.stage().hold(old).unwrap();
    // What `show` does first; then the kill.
    let change = change(&handle, at(1, 4), 2, b"second");
    core.assignment = change.assignment.clone();
    assert!(core.save(Timestamp(777), &change.values));
    let estate_after_kill = estate;
    // What the killed one would have shown.
    core.show_at(Timestamp(777), change.values);
    let shown = file(&handle, 1).unwrap();
    let attr = handle.stage().view().attr(shown).unwrap();
    drop((core, handle));
    let (_core, handle) = estate_after_kill.worker();
    assert_eq!(file(&handle, 1), Some(shown));
    assert_eq!(handle.stage().view().attr(shown).unwrap(), attr, "the times too");
    assert_eq!(read(&handle, shown).unwrap(), b"second");
    assert_eq!(read(&handle, old).unwrap(), b"one");
}

#[test]
fn what_was_revoked_stays_revoked_for_the_next_worker() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    register(&mut core, 1);
    core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"one")));
    let ino = file(&handle, 1).unwrap();
    handle.stage().hold(ino).unwrap();
    let revoked = Assignment { revision: at(1, 4), tasks: Vec::new() };
    core.step(Event::Assigned(Change { assignment: revoked, values: Vec::new() }));
    assert_eq!(read(&handle, ino), None);
    drop((core, handle));
    let (_core, handle) = estate.worker();
    assert_eq!(read(&handle, ino), None);
    let view = handle.stage().view();
    assert!(matches!(view.file(ino), Some((_, FileState::Revoked))));
}

#[test]
fn another_incarnations_version_is_another_value() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    register(&mut core, 1);
    core.step(Event::Assigned(change(&handle, at(1, 3), 1, b"before")));
    let before = file(&handle, 1).unwrap();
    handle.stage().hold(before).unwrap();
    // The same version again within the incarnation: the first bytes stay.
    core.step(Event::Assigned(change(&handle, at(1, 4), 1, b"forged")));
    assert_eq!(read(&handle, before).unwrap(), b"before");
    // After a restore the same number means other bytes, under another inode.
    core.step(Event::Assigned(change(&handle, at(2, 1), 1, b"after!")));
    let after = file(&handle, 1).unwrap();
    assert_ne!(before, after);
    assert_eq!(read(&handle, after).unwrap(), b"after!");
    assert_eq!(
        read(&handle, before).unwrap(),
        b"before",
        "the old inode never shows the new bytes"
    );
    let left = handle.stage().values().places();
    assert_eq!(left.len(), 2, "both, while the old one is open");
    // The next worker can tell them apart.
    drop((core, handle));
    let (_core, handle) = estate.worker();
    assert_eq!(read(&handle, before).unwrap(), b"before");
    assert_eq!(handle.stage().values().places().len(), 2);
}

#[tokio::test]
async fn waiting_for_a_task_ends_with_its_files_or_with_the_reason() {
    let estate = Estate::new();
    let (core, handle) = estate.worker();
    core.start().unwrap();
    handle.register(task(1)).await.unwrap().unwrap();
    let (waiter, id) = (handle.clone(), task(1).id);
    let waiting = tokio::spawn(async move { waiter.settled(id).await });
    handle.assign(change(&handle, at(1, 3), 1, b"one")).unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(Ok(())));
    assert_eq!(handle.shown(None).await, Ok(at(1, 3)));
    let mut refused = assigned(1, 1, 3);
    refused.grants = [].into();
    refused.rejected = Some("not here".to_owned());
    let assignment = Assignment { revision: at(1, 4), tasks: vec![refused] };
    handle.assign(Change { assignment, values: Vec::new() }).unwrap();
    assert_eq!(handle.shown(Some(at(1, 3))).await, Ok(at(1, 4)));
    let refusal = handle.settled(id).await.unwrap().unwrap_err();
    assert!(refusal.to_string().contains("not here"));
}

#[test]
fn changes_that_wait_are_shown_as_one_and_overtake_nothing_else() {
    let estate = Estate::new();
    let (mut core, handle) = estate.worker();
    register(&mut core, 1);
    let assign = |revision, version, bytes: &[u8]| {
        handle.assign(change(&handle, revision, version, bytes)).unwrap();
    };
    let shown = || (handle.revision(), file(&handle, 1).and_then(|ino| read(&handle, ino)));
    let mut step = || {
        let event = core.next().unwrap();
        core.step(event);
    };
    assign(at(1, 3), 1, b"one");
    assign(at(1, 4), 2, b"two");
    assign(at(1, 5), 3, b"three");
    step();
    assert_eq!(shown(), (at(1, 5), Some(b"three".to_vec())));
    assert!(!handle.stage().values().contains(&self::shown(1)), "it was never shown");
    // What the same version means in another incarnation is not what it meant before.
    assign(at(1, 6), 4, b"four");
    assign(at(2, 1), 4, b"restored");
    step();
    assert_eq!(shown(), (at(1, 6), Some(b"four".to_vec())));
    step();
    assert_eq!(shown(), (at(2, 1), Some(b"restored".to_vec())));
    // A task that ends between two changes is not in the second one.
    let (done, mut ended) = oneshot::channel();
    assign(at(2, 2), 5, b"five");
    handle.events.send(Event::Ended(task(1).id, done)).unwrap();
    assign(at(2, 3), 6, b"six");
    step();
    assert_eq!(shown(), (at(2, 2), Some(b"five".to_vec())));
    assert!(ended.try_recv().is_err());
    step();
    assert_eq!((shown().1, ended.try_recv().unwrap()), (None, Some(task(1))));
    step();
    assert_eq!(shown(), (at(2, 3), None));
}
