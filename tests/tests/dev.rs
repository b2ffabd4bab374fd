//! `keyhole dev`: what it gives, and that nothing of it stays, however it ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keyhole_tests::dev::{Dev, Traces, dev_command, kill};
use keyhole_tests::{Daemon, Ground, Ran, TestCgroup, cgroup_root, run, wait};
use rustix::process::{Pid, Signal, kill_process_group};

/// What a command under it writes so that the test knows where it is.
fn say_where() -> String {
    let cgroup = cgroup_root().join("keyhole-dev-");
    let (folder, cgroup) = ("${KEYHOLE_NODE_SOCKET%/*}", cgroup.display());
    format!(
        "echo started $KEYHOLE_NODE_SOCKET $KEYHOLE_SECRETS $(stat -c %i {folder} {cgroup}$(basename {folder}))"
    )
}

fn dev(args: &[&str]) -> Ran {
    run(dev_command(args), b"")
}

/// From the line that [`say_where`] has written.
fn traces(line: &str) -> Traces {
    let words: Vec<&str> = line.split_whitespace().collect();
    let inode = |at: usize| words[at].parse().unwrap();
    Traces::of(Path::new(words[1]), Path::new(words[2])).had(inode(3), inode(4))
}

fn started(ground: &Ground, args: &[&str], then: &str) -> (Daemon, Traces) {
    started_with(ground, args, &format!("{}; {then}", say_where()))
}

fn started_with(ground: &Ground, args: &[&str], script: &str) -> (Daemon, Traces) {
    let mut command = dev_command(args);
    command.args(["--", "sh", "-c", script]).process_group(0);
    let mut daemon = Daemon::start(ground, "dev", command);
    let line = daemon.wait_for_word("started");
    let traces = traces(&line);
    assert_eq!(traces.left().len(), 3 + traces.alive().len(), "folder, cgroup, mount");
    (daemon, traces)
}

fn interrupt(daemon: &Daemon) {
    kill_process_group(Pid::from_raw(daemon.pid()).unwrap(), Signal::INT).unwrap();
}

#[test]
fn a_command_finds_its_secrets_and_its_exit_code_is_passed_on() {
    let ground = Ground::new();
    let file = ground.folder().join("pw");
    std::fs::write(&file, "hunter2").unwrap();
    let secret = format!("db_password={}", file.display());
    let script = format!("{}; cat $KEYHOLE_SECRETS/db_password; exit 7", say_where());
    let ran = dev(&["--secret", &secret, "--", "sh", "-c", &script]);
    assert_eq!((ran.code, ran.stderr.as_str()), (7, ""), "nothing but the command speaks");
    let (line, value) = ran.stdout.split_once('\n').unwrap();
    assert_eq!(value, "hunter2");
    assert_eq!(traces(line).left(), [""; 0]);
    assert_eq!(dev(&["--", "true"]).code, 0);
    assert_eq!(dev(&["--", "sh", "-c", "kill -TERM $$"]).code, 128 + 15);
    let ran = dev(&["--", "keyhole-no-such-command"]);
    assert_eq!(ran.code, 127);
    assert!(ran.stderr.contains("keyhole-no-such-command"), "{}", ran.stderr);
}

#[test]
fn standard_input_is_the_commands_or_a_secrets() {
    let ran = run(dev_command(&["--", "cat"]), b"input");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "input"), "{}", ran.stderr);
    let words = ["--secret", "pw=-", "--", "sh", "-c", "cat $KEYHOLE_SECRETS/pw"];
    let ran = run(dev_command(&words), b"value");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "value"), "{}", ran.stderr);
}

#[test]
fn it_works_as_it_says_from_another_terminal() {
    let ground = Ground::new();
    let dev = Dev::start(&ground, &[]);
    dev.ok(&["secret", "create", "db_password", "-"], b"correct horse");
    let grant = "source=db_password,target=db/password";
    dev.ok(&["service", "create", "web", "--secret", grant], b"");
    let file = dev.mount().join("db/password");
    let words = ["run", "--service", "web", "--uid", "1000", "--", "cat", file.to_str().unwrap()];
    assert_eq!(dev.ok(&words, b""), "correct horse");
    assert!(std::fs::read(&file).is_err(), "an outsider, root");
    assert_eq!(std::fs::read_dir(dev.mount()).unwrap().count(), 0);
    // Whoever copies the folder has no key to it.
    let private = dev.traces().folder.join("private");
    let names = std::fs::read_dir(&private).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["manager", "manager.log", "node", "node.log"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&private).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    let kind = Command::new("stat").args(["-fc%T"]).arg(&private).output().unwrap();
    assert_eq!(String::from_utf8(kind.stdout).unwrap(), "tmpfs\n", "in memory only");
}

