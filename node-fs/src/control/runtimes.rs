//! Container runtimes and service managers that run on this machine, and the cgroups they are in.
//!
//! A cgroup that holds one of them holds all it ever starts, so it cannot be a task.

use keyhole_view::cgroup::CgroupPath;

use crate::cgroups::CgroupRoot;

/// Names of processes (`/proc/PID/comm`, at most 15 bytes) that start workloads of others.
const NAMES: [&str; 8] =
    ["systemd", "dockerd", "containerd", "crio", "podman", "kubelet", "nomad", "lxd"];

/// Those that run now. A process that ends meanwhile is left out.
pub(super) fn running(root: &CgroupRoot) -> Vec<(String, CgroupPath)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(comm) = std::fs::read_to_string(process.path().join("comm")) else { continue };
        if let Some(name) = NAMES.iter().find(|name| **name == comm.trim_end())
            && let Ok(cgroup) = root.of_process(pid)
        {
            found.push(((*name).to_owned(), cgroup));
        }
    }
    found
}
