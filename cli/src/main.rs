//! The `keyhole` binary.
fn main() {}
