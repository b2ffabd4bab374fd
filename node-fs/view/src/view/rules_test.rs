//! The rules one by one; `model_test` has them all together.

use std::collections::BTreeSet;
use std::time::Duration;

use keyhole_domain::{AssignedGrant, AssignedTask, GrantId, TaskId, Timestamp, ValueKey};
use sha2::Digest;

use super::fixture::{FACTS, assigned, assignment, first, grant, task, then, version};
use super::{GRACE, Listed, SET, View};
use crate::ino::Numbering;
use crate::{Denied, FOREVER, FileState, Ino, Kind, Mutation, Refusal, XattrAnswer};

fn look(view: &View, n: u8, dir: Ino, name: &str) -> Result<Ino, Denied> {
    view.lookup(Some(task(n)), dir, name.as_bytes()).map(|entry| entry.attr.ino)
}

fn names(view: &View, caller: Option<TaskId>, dir: Ino) -> Vec<String> {
    let mut names: Vec<String> =
        view.readdir(caller, dir, 0).map(|entry| entry.name.to_owned()).collect();
    names.sort();
    names
}

fn next_held(view: &View, tasks: Vec<AssignedTask>, held: &[Ino]) -> (View, super::Changes) {
    let live = tasks.iter().map(|task| task.id).collect();
    view.next(&assignment(1, tasks), &live, Timestamp(20), |ino| held.contains(&ino))
}

fn refusal(view: &View, n: u8) -> String {
    view.refusals()[&task(n)].to_string()
}

/// Two tasks of one service, and a nested target.
fn two() -> View {
    let grants = || vec![grant(1, "pw", 1), grant(2, "tls/key", 1)];
    first(vec![assigned(1, grants()), assigned(2, grants())])
}

#[test]
fn tasks_of_one_service_share_no_inode() {
    let view = two();
    for name in ["pw", "tls", SET] {
        assert_ne!(look(&view, 1, Ino::ROOT, name), look(&view, 2, Ino::ROOT, name), "{name}");
    }
    let tls = look(&view, 1, Ino::ROOT, "tls").unwrap();
    assert!(look(&view, 1, tls, "key").is_ok());
    assert_eq!(look(&view, 2, tls, "key"), Err(Denied::NoEntry));
    assert_eq!(view.opendir(Some(task(2)), tls), Err(Denied::NotYours));
    assert_eq!(names(&view, Some(task(2)), tls), [".", ".."]);
}

#[test]
fn a_caller_that_is_no_task_sees_an_empty_directory() {
    let view = two();
    for caller in [None, Some(task(9))] {
        for name in [&b"pw"[..], b"tls", b".set", b".", b"..", b"", b"\xff"] {
            assert_eq!(view.lookup(caller, Ino::ROOT, name), Err(Denied::NoEntry));
        }
        assert_eq!(view.opendir(caller, Ino::ROOT), Ok(()));
        assert_eq!(names(&view, caller, Ino::ROOT), [".", ".."]);
        let pw = look(&view, 1, Ino::ROOT, "pw").unwrap();
        assert_eq!(view.open(caller, pw, 0, || None), Err(Denied::NotYours));
        assert_eq!(view.open(caller, pw, 1, || None), Err(Denied::NotYours), "before the flags");
    }
}

#[test]
fn a_task_that_is_not_live_is_not_shown() {
    let tasks = vec![assigned(1, vec![grant(1, "pw", 1)])];
    let view = View::empty(FACTS);
    let (view, _) = view.next(&assignment(1, tasks), &BTreeSet::new(), Timestamp(1), |_| true);
    assert_eq!(look(&view, 1, Ino::ROOT, "pw"), Err(Denied::NoEntry));
}

