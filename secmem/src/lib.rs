//! keyhole-secmem.
