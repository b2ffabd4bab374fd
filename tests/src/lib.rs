//! keyhole-tests.
