//! The keys that Raft carries sealed: the keyring (value keys by epoch) and the CA's key.
//!
//! Invariant: outside of the members' locked memory they exist only as HPKE seals, one for each member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyhole_domain::ClusterId;
use keyhole_secmem::{Key32, LockError, SecretBytes};
use keyhole_state::{Cluster, KeySeal, Member, MemberKeys, SealedKey, UnlockSeal};
use keyhole_wire::seal::{Aad, EdgeKeyPair, EdgePublicKey, Info, Protocol, SealError, seal_one};

/// What a sealed key is for; part of its associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A value key of the keyring, by epoch.
    Keyring(u32),
    /// The root CA's private key.
    Ca,
    /// The unlock key, by the number of the demand that it was made for.
    Unlock(u64),
}

impl Purpose {
    fn bind(self, cluster: &ClusterId, member: u64) -> Aad {
        let (word, number) = match self {
            Self::Keyring(epoch) => ("keyring", u64::from(epoch)),
            Self::Ca => ("ca", 0),
            Self::Unlock(number) => ("unlock", number),
        };
        Aad::new().text(cluster.as_str()).text(word).number(number).number(member)
    }
}

/// Why a key of the cluster cannot be used by this member.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The state has no seal for this member.
    #[error("member {member} has no seal of the {key}; it must join the cluster again")]
    NoSeal {
        /// This member.
        member: u64,
        /// Which key.
        key: &'static str,
    },
    /// The state has no key of that epoch.
    #[error("the keyring has no key of epoch {epoch}")]
    NoEpoch {
        /// The epoch asked for.
        epoch: u32,
    },
    /// The seal does not open, or holds something else than a key.
    #[error("the {key} does not open with this member's key: {error}")]
    Seal {
        /// Which key.
        key: &'static str,
        /// Why.
        error: SealError,
    },
    /// A key of the wrong length.
    #[error("the {key} has the wrong length")]
    Length {
        /// Which key.
        key: &'static str,
    },
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
}

fn word(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Keyring(_) => "keyring's key",
        Purpose::Ca => "CA's key",
        Purpose::Unlock(_) => "unlock key",
    }
}

/// The two ends, as HPKE's info names them: the cluster seals for a member.
fn info(cluster: &ClusterId, member: u64) -> Info {
    Info::new(Protocol::MemberKey, cluster, "cluster", &member.to_string())
}

/// Seals a key for each of these members.
pub fn seal_key_for_members<'a>(
    cluster: &ClusterId,
    purpose: Purpose,
    key: &SecretBytes,
    members: impl IntoIterator<Item = &'a Member>,
) -> Result<SealedKey, SealError> {
    let mut seals = BTreeMap::new();
    for member in members {
        let to = EdgePublicKey::from_bytes(member.seal_key);
        let aad = purpose.bind(cluster, member.id);
        let sealed = seal_one(&to, &info(cluster, member.id), &aad, key)?;
        seals.insert(member.id, KeySeal { enc: sealed.enc, ciphertext: sealed.ciphertext });
    }
    Ok(SealedKey { seals })
}

/// Seals all of the cluster's keys for one more member, who is not in the state yet.
pub fn seal_keys_for(
    cluster: &Cluster,
    own: &MemberKey,
    to: &Member,
) -> Result<MemberKeys, KeyringError> {
    let seal = |purpose: Purpose, sealed: &SealedKey| {
        let key = own.open(&cluster.id, purpose, sealed)?;
        let made = seal_key_for_members(&cluster.id, purpose, &key, [to]);
        let made = made.map_err(|error| KeyringError::Seal { key: word(purpose), error })?;
        let none = KeyringError::NoSeal { member: to.id, key: word(purpose) };
        made.seals.get(&to.id).cloned().ok_or(none)
    };
    let keyring = cluster.keyring.iter();
    let keyring = keyring.map(|(epoch, key)| Ok((*epoch, seal(Purpose::Keyring(*epoch), key)?)));
    let keys = &cluster.store_keys;
    let unlock = keys.unlock.as_ref().map(|key| {
        let seal = seal(Purpose::Unlock(keys.number), key)?;
        Ok::<_, KeyringError>(UnlockSeal { number: keys.number, seal })
    });
    Ok(MemberKeys {
        unlock: unlock.transpose()?,
        ca: seal(Purpose::Ca, &cluster.ca_key)?,
        ca_number: cluster.ca_number,
        keyring: keyring.collect::<Result<_, KeyringError>>()?,
    })
}

