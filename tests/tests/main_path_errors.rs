//! Errors for what is missing: one line each, that names the thing and the mend.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use keyhole_tests::{
    Cluster, Daemon, Ground, Machine, cgroup_root, free_address, keyhole_binary, move_clock,
    plain_command,
};
use rustix::process::Signal;

/// Runs a daemon that must fail, and gives its complaint: the last line, without the log's.
fn complaint(ground: &Ground, command: Command) -> String {
    let mut daemon = Daemon::start(ground, "failing", command);
    let status = daemon.wait();
    assert_eq!(status.code(), Some(1), "{status}: {}", daemon.log());
    let log = daemon.log();
    let complaints: Vec<&str> = log.lines().filter(|line| line.starts_with("keyhole: ")).collect();
    assert_eq!(complaints.len(), 1, "one line: {log}");
    complaints[0].to_owned()
}

#[track_caller]
fn names(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.to_lowercase().contains(&part.to_lowercase()), "{part:?} in {line:?}");
    }
}

fn manager(data: &Path, listen: &str, ground: &Ground) -> Command {
    let mut command = plain_command();
    command.args(["manager", "run", "--init", "--listen", listen, "--data-dir"]).arg(data);
    command.arg("--socket").arg(ground.folder().join("x.sock"));
    command
}

/// `keyhole node run` that joins with this token.
fn joining(ground: &Ground, address: &str, token: &str) -> Command {
    let mut command = plain_command();
    node_arguments(&mut command, ground, address, token);
    command.arg("--mount").arg(ground.folder().join("secrets"));
    command
}

fn node_arguments(command: &mut Command, ground: &Ground, address: &str, token: &str) {
    let file = ground.folder().join("token");
    std::fs::write(&file, token).unwrap();
    command.args(["node", "run", "--join", address, "--token-file"]).arg(file);
    command.arg("--data-dir").arg(ground.folder().join("data"));
    command.arg("--control-socket").arg(ground.folder().join("new.sock"));
}

/// `keyhole node run` behind words that change its world.
fn node(ground: &Ground, before: &[&str]) -> Command {
    let mut words = before.iter().map(|word| (*word).to_owned());
    let mut command = match words.next() {
        Some(first) => Command::new(first),
        None => Command::new(keyhole_binary()),
    };
    if !before.is_empty() {
        command.args(words).arg(keyhole_binary());
    }
    node_arguments(&mut command, ground, "127.0.0.1:1", "KH-1-x-y");
    command.arg("--mount").arg(ground.folder().join("secrets"));
    command
}

#[test]
fn a_taken_port() {
    let ground = Ground::new();
    let address = free_address();
    let _taken = TcpListener::bind(address).unwrap();
    let line =
        complaint(&ground, manager(&ground.folder().join("m"), &address.to_string(), &ground));
    names(&line, &[&address.to_string(), "in use", "--listen"]);
}

#[test]
fn an_unusable_data_folder() {
    let ground = Ground::new();
    let listen = free_address().to_string();
    let file = ground.folder().join("file");
    std::fs::write(&file, "x").unwrap();
    let line = complaint(&ground, manager(&file, &listen, &ground));
    names(&line, &[file.to_str().unwrap(), "not a directory", "--data-dir"]);
    let closed = ground.folder().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut command = manager(&closed.join("data"), &listen, &ground);
    command.uid(1000).gid(1000);
    names(&complaint(&ground, command), &[closed.to_str().unwrap(), "permission denied"]);
}

#[test]
fn a_clock_that_is_wrong() {
    let mut machine = Machine::start();
    machine.node.stop(Signal::TERM);
    let ground = Arc::clone(machine.node.ground());
    let mut command = machine.node.start_command();
    move_clock(&mut command, 40);
    names(&complaint(&ground, command), &["expired 39 days ago", "clock"]);
    // A clock that is behind may be set any moment: the node serves, and says what it waits for.
    machine.node.set_days(-10);
    machine.node.resume();
    let trouble = || machine.node.ok(["node", "status", "--format", "{{.Trouble}}"]);
    machine.until("the node to name the clock", || trouble().contains("not valid yet"));
    names(&trouble(), &["clock", &machine.cluster.address().to_string()]);
    machine.node.stop(Signal::TERM);
    machine.node.set_days(0);
    // The first contact of a node whose clock is behind.
    let address = machine.cluster.address().to_string();
    let mut command = joining(&ground, &address, &machine.cluster.node_token());
    move_clock(&mut command, -10);
    names(&complaint(&ground, command), &["not valid yet", "clock"]);

    machine.cluster.stop(Signal::TERM);
    for days in [-10, 36_500] {
        let mut command = manager(machine.cluster.data(), &address, &ground);
        move_clock(&mut command, days);
        names(&complaint(&ground, command), &["clock says", "valid from", "set the clock"]);
    }
    machine.cluster.resume();
    machine.node.resume();
}

