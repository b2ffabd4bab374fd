//! keyhole-manager.
