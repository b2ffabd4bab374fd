//! The rules of the keys that managers keep their stores under (GUARANTEES G24): autolock, new keys, shredding.

#![expect(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use keyhole_domain::{ClusterId, Labels, NodeId, SecretId, Timestamp, Version};
use keyhole_state::*;

struct Cluster {
    state: State,
    index: u64,
}

fn seal() -> KeySeal {
    KeySeal { enc: vec![1], ciphertext: vec![2] }
}

fn sealed(holders: &[u64]) -> SealedKey {
    SealedKey { seals: holders.iter().map(|id| (*id, seal())).collect() }
}

fn token(epoch: u32) -> TokenRecord {
    TokenRecord { hash: [0; 32], salt: [0; 32], epoch }
}

fn member(id: u64) -> Member {
    let n = u8::try_from(id).unwrap();
    Member {
        id,
        node: NodeId::from_entropy([100 + n; 16]),
        hostname: format!("m{n}"),
        address: format!("m{n}:7070"),
        seal_key: [n; 32],
        voter: true,
    }
}

fn keys(unlock: Option<u64>) -> MemberKeys {
    let unlock = unlock.map(|number| UnlockSeal { number, seal: seal() });
    MemberKeys { ca: seal(), keyring: [(1, seal())].into(), ca_number: 0, unlock }
}

fn renewal(number: u64, holders: &[u64], why: Renewal) -> Command {
    let unlock = (!holders.is_empty()).then(|| sealed(holders));
    Command::RenewStoreKeys(Box::new(NewStoreKeys { number, unlock, why }))
}

fn under(number: u64, locked: bool) -> StoreUnder {
    StoreUnder { number, locked }
}

impl Cluster {
    /// Three managers, and a secret.
    fn new() -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        cluster.ok(Command::Init(Box::new(InitCluster {
            id: ClusterId::from_entropy([0; 16]),
            ca_certificate: vec![],
            ca_key: sealed(&[1]),
            value_key: sealed(&[1]),
            worker_token: token(1),
            manager_token: token(1),
            certificate_seconds: 60,
            member: member(1),
        })));
        for id in [2, 3] {
            cluster.ok(Command::AddMember { member: member(id), keys: keys(None) });
        }
        cluster.ok(Command::CreateSecret {
            id: SecretId::from_entropy([1; 16]),
            name: "a".parse().unwrap(),
            labels: Labels::default(),
            value: SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; 17] },
        });
        cluster
    }

    fn run(&mut self, command: Command) -> Result<Applied, Rejected> {
        self.index += 1;
        let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
        let envelope = Envelope { at: Timestamp(self.index), actor, via: 1, command };
        let before = self.state.clone();
        let result = self.state.apply(self.index, &envelope);
        self.state.invariants().unwrap();
        if result.is_err() {
            let same = State::from_rows(
                self.index,
                before.row_keys().into_iter().filter_map(|k| before.row(k)),
            );
            assert_eq!(self.state, same, "what is refused changes nothing");
        }
        result
    }

    #[track_caller]
    fn ok(&mut self, command: Command) {
        self.run(command).unwrap();
    }

    /// An operator has the unlock key.
    fn see(&mut self, number: u64) {
        self.ok(Command::NoteUnlockKey { number });
    }

    /// Each member writes its store as it has to.
    fn write(&mut self, members: &[u64]) {
        for member in members {
            let has = self.state.store_written(*member).under;
            let due = self.state.store_due(*member, has).unwrap();
            self.ok(Command::NoteStore { member: *member, under: due.under });
        }
    }

    fn behind(&self) -> Vec<u64> {
        let members = self.state.members().keys().copied();
        members.filter(|id| self.state.store_is_behind(*id)).collect()
    }

    fn reseal(&mut self, epoch: u32) {
        self.ok(Command::Reseal {
            items: vec![ResealItem {
                id: SecretId::from_entropy([1; 16]),
                version: Version::FIRST,
                from: 1,
                value: SealedValue { epoch, salt: [1; 32], ciphertext: vec![0; 17] },
            }],
        });
    }

    fn new_key(&mut self, epoch: u32) {
        self.ok(Command::RotateKeyring(Box::new(NewKey {
            epoch,
            key: sealed(&[1, 2, 3]),
            worker_token: token(epoch),
            manager_token: token(epoch),
        })));
    }
}