#[test]
fn a_data_folder_on_a_read_only_disk() {
    let ground = Arc::new(Ground::new());
    let disk = ground.small_disk("m", 16);
    let mut cluster = Cluster::start_on(Arc::clone(&ground));
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.stop(Signal::TERM);
    disk.make_read_only();
    let listen = cluster.address().to_string();
    let line = complaint(&ground, manager(disk.at(), &listen, &ground));
    names(&line, &[disk.at().to_str().unwrap(), "read-only file system"]);
    let line = complaint(&ground, manager(&disk.at().join("new"), &listen, &ground));
    names(&line, &[disk.at().to_str().unwrap(), "read-only file system", "--data-dir"]);
}

#[test]
fn a_full_disk_under_the_store_loses_nothing_that_was_acknowledged() {
    let ground = Arc::new(Ground::new());
    let disk = ground.small_disk("m", 8);
    let mut cluster = Cluster::start_on(Arc::clone(&ground));
    let value = |number: usize| number.to_string().repeat(100_000);
    let mut kept = Vec::new();
    let refusal = loop {
        let name = format!("s{}", kept.len());
        let ran =
            cluster.keyhole_with(["secret", "create", &name, "-"], value(kept.len()).as_bytes());
        if ran.code != 0 {
            break ran;
        }
        kept.push(name);
    };
    assert!(kept.len() > 5, "{kept:?}");
    assert_eq!(refusal.stderr.trim_end().lines().count(), 1, "{}", refusal.stderr);
    // What cannot be kept is not acknowledged, and a store that could not write must be read again.
    let status = cluster.manager().wait();
    assert_eq!(status.code(), Some(1));
    let log = cluster.manager().log();
    let line = log.lines().find(|line| line.starts_with("keyhole: ")).unwrap();
    names(line, &["store.redb", "no space left", "free space"]);
    disk.resize(64);
    cluster.resume();
    let shown = cluster.ok(["secret", "ls", "--format", "{{.Name}}"]);
    let shown: Vec<&str> = shown.lines().collect();
    assert!(kept.iter().all(|name| shown.contains(&name.as_str())), "{kept:?} of {shown:?}");
    let grants = kept.iter().flat_map(|name| ["--secret", name]);
    cluster.ok(["service", "create", "web"].into_iter().chain(grants));
    let node = cluster.node();
    let task = node.task("web");
    for (number, name) in kept.iter().enumerate() {
        assert_eq!(task.text(node.path(name)), Ok(value(number)));
    }
}

#[test]
fn an_empty_data_folder_without_init() {
    let ground = Ground::new();
    let mut command = plain_command();
    let data = ground.folder().join("m");
    command.args(["manager", "run", "--listen", &free_address().to_string(), "--data-dir"]);
    command.arg(&data).arg("--socket").arg(ground.folder().join("x.sock"));
    names(&complaint(&ground, command), &[data.to_str().unwrap(), "--init"]);
}

#[test]
fn two_managers_on_one_folder() {
    let cluster = Cluster::start();
    let listen = free_address().to_string();
    let line = complaint(cluster.ground(), manager(cluster.data(), &listen, cluster.ground()));
    names(&line, &[cluster.data().to_str().unwrap(), "another"]);
}

