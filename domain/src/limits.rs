//! The limits that operators meet; design section 6, point 9, and docs/SEMANTICS.md.

/// Largest value of one version, in bytes, inclusive (500 KiB).
pub const MAX_SECRET_BYTES: usize = 512_000;
/// How many versions of a secret are kept, counting the current one; pinned ones are kept beyond it.
pub const KEPT_VERSIONS: usize = 10;
/// All values of a cluster together, in bytes, unless the operator sets another quota.
pub const DEFAULT_QUOTA_BYTES: u64 = 1 << 30;
/// Labels on one object.
pub const MAX_LABELS: usize = 128;
/// All keys and values of one object's labels together, in bytes.
pub const MAX_LABEL_BYTES: usize = 64 * 1024;
/// Grants of one service.
pub const MAX_GRANTS: usize = 1_000;
/// Constraints of one service.
pub const MAX_CONSTRAINTS: usize = 128;
/// All constraints of one service together, in bytes.
pub const MAX_CONSTRAINT_BYTES: usize = 64 * 1024;

/// Why a value's length is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueLenError {
    /// No byte at all: almost always a mistake in a pipe.
    #[error("the value is empty; a secret has 1 to {MAX_SECRET_BYTES} bytes")]
    Empty,
    /// Over the limit.
    #[error("the value has {size} bytes; the limit is {MAX_SECRET_BYTES} bytes (500 KiB)")]
    TooLarge {
        /// Bytes given.
        size: u64,
    },
}

/// Checks the length of a value, in bytes.
pub fn check_value_len(size: u64) -> Result<(), ValueLenError> {
    match size {
        0 => Err(ValueLenError::Empty),
        size if size > MAX_SECRET_BYTES as u64 => Err(ValueLenError::TooLarge { size }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_limit_is_inclusive_and_named() {
        assert_eq!(check_value_len(1), Ok(()));
        assert_eq!(check_value_len(512_000), Ok(()));
        assert_eq!(check_value_len(0), Err(ValueLenError::Empty));
        let text = check_value_len(512_001).unwrap_err().to_string();
        assert!(text.contains("512001") && text.contains("512000"), "{text}");
    }
}
