//! The managers: look, promote, demote, remove, hand over the lead. Invariant: what would lose the quorum is refused
//! before anything is changed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keyhole_proto::v1;
use keyhole_state::{Command, Member, Rejected, State};
use tonic::Status;

use crate::authz::{Action, Authorized, act};
use crate::raft::{OUT_OF_REACH, Progress, Status as RaftStatus};
use crate::seal::seal_keys_for;
use crate::shell::Shell;
use crate::status::{internal, rejected};

type Reply<T> = Result<T, Status>;

/// How long a change of the membership may take until it is told as it is.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two looks at who has answered; heartbeats are four times as far apart.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How many entries a follower may be behind and still count as being there.
const NEARLY: u64 = 1000;

pub(super) async fn find_managers(
    shell: &Shell,
    by: &Authorized<act::FindManagers>,
    _: v1::FindManagersRequest,
) -> Reply<v1::FoundManagers> {
    Ok(v1::FoundManagers { managers: shell.view(by, addresses) })
}

/// Of all that take requests.
pub(super) fn addresses(state: &State) -> Vec<String> {
    let voters = state.members().values().filter(|member| member.voter);
    voters.map(|member| member.address.clone()).collect()
}

pub(super) async fn list(
    shell: &Shell,
    by: &Authorized<act::ListManagers>,
    _: v1::ListRequest,
) -> Reply<v1::ManagerList> {
    Ok(v1::ManagerList { managers: seen(shell, by).await })
}

pub(super) async fn promote(
    shell: &Shell,
    by: &Authorized<act::PromoteManager>,
    request: v1::ObjectRequest,
) -> Reply<v1::ManagerInfo> {
    let id = find(shell, by, &request.object)?;
    let keys = shell.view_cluster(by, |state, cluster| {
        let none = || rejected(&Rejected::NoMember { id });
        let member = state.members().get(&id).ok_or_else(none)?;
        let keys = seal_keys_for(cluster, shell.keyring.own(), member);
        keys.map_err(|e| internal("cannot seal the cluster's keys", e))
    })?;
    shell.propose(by, Command::PromoteMember { id, keys }).await?;
    // One that has to catch up first is shown as it is by then.
    let votes = |raft: &RaftStatus| raft.members.get(&id).is_some_and(|(_, votes)| *votes);
    shell.wait_raft(by, SETTLED, votes).await;
    one(shell, by, id).await
}

pub(super) async fn demote(
    shell: &Shell,
    by: &Authorized<act::DemoteManager>,
    request: v1::ObjectRequest,
) -> Reply<v1::ManagerInfo> {
    let id = find(shell, by, &request.object)?;
    let voters = spare(shell, by, id).await?;
    shell.propose(by, Command::DemoteMember { id, voters }).await?;
    unneeded(shell, by, id, "demoted", "`manager ls` shows it as a learner").await?;
    one(shell, by, id).await
}

pub(super) async fn remove(
    shell: &Shell,
    by: &Authorized<act::RemoveManager>,
    request: v1::ObjectRequest,
) -> Reply<v1::Removed> {
    let id = find(shell, by, &request.object)?;
    let node = shell.view(by, |state| state.members().get(&id).map(|member| member.node));
    let voters = spare(shell, by, id).await?;
    shell.propose(by, Command::RemoveMember { id, voters }).await?;
    unneeded(shell, by, id, "removed", "it stops by itself").await?;
    Ok(v1::Removed { id: node.map(|node| node.to_string()).unwrap_or_default() })
}

pub(super) async fn transfer_leader(
    shell: &Shell,
    by: &Authorized<act::TransferLeader>,
    request: v1::TransferRequest,
) -> Reply<v1::ManagerInfo> {
    let to = match request.to.as_str() {
        "" => 0,
        text => find(shell, by, text)?,
    };
    let to = match shell.replica_status(by).leader {
        Some(leader) if leader == to => to,
        _ => {
            shell.propose(by, Command::TransferLeader { to }).await?;
            shell.hand_over(to).await?
        }
    };
    one(shell, by, to).await
}

fn find<A: Action>(shell: &Shell, by: &Authorized<A>, text: &str) -> Reply<u64> {
    let found = shell.view(by, |state| state.find_member(text).map(|member| member.id));
    found.map_err(|e| rejected(&e))
}

