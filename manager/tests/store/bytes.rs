//! The store's promises on a healthy disk: what is written comes back, sealed on disk, many writes in one sync.
use crate::disk::*;
use keyhole_manager::keys::Kek;
use keyhole_manager::store::{Position, Store, StoreError};
use keyhole_secmem::Key32;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

const HASHED: [TableDefinition<'_, [u8; 16], &[u8]>; 2] =
    [TableDefinition::new("rows"), TableDefinition::new("locals")];
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

fn at(term: u64, index: u64) -> Position {
    Position { term, index }
}

/// A store with something in every table.
fn filled(disk: &MemDisk) -> Store {
    let (store, _) = open(disk).unwrap();
    append(&store, (1..=20).map(|n| row(1, n, &[n as u8; 300])).collect()).unwrap();
    wait(|done| store.save_vote(b"vote".to_vec(), done)).unwrap();
    store.put_rows((0..30u8).map(|n| (vec![n; 9], Some(vec![n; 200]))).collect(), b"ten".to_vec());
    store.save_committed(Some(at(1, 10)));
    store.purge(at(1, 4));
    wait(|done| store.local_put(LOCAL, Some(secret(b"private")), done)).unwrap();
    store
}

fn open_folder(folder: &Path, kek: &Kek) -> Result<Store, StoreError> {
    Store::open(folder, kek, Box::new(|_| ()), &|_, _| Ok(()))
}

#[test]
fn everything_comes_back_after_a_restart() {
    let disk = new_disk();
    let store = filled(&disk);
    let before = content(&store).unwrap();
    assert_eq!(before.log.len(), 16);
    drop(store);
    let (store, rows) = open(&disk).unwrap();
    assert_eq!(content(&store).unwrap(), before);
    assert_eq!(rows, before.rows, "the loader saw the same rows");
    assert_eq!(before.local.as_deref(), Some(&b"private"[..]));
    assert_eq!(before.committed, Some(at(1, 10)));
    assert_eq!(store.identity(), &identity());
}

#[test]
fn rows_change_and_go_and_are_replaced_whole() {
    let disk = new_disk();
    let store = filled(&disk);
    store.put_rows(vec![(vec![1; 9], None), (vec![2; 9], Some(b"new".to_vec()))], b"11".to_vec());
    store.put_rows(vec![(b"absent".to_vec(), None)], b"12".to_vec());
    let now = content(&store).unwrap();
    assert_eq!((now.rows.len(), now.applied.as_deref()), (29, Some(&b"12"[..])));
    assert_eq!(now.rows[&vec![2; 9]], b"new");
    let rows = vec![(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), vec![])];
    wait(|done| store.install_rows(Box::new(rows.clone().into_iter()), b"99".to_vec(), done))
        .unwrap();
    wait(|done| store.local_put(LOCAL, None, done)).unwrap();
    drop(store);
    let (store, loaded) = open(&disk).unwrap();
    assert_eq!(loaded.into_iter().collect::<Vec<_>>(), rows);
    assert_eq!(content(&store).unwrap().local, None);
}

#[test]
fn truncated_entries_never_come_back() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    append(&store, (1..=9).map(|n| row(1, n, b"old")).collect()).unwrap();
    let (done, first) = done();
    store.truncate_after(Some(5), done);
    assert_eq!(store.log_bounds().last, Some(at(1, 5)), "gone for readers at once");
    append(&store, vec![row(2, 6, b"new")]).unwrap();
    first.recv().unwrap().unwrap();
    let hole = append(&store, vec![row(2, 8, b"x")]).unwrap_err();
    assert_eq!(hole, StoreError::Hole { expected: 7, found: 8 });
    drop(store);
    let (store, _) = open(&disk).unwrap();
    let log = content(&store).unwrap().log;
    assert_eq!(log.last().unwrap(), &row(2, 6, b"new"));
    assert_eq!(log.len(), 6);
}

#[test]
fn a_long_log_is_read_back_from_the_file_in_capped_pieces() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    let rows: Vec<_> = (1..=40).map(|n| row(1, n, &vec![n as u8; 500_000])).collect();
    for row in &rows {
        append(&store, vec![row.clone()]).unwrap();
    }
    assert_eq!(store.log_bounds().bytes, 20_000_000);
    let piece = store.read_log(1..41, 2 << 20).unwrap();
    assert_eq!(piece, rows[..4], "at most 2 MiB");
    assert_eq!(store.read_log(7..8, 1).unwrap(), rows[6..7], "at least one");
    assert_eq!(store.read_log(1..41, u64::MAX).unwrap(), rows);
}

