//! Names and labels. Case-sensitive everywhere (design section 6, point 4).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits::{MAX_LABEL_BYTES, MAX_LABELS};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{kind} name is empty")]
    Empty {
        /// `secret`, `service` or `operator`.
        kind: &'static str,
    },
    /// Too long, or with a character that names do not have.
    #[error(
        "invalid {kind} name {text:?}: only 1 to {max} characters of [{allowed}] are allowed, and the \
         first and last must be [a-zA-Z0-9]"
    )]
    Invalid {
        /// `secret`, `service` or `operator`.
        kind: &'static str,
        /// The text, cut at 80 characters.
        text: String,
        /// The longest name, in bytes.
        max: usize,
        /// The characters a name may have.
        allowed: &'static str,
    },
}

fn check(
    text: &str,
    kind: &'static str,
    max: usize,
    extra: &[u8],
    allowed: &'static str,
) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Err(NameError::Empty { kind });
    };
    let fits = bytes.len() <= max
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || extra.contains(b));
    if fits {
        return Ok(());
    }
    Err(NameError::Invalid { kind, text: text.chars().take(80).collect(), max, allowed })
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $extra:literal, $allowed:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, $kind, $max, $extra, $allowed)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    )*};
}

names! {
    /// A secret's name: Docker's rule (docker-secrets, section 1), but case-sensitive.
    SecretName, "secret", 64, b"-_.", "a-zA-Z0-9-_.";
    /// A service's name: at most 63 characters, no dot, so that `NAME.TASK` stays unambiguous.
    ServiceName, "service", 63, b"-_", "a-zA-Z0-9-_";
    /// An operator's name: what people and tools are called, `ann@example.org` too.
    OperatorName, "operator", 64, b"-_.@", "a-zA-Z0-9-_.@";
}

/// Why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// A key that is empty or has white space, a control character or `=`.
    #[error(
        "invalid label key {key:?}: it must not be empty nor have white space, control characters or '='"
    )]
    Key {
        /// The key, cut at 80 characters.
        key: String,
    },
    /// A value with a control character.
    #[error("invalid value of label {key:?}: control characters are not allowed")]
    Value {
        /// The label's key.
        key: String,
    },
    /// Too many labels.
    #[error("{count} labels given; the limit is {MAX_LABELS}")]
    TooMany {
        /// Labels given.
        count: usize,
    },
    /// Too much text.
    #[error("the labels have {bytes} bytes in all; the limit is {MAX_LABEL_BYTES}")]
    TooLarge {
        /// Bytes of all keys and values.
        bytes: usize,
    },
}

/// Checked labels, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks and takes labels.
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, LabelsError> {
        if labels.len() > MAX_LABELS {
            return Err(LabelsError::TooMany { count: labels.len() });
        }
        let bytes = labels.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > MAX_LABEL_BYTES {
            return Err(LabelsError::TooLarge { bytes });
        }
        for (key, value) in &labels {
            let bad_key = |c: char| c.is_whitespace() || c.is_control() || c == '=';
            if key.is_empty() || key.contains(bad_key) {
                return Err(LabelsError::Key { key: key.chars().take(80).collect() });
            }
            if value.contains(char::is_control) {
                return Err(LabelsError::Value { key: key.chars().take(80).collect() });
            }
        }
        Ok(Self(labels))
    }

    /// The value of a label.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All labels.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_names_follow_dockers_rule() {
        for text in ["a", "db.password", "A-1_b", &"x".repeat(64)] {
            assert!(text.parse::<SecretName>().is_ok(), "{text:?}");
        }
        for text in ["", ".a", "a.", "-", "a b", "a/b", "a\n", "a\0b", "é", &"x".repeat(65)] {
            assert!(text.parse::<SecretName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_case_sensitive() {
        assert_ne!("Db".parse::<SecretName>().unwrap(), "db".parse::<SecretName>().unwrap());
    }

    #[test]
    fn services_have_no_dots() {
        assert!("web-1".parse::<ServiceName>().is_ok());
        assert!("web.1".parse::<ServiceName>().is_err());
    }

    #[test]
    fn labels_are_bounded() {
        let one = |k: &str, v: &str| Labels::new(BTreeMap::from([(k.to_owned(), v.to_owned())]));
        assert!(one("k", "").is_ok());
        assert!(one("", "v").is_err());
        assert!(one("a b", "v").is_err());
        assert!(one("a", "v\n").is_err());
        assert!(one("a", &"x".repeat(1 << 20)).is_err());
        let many = (0..10_000).map(|i| (format!("k{i}"), String::new())).collect();
        assert_eq!(Labels::new(many), Err(LabelsError::TooMany { count: 10_000 }));
    }
}
