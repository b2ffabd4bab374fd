//! `keyhole cluster restore`: from a backup to the store of a new cluster of one manager, offline.
//!
//! Invariant: the data folder gets a store when all of the backup was read and fits, and the audit has a line of it, in one
//! rename, or is left as it was.
//! Values are open in locked memory only, each for the moment between the old key and the new one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyhole_domain::{ClusterId, NodeId, Timestamp};
use keyhole_secmem::{Key32, SecretBytes};
use keyhole_state::{
    Actor, AuditRecord, Command, Envelope, Member, Restoration, Row, State, TokenRole, audit,
};
use keyhole_wire::seal::EdgeKeyPair;

use super::StartError;
use super::init::{MEMBER_KEY, copied, folder_error, own_hostname, random, refuse_strangers};
use crate::audit::{AuditLog, FILE_BYTES, Head, Unwritten, Writer, files};
use crate::backup::{BackupError, BackupReader, Unlock};
use crate::keys::Kek;
use crate::raft::fill;
use crate::seal::{Purpose, open_value, seal_key_for_members, seal_value};
use crate::store::{Position, Store, StoreIdentity};
use crate::{ca, clock};

/// The folder, within the data folder, that a restore works in.
pub(super) const RESTORING: &str = "restoring";

/// The options of `keyhole cluster restore`.
#[derive(Debug)]
pub struct Restore {
    /// Where the store is to be; empty, or not there yet.
    pub data_dir: PathBuf,
    /// The backup.
    pub from: PathBuf,
    /// What opens it.
    pub unlock: Unlock,
    /// The key-encryption key's file; by default `kek` in the data folder.
    pub kek_file: Option<PathBuf>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The cluster, the same as before.
    pub cluster: ClusterId,
    /// Higher than in the backup.
    pub incarnation: u64,
    /// When the backup was made.
    pub taken_at: Timestamp,
    /// How many secrets it has.
    pub secrets: usize,
    /// How many services it has.
    pub services: usize,
    /// How many nodes it has.
    pub nodes: usize,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error("backup {file}: {source}")]
    Backup {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: BackupError,
    },
    /// The data folder holds something.
    #[error(
        "the data folder {folder} is not empty (it has {found}); give an empty one, or one that is not there yet"
    )]
    NotEmpty {
        /// The folder.
        folder: String,
        /// What is in it.
        found: String,
    },
    /// The folder, the keys or the store.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody would be told of it.
    #[error("nothing was restored: {0}")]
    Audit(#[from] Unwritten),
}

/// The operator at this machine, for the audit.
pub(super) fn this_process() -> Actor {
    use rustix::process::{getegid, geteuid, getpid};
    let pid = getpid().as_raw_nonzero().get();
    Actor::Local { uid: geteuid().as_raw(), gid: getegid().as_raw(), pid: pid.unsigned_abs() }
}

/// Makes a store in the data folder. Nothing else of the cluster may run there.
pub async fn restore(options: Restore) -> Result<Restored, RestoreError> {
    let folder = &options.data_dir;
    let new = !folder.exists();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| folder_error("make", folder, e))?;
    let kek = options.kek_file.clone().unwrap_or_else(|| folder.join("kek"));
    let had_kek = kek.exists();
    let restored = restore_in(&options, &kek).await;
    if restored.is_err() {
        // What was left is named by the next attempt, which removes it or refuses.
        let _ = fs::remove_dir_all(folder.join(RESTORING));
        if !had_kek && !Store::exists(folder) {
            let _ = fs::remove_file(&kek);
        }
        if new {
            let _ = fs::remove_dir(folder);
        }
    }
    restored
}

