//! Raft over the real store: openraft's own storage suite, restarts, snapshots, purges.
use crate::disk::{FILE, identity, kek, new_disk};
use keyhole_domain::{Labels, NodeId, SecretId, Timestamp, Version};
use keyhole_manager::raft::{
    LogStore, Observed, Observer, Peer, Peers, ProposeError, RaftHandle, SnapshotData,
    SnapshotInput, StartOptions, StateMachine, TypeConfig,
};
use keyhole_manager::store::{Load, OnFatal, Store};
use keyhole_proto::v1;
use keyhole_state::{
    Actor, Command, Envelope, InitCluster, KeySeal, Member, Rejected, SealedKey, SealedValue,
    State, TokenRecord,
};
use openraft::alias::SnapshotMetaOf;
use openraft::errors::RPCError;
use openraft::network::RPCOption;
use openraft::raft::VoteRequest;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftNetworkFactory, RaftNetworkV2, RaftSnapshotBuilder, StorageError, Vote};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = new_folder();
        let (store, machine) = StateMachine::open(folder.path(), &kek(), nobody()).unwrap();
        Ok((folder, LogStore::new(store), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(OnDisk).await.unwrap();
}

/// Listens to nothing.
fn nobody() -> Observer {
    Arc::new(|_| ())
}

fn new_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    Store::create(folder.path(), &identity(), &kek()).unwrap();
    folder
}

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(number: usize) -> T {
    format!("{number:0>25}").parse().unwrap()
}

fn envelope(command: Command) -> Envelope {
    Envelope { at: Timestamp(7), actor: Actor::Local { uid: 0, gid: 0, pid: 1 }, via: 1, command }
}

fn sealed_key() -> SealedKey {
    let seal = KeySeal { enc: vec![1; 32], ciphertext: vec![2; 48] };
    SealedKey { seals: [(1, seal)].into() }
}

fn init() -> Envelope {
    let token = |n| TokenRecord { hash: [n; 32], salt: [n; 32], epoch: 1 };
    let member = Member {
        id: 1,
        node: id(9),
        hostname: String::new(),
        address: "127.0.0.1:7000".into(),
        seal_key: [3; 32],
        voter: true,
    };
    envelope(Command::Init(Box::new(InitCluster {
        id: id(1),
        ca_certificate: vec![1, 2, 3],
        ca_key: sealed_key(),
        value_key: sealed_key(),
        worker_token: token(1),
        manager_token: token(2),
        certificate_seconds: 86400,
        member,
    })))
}

fn secret(number: usize, size: usize) -> Envelope {
    let value = SealedValue { epoch: 1, salt: [4; 32], ciphertext: vec![number as u8; size + 16] };
    envelope(Command::CreateSecret {
        id: id(number),
        name: format!("secret-{number}").parse().unwrap(),
        labels: Labels::default(),
        value,
    })
}

fn peer() -> Peer {
    Peer { address: "127.0.0.1:7000".into(), name: "manager".into() }
}

async fn start_with(folder: &Path, options: StartOptions, observer: Observer) -> RaftHandle {
    let on_stop = Arc::new(|reason: String| panic!("stopped: {reason}"));
    let raft = RaftHandle::start(folder, &kek(), Peers::default(), options, observer, on_stop)
        .await
        .unwrap();
    raft.found(peer()).await.unwrap();
    assert!(raft.wait_leader(SOON).await, "no leader");
    raft
}

async fn start(folder: &Path) -> RaftHandle {
    start_with(folder, StartOptions::default(), nobody()).await
}

fn state(raft: &RaftHandle) -> State {
    raft.read(State::clone)
}

/// The same but for the entries that only say who leads.
fn assert_same(left: &State, right: &State) {
    let rows = |state: &State| -> Vec<_> {
        state.row_keys().into_iter().map(|key| state.row(key)).collect()
    };
    assert!(rows(left) == rows(right), "the states differ");
    assert_eq!(left.value_bytes(), right.value_bytes());
    assert!(left.secrets() == right.secrets() && left.services() == right.services());
}

