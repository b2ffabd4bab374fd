//! What can be said of a store without its key: whose it is, and which sort of key opens it.
//!
//! Depends on redb. Invariant: nothing here reads more than the header.
use super::check::{Checker, open_header};
use super::folder::{Folder, name_of, open_private};
use super::layout::Header;
use super::{Store, StoreError, StoreIdentity, file_backend, guard};
use crate::keys::Kek;
use std::path::Path;

/// A store that is not open.
#[derive(Debug)]
pub struct SealedStore {
    header: Header,
}

impl Store {
    /// Looks at the store in `folder`.
    pub fn sealed(folder: &Path) -> Result<SealedStore, StoreError> {
        let folder = Folder::new(folder);
        let _lock = folder.lock()?;
        let file = name_of(&folder.store());
        let handle = open_private(&folder.store(), false);
        let handle = handle.map_err(|e| StoreError::io("open", &file, &e))?;
        let header = guard("open", &file, || {
            let db = open_header(file_backend(handle, &file)?, &file)?;
            Checker::new(&db, &file)?.header()
        })?;
        Ok(SealedStore { header })
    }
}

impl SealedStore {
    pub(super) fn of(header: Header) -> Self {
        Self { header }
    }

    /// Whose store it is.
    #[must_use]
    pub fn identity(&self) -> &StoreIdentity {
        &self.header.identity
    }

    /// Whether the operators' unlock key opens it, and no key file.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.header.locked
    }

    /// Whether this key opens it; found out by an authenticated cipher, in constant time.
    #[must_use]
    pub fn opens_with(&self, kek: &Kek) -> bool {
        kek.unwrap(&self.header.wrapped_dek, &self.header.identity).is_ok()
    }
}