#[test]
fn in_its_shell_every_command_works_as_typed() {
    let ground = Ground::new();
    // A real terminal; what is typed is echoed, so the test looks for what is not typed.
    let mut command = Command::new("script");
    let line = format!("{} dev", keyhole_tests::keyhole_binary().display());
    command.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").env("PS1", "");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = command.spawn().unwrap();
    let place = say_where();
    let typed = format!(
        "printf 'correct horse' | keyhole secret create db_password - > /dev/null\n\
         keyhole service create web --secret db_password > /dev/null 2>&1\n\
         echo nested $(keyhole run --service web -- cat $KEYHOLE_SECRETS/db_password)\n\
         keyhole service update dev --secret-add db_password > /dev/null 2>&1\n\
         until cat $KEYHOLE_SECRETS/db_password > /dev/null 2>&1; do :; done\n\
         echo own $(cat $KEYHOLE_SECRETS/db_password)\n\
         {place}\n\
         exit 5\n"
    );
    shell.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    drop(ground);
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert_eq!(output.status.code(), Some(5), "{text}");
    for said in ["nested correct horse\n", "own correct horse\n", "export KEYHOLE_HOST=unix:///"] {
        assert!(text.contains(said), "{said:?} in {text}");
    }
    let line = text.lines().find(|line| line.starts_with("started /")).unwrap();
    assert_eq!(traces(line).left(), [""; 0]);
}

#[test]
fn ctrl_c_leaves_nothing() {
    let ground = Ground::new();
    let (mut with_command, its) = started(&ground, &[], "exec sleep 1000");
    interrupt(&with_command);
    assert_eq!(with_command.wait().code(), Some(130), "as the command was ended");
    assert_eq!(its.left(), [""; 0]);

    let mount = ground.folder().join("made/here/secrets");
    let mut command = dev_command(&["--mount", mount.to_str().unwrap()]);
    command.process_group(0);
    let mut serving = Dev::start_by(&ground, command);
    assert_eq!(serving.mount(), mount);
    let its = serving.traces();
    // A task of another terminal, with a process that left its session.
    serving.ok(&["service", "create", "web"], b"");
    let script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo";
    serving.ok(&["run", "--service", "web", "--", "sh", "-c", script], b"");
    let later = serving.traces();
    assert_eq!(later.alive().len(), its.alive().len() + 1);
    interrupt(&serving.daemon);
    assert_eq!(serving.daemon.wait().code(), Some(0));
    assert_eq!(later.left(), [""; 0]);
    assert!(!ground.folder().join("made").exists(), "folders that it made for the mount");
}

#[test]
fn ctrl_c_while_it_starts_leaves_nothing() {
    let ground = Ground::new();
    for part in ["manager", "node"] {
        let mut command = dev_command(&["--", "echo", "started"]);
        command.process_group(0);
        let mut daemon = Daemon::start(&ground, "dev", command);
        // Known by its log, which is there before the process.
        let folder = wait::until("a part to be started", || {
            let child = *daemon.children().first().ok_or("no child yet")?;
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.split('\0').collect();
            let at = words.iter().position(|word| *word == "--socket").ok_or("no socket yet")?;
            let folder = Path::new(words[at + 1]).parent().unwrap().to_owned();
            let log = folder.join(format!("private/{part}.log"));
            if log.exists() { Ok(folder) } else { Err(format!("no {}", log.display())) }
        });
        let its = Traces::of(&folder.join("node.sock"), &folder.join("secrets"));
        interrupt(&daemon);
        assert_eq!(daemon.wait().code(), Some(130));
        assert_eq!(its.left(), [""; 0]);
        assert!(!daemon.log().contains("started"));
    }
}

#[test]
fn a_signal_to_end_reaches_the_command() {
    let ground = Ground::new();
    let place = say_where();
    let script = format!("trap 'exit 9' TERM; {place}; while :; do sleep 0.01; done");
    let (mut daemon, its) = started_with(&ground, &[], &script);
    assert_eq!(daemon.terminate().code(), Some(9));
    assert_eq!(its.left(), [""; 0]);
}

#[test]
fn when_it_is_killed_its_parts_die_with_it() {
    let ground = Ground::new();
    // With a memory of its own, so that no other test's dev tidies up after it.
    let mut command = Command::new("unshare");
    let alone = "mount -t tmpfs kht /run && mount -t tmpfs kht /dev/shm && exec \"$@\"";
    command.args(["-m", "sh", "-c", alone, "sh"]).arg(keyhole_tests::keyhole_binary());
    command.args(["dev", "--", "sh", "-c", &format!("{}; exec sleep 1000", say_where())]);
    let mut daemon = Daemon::start(&ground, "dev", command);
    let its = traces(&daemon.wait_for_word("started"));
    // Nobody else can come and remove it.
    let _cgroup = TestCgroup::adopt(&its.cgroup);
    assert_eq!(its.alive().len(), 4, "manager, supervisor, worker, command");
    daemon.kill();
    wait::until("its daemons and its command to die", || match its.alive() {
        alive if alive.is_empty() => Ok(()),
        alive => Err(format!("{alive:?}")),
    });
}