/// Proposes the cluster and `count` secrets.
async fn fill(raft: &RaftHandle, count: usize, size: usize) {
    raft.propose(init()).await.unwrap().result.unwrap();
    for number in 1..=count {
        raft.propose(secret(number, size)).await.unwrap().result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_proposed_is_there_after_a_restart() {
    let folder = new_folder();
    let raft = start(folder.path()).await;
    fill(&raft, 20, 100).await;
    let refused = raft.propose(secret(3, 100)).await.unwrap();
    assert!(matches!(refused.result, Err(Rejected::Exists { .. } | Rejected::IdTaken { .. })));
    let before = state(&raft);
    assert_eq!(before.index(), refused.index);
    raft.shutdown().await.unwrap();
    assert!(matches!(raft.propose(secret(99, 1)).await, Err(ProposeError::Stopped { .. })));

    let raft = start(folder.path()).await;
    let latest = raft.read_latest(State::clone).await.unwrap();
    assert_same(&latest, &before);
    assert!(latest.index() > before.index(), "a new term began");
    raft.propose(secret(21, 100)).await.unwrap().result.unwrap();
    assert_eq!(state(&raft).secrets().len(), 21);
    let status = raft.status();
    assert!(status.is_leader && status.members[&1] == (peer(), true), "{status:?}");
    raft.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_manager_replays_the_tail_over_its_rows() {
    let folder = new_folder();
    let raft = start(folder.path()).await;
    fill(&raft, 30, 2000).await;
    let before = state(&raft);
    // Every answered proposal is in the file by now, though not every mirrored row: as after a kill.
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.redb", "store.mark"] {
        fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    raft.shutdown().await.unwrap();
    let (store, mut machine) = StateMachine::open(copy.path(), &kek(), nobody()).unwrap();
    let (applied, _) = machine.applied_state().await.unwrap();
    let last = store.log_bounds().last.unwrap().index;
    assert!(applied.map_or(0, |id| id.index) < last, "the copy has a tail to replay");
    drop((machine, store));
    let raft = start(copy.path()).await;
    assert_same(&raft.read_latest(State::clone).await.unwrap(), &before);
    raft.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_are_all_applied_once() {
    let folder = new_folder();
    let records = Arc::new(Mutex::new(Vec::new()));
    let seen = records.clone();
    let observer: Observer = Arc::new(move |observed| match observed {
        Observed::Applied(record) => seen.lock().unwrap().push(record.index),
        skipped @ Observed::Skipped { .. } => panic!("{skipped:?}"),
    });
    let raft = start_with(folder.path(), StartOptions::default(), observer).await;
    let mut changes = raft.subscribe();
    raft.propose(init()).await.unwrap().result.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=200 {
        let raft = raft.clone();
        tasks.spawn(async move {
            let done = raft.propose(secret(number, 50)).await.unwrap();
            done.result.unwrap();
            assert!(raft.read(|state| state.secrets().contains_key(&id::<SecretId>(number))));
            done.index
        });
    }
    let mut indexes = tasks.join_all().await;
    indexes.sort_unstable();
    let last = *indexes.last().unwrap();
    indexes.dedup();
    assert_eq!(indexes.len(), 200);
    assert!(raft.wait_applied(last, SOON).await);
    assert!(!raft.wait_applied(last + 1, Duration::from_millis(10)).await);
    let records = records.lock().unwrap().clone();
    assert_eq!(records.len(), 201);
    assert!(records.is_sorted(), "audited in the log's order");
    let mut announced = vec![];
    while announced.last() != Some(&last) {
        announced.push(changes.recv().await.unwrap().index);
    }
    assert!(announced.windows(2).all(|pair| pair[1] == pair[0] + 1), "{announced:?}");
    raft.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_becomes_a_snapshot_and_is_purged() {
    let folder = new_folder();
    let options = StartOptions { snapshot_at_bytes: 200_000, keep_log_bytes: 50_000 };
    let raft = start_with(folder.path(), options, nobody()).await;
    fill(&raft, 120, 10_000).await;
    let mut applied = raft.applied();
    let mut number = 121;
    while raft.status().snapshot.is_none_or(|index| index < 100) {
        raft.propose(secret(number, 10)).await.unwrap().result.unwrap();
        number += 1;
        applied.changed().await.unwrap();
    }
    let before = state(&raft);
    raft.shutdown().await.unwrap();
    let (store, machine) = StateMachine::open(folder.path(), &kek(), nobody()).unwrap();
    let bounds = store.log_bounds();
    assert!(bounds.purged.is_some() && bounds.bytes < 600_000, "{bounds:?}");
    drop((machine, store));
    let raft = start_with(folder.path(), options, nobody()).await;
    assert_same(&raft.read_latest(State::clone).await.unwrap(), &before);
    raft.propose(secret(9999, 10)).await.unwrap().result.unwrap();
    raft.shutdown().await.unwrap();
}

/// More than the limit is on its way to the disk right after a snapshot: another one at the same place would never be seen to
/// be done, and none would follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_on_after_more_than_the_limit_was_in_flight() {
    let disk = new_disk();
    let open = |on_fatal: OnFatal, load: Load<'_>| {
        Store::open_on(disk.clone(), disk.mark_file(), FILE, &kek(), on_fatal, load).map(Arc::new)
    };
    let options = StartOptions { snapshot_at_bytes: 200_000, keep_log_bytes: 50_000 };
    let on_stop = Arc::new(|reason: String| panic!("stopped: {reason}"));
    let raft = RaftHandle::start_on(open, Peers::default(), options, nobody(), on_stop).await;
    let raft = raft.unwrap();
    raft.found(peer()).await.unwrap();
    assert!(raft.wait_leader(SOON).await, "no leader");
    fill(&raft, 5, 10_000).await;
    let applied = *raft.applied().borrow();
    raft.raft().trigger().snapshot().await.unwrap();
    let wait = |within| raft.raft().wait(Some(within));
    let at = wait(SOON)
        .metrics(|now| now.snapshot.is_some_and(|id| id.index == applied), "all in a snapshot")
        .await;
    assert_eq!(at.unwrap().last_applied.map(|id| id.index), Some(applied));
    let writes: Vec<_> = {
        let (held, holding) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let disk = disk.clone();
        let holder = std::thread::spawn(move || {
            let _the_disk_stands_still = disk.state();
            held.send(()).unwrap();
            let _ = released.recv();
        });
        holding.recv().unwrap();
        let propose = |number| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.propose(secret(number, 10_000)).await })
        };
        let writes = (100..130).map(propose).collect();
        let taken = wait(SOON)
            .metrics(|now| now.last_log_index >= Some(applied + 30), "all of it in the log")
            .await;
        assert_eq!(taken.unwrap().last_applied.map(|id| id.index), Some(applied), "on its way");
        drop(release);
        holder.join().unwrap();
        writes
    };
    for write in writes {
        write.await.unwrap().unwrap().result.unwrap();
    }
    let more = wait(SOON)
        .metrics(|now| now.snapshot.is_some_and(|id| id.index > applied), "another snapshot")
        .await;
    more.unwrap();
    raft.shutdown().await.unwrap();
}

