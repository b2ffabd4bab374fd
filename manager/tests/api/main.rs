//! A manager as its operators and nodes meet it: real sockets, real TLS, a real store, in temporary folders.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failing step of a test is its failure"
)]

mod dispatch;
mod operator;
mod operators;
mod own_ca;
mod start;
mod support;
mod trust;
