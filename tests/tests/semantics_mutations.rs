//! docs/SEMANTICS.md, "What would change something": nothing does.

use std::path::PathBuf;

use keyhole_tests::{
    Ask, EACCES, EBADF, EEXIST, EINVAL, ENOENT, ENOTTY, EOPNOTSUPP, EROFS, EXDEV, Errno, Fd,
    Machine, Probe,
};

const EADDRINUSE: Errno = Errno(libc::EADDRINUSE);

/// A task with `pw` and `tls/key`, and what must be unchanged in the end.
struct Stand {
    task: Probe,
    machine: Machine,
}

impl Stand {
    fn new() -> Self {
        let machine = Machine::start();
        machine.secret("pw", "hunter2");
        machine.service("web", &["pw", "source=pw,target=tls/key"]);
        let task = machine.task("web");
        Self { task, machine }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.machine.node.path(name)
    }

    fn outside(&self, name: &str) -> PathBuf {
        let path = self.task.scratch().join(name);
        std::fs::write(&path, "outside").unwrap();
        path
    }

    fn open(&self) -> Fd {
        self.task.open(self.at("pw"), libc::O_RDONLY).unwrap()
    }

    #[track_caller]
    fn fails(&self, ask: Ask, errno: Errno) {
        let words = format!("{ask:?}");
        assert_eq!(self.task.ask(&ask).err(), Some(errno), "{words}");
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert_eq!(self.task.text(self.at("pw")), Ok("hunter2".into()));
        assert_eq!(self.task.names(self.at("")), Ok(vec!["pw".into(), "tls".into()]));
        assert_eq!(self.task.names(self.at("tls")), Ok(vec!["key".into()]));
        assert_eq!(self.task.stat(self.at("pw")).unwrap().mode & 0o7777, 0o444);
    }
}

#[test]
fn s43_truncate_is_erofs() {
    let stand = Stand::new();
    stand.fails(Ask::Truncate(stand.at("pw"), 0), EROFS);
    stand.fails(Ask::Truncate(stand.at("pw"), 1000), EROFS);
    stand.fails(Ask::Ftruncate(stand.open().0, 0), EINVAL);
}

#[test]
fn s44_creating_is_erofs() {
    let stand = Stand::new();
    for new in ["new", "tls/new"] {
        stand.fails(Ask::Mkdir(stand.at(new)), EROFS);
        stand.fails(Ask::Symlink("pw".into(), stand.at(new)), EROFS);
        stand.fails(Ask::Mkfifo(stand.at(new)), EROFS);
        stand.fails(Ask::BindSocket(stand.at(new)), EROFS);
    }
    for there in ["pw", "tls"] {
        stand.fails(Ask::Mkdir(stand.at(there)), EEXIST);
        stand.fails(Ask::Symlink("pw".into(), stand.at(there)), EEXIST);
        stand.fails(Ask::Mkfifo(stand.at(there)), EEXIST);
        stand.fails(Ask::BindSocket(stand.at(there)), EADDRINUSE);
    }
}

#[test]
fn s45_removing_is_erofs() {
    let stand = Stand::new();
    for name in ["pw", "tls/key", "tls", "nothing"] {
        stand.fails(Ask::Unlink(stand.at(name)), EROFS);
        stand.fails(Ask::Rmdir(stand.at(name)), EROFS);
    }
}

#[test]
fn s46_renaming_is_erofs() {
    let stand = Stand::new();
    for flags in [0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE] {
        stand.fails(Ask::Rename(stand.at("pw"), stand.at("tls/key"), flags), EROFS);
        stand.fails(Ask::Rename(stand.at("pw"), stand.at("new"), flags), EROFS);
        stand.fails(Ask::Rename(stand.at("tls"), stand.at("new"), flags), EROFS);
        stand.fails(Ask::Rename(stand.at("pw"), stand.outside("o"), flags), EXDEV);
        stand.fails(Ask::Rename(stand.outside("o"), stand.at("pw"), flags), EXDEV);
    }
}

#[test]
fn s47_linking_is_erofs() {
    let stand = Stand::new();
    stand.fails(Ask::Link(stand.at("pw"), stand.at("new")), EROFS);
    stand.fails(Ask::Link(stand.at("pw"), stand.at("tls/key")), EEXIST);
    stand.fails(Ask::Link(stand.at("pw"), stand.task.scratch().join("new")), EXDEV);
    stand.fails(Ask::Link(stand.outside("o"), stand.at("new")), EROFS);
}

#[test]
fn s48_changing_attributes_is_erofs() {
    let stand = Stand::new();
    for name in ["", "pw", "tls", "tls/key"] {
        stand.fails(Ask::Chmod(stand.at(name), 0o777), EROFS);
        stand.fails(Ask::Chown(stand.at(name), 1000, 1000), EROFS);
        stand.fails(Ask::Touch(stand.at(name)), EROFS);
    }
    stand.fails(Ask::Fchmod(stand.open().0, 0o777), EROFS);
}

