//! What one worker leaves to the next, whenever it is killed.

use std::collections::BTreeSet;

use keyhole_domain::{
    AssignedGrant, AssignedTask, Assignment, FileMode, GrantId, Revision, TaskId,
};
use keyhole_domain::{SecretId, Timestamp, ValueKey, Version};
use keyhole_secmem::SecretFd;
use keyhole_view::cgroup::CgroupId;
use keyhole_view::{MountFacts, ShownValue, View};

use super::*;
use crate::registry::Task;
use crate::value_memory::Place;

fn name(secret: u8, version: u64) -> ValueKey {
    let version = Version::new(version).unwrap();
    ValueKey { secret: SecretId::from_entropy([secret; 16]), version }
}

fn key() -> SecretFd {
    SecretFd::create().unwrap()
}

fn open(file: &File, key: &SecretFd) -> (StateMemory, Result<Option<SavedState>, StateError>) {
    StateMemory::open(file.try_clone().unwrap(), key.map().unwrap())
}

fn memory() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    File::from(rustix::fs::memfd_create("keyhole-state-test", flags).unwrap())
}

/// A state with `n` tasks, whose services' names have `n` KiB.
fn state(n: u8) -> SavedState {
    let key = |n| name(n, 1);
    let grant = |n: u8| AssignedGrant {
        id: GrantId(n.into()),
        value: key(n),
        size: u32::from(n) * 1024,
        name: "pw".parse().unwrap(),
        target: "tls/pw".parse().unwrap(),
        uid: 1,
        gid: 2,
        mode: FileMode::new(0o440).unwrap(),
    };
    let task = |n: u8| TaskId::from_entropy([n; 16]);
    let assigned = |n: u8| AssignedTask {
        id: task(n),
        service: "web".parse().unwrap(),
        grants: [grant(n)].into(),
        rejected: (n == 2).then(|| "no".to_owned()),
    };
    let assignment = Assignment {
        revision: Revision { incarnation: 1, index: n.into() },
        tasks: (1..=n).map(assigned).collect(),
    };
    let live: BTreeSet<TaskId> = (1..=n).map(task).collect();
    let mounted = Timestamp(77);
    let view = View::empty(MountFacts { mounted });
    let (view, _) = view.next(&assignment, &live, Timestamp(78), |_| false);
    let value = |n: u8| {
        let shown = ShownValue { incarnation: n.into(), key: key(n) };
        (shown, Place { offset: u64::from(n) << 40, length: n.into() })
    };
    let registered = |n: u8| Task {
        id: task(n),
        service: "web".repeat(usize::from(n) * 350),
        cgroup: CgroupId(n.into()),
        path: format!("/cg/{n}").into(),
        own: n.is_multiple_of(2),
        since: Timestamp(n.into()),
    };
    SavedState {
        assignment,
        values: (1..=n).map(value).collect(),
        registered: (1..=n).map(registered).collect(),
        record: view.record(),
        mounted,
        at: Timestamp(79),
        worker_starts: 3,
    }
}

fn load(file: &File, run: &SecretFd) -> Option<SavedState> {
    open(file, run).1.unwrap()
}

#[test]
fn the_next_worker_finds_an_equal_state() {
    let (file, run) = (memory(), key());
    assert_eq!(load(&file, &run), None);
    let (mut memory, _) = open(&file, &run);
    for n in [3, 1, 9, 0, 4] {
        let state = state(n);
        memory.save(&state).unwrap();
        assert_eq!(load(&file, &run), Some(state));
    }
}

#[test]
fn a_worker_killed_at_any_moment_leaves_the_old_state_or_the_new_one() {
    let run = key();
    for (first, second) in [(2, 5), (5, 2), (4, 4)] {
        let (first, second) = (state(first), state(second));
        let fresh = || {
            let file = memory();
            let (mut memory, _) = open(&file, &run);
            // Both sides of the memory have been used.
            memory.save(&second).unwrap();
            memory.save(&first).unwrap();
            (file, memory)
        };
        let steps = fresh().1.plan(second.encode(0)).unwrap().1;
        for done in 0..=steps.len() {
            for written in [0, 1, 4095, 4096, 5000] {
                let (file, memory) = fresh();
                let record = second.encode(0);
                let (_, steps) = memory.plan(record).unwrap();
                let (before, after) = steps.split_at(done);
                for step in before {
                    apply(&file, step).unwrap();
                }
                if let Some(Step::Record(at, bytes)) = after.first() {
                    let part = bytes.get(..written).unwrap_or(bytes);
                    apply(&file, &Step::Record(*at, part.to_vec())).unwrap();
                }
                let current = before.iter().any(|step| matches!(step, Step::Header(_)));
                let wanted = if current { &second } else { &first };
                assert_eq!(load(&file, &run).as_ref(), Some(wanted), "killed after {done} steps");
                // And the worker after that goes on from there.
                let (mut next, _) = open(&file, &run);
                next.save(&second).unwrap();
                assert_eq!(load(&file, &run).as_ref(), Some(&second));
            }
        }
    }
}

#[test]
fn a_changed_bit_is_noticed_wherever_it_is() {
    let (file, run) = (memory(), key());
    let (mut memory, _) = open(&file, &run);
    memory.save(&state(1)).unwrap();
    let length = file.metadata().unwrap().len();
    for at in (0..HEADER_LEN as u64).chain([START, START + 7, length - 1]) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let (_, found) = open(&file, &run);
        assert!(found.is_err(), "byte {at}");
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(load(&file, &run).is_some());
    let (_, found) = open(&file, &key());
    assert!(matches!(found, Err(StateError::Sealed(_))), "another run's key");
}

#[test]
fn a_state_of_another_format_is_named_and_replaced() {
    let (file, run) = (memory(), key());
    let (mut memory, _) = open(&file, &run);
    memory.save(&state(1)).unwrap();
    file.write_all_at(&9_u64.to_le_bytes(), 8).unwrap();
    let (mut memory, found) = open(&file, &run);
    assert!(found.unwrap_err().to_string().contains("format 9"));
    let state = state(2);
    memory.save(&state).unwrap();
    assert_eq!(load(&file, &run), Some(state));
}

#[test]
fn the_memory_does_not_grow_with_the_number_of_changes() {
    let (file, run) = (memory(), key());
    let (mut memory, _) = open(&file, &run);
    let (small, large) = (state(3), state(6));
    for n in 0..200 {
        memory.save(if n % 3 == 0 { &large } else { &small }).unwrap();
    }
    let record = large.encode(0).len() as u64;
    assert!(file.metadata().unwrap().len() < 4 * record + 5 * 4096);
    let in_memory = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
    assert!(in_memory < record + 3 * 4096, "the old record's memory was given back");
}
