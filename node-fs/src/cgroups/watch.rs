//! Noticing that a task's cgroup has emptied or gone (`cgroup.events`, cgroups(7)).
//!
//! The file says `populated 0` already at creation, so that a task ends on a change from 1 to 0,
//! on removal, or when nobody ever entered. The kernel signals each change as `POLLPRI`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use keyhole_view::cgroup::CgroupId;

use super::{CgroupError, CgroupRoot};
use crate::sys;

/// How long a fresh cgroup may stay empty before its task is dropped.
const UNPOPULATED_LIMIT: Duration = Duration::from_secs(30);
/// How often the directory itself is looked for: removing an empty cgroup signals nobody.
const REMOVAL_CHECK: Duration = Duration::from_secs(2);

/// Why a task's cgroup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupEnd {
    /// The last process left.
    Emptied,
    /// Nobody ever entered within the limit.
    NeverPopulated,
    /// The directory is gone.
    Removed,
}

/// A watch on one cgroup.
#[derive(Debug)]
pub struct CgroupWatch {
    events: AsyncFd<File>,
    directory: File,
    seen: Events,
    populated_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Events {
    populated: bool,
    frozen: bool,
}

impl CgroupWatch {
    /// Starts watching (inside a tokio runtime). `id` must be that of the directory at `path`.
    pub fn open(root: &CgroupRoot, path: &Path, id: CgroupId) -> Result<Self, CgroupError> {
        let (directory, found) = root.open_cgroup(path)?;
        if found != id {
            return Err(CgroupError::NotACgroup {
                path: path.to_owned(),
                root: root.path().to_owned(),
            });
        }
        let open = || -> io::Result<(AsyncFd<File>, Events)> {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let events =
                rustix::fs::openat(&directory, "cgroup.events", flags, rustix::fs::Mode::empty())?;
            let events = File::from(events);
            // Reading sets the mark that later changes are told from.
            let seen = read_events(&events)?;
            Ok((sys::watch_priority(events)?, seen))
        };
        let (events, seen) = open().map_err(CgroupError::system("watch", path))?;
        Ok(Self { events, directory, seen, populated_once: seen.populated })
    }

    /// Whether somebody is, or was, in it.
    pub fn populated_once(&self) -> bool {
        self.populated_once
    }

    /// Waits until the cgroup ends. `age` is how long it has been a task's: the limit for an empty one counts
    /// from there, so that one which emptied while nobody watched is dropped soon after.
    pub async fn ended(mut self, age: Duration) -> CgroupEnd {
        let deadline = Instant::now() + UNPOPULATED_LIMIT.saturating_sub(age);
        self.ended_by(deadline).await
    }

    async fn ended_by(&mut self, deadline: Instant) -> CgroupEnd {
        loop {
            let change = tokio::time::timeout(REMOVAL_CHECK, self.changed()).await;
            match change {
                Ok(Ok(events)) => {
                    if let Some(end) = self.judge(events) {
                        return end;
                    }
                }
                // The file of a removed cgroup answers ENODEV.
                Ok(Err(_)) => return CgroupEnd::Removed,
                Err(_elapsed) if self.removed() => return CgroupEnd::Removed,
                // A signal that got lost costs seconds, not the task's end.
                Err(_elapsed) if self.is_empty_again() => return CgroupEnd::Emptied,
                Err(_elapsed) if !self.populated_once && Instant::now() >= deadline => {
                    return CgroupEnd::NeverPopulated;
                }
                Err(_elapsed) => {}
            }
        }
    }

    fn is_empty_again(&mut self) -> bool {
        let now = read_events(self.events.get_ref());
        self.populated_once |= now.as_ref().is_ok_and(|events| events.populated);
        self.populated_once && now.is_ok_and(|events| !events.populated)
    }

    async fn changed(&mut self) -> io::Result<Events> {
        let mut ready = self.events.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        read_events(self.events.get_ref())
    }

    fn judge(&mut self, now: Events) -> Option<CgroupEnd> {
        let before = std::mem::replace(&mut self.seen, now);
        // A signal without any visible difference is a 0 -> 1 -> 0 that was too quick to see.
        let unseen_visit = !now.populated && now == before;
        self.populated_once |= now.populated || unseen_visit;
        (self.populated_once && !now.populated).then_some(CgroupEnd::Emptied)
    }

    fn removed(&self) -> bool {
        rustix::fs::fstat(self.directory.as_fd()).map_or(true, |stat| stat.st_nlink == 0)
            || read_events(self.events.get_ref()).is_err()
    }
}

fn read_events(file: &File) -> io::Result<Events> {
    let mut buffer = [0_u8; 256];
    let read = file.read_at(&mut buffer, 0)?;
    let text = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default());
    let flag = |name: &str| {
        text.lines().any(|line| line.strip_prefix(name).is_some_and(|value| value.trim() == "1"))
    };
    Ok(Events { populated: flag("populated "), frozen: flag("frozen ") })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Sleeper, scratch};
    use super::*;

    async fn end_of(watch: CgroupWatch) -> CgroupEnd {
        tokio::time::timeout(Duration::from_secs(20), watch.ended(Duration::ZERO)).await.unwrap()
    }

    #[tokio::test]
    async fn a_task_ends_when_its_last_process_does() {
        let scratch = scratch();
        let cgroup = scratch.create("task");
        let watch = CgroupWatch::open(&scratch.root, cgroup.path(), cgroup.id()).unwrap();
        assert!(!watch.populated_once());
        let sleeper = Sleeper::inside(cgroup.path());
        let ended = tokio::spawn(end_of(watch));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!ended.is_finished(), "a populated cgroup is not at its end");
        drop(sleeper);
        assert_eq!(ended.await.unwrap(), CgroupEnd::Emptied);
    }

    #[tokio::test]
    async fn a_visit_too_short_to_be_seen_ends_the_task_too() {
        let scratch = scratch();
        let cgroup = scratch.create("task");
        let watch = CgroupWatch::open(&scratch.root, cgroup.path(), cgroup.id()).unwrap();
        drop(Sleeper::inside(cgroup.path()));
        assert_eq!(end_of(watch).await, CgroupEnd::Emptied);
    }

    #[tokio::test]
    async fn removal_ends_a_task_nobody_entered() {
        let scratch = scratch();
        let cgroup = scratch.create("task");
        let watch = CgroupWatch::open(&scratch.root, cgroup.path(), cgroup.id()).unwrap();
        cgroup.remove().unwrap();
        assert_eq!(end_of(watch).await, CgroupEnd::Removed);
    }

    #[tokio::test]
    async fn an_empty_cgroup_is_dropped_after_its_limit_and_not_before() {
        let scratch = scratch();
        let cgroup = scratch.create("task");
        let mut watch = CgroupWatch::open(&scratch.root, cgroup.path(), cgroup.id()).unwrap();
        let start = Instant::now();
        let end = watch.ended_by(start + Duration::from_secs(3)).await;
        assert_eq!(end, CgroupEnd::NeverPopulated);
        assert!(start.elapsed() >= Duration::from_secs(3));
    }

    #[tokio::test]
    async fn another_cgroup_under_the_same_name_is_not_watched() {
        let scratch = scratch();
        let cgroup = scratch.create("task");
        cgroup.remove().unwrap();
        let other = scratch.create("task");
        assert_ne!(cgroup.id(), other.id());
        assert!(CgroupWatch::open(&scratch.root, other.path(), cgroup.id()).is_err());
    }
}
