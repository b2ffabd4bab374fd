//! One manager and one node: what most tests need, with the few operator's commands they all use.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::node::{Node, NodeOptions};
use crate::probe::Probe;
use crate::wait;

/// A manager and a node joined to it. Fields are dropped in order: the node first.
#[derive(Debug)]
pub struct Machine {
    /// The node.
    pub node: Node,
    /// The manager.
    pub cluster: Cluster,
}

impl Machine {
    /// Starts both.
    pub fn start() -> Self {
        Self::start_with(NodeOptions::default())
    }

    /// Starts both, the node with options.
    pub fn start_with(options: NodeOptions) -> Self {
        let cluster = Cluster::start();
        let node = cluster.node_with(options);
        Self { node, cluster }
    }

    /// `keyhole secret create`.
    #[track_caller]
    pub fn secret(&self, name: &str, value: impl AsRef<[u8]>) {
        self.cluster.ok_with(["secret", "create", name, "-"], value.as_ref());
    }

    /// `keyhole secret rotate --wait`: returns when the node shows the new value.
    #[track_caller]
    pub fn rotate(&self, name: &str, value: impl AsRef<[u8]>) {
        self.cluster.ok_with(["secret", "rotate", "--wait", name, "-"], value.as_ref());
    }

    /// `keyhole service create` with these grants.
    #[track_caller]
    pub fn service(&self, name: &str, grants: &[&str]) {
        let secrets = grants.iter().flat_map(|grant| ["--secret", grant]);
        self.cluster.ok(["service", "create", name].into_iter().chain(secrets));
    }

    /// `keyhole service update`. What it did has reached the node when the caller has seen it there.
    #[track_caller]
    pub fn update(&self, name: &str, args: &[&str]) {
        self.cluster.ok(["service", "update", name].iter().chain(args));
    }

    /// A new task of a service.
    #[track_caller]
    pub fn task(&self, service: &str) -> Probe {
        self.node.task(service)
    }

    /// One secret `pw` with this value, a service `web` that has it, and a task.
    #[track_caller]
    pub fn web(&self, value: impl AsRef<[u8]>) -> Probe {
        self.secret("pw", value);
        self.service("web", &["pw"]);
        self.task("web")
    }

    /// A path below the mount, as text.
    pub fn at(&self, name: &str) -> String {
        self.node.path(name).display().to_string()
    }

    /// Asks again until it is so, with the daemons' logs if it never is.
    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let ask = || is_so().then_some(()).ok_or_else(|| "it is not so".to_owned());
        wait::until_within(Duration::from_secs(15), what, ask);
    }
}
