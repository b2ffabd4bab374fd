//! A secret's value is nowhere but where it must be: random canaries travel the whole path, then every place that a
//! Keyhole process could have left them in is searched.
//!
//! Searched for are both halves of each canary, so that a copy that was partly overwritten is found too; in files and
//! logs (at trace level) also as hex, base 64, numbers and escapes. What must be nowhere is what GUARANTEES promises
//! ("Never on disk, never leaked", "What a memory scan finds"): the last READ was answered, so the worker has none either.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyhole_tests::scan::{self, Needle};
use keyhole_tests::{Cluster, Ground, Machine, NodeOptions, Ran, keeper_binary, wait};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

/// 48 random bytes.
fn canary() -> Vec<u8> {
    let mut bytes = vec![0; 48];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}

/// Looks at argv and environ of everything that runs, all the time.
struct Watch {
    ending: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, Vec<String>)>,
}

impl Watch {
    fn start(needles: Vec<Needle>) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ending);
        let thread = std::thread::spawn(move || {
            let (mut looks, mut hits) = (0, Vec::new());
            while !end.load(Ordering::Relaxed) && hits.is_empty() {
                hits = scan::arguments(&needles);
                looks += 1;
            }
            (looks, hits)
        });
        Self { ending, thread }
    }

    fn finish(self) {
        self.ending.store(true, Ordering::Relaxed);
        let (looks, hits) = self.thread.join().expect("no panic");
        assert!(hits.is_empty(), "{hits:#?}");
        assert!(looks > 1, "nothing was looked at");
    }
}

/// No mapping of the process has a needle, and all of them were read but the kernel's and the locked-away ones.
#[track_caller]
fn assert_not_in_memory(who: &str, pid: i32, needles: &[Needle]) {
    let scan = scan::memory(pid, needles);
    println!("{who}: {} MiB searched, not readable: {:?}", scan.bytes >> 20, scan.unreadable);
    assert!(scan.hits.is_empty(), "{who} still has it: {:#?}", scan.hits);
    assert!(scan.bytes > 4 << 20, "{who}: hardly anything was searched");
    // memfd_secret is for the process itself only; the kernel's own pages hold nothing of a process.
    let expected = ["[vvar", "[vsyscall]", "/secretmem"];
    let odd = |name: &&String| !expected.iter().any(|known| name.starts_with(known));
    let odd: Vec<_> = scan.unreadable.iter().filter(odd).collect();
    assert!(odd.is_empty(), "{who}: not searched: {odd:?}");
}

#[test]
fn a_canary_is_nowhere_after_it_went_the_whole_path() {
    // A core file would be written if a daemon allowed it.
    let unlimited = Rlimit { current: None, maximum: None };
    setrlimit(Resource::Core, unlimited).expect("root may");
    let loud = ["--log-level", "trace"];
    let cluster = Cluster::start_with(Arc::new(Ground::new()), &loud);
    // So loud that "ready" may be said by someone else first.
    wait::until("the manager to answer", || answers(&cluster.keyhole(["cluster", "status"])));
    let options = NodeOptions { args: loud.map(str::to_owned).to_vec(), ..Default::default() };
    let node = cluster.node_with(options);
    wait::until("the node to answer", || answers(&node.keyhole(["node", "status"])));
    let mut machine = Machine { node, cluster };

    let canaries = [canary(), canary(), canary(), canary()];
    let [from_file, from_stdin, rotated, last] = &canaries;
    let named = [
        ("the one from a file", from_file),
        ("the one from stdin", from_stdin),
        ("the rotated one", rotated),
        ("the last one", last),
    ];
    let plain: Vec<Needle> = named.iter().flat_map(|(what, c)| scan::halves(what, c)).collect();
    let printed: Vec<Needle> =
        named.iter().flat_map(|(what, c)| scan::printed_halves(what, c)).collect();

    let watch = Watch::start(printed.clone());
    let told = whole_path(&machine, &canaries);
    watch.finish();

    // At once, before anything else could have overwritten it.
    let worker = machine.node.worker().expect("a worker runs");
    assert_not_in_memory("worker", worker, &plain);
    let manager = machine.cluster.manager().pid();
    assert_not_in_memory("manager", manager, &plain);
    let supervisor = machine.node.supervisor().pid();
    assert_not_in_memory("supervisor", supervisor, &plain);

    let told_wrong: Vec<String> = {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("answers"), told).expect("it is ours");
        scan::files(folder.path(), &printed).hits
    };
    assert!(told_wrong.is_empty(), "the CLI said it: {told_wrong:#?}");

    assert_no_core(&mut machine, worker);
    let ground = Arc::clone(machine.cluster.ground());
    let logs = [machine.cluster.manager().log(), machine.node.supervisor().log()];
    for log in logs {
        assert!(log.contains(" TRACE "), "a daemon was not loud: {:.2000}", log);
    }
    assert_not_in_files(&ground, &printed);
    drop(machine);
    // And nothing was written on the way out.
    assert_not_in_files(&ground, &printed);
}

fn answers(ran: &Ran) -> Result<(), String> {
    if ran.code == 0 { Ok(()) } else { Err(ran.stderr.clone()) }
}

