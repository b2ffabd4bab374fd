//! The harness of the cross-process tests: real managers, nodes, mounts, cgroups and sockets, all ended and removed
//! when a test ends, also by a panic.
//!
//! The usual way in is [`Machine`]: one manager and one node with its mount. [`Cluster`] is a manager and as many
//! nodes as wanted; [`Probe`] is a process, in a task or outside, that makes system calls on request, so that what
//! is tested is what *that* process sees. Nothing here waits by sleeping: a wait is for a line, an exit, or a condition
//! ([`wait`]) with a deadline, and it fails with the daemons' logs.
//!
//! Needs root, /dev/fuse and a cgroup v2 hierarchy, and fails without them. Depends on the `keyhole` binary, not on the
//! crates behind it: `cargo build -p keyhole-cli` first (`KEYHOLE_BIN` names another one).

pub mod ask;
mod binary;
pub mod board;
mod cgroup;
mod clock;
mod cluster;
mod daemon;
pub mod dev;
pub mod disk;
mod ground;
pub mod labelled;
pub mod linearizability;
mod machine;
pub mod member;
mod mounts;
pub mod network;
mod node;
pub mod operate;
mod probe;
mod probe_calls;
pub mod reader;
pub mod scan;
mod tap;
pub mod transcript;
pub mod wait;

pub use ask::*;
pub use binary::{
    bench_binary, keeper_binary, keyhole_binary, node_files_binary, probe_binary, reader_binary,
};
pub use cgroup::{TestCgroup, cgroup_root};
pub use clock::{Clock, move_clock};
pub use cluster::{Cluster, Ran, command_on, free_address, plain_command, run};
pub use daemon::Daemon;
pub use ground::{Ground, SmallDisk};
pub use machine::Machine;
pub use mounts::{MountFact, mounts};
pub use node::{Node, NodeOptions};
pub use probe::{Fd, Probe, RunFailed};
pub use tap::Tap;
