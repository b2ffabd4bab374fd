//! Which cgroups can become a task, in real ones.

use keyhole_domain::Timestamp;

use super::*;
use crate::cgroups::testing::{Scratch, Sleeper, scratch};

fn judge(
    scratch: &Scratch,
    tasks: &[Task],
    which: &Which,
    allow_delegated: bool,
) -> Result<CgroupId, String> {
    let adopted = adopt(&scratch.root, tasks, which, allow_delegated);
    adopted.map(|(_, id)| id).map_err(|error| error.to_string())
}

fn task(scratch: &Scratch, name: &str) -> Task {
    let cgroup = scratch.create(name);
    Task {
        id: TaskId::from_entropy([1; 16]),
        service: "web".to_owned(),
        cgroup: cgroup.id(),
        path: cgroup.path().to_owned(),
        own: true,
        since: Timestamp(1),
    }
}

#[test]
fn cgroups_that_hold_more_than_one_workload_are_refused() {
    let scratch = scratch();
    let one = task(&scratch, "one");
    let root = scratch.root.path().to_owned();
    for (path, why) in [
        (root, "root cgroup"),
        (one.path.clone(), "already"),
        (scratch.path().to_owned(), "holds task"),
    ] {
        let error = judge(&scratch, std::slice::from_ref(&one), &Which::Cgroup(path), true);
        assert!(error.as_ref().unwrap_err().contains(why), "{error:?}");
    }
    for path in ["/tmp", "/nonexistent"] {
        assert!(judge(&scratch, &[], &Which::Cgroup(path.into()), true).is_err(), "{path}");
    }
}

#[test]
fn a_cgroup_in_a_delegated_one_needs_a_word() {
    let scratch = scratch();
    let (outer, inner) = (scratch.create("outer"), scratch.path().join("outer/inner"));
    std::fs::create_dir(&inner).unwrap();
    let procs = outer.path().join("cgroup.procs");
    std::os::unix::fs::chown(&procs, Some(1000), None).unwrap();
    let which = Which::Cgroup(inner);
    let error = judge(&scratch, &[], &which, false).unwrap_err();
    assert!(error.contains("uid 1000") && error.contains("--allow-delegated"), "{error}");
    assert!(judge(&scratch, &[], &which, true).is_ok());
}

#[test]
fn a_process_stands_for_the_cgroup_it_is_in() {
    let scratch = scratch();
    let cgroup = scratch.create("workload");
    let sleeper = Sleeper::inside(cgroup.path());
    let which = Which::Process(sleeper.pid());
    assert_eq!(judge(&scratch, &[], &which, false), Ok(cgroup.id()));
    drop(sleeper);
    let error = judge(&scratch, &[], &which, false).unwrap_err();
    assert!(error.contains("no process"), "{error}");
    for pid in [0, u32::MAX] {
        assert!(judge(&scratch, &[], &Which::Process(pid), false).is_err());
    }
}

#[test]
fn a_service_is_named_by_a_name_or_an_id() {
    for text in ["web", "my-web_2", "34u4jmdqhgsdj5ekmgtud4so9"] {
        assert!(check_service(text).is_ok(), "{text}");
    }
    for text in ["", "a b", "../x", "web\n"] {
        assert!(check_service(text).is_err(), "{text:?}");
    }
}