#[test]
fn attributes_are_the_grants_and_directories_are_roots() {
    let view = two();
    let caller = Some(task(1));
    let pw = view.lookup(caller, Ino::ROOT, b"pw").unwrap();
    assert_eq!(pw.name_ttl, Duration::ZERO, "names of the caller view are never cached");
    let attr = pw.attr;
    assert_eq!((attr.size, attr.mode, attr.nlink), (1001, 0o440, 1));
    assert_eq!((attr.uid, attr.gid, attr.blocks()), (1001, 100, 2));
    assert_eq!((attr.time, attr.ttl, attr.kind), (Timestamp(10), FOREVER, Kind::File));
    let tls = view.lookup(caller, Ino::ROOT, b"tls").unwrap().attr;
    assert_eq!((tls.size, tls.mode, tls.nlink), (0, 0o555, 2));
    assert_eq!((tls.uid, tls.gid, tls.time, tls.ttl), (0, 0, Timestamp(10), Duration::ZERO));
    let root = view.attr(Ino::ROOT).unwrap();
    assert_eq!((root.nlink, root.size, root.time), (2, 0, FACTS.mounted), "also with tls/ in it");
    assert_eq!(view.attr(Ino(77)), Err(Denied::Stale));
    assert_eq!(view.attr(attr.ino), Ok(attr));
}

#[test]
fn only_reading_opens() {
    let view = two();
    let pw = look(&view, 1, Ino::ROOT, "pw").unwrap();
    let tls = look(&view, 1, Ino::ROOT, "tls").unwrap();
    let caller = Some(task(1));
    assert_eq!(view.open(caller, pw, 0, || None).unwrap().secret.as_str(), "secret1");
    for flags in [1, 2, 0o100, 0o1000, 0o2000] {
        assert_eq!(view.open(caller, pw, flags, || None), Err(Denied::ReadOnly), "{flags:o}");
    }
    assert_eq!(view.open(caller, tls, 0, || None), Err(Denied::IsADirectory));
    assert_eq!(view.open(caller, Ino::ROOT, 0, || None), Err(Denied::IsADirectory));
    assert_eq!(view.opendir(caller, pw), Err(Denied::NotADirectory));
    assert_eq!(view.open(caller, Ino(77), 0, || None), Err(Denied::Stale));
    assert_eq!(view.opendir(caller, Ino(77)), Err(Denied::Stale));
    assert_eq!(view.readable(Ino(77)), Err(Denied::Stale));
    assert_eq!(view.mutation(Mutation::Unlink), Denied::ReadOnly);
}

#[test]
fn a_rotation_retires_the_inode_and_open_files_keep_it() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let others = assigned(2, vec![grant(1, "pw", 1), grant(2, "tls/key", 1)]);
    let rotated = vec![assigned(1, vec![grant(1, "pw", 2), grant(2, "tls/key", 1)]), others];
    let (view, changes) = next_held(&old, rotated, &[pw]);
    assert!(changes.stale_names.contains(&(Ino::ROOT, "pw".into())));
    assert_eq!(changes.retired, BTreeSet::from([pw]), "the set before pins nothing by itself");
    let (view, changes) = view.sweep(|ino| ino == pw).unwrap();
    assert!(changes.is_empty());
    assert_eq!(view.open(Some(task(1)), pw, 0, || None), Err(Denied::Stale));
    assert_eq!(view.readable(pw).unwrap().key.version, version(1));
    assert_eq!(view.attr(pw).unwrap().nlink, 0);
    assert_eq!(view.attr(pw).unwrap().ttl, Duration::ZERO);
    let new = look(&view, 1, Ino::ROOT, "pw").unwrap();
    assert_ne!(new, pw);
    assert_eq!(view.attr(new).unwrap().time, Timestamp(20));
    assert!(view.sweep(|ino| ino == pw).is_none());
    let swept = view.sweep(|_| false).unwrap().0;
    assert_eq!(swept.readable(pw), Err(Denied::Stale));
    assert!(swept.file(pw).is_none());
}

