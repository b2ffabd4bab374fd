//! Where the binaries under test are: beside the test executable, in the same profile's folder.

use std::path::PathBuf;

/// The `keyhole` binary; `KEYHOLE_BIN` overrides the one of this profile.
pub fn keyhole_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KEYHOLE_BIN") {
        return path.into();
    }
    beside("keyhole", "cargo build -p keyhole-cli")
}

/// The probe: this crate's own helper binary, built together with its tests.
pub fn probe_binary() -> PathBuf {
    beside("probe", "cargo build -p keyhole-tests --bins")
}

/// What opens and judges secrets as fast as it can.
pub fn reader_binary() -> PathBuf {
    beside("reader", "cargo build -p keyhole-tests --bins")
}

/// What keeps bytes on its heap for a memory scan to find.
pub fn keeper_binary() -> PathBuf {
    beside("keeper", "cargo build -p keyhole-tests --bins")
}

/// What measures.
pub fn bench_binary() -> PathBuf {
    beside("bench", "cargo build -p keyhole-tests --bins")
}

/// What writes a node's own files.
pub fn node_files_binary() -> PathBuf {
    beside("node_files", "cargo build -p keyhole-tests --bins")
}

fn beside(name: &str, build: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this executable has a path");
    // target/PROFILE/deps/TEST-HASH, or target/PROFILE/BENCH
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no binary {name:?} beside {}: run `{build}` with the same profile first",
            own.display()
        )
    })
}
