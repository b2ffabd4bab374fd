//! The store on a bad disk: flipped bits, cut files, lost power. Either all that was acknowledged, or an error that names
//! the file.
use crate::disk::*;
use keyhole_manager::store::{Position, Store, StoreError};
use redb::{Database, TableDefinition};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const ROWS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const HEADER_BYTES: usize = 320;

fn fill(store: &Store) {
    for n in 1..=12 {
        append(store, vec![row(1, n, &[n as u8; 700])]).unwrap();
        store.put_rows(vec![(vec![n as u8; 5], Some(vec![n as u8; 90]))], vec![n as u8]);
    }
    store.purge(Position { term: 1, index: 3 });
    wait(|done| store.local_put(LOCAL, Some(secret(b"private")), done)).unwrap();
    wait(|done| store.save_vote(b"vote".to_vec(), done)).unwrap();
}

/// The image of a filled store, closed in order or killed, and what is in it.
fn image(closed: bool) -> (MemDisk, Content) {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    fill(&store);
    let content = content(&store).unwrap();
    let image = if closed { disk.clone() } else { disk.killed() };
    drop(store);
    (image, content)
}

/// Opens a damaged copy; `true` if it was refused.
fn opens_whole_or_not_at_all(disk: &MemDisk, expected: &Content, what: &str) -> bool {
    match open(disk).and_then(|(store, _)| content(&store)) {
        Ok(found) => {
            assert!(found == *expected, "{what}: other content was served");
            false
        }
        Err(error) => {
            assert!(error.to_string().contains("/data/store."), "{what}: {error}");
            true
        }
    }
}

fn flip_bits(closed: bool) {
    let (disk, expected) = image(closed);
    let (bytes, mark) = disk.parts();
    let pages: Vec<usize> = (4096..bytes.len())
        .step_by(4096)
        .filter(|at| bytes[*at..(at + 4096).min(bytes.len())].iter().any(|byte| *byte != 0))
        .collect();
    let mut dice = Dice(7);
    let body = (0..1000).map(|_| {
        let page = pages[dice.below(pages.len() as u64) as usize];
        page * 8 + dice.below(4096 * 8) as usize
    });
    let mut refused = 0;
    for bit in (0..HEADER_BYTES * 8).chain(body) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let copy = MemDisk::with(bad, mark.clone());
        refused += u32::from(opens_whole_or_not_at_all(&copy, &expected, &format!("bit {bit}")));
    }
    assert!(refused > 500, "the flips hit something: {refused} refused");
}

#[test]
fn a_flipped_bit_of_a_closed_file_is_harmless_or_fatal() {
    flip_bits(true);
}

#[test]
fn a_flipped_bit_of_a_killed_file_is_harmless_or_fatal() {
    flip_bits(false);
}

#[test]
fn a_cut_or_grown_file_is_fatal_or_whole() {
    let (disk, expected) = image(true);
    let (bytes, mark) = disk.parts();
    let len = bytes.len();
    let mut dice = Dice(3);
    let fixed =
        [0, 1, 8, 9, 63, 64, 319, 320, 4095, 4096, 8192, len - 4096, len - 1, len + 1, len + 4096];
    let random: Vec<_> = (0..60).map(|_| dice.below(len as u64) as usize).collect();
    for cut in fixed.into_iter().chain(random) {
        let mut bad = bytes.clone();
        bad.resize(cut, 0);
        let refused = opens_whole_or_not_at_all(
            &MemDisk::with(bad, mark.clone()),
            &expected,
            &format!("length {cut} of {len}"),
        );
        assert!(refused || cut > len, "cut to {cut} of {len} and served");
    }
    let zeroed = MemDisk::with(vec![0; len], mark);
    assert!(opens_whole_or_not_at_all(&zeroed, &expected, "zeroed"));
}

#[test]
fn every_flipped_bit_of_the_mark_is_fatal() {
    let (disk, expected) = image(true);
    let (bytes, mark) = disk.parts();
    let mark = mark.unwrap();
    for bit in 0..mark.len() * 8 {
        let mut bad = mark.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let copy = MemDisk::with(bytes.clone(), Some(bad));
        assert!(opens_whole_or_not_at_all(&copy, &expected, "mark"), "bit {bit} of the mark");
    }
    for mark in [None, Some(vec![]), Some(mark[..47].to_vec())] {
        let error = open(&MemDisk::with(bytes.clone(), mark)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("/data/store.mark"), "{error}");
    }
}

#[test]
fn a_store_older_than_its_acknowledgements_is_refused() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    append(&store, vec![row(1, 1, b"first")]).unwrap();
    let old = disk.state().live.clone();
    append(&store, vec![row(1, 2, b"acknowledged")]).unwrap();
    let mark = disk.state().mark.clone();
    drop(store);
    let error = open(&MemDisk::with(old, mark)).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::RolledBack { .. }), "{error}");
    assert!(error.to_string().contains("join under a new id"));
}

fn folder_with_store() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Store::create(folder.path(), &identity(), &kek()).unwrap();
    let store = open_folder(folder.path()).unwrap();
    fill(&store);
    folder
}

fn open_folder(folder: &Path) -> Result<Store, StoreError> {
    Store::open(folder, &kek(), Box::new(|_| ()), &|_, _| Ok(()))
}

