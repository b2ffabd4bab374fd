//! What processes in different cgroups see under one mount, by both ways of knowing them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyhole_node_fs::caller::IdentitySource;
use keyhole_node_fs::cgroups::{CgroupRoot, OwnedCgroup, TaskCgroups};
use rustix::process::Signal;

use crate::node::{Folder, Node};
use crate::secrets::{Show, value};

/// Cgroups of our own, removed at the end.
struct Cgroups {
    folder: PathBuf,
    tasks: TaskCgroups,
}

impl Cgroups {
    fn new() -> Self {
        let root = Arc::new(CgroupRoot::find().unwrap());
        let name = PathBuf::from(format!("keyhole-processes-{}", std::process::id()));
        let folder = root.path().join(&name);
        Self { folder, tasks: TaskCgroups::open(root, &name, false).unwrap() }
    }

    fn create(&self, name: &str) -> OwnedCgroup {
        self.tasks.create(name).unwrap()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                let _ = std::fs::remove_dir(entry.path().join("nested"));
                let _ = std::fs::remove_dir(entry.path());
            }
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// A node with two tasks, at version 1 both.
struct Stagehand {
    folder: Folder,
    node: Node,
    show: Show,
    one: OwnedCgroup,
    two: OwnedCgroup,
    // Last, so that the processes in them are gone.
    cgroups: Cgroups,
}

impl Stagehand {
    fn new(identity: IdentitySource) -> Self {
        let cgroups = Cgroups::new();
        let (one, two) = (cgroups.create("one"), cgroups.create("two"));
        let tasks = [(one.id().0, 1), (two.id().0, 1)].into();
        let show = Show { tasks, identity };
        let folder = Folder::new();
        let node = Node::start_with(&folder, &serde_json::json!({ "show": show }));
        Self { folder, node, show, one, two, cgroups }
    }

    fn publish(&mut self, change: impl FnOnce(&mut Show)) {
        change(&mut self.show);
        let mut socket = UnixStream::connect(self.folder.socket()).unwrap();
        writeln!(socket, "{}", serde_json::to_string(&self.show).unwrap()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "published\n");
    }

