//! What a process does at its start so that nothing of its memory is written anywhere: no dumps, no
//! cores, and panics that say where, never what.
#![expect(unsafe_code, reason = "prctl and setrlimit")]

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, Location};
use std::process;

/// The process could not be made undumpable.
#[derive(Debug, thiserror::Error)]
#[error("cannot forbid dumps of this process's memory (PR_SET_DUMPABLE): {0}")]
pub struct DumpsError(io::Error);

/// The limit on core files could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot forbid core files (RLIMIT_CORE): {0}")]
pub struct CoresError(io::Error);

/// A panic inside [`contained`]. Its message is gone: it could quote a value.
#[derive(Debug, thiserror::Error)]
#[error("internal error at {location}")]
pub struct ContainedPanic {
    location: String,
}

impl ContainedPanic {
    /// `FILE:LINE` of the panic.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }
}

/// No core dumps, and no ptrace or /proc/PID/mem for processes without privilege (`PR_SET_DUMPABLE`).
pub fn forbid_dumps() -> Result<(), DumpsError> {
    let none: libc::c_ulong = 0;
    // SAFETY: PR_SET_DUMPABLE takes numbers only.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, none, none, none, none) } {
        0 => Ok(()),
        _ => Err(DumpsError(io::Error::last_os_error())),
    }
}

/// No core files, also for the programs that this process starts (`RLIMIT_CORE`).
pub fn forbid_cores() -> Result<(), CoresError> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid limit that outlives the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } {
        0 => Ok(()),
        _ => Err(CoresError(io::Error::last_os_error())),
    }
}

thread_local! {
    static CONTAINED: Cell<u32> = const { Cell::new(0) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on a panic prints `keyhole: internal error at FILE:LINE`, never its message, and aborts
/// the process, unless it happens inside [`contained`].
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let location = describe(info.location());
        if CONTAINED.get() > 0 {
            LAST.set(Some(location));
            return;
        }
        // A closed stderr must not turn into a second panic.
        let _ = writeln!(io::stderr(), "keyhole: internal error at {location}");
        process::abort();
    }));
}

/// Runs `work`; a panic in it becomes an error that tells where it was.
///
/// For libraries that panic on a corrupt file. What `work` had borrowed mutably must not be used
/// after an error. Without [`install_panic_hook`] the standard hook still prints the message.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, ContainedPanic> {
    CONTAINED.set(CONTAINED.get() + 1);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(CONTAINED.get() - 1);
    outcome.map_err(|_message| ContainedPanic {
        location: LAST.take().unwrap_or_else(|| describe(None)),
    })
}

fn describe(location: Option<&Location<'_>>) -> String {
    match location {
        Some(location) => {
            // Where crates lie on the machine that built this is nobody's business.
            let file = location.file();
            let in_crate =
                file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
            format!("{}:{}", in_crate.map_or(file, |(_, file)| file), location.line())
        }
        None => "an unknown place".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::testing::in_child;

    #[test]
    fn dumps_and_cores_are_off() {
        in_child("harden::tests::dumps_and_cores_are_off", |_| {
            forbid_dumps().unwrap();
            forbid_cores().unwrap();
            // SAFETY: PR_GET_DUMPABLE takes no pointers.
            let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
            let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            let core: Vec<_> = core.split_whitespace().skip(4).collect();
            println!("dumpable {dumpable}, core {core:?}");
        })
        .assert_prints(r#"dumpable 0, core ["0", "0", "bytes"]"#);
    }

    #[test]
    fn a_panic_prints_where_but_not_what_and_aborts() {
        let name = "harden::tests::a_panic_prints_where_but_not_what_and_aborts";
        in_child(name, |_| {
            forbid_cores().unwrap();
            install_panic_hook();
            let canary = ["can", "ary"].concat();
            panic!("the value is {canary}");
        })
        .in_parent(|output| {
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(
                printed.contains("keyhole: internal error at secmem/src/harden.rs:"),
                "{printed}"
            );
            let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
            assert!(!String::from_utf8_lossy(&all).contains("canary"), "{output:?}");
            assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        });
    }

    #[test]
    fn a_contained_panic_is_an_error_and_prints_nothing() {
        let name = "harden::tests::a_contained_panic_is_an_error_and_prints_nothing";
        in_child(name, |_| {
            install_panic_hook();
            let canary = ["can", "ary"].concat();
            let inner = contained(|| {
                contained(|| panic!("deep {canary}"))
                    .map_or_else(|e| e.to_string(), |()| String::new())
            });
            println!("inner: {}", inner.unwrap());
            let error = contained(|| panic!("the value is {canary}")).unwrap_err();
            println!("outer: {error}");
            assert_eq!(contained(|| 7).unwrap(), 7);
        })
        .in_parent(|output| {
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{output:?}");
            assert!(
                printed.contains("inner: internal error at secmem/src/harden.rs:"),
                "{printed}"
            );
            assert!(
                printed.contains("outer: internal error at secmem/src/harden.rs:"),
                "{printed}"
            );
            let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
            assert!(!String::from_utf8_lossy(&all).contains("canary"), "{output:?}");
        });
    }
}
