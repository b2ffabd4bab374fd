//! A store without Raft running: filled, or rewritten, as the beginning of a cluster of one.
//!
//! Depends on the store, the machine and the pure state. Invariant: the new history begins at a position after all that
//! the store ever had, so that nothing of the old log is taken up again, also if this process is killed half way.
use super::handle::{Observer, StartError};
use super::log::{LogStore, on_disk};
use super::machine::{Live, Loader, StateMachine};
use super::types::{Command, Membership, Peer, SnapshotMeta, StoredMembership, Vote, log_id};
use super::wire::{invalid, meta_bytes, row_key_bytes, vote_bytes, vote_from};
use crate::codec::encode_row;
use crate::keys::Kek;
use crate::store::{Position, Store, StoreError};
use keyhole_state::{Envelope, Member, Rejected, State};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Rows on their way to the disk.
const FILL_BYTES: usize = 4 << 20;

/// What is applied up to `at`, with one member.
fn alone(at: Position, member: &Member) -> io::Result<SnapshotMeta> {
    let peer = Peer { address: member.address.clone(), name: member.node.to_string() };
    let voters = vec![BTreeSet::from([member.id])];
    let membership = Membership::new(voters, BTreeMap::from([(member.id, peer)]));
    let membership = membership.map_err(|e| invalid(format!("membership: {e}")))?;
    let last = Some(log_id(at));
    Ok(SnapshotMeta { last_log_id: last, last_membership: StoredMembership::new(last, membership) })
}

/// No entry up to `at` is there any more, and the next election is of a higher term.
async fn forget_log(store: &Store, at: Position, member: u64) -> Result<(), StoreError> {
    store.purge(at);
    let vote = vote_bytes(&Vote::new(at.term, member));
    on_disk(|done| store.save_vote(vote, done)).await
}

/// Fills an empty store with a state, as of `at`, in which `member` is alone.
pub(crate) async fn fill(
    store: &Store,
    state: &State,
    at: Position,
    member: &Member,
) -> io::Result<()> {
    let applied = meta_bytes(&alone(at, member)?);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for key in state.row_keys() {
        let row = state.row(key).map(|row| encode_row(&row).encode_to_vec());
        bytes += row.as_ref().map_or(0, Vec::len);
        rows.push((row_key_bytes(&key), row));
        if bytes >= FILL_BYTES {
            bytes = 0;
            store.put_rows(std::mem::take(&mut rows), applied.clone());
            on_disk(|done| store.flush(done)).await?;
        }
    }
    store.put_rows(rows, applied);
    Ok(forget_log(store, at, member.id).await?)
}

/// An existing store and its state.
pub(crate) struct Offline {
    store: Arc<Store>,
    live: Live,
    machine: StateMachine,
}

impl Offline {
    /// Opens the store in `folder` and applies what is known to be committed, as a start of Raft does.
    pub(crate) fn open(folder: &Path, kek: &Kek, observer: Observer) -> Result<Self, StartError> {
        let loader = Loader::default();
        let store =
            Store::open(folder, kek, Box::new(|_| ()), &|key, value| loader.take(key, value))?;
        let store = Arc::new(store);
        let (state, meta) = loader.finish(&store)?;
        let live = Live::new(state, observer);
        let mut machine = StateMachine::new(store.clone(), live.clone(), meta);
        if let Some(committed) = store.committed() {
            machine.replay(&LogStore::new(store.clone()), committed.index)?;
        }
        Ok(Self { store, live, machine })
    }

    /// The Raft id of the member whose store it is.
    pub(crate) fn member(&self) -> u64 {
        self.store.identity().member
    }

