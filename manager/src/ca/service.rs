//! The Ca service: the root for newcomers, joining with a token, renewing.

use std::sync::Arc;

use keyhole_domain::NodeId;
use keyhole_proto::v1;
use keyhole_state::{Command, Rejected, TokenRole};
use keyhole_wire::tls::Role;
use keyhole_wire::tls::certificate::csr_public_key;
use keyhole_wire::token::JoinToken;
use tonic::{Request, Response, Status};

use super::{CaError, Holder, issue, token};
use crate::authz::{Action, Authorized, act};
use crate::shell::{Refused, Shell, entropy};
use crate::status::{internal, invalid};

type Reply<T> = Result<Response<T>, Status>;

/// The service; clones share the manager.
#[derive(Clone)]
pub struct CaApi(pub(crate) Arc<Shell>);

#[tonic::async_trait]
impl v1::ca_server::Ca for CaApi {
    async fn get_root_ca(&self, request: Request<v1::GetRootCaRequest>) -> Reply<v1::RootCa> {
        let by = self.0.authorize::<act::GetRootCa, _>(&request)?;
        self.0.view_cluster(&by, |_, cluster| {
            let certificate = cluster.ca_certificate.clone().into();
            Ok(Response::new(v1::RootCa { certificate }))
        })
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Reply<v1::Certificate> {
        let by = self.0.authorize::<act::Join, _>(&request)?;
        join(&self.0, &by, request.into_inner()).await.map(Response::new)
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Reply<v1::Certificate> {
        let by = self.0.authorize::<act::Renew, _>(&request)?;
        let holder = Holder { id: by.subject().id(), role: by.subject().role() };
        let csr = request.into_inner().csr;
        certificate(&self.0, &by, holder, &csr).map(Response::new)
    }
}

async fn join(
    shell: &Shell,
    by: &Authorized<act::Join>,
    request: v1::JoinRequest,
) -> Result<v1::Certificate, Status> {
    // What can be wrong in the request is found before the newcomer gets an entry.
    let hostname = hostname(&request.hostname)?;
    csr_public_key(&request.csr).map_err(invalid)?;
    admit(shell, by, request.token)?;
    let id = add_node(shell, by, hostname).await?;
    let role = Role::Node;
    certificate(shell, by, Holder { id, role }, &request.csr)
}

fn hostname(text: &str) -> Result<&str, Status> {
    let fits = !text.is_empty() && text.len() <= 253 && !text.contains(char::is_control);
    match fits && !text.contains(char::is_whitespace) {
        true => Ok(text),
        false => Err(invalid("the host name must have 1 to 253 characters without white space")),
    }
}

/// Whether the token is the current one. A wrong one is refused like any caller that may not.
fn admit(shell: &Shell, by: &Authorized<act::Join>, text: String) -> Result<(), Status> {
    let text = zeroize::Zeroizing::new(text);
    let refuse = |why: &str| {
        shell.audit.refused_actor(by.actor(), act::Join::NAME, why);
        Err(Status::permission_denied(why))
    };
    let token = match JoinToken::parse(&text) {
        Ok(token) => token,
        Err(error) => return refuse(&error.to_string()),
    };
    let role = shell.view_cluster(by, |_, cluster| {
        Ok((token.pins(&cluster.ca_certificate), token::role_of(cluster, &token)))
    })?;
    match role {
        (true, Some(TokenRole::Worker)) => Ok(()),
        (true, Some(TokenRole::Manager)) => Err(Status::unimplemented(
            "more managers than one are not in this version of keyhole; use the worker token",
        )),
        (true, None) => refuse(
            "the join token is not valid (any more); get the current one with 'keyhole cluster join-token worker'",
        ),
        (false, _) => refuse("the join token is of another cluster"),
    }
}

async fn add_node(
    shell: &Shell,
    by: &Authorized<act::Join>,
    hostname: &str,
) -> Result<NodeId, Status> {
    loop {
        let id = NodeId::from_entropy(entropy()?);
        let hostname = hostname.to_owned();
        match shell.propose(by, Command::JoinNode { id, hostname }).await {
            Ok(_) => return Ok(id),
            Err(Refused::Rejected(Rejected::IdTaken { .. })) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

fn certificate<A: Action>(
    shell: &Shell,
    by: &Authorized<A>,
    holder: Holder,
    csr: &[u8],
) -> Result<v1::Certificate, Status> {
    shell.view_cluster(by, |state, cluster| {
        let leaf =
            issue(cluster, shell.keyring.own(), holder, csr).map_err(|error| match error {
                CaError::Certificate(error) => invalid(error),
                error => internal("cannot issue a certificate", error),
            })?;
        let members = state.members().values();
        Ok(v1::Certificate {
            id: holder.id.to_string(),
            cluster: cluster.id.to_string(),
            chain: vec![leaf.into()],
            roots: vec![cluster.ca_certificate.clone().into()],
            managers: members.map(|member| member.address.clone()).collect(),
        })
    })
}
