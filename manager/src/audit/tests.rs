//! What becomes of lines, on files that are sound, full, torn or changed.

use super::*;
use keyhole_domain::Timestamp;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

fn record(index: u64) -> AuditRecord {
    AuditRecord {
        index,
        at: Timestamp(1_790_000_000_123_456_789),
        actor: Actor::Local { uid: 0, gid: 0, pid: 7 },
        via: 2,
        action: "secret.create",
        objects: vec!["db\"x".into()],
        refused: None,
    }
}

/// The audit of manager "m" there.
fn opened(folder: &Path) -> AuditLog {
    let audit = AuditLog::open(folder, LEAST_FILE_BYTES, None).unwrap();
    begin(&audit, Head::default());
    audit
}

fn begin(audit: &AuditLog, noted: Head) {
    audit.begin(Writer { cluster: "c".into(), manager: "m".into(), member: 1 }, noted);
}

/// All lines but those about the files themselves.
fn lines(folder: &Path) -> Vec<serde_json::Value> {
    let files = files(folder).unwrap();
    let text: String = files.iter().map(|(_, f)| fs::read_to_string(f).unwrap()).collect();
    let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
    lines.filter(|line: &serde_json::Value| line.get("file").is_none()).collect()
}

/// What is wrong with the files, and what is odd, as `file:line: what`.
fn verified(folder: &Path, noted: &[Noted]) -> (Vec<String>, Vec<String>) {
    let mut verifier = Verifier::new(Some([("m".to_owned(), noted.to_vec())].into()), true);
    for (_, path) in files(folder).unwrap() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        verifier.file(&name, BufReader::new(File::open(path).unwrap())).unwrap();
    }
    let report = verifier.finish();
    let texts = |findings: Vec<Finding>| {
        findings.into_iter().map(|f| format!("{}:{}: {}", f.file, f.line, f.what)).collect()
    };
    (texts(report.problems), texts(report.notes))
}

const WHOLE: (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());

fn noted(audit: &AuditLog) -> Noted {
    audit.tend();
    Noted { head: audit.synced(), at: 1_790_000_000_000_000_000 }
}

#[test]
fn a_replayed_change_has_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit");
    let audit = opened(&path);
    audit.applied(&record(5));
    audit.applied(&record(5));
    audit.refused(&Caller::Unknown, "secret.rm", "no");
    drop(audit);
    let audit = opened(&path);
    audit.applied(&record(4));
    audit.applied(&record(5));
    audit.applied(&record(7));
    let lines = lines(&path);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0]["index"], 5);
    assert_eq!(lines[0]["at"], "2026-09-21T14:13:20.123456789Z");
    assert_eq!((&lines[0]["actor"]["uid"], &lines[0]["via"]), (&0.into(), &2.into()));
    assert_eq!(lines[0]["objects"][0], "db\"x");
    assert_eq!(lines[1]["refused"]["action"], "secret.rm");
    assert_eq!(lines[2]["index"], 7);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let file = fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&file), 0o600);
}

/// A newer manager was here, and its binary was put back.
#[test]
fn a_file_of_a_newer_format_is_not_judged_and_is_followed_by_one_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(5));
    drop(audit);
    let first = folder.path().join(file::file_name(1));
    let text = fs::read_to_string(&first).unwrap();
    assert!(text.starts_with("{\"file\":{\"number\":1,\"format\":1,"), "{text}");
    let before = text.replacen(",\"format\":1", "", 1);
    fs::write(&first, &before).unwrap();
    let (problems, _) = verified(folder.path(), &[]);
    assert!(problems.iter().all(|it| !it.contains("format")), "none is the first: {problems:?}");
    let newer = text.replacen("\"format\":1", "\"format\":2", 1) + "what only it can read\n";
    fs::write(&first, &newer).unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(6));
    audit.applied(&record(5));
    drop(audit);
    assert_eq!(fs::read_to_string(&first).unwrap(), newer, "nothing is put to it");
    let second = fs::read_to_string(folder.path().join(file::file_name(2))).unwrap();
    assert_eq!(second.lines().count(), 2, "the file's and one change's: {second}");
    let (problems, notes) = verified(folder.path(), &[]);
    assert_eq!((problems.len(), notes.len()), (1, 0), "{problems:?}");
    let said = "audit-000001.jsonl:1: it is of format 2, and this keyhole";
    assert!(problems[0].starts_with(said) && problems[0].contains("formats up to 1"));
}

