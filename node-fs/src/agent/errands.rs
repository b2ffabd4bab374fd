//! What the managers have to be told of tasks: claims and ends, kept until they are answered.
//!
//! Pure bookkeeping; the session runs the calls. Invariant: a claim is answered once, an end is told
//! until it is acknowledged, and nothing is told twice at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use keyhole_domain::{Assignment, Revision, TaskId};
use keyhole_proto::v1;
use tokio::sync::oneshot;

use super::{ClaimError, Request};
use crate::core::records;
use crate::registry::Task;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    /// Done.
    Done(T),
    /// The manager says no, and will go on saying so.
    Refused(String),
    /// Nothing is known; try again.
    Lost,
}

/// A call to make.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Errand {
    Claim(TaskId, v1::ClaimTaskRequest),
    End(TaskId, v1::EndTaskRequest),
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Claim(TaskId, Outcome<Revision>),
    End(TaskId, Outcome<()>),
}

#[derive(Debug)]
struct Claim {
    request: v1::ClaimTaskRequest,
    /// Who waits; nobody, if it is a claim for a task that the managers had lost.
    reply: Option<oneshot::Sender<Result<(), ClaimError>>>,
    on_its_way: bool,
}

#[derive(Debug)]
struct End {
    reason: String,
    on_its_way: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Errands {
    claims: BTreeMap<TaskId, Claim>,
    ends: BTreeMap<TaskId, End>,
    /// Claimed tasks, and in which revision their claim is.
    claimed: HashMap<TaskId, Revision>,
    /// Those that were claimed a second time because the managers did not have them.
    again: HashSet<TaskId>,
}

fn claim_request(task: &Task) -> v1::ClaimTaskRequest {
    v1::ClaimTaskRequest {
        id: task.id.to_string(),
        service: task.service.clone(),
        cgroup: task.path.to_string_lossy().into_owned(),
    }
}

impl Errands {
    /// `claimed`: tasks that were there before.
    pub(super) fn new(claimed: impl IntoIterator<Item = TaskId>) -> Self {
        let claimed = claimed.into_iter().map(|task| (task, Revision::default())).collect();
        Self { claimed, ..Self::default() }
    }

    /// Takes a request.
    pub(super) fn take(&mut self, request: Request) {
        match request {
            Request::Claim { task, reply } => {
                let request = claim_request(&task);
                let claim = Claim { request, reply: Some(reply), on_its_way: false };
                self.claims.insert(task.id, claim);
            }
            Request::End { task, reason } => {
                // A claim that is on its way may still arrive: the end is told after it is answered.
                if self.claims.get(&task).is_some_and(|claim| !claim.on_its_way) {
                    self.claims.remove(&task);
                }
                self.claimed.remove(&task);
                self.again.remove(&task);
                self.ends.insert(task, End { reason, on_its_way: false });
            }
        }
    }

    /// Nothing is on its way any more: the session ended.
    pub(super) fn recall(&mut self) {
        self.claims.values_mut().for_each(|claim| claim.on_its_way = false);
        self.ends.values_mut().for_each(|end| end.on_its_way = false);
    }

    /// What to do now; counted as on its way.
    pub(super) fn due(&mut self) -> Vec<Errand> {
        let mut due = Vec::new();
        // Nobody waits any more for a claim whose caller gave up; it is followed by an end.
        let given_up = |claim: &Claim| claim.reply.as_ref().is_some_and(oneshot::Sender::is_closed);
        self.claims.retain(|_, claim| claim.on_its_way || !given_up(claim));
        for (task, claim) in self.claims.iter_mut().filter(|(_, claim)| !claim.on_its_way) {
            claim.on_its_way = true;
            due.push(Errand::Claim(*task, claim.request.clone()));
        }
        for (task, end) in &mut self.ends {
            if !end.on_its_way && !self.claims.contains_key(task) {
                end.on_its_way = true;
                let (id, reason) = (task.to_string(), end.reason.clone());
                due.push(Errand::End(*task, v1::EndTaskRequest { id, reason }));
            }
        }
        due
    }

