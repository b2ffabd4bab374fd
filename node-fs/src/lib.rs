//! The node's shell: a FUSE filesystem that shows each caller the secrets of its own task.
//!
//! Two processes: the [`supervisor`] holds what must survive (connection, sealed state, control
//! socket, mount), the worker serves and can die at any moment ([`handover`], [`inheritance`]).
//! What a caller may see is decided in `keyhole-view`, which is pure; this crate finds out who the
//! caller is ([`caller`], [`cgroups`]), keeps the values and talks to the kernel.
//! `unsafe` is in [`sys`] only.

pub mod agent;
pub mod attempts;
pub mod audit;
pub mod caller;
pub mod cgroups;
pub mod config;
pub mod control;
pub mod core;
pub mod fuse;
pub mod handles;
pub mod handover;
pub mod inheritance;
pub mod join;
pub mod meter;
pub mod mount;
pub mod mountinfo;
pub mod registry;
pub mod report;
pub mod requirements;
pub mod stage;
pub mod state_memfd;
pub mod supervisor;
pub mod sys;
pub mod value_memory;
pub mod values;
pub mod worker;
