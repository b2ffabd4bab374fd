//! The keys of this manager's store: written anew as the state asks for it, and told; and, by the leader, the second
//! half of a shredding.
//!
//! Depends on the shell, the seals and the place of the key file. Invariant: a manager says that its store is written
//! under new keys when it is, and when the key before is gone from its place.

use std::sync::Arc;
use std::time::Duration;

use keyhole_secmem::{Key32, SecretBytes};
use keyhole_state::{
    Cluster, Command, Member, NewStoreKeys, Renewal, ShredStanding, State, StoreDue, StoreUnder,
};

use crate::authz::{Authorized, OwnWork};
use crate::key_place::KeyPlace;
use crate::keys::Kek;
use crate::seal::{Purpose, seal_key_for_members};
use crate::shell::{Refused, Shell};
use crate::store::{OnStep, SealedFor, Step};

/// What the unlock key is called in errors.
pub(crate) const UNLOCK_KEY: &str = "the unlock key";
/// What a store waits for that is to be under an unlock key which nobody has.
const UNSEEN: &str =
    "its store waits for an operator to see the new unlock key, with 'keyhole cluster unlock-key'";
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// A demand for new keys, with a new unlock key for all that vote if there is to be one.
pub(crate) fn new_store_keys(
    state: &State,
    cluster: &Cluster,
    why: Renewal,
) -> Result<NewStoreKeys, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot make an unlock key: {e}");
    let number = cluster.store_keys.number + 1;
    let locked = match why {
        Renewal::Autolock => true,
        Renewal::NoAutolock => false,
        Renewal::UnlockKey | Renewal::Stores | Renewal::Shred => {
            cluster.store_keys.unlock.is_some()
        }
    };
    let sealed = || {
        let key = Key32::generate().map_err(|e| failed(&e))?;
        let mut copy = SecretBytes::zeroed(32).map_err(|e| failed(&e))?;
        copy.as_mut_slice().copy_from_slice(key.expose());
        let holders = state.members().values().filter(|member: &&Member| member.voter);
        seal_key_for_members(&cluster.id, Purpose::Unlock(number), &copy, holders)
            .map_err(|e| failed(&e))
    };
    let unlock = locked.then(sealed).transpose()?;
    Ok(NewStoreKeys { number, unlock, why })
}

