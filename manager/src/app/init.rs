//! From a data folder to an open store with a cluster in it: makes both on an empty folder with `--init`.
//!
//! Invariant: a folder that has anything else in it is never initialised, and a cluster is never made twice.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use keyhole_domain::{ClusterId, NodeId};
use keyhole_secmem::{Key32, LockError, SecretBytes};
use keyhole_state::{
    Actor, ClusterChange, Command, Envelope, InitCluster, Member, Rejected, State, TokenRole,
};
use keyhole_wire::seal::EdgeKeyPair;
use keyhole_wire::tls::{Identity, LiveTls};
use tokio::sync::watch;

use super::join::{self, Joined};
use super::restore::RESTORING;
use super::{ManagerConfig, StartError, force};
use crate::audit::{AuditLog, Head, Writer};
use crate::ca::kept::{self, OWN_CERTIFICATE, Proof};
use crate::key_place::KeyPlace;
use crate::keys::Kek;
use crate::raft::{Observed, Observer, Peer, Peers, ProposeError, RaftHandle, StartOptions};
use crate::seal::{Keyring, MemberKey, Purpose, seal_key_for_members};
use crate::shell::OwnIdentity;
use crate::store::{Store, StoreError, StoreIdentity};
use crate::{ca, clock};

/// The first member's Raft id.
const FIRST: u64 = 1;
/// A single voter leads within moments; a full election takes two seconds.
const LEADS_WITHIN: Duration = Duration::from_secs(20);
/// The name of this member's HPKE key among the store's local secrets.
pub(super) const MEMBER_KEY: &str = "member hpke key";

/// An open store with its cluster, or with what it needs to be given one.
pub(super) struct Opened {
    pub(super) replica: RaftHandle,
    pub(super) keyring: Keyring,
    pub(super) own: OwnIdentity,
    pub(super) audit: Arc<AuditLog>,
    pub(super) tls: LiveTls,
    /// Why this manager has to stop, once it has to.
    pub(super) failed: watch::Receiver<Option<String>>,
}

/// Opens the folder, or makes or joins a cluster with it.
pub(super) async fn open(
    config: &ManagerConfig,
    bound: SocketAddr,
    unlocked: Option<(Kek, Arc<AuditLog>)>,
) -> Result<Opened, StartError> {
    let address = config.advertise.clone().unwrap_or_else(|| reachable(bound));
    let (kek, audit) = unlocked.unzip();
    let kek = prepare(config, kek)?;
    let audit = audit.map_or_else(|| keep_audit(config), Ok)?;
    let joined = match Store::exists(&config.data_dir) {
        true => None,
        false => make_store(config, &address, &kek).await?,
    };
    if config.force_new_cluster {
        force::alone(&config.data_dir, &kek, audit.clone()).await?;
    }
    let (stopping, failed) = watch::channel(None);
    let peers = Peers::default();
    let replica = RaftHandle::start(
        &config.data_dir,
        &kek,
        peers.clone(),
        StartOptions::default(),
        observer(audit.clone()),
        // The first reason is the one that matters.
        Arc::new(move |why| {
            stopping.send_if_modified(|first| first.replace(why.clone()).is_none());
        }),
    )
    .await?;
    let StoreIdentity { cluster, manager, member } = replica.identity().clone();
    let noted = replica.read(|state| Head::noted(state, member));
    audit.begin(Writer { cluster, manager, member }, noted);
    let mut reason = failed.clone();
    let entered = tokio::select! {
        why = super::word(&mut reason) => Err(StartError::Failed(why)),
        entered = enter(config, address, joined, &replica) => entered,
    };
    // A store that fails leaves no leader: what is to be mended is the store, whichever of the two was seen first.
    let entered =
        entered.map_err(|error| failed.borrow().clone().map_or(error, StartError::Failed));
    match entered {
        Ok((own, keyring, tls)) => {
            let replica = replica.with_peers(peers, own.cluster, tls.clone());
            Ok(Opened { replica, keyring, own, audit, tls, failed })
        }
        Err(error) => {
            // The reason to stop is the one above.
            let _ = replica.shutdown().await;
            if let Err(lost) = audit.close() {
                tracing::error!("stopped: {lost}");
            }
            Err(error)
        }
    }
}

/// Opens the audit in its place.
pub(super) fn keep_audit(config: &ManagerConfig) -> Result<Arc<AuditLog>, StartError> {
    let folder = config.data_dir.join("audit");
    let opened = AuditLog::open(&folder, config.audit_file_bytes, config.audit_syslog.as_deref());
    opened.map(Arc::new).map_err(|e| folder_error("keep the audit in", &folder, e))
}

/// What becomes of the log has its lines in the audit.
pub(super) fn observer(audit: Arc<AuditLog>) -> Observer {
    Arc::new(move |observed| match observed {
        Observed::Applied(record) => audit.applied(record),
        Observed::Skipped { from, to } => audit.skipped(from, to),
    })
}

