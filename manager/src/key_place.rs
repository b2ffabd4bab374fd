//! Where a manager's key file lies, and how another key takes its place.
//!
//! Depends on the keys and the store's header. Invariant: the key that opens the store is in `FILE` or in `FILE.next` at
//! every moment, or it is the unlock key and in neither; the one that it followed is overwritten before it is gone.
use crate::keys::{Kek, KeyError};
use crate::store::SealedStore;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The place of a key file.
#[derive(Debug, Clone)]
pub struct KeyPlace {
    file: PathBuf,
    next: PathBuf,
}

impl KeyPlace {
    /// The key file at this path, and the one that is to follow it beside it.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        let mut next = file.clone().into_os_string();
        next.push(".next");
        Self { file, next: next.into() }
    }

    /// The key that opens this store: in the file, or, where a change of keys was cut short, in the next one.
    pub fn fitting(&self, sealed: &SealedStore) -> Result<Kek, KeyError> {
        let present = Kek::open(&self.file);
        if present.as_ref().is_ok_and(|kek| sealed.opens_with(kek)) || !self.next.exists() {
            return present;
        }
        let next = Kek::open(&self.next)?;
        if !sealed.opens_with(&next) {
            // It is the present one that is missed, and named.
            return present;
        }
        if let Err(error) = self.settle(sealed) {
            tracing::warn!(%error, "the store opens with the next key file now; put it in the place of the present one");
        }
        Ok(next)
    }

    /// The key that is to be the next: one that an operator has put there, or a new one.
    pub fn next(&self) -> Result<Kek, KeyError> {
        Kek::open_or_create(&self.next)
    }

    /// Puts the next key in the place of the present one, if it is the one that opens this store; a locked one needs
    /// neither. What is replaced or not needed is overwritten first.
    pub fn settle(&self, sealed: &SealedStore) -> Result<(), KeyError> {
        if sealed.is_locked() {
            return [&self.file, &self.next].into_iter().try_for_each(|file| destroy(file));
        }
        if self.next.exists() && sealed.opens_with(&Kek::open(&self.next)?) {
            destroy(&self.file)?;
            let renamed = fs::rename(&self.next, &self.file);
            renamed
                .and_then(|()| sync_folder(&self.file))
                .map_err(failed("replace", &self.file))?;
        }
        Ok(())
    }
}

/// Overwrites a key file and removes it, if there is one.
fn destroy(file: &Path) -> Result<(), KeyError> {
    let erased = || {
        let mut handle = match OpenOptions::new().write(true).open(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let len = usize::try_from(handle.metadata()?.len()).unwrap_or(0);
        handle.write_all(&vec![0; len])?;
        handle.sync_all()?;
        fs::remove_file(file)?;
        sync_folder(file)
    };
    erased().map_err(failed("erase", file))
}

fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn failed(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> KeyError {
    move |source| KeyError::Io { doing, file: file.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreIdentity};
    use std::os::unix::fs::PermissionsExt;

    fn identity() -> StoreIdentity {
        StoreIdentity { cluster: "c".into(), manager: "m".into(), member: 1 }
    }

    /// A store under one of the two keys, as a crash may leave them.
    #[test]
    fn the_key_that_fits_is_found_and_put_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = KeyPlace::new(folder.path().join("kek"));
        let first = Kek::create(&place.file).unwrap();
        let next = place.next().unwrap();
        let again = place.next().unwrap();
        let store = |kek: &Kek| {
            let folder = tempfile::tempdir().unwrap();
            Store::create(folder.path(), &identity(), kek).unwrap();
            Store::sealed(folder.path()).unwrap()
        };
        let (old, new) = (store(&first), store(&next));
        assert!(new.opens_with(&again), "the key that is there is kept");
        assert!(!new.opens_with(&first) && !old.opens_with(&next) && !old.is_locked());
        assert!(old.opens_with(&place.fitting(&old).unwrap()));
        assert!(place.next.exists(), "nothing has changed yet");
        // The present one may be erased already.
        fs::write(&place.file, [0; 74]).unwrap();
        assert!(new.opens_with(&place.fitting(&new).unwrap()));
        assert!(!place.next.exists());
        assert!(new.opens_with(&Kek::open(&place.file).unwrap()));
        let error = place.fitting(&old).map(|kek| old.opens_with(&kek));
        assert!(matches!(error, Ok(false)), "the store names the file that does not open it");
        place.next().unwrap();
        place.settle(&new).unwrap();
        assert!(
            new.opens_with(&Kek::open(&place.file).unwrap()),
            "a key for later changes nothing"
        );
    }

    #[test]
    fn a_next_key_that_others_can_read_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let place = KeyPlace::new(folder.path().join("kek"));
        place.next().unwrap();
        fs::set_permissions(&place.next, fs::Permissions::from_mode(0o644)).unwrap();
        let error = place.next().map(drop).unwrap_err().to_string();
        assert!(error.contains("kek.next") && error.contains("chmod 600"), "{error}");
    }

    /// What a disk keeps of a file that was only unlinked is still the key.
    #[test]
    fn a_key_is_overwritten_before_its_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let place = KeyPlace::new(folder.path().join("kek"));
        Kek::create(&place.file).unwrap();
        let kept = folder.path().join("kept");
        fs::hard_link(&place.file, &kept).unwrap();
        destroy(&place.file).unwrap();
        assert!(!place.file.exists());
        assert!(fs::read(&kept).unwrap().iter().all(|byte| *byte == 0));
    }
}
