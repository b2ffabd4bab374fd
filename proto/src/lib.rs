//! keyhole-proto.
