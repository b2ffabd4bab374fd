//! Which cgroup may become a task by `keyhole task add`: all that would give a secret to more than one workload, or let
//! a user move processes in, is refused.
//!
//! The shell gathers the facts; nothing is looked up here.

use keyhole_domain::TaskId;

use super::CgroupPath;

/// What the shell found out about a cgroup that is to be adopted.
#[derive(Debug, Clone, Copy)]
pub struct Adoption<'a> {
    /// The cgroup.
    pub cgroup: &'a CgroupPath,
    /// The cgroups that the node's own processes are in.
    pub node: &'a [CgroupPath],
    /// Container runtimes and service managers that run here: name and the cgroup of their own processes.
    pub runtimes: &'a [(String, CgroupPath)],
    /// The tasks that are registered.
    pub tasks: &'a [(TaskId, CgroupPath)],
    /// Cgroups whose `cgroup.procs` a user other than root may write, and that user's uid.
    pub delegated: &'a [(CgroupPath, u32)],
    /// `--allow-delegated`.
    pub allow_delegated: bool,
}

/// Why a cgroup may not become a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// The root.
    #[error(
        "the root cgroup holds every process that has no cgroup of its own, on some hosts all of them; \
         start the workload with `keyhole run`, or move it into a cgroup and add that"
    )]
    Root,
    /// The node's own processes are in it.
    #[error(
        "{cgroup} holds the node's own processes (in {node}); add a cgroup that has only the workload, \
         or start it with `keyhole run`"
    )]
    HoldsNode {
        /// The cgroup.
        cgroup: CgroupPath,
        /// Where the node is.
        node: CgroupPath,
    },
    /// A runtime's own processes are in it, so every one of its containers could get in.
    #[error("{cgroup} holds {runtime} itself (in {at}); add the cgroup of one of its workloads")]
    HoldsRuntime {
        /// The cgroup.
        cgroup: CgroupPath,
        /// The runtime.
        runtime: String,
        /// Where it is.
        at: CgroupPath,
    },
    /// It is a task already.
    #[error("{cgroup} is task {task} already; `keyhole task rm {task}` first")]
    IsTask {
        /// The cgroup.
        cgroup: CgroupPath,
        /// The task.
        task: TaskId,
    },
    /// Another task is below it.
    #[error(
        "{cgroup} holds task {task} (in {at}); add a cgroup beside it, or `keyhole task rm {task}` first"
    )]
    HoldsTask {
        /// The cgroup.
        cgroup: CgroupPath,
        /// The task.
        task: TaskId,
        /// Where it is.
        at: CgroupPath,
    },
    /// A user may move processes into it.
    #[error(
        "{cgroup} is below {at}, which is delegated to uid {uid}: that user can move any of its processes into the \
         task; add a cgroup outside it, or pass --allow-delegated if that user may have the secrets"
    )]
    Delegated {
        /// The cgroup.
        cgroup: CgroupPath,
        /// The delegated ancestor, the nearest one.
        at: CgroupPath,
        /// Who.
        uid: u32,
    },
}

/// Decides whether a cgroup may become a task. A cgroup inside a task may: the nearest registered one decides then.
pub fn adopt(facts: &Adoption<'_>) -> Result<(), AdoptError> {
    let Adoption { cgroup, node, runtimes, tasks, delegated, allow_delegated } = *facts;
    if cgroup.is_root() {
        return Err(AdoptError::Root);
    }
    let own = || cgroup.clone();
    if let Some(node) = node.iter().find(|node| cgroup.contains(node)) {
        return Err(AdoptError::HoldsNode { cgroup: own(), node: node.clone() });
    }
    if let Some((runtime, at)) = runtimes.iter().find(|(_, at)| cgroup.contains(at)) {
        let (runtime, at) = (runtime.clone(), at.clone());
        return Err(AdoptError::HoldsRuntime { cgroup: own(), runtime, at });
    }
    if let Some((task, _)) = tasks.iter().find(|(_, at)| at == cgroup) {
        return Err(AdoptError::IsTask { cgroup: own(), task: *task });
    }
    if let Some((task, at)) = tasks.iter().find(|(_, at)| cgroup.is_above(at)) {
        return Err(AdoptError::HoldsTask { cgroup: own(), task: *task, at: at.clone() });
    }
    let above = delegated.iter().filter(|(at, _)| at.is_above(cgroup));
    match above.max_by_key(|(at, _)| at.components().count()) {
        Some((at, uid)) if !allow_delegated => {
            Err(AdoptError::Delegated { cgroup: own(), at: at.clone(), uid: *uid })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(text).unwrap()
    }

    fn task(n: u8) -> TaskId {
        TaskId::from_entropy([n; 16])
    }

    /// A host: the node, docker, one task, and a delegated user session.
    fn judge(cgroup: &str, allow_delegated: bool) -> Result<(), AdoptError> {
        adopt(&Adoption {
            cgroup: &path(cgroup),
            node: &[path("/system.slice/keyhole-node.service")],
            runtimes: &[("docker".to_owned(), path("/system.slice/docker.service"))],
            tasks: &[(task(1), path("/apps/web/one"))],
            delegated: &[
                (path("/user.slice/user-1000.slice"), 1),
                (path("/user.slice/user-1000.slice/user@1000.service"), 1000),
            ],
            allow_delegated,
        })
    }

    #[test]
    fn a_workloads_own_cgroup_is_taken() {
        for cgroup in [
            "/apps/db",
            "/apps/web/two",
            "/apps/web/one/inner",
            "/system.slice/docker-abc.scope",
            "/system.slice/keyhole-node.service2",
            "/user.slice/user-1000.slice",
        ] {
            assert_eq!(judge(cgroup, false), Ok(()), "{cgroup}");
        }
    }

    #[test]
    fn each_refusal_says_why_and_what_to_do() {
        for (cgroup, why, mend) in [
            ("/", "every process", "keyhole run"),
            ("/system.slice", "node's own", "only the workload"),
            ("/system.slice/keyhole-node.service", "node's own", "keyhole run"),
            ("/system.slice/docker.service", "docker itself", "one of its workloads"),
            ("/apps/web/one", "already", "task rm"),
            ("/apps/web", "holds task", "task rm"),
            ("/apps", "holds task", "beside it"),
            ("/user.slice/user-1000.slice/user@1000.service/app", "uid 1000", "--allow-delegated"),
        ] {
            let error = judge(cgroup, false).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(mend), "{cgroup}: {error}");
        }
    }

    #[test]
    fn delegation_can_be_allowed_and_nothing_else() {
        let delegated = "/user.slice/user-1000.slice/user@1000.service/app";
        assert_eq!(judge(delegated, true), Ok(()));
        for cgroup in ["/", "/system.slice", "/apps", "/apps/web/one"] {
            assert!(judge(cgroup, true).is_err(), "{cgroup}");
        }
    }
}
