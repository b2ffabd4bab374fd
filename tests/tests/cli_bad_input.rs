//! What no command line should be: each mistake is one clear line with exit code 1 (refused) or 2 (usage), the name in
//! it, and nothing is changed.

use keyhole_tests::{Cluster, plain_command, run};

const REFUSED: i32 = 1;
const USAGE: i32 = 2;

/// Runs the CLI with a value on standard input; it must fail with this code and one line that has these parts.
#[track_caller]
fn fails(cluster: &Cluster, args: &[&str], stdin: &[u8], code: i32, parts: &[&str]) {
    let ran = cluster.keyhole_with(args, stdin);
    let shown: Vec<String> = args.iter().map(|arg| arg.chars().take(60).collect()).collect();
    assert_eq!(ran.code, code, "{shown:?}: {}{}", ran.stdout, ran.stderr);
    // As Docker has it, an array of nothing is an answer.
    let nothing = if args.contains(&"inspect") && args.len() == 3 { "[]\n" } else { "" };
    assert_eq!(ran.stdout, nothing, "{shown:?}");
    let line = ran.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {:?}", ran.stderr));
    assert!(line.starts_with("keyhole: "), "{shown:?}: {line:?}");
    assert!(!line.contains(char::is_control), "{shown:?}: {line:?}");
    assert!(line.len() < 1_000, "{shown:?}: {} bytes: {line}", line.len());
    for part in parts {
        assert!(line.contains(part), "{shown:?}: {part:?} in {line:?}");
    }
}

/// A cluster with one secret `pw` and one service `web` that has it.
fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.ok(["service", "create", "web", "--secret", "pw"]);
    cluster
}

/// Everything that could have changed.
fn state(cluster: &Cluster) -> String {
    cluster.ok(["secret", "inspect", "pw"])
        + &cluster.ok(["service", "inspect", "web"])
        + &cluster.ok(["secret", "ls", "-q"])
        + &cluster.ok(["service", "ls", "-q"])
}

#[test]
fn names_that_no_secret_or_service_can_have() {
    let cluster = cluster();
    let before = state(&cluster);
    let long = "x".repeat(65);
    let huge = "x".repeat(100_000);
    for name in [
        "", ".", "..", "../x", "a/b", "a b", "-", "a\nb", "a\tb", "é", "pw.", "\x1b[2J", &long,
        &huge,
    ] {
        let rule = if name.is_empty() { "is empty" } else { "[a-zA-Z0-9]" };
        fails(
            &cluster,
            &["secret", "create", "--", name, "-"],
            b"v",
            REFUSED,
            &["secret name", rule],
        );
        fails(&cluster, &["service", "create", "--", name], b"", REFUSED, &["service name"]);
        fails(
            &cluster,
            &["secret", "inspect", "--format", "x", "--", name],
            b"",
            REFUSED,
            &["not found"],
        )
    }
    for (noun, verb) in [("secret", "history"), ("service", "rollback"), ("secret", "status")] {
        for name in ["", "..", "a\nb", &huge] {
            fails(&cluster, &[noun, verb, "--", name], b"", REFUSED, &[noun, "not found"]);
        }
    }
    assert_eq!(state(&cluster), before);
}

#[test]
fn values_that_no_secret_can_have() {
    let cluster = cluster();
    let before = state(&cluster);
    let large = vec![7; 512_001];
    for verb in ["create", "rotate"] {
        let name = if verb == "create" { "new" } else { "pw" };
        let words = ["secret", verb, name, "-"];
        fails(&cluster, &words, b"", REFUSED, &[name, "standard input", "empty", "512000"]);
        fails(&cluster, &words, &large, REFUSED, &[name, "512001", "512000"]);
        let words = ["secret", verb, name, "/nonexistent/file"];
        fails(&cluster, &words, b"", REFUSED, &[name, "/nonexistent/file", "No such file"]);
        let words = ["secret", verb, name, "/"];
        fails(&cluster, &words, b"", REFUSED, &[name, "directory"]);
        // Endless, but read no further than to the limit.
        let words = ["secret", verb, name, "/dev/zero"];
        fails(&cluster, &words, b"", REFUSED, &[name, "/dev/zero", "512000"]);
        fails(&cluster, &["secret", verb, name], b"", USAGE, &["secret file is required"]);
    }
    assert_eq!(state(&cluster), before);
}

