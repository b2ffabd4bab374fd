//! No caller ever sees another's value, a mixed one, an old one after the rotation was acknowledged and delivered, or a
//! listing that is not its own: four processes in three cgroups on one path, under rotation.
//!
//! Processes: one in service `left`'s cgroup with two threads, one in a nested cgroup of `left`'s, one in a nested
//! cgroup of `right`'s, and an outsider. Beside them one process is moved between the two services again and again, and
//! others are killed in the middle of what they do. Four secrets rotate without a pause, by the operator's API.
//!
//! That this finds what it is for was tried with two faults planted by hand (see [`planted`]); nothing in the
//! product switches them on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keyhole_tests::board::{Board, FLOORS, READ_AS, STOP, STOP_MOVED, WHO, who};
use keyhole_tests::labelled::{Label, value};
use keyhole_tests::operate::Operator;
use keyhole_tests::reader::{Reader, ReaderSpec, Report, Sight};
use keyhole_tests::{Cluster, NodeOptions, wait};

/// How the two faults are planted, for who wants to see the test fail. Each is a change in `node-fs/src/fuse.rs`.
///
/// 1. *An inode shared between tasks*: let `lookup` give the kernel a number that is made of the file's name alone, and
///    remember (number, caller) -> inode; let `open` look that up and put the inode in the handle; let `read` and
///    `release` take it from there. Fails within two seconds: one task's pages cut to another's size.
/// 2. *An entry timeout of 1 s*: let `lookup` reply with `Duration::from_secs(1)` in place of `name_ttl`. Fails at the
///    first rotation: an old value after the new one was delivered.
mod planted {}

/// Which secret is where. Both services have the same names, but for one each.
const LEFT: [(&str, u32); 3] = [("pw", 0), ("left", 1), ("tls/key", 0)];
const RIGHT: [(&str, u32); 3] = [("pw", 2), ("right", 3), ("tls/key", 2)];
const SECRETS: [&str; 4] = ["s0", "s1", "s2", "s3"];
/// From here on, by reader: the cycles that it has done.
const DONE: usize = FLOORS + SECRETS.len();
/// More than any run takes: what hangs is ended by nextest.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

fn sight(files: &[(&str, u32)], foreign: &[&str]) -> Sight {
    let own = |text: &&str| (*text).to_owned();
    let mut listing: Vec<String> = files
        .iter()
        .map(|(path, _)| path.split('/').next().expect("a first component").to_owned())
        .collect();
    listing.sort_unstable();
    Sight {
        files: files.iter().map(|(path, secret)| ((*path).to_owned(), *secret)).collect(),
        listing,
        foreign: foreign.iter().map(own).collect(),
    }
}

fn left() -> Sight {
    sight(&LEFT, &["right", ".hidden", "tls/cert"])
}
fn right() -> Sight {
    sight(&RIGHT, &["left", ".hidden", "tls/cert"])
}
fn nobody() -> Sight {
    sight(&[], &["pw", "left", "right", "tls", "tls/key"])
}

/// How long a run is.
struct Scale {
    opens: u64,
    kills: u32,
    moves: u32,
}

/// The longest that a rotation may take on average.
const EVERY: Duration = Duration::from_millis(5);

fn scale(short: u64, long: u64) -> Scale {
    let soak = std::env::var_os("KEYHOLE_SOAK").is_some();
    let opens = if soak { long } else { short };
    let per = |every: u64| u32::try_from(opens / every).expect("a few thousand");
    Scale { opens, kills: per(2_000), moves: per(500) }
}

/// The two services with a task each, and the shared numbers.
struct Scene {
    board: Arc<Board>,
    mount: PathBuf,
    left: PathBuf,
    right: PathBuf,
}

impl Scene {
    fn spec(&self, cgroup: Option<PathBuf>, sights: Vec<Sight>) -> ReaderSpec {
        ReaderSpec {
            board: self.board.path().to_owned(),
            cgroup,
            mount: self.mount.clone(),
            stop: STOP,
            threads: 1,
            done: None,
            sights,
            cold: false,
        }
    }
}

