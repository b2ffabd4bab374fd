//! A cgroup's path as the kernel writes it, its ancestors, and the nearest task.
//!
//! Invariant: a path is absolute, inside our cgroup namespace, and of a cgroup that exists.

use std::collections::BTreeMap;
use std::fmt;

use keyhole_domain::TaskId;

/// A cgroup's number: `st_ino` of its directory in the cgroup2 file system. It recurs after a reboot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CgroupId(pub u64);

/// The task of the nearest registered cgroup; `ids` are the caller's cgroup and its ancestors, nearest first.
pub fn nearest(ids: &[CgroupId], registered: &BTreeMap<CgroupId, TaskId>) -> Option<TaskId> {
    ids.iter().find_map(|id| registered.get(id).copied())
}

/// A cgroup's path below the cgroup2 root; `/` is the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

/// Why a text names no cgroup that we can judge; the caller is then no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// Neither `0::/…` nor a file with such a line.
    #[error("{text:?} has no cgroup2 line (0::/path); is the cgroup2 hierarchy mounted?")]
    NoLine {
        /// The text's beginning.
        text: String,
    },
    /// The path leaves our cgroup namespace.
    #[error("{path:?} is outside our cgroup namespace; the node must run in the host's")]
    OutsideNamespace {
        /// The path.
        path: String,
    },
    /// The cgroup was removed under the process.
    #[error("{path:?} was removed")]
    Removed {
        /// The path.
        path: String,
    },
    /// Not an absolute path of non-empty components.
    #[error("{path:?} is no absolute cgroup path")]
    Malformed {
        /// The path.
        path: String,
    },
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

impl CgroupPath {
    /// The cgroup of a process, from the whole of its `/proc/PID/cgroup`: other hierarchies' lines are passed over.
    pub fn from_proc(text: &str) -> Result<Self, CgroupError> {
        // The kernel lets no newline into a cgroup's name, so a line is a line.
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        path.ok_or_else(|| CgroupError::NoLine { text: shown(text) }).and_then(Self::new)
    }

    /// A path below the cgroup2 root.
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        let fault = |make: fn(String) -> CgroupError| Err(make(shown(path)));
        // What the kernel adds; a cgroup whose own name ends so is refused with it.
        if path.ends_with(" (deleted)") {
            return fault(|path| CgroupError::Removed { path });
        }
        let Some(below) = path.strip_prefix('/') else {
            return fault(|path| CgroupError::Malformed { path });
        };
        if below.split('/').any(|part| part == "..") {
            return fault(|path| CgroupError::OutsideNamespace { path });
        }
        let odd = |part: &str| part.is_empty() || part == "." || part.contains(['\n', '\0']);
        if !below.is_empty() && below.split('/').any(odd) {
            return fault(|path| CgroupError::Malformed { path });
        }
        Ok(Self(path.to_owned()))
    }

    /// The path, beginning with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The names from the root down; none for the root.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// This cgroup and those above it, nearest first, the root last.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        let below_root = self.0.trim_end_matches('/');
        let ends = std::iter::once(below_root.len())
            .filter(|end| *end > 0)
            .chain(below_root.rmatch_indices('/').map(|(end, _)| end).filter(|end| *end > 0));
        ends.map(|end| &below_root[..end]).chain(["/"])
    }

    /// Whether `other` is this cgroup or below it.
    pub fn contains(&self, other: &Self) -> bool {
        let rest = other.0.strip_prefix(self.0.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether `other` is below this cgroup.
    pub fn is_above(&self, other: &Self) -> bool {
        self != other && self.contains(other)
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(text).unwrap()
    }

    #[test]
    fn the_cgroup2_line_is_found_among_others() {
        let hybrid = "12:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/system.slice/x.service\n";
        assert_eq!(CgroupPath::from_proc(hybrid), Ok(path("/system.slice/x.service")));
        assert_eq!(CgroupPath::from_proc("0::/\n"), Ok(path("/")));
        // A version 1 line that looks like ours in its path only.
        assert!(CgroupPath::from_proc("1:name=x:/0::/a\n").is_err());
        assert!(CgroupPath::from_proc("").is_err());
    }

    #[test]
    fn paths_that_cannot_be_judged_are_refused() {
        for (text, word) in [
            ("0::/../x", "namespace"),
            ("0::/a/../../x", "namespace"),
            ("0::/a (deleted)", "removed"),
            ("0::a", "absolute"),
            ("0::", "absolute"),
            ("0:://a", "absolute"),
            ("0::/a/", "absolute"),
            ("0::/a/./b", "absolute"),
        ] {
            let error = CgroupPath::from_proc(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn ancestors_are_nearest_first_and_end_at_the_root() {
        let all = |text| path(text).ancestors().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(all("/a/bb/c"), ["/a/bb/c", "/a/bb", "/a", "/"]);
        assert_eq!(all("/a"), ["/a", "/"]);
        assert_eq!(all("/"), ["/"]);
    }

    #[test]
    fn containing_is_by_component_not_by_prefix() {
        assert!(path("/a").contains(&path("/a/b")));
        assert!(path("/a").contains(&path("/a")));
        assert!(!path("/a").is_above(&path("/a")));
        assert!(!path("/a").contains(&path("/ab")));
        assert!(!path("/a/b").contains(&path("/a")));
        assert!(path("/").contains(&path("/a")) && path("/").is_above(&path("/a")));
        assert!(path("/").contains(&path("/")));
    }

    #[test]
    fn the_nearest_registered_cgroup_decides() {
        let (outer, inner) = (TaskId::from_entropy([1; 16]), TaskId::from_entropy([2; 16]));
        let registered = BTreeMap::from([(CgroupId(10), outer), (CgroupId(30), inner)]);
        let ids = |ids: &[u64]| ids.iter().map(|id| CgroupId(*id)).collect::<Vec<_>>();
        assert_eq!(nearest(&ids(&[40, 30, 20, 10, 1]), &registered), Some(inner));
        assert_eq!(nearest(&ids(&[20, 10, 1]), &registered), Some(outer));
        assert_eq!(nearest(&ids(&[20, 1]), &registered), None);
        assert_eq!(nearest(&[], &registered), None);
    }
}
