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

/// A clock of its own for daemons, set while they run.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// One that shows this machine's time; `file` keeps it.
    pub fn new(file: PathBuf) -> Self {
        let clock = Self { file };
        clock.set_days(0);
        clock
    }

    /// From now on it is so many days after today; before it, if negative.
    pub fn set_days(&self, days: i32) {
        self.set(&format!("{days:+}d\n"));
    }

    /// From now on it is so many seconds ahead; behind, if negative.
    pub fn set_seconds(&self, seconds: i64) {
        self.set(&format!("{seconds:+}s\n"));
    }

    fn set(&self, offset: &str) {
        // As a whole: it is read all the time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset).expect("the folder is the test's");
        std::fs::rename(&new, &self.file).expect("the folder is the test's");
    }

    /// The environment of a daemon that lives by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = library().display().to_string();
        let file = self.file.display().to_string();
        let settings = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }
}

/// Debian's folder for it is named after the machine's architecture.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("any Linux has it");
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|library| library.exists())
        .expect("libfaketime is installed (scripts/install-needs)")
}
