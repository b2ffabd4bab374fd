//! Extended attributes: which secret and version a file is, for its own task only.
//!
//! To everyone else the file has no attributes at all, also through `/proc/PID/fd`.

use crate::{Denied, ShownFile};

/// The attribute with the version's number, in decimal.
pub const XATTR_VERSION: &str = "user.keyhole.version";
/// The attribute with the secret's name.
pub const XATTR_SECRET: &str = "user.keyhole.secret";

/// The answer to getxattr(2) and listxattr(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XattrAnswer {
    /// The caller asked with size 0: how many bytes there are.
    Size(u32),
    /// The bytes.
    Data(Vec<u8>),
}

impl XattrAnswer {
    /// Answers with `data` to a caller whose buffer has `size` bytes; 0 asks for the length.
    pub(crate) fn new(data: Vec<u8>, size: u32) -> Result<Self, Denied> {
        // Names and numbers are far below 4 GiB.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match size {
            0 => Ok(Self::Size(len)),
            size if size < len => Err(Denied::ShortBuffer),
            _ => Ok(Self::Data(data)),
        }
    }
}

/// One attribute of a file of the caller's own.
pub(crate) fn value(file: &ShownFile, name: &[u8]) -> Option<Vec<u8>> {
    if name == XATTR_VERSION.as_bytes() {
        Some(file.value.version.to_string().into_bytes())
    } else if name == XATTR_SECRET.as_bytes() {
        Some(file.secret.as_str().as_bytes().to_vec())
    } else {
        None
    }
}

/// All names of a file of the caller's own, each ended by NUL.
pub(crate) fn names() -> Vec<u8> {
    [XATTR_SECRET, XATTR_VERSION].iter().flat_map(|name| name.bytes().chain([0])).collect()
}
