//! Where a grant's file appears below `/run/secrets`: a normalised relative path.
//!
//! Conflicts are decided on the normalised form, so `a//b`, `./a/b` and `/run/secrets/a/b` are one target
//! (design section 6, point 5).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The path that applications know; an absolute target must lie under it.
const MOUNT: &str = "/run/secrets";
const MAX_COMPONENT: usize = 255;
const MAX_TOTAL: usize = 1024;

/// A checked target: one or more components, none empty, `.` or `..`, none hidden from the rules by its spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(Arc<str>);

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No file is named.
    #[error("target {text:?} names no file")]
    Empty {
        /// The target as given.
        text: String,
    },
    /// `..` anywhere.
    #[error("target {text:?} has '..'; a target stays below {MOUNT}")]
    Parent {
        /// The target as given.
        text: String,
    },
    /// An absolute path elsewhere.
    #[error("target {text:?} is outside {MOUNT}; give a relative path, or one below {MOUNT}")]
    Outside {
        /// The target as given.
        text: String,
    },
    /// NUL, newline or another control character.
    #[error("target {text:?} has a control character")]
    Control {
        /// The target as given.
        text: String,
    },
    /// A component begins with a dot: those names are Keyhole's own (`.set`, hidden names of a rotation).
    #[error("target {text:?} has a component that begins with a dot; those names are reserved")]
    Reserved {
        /// The target as given.
        text: String,
    },
    /// Too long.
    #[error("target is too long: at most {MAX_COMPONENT} bytes a component and {MAX_TOTAL} in all")]
    TooLong,
}

impl Target {
    /// The normalised path, components joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path's components, first to last; the last one is the file.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether one of the two is a directory on the other's way, or both are the same file.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let mut mine = self.components();
        let mut theirs = other.components();
        loop {
            match (mine.next(), theirs.next()) {
                (Some(a), Some(b)) if a == b => {}
                (Some(_), Some(_)) => return false,
                _ => return true,
            }
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let shown = || text.chars().take(120).collect::<String>();
        if text.contains(char::is_control) {
            return Err(TargetError::Control { text: shown() });
        }
        let components: Vec<&str> =
            text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if components.contains(&"..") {
            return Err(TargetError::Parent { text: shown() });
        }
        let below = match (text.starts_with('/'), components.as_slice()) {
            (false, all) => all,
            (true, ["run", "secrets", below @ ..]) => below,
            (true, _) => return Err(TargetError::Outside { text: shown() }),
        };
        if below.is_empty() || text.ends_with('/') {
            return Err(TargetError::Empty { text: shown() });
        }
        if below.iter().any(|part| part.starts_with('.')) {
            return Err(TargetError::Reserved { text: shown() });
        }
        let path = below.join("/");
        if path.len() > MAX_TOTAL || below.iter().any(|part| part.len() > MAX_COMPONENT) {
            return Err(TargetError::TooLong);
        }
        Ok(Self(path.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_file_are_one_target() {
        for text in
            ["tls/key", "./tls//key", "tls/./key", "/run/secrets/tls/key", "//run/secrets//tls/key"]
        {
            assert_eq!(target(text).as_str(), "tls/key", "{text:?}");
        }
    }

    #[test]
    fn ways_out_are_refused() {
        for text in [
            "..",
            "../x",
            "a/../b",
            "/etc/passwd",
            "/run/secretsx/a",
            "/run",
            "",
            "/",
            "a/",
            ".",
            "/run/secrets",
            "/run/secrets/",
            "a\0b",
            "a\nb",
            ".set/x",
            ".hidden",
            "a/.b",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        assert!("x".repeat(256).parse::<Target>().is_err());
        assert!(vec!["abcdefgh"; 200].join("/").parse::<Target>().is_err());
    }

    #[test]
    fn a_file_conflicts_with_itself_and_with_a_directory_on_its_way() {
        assert!(target("a").conflicts_with(&target("a")));
        assert!(target("a").conflicts_with(&target("a/b")));
        assert!(target("a/b").conflicts_with(&target("a")));
        assert!(!target("a/b").conflicts_with(&target("a/c")));
        assert!(!target("ab").conflicts_with(&target("a")));
    }
}