#[test]
fn many_writers_share_syncs() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    let before = disk.state().syncs;
    let (next, start) = (Mutex::new(1), Barrier::new(32));
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..50 {
                    let (done, answer) = done();
                    {
                        let mut next = next.lock().unwrap();
                        store.append(vec![row(1, *next, &[1; 100])], done).unwrap();
                        *next += 1;
                    }
                    answer.recv().unwrap().unwrap();
                }
            });
        }
    });
    let syncs = disk.state().syncs - before;
    assert!(syncs < 1600 / 2, "{syncs} syncs for 1600 appends by 32 writers");
}

#[test]
fn each_sequential_acknowledgement_has_a_sync_of_its_own() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    for n in 1..=50 {
        let before = disk.state().syncs;
        append(&store, vec![row(1, n, b"x")]).unwrap();
        let after = disk.state().syncs;
        wait(|done| store.save_vote(vec![n as u8], done)).unwrap();
        assert!(after > before && disk.state().syncs > after, "acknowledged without a sync");
    }
}

#[test]
fn commits_are_marked_as_two_phase() {
    const GOD_BYTE: usize = 9;
    const TWO_PHASE: u8 = 4;
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    for n in 1..=3 {
        append(&store, vec![row(1, n, b"x")]).unwrap();
        assert_ne!(disk.state().live[GOD_BYTE] & TWO_PHASE, 0, "redb may go back one commit");
    }
}

#[test]
fn mirrored_rows_cause_no_sync_of_their_own() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    append(&store, vec![row(1, 1, b"x")]).unwrap();
    let before = disk.state().syncs;
    for n in 0..100 {
        store.put_rows(vec![(vec![n], Some(vec![n]))], vec![n]);
        store.save_committed(Some(at(1, 1)));
    }
    assert_eq!(disk.state().syncs, before);
    assert_eq!(content(&store).unwrap().rows.len(), 100, "and are there when asked for");
}

