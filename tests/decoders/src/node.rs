//! What nodes read: assignments, what a worker left to the next, their own files, and the kernel's tables.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::LazyLock;

use keyhole_domain::ClusterId;
use keyhole_manager::ca;
use keyhole_node_fs::agent::follow;
use keyhole_node_fs::cgroups::CgroupRoot;
use keyhole_node_fs::handles::Handles;
use keyhole_node_fs::join::IdentityStore;
use keyhole_node_fs::mountinfo;
use keyhole_node_fs::registry::Registry;
use keyhole_node_fs::state_memfd::{SavedState, StateMemory};
use keyhole_node_fs::values::Values;
use keyhole_proto::v1;
use keyhole_secmem::{Key32, SecretBytes, SecretFd};
use keyhole_view::Ino;
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

/// What a worker left: within its seal, and as memory that was written to otherwise, which the next worker replaces.
pub(crate) fn node_state(bytes: &[u8]) {
    if let Ok(state) = v1::NodeState::decode(bytes) {
        let _ = SavedState::try_from(state);
    }
    let key = || RUN.map().expect("there is memory");
    let file = memory_of(bytes);
    let again = file.try_clone().expect("a descriptor");
    let (mut memory, found) = StateMemory::open(file, key());
    assert!(matches!(found, Ok(None) | Err(_)), "a forged state opens");
    memory.save(&SavedState::default()).expect("there is memory");
    let found = StateMemory::open(again, key()).1;
    assert!(matches!(found, Ok(Some(_))), "what follows it does not open");
    let handles = Handles::load(memory_of(bytes).into()).expect("there is memory");
    handles.add(Ino(1)).expect("there is memory");
    assert!(handles.held(Ino(1)));
}

/// The key of a run that nothing else was sealed with.
static RUN: LazyLock<SecretFd> = LazyLock::new(|| SecretFd::create().expect("there is memory"));

fn memory_of(bytes: &[u8]) -> File {
    let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("there is memory");
    let memory = File::from(memory);
    memory.write_all_at(bytes, 0).expect("there is memory");
    memory
}

/// A data folder for files that are read by name.
static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a tmpfs"));
static CGROUPS: LazyLock<CgroupRoot> = LazyLock::new(|| CgroupRoot::find().expect("cgroup v2"));

/// The node's files: its identity, which a manager keeps as well, and its tasks.
pub(crate) fn identity(bytes: &[u8]) {
    let store = IdentityStore::open(FOLDER.path()).expect("the folder is ours");
    fs::write(store.path(), bytes).expect("the folder is ours");
    fs::set_permissions(store.path(), Permissions::from_mode(0o600)).expect("it is ours");
    let _ = store.load();
    let kept = SecretBytes::copy_from(&mut bytes.to_vec()).expect("there is memory");
    let _ = ca::decoders::kept(&kept);
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
