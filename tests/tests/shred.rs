//! Shredding (GUARANTEES G24): what was deleted before it is gone from every manager, also from copies of their folders
//! that were taken before, for all that there is now.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use keyhole_manager::key_place::KeyPlace;
use keyhole_manager::keys::Kek;
use keyhole_manager::store::{Store, StoreError};
use keyhole_tests::{Cluster, wait};
use keyhole_wire::unlock_key::parse_unlock_key;
use rustix::process::Signal;

fn copy(folder: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => drop(copy(&entry.path(), &to.join(entry.file_name()))),
            false => match fs::copy(entry.path(), to.join(entry.file_name())) {
                // A running manager has replaced it meanwhile.
                Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            },
        }
    }
    to.to_owned()
}

/// What the copies were taken of: without the key files, which somebody who copies a disk has not got.
fn copies(managers: &[Cluster], when: &str) -> Vec<PathBuf> {
    let into = managers[0].ground().folder().join(when);
    let copied = managers.iter().enumerate().map(|(at, manager)| {
        let copied = copy(manager.data(), &into.join(at.to_string()));
        let _ = fs::remove_file(copied.join("kek"));
        copied
    });
    copied.collect()
}

fn opened(folder: &Path, kek: &Kek) -> Result<Vec<Vec<u8>>, StoreError> {
    let rows = std::sync::Mutex::new(Vec::new());
    let load = |key: &[u8], value: &[u8]| {
        rows.lock().unwrap().push([key, value].concat());
        Ok(())
    };
    let store = Store::open(folder, kek, Box::new(|_| ()), &load)?;
    let log = store.read_log(0..u64::MAX, u64::MAX)?;
    drop(store);
    let mut all = rows.into_inner().unwrap();
    all.extend(log.into_iter().map(|row| row.data.to_vec()));
    Ok(all)
}

