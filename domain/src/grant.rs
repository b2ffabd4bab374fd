//! Grants: which secret appears where, for whom, and how it is written on the command line.
//!
//! The syntax is Docker's `--secret` (docker-secrets, section 2), with the differences of design section 6: mode is
//! always octal, everything is checked when granted, and a version may be pinned.

use std::fmt;
use std::str::FromStr;

use crate::{
    FileMode, ModeError, NameError, SecretName, Target, TargetError, Version, VersionError,
};

/// A grant's number, unique in the cluster and never reused: any change of target, uid, gid or mode is a new grant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrantId(pub u64);

/// A grant as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantSpec {
    /// The secret's name.
    pub source: SecretName,
    /// Where the file appears.
    pub target: Target,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// The file's permission bits.
    pub mode: FileMode,
    /// A version that this grant stays at, whatever is current.
    pub pinned: Option<Version>,
}

/// Why a grant's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantSpecError {
    /// A field without `=`, where there is more than one field.
    #[error(
        "invalid field {field:?} in --secret: must be key=value (source, target, uid, gid, mode, version)"
    )]
    NotKeyValue {
        /// The field.
        field: String,
    },
    /// A key that grants do not have.
    #[error(
        "invalid field {key:?} in --secret: known are source, target, uid, gid, mode and version"
    )]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key given twice.
    #[error("field {key:?} is given twice in --secret")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// No secret is named.
    #[error("source is required in --secret")]
    NoSource,
    /// The secret's name is no name.
    #[error(transparent)]
    Source(#[from] NameError),
    /// The target is no target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// An owner that is not a number.
    #[error(
        "invalid {key} {text:?} in --secret: must be a number from 0 to 4294967294 (names differ between machines)"
    )]
    Owner {
        /// `uid` or `gid`.
        key: &'static str,
        /// The text.
        text: String,
    },
    /// The mode is no mode.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// The version is no version.
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// Largest uid or gid: 4294967295 is "no id" to the kernel.
const MAX_OWNER: u32 = u32::MAX - 1;

fn owner(key: &'static str, text: &str) -> Result<u32, GrantSpecError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse::<u32>().ok() } else { None };
    number
        .filter(|n| *n <= MAX_OWNER)
        .ok_or_else(|| GrantSpecError::Owner { key, text: text.chars().take(32).collect() })
}

/// The fields of one `--secret`, each at most once.
#[derive(Default)]
struct Fields<'a> {
    source: Option<&'a str>,
    target: Option<&'a str>,
    uid: Option<&'a str>,
    gid: Option<&'a str>,
    mode: Option<&'a str>,
    version: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, GrantSpecError> {
        let mut fields = Self::default();
        if !text.contains([',', '=']) {
            fields.source = Some(text);
            return Ok(fields);
        }
        for field in text.split(',') {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| GrantSpecError::NotKeyValue { field: field.to_owned() })?;
            let (key, slot) = match key.to_ascii_lowercase().as_str() {
                "source" | "src" => ("source", &mut fields.source),
                "target" => ("target", &mut fields.target),
                "uid" => ("uid", &mut fields.uid),
                "gid" => ("gid", &mut fields.gid),
                "mode" => ("mode", &mut fields.mode),
                "version" => ("version", &mut fields.version),
                _ => {
                    return Err(GrantSpecError::UnknownKey { key: key.to_owned() });
                }
            };
            if slot.replace(value).is_some() {
                return Err(GrantSpecError::Twice { key });
            }
        }
        Ok(fields)
    }
}

impl FromStr for GrantSpec {
    type Err = GrantSpecError;

    fn from_str(text: &str) -> Result<Self, GrantSpecError> {
        let fields = Fields::read(text)?;
        let source: SecretName = match fields.source {
            None | Some("") => return Err(GrantSpecError::NoSource),
            Some(source) => source.parse()?,
        };
        Ok(Self {
            target: fields.target.unwrap_or(source.as_str()).parse()?,
            uid: fields.uid.map_or(Ok(0), |text| owner("uid", text))?,
            gid: fields.gid.map_or(Ok(0), |text| owner("gid", text))?,
            mode: fields.mode.map_or(Ok(FileMode::DEFAULT), str::parse)?,
            pinned: fields.version.map(str::parse).transpose()?,
            source,
        })
    }
}

impl fmt::Display for GrantSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, uid, gid, mode, pinned } = self;
        write!(f, "source={source},target={target},uid={uid},gid={gid},mode={mode}")?;
        pinned.map_or(Ok(()), |version| write!(f, ",version={version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GrantSpec, GrantSpecError> {
        text.parse()
    }

    #[test]
    fn short_form_has_dockers_defaults() {
        let grant = parse("db").unwrap();
        assert_eq!(grant.to_string(), "source=db,target=db,uid=0,gid=0,mode=0444");
    }

    #[test]
    fn long_form_takes_every_field() {
        let grant = parse("SRC=db,target=tls/pw,uid=1000,gid=100,mode=440,version=3").unwrap();
        assert_eq!(
            grant.to_string(),
            "source=db,target=tls/pw,uid=1000,gid=100,mode=0440,version=3"
        );
        assert_eq!(parse(&grant.to_string()), Ok(grant));
    }

    #[test]
    fn mistakes_name_the_field() {
        for (text, word) in [
            ("db,target=x", "db"),
            ("source=db,colour=red", "colour"),
            ("target=x", "source is required"),
            ("source=", "source is required"),
            ("", "source is required"),
            ("source=db,uid=www-data", "uid"),
            ("source=db,gid=4294967295", "gid"),
            ("source=db,uid=-1", "uid"),
            ("source=db,mode=1777", "mode"),
            ("source=db,mode=4755", "mode"),
            ("source=db,version=0", "version"),
            ("source=db,target=../x", ".."),
            ("source=db,source=db2", "twice"),
            ("a b", "name"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
