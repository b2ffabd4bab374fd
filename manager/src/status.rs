//! Refusals and failures as gRPC statuses. Invariant: each [`Rejected`] has one code, chosen in one exhaustive match, and
//! its message is the state's own.

use keyhole_state::{Kind, Rejected};
use tonic::{Code, Status};

/// The status of a command or a look-up that the state refused.
#[must_use]
pub fn rejected(reason: &Rejected) -> Status {
    Status::new(code(reason.kind()), reason.to_string())
}

/// Design section 6, point 8.
fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::PermissionDenied => Code::PermissionDenied,
    }
}

/// A request that is wrong in itself.
pub(crate) fn invalid(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Something of this process's own that must not fail. The caller learns that it did, the log why.
pub(crate) fn internal(what: &'static str, error: impl std::fmt::Display) -> Status {
    tracing::error!(%error, "{what}");
    Status::internal(format!("{what}; see the manager's log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_of_its_name() {
        for (kind, expected) in [
            (Kind::NotFound, Code::NotFound),
            (Kind::AlreadyExists, Code::AlreadyExists),
            (Kind::FailedPrecondition, Code::FailedPrecondition),
            (Kind::Aborted, Code::Aborted),
            (Kind::InvalidArgument, Code::InvalidArgument),
            (Kind::ResourceExhausted, Code::ResourceExhausted),
            (Kind::PermissionDenied, Code::PermissionDenied),
        ] {
            assert_eq!(code(kind), expected);
        }
    }
}