    /// Looks at the state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.live.state())
    }

    /// Takes all that the log has as decided, applies a command as the beginning of a history of `member` alone, and
    /// closes the store. If the command is refused, nothing is done.
    pub(crate) async fn begin(
        mut self,
        envelope: Envelope,
        member: &Member,
    ) -> Result<Result<(), Rejected>, StartError> {
        let log = LogStore::new(self.store.clone());
        let vote = self.store.vote().as_deref().map(vote_from).transpose()?;
        let bounds = self.store.log_bounds();
        let applied = self.machine.applied_position();
        let last = bounds.last.max(applied).unwrap_or_default();
        let term = vote.map_or(0, |vote| vote.leader_id.term).max(last.term) + 1;
        let at = Position { term, index: last.index + 1 };
        let command = Command { envelope: Arc::new(envelope), proposal: 0 };
        // What is not committed must be there as it was if the command is refused: others may decide of it yet.
        if let Err(refused) = self.machine.judge(&log, (at.index, &command))? {
            return Ok(Err(refused));
        }
        self.machine.replay(&log, u64::MAX)?;
        let begun = self.machine.begin(alone(at, member)?, &command);
        if begun.is_ok() {
            forget_log(&self.store, at, member.id).await?;
        }
        Ok(begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Entry;
    use crate::raft::wire::entry_bytes;
    use crate::store::{LogRow, StoreIdentity};
    use keyhole_domain::{ClusterId, Labels, NodeId, SecretId, Timestamp};
    use keyhole_state::{
        Actor, InitCluster, KeySeal, MemberKeys, SealedKey, SealedValue, TokenRecord,
    };
    use openraft::EntryPayload;

    fn envelope(command: keyhole_state::Command) -> Envelope {
        Envelope { at: Timestamp(7), actor: Actor::Manager(1), via: 1, command }
    }

    fn member(id: u64) -> Member {
        let n = u8::try_from(id).unwrap();
        Member {
            id,
            node: NodeId::from_entropy([n; 16]),
            hostname: format!("m{id}"),
            address: format!("m{id}:7070"),
            seal_key: [n; 32],
            voter: true,
        }
    }

    fn two_managers() -> State {
        let seal = || KeySeal { enc: vec![1], ciphertext: vec![2] };
        let sealed = || SealedKey { seals: [(1, seal())].into() };
        let token = || TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
        let init = keyhole_state::Command::Init(Box::new(InitCluster {
            id: ClusterId::from_entropy([0; 16]),
            ca_certificate: vec![],
            ca_key: sealed(),
            value_key: sealed(),
            worker_token: token(),
            manager_token: token(),
            certificate_seconds: 60,
            member: member(1),
        }));
        let keys =
            MemberKeys { ca: seal(), keyring: [(1, seal())].into(), ca_number: 0, unlock: None };
        let join = keyhole_state::Command::AddMember { member: member(2), keys };
        let mut state = State::default();
        state.apply(1, &envelope(init)).unwrap();
        state.apply(2, &envelope(join)).unwrap();
        state
    }

    /// A store of member 1 whose log ends with commands that nobody is known to have committed.
    async fn with_tail(folder: &Path, kek: &Kek, tail: Vec<keyhole_state::Command>) {
        let identity = StoreIdentity {
            cluster: ClusterId::from_entropy([0; 16]).to_string(),
            manager: member(1).node.to_string(),
            member: 1,
        };
        Store::create(folder, &identity, kek).unwrap();
        let store = Store::open(folder, kek, Box::new(|_| ()), &|_, _| Ok(())).unwrap();
        let at = |index| Position { term: 1, index };
        fill(&store, &two_managers(), at(2), &member(1)).await.unwrap();
        let row = |(index, command)| {
            let command = Command { envelope: Arc::new(envelope(command)), proposal: 0 };
            let entry = Entry { log_id: log_id(at(index)), payload: EntryPayload::Normal(command) };
            LogRow { position: at(index), data: entry_bytes(&entry).into() }
        };
        let rows = (3..).zip(tail).map(row).collect();
        on_disk(|done| store.append(rows, done).unwrap()).await.unwrap();
    }

    fn open(folder: &Path, kek: &Kek) -> Offline {
        Offline::open(folder, kek, Arc::new(|_| ())).unwrap()
    }

    fn secret() -> keyhole_state::Command {
        keyhole_state::Command::CreateSecret {
            id: SecretId::from_entropy([1; 16]),
            name: "a".parse().unwrap(),
            labels: Labels::default(),
            value: SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; 17] },
        }
    }

    fn alone_by_force() -> Envelope {
        envelope(keyhole_state::Command::ForceNewCluster { member: 1 })
    }

    /// Others may decide yet that it never was: a log whose end takes this manager's keys makes no history.
    #[tokio::test]
    async fn a_refused_beginning_leaves_what_is_not_committed_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let kek = Kek::create(&folder.path().join("kek")).unwrap();
        let demotion = keyhole_state::Command::DemoteMember { id: 1, voters: [].into() };
        with_tail(folder.path(), &kek, vec![secret(), demotion]).await;
        let offline = open(folder.path(), &kek);
        let refused = offline.begin(alone_by_force(), &member(1)).await.unwrap();
        assert_eq!(refused, Err(Rejected::NoKeys { id: 1 }));
        let offline = open(folder.path(), &kek);
        offline.read(|state| {
            assert_eq!((state.index(), state.members().len()), (2, 2));
            assert!(state.members()[&1].voter && state.secrets().is_empty());
        });
        let last = offline.store.log_bounds().last.unwrap();
        assert_eq!((last.term, last.index), (1, 4), "the log is whole");
    }

    #[tokio::test]
    async fn a_beginning_takes_all_that_the_log_has_as_decided() {
        let folder = tempfile::tempdir().unwrap();
        let kek = Kek::create(&folder.path().join("kek")).unwrap();
        with_tail(folder.path(), &kek, vec![secret()]).await;
        let offline = open(folder.path(), &kek);
        offline.begin(alone_by_force(), &member(1)).await.unwrap().unwrap();
        let offline = open(folder.path(), &kek);
        offline.read(|state| {
            assert!(state.members().keys().eq(&[1]) && state.secrets().len() == 1);
            assert_eq!(state.index(), 4);
        });
    }
}