fn tamper(folder: &Path, change: impl FnOnce(&redb::WriteTransaction)) -> StoreError {
    let db = Database::open(folder.join("store.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
    drop(db);
    open_folder(folder).map(|_| ()).unwrap_err()
}

/// A change behind the store's back.
type Tamper = fn(&redb::WriteTransaction);

#[test]
fn a_missing_moved_or_foreign_row_is_fatal() {
    let changes: [(&str, Tamper); 6] = [
        ("removed entry", |txn| {
            txn.open_table(LOG).unwrap().remove(7).unwrap();
        }),
        ("removed last entry", |txn| {
            txn.open_table(LOG).unwrap().remove(12).unwrap();
        }),
        ("swapped entries", |txn| {
            let mut log = txn.open_table(LOG).unwrap();
            let moved = log.remove(7).unwrap().unwrap().value().to_vec();
            log.insert(8, &*moved).unwrap();
            log.insert(7, &*moved).unwrap();
        }),
        ("removed state row", |txn| {
            txn.open_table(ROWS).unwrap().pop_first().unwrap().unwrap();
        }),
        ("removed tip", |txn| {
            txn.open_table(META).unwrap().remove("tip").unwrap();
        }),
        ("removed table", |txn| {
            txn.delete_table(ROWS).unwrap();
        }),
    ];
    for (what, change) in changes {
        let folder = folder_with_store();
        let error = tamper(folder.path(), change);
        assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
        assert!(error.to_string().contains("store.redb"), "{what}: {error}");
    }
}

#[test]
fn a_newer_format_is_refused_with_both_versions() {
    let folder = folder_with_store();
    let error = tamper(folder.path(), |txn| {
        txn.open_table(META).unwrap().insert("header", &[8u8, 2][..]).unwrap();
    });
    let text = error.to_string();
    assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
}

#[test]
fn a_missing_file_of_the_two_is_named() {
    for (gone, kept) in [("store.mark", "store.redb"), ("store.redb", "store.mark")] {
        let folder = folder_with_store();
        fs::remove_file(folder.path().join(gone)).unwrap();
        let text = open_folder(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(gone) && text.contains(kept) && text.contains("missing"), "{text}");
    }
}

/// What the store must hold after each job.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) content: Content,
    pub(crate) next: u64,
    pub(crate) term: u64,
}

impl Model {
    /// Hands a random job in; calls `acknowledged` when it is on disk.
    pub(crate) fn step(
        &mut self,
        dice: &mut Dice,
        store: &Store,
        done: keyhole_manager::store::Done,
    ) {
        let content = &mut self.content;
        match dice.below(10) {
            0..5 => {
                let rows: Vec<_> = (0..=dice.below(3))
                    .map(|n| {
                        let len = [10, 300, 9000][dice.below(3) as usize];
                        row(self.term, self.next + n, &dice.bytes(len))
                    })
                    .collect();
                self.next += rows.len() as u64;
                content.log.extend(rows.iter().cloned());
                let _ = store.append(rows, done);
            }
            5 => {
                let vote = dice.bytes(8);
                content.vote = Some(vote.clone());
                store.save_vote(vote, done);
            }
            6 => {
                let keep = dice.below(content.log.len() as u64 + 1) as usize;
                content.log.truncate(keep);
                let last = content.log.last().map(|row| row.position.index);
                let last = last.or(content.purged.map(|purged| purged.index));
                self.next = last.map_or(1, |last| last + 1);
                self.term += 1;
                store.truncate_after(last, done);
            }
            7 if content.log.len() > 4 => {
                let purged = content.log[1].position;
                content.log.drain(..2);
                content.purged = Some(purged);
                store.purge(purged);
                store.flush(done);
            }
            8 => {
                let rows: Vec<_> =
                    (0..dice.below(5)).map(|n| (vec![n as u8], dice.bytes(50))).collect();
                content.rows = rows.iter().cloned().collect();
                content.applied = Some(b"installed".to_vec());
                store.install_rows(Box::new(rows.into_iter()), b"installed".to_vec(), done);
            }
            _ => {
                let (key, value) = (vec![dice.below(20) as u8], dice.bytes(100));
                let applied = self.next.to_le_bytes().to_vec();
                content.rows.insert(key.clone(), value.clone());
                content.applied = Some(applied.clone());
                store.put_rows(vec![(key, Some(value))], applied);
                store.flush(done);
            }
        }
    }
}

#[test]
fn all_that_was_acknowledged_survives_lost_power() {
    let mut crashed_under_way = 0;
    for round in 0..120 {
        let mut dice = Dice(round);
        let disk = new_disk();
        let (store, _) = open(&disk).unwrap();
        disk.state().budget = Some(dice.below(400));
        let mut model = Model { next: 1, term: 1, ..Model::default() };
        let mut states = vec![model.content.clone()];
        let acknowledged = Arc::new(AtomicUsize::new(0));
        for job in 1..=60 {
            let acknowledged = acknowledged.clone();
            let done: keyhole_manager::store::Done = Box::new(move |result| {
                if result.is_ok() {
                    acknowledged.store(job, Ordering::SeqCst);
                }
            });
            model.step(&mut dice, &store, done);
            states.push(model.content.clone());
            if dice.below(3) == 0 {
                let _ = wait(|done| store.flush(done));
            }
        }
        let _ = wait(|done| store.flush(done));
        let promised = acknowledged.load(Ordering::SeqCst);
        crashed_under_way += u32::from(promised < 60);
        let after = match round % 3 {
            0 => disk.killed(),
            kind => disk.power_lost(&mut dice, kind == 1),
        };
        drop(store);
        let (store, _) = open(&after).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let found = content(&store).unwrap();
        let fits = states[promised..].contains(&found);
        assert!(fits, "round {round}: not a state since acknowledgement {promised}");
    }
    assert!(crashed_under_way > 50, "only {crashed_under_way} crashes under way");
}
