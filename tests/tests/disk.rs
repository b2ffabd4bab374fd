//! A manager on a disk that fails: each operation on a file of its data folder fails in turn, and power is lost after
//! every one, while a fixed script of changes runs. Afterwards all that was acknowledged is there and nothing is there by
//! half, or the manager does not start and says which file is the reason.
//!
//! Here it is the real program and all of its files: store, mark, key file, audit. (What redb does on its file is tried
//! without gaps, in memory, in `manager/tests/store/faults.rs`.) Each run takes a part of a second, so by default some
//! operations spread over the script are tried, and all on other files than the store and its mark; with KEYHOLE_SOAK all
//! of them. KEYHOLE_FAULT tries one alone, as a failure says.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use keyhole_manager::audit::{Verifier, files};
use keyhole_proto::v1;
use keyhole_tests::disk::{
    Case, Disk, Fault, FaultKind, Secrets, Shim, WatchedFolder, asked_for, block_on, each,
    faults_of, is_soak, losses,
};
use keyhole_tests::operate::Operator;
use keyhole_tests::{free_address, wait};
use tonic::Status;

/// `--init` is always given: it must never make a second cluster where one was. The audit is in more than one file.
const ARGS: [&str; 3] = ["--init", "--audit-file-size", "4KiB"];

fn case(address: SocketAddr, what: &str) -> Case {
    Case::new("disk", address, what, &ARGS)
}

/// What came of the script.
#[derive(Default)]
struct Ran {
    /// How many of its changes were acknowledged.
    acknowledged: usize,
    /// How many operations there were when each of them was.
    operations: Vec<usize>,
    /// Whether one more was, after a failure.
    late: bool,
}

const CHANGES: [(&str, &str, usize); 8] = [
    ("create", "a", 40),
    ("rotate", "a", 40),
    ("create", "b", 20_000),
    ("rotate", "b", 100_000),
    ("store keys", "", 0),
    ("remove", "a", 0),
    ("tokens", "", 9),
    ("create", "c", 1),
];

/// What there is after each change.
fn states() -> Vec<Secrets> {
    let mut states = vec![Secrets::new()];
    for (change, name, _) in CHANGES {
        let mut next = states.last().expect("the first").clone();
        match change {
            "remove" => drop(next.remove(name)),
            "store keys" | "tokens" => {}
            _ => *next.entry(name.to_owned()).or_default() += 1,
        }
        states.push(next);
    }
    states
}

/// Makes the changes until one fails, and then one more.
async fn script(socket: &Path, watched: &WatchedFolder) -> Ran {
    let mut ran = Ran::default();
    let Ok(operator) = Operator::connect(socket).await else { return ran };
    for (change, name, size) in CHANGES {
        let value = vec![b'x'; size];
        let done = match change {
            "create" => operator.create(name, &value).await.map(drop),
            "rotate" => operator.rotate(name, &value).await.map(drop),
            "store keys" => rotated_store_keys(&operator).await,
            "tokens" => rotated_tokens(&operator, size).await,
            _ => {
                let object = v1::ObjectRequest { object: name.to_owned() };
                operator.api().remove_secret(object).await.map(drop)
            }
        };
        if done.is_err() {
            ran.late = operator.create("late", b"late").await.is_ok();
            return ran;
        }
        ran.acknowledged += 1;
        ran.operations.push(watched.operations());
    }
    ran
}

/// Lines of the audit, as many as it takes for another file of it.
async fn rotated_tokens(operator: &Operator, times: usize) -> Result<(), Status> {
    let role = v1::TokenRole::Worker.into();
    for _ in 0..times {
        operator.api().join_token(v1::JoinTokenRequest { role, rotate: true }).await?;
    }
    Ok(())
}