/// The folder and the key file, both made if a store is to be.
fn prepare(config: &ManagerConfig, unlocked: Option<Kek>) -> Result<Kek, StartError> {
    let (folder, file) = (&config.data_dir, config.kek());
    if config.init || config.join.is_some() {
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
    if let Some(kek) = unlocked {
        return Ok(kek);
    }
    if file.parent() == Some(folder.as_path()) {
        tracing::warn!(file = %file.display(), "the key file lies beside the store: whoever copies both reads \
            everything; keep it elsewhere with --kek-file");
    }
    if Store::exists(folder) {
        return Ok(KeyPlace::new(file).fitting(&Store::sealed(folder)?)?);
    }
    if !config.init && config.join.is_none() {
        let folder = folder.display().to_string();
        return Err(StoreError::NotInitialised { folder }.into());
    }
    refuse_strangers(folder, &file)?;
    Ok(Kek::open_or_create(&file)?)
}

/// The store of a new cluster's first manager, or of one that was let in. A cluster lets in a manager once with what it made
/// for that: whatever else may fail at this machine has to be there before.
async fn make_store(
    config: &ManagerConfig,
    address: &str,
    kek: &Kek,
) -> Result<Option<Joined>, StartError> {
    let folder = &config.data_dir;
    if let Some(asked) = &config.join {
        let joined = join::join(asked, address, &own_hostname()).await?;
        Store::create(folder, &joined.identity, kek)?;
        return Ok(Some(joined));
    }
    let identity = StoreIdentity {
        cluster: ClusterId::from_entropy(random()?).to_string(),
        manager: NodeId::from_entropy(random()?).to_string(),
        member: FIRST,
    };
    Store::create(folder, &identity, kek)?;
    Ok(None)
}

/// Only what an initialisation that was cut short left may be there.
pub(super) fn refuse_strangers(folder: &Path, kek: &Path) -> Result<(), StartError> {
    const OURS: [&str; 7] = [
        "audit",
        "kek.new",
        "lost+found",
        RESTORING,
        "store.mark",
        "store.mark.init",
        "store.redb.init",
    ];
    let failed = |e| folder_error("read", folder, e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = OURS.iter().any(|known| name == *known) || entry.path() == kek;
        let inside = match name == "audit" {
            true => lines_in(&entry.path()).map_err(failed)?,
            false => None,
        };
        let found = match inside {
            Some(file) => Path::new(&name).join(file),
            None if ours => continue,
            None => Path::new(&name).to_owned(),
        };
        return Err(StartError::NotEmpty {
            folder: folder.display().to_string(),
            found: found.display().to_string(),
        });
    }
    let mode = fs::metadata(folder).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(folder = %folder.display(), "the data folder is open to others (mode {mode:04o}); chmod 700 it");
    }
    Ok(())
}

/// A file of another history's lines: those of the new one would be taken for written up to where they end. A start that
/// failed left an empty one.
fn lines_in(audit: &Path) -> io::Result<Option<OsString>> {
    for file in fs::read_dir(audit)? {
        let file = file?;
        let found = file.metadata()?;
        if !found.is_file() || found.len() > 0 {
            return Ok(Some(file.file_name()));
        }
    }
    Ok(None)
}

pub(super) fn folder_error(doing: &'static str, folder: &Path, source: io::Error) -> StartError {
    StartError::Folder { doing, folder: folder.display().to_string(), source }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StartError::system("draw random bytes", e))?;
    Ok(bytes)
}

/// Who this manager is and with what it proves it; a cluster is made if there is none and that was asked for.
async fn enter(
    config: &ManagerConfig,
    address: String,
    joined: Option<Joined>,
    replica: &RaftHandle,
) -> Result<(OwnIdentity, Keyring, LiveTls), StartError> {
    let identity = replica.identity();
    let odd = |e: keyhole_domain::IdError| StartError::system("use the store's identity", e);
    let own = OwnIdentity {
        cluster: identity.cluster.parse().map_err(odd)?,
        manager: identity.manager.parse().map_err(odd)?,
        member: identity.member,
        address,
    };
    if let Some(Joined { pair, proof, .. }) = joined {
        keep_member_key(replica, &pair).await?;
        keep(replica, &proof.identity, &proof.roots).await?;
    }
    let kept = replica.local_get(OWN_CERTIFICATE)?;
    let proof = kept.map(|kept| kept::from_secret(&kept)).transpose();
    let proof = proof.map_err(|why| StartError::system("use the kept certificate", why))?;
    let known = replica.raft().is_initialized().await;
    let known = known.map_err(|e| StartError::system("lead the cluster", e))?;
    let member = replica.read(|state| state.members().contains_key(&own.member));
    if own.member != FIRST && proof.is_none() && !member {
        let folder = config.data_dir.display().to_string();
        return Err(StartError::HalfJoined { folder, manager: own.manager.to_string() });
    }
    if !known && proof.is_none() && !config.init {
        return Err(half_initialised(config));
    }
    let pair = member_key(replica).await?;
    let seal_key = *pair.public().as_bytes();
    let keyring = Keyring::new(MemberKey::new(own.member, pair));
    if own.member == FIRST {
        lead(config, replica, &own, seal_key).await?;
    }
    replica.read(check_clock)?;
    let tls = prove(replica, &own, keyring.own(), proof).await?;
    Ok((own, keyring, tls))
}

