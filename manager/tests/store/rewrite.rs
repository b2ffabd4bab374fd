//! Writing the store anew under a new key while it serves (GUARANTEES G24): nothing is lost whatever happens meanwhile,
//! and what opened the old file does not open the new one.
use crate::disk::*;
use keyhole_manager::keys::Kek;
use keyhole_manager::store::{OnStep, Position, SealedFor, Step, Store, StoreError};
use keyhole_secmem::Key32;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const UNDER: SealedFor = SealedFor { number: 3, locked: true };

fn new_kek() -> Kek {
    Kek::from_key(Key32::from_bytes(&mut [5; 32]).unwrap(), "the unlock key")
}

fn open_with(folder: &Path, kek: &Kek) -> Result<Store, StoreError> {
    Store::open(folder, kek, Box::new(|_| ()), &|_, _| Ok(()))
}

/// A store with so many rows of a length, some log, a vote and a secret.
fn filled(folder: &Path, rows: u32, len: usize) -> Store {
    Store::create(folder, &identity(), &kek()).unwrap();
    let store = open_with(folder, &kek()).unwrap();
    let all = (0..rows).map(|n| (n.to_le_bytes().to_vec(), Some(vec![n as u8; len])));
    store.put_rows(all.collect(), b"rows".to_vec());
    append(&store, (1..=40).map(|n| row(1, n, &[n as u8; 500])).collect()).unwrap();
    wait(|done| store.save_vote(b"vote".to_vec(), done)).unwrap();
    store.purge(Position { term: 1, index: 4 });
    wait(|done| store.local_put(LOCAL, Some(secret(b"private")), done)).unwrap();
    store
}

/// Everything that can happen to a store, in a small way.
fn touch(store: &Store, n: u32) {
    let changed = |key: u32, value| (key.to_le_bytes().to_vec(), value);
    store.put_rows(
        vec![
            changed(n * 7 % 500, Some(vec![1; 700])),
            changed(n * 13 % 500, None),
            changed(10_000 + n, Some(vec![2; 30])),
        ],
        n.to_le_bytes().to_vec(),
    );
    let last = store.log_bounds().last.unwrap().index;
    let next = (last + 1..=last + 5).map(|index| row(1, index, &[n as u8; 900])).collect();
    append(store, next).unwrap();
    wait(|done| store.truncate_after(Some(last + 3), done)).unwrap();
    store.purge(Position { term: 1, index: last - 30 });
    store.save_committed(Some(Position { term: 1, index: last }));
    wait(|done| store.save_vote(n.to_le_bytes().to_vec(), done)).unwrap();
    wait(|done| store.local_put(LOCAL, Some(secret(&n.to_le_bytes())), done)).unwrap();
}

#[test]
fn a_store_that_changes_meanwhile_is_written_anew_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 500, 20_000);
    assert_eq!(store.sealed_for(), SealedFor::default());
    let (done, answer) = done();
    store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done);
    let mut touched = 0;
    while answer.try_recv().is_err() {
        touch(&store, touched);
        touched += 1;
    }
    assert!(touched > 2, "it serves meanwhile: {touched}");
    assert_eq!(store.sealed_for(), UNDER);
    touch(&store, touched);
    let before = content(&store).unwrap();
    drop(store);
    let error = open_with(folder.path(), &kek()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
    let sealed = Store::sealed(folder.path()).unwrap();
    assert!(sealed.is_locked() && sealed.opens_with(&new_kek()) && !sealed.opens_with(&kek()));
    assert_eq!(sealed.identity(), &identity());
    let store = open_with(folder.path(), &new_kek()).unwrap();
    assert_eq!(content(&store).unwrap(), before);
    assert_eq!(store.sealed_for(), UNDER);
    drop(store);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["store.mark", "store.redb"]);
}