/// Refuses if the cluster can't do without this member's vote; if it leads, another one does then. Who was to vote.
///
/// Only who has answered since counts as reached: one that has just been lost is not known to be out of reach yet.
async fn spare<A: Action>(shell: &Shell, by: &Authorized<A>, id: u64) -> Reply<BTreeSet<u64>> {
    let asked = Instant::now();
    loop {
        let since = asked.elapsed();
        let (_, progress) = shell.progress().await?;
        let raft = shell.replica_status(by);
        let votes = |id: &u64| raft.members.get(id).is_some_and(|(_, votes)| *votes);
        let voting: BTreeSet<u64> = raft.members.keys().copied().filter(votes).collect();
        let silent = |id: &u64| progress.get(id).and_then(|other| other.silent).unwrap_or(since);
        let reached =
            progress.keys().filter(|id| silent(id) < since).chain(&raft.leader).copied().collect();
        let voters = shell
            .view(by, |state| state.quorum_without(id, &voting, &reached).map(|()| state.voters()));
        match voters {
            Ok(voters) => {
                if raft.leader == Some(id) {
                    shell.hand_over(0).await?;
                }
                return Ok(voters);
            }
            Err(refused) => {
                let awaited = |id: &u64| !reached.contains(id) && silent(id) < OUT_OF_REACH;
                if !voting.iter().any(awaited) {
                    return Err(rejected(&refused));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn is_reached(progress: &Progress) -> bool {
    progress.silent.is_some_and(|silent| silent < OUT_OF_REACH)
}

/// Waits until Raft does without the vote of `id`, as whoever is answered may switch it off.
async fn unneeded<A: Action>(
    shell: &Shell,
    by: &Authorized<A>,
    id: u64,
    done: &str,
    until: &str,
) -> Reply<()> {
    // Not until it is no member: one that is removed does not see itself leave.
    let left = |raft: &RaftStatus| raft.members.get(&id).is_none_or(|(_, votes)| !votes);
    if shell.wait_raft(by, SETTLED, left).await {
        return Ok(());
    }
    Err(Status::deadline_exceeded(format!(
        "manager {id} is {done}, but a majority has not agreed to do without its vote yet: let it run until {until}"
    )))
}

async fn one<A: Action>(shell: &Shell, by: &Authorized<A>, id: u64) -> Reply<v1::ManagerInfo> {
    let seen = seen(shell, by).await;
    let found = seen.into_iter().find(|manager| manager.member == id);
    found.ok_or_else(|| Status::not_found(format!("no member has the id {id}")))
}

/// All managers, as the leader sees them; where there is none, as far as they are known here.
pub(super) async fn seen<A: Action>(shell: &Shell, by: &Authorized<A>) -> Vec<v1::ManagerInfo> {
    let progress = shell.progress().await.ok();
    let raft = shell.replica_status(by);
    let info = |state: &State| {
        let members = state.members().values();
        members.map(|member| info(state, member, &raft, progress.as_ref())).collect()
    };
    shell.view(by, info)
}

type Others = (u64, std::collections::BTreeMap<u64, Progress>);

fn info(
    state: &State,
    member: &Member,
    raft: &RaftStatus,
    seen: Option<&Others>,
) -> v1::ManagerInfo {
    let store = state.store_written(member.id);
    let leader = raft.leader == Some(member.id);
    let voter = raft.members.get(&member.id).is_some_and(|(_, votes)| *votes);
    let progress = seen.and_then(|(_, others)| others.get(&member.id));
    let last = seen.map_or(raft.last_log, |(last, _)| *last);
    let behind = match (leader, progress) {
        (false, Some(progress)) => last.saturating_sub(progress.matched),
        _ => 0,
    };
    let reached = leader || progress.is_some_and(is_reached);
    let trouble = match (seen, reached) {
        (None, _) => "no leader is in reach of the manager that was asked",
        (_, false) => "the leader does not reach it",
        _ if behind > NEARLY => "it is catching up",
        _ if voter != member.voter && member.voter => "it votes once it has caught up",
        _ if voter != member.voter => "it votes until the change is through",
        _ => "",
    };
    v1::ManagerInfo {
        member: member.id,
        id: member.node.to_string(),
        hostname: member.hostname.clone(),
        address: member.address.clone(),
        leader,
        voter,
        voter_wanted: member.voter,
        reached,
        behind,
        trouble: trouble.to_owned(),
        store_number: store.under.number,
        store_locked: store.under.locked,
        store_written_at: store.at.0,
        store_behind: state.store_is_behind(member.id),
        store_work: String::new(),
    }
}
