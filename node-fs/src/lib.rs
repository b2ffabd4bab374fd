//! keyhole-node-fs.
