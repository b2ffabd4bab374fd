//! The audit of managers (docs/GUARANTEES.md, G11 and G19): chained, noted by the cluster, and what is done to its files
//! is found and named.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use keyhole_tests::{Cluster, Daemon, Ground, Ran, keyhole_binary, run, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Managers tell the cluster every 10 s.
const NOTED_WITHIN: Duration = Duration::from_secs(40);

/// A manager whose audit is in many files.
fn start() -> Cluster {
    Cluster::start_with(Arc::new(Ground::new()), &["--audit-file-size", "4KiB"])
}

fn files(data: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(data.join("audit")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn lines(data: &Path) -> Vec<Value> {
    let text: String = files(data).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn last_line(data: &Path) -> u64 {
    lines(data).last().and_then(|line| line["seq"].as_u64()).unwrap_or(0)
}

/// Waits until the cluster was told of all lines that a manager has now.
fn wait_noted(of: &Cluster) {
    let last = last_line(of.data());
    let id = of.ok(["manager", "ls", "--format", "{{.Address}} {{.Member}}"]);
    let address = format!("{} ", of.address());
    let id = id.lines().find_map(|line| line.strip_prefix(&address)).unwrap().to_owned();
    wait::until_within(NOTED_WITHIN, "the audit to be noted", || {
        let status = of.keyhole(["cluster", "status", "-f", "json"]).stdout;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        let managers = status["Managers"].as_array().cloned().unwrap_or_default();
        let own = managers.iter().find(|manager| manager["ID"].as_u64() == id.parse().ok());
        match own.and_then(|own| own["AuditLine"].as_u64()) {
            Some(line) if line >= last => Ok(()),
            line => Err(format!("{line:?} of {last}")),
        }
    });
}

fn verify(by: &Cluster, data: &Path, more: &[&str]) -> Ran {
    let mut command = by.command(["audit", "verify", "--data-dir"]);
    command.arg(data).args(more);
    run(command, b"")
}

#[track_caller]
fn is_whole(by: &Cluster, data: &Path) -> String {
    let ran = verify(by, data, &[]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("whole: "), "{}", ran.stdout);
    ran.stdout
}

/// The first problem; there must be one.
#[track_caller]
fn problem(by: &Cluster, data: &Path, more: &[&str]) -> String {
    let ran = verify(by, data, more);
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("is not whole: "), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    ran.stdout.lines().next().unwrap_or_default().to_owned()
}

fn edit(file: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = fs::read_to_string(file).unwrap();
    let mut lines = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(file, lines.join("\n") + "\n").unwrap();
}

/// A change is asked of one manager and has a line at all of them; a process of its machine says nothing without which that is.
#[test]
fn every_line_of_a_change_says_which_manager_was_asked() {
    let managers = Cluster::of(3);
    let numbers = managers[0].ok(["manager", "ls", "--format", "{{.Address}} {{.Member}}"]);
    for (at, asked) in managers.iter().enumerate() {
        let name = format!("pw-{at}");
        asked.ok_with(["secret", "create", &name, "-"], b"v");
        let address = format!("{} ", asked.address());
        let number = numbers.lines().find_map(|line| line.strip_prefix(&address)).unwrap();
        let number: u64 = number.parse().unwrap();
        for of in &managers {
            let its = |line: &Value| line["objects"][0] == *name;
            wait::until("its line", || match lines(of.data()).into_iter().find(its) {
                Some(line) if line["via"] == number => Ok(()),
                other => Err(format!("{other:?}, and not via {number}")),
            });
        }
    }
}

/// G21: what a manager wrote just before it was stopped is known to the others, and can't be cut off unseen.
#[test]
fn the_last_lines_before_a_clean_stop_are_noted() {
    let first = start();
    let mut managers = [first.join(), first.join(), first];
    for of in 0..3 {
        let name = format!("s{of}");
        managers[of].ok_with(["secret", "create", &name, "-"], b"v");
        managers[of].refused_with(["secret", "create", &name, "-"], b"v");
        managers[of].stop(Signal::TERM);
        let by = &managers[(of + 1) % 3];
        is_whole(by, managers[of].data());
        edit(files(managers[of].data()).last().unwrap(), |lines| drop(lines.pop()));
        let found = problem(by, managers[of].data(), &[]);
        assert!(found.contains("cut off: the files end at line "), "{found}");
        managers[of].resume();
        wait::until("it to say so", || {
            match lines(managers[of].data()).iter().any(|line| !line["missing"].is_null()) {
                true => Ok(()),
                false => Err(managers[of].manager().log()),
            }
        });
    }
}

/// G19, for each manager by the word of another; each kind of change, on copies.
#[test]
fn what_is_done_to_the_files_of_any_manager_is_found_and_named() {
    let first = start();
    let mut managers = [first.join(), first.join(), first];
    for round in 0..24 {
        let by = &managers[round % 3];
        let name = format!("s{round}");
        by.ok_with(["secret", "create", &name, "-"], b"v");
        by.refused_with(["secret", "create", &name, "-"], b"v");
    }
    managers.iter().for_each(wait_noted);
    for (at, of) in managers.iter().enumerate() {
        assert!(files(of.data()).len() > 3, "{:?}", files(of.data()));
        let said = is_whole(&managers[(at + 1) % 3], of.data());
        assert!(said.contains("the cluster noted "), "{said}");
        let text = fs::read_to_string(files(of.data()).last().unwrap()).unwrap();
        assert!(!text.contains("audit.heads"), "telling of it is no line");
    }

    let by = &managers[0];
    let copy = by.ground().folder().join("copy");
    let tamper = |change: &dyn Fn(&[PathBuf]), wanted: &[&str], offline: bool| {
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir_all(copy.join("audit")).unwrap();
        for file in files(managers[1].data()) {
            fs::copy(&file, copy.join("audit").join(file.file_name().unwrap())).unwrap();
        }
        change(&files(&copy));
        let found = problem(by, &copy, &[]);
        for part in wanted {
            assert!(found.contains(part), "{part:?} in {found}");
        }
        match offline {
            true => drop(problem(by, &copy, &["--offline"])),
            false => assert_eq!(verify(by, &copy, &["--offline"]).code, 0),
        }
    };
    let second = "audit-000002.jsonl";
    let byte = |lines: &mut Vec<String>| lines[3] = lines[3].replacen("\"pid\":", "\"gid\":", 1);
    tamper(&|f| edit(&f[1], byte), &[second, ":4: it was changed"], true);
    tamper(&|f| edit(&f[1], |l| drop(l.remove(3))), &[second, ":4: line ", "missing"], true);
    let fake = r#"{"index":4,"action":"secret.rm"}"#;
    tamper(
        &|f| edit(&f[1], |l| l.insert(3, fake.into())),
        &[second, ":4: no line of the chain"],
        true,
    );
    tamper(
        &|f| fs::remove_file(&f[1]).unwrap(),
        &["3.jsonl:1: ", "missing", second, "not there"],
        true,
    );
    tamper(&|f| fs::remove_file(&f[0]).unwrap(), &[second, ":1: lines 1 to "], true);
    // A number that would be four billion names.
    let leap = |lines: &mut Vec<String>| {
        let start: Value = serde_json::from_str(&lines[0]).unwrap();
        let seq = start["seq"].as_u64().unwrap();
        lines[0] = lines[0].replacen("\"number\":2,", "\"number\":4294967295,", 1).replacen(
            &format!("\"seq\":{seq},"),
            &format!("\"seq\":{},", seq + 5),
            1,
        );
    };
    tamper(
        &|f| edit(&f[1], leap),
        &["missing", "audit-000002.jsonl to audit-4294967294.jsonl are not there"],
        true,
    );
    let cut = |f: &[PathBuf]| edit(f.last().unwrap(), |l| drop(l.pop()));
    tamper(&cut, &["cut off: the files end at line "], false);
    tamper(&|f| fs::remove_file(f.last().unwrap()).unwrap(), &["cut off"], false);
    // Another manager's audit in its place.
    let others = |files: &[PathBuf]| {
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
        let folder = files[0].parent().unwrap();
        for file in self::files(managers[2].data()) {
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
        let first = folder.join("audit-000001.jsonl");
        let own = self::lines(managers[1].data())[0]["file"]["manager"].to_string();
        edit(&first, |l| {
            let theirs =
                serde_json::from_str::<Value>(&l[0]).unwrap()["file"]["manager"].to_string();
            l[0] = l[0].replace(&theirs, &own);
        });
    };
    tamper(&others, &["it was changed"], true);

    // Cut while the manager was down: seen for ever, and by others before that.
    let victim = &mut managers[2];
    victim.stop(Signal::TERM);
    let data = victim.data().to_owned();
    let before = last_line(&data);
    let newest = files(&data).pop().unwrap();
    edit(&newest, |l| drop(l.pop()));
    victim.resume();
    wait::until_within(NOTED_WITHIN, "the manager to see that lines are missing", || {
        let told = lines(&data).iter().any(|line| !line["missing"].is_null());
        if told { Ok(()) } else { Err(format!("{} lines, {before} before", lines(&data).len())) }
    });
    for more in [&[][..], &["--offline"]] {
        assert!(problem(&managers[0], &data, more).contains("missing before it"));
    }
    assert!(managers[2].manager().log().contains("lines of the audit are missing"));
}

/// G11 over crashes: whatever moment a manager is killed at, its audit is whole afterwards.
#[test]
fn a_manager_that_is_killed_under_writes_has_a_whole_audit() {
    let mut cluster = start();
    for round in 0..4 {
        let mut writers: Vec<Child> =
            (0..4).map(|writer| writes(&cluster, round, writer)).collect();
        let before = last_line(cluster.data());
        wait::until("lines to be written", || match last_line(cluster.data()) {
            last if last > before + 8 => Ok(()),
            last => Err(format!("{last}")),
        });
        cluster.stop(Signal::KILL);
        for writer in &mut writers {
            let _ = writer.kill();
            writer.wait().unwrap();
        }
        if round == 3 {
            // A crash of the machine leaves pieces.
            let newest = files(cluster.data()).pop().unwrap();
            let mut file = fs::OpenOptions::new().append(true).open(newest).unwrap();
            file.write_all(b"{\"index\":99,\"at\":\"20").unwrap();
        }
        cluster.resume();
        cluster.ok_with(["secret", "create", &format!("after{round}"), "-"], b"v");
        let said = is_whole(&cluster, cluster.data());
        assert_eq!(said.contains("note: "), round == 3, "{said}");
    }
    let created = |name: &str| {
        let lines = lines(cluster.data());
        lines.iter().filter(|line| line["outcome"] == "done" && line["objects"][0] == name).count()
    };
    for name in cluster.ok(["secret", "ls", "--format", "{{.Name}}"]).lines() {
        assert_eq!(created(name), 1, "one line for {name}");
    }
}

/// A shell that creates secrets until it is ended.
fn writes(cluster: &Cluster, round: usize, writer: usize) -> Child {
    let keyhole = cluster.command(["secret", "create"]);
    let words: Vec<_> = std::iter::once(keyhole.get_program()).chain(keyhole.get_args()).collect();
    let mut shell = Command::new("sh");
    let script = format!("i=0; while echo v | \"$@\" r{round}w{writer}n$i - ; do i=$((i+1)); done");
    shell.args(["-c", &script, "sh"]).args(words).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().unwrap()
}

/// G10: a full disk below the audit stops nothing, and its lines come when there is room.
#[test]
fn a_full_disk_stops_no_revocation_and_loses_no_line() {
    let ground = Arc::new(Ground::new());
    fs::create_dir(ground.folder().join("m")).unwrap();
    let disk = ground.small_disk("m/audit", 1);
    let cluster = Cluster::start_on(Arc::clone(&ground));
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.ok(["service", "create", "web", "--secret", "pw"]);
    let filler = disk.at().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let before = last_line(cluster.data());
    cluster.ok(["service", "rm", "web"]);
    cluster.ok(["secret", "rm", "pw"]);
    for n in 0..40 {
        cluster.ok_with(["secret", "create", &format!("a-name-of-some-length-{n}"), "-"], b"v");
    }
    let full = last_line(cluster.data());
    assert!(full < before + 42, "the disk was full: {before} {full}");
    drop(file);
    fs::remove_file(&filler).unwrap();
    wait::until("the lines that waited", || match last_line(cluster.data()) {
        last if last == before + 42 => Ok(()),
        last => Err(format!("{last} of {}", before + 42)),
    });
    let said = is_whole(&cluster, cluster.data());
    assert!(!said.contains("note: "), "no piece of a line is left: {said}");
}

/// G10: what is left of a disk that the store is on too is the store's.
#[test]
fn the_audit_leaves_the_store_room_on_a_disk_of_both() {
    let ground = Arc::new(Ground::new());
    let disk = ground.small_disk("m", 64);
    let cluster = Cluster::start_on(Arc::clone(&ground));
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.ok(["service", "create", "web", "--secret", "pw"]);
    let before = last_line(cluster.data());
    // Somebody else leaves half of what the audit leaves.
    let filler = disk.at().join("filler");
    let file = fs::File::create(&filler).unwrap();
    let free = rustix::fs::statvfs(disk.at()).unwrap();
    let all_but = free.f_bavail * free.f_frsize - (4 << 20);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, all_but).unwrap();
    cluster.ok(["service", "rm", "web"]);
    cluster.ok(["secret", "rm", "pw"]);
    assert_eq!(last_line(cluster.data()), before, "they wait");
    drop(file);
    fs::remove_file(&filler).unwrap();
    wait::until("the lines that waited", || match last_line(cluster.data()) {
        last if last == before + 2 => Ok(()),
        last => Err(format!("{last} of {}", before + 2)),
    });
    is_whole(&cluster, cluster.data());
}

/// G10: what never found room is told at the stop, by the log and the exit code.
#[test]
fn a_stop_with_a_full_disk_says_how_many_lines_are_lost() {
    let ground = Arc::new(Ground::new());
    fs::create_dir(ground.folder().join("m")).unwrap();
    let disk = ground.small_disk("m/audit", 1);
    let mut cluster = Cluster::start_on(Arc::clone(&ground));
    let filler = disk.at().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    // What fits into the last page of the file goes there.
    let mut made = 0;
    while !cluster.manager().log().contains("its lines wait in memory") {
        cluster.ok_with(["secret", "create", &format!("s{made}"), "-"], b"v");
        made += 1;
    }
    cluster.ok_with(["secret", "create", "last", "-"], b"v");
    let status = cluster.stop(Signal::TERM);
    let log = cluster.manager().log();
    assert_eq!(status.code(), Some(1), "{log}");
    let newest = cluster.data().join("audit/audit-000001.jsonl");
    let said = format!(
        "lost lines of its audit: the last lines of the audit (2) could not be written to {}: No space left",
        newest.display()
    );
    assert!(log.contains(&said), "{log}");
    fs::remove_file(&filler).unwrap();
    cluster.resume();
    assert_eq!(cluster.stop(Signal::TERM).code(), Some(0));
}

/// A cluster lets in a manager once: one that cannot keep its audit does not ask, and may try again.
#[test]
fn a_manager_that_cannot_keep_its_audit_does_not_join() {
    let cluster = Cluster::start();
    let ground = cluster.ground();
    let data = ground.folder().join("late");
    fs::create_dir(&data).unwrap();
    let disk = ground.small_disk("late/audit", 1);
    let token = ground.folder().join("late.token");
    fs::write(&token, cluster.ok(["cluster", "join-token", "-q", "manager"])).unwrap();
    let run = |token: &Path| {
        let mut command = Command::new(keyhole_binary());
        command.args(["manager", "run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
        command.arg("--socket").arg(ground.folder().join("late.sock"));
        command.args(["--join", &cluster.address().to_string(), "--token-file"]).arg(token);
        Daemon::start(ground, "late", command)
    };
    disk.make_read_only();
    let mut refused = run(&token);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("cannot keep the audit in"), "{}", refused.log());
    assert_eq!(cluster.ok(["manager", "ls", "-q"]).lines().count(), 1);
    disk.resize(1);
    // One that gets further and fails then leaves no line of an audit.
    let none = ground.folder().join("none");
    let mut refused = run(&none);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains(none.to_str().unwrap()), "{}", refused.log());
    let mut late = run(&token);
    late.wait_for_word("ready");
    assert_eq!(cluster.ok(["manager", "ls", "--format", "{{.Member}}"]), "1\n2\n");
}

/// A command's lines as they come.
struct Lines(Child, Receiver<String>);

impl Lines {
    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        Self(child, lines)
    }

    fn next(&self) -> Value {
        let line = self.1.recv_timeout(wait::PATIENCE).expect("a line in time");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tail_follows_from_file_to_file_and_ends_by_its_signal() {
    let cluster = start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    let data = cluster.data().to_str().unwrap().to_owned();
    let tail = cluster.ok(["audit", "tail", "-n", "1", "--data-dir", &data]);
    assert!(tail.contains("secret.create") && tail.lines().count() == 1, "{tail}");
    let last = last_line(cluster.data());
    let mut follow = Lines::of(cluster.command(["audit", "tail", "-fn1", "--data-dir", &data]));
    assert_eq!(follow.next()["seq"], last);
    let begun = files(cluster.data()).len();
    let mut seen = last;
    while files(cluster.data()).len() < begun + 2 {
        cluster.ok(["secret", "update", "pw", "--label-add", &format!("n={seen}")]);
        seen += 1;
        assert_eq!(follow.next()["seq"], seen, "each line, in order");
        while seen < last_line(cluster.data()) {
            seen += 1;
            assert_eq!(follow.next()["seq"], seen);
        }
    }
    kill_process(Pid::from_child(&follow.0), Signal::INT).unwrap();
    let status = follow.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(2), "{status}");
    // More lines than the newest file has.
    let all = cluster.ok(["audit", "tail", "-n", "1000", "--data-dir", &data]);
    assert_eq!(all.lines().count(), lines(cluster.data()).len());
    let missing = cluster.refused(["audit", "tail", "--data-dir", "/nonexistent"]);
    assert!(
        missing.contains("/nonexistent/audit") && missing.contains("--data-dir says"),
        "{missing}"
    );
}

#[test]
fn syslog_gets_a_copy_of_each_line() {
    let ground = Arc::new(Ground::new());
    let path = ground.folder().join("log");
    let syslog = UnixDatagram::bind(&path).unwrap();
    syslog.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let cluster = Cluster::start_with(ground, &["--audit-syslog", path.to_str().unwrap()]);
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    let mut bytes = [0; 65_536];
    loop {
        let length = syslog.recv(&mut bytes).expect("a line in time");
        let text = String::from_utf8_lossy(&bytes[..length]);
        assert!(text.starts_with("<85>1 2"), "{text}");
        if text.contains("\"action\":\"secret.create\"") {
            break;
        }
    }
}