#[test]
fn a_file_that_was_opened_while_the_next_view_was_made_can_be_read() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let rotated = vec![assigned(1, vec![grant(1, "pw", 2)])];
    // `held` was asked before the open was counted.
    let (view, _) = next_held(&old, rotated, &[]);
    assert!(view.readable(pw).is_ok());
}

#[test]
fn a_set_that_was_opened_while_the_next_view_was_made_is_pinned_by_the_sweep() {
    let old = two();
    let set = look(&old, 1, Ino::ROOT, SET).unwrap();
    let pw = look(&old, 1, set, "pw").unwrap();
    let (view, _) = next_held(&old, vec![assigned(1, vec![grant(1, "pw", 2)])], &[]);
    let (view, _) = view.sweep(|ino| ino == set).unwrap();
    assert_eq!(look(&view, 1, set, "pw"), Ok(pw));
    assert!(view.open(Some(task(1)), pw, 0, || None).is_ok());
}

#[test]
fn a_version_that_was_just_replaced_is_opened_by_its_own_task_to_read_and_only_for_the_grace() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let (view, _) = next_held(&old, vec![assigned(1, vec![grant(1, "pw", 2)])], &[]);
    let open = |by: u8, flags, since| view.open(Some(task(by)), pw, flags, || since).map(|f| f.ino);
    let within = Some(GRACE - Duration::from_nanos(1));
    assert_eq!(open(1, 0, within), Ok(pw));
    assert_eq!(open(1, 0, Some(GRACE)), Err(Denied::Stale));
    assert_eq!(open(1, 0, None), Err(Denied::Stale));
    assert_eq!(open(2, 0, within), Err(Denied::NotYours));
    assert_eq!(open(1, 1, within), Err(Denied::ReadOnly));
    // A revocation has no grace.
    let (view, _) = next_held(&view, vec![assigned(1, vec![grant(2, "tls/key", 2)])], &[pw]);
    assert_eq!(view.open(Some(task(1)), pw, 0, || within), Err(Denied::Stale));
}

#[test]
fn a_rollback_gives_the_old_inode_again() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let at = |v| vec![assigned(1, vec![grant(1, "pw", v), grant(2, "tls/key", 1)])];
    let (view, _) = next_held(&old, at(2), &[pw]);
    let second = look(&view, 1, Ino::ROOT, "pw").unwrap();
    let (view, _) = next_held(&view, at(1), &[pw]);
    assert_eq!(look(&view, 1, Ino::ROOT, "pw"), Ok(pw));
    assert_eq!(view.attr(pw).unwrap().time, Timestamp(10), "it was shown then");
    assert_eq!(view.attr(pw).unwrap().nlink, 1);
    assert_ne!(view.file(second).unwrap().1, FileState::Current);
}

#[test]
fn a_revoked_grant_ends_reads_of_open_files_and_other_grants_stay() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let others = look(&old, 2, Ino::ROOT, "pw").unwrap();
    let grants = || vec![grant(1, "pw", 1), grant(2, "tls/key", 1)];
    let left = vec![assigned(1, vec![grant(2, "tls/key", 1)]), assigned(2, grants())];
    let (view, changes) = next_held(&old, left, &[pw]);
    assert_eq!(changes.revoked, BTreeSet::from([pw]));
    assert_eq!(view.readable(pw), Err(Denied::Revoked));
    assert_eq!(view.open(Some(task(1)), pw, 0, || None), Err(Denied::Stale));
    assert_eq!(look(&view, 1, Ino::ROOT, "pw"), Err(Denied::NoEntry));
    assert!(view.readable(others).is_ok(), "another task's same grant is another file");
}

