//! Mounting for real, in folders of our own. Nothing serves these superblocks, so no test may
//! look at a path inside one.

use super::*;

/// A temporary folder whose mounts are gone before it is.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn mounts(&self) -> Vec<MountEntry> {
        let root = self.at("");
        mountinfo::read()
            .unwrap()
            .into_iter()
            .filter(|e| e.mount_point.starts_with(&root))
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for entry in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(&entry.mount_point, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn the_attached_mount_is_read_only_and_its_detached_clone_is_not() {
    let scratch = Scratch::new();
    let path = scratch.at("deep/secrets");
    let superblock = Superblock::create().unwrap();
    // Length, then opcode 26 (FUSE_INIT), as the kernel wrote them.
    let init = superblock.init().to_vec();
    assert_eq!(init[..4], u32::try_from(init.len()).unwrap().to_ne_bytes());
    assert_eq!(init[4..8], 26_u32.to_ne_bytes());

    let mount = superblock.attach(MountPoint::prepare(&path).unwrap()).unwrap();
    let [entry] = &scratch.mounts()[..] else { panic!("{:?}", scratch.mounts()) };
    assert_eq!((entry.mount_point.as_path(), entry.fs_type.as_str()), (path.as_path(), FS_TYPE));
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(entry.options.split(',').any(|o| o == option), "{}", entry.options);
    }
    assert_eq!(mount.connection(), Some(entry.minor));

    assert_eq!(FuseControl::open().unwrap().waiting(entry.minor).unwrap(), 1, "FUSE_INIT");

    let clone = mount.writable_clone().unwrap();
    assert_ne!(mountinfo::mount_id_of(&clone).unwrap(), entry.id);
    assert_eq!(scratch.mounts().len(), 1, "the clone is attached nowhere");

    mount.detach().unwrap();
    assert!(scratch.mounts().is_empty());
    mount.detach().unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn detaching_takes_our_mount_even_when_covered() {
    let scratch = Scratch::new();
    let path = scratch.at("m");
    let mount = Superblock::create().unwrap().attach(MountPoint::prepare(&path).unwrap()).unwrap();
    rustix::mount::mount("none", &path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let entries = scratch.mounts();
    let cover = mountinfo::top_mount_at(&entries, &path).unwrap();
    assert_eq!(cover.fs_type, "tmpfs");
    // One unmount would take only the tmpfs and leave ours for the next caller to hang in.
    mount.detach().unwrap();
    let own = mountinfo::mount_id_of(&mount.mount).unwrap();
    assert!(scratch.mounts().iter().all(|entry| entry.id != own && entry.fs_type != FS_TYPE));
}

#[test]
fn a_served_mount_point_is_refused_and_names_the_server() {
    let scratch = Scratch::new();
    let path = scratch.at("m");
    let mount = Superblock::create().unwrap().attach(MountPoint::prepare(&path).unwrap()).unwrap();
    let refused = MountPoint::prepare(&path).unwrap_err();
    assert!(
        matches!(&refused, MountError::Served { pid, .. } if *pid == std::process::id()),
        "{refused}"
    );
    let inside = MountPoint::prepare(&path.join("below")).unwrap_err();
    assert!(matches!(inside, MountError::Inside { .. }), "{inside}");
    mount.detach().unwrap();
}

/// Attaches a superblock over whatever is at `path` and lets its only holder die.
fn crash_at(path: &Path, source: &str) {
    let superblock = Superblock::create_as(source).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&superblock.mount, "", rustix::fs::CWD, path, flags).unwrap();
}

#[test]
fn stale_mounts_of_crashes_are_removed_also_when_stacked() {
    let scratch = Scratch::new();
    let path = scratch.at("m");
    make_directory(&path).unwrap();
    crash_at(&path, "keyhole-1-1");
    crash_at(&path, "keyhole-4194303-7");
    assert_eq!(scratch.mounts().len(), 2);
    assert_eq!(MountPoint::prepare(&path).unwrap().path(), path);
    assert!(scratch.mounts().is_empty());
}

#[test]
fn a_crashed_owner_is_told_from_a_living_one_and_from_a_recycled_pid() {
    let entry = |source: &str| MountEntry {
        id: 1,
        parent: 0,
        minor: 5,
        root: "/".into(),
        mount_point: "/m".into(),
        options: String::new(),
        fs_type: FS_TYPE.into(),
        source: source.into(),
    };
    assert_eq!(living_owner(&entry(&own_source().unwrap())), Some(std::process::id()));
    assert_eq!(living_owner(&entry(&format!("keyhole-{}-1", std::process::id()))), None);
    assert_eq!(living_owner(&entry("keyhole")), None);

    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
    // Wait until it is a zombie without reaping it: a zombie holds no connection.
    let id = rustix::process::Pid::from_child(&child);
    let exited = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    rustix::process::waitid(rustix::process::WaitId::Pid(id), exited).unwrap();
    assert_eq!(living_owner(&entry(&format!("keyhole-{pid}-{start}"))), None);
    child.wait().unwrap();
}

#[test]
fn what_is_not_an_empty_free_directory_is_refused() {
    let scratch = Scratch::new();
    let full = scratch.at("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("x"), b"").unwrap();
    assert!(matches!(MountPoint::prepare(&full), Err(MountError::NotEmpty { .. })));
    assert!(matches!(
        MountPoint::prepare(&full.join("x")),
        Err(MountError::NotADirectory { what: "a file", .. })
    ));
    let link = scratch.at("link");
    std::os::unix::fs::symlink(&full, &link).unwrap();
    assert!(matches!(
        MountPoint::prepare(&link),
        Err(MountError::NotADirectory { what: "a symbolic link", .. })
    ));
    assert!(matches!(
        MountPoint::prepare(Path::new("/proc")),
        Err(MountError::Occupied { fs_type, .. }) if fs_type == "proc"
    ));
    assert!(MountPoint::prepare(Path::new("/")).is_err());
}
