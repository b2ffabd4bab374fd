//! A network of a test's own: each host in a network namespace, all on one bridge, where lines can be cut in one
//! direction or in both, and slowed.
//!
//! The namespaces live as long as the processes that hold them, which end with the test. A cut is a route into nowhere, so
//! packets are lost as on a broken line, and connections notice nothing but silence.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use crate::daemon::die_with_parent;
use crate::wait;

/// A namespace, held by a process that waits for the end of its input.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        die_with_parent(&mut command, libc::SIGKILL);
        let holder = command.spawn().expect("unshare is there");
        let made = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").expect("proc is mounted");
        wait::until("a network namespace", || {
            let now = std::fs::read_link(made.path()).map_err(|error| error.to_string())?;
            if now == own { Err("not yet".to_owned()) } else { Ok(()) }
        });
        made
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    fn ip(&self, words: &str) {
        self.done(&format!("ip {words}"));
    }

    /// Runs a command of iproute2 in it, which must succeed.
    fn done(&self, words: &str) {
        let ran = self.tried(words);
        assert!(ran.status.success(), "{words}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn tried(&self, words: &str) -> std::process::Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).args(words.split(' '));
        command.output().expect("nsenter is there")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The network.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Namespace>,
    hub: Namespace,
}

impl Network {
    /// With so many hosts, numbered from 0, which all reach each other.
    pub fn new(hosts: usize) -> Self {
        let hub = Namespace::new();
        hub.ip("link add hub type bridge");
        hub.ip("link set hub up");
        let hosts: Vec<Namespace> = (0..hosts).map(|_| Namespace::new()).collect();
        for (at, host) in hosts.iter().enumerate() {
            let pid = host.holder.id();
            hub.ip(&format!("link add line{at} type veth peer name eth0 netns {pid}"));
            hub.ip(&format!("link set line{at} master hub up"));
            host.ip(&format!("addr add {}/24 dev eth0", address(at)));
            host.ip("link set eth0 up");
            host.ip("link set lo up");
        }
        Self { hosts, hub }
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Where a host's manager listens.
    pub fn address(&self, host: usize) -> SocketAddr {
        (address(host), 7070).into()
    }

    /// What runs a command on a host.
    pub fn on(&self, host: usize) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.hosts[host].path())]
    }

    /// From now on nothing that one host sends reaches the other.
    pub fn cut(&self, from: usize, to: usize) {
        self.hosts[from].ip(&format!("route replace blackhole {}/32", address(to)));
    }

    /// A host is cut off from all others, in both directions.
    pub fn isolate(&self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut(host, other);
            self.cut(other, host);
        }
    }

    /// All that a host sends and gets goes through a line of 50 kB a second, on which it waits for up to 0.4 s, and is
    /// lost when more is sent.
    pub fn slow(&self, host: usize) {
        const LINE: &str = "root tbf rate 400kbit burst 5kb latency 400ms";
        self.hosts[host].done(&format!("tc qdisc replace dev eth0 {LINE}"));
        self.hub.done(&format!("tc qdisc replace dev line{host} {LINE}"));
    }

    /// All lines are whole and fast again.
    pub fn heal(&self) {
        for (from, host) in self.hosts.iter().enumerate() {
            // It may be fast.
            let _ = host.tried("tc qdisc del dev eth0 root");
            let _ = self.hub.tried(&format!("tc qdisc del dev line{from} root"));
            for to in (0..self.hosts.len()).filter(|to| *to != from) {
                // There may be none.
                let _ = host.tried(&format!("ip route del blackhole {}/32", address(to)));
            }
        }
    }
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).expect("few hosts"))
}
