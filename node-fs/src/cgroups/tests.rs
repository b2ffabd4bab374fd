//! Ids, ancestors, own cgroups and refusals, in the machine's real hierarchy.

use keyhole_domain::TaskId;
use keyhole_view::cgroup;

use super::testing::{Sleeper, scratch};
use super::*;

#[test]
fn the_lineage_is_read_by_id_and_ends_below_the_root() {
    let scratch = scratch();
    let parent = scratch.create("parent");
    let nested = parent.path().join("nested");
    std::fs::create_dir(&nested).unwrap();
    let nested_id = scratch.root.id_of(&nested).unwrap();
    let folder_id = scratch.root.id_of(scratch.path()).unwrap();
    assert_eq!(&scratch.root.lineage(nested_id).unwrap()[..], &[nested_id, parent.id(), folder_id]);
    assert_eq!(scratch.root.path_of(nested_id).as_deref(), Some(nested.as_path()));
    assert!(scratch.root.lineage(scratch.root.id()).unwrap().is_empty());
    std::fs::remove_dir(&nested).unwrap();
    assert!(scratch.root.lineage(nested_id).is_none());
    assert!(scratch.root.path_of(nested_id).is_none());
}

#[test]
fn removing_takes_empty_nested_cgroups_along_but_never_a_process() {
    let scratch = scratch();
    let cgroup = scratch.create("task");
    let nested = cgroup.path().join("a/b");
    std::fs::create_dir_all(&nested).unwrap();
    let sleeper = Sleeper::inside(&nested);
    assert!(cgroup.remove().is_err());
    assert!(nested.exists());
    drop(sleeper);
    cgroup.remove().unwrap();
    assert!(!cgroup.path().exists());
    cgroup.remove().unwrap();
}

#[test]
fn a_cgroup_of_an_earlier_process_is_found_again_only_under_its_id() {
    let scratch = scratch();
    let cgroup = scratch.create("task");
    assert!(scratch.cgroups.reopen("task", cgroup.id()).is_some());
    assert!(scratch.cgroups.reopen("task", CgroupId(1)).is_none());
    cgroup.remove().unwrap();
    assert!(scratch.cgroups.reopen("task", cgroup.id()).is_none());
}

#[test]
fn names_with_more_than_one_plain_part_are_refused() {
    let scratch = scratch();
    for name in ["", "..", "a/b", "/a", "."] {
        assert!(scratch.cgroups.create(name).is_err(), "{name:?}");
    }
    for name in ["", "/", "../x", "a/../.."] {
        let folder = TaskCgroups::open(scratch.root.clone(), Path::new(name), false);
        assert!(folder.is_err(), "{name:?}");
    }
}

#[test]
fn root_and_whatever_holds_the_node_or_a_task_is_not_adopted() {
    let scratch = scratch();
    let outer = scratch.create("outer");
    let task_path = outer.path().join("task");
    std::fs::create_dir(&task_path).unwrap();
    let task = scratch.root.id_of(&task_path).unwrap();
    let adopt =
        |path: &Path, tasks: &[(TaskId, CgroupId)]| scratch.root.adopt(path, tasks, &[], false);
    let refusal = |path: &Path, tasks: &[(TaskId, CgroupId)]| match adopt(path, tasks) {
        Err(AdoptError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };

    assert_eq!(refusal(scratch.root.path(), &[]), cgroup::AdoptError::Root);
    assert!(matches!(
        adopt(Path::new("/proc"), &[]),
        Err(AdoptError::Cgroup(CgroupError::NotACgroup { .. }))
    ));
    let known = (TaskId::from_entropy([1; 16]), task);
    assert!(matches!(refusal(outer.path(), &[known]), cgroup::AdoptError::HoldsTask { .. }));
    assert!(matches!(refusal(&task_path, &[known]), cgroup::AdoptError::IsTask { .. }));
    let adopted = adopt(outer.path(), &[]).unwrap();
    assert_eq!((adopted.id, adopted.directory.as_path()), (outer.id(), outer.path()));
    // Inside another task's cgroup is allowed: the nearest registered ancestor decides.
    let around = (TaskId::from_entropy([2; 16]), outer.id());
    assert_eq!(adopt(&task_path, &[around]).unwrap().id, task);
}

#[test]
fn the_cgroup_the_node_is_in_is_refused() {
    let scratch = scratch();
    let own = scratch.root.directory_of(&scratch.root.of_process("self").unwrap());
    let refused = scratch.root.adopt(&own, &[], &[], true);
    assert!(matches!(
        refused,
        Err(AdoptError::Refused(cgroup::AdoptError::Root | cgroup::AdoptError::HoldsNode { .. }))
    ));
}

#[test]
fn a_cgroup_below_a_delegated_one_needs_consent() {
    let scratch = scratch();
    let delegated = scratch.create("user");
    let below = delegated.path().join("app");
    std::fs::create_dir(&below).unwrap();
    let procs = delegated.path().join("cgroup.procs");
    std::os::unix::fs::chown(&procs, Some(1000), None).unwrap();
    let is_delegated = |error: AdoptError| match error {
        AdoptError::Refused(cgroup::AdoptError::Delegated { uid, .. }) => uid == 1000,
        _ => false,
    };

    assert!(is_delegated(scratch.root.adopt(&below, &[], &[], false).unwrap_err()));
    scratch.root.adopt(&below, &[], &[], true).unwrap();
    // Its own file being delegated lets nobody in from outside.
    scratch.root.adopt(delegated.path(), &[], &[], false).unwrap();

    let relative = delegated.path().strip_prefix(scratch.root.path()).unwrap().to_owned();
    let folder = TaskCgroups::open(scratch.root.clone(), &relative, false);
    assert!(is_delegated(folder.unwrap_err()));
    TaskCgroups::open(scratch.root.clone(), &relative, true).unwrap();
}

#[test]
fn proc_lines_that_cannot_be_judged_are_no_cgroup() {
    let path = |text: &[u8]| unified_path(text).map(|path| path.to_string());
    assert_eq!(path(b"4:memory:/\xff\n0::/a/b c\n").as_deref(), Some("/a/b c"));
    assert_eq!(path(b"0::/\n").as_deref(), Some("/"));
    assert_eq!(path(b"0::/../other\n"), None);
    assert_eq!(path(b"0::/a (deleted)\n"), None);
    assert_eq!(path(b"0::/a\xff\n"), None);
    assert_eq!(path(b"4:memory:/x\n"), None);
}
