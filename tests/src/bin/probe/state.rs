//! What a probe holds between two requests: its descriptors and its maps, by number.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use keyhole_tests::{EBADF, Errno};

use crate::raw::Map;

/// Everything that is open.
#[derive(Default)]
pub(crate) struct State {
    files: BTreeMap<i32, OwnedFd>,
    maps: Vec<Map>,
    pub(crate) listener: Option<UnixListener>,
}

impl State {
    /// Keeps a descriptor; its number is the kernel's own, so that `/proc/self/fd/N` names it.
    pub(crate) fn keep(&mut self, fd: OwnedFd) -> i64 {
        let number = fd.as_raw_fd();
        self.files.insert(number, fd);
        i64::from(number)
    }

    pub(crate) fn fd(&self, number: i32) -> Result<BorrowedFd<'_>, Errno> {
        use std::os::fd::AsFd;
        self.files.get(&number).map(AsFd::as_fd).ok_or(EBADF)
    }

    pub(crate) fn close(&mut self, number: i32) -> Result<(), Errno> {
        self.files.remove(&number).map(drop).ok_or(EBADF)
    }

    pub(crate) fn keep_map(&mut self, map: Map) -> i64 {
        self.maps.push(map);
        self.maps.len() as i64 - 1
    }

    pub(crate) fn map(&mut self, number: usize) -> &mut Map {
        self.maps.get_mut(number).expect("a test uses the maps that it made")
    }
}
