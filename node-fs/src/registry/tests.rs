//! Which tasks a node has again after its restart, over real cgroups and files.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::cgroups::testing::{Scratch, scratch};

fn task(n: u8, scratch: &Scratch) -> Task {
    let cgroup = scratch.create(&format!("task{n}"));
    Task {
        id: TaskId::from_entropy([n; 16]),
        service: "web".to_owned(),
        cgroup: CgroupId(cgroup.id().0),
        path: cgroup.path().to_owned(),
        own: true,
        since: Timestamp(5),
    }
}

fn ids(registry: &Registry) -> Vec<TaskId> {
    registry.iter().map(|task| task.id).collect()
}

#[test]
fn a_restart_in_the_same_boot_restores_what_lives() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let boot = boot_id().unwrap();
    let mut registry = Registry::restore(folder.path(), boot.clone(), &scratch.root).unwrap();
    let (one, two, three) = (task(1, &scratch), task(2, &scratch), task(3, &scratch));
    for task in [&one, &two, &three] {
        registry.add(task.clone()).unwrap();
    }
    registry.remove(three.id);
    std::fs::remove_dir(&two.path).unwrap();
    let again = Registry::restore(folder.path(), boot, &scratch.root).unwrap();
    assert_eq!(again.iter().collect::<Vec<_>>(), [&one]);
    assert_eq!(again.by_cgroup().get(&one.cgroup), Some(&one.id));
    let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// The file as the first version wrote it: it is for the next versions to read.
#[test]
fn a_list_of_format_1_is_restored() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let one = task(1, &scratch);
    let (boot, path) = (boot_id().unwrap(), one.path.display());
    let text = format!(
        r#"{{
  "format": 1,
  "boot": "{boot}",
  "tasks": [
    {{
      "id": "{}",
      "service": "web",
      "cgroup": {},
      "path": "{path}",
      "own": true,
      "since": 5
    }}
  ]
}}"#,
        one.id, one.cgroup.0,
    );
    let file = folder.path().join(FILE);
    std::fs::write(&file, &text).unwrap();
    let mut restored = Registry::restore(folder.path(), boot, &scratch.root).unwrap();
    assert_eq!(restored.iter().collect::<Vec<_>>(), [&one]);
    restored.add(one).unwrap();
    let written = std::fs::read_to_string(&file).unwrap();
    let (before, digest) = written.split_once(",\n  \"sha256\": \"").unwrap();
    assert_eq!(format!("{before}\n}}"), text, "and it is written so");
    assert_eq!(digest.len(), 64 + "\"\n}".len(), "with its digest");
}

#[test]
fn a_new_cgroup_under_the_old_name_is_not_the_task() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let boot = boot_id().unwrap();
    let mut registry = Registry::empty(folder.path(), boot.clone());
    let one = task(1, &scratch);
    registry.add(one.clone()).unwrap();
    std::fs::remove_dir(&one.path).unwrap();
    std::fs::create_dir(&one.path).unwrap();
    let again = Registry::restore(folder.path(), boot, &scratch.root).unwrap();
    assert_eq!(ids(&again), []);
}

#[test]
fn another_boots_tasks_are_not_restored() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let mut registry = Registry::empty(folder.path(), "an earlier boot".to_owned());
    registry.add(task(1, &scratch)).unwrap();
    let again = Registry::restore(folder.path(), boot_id().unwrap(), &scratch.root).unwrap();
    assert_eq!(ids(&again), []);
}

#[test]
fn a_list_that_cannot_be_read_restores_nothing() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    for text in ["", "{", "[]", r#"{"format":0,"boot":"x","tasks":[]}"#, r#"{"format":1}"#] {
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let boot = boot_id().unwrap();
        assert_eq!(ids(&Registry::restore(folder.path(), boot, &scratch.root).unwrap()), []);
    }
}

/// "bit flips": another service's name, or another cgroup's number, is one bit away.
#[test]
fn a_flipped_bit_restores_the_same_tasks_or_none() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let boot = boot_id().unwrap();
    let one = task(1, &scratch);
    Registry::empty(folder.path(), boot.clone()).add(one.clone()).unwrap();
    let file = folder.path().join(FILE);
    let text = std::fs::read(&file).unwrap();
    let mut restored = 0;
    for bit in 0..text.len() * 8 {
        let mut bad = text.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, bad).unwrap();
        // One that says a newer format is refused.
        let Ok(found) = Registry::restore(folder.path(), boot.clone(), &scratch.root) else {
            continue;
        };
        assert!(found.iter().all(|found| *found == one), "bit {bit}: {:?}", found.iter().next());
        restored += found.iter().count();
    }
    assert!(restored < text.len(), "{restored} flips did no harm: what was flipped?");
}

#[test]
fn a_list_of_a_newer_format_is_refused_and_stays() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), scratch());
    let file = folder.path().join(FILE);
    for text in [r#"{"format":9,"boot":"x","tasks":[]}"#, r#"{"format":9,"tasks":{"new":1}}"#] {
        std::fs::write(&file, text).unwrap();
        let boot = boot_id().unwrap();
        let refused = Registry::restore(folder.path(), boot, &scratch.root).unwrap_err();
        let refused = refused.to_string();
        for part in ["tasks.json", "format 9", "format 1 only"] {
            assert!(refused.contains(part), "{part:?} in {refused}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn a_task_that_cannot_be_stored_is_not_added() {
    let scratch = scratch();
    let mut registry = Registry::empty(Path::new("/proc/nowhere"), "boot".to_owned());
    assert!(registry.add(task(1, &scratch)).is_err());
    assert_eq!(ids(&registry), []);
}

#[test]
fn a_prefix_names_one_task_or_none() {
    let scratch = scratch();
    let tasks = [task(1, &scratch), task(2, &scratch)];
    assert_eq!(find(&tasks, tasks[0].id.as_str()).unwrap().id, tasks[0].id);
    assert!(matches!(find(&tasks, "zzz"), Err(RegistryError::Unknown { .. })));
    assert!(matches!(find(&tasks, ""), Err(RegistryError::Unknown { .. })));
    assert!(matches!(find(&tasks, "0"), Err(RegistryError::Ambiguous { count: 2, .. })));
}