async fn keep(
    replica: &RaftHandle,
    identity: &Identity,
    roots: &[Vec<u8>],
) -> Result<(), StartError> {
    let kept = kept::to_secret(identity, roots);
    let kept = kept.map_err(|why| StartError::system("keep the certificate", why))?;
    Ok(replica.local_put(OWN_CERTIFICATE, Some(kept)).await?)
}

/// The first manager of a cluster has to make it, and to lead it then if it is still the only one.
async fn lead(
    config: &ManagerConfig,
    replica: &RaftHandle,
    own: &OwnIdentity,
    seal_key: [u8; 32],
) -> Result<(), StartError> {
    let peer = Peer { address: own.address.clone(), name: own.manager.to_string() };
    replica.found(peer).await.map_err(unavailable)?;
    if replica.status().members.iter().any(|(id, (_, votes))| *votes && *id != own.member) {
        return Ok(());
    }
    if !replica.wait_leader(LEADS_WITHIN).await {
        return Err(StartError::system("lead the cluster", "no leader was elected in time"));
    }
    let known = replica.read_latest(|state| state.cluster().is_some()).await;
    match (known.map_err(unavailable)?, config.init) {
        (true, _) => Ok(()),
        (false, true) => found_cluster(config, replica, own, seal_key).await,
        (false, false) => Err(half_initialised(config)),
    }
}

/// This manager's certificate: issued by itself from its store, or the kept one as long as it holds no keys to do so.
async fn prove(
    replica: &RaftHandle,
    own: &OwnIdentity,
    key: &MemberKey,
    proof: Option<Proof>,
) -> Result<LiveTls, StartError> {
    let issued = replica.read(|state| {
        let holds_keys = state.members().get(&own.member).is_some_and(|member| member.voter);
        let cluster = state.cluster().filter(|_| holds_keys)?;
        let issued = ca::own_identity(cluster, key, own);
        Some(issued.map(|identity| (identity, cluster.roots(clock::now()))))
    });
    let (identity, roots) = match (issued, proof) {
        (Some(issued), _) => issued.map_err(|e| StartError::certificate(e.to_string()))?,
        (None, Some(proof)) => (proof.identity, proof.roots),
        (None, None) => {
            return Err(StartError::certificate("the cluster is not initialised".to_owned()));
        }
    };
    keep(replica, &identity, &roots).await?;
    LiveTls::new(Some(identity), roots).map_err(|e| StartError::certificate(e.to_string()))
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
        true => format!("{}:{}", own_hostname(), bound.port()),
    }
}

pub(super) fn own_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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
    keep_member_key(replica, &pair).await?;
    Ok(pair)
}

async fn keep_member_key(replica: &RaftHandle, pair: &EdgeKeyPair) -> Result<(), StartError> {
    let copy = copied(pair.secret());
    let copy = copy.map_err(|e| StartError::system("make this member's key", e))?;
    Ok(replica.local_put(MEMBER_KEY, Some(copy)).await?)
}

/// A key's bytes, for a store or a seal.
pub(super) fn copied(key: &Key32) -> Result<SecretBytes, LockError> {
    let mut copy = SecretBytes::zeroed(32)?;
    copy.as_mut_slice().copy_from_slice(key.expose());
    Ok(copy)
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
    let (root, ca_key) = ca::new_root(&own.cluster, None).map_err(|e| failed(&e))?;
    let value_key = Key32::generate().map_err(|e| failed(&e))?;
    let copy = copied(&value_key).map_err(|e| failed(&e))?;
    let value_key = Arc::new(value_key);
    let member = Member {
        id: own.member,
        node: own.manager,
        hostname: own_hostname(),
        address: own.address.clone(),
        seal_key,
        voter: true,
    };
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

/// Tells the cluster where this manager is now, if it does not know.
pub(super) async fn announce_address(replica: RaftHandle, own: OwnIdentity) {
    const AGAIN: Duration = Duration::from_secs(2);
    loop {
        let known = |state: &State| state.members().get(&own.member).map(|m| m.address.clone());
        match replica.read(known) {
            Some(known) if known == own.address => return,
            Some(_) => {
                let address = Some((own.member, own.address.clone()));
                let change = ClusterChange { address, ..ClusterChange::default() };
                match propose(&replica, &own, Command::ChangeCluster(change)).await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "cannot tell the cluster this manager's address yet")
                    }
                }
            }
            // It has joined, and not been told the state yet.
            None => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
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
    let (actor, via) = (Actor::Manager(own.member), own.member);
    let envelope = Envelope { at: clock::now(), actor, via, command };
    let committed = replica.propose(envelope).await.map_err(unavailable)?;
    let refused = |reason: Rejected| StartError::system("bring the cluster up to date", reason);
    committed.result.map(drop).map_err(refused)
}
