//! The order of counting, publishing, sweeping and dropping, without a kernel.

use keyhole_domain::{
    AssignedGrant, AssignedTask, GrantId, Revision, SecretId, TaskId, Timestamp, ValueKey, Version,
};
use keyhole_secmem::{SecretBytes, SecretFd};
use keyhole_view::MountFacts;

use super::*;

const NOW: Timestamp = Timestamp(1);

fn task() -> TaskId {
    TaskId::from_entropy([1; 16])
}

fn key(version: u64) -> ValueKey {
    let version = Version::new(version).unwrap();
    ValueKey { secret: SecretId::from_entropy([2; 16]), version }
}

fn assignment(version: u64) -> Assignment {
    let grant = AssignedGrant {
        id: GrantId(1),
        value: key(version),
        size: 1,
        name: "password".parse().unwrap(),
        target: "password".parse().unwrap(),
        uid: 0,
        gid: 0,
        mode: "0444".parse().unwrap(),
    };
    let task = AssignedTask {
        id: task(),
        service: "web".parse().unwrap(),
        grants: vec![grant],
        rejected: None,
    };
    Assignment { revision: Revision { incarnation: 1, index: version }, tasks: vec![task] }
}

fn stage() -> Arc<Stage> {
    let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let handles = Handles::load(memfd).unwrap();
    let values = Values::new(&SecretFd::create().unwrap()).unwrap();
    Stage::new(View::empty(MountFacts { mounted: NOW }), handles, values)
}

fn insert(stage: &Stage, version: u64) {
    let value = SecretBytes::copy_from(&mut [version as u8]).unwrap();
    stage.values().insert(key(version), value).unwrap();
}

fn show(stage: &Stage, version: u64) -> Changes {
    insert(stage, version);
    stage.publish(&assignment(version), &BTreeSet::from([task()]), NOW)
}

fn password(stage: &Stage) -> Ino {
    stage.view().lookup(Some(task()), Ino::ROOT, b"password").unwrap().attr.ino
}

fn kept(stage: &Stage) -> Vec<u64> {
    (1..10).filter(|version| stage.values().contains(&key(*version))).collect()
}

#[test]
fn an_open_version_is_kept_and_goes_with_its_last_handle() {
    let stage = stage();
    show(&stage, 1);
    let first = password(&stage);
    stage.hold(first).unwrap();
    stage.hold(first).unwrap();
    let changes = show(&stage, 2);
    assert_eq!(changes.retired, BTreeSet::from([first]));
    assert_eq!(stage.view().readable(first), Ok(key(1)));
    stage.release(first, 1);
    stage.sweep();
    assert_eq!(kept(&stage), [1, 2]);
    stage.release(first, 1);
    stage.sweep();
    assert_eq!(kept(&stage), [2]);
    assert!(stage.view().readable(first).is_err());
}

#[test]
fn a_sweep_leaves_values_that_are_just_arriving() {
    let stage = stage();
    show(&stage, 1);
    let first = password(&stage);
    stage.hold(first).unwrap();
    show(&stage, 2);
    insert(&stage, 3);
    stage.release(first, 1);
    stage.sweep();
    assert_eq!(kept(&stage), [2, 3], "3 is about to be published");
}

#[test]
fn a_revoked_file_is_unreadable_at_once_although_it_is_open() {
    let stage = stage();
    show(&stage, 1);
    let first = password(&stage);
    stage.hold(first).unwrap();
    let empty = Assignment { revision: Revision { incarnation: 1, index: 2 }, tasks: vec![] };
    let changes = stage.publish(&empty, &BTreeSet::new(), NOW);
    assert_eq!(changes.revoked, BTreeSet::from([first]));
    assert_eq!(stage.view().readable(first), Err(keyhole_view::Denied::Revoked));
    assert!(kept(&stage).is_empty());
}

#[test]
fn values_of_a_task_that_is_not_live_yet_stay() {
    let stage = stage();
    insert(&stage, 1);
    stage.publish(&assignment(1), &BTreeSet::new(), NOW);
    assert_eq!(kept(&stage), [1]);
    stage.publish(&assignment(1), &BTreeSet::from([task()]), NOW);
    assert_eq!(stage.view().readable(password(&stage)), Ok(key(1)));
}

#[test]
fn the_last_handle_of_an_old_version_wakes_the_sweeper_and_others_do_not() {
    let stage = stage();
    let (sender, wishes) = sync_channel(1);
    stage.sweep_wanted.set(sender).unwrap();
    show(&stage, 1);
    let first = password(&stage);
    stage.hold(first).unwrap();
    stage.release(first, 1);
    assert!(wishes.try_recv().is_err(), "it is current: nothing to let go of");
    stage.hold(first).unwrap();
    show(&stage, 2);
    stage.release(first, 1);
    wishes.try_recv().unwrap();
    stage.release(Ino::ROOT, 1);
    assert!(wishes.try_recv().is_err());
}