#[test]
fn what_a_snapshot_skipped_has_a_line_and_is_noted_by_who_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(5));
    // The rows of 4 and 5 were lost in a crash, and came again.
    audit.skipped(4, 9);
    audit.skipped(4, 5);
    audit.applied(&record(12));
    let lines = lines(folder.path());
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(
        (&lines[1]["snapshot"]["from"], &lines[1]["snapshot"]["to"]),
        (&6.into(), &9.into())
    );
    let (problems, notes) = verified(folder.path(), &[noted(&audit)]);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("jsonl:3: the changes of index 6 to 9 came in a snap"), "{notes:?}");
}

#[test]
fn a_torn_last_line_does_not_swallow_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(5));
    drop(audit);
    let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str("{\"index\":6,\"at\":\"20");
    fs::write(&file, text).unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(6));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 5, "file, 5, piece, about the piece, 6: {text}");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["index"], &last["seq"]), (&6.into(), &4.into()));
    let (problems, notes) = verified(folder.path(), &[noted(&audit)]);
    assert!(problems.is_empty(), "{problems:?}");
    assert!(notes.len() == 1 && notes[0].contains("jsonl:3: a piece of a line"), "{notes:?}");
    // The piece is vouched for: who changes it is found.
    fs::write(&file, text.replace("{\"index\":6,\"at\":\"20\n", "{\"index\":7,\"at\":\"20\n"))
        .unwrap();
    let (problems, _) = verified(folder.path(), &[]);
    assert!(problems.len() == 2 && problems[0].contains("jsonl:3: no line"), "{problems:?}");
}

#[test]
fn floods_of_refusals_are_counted_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    // Nothing is filled up meanwhile, however slow this machine is.
    audit.lock().strangers.filled = Instant::now() + Duration::from_secs(3600);
    for _ in 0..1000 {
        audit.refused(&Caller::Unknown, "secret.rm", "no");
    }
    assert_eq!(audit.refusals(), 1000);
    let written = lines(folder.path()).len();
    assert_eq!(written, BURST as usize);
    let told = |lines: &[serde_json::Value]| -> u64 {
        let of = |line: &serde_json::Value| {
            let count = line["refused"]["suppressed"].as_u64().map(|count| count + 1);
            count.or(line["suppressed"].as_u64()).unwrap()
        };
        lines.iter().map(of).sum()
    };
    assert_eq!(told(&lines(folder.path())), u64::from(BURST));
    audit.tend();
    audit.tend();
    let lines = lines(folder.path());
    assert_eq!((lines.len(), told(&lines)), (written + 1, 1000), "each is told of once");
    assert!(lines[written]["suppressed"].is_u64(), "{}", lines[written]);
    assert_eq!(verified(folder.path(), &[noted(&audit)]), WHOLE);
}

#[test]
fn a_flood_of_strangers_hides_no_refusal_of_somebody() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.lock().strangers.filled = Instant::now() + Duration::from_secs(3600);
    let stranger = Actor::Joiner { address: "10.0.0.9:4000".into() };
    for _ in 0..1000 {
        audit.refused_actor(&stranger, "secret.rm", "no");
    }
    audit.refused_actor(&record(1).actor, "secret.rm", "no");
    let lines = lines(folder.path());
    assert_eq!(lines.len(), BURST as usize + 1);
    assert_eq!(lines[BURST as usize]["refused"]["actor"]["pid"], 7, "{lines:?}");
}

#[test]
fn syslog_has_each_line_once_and_does_not_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("log");
    let reader = UnixDatagram::bind(&socket).unwrap();
    reader.set_nonblocking(true).unwrap();
    let audit = AuditLog::open(folder.path(), LEAST_FILE_BYTES, Some(&socket)).unwrap();
    begin(&audit, Head::default());
    let sent = || -> Vec<(u64, bool)> {
        let mut bytes = [0; 2048];
        let mut lines = Vec::new();
        while let Ok(length) = reader.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..length]).unwrap();
            let json = &text[text.find('{').unwrap()..];
            let line: serde_json::Value = serde_json::from_str(json).unwrap();
            lines.push((line["index"].as_u64().unwrap(), line["hash"].is_string()));
        }
        lines
    };
    audit.applied(&record(1));
    assert_eq!(sent(), [(1, true)]);
    audit.lock().file.refuse(true);
    audit.applied(&record(2));
    audit.applied(&record(3));
    assert_eq!(sent(), [(2, false), (3, false)]);
    audit.lock().file.refuse(false);
    audit.applied(&record(4));
    assert_eq!(sent(), [(4, true)]);
    assert_eq!(lines(folder.path()).len(), 4);
}

