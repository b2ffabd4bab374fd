//! This manager's own leaf: issued by itself from its store, without a quorum, and renewed while it runs.

use std::sync::Arc;
use std::time::Duration;

use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_state::Cluster;
use keyhole_wire::tls::certificate::key_and_csr;
use keyhole_wire::tls::{Identity, Role, connect};

use super::succession::until_succeeded;
use super::{CaError, Holder, issue};
use crate::authz::{Authorized, OwnWork};
use crate::clock;
use crate::seal::MemberKey;
use crate::shell::{OwnIdentity, Shell};
use crate::status::rejected;

/// After a failed renewal.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two renewals, also where the CA itself has ended and no leaf can last.
const PAUSE: Duration = Duration::from_secs(1);

/// A fresh key and leaf for this manager.
pub(crate) fn own_identity(
    cluster: &Cluster,
    own: &MemberKey,
    who: &OwnIdentity,
) -> Result<Identity, CaError> {
    let (key, csr) = key_and_csr()?;
    let holder = Holder { id: who.manager, role: Role::Manager };
    let leaf = issue(cluster, own, holder, &csr)?;
    let chain = std::iter::once(leaf).chain(cluster.crosses(clock::now())).collect();
    Ok(Identity::new(chain, key)?)
}

/// When a leaf issued at `issued` is renewed: at 50 to 80 % of its life, by `random` (0 to 255). Unix milliseconds.
pub(crate) fn renewal_at(issued_millis: u64, end_millis: u64, random: u8) -> u64 {
    let life = end_millis.saturating_sub(issued_millis);
    issued_millis + life / 2 + life * 3 / 10 * u64::from(random) / 255
}

/// Renews this manager's leaf for as long as it runs, at once if the root CA is another one; live connections keep theirs.
pub(crate) async fn keep_renewed(shell: Arc<Shell>, by: Authorized<OwnWork>) {
    loop {
        let life =
            shell.tls.identity().map(|own| own.subject().not_before..own.subject().not_after);
        let life = life.unwrap_or_default();
        let (now, mut random) = (clock::now().0 / 1_000_000, [0]);
        // Without randomness all managers renew at the same moment, which harms nothing.
        let _ = getrandom::fill(&mut random);
        let [random] = random;
        let at = renewal_at(now, life.end.saturating_mul(1000), random);
        tokio::select! {
            () = sleep_until(at, life.start.saturating_mul(1000)) => {}
            () = until_succeeded(&shell, &by) => {}
        }
        while let Err(error) = renew(&shell, &by).await {
            tracing::error!(%error, "cannot renew this manager's certificate; trying again");
            tokio::time::sleep(AGAIN).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sleeps by the wall clock, which goes on while the machine is suspended, and which may be set: also to before the leaf
/// holds.
async fn sleep_until(millis: u64, not_before: u64) {
    const STEP: u64 = 10_000;
    loop {
        let now = clock::now().0 / 1_000_000;
        let left = millis.saturating_sub(now);
        if left == 0 || now < not_before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left.min(STEP))).await;
    }
}

/// From the keys; a manager that holds none asks one that does.
async fn renew(shell: &Shell, by: &Authorized<OwnWork>) -> Result<(), String> {
    let identity = match shell.without_keys() {
        None => issue_own(shell, by)?,
        Some(_) => ask_for_own(shell).await?,
    };
    let end = identity.subject().not_after;
    shell.keep_certificate(by, &identity).await?;
    shell.tls.set_identity(identity).map_err(|e| e.to_string())?;
    tracing::info!(not_after = end, "renewed this manager's certificate");
    Ok(())
}

async fn ask_for_own(shell: &Shell) -> Result<Identity, String> {
    let mut failed = "no other manager is known".to_owned();
    for (_, peer) in shell.other_managers() {
        match ask_one(shell, &peer.address).await {
            Ok(identity) => return Ok(identity),
            Err(why) => failed = format!("{}: {why}", peer.address),
        }
    }
    Err(failed)
}

async fn ask_one(shell: &Shell, address: &str) -> Result<Identity, String> {
    let (channel, _) = connect(address, &shell.tls).await.map_err(|e| e.to_string())?;
    let (key, csr) = key_and_csr().map_err(|e| e.to_string())?;
    let request = v1::RenewRequest { csr: csr.into() };
    let reply = CaClient::new(channel).renew(request).await;
    let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
    let chain = reply.chain.iter().map(|der| der.to_vec()).collect();
    let identity = Identity::new(chain, key).map_err(|e| e.to_string())?;
    let ours = identity.subject().id == shell.own.manager.as_str()
        && identity.subject().role == Role::Manager;
    if ours { Ok(identity) } else { Err("it issued another one's certificate".to_owned()) }
}

fn issue_own(shell: &Shell, by: &Authorized<OwnWork>) -> Result<Identity, String> {
    shell.view(by, |state| {
        let cluster = state.cluster().ok_or(keyhole_state::Rejected::NotInitialised);
        let cluster = cluster.map_err(|e| rejected(&e).message().to_owned())?;
        let own = own_identity(cluster, shell.keyring.own(), &shell.own);
        own.map_err(|e| e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_renewed_between_half_and_four_fifths_of_their_life() {
        assert_eq!(renewal_at(1000, 11_000, 0), 6000);
        assert_eq!(renewal_at(1000, 11_000, 255), 9000);
        assert_eq!(renewal_at(1000, 500, 255), 1000);
    }
}