/// A snapshot of a filled manager, in chunks.
async fn snapshot_chunks(folder: &Path) -> (State, Vec<v1::SnapshotChunk>) {
    let raft = start(folder).await;
    fill(&raft, 40, 100_000).await;
    let before = state(&raft);
    raft.shutdown().await.unwrap();
    let (_store, mut machine) = StateMachine::open(folder, &kek(), nobody()).unwrap();
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut chunks = Vec::new();
    let mut keep = |chunk| {
        chunks.push(chunk);
        true
    };
    snapshot.snapshot.chunks(&snapshot.meta, &mut keep).unwrap();
    (before, chunks)
}

fn assemble(
    chunks: &[v1::SnapshotChunk],
) -> std::io::Result<(SnapshotMetaOf<TypeConfig>, SnapshotData)> {
    let mut input = SnapshotInput::default();
    for chunk in chunks {
        input.push(chunk.clone())?;
    }
    input.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_travels_in_chunks_and_replaces_everything() {
    let folder = new_folder();
    let (before, chunks) = snapshot_chunks(folder.path()).await;
    assert!(chunks.len() > 3, "4 MB in {} chunks", chunks.len());
    for cut in 0..chunks.len() {
        assert!(assemble(&chunks[..cut]).is_err(), "{cut} chunks are not all");
    }
    assert!(assemble(&chunks[1..]).is_err(), "no header");

    let other = new_folder();
    {
        let skipped = Arc::new(Mutex::new(Vec::new()));
        let told = skipped.clone();
        let observer: Observer = Arc::new(move |observed| match observed {
            Observed::Skipped { from, to } => told.lock().unwrap().push((from, to)),
            applied @ Observed::Applied(_) => panic!("{applied:?}"),
        });
        let (_store, mut machine) = StateMachine::open(other.path(), &kek(), observer).unwrap();
        let (meta, data) = assemble(&chunks).unwrap();
        machine.install_snapshot(&meta, data).await.unwrap();
        let last = meta.last_log_id.unwrap().index;
        assert_eq!(*skipped.lock().unwrap(), [(1, last)], "what this manager has not seen");
        // The same once more skips nothing.
        machine.install_snapshot(&meta, assemble(&chunks).unwrap().1).await.unwrap();
        assert_eq!(skipped.lock().unwrap().len(), 1);
        assert_eq!(machine.applied_state().await.unwrap().0, meta.last_log_id);
        let current = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, meta);
    }
    let raft = start(other.path()).await;
    assert_same(&raft.read(State::clone), &before);
    let version = raft.read(|state| {
        let secret = &state.secrets()[&id::<SecretId>(7)];
        secret.versions.get(Version::FIRST).unwrap().value.ciphertext.clone()
    });
    assert_eq!(version, vec![7; 100_016]);
    raft.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_own_secrets_are_kept_beside_the_state() {
    let folder = new_folder();
    let raft = start(folder.path()).await;
    let key = crate::disk::secret(b"own private key");
    raft.local_put("hpke", Some(key)).await.unwrap();
    raft.shutdown().await.unwrap();
    let raft = start(folder.path()).await;
    let key = raft.local_get("hpke").unwrap().unwrap();
    assert_eq!(key.as_slice(), b"own private key");
    assert!(raft.local_get("other").unwrap().is_none());
    raft.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unreached_peer_grants_nothing_and_is_named() {
    let peer = Peer { address: "10.1.2.3:7000".into(), name: id::<NodeId>(5).to_string() };
    let mut client = Peers::default().new_client(2, &peer).await;
    let request = VoteRequest::new(Vote::new(3, 1), None);
    let error = client.pre_vote(request, RPCOption::new(SOON)).await.unwrap_err();
    assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("10.1.2.3:7000"), "{error}");
}
