//! From a data folder to an open store with a cluster in it: makes both on an empty folder with `--init`.
//!
//! Invariant: a folder that has anything else in it is never initialised, and a cluster is never made twice.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use keyhole_domain::{ClusterId, NodeId};
use keyhole_secmem::{Key32, SecretBytes};
use keyhole_state::{
    Actor, ClusterChange, Command, Envelope, InitCluster, Member, Rejected, State, TokenRole,
};
use keyhole_wire::seal::EdgeKeyPair;
use tokio::sync::watch;

use super::{ManagerConfig, StartError};
use crate::audit::AuditLog;
use crate::keys::Kek;
use crate::raft::{NoPeers, Peer, ProposeError, RaftHandle, StartOptions};
use crate::seal::{Keyring, MemberKey, Purpose, seal_key_for_members};
use crate::shell::OwnIdentity;
use crate::store::{Store, StoreError, StoreIdentity};
use crate::{ca, clock};

/// The first member's Raft id.
const FIRST: u64 = 1;
/// A single voter leads within moments; a full election takes two seconds.
const LEADS_WITHIN: Duration = Duration::from_secs(20);
/// The name of this member's HPKE key among the store's local secrets.
const MEMBER_KEY: &str = "member hpke key";

/// An open store with its cluster.
pub(super) struct Opened {
    pub(super) replica: RaftHandle,
    pub(super) keyring: Keyring,
    pub(super) own: OwnIdentity,
    pub(super) audit: Arc<AuditLog>,
    /// Why this manager has to stop, once it has to.
    pub(super) failed: watch::Receiver<Option<String>>,
}

/// Opens the folder, or makes a cluster in it.
pub(super) async fn open(config: &ManagerConfig, bound: SocketAddr) -> Result<Opened, StartError> {
    let kek = prepare(config)?;
    let audit = config.data_dir.join("audit");
    let audit = AuditLog::open(&audit).map_err(|e| folder_error("keep the audit in", &audit, e))?;
    let audit = Arc::new(audit);
    let (stopping, failed) = watch::channel(None);
    let observer = audit.clone();
    let replica = RaftHandle::start(
        &config.data_dir,
        &kek,
        NoPeers,
        StartOptions::default(),
        Arc::new(move |record| observer.applied(record)),
        // The first reason is the one that matters.
        Arc::new(move |why| {
            stopping.send_if_modified(|first| first.replace(why.clone()).is_none());
        }),
    )
    .await?;
    let opened = lead(config, bound, &replica).await;
    match opened {
        Ok((own, keyring)) => Ok(Opened { replica, keyring, own, audit, failed }),
        Err(error) => {
            // The reason to stop is the one above.
            let _ = replica.shutdown().await;
            Err(error)
        }
    }
}

/// The folder and the key file; makes the store if there is none and that was asked for.
fn prepare(config: &ManagerConfig) -> Result<Kek, StartError> {
    let (folder, file) = (&config.data_dir, config.kek());
    if config.init {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        // A path that exists already and is no folder has its own reason, found by reading it below.
        let exists = |e: &io::Error| e.kind() == io::ErrorKind::AlreadyExists;
        made.or_else(|e| if exists(&e) { Ok(()) } else { Err(folder_error("make", folder, e)) })?;
    }
    match fs::read_dir(folder) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = folder.display().to_string();
            return Err(StoreError::NotInitialised { folder }.into());
        }
        Err(error) => return Err(folder_error("read", folder, error)),
    }
    if file.parent() == Some(folder.as_path()) {
        tracing::warn!(file = %file.display(), "the key file lies beside the store: whoever copies both reads \
            everything; keep it elsewhere with --kek-file");
    }
    if Store::exists(folder) {
        return Ok(Kek::open(&file)?);
    }
    if !config.init {
        let folder = folder.display().to_string();
        return Err(StoreError::NotInitialised { folder }.into());
    }
    refuse_strangers(folder, &file)?;
    let kek = Kek::open_or_create(&file)?;
    let identity = StoreIdentity {
        cluster: ClusterId::from_entropy(random()?).to_string(),
        manager: NodeId::from_entropy(random()?).to_string(),
        member: FIRST,
    };
    Store::create(folder, &identity, &kek)?;
    Ok(kek)
}

