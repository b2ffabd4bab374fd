//! New value keys, and values sealed anew under them: by the leader, in the background, as the state asks for it.
//!
//! Depends on the shell and the seals. Invariant: a value is open only between its two seals; whoever leads next goes on
//! where the last one stopped.

use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::{ClusterId, SecretId};
use keyhole_secmem::{Key32, SecretBytes};
use keyhole_state::{Cluster, Command, Member, NewKey, PlacedValue, ResealItem, State, TokenRole};

use crate::authz::{Authorized, OwnWork};
use crate::ca::new_token;
use crate::seal::{Purpose, open_value, seal_key_for_members, seal_value};
use crate::shell::{Refused, Shell};

/// Values in one command: few enough that others' commands need not wait for it.
const BATCH: usize = 64;
/// Their bytes.
const BATCH_BYTES: u64 = 256 << 10;
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// A new value key for all members that hold keys, with the join tokens that go with it.
pub(crate) fn new_key(state: &State, cluster: &Cluster) -> Result<NewKey, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot make a value key: {e}");
    let epoch = cluster.epoch + 1;
    let key = Key32::generate().map_err(|e| failed(&e))?;
    let mut copy = SecretBytes::zeroed(32).map_err(|e| failed(&e))?;
    copy.as_mut_slice().copy_from_slice(key.expose());
    let holders = state.members().values().filter(|member: &&Member| member.voter);
    let sealed = seal_key_for_members(&cluster.id, Purpose::Keyring(epoch), &copy, holders);
    let key = Arc::new(key);
    let token = |role| {
        new_token(&cluster.ca_certificate, role, (epoch, key.clone())).map_err(|e| failed(&e))
    };
    Ok(NewKey {
        epoch,
        key: sealed.map_err(|e| failed(&e))?,
        worker_token: token(TokenRole::Worker)?,
        manager_token: token(TokenRole::Manager)?,
    })
}

/// What is due.
enum Due {
    Nothing,
    Key(Box<NewKey>),
    Values(Vec<ResealItem>),
}

/// Does what is due for as long as this manager runs, whenever it leads.
pub(crate) async fn keep_keyring(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    let mut applied = shell.applied(&by);
    let mut from = None;
    loop {
        applied.borrow_and_update();
        match step(&shell, &by, &mut from).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a change of the value keys has to wait");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// Whether there was something to do.
async fn step(
    shell: &Shell,
    by: &Authorized<OwnWork>,
    from: &mut Option<SecretId>,
) -> Result<bool, String> {
    if !shell.replica_status(by).is_leader {
        return Ok(false);
    }
    let due = shell.view_cluster(by, |state, cluster| Ok(due(shell, state, cluster, from)));
    let command = match due.map_err(|status| status.message().to_owned())?? {
        Due::Nothing => return Ok(false),
        Due::Key(new) => {
            tracing::info!(
                epoch = new.epoch,
                "a member that knew the value keys is gone: making a new one"
            );
            Command::RotateKeyring(new)
        }
        Due::Values(items) => Command::Reseal { items },
    };
    match shell.propose(by, command).await {
        // Somebody else was faster; what is due now is looked up anew.
        Ok(_) | Err(Refused::Rejected(_)) => Ok(true),
        Err(Refused::Unavailable(error)) => Err(error.to_string()),
    }
}

fn due(
    shell: &Shell,
    state: &State,
    cluster: &Cluster,
    from: &mut Option<SecretId>,
) -> Result<Due, String> {
    if cluster.rekey {
        return Ok(Due::Key(Box::new(new_key(state, cluster)?)));
    }
    if state.values_under_old_keys() == 0 {
        return Ok(Due::Nothing);
    }
    let mut values = state.next_to_reseal(*from, BATCH, BATCH_BYTES);
    if values.is_empty() {
        // The rest lies before where the last batch ended.
        values = state.next_to_reseal(None, BATCH, BATCH_BYTES);
    }
    *from = values.last().map(|(id, ..)| *id);
    let current = shell.keyring.key(cluster, cluster.epoch).map_err(|e| e.to_string())?;
    let items = values.into_iter().map(|(id, version, value)| {
        let old = shell.keyring.key(cluster, value.epoch).map_err(|e| e.to_string())?;
        let keys = (&*old, (cluster.epoch, &*current));
        reseal(&cluster.id, keys, (id, version, value))
    });
    Ok(Due::Values(items.collect::<Result<_, String>>()?))
}

fn reseal(
    cluster: &ClusterId,
    (old, (epoch, current)): (&Key32, (u32, &Key32)),
    (id, version, value): PlacedValue,
) -> Result<ResealItem, String> {
    let opened =
        open_value(old, cluster, (id, version), &value).map_err(|error| error.to_string())?;
    let sealed = seal_value(current, epoch, cluster, (id, version), opened);
    let sealed = sealed.map_err(|error| error.to_string())?;
    Ok(ResealItem { id, version, from: value.epoch, value: sealed })
}