/// One thing after the other, so that nothing but the readers has to be torn down by force.
fn stress(options: NodeOptions, scale: &Scale) {
    let cluster = Cluster::start();
    let node = cluster.node_with(options);
    let board = Arc::new(Board::create(&cluster.ground().folder().join("board"), 16));
    for (number, name) in (0..).zip(SECRETS) {
        let first = value(Label { secret: number, sequence: 1 });
        cluster.ok_with(["secret", "create", name, "-"], &first);
        board.set(FLOORS + number as usize, 1);
    }
    for (service, files) in [("left", LEFT), ("right", RIGHT)] {
        let grants = files.map(|(path, n)| format!("source=s{n},target={path},mode=0444"));
        let grants = grants.iter().flat_map(|grant| ["--secret", grant]);
        cluster.ok(["service", "create", service].into_iter().chain(grants));
    }
    // They keep their cgroups alive.
    let anchors = [node.task("left"), node.task("right")];
    let [left, right] = anchors.each_ref().map(|anchor| anchor.cgroup());
    let scene = Scene { board, mount: node.mount(), left, right };

    let rotation = Rotation::start(cluster.socket(), Arc::clone(&scene.board));
    let start = Instant::now();
    let report = read_all(&scene, scale);
    let took = start.elapsed();
    let rotated = rotation.stop();
    println!("{report:?} in {took:.1?}");
    println!(
        "{} rotations, one every {:.2} ms; {} deliveries awaited",
        rotated.rotations,
        rotated.took.as_secs_f64() * 1e3 / rotated.rotations as f64,
        rotated.deliveries,
    );
    assert!(report.opens >= scale.opens, "{} opens are too few", report.opens);
    assert!(report.fresh > 100, "the readers hardly saw a rotation: {report:?}");
    assert!(report.listings > 100 && rotated.deliveries > 100);
    let every = rotated.took / u32::try_from(rotated.rotations).expect("not so many");
    assert!(every <= EVERY, "a rotation only every {every:?}");
}

fn read_all(scene: &Scene, scale: &Scale) -> Report {
    let nested = |parent: &Path, name: &str| {
        let cgroup = parent.join(name);
        std::fs::create_dir(&cgroup).expect("root can make a cgroup");
        cgroup
    };
    let counted = |at: usize, cgroup: Option<PathBuf>, sight: Sight| ReaderSpec {
        done: Some(DONE + at),
        ..scene.spec(cgroup, vec![sight])
    };
    let deep = nested(&nested(&scene.left, "inner"), "deeper");
    let inner = nested(&scene.right, "inner");
    let threaded = ReaderSpec { threads: 2, ..counted(0, Some(scene.left.clone()), left()) };
    let mut readers = [
        Reader::start("left, two threads", &threaded),
        Reader::start("left, nested twice", &counted(1, Some(deep), left())),
        Reader::start("right, nested", &counted(2, Some(inner), right())),
        Reader::start("outside", &counted(3, None, nobody())),
    ];
    let moved = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_callers(scene, scale.kills));
        let moved = scope.spawn(|| move_between(scene, scale.moves));
        killer.join().expect("nobody was hurt by a killed caller");
        moved.join().expect("the moved process saw what it should")
    });
    println!("moved {} times: {moved:?}", scale.moves);
    assert!(moved.reads > u64::from(scale.moves) && moved.unsure > 0, "{moved:?}");
    wait::until_within(LONGEST, "the readers to have opened enough", || {
        let done: u64 = (0..readers.len()).map(|at| scene.board.get(DONE + at)).sum();
        let enough = done >= scale.opens || readers.iter_mut().any(Reader::ended);
        if enough { Ok(()) } else { Err(format!("{done} cycles")) }
    });
    scene.board.set(STOP, 1);
    let reports = readers.map(Reader::finish);
    for report in &reports {
        assert!(report.opens > scale.opens / 16, "one of them hardly opened anything: {report:?}");
    }
    reports.iter().fold(Report::default(), Report::plus)
}

/// Callers that die in the middle of whatever they do.
fn kill_callers(scene: &Scene, kills: u32) {
    for number in 0..kills {
        let (cgroup, sight) =
            if number % 2 == 0 { (&scene.left, left()) } else { (&scene.right, right()) };
        let spec = scene.spec(Some(cgroup.clone()), vec![sight]);
        let mut victim = Reader::start("victim", &ReaderSpec { threads: 3, ..spec });
        std::thread::sleep(Duration::from_micros(u64::from(number * 379 % 5_000)));
        assert!(!victim.ended(), "a victim ended by itself: {:?}", victim.finish());
        victim.kill();
    }
}