#[test]
fn an_ended_task_loses_everything() {
    let old = two();
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let tls = look(&old, 1, Ino::ROOT, "tls").unwrap();
    let set = look(&old, 1, Ino::ROOT, SET).unwrap();
    let (view, changes) = next_held(&old, vec![], &[pw, tls, set]);
    assert_eq!(changes.revoked.len(), 4);
    assert_eq!(view.readable(pw), Err(Denied::Revoked));
    assert_eq!(view.opendir(Some(task(1)), set), Err(Denied::Stale));
    assert_eq!(view.opendir(Some(task(1)), tls), Err(Denied::Stale));
    assert_eq!(names(&view, Some(task(1)), Ino::ROOT), [".", ".."]);
    assert!(view.values().is_empty());
}

#[test]
fn revoking_is_never_undone_by_a_newer_version() {
    let old = first(vec![assigned(1, vec![grant(1, "pw", 1)])]);
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let (view, _) = next_held(&old, vec![], &[pw]);
    let (view, _) = next_held(&view, vec![assigned(1, vec![grant(1, "pw", 2)])], &[pw]);
    assert_eq!(view.readable(pw), Err(Denied::Revoked));
}

#[test]
fn a_restored_cluster_shares_no_inode_with_the_one_before() {
    let tasks = || vec![assigned(1, vec![grant(1, "pw", 1)])];
    let old = first(tasks());
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let live = BTreeSet::from([task(1)]);
    let before = old.readable(pw).unwrap();
    let (view, changes) = old.next(&assignment(2, tasks()), &live, Timestamp(9), |ino| ino == pw);
    let now = look(&view, 1, Ino::ROOT, "pw").unwrap();
    assert_ne!(now, pw);
    assert_ne!(view.readable(now), Ok(before), "the number may mean other bytes now");
    assert_eq!(view.readable(pw), Ok(before), "it is granted, and what is open stays");
    assert!(changes.retired.contains(&pw) && changes.revoked.is_empty());
}

#[test]
fn a_grant_whose_number_is_given_again_after_a_restore_is_another_one() {
    let old = first(vec![assigned(1, vec![grant(1, "pw", 1)])]);
    let pw = look(&old, 1, Ino::ROOT, "pw").unwrap();
    let live = BTreeSet::from([task(1)]);
    let one = || grant(1, "pw", 1);
    let others = [
        AssignedGrant {
            value: ValueKey { secret: grant(2, "pw", 1).value.secret, ..one().value },
            ..one()
        },
        AssignedGrant { target: "other".parse().unwrap(), ..one() },
        AssignedGrant { uid: 0, ..one() },
        AssignedGrant { gid: 0, ..one() },
        AssignedGrant { mode: "0400".parse().unwrap(), ..one() },
    ];
    for other in others {
        let restored = assignment(2, vec![assigned(1, vec![other.clone()])]);
        let (view, changes) = old.next(&restored, &live, Timestamp(9), |_| true);
        assert_eq!(view.readable(pw), Err(Denied::Revoked), "{other:?}");
        assert!(changes.revoked.contains(&pw));
    }
}

#[test]
fn a_faulty_task_is_refused_whole_and_says_why() {
    let conflict = vec![grant(1, "pw", 1), grant(2, "tls", 1), grant(3, "tls/key", 1)];
    let mut rejected = assigned(3, vec![grant(1, "pw", 1)]);
    rejected.rejected = Some("no node label disk=ssd".to_owned());
    let view = first(vec![
        assigned(1, conflict),
        assigned(2, vec![grant(1, "pw", 1), grant(1, "pw2", 1)]),
        rejected,
        assigned(4, vec![grant(1, "pw", 1)]),
        assigned(4, vec![grant(2, "pw", 1)]),
        assigned(5, vec![grant(1, "pw", 1)]),
    ]);
    for (n, why) in [(1, "conflicts"), (2, "grant 1 twice"), (3, "disk=ssd"), (4, "lists the task")]
    {
        assert!(refusal(&view, n).contains(why), "{}", refusal(&view, n));
        assert_eq!(names(&view, Some(task(n)), Ino::ROOT), [".", ".."]);
        assert_eq!(look(&view, n, Ino::ROOT, "pw"), Err(Denied::NoEntry));
    }
    assert!(look(&view, 5, Ino::ROOT, "pw").is_ok(), "others are not hurt");
    assert_eq!(view.refusals().len(), 4);
    assert_eq!(view.tasks().collect::<Vec<_>>(), [task(5)]);
}

