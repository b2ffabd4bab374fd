//! A manager's store: a committed one whose bytes are changed.
//!
//! Invariant: it opens with all that was in it, or not at all.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::{fs, io};

use keyhole_manager::keys::Kek;
use keyhole_manager::store::{LogRow, MarkFile, Position, Store, StoreError};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use crate::pieces;

/// The file's bytes, then the mark's.
struct Golden {
    bytes: Vec<u8>,
    mark_at: usize,
    kek: Kek,
    content: Content,
}

/// What is in a store.
#[derive(PartialEq, Eq)]
struct Content {
    log: Vec<LogRow>,
    purged: Option<Position>,
    committed: Option<Position>,
    vote: Option<Vec<u8>>,
    /// Key and value, in the order of the keys.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The one that `tests/formats` opens with the real manager.
static GOLDEN: LazyLock<Golden> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is room");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/manager.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(folder.path());
    assert!(tar.status().expect("tar is there").success(), "{tar:?}");
    let read = |name: &str| fs::read(folder.path().join(name)).expect("it is in the archive");
    let mut bytes = read("store.redb");
    let mark_at = bytes.len();
    bytes.extend(read("store.mark"));
    let kek = Kek::open(&folder.path().join("kek")).expect("it is in the archive");
    let content = content(&bytes, mark_at, &kek).expect("it is whole");
    Golden { bytes, mark_at, kek, content }
});

/// The mark, in memory.
#[derive(Debug)]
struct MemMark(Vec<u8>);

impl MarkFile for MemMark {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.clone_into(&mut self.0);
        Ok(())
    }
}

/// Each piece is a change: an even byte and what is written, or an odd one and where it is copied from (four bytes,
/// little-endian) and how much (two); where it goes to (four) comes before both. Places are taken modulo the length.
pub(crate) fn store(changes: &[u8]) {
    let golden = &*GOLDEN;
    let mut bytes = golden.bytes.clone();
    for piece in pieces(changes) {
        // Less than that changes nothing.
        let _ = change(&mut bytes, piece);
    }
    match content(&bytes, golden.mark_at, &golden.kek) {
        Ok(found) => assert!(found == golden.content, "other content was served"),
        Err(error) => assert!(error.to_string().contains("store."), "it has no name: {error}"),
    }
}

fn change(bytes: &mut [u8], piece: &[u8]) -> Option<()> {
    let place = |four: &[u8; 4]| u32::from_le_bytes(*four) as usize % bytes.len();
    let (kind, piece) = piece.split_first()?;
    let (to, piece) = piece.split_first_chunk()?;
    let to = place(to);
    let new = if kind % 2 == 0 {
        piece.to_vec()
    } else {
        let (from, piece) = piece.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*piece.first_chunk()?));
        bytes[place(from)..].iter().copied().take(length).collect()
    };
    bytes[to..].iter_mut().zip(new).for_each(|(old, new)| *old = new);
    Some(())
}

fn content(bytes: &[u8], mark_at: usize, kek: &Kek) -> Result<Content, StoreError> {
    let (file, mark) = bytes.split_at(mark_at);
    let backend = InMemoryBackend::new();
    backend.set_len(file.len() as u64).expect("there is memory");
    backend.write(0, file).expect("it is as long");
    let rows: Arc<Mutex<Vec<_>>> = Arc::default();
    let load = |key: &[u8], value: &[u8]| {
        rows.lock().expect("nothing panics with it").push((key.to_vec(), value.to_vec()));
        Ok(())
    };
    let mark = Box::new(MemMark(mark.to_vec()));
    let store = Store::open_on(backend, mark, "store.redb", kek, Box::new(|_| ()), &load)?;
    let log = store.read_log(0..u64::MAX, u64::MAX)?;
    let (purged, committed, vote) = (store.log_bounds().purged, store.committed(), store.vote());
    let mut rows = std::mem::take(&mut *rows.lock().expect("nothing panics with it"));
    rows.sort();
    Ok(Content { log, purged, committed, vote, rows })
}
