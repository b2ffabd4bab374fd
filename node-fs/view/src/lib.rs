//! keyhole-view.
