//! The Ca service: the root for newcomers, joining with a token, renewing.

use std::sync::Arc;

use keyhole_domain::NodeId;
use keyhole_proto::v1;
use keyhole_state::{Command, Member, Rejected, TokenRole};
use keyhole_wire::tls::Role;
use keyhole_wire::tls::certificate::csr_public_key;
use keyhole_wire::token::JoinToken;
use tonic::{Request, Response, Status};

use super::succession::succeeded;
use super::{CaError, Holder, issue, token};
use crate::authz::{Action, Authorized, act};
use crate::seal::seal_keys_for;
use crate::shell::{ATTEMPTS, Refused, Shell, entropy};
use crate::status::{internal, invalid};

type Reply<T> = Result<Response<T>, Status>;

/// The service; clones share the manager.
#[derive(Clone)]
pub struct CaApi(pub(crate) Arc<Shell>);

#[tonic::async_trait]
impl v1::ca_server::Ca for CaApi {
    async fn get_root_ca(&self, request: Request<v1::GetRootCaRequest>) -> Reply<v1::RootCa> {
        let by = self.0.authorize::<act::GetRootCa, _>(&request)?;
        // Who learns of a new CA here trusts it alone, and comes back at once.
        succeeded(&self.0, &by).await?;
        self.0.view_cluster(&by, |_, cluster| {
            let certificate = cluster.ca_certificate.clone().into();
            Ok(Response::new(v1::RootCa { certificate }))
        })
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Reply<v1::Certificate> {
        let by = self.0.authorize_latest::<act::Join, _>(&request).await?;
        join(&self.0, &by, request.into_inner()).await.map(Response::new)
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Reply<v1::Certificate> {
        let by = self.0.authorize_or_catch_up::<act::Renew, _>(&request).await?;
        let holder = Holder { id: by.subject().id(), role: by.subject().role() };
        if self.0.view(&by, |state| state.issues_its_own(holder.id)) {
            let why = "a manager that votes issues its own certificates";
            self.0.audit.refused_actor(by.actor(), act::Renew::NAME, why);
            return Err(Status::permission_denied(why));
        }
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
    match admit(shell, by, request.token)? {
        TokenRole::Worker => {
            let id = add_node(shell, by, hostname).await?;
            certificate(shell, by, Holder { id, role: Role::Node }, &request.csr)
        }
        TokenRole::Manager => {
            let seal_key = <[u8; 32]>::try_from(request.seal_key.as_ref())
                .map_err(|_| invalid("a manager joins with its X25519 key of 32 bytes"))?;
            let member = add_member(shell, by, (hostname, &request.address), seal_key).await?;
            let holder = Holder { id: member.node, role: Role::Manager };
            let issued = certificate(shell, by, holder, &request.csr)?;
            Ok(v1::Certificate { member: member.id, ..issued })
        }
    }
}

/// Gives a newcomer the next number and seals the cluster's keys for it.
async fn add_member(
    shell: &Shell,
    by: &Authorized<act::Join>,
    (hostname, address): (&str, &str),
    seal_key: [u8; 32],
) -> Result<Member, Status> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0)
        || address.len() > 300
        || address.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Err(invalid("the address of a manager is HOST:PORT; set it with --advertise"));
    }
    for _ in 0..ATTEMPTS {
        let node = NodeId::from_entropy(entropy()?);
        let (member, keys) = shell.view_cluster(by, |_, cluster| {
            let member = Member {
                id: cluster.next_member,
                node,
                hostname: hostname.to_owned(),
                address: address.to_owned(),
                seal_key,
                voter: true,
            };
            let keys = seal_keys_for(cluster, shell.keyring.own(), &member);
            let keys = keys.map_err(|e| internal("cannot seal the cluster's keys", e))?;
            Ok((member, keys))
        })?;
        match shell.propose(by, Command::AddMember { member: member.clone(), keys }).await {
            Ok(_) => return Ok(member),
            // Somebody else joined, or a key changed meanwhile.
            Err(Refused::Rejected(Rejected::IdTaken { .. } | Rejected::KeysRaced { .. })) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Status::aborted("too many managers join at the same time; try again"))
}

fn hostname(text: &str) -> Result<&str, Status> {
    let fits = !text.is_empty() && text.len() <= 253 && !text.contains(char::is_control);
    match fits && !text.contains(char::is_whitespace) {
        true => Ok(text),
        false => Err(invalid("the host name must have 1 to 253 characters without white space")),
    }
}

/// Whether the token is the current one. A wrong one is refused like any caller that may not.
fn admit(shell: &Shell, by: &Authorized<act::Join>, text: String) -> Result<TokenRole, Status> {
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
        (true, Some(role)) => Ok(role),
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
            member: 0,
        })
    })
}