#[test]
fn a_file_that_changes_without_a_new_number_is_refused() {
    let changes: [fn(&mut AssignedGrant); 6] = [
        |grant| grant.size += 1,
        |grant| grant.uid += 1,
        |grant| grant.gid += 1,
        |grant| grant.mode = "0444".parse().unwrap(),
        |grant| grant.target = "other".parse().unwrap(),
        |grant| grant.value.secret = keyhole_domain::SecretId::from_entropy([9; 16]),
    ];
    for (at, change) in changes.iter().enumerate() {
        let old = first(vec![assigned(1, vec![grant(1, "pw", 1)])]);
        let mut changed = grant(1, "pw", 1);
        change(&mut changed);
        let view = then(&old, vec![assigned(1, vec![changed])]);
        let wanted = Refusal::Changed { grant: GrantId(1), version: version(1) };
        assert_eq!(view.refusals().get(&task(1)), Some(&wanted), "change {at}");
    }
}

/// Eight numbers for everything: collisions at every turn.
fn crowded() -> View {
    View { numbering: Numbering(|hash| u64::from(hash.finalize()[0] & 7)), ..View::empty(FACTS) }
}

#[test]
fn a_collision_refuses_the_newcomer_and_never_shares() {
    let mut view = crowded();
    let mut refused = 0;
    for n in 1..30 {
        let before: Vec<_> = view.tasks().collect();
        let mut tasks: Vec<_> = before.clone();
        tasks.push(task(n));
        tasks.sort();
        let plan = (1..=n)
            .filter(|n| tasks.contains(&task(*n)))
            .map(|n| assigned(n, vec![grant(1, "pw", 1)]));
        view = then(&view, plan.collect());
        let after: Vec<_> = view.tasks().collect();
        assert!(before.iter().all(|task| after.contains(task)), "who had a number keeps it");
        let inos: Vec<Ino> = after.iter().flat_map(|t| view.files(*t)).map(|f| f.ino).collect();
        assert_eq!(inos.iter().collect::<BTreeSet<_>>().len(), inos.len());
        refused += usize::from(!after.contains(&task(n)));
        if !after.contains(&task(n)) {
            assert!(refusal(&view, n).contains("inode number"));
            assert_eq!(look(&view, n, Ino::ROOT, "pw"), Err(Denied::NoEntry));
        }
    }
    assert!(refused > 20, "eight numbers cannot hold more than four tasks with their sets");
}

#[test]
fn a_number_that_a_past_file_holds_is_not_given_away() {
    // Of all pairs of tasks, those whose files collide.
    let mut met = 0;
    for (a, b) in (1..20).flat_map(|a| (20..40).map(move |b| (a, b))) {
        let one = |n| vec![assigned(n, vec![grant(1, "pw", 1)])];
        let view = then(&crowded(), one(a));
        let Ok(ino) = look(&view, a, Ino::ROOT, "pw") else {
            continue;
        };
        let alone = then(&crowded(), one(b));
        if look(&alone, b, Ino::ROOT, "pw") != Ok(ino) {
            continue;
        }
        met += 1;
        let (view, _) = next_held(&view, vec![], &[ino]);
        let (view, _) = next_held(&view, one(b), &[ino]);
        assert!(refusal(&view, b).contains("inode number"));
        assert_eq!(view.readable(ino), Err(Denied::Revoked));
        let (view, _) = next_held(&view, vec![], &[]);
        let (view, _) = next_held(&view, one(b), &[]);
        assert_eq!(look(&view, b, Ino::ROOT, "pw"), Ok(ino), "when nothing holds it, it is free");
    }
    assert!(met > 5);
}

