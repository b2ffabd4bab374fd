//! Reading a backup: nothing of it counts before its last record was read and fits.

use std::collections::BTreeMap;
use std::io::{self, Read};

use age::stream::StreamReader;
use age::{DecryptError, Decryptor, IdentityFile, scrypt};
use keyhole_proto::v1;
use keyhole_proto::v1::backup_record::Record;
use keyhole_secmem::{Key32, LockError, SecretBytes, ct_eq};
use keyhole_state::Row;
use prost::Message;
use zeroize::Zeroizing;

use super::write::passphrase;
use super::{FORMAT, Hashed, MAGIC, MAX_RECORD};
use crate::codec::decode_row;

/// What opens a backup.
#[derive(Debug)]
pub enum Unlock {
    /// The passphrase that it was encrypted to; a line's end after it does not count.
    Passphrase(SecretBytes),
    /// An age identity file's content: of one of the recipients that it was encrypted to.
    Identities(SecretBytes),
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is no age file.
    #[error("it is no backup: it does not begin like an age file")]
    NotAge,
    /// What it holds is something else.
    #[error("it is no backup of keyhole: it is an age file with something else in it")]
    NotABackup,
    /// The passphrase or identities cannot be used, or are of another file.
    #[error("{0}")]
    Locked(&'static str),
    /// A newer keyhole wrote it.
    #[error(
        "it has format {found}, this keyhole knows format {FORMAT} only; use the keyhole that wrote it"
    )]
    NewerFormat {
        /// The format found.
        found: u32,
    },
    /// It is not what was written.
    #[error("it is damaged: {0}; use another backup")]
    Damaged(String),
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Io(io::Error),
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl BackupError {
    fn io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Damaged("it was cut off or changed".to_owned())
            }
            _ => Self::Io(error),
        }
    }

    fn damaged(why: impl std::fmt::Display) -> Self {
        Self::Damaged(why.to_string())
    }
}

/// A backup that is being read.
pub struct BackupReader<R: Read> {
    input: Hashed<StreamReader<R>>,
    header: v1::BackupHeader,
    keyring: BTreeMap<u32, Key32>,
    ca_key: SecretBytes,
}

impl<R: Read> BackupReader<R> {
    /// Opens it and reads what it is of, and the keys.
    pub fn open(input: R, unlock: &Unlock) -> Result<Self, BackupError> {
        let mut input = Hashed::new(decrypt(input, unlock)?);
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(BackupError::io)?;
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        let Record::Header(header) = next(&mut input)? else {
            return Err(BackupError::damaged("it has no header"));
        };
        match header.format {
            FORMAT => {}
            0 => return Err(BackupError::damaged("its header has no format")),
            found => return Err(BackupError::NewerFormat { found }),
        }
        let Record::Keys(keys) = next(&mut input)? else {
            return Err(BackupError::damaged("it has no keys"));
        };
        let mut keyring = BTreeMap::new();
        for (epoch, key) in keys.keyring {
            let key: &[u8; 32] = key
                .as_ref()
                .try_into()
                .map_err(|_| BackupError::damaged("a key has another length"))?;
            keyring.insert(epoch, Key32::filled_by(|out| *out = *key)?);
        }
        let ca_key = SecretBytes::copy_from(&mut Zeroizing::new(keys.ca_key.to_vec()))?;
        Ok(Self { input, header, keyring, ca_key })
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &v1::BackupHeader {
        &self.header
    }

    /// The value key of an epoch.
    #[must_use]
    pub fn value_key(&self, epoch: u32) -> Option<&Key32> {
        self.keyring.get(&epoch)
    }

    /// The key of the root CA (PKCS #8 DER).
    #[must_use]
    pub fn ca_key(&self) -> &SecretBytes {
        &self.ca_key
    }

    /// The next rows; `None` once the end was reached and all of it fits.
    pub fn rows(&mut self, seen: u64) -> Result<Option<Vec<Row>>, BackupError> {
        let digest = self.input.digest();
        match next(&mut self.input)? {
            Record::Rows(batch) => {
                let rows = batch.rows.into_iter().map(decode_row);
                rows.collect::<Result<_, _>>().map(Some).map_err(BackupError::damaged)
            }
            Record::Trailer(trailer) => {
                let mut more = [0];
                let ends = self.input.read(&mut more).map_err(BackupError::io)? == 0;
                match (ct_eq(&trailer.sha256, &digest), seen == self.header.rows, ends) {
                    (true, true, true) => Ok(None),
                    (false, ..) => Err(BackupError::damaged("its digest is another one")),
                    (_, false, _) => Err(BackupError::damaged(format!(
                        "it has {seen} of its {} rows",
                        self.header.rows
                    ))),
                    (.., false) => Err(BackupError::damaged("something follows its end")),
                }
            }
            Record::Header(_) | Record::Keys(_) => {
                Err(BackupError::damaged("its records are out of order"))
            }
        }
    }
}

fn decrypt<R: Read>(input: R, unlock: &Unlock) -> Result<StreamReader<R>, BackupError> {
    let file = Decryptor::new(input).map_err(|error| match error {
        DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            BackupError::io(error)
        }
        _ => BackupError::NotAge,
    })?;
    match unlock {
        Unlock::Passphrase(_) if !file.is_scrypt() => Err(BackupError::Locked(
            "it is encrypted to recipients, not to a passphrase; give --identity-file",
        )),
        Unlock::Passphrase(bytes) => {
            let identity = scrypt::Identity::new(passphrase(bytes).map_err(BackupError::Locked)?);
            let refused = "the passphrase does not open it";
            let all = std::iter::once(&identity as &dyn age::Identity);
            file.decrypt(all).map_err(|error| opening(error, refused))
        }
        Unlock::Identities(_) if file.is_scrypt() => Err(BackupError::Locked(
            "it is encrypted to a passphrase, not to recipients; give --passphrase-file",
        )),
        Unlock::Identities(bytes) => {
            let odd = "the identity file is none: it has lines that begin with AGE-SECRET-KEY-1";
            let all = IdentityFile::from_buffer(bytes.as_slice());
            let all = all.map_err(|_| BackupError::Locked(odd))?;
            let all = all.into_identities().map_err(|_| BackupError::Locked(odd))?;
            let refused = "none of the identities opens it: it is encrypted to other recipients";
            let all = all.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
            file.decrypt(all).map_err(|error| opening(error, refused))
        }
    }
}

fn opening(error: DecryptError, refused: &'static str) -> BackupError {
    match error {
        DecryptError::Io(error) => BackupError::io(error),
        DecryptError::InvalidMac | DecryptError::InvalidHeader => {
            BackupError::damaged("its beginning was changed")
        }
        DecryptError::ExcessiveWork { .. } => BackupError::Locked(
            "its passphrase takes far more work than this machine can do in a reasonable time",
        ),
        _ => BackupError::Locked(refused),
    }
}

fn next(input: &mut impl Read) -> Result<Record, BackupError> {
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(BackupError::io)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_RECORD {
        return Err(BackupError::damaged("a record is too long"));
    }
    let mut bytes = Zeroizing::new(vec![0; length as usize]);
    input.read_exact(&mut bytes).map_err(BackupError::io)?;
    let record = v1::BackupRecord::decode(bytes.as_slice()).map_err(BackupError::damaged)?;
    record.record.ok_or_else(|| BackupError::damaged("a record is of a newer keyhole"))
}
