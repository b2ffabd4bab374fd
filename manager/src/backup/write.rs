//! Writing a backup: the rows pass through, a megabyte at a time.

use std::io::{self, Write};

use age::secrecy::SecretString;
use age::{Encryptor, x25519};
use keyhole_domain::{ClusterId, Timestamp};
use keyhole_proto::v1;
use keyhole_proto::v1::backup_record::Record;
use keyhole_secmem::SecretBytes;
use keyhole_state::{Cluster, Row};
use prost::Message;
use zeroize::Zeroizing;

use super::{FORMAT, Hashed, MAGIC, MAX_RECORD};
use crate::codec::decode_row;
use crate::raft::SnapshotData;
use crate::seal::{MemberKey, Purpose};
use crate::store::Position;

/// A record with rows is about this large.
const BATCH_BYTES: usize = 1 << 20;

/// Whom a backup is encrypted to.
pub(crate) enum SealTo {
    /// Whoever knows it.
    Passphrase(SecretString),
    /// Whoever has one of their identities; never empty.
    Recipients(Vec<x25519::Recipient>),
}

impl SealTo {
    /// The recipients of a request.
    ///
    /// # Errors
    /// The first one that is no age recipient, and why.
    pub(crate) fn recipients(texts: &[String]) -> Result<Self, String> {
        let recipient = |text: &String| {
            text.parse::<x25519::Recipient>()
                .map_err(|why| format!("recipient {text:?}: {why}; give one that begins with age1"))
        };
        texts.iter().map(recipient).collect::<Result<_, _>>().map(Self::Recipients)
    }

    /// A passphrase, without the line's end that a file may have.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn passphrase(bytes: &SecretBytes) -> Result<Self, &'static str> {
        passphrase(bytes).map(Self::Passphrase)
    }

    fn encryptor(self) -> io::Result<Encryptor> {
        match self {
            Self::Passphrase(passphrase) => Ok(Encryptor::with_user_passphrase(passphrase)),
            Self::Recipients(all) => {
                let all = all.iter().map(|recipient| recipient as &dyn age::Recipient);
                Encryptor::with_recipients(all).map_err(io::Error::other)
            }
        }
    }
}

/// As age takes it.
pub(super) fn passphrase(bytes: &SecretBytes) -> Result<SecretString, &'static str> {
    let text = std::str::from_utf8(bytes.as_slice()).map_err(|_| "the passphrase is no UTF-8")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text.is_empty() {
        true => Err("the passphrase is empty"),
        false => Ok(SecretString::from(text.to_owned())),
    }
}

/// A backup that is yet to be written.
pub(crate) struct Backup {
    header: v1::BackupHeader,
    keys: v1::BackupKeys,
    rows: SnapshotData,
}

impl Backup {
    /// Of rows that stand for `position`; opens the keys that they have sealed. Blocks: not for an async task.
    pub(crate) fn of(
        (position, rows): (Position, SnapshotData),
        own: &MemberKey,
        at: Timestamp,
    ) -> io::Result<Self> {
        let (mut count, mut cluster) = (0, None);
        rows.rows(&mut |row| {
            count += 1;
            if matches!(row.row, Some(v1::row::Row::Cluster(_))) {
                cluster = Some(row);
            }
            true
        })?;
        let cluster = cluster.ok_or_else(|| io::Error::other("the state has no cluster"))?;
        let Row::Cluster(cluster) = decode_row(cluster).map_err(io::Error::other)? else {
            return Err(io::Error::other("the cluster's row is another one"));
        };
        let header = v1::BackupHeader {
            format: FORMAT,
            cluster: cluster.id.to_string(),
            incarnation: cluster.incarnation,
            index: position.index,
            term: position.term,
            at: at.0,
            rows: count,
            epochs: cluster.keyring.keys().copied().collect(),
        };
        Ok(Self { header, keys: keys(&cluster, own)?, rows })
    }

    /// What it is of.
    pub(crate) fn header(&self) -> &v1::BackupHeader {
        &self.header
    }

    /// Writes all of it, encrypted. Blocks: not for an async task.
    pub(crate) fn write(self, to: SealTo, out: impl Write) -> io::Result<()> {
        let mut out = Hashed::new(to.encryptor()?.wrap_output(out)?);
        out.write_all(MAGIC)?;
        put(&mut out, Record::Header(self.header))?;
        put(&mut out, Record::Keys(self.keys))?;
        put_rows(&mut out, &self.rows)?;
        let sha256 = out.digest().to_vec().into();
        put(&mut out, Record::Trailer(v1::BackupTrailer { sha256 }))?;
        out.inner.finish()?.flush()
    }
}

