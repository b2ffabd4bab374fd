//! A daemon whose clock is days away from this machine's, by libfaketime.
//!
//! Only the time of day is moved: timers run as ever.

use std::path::PathBuf;
use std::process::Command;

/// Lets a command, and all that it starts, live this many days after today; before it, if negative.
pub fn move_clock(command: &mut Command, days: i32) {
    if days == 0 {
        return;
    }
    command.env("LD_PRELOAD", library()).env("FAKETIME", format!("{days:+}d"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DISABLE_SHM", "1");
}

/// Debian's folder for it is named after the machine's architecture.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("any Linux has it");
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|library| library.exists())
        .expect("libfaketime is installed (scripts/install-needs)")
}
