//! What the store's tests share: a disk in memory that can lose power, and short ways to call the store.
//!
//! Depends on the store's public face only. Invariant: what a crash keeps is a subset of what was written, and all that
//! was synced.

use keyhole_manager::keys::Kek;
use keyhole_manager::store::{Done, LogRow, MarkFile, Position, Store, StoreError, StoreIdentity};
use keyhole_secmem::{Key32, SecretBytes};
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard};

/// A small generator of test data, the same for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct MemDisk(Arc<Mutex<DiskState>>);

#[derive(Default)]
pub(crate) struct DiskState {
    pub(crate) live: Vec<u8>,
    synced: Vec<u8>,
    /// Writes and resizes since the last sync.
    unsynced: Vec<Change>,
    pub(crate) mark: Option<Vec<u8>>,
    /// All that the mark ever was: none of it is ever synced.
    marks: Vec<Vec<u8>>,
    pub(crate) syncs: u64,
    /// Writes, syncs and resizes that still succeed.
    pub(crate) budget: Option<u64>,
    pub(crate) failure: Option<io::ErrorKind>,
    /// The one operation that fails.
    pub(crate) fault: Option<Fault>,
    /// All operations since it was asked for, with the image before them.
    recorded: Option<(Vec<u8>, Vec<Operation>)>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// What the store asked of the disk.
#[derive(Clone)]
enum Operation {
    Change(Change),
    Sync,
    Mark(Vec<u8>),
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A write of the store or its mark, of which nothing is done.
    Write,
    /// A write of which the first half is done.
    HalfWrite,
    /// A write or a resize: no space.
    Full,
    Resize,
    /// A sync: what it was to write is lost, and later syncs know nothing of it, as on Linux.
    Sync,
}

/// The operation that fails: the next one of its kind, after so many others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) after: u64,
}

/// What of the unsynced writes a loss of power leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// All but the second half of the last one.
    AllButATornEnd,
    /// The last one alone: a disk writes in any order.
    TheLast,
}

impl FaultKind {
    fn error(self) -> io::Error {
        match self {
            Self::Full => io::ErrorKind::StorageFull.into(),
            _ => io::Error::other("the disk failed"),
        }
    }
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => image.resize(*len, 0),
        Change::Write(at, data) => {
            let end = (at + data.len()).min(image.len());
            if *at < end {
                image[*at..end].copy_from_slice(&data[..end - at]);
            }
        }
    }
}

impl std::fmt::Debug for MemDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemDisk")
    }
}