#[test]
fn labels_without_end() {
    let cluster = cluster();
    let before = state(&cluster);
    let many: Vec<String> = (0..10_000).map(|number| format!("--label-add=k{number}=v")).collect();
    for noun in ["secret", "service"] {
        let name = if noun == "secret" { "pw" } else { "web" };
        let mut words = vec![noun, "update", name];
        words.extend(many.iter().map(String::as_str));
        fails(&cluster, &words, b"", REFUSED, &["10000 labels given", "the limit is"]);
    }
    let many: Vec<String> = (0..10_000).map(|number| format!("--label=k{number}")).collect();
    let mut words = vec!["secret", "create", "new", "-"];
    words.extend(many.iter().map(String::as_str));
    fails(&cluster, &words, b"v", REFUSED, &["10000 labels given", "the limit is"]);
    // No argument can have a megabyte on Linux; a file of options can.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keyhole.toml");
    let label = "x".repeat(1 << 20);
    std::fs::write(&file, format!("[secret.update]\nlabel-add = [\"big={label}\"]\n")).unwrap();
    let words = ["--config", file.to_str().unwrap(), "secret", "update", "pw"];
    fails(&cluster, &words, b"", REFUSED, &["the labels have 1048579 bytes", "the limit is"]);
    for (label, part) in [
        ("=v", "must not be empty"),
        ("a b=v", "\"a b\""),
        ("a\nb=v", "white space"),
        ("k=a\nb", "control characters"),
        ("k=\x1b[2J", "control characters"),
    ] {
        let words = ["secret", "update", "pw", "--label-add", label];
        fails(&cluster, &words, b"", REFUSED, &["label", part]);
    }
    fails(&cluster, &["secret", "update", "pw"], b"", USAGE, &["--label-add", "--label-rm"]);
    fails(&cluster, &["service", "update", "web"], b"", USAGE, &["--secret-add"]);
    assert_eq!(state(&cluster), before);
}

#[test]
fn grants_that_cannot_be() {
    let cluster = cluster();
    let before = state(&cluster);
    let deep = format!("source=pw,target={}", "a/".repeat(2_000) + "x");
    let long = format!("source=pw,target={}", "x".repeat(256));
    for (spec, parts) in [
        ("", &["source is required"][..]),
        ("source=", &["source"]),
        ("target=x", &["source is required"]),
        ("source=pw,colour=red", &["colour"]),
        ("source=pw,uid", &["uid"]),
        ("source=pw,target=..", &[".."]),
        ("source=pw,target=../x", &[".."]),
        ("source=pw,target=a/../../x", &[".."]),
        ("source=pw,target=/etc/passwd", &["/etc/passwd", "/run/secrets"]),
        ("source=pw,target=a\nb", &["target"]),
        ("source=pw,target=", &["target"]),
        (&deep, &["target"]),
        (&long, &["target"]),
        ("source=pw,mode=99999999999999999999", &["mode", "octal"]),
        ("source=pw,mode=1777", &["1777"]),
        ("source=pw,mode=-1", &["mode"]),
        ("source=pw,mode=rw", &["mode"]),
        ("source=pw,uid=root", &["uid", "root"]),
        ("source=pw,uid=4294967295", &["uid"]),
        ("source=pw,gid=4294967296", &["gid"]),
        ("source=pw,uid=-1", &["uid"]),
        ("source=pw,version=0", &["version"]),
        ("source=pw,version=99", &["99", "kept"]),
        ("source=none", &["none not found"]),
        ("source=a\nb", &["name"]),
    ] {
        let words = ["service", "create", "new", "--secret", spec];
        fails(&cluster, &words, b"", REFUSED, parts);
        let words = ["service", "update", "web", "--secret-add", spec];
        fails(&cluster, &words, b"", REFUSED, parts);
    }
    for constraint in ["", "x", "node.role==x", "node.labels.==x", "node.id=x", "a\nb==c"] {
        let words = ["service", "create", "new", "--constraint", constraint];
        fails(&cluster, &words, b"", REFUSED, &["constraint"]);
    }
    // No argument can have a NUL; a file of options can.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keyhole.toml");
    for (spec, part) in
        [("source=pw,target=a\\u0000b", "control character"), ("source=p\\u0000w", "secret name")]
    {
        std::fs::write(&file, format!("[service.create]\nsecret = [\"{spec}\"]\n")).unwrap();
        let words = ["--config", file.to_str().unwrap(), "service", "create", "new"];
        fails(&cluster, &words, b"", REFUSED, &[part]);
    }
    let words = ["service", "update", "web", "--secret-add", "source=pw,target=pw/x"];
    fails(&cluster, &words, b"", REFUSED, &["conflict"]);
    assert_eq!(state(&cluster), before);
}