#[test]
fn a_set_is_immutable_pinned_and_never_listed() {
    let old = two();
    let caller = Some(task(1));
    let set = look(&old, 1, Ino::ROOT, SET).unwrap();
    assert!(!names(&old, caller, Ino::ROOT).contains(&SET.to_owned()));
    let pw = look(&old, 1, set, "pw").unwrap();
    assert_eq!(Ok(pw), look(&old, 1, Ino::ROOT, "pw"), "files are shared with the caller view");
    let dir = look(&old, 1, set, "tls").unwrap();
    assert_ne!(Ok(dir), look(&old, 1, Ino::ROOT, "tls"), "directories are not");
    let at = |v| vec![assigned(1, vec![grant(1, "pw", v), grant(2, "tls/key", v)])];
    let mut view = old;
    for v in 2..5 {
        (view, _) = next_held(&view, at(v), &[set]);
        assert_ne!(look(&view, 1, Ino::ROOT, SET), Ok(set));
        assert_eq!(look(&view, 1, set, "pw"), Ok(pw));
        assert_eq!(names(&view, caller, set), [".", "..", "pw", "tls"]);
        assert_eq!(names(&view, caller, dir), [".", "..", "key"]);
        assert_eq!(view.opendir(caller, set), Ok(()));
        assert_eq!(view.open(caller, pw, 0, || None).unwrap().value.version, version(1));
        assert_eq!(view.attr(pw).unwrap().nlink, 1);
    }
    let (view, changes) = view.sweep(|_| false).unwrap();
    assert!(changes.retired.contains(&pw), "its link count is 0 now");
    assert_eq!(look(&view, 1, set, "pw"), Err(Denied::NoEntry));
    assert_eq!(view.attr(set), Err(Denied::Stale));
}

#[test]
fn a_set_has_no_file_whose_grant_was_revoked() {
    let old = two();
    let set = look(&old, 1, Ino::ROOT, SET).unwrap();
    let (view, _) = next_held(&old, vec![assigned(1, vec![grant(2, "tls/key", 2)])], &[set]);
    assert_eq!(look(&view, 1, set, "pw"), Err(Denied::NoEntry));
    assert_eq!(names(&view, Some(task(1)), set), [".", "..", "tls"]);
    let tls = look(&view, 1, set, "tls").unwrap();
    assert!(look(&view, 1, tls, "key").is_ok());
}

/// A set with a revoked file was lost when the worker changed after a sweep.
#[test]
fn regression_a_set_outlives_a_sweep_and_a_change_of_worker() {
    let old = two();
    let set = look(&old, 1, Ino::ROOT, SET).unwrap();
    let left = || vec![assigned(1, vec![grant(2, "tls/key", 1)])];
    let (view, _) = next_held(&old, left(), &[set]);
    let view = view.sweep(|ino| ino == set).map_or(view, |(view, _)| view);
    let (view, _) = next_held(&View::resume(FACTS, view.record()), left(), &[set]);
    assert!(look(&view, 1, set, "tls").is_ok());
    assert_eq!(look(&view, 1, set, "pw"), Err(Denied::NoEntry));
}

#[test]
fn the_same_files_are_the_same_set_whatever_the_revision() {
    let old = two();
    let grants = vec![grant(2, "tls/key", 1), grant(1, "pw", 1)];
    let view = then(&old, vec![assigned(1, grants)]);
    assert_eq!(look(&view, 1, Ino::ROOT, SET), look(&old, 1, Ino::ROOT, SET));
}

