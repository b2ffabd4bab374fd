//! Join tokens: derived from the keyring, so that an operator can see one again although the state has only its hash.

use std::sync::Arc;

use hkdf::Hkdf;
use keyhole_secmem::Key32;
use keyhole_state::{Cluster, TokenRecord, TokenRole};
use keyhole_wire::token::JoinToken;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::CaError;
use crate::seal::{Keyring, KeyringError};

const INFO: &[u8] = b"keyhole join token v1";

fn word(role: TokenRole) -> &'static [u8] {
    match role {
        TokenRole::Worker => b"worker",
        TokenRole::Manager => b"manager",
    }
}

fn derive(root: &[u8], role: TokenRole, key: &Key32, salt: &[u8; 32]) -> JoinToken {
    let mut secret = Zeroizing::new([0; 16]);
    // The label has a fixed length and the role's words are no prefixes of each other.
    let derived = Hkdf::<Sha256>::new(Some(salt), key.expose())
        .expand_multi_info(&[INFO, b"|", word(role)], secret.as_mut());
    match derived {
        Ok(()) => JoinToken::from_secret(root, &mut secret),
        // HKDF-SHA256 gives up to 8160 bytes; 16 are asked for.
        Err(_) => unreachable!("16 bytes are within HKDF's reach"),
    }
}

/// A fresh token's record.
pub(crate) fn new_token(
    root: &[u8],
    role: TokenRole,
    (epoch, key): (u32, Arc<Key32>),
) -> Result<TokenRecord, CaError> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt)?;
    Ok(TokenRecord { hash: derive(root, role, &key, &salt).hash(), salt, epoch })
}

/// The token that holds now.
pub(crate) fn current_token(
    cluster: &Cluster,
    role: TokenRole,
    keyring: &Keyring,
) -> Result<JoinToken, KeyringError> {
    let record = match role {
        TokenRole::Worker => &cluster.worker_token,
        TokenRole::Manager => &cluster.manager_token,
    };
    let key = keyring.key(cluster, record.epoch)?;
    Ok(derive(&cluster.ca_certificate, role, &key, &record.salt))
}

/// Which token a newcomer showed; in constant time for each.
pub(super) fn role_of(cluster: &Cluster, token: &JoinToken) -> Option<TokenRole> {
    let worker = token.verify(&cluster.worker_token.hash);
    let manager = token.verify(&cluster.manager_token.hash);
    match (worker, manager) {
        (true, _) => Some(TokenRole::Worker),
        (false, true) => Some(TokenRole::Manager),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_record_and_differs_by_role_and_salt() {
        let key = Arc::new(Key32::generate().unwrap());
        let record = |role| new_token(b"root", role, (1, key.clone())).unwrap();
        let one = record(TokenRole::Worker);
        let again = derive(b"root", TokenRole::Worker, &key, &one.salt);
        assert!(again.verify(&one.hash) && again.pins(b"root"));
        assert_ne!(one.hash, record(TokenRole::Worker).hash);
        assert!(!derive(b"root", TokenRole::Manager, &key, &one.salt).verify(&one.hash));
    }
}
