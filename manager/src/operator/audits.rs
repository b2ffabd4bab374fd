//! What the managers told the cluster of their audits.

use keyhole_proto::v1;
use keyhole_state::{AuditHead, Member, State};
use tonic::Status;

use crate::authz::{Authorized, act};
use crate::codec::audit_head_out;
use crate::shell::Shell;

pub(super) async fn heads(
    shell: &Shell,
    by: &Authorized<act::AuditHeads>,
    _: v1::AuditHeadsRequest,
) -> Result<v1::AuditHeadsReply, Status> {
    let managers = |state: &State| {
        let members = state.members().values();
        members.map(|member| audit(member, state.audit_heads(member.id))).collect()
    };
    Ok(v1::AuditHeadsReply { managers: shell.view(by, managers) })
}

/// Of each manager the newest only.
pub(super) fn newest(state: &State) -> Vec<v1::ManagerAudit> {
    let newest = |member: &Member| {
        let heads = state.audit_heads(member.id);
        audit(member, heads.last_chunk::<1>().map_or(&[], |last| last))
    };
    state.members().values().map(newest).collect()
}

fn audit(member: &Member, heads: &[AuditHead]) -> v1::ManagerAudit {
    v1::ManagerAudit {
        member: member.id,
        id: member.node.to_string(),
        heads: heads.iter().map(audit_head_out).collect(),
    }
}
