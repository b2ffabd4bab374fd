//! keyhole-wire.
