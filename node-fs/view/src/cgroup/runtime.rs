//! What a cgroup's path says about the workload in it, as container runtimes and service managers name them.
//!
//! Only a hint of whom to ask: whoever may make cgroups may choose such a name. Read from the root down, so that a
//! workload cannot rename itself by what it makes inside its own cgroup.

use std::fmt;

use super::CgroupPath;

/// A workload as its runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    /// A Docker container.
    Docker {
        /// 64 hex digits.
        container: String,
    },
    /// A Kubernetes pod's container.
    Pod {
        /// The pod's uid, with `-`.
        pod: String,
        /// 64 hex digits.
        container: String,
    },
    /// A Podman container.
    Podman {
        /// 64 hex digits.
        container: String,
        /// Whose, if rootless.
        user: Option<u32>,
    },
    /// A unit of the system's service manager.
    Unit {
        /// With its suffix.
        name: String,
    },
    /// A unit of a user's service manager; never the same as a system unit of that name.
    UserUnit {
        /// With its suffix.
        name: String,
        /// The user.
        user: u32,
    },
    /// A Nomad task.
    Nomad {
        /// The allocation's uuid.
        alloc: String,
        /// The task's name.
        task: String,
    },
    /// An LXC container.
    Lxc {
        /// Its name.
        name: String,
    },
}

/// Why a path names no workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNamed {
    /// A runtime's helper beside the container.
    #[error("{component:?} is a monitor, not the container")]
    Monitor {
        /// The name.
        component: String,
    },
    /// It looks like a runtime's, but has no id that the runtime could have given.
    #[error("{component:?} has no {wanted}")]
    BadId {
        /// The name.
        component: String,
        /// What should be there.
        wanted: &'static str,
    },
    /// No runtime that we know names cgroups so.
    #[error("{path} is of no runtime that is known; name the cgroup itself")]
    Unknown {
        /// The path.
        path: String,
    },
}

/// Which workload a path names; `None` for the root, which is none.
pub fn identify(path: &CgroupPath) -> Result<Option<Runtime>, NotNamed> {
    let parts: Vec<&str> = path.components().collect();
    let named = match parts.as_slice() {
        [] => return Ok(None),
        ["docker", id, ..] => Some(Runtime::Docker { container: container_id(id, id)? }),
        ["kubepods" | "kubepods.slice", below @ ..] => pod(below)?,
        ["machine.slice", scope, ..] if scope.starts_with("libpod-") => Some(podman(scope, None)?),
        ["nomad.slice", _, scope, ..] => Some(nomad(scope)?),
        ["user.slice", _, manager, below @ ..] if manager.starts_with("user@") => {
            user_manager(manager, below)?
        }
        [top, ..] if top.starts_with("lxc.") => Some(lxc(top)?),
        parts => system_unit(parts)?,
    };
    named.map(Some).ok_or_else(|| NotNamed::Unknown { path: path.to_string() })
}