/// This member's own HPKE key, which opens what is sealed for it.
#[derive(Debug)]
pub struct MemberKey {
    member: u64,
    pair: EdgeKeyPair,
}

impl MemberKey {
    /// The key pair of a member.
    #[must_use]
    pub fn new(member: u64, pair: EdgeKeyPair) -> Self {
        Self { member, pair }
    }

    /// The member's Raft id.
    #[must_use]
    pub fn member(&self) -> u64 {
        self.member
    }

    /// Opens this member's seal of a key.
    pub fn open(
        &self,
        cluster: &ClusterId,
        purpose: Purpose,
        sealed: &SealedKey,
    ) -> Result<SecretBytes, KeyringError> {
        let key = word(purpose);
        let member = self.member;
        let none = KeyringError::NoSeal { member, key };
        let seal = sealed.seals.get(&member).ok_or(none)?;
        let aad = purpose.bind(cluster, member);
        self.pair
            .open_one(&seal.enc, &info(cluster, member), &aad, &seal.ciphertext)
            .map_err(|error| KeyringError::Seal { key, error })
    }
}

/// The value keys, opened when first needed and then kept in locked memory for as long as the state has them.
#[derive(Debug)]
pub struct Keyring {
    own: MemberKey,
    keys: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The epochs whose keys the state has for this member, as far as was heard. What is not of them is used and not kept:
    /// who sends values has what the state was when he began.
    epochs: BTreeSet<u32>,
    opened: BTreeMap<u32, Arc<Key32>>,
}

impl Keyring {
    /// A keyring that opens with this member's key.
    #[must_use]
    pub fn new(own: MemberKey) -> Self {
        Self { own, keys: Mutex::default() }
    }

    /// This member's own key.
    #[must_use]
    pub fn own(&self) -> &MemberKey {
        &self.own
    }

