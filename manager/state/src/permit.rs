//! What an operator may do: by role, and by the names in the scope, before and after the change.
//!
//! Invariant: default deny. What is not an operator's act is never allowed to one, and a command is judged by the very
//! state that it changes, on each replica: nobody can be faster than the judgement.

use keyhole_domain::{NodeId, SecretId, ServiceId};

use crate::{Actor, Command, Envelope, Operator, Rejected, Renewal, Role, Service, State};

/// What an act is about; it decides who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Looks at secrets, services and nodes; a scope narrows what is seen.
    Look,
    /// Looks at the cluster as a whole.
    Survey,
    /// Changes secrets and services; a scope narrows which.
    Change,
    /// Changes the cluster, its machines and its operators, or takes keys and tokens out of it.
    Rule,
    /// Is about the caller's own certificate.
    Own,
}

macro_rules! acts {
    ($($reach:ident: $($act:ident)+;)*) => {
        /// Whatever an operator can ask for, by the name of its request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is the request of that name in operator.proto")]
        pub enum Act {
            $($($act,)+)*
        }

        impl Act {
            fn reach(self) -> Reach {
                match self {
                    $($(Self::$act)|+ => Reach::$reach,)*
                }
            }
        }
    };
}

acts! {
    Look:
        ListSecrets InspectSecret SecretStatus WatchDelivery
        ListServices InspectService ServiceTasks
        ListNodes InspectNode NodeTasks
        FindManagers;
    Survey:
        ClusterStatus ListManagers AuditHeads ListOperators InspectOperator;
    Change:
        GetSealKey CreateSecret RotateSecrets RollbackSecret UpdateSecret RemoveSecret
        CreateService UpdateService RollbackService RemoveService;
    Rule:
        UpdateNode RemoveNode
        PromoteManager DemoteManager RemoveManager TransferLeader
        UpdateCluster RotateKeys RotateCa JoinToken
        CreateOperator RemoveOperator
        RotateStoreKeys Shred UnlockKey Unlock
        Backup;
    Own:
        RenewOperator;
}

impl Act {
    /// Whether an operator of that role may, if the names are in the scope. What concerns all of the cluster is not for
    /// who has a scope (`limited`), whatever the role.
    pub fn is_allowed(self, role: Role, limited: bool) -> bool {
        match (self.reach(), role) {
            (Reach::Look | Reach::Own, _) => true,
            (Reach::Change, Role::Admin | Role::Writer) => true,
            (Reach::Survey, Role::Admin | Role::Auditor) | (Reach::Rule, Role::Admin) => !limited,
            (Reach::Change | Reach::Survey | Reach::Rule, _) => false,
        }
    }
}

/// The act that a command comes of; nothing, if none does.
fn act(command: &Command) -> Option<Act> {
    Some(match command {
        Command::CreateSecret { .. } => Act::CreateSecret,
        Command::SetSecretLabels { .. } => Act::UpdateSecret,
        Command::RotateSecrets { .. } => Act::RotateSecrets,
        Command::RollbackSecret { .. } => Act::RollbackSecret,
        Command::RemoveSecret { .. } => Act::RemoveSecret,
        Command::CreateService { .. } => Act::CreateService,
        Command::UpdateService { .. } => Act::UpdateService,
        Command::RollbackService { .. } => Act::RollbackService,
        Command::RemoveService { .. } => Act::RemoveService,
        Command::ChangeNode { .. } => Act::UpdateNode,
        Command::RemoveNode { .. } => Act::RemoveNode,
        Command::PromoteMember { .. } => Act::PromoteManager,
        Command::DemoteMember { .. } => Act::DemoteManager,
        Command::RemoveMember { .. } => Act::RemoveManager,
        Command::RotateKeyring(_) => Act::RotateKeys,
        Command::RotateCa(_) => Act::RotateCa,
        Command::TransferLeader { .. } => Act::TransferLeader,
        Command::ShowToken { .. } | Command::RotateToken { .. } => Act::JoinToken,
        Command::RenewStoreKeys(new) => match new.why {
            Renewal::Autolock | Renewal::NoAutolock => Act::UpdateCluster,
            Renewal::UnlockKey => Act::UnlockKey,
            Renewal::Stores => Act::RotateStoreKeys,
            // The leader's own step of shredding.
            Renewal::Shred => return None,
        },
        Command::ShowUnlockKey | Command::NoteUnlockKey { .. } => Act::UnlockKey,
        Command::Shred => Act::Shred,
        // An address is a manager's own to change.
        Command::ChangeCluster(change) if change.address.is_none() => Act::UpdateCluster,
        Command::ForgetFormerCas => Act::UpdateCluster,
        Command::NoteBackup { .. } => Act::Backup,
        Command::CreateOperator(_) => Act::CreateOperator,
        Command::RenewOperator { .. } => Act::RenewOperator,
        Command::RemoveOperator { .. } => Act::RemoveOperator,
        Command::Init(_)
        | Command::ClaimTask { .. }
        | Command::EndTask { .. }
        | Command::SyncTasks { .. }
        | Command::JoinNode { .. }
        | Command::AddMember { .. }
        | Command::Reseal { .. }
        | Command::ChangeCluster(_)
        | Command::Restore(_)
        | Command::ForceNewCluster { .. }
        | Command::NoteCertificate { .. }
        | Command::NoteStore { .. }
        | Command::NoteAuditHead { .. } => return None,
    })
}