/// The sealed bytes of a secret's version, as every manager's rows have them now.
fn sealed_value(folder: &Path, kek: &Kek, id: &str) -> Vec<u8> {
    let rows = opened(folder, kek).unwrap();
    let row = rows.iter().find(|row| row.len() > 300 && contains(row, id.as_bytes()));
    let row = row.expect("the secret's version has a row");
    // The ciphertext is the longest part of it, at its end.
    row[row.len() - 250..row.len() - 20].to_vec()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn keys_of(managers: &[Cluster]) -> Vec<Kek> {
    managers.iter().map(|manager| Kek::open(&manager.data().join("kek")).unwrap()).collect()
}

#[test]
fn copies_of_the_old_folders_and_todays_keys_give_nothing() {
    let mut managers = Cluster::of(3);
    let id = managers[0].ok_with(["secret", "create", "gone", "-"], &[7; 400]);
    let id = id.trim();
    managers[0].ok_with(["secret", "create", "kept", "-"], b"kept");
    let before = copies(&managers, "before");
    // The canary: with the key of then the copy opens, and has the value.
    let then = keys_of(&managers);
    let probe = copy(&before[0], &managers[0].ground().folder().join("probe"));
    let needle = sealed_value(&probe, &then[0], id);
    managers[0].ok(["secret", "rm", "gone"]);
    let after = copies(&managers, "after");
    let probe = copy(&after[0], &managers[0].ground().folder().join("probe-after"));
    let logged = opened(&probe, &then[0]).unwrap();
    assert!(logged.iter().any(|row| contains(row, &needle)), "the log had it after the deletion");

    assert_eq!(managers[1].ok(["cluster", "shred", "--wait"]), "shredded\n");
    let told = managers[2].ok(["cluster", "status", "-f", "{{.Shredding}}"]);
    assert!(told.starts_with("done with what was deleted before 20"), "{told}");
    assert_eq!(managers[2].ok(["secret", "ls", "--format", "{{.Name}}"]), "kept\n");

    let now = keys_of(&managers);
    for copied in before.iter().chain(&after) {
        let sealed = Store::sealed(copied).unwrap();
        assert!(then.iter().any(|kek| sealed.opens_with(kek)), "the copy is of a store");
        for kek in &now {
            let opened = opened(copied, kek).map(drop).unwrap_err();
            assert!(matches!(opened, StoreError::WrongKey { .. }), "{opened}");
        }
    }
    for manager in &mut managers {
        manager.stop(Signal::TERM);
    }
    for (manager, kek) in managers.iter().zip(&now) {
        let rows = opened(manager.data(), kek).unwrap();
        assert!(rows.len() > 3, "{} rows", rows.len());
        for row in &rows {
            assert!(!contains(row, &needle), "the deleted value is in a row or an entry of now");
        }
    }
    for manager in &mut managers {
        manager.resume();
    }
    assert_eq!(managers[0].ok(["secret", "ls", "--format", "{{.Name}}"]), "kept\n");
}

/// With autolock the unlock key is a new one, and today's opens no copy.
#[test]
fn with_autolock_todays_unlock_key_opens_no_older_copy() {
    let managers = vec![Cluster::start()];
    let cluster = &managers[0];
    cluster.ok(["cluster", "update", "--autolock=true"]);
    let key = || {
        let key = cluster.ok(["cluster", "unlock-key", "-q"]);
        Kek::from_key(parse_unlock_key(key.as_bytes()).unwrap(), "the unlock key")
    };
    wait::until("its store to be locked", || match Store::sealed(&copies(&managers, "look")[0]) {
        Ok(sealed) if sealed.is_locked() => Ok(()),
        _ => Err("not yet".to_owned()),
    });
    let (then, copied) = (key(), copies(&managers, "before"));
    let ran = cluster.keyhole(["cluster", "shred"]);
    assert!(ran.code == 0 && ran.stderr.contains("unlock key becomes a new one"), "{ran:?}");
    let status =
        |field: &str| cluster.ok(["cluster", "status", "-f", &format!("{{{{.{field}}}}}")]);
    wait::until("the new unlock key", || match status("UnlockKeyUnseen").trim() {
        "true" => Ok(()),
        _ => Err(status("Shredding")),
    });
    let now = key();
    wait::until("it to be done", || match status("Shredding") {
        done if done.starts_with("done") => Ok(()),
        left => Err(left),
    });
    let sealed = Store::sealed(&copied[0]).unwrap();
    assert!(sealed.opens_with(&then) && !sealed.opens_with(&now));
    assert!(Store::sealed(&copies(&managers, "after")[0]).unwrap().opens_with(&now));
}

/// Who is away holds it up and is named; who is removed does not.
#[test]
fn a_manager_that_is_away_holds_it_up_until_it_is_back_or_removed() {
    let mut managers = Cluster::of(3);
    managers[2].stop(Signal::KILL);
    let away = managers[2].address().to_string();
    managers[0].ok(["cluster", "shred"]);
    let waits = |managers: &[Cluster]| {
        wait::until("it to wait for the one that is away only", || {
            let told = managers[0].ok(["cluster", "status", "-f", "{{.Shredding}}"]);
            let only = told.trim().starts_with("waits for") && told.trim().ends_with(&away);
            if only && !told.contains(',') { Ok(()) } else { Err(told) }
        });
    };
    waits(&managers);
    managers[2].resume();
    let done = |managers: &[Cluster]| {
        wait::until("it to be done", || {
            let told = managers[0].ok(["cluster", "status", "-f", "{{.Shredding}}"]);
            if told.starts_with("done") { Ok(()) } else { Err(told) }
        });
    };
    done(&managers);
    managers[2].stop(Signal::KILL);
    managers[0].ok(["cluster", "shred"]);
    waits(&managers);
    managers[0].ok(["manager", "rm", &away]);
    done(&managers);
}

/// The file of a key is where it was; nothing of the one before is left.
#[test]
fn key_files_follow_each_other() {
    let cluster = Cluster::start();
    let file = cluster.data().join("kek");
    let place = KeyPlace::new(file.clone());
    let old = fs::read(&file).unwrap();
    let said = cluster.ok(["cluster", "rotate-store-keys", "--wait"]);
    assert_eq!(said, "store keys 1\n");
    assert_ne!(fs::read(&file).unwrap(), old);
    let copied = copy(cluster.data(), &cluster.ground().folder().join("copy"));
    let sealed = Store::sealed(&copied).unwrap();
    assert!(sealed.opens_with(&place.fitting(&sealed).unwrap()));
    assert!(!file.with_extension("next").exists());
}
