//! The audit record of a change: who did what to which object, when, and how it went. Never a value.

use keyhole_domain::Timestamp;

use crate::{Actor, Applied, Command, Envelope, Rejected, Renewal, State};

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// The log index.
    pub index: u64,
    /// When, by the proposing manager's clock.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// The manager that he asked, by its number; 0 if that is not known.
    pub via: u64,
    /// What, as `object.verb`.
    pub action: &'static str,
    /// The objects, by name or id.
    pub objects: Vec<String>,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

/// The record of a command. `before` and `after` are the state around it: a removed object still has its name before.
/// What a manager says of its audit has none: its line would have to be told again, for ever.
pub fn audit(
    index: u64,
    envelope: &Envelope,
    names: Vec<String>,
    result: &Result<Applied, Rejected>,
) -> Option<AuditRecord> {
    Some(AuditRecord {
        index,
        at: envelope.at,
        actor: envelope.actor.clone(),
        via: envelope.via,
        action: action(&envelope.command)?,
        objects: names,
        refused: result.as_ref().err().map(ToString::to_string),
    })
}

fn action(command: &Command) -> Option<&'static str> {
    Some(match command {
        Command::Init(_) => "cluster.init",
        Command::CreateSecret { .. } => "secret.create",
        Command::SetSecretLabels { .. } => "secret.update",
        Command::RotateSecrets { .. } => "secret.rotate",
        Command::RollbackSecret { .. } => "secret.rollback",
        Command::RemoveSecret { .. } => "secret.rm",
        Command::CreateService { .. } => "service.create",
        Command::UpdateService { .. } => "service.update",
        Command::RollbackService { .. } => "service.rollback",
        Command::RemoveService { .. } => "service.rm",
        Command::ClaimTask { .. } => "task.claim",
        Command::EndTask { .. } => "task.end",
        Command::SyncTasks { .. } => "task.sync",
        Command::CreateOperator(_) => "operator.create",
        Command::RenewOperator { .. } => "operator.renew",
        Command::RemoveOperator { .. } => "operator.rm",
        Command::JoinNode { .. } => "node.join",
        Command::ChangeNode { .. } => "node.update",
        Command::RemoveNode { .. } => "node.rm",
        Command::AddMember { .. } => "manager.join",
        Command::PromoteMember { .. } => "manager.promote",
        Command::DemoteMember { .. } => "manager.demote",
        Command::RotateKeyring(_) => "cluster.rotate-keys",
        Command::Reseal { .. } => "cluster.reseal",
        Command::RemoveMember { .. } => "manager.rm",
        Command::RenewStoreKeys(new) => match new.why {
            Renewal::Autolock => "cluster.autolock.on",
            Renewal::NoAutolock => "cluster.autolock.off",
            Renewal::UnlockKey => "cluster.unlock-key.rotate",
            Renewal::Stores => "cluster.rotate-store-keys",
            Renewal::Shred => "cluster.shred.stores",
        },
        Command::NoteStore { .. } => "manager.store-written",
        Command::Shred => "cluster.shred",
        Command::ShowUnlockKey => "cluster.unlock-key.show",
        Command::NoteUnlockKey { .. } => "cluster.unlock-key.seen",
        Command::TransferLeader { .. } => "manager.transfer-leader",
        Command::ShowToken { .. } => "cluster.join-token.show",
        Command::RotateToken { .. } => "cluster.join-token.rotate",
        Command::ChangeCluster(_) => "cluster.update",
        Command::NoteBackup { .. } => "cluster.backup",
        Command::ForgetFormerCas => "cluster.forget-former-cas",
        Command::Restore(_) => "cluster.restore",
        Command::ForceNewCluster { .. } => "cluster.force-new",
        Command::RotateCa(_) => "cluster.ca.rotate",
        Command::NoteAuditHead { .. } | Command::NoteCertificate { .. } => return None,
    })
}