/// The folder as a kill -9 would leave it at each step.
#[test]
fn a_kill_at_any_step_leaves_a_store_that_opens_with_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 300, 9_000);
    let before = content(&store).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let seen: Arc<Mutex<Vec<(Step, PathBuf)>>> = Arc::default();
    let on_step = {
        let (from, into, seen) = (folder.path().to_owned(), copies.path().to_owned(), seen.clone());
        Box::new(move |step| {
            let mut seen = seen.lock().unwrap();
            let copy = into.join(seen.len().to_string());
            fs::create_dir(&copy).unwrap();
            for entry in fs::read_dir(&from).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
            seen.push((step, copy));
        })
    };
    wait(|done| store.rewrite(&new_kek(), UNDER, on_step, done)).unwrap();
    drop(store);
    let seen = seen.lock().unwrap();
    let steps: Vec<Step> = seen.iter().map(|(step, _)| *step).collect();
    assert!(
        steps.ends_with(&[Step::Written, Step::Marked, Step::Replaced, Step::Done]),
        "{steps:?}"
    );
    assert!(steps.len() > 6, "it is copied piece by piece: {steps:?}");
    for (step, copy) in seen.iter() {
        let replaced = matches!(step, Step::Replaced | Step::Done);
        let (right, wrong) = if replaced { (new_kek(), kek()) } else { (kek(), new_kek()) };
        let error = open_with(copy, &wrong).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::WrongKey { .. }), "{step:?}: {error}");
        let store = open_with(copy, &right).unwrap_or_else(|e| panic!("{step:?}: {e}"));
        assert_eq!(content(&store).unwrap(), before, "{step:?}");
        assert_eq!(store.sealed_for().number, if replaced { 3 } else { 0 });
        assert_eq!(fs::read_dir(copy).unwrap().count(), 2, "{step:?}: nothing else is left");
        // It goes on from there.
        append(&store, vec![row(1, 41, b"more")]).unwrap();
        wait(|done| {
            store.rewrite(&kek(), SealedFor { number: 9, locked: false }, Box::new(|_| ()), done)
        })
        .unwrap();
        drop(store);
        assert_eq!(
            content(&open_with(copy, &kek()).unwrap()).unwrap().log.len(),
            before.log.len() + 1
        );
    }
}

/// The hashes by which rows are found are under the store's key: where the key is another one, so are they.
#[test]
fn each_file_is_under_a_key_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = filled(folder.path(), 20, 100);
    let mut seen = BTreeSet::new();
    for number in 1..=3 {
        let sealed_for = SealedFor { number, locked: true };
        wait(|done| store.rewrite(&new_kek(), sealed_for, Box::new(|_| ()), done)).unwrap();
        drop(store);
        let db = Database::open(folder.path().join("store.redb")).unwrap();
        let table: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("rows");
        let table = db.begin_read().unwrap().open_table(table).unwrap();
        let rows = table.iter().unwrap().map(|row| row.unwrap().0.value());
        assert_eq!(rows.filter(|row| seen.insert(*row)).count(), 20, "rewrite {number}");
        drop((table, db));
        store = open_with(folder.path(), &new_kek()).unwrap();
    }
}

/// The new file's mark is the new file's: the store before it, put back, is refused.
#[test]
fn the_file_before_is_no_store_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 10, 100);
    let old = folder.path().join("old");
    fs::copy(folder.path().join("store.redb"), &old).unwrap();
    wait(|done| store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done)).unwrap();
    drop(store);
    fs::rename(&old, folder.path().join("store.redb")).unwrap();
    let error = open_with(folder.path(), &kek()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let error = open_with(folder.path(), &new_kek()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
}

/// Tells when a step comes that is wanted, and waits there until the sender is dropped.
fn paused(wanted: impl FnMut(Step) -> bool + Send + 'static) -> (OnStep, Receiver<()>, Sender<()>) {
    let mut wanted = wanted;
    let (tell, there) = channel();
    let (go_on, waits) = channel::<()>();
    let mut waits = Some(waits);
    let on_step = move |step| {
        if let Some(waits) = waits.take_if(|_| wanted(step)) {
            tell.send(()).unwrap();
            let _ = waits.recv();
        }
    };
    (Box::new(on_step), there, go_on)
}

/// As a leader that had no majority does with what a new one has otherwise.
#[test]
fn a_log_whose_end_is_replaced_while_it_is_copied_is_kept_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 10, 10);
    let entries = |term| (41..=1_000).map(|n| row(term, n, &[term as u8; 2_000])).collect();
    append(&store, entries(1)).unwrap();
    let (done, answer) = done();
    let mut pieces = 0;
    let (on_step, there, go_on) = paused(move |step| {
        pieces += usize::from(matches!(step, Step::Copied(some, all) if some == all));
        // All rows, and two of the log's four.
        pieces == 3
    });
    store.rewrite(&new_kek(), UNDER, on_step, done);
    there.recv().unwrap();
    store.truncate_after(Some(40), Box::new(|_| ()));
    drop(go_on);
    append(&store, entries(2)).unwrap();
    answer.recv().unwrap().unwrap();
    let before = content(&store).unwrap();
    assert!(before.log.iter().filter(|row| row.position.term == 2).count() == 960);
    drop(store);
    assert_eq!(content(&open_with(folder.path(), &new_kek()).unwrap()).unwrap(), before);
}

#[test]
fn rows_that_are_replaced_whole_meanwhile_are_the_ones_that_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 300, 20_000);
    let (done, answer) = done();
    // When some rows are copied already, and others not yet.
    let (on_step, there, go_on) =
        paused(|step| matches!(step, Step::Copied(some, all) if some < all));
    store.rewrite(&new_kek(), UNDER, on_step, done);
    there.recv().unwrap();
    let rows = (0..50u8).map(|n| (vec![n; 3], vec![n; 40]));
    wait(|done| {
        store.install_rows(Box::new(rows), b"installed".to_vec(), done);
        drop(go_on);
    })
    .unwrap();
    answer.recv().unwrap().unwrap();
    drop(store);
    let content = content(&open_with(folder.path(), &new_kek()).unwrap()).unwrap();
    assert_eq!((content.rows.len(), content.applied), (50, Some(b"installed".to_vec())));
}

