//! A secret's value on its way in: from a file or standard input into locked memory, and sealed for the manager.
//!
//! Invariant: a value is in [`SecretBytes`] or sealed, never in argv, never in a buffer of this program's.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use keyhole_domain::{ClusterId, MAX_SECRET_BYTES, ValueLenError};
use keyhole_proto::v1;
use keyhole_secmem::{ReadError, SecretBytes, harden};
use keyhole_wire::seal::{Aad, EdgePublicKey, Info, Protocol, seal_one};

use crate::console::Console;
use crate::failure::Failure;

/// From now on this process leaves no core and cannot be looked into.
pub(crate) fn protect_process() -> Result<(), Failure> {
    harden::forbid_dumps().map_err(Failure::new)?;
    harden::forbid_cores().map_err(Failure::new)
}

/// Reads the value of the secret `name` from `source`, a file or `-`.
pub(crate) fn read(
    console: &mut Console,
    name: &str,
    source: &Path,
) -> Result<SecretBytes, Failure> {
    if source.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            console.hint(&format!("Type or paste the value of {name}, then Ctrl-D:"));
        }
        return read_from(name, "standard input", io::stdin().as_fd());
    }
    let shown = source.display().to_string();
    let file = File::open(source).map_err(|error| {
        Failure::new(format!(
            "secret {name}: cannot open {shown}: {error}; give a readable file, or - for standard input"
        ))
        .about(name)
    })?;
    read_from(name, &shown, file.as_fd())
}

fn read_from(name: &str, source: &str, fd: BorrowedFd<'_>) -> Result<SecretBytes, Failure> {
    SecretBytes::read_from(fd, MAX_SECRET_BYTES).map_err(|error| {
        let why = match error {
            ReadError::Empty => ValueLenError::Empty.to_string(),
            ReadError::TooLarge { size, .. } => ValueLenError::TooLarge { size }.to_string(),
            ReadError::Io(error) => format!("cannot read it: {error}"),
            error => error.to_string(),
        };
        Failure::new(format!("secret {name}: value from {source}: {why}")).about(name)
    })
}

/// Which request a value is sealed for; it cannot be replayed as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `secret create`
    Create,
    /// `secret rotate`
    Rotate,
    /// The passphrase of `cluster backup`
    Backup,
    /// `cluster unlock`
    Unlock,
    /// The key of `cluster ca --rotate --ca-key`
    RotateCa,
}

impl Operation {
    fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Rotate => "rotate",
            Self::Backup => "backup",
            Self::Unlock => "unlock",
            Self::RotateCa => "rotate-ca",
        }
    }
}

/// Whom to seal for: a manager process's key and the connection it came over.
pub(crate) struct Receiver {
    key: EdgePublicKey,
    info: Info,
}

impl Receiver {
    /// Takes a manager's key; `exporter` is that of the TLS connection, if it is one.
    pub(crate) fn new(key: &v1::SealKey, exporter: Option<&[u8; 32]>) -> Result<Self, Failure> {
        let odd =
            |what: String| Failure::new(format!("the manager's seal key is unusable: {what}"));
        let cluster: ClusterId = key.cluster.parse().map_err(|e| odd(format!("{e}")))?;
        let public =
            EdgePublicKey::try_from(key.public_key.as_ref()).map_err(|e| odd(e.to_string()))?;
        let info = Info::new(Protocol::CliToManager, &cluster, "operator", &key.manager);
        Ok(Self {
            key: public,
            info: match exporter {
                Some(exporter) => info.exporter(exporter),
                None => info,
            },
        })
    }

    /// Seals the value for one request about the secret that was typed as `name`.
    pub(crate) fn seal(
        &self,
        operation: Operation,
        name: &str,
        value: &SecretBytes,
    ) -> Result<v1::SealedInput, Failure> {
        let aad = Aad::new().text(operation.label()).text(name);
        let sealed = seal_one(&self.key, &self.info, &aad, value).map_err(|error| {
            let what = match operation {
                Operation::Create | Operation::Rotate => {
                    format!("secret {name}: cannot seal its value")
                }
                Operation::Backup | Operation::Unlock | Operation::RotateCa => {
                    format!("cannot seal the {name}")
                }
            };
            Failure::new(format!("{what}: {error}"))
        })?;
        Ok(v1::SealedInput { enc: sealed.enc.into(), ciphertext: sealed.ciphertext.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use keyhole_wire::seal::EdgeKeyPair;

    use super::*;

    fn file_with(contents: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    fn console() -> Console {
        Console::of(Box::new(io::sink()), Box::new(io::sink()), || 0)
    }

    #[test]
    fn values_are_exact_and_limits_are_named() {
        let value: Vec<u8> = (0..512_000).map(|i| (i % 256) as u8).collect();
        let read_it = |bytes: &[u8]| read(&mut console(), "db", file_with(bytes).path());
        assert!(read_it(&value).unwrap().as_slice() == value);
        let error = read_it(&[7; 512_001]).unwrap_err().to_string();
        assert!(error.contains("512001") && error.contains("512000"), "{error}");
        let error = read_it(&[]).unwrap_err().to_string();
        assert!(error.contains("empty"), "{error}");
    }

    #[test]
    fn unreadable_sources_are_named() {
        let error =
            read(&mut console(), "db", Path::new("/nonexistent/x")).unwrap_err().to_string();
        assert!(error.contains("db") && error.contains("/nonexistent/x"), "{error}");
        let error = read(&mut console(), "db", Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
    }

    #[test]
    fn a_seal_opens_for_its_request_only() {
        let pair = EdgeKeyPair::generate().unwrap();
        let cluster = ClusterId::from_entropy([3; 16]);
        let key = v1::SealKey {
            cluster: cluster.to_string(),
            manager: "m".into(),
            public_key: pair.public().as_bytes().to_vec().into(),
        };
        let value = SecretBytes::copy_from(&mut b"hunter2".to_vec()).unwrap();
        let receiver = Receiver::new(&key, None).unwrap();
        let sealed = receiver.seal(Operation::Rotate, "db", &value).unwrap();
        let info = Info::new(Protocol::CliToManager, &cluster, "operator", "m");
        let open = |operation: &str, name: &str| {
            let aad = Aad::new().text(operation).text(name);
            pair.open_one(&sealed.enc, &info, &aad, &sealed.ciphertext)
        };
        assert_eq!(open("rotate", "db").unwrap().as_slice(), b"hunter2");
        assert!(open("create", "db").is_err());
        assert!(open("rotate", "other").is_err());
    }
}
