//! File modes of grants: always octal, permission bits only.

use std::fmt;
use std::str::FromStr;

/// Permission bits, at most `0777`; no setuid, setgid or sticky bit can be expressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileMode(u16);

/// Why a text or number is not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "mode {text:?} is not octal permission bits from 0 to 0777 (440 and 0440 both mean r--r-----)"
)]
pub struct ModeError {
    text: String,
}

impl FileMode {
    /// The mode of a grant that names none.
    pub const DEFAULT: Self = Self(0o444);

    /// A mode from its bits.
    pub fn new(bits: u32) -> Result<Self, ModeError> {
        match u16::try_from(bits) {
            Ok(bits) if bits <= 0o777 => Ok(Self(bits)),
            _ => Err(ModeError { text: format!("{bits:o}") }),
        }
    }

    /// The permission bits.
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl FromStr for FileMode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let error = || ModeError { text: text.chars().take(32).collect() };
        // from_str_radix takes a sign, which a mode has not.
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let bits = u32::from_str_radix(text, 8).map_err(|_| error())?;
        Self::new(bits).map_err(|_| error())
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_with_or_without_zero() {
        assert_eq!("440".parse::<FileMode>().unwrap().bits(), 0o440);
        assert_eq!("0440".parse::<FileMode>().unwrap().bits(), 0o440);
        assert_eq!("0".parse::<FileMode>().unwrap().bits(), 0);
        assert_eq!("0777".parse::<FileMode>().unwrap().to_string(), "0777");
    }

    #[test]
    fn bits_above_0777_and_nonsense_are_refused() {
        for text in ["", "1000", "4755", "8", "0o440", "+440", "-1", "rwx", "99999999999999"] {
            assert!(text.parse::<FileMode>().is_err(), "{text:?}");
        }
    }
}
