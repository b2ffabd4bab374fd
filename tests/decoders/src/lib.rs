//! Everything that reads a disk or a network, each as a function of any bytes.
//!
//! The fuzz targets in `fuzz/` call them, and so does a test with the committed corpus. Invariant: whatever the bytes are,
//! a function returns; what it accepts and can write again, it reads again as the same.

#![expect(clippy::expect_used, reason = "a harness fails by panicking")]

mod manager;
mod node;
mod root;
mod shared;
mod store;

/// Takes any bytes, and returns.
pub type Decoder = fn(&[u8]);

/// Each function by the name of its fuzz target and corpus.
pub const ALL: [(&str, Decoder); 15] = [
    ("assignment", node::assignment),
    ("audit", manager::audit),
    ("backup", manager::backup),
    ("certificate", shared::certificate),
    ("command", manager::command),
    ("identity", node::identity),
    ("key", shared::key),
    ("node_state", node::node_state),
    ("peer", manager::peer),
    ("proc", node::proc),
    ("root", root::root),
    ("seal", shared::seal),
    ("snapshot", manager::snapshot),
    ("store", store::store),
    ("text", shared::text),
];

/// Calls one by its name.
pub fn call(name: &str, bytes: &[u8]) {
    let (_, decoder) = ALL.iter().find(|(known, _)| *known == name).expect("it is one of them");
    decoder(bytes);
}

/// What a library panics at where that is contained is an error from now on; any other panic ends the process, with its
/// place.
pub fn panic_as_daemons_do() {
    keyhole_secmem::harden::install_panic_hook();
}

pub use root::{ROOT_KEY, signed_anew};

/// The pieces of an input of several: two bytes of length (little-endian) before each.
pub fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        Some(piece)
    })
}

/// The other way: one input of several pieces.
pub fn joined<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let length = u16::try_from(piece.len()).expect("seeds are small");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(piece);
    }
    bytes
}
