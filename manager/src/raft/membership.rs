//! The leader brings Raft's membership to what the state wants, step by step.
//!
//! Depends on openraft's handle and the state. Invariant: which step is next is the state's decision; a new leader goes on
//! where the last one stopped.
use super::handle::{OUT_OF_REACH, RaftHandle, Status};
use super::types::Peer;
use keyhole_state::{MembershipStep, RaftMembers, State};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use std::time::Duration;

/// A learner with no more entries to get than these has caught up; the rest comes while it votes.
const NEARLY: u64 = 200;
/// After a step that failed: another leader, or a change that is not through yet.
const AGAIN: Duration = Duration::from_millis(250);

/// Runs until Raft stops.
pub async fn keep_membership(replica: RaftHandle) {
    let mut applied = replica.applied();
    let mut metrics = replica.raft().metrics();
    loop {
        metrics.borrow_and_update();
        applied.borrow_and_update();
        let status = replica.status();
        let step = match status.is_leader {
            true => replica.read(|state| state.membership_step(&members(&status))),
            false => None,
        };
        if let Some(step) = step {
            if let Err(why) = take(&replica, step).await {
                tracing::debug!(why, "a change of the membership has to wait");
                tokio::time::sleep(AGAIN).await;
            }
            continue;
        }
        tokio::select! {
            moved = metrics.changed() => if moved.is_err() { return },
            moved = applied.changed() => if moved.is_err() { return },
        }
    }
}

fn members(status: &Status) -> RaftMembers {
    let mut members = RaftMembers { leader: status.member, ..RaftMembers::default() };
    for (id, (_, votes)) in &status.members {
        match votes {
            true => members.voters.insert(*id),
            false => members.learners.insert(*id),
        };
    }
    let caught_up = |id: &&u64| {
        let progress = status.others.get(*id);
        progress.is_some_and(|other| {
            // One that is off would take a vote away, not add one.
            let reached = other.silent.is_some_and(|silent| silent < OUT_OF_REACH);
            let near = status.last_log.saturating_sub(other.matched) <= NEARLY;
            other.matched > 0 && near && reached
        })
    };
    members.caught_up = members.learners.iter().filter(caught_up).copied().collect();
    let untold = |id: &&u64| status.others[*id].matched < status.membership;
    members.untold = members.caught_up.iter().filter(untold).copied().collect();
    members
}

async fn take(replica: &RaftHandle, step: MembershipStep) -> Result<(), String> {
    tracing::info!(?step, "changing Raft's membership");
    let raft = replica.raft();
    let done = match step {
        MembershipStep::HandOver => return replica.hand_over(None).await.map(drop),
        MembershipStep::AddLearner(id) => {
            let peer = replica.read(|state| peer(state, id)).ok_or("it is gone again")?;
            raft.add_learner(id, peer, false).await
        }
        MembershipStep::SetVoters(voters) => {
            raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await
        }
        MembershipStep::Remove(gone) => {
            raft.change_membership(ChangeMembers::RemoveNodes(gone), true).await
        }
    };
    done.map(drop).map_err(|error| error.to_string())
}

fn peer(state: &State, id: u64) -> Option<Peer> {
    let member = state.members().get(&id)?;
    Some(Peer { address: member.address.clone(), name: member.node.to_string() })
}
