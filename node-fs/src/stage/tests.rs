//! The order of counting, publishing, sweeping and dropping, without a kernel.

use keyhole_domain::{
    AssignedGrant, AssignedTask, GrantId, Revision, SecretId, TaskId, Timestamp, ValueKey, Version,
};
use keyhole_secmem::{SecretBytes, SecretFd};
use keyhole_view::{MountFacts, ShownValue};

use super::*;
use crate::value_memory;

const NOW: Timestamp = Timestamp(1);

fn task() -> TaskId {
    TaskId::from_entropy([1; 16])
}

fn key(version: u64) -> ValueKey {
    let version = Version::new(version).unwrap();
    ValueKey { secret: SecretId::from_entropy([2; 16]), version }
}

fn shown(version: u64) -> ShownValue {
    ShownValue { incarnation: 1, key: key(version) }
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
        grants: [grant].into(),
        rejected: None,
    };
    Assignment { revision: Revision { incarnation: 1, index: version }, tasks: vec![task] }
}

/// Without grace: what nobody holds goes at once.
fn stage() -> Arc<Stage> {
    stage_with(Duration::ZERO)
}

fn stage_with(grace: Duration) -> Arc<Stage> {
    let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let handles = Handles::load(memfd).unwrap();
    let values = Values::open_in(&SecretFd::create().unwrap(), value_memory::memfd(), []).unwrap();
    Stage::with_grace(View::empty(MountFacts { mounted: NOW }), handles, values, grace)
}

fn insert(stage: &Stage, version: u64) {
    let value = SecretBytes::copy_from(&mut [version as u8]).unwrap();
    stage.values().insert(shown(version), value).unwrap();
}

fn show(stage: &Stage, version: u64) -> Changes {
    insert(stage, version);
    stage.publish(&assignment(version), &BTreeSet::from([task()]), NOW)
}

fn password(stage: &Stage) -> Ino {
    stage.view().lookup(Some(task()), Ino::ROOT, b"password").unwrap().attr.ino
}

fn kept(stage: &Stage) -> Vec<u64> {
    (1..10).filter(|version| stage.values().contains(&shown(*version))).collect()
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
    assert_eq!(stage.view().readable(first), Ok(shown(1)));
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
    assert_eq!(stage.view().readable(password(&stage)), Ok(shown(1)));
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

#[test]
fn a_replaced_version_can_be_opened_for_its_grace_and_then_goes() {
    let grace = Duration::from_millis(200);
    let stage = stage_with(grace);
    show(&stage, 1);
    let first = password(&stage);
    let (session, _kernel) = session();
    stage.connect(session.notifier()).unwrap();
    assert!(stage.retired_for(first).is_none());
    let start = Instant::now();
    show(&stage, 2);
    // An open(2) that looked the name up before the rotation asks for it now.
    let seen = stage.retired_for(first).is_some() && stage.view().readable(first) == Ok(shown(1));
    assert!(seen || start.elapsed() > grace);
    while stage.view().readable(first).is_ok() || kept(&stage) != [2] {
        assert!(start.elapsed() < Duration::from_secs(10), "it goes by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(start.elapsed() >= grace && stage.retired_for(first).is_none());
}

struct Nothing;
impl fuser::Filesystem for Nothing {}

/// A session whose kernel end is a socket of ours.
fn session() -> (fuser::Session<Nothing>, std::os::fd::OwnedFd) {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let superblock = crate::mount::Superblock::create().unwrap();
    rustix::net::send(&ours, superblock.init(), SendFlags::empty()).unwrap();
    let acl = fuser::SessionACL::All;
    let session = fuser::Session::from_fd(Nothing, theirs, acl, fuser::Config::default()).unwrap();
    rustix::net::recv(&ours, &mut [0; 4096], RecvFlags::empty()).unwrap();
    (session, ours)
}

/// The next notification: its code, the inode and the offset of FUSE_NOTIFY_INVAL_INODE.
fn told(kernel: &std::os::fd::OwnedFd) -> (i32, u64, i64) {
    let mut message = [0; 64];
    let mut ready = [rustix::event::PollFd::new(kernel, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ready, Some(&limit)), Ok(1), "the kernel is told");
    assert_eq!(rustix::io::read(kernel, &mut message), Ok(40));
    let code = i32::from_ne_bytes(message[4..8].try_into().unwrap());
    let ino = u64::from_ne_bytes(message[16..24].try_into().unwrap());
    (code, ino, i64::from_ne_bytes(message[24..32].try_into().unwrap()))
}

#[test]
fn the_kernel_is_told_also_of_what_changed_before_it_was_there() {
    const INVAL_INODE: i32 = 2;
    let stage = stage();
    show(&stage, 1);
    let first = password(&stage);
    stage.hold(first).unwrap();
    show(&stage, 2);
    let second = password(&stage);
    let (session, kernel) = session();
    stage.connect(session.notifier()).unwrap();
    assert_eq!(told(&kernel), (INVAL_INODE, first.0, -1), "retired: attributes");

    let empty = Assignment { revision: Revision { incarnation: 1, index: 3 }, tasks: vec![] };
    stage.publish(&empty, &BTreeSet::new(), NOW);
    let mut revoked = [told(&kernel), told(&kernel)];
    revoked.sort_unstable();
    let mut expected = [first, second].map(|ino| (INVAL_INODE, ino.0, 0));
    expected.sort_unstable();
    assert_eq!(revoked, expected, "revoked: pages too");
    assert!(stage.connect(session.notifier()).is_err());
}
