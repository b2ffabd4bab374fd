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

use super::{FORMAT, Hashed, MAGIC};
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
    keys: v1::BackupRecord,
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
        put(&mut out, &v1::BackupRecord { record: Some(Record::Header(self.header)) })?;
        put(&mut out, &self.keys)?;
        put_rows(&mut out, &self.rows)?;
        let sha256 = out.digest().to_vec().into();
        let trailer = Record::Trailer(v1::BackupTrailer { sha256 });
        put(&mut out, &v1::BackupRecord { record: Some(trailer) })?;
        out.inner.finish()?.flush()
    }
}

fn keys(cluster: &Cluster, own: &MemberKey) -> io::Result<v1::BackupRecord> {
    // These buffers are wiped when they are freed, as all of a manager's are.
    let open = |id: &ClusterId, purpose, sealed| {
        let key = own.open(id, purpose, sealed).map_err(io::Error::other)?;
        Ok::<_, io::Error>(key.as_slice().to_vec().into())
    };
    let mut keyring = std::collections::HashMap::new();
    for (epoch, sealed) in &cluster.keyring {
        keyring.insert(*epoch, open(&cluster.id, Purpose::Keyring(*epoch), sealed)?);
    }
    let keys = v1::BackupKeys { keyring, ca_key: open(&cluster.id, Purpose::Ca, &cluster.ca_key)? };
    Ok(v1::BackupRecord { record: Some(Record::Keys(keys)) })
}

fn put(out: &mut impl Write, record: &v1::BackupRecord) -> io::Result<()> {
    let bytes = Zeroizing::new(record.encode_to_vec());
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)
}

fn put_rows(out: &mut impl Write, rows: &SnapshotData) -> io::Result<()> {
    let (mut batch, mut bytes, mut written) = (Vec::new(), 0, Ok(()));
    let mut flush = |rows| {
        let record = Record::Rows(v1::RowBatch { rows });
        put(out, &v1::BackupRecord { record: Some(record) })
    };
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
