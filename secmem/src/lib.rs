//! Memory for secrets: locked, kept out of dumps and forks, wiped when let go.
//!
//! The only crate of the workspace with memory `unsafe`; it depends on no other member. Its
//! invariant: plaintext that entered one of these types leaves memory when the type is dropped, and
//! never reaches swap, a core dump, a forked child or a formatted string.
//!
//! | type | for | where it lives |
//! |---|---|---|
//! | [`SecretBytes`] | one value of any length | a locked anonymous mapping of its own |
//! | [`Key32`] | a 32 byte key | the same, between two guard pages |
//! | [`SecretFd`] | a key that must outlive its process | `memfd_secret`, mapped as [`MappedKey`] |
//! | [`BouncePool`] | the moment of an answer | one locked mapping cut into slots |
//! | [`ZeroingAllocator`] | everything else | the heap, wiped block by block when freed |

mod alloc;
mod bytes;
mod fd;
pub mod harden;
mod key;
mod mapping;
mod pool;
mod wipe;

pub use alloc::{ZeroingAllocator, give_back_free_memory};
pub use bytes::{ReadError, SecretBytes};
pub use fd::{MappedKey, SecretFd, SecretFdError};
pub use key::Key32;
pub use mapping::LockError;
pub use pool::{BouncePool, Slot};
pub use wipe::{ct_eq, memzero};

#[cfg(test)]
mod testing;
