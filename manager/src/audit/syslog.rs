//! Copies of the audit's lines for the machine's syslog, as datagrams in the format of RFC 5424. Invariant: nothing waits
//! for it; what it does not take at once is dropped and counted.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Facility *security/authorization, private* (10), severity *notice* (5).
const PRIORITY: u8 = 10 * 8 + 5;

#[derive(Debug)]
pub(super) struct Syslog {
    path: PathBuf,
    socket: UnixDatagram,
    dropped: u64,
}

impl Syslog {
    /// For the socket at `path`; whether anybody reads there is seen at each line.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), socket, dropped: 0 })
    }

    /// Sends a line, if it is taken at once.
    pub(super) fn send(&mut self, line: &str) {
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        let pid = std::process::id();
        let text = format!("<{PRIORITY}>1 {now} - keyhole-manager {pid} audit - {line}");
        if self.socket.send_to(text.as_bytes(), &self.path).is_err() {
            self.dropped += 1;
        }
    }

    /// Warns of what was dropped since the last time.
    pub(super) fn report(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let socket = self.path.display();
            tracing::warn!(dropped, %socket, "syslog did not take lines of the audit; the files have them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_datagram_and_a_missing_or_full_syslog_only_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut syslog = Syslog::new(&path).unwrap();
        syslog.send("{}");
        assert_eq!(syslog.dropped, 1, "nobody is there");
        let reader = UnixDatagram::bind(&path).unwrap();
        syslog.send("{\"a\":1}");
        let mut bytes = [0; 200];
        let length = reader.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(text.starts_with("<85>1 20") && text.contains("Z - keyhole-manager "), "{text}");
        assert!(text.ends_with(" audit - {\"a\":1}"), "{text}");
        for _ in 0..10_000 {
            syslog.send("{\"a\":1}");
        }
        assert!(syslog.dropped > 1, "a reader that does not read holds nothing up");
        syslog.report();
        assert_eq!(syslog.dropped, 0);
    }
}