/// Has the store written anew under new keys, and waits until it is and the keys before are gone.
async fn rotated_store_keys(operator: &Operator) -> Result<(), Status> {
    let mut api = operator.api();
    let wanted = api.rotate_store_keys(v1::RotateStoreKeysRequest {}).await?.into_inner();
    let started = Instant::now();
    loop {
        let managers = api.list_managers(v1::ListRequest {}).await?.into_inner().managers;
        if managers.iter().all(|manager| manager.store_number == wanted.store_number) {
            return Ok(());
        }
        assert!(started.elapsed() < wait::PATIENCE, "the store is not written anew: {managers:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A run without a fault.
fn recorded(shim: &Shim, kind: Option<FaultKind>) -> (Case, WatchedFolder, Ran) {
    let case = case(free_address(), "no fault");
    let watched = WatchedFolder::new(shim, &case.ground, &case.data);
    let (mut manager, ready) =
        case.start(watched.environment(kind.map(|kind| Fault { kind, at: u64::MAX })));
    ready.expect("it starts on a disk that is well");
    let ran = block_on(script(&case.socket(), &watched));
    assert!(manager.terminate().success());
    assert_eq!(ran.acknowledged, CHANGES.len());
    assert_eq!(files(&case.data.join("audit")).expect("it is there").len(), 2, "another file");
    (case, watched, ran)
}

/// One operation fails; then the manager starts on a disk that is well.
fn one_fails(shim: &Shim, fault: Fault, address: SocketAddr) {
    let case = case(address, &format!("{:?} {}", fault.kind, fault.at));
    let what = &case.what;
    let watched = WatchedFolder::new(shim, &case.ground, &case.data);
    let (mut manager, ready) = case.start(watched.environment(Some(fault)));
    let ran = match ready {
        Ok(()) => block_on(script(&case.socket(), &watched)),
        Err(_) => Ran::default(),
    };
    match manager.ended() {
        Some(_) => case.is_named(&manager.log()),
        None => drop(manager.terminate()),
    }
    let log = manager.log();
    assert!(!log.contains("keyhole: internal error"), "{what}: a panic:\n{log}");
    match case.reopened() {
        Ok(mut found) => {
            let late = found.remove("late").is_some();
            assert!(late || !ran.late, "{what}: a late change was acknowledged and is gone");
            let fits = states()[ran.acknowledged..].contains(&found);
            assert!(fits, "{what}: after change {} there is {found:?}", ran.acknowledged);
            vouched_for(&case);
        }
        // A write of the mark that was done by half leaves none.
        Err(line) => {
            assert!(
                fault.kind == FaultKind::Half && line.contains("store.mark"),
                "{what}: it does not start any more: {line}"
            );
            // Before the first change was applied there is nothing to tell.
            if ran.acknowledged > 0 {
                vouched_for(&case);
            }
        }
    }
}

/// Whatever happened to the audit's disk, what is in its files is whole, or the files say themselves why not.
fn vouched_for(case: &Case) {
    let folder = case.data.join("audit");
    let mut verifier = Verifier::new(None, true);
    for (_, file) in files(&folder).expect("the folder is there") {
        let bytes = fs::read(&file).expect("it is ours");
        verifier.file(&file.display().to_string(), bytes.as_slice()).expect("it is in memory");
    }
    let problems: Vec<_> = verifier.finish().problems.into_iter().map(|found| found.what).collect();
    assert!(problems.is_empty(), "{}: {problems:?}", case.what);
}

fn each_fails(kind: FaultKind, some: usize) {
    let shim = Shim::build();
    let (_case, watched, _) = recorded(&shim, Some(kind));
    each(faults_of(kind, &watched, some), |fault, address| one_fails(&shim, fault, address));
}

#[test]
fn each_operation_that_fails_loses_nothing() {
    each_fails(FaultKind::Io, 10);
}

#[test]
fn a_full_disk_at_any_moment_loses_nothing() {
    each_fails(FaultKind::Full, 6);
}

#[test]
fn a_write_done_by_half_loses_nothing() {
    each_fails(FaultKind::Half, 6);
}

#[test]
fn power_that_is_lost_at_any_moment_loses_nothing_acknowledged() {
    let shim = Shim::build();
    let (recorded, watched, ran) = recorded(&shim, None);
    let trace = watched.trace();
    assert_eq!(trace.len(), watched.operations(), "the trace has every operation");
    each(losses(&trace, 10), |(moment, left), address| {
        let case = case(address, &format!("{left:?} {moment}"));
        let what = &case.what;
        Disk::after(&trace[..moment]).lose_power(&recorded.data, &case.data, left);
        let acknowledged = ran.operations.partition_point(|done| *done <= moment);
        match case.reopened() {
            Ok(found) => {
                let fits = states()[acknowledged..].contains(&found);
                assert!(fits, "{what}: after change {acknowledged} there is {found:?}");
            }
            Err(line) => assert!(
                acknowledged == 0,
                "{what}: {acknowledged} changes were acknowledged, and it does not start: {line}"
            ),
        }
    });
}

/// A copy of a stopped manager's folder with one bit flipped.
fn flipped(from: &Path, to: &Path, file: &str, bit: usize) {
    fs::create_dir(to).expect("the ground is ours");
    fs::create_dir(to.join("audit")).expect("the folder is ours");
    for name in FILES {
        // The mode of the key file goes with it.
        fs::copy(from.join(name), to.join(name)).expect("they are ours");
    }
    let mut bytes = fs::read(to.join(file)).expect("it is ours");
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(to.join(file), bytes).expect("it is ours");
}

const FILES: [&str; 5] =
    ["kek", "store.mark", "store.redb", "audit/audit-000001.jsonl", "audit/audit-000002.jsonl"];

/// Also `manager/tests/store/damage.rs`, where each bit of a store's rows and of its mark is read back.
#[test]
fn a_flipped_bit_of_any_file_is_harmless_or_fatal_by_name() {
    let shim = Shim::build();
    let (stopped, ..) = recorded(&shim, None);
    let places = if is_soak() { 200 } else { 4 };
    let cases = FILES.into_iter().flat_map(|file| {
        let bits = fs::metadata(stopped.data.join(file)).expect("it is there").len() as usize * 8;
        (0..places).map(move |place| (file, bits / places * place + 7 * place % 8))
    });
    let asked = cases.filter(|(file, bit)| asked_for(&format!("{file} {bit}")));
    let refused = Mutex::new(BTreeSet::new());
    each(asked, |(file, bit), address| {
        let case = case(address, &format!("{file} {bit}"));
        flipped(&stopped.data, &case.data, file, bit);
        match case.reopened() {
            Ok(found) => assert_eq!(Some(&found), states().last(), "{}", case.what),
            Err(line) => {
                let named = line.contains(&*case.data.join(file).display().to_string());
                // A key with another digit is a key: of another store.
                assert!(named || file == "store.redb" && line.contains("store."), "{line}");
                refused.lock().expect("no panic while it is held").insert(file);
            }
        }
    });
    let refused = refused.into_inner().expect("no panic while it was held");
    assert!(std::env::var_os("KEYHOLE_FAULT").is_some() || refused.len() == 3, "{refused:?}");
}

/// Each bit of an audit's file: its verifier says what is wrong, or that its end is a piece of a line.
#[test]
fn a_flipped_bit_of_an_audit_is_found() {
    let shim = Shim::build();
    let (stopped, ..) = recorded(&shim, None);
    let bytes = fs::read(stopped.data.join(FILES[3])).expect("it is ours");
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut verifier = Verifier::new(None, true);
        verifier.file("audit", bad.as_slice()).expect("it is in memory");
        let report = verifier.finish();
        assert!(!report.problems.is_empty() || !report.notes.is_empty(), "bit {bit}");
    }
}