    /// Notes how a call ended. Gives the task that must end because its second claim was refused.
    pub(super) fn answered(&mut self, answer: Answer) -> Option<(TaskId, String)> {
        match answer {
            Answer::Claim(task, Outcome::Lost) => {
                if let Some(claim) = self.claims.get_mut(&task) {
                    claim.on_its_way = false;
                }
                None
            }
            Answer::Claim(task, Outcome::Done(revision)) => {
                let claim = self.claims.remove(&task)?;
                if !self.ends.contains_key(&task) {
                    self.claimed.insert(task, revision);
                }
                answer_claim(claim, Ok(()));
                None
            }
            Answer::Claim(task, Outcome::Refused(reason)) => {
                let claim = self.claims.remove(&task)?;
                let lost = claim.reply.is_none();
                answer_claim(claim, Err(ClaimError::Refused(reason.clone())));
                self.claimed.remove(&task);
                self.again.remove(&task);
                lost.then_some((task, reason))
            }
            Answer::End(task, Outcome::Lost) => {
                if let Some(end) = self.ends.get_mut(&task) {
                    end.on_its_way = false;
                }
                None
            }
            Answer::End(task, Outcome::Done(())) => {
                self.ends.remove(&task);
                None
            }
            Answer::End(task, Outcome::Refused(reason)) => {
                tracing::warn!(%task, reason, "the managers do not take a task's end");
                self.ends.remove(&task);
                None
            }
        }
    }

    /// Compares what the managers say with what the node has: a claimed task that they lost is claimed
    /// once more; one that they lost again must end. Gives those.
    pub(super) fn compare(&mut self, assignment: &Assignment, live: &[Task]) -> Vec<TaskId> {
        let assigned: BTreeSet<TaskId> = assignment.tasks.iter().map(|task| task.id).collect();
        self.again.retain(|task| !assigned.contains(task));
        let mut lost = Vec::new();
        for task in live.iter().filter(|task| !assigned.contains(&task.id)) {
            let Some(claimed) = self.claimed.get(&task.id) else { continue };
            // The claim is younger than what the managers speak of, or on its way.
            if *claimed > assignment.revision || self.claims.contains_key(&task.id) {
                continue;
            }
            if self.again.insert(task.id) {
                tracing::warn!(task = %task.id, "the managers do not have the task: claiming it again");
                let request = claim_request(task);
                self.claims.insert(task.id, Claim { request, reply: None, on_its_way: false });
            } else {
                lost.push(task.id);
            }
        }
        for task in &lost {
            self.claimed.remove(task);
            self.again.remove(task);
        }
        lost
    }
}

fn answer_claim(claim: Claim, answer: Result<(), ClaimError>) {
    if let Some(reply) = claim.reply {
        // Who asked may have given up, and ends the task then.
        let _gone = reply.send(answer);
    }
}

/// The revision of a claim's reply.
pub(super) fn claimed_in(reply: &v1::ClaimTaskReply) -> Revision {
    records::revision(reply.revision)
}

#[cfg(test)]
mod tests {
    use keyhole_domain::{AssignedTask, Timestamp};
    use keyhole_view::cgroup::CgroupId;

    use super::*;

    fn task(n: u8) -> Task {
        Task {
            id: TaskId::from_entropy([n; 16]),
            service: "web".to_owned(),
            cgroup: CgroupId(n.into()),
            path: "/cg".into(),
            own: true,
            since: Timestamp(1),
        }
    }

    fn at(index: u64) -> Revision {
        Revision { incarnation: 1, index }
    }

    fn assignment(index: u64, tasks: &[u8]) -> Assignment {
        let assigned = |n: &u8| AssignedTask {
            id: task(*n).id,
            service: "web".parse().unwrap(),
            grants: [].into(),
            rejected: None,
        };
        Assignment { revision: at(index), tasks: tasks.iter().map(assigned).collect() }
    }

