//! A root CA of the operator's own, on its way to the manager (`cluster ca --rotate --ca-cert`).
//!
//! Invariant: the key is read into locked memory from a file that only its owner can read, and leaves it sealed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use keyhole_proto::v1;
use keyhole_secmem::{ReadError, SecretBytes};

use crate::failure::Failure;
use crate::value::{Operation, Receiver, protect_process};

/// More has no file of one certificate, and none of one key.
const LONGEST: usize = 64 << 10;

/// A CA's certificate (DER) and its key (PEM).
pub(super) struct OwnCa {
    certificate: Vec<u8>,
    key: SecretBytes,
}

impl OwnCa {
    /// Reads both files; `-` is the key on standard input.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, Failure> {
        protect_process()?;
        Ok(Self { certificate: certificate_in(certificate)?, key: key_in(key)? })
    }

    /// For the manager that the receiver is of.
    pub(super) fn sealed_for(self, receiver: &Receiver) -> Result<v1::BroughtCa, Failure> {
        let key = receiver.seal(Operation::RotateCa, "CA key", &self.key)?;
        Ok(v1::BroughtCa { certificate: self.certificate.into(), key: Some(key) })
    }
}

/// The one certificate in a file of PEM. What else might be in it, such as its key, must not go out with it.
fn certificate_in(source: &Path) -> Result<Vec<u8>, Failure> {
    let file = open(source)?;
    let text = read(source, file.as_fd())?;
    let blocks = pem::parse_many(text.as_slice()).unwrap_or_default();
    match blocks.as_slice() {
        [one] if one.tag() == "CERTIFICATE" => Ok(one.contents().to_vec()),
        blocks => Err(Failure::new(format!(
            "{} has {} blocks of PEM ('-----BEGIN'); a CA is one block, its certificate, and nothing else",
            source.display(),
            blocks.len()
        ))),
    }
}

fn key_in(source: &Path) -> Result<SecretBytes, Failure> {
    if source.as_os_str() == "-" {
        return read(Path::new("standard input"), io::stdin().as_fd());
    }
    let file = open(source)?;
    let mode = file.metadata().map_err(|error| unread(source, &error))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Failure::new(format!(
            "{} has a CA's key and mode {mode:04o}: others than its owner can read it; chmod 600 it",
            source.display()
        )));
    }
    read(source, file.as_fd())
}

fn open(source: &Path) -> Result<File, Failure> {
    File::open(source).map_err(|error| unread(source, &error))
}

fn read(source: &Path, from: BorrowedFd<'_>) -> Result<SecretBytes, Failure> {
    SecretBytes::read_from(from, LONGEST).map_err(|error| match error {
        ReadError::Io(error) => unread(source, &error),
        ReadError::Empty => unread(source, &"it is empty"),
        ReadError::TooLarge { limit, .. } => unread(source, &format!("it has over {limit} bytes")),
        error => unread(source, &error),
    })
}

fn unread(source: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot read {}: {error}", source.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_ca_is_one_certificate_and_a_key_that_only_its_owner_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        let refused = || OwnCa::read(&certificate, &key).err().unwrap().to_string();
        assert!(refused().contains("cannot read") && refused().contains("ca.pem"), "{}", refused());
        let private = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        for wrong in
            ["", "rubbish", &private, &CERTIFICATE.repeat(2), &(CERTIFICATE.to_owned() + &private)]
        {
            fs::write(&certificate, wrong).unwrap();
            let why = refused();
            assert!(why.contains("ca.pem") && !why.contains("AQID"), "{why}");
        }
        fs::write(&certificate, CERTIFICATE).unwrap();
        fs::write(&key, &private).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        assert!(
            refused().contains("mode 0640") && refused().contains("chmod 600"),
            "{}",
            refused()
        );
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let ca = OwnCa::read(&certificate, &key).ok().unwrap();
        assert_eq!((ca.certificate, ca.key.as_slice()), (vec![1, 2, 3], private.as_bytes()));
        fs::write(&key, vec![b'x'; LONGEST + 1]).unwrap();
        assert!(refused().contains("ca.key"), "{}", refused());
    }
}
