//! What a manager may pass on to the leader in a caller's name: it authorised the caller, and the leader asks again.

use crate::{Actor, Command, Envelope, Rejected, State};

impl State {
    /// Whether a command that member `from` passes on may be proposed for its actor.
    ///
    /// # Errors
    /// [`Rejected::NotForwarded`]: the actor is none that may do this, or not known here; [`State::permit`]'s.
    pub fn admit_forwarded(&self, from: u64, envelope: &Envelope) -> Result<(), Rejected> {
        let refuse = |why| Err(Rejected::NotForwarded { from, why });
        let command = &envelope.command;
        let votes = self.members.get(&from).is_some_and(|member| member.voter);
        match &envelope.actor {
            Actor::Manager(id) if *id != from => refuse("in the name of another manager"),
            Actor::Manager(_) => match command {
                Command::ChangeCluster(change)
                    if change.address.as_ref().is_some_and(|(id, _)| *id == from) =>
                {
                    Ok(())
                }
                Command::NoteAuditHead { member, .. }
                | Command::NoteCertificate { member, .. }
                | Command::NoteStore { member, .. }
                    if *member == from =>
                {
                    Ok(())
                }
                _ => refuse("what a manager does not do by itself"),
            },
            // It serves nobody, so it has no callers to speak for.
            _ if !votes => refuse("a caller's command without having a vote"),
            Actor::Node(id) => match command {
                Command::ClaimTask { node, .. }
                | Command::EndTask { node, .. }
                | Command::SyncTasks { node, .. }
                    if node == id && self.nodes.contains_key(id) =>
                {
                    Ok(())
                }
                _ => refuse("what that node may not do"),
            },
            Actor::Joiner { .. } => match command {
                Command::JoinNode { .. } | Command::AddMember { .. } => Ok(()),
                _ => refuse("what a newcomer may not do"),
            },
            // An administrator of the sender's machine; he could do the same with the sender's keys.
            Actor::Local { .. } => match command {
                Command::Init(_)
                | Command::RenewOperator { .. }
                | Command::ClaimTask { .. }
                | Command::EndTask { .. }
                | Command::SyncTasks { .. }
                | Command::JoinNode { .. }
                | Command::AddMember { .. }
                | Command::Reseal { .. }
                | Command::NoteStore { .. }
                | Command::NoteAuditHead { .. }
                | Command::NoteCertificate { .. }
                | Command::Restore(_)
                | Command::ForceNewCluster { .. } => refuse("what an operator does not do"),
                _ => Ok(()),
            },
            Actor::Operator(_) => self.permit(envelope),
        }
    }
}