#[test]
fn options_that_do_not_exist_or_contradict() {
    let cluster = cluster();
    for (words, parts) in [
        (&["secret", "ls", "--colour"][..], &["--colour"][..]),
        (&["secret", "ls", "extra"], &["extra"]),
        (&["secret", "ls", "-f", "colour=red"], &["colour", "id, name, names, label"]),
        (&["secret", "ls", "-f", "name"], &["key=value"]),
        (&["secret", "ls", "--format", "{{.Value}}"], &["Value", "Name"]),
        (&["secret", "ls", "--format", "{{"], &["--format"]),
        (&["secret", "ls", "--quiet=maybe"], &["--quiet"]),
        (&["secret", "inspect"], &["SECRET"]),
        (&["secret", "inspect", "--pretty", "-f", "json", "pw"], &["--pretty", "--format"]),
        (&["secret", "rollback", "pw", "--to", "0"], &["0", "--to"]),
        (&["secret", "rollback", "pw", "--to", "18446744073709551616"], &["--to"]),
        (&["secret", "rotate", "pw", "-", "--wait-timeout", "1s"], &["--wait"]),
        (&["secret", "rotate", "pw", "-", "--wait", "--wait-timeout", "soon"], &["soon"]),
        (&["secret", "rotate", "pw=-", "x=-"], &["standard input"]),
        (&["secret", "rotate", "a", "b", "c"], &["NAME=FILE"]),
        (&["service", "create", "web", "--name", "web"], &["--name"]),
        (&["service", "create"], &["<SERVICE>"]),
        (&["node", "update", "n"], &["--availability"]),
        (&["node", "update", "n", "--availability", "off"], &["off", "active, pause, drain"]),
        (&["cluster", "join-token", "king"], &["king", "worker, manager"]),
        (&["cluster", "update"], &["--quota"]),
        (&["cluster", "update", "--quota", "much"], &["much", "512MiB"]),
        (&["cluster", "update", "--cert-expiry", "-1h"], &["-1"]),
        (&["--config"], &["--config"]),
        (&["task", "add", "--service", "web"], &["--cgroup", "--pid"]),
        (&["task", "add", "--service", "web", "--pid", "0"], &["--pid"]),
        (&["secrets", "ls"], &["'secret'"]),
        (&["secret", "delete", "pw"], &["delete"]),
    ] {
        fails(&cluster, words, b"v", USAGE, parts);
    }
    let mut command = plain_command();
    command.args(["--host", "nowhere", "secret", "ls"]);
    let ran = run(command, b"");
    assert_eq!(ran.code, USAGE);
    assert!(ran.stderr.contains("nowhere") && ran.stderr.contains("unix:///PATH"), "{ran:?}");
    let words = ["--config", "/nonexistent/x.toml", "secret", "ls"];
    fails(&cluster, &words, b"", REFUSED, &["/nonexistent/x.toml", "No such file"]);
    let words = ["cluster", "update", "--cert-expiry", "1s"];
    fails(&cluster, &words, b"", REFUSED, &["certificate"]);
}

#[test]
fn things_that_are_not_there() {
    let cluster = cluster();
    for (words, name) in [
        (&["service", "inspect", "nothing"][..], "service nothing"),
        (&["service", "update", "nothing", "--label-add", "a"], "service nothing"),
        (&["service", "ps", "nothing"], "service nothing"),
        (&["service", "rm", "nothing"], "service nothing"),
        (&["service", "rollback", "nothing"], "service nothing"),
        (&["secret", "rm", "nothing"], "secret nothing"),
        (&["secret", "rotate", "nothing", "/etc/hostname"], "secret nothing"),
        (&["secret", "rollback", "nothing"], "secret nothing"),
        (&["secret", "update", "nothing", "--label-add", "a"], "secret nothing"),
        (&["secret", "status", "nothing"], "secret nothing"),
        (&["node", "rm", "nothing"], "node nothing"),
        (&["node", "ps", "nothing"], "node nothing"),
        (&["node", "update", "nothing", "--label-add", "a"], "node nothing"),
    ] {
        fails(&cluster, words, b"", REFUSED, &[name, "not found"]);
    }
    let mut command = plain_command();
    command.args(["--node-socket", "/nonexistent.sock", "run", "--service", "x", "--", "true"]);
    let ran = run(command, b"");
    assert_eq!(ran.code, 125, "{ran:?}");
    assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{ran:?}");
    let mut command = plain_command();
    command.args(["run", "--servcie", "x", "--", "true"]);
    let ran = run(command, b"");
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("--service <SERVICE>"), "{ran:?}");
}