#[test]
fn who_is_refused_after_a_flood_has_a_line_again_and_tells_of_it() {
    let mut bucket = Bucket::new(Instant::now(), KNOWN);
    let flood = (0..1000).filter(|_| bucket.take(bucket.filled).is_none()).count();
    assert_eq!(flood, 1000 - BURST as usize);
    let later = bucket.filled + Duration::from_secs(1);
    assert_eq!(bucket.take(later), Some(flood as u64));
    assert_eq!(bucket.take(later), Some(0));
}

#[test]
fn a_disk_that_refuses_holds_nothing_up_and_gets_the_lines_later() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.lock().file.refuse(true);
    audit.applied(&record(1));
    audit.applied(&record(2));
    assert_eq!(lines(folder.path()).len(), 0);
    audit.lock().file.refuse(false);
    audit.tend();
    assert_eq!(lines(folder.path()).len(), 2);
}

#[test]
fn what_a_disk_refuses_to_the_end_is_counted_at_the_close() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.applied(&record(1));
    audit.close().unwrap();
    audit.lock().file.refuse(true);
    for index in 2..=WAITING as u64 + 6 {
        audit.applied(&record(index));
    }
    let said = audit.close().unwrap_err().to_string();
    let file = folder.path().join(file::file_name(1));
    assert!(said.contains(&format!("audit ({}) could", WAITING + 5)), "{said}");
    assert!(said.contains(&format!("{}: ", file.display())), "{said}");
    audit.lock().file.refuse(false);
    audit.close().unwrap();
    assert_eq!(lines(folder.path()).len(), WAITING + 2, "and one that counts the rest");
}

#[test]
fn lines_that_were_too_many_to_keep_are_counted_in_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let audit = opened(folder.path());
    audit.lock().file.refuse(true);
    for index in 1..=WAITING as u64 + 5 {
        audit.applied(&record(index));
    }
    audit.lock().file.refuse(false);
    audit.tend();
    let lines = lines(folder.path());
    assert_eq!((lines.len(), &lines[WAITING]["lost"]), (WAITING + 1, &5.into()));
    assert_eq!(verified(folder.path(), &[noted(&audit)]), WHOLE);
}

/// An audit of a few files, and what was noted of it on the way.
fn history(folder: &Path) -> Vec<Noted> {
    let audit = opened(folder);
    let mut heads = Vec::new();
    for index in 1..=60 {
        audit.applied(&record(index));
        if index % 10 == 0 {
            heads.push(noted(&audit));
        }
    }
    heads
}

#[test]
fn files_are_chained_and_go_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut heads = history(folder.path());
    let before = files(folder.path()).unwrap().len();
    assert!(before > 3, "{before} files");
    let audit = opened(folder.path());
    for index in 50..=120 {
        audit.applied(&record(index));
    }
    heads.push(noted(&audit));
    assert!(files(folder.path()).unwrap().len() > before);
    assert_eq!(verified(folder.path(), &heads), WHOLE);
    assert_eq!(lines(folder.path()).len(), 120);
}

/// Changes files in place and says what is found: at least that, at that place first.
#[track_caller]
fn found(change: impl FnOnce(&Path), first: &str) {
    let folder = tempfile::tempdir().unwrap();
    let heads = history(folder.path());
    change(folder.path());
    let (problems, _) = verified(folder.path(), &heads);
    assert!(problems.first().is_some_and(|found| found.starts_with(first)), "{problems:#?}");
}