#[test]
fn s49_changing_extended_attributes_is_erofs() {
    let stand = Stand::new();
    for name in ["", "pw", "tls"] {
        for attribute in ["user.keyhole.version", "user.other", "trusted.x"] {
            stand.fails(Ask::SetXattr(stand.at(name), attribute.into()), EROFS);
            stand.fails(Ask::RemoveXattr(stand.at(name), attribute.into()), EROFS);
        }
    }
}

#[test]
fn s50_a_descriptor_for_reading_does_not_write() {
    let stand = Stand::new();
    let (fd, second) = (stand.open(), stand.open());
    stand.fails(Ask::Write(fd.0, b"x".to_vec()), EBADF);
    stand.fails(Ask::Fallocate(fd.0), EBADF);
    stand.fails(Ask::CopyRange(second.0, fd.0), EBADF);
}

#[test]
fn s51_ioctls() {
    let stand = Stand::new();
    let fd = stand.open();
    stand.fails(Ask::SetFlags(fd.0), EROFS);
    stand.fails(Ask::GetFlags(fd.0), ENOTTY);
}

#[test]
fn s52_the_mode_may_forbid_first() {
    let stand = Stand::new();
    let user = stand.task.mate();
    user.become_user(1000, 1000, &[]);
    let pw = stand.at("pw");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND] {
        assert_eq!(user.open(&pw, flags), Err(EACCES), "{flags:#o}");
    }
    for flags in [libc::O_TRUNC, libc::O_WRONLY | libc::O_TRUNC] {
        assert_eq!(user.open(&pw, flags), Err(EROFS), "{flags:#o}");
    }
    assert_eq!(user.call(Ask::Truncate(pw.clone(), 0)), Err(EACCES));
    assert_eq!(user.access(&pw, libc::W_OK), Err(EACCES));
    for ask in [
        Ask::Unlink(pw.clone()),
        Ask::Chmod(pw.clone(), 0o777),
        Ask::Mkdir(stand.at("new")),
        Ask::Rename(pw.clone(), stand.at("new"), 0),
        Ask::Link(pw.clone(), stand.at("new")),
        Ask::SetXattr(pw.clone(), "user.x".into()),
        Ask::Touch(pw),
    ] {
        assert_eq!(user.ask(&ask).err(), Some(EROFS), "{ask:?}");
    }
}

#[test]
fn s53_remounted_read_write_the_node_refuses() {
    let stand = Stand::new();
    let task = &stand.task;
    let root = task.scratch().join("rw");
    std::fs::create_dir(&root).unwrap();
    task.call(Ask::Unshare(libc::CLONE_NEWNS as u32)).unwrap();
    task.call(Ask::MountsPrivate).unwrap();
    task.call(Ask::Bind { from: stand.at(""), to: root.clone() }).unwrap();
    task.call(Ask::Remount { at: root.clone(), flags: 0 }).unwrap();
    let at = |name: &str| root.join(name);
    assert_eq!(task.statfs(&root).unwrap().flags & libc::ST_RDONLY, 0, "it is read-write now");
    let pw = at("pw");
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_WRONLY | libc::O_TRUNC,
        libc::O_APPEND,
        libc::O_RDWR | libc::O_CREAT,
    ] {
        assert_eq!(task.open(&pw, flags), Err(EROFS), "{flags:#o}");
    }
    for flags in [libc::O_CREAT | libc::O_RDWR, libc::O_CREAT | libc::O_EXCL] {
        assert_eq!(task.open(at("new"), flags), Err(EROFS), "{flags:#o}");
    }
    assert_eq!(task.open(&root, libc::O_TMPFILE | libc::O_RDWR), Err(EOPNOTSUPP));
    for ask in [
        Ask::Truncate(pw.clone(), 0),
        Ask::Mkdir(at("new")),
        Ask::Symlink("pw".into(), at("new")),
        Ask::Mkfifo(at("new")),
        Ask::BindSocket(at("new")),
        Ask::Unlink(pw.clone()),
        Ask::Rmdir(at("tls")),
        Ask::Rename(pw.clone(), at("new"), 0),
        Ask::Rename(pw.clone(), at("tls/key"), libc::RENAME_EXCHANGE),
        Ask::Link(pw.clone(), at("new")),
        Ask::Chmod(pw.clone(), 0o777),
        Ask::Chown(pw.clone(), 1000, 1000),
        Ask::Touch(pw.clone()),
        Ask::SetXattr(pw.clone(), "user.keyhole.version".into()),
        Ask::RemoveXattr(pw.clone(), "user.keyhole.version".into()),
    ] {
        assert_eq!(task.ask(&ask).err(), Some(EROFS), "{ask:?}");
    }
    let outsider = task.mate();
    outsider.join(&stand.machine.node.ground().cgroup().child("outside"));
    assert_eq!(outsider.call(Ask::Unlink(stand.at("pw"))), Err(EROFS));
    assert_eq!(outsider.open(stand.at("pw"), libc::O_WRONLY), Err(ENOENT));
}
