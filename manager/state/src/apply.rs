//! The one way to change the state.

use std::collections::BTreeSet;

use keyhole_domain::{NodeId, SecretId, ServiceId, Version};

use crate::{AuditHead, Command, Envelope, Rejected, RowKey, State};

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Rows that are new, changed or gone.
    pub rows: BTreeSet<RowKey>,
    /// Nodes whose assignment may have changed.
    pub nodes: BTreeSet<NodeId>,
    /// What the caller is told.
    pub outcome: Outcome,
}

/// What the caller of a command is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but that it is done.
    Done,
    /// Secrets and the version each is at now.
    Secrets(Vec<(SecretId, Version)>),
    /// The service made or changed.
    Service(ServiceId),
    /// The node made or changed.
    Node(NodeId),
    /// A claim was heard; with the reason if it was turned down.
    Claimed {
        /// Why the node gets nothing for the task.
        rejected: Option<String>,
    },
}

pub(crate) type Change = Applied;

impl Applied {
    pub(crate) fn rows(rows: impl IntoIterator<Item = RowKey>, outcome: Outcome) -> Self {
        Self { rows: rows.into_iter().collect(), nodes: BTreeSet::new(), outcome }
    }
}

impl State {
    /// Applies the command at a log index. Total and deterministic; a refused command changes nothing but the index.
    pub fn apply(&mut self, index: u64, envelope: &Envelope) -> Result<Applied, Rejected> {
        self.index = index;
        if self.cluster.is_none() && !matches!(envelope.command, Command::Init(_)) {
            return Err(Rejected::NotInitialised);
        }
        self.permit(envelope)?;
        self.run(index, envelope).map_err(|refused| self.in_words_for(&envelope.actor, refused))
    }

    fn run(&mut self, index: u64, envelope: &Envelope) -> Result<Applied, Rejected> {
        let at = envelope.at;
        let when = (at, index);
        match &envelope.command {
            Command::Init(init) => self.init(at, init),
            Command::CreateSecret { id, name, labels, value } => {
                self.create_secret(when, *id, name, labels, value)
            }
            Command::SetSecretLabels { id, expected, labels } => {
                self.set_secret_labels(when, *id, *expected, labels)
            }
            Command::RotateSecrets { items } => self.rotate_secrets(when, items),
            Command::RollbackSecret { id, to } => self.rollback_secret(when, *id, *to),
            Command::RemoveSecret { id } => self.remove_secret(*id),
            Command::CreateService { id, name, labels, grants, constraints } => {
                self.create_service(when, *id, name, (labels, grants, constraints))
            }
            Command::UpdateService { id, expected, labels, grants, constraints } => {
                self.update_service(when, *id, *expected, (labels, grants, constraints))
            }
            Command::RollbackService { id } => self.rollback_service(when, *id),
            Command::RemoveService { id } => self.remove_service(*id),
            Command::ClaimTask { id, service, node, cgroup } => {
                self.claim_task(at, *id, *service, *node, cgroup)
            }
            Command::EndTask { id, node, reason } => self.end_task(at, *id, *node, reason),
            Command::SyncTasks { node, live, ca_number } => {
                self.sync_tasks(at, *node, live, *ca_number)
            }
            Command::CreateOperator(operator) => self.create_operator(operator),
            Command::RenewOperator { id, not_after, ca_number } => {
                self.renew_operator(*id, *not_after, *ca_number)
            }
            Command::RemoveOperator { id } => self.remove_operator(*id),
            Command::JoinNode { id, hostname } => self.join_node(when, *id, hostname),
            Command::ChangeNode { id, change } => self.change_node(index, *id, change),
            Command::RemoveNode { id } => self.remove_node(*id),
            Command::AddMember { member, keys } => self.add_member(member, keys),
            Command::PromoteMember { id, keys } => self.promote(*id, keys),
            Command::DemoteMember { id, voters } => self.demote(*id, voters),
            Command::RotateKeyring(new) => self.rotate_keyring(at, new),
            Command::Reseal { items } => self.reseal(items),
            Command::RemoveMember { id, voters } => self.remove_member(at, *id, voters),
            Command::RenewStoreKeys(new) => self.renew_store_keys(new),
            Command::NoteStore { member, under } => self.note_store(at, *member, *under),
            Command::Shred => self.shred(at),
            Command::ShowUnlockKey => self.show_unlock_key(),
            Command::NoteUnlockKey { number } => self.note_unlock_key(*number),
            // All that it does is in the audit.
            Command::ShowToken { .. } | Command::TransferLeader { .. } => {
                Ok(Applied::rows([], Outcome::Done))
            }
            Command::RotateToken { role, token } => self.rotate_token(*role, token),
            Command::ChangeCluster(change) => self.change_cluster(change),
            Command::NoteAuditHead { member, seq, hash } => {
                self.note_audit_head(*member, AuditHead { seq: *seq, hash: *hash, at })
            }
            Command::RotateCa(new) => self.rotate_ca(at, new),
            Command::NoteCertificate { member, ca_number } => {
                self.note_certificate(*member, *ca_number)
            }
            Command::NoteBackup { .. } => self.note_backup(at),
            Command::ForgetFormerCas => self.forget_former_cas(),
            Command::Restore(new) => self.restore(at, new),
            Command::ForceNewCluster { member } => self.force_new_cluster(at, *member),
        }
    }

    /// Notes that the log moved on without a command (a leader's blank entry, a membership change).
    pub fn skip(&mut self, index: u64) {
        self.index = index;
    }
}
