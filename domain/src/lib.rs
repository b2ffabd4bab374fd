//! keyhole-domain.
