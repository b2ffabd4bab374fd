//! What was acknowledged is there after `kill -9`, exact to the byte, name and version; and each acknowledgement was
//! behind an fsync.
//!
//! Read back as a node reads: a member of the cluster in this process claims a task whose grants pin every version, and
//! opens what the manager sends. (That a backend which forgets unsynced writes loses nothing either, and that flipped
//! bits are found, is tested beside the store, in `manager/tests/store`.)

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use keyhole_proto::v1;
use keyhole_tests::labelled::{Label, read, value};
use keyhole_tests::member::{AssignedFiles, Member};
use keyhole_tests::operate::Operator;
use keyhole_tests::{Cluster, wait};
use rustix::process::Signal;

const CLIENTS: u32 = 4;
/// Grants of one service.
const MOST_GRANTS: usize = 1_000;

/// What the clients know: by secret's name and version, what was acknowledged; and what was begun.
#[derive(Debug, Default)]
struct Books {
    acknowledged: BTreeMap<String, BTreeMap<u64, Label>>,
    /// Begun and not answered: it may be there or not.
    begun: BTreeMap<String, Vec<Label>>,
    numbers: u32,
}

type Shared = Mutex<Books>;

fn locked(books: &Shared) -> std::sync::MutexGuard<'_, Books> {
    books.lock().expect("no panic while it is held")
}

impl Books {
    fn begin(&mut self, name: &str, label: Label) {
        self.begun.entry(name.to_owned()).or_default().push(label);
    }

    fn acknowledge(&mut self, name: &str, label: Label, version: u64) {
        let versions = self.acknowledged.entry(name.to_owned()).or_default();
        assert_eq!(versions.insert(version, label), None, "{name} {version} was given twice");
        self.begun.get_mut(name).expect("it was begun").retain(|begun| *begun != label);
    }
}

/// Creates and rotates until the manager is gone.
async fn client(number: u32, socket: &std::path::Path, books: &Shared) -> u64 {
    let Ok(operator) = Operator::connect(socket).await else { return 0 };
    let mut done = 0;
    let mut own = None;
    loop {
        // Three rotations of the own secret to one of the shared and one new secret.
        let (name, create) = match (done % 5, &own) {
            (0, _) | (_, None) => (None, true),
            (3, _) => (Some("shared".to_owned()), false),
            (_, own) => (own.clone(), false),
        };
        let (name, label) = {
            let mut books = locked(books);
            books.numbers += 1;
            let label = Label { secret: books.numbers, sequence: u64::from(number) };
            let name = name.unwrap_or_else(|| format!("c{number}-{}", label.secret));
            books.begin(&name, label);
            (name, label)
        };
        let outcome = match create {
            true => operator.create(&name, &value(label)).await,
            false => operator.rotate(&name, &value(label)).await,
        };
        let acked = match outcome {
            Ok(acked) => acked,
            // Somebody else's rotation of the shared secret came first too often.
            Err(status) if status.code() == tonic::Code::Aborted => continue,
            Err(_) => return done,
        };
        locked(books).acknowledge(&name, label, acked.version);
        assert_eq!(acked.name, name);
        done += 1;
        own = if create { Some(name) } else { own };
    }
}

/// Writes under way, killed at some moment; gives how many were acknowledged.
fn write_and_kill(cluster: &mut Cluster, after: Duration, books: &Shared) -> u64 {
    let socket = cluster.socket().to_owned();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let socket = &socket;
                scope.spawn(move || block_on(client(number, socket, books)))
            })
            .collect();
        std::thread::sleep(after);
        cluster.stop(Signal::KILL);
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Every secret in the list, and every kept version's bytes, against the books.
async fn check(cluster: &Cluster, member: &Member, books: &Shared) -> usize {
    let operator = Operator::connect(cluster.socket()).await.expect("it serves again");
    let list = operator.api.clone().list_secrets(v1::ListRequest {}).await.expect("a list");
    let list = list.into_inner().secrets;
    check_list(&list, &locked(books));
    let kept: Vec<(String, u64)> = list
        .iter()
        .flat_map(|secret| secret.versions.iter().map(|v| (secret.name.clone(), v.version)))
        .collect();
    let mut services = Vec::new();
    for (number, some) in kept.chunks(MOST_GRANTS).enumerate() {
        let grant =
            |(name, version): &(String, u64)| (name.clone(), format!("{name}/{version}"), *version);
        let grants: Vec<_> = some.iter().map(grant).collect();
        let service = format!("all-{number}");
        operator.service(&service, &grants).await.expect("a service");
        services.push(service);
    }
    let names: Vec<&str> = services.iter().map(String::as_str).collect();
    let files = member.files(&names, operator.manager()).await.expect("an assignment");
    for service in services {
        let service = v1::ObjectRequest { object: service };
        operator.api.clone().remove_service(service).await.expect("it is removed");
    }
    assert_eq!(files.len(), kept.len(), "every kept version is handed out");
    check_files(&files, &mut locked(books));
    files.len()
}

/// The bytes of each.
fn check_files(files: &AssignedFiles, books: &mut Books) {
    for ((_, target), file) in files {
        assert_eq!(*target, format!("{}/{}", file.name, file.version));
        let label = read(&file.bytes).unwrap_or_else(|wrong| panic!("{target}: {wrong}"));
        let acknowledged = books.acknowledged.get(&file.name).and_then(|v| v.get(&file.version));
        match acknowledged {
            Some(expected) => assert_eq!(label, *expected, "{target} has other bytes"),
            None => {
                let begun = books.begun.get(&file.name).is_some_and(|b| b.contains(&label));
                assert!(begun, "{target} has {label:?}, which nobody put there");
                // It is there now and must stay.
                books.acknowledge(&file.name.clone(), label, file.version);
            }
        }
    }
    // What was begun and is not there now can't come any more.
    books.begun.clear();
}