impl State {
    /// The operator of that id, if its role and scope allow `act` on some names.
    ///
    /// # Errors
    /// [`Rejected::UnknownOperator`], [`Rejected::NotYourRole`].
    pub fn admit_operator(&self, id: NodeId, act: Act) -> Result<&Operator, Rejected> {
        let operator = self.operators.get(&id).ok_or(Rejected::UnknownOperator { id })?;
        let limited = operator.scope.is_limited();
        match act.is_allowed(operator.role, limited) {
            true => Ok(operator),
            false => Err(Rejected::NotYourRole {
                name: operator.name.to_string(),
                role: operator.role,
                limited,
            }),
        }
    }

    /// Whether who asks for a command may: an operator's role and scope, on every name that it touches. Other actors are
    /// judged where they come in.
    ///
    /// # Errors
    /// As [`Self::admit_operator`], and [`Rejected::OutOfScope`].
    pub fn permit(&self, envelope: &Envelope) -> Result<(), Rejected> {
        let Actor::Operator(id) = &envelope.actor else {
            return Ok(());
        };
        let Some(act) = act(&envelope.command) else {
            return Err(Rejected::NotAnOperators);
        };
        let by = Judged { state: self, operator: self.admit_operator(*id, act)? };
        match &envelope.command {
            Command::CreateSecret { name, .. } => {
                let known = by.operator.scope.has_secret(name);
                by.within(known, || format!("secret {name}"))
            }
            Command::SetSecretLabels { id, .. }
            | Command::RollbackSecret { id, .. }
            | Command::RemoveSecret { id } => by.secret(*id),
            Command::RotateSecrets { items } => {
                items.iter().try_for_each(|item| by.secret(item.id))
            }
            Command::CreateService { name, grants, .. } => {
                let known = by.operator.scope.has_service(name);
                by.within(known, || format!("service {name}"))?;
                by.grant(name.as_str(), grants.iter().map(|grant| grant.secret))
            }
            Command::UpdateService { id, grants, .. } => by.service(*id, |service| {
                let before = service.spec.grants.iter().map(|grant| grant.secret);
                by.grant(
                    service.name.as_str(),
                    before.chain(grants.iter().map(|grant| grant.secret)),
                )
            }),
            Command::RollbackService { id } | Command::RemoveService { id } => {
                by.service(*id, |service| {
                    let all = service.all_grants().map(|grant| grant.secret);
                    by.grant(service.name.as_str(), all)
                })
            }
            Command::RenewOperator { id: of, .. } => {
                by.within(of == id, || format!("the certificate of operator {of}"))
            }
            // Whoever gets here has no scope.
            _ => Ok(()),
        }
    }

    /// A refusal without the names that who asked may not see.
    pub(crate) fn in_words_for(&self, actor: &Actor, refused: Rejected) -> Rejected {
        let operator = match actor {
            Actor::Operator(id) => self.operators.get(id),
            _ => None,
        };
        match (operator, refused) {
            (Some(operator), Rejected::InUse { name, mut services }) => {
                let seen = self.seen_by(&operator.scope);
                let all = services.len();
                services.retain(|name| seen.has_service_named(name));
                if services.len() < all {
                    services.push(format!("{} out of your scope", all - services.len()));
                }
                Rejected::InUse { name, services }
            }
            (_, refused) => refused,
        }
    }
}

/// An operator before a state.
struct Judged<'a> {
    state: &'a State,
    operator: &'a Operator,
}

impl Judged<'_> {
    fn within(&self, is: bool, what: impl FnOnce() -> String) -> Result<(), Rejected> {
        match is {
            true => Ok(()),
            false => {
                Err(Rejected::OutOfScope { name: self.operator.name.to_string(), what: what() })
            }
        }
    }

    /// One that is not there is for the command itself to say, and no different from one out of the scope.
    fn secret(&self, id: SecretId) -> Result<(), Rejected> {
        let known = self.state.seen_by(&self.operator.scope).secret(id).is_some();
        match known || !self.operator.scope.is_limited() {
            true => Ok(()),
            false => Err(Rejected::NotFound { kind: "secret", name: id.to_string() }),
        }
    }

    fn service(
        &self,
        id: ServiceId,
        then: impl FnOnce(&Service) -> Result<(), Rejected>,
    ) -> Result<(), Rejected> {
        let not_found = || Rejected::NotFound { kind: "service", name: id.to_string() };
        let service = self.state.seen_by(&self.operator.scope).service(id);
        then(service.ok_or_else(not_found)?)
    }

    /// The act of its own: whoever changes what a service grants, or to which nodes, can deliver those secrets to a
    /// process of his. So all of them have to be in the scope, those before the change too.
    fn grant(
        &self,
        service: &str,
        mut secrets: impl Iterator<Item = SecretId>,
    ) -> Result<(), Rejected> {
        let foreign = |id: SecretId| {
            let name = self.state.secrets.get(&id).map(|secret| &secret.name);
            name.is_some_and(|name| !self.operator.scope.has_secret(name))
        };
        self.within(!secrets.any(foreign), || {
            format!("a secret that service {service} grants, or granted before")
        })
    }
}
