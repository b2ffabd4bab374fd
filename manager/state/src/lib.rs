//! keyhole-state.
