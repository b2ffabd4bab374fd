//! The data folder: its lock, the two files' names, and `store.mark`.
//!
//! Depends on the file system only. Invariant: the number in `store.mark` is never above that of a commit on disk, and
//! never below that of a commit that was acknowledged (but for a power loss, which may only make it older).
use super::StoreError;
use super::cipher::StoreCipher;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KHMARK1\n";
const MARK_LEN: usize = 8 + 8 + 32;

/// The names inside a data folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    pub(crate) fn mark(&self) -> PathBuf {
        self.root.join("store.mark")
    }

    pub(crate) fn unfinished_store(&self) -> PathBuf {
        self.root.join("store.redb.init")
    }

    pub(crate) fn unfinished_mark(&self) -> PathBuf {
        self.root.join("store.mark.init")
    }

    /// The file that is to be the store.
    pub(crate) fn next_store(&self) -> PathBuf {
        self.root.join("store.redb.next")
    }

    pub(crate) fn next_mark(&self) -> PathBuf {
        self.root.join("store.mark.next")
    }

    pub(crate) fn name(&self) -> String {
        name_of(&self.root)
    }

    /// Takes the folder for this process until the lock is dropped.
    pub(crate) fn lock(&self) -> Result<FolderLock, StoreError> {
        let folder =
            File::open(&self.root).map_err(|e| StoreError::io("open", &self.name(), &e))?;
        match folder.try_lock() {
            Ok(()) => Ok(FolderLock { _folder: folder }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: self.name() }),
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", &self.name(), &e)),
        }
    }

    /// Makes renames in the folder last.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        File::open(&self.root)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| StoreError::io("sync", &self.name(), &e))
    }
}

/// Held as long as the store is open.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _folder: File,
}

/// Opens a file of the store for reading and writing, readable by its owner only.
pub(crate) fn open_private(path: &Path, create_new: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(create_new).mode(0o600).open(path)
}

pub(crate) fn name_of(path: &Path) -> String {
    path.display().to_string()
}

/// The few bytes of `store.mark`. Tests put one in memory that forgets.
pub trait MarkFile: Send + fmt::Debug {
    /// All bytes; an error when there is no such file.
    fn read(&mut self) -> io::Result<Vec<u8>>;
    /// Replaces the bytes, in one write and without waiting for the disk.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl MarkFile for File {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; MARK_LEN + 1];
        let len = self.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, 0)
    }
}

/// Remembers the last acknowledged commit apart from the store: a store that lost it cannot hide that.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) file: Box<dyn MarkFile>,
    pub(crate) name: String,
}

impl Mark {
    pub(crate) fn write(&mut self, cipher: &StoreCipher, seq: u64) -> Result<(), StoreError> {
        let mut bytes = Vec::with_capacity(MARK_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&seq.to_le_bytes());
        bytes.extend_from_slice(&cipher.mark_tag(seq));
        self.file.write(&bytes).map_err(|e| StoreError::io("write", &self.name, &e))
    }

    /// Ends what a rewrite of the store left that was cut short: the mark of the file that has become the store takes
    /// its place, and whatever else there is goes.
    pub(crate) fn settle(
        &mut self,
        folder: &Folder,
        cipher: &StoreCipher,
    ) -> Result<(), StoreError> {
        let path = folder.next_mark();
        let failed = |doing| {
            let path = &path;
            move |e: io::Error| StoreError::io(doing, &name_of(path), &e)
        };
        if path.exists() && self.read(cipher).is_err() {
            let file = Box::new(open_private(&path, false).map_err(failed("open"))?);
            let mut next = Self { file, name: self.name.clone() };
            if next.read(cipher).is_ok() {
                fs::rename(&path, folder.mark()).map_err(failed("rename"))?;
                folder.sync()?;
                *self = next;
            }
        }
        for leftover in [path.clone(), folder.next_store()] {
            match fs::remove_file(&leftover) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &name_of(&leftover), &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, cipher: &StoreCipher) -> Result<u64, StoreError> {
        let bytes = self.file.read().map_err(|e| StoreError::io("read", &self.name, &e))?;
        let parse = || {
            let rest = bytes.strip_prefix(MAGIC)?;
            let (seq, tag) = rest.split_first_chunk::<8>()?;
            let seq = u64::from_le_bytes(*seq);
            keyhole_secmem::ct_eq(tag, &cipher.mark_tag(seq)).then_some(seq)
        };
        parse().ok_or_else(|| StoreError::damaged(&self.name, "its number is not authentic"))
    }
}
