//! Renewing the certificate between 50 and 80 % of its life, and swapping it without a restart.

use std::time::Duration;

use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_wire::tls::certificate::{BACKDATE, key_and_csr};
use keyhole_wire::tls::{PeerIdentity, connect};
use tokio::sync::watch;

use super::{IdentityStore, Issued, JoinError, Membership, failed, now};

/// The longest sleep: the clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Within this time, or a tenth of a certificate's life, all nodes renew when the root CA is another one.
const SPREAD: Duration = Duration::from_secs(60);
/// The pause after a failure, as a part of what is left, within these bounds.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Keeps a node's certificate fresh for as long as it runs.
#[derive(Debug)]
pub struct Renewal {
    membership: Membership,
    store: IdentityStore,
    /// Addresses of managers as the agent knows them.
    managers: watch::Receiver<Vec<String>>,
    /// The id of the root CA's key, as the agent knows it; empty while it does not.
    ca: watch::Receiver<Vec<u8>>,
}

impl Renewal {
    /// For the membership as it was loaded.
    pub fn new(
        membership: Membership,
        store: IdentityStore,
        (managers, ca): (watch::Receiver<Vec<String>>, watch::Receiver<Vec<u8>>),
    ) -> Self {
        Self { membership, store, managers, ca }
    }

    /// Never returns.
    pub async fn run(mut self) {
        let mut due = None;
        let mut succeeded = false;
        loop {
            let Some(subject) = self.membership.tls.identity().map(|id| id.subject().clone())
            else {
                return;
            };
            let stale = is_of_another(&subject, &self.ca.borrow_and_update());
            if stale && !succeeded {
                // Not all nodes at once.
                due =
                    Some(now() + SPREAD.min(life(&subject) / 10).mul_f64(random_part()).as_secs());
            }
            succeeded = stale;
            let at = *due.get_or_insert_with(|| renew_at(&subject, random_part()));
            let left = Duration::from_secs(at.saturating_sub(now()));
            if !left.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                    Ok(()) = self.ca.changed() => {}
                }
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    due = None;
                    succeeded = false;
                    tokio::time::sleep(RETRY.0).await;
                }
                Err(error) => {
                    let pause = retry_after(&subject, now());
                    tracing::warn!(%error, "the node's certificate is not renewed yet");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), JoinError> {
        let managers = self.managers.borrow().clone();
        let mut result = Err(JoinError::NotJoined { identity: self.store.path().to_owned() });
        for addr in &managers {
            result = renew_once(addr, &self.membership, &self.store).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// Renews by the manager at `addr`, stores the new identity and uses it from now on.
pub async fn renew_once(
    addr: &str,
    membership: &Membership,
    store: &IdentityStore,
) -> Result<(), JoinError> {
    let (channel, _) = connect(addr, &membership.tls).await?;
    let (key, csr) = key_and_csr()?;
    let reply = CaClient::new(channel)
        .renew(v1::RenewRequest { csr: csr.into() })
        .await
        .map_err(|status| failed(addr, &status))?
        .into_inner();
    let issued = Issued::new(addr, reply, key, membership.tls.roots())?;
    let found = issued.identity.subject().id.clone();
    if found != membership.node.as_str() {
        return Err(JoinError::NotOurs { addr: addr.to_owned(), found: format!("node {found}") });
    }
    let managers = if issued.managers.is_empty() { &membership.managers } else { &issued.managers };
    store.save(&issued.identity, &issued.roots, managers)?;
    let not_after = issued.identity.subject().not_after;
    membership.tls.set_roots(issued.roots)?;
    membership.tls.set_identity(issued.identity)?;
    tracing::info!(not_after, "certificate renewed");
    Ok(())
}

/// Whether a certificate is of another root CA than the managers' current one.
fn is_of_another(subject: &PeerIdentity, ca: &[u8]) -> bool {
    !ca.is_empty() && subject.authority != ca
}

/// How long a certificate lives from when it was issued.
fn life(subject: &PeerIdentity) -> Duration {
    let whole = subject.not_after.saturating_sub(subject.not_before);
    // It is backdated for clocks that are behind; a short life must not be over before it began.
    Duration::from_secs(whole.saturating_sub(BACKDATE.as_secs()))
}

/// When to renew, in Unix seconds: after 50 to 80 % of the life that began when it was issued.
fn renew_at(subject: &PeerIdentity, part: f64) -> u64 {
    let life = life(subject);
    let issued = subject.not_after.saturating_sub(life.as_secs());
    issued + life.mul_f64(0.5 + 0.3 * part.clamp(0.0, 1.0)).as_secs()
}

fn retry_after(subject: &PeerIdentity, now: u64) -> Duration {
    let left = Duration::from_secs(subject.not_after.saturating_sub(now));
    (left / 10).clamp(RETRY.0, RETRY.1)
}

fn random_part() -> f64 {
    let mut bytes = [0; 2];
    // Without randomness: in the middle.
    let number = getrandom::fill(&mut bytes).map_or(u16::MAX / 2, |()| u16::from_ne_bytes(bytes));
    f64::from(number) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use keyhole_domain::ClusterId;
    use keyhole_wire::tls::Role;

    use super::*;

    fn subject(not_before: u64, not_after: u64) -> PeerIdentity {
        PeerIdentity {
            public_key: [0; 32],
            cluster: ClusterId::from_entropy([1; 16]),
            role: Role::Node,
            id: String::new(),
            serial: String::new(),
            not_before,
            not_after,
            authority: Vec::new(),
            expired: false,
        }
    }

    #[test]
    fn renewal_comes_between_half_and_four_fifths_of_the_life_after_issue() {
        let day = 86_400;
        let issued = 1_000_000;
        let leaf = subject(issued - 3600, issued + day);
        assert_eq!(renew_at(&leaf, 0.0), issued + day / 2);
        assert_eq!(renew_at(&leaf, 1.0), issued + day * 8 / 10);
        for part in [0.1, 0.5, 0.9, random_part()] {
            let at = renew_at(&leaf, part);
            assert!((issued + day / 2..=issued + day * 8 / 10).contains(&at));
        }
        let short = subject(issued - 3600, issued + 10);
        assert_eq!(renew_at(&short, 0.0), issued + 5, "a life of 10 s, as tests use");
    }

    #[test]
    fn a_failed_renewal_is_tried_more_often_near_the_end() {
        let leaf = subject(0, 100_000);
        assert_eq!(retry_after(&leaf, 0), RETRY.1);
        assert_eq!(retry_after(&leaf, 99_900), Duration::from_secs(10));
        assert_eq!(retry_after(&leaf, 100_000), RETRY.0);
        assert_eq!(retry_after(&leaf, 200_000), RETRY.0, "expired: still trying");
    }
}
