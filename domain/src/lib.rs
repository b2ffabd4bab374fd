//! The shared vocabulary of Keyhole: ids, names, versions, grants, constraints and assignments.
//!
//! Everything here is parsed once and valid from then on. It depends on nothing of the project, has no clock, no
//! randomness, no files and no values: a secret's bytes never pass through these types.

mod assignment;
mod constraint;
mod delta;
mod grant;
mod id;
mod limits;
mod mode;
mod name;
mod target;
mod version;

pub use assignment::{AssignedGrant, AssignedTask, Assignment, ValueKey};
pub use constraint::{Constraint, ConstraintError, NodeFacts};
pub use delta::{AssignmentDelta, DeltaError};
pub use grant::{GrantId, GrantSpec, GrantSpecError};
pub use id::{ClusterId, ID_LEN, IdError, NodeId, SecretId, ServiceId, TaskId};
pub use limits::{
    DEFAULT_QUOTA_BYTES, KEPT_VERSIONS, MAX_CONSTRAINT_BYTES, MAX_CONSTRAINTS, MAX_GRANTS,
    MAX_LABEL_BYTES, MAX_LABELS, MAX_SECRET_BYTES, ValueLenError, check_value_len,
};
pub use mode::{FileMode, ModeError};
pub use name::{Labels, LabelsError, NameError, OperatorName, SecretName, ServiceName};
pub use target::{Target, TargetError};
pub use version::{Revision, Timestamp, Version, VersionError};