fn keys(cluster: &Cluster, own: &MemberKey) -> io::Result<v1::BackupKeys> {
    // These buffers are wiped when they are freed, as all of a manager's are.
    let open = |id: &ClusterId, purpose, sealed| {
        let key = own.open(id, purpose, sealed).map_err(io::Error::other)?;
        Ok::<_, io::Error>(key.as_slice().to_vec().into())
    };
    let mut keyring = std::collections::HashMap::new();
    for (epoch, sealed) in &cluster.keyring {
        keyring.insert(*epoch, open(&cluster.id, Purpose::Keyring(*epoch), sealed)?);
    }
    Ok(v1::BackupKeys { keyring, ca_key: open(&cluster.id, Purpose::Ca, &cluster.ca_key)? })
}

/// What could not be read again is not written.
fn put(out: &mut impl Write, record: Record) -> io::Result<()> {
    let record = v1::BackupRecord { record: Some(record) };
    let bytes = record.encoded_len();
    let length = u32::try_from(bytes).ok().filter(|length| *length <= MAX_RECORD);
    let length = length.ok_or_else(|| {
        io::Error::other(format!(
            "with {} a record of it has {bytes} bytes; a restore reads none of more than {MAX_RECORD}",
            record.record.as_ref().map_or_else(String::new, last_of)
        ))
    })?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&Zeroizing::new(record.encode_to_vec()))
}

/// What a record was filled with last.
fn last_of(record: &Record) -> String {
    match record {
        Record::Header(_) => "its header".to_owned(),
        Record::Keys(_) => "its keys".to_owned(),
        Record::Trailer(_) => "its digest".to_owned(),
        Record::Rows(batch) => match batch.rows.last().cloned().map(decode_row) {
            Some(Ok(row)) => format!("the row {:?}", row.key()),
            _ => "a row".to_owned(),
        },
    }
}

fn put_rows(out: &mut impl Write, rows: &SnapshotData) -> io::Result<()> {
    let (mut batch, mut bytes, mut written) = (Vec::new(), 0, Ok(()));
    let mut flush = |rows| put(out, Record::Rows(v1::RowBatch { rows }));
    rows.rows(&mut |row| {
        bytes += row.encoded_len();
        batch.push(row);
        if bytes >= BATCH_BYTES {
            bytes = 0;
            written = flush(std::mem::take(&mut batch));
        }
        written.is_ok()
    })?;
    written?;
    match batch.is_empty() {
        true => Ok(()),
        false => flush(batch),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyhole_domain::{SecretId, Version};
    use keyhole_state::{SealedValue, SecretVersion};

    use super::*;
    use crate::backup::{BackupError, BackupReader, Unlock};
    use age::secrecy::ExposeSecret;

    #[test]
    fn a_row_that_could_not_be_read_again_is_named_and_not_written() {
        let id = SecretId::from_entropy([1; 16]);
        let row = |bytes| {
            let value = SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; bytes] };
            let version =
                SecretVersion { created_at: Timestamp(0), index: 1, value: Arc::new(value) };
            Row::Version(id, Version::FIRST, version)
        };
        let largest = MAX_RECORD as usize;
        let mut out = Vec::new();
        put_rows(&mut out, &SnapshotData::Received(vec![row(largest - 1000)])).unwrap();
        assert!(out.len() > largest - 1000);
        out.clear();
        let refused = put_rows(&mut out, &SnapshotData::Received(vec![row(10), row(largest)]));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(&format!("Version({id}, ")), "{refused}");
        assert_eq!(out, b"", "nothing of it");
    }

    #[test]
    fn a_backup_of_a_newer_format_is_refused_with_both_numbers() {
        let identity = x25519::Identity::generate();
        let unlock = || {
            let text = identity.to_string();
            let mut text = text.expose_secret().as_bytes().to_vec();
            Unlock::Identities(SecretBytes::copy_from(&mut text).unwrap())
        };
        let opened = |format| {
            let to = SealTo::Recipients(vec![identity.to_public()]);
            let mut file = Vec::new();
            let mut out = to.encryptor().unwrap().wrap_output(&mut file).unwrap();
            out.write_all(MAGIC).unwrap();
            put(&mut out, Record::Header(v1::BackupHeader { format, ..Default::default() }))
                .unwrap();
            put(&mut out, Record::Keys(v1::BackupKeys::default())).unwrap();
            out.finish().unwrap();
            BackupReader::open(file.as_slice(), &unlock()).map(drop)
        };
        // It has no CA key, which is looked at after the format.
        assert!(!matches!(opened(FORMAT), Err(BackupError::NewerFormat { .. })));
        let newer = opened(FORMAT + 1).unwrap_err();
        assert!(matches!(newer, BackupError::NewerFormat { found: 2 }), "{newer}");
        let said = newer.to_string();
        assert!(said.contains("format 2") && said.contains("format 1 only"), "{said}");
        let none = opened(0).unwrap_err();
        assert!(matches!(none, BackupError::Damaged(_)), "{none}");
    }
}