/// Only what an initialisation that was cut short left may be there.
fn refuse_strangers(folder: &Path, kek: &Path) -> Result<(), StartError> {
    const OURS: [&str; 6] =
        ["audit", "kek.new", "lost+found", "store.mark", "store.mark.init", "store.redb.init"];
    let failed = |e| folder_error("read", folder, e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = OURS.iter().any(|known| name == *known) || entry.path() == kek;
        if !ours {
            return Err(StartError::NotEmpty {
                folder: folder.display().to_string(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    let mode = fs::metadata(folder).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(folder = %folder.display(), "the data folder is open to others (mode {mode:04o}); chmod 700 it");
    }
    Ok(())
}

fn folder_error(doing: &'static str, folder: &Path, source: io::Error) -> StartError {
    StartError::Folder { doing, folder: folder.display().to_string(), source }
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StartError::system("draw random bytes", e))?;
    Ok(bytes)
}

/// Takes the lead, with a cluster in the state.
async fn lead(
    config: &ManagerConfig,
    bound: SocketAddr,
    replica: &RaftHandle,
) -> Result<(OwnIdentity, Keyring), StartError> {
    let identity = replica.identity();
    let odd = |e: keyhole_domain::IdError| StartError::system("use the store's identity", e);
    let own = OwnIdentity {
        cluster: identity.cluster.parse().map_err(odd)?,
        manager: identity.manager.parse().map_err(odd)?,
        member: identity.member,
        address: config.advertise.clone().unwrap_or_else(|| reachable(bound)),
    };
    let pair = member_key(replica).await?;
    let seal_key = *pair.public().as_bytes();
    let keyring = Keyring::new(MemberKey::new(own.member, pair));
    let peer = Peer { address: own.address.clone(), name: own.manager.to_string() };
    let known = replica.raft().is_initialized().await;
    let known = known.map_err(|e| StartError::system("lead the cluster", e))?;
    if !known && !config.init {
        return Err(half_initialised(config));
    }
    replica.found(peer).await.map_err(unavailable)?;
    if !replica.wait_leader(LEADS_WITHIN).await {
        return Err(StartError::system("lead the cluster", "no leader was elected in time"));
    }
    let known = replica.read_latest(|state| state.cluster().is_some()).await;
    match (known.map_err(unavailable)?, config.init) {
        (true, _) => resume(replica, &own).await?,
        (false, true) => found_cluster(config, replica, &own, seal_key).await?,
        (false, false) => return Err(half_initialised(config)),
    }
    Ok((own, keyring))
}

fn half_initialised(config: &ManagerConfig) -> StartError {
    StartError::HalfInitialised { folder: config.data_dir.display().to_string() }
}

fn unavailable(error: ProposeError) -> StartError {
    StartError::system("lead the cluster", error)
}

/// Where others reach a manager that was not told so.
fn reachable(bound: SocketAddr) -> String {
    match bound.ip().is_unspecified() {
        false => bound.to_string(),
        true => {
            let system = rustix::system::uname();
            format!("{}:{}", system.nodename().to_string_lossy(), bound.port())
        }
    }
}

/// This member's own HPKE key; made at its first start.
async fn member_key(replica: &RaftHandle) -> Result<EdgeKeyPair, StartError> {
    let lock = |e: keyhole_secmem::LockError| StartError::system("make this member's key", e);
    if let Some(kept) = replica.local_get(MEMBER_KEY)? {
        let bytes: &[u8; 32] = kept
            .as_slice()
            .try_into()
            .map_err(|_| StartError::system("use this member's key", "it has another length"))?;
        let key = Key32::filled_by(|out| *out = *bytes).map_err(lock)?;
        return Ok(EdgeKeyPair::from_secret(key));
    }
    let pair = EdgeKeyPair::generate().map_err(lock)?;
    let mut copy = SecretBytes::zeroed(32).map_err(lock)?;
    copy.as_mut_slice().copy_from_slice(pair.secret().expose());
    replica.local_put(MEMBER_KEY, Some(copy)).await?;
    Ok(pair)
}

/// The first command of a cluster.
async fn found_cluster(
    config: &ManagerConfig,
    replica: &RaftHandle,
    own: &OwnIdentity,
    seal_key: [u8; 32],
) -> Result<(), StartError> {
    let command = first_command(config, own, seal_key)?;
    propose(replica, own, Command::Init(Box::new(command))).await?;
    tracing::info!(cluster = %own.cluster, "initialised a new cluster");
    Ok(())
}

fn first_command(
    config: &ManagerConfig,
    own: &OwnIdentity,
    seal_key: [u8; 32],
) -> Result<InitCluster, StartError> {
    const DOING: &str = "make the cluster's keys";
    let failed = |e: &dyn std::fmt::Display| StartError::system(DOING, e);
    let (root, ca_key) = ca::new_root(&own.cluster).map_err(|e| failed(&e))?;
    let value_key = Key32::generate().map_err(|e| failed(&e))?;
    let mut copy = SecretBytes::zeroed(32).map_err(|e| failed(&e))?;
    copy.as_mut_slice().copy_from_slice(value_key.expose());
    let value_key = Arc::new(value_key);
    let member =
        Member { id: own.member, node: own.manager, address: own.address.clone(), seal_key };
    let seal = |purpose, key: &SecretBytes| {
        seal_key_for_members(&own.cluster, purpose, key, [&member]).map_err(|e| failed(&e))
    };
    let token = |role| ca::new_token(&root, role, (1, value_key.clone())).map_err(|e| failed(&e));
    Ok(InitCluster {
        id: own.cluster,
        ca_key: seal(Purpose::Ca, &ca_key)?,
        value_key: seal(Purpose::Keyring(1), &copy)?,
        worker_token: token(TokenRole::Worker)?,
        manager_token: token(TokenRole::Manager)?,
        certificate_seconds: config.cert_expiry.as_secs(),
        ca_certificate: root,
        member,
    })
}

/// A cluster that was made before: the clock must fit it, and others must find this manager.
async fn resume(replica: &RaftHandle, own: &OwnIdentity) -> Result<(), StartError> {
    replica.read(check_clock)?;
    let known =
        replica.read(|state| state.members().get(&own.member).map(|member| member.address.clone()));
    if known.as_ref() == Some(&own.address) {
        return Ok(());
    }
    let address = Some((own.member, own.address.clone()));
    let change = ClusterChange { address, ..ClusterChange::default() };
    propose(replica, own, Command::ChangeCluster(change)).await
}

fn check_clock(state: &State) -> Result<(), StartError> {
    let Some(cluster) = state.cluster() else {
        return Ok(());
    };
    let (from, until) = ca::validity(&cluster.ca_certificate);
    let now = clock::unix_seconds();
    if (from..=until).contains(&now) {
        return Ok(());
    }
    let text = |seconds| {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
    };
    Err(StartError::Clock { now: text(now), from: text(from), until: text(until) })
}

async fn propose(
    replica: &RaftHandle,
    own: &OwnIdentity,
    command: Command,
) -> Result<(), StartError> {
    let envelope = Envelope { at: clock::now(), actor: Actor::Manager(own.member), command };
    let committed = replica.propose(envelope).await.map_err(unavailable)?;
    let refused = |reason: Rejected| StartError::system("bring the cluster up to date", reason);
    committed.result.map(drop).map_err(refused)
}