/// Container ids are SHA-256 sized, in lower case.
fn container_id(id: &str, component: &str) -> Result<String, NotNamed> {
    match id.len() == 64 && id.bytes().all(is_lower_hex) {
        true => Ok(id.to_owned()),
        false => Err(bad(component, "container id of 64 hex digits")),
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn bad(component: &str, wanted: &'static str) -> NotNamed {
    NotNamed::BadId { component: component.to_owned(), wanted }
}

/// A scope of a container runtime, `PREFIX-ID.scope`; `None` if it is none.
fn container_scope(scope: &str) -> Option<Result<(&str, String), NotNamed>> {
    let (prefix, id) = scope.strip_suffix(".scope")?.rsplit_once('-')?;
    match prefix {
        "docker" | "cri-containerd" | "crio" | "libpod" => {
            Some(container_id(id, scope).map(|id| (prefix, id)))
        }
        "crio-conmon" | "libpod-conmon" => {
            Some(Err(NotNamed::Monitor { component: scope.to_owned() }))
        }
        _ => None,
    }
}

/// Below `kubepods`: an optional class of service, the pod, the container, and what that made itself.
fn pod(below: &[&str]) -> Result<Option<Runtime>, NotNamed> {
    let below = match below {
        [class, rest @ ..] if is_class(class) => rest,
        all => all,
    };
    let [pod, container, ..] = below else {
        return Ok(None);
    };
    let (pod, container) = match pod.strip_suffix(".slice") {
        Some(slice) => {
            let uid = slice.strip_prefix("kubepods-").unwrap_or(slice);
            let uid = ["besteffort-", "burstable-"]
                .iter()
                .find_map(|c| uid.strip_prefix(c))
                .unwrap_or(uid);
            let (_, id) =
                container_scope(container).ok_or_else(|| bad(container, "container id"))??;
            (uid.strip_prefix("pod").map(|uid| uid.replace('_', "-")), id)
        }
        None => (pod.strip_prefix("pod").map(str::to_owned), container_id(container, container)?),
    };
    match pod {
        // Static pods have a plain hash for a uid.
        Some(pod) if is_uuid(&pod) || (pod.len() == 32 && pod.bytes().all(is_lower_hex)) => {
            Ok(Some(Runtime::Pod { pod, container }))
        }
        _ => Err(bad(below.first().unwrap_or(&""), "pod uid")),
    }
}

fn is_class(part: &str) -> bool {
    matches!(
        part,
        "besteffort" | "burstable" | "kubepods-besteffort.slice" | "kubepods-burstable.slice"
    )
}

fn is_uuid(text: &str) -> bool {
    let mut parts = text.split('-');
    [8, 4, 4, 4, 12].iter().all(|len| {
        parts.next().is_some_and(|part| part.len() == *len && part.bytes().all(is_lower_hex))
    }) && parts.next().is_none()
}

fn podman(scope: &str, user: Option<u32>) -> Result<Runtime, NotNamed> {
    match container_scope(scope) {
        Some(Ok(("libpod", container))) => Ok(Runtime::Podman { container, user }),
        Some(Err(error)) => Err(error),
        _ => Err(bad(scope, "container id of 64 hex digits")),
    }
}

fn nomad(scope: &str) -> Result<Runtime, NotNamed> {
    let named = scope.strip_suffix(".scope").and_then(|name| name.split_once('.'));
    match named {
        Some((alloc, task)) if is_uuid(alloc) && !task.is_empty() => {
            Ok(Runtime::Nomad { alloc: alloc.to_owned(), task: task.to_owned() })
        }
        _ => Err(bad(scope, "allocation uuid and task")),
    }
}

fn lxc(top: &str) -> Result<Runtime, NotNamed> {
    match top.strip_prefix("lxc.payload.") {
        Some(name) if !name.is_empty() => Ok(Runtime::Lxc { name: name.to_owned() }),
        _ if top.starts_with("lxc.monitor.") => {
            Err(NotNamed::Monitor { component: top.to_owned() })
        }
        _ => Err(bad(top, "container name")),
    }
}

/// Below a user's service manager: rootless containers and the user's own units.
fn user_manager(manager: &str, below: &[&str]) -> Result<Option<Runtime>, NotNamed> {
    let uid = manager.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service"));
    let user = uid.and_then(|uid| uid.parse().ok()).ok_or_else(|| bad(manager, "uid"))?;
    let Some(name) = below.iter().find(|part| !part.ends_with(".slice")) else {
        return Ok(None);
    };
    if name.starts_with("libpod-") {
        return podman(name, Some(user)).map(Some);
    }
    Ok(is_unit(name).then(|| Runtime::UserUnit { name: (*name).to_owned(), user }))
}

/// The first part that is no slice is the unit; what is below it, the unit made itself.
fn system_unit(parts: &[&str]) -> Result<Option<Runtime>, NotNamed> {
    let Some(name) = parts.iter().find(|part| !part.ends_with(".slice")) else {
        return Ok(None);
    };
    match container_scope(name) {
        Some(Ok(("docker", container))) => Ok(Some(Runtime::Docker { container })),
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(error),
        None => Ok(is_unit(name).then(|| Runtime::Unit { name: (*name).to_owned() })),
    }
}

fn is_unit(name: &str) -> bool {
    let suffix =
        name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, suffix)| suffix);
    matches!(suffix, Some("service" | "scope" | "socket" | "mount" | "swap"))
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker { container } => write!(f, "docker {container}"),
            Self::Pod { pod, container } => write!(f, "pod {pod} container {container}"),
            Self::Podman { container, user: None } => write!(f, "podman {container}"),
            Self::Podman { container, user: Some(user) } => {
                write!(f, "podman {container} user {user}")
            }
            Self::Unit { name } => write!(f, "unit {name}"),
            Self::UserUnit { name, user } => write!(f, "user unit {name} of user {user}"),
            Self::Nomad { alloc, task } => write!(f, "nomad alloc {alloc} task {task}"),
            Self::Lxc { name } => write!(f, "lxc {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::CgroupError;
    use super::*;

    fn read(line: &str) -> Result<Option<Runtime>, String> {
        let path = CgroupPath::from_proc(line).map_err(|error: CgroupError| error.to_string())?;
        identify(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn every_sample_names_what_its_runtime_meant() {
        let samples = include_str!("samples.tsv");
        let rows: Vec<&str> = samples.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rows.len(), 18);
        for row in rows {
            let mut columns = row.split('\t');
            let (Some(name), Some(line), Some(expected), None) =
                (columns.next(), columns.next(), columns.next(), columns.next())
            else {
                panic!("{row:?} has not three columns");
            };
            let got = read(line);
            if let Some(why) = expected.strip_prefix("REJECT ") {
                assert!(got.as_ref().is_err_and(|error| error.contains(why)), "{name}: {got:?}");
            } else if expected.starts_with("no container") {
                assert_eq!(got, Ok(None), "{name}");
            } else {
                let named = got.unwrap().unwrap().to_string();
                // After a comma the table says more than the name.
                assert_eq!(Some(named.as_str()), expected.split(',').next(), "{name}");
            }
        }
    }

    #[test]
    fn a_workload_cannot_take_a_name_by_what_it_makes_below_itself() {
        let id = "a".repeat(64);
        let forged = format!("0::/system.slice/evil.service/docker/{id}");
        assert_eq!(read(&forged), Ok(Some(Runtime::Unit { name: "evil.service".to_owned() })));
        let forged = format!("0::/system.slice/evil.service/docker-{id}.scope");
        assert_eq!(read(&forged), Ok(Some(Runtime::Unit { name: "evil.service".to_owned() })));
        let user = format!("0::/user.slice/user-1000.slice/user@1000.service/docker-{id}.scope");
        assert!(!matches!(read(&user), Ok(Some(Runtime::Docker { .. }))));
    }

    #[test]
    fn ids_that_no_runtime_gives_are_refused() {
        let upper = "A".repeat(64);
        for line in [
            format!("0::/docker/{upper}"),
            "0::/docker/buildkit".to_owned(),
            "0::/kubepods/podx/y".to_owned(),
            format!("0::/kubepods/podnot-a-uid/{}", "a".repeat(64)),
            "0::/kubepods/besteffort".to_owned(),
            "0::/nomad.slice/share.slice/x.redis.scope".to_owned(),
            "0::/lxc.monitor.first".to_owned(),
            "0::/lxc.payload.".to_owned(),
            "0::/user.slice/user-1.slice/user@x.service/a.service".to_owned(),
            "0::/system.slice".to_owned(),
            "0::/some/folder".to_owned(),
        ] {
            assert!(read(&line).is_err(), "{line}");
        }
    }
}
