//! Operators: certificates for them, and who they are. Invariant: a certificate is handed out when the state has its
//! operator, and a request contributes only its public key.

use keyhole_domain::{NodeId, OperatorName};
use keyhole_proto::v1;
use keyhole_state::{Command, Operator, Rejected, Scope};
use keyhole_wire::tls::Role;
use keyhole_wire::tls::certificate::{csr_public_key, digest_of};
use tonic::Status;

use super::Asked;
use super::managers::addresses;
use crate::authz::{Authorized, act};
use crate::ca::{self, Holder, issue_until, number_of, succeeded};
use crate::clock;
use crate::codec::{operator_role_in, operator_role_out};
use crate::shell::{Shell, entropy};
use crate::status::{internal, invalid, rejected};

type Reply<T> = Result<T, Status>;

pub(super) async fn create(
    shell: &Shell,
    by: &Authorized<act::CreateOperator>,
    request: v1::CreateOperatorRequest,
) -> Reply<v1::OperatorCertificate> {
    let name: OperatorName = request.name.parse().map_err(invalid)?;
    let role = operator_role_in(request.role)
        .ok_or_else(|| invalid("an operator is an admin, a writer or an auditor"))?;
    let scope = Scope::new(&request.secrets, &request.services).map_err(invalid)?;
    ca::check_lifetime(request.seconds).map_err(invalid)?;
    let public_key = csr_public_key(&request.csr).map_err(invalid)?;
    let operator = Operator {
        id: NodeId::from_entropy(entropy()?),
        name,
        role,
        scope,
        public_key: digest_of(&public_key),
        created_at: clock::now(),
        seconds: request.seconds,
        not_after: clock::unix_seconds().saturating_add(request.seconds),
    };
    let id = operator.id;
    shell.propose(by, Command::CreateOperator(Box::new(operator))).await?;
    certificate(shell, by, id, &request.csr)
}

pub(super) async fn renew(
    shell: &Shell,
    by: &Authorized<act::RenewOperator>,
    request: v1::RenewOperatorRequest,
) -> Reply<v1::OperatorCertificate> {
    let id = by.subject().id().ok_or_else(|| {
        Status::failed_precondition(
            "on a manager's own socket there is no operator's certificate to renew; use a context",
        )
    })?;
    let operator = shell.view(by, |state| state.operators().get(&id).cloned());
    let operator = operator.ok_or_else(|| rejected(&Rejected::UnknownOperator { id }))?;
    let public_key = csr_public_key(&request.csr).map_err(invalid)?;
    if digest_of(&public_key) != operator.public_key {
        return Err(invalid("the request is for another key than the operator's"));
    }
    let not_after = clock::unix_seconds().saturating_add(operator.seconds);
    let shown =
        shell.view_cluster(by, |_, cluster| Ok(number_of(cluster, by.subject().authority())))?;
    shell.propose(by, Command::RenewOperator { id, not_after, ca_number: shown }).await?;
    // He trusts the current CA alone then, and may come back at once.
    succeeded(shell, by).await?;
    certificate(shell, by, id, &request.csr)
}

/// With all that somebody needs to find the cluster and to trust it. Made after the command, so that a CA that comes
/// after this one finds the operator and waits for him.
fn certificate<A: Asked>(
    shell: &Shell,
    by: &Authorized<A>,
    id: NodeId,
    csr: &[u8],
) -> Reply<v1::OperatorCertificate> {
    let holder = Holder { id, role: Role::Operator };
    shell.view_cluster(by, |state, cluster| {
        let operator = state.operators().get(&id);
        let operator = operator.ok_or_else(|| rejected(&Rejected::UnknownOperator { id }))?;
        let leaf = issue_until(cluster, shell.keyring.own(), holder, csr, operator.not_after);
        let leaf = leaf.map_err(|error| internal("cannot issue a certificate", error))?;
        Ok(v1::OperatorCertificate {
            operator: Some(info(operator)),
            cluster: cluster.id.to_string(),
            chain: vec![leaf.into()],
            roots: vec![cluster.ca_certificate.clone().into()],
            managers: addresses(state),
        })
    })
}

pub(super) async fn list(
    shell: &Shell,
    by: &Authorized<act::ListOperators>,
    _: v1::ListRequest,
) -> Reply<v1::OperatorList> {
    let operators = shell.view(by, |state| state.operators().values().map(info).collect());
    Ok(v1::OperatorList { operators })
}

pub(super) async fn inspect(
    shell: &Shell,
    by: &Authorized<act::InspectOperator>,
    request: v1::ObjectRequest,
) -> Reply<v1::OperatorInfo> {
    let found = shell.view(by, |state| state.find_operator(&request.object).map(info));
    found.map_err(|e| rejected(&e))
}

pub(super) async fn remove(
    shell: &Shell,
    by: &Authorized<act::RemoveOperator>,
    request: v1::ObjectRequest,
) -> Reply<v1::Removed> {
    let found = shell.view(by, |state| state.find_operator(&request.object).map(|one| one.id));
    let id = found.map_err(|e| rejected(&e))?;
    shell.propose(by, Command::RemoveOperator { id }).await?;
    Ok(v1::Removed { id: id.to_string() })
}

fn info(operator: &Operator) -> v1::OperatorInfo {
    v1::OperatorInfo {
        id: operator.id.to_string(),
        name: operator.name.to_string(),
        role: operator_role_out(operator.role).into(),
        secrets: operator.scope.secrets().iter().map(ToString::to_string).collect(),
        services: operator.scope.services().iter().map(ToString::to_string).collect(),
        created_at: operator.created_at.0,
        expires_at: operator.not_after.saturating_mul(1_000_000_000),
        seconds: operator.seconds,
    }
}
