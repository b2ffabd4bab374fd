//! Cgroups: which one a caller is in, which task that makes it, and which cgroups may become a task.
//!
//! Names come from `/proc/PID/cgroup` and can be chosen by a workload; a caller is therefore always judged by cgroup
//! *id* ([`nearest`]). Names serve to find ancestors and to talk to a runtime that is then asked itself.

mod adopt;
mod path;
mod runtime;

pub use adopt::{AdoptError, Adoption, adopt};
pub use path::{CgroupError, CgroupId, CgroupPath, nearest};
pub use runtime::{NotNamed, Runtime, identify};