async fn restore_in(options: &Restore, kek_file: &Path) -> Result<Restored, RestoreError> {
    let folder = &options.data_dir;
    check_empty(folder, kek_file)?;
    let bad = |source| RestoreError::Backup { file: options.from.display().to_string(), source };
    let file = File::open(&options.from).map_err(|e| bad(BackupError::Io(e)))?;
    let reader = BackupReader::open(io::BufReader::new(file), &options.unlock).map_err(bad)?;
    let (mut state, keys) = read(reader).map_err(bad)?;
    let taken_at = Timestamp(keys.header.at);
    let at = Position { term: keys.header.term + 1, index: keys.header.index + 1 };
    let pair = EdgeKeyPair::generate().map_err(|e| failed(&e))?;
    let (member, restoration) = restoration(&state, &keys, &pair).map_err(bad)?;
    let command = Command::Restore(Box::new(restoration));
    let envelope = Envelope { at: clock::now(), actor: this_process(), via: member.id, command };
    let names = state.audit_objects(&envelope.command);
    let result = state.apply(at.index, &envelope);
    let sound = result.as_ref().map_err(ToString::to_string).and_then(|_| state.invariants());
    sound.map_err(|why| bad(BackupError::Damaged(why)))?;
    let Some(cluster) = state.cluster() else {
        return Err(bad(BackupError::Damaged("it has no cluster".to_owned())));
    };
    let identity = StoreIdentity {
        cluster: cluster.id.to_string(),
        manager: member.node.to_string(),
        member: member.id,
    };
    make(folder, kek_file, &identity, (&state, at), (&member, &pair)).await?;
    let record = audit(at.index, &envelope, names, &result);
    let lines = folder.join("audit");
    let had_lines = lines.exists();
    let placed = begin_audit(&lines, identity, record.as_ref()).and_then(|()| Ok(place(folder)?));
    if placed.is_err() && !Store::exists(folder) {
        // There was neither of them.
        let _ = fs::remove_file(folder.join("store.mark"));
        for (_, file) in files(&lines).unwrap_or_default() {
            let _ = fs::remove_file(file);
        }
        if !had_lines {
            let _ = fs::remove_dir(&lines);
        }
    }
    placed?;
    Ok(Restored {
        cluster: cluster.id,
        incarnation: cluster.incarnation,
        taken_at,
        secrets: state.secrets().len(),
        services: state.services().len(),
        nodes: state.nodes().len(),
    })
}

fn check_empty(folder: &Path, kek: &Path) -> Result<(), RestoreError> {
    let leftover = folder.join(RESTORING);
    if leftover.exists() {
        fs::remove_dir_all(&leftover).map_err(|e| folder_error("clean", folder, e))?;
    }
    let not_empty = |found: String| {
        let folder = folder.display().to_string();
        RestoreError::NotEmpty { folder, found }
    };
    match refuse_strangers(folder, kek) {
        Err(StartError::NotEmpty { found, .. }) => Err(not_empty(found)),
        Err(error) => Err(error.into()),
        Ok(()) if folder.join("store.mark").exists() => Err(not_empty("store.mark".to_owned())),
        Ok(()) => Ok(()),
    }
}

/// What a backup had beside the state, and the key that its values are sealed under now.
struct Keys {
    header: keyhole_proto::v1::BackupHeader,
    ca_key: SecretBytes,
    epoch: u32,
    value_key: Arc<Key32>,
}

/// Reads all of it; each value is sealed anew as it comes.
fn read(mut reader: BackupReader<impl io::Read>) -> Result<(State, Keys), BackupError> {
    let header = reader.header().clone();
    let cluster: ClusterId =
        header.cluster.parse().map_err(|e| BackupError::Damaged(format!("cluster: {e}")))?;
    let epoch = header.epochs.iter().max().map_or(1, |last| last + 1);
    let value_key = Arc::new(Key32::generate()?);
    let mut rows = Vec::new();
    while let Some(mut batch) = reader.rows(rows.len() as u64)? {
        for row in &mut batch {
            reseal(row, &reader, &cluster, (epoch, &value_key))?;
        }
        rows.append(&mut batch);
    }
    let mut ca_key = SecretBytes::zeroed(reader.ca_key().len())?;
    ca_key.as_mut_slice().copy_from_slice(reader.ca_key().as_slice());
    let state = State::from_rows(header.index, rows);
    Ok((state, Keys { header, ca_key, epoch, value_key }))
}

fn reseal(
    row: &mut Row,
    reader: &BackupReader<impl io::Read>,
    cluster: &ClusterId,
    (epoch, key): (u32, &Key32),
) -> Result<(), BackupError> {
    let Row::Version(id, version, kept) = row else { return Ok(()) };
    let damaged = |why: &dyn std::fmt::Display| BackupError::Damaged(why.to_string());
    let old = reader.value_key(kept.value.epoch);
    let old = old.ok_or_else(|| damaged(&format!("no key of epoch {}", kept.value.epoch)))?;
    let value = open_value(old, cluster, (*id, *version), &kept.value).map_err(|e| damaged(&e))?;
    let sealed =
        seal_value(key, epoch, cluster, (*id, *version), value).map_err(|e| damaged(&e))?;
    kept.value = Arc::new(sealed);
    Ok(())
}

