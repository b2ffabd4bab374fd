//! Operators: people and tools who ask from elsewhere than a manager's own socket, each with a certificate.
//!
//! Invariant: the certificate proves the id and nothing else; what the id may do is here, and is looked at each time.

use std::fmt;

use keyhole_domain::{NodeId, OperatorName, Timestamp};

use crate::{Cluster, Outcome, Rejected, RowKey, Scope, State, apply::Change};

/// What an operator is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Changes secrets and services.
    Writer,
    /// Looks, and changes nothing.
    Auditor,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Writer, Self::Auditor];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Writer => "writer",
            Self::Auditor => "auditor",
        })
    }
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The id in the certificate; never given again.
    pub id: NodeId,
    /// The name; one that is removed may be given again.
    pub name: OperatorName,
    /// What for.
    pub role: Role,
    /// On which names.
    pub scope: Scope,
    /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo, DER).
    pub public_key: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// How long a certificate lives, seconds.
    pub seconds: u64,
    /// The last Unix second of the newest certificate.
    pub not_after: u64,
}

impl State {
    /// The operator that `text` means: by id, or by name.
    pub fn find_operator(&self, text: &str) -> Result<&Operator, Rejected> {
        let known =
            |operator: &&Operator| operator.id.as_str() == text || operator.name.as_str() == text;
        let not_found =
            || Rejected::NotFound { kind: "operator", name: text.chars().take(80).collect() };
        self.operators.values().find(known).ok_or_else(not_found)
    }

    pub(crate) fn create_operator(&mut self, operator: &Operator) -> Result<Change, Rejected> {
        if self.operators.values().any(|known| known.name == operator.name) {
            return Err(Rejected::Exists { kind: "operator", name: operator.name.to_string() });
        }
        let id = operator.id;
        let taken = self.operators.contains_key(&id) || self.nodes.contains_key(&id);
        if taken || self.members.values().any(|member| member.node == id) {
            return Err(Rejected::IdTaken { kind: "operator", id: id.to_string() });
        }
        self.operators.insert(id, operator.clone());
        Ok(Change::rows([RowKey::Operator(id)], Outcome::Done))
    }

    pub(crate) fn renew_operator(
        &mut self,
        id: NodeId,
        not_after: u64,
        shown: u32,
    ) -> Result<Change, Rejected> {
        let operator = self.operators.get_mut(&id).ok_or_else(|| not_found(id))?;
        operator.not_after = operator.not_after.max(not_after);
        // The answer with the new certificate may be lost; one that he shows he has.
        match self.cluster().is_some_and(|cluster| cluster.ca_number == shown) {
            true => Ok(self.operator_rows(id)),
            false => Ok(Change::rows([RowKey::Operator(id)], Outcome::Done)),
        }
    }

    pub(crate) fn remove_operator(&mut self, id: NodeId) -> Result<Change, Rejected> {
        match self.operators.remove(&id) {
            Some(_) => Ok(self.operator_rows(id)),
            None => Err(not_found(id)),
        }
    }
}

impl State {
    /// What changes when an operator has a certificate of this root CA, or needs none any more.
    fn operator_rows(&mut self, id: NodeId) -> Change {
        let waits = |cluster: &mut Cluster| cluster.uncertified_operators.remove(&id);
        let waited = self.cluster.as_mut().is_some_and(waits);
        let rows = waited.then_some(RowKey::Cluster).into_iter().chain([RowKey::Operator(id)]);
        Change::rows(rows, Outcome::Done)
    }
}

fn not_found(id: NodeId) -> Rejected {
    Rejected::NotFound { kind: "operator", name: id.to_string() }
}
