//! Joining a cluster as a manager: once, with a token. What comes of it is an empty store with this member's keys, which
//! the leader then fills.
//!
//! Invariant: nothing is sent to a manager but over TLS that was verified against the root that the token pins.

use std::fs;
use std::path::Path;
use std::time::Duration;

use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_wire::seal::EdgeKeyPair;
use keyhole_wire::tls::certificate::key_and_csr;
use keyhole_wire::tls::{Identity, LiveTls, Role, connect, fetch_unpinned};
use keyhole_wire::token::JoinToken;
use zeroize::Zeroizing;

use super::{JoinManager, StartError};
use crate::ca::kept::Proof;
use crate::store::StoreIdentity;

/// How long the cluster may take to let a manager in: it has to agree on it.
const LET_IN: Duration = Duration::from_secs(20);

/// A member that is not in Raft yet.
pub(super) struct Joined {
    pub(super) identity: StoreIdentity,
    /// Its own HPKE key.
    pub(super) pair: EdgeKeyPair,
    pub(super) proof: Proof,
}

/// Asks the manager at `join.address` to be let in; `address` is where others reach this one.
pub(super) async fn join(
    join: &JoinManager,
    address: &str,
    hostname: &str,
) -> Result<Joined, StartError> {
    let failed = |why: String| StartError::Join { address: join.address.clone(), why };
    let odd = |e: &dyn std::fmt::Display| failed(e.to_string());
    let token = read_token(&join.token_file)?;
    let root = pinned_root(&join.address, &token).await.map_err(failed)?;
    let tls = LiveTls::new(None, vec![root.clone()]).map_err(|e| odd(&e))?;
    let (channel, _) = connect(&join.address, &tls).await.map_err(|e| odd(&e))?;
    let (key, csr) = key_and_csr().map_err(|e| odd(&e))?;
    let pair = EdgeKeyPair::generate().map_err(|e| odd(&e))?;
    let request = v1::JoinRequest {
        token: token.reveal().to_string(),
        csr: csr.into(),
        hostname: hostname.to_owned(),
        seal_key: pair.public().as_bytes().to_vec().into(),
        address: address.to_owned(),
    };
    let mut ca = CaClient::new(channel);
    let reply = tokio::time::timeout(LET_IN, ca.join(request)).await;
    let reply = reply.map_err(|_| failed(format!("no answer within {} s", LET_IN.as_secs())))?;
    let reply = reply.map_err(|status| failed(status.message().to_owned()))?.into_inner();
    if reply.member == 0 {
        return Err(failed(
            "the token is for nodes; get the managers' with 'keyhole cluster join-token manager'"
                .to_owned(),
        ));
    }
    let chain = reply.chain.iter().map(|der| der.to_vec()).collect();
    let identity = Identity::new(chain, key).map_err(|e| odd(&e))?;
    let found = identity.subject();
    if found.role != Role::Manager
        || found.id != reply.id
        || found.cluster.as_str() != reply.cluster
    {
        return Err(failed("the certificate that it issued is not this manager's".to_owned()));
    }
    Ok(Joined {
        identity: StoreIdentity { cluster: reply.cluster, manager: reply.id, member: reply.member },
        pair,
        proof: Proof { identity, roots: vec![root] },
    })
}

fn read_token(file: &Path) -> Result<JoinToken, StartError> {
    let text = fs::read_to_string(file).map(Zeroizing::new);
    let text = text.map_err(|e| StartError::token(file, &e))?;
    JoinToken::parse(&text).map_err(|e| StartError::token(file, &e))
}

/// The root CA certificate, believed only because the token has its digest.
async fn pinned_root(address: &str, token: &JoinToken) -> Result<Vec<u8>, String> {
    let channel = fetch_unpinned(address).await.map_err(|e| e.to_string())?;
    let root = CaClient::new(channel).get_root_ca(v1::GetRootCaRequest {}).await;
    let root = root.map_err(|status| status.message().to_owned())?.into_inner().certificate;
    match token.pins(&root) {
        true => Ok(root.to_vec()),
        false => Err("it is not of the cluster that the join token is for: its root CA has another digest; check the \
                      address, and print the token again ('keyhole cluster join-token'), which changes with the root CA"
            .to_owned()),
    }
}