/// Names, versions and which one is current.
fn check_list(list: &[v1::SecretInfo], books: &Books) {
    let listed: BTreeMap<&str, &v1::SecretInfo> =
        list.iter().map(|secret| (secret.name.as_str(), secret)).collect();
    assert_eq!(listed.len(), list.len(), "a name is there twice");
    for (name, versions) in &books.acknowledged {
        let Some(secret) = listed.get(name.as_str()) else {
            panic!("secret {name} was acknowledged and is gone");
        };
        let newest = *versions.keys().next_back().expect("it has one");
        let last = secret.versions.iter().map(|v| v.version).max().expect("it has one");
        assert!(last >= newest, "{name}: version {newest} was acknowledged, {last} is the last");
        assert_eq!(secret.current, last, "{name}: nobody rolled back");
        let kept: Vec<u64> = secret.versions.iter().map(|version| version.version).collect();
        let first = last.saturating_sub(kept.len() as u64) + 1;
        assert_eq!(kept, (first..=last).collect::<Vec<_>>(), "{name}: no version is missing");
        assert!(kept.len() as u64 == last.min(10), "{name}: the last ten are kept: {kept:?}");
        for version in &secret.versions {
            if let Some(label) = versions.get(&version.version) {
                assert_eq!(version.size, value(*label).len() as u64, "{name}: {version:?}");
            }
        }
    }
    let unknown = |name: &&&str| {
        !books.acknowledged.contains_key(**name) && !books.begun.contains_key(**name)
    };
    assert_eq!(listed.keys().find(unknown), None, "a secret that nobody made");
}

#[test]
fn nothing_acknowledged_is_lost_by_fifty_kills_under_writes() {
    let soak = std::env::var_os("KEYHOLE_SOAK").is_some();
    // Each reads back more after every kill: a thousand kills of one store would take hours.
    (0..if soak { 20 } else { 1 }).for_each(|_| fifty_kills());
}

fn fifty_kills() {
    let rounds = 50;
    let mut cluster = Cluster::start();
    let token = cluster.node_token();
    let address = cluster.address();
    let member = block_on(Member::join(address, &token, "reader")).expect("it joins");
    let books = Shared::default();
    let first = Label { secret: 0, sequence: 0 };
    locked(&books).begin("shared", first);
    cluster.ok_with(["secret", "create", "shared", "-"], &value(first));
    locked(&books).acknowledge("shared", first, 1);
    let (mut acknowledged, mut read_back) = (0, 0);
    for round in 0..rounds {
        // From the first moments of a start to the middle of many writes.
        let mut random = [0; 2];
        getrandom::fill(&mut random).expect("the kernel has random bytes");
        let after = Duration::from_millis(5 + u64::from(u16::from_le_bytes(random)) % 200);
        acknowledged += write_and_kill(&mut cluster, after, &books);
        cluster.resume();
        let checked = block_on(check(&cluster, &member, &books));
        read_back += checked;
        println!("round {round}: killed after {after:?}; {checked} versions read back");
    }
    println!("{acknowledged} writes acknowledged, {read_back} versions read back");
    assert!(acknowledged > rounds * 4, "hardly anything was written: {acknowledged}");
}

/// strace on the manager, ended with it.
struct Trace {
    strace: Child,
    output: std::path::PathBuf,
}

impl Trace {
    fn attach(pid: i32, output: std::path::PathBuf) -> Self {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        let traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
            let untraced = tasks.flatten().filter(|task| {
                let status = std::fs::read_to_string(task.path().join("status"));
                status.is_ok_and(|status| status.contains("TracerPid:\t0\n"))
            });
            match untraced.count() {
                0 => Ok(()),
                count => Err(format!("{count} threads are not traced yet")),
            }
        };
        wait::until("strace to be attached to every thread", traced);
        Self { strace, output }
    }

    fn syncs(&self) -> usize {
        let text = std::fs::read_to_string(&self.output).expect("strace writes it");
        // A call that another thread interrupts is written in two lines.
        let begun = |line: &&str| line.contains("sync(") && !line.contains("resumed");
        text.lines().filter(begun).count()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

#[test]
fn every_acknowledgement_was_synced_first() {
    const ACKS: usize = 100;
    let mut cluster = Cluster::start();
    let output = cluster.ground().folder().join("strace");
    let trace = Trace::attach(cluster.manager().pid(), output);
    let (before, after) = block_on(async {
        let operator = Operator::connect(cluster.socket()).await.expect("it serves");
        let before = trace.syncs();
        let mut last = before;
        for number in 0..ACKS {
            let name = format!("s{number}");
            let label = Label { secret: number as u32, sequence: 1 };
            operator.create(&name, &value(label)).await.expect("it is created");
            // strace writes the line when the call returns, which is before the acknowledgement.
            let now = trace.syncs();
            assert!(now > last, "{name} was acknowledged and nothing was synced");
            last = now;
        }
        (before, last)
    });
    println!("{ACKS} sequential acknowledgements, {} syncs", after - before);
    assert!(after - before >= ACKS);
}