/// Create, read, rotate, read, roll back, read, and every way of asking. Gives all that the CLI said.
fn whole_path(machine: &Machine, canaries: &[Vec<u8>; 4]) -> String {
    let [from_file, from_stdin, rotated, last] = canaries;
    let cluster = &machine.cluster;
    // Outside of the folders that are searched: the operator's own copies.
    let own = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = own.path().join(name);
        std::fs::write(&path, bytes).expect("it is ours");
        path.display().to_string()
    };
    let mut told = cluster.ok(["secret", "create", "db", &write("first", from_file)]);
    told += &cluster.ok_with(["secret", "create", "api", "-"], from_stdin);
    machine.service("web", &["db", "api"]);
    let task = machine.task("web");
    let read = |name: &str| task.slurp(machine.at(name)).expect("its own secret");
    assert!(read("db") == *from_file);
    assert!(read("api") == *from_stdin);
    told += &cluster.ok(["secret", "rotate", "--wait", "db", &write("second", rotated)]);
    assert!(read("db") == *rotated);
    told += &cluster.ok(["secret", "rollback", "db"]);
    machine.until("the rollback to arrive", || read("db") == *from_file);
    for ask in [
        vec!["secret", "inspect", "db", "api"],
        vec!["secret", "inspect", "--pretty", "db"],
        vec!["secret", "history", "db"],
        vec!["secret", "status", "db"],
        vec!["secret", "ls"],
        vec!["service", "inspect", "web"],
        vec!["service", "ps", "web"],
        vec!["node", "ls"],
        vec!["cluster", "status"],
    ] {
        told += &cluster.ok(ask);
    }
    // Refusals, with the value at hand.
    let again = cluster.keyhole_with(["secret", "create", "db", "-"], from_file);
    assert_eq!(again.code, 1, "it exists");
    told += &format!("{}{}", again.stdout, again.stderr);
    let missing = cluster.keyhole_with(["secret", "rotate", "nothing", "-"], rotated);
    assert_eq!(missing.code, 1, "there is none");
    told += &format!("{}{}", missing.stdout, missing.stderr);
    // The last READ of all: a new inode, so that it reaches the worker and not only the kernel's pages.
    told += &cluster.ok_with(["secret", "rotate", "--wait", "api", "-"], last);
    assert!(read("api") == *last);
    told
}

/// A crash leaves no core, although the limit would allow one.
fn assert_no_core(machine: &mut Machine, worker: i32) {
    let start = std::time::SystemTime::now();
    let status = std::fs::read_to_string(format!("/proc/{worker}/limits")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("Max core file size"));
    println!("worker: {}", line.unwrap_or_default());
    let supervisor = machine.node.stop(Signal::ABORT);
    let manager = machine.cluster.stop(Signal::ABORT);
    for (who, ended) in [("supervisor", supervisor), ("manager", manager)] {
        println!("{who}: {ended}");
        assert!(ended.signal().is_some() && !ended.core_dumped(), "{who}: {ended}");
    }
    for folder in [Path::new("."), Path::new("/")] {
        let entries = std::fs::read_dir(folder).expect("readable").flatten();
        let cores = entries.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let written = entry.metadata().and_then(|facts| facts.modified());
            name.starts_with("core") && written.is_ok_and(|written| written >= start)
        });
        assert_eq!(cores.count(), 0, "a core file in {}", folder.display());
    }
}

/// Data, sockets' and temporary folders, logs; the working folder and the system's temporary ones.
#[track_caller]
fn assert_not_in_files(ground: &Ground, needles: &[Needle]) {
    let scan = scan::files(ground.folder(), needles);
    println!("{} files searched in {}", scan.files, ground.folder().display());
    assert!(scan.hits.is_empty(), "{:#?}", scan.hits);
    assert!(scan.files > 5, "the folders of the daemons are elsewhere");
    for folder in [".", "/tmp", "/var/tmp", "/dev/shm", "/run/keyhole"] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let plain = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()));
        for entry in plain {
            let small = entry.metadata().is_ok_and(|facts| facts.len() < 64 << 20);
            // It may be another test's and gone by now.
            if small && entry.path().exists() {
                let hits = scan::file(&entry.path(), needles);
                let found: Vec<_> = hits.iter().filter(|hit| !hit.contains("cannot")).collect();
                assert!(found.is_empty(), "{found:#?}");
            }
        }
    }
}

/// The control: a scan finds a canary that lies in some process's heap.
#[test]
fn the_scanner_finds_a_planted_canary() {
    let canary = canary();
    let mut keeper = Command::new(keeper_binary())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the keeper runs");
    let mut input = keeper.stdin.take().expect("piped");
    // Somewhere in a larger heap, over the border of two chunks or not.
    let mut bytes = vec![7; 9 << 20];
    let at = (4 << 20) - 20;
    bytes[at..at + 48].copy_from_slice(&canary);
    input.write_all(&bytes).expect("it reads");
    drop(input);
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut line).expect("a pipe");
    let found = scan::memory(keeper.id() as i32, &scan::halves("it", &canary));
    let absent = scan::memory(keeper.id() as i32, &scan::halves("it", &self::canary()));
    keeper.kill().and_then(|()| keeper.wait()).expect("our own child");
    assert!(found.hits.iter().any(|hit| hit.starts_with("first half")), "{found:?}");
    assert!(found.hits.iter().any(|hit| hit.starts_with("last half")), "{found:?}");
    assert!(absent.hits.is_empty(), "{absent:?}");
}
