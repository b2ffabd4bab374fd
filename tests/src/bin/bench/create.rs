//! (c) Creates per second, each on disk before it is answered, against what the disk can do.
//!
//! Depends on the harness. Invariant: values are sealed before the clock starts, as they are on operators' machines; the
//! disk's own rate is measured between the rounds, on the same file system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keyhole_proto::v1;
use keyhole_tests::Cluster;
use keyhole_tests::operate::Operator;
use tokio::runtime::Runtime;

use crate::figure::{Aim, Figure, quantile};

/// Callers, creates in one round, and the aim.
const LEVELS: [(usize, usize, f64); 3] =
    [(1, 2_000, 2_000.0), (16, 10_000, 15_000.0), (256, 20_000, 20_000.0)];
const ROUNDS: usize = 3;
const VALUE: [u8; 1024] = [b'k'; 1024];
/// A round ends then, also if not everything is created.
const ROUND: Duration = Duration::from_secs(2);
const DISK: Duration = Duration::from_millis(500);

pub(crate) fn measure() -> Vec<Figure> {
    let cluster = Cluster::start();
    let runtime = Runtime::new().expect("a runtime");
    let disk = Disk::new(&cluster.ground().folder().join("disk"));
    LEVELS.iter().map(|level| level_figure(&cluster, &runtime, &disk, *level)).collect()
}

fn level_figure(
    cluster: &Cluster,
    runtime: &Runtime,
    disk: &Disk,
    (callers, creates, aim): (usize, usize, f64),
) -> Figure {
    let operators = runtime.block_on(connect(cluster.socket(), callers));
    let (mut rates, mut disk_rates) = (Vec::new(), vec![disk.rate()]);
    for round in 0..ROUNDS {
        let names = (0..creates).map(|number| format!("c{callers}-{round}-{number}"));
        rates.push(runtime.block_on(create_all(&operators, names, ROUND)));
        disk_rates.push(disk.rate());
    }
    let best = |rates: &[f64]| quantile(rates, 1.0);
    let name = format!("creates, {callers} {}", if callers == 1 { "caller" } else { "callers" });
    Figure::new('c', name, best(&rates), "/s")
        .aim(Aim::AtLeast(aim))
        .with("fdatasync /s", best(&disk_rates))
        .with("creates per fdatasync", best(&rates) / best(&disk_rates))
}

/// Each caller has a connection of its own, as each CLI has.
pub(crate) async fn connect(socket: &Path, callers: usize) -> Vec<Operator> {
    let mut operators = Vec::new();
    for _ in 0..callers {
        operators.push(Operator::connect(socket).await.expect("the manager answers"));
    }
    operators
}

/// Creates secrets of 1 KiB until `limit`, each caller one after the other; gives how many a second.
pub(crate) async fn create_all(
    operators: &[Operator],
    names: impl Iterator<Item = String>,
    limit: Duration,
) -> f64 {
    let first = operators.first().expect("there is a caller");
    let sealed = seal(first, names);
    create_sealed(operators.iter().map(|operator| (operator.clone(), sealed.clone())), limit).await
}

/// New secrets that callers of one manager take turns with.
pub(crate) type Sealed = Arc<Mutex<Vec<v1::CreateSecretRequest>>>;

/// Seals values to the manager of this operator.
pub(crate) fn seal(by: &Operator, names: impl Iterator<Item = String>) -> Sealed {
    Arc::new(Mutex::new(names.map(|name| by.new_secret(&name, &VALUE)).collect()))
}

/// Creates what is sealed already, as [`create_all`].
pub(crate) async fn create_sealed(
    operators: impl Iterator<Item = (Operator, Sealed)>,
    limit: Duration,
) -> f64 {
    let start = Instant::now();
    let callers: Vec<_> = operators
        .map(|(operator, sealed)| tokio::spawn(caller(operator, sealed, start + limit)))
        .collect();
    let mut created = 0;
    for caller in callers {
        created += caller.await.expect("no panic");
    }
    f64::from(created) / start.elapsed().as_secs_f64()
}

async fn caller(mut operator: Operator, waiting: Sealed, end: Instant) -> u32 {
    let mut created = 0;
    while Instant::now() < end {
        let Some(request) = waiting.lock().expect("no panic").pop() else { break };
        operator.api.create_secret(request).await.expect("a new secret");
        created += 1;
    }
    created
}

/// The same disk, without anything of ours in between.
struct Disk {
    file: File,
}

impl Disk {
    /// A file whose blocks are there already: nothing but data is written.
    fn new(path: &Path) -> Self {
        let file = File::create(path).expect("the folder is ours");
        file.write_all_at(&[0; 1 << 20], 0).expect("there is room");
        file.sync_all().expect("a disk");
        Self { file }
    }

    /// Writes of 4 KiB that wait for the disk, per second.
    fn rate(&self) -> f64 {
        let (start, mut count) = (Instant::now(), 0_u32);
        while start.elapsed() < DISK {
            let at = u64::from(count % 256) * 4096;
            self.file.write_all_at(&[count as u8; 4096], at).expect("there is room");
            self.file.sync_data().expect("a disk");
            count += 1;
        }
        f64::from(count) / start.elapsed().as_secs_f64()
    }
}