/// A process that is the one service's and then the other's.
fn move_between(scene: &Scene, moves: u32) -> Report {
    let board = &scene.board;
    board.set(WHO, who(0, Some(0)));
    let spec = scene.spec(Some(scene.left.clone()), vec![left(), right()]);
    let mut reader = Reader::start("moved", &ReaderSpec { stop: STOP_MOVED, ..spec });
    for number in 1..=u64::from(moves) {
        let (identity, cgroup) = [(0, &scene.left), (1, &scene.right)][number as usize % 2];
        board.set(WHO, who(number, None));
        reader.move_to(cgroup);
        let settled = who(number, Some(identity));
        board.set(WHO, settled);
        wait::until("the moved process to read as who it is now", || {
            let there = board.get(READ_AS) == settled || reader.ended();
            if there { Ok(()) } else { Err(format!("moved {number} times")) }
        });
        if reader.ended() {
            break;
        }
    }
    board.set(STOP_MOVED, 1);
    reader.finish()
}

/// The operator: each secret is rotated again as soon as its last rotation was acknowledged.
struct Rotation {
    ending: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Rotated>,
}

/// What was done.
struct Rotated {
    rotations: u64,
    deliveries: u64,
    took: Duration,
}

impl Rotation {
    fn start(socket: &Path, board: Arc<Board>) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (socket, end) = (socket.to_owned(), Arc::clone(&ending));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(rotate(&socket, &board, &end))
        });
        Self { ending, thread }
    }

    fn stop(self) -> Rotated {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.join().expect("the operator has no trouble")
    }
}

/// By secret: the last acknowledged sequence number and its log index, with the incarnation.
type Acknowledged = Mutex<Vec<(u64, keyhole_proto::v1::RevisionRef)>>;

async fn rotate(socket: &Path, board: &Board, end: &AtomicBool) -> Rotated {
    let operator = Operator::connect(socket).await.expect("the manager runs");
    let acknowledged: Acknowledged = Mutex::new(vec![Default::default(); SECRETS.len()]);
    let (rotations, deliveries) = (AtomicU64::new(0), AtomicU64::new(0));
    let another = tokio::sync::Notify::new();
    let start = Instant::now();
    // Two in each command: the managers take them both or neither.
    let rotate = |pair: [usize; 2]| {
        let (operator, acknowledged) = (&operator, &acknowledged);
        let (rotations, another) = (&rotations, &another);
        async move {
            for sequence in 2.. {
                if end.load(Ordering::Relaxed) {
                    another.notify_one();
                    return;
                }
                let bytes = pair.map(|number| value(Label { secret: number as u32, sequence }));
                let both = [0, 1].map(|at| (SECRETS[pair[at]], &*bytes[at]));
                let acked = operator.rotate_all(&both).await.expect("they rotate");
                assert_eq!(acked.len(), 2);
                for (number, acked) in pair.into_iter().zip(acked) {
                    acknowledged.lock().expect("no panic")[number] = (sequence, acked.revision);
                    rotations.fetch_add(1, Ordering::Relaxed);
                }
                another.notify_one();
            }
        }
    };
    let watch = async {
        let mut delivered = 0;
        while !end.load(Ordering::Relaxed) {
            let acked = acknowledged.lock().expect("no panic").clone();
            let last = acked.iter().map(|(_, revision)| *revision).max_by_key(|r| r.index);
            let Some(last) = last.filter(|last| last.index > delivered) else {
                another.notified().await;
                continue;
            };
            let progress = operator.delivered(last).await.expect("a progress");
            assert_eq!((progress.nodes, progress.delivered), (1, 1), "{progress:?}");
            for (number, (sequence, _)) in acked.iter().enumerate().filter(|(_, a)| a.0 > 0) {
                board.set(FLOORS + number, *sequence);
            }
            delivered = last.index;
            deliveries.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(rotate([0, 1]), rotate([2, 3]), watch);
    Rotated {
        rotations: rotations.into_inner(),
        deliveries: deliveries.into_inner(),
        took: start.elapsed(),
    }
}

#[test]
fn no_caller_sees_what_is_not_its_own_and_current() {
    stress(NodeOptions::default(), &scale(100_000, 5_000_000));
}

/// The way of kernels before 6.13.
#[test]
fn nor_when_callers_are_known_by_proc() {
    let args = ["--identity", "proc"].map(str::to_owned).to_vec();
    stress(NodeOptions { args, ..NodeOptions::default() }, &scale(20_000, 1_000_000));
}