    /// Forgets the keys that the state has no more, or not for this member. Who works with one has it until he is done; then
    /// it is wiped.
    pub fn follow(&self, cluster: &Cluster) {
        let mut kept = self.kept();
        let own = |sealed: &SealedKey| sealed.seals.contains_key(&self.own.member);
        let has = cluster.keyring.iter().filter(|(_, sealed)| own(sealed)).map(|(epoch, _)| *epoch);
        if !has.clone().eq(kept.epochs.iter().copied()) {
            kept.epochs = has.collect();
            let Kept { epochs, opened } = &mut *kept;
            opened.retain(|epoch, _| epochs.contains(epoch));
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value key of an epoch.
    pub fn key(&self, cluster: &Cluster, epoch: u32) -> Result<Arc<Key32>, KeyringError> {
        let mut kept = self.kept();
        if let Some(key) = kept.opened.get(&epoch) {
            return Ok(key.clone());
        }
        let sealed = cluster.keyring.get(&epoch);
        let sealed = sealed.ok_or(KeyringError::NoEpoch { epoch })?;
        let purpose = Purpose::Keyring(epoch);
        let opened = self.own.open(&cluster.id, purpose, sealed)?;
        let wrong = KeyringError::Length { key: word(purpose) };
        let bytes: &[u8; 32] = opened.as_slice().try_into().map_err(|_| wrong)?;
        let key = Arc::new(Key32::filled_by(|out| *out = *bytes)?);
        if kept.epochs.contains(&epoch) {
            kept.opened.insert(epoch, key.clone());
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyhole_domain::{NodeId, Timestamp};
    use keyhole_state::{Actor, Command, Envelope, InitCluster, State, TokenRecord};

    fn member(id: u64, pair: &EdgeKeyPair) -> Member {
        Member {
            id,
            node: NodeId::from_entropy([id as u8; 16]),
            address: "127.0.0.1:1".into(),
            seal_key: *pair.public().as_bytes(),
            hostname: String::new(),
            voter: true,
        }
    }

    #[test]
    fn a_key_opens_for_its_members_and_its_purpose_only() {
        let cluster = ClusterId::from_entropy([1; 16]);
        let (first, second) = (EdgeKeyPair::generate().unwrap(), EdgeKeyPair::generate().unwrap());
        let members = [member(1, &first), member(2, &second)];
        let key = SecretBytes::copy_from(&mut [7; 32]).unwrap();
        let sealed = seal_key_for_members(&cluster, Purpose::Keyring(1), &key, &members).unwrap();
        let (first, second) = (MemberKey::new(1, first), MemberKey::new(2, second));
        for own in [&first, &second] {
            assert!(own.open(&cluster, Purpose::Keyring(1), &sealed).unwrap() == key);
            assert!(own.open(&cluster, Purpose::Keyring(2), &sealed).is_err());
            assert!(own.open(&cluster, Purpose::Ca, &sealed).is_err());
            let other = ClusterId::from_entropy([2; 16]);
            assert!(own.open(&other, Purpose::Keyring(1), &sealed).is_err());
        }
        let stranger = MemberKey::new(3, EdgeKeyPair::generate().unwrap());
        let error = stranger.open(&cluster, Purpose::Keyring(1), &sealed).unwrap_err();
        assert!(matches!(error, KeyringError::NoSeal { member: 3, .. }), "{error}");
        // A seal moved to another member's place does not open there either.
        let mut moved = sealed.clone();
        let stolen = moved.seals[&1].clone();
        moved.seals.insert(2, stolen);
        assert!(second.open(&cluster, Purpose::Keyring(1), &moved).is_err());
    }

    /// A cluster with value keys of these epochs, sealed for member 1.
    fn cluster(own: &EdgeKeyPair, epochs: &[u32]) -> Cluster {
        let (id, member) = (ClusterId::from_entropy([1; 16]), member(1, own));
        let sealed = |epoch: u32| {
            let key = SecretBytes::copy_from(&mut [epoch as u8; 32]).unwrap();
            seal_key_for_members(&id, Purpose::Keyring(epoch), &key, [&member]).unwrap()
        };
        let token = || TokenRecord { hash: [1; 32], salt: [1; 32], epoch: 1 };
        let command = Command::Init(Box::new(InitCluster {
            id,
            ca_certificate: vec![1],
            ca_key: sealed(1),
            value_key: sealed(1),
            worker_token: token(),
            manager_token: token(),
            certificate_seconds: 86400,
            member: member.clone(),
        }));
        let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
        let mut state = State::default();
        state.apply(1, &Envelope { at: Timestamp(1), actor, via: 1, command }).unwrap();
        let mut cluster = state.cluster().unwrap().clone();
        cluster.keyring = epochs.iter().map(|epoch| (*epoch, sealed(*epoch))).collect();
        cluster
    }

    #[test]
    fn a_key_that_the_state_has_dropped_is_wiped_with_its_last_reader() {
        let pair = EdgeKeyPair::generate().unwrap();
        let (before, after) = (cluster(&pair, &[1, 2]), cluster(&pair, &[2]));
        let ring = Keyring::new(MemberKey::new(1, pair));
        ring.follow(&before);
        let reader = ring.key(&before, 1).unwrap();
        let second = ring.key(&before, 2).unwrap();
        assert!(Arc::ptr_eq(&reader, &ring.key(&before, 1).unwrap()), "it is opened once");
        let gone = Arc::downgrade(&reader);
        ring.follow(&after);
        assert!(matches!(ring.key(&after, 1), Err(KeyringError::NoEpoch { epoch: 1 })));
        assert_eq!(reader.expose(), &[1; 32]);
        drop(reader);
        assert!(gone.upgrade().is_none(), "nobody reads it, and it is there");
        // Who began before that goes on, and leaves nothing behind.
        let late = ring.key(&before, 1).unwrap();
        let gone = Arc::downgrade(&late);
        drop(late);
        assert!(gone.upgrade().is_none(), "it was kept again");
        assert!(Arc::ptr_eq(&second, &ring.key(&after, 2).unwrap()), "the others are kept");
        // A demoted manager has no seals.
        let mut demoted = after;
        demoted.keyring.values_mut().for_each(|sealed| sealed.seals.clear());
        ring.follow(&demoted);
        assert!(matches!(ring.key(&demoted, 2), Err(KeyringError::NoSeal { member: 1, .. })));
        let gone = Arc::downgrade(&second);
        drop(second);
        assert!(gone.upgrade().is_none(), "a demoted manager holds a key");
    }
}
