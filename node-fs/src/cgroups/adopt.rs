//! Gathering the facts about a cgroup that is to become a task; `keyhole-view` judges them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use keyhole_domain::TaskId;
use keyhole_view::cgroup::{self, CgroupId, CgroupPath};

use super::{CgroupError, CgroupRoot};

/// Who stands for "any group or any user" where the rules want one user: the overflow uid.
const NOBODY: u32 = 65_534;

/// Why a cgroup cannot be a task.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] cgroup::AdoptError),
    /// The hierarchy could not be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// An existing cgroup that may become a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its directory, without links.
    pub directory: PathBuf,
    /// Its path below the root.
    pub path: CgroupPath,
    /// Its id: check once more that it is still the same when the registration is done.
    pub id: CgroupId,
}

impl CgroupRoot {
    /// Checks that the cgroup whose directory is `directory` may become a task beside `tasks`, and
    /// holds none of `runtimes` (name and cgroup of the runtime's own processes).
    pub fn adopt(
        &self,
        directory: &Path,
        tasks: &[(TaskId, CgroupId)],
        runtimes: &[(String, CgroupPath)],
        allow_delegated: bool,
    ) -> Result<Adopted, AdoptError> {
        let directory = directory.canonicalize().map_err(CgroupError::system("open", directory))?;
        let id = self.id_of(&directory)?;
        let path = self.cgroup_of(&directory)?;
        judge(self, &path, id, tasks, runtimes, allow_delegated)?;
        Ok(Adopted { directory, path, id })
    }
}

/// `lowest` is the existing cgroup that `cgroup` is, or will be made in.
pub(super) fn judge(
    root: &CgroupRoot,
    cgroup: &CgroupPath,
    lowest: CgroupId,
    tasks: &[(TaskId, CgroupId)],
    runtimes: &[(String, CgroupPath)],
    allow_delegated: bool,
) -> Result<(), AdoptError> {
    // Worker and supervisor may have been put into different cgroups.
    let supervisor = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    let mut node = vec![root.of_process("self")?];
    node.extend(supervisor.and_then(|pid| root.of_process(&pid).ok()));
    let tasks: Vec<(TaskId, CgroupPath)> = tasks
        .iter()
        .filter_map(|(task, id)| Some((*task, root.cgroup_of(&root.path_of(*id)?).ok()?)))
        .collect();
    let facts = cgroup::Adoption {
        cgroup,
        node: &node,
        runtimes,
        tasks: &tasks,
        delegated: &delegated(root, lowest)?,
        allow_delegated,
    };
    Ok(cgroup::adopt(&facts)?)
}

/// The cgroup and its ancestors (below the root) that a non-root user may move processes into.
fn delegated(root: &CgroupRoot, id: CgroupId) -> Result<Vec<(CgroupPath, u32)>, CgroupError> {
    let mut delegated = Vec::new();
    for ancestor in root.lineage(id).as_deref().unwrap_or_default() {
        let Some(directory) = root.path_of(*ancestor) else { continue };
        let procs = directory.join("cgroup.procs");
        let metadata = std::fs::metadata(&procs).map_err(CgroupError::system("look at", &procs))?;
        if let Some(uid) = non_root_writer(metadata.uid(), metadata.gid(), metadata.mode()) {
            delegated.push((root.cgroup_of(&directory)?, uid));
        }
    }
    Ok(delegated)
}

fn non_root_writer(uid: u32, gid: u32, mode: u32) -> Option<u32> {
    // An owner without the write bit can give it to itself.
    if uid != 0 {
        Some(uid)
    } else {
        let others = mode & 0o002 != 0 || (gid != 0 && mode & 0o020 != 0);
        others.then_some(NOBODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_is_read_from_owner_and_mode() {
        assert_eq!(non_root_writer(0, 0, 0o644), None);
        assert_eq!(non_root_writer(0, 0, 0o664), None);
        assert_eq!(non_root_writer(0, 5, 0o644), None);
        assert_eq!(non_root_writer(0, 5, 0o664), Some(NOBODY));
        assert_eq!(non_root_writer(1000, 0, 0o444), Some(1000));
        assert_eq!(non_root_writer(0, 0, 0o646), Some(NOBODY));
    }
}
