//! The command line at a terminal: real shells complete words and names from a live cluster, colours and progress are
//! there for terminals and for nobody else, and the manual's pages can be read.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use keyhole_tests::{Cluster, Machine, Ran, keyhole_binary, plain_command, run, wait};

/// Runs a shell command whose streams are a terminal, with these keys typed; what the terminal showed is the stdout.
fn at_terminal(shell: &str, environment: &[(&str, &str)], keys: &str) -> Ran {
    run(terminal(shell, environment), keys.as_bytes())
}

fn terminal(shell: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", shell, "/dev/null"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEYHOLE_") {
            command.env_remove(name);
        }
    }
    // A CI machine's environment asks for colours whatever the terminal is.
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm").env("SHELL", "/bin/sh");
    command.envs(environment.iter().copied());
    command
}

/// The same by somebody who answers a question once it is asked; all that the terminal showed.
fn answered(shell: &str, environment: &[(&str, &str)], question: &str, answer: &str) -> String {
    let mut command = terminal(shell, environment);
    let mut ran = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (ran.stdin.take().unwrap(), ran.stdout.take().unwrap());
    let (mut shown, mut byte) = (Vec::new(), [0]);
    while !shown.ends_with(question.as_bytes()) {
        let read = screen.read(&mut byte).unwrap();
        assert_eq!(read, 1, "it ended with {}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
    keys.write_all(answer.as_bytes()).unwrap();
    screen.read_to_end(&mut shown).unwrap();
    drop(keys);
    let shown = String::from_utf8(shown).unwrap();
    assert!(ran.wait().unwrap().success(), "{shown}");
    shown
}

fn folder_of_binary() -> String {
    keyhole_binary().parent().unwrap().display().to_string()
}

/// Asks bash's completion for what could stand at the end of `line`.
fn completed(cluster: &Cluster, line: &str) -> Vec<String> {
    let script = r#"
        source <(keyhole completion bash)
        complete -p keyhole >/dev/null || exit 9
        COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDS=() COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
        # As readline parts a line: = and : are words of their own.
        spaced=${1//=/ = }; spaced=${spaced//:/ : }
        read -ra COMP_WORDS <<<"$spaced"
        [[ $1 == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        last=${COMP_WORDS[COMP_CWORD]}
        [[ $last == [=:] ]] && last=
        _keyhole keyhole "$last" "" || exit 8
        for reply in "${COMPREPLY[@]}"; do echo "$reply"; done
    "#;
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", script, "bash", line]);
    let path = format!("{}:{}", folder_of_binary(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env_remove("KEYHOLE_CONFIG");
    command.env("KEYHOLE_HOST", format!("unix://{}", cluster.socket().display()));
    let ran = run(command, b"");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{line}");
    ran.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_words_and_live_names() {
    let machine = Machine::start();
    let cluster = &machine.cluster;
    for name in ["db_password", "db_key2", "db_key10", "tls"] {
        machine.secret(name, "v");
    }
    machine.service("web", &["tls"]);
    machine.service("api", &["tls"]);
    let all = |line: &str| completed(cluster, line);
    assert_eq!(all("keyhole sec"), ["secret"]);
    assert_eq!(all("keyhole secret rot"), ["rotate"]);
    assert_eq!(all("keyhole secret rotate --wa"), ["--wait", "--wait-timeout"]);
    let words = all("keyhole secret ");
    assert!(words.contains(&"create".into()) && words.contains(&"history".into()), "{words:?}");
    assert_eq!(all("keyhole secret inspect db_"), ["db_key2", "db_key10", "db_password"]);
    assert_eq!(all("keyhole secret rm tls db_p"), ["db_password"]);
    assert_eq!(all("keyhole service ps w"), ["web"]);
    assert_eq!(all("keyhole service update --secret-add t"), ["tls"]);
    assert_eq!(all("keyhole service update --secret-add source=t"), ["tls"], "after the =");
    assert_eq!(all("keyhole run --service a"), ["api"]);
    assert_eq!(all("keyhole cluster join-token w"), ["worker"]);
    assert_eq!(all("keyhole secret create t"), [""; 0], "a new name is nobody's to know");
    let node = cluster.ok(["node", "ls", "--format", "{{.Hostname}}"]);
    assert_eq!(all("keyhole node inspect ")[0], node.trim());
    // A host on the line counts, though bash parts it at its colon.
    let other = Cluster::start();
    other.ok_with(["secret", "create", "elsewhere", "-"], b"v");
    let host = format!("unix://{}", other.socket().display());
    let found = all(&format!("keyhole --host {host} secret rm "));
    assert_eq!(found[0], "elsewhere");
    assert!(found[1..].iter().all(|word| word.starts_with('-')), "{found:?}");
    let file = machine.node.ground().folder().join("new_value");
    std::fs::write(&file, "v").unwrap();
    let file = file.display().to_string();
    let beginning = file.trim_end_matches("_value");
    assert_eq!(all(&format!("keyhole secret rotate tls {beginning}")), [file.as_str()]);
    assert_eq!(all(&format!("keyhole secret rotate tls={beginning}")), [file.as_str()]);
    assert_eq!(all("keyhole secret rotate tls=x db_p"), ["db_password="]);
}

/// Asked twice, and the answer is the passphrase; two that differ are refused.
#[test]
fn a_backups_passphrase_is_asked_for_at_a_terminal() {
    let cluster = Cluster::start();
    let file = cluster.ground().folder().join("b.age");
    let host = format!("unix://{}", cluster.socket().display());
    let keyhole = keyhole_binary();
    let backup = format!("{} cluster backup {}", keyhole.display(), file.display());
    let environment = [("KEYHOLE_HOST", host.as_str())];
    let ran = at_terminal(&backup, &environment, "one horse\nother horse\n");
    assert!(ran.stdout.contains("the two passphrases differ") && !file.exists(), "{ran:?}");
    let ran = at_terminal(&backup, &environment, "one horse\none horse\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    let (data, file) = (file.with_extension("restored"), file.display().to_string());
    let data = data.display().to_string();
    let restore = ["cluster", "restore", "--from", &file, "--data-dir", &data];
    cluster.ok_with(restore.iter().chain(&["--passphrase-file", "-"]), b"one horse");
    let refused = cluster.keyhole(["cluster", "backup", "-"]);
    assert!(refused.stderr.contains("give --passphrase-file FILE"), "{}", refused.stderr);
}

/// Who thinks better of it at the question sees what he types afterwards.
#[test]
fn ctrl_c_at_a_question_ends_the_command_and_leaves_the_terminal_as_it_was() {
    let cluster = Cluster::start();
    let file = cluster.ground().folder().join("b.age");
    let host = format!("unix://{}", cluster.socket().display());
    let backup = format!("{} cluster backup {}", keyhole_binary().display(), file.display());
    let environment = [("KEYHOLE_HOST", host.as_str())];
    for (key, code) in [("\x03", 130), ("half of it\x03", 130), ("\x1c", 131)] {
        // The shell waits for the command, and goes on with what the terminal is like then.
        let shell = format!("trap : INT QUIT; stty -a; {backup}; echo \"ended with $?\"; stty -a");
        let shown = answered(&shell, &environment, "Passphrase for the backup: ", key);
        assert!(shown.contains(&format!("ended with {code}\r\n")), "{shown}");
        let (before, after) = shown.split_once("Passphrase for the backup: ").unwrap();
        let (_, after) = after.split_once("ended with").unwrap();
        let modes = |stty: &str| stty[stty.find("speed ").unwrap()..].to_owned();
        assert_eq!(modes(after), modes(before), "{shown}");
        assert!(!shown.contains("half"), "{shown}");
        assert!(!file.exists());
    }
}

/// G24: nobody who looks on sees the key; whoever answers at once is not seen either.
#[test]
fn an_unlock_key_is_asked_for_at_a_terminal_and_not_shown() {
    let mut cluster = Cluster::start();
    cluster.ok(["cluster", "update", "--autolock=true"]);
    let key = cluster.ok(["cluster", "unlock-key", "-q"]);
    wait::until("the store to be under it", || {
        let format = "{{range .Managers}}{{.StoreBehind}}{{end}}";
        match cluster.ok(["cluster", "status", "-f", format]).trim() {
            "false" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    // A person is shown a new key at once; its store would wait for that.
    let host = format!("unix://{}", cluster.socket().display());
    let environment = [("KEYHOLE_HOST", host.as_str())];
    let rotate = format!("{} cluster rotate-store-keys --wait", keyhole_binary().display());
    let ran = at_terminal(&rotate, &environment, "");
    let new = ran.stdout.lines().map(str::trim).find(|line| line.starts_with("KHKEY-1-"));
    let new = new.unwrap_or_else(|| panic!("{ran:?}")).to_owned();
    assert!(ran.code == 0 && ran.stdout.contains("store keys 2") && new != key.trim(), "{ran:?}");
    let key = format!("{new}\n");
    cluster.stop(Signal::TERM);
    cluster.resume_locked();
    let unlock = format!("{} cluster unlock", keyhole_binary().display());
    let shown = answered(&unlock, &environment, "Enter unlock key: ", &key);
    assert!(!shown.contains("KHKEY"), "{shown}");
    wait::until("it to serve", || match cluster.keyhole(["secret", "ls"]) {
        ran if ran.code == 0 => Ok(()),
        ran => Err(ran.stderr),
    });
}

/// Types an unfinished command with tabs into an interactive shell, which must find the rest and run it.
fn finds_the_rest(shell: &str, rc: &str, start: &str) {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "db_password_of_the_shop", "-"], b"v");
    let folder = cluster.ground().folder();
    std::fs::write(folder.join(rc), start).unwrap();
    let path = format!("{}:{}", folder_of_binary(), std::env::var("PATH").unwrap());
    let host = format!("unix://{}", cluster.socket().display());
    let folder = folder.display().to_string();
    let environment = [
        ("PATH", path.as_str()),
        ("KEYHOLE_HOST", &host),
        ("HISTFILE", ""),
        ("HOME", &folder),
        ("ZDOTDIR", &folder),
    ];
    let keys = "keyhole sec\tinsp\t--format 'found {{.Spec.Name}}' db_\t\nexit\n";
    let ran = at_terminal(shell, &environment, keys);
    assert!(ran.stdout.contains("found db_password_of_the_shop"), "{}", ran.stdout);
}

#[test]
fn the_tab_key_completes_a_name_in_an_interactive_bash() {
    let start = "PS1='> '\nsource <(keyhole completion bash)\n";
    finds_the_rest("bash --noprofile -i", ".bashrc", start);
}

#[test]
fn the_tab_key_completes_a_name_in_an_interactive_zsh() {
    let start = "autoload -U compinit; compinit -u -D; source <(keyhole completion zsh)\n";
    finds_the_rest("zsh -d -i", ".zshrc", start);
}

#[test]
fn fish_completes_words_and_live_names() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "db_password", "-"], b"v");
    let script = "keyhole completion fish | source; complete -C \"$argv[1]\"";
    let path = format!("{}:{}", folder_of_binary(), std::env::var("PATH").unwrap());
    let host = format!("unix://{}", cluster.socket().display());
    for (line, wanted) in [
        ("keyhole secret rm db", "db_password\tsecret, version 1\n"),
        ("keyhole sec", "secret\tCreate, rotate and remove secrets\n"),
    ] {
        let mut command = Command::new("fish");
        command.args(["--no-config", "-c", script, line]);
        command.env("PATH", &path).env("KEYHOLE_HOST", &host).env_remove("KEYHOLE_CONFIG");
        command.env("HOME", cluster.ground().folder());
        let ran = run(command, b"");
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str(), ran.code), (wanted, "", 0), "{line}");
    }
}

#[test]
fn completion_is_silent_when_nobody_answers() {
    let mut command = plain_command();
    command.args(["--", "keyhole", "--host", "unix:///nonexistent", "secret", "rm", "x"]);
    command.env("KEYHOLE_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "5");
    let ran = run(command, b"");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    let mut command = plain_command();
    command.args(["completion", "cmd.exe"]);
    let ran = run(command, b"");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("bash, zsh, fish"), "{}", ran.stderr);
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let complaint = format!("{} --host unix:///nonexistent secret ls", keyhole_binary().display());
    let help = format!("{} secret --help", keyhole_binary().display());
    for command in [&complaint, &help] {
        let seen = at_terminal(command, &[], "");
        assert!(seen.stdout.contains("\x1b["), "{seen:?}");
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let seen = at_terminal(command, &[(name, value)], "");
            assert!(!seen.stdout.contains('\x1b'), "{name}: {seen:?}");
            assert!(seen.stdout.contains("keyhole"), "{seen:?}");
        }
    }
    assert!(at_terminal(&complaint, &[], "").code == 1);
    let mut piped = plain_command();
    piped.args(["--host", "unix:///nonexistent", "secret", "ls"]).env("TERM", "xterm");
    assert!(!run(piped, b"").stderr.contains('\x1b'));
}

#[test]
fn waits_are_told_at_a_terminal_only() {
    let mut machine = Machine::start();
    let _task = machine.web("one");
    let binary = keyhole_binary().display().to_string();
    let host = format!("unix://{}", machine.cluster.socket().display());
    let rotate = format!("{binary} --host {host} secret rotate --wait pw /etc/hostname");
    let seen = at_terminal(&rotate, &[], "");
    assert!(seen.stdout.contains("\r\x1b[Kdelivered to 1 of 1 nodes\r\x1b[K"), "{seen:?}");
    let ran = machine.cluster.keyhole(["secret", "rotate", "--wait", "pw", "/etc/hostname"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("pw: version 3\n", ""));
    machine.cluster.stop(Signal::TERM);
    let socket = machine.node.socket().display().to_string();
    let words = ["run", "--service", "other", "--wait", "2s", "--", "true"];
    let command = format!("{binary} --node-socket {socket} {}", words.join(" "));
    let seen = at_terminal(&command, &[], "");
    assert_eq!(seen.code, 125, "{seen:?}");
    assert!(seen.stdout.contains("waiting for the task's files (1 s)"), "{seen:?}");
    let (_, last) = seen.stdout.rsplit_once("\r\x1b[K").unwrap();
    assert!(
        last.contains("keyhole") && last.contains("no manager in reach"),
        "it is wiped in the end: {seen:?}"
    );
    let ran = machine.node.keyhole(words);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(!ran.stderr.contains("waiting for") && !ran.stderr.contains('\r'), "{ran:?}");
}

#[test]
fn the_manual_is_written_and_formats_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let mut command = plain_command();
    command.arg("man").arg(&pages);
    let ran = run(command, b"");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.lines().count() > 30, "{}", ran.stdout);
    for page in ran.stdout.lines() {
        let mut command = Command::new("groff");
        command.args(["-man", "-Tutf8", "-ww", page]);
        let formatted = run(command, b"");
        assert_eq!((formatted.code, formatted.stderr.as_str()), (0, ""), "{page}");
    }
    let rotate = pages.join("keyhole-secret-rotate.1");
    let mut command = Command::new("groff");
    command.args(["-man", "-Tascii", "-P-cbou"]).arg(&rotate);
    let text = run(command, b"").stdout;
    assert!(text.contains("keyhole secret rotate db_password ./new_password\n"), "{text}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&file);
}

/// A folder that cannot be made is named.
fn refused(file: &Path) {
    let mut command = plain_command();
    command.arg("man").arg(file.join("sub"));
    let ran = run(command, b"");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(&file.display().to_string()), "{}", ran.stderr);
}
