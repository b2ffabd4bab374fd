//! How far each manager's own audit goes, as it told the cluster: what an edited or cut file is found by.
//!
//! Invariant: the heads of a member rise. The first one is kept for ever, and the first one with each more binary digit
//! in its number, so that no flood of new ones drives the old ones out; of the others fewer the older they are.

use keyhole_domain::Timestamp;

use crate::{Outcome, Rejected, RowKey, State, apply::Change};

/// So many heads of a member are kept.
const KEPT: usize = 64;

/// The last line of a manager's audit at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// The line's number in its chain, from 1 on.
    pub seq: u64,
    /// SHA-256 over the line and the hash before it.
    pub hash: [u8; 32],
    /// When it was told, by that manager's clock.
    pub at: Timestamp,
}

impl State {
    /// What a member told of its audit, oldest first.
    pub fn audit_heads(&self, member: u64) -> &[AuditHead] {
        let heads = self.cluster.as_ref().and_then(|cluster| cluster.audit_heads.get(&member));
        heads.map_or(&[], Vec::as_slice)
    }

    pub(crate) fn note_audit_head(
        &mut self,
        member: u64,
        head: AuditHead,
    ) -> Result<Change, Rejected> {
        if !self.members.contains_key(&member) {
            return Err(Rejected::NoMember { id: member });
        }
        let heads = self.cluster_mut()?.audit_heads.entry(member).or_default();
        if let Some(last) = heads.last().filter(|last| last.seq >= head.seq) {
            return Err(Rejected::AuditWentBack { member, seq: head.seq, noted: last.seq });
        }
        heads.push(head);
        if heads.len() > KEPT {
            thin(heads);
        }
        Ok(Change::rows([RowKey::Cluster], Outcome::Done))
    }
}

/// Drops the one that is missed least: the way between its neighbours is the shortest, measured by its age.
fn thin(heads: &mut Vec<AuditHead>) {
    let newest = heads.last().map_or(0, |head| head.seq);
    let way = |(at, of): (usize, &[AuditHead])| match of {
        [before, own, after] if before.seq.leading_zeros() == own.seq.leading_zeros() => {
            let (way, age) = (u128::from(after.seq - before.seq), u128::from(newest - own.seq));
            Some(((way << 32) / age.max(1), at + 1))
        }
        _ => None,
    };
    if let Some((_, at)) = heads.windows(3).enumerate().filter_map(way).min() {
        heads.remove(at);
    }
}