#[test]
fn what_prevents_it_leaves_the_store_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 300, 9_000);
    let before = content(&store).unwrap();
    // A folder in the place of the new file.
    let place = folder.path().join("store.redb.next");
    fs::create_dir(&place).unwrap();
    let error = wait(|done| store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done)).unwrap_err();
    assert!(error.to_string().contains("store.redb.next"), "{error}");
    fs::remove_dir(&place).unwrap();
    // The same for the mark, at the end.
    let place = folder.path().join("store.mark.next");
    fs::create_dir(&place).unwrap();
    let error = wait(|done| store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done)).unwrap_err();
    assert!(error.to_string().contains("store.mark.next"), "{error}");
    fs::remove_dir(&place).unwrap();
    assert_eq!((content(&store).unwrap(), store.failure()), (before, None));
    // A second one at the same time.
    let (done, answer) = done();
    store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done);
    let error = wait(|done| store.rewrite(&kek(), UNDER, Box::new(|_| ()), done)).unwrap_err();
    assert!(error.to_string().contains("under way"), "{error}");
    answer.recv().unwrap().unwrap();
    assert_eq!(store.sealed_for(), UNDER);
}

/// The commit is in the file and its mark is not: nobody was told of it, the new file lacks it, and has as many rows.
#[test]
fn a_store_that_fails_is_not_written_anew_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, len) = (300u32, 9_000);
    drop(filled(folder.path(), rows, len));
    // A mark that can be made to fail: a file that takes no more writes.
    let mark = folder.path().join("store.mark");
    let sealable = memfd_create("mark", MemfdFlags::ALLOW_SEALING).unwrap();
    let mut sealable = File::from(sealable);
    sealable.write_all(&fs::read(&mark).unwrap()).unwrap();
    fs::remove_file(&mark).unwrap();
    let seen_at = format!("/proc/self/fd/{}", sealable.as_raw_fd());
    symlink(&seen_at, &mark).unwrap();
    let store = open_with(folder.path(), &kek()).unwrap();
    let (done, answer) = done();
    let (on_step, there, go_on) =
        paused(|step| matches!(step, Step::Copied(some, all) if some < all));
    store.rewrite(&new_kek(), UNDER, on_step, done);
    there.recv().unwrap();
    fcntl_add_seals(&sealable, SealFlags::WRITE).unwrap();
    let later = |n: u32| (n.to_le_bytes().to_vec(), vec![!(n as u8); len]);
    let changes = (0..rows).map(later).map(|(key, value)| (key, Some(value)));
    store.put_rows(changes.collect(), b"later".to_vec());
    let failed = wait(|done| {
        store.save_vote(b"later".to_vec(), done);
        drop(go_on);
    });
    assert!(failed.unwrap_err().to_string().contains("store.mark"), "the mark took it");
    assert!(answer.recv().unwrap().is_err(), "a store that has failed was written anew");
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().ends_with(".next")).count(), 0);
    drop(store);
    let last = fs::read(&mark).unwrap();
    fs::remove_file(&mark).unwrap();
    fs::write(&mark, last).unwrap();
    // It is the store that it was, with the commit that nobody was told of, whole.
    let store = open_with(folder.path(), &kek()).unwrap();
    let found = content(&store).unwrap();
    assert_eq!(
        (found.rows, found.applied),
        ((0..rows).map(later).collect(), Some(b"later".to_vec()))
    );
}

/// How long a change waits at most while 20,000 rows of 1 KiB are written anew; printed. With 100,000 it is the same.
#[test]
fn a_change_waits_for_a_piece_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 20_000, 1024);
    let begin = Instant::now();
    let (done, answer) = done();
    store.rewrite(&new_kek(), UNDER, Box::new(|_| ()), done);
    let (mut waits, mut index) = (Vec::new(), 41);
    while answer.try_recv().is_err() {
        let asked = Instant::now();
        append(&store, vec![row(1, index, &[0; 1024])]).unwrap();
        waits.push(asked.elapsed());
        index += 1;
    }
    let all = begin.elapsed();
    waits.sort();
    let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!(
        "20,000 rows of 1 KiB written anew in {all:.1?}; {} changes meanwhile waited {median:.1?} in the \
              median, {worst:.1?} at most",
        waits.len()
    );
    assert!(worst < all / 4 && worst < Duration::from_secs(5), "{worst:?} of {all:?}");
}