#[test]
fn when_it_is_killed_the_next_one_removes_the_rest() {
    let ground = Ground::new();
    let mount = ground.folder().join("made/secrets");
    let args = ["--mount", mount.to_str().unwrap()];
    let then = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo; exec sleep 1000";
    let (mut daemon, its) = started(&ground, &args, then);
    daemon.kill();
    assert_eq!(dev(&["--", "true"]).code, 0);
    assert_eq!(its.left(), [""; 0]);
    assert!(!ground.folder().join("made").exists(), "folders that it made for the mount");
}

#[test]
fn when_all_of_it_is_killed_the_next_one_removes_everything() {
    let ground = Ground::new();
    let mount = ground.folder().join("made/secrets");
    for args in [&["--mount", mount.to_str().unwrap()][..], &[]] {
        let mut serving = Dev::start(&ground, args);
        let its = serving.traces();
        // Nobody is left who could tidy up.
        kill(its.process("node run"));
        its.kill_all();
        serving.daemon.kill();
        assert_eq!(dev(&["--", "true"]).code, 0);
        assert_eq!(its.left(), [""; 0]);
    }
    assert!(!ground.folder().join("made").exists(), "folders that it made for the mount");
}

#[test]
fn when_a_daemon_is_killed_it_ends_and_says_so() {
    let ground = Ground::new();
    for part in ["manager", "node"] {
        let (mut daemon, its) = started(&ground, &[], "exec sleep 1000");
        kill(its.process(&format!("{part} run")));
        assert_eq!(daemon.wait().code(), Some(125));
        assert_eq!(its.left(), [""; 0]);
        let log = daemon.log();
        let complaints: Vec<&str> =
            log.lines().filter(|line| line.starts_with("keyhole: ")).collect();
        assert_eq!(complaints.len(), 1, "one line: {log}");
        assert!(complaints[0].contains(part) && complaints[0].contains("SIGKILL"), "{log}");
    }
}

#[test]
fn a_killed_worker_is_replaced_under_the_command() {
    let ground = Ground::new();
    let dev = Dev::start(&ground, &[]);
    dev.ok(&["secret", "create", "pw", "-"], b"v");
    dev.ok(&["service", "create", "web", "--secret", "pw"], b"");
    let worker = dev.traces().process("node worker");
    kill(worker);
    let file = dev.mount().join("pw");
    let words = ["run", "--service", "web", "--", "cat", file.to_str().unwrap()];
    assert_eq!(dev.ok(&words, b""), "v");
}

#[test]
fn two_at_a_time_have_nothing_in_common() {
    let ground = Ground::new();
    let mut devs: Vec<Dev> = (0..2).map(|_| Dev::start(&ground, &[])).collect();
    for (number, dev) in devs.iter().enumerate() {
        dev.ok(&["secret", "create", "pw", "-"], format!("of {number}").as_bytes());
        dev.ok(&["service", "create", "web", "--secret", "pw"], b"");
    }
    let read = |dev: &Dev| {
        let file = dev.mount().join("pw").display().to_string();
        dev.ok(&["run", "--service", "web", "--", "cat", &file], b"")
    };
    assert_eq!(devs.iter().map(read).collect::<Vec<_>>(), ["of 0", "of 1"]);
    let first = devs[0].traces();
    devs[0].daemon.kill();
    assert_eq!(dev(&["--", "true"]).code, 0, "which removes what the first left");
    first.gone();
    assert_eq!(read(&devs[1]), "of 1");
    let second = devs[1].traces();
    assert_eq!(devs[1].daemon.terminate().code(), Some(0));
    assert_eq!(second.left(), [""; 0]);
}

#[test]
fn what_cannot_work_is_said_in_one_line_and_leaves_nothing() {
    let ground = Ground::new();
    let serving = Dev::start(&ground, &[]);
    let full = ground.folder().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("file"), "x").unwrap();
    let file = full.join("file");
    let new = ground.folder().join("new/secrets").display().to_string();
    let cases: [(Vec<String>, Vec<&str>); 5] = [
        (vec!["--mount".into(), full.display().to_string()], vec!["not empty", "--mount"]),
        (vec!["--mount".into(), file.display().to_string()], vec!["not a directory"]),
        (vec!["--mount".into(), serving.mount().display().to_string()], vec!["another", "--mount"]),
        (
            vec!["--mount".into(), new, "--secret".into(), "pw=/nonexistent".into()],
            vec!["pw", "/nonexistent"],
        ),
        (vec!["--secret".into(), format!("p!w={}", file.display())], vec!["p!w"]),
    ];
    for (args, parts) in cases {
        let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
        words.extend(["--", "true"]);
        let ran = dev(&words);
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{words:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{part:?} in {}", ran.stderr);
        }
    }
    assert!(!ground.folder().join("new").exists() && file.exists());
    assert_eq!(dev(&["--secret", "pw", "--", "true"]).code, 125, "no file is given");
    let mut other = dev_command(&["--", "true"]);
    other.uid(1000).gid(1000);
    let ran = run(other, b"");
    assert!(ran.stderr.contains("root") && ran.code == 125, "{}", ran.stderr);
    let folder: PathBuf = serving.traces().folder;
    assert!(folder.exists(), "the other dev goes on");
    serving.ok(&["secret", "ls"], b"");
}