#[test]
fn answers_come_in_the_order_of_the_jobs() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 1..=200u64 {
        let order = order.clone();
        let done = Box::new(move |_| order.lock().unwrap().push(n));
        match n % 3 {
            0 => store.save_vote(vec![1], done),
            _ => store.flush(done),
        }
    }
    wait(|done| store.flush(done)).unwrap();
    assert_eq!(*order.lock().unwrap(), (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_failed_write_ends_the_store_for_good() {
    for (kind, full) in
        [(std::io::ErrorKind::StorageFull, true), (std::io::ErrorKind::Other, false)]
    {
        let disk = new_disk();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let on_fatal = Box::new(move |_: &StoreError| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let store =
            Store::open_on(disk.clone(), disk.mark_file(), FILE, &kek(), on_fatal, &|_, _| Ok(()))
                .unwrap();
        append(&store, vec![row(1, 1, b"kept")]).unwrap();
        {
            let mut state = disk.state();
            (state.budget, state.failure) = (Some(0), Some(kind));
        }
        let error = append(&store, vec![row(1, 2, b"lost")]).unwrap_err();
        assert_eq!(matches!(error, StoreError::Full { .. }), full, "{error}");
        assert!(error.to_string().contains(FILE), "{error}");
        disk.state().budget = None;
        assert!(append(&store, vec![row(1, 3, b"late")]).is_err(), "acknowledged after a failure");
        assert!(wait(|done| store.save_vote(vec![1], done)).is_err());
        assert_eq!(store.failure(), Some(error));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(store);
        let (store, _) = open(&disk).unwrap();
        assert_eq!(content(&store).unwrap().log, vec![row(1, 1, b"kept")]);
    }
}

#[test]
fn a_stopped_store_refuses_work_and_keeps_what_was_queued() {
    let disk = new_disk();
    let (store, _) = open(&disk).unwrap();
    store.put_rows(vec![(b"k".to_vec(), Some(b"v".to_vec()))], b"1".to_vec());
    store.stop();
    assert_eq!(wait(|done| store.flush(done)), Err(StoreError::Stopped));
    drop(store);
    assert_eq!(open(&disk).unwrap().1.len(), 1);
}

#[test]
fn nothing_readable_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let kek = kek();
    Store::create(folder.path(), &identity(), &kek).unwrap();
    let store = open_folder(folder.path(), &kek).unwrap();
    let mut dice = Dice(std::process::id().into());
    let canary = dice.bytes(24).iter().map(|byte| b'a' + byte % 26).collect::<Vec<u8>>();
    let name = String::from_utf8(canary.clone()).unwrap();
    append(&store, vec![row(1, 1, &canary)]).unwrap();
    store.put_rows(vec![(canary.clone(), Some(canary.clone()))], canary.clone());
    wait(|done| store.save_vote(canary.clone(), done)).unwrap();
    wait(|done| store.local_put(&name, Some(secret(&canary)), done)).unwrap();
    assert_eq!(store.local_get(&name).unwrap().unwrap().as_slice(), canary);
    drop(store);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(12).any(|window| canary.windows(12).any(|part| part == window));
        assert!(!found, "{} shows the canary", path.display());
    }
}

#[test]
fn no_two_rows_share_salt_and_counter() {
    let folder = tempfile::tempdir().unwrap();
    let kek = kek();
    Store::create(folder.path(), &identity(), &kek).unwrap();
    for round in 0..5 {
        let store = open_folder(folder.path(), &kek).unwrap();
        for n in 1..=20 {
            append(&store, vec![row(1, round * 20 + n, b"same")]).unwrap();
            store.put_rows(vec![(vec![n as u8], Some(vec![1]))], vec![]);
        }
    }
    let (mut heads, mut salts) = (HashSet::new(), HashSet::new());
    let mut note = |frame: &[u8]| {
        assert!(heads.insert(frame[1..21].to_vec()), "salt and counter repeat");
        salts.insert(frame[1..17].to_vec());
    };
    let db = Database::open(folder.path().join("store.redb")).unwrap();
    let txn = db.begin_read().unwrap();
    for entry in txn.open_table(LOG).unwrap().iter().unwrap() {
        note(entry.unwrap().1.value());
    }
    for table in HASHED {
        for entry in txn.open_table(table).unwrap().iter().unwrap() {
            note(entry.unwrap().1.value());
        }
    }
    note(txn.open_table(META).unwrap().get("tip").unwrap().unwrap().value());
    assert!(salts.len() > 100, "each of the commits drew its own salt: {}", salts.len());
}

#[test]
fn a_folder_is_opened_by_one_manager_only() {
    let folder = tempfile::tempdir().unwrap();
    let kek = kek();
    Store::create(folder.path(), &identity(), &kek).unwrap();
    let first = open_folder(folder.path(), &kek).unwrap();
    let error = open_folder(folder.path(), &kek).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(first);
    open_folder(folder.path(), &kek).unwrap();
}

#[test]
fn creation_never_replaces_a_store_and_survives_being_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let kek = kek();
    let missing = open_folder(folder.path(), &kek).map(|_| ()).unwrap_err();
    assert!(matches!(missing, StoreError::NotInitialised { .. }), "{missing}");
    fs::write(folder.path().join("store.redb.init"), b"half").unwrap();
    fs::write(folder.path().join("store.mark"), b"renamed first").unwrap();
    Store::create(folder.path(), &identity(), &kek).unwrap();
    let again = Store::create(folder.path(), &identity(), &kek).unwrap_err();
    assert!(matches!(again, StoreError::AlreadyInitialised { .. }), "{again}");
    open_folder(folder.path(), &kek).unwrap();
    let names: HashSet<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["store.redb".into(), "store.mark".into()].into());
    fs::remove_file(folder.path().join("store.redb")).unwrap();
    let lost = Store::create(folder.path(), &identity(), &kek).unwrap_err();
    assert!(matches!(lost, StoreError::Missing { .. }), "a lost store is not begun anew: {lost}");
}

#[test]
fn tables_are_the_four_that_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    Store::create(folder.path(), &identity(), &kek()).unwrap();
    let db = Database::open(folder.path().join("store.redb")).unwrap();
    let txn = db.begin_read().unwrap();
    let mut names: Vec<_> = txn.list_tables().unwrap().map(|t| t.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["locals", "log", "meta", "rows"]);
    let error = Kek::from_key(Key32::generate().unwrap(), "/keys/other");
    drop((txn, db));
    let error = open_folder(folder.path(), &error).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("/keys/other") && error.contains("store.redb"), "{error}");
}