#[test]
fn a_listing_goes_on_where_it_was_while_others_come_and_go() {
    let files = |ids: &[u64]| {
        let grants = ids.iter().map(|id| grant(*id, &format!("name{id}"), 1)).collect();
        vec![assigned(1, grants)]
    };
    let all: Vec<u64> = (1..60).collect();
    let view = first(files(&all));
    let caller = Some(task(1));
    let entries: Vec<Listed<'_>> = view.readdir(caller, Ino::ROOT, 0).collect();
    assert_eq!((entries[0].name, entries[1].name), (".", ".."));
    assert!(entries.is_sorted_by(|a, b| a.offset < b.offset));
    let stay: Vec<u64> = (1..60).filter(|id| id % 3 != 0).collect();
    let after = then(&view, files(&stay));
    for cut in 0..entries.len() {
        let offset = entries[cut].offset;
        let mut seen: Vec<&str> = entries[..=cut].iter().map(|entry| entry.name).collect();
        seen.extend(after.readdir(caller, Ino::ROOT, offset).map(|entry| entry.name));
        for id in &stay {
            let name = format!("name{id}");
            assert_eq!(seen.iter().filter(|seen| **seen == name).count(), 1, "{name} at {cut}");
        }
    }
    assert_eq!(view.readdir(caller, Ino::ROOT, u64::MAX).count(), 0);
}

#[test]
fn xattrs_are_for_the_files_own_task() {
    let view = two();
    let pw = look(&view, 1, Ino::ROOT, "pw").unwrap();
    let tls = look(&view, 1, Ino::ROOT, "tls").unwrap();
    let own = Some(task(1));
    let get = |caller, ino, name: &str, size| view.getxattr(caller, ino, name.as_bytes(), size);
    let data = |text: &str| Ok(XattrAnswer::Data(text.as_bytes().to_vec()));
    assert_eq!(get(own, pw, "user.keyhole.version", 100), data("1"));
    assert_eq!(get(own, pw, "user.keyhole.secret", 7), data("secret1"));
    assert_eq!(get(own, pw, "user.keyhole.secret", 6), Err(Denied::ShortBuffer));
    assert_eq!(get(own, pw, "user.keyhole.secret", 0), Ok(XattrAnswer::Size(7)));
    assert_eq!(get(own, pw, "security.capability", 100), Err(Denied::NoAttribute));
    assert_eq!(get(own, tls, "user.keyhole.secret", 100), Err(Denied::NoAttribute));
    let list = "user.keyhole.secret\0user.keyhole.version\0";
    assert_eq!(view.listxattr(own, pw, 100), data(list));
    assert_eq!(view.listxattr(own, pw, 5), Err(Denied::ShortBuffer));
    assert_eq!(view.listxattr(own, tls, 100), data(""));
    for caller in [None, Some(task(2))] {
        for size in [0, 1, 100] {
            let denied = get(caller, pw, "user.keyhole.secret", size);
            assert_eq!(denied, Err(Denied::NoAttribute), "not even that the buffer is short");
        }
        assert_eq!(view.listxattr(caller, pw, 0), Ok(XattrAnswer::Size(0)));
    }
}

#[test]
fn a_task_without_grants_is_as_an_outsider() {
    let view = first(vec![assigned(1, vec![])]);
    assert_eq!(look(&view, 1, Ino::ROOT, SET), Err(Denied::NoEntry));
    assert_eq!(names(&view, Some(task(1)), Ino::ROOT), [".", ".."]);
}

#[test]
fn errnos_are_as_documented() {
    for (denied, errno) in [
        (Denied::NoEntry, 2),
        (Denied::NotYours, 13),
        (Denied::NotADirectory, 20),
        (Denied::IsADirectory, 21),
        (Denied::ReadOnly, 30),
        (Denied::ShortBuffer, 34),
        (Denied::NoAttribute, 61),
        (Denied::Stale, 116),
        (Denied::Revoked, 128),
    ] {
        assert_eq!(denied.errno(), errno, "{denied}");
    }
}

#[test]
fn a_record_that_does_not_fit_is_not_believed() {
    let mut record = two().record();
    let ino = record.files[0].0.ino;
    record.files[0].0.task = task(2);
    let view = View::resume(FACTS, record);
    assert_eq!(view.readable(ino), Err(Denied::Stale), "its number is another task's");
}