#[test]
fn autolock_makes_every_voters_store_due_under_the_unlock_key_and_back() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.behind(), [0; 0]);
    assert_eq!(cluster.state.store_due(1, under(0, false)), None);
    for why in [Renewal::NoAutolock, Renewal::UnlockKey] {
        let refused = cluster.run(renewal(1, &[1, 2, 3], why)).unwrap_err();
        assert_eq!(refused, Rejected::Autolock { on: false });
    }
    assert_eq!(cluster.run(Command::ShowUnlockKey).unwrap_err(), Rejected::Autolock { on: false });
    cluster.ok(renewal(1, &[1, 2, 3], Renewal::Autolock));
    assert_eq!(cluster.behind(), [1, 2, 3]);
    cluster.see(1);
    let due = StoreDue { under: under(1, true), purge: None };
    assert_eq!(cluster.state.store_due(2, under(0, false)), Some(due));
    assert_eq!(cluster.state.store_due(2, under(2, true)), None, "it knows more than this state");
    cluster.write(&[1, 3]);
    assert_eq!(cluster.behind(), [2]);
    assert_eq!(
        cluster.state.store_written(3),
        StoreWritten { under: under(1, true), at: Timestamp(cluster.index) }
    );
    cluster.ok(Command::ShowUnlockKey);
    let refused = cluster.run(renewal(2, &[1, 2, 3], Renewal::Autolock)).unwrap_err();
    assert_eq!(refused, Rejected::Autolock { on: true });
    cluster.ok(renewal(2, &[], Renewal::NoAutolock));
    assert_eq!(cluster.behind(), [1, 2, 3]);
    cluster.write(&[1, 2, 3]);
    assert!(cluster.behind().is_empty() && !cluster.state.store_written(1).under.locked);
}

/// Whoever made it may have crashed before he told it: with all managers gone then, nobody could open a store.
#[test]
fn no_store_is_due_under_an_unlock_key_that_no_operator_has() {
    let mut cluster = Cluster::new();
    let refused = cluster.run(Command::NoteUnlockKey { number: 0 }).unwrap_err();
    assert_eq!(refused, Rejected::Autolock { on: false });
    assert!(!cluster.state.unlock_key_is_unseen());
    cluster.ok(renewal(1, &[1, 2, 3], Renewal::Autolock));
    cluster.ok(Command::ShowUnlockKey);
    let waits = |cluster: &Cluster, has| {
        let waits = cluster.state.store_waits_for_unlock_key(1, has);
        assert!(!(waits && cluster.state.store_due(1, has).is_some()));
        waits
    };
    assert!(cluster.state.unlock_key_is_unseen() && waits(&cluster, under(0, false)));
    for number in [0, 2] {
        let raced = cluster.run(Command::NoteUnlockKey { number }).unwrap_err();
        assert_eq!(raced, Rejected::StoreKeysRaced { given: number, current: 1 });
    }
    cluster.see(1);
    assert!(!cluster.state.unlock_key_is_unseen() && !waits(&cluster, under(0, false)));
    assert_eq!(cluster.state.store_due(1, under(0, false)).unwrap().under, under(1, true));
    cluster.write(&[1, 2, 3]);
    // A newer one: stores stay under the one before, and who does not vote has none to wait for.
    cluster.ok(renewal(2, &[1, 2, 3], Renewal::Stores));
    assert!(waits(&cluster, under(1, true)) && waits(&cluster, under(0, false)));
    assert!(!waits(&cluster, under(3, true)), "it knows more than this state");
    cluster.ok(Command::DemoteMember { id: 3, voters: [].into() });
    assert_eq!(cluster.state.store_due(3, under(1, true)).unwrap().under, under(2, false));
    cluster.see(2);
    cluster.write(&[1, 2, 3]);
    cluster.ok(renewal(3, &[], Renewal::NoAutolock));
    assert!(!cluster.state.unlock_key_is_unseen());
    cluster.write(&[1, 2, 3]);
}

/// A demand that was made from another state than the one it meets is refused, so that nobody is left without a seal.
#[test]
fn a_demand_must_follow_the_last_one_and_be_sealed_for_exactly_those_that_vote() {
    let mut cluster = Cluster::new();
    for command in [
        renewal(2, &[1, 2, 3], Renewal::Autolock),
        renewal(1, &[1, 2], Renewal::Autolock),
        renewal(1, &[1, 2, 3, 4], Renewal::Autolock),
        renewal(1, &[], Renewal::Autolock),
        renewal(1, &[1, 2, 3], Renewal::Stores),
        renewal(1, &[], Renewal::Shred),
    ] {
        let refused = cluster.run(command).unwrap_err();
        assert!(matches!(refused, Rejected::StoreKeysRaced { current: 0, .. }), "{refused}");
    }
    cluster.ok(renewal(1, &[1, 2, 3], Renewal::Autolock));
    let refused = cluster.run(renewal(2, &[], Renewal::Stores)).unwrap_err();
    assert!(matches!(refused, Rejected::StoreKeysRaced { .. }), "autolock would be off by it");
    cluster.ok(renewal(2, &[1, 2, 3], Renewal::Stores));
    let note = Command::NoteStore { member: 1, under: under(3, true) };
    assert!(matches!(cluster.run(note), Err(Rejected::StoreKeysRaced { given: 3, current: 2 })));
    let note = Command::NoteStore { member: 4, under: under(1, true) };
    assert_eq!(cluster.run(note).unwrap_err(), Rejected::NoMember { id: 4 });
}

