//! What nodes read: assignments, what a worker left to the next, their own files, and the kernel's tables.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

use keyhole_domain::ClusterId;
use keyhole_node_fs::agent::follow;
use keyhole_node_fs::cgroups::CgroupRoot;
use keyhole_node_fs::join::IdentityStore;
use keyhole_node_fs::mountinfo;
use keyhole_node_fs::registry::Registry;
use keyhole_node_fs::state_memfd::SavedState;
use keyhole_node_fs::values::Values;
use keyhole_proto::v1;
use keyhole_secmem::{Key32, SecretFd};
use keyhole_view::cgroup::{CgroupPath, identify};
use keyhole_wire::seal::{EdgeKeyPair, Info, Protocol};
use prost::Message;
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;

use crate::pieces;

/// The parts of one stream, to a node with a key that is always the same.
pub(crate) fn assignment(bytes: &[u8]) {
    let parts = pieces(bytes).map_while(|piece| v1::AssignmentPart::decode(piece).ok());
    let key = Key32::from_bytes(&mut [7; 32]).expect("there is memory");
    let info = Info::new(Protocol::ManagerToNode, &ClusterId::from_entropy([1; 16]), "m", "n");
    let run = SecretFd::create().expect("there is memory");
    let memory = memfd_create("values", MemfdFlags::CLOEXEC).expect("there is memory");
    let values = Values::open_in(&run, memory.into(), []).expect("there is memory");
    // What is wrong with it is for the log.
    let _ = follow(parts, (EdgeKeyPair::from_secret(key), info), &values);
}

/// What a worker left, within its seal.
pub(crate) fn node_state(bytes: &[u8]) {
    if let Ok(state) = v1::NodeState::decode(bytes) {
        let _ = SavedState::try_from(state);
    }
}

/// A data folder for files that are read by name.
static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a tmpfs"));
static CGROUPS: LazyLock<CgroupRoot> = LazyLock::new(|| CgroupRoot::find().expect("cgroup v2"));

/// The node's files: its identity and its tasks.
pub(crate) fn identity(bytes: &[u8]) {
    let store = IdentityStore::open(FOLDER.path()).expect("the folder is ours");
    fs::write(store.path(), bytes).expect("the folder is ours");
    fs::set_permissions(store.path(), Permissions::from_mode(0o600)).expect("it is ours");
    let _ = store.load();
    fs::write(FOLDER.path().join("tasks.json"), bytes).expect("the folder is ours");
    let _ = Registry::restore(FOLDER.path(), "boot".to_owned(), &CGROUPS);
}

/// Tables of /proc: mounts and cgroups.
pub(crate) fn proc(bytes: &[u8]) {
    let entries = mountinfo::parse(bytes);
    for entry in &entries {
        let here = || entries.iter().filter(|other| other.mount_point == entry.mount_point);
        match mountinfo::top_mount_at(&entries, &entry.mount_point) {
            Some(top) => assert_eq!(top.mount_point, entry.mount_point),
            // Each lies on another one of them, which the kernel never says.
            None => assert!(here().all(|it| here().any(|on| on.parent == it.id && on.id != it.id))),
        }
    }
    for line in String::from_utf8_lossy(bytes).lines() {
        for path in [CgroupPath::from_proc(line), CgroupPath::new(line)].into_iter().flatten() {
            let _ = identify(&path);
            assert_eq!(CgroupPath::new(path.as_str()).as_ref(), Ok(&path));
            assert!(path.contains(&path) && path.ancestors().count() <= path.as_str().len());
        }
    }
}