/// All that is new: the manager, the CA, the value key, the tokens.
fn restoration(
    state: &State,
    keys: &Keys,
    pair: &EdgeKeyPair,
) -> Result<(Member, Restoration), BackupError> {
    let odd = |e: &dyn std::fmt::Display| BackupError::Damaged(e.to_string());
    let cluster = state.cluster().ok_or_else(|| odd(&"it has no cluster"))?;
    let member = Member {
        id: cluster.next_member,
        node: NodeId::from_entropy(random().map_err(|e| odd(&e))?),
        hostname: own_hostname(),
        // It is known, and told, when the manager starts.
        address: String::new(),
        seal_key: *pair.public().as_bytes(),
        voter: true,
    };
    let (root, ca_key) = ca::new_root(&cluster.id, None).map_err(|e| odd(&e))?;
    let former = ca::former_ca(cluster, (&root, &ca_key), &keys.ca_key).map_err(|e| odd(&e))?;
    let value_key = copied(&keys.value_key)?;
    let seal = |purpose, key: &SecretBytes| {
        seal_key_for_members(&cluster.id, purpose, key, [&member]).map_err(|e| odd(&e))
    };
    let token = |role| {
        let key = (keys.epoch, keys.value_key.clone());
        ca::new_token(&root, role, key).map_err(|e| odd(&e))
    };
    let restoration = Restoration {
        ca_key: seal(Purpose::Ca, &ca_key)?,
        former,
        epoch: keys.epoch,
        value_key: seal(Purpose::Keyring(keys.epoch), &value_key)?,
        worker_token: token(TokenRole::Worker)?,
        manager_token: token(TokenRole::Manager)?,
        member: member.clone(),
        ca_certificate: root,
    };
    Ok((member, restoration))
}

/// Makes the store beside its place.
async fn make(
    folder: &Path,
    kek_file: &Path,
    identity: &StoreIdentity,
    (state, at): (&State, Position),
    (member, pair): (&Member, &EdgeKeyPair),
) -> Result<(), StartError> {
    let kek = Kek::open_or_create(kek_file)?;
    let work = folder.join(RESTORING);
    let made = DirBuilder::new().mode(0o700).create(&work);
    made.map_err(|e| folder_error("write", folder, e))?;
    Store::create(&work, identity, &kek)?;
    let store = Store::open(&work, &kek, Box::new(|_| ()), &|_, _| Ok(()))?;
    let key = copied(pair.secret()).map_err(|e| failed(&e))?;
    store.local_put(MEMBER_KEY, Some(key), Box::new(|_| ()));
    fill(&store, state, at, member).await.map_err(|e| StartError::system("write the store", e))?;
    store.stop();
    Ok(())
}

/// Begins the audit with the line of the restore; it is on the disk then.
fn begin_audit(
    folder: &Path,
    identity: StoreIdentity,
    record: Option<&AuditRecord>,
) -> Result<(), RestoreError> {
    let opened = AuditLog::open(folder, FILE_BYTES, None);
    let lines = opened.map_err(|e| folder_error("keep the audit in", folder, e))?;
    let StoreIdentity { cluster, manager, member } = identity;
    lines.begin(Writer { cluster, manager, member }, Head::default());
    if let Some(record) = record {
        lines.applied(record);
    }
    Ok(lines.close()?)
}

/// Puts the store, which is whole, in its place.
fn place(folder: &Path) -> Result<(), StartError> {
    let work = folder.join(RESTORING);
    let moving = |e| folder_error("write", folder, e);
    // As a new store: with both files there it is one.
    for name in ["store.mark", "store.redb"] {
        fs::rename(work.join(name), folder.join(name)).map_err(moving)?;
    }
    fs::remove_dir(&work).map_err(moving)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(moving)
}

fn failed(error: &dyn std::fmt::Display) -> StartError {
    StartError::system("make the cluster's keys", error)
}