fn edit(folder: &Path, file: u32, change: impl FnOnce(&mut Vec<String>)) {
    let path = folder.join(file::file_name(file));
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn whatever_is_done_to_the_files_is_found_and_named() {
    let change = |lines: &mut Vec<String>, at: usize| {
        lines[at] = lines[at].replace("secret.create", "secret.rotate");
    };
    found(|f| edit(f, 2, |l| change(l, 4)), "audit-000002.jsonl:5: it was changed");
    found(|f| edit(f, 1, |l| change(l, 1)), "audit-000001.jsonl:2: it was changed");
    // Its hash only.
    let end = |line: &str, to: &str| format!("{}{to}\"}}", &line[..line.len() - 3]);
    found(
        |f| {
            edit(f, 2, |l| {
                let other = if l[4].ends_with("0\"}") { "1" } else { "0" };
                l[4] = end(&l[4], other);
            });
        },
        "audit-000002.jsonl:5: it was changed",
    );
    found(|f| edit(f, 2, |l| drop(l.remove(4))), "audit-000002.jsonl:5: line ");
    found(|f| edit(f, 2, |l| drop(l.drain(4..7))), "audit-000002.jsonl:5: lines ");
    found(|f| edit(f, 2, |l| l.insert(4, "{\"index\":5}".into())), "audit-000002.jsonl:5: no line");
    found(|f| edit(f, 2, |l| l.insert(4, "rubbish".into())), "audit-000002.jsonl:5: no line");
    found(|f| edit(f, 2, |l| l.insert(4, l[1].clone())), "audit-000002.jsonl:5: line ");
    found(|f| edit(f, 2, |l| l.swap(4, 5)), "audit-000002.jsonl:5: line ");
    let gone = |number| {
        move |folder: &Path| fs::remove_file(folder.join(file::file_name(number))).unwrap()
    };
    found(gone(1), "audit-000002.jsonl:1: lines 1 to ");
    found(gone(2), "audit-000003.jsonl:1: lines ");
    // The last one, and the last lines, are missed only by those who were told of them.
    let last = |folder: &Path| files(folder).unwrap().pop().unwrap();
    found(|f| fs::remove_file(last(f).1).unwrap(), "audit-");
    found(|f| edit(f, last(f).0, |l| drop(l.pop())), "audit-");
    found(
        |f| files(f).unwrap().iter().for_each(|(_, path)| fs::write(path, "").unwrap()),
        "audit-",
    );
    let folder = tempfile::tempdir().unwrap();
    let heads = history(folder.path());
    edit(folder.path(), last(folder.path()).0, |l| drop(l.pop()));
    assert_eq!(verified(folder.path(), &heads[..5]), WHOLE, "as far as it was noted");
    let (problems, _) = verified(folder.path(), &heads);
    assert!(problems[0].contains("cut off: the files end at line"), "{problems:?}");
}

#[test]
fn a_chain_that_was_made_anew_is_not_the_one_that_was_noted() {
    let folder = tempfile::tempdir().unwrap();
    let heads = history(folder.path());
    fs::remove_dir_all(folder.path()).unwrap();
    history(folder.path());
    let (problems, _) = verified(folder.path(), &heads);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("it is not the line"), "{problems:?}");
    assert_eq!(verified(folder.path(), &[]), WHOLE, "nothing tells of it but the cluster");
}

/// As somebody does who may write the files, and knows how they are made: one line is another, and all hashes fit.
fn rewrite(folder: &Path, from: &str, to: &str) {
    let mut head = Head::default();
    for (_, path) in files(folder).unwrap() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| {
            let body = &line[..line.rfind(",\"seq\":").unwrap()];
            let (line, next) = head.extend(&(body.replace(from, to) + "}"));
            head = next;
            line + "\n"
        });
        fs::write(path, lines.collect::<String>()).unwrap();
    }
}

#[test]
fn what_was_rewritten_before_a_start_is_said_once_and_stays_found() {
    let folder = tempfile::tempdir().unwrap();
    let audit = AuditLog::open(folder.path(), FILE_BYTES, None).unwrap();
    begin(&audit, Head::default());
    (1..9).for_each(|index| audit.applied(&record(index)));
    let head = noted(&audit).head;
    drop(audit);
    let said = || {
        let lines = lines(folder.path());
        let found = lines.iter().filter_map(|line| line["rewritten"]["line"].as_u64());
        found.collect::<Vec<_>>()
    };
    let start = || {
        let audit = AuditLog::open(folder.path(), FILE_BYTES, None).unwrap();
        begin(&audit, head);
        audit.go_on_after(head);
        audit
    };
    drop(start());
    assert!(said().is_empty(), "it is as it was");
    rewrite(folder.path(), "\"index\":3,", "\"index\":4,");
    assert_eq!(verified(folder.path(), &[]), WHOLE, "all hashes fit");
    let audit = start();
    assert_eq!(said(), [head.seq]);
    audit.applied(&record(9));
    let (problems, _) = verified(folder.path(), &[noted(&audit)]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("the files had been rewritten: line 9"), "{problems:?}");
}

#[test]
fn what_was_cut_before_a_start_stays_missing_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let heads = history(folder.path());
    let last = files(folder.path()).unwrap().pop().unwrap().0;
    edit(folder.path(), last, |lines| drop(lines.pop()));
    let audit = opened(folder.path());
    audit.lock().file.refuse(true);
    audit.applied(&record(100));
    audit.go_on_after(heads[5].head);
    audit.go_on_after(heads[5].head);
    audit.lock().file.refuse(false);
    audit.applied(&record(101));
    for noted in [&heads[..], &[]] {
        let (problems, _) = verified(folder.path(), noted);
        assert!(!problems.is_empty(), "{problems:?}");
    }
    assert_eq!(audit.lock().file.end().0.seq, heads[5].head.seq + 3, "that, 100, 101");
}