impl State {
    /// The objects that a command names, for its audit record; call it before the command is applied.
    pub fn audit_objects(&self, command: &Command) -> Vec<String> {
        let secret = |id| self.secrets.get(id).map_or(format!("{id}"), |s| s.name.to_string());
        let service = |id| self.services.get(id).map_or(format!("{id}"), |s| s.name.to_string());
        let node =
            |id| self.nodes.get(id).map_or(format!("{id}"), |n| format!("{} ({id})", n.hostname));
        let member = |id: &u64| {
            let known = self.members.get(id);
            known.map_or(format!("{id}"), |m| format!("{} ({})", m.hostname, m.node))
        };
        match command {
            Command::Init(init) => vec![init.id.to_string()],
            Command::CreateSecret { name, .. } => vec![name.to_string()],
            Command::SetSecretLabels { id, .. }
            | Command::RollbackSecret { id, .. }
            | Command::RemoveSecret { id } => vec![secret(id)],
            Command::RotateSecrets { items } => {
                items.iter().map(|item| format!("{} v{}", secret(&item.id), item.version)).collect()
            }
            Command::CreateService { name, .. } => vec![name.to_string()],
            Command::UpdateService { id, .. }
            | Command::RollbackService { id }
            | Command::RemoveService { id } => vec![service(id)],
            Command::ClaimTask { id, service: of, node: on, .. } => {
                vec![id.to_string(), service(of), node(on)]
            }
            Command::EndTask { id, node: on, .. } => vec![id.to_string(), node(on)],
            Command::SyncTasks { node: on, .. } => vec![node(on)],
            Command::CreateOperator(new) => {
                let mut objects = vec![format!("{} ({})", new.name, new.id), new.role.to_string()];
                objects.extend(new.scope.secrets().iter().map(|some| format!("secrets {some}")));
                objects.extend(new.scope.services().iter().map(|some| format!("services {some}")));
                objects
            }
            Command::RenewOperator { id, .. } | Command::RemoveOperator { id } => {
                let known = self.operators.get(id);
                vec![known.map_or(format!("{id}"), |known| format!("{} ({id})", known.name))]
            }
            Command::JoinNode { id, hostname } => vec![format!("{hostname} ({id})")],
            Command::ChangeNode { id, .. } | Command::RemoveNode { id } => vec![node(id)],
            Command::AddMember { member, .. } => {
                vec![format!("{} ({})", member.hostname, member.node)]
            }
            Command::PromoteMember { id, .. }
            | Command::DemoteMember { id, .. }
            | Command::RemoveMember { id, .. } => vec![member(id)],
            Command::RotateKeyring(new) => vec![format!("epoch {}", new.epoch)],
            Command::Reseal { items } => vec![format!("{} values", items.len())],
            Command::RenewStoreKeys(new) => vec![format!("store keys {}", new.number)],
            Command::NoteStore { member: id, under } => {
                vec![member(id), format!("store keys {}", under.number)]
            }
            Command::NoteUnlockKey { number } => vec![format!("store keys {number}")],
            Command::Shred | Command::ShowUnlockKey => Vec::new(),
            Command::ShowToken { role } | Command::RotateToken { role, .. } => {
                vec![format!("{role:?}").to_lowercase()]
            }
            Command::ChangeCluster(_)
            | Command::ForgetFormerCas
            | Command::NoteAuditHead { .. }
            | Command::NoteCertificate { .. } => Vec::new(),
            Command::RotateCa(new) => vec![format!("CA {}", new.number)],
            Command::NoteBackup { recipients } if recipients.is_empty() => {
                vec!["to a passphrase".to_owned()]
            }
            Command::NoteBackup { recipients } => recipients.clone(),
            Command::Restore(new) => vec![format!("{} ({})", new.member.hostname, new.member.node)],
            Command::TransferLeader { to: 0 } => Vec::new(),
            Command::ForceNewCluster { member: id } | Command::TransferLeader { to: id } => {
                vec![member(id)]
            }
        }
    }
}