/// Does what is due for as long as this manager runs.
pub(crate) async fn keep_store_keys(shell: Arc<Shell>, by: Authorized<OwnWork>, place: KeyPlace) {
    let mut applied = shell.applied(&by);
    loop {
        applied.borrow_and_update();
        match step(&shell, &by, &place).await {
            Ok(Next::More) => continue,
            Ok(Next::Rest(work)) => drop(shell.set_store_work(work.to_owned())),
            Err(why) => {
                if shell.set_store_work(why.clone()) {
                    tracing::warn!(why, "the store's keys have to wait");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// What follows a step.
enum Next {
    /// There may be more to do.
    More,
    /// Nothing can be done until something is applied; what that is waited for, for `cluster status`.
    Rest(&'static str),
}

async fn step(
    shell: &Arc<Shell>,
    by: &Authorized<OwnWork>,
    place: &KeyPlace,
) -> Result<Next, String> {
    if let Some(new) = stores_to_shred(shell, by)? {
        propose(shell, by, Command::RenewStoreKeys(Box::new(new))).await?;
        return Ok(Next::More);
    }
    let replica = shell.own_replica(by);
    let SealedFor { number, locked } = replica.store_sealed_for();
    let (member, has) = (shell.own.member, StoreUnder { number, locked });
    let due = || shell.view(by, |state| state.store_due(member, has));
    if let Some(wanted) = due() {
        // What is known here may be older than what the store was written for.
        replica.catch_up().await.map_err(|error| error.to_string())?;
        if due() == Some(wanted) {
            write_anew(shell, by, place, wanted).await?;
        }
        return Ok(Next::More);
    }
    let (told, waits) = shell.view(by, |state| {
        let known = state.members().contains_key(&member);
        let keys = state.cluster().map_or(0, |cluster| cluster.store_keys.number);
        let told = !known || has.number > keys || state.store_written(member).under == has;
        (told, state.store_waits_for_unlock_key(member, has))
    });
    if told {
        return Ok(Next::Rest(if waits { UNSEEN } else { "" }));
    }
    let sealed = replica.store_sealed();
    place.settle(&sealed).map_err(|error| {
        format!("the store is under new keys, but the key before is not gone: {error}")
    })?;
    propose(shell, by, Command::NoteStore { member, under: has }).await?;
    Ok(Next::More)
}

/// If this manager leads and all values are under a new key: the demand for stores without the old ones.
fn stores_to_shred(
    shell: &Shell,
    by: &Authorized<OwnWork>,
) -> Result<Option<NewStoreKeys>, String> {
    if !shell.own_replica(by).status().is_leader {
        return Ok(None);
    }
    shell.view(by, |state| match (state.shredding(), state.cluster()) {
        (Some(ShredStanding::Ready), Some(cluster)) => {
            new_store_keys(state, cluster, Renewal::Shred).map(Some)
        }
        _ => Ok(None),
    })
}

async fn propose(shell: &Shell, by: &Authorized<OwnWork>, command: Command) -> Result<(), String> {
    match shell.propose(by, command).await {
        // Somebody else was faster; what is due now is looked up anew.
        Ok(_) | Err(Refused::Rejected(_)) => Ok(()),
        Err(Refused::Unavailable(error)) => Err(error.to_string()),
    }
}

async fn write_anew(
    shell: &Arc<Shell>,
    by: &Authorized<OwnWork>,
    place: &KeyPlace,
    due: StoreDue,
) -> Result<(), String> {
    let replica = shell.own_replica(by);
    if let Some(index) = due.purge {
        shell.set_store_work(format!("forgetting the log up to {index}"));
        replica.forget_log(index).await?;
    }
    let StoreUnder { number, locked } = due.under;
    let kek = match locked {
        true => unlock_key(shell, by, number)?,
        false => place.next().map_err(|error| {
            format!("{error}; if only you can write there, put a key beside it (docs/KEYS.md)")
        })?,
    };
    tracing::info!(number, locked, "writing the store anew under new keys");
    let rewritten = replica.rewrite_store(&kek, SealedFor { number, locked }, told(shell)).await;
    rewritten.map_err(|error| format!("the store is not under new keys yet: {error}"))
}

/// The step as what `cluster status` shows.
fn told(shell: &Arc<Shell>) -> OnStep {
    let shell = Arc::downgrade(shell);
    Box::new(move |step| {
        let text = match step {
            Step::Copied(rows, of) => format!("writing the store anew, {rows} of {of} rows"),
            Step::Written | Step::Marked | Step::Replaced | Step::Done => {
                "putting the new store in its place".to_owned()
            }
        };
        if let Some(shell) = shell.upgrade() {
            shell.set_store_work(text);
        }
    })
}

fn unlock_key(shell: &Shell, by: &Authorized<OwnWork>, number: u64) -> Result<Kek, String> {
    let key = shell.view(by, |state| {
        let cluster = state.cluster().filter(|cluster| cluster.store_keys.number == number);
        let cluster = cluster.ok_or("another demand has come meanwhile")?;
        open_unlock_key(shell, cluster)
    })?;
    Ok(Kek::from_key(key, UNLOCK_KEY))
}

/// The unlock key of now, if there is one.
pub(crate) fn open_unlock_key(shell: &Shell, cluster: &Cluster) -> Result<Key32, String> {
    let keys = &cluster.store_keys;
    let sealed = keys.unlock.as_ref().ok_or("there is no unlock key")?;
    let opened = shell.keyring.own().open(&cluster.id, Purpose::Unlock(keys.number), sealed);
    let opened = opened.map_err(|error| error.to_string())?;
    let bytes = opened.as_slice().first_chunk().filter(|_| opened.len() == 32);
    let bytes: &[u8; 32] = bytes.ok_or("the unlock key has another length")?;
    Key32::filled_by(|out| *out = *bytes).map_err(|error| error.to_string())
}
