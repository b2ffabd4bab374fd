//! Writes a node's own files as the node does, and says after each that it is done: `node_files DATA IDENTITY`.
//!
//! For tests of the disk: a whole node takes long to start, and these are all the files that it keeps. Invariant: a line
//! is written after the change is acknowledged, never before, and the next change waits for a line of the test.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keyhole_domain::{TaskId, Timestamp};
use keyhole_node_fs::cgroups::CgroupRoot;
use keyhole_node_fs::join::IdentityStore;
use keyhole_node_fs::registry::{Registry, Task};
use keyhole_view::cgroup::CgroupId;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let data = args.next().context("the data folder")?;
    let folder = args.next().context("the folder of an identity")?;
    let given = IdentityStore::open(&folder)?.load()?.context("an identity")?;
    let store = IdentityStore::open(&data)?;
    for managers in ["first:1", "second:2"] {
        store.save(&given.identity, &given.roots, &[managers.to_owned()])?;
        done()?;
    }
    let root = CgroupRoot::find()?;
    let mut registry = Registry::restore(&data, "boot".to_owned(), &root)?;
    for number in 1..=2 {
        registry.add(task(number, root.path(), root.id()))?;
        done()?;
    }
    registry.remove(TaskId::from_entropy([1; 16]));
    done()
}

/// Every task is of a cgroup that lives.
fn task(number: u8, path: &Path, cgroup: CgroupId) -> Task {
    Task {
        id: TaskId::from_entropy([number; 16]),
        service: "web".to_owned(),
        cgroup,
        path: path.to_owned(),
        own: false,
        since: Timestamp(5),
    }
}

fn done() -> Result<()> {
    writeln!(std::io::stdout(), "done").context("nobody listens")?;
    std::io::stdin().read_line(&mut String::new()).context("nobody goes on").map(drop)
}
