//! Autolock, the unlock key, the stores' keys and shredding, as operators ask for them.

use keyhole_proto::v1;
use keyhole_state::{Command, Rejected, Renewal, ShredStanding, State};
use keyhole_wire::seal::{Aad, EdgePublicKey, Info, Protocol, seal_one};
use keyhole_wire::unlock_key::unlock_key_text;
use tonic::Status;

use super::cluster::describe;
use crate::authz::{Action, Authorized, act};
use crate::shell::{ATTEMPTS, Refused, Shell};
use crate::status::{internal, invalid};
use crate::store_keys::{new_store_keys, open_unlock_key};

type Reply<T> = Result<T, Status>;

/// Turns autolock on or off, if it is not so already.
pub(super) async fn set_autolock(
    shell: &Shell,
    by: &Authorized<act::UpdateCluster>,
    on: bool,
) -> Reply<()> {
    let is = shell.view_cluster(by, |_, cluster| Ok(cluster.store_keys.unlock.is_some()))?;
    match (is, on) {
        (false, true) => renew(shell, by, Renewal::Autolock).await,
        (true, false) => renew(shell, by, Renewal::NoAutolock).await,
        (true, true) | (false, false) => Ok(()),
    }
}

pub(super) async fn rotate_store_keys(
    shell: &Shell,
    by: &Authorized<act::RotateStoreKeys>,
    _: v1::RotateStoreKeysRequest,
) -> Reply<v1::ClusterInfo> {
    renew(shell, by, Renewal::Stores).await?;
    describe(shell, by).await
}

/// The value key is made by the leader, then the stores are written anew.
pub(super) async fn shred(
    shell: &Shell,
    by: &Authorized<act::Shred>,
    _: v1::ShredRequest,
) -> Reply<v1::ClusterInfo> {
    shell.propose(by, Command::Shred).await?;
    describe(shell, by).await
}

/// The unlock key, or a new one, sealed for the process that asks; then its word that it has it. Between the two the
/// answer may be lost, and stores are not to be under a key that is in nobody's hands.
pub(super) async fn unlock_key(
    shell: &Shell,
    by: &Authorized<act::UnlockKey>,
    request: v1::UnlockKeyRequest,
) -> Reply<v1::UnlockKeyReply> {
    let v1::UnlockKeyRequest { rotate, reply_key, seen } = request;
    if seen != 0 {
        shell.propose(by, Command::NoteUnlockKey { number: seen }).await?;
        return Ok(v1::UnlockKeyReply { key: None, number: seen });
    }
    let to = EdgePublicKey::try_from(reply_key.as_ref()).map_err(invalid)?;
    if rotate {
        renew(shell, by, Renewal::UnlockKey).await?;
    }
    shell.propose(by, Command::ShowUnlockKey).await?;
    let failed = |error: &dyn std::fmt::Display| internal("cannot open the unlock key", error);
    let (key, number) = shell.view_cluster(by, |_, cluster| {
        let key = open_unlock_key(shell, cluster).map_err(|error| failed(&error))?;
        Ok((key, cluster.store_keys.number))
    })?;
    let text = unlock_key_text(&key).map_err(|error| failed(&error))?;
    let own = &shell.own;
    let info = Info::new(Protocol::ManagerToCli, &own.cluster, own.manager.as_str(), "operator");
    let sealed = seal_one(&to, &info, &Aad::new().text("unlock key"), &text);
    let sealed = sealed.map_err(|error| failed(&error))?;
    let key = v1::SealedInput { enc: sealed.enc.into(), ciphertext: sealed.ciphertext.into() };
    Ok(v1::UnlockKeyReply { key: Some(key), number })
}

async fn renew<A: Action>(shell: &Shell, by: &Authorized<A>, why: Renewal) -> Reply<()> {
    for attempt in 1.. {
        let new = shell.view_cluster(by, |state, cluster| {
            let new = new_store_keys(state, cluster, why);
            new.map_err(|error| internal("cannot ask for new keys", error))
        })?;
        match shell.propose(by, Command::RenewStoreKeys(Box::new(new))).await {
            Ok(_) => break,
            Err(Refused::Rejected(Rejected::StoreKeysRaced { .. })) if attempt < ATTEMPTS => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Ok(())
}

/// How far the last shredding is.
pub(super) fn shred_info(state: &State) -> Option<v1::ShredInfo> {
    let shred = state.cluster()?.store_keys.shred?;
    let (values, members) = match state.shredding()? {
        ShredStanding::Values | ShredStanding::Ready => (true, Vec::new()),
        ShredStanding::Stores(members) => (false, members.into_iter().collect()),
        ShredStanding::Done => (false, Vec::new()),
    };
    Some(v1::ShredInfo { at: shred.at.0, done: !values && members.is_empty(), values, members })
}