impl MemDisk {
    pub(crate) fn with(live: Vec<u8>, mark: Option<Vec<u8>>) -> Self {
        let marks = mark.iter().cloned().collect();
        Self(Arc::new(Mutex::new(DiskState {
            synced: live.clone(),
            live,
            mark,
            marks,
            ..DiskState::default()
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap()
    }

    /// The file's bytes and the mark's.
    pub(crate) fn parts(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let state = self.state();
        (state.live.clone(), state.mark.clone())
    }

    pub(crate) fn mark_file(&self) -> Box<dyn MarkFile> {
        Box::new(MemMark(self.clone()))
    }

    /// The process was killed: the system still writes everything.
    pub(crate) fn killed(&self) -> Self {
        let state = self.state();
        Self::with(state.live.clone(), state.mark.clone())
    }

    /// Power was lost: of what was not synced, `dice` says what had reached the disk, in pieces of 512 bytes; a resize
    /// is metadata and goes with the last sync or survives whole.
    pub(crate) fn power_lost(&self, dice: &mut Dice, keep_some: bool) -> Self {
        let state = self.state();
        let mut image = state.synced.clone();
        if keep_some {
            let cut = dice.below(state.unsynced.len() as u64 + 1) as usize;
            for change in &state.unsynced[..cut] {
                match change {
                    Change::Resize(_) => apply(&mut image, change),
                    Change::Write(at, data) => {
                        for (n, sector) in data.chunks(512).enumerate() {
                            if dice.below(4) != 0 {
                                apply(&mut image, &Change::Write(at + n * 512, sector.to_vec()));
                            }
                        }
                    }
                }
            }
        }
        let mark = match state.marks.len() {
            0 => None,
            count => Some(state.marks[count - 1 - dice.below(count as u64) as usize].clone()),
        };
        Self::with(image, mark)
    }
}

impl MemDisk {
    /// Keeps every operation from now on.
    pub(crate) fn record(&self) {
        let mut state = self.state();
        state.recorded = Some((state.live.clone(), Vec::new()));
    }

    /// How many operations there were since [`Self::record`].
    pub(crate) fn operations(&self) -> usize {
        self.state().recorded.as_ref().map_or(0, |(_, operations)| operations.len())
    }

    /// Power was lost right after so many of the recorded operations.
    pub(crate) fn power_lost_after(&self, count: usize, left: Left) -> Self {
        let state = self.state();
        let (before, operations) = state.recorded.as_ref().unwrap();
        let (mut image, mut unsynced) = (before.clone(), Vec::new());
        let mut marks = state.marks.clone();
        marks.truncate(1);
        for operation in &operations[..count] {
            match operation {
                Operation::Change(change) => unsynced.push(change.clone()),
                Operation::Sync => unsynced.drain(..).for_each(|change| apply(&mut image, &change)),
                Operation::Mark(bytes) => marks.push(bytes.clone()),
            }
        }
        let last = unsynced.len().saturating_sub(1);
        match left {
            Left::Nothing => unsynced.clear(),
            Left::TheLast => drop(unsynced.drain(..last)),
            Left::AllButATornEnd => {
                if let Some(Change::Write(_, data)) = unsynced.last_mut() {
                    data.truncate(data.len() / 2);
                }
            }
        }
        unsynced.iter().for_each(|change| apply(&mut image, change));
        // Nothing waits for the mark: the disk has the first one or the newest.
        let mark = if left == Left::Nothing { marks.first() } else { marks.last() };
        Self::with(image, mark.cloned())
    }
}

impl DiskState {
    /// Whether this operation is the one that fails.
    fn strikes(&mut self, kinds: &[FaultKind]) -> Option<FaultKind> {
        let fault = self.fault.as_mut().filter(|fault| kinds.contains(&fault.kind))?;
        match fault.after {
            0 => self.fault.take().map(|fault| fault.kind),
            _ => {
                fault.after -= 1;
                None
            }
        }
    }

    fn note(&mut self, operation: impl FnOnce() -> Operation) {
        if let Some((_, operations)) = &mut self.recorded {
            operations.push(operation());
        }
    }

    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            Some(0) => Err(self.failure.unwrap_or(io::ErrorKind::Other).into()),
            Some(budget) => {
                *budget -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, mut change: Change) -> io::Result<()> {
        use FaultKind::{Full, HalfWrite, Resize, Write};
        self.spend()?;
        let struck = match &mut change {
            Change::Resize(_) => self.strikes(&[Resize, Full]),
            Change::Write(_, data) => {
                let struck = self.strikes(&[Write, HalfWrite, Full]);
                let done = if struck == Some(HalfWrite) { data.len() / 2 } else { data.len() };
                data.truncate(done);
                struck
            }
        };
        if struck.is_none_or(|kind| kind == HalfWrite) {
            apply(&mut self.live, &change);
            self.note(|| Operation::Change(change.clone()));
            self.unsynced.push(change);
        }
        struck.map_or(Ok(()), |kind| Err(kind.error()))
    }
}

impl StorageBackend for MemDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(state.live.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().change(Change::Resize(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        if let Some(kind) = state.strikes(&[FaultKind::Sync]) {
            state.unsynced.clear();
            return Err(kind.error());
        }
        let DiskState { synced, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|change| apply(synced, &change));
        state.note(|| Operation::Sync);
        state.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state().change(Change::Write(offset as usize, data.to_vec()))
    }
}

#[derive(Debug)]
struct MemMark(MemDisk);

impl MarkFile for MemMark {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.0.state().mark.clone().ok_or(io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        use FaultKind::{Full, HalfWrite, Write};
        let mut state = self.0.state();
        state.spend()?;
        let struck = state.strikes(&[Write, HalfWrite, Full]);
        let written = match struck {
            None => bytes.len(),
            Some(HalfWrite) => bytes.len() / 2,
            Some(kind) => return Err(kind.error()),
        };
        let mut mark = state.mark.take().unwrap_or_default();
        mark.resize(mark.len().max(written), 0);
        mark[..written].copy_from_slice(&bytes[..written]);
        state.mark = Some(mark.clone());
        state.note(|| Operation::Mark(mark.clone()));
        state.marks.push(mark);
        struck.map_or(Ok(()), |kind| Err(kind.error()))
    }
}

pub(crate) const FILE: &str = "/data/store.redb";

pub(crate) fn identity() -> StoreIdentity {
    StoreIdentity { cluster: "cluster".into(), manager: "manager".into(), member: 1 }
}

pub(crate) fn kek() -> Kek {
    Kek::from_key(Key32::from_bytes(&mut [9; 32]).unwrap(), "/keys/kek")
}

pub(crate) fn new_disk() -> MemDisk {
    let disk = MemDisk::default();
    Store::create_on(disk.clone(), disk.mark_file(), FILE, &identity(), &kek()).unwrap();
    disk
}

pub(crate) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) fn open(disk: &MemDisk) -> Result<(Store, Rows), StoreError> {
    let rows = Mutex::new(Rows::new());
    let load = |key: &[u8], value: &[u8]| {
        let twice = rows.lock().unwrap().insert(key.to_vec(), value.to_vec());
        assert_eq!(twice, None, "each row is loaded once");
        Ok(())
    };
    let store =
        Store::open_on(disk.clone(), disk.mark_file(), FILE, &kek(), Box::new(|_| ()), &load)?;
    Ok((store, rows.into_inner().unwrap()))
}

pub(crate) fn done() -> (Done, Receiver<Result<(), StoreError>>) {
    let (sender, receiver) = channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// Hands a job in and waits for its answer.
pub(crate) fn wait(job: impl FnOnce(Done)) -> Result<(), StoreError> {
    let (done, answer) = done();
    job(done);
    answer.recv().unwrap()
}

pub(crate) fn row(term: u64, index: u64, data: &[u8]) -> LogRow {
    LogRow { position: Position { term, index }, data: data.to_vec().into() }
}

pub(crate) fn append(store: &Store, rows: Vec<LogRow>) -> Result<(), StoreError> {
    let (done, answer) = done();
    store.append(rows, done)?;
    answer.recv().unwrap()
}

pub(crate) fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::copy_from(&mut bytes.to_vec()).unwrap()
}

/// All that can be read of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) log: Vec<LogRow>,
    pub(crate) purged: Option<Position>,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<Position>,
    pub(crate) rows: Rows,
    pub(crate) applied: Option<Vec<u8>>,
    pub(crate) local: Option<Vec<u8>>,
}

pub(crate) const LOCAL: &str = "own key";

pub(crate) fn content(store: &Store) -> Result<Content, StoreError> {
    let (sender, receiver) = channel();
    store.view(Box::new(move |view| drop(sender.send(view))));
    let view = receiver.recv().unwrap()?;
    let mut rows = Rows::new();
    view.for_each(&mut |(key, value)| {
        rows.insert(key, value);
        true
    })?;
    Ok(Content {
        log: store.read_log(0..u64::MAX, u64::MAX)?,
        purged: store.log_bounds().purged,
        vote: store.vote(),
        committed: store.committed(),
        rows,
        applied: view.applied().map(<[u8]>::to_vec),
        local: store.local_get(LOCAL)?.map(|secret| secret.as_slice().to_vec()),
    })
}
