//! The live tasks of this node: which cgroup is whose.
//!
//! Kept in DATA/tasks.json (0600) with the boot id, for cgroup ids recur after a reboot. Invariant: a
//! task is only ever restored for the very cgroup it was registered for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keyhole_domain::{TaskId, Timestamp};
use keyhole_view::cgroup::CgroupId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cgroups::{self, CgroupRoot};

const FILE: &str = "tasks.json";
const FORMAT: u32 = 1;

/// Why the registry could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file could not be read or written.
    #[error("cannot {doing} {}: {source}; check the data folder and its disk", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A newer version wrote it.
    #[error(
        "{} is of format {found}, and this keyhole knows format {FORMAT} only: start the version that wrote it, or remove the file and add its tasks again", .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// No task, or several, have that id.
    #[error("no task {prefix:?} on this node; `keyhole task ls` lists them")]
    Unknown {
        /// What was asked for.
        prefix: String,
    },
    /// Several tasks begin so.
    #[error("{count} tasks begin with {prefix:?}; give more of the id")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many.
        count: usize,
    },
}

/// A live task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id, made by this node.
    pub id: TaskId,
    /// Its service, name or id, as it was asked for.
    pub service: String,
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// The cgroup's directory, absolute.
    pub path: PathBuf,
    /// Whether the node made the cgroup and removes it at the end.
    pub own: bool,
    /// When it was registered.
    pub since: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    boot: String,
    tasks: Vec<StoredTask>,
    /// Over the fields before it: one flipped bit of a name or number would be another service's or cgroup's. Earlier
    /// builds wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Stored {
    fn digest(&self) -> Result<String, serde_json::Error> {
        let fields = serde_json::to_vec(&(self.format, &self.boot, &self.tasks))?;
        Ok(Sha256::digest(fields).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn is_whole(&self) -> bool {
        let told = self.sha256.as_ref();
        told.is_none_or(|told| self.digest().is_ok_and(|digest| digest == *told))
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredTask {
    id: String,
    service: String,
    cgroup: u64,
    path: PathBuf,
    own: bool,
    since: u64,
}

/// All live tasks.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    boot: String,
    tasks: BTreeMap<TaskId, Task>,
}

/// Whether a cgroup with that id is still at the task's path.
fn lives(root: &CgroupRoot, task: &Task) -> bool {
    root.id_of(&task.path).is_ok_and(|id| id == cgroups::CgroupId(task.cgroup.0))
}

/// The id of this boot (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> Result<String, RegistryError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(failed("read", path))?;
    Ok(text.trim().to_owned())
}

impl Registry {
    /// An empty one, kept in `folder`.
    pub fn empty(folder: &Path, boot: String) -> Self {
        Self { folder: folder.to_owned(), boot, tasks: BTreeMap::new() }
    }

    /// Those that were stored in this boot and whose cgroup still lives. A file that is damaged
    /// restores nothing: its tasks must be added again. One of a newer version is refused, and stays.
    pub fn restore(folder: &Path, boot: String, root: &CgroupRoot) -> Result<Self, RegistryError> {
        let mut registry = Self::empty(folder, boot);
        let path = folder.join(FILE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(registry),
            text => text.map_err(failed("read", &path))?,
        };
        // What a newer one wrote may not even have our fields.
        if let Ok(FormatOnly { format: found }) = serde_json::from_slice(&text)
            && found > FORMAT
        {
            return Err(RegistryError::NewerFormat { path, found });
        }
        match serde_json::from_slice::<Stored>(&text) {
            Ok(stored) if stored.format == FORMAT && !stored.is_whole() => {
                tracing::warn!(
                    "tasks.json is damaged (its digest is another one): no task is restored"
                );
            }
            Ok(stored) if stored.format == FORMAT => registry.take(stored, root),
            Ok(stored) => tracing::warn!(
                format = stored.format,
                "tasks.json has a format that never was: no task is restored"
            ),
            Err(error) => {
                tracing::warn!(%error, "tasks.json cannot be read: no task is restored");
            }
        }
        Ok(registry)
    }

    fn take(&mut self, stored: Stored, root: &CgroupRoot) {
        if stored.boot != self.boot {
            tracing::info!(tasks = stored.tasks.len(), "the machine was rebooted: no task is left");
            return;
        }
        for stored in stored.tasks {
            let Ok(id) = stored.id.parse() else { continue };
            let task = Task {
                id,
                service: stored.service,
                cgroup: CgroupId(stored.cgroup),
                path: stored.path,
                own: stored.own,
                since: Timestamp(stored.since),
            };
            if lives(root, &task) {
                tracing::info!(task = %task.id, service = task.service, "task restored");
                self.tasks.insert(id, task);
            } else {
                tracing::info!(task = %task.id, service = task.service, "the task's cgroup is gone");
            }
        }
    }

    /// Those that the worker before this one had.
    pub fn resume(folder: &Path, boot: String, tasks: impl IntoIterator<Item = Task>) -> Self {
        let tasks = tasks.into_iter().map(|task| (task.id, task)).collect();
        Self { tasks, ..Self::empty(folder, boot) }
    }

    /// Adds a task and stores it. On failure it is not added.
    pub fn add(&mut self, task: Task) -> Result<(), RegistryError> {
        let id = task.id;
        self.tasks.insert(id, task);
        self.save().inspect_err(|_| {
            self.tasks.remove(&id);
        })
    }

    /// Removes a task. That it could not be stored is only logged: a restart checks the cgroup anyway,
    /// and the manager is told.
    pub fn remove(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        if let Err(error) = self.save() {
            tracing::error!(%error, "an ended task stays in the list on disk");
        }
        Some(task)
    }

    /// A task.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// All, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// Their ids.
    pub fn ids(&self) -> BTreeSet<TaskId> {
        self.tasks.keys().copied().collect()
    }

    /// Whose each cgroup is.
    pub fn by_cgroup(&self) -> BTreeMap<CgroupId, TaskId> {
        self.iter().map(|task| (task.cgroup, task.id)).collect()
    }

    /// The service of each.
    pub fn services(&self) -> BTreeMap<TaskId, String> {
        self.iter().map(|task| (task.id, task.service.clone())).collect()
    }

    fn save(&self) -> Result<(), RegistryError> {
        let tasks = self.iter().map(StoredTask::from).collect();
        let mut stored = Stored { format: FORMAT, boot: self.boot.clone(), tasks, sha256: None };
        let path = self.folder.join(FILE);
        let odd = |error: serde_json::Error| failed("write", &path)(error.into());
        stored.sha256 = Some(stored.digest().map_err(odd)?);
        let text = serde_json::to_vec_pretty(&stored).map_err(odd)?;
        replace_file(&path, &text).map_err(failed("write", &path))
    }
}

impl From<&Task> for StoredTask {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.to_string(),
            service: task.service.clone(),
            cgroup: task.cgroup.0,
            path: task.path.clone(),
            own: task.own,
            since: task.since.0,
        }
    }
}

/// The one task whose id begins with `prefix`.
pub fn find<'a>(
    tasks: impl IntoIterator<Item = &'a Task>,
    prefix: &str,
) -> Result<&'a Task, RegistryError> {
    let matching = |task: &&Task| !prefix.is_empty() && task.id.as_str().starts_with(prefix);
    let found: Vec<&Task> = tasks.into_iter().filter(matching).collect();
    match found.as_slice() {
        [task] => Ok(task),
        [] => Err(RegistryError::Unknown { prefix: prefix.to_owned() }),
        several => {
            Err(RegistryError::Ambiguous { prefix: prefix.to_owned(), count: several.len() })
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::File { doing, path, source }
}

/// Puts a file (0600) in place as a whole: a crash leaves the old one or the new one.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("tmp");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