#[test]
fn a_damaged_store_and_a_wrong_key() {
    let mut cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.stop(Signal::TERM);
    let ground = Arc::clone(cluster.ground());
    let (listen, data) = (cluster.address().to_string(), cluster.data().to_owned());
    let store = data.join("store.redb");
    let whole = std::fs::read(&store).unwrap();
    std::fs::write(&store, &whole[..whole.len() / 2]).unwrap();
    names(&complaint(&ground, manager(&data, &listen, &ground)), &["store.redb"]);
    std::fs::write(&store, &whole).unwrap();
    let key = data.join("kek");
    let right = std::fs::read_to_string(&key).unwrap();
    let last = right.trim_end().chars().last().unwrap();
    let wrong = if last == '0' { '1' } else { '0' };
    std::fs::write(&key, format!("{}{wrong}\n", &right.trim_end()[..right.trim_end().len() - 1]))
        .unwrap();
    let line = complaint(&ground, manager(&data, &listen, &ground));
    names(&line, &["store.redb", "key"]);
    std::fs::write(&key, right).unwrap();
    cluster.resume();
    assert_eq!(cluster.ok(["secret", "ls", "--format", "{{.Name}}"]), "pw\n");
}

#[test]
fn not_root() {
    let ground = Ground::new();
    let mut command = node(&ground, &[]);
    command.uid(1000).gid(1000);
    names(&complaint(&ground, command), &["root", "1000"]);
}

#[test]
fn an_old_kernel() {
    let ground = Ground::new();
    let command = node(&ground, &["setarch", "--uname-2.6"]);
    names(&complaint(&ground, command), &["kernel 2.6", "6.1"]);
}

#[test]
fn no_fuse_device() {
    let ground = Ground::new();
    let hide = "mount -t tmpfs none /dev && exec \"$@\"";
    let command = node(&ground, &["unshare", "-m", "sh", "-c", hide, "sh"]);
    names(&complaint(&ground, command), &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn no_cgroup_v2() {
    let ground = Ground::new();
    let hide = format!("umount -l {} && exec \"$@\"", cgroup_root().display());
    let command = node(&ground, &["unshare", "-m", "sh", "-c", &hide, "sh"]);
    names(&complaint(&ground, command), &["cgroup v2", "mount"]);
}

#[test]
fn a_wrong_token() {
    let cluster = Cluster::start();
    let ground = cluster.ground();
    let right = cluster.node_token();
    let last = right.chars().last().unwrap();
    let wrong_secret =
        format!("{}{}", &right[..right.len() - 1], if last == 'a' { 'b' } else { 'a' });
    let other = Cluster::start();
    let told = "keyhole cluster join-token";
    for (token, part) in
        [("nonsense".to_owned(), "token"), (wrong_secret, told), (other.node_token(), told)]
    {
        let command = joining(ground, &cluster.address().to_string(), &token);
        let line = complaint(ground, command);
        names(&line, &["token", part]);
        assert!(!line.contains(&token), "the token itself is never said: {line}");
    }
}

#[test]
fn no_manager_at_the_first_join() {
    let mut cluster = Cluster::start();
    let ground = Arc::clone(cluster.ground());
    let address = cluster.address().to_string();
    let command = joining(&ground, &address, &cluster.node_token());
    cluster.stop(Signal::TERM);
    names(&complaint(&ground, command), &[&address, "connection refused", "keyhole manager run"]);
}

#[test]
fn a_mount_point_that_is_not_free() {
    let machine = Machine::start();
    let ground = machine.node.ground();
    let full = ground.folder().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("file"), "x").unwrap();
    let file = full.join("file");
    let served = machine.node.mount();
    for (mount, what) in [(&full, "not empty"), (&file, "not a directory"), (&served, "another")] {
        let mut command = plain_command();
        let address = machine.cluster.address().to_string();
        node_arguments(&mut command, ground, &address, &machine.cluster.node_token());
        command.arg("--mount").arg(mount);
        names(&complaint(ground, command), &[mount.to_str().unwrap(), what]);
    }
    assert!(full.join("file").exists());
}

#[test]
fn nobody_at_the_sockets() {
    let ground = Ground::new();
    let nothing = ground.folder().join("nothing.sock");
    for words in [["--host", "secret", "ls"], ["--node-socket", "task", "ls"]] {
        let mut command = plain_command();
        let place = match words[0] {
            "--host" => format!("unix://{}", nothing.display()),
            _ => nothing.display().to_string(),
        };
        command.arg(words[0]).arg(place).args(&words[1..]);
        let ran = keyhole_tests::run(command, b"");
        assert_eq!(ran.code, 1);
        names(&ran.stderr, &[nothing.to_str().unwrap(), "running"]);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
    }
}