    fn claim(errands: &mut Errands, n: u8) -> oneshot::Receiver<Result<(), ClaimError>> {
        let (reply, answer) = oneshot::channel();
        errands.take(Request::Claim { task: task(n), reply });
        answer
    }

    fn end(errands: &mut Errands, n: u8) {
        errands.take(Request::End { task: task(n).id, reason: "over".to_owned() });
    }

    #[test]
    fn a_claim_is_repeated_until_it_is_answered_and_answered_once() {
        let mut errands = Errands::default();
        let mut answer = claim(&mut errands, 1);
        let first = errands.due();
        assert!(matches!(first.as_slice(), [Errand::Claim(..)]));
        assert_eq!(errands.due(), [], "not twice at a time");
        errands.answered(Answer::Claim(task(1).id, Outcome::Lost));
        assert_eq!(errands.due(), first);
        errands.recall();
        assert_eq!(errands.due(), first, "the session ended");
        errands.answered(Answer::Claim(task(1).id, Outcome::Done(at(3))));
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(errands.due(), []);
    }

    #[test]
    fn a_refused_claim_says_why() {
        let mut errands = Errands::default();
        let mut answer = claim(&mut errands, 1);
        errands.due();
        let ended = errands.answered(Answer::Claim(task(1).id, Outcome::Refused("no".to_owned())));
        assert_eq!(ended, None, "who asked for it undoes it");
        assert_eq!(answer.try_recv().unwrap(), Err(ClaimError::Refused("no".to_owned())));
    }

    #[test]
    fn an_end_is_told_after_the_claim_that_is_on_its_way() {
        let mut errands = Errands::default();
        let _answer = claim(&mut errands, 1);
        errands.due();
        end(&mut errands, 1);
        assert_eq!(errands.due(), []);
        errands.answered(Answer::Claim(task(1).id, Outcome::Done(at(3))));
        assert!(matches!(errands.due().as_slice(), [Errand::End(..)]));
        errands.answered(Answer::End(task(1).id, Outcome::Lost));
        assert!(matches!(errands.due().as_slice(), [Errand::End(..)]), "until acknowledged");
        errands.answered(Answer::End(task(1).id, Outcome::Done(())));
        assert_eq!(errands.due(), []);
    }

    #[test]
    fn a_claim_whose_caller_gave_up_is_not_made() {
        let mut errands = Errands::default();
        drop(claim(&mut errands, 1));
        assert_eq!(errands.due(), []);
    }

    #[test]
    fn a_task_that_the_managers_lost_is_claimed_once_more_and_then_dropped() {
        let mut errands = Errands::new([task(1).id]);
        let live = [task(1)];
        assert_eq!(errands.compare(&assignment(5, &[1]), &live), []);
        assert_eq!(errands.due(), []);
        assert_eq!(errands.compare(&assignment(6, &[]), &live), []);
        assert!(matches!(errands.due().as_slice(), [Errand::Claim(..)]));
        assert_eq!(errands.compare(&assignment(7, &[]), &live), [], "its claim is on its way");
        errands.answered(Answer::Claim(task(1).id, Outcome::Done(at(8))));
        assert_eq!(errands.compare(&assignment(7, &[]), &live), [], "older than the claim");
        assert_eq!(errands.compare(&assignment(9, &[]), &live), [task(1).id]);
        // The other way: the second claim is refused.
        let mut errands = Errands::new([task(1).id]);
        errands.compare(&assignment(6, &[]), &live);
        errands.due();
        let ended = errands.answered(Answer::Claim(task(1).id, Outcome::Refused("no".to_owned())));
        assert_eq!(ended, Some((task(1).id, "no".to_owned())));
    }

    #[test]
    fn a_task_that_is_only_being_claimed_is_not_missed() {
        let mut errands = Errands::default();
        assert_eq!(errands.compare(&assignment(6, &[]), &[task(1)]), []);
        assert_eq!(errands.due(), [], "it is registered, and its claim will come");
    }
}
