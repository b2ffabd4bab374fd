//! What a caller sees under `/run/secrets`: a pure function of who asks and what the node was assigned.
//!
//! The adapter that speaks FUSE decides nothing. It resolves the caller to a task ([`cgroup`] has the rules),
//! asks a [`View`], and forwards the answer or [`Denied::errno`]. This crate depends on the domain, SHA-256 and
//! thiserror; it has no files, clock, randomness or threads. Its one invariant: **no answer to a caller names,
//! describes or depends on anything of a task that is not the caller's.** A caller that is no task sees an empty
//! directory.

pub mod cgroup;

mod attr;
mod denied;
mod file;
mod ino;
mod layout;
mod mutation;
mod tree;
mod view;
mod xattr;

pub use attr::{Attr, BLOCK_BYTES, FOREVER, Kind, MountFacts, NAME_BYTES, StatFs};
pub use denied::Denied;
pub use file::{FileState, ShownFile, ShownValue};
pub use ino::{GENERATION, Ino};
pub use mutation::{Mutation, open_mutates};
pub use tree::Refusal;
pub use view::{Changes, Entry, GRACE, KeptSet, Listed, Record, SET, View};
pub use xattr::{XATTR_SECRET, XATTR_VERSION, XattrAnswer};