#[test]
fn who_gets_or_loses_a_vote_gets_or_loses_the_unlock_key() {
    let mut cluster = Cluster::new();
    cluster.ok(renewal(1, &[1, 2, 3], Renewal::Autolock));
    cluster.see(1);
    cluster.write(&[1, 2, 3]);
    for unlock in [None, Some(0), Some(2)] {
        let add = Command::AddMember { member: member(4), keys: keys(unlock) };
        assert_eq!(cluster.run(add).unwrap_err(), Rejected::KeysRaced { id: 4 }, "{unlock:?}");
    }
    cluster.ok(Command::AddMember { member: member(4), keys: keys(Some(1)) });
    assert_eq!(cluster.behind(), [4]);
    cluster.write(&[4]);
    cluster.ok(Command::DemoteMember { id: 4, voters: [].into() });
    let due = StoreDue { under: under(1, false), purge: None };
    assert_eq!(cluster.state.store_due(4, under(1, true)), Some(due));
    cluster.write(&[4]);
    cluster.ok(Command::PromoteMember { id: 4, keys: keys(Some(1)) });
    assert_eq!(cluster.behind(), [4]);
    cluster.ok(Command::RemoveMember { id: 4, voters: [].into() });
    assert!(cluster.behind().is_empty());
    assert_eq!(cluster.state.store_due(4, under(0, false)), None, "it is no member");
}

#[test]
fn shredding_waits_for_values_then_for_each_store_and_not_for_who_is_removed() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.state.shredding(), None);
    cluster.ok(Command::Shred);
    assert!(cluster.state.cluster().unwrap().rekey, "a new value key is due");
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Values));
    cluster.new_key(2);
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Values), "a value is under the old");
    assert!(cluster.run(renewal(1, &[], Renewal::Shred)).is_err());
    cluster.reseal(2);
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Ready));
    assert_eq!(cluster.state.store_due(1, under(0, false)), None, "nobody asked for it yet");
    cluster.ok(renewal(1, &[], Renewal::Shred));
    let (due, asked) = (cluster.state.store_due(1, under(0, false)).unwrap(), cluster.index);
    assert_eq!(due, StoreDue { under: under(1, false), purge: Some(asked) });
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Stores([1, 2, 3].into())));
    cluster.write(&[1]);
    // Another demand meanwhile: who has not shredded yet forgets the log all the same.
    cluster.ok(renewal(2, &[], Renewal::Stores));
    let purge = |id, number| cluster.state.store_due(id, under(number, false)).unwrap().purge;
    assert_eq!((purge(1, 1), purge(2, 0)), (None, Some(asked)));
    cluster.write(&[2]);
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Stores([3].into())));
    cluster.ok(Command::RemoveMember { id: 3, voters: [].into() });
    assert_eq!(cluster.state.shredding(), Some(ShredStanding::Done));
    cluster.ok(Command::Shred);
    assert_eq!(
        cluster.state.shredding(),
        Some(ShredStanding::Values),
        "for what was deleted since"
    );
}

/// What the others wrote counts no more, and who goes on alone still has the unlock key.
#[test]
fn a_manager_that_goes_on_alone_keeps_its_lock_and_forgets_the_others() {
    let mut cluster = Cluster::new();
    cluster.ok(renewal(1, &[1, 2, 3], Renewal::Autolock));
    cluster.see(1);
    cluster.write(&[1, 2, 3]);
    cluster.ok(Command::ForceNewCluster { member: 2 });
    let keys = &cluster.state.cluster().unwrap().store_keys;
    assert!(keys.written.keys().eq(&[2]) && cluster.behind().is_empty());
    assert!(keys.unlock.as_ref().unwrap().seals.keys().eq(&[2]));
    cluster.ok(renewal(2, &[2], Renewal::UnlockKey));
    assert_eq!(cluster.behind(), [2]);
}
