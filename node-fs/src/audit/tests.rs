//! Lines of opens on a real disk: whole, counted when dropped, rotated by size.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;

fn open(version: u64) -> Open {
    Open {
        at: Timestamp(0),
        task: TaskId::from_entropy([1; 16]),
        service: "web".to_owned(),
        secret: "pw\"\n".to_owned(),
        version,
        target: "tls/pw".to_owned(),
        uid: 7,
        pid: 8,
        refused: (version == 2).then(|| "not yours".to_owned()),
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_open_is_a_line_that_says_all_but_the_value() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::start(folder.path()).unwrap();
    audit.record(open(1));
    audit.record(open(2));
    let path = folder.path().join("audit/opens.jsonl");
    let deadline = Instant::now() + Duration::from_secs(10);
    while lines(&path).len() < 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    let [one, two] = lines(&path).try_into().unwrap();
    assert_eq!(one["secret"], "pw\"\n");
    assert_eq!(one["at"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(
        (&one["outcome"], &one["uid"], &one["pid"]),
        (&"allowed".into(), &7.into(), &8.into())
    );
    assert_eq!((&two["outcome"], &two["reason"]), (&"refused".into(), &"not yours".into()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn lines_that_do_not_fit_the_queue_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, opens) = sync_channel(2);
    let dropped = Arc::new(AtomicU64::new(0));
    let audit = Audit { queue, dropped: dropped.clone() };
    for version in 1..=7 {
        audit.record(open(version));
    }
    drop(audit);
    write_all(Log::open(folder.path()).unwrap(), &opens, &dropped);
    let lines = lines(&folder.path().join("opens.jsonl"));
    assert_eq!((&lines[0]["event"], &lines[0]["count"]), (&"dropped".into(), &5.into()));
    assert_eq!(lines.len(), 3);
}

#[test]
fn old_files_are_kept_four_deep_and_no_line_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::open_rotating_at(folder.path(), 1000).unwrap();
    for version in 1..100 {
        assert!(log.write(&line(&open(version))));
    }
    log.flush();
    let mut names: Vec<String> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let kept = ["", ".1", ".2", ".3", ".4"].map(|n| format!("opens.jsonl{n}"));
    assert_eq!(names, kept);
    let mut versions: Vec<u64> = kept
        .iter()
        .rev()
        .flat_map(|name| lines(&folder.path().join(name)))
        .map(|line| line["version"].as_u64().unwrap())
        .collect();
    assert_eq!(versions.pop(), Some(99));
    assert!(versions.windows(2).all(|pair| pair[0] + 1 == pair[1]));
}

#[test]
fn half_a_line_of_a_killed_worker_does_not_spoil_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("opens.jsonl");
    std::fs::write(&path, "{\"half").unwrap();
    let mut log = Log::open(folder.path()).unwrap();
    log.write(&line(&open(1)));
    log.flush();
    let text = std::fs::read_to_string(&path).unwrap();
    let last = text.lines().last().unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(last).unwrap()["version"], 1);
}