    /// Runs a shell in a cgroup (or in none of ours), in the mount; both outputs together.
    fn run(&self, cgroup: Option<&Path>, script: &str) -> String {
        let output = self.command(cgroup, script).stdin(Stdio::null()).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    fn command(&self, cgroup: Option<&Path>, script: &str) -> Command {
        let enter = match cgroup {
            Some(path) => format!("echo $$ > {}/cgroup.procs; ", path.display()),
            None => String::new(),
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{enter}cd {}; {script}", self.folder.file("").display()));
        command.env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

pub(crate) fn each_task_sees_its_own_files_and_others_see_nothing() {
    for identity in [IdentitySource::Auto, IdentitySource::Proc] {
        let hand = Stagehand::new(identity);
        for cgroup in [&hand.one, &hand.two] {
            let expected = text(value(cgroup.id().0, 1));
            assert_eq!(hand.run(Some(cgroup.path()), "cat password"), expected);
            assert_eq!(hand.run(Some(cgroup.path()), "cat tls/key"), expected);
            assert_eq!(
                hand.run(Some(cgroup.path()), "ls -A . tls"),
                ".:\npassword\ntls\n\ntls:\nkey\n"
            );
            assert_eq!(hand.run(Some(cgroup.path()), "cat .set/password"), expected);
            let stat =
                hand.run(Some(cgroup.path()), "stat -c '%a %u %g %h %s %Y' password tls/key");
            let size = expected.len();
            assert_eq!(stat, format!("444 0 0 1 {size} 2\n400 1000 0 1 {size} 2\n"));
        }
        assert_eq!(hand.run(None, "ls -A"), "");
        assert!(hand.run(None, "cat password").contains("No such file"));
        assert!(hand.run(None, "ls -A .set").contains("No such file"));

        let nested = hand.one.path().join("nested");
        std::fs::create_dir(&nested).unwrap();
        let inside = hand.run(Some(&nested), "cat password");
        assert_eq!(inside, text(value(hand.one.id().0, 1)), "a nested container has them too");
        let alike = hand.cgroups.create("one2");
        assert_eq!(hand.run(Some(alike.path()), "ls -A"), "", "a like name is not a task");
    }
}

pub(crate) fn the_kernel_checks_modes_and_nothing_can_be_changed() {
    let hand = Stagehand::new(IdentitySource::Auto);
    let one = Some(hand.one.path());
    let nobody = "setpriv --reuid 1234 --regid 1234 --clear-groups";
    assert!(hand.run(one, &format!("{nobody} cat tls/key")).contains("Permission denied"));
    assert_eq!(hand.run(one, &format!("{nobody} cat password | wc -l")), "500\n");
    let owner = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    assert_eq!(hand.run(one, &format!("{owner} cat tls/key | wc -l")), "500\n");
    for change in [
        "echo x > password",
        "echo x >> password",
        "rm password",
        "mkdir d",
        "mv password p",
        "ln -s a b",
        "touch password",
        "chmod 777 password",
        "truncate -s 0 password",
        "touch new",
    ] {
        assert!(hand.run(one, change).contains("Read-only file system"), "{change}");
    }
    let xattrs = "import os; print(sorted(os.listxattr('password')), \
        os.getxattr('password', 'user.keyhole.version').decode(), \
        os.getxattr('password', 'user.keyhole.secret').decode())";
    assert_eq!(
        hand.run(one, &format!("python3 -c \"{xattrs}\"")),
        format!("['user.keyhole.secret', 'user.keyhole.version'] 1 secret-{}\n", hand.one.id().0)
    );
}

pub(crate) fn an_open_file_keeps_its_version_until_it_is_revoked() {
    let mut hand = Stagehand::new(IdentitySource::Auto);
    let (one, two) = (hand.one.id().0, hand.two.id().0);
    // Opened before the rotation, read on each line of input.
    let script = "exec 3< password; read -r line <&3; echo \"$line\"; \
        while read -r go; do python3 -c 'import os; \
            d=os.pread(3,99,5000); print(d.split(b\"\\n\")[1].decode())' 2>&1 | tail -1; \
            stat -L -c %h /dev/fd/3; cat password | head -1; done";
    let mut reader =
        hand.command(Some(hand.one.path()), script).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = reader.stdin.take().unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), format!("task {one} version 1"));

    hand.publish(|show| *show.tasks.get_mut(&one).unwrap() = 2);
    writeln!(input, "go").unwrap();
    assert_eq!(lines.next().unwrap(), format!("task {one} version 1"), "as it was opened");
    assert_eq!(lines.next().unwrap(), "0", "no name means it any more");
    assert_eq!(lines.next().unwrap(), format!("task {one} version 2"), "the next open");

    hand.publish(|show| {
        show.tasks.remove(&one);
    });
    writeln!(input, "go").unwrap();
    let refused = lines.next().unwrap();
    assert!(refused.contains("Key has been revoked") || refused.contains("128"), "{refused}");
    drop(input);
    reader.wait().unwrap();
    assert_eq!(hand.run(Some(hand.one.path()), "ls -A"), "");
    assert_eq!(
        hand.run(Some(hand.two.path()), "head -1 password"),
        format!("task {two} version 1\n")
    );
}

pub(crate) fn rotation_is_never_seen_torn_mixed_or_late() {
    let mut hand = Stagehand::new(IdentitySource::Auto);
    let ids = [hand.one.id().0, hand.two.id().0];
    let readers: Vec<Child> = [&hand.one, &hand.two, &hand.one, &hand.two]
        .into_iter()
        .map(|cgroup| reader(&hand, cgroup))
        .collect();
    let end = Instant::now() + Duration::from_secs(3);
    let mut version = 1;
    while Instant::now() < end {
        for _ in 0..20 {
            version += 1;
            hand.publish(|show| show.tasks.values_mut().for_each(|shown| *shown = version));
            std::thread::sleep(Duration::from_millis(2));
        }
        // What was published is what the next open gets.
        let first = hand.run(Some(hand.one.path()), "head -1 password");
        assert_eq!(first, format!("task {} version {version}\n", ids[0]));
    }
    for mut reader in readers {
        drop(reader.stdin.take());
        let output = reader.wait_with_output().unwrap();
        let said = text(output.stdout);
        assert!(output.status.success(), "{said}{}", text(output.stderr));
        println!("{}", said.trim());
    }
    println!("{version} versions");
}

fn reader(hand: &Stagehand, cgroup: &OwnedCgroup) -> Child {
    let binary = std::env::current_exe().unwrap();
    let script = format!("exec {} reader {}", binary.display(), cgroup.id().0);
    hand.command(Some(cgroup.path()), &script).stdin(Stdio::piped()).spawn().unwrap()
}

/// The role `reader`: reads until its input ends, and says how often.
pub(crate) fn read_until_told(cgroup: u64) -> ExitCode {
    let told = std::thread::spawn(|| std::io::stdin().read(&mut [0]).unwrap());
    let (mut cycles, mut last) = (0_u64, 0);
    while !told.is_finished() {
        let read = text(std::fs::read("password").unwrap());
        let first = read.lines().next().unwrap();
        let version = first.strip_prefix(&format!("task {cgroup} version ")).unwrap();
        let version: u64 = version.parse().unwrap();
        assert_eq!(read.as_bytes(), value(cgroup, version), "torn or mixed");
        assert!(version >= last, "{version} after {last}");
        last = version;
        cycles += 1;
    }
    println!("{cycles} cycles, last version {last}");
    ExitCode::SUCCESS
}

pub(crate) fn tasks_keep_their_secrets_through_the_workers_death() {
    let mut hand = Stagehand::new(IdentitySource::Auto);
    let one = hand.one.id().0;
    hand.publish(|show| *show.tasks.get_mut(&one).unwrap() = 5);
    let mut reader = reader(&hand, &hand.one);
    let mut worker = hand.node.worker(None);
    for _ in 0..5 {
        let expected = format!("task {one} version 5\n");
        assert_eq!(hand.run(Some(hand.one.path()), "head -1 password"), expected);
        rustix::process::kill_process(worker, Signal::KILL).unwrap();
        worker = hand.node.worker(Some(worker));
        assert_eq!(hand.run(Some(hand.one.path()), "head -1 tls/key"), expected);
    }
    drop(reader.stdin.take());
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
}
