//! What the tests of this crate look at: their own memory through /proc, and a child process that
//! runs one test body on its own.
#![expect(unsafe_code, reason = "tests look at raw memory through the kernel")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};

/// Up to `len` bytes at `address`, read through /proc/self/mem; empty when nothing is mapped there.
pub(crate) fn memory_at(address: usize, len: usize) -> Vec<u8> {
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut bytes = vec![0; len];
    match memory.read_at(&mut bytes, address as u64) {
        Ok(read) => bytes.truncate(read),
        Err(_) => bytes.clear(),
    }
    bytes
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// `VmLck` of /proc/self/status.
pub(crate) fn vm_locked_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// `VmFlags` of the mapping that holds `address`.
pub(crate) fn smaps_flags(address: usize) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-'))
            && let (Ok(start), Ok(end)) =
                (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            inside = (start..end).contains(&address);
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping holds {address:#x}");
}

const CHILD: &str = "KEYHOLE_SECMEM_TEST_CHILD";

/// What a child process left.
pub(crate) struct Ended(Option<Output>);

impl Ended {
    /// The child's output, in the parent.
    pub(crate) fn in_parent(&self, look: impl FnOnce(&Output)) {
        if let Some(output) = &self.0 {
            look(output);
        }
    }

    pub(crate) fn assert_prints(&self, wanted: &str) {
        self.in_parent(|output| {
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(printed.contains(wanted), "{output:?}");
        });
    }
}

/// Runs `body` of the test `name` in a process of its own (`arg` is what the variable says).
pub(crate) fn in_child(name: &str, body: impl FnOnce(&str)) -> Ended {
    in_child_with(name, "1", body)
}

pub(crate) fn in_child_with(name: &str, arg: &str, body: impl FnOnce(&str)) -> Ended {
    if let Ok(arg) = std::env::var(CHILD) {
        body(&arg);
        return Ended(None);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, arg);
    Ended(Some(command.output().unwrap()))
}

/// Runs `body` in a process of its own, for what is counted per process; fails as it fails.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    in_child(name, |_| {
        body();
        println!("it went well");
    })
    .assert_prints("it went well");
}

/// A pipe that already holds `contents` and is closed for writing.
pub(crate) fn pipe_with(contents: Vec<u8>) -> std::io::PipeReader {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        // The reader may stop early; that is its right.
        let _ = writer.write_all(&contents);
    });
    reader
}

/// Whether `fd` is closed by an exec.
pub(crate) fn closes_on_exec(fd: i32) -> bool {
    // SAFETY: F_GETFD has no memory arguments.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    assert!(flags >= 0);
    flags & libc::FD_CLOEXEC != 0
}

/// Whether the thread waits in the kernel.
pub(crate) fn is_asleep(thread: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('S')
}
