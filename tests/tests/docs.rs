//! Every command block of README and docs is typed as it stands, and says what the document says.
//!
//! Each document has a machine of its own: private mounts, processes, network and host name, so that paths and ports are
//! the document's. The pages beside README begin where its five minutes have led: one manager, one node.
//!
//! `KEYHOLE_DOCS=write` puts what came out into the documents, for who changed a command's output.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keyhole_tests::transcript::{Block, Step, blocks};
use keyhole_tests::{Ground, keyhole_binary};

/// Between the commands' outputs.
const MARK: &str = "\u{1e}";

/// What a page may suppose.
const ONE_MACHINE: &str = "\
keyhole manager run --init --data-dir /var/lib/keyhole/manager --listen 127.0.0.1:7070 2>>/var/log/manager &
(umask 077; keyhole cluster join-token -q worker > /run/keyhole-token)
keyhole node run --data-dir /var/lib/keyhole/node --join 127.0.0.1:7070 --token-file /run/keyhole-token >>/var/log/node 2>&1 &
";

/// Blocks that are not typed: demo and test are what CI runs around this, bench takes minutes of a quiet machine, and the
/// demo builds.
const ELSEWHERE: [&str; 2] = [
    "scripts/demo    # builds, starts a manager and a node, walks the main path, leaves nothing behind\n\
     scripts/test    # all tests: real mounts, cgroups, sockets, disks\n\
     scripts/bench   # measures it, see \"How fast it is\"\n",
    "cargo build --release && install target/release/keyhole /usr/local/bin/\n",
];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("it is a member of the workspace").to_owned()
}

/// The commands as a script that says where each one's output begins.
fn script(steps: &[Step], prelude: &str) -> String {
    let mut script = String::from(
        "exec 2>&1 </dev/null\n\
         for place in /run /var/lib /var/log; do mount -t tmpfs none $place || exit 1; done\n\
         mkdir /var/lib/keyhole; ip link set lo up && hostname node-1 || exit 1\n",
    );
    let mut typed = |command: &str| {
        script.push_str(command);
        script.push('\n');
        // A person takes a moment before the next line.
        if command.ends_with('&') && command.contains("keyhole manager run") {
            script.push_str(&until("keyhole cluster status"));
        }
        if command.ends_with('&') && command.contains("keyhole node run") {
            script.push_str(&until("keyhole node status --format '{{.Manager}}' | grep ."));
        }
    };
    prelude.lines().for_each(&mut typed);
    for step in steps {
        // What is typed in the shell of `keyhole dev` is read by a shell there.
        let command = match step.command.as_str() {
            "keyhole dev" => "keyhole dev -- bash -s <<'END OF DEV'",
            "exit" => "exit\nEND OF DEV",
            command => command,
        };
        typed(&format!("printf '\\n{MARK}\\n'\n{command}"));
    }
    script
}

fn until(ready: &str) -> String {
    format!("for try in $(seq 400); do {{ {ready}; }} >/dev/null 2>&1 && break; sleep 0.05; done\n")
}

/// What each command said.
fn run(steps: &[Step], prelude: &str) -> Vec<String> {
    let ground = Ground::new();
    let folder = ground.folder();
    let (bin, work) = (folder.join("bin"), folder.join("work"));
    for new in [&bin, &work] {
        std::fs::create_dir(new).expect("the ground is ours");
    }
    std::os::unix::fs::symlink(keyhole_binary(), bin.join("keyhole")).expect("the ground is ours");
    let file = folder.join("script");
    std::fs::write(&file, script(steps, prelude)).expect("the ground is ours");
    let cgroups = ground.cgroup().child("docs");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("timeout");
    // When the shell ends, everything in its process namespace does, and with it the mounts.
    shell.args(["--kill-after=5", "180", "unshare", "--mount", "--pid", "--fork", "--mount-proc"]);
    shell.args(["--kill-child", "--net", "--uts", "bash"]).arg(&file).current_dir(&work);
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("KEYHOLE"))
    {
        shell.env_remove(name);
    }
    shell
        .env("PATH", path)
        .env("KEYHOLE_NODE_RUN_CGROUP_PARENT", cgroups)
        .env("TZ", "UTC")
        .env("HOME", &work);
    let output = shell.stdin(Stdio::null()).output().expect("bash and unshare are there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mark = format!("\n{MARK}\n");
    let mut parts = text.split(&mark).map(str::to_owned);
    let before = parts.next().unwrap_or_default();
    let parts: Vec<String> = parts.collect();
    assert_eq!(parts.len(), steps.len(), "the machine did not come up: {before}{text}");
    parts
}

/// Types a document.
fn check(name: &str, prelude: &str) {
    let path = root().join(name);
    let document = std::fs::read_to_string(&path).expect("the document is there");
    let all = blocks(&document);
    // What has no language is a picture, and no command.
    for block in all.iter().filter(|block| block.language.is_empty()) {
        let command = block.text.lines().find(|line| line.starts_with("keyhole "));
        assert_eq!(command, None, "{name}:{}: nobody types it; fence it as console", block.line);
    }
    let (typed, others): (Vec<Block>, Vec<Block>) =
        all.into_iter().filter(|b| !b.language.is_empty()).partition(|b| b.language == "console");
    for block in &others {
        let known = ELSEWHERE.contains(&block.text.as_str()) || block.language != "sh";
        assert!(known, "{name}:{}: nobody runs this block; fence it as console", block.line);
    }
    let steps: Vec<Step> = typed.iter().flat_map(Block::steps).collect();
    let said = run(&steps, prelude);
    let mut wrong = String::new();
    for (step, said) in steps.iter().zip(&said).filter(|(step, said)| !step.is_said_by(said)) {
        let expected = step.output.join("\n");
        let _ =
            write!(wrong, "# {}\n{said}\n--- but the document says\n{expected}\n\n", step.command);
    }
    if !wrong.is_empty() && std::env::var("KEYHOLE_DOCS").is_ok_and(|word| word == "write") {
        std::fs::write(&path, rewritten(&document, &steps, &said)).expect("the document is ours");
    }
    assert!(wrong.is_empty(), "{name}:\n{wrong}");
}

/// The document with what came out where it says something else.
fn rewritten(document: &str, steps: &[Step], said: &[String]) -> String {
    let mut text = document.to_owned();
    let mut from = 0;
    for (step, said) in steps.iter().zip(said) {
        let typed = format!("# {}\n", step.command);
        let at = from + text[from..].find(&typed).expect("it was read from there") + typed.len();
        let old: String = step.output.iter().map(|line| format!("{line}\n")).collect();
        let new = match said.trim() {
            "" => String::new(),
            _ if step.is_said_by(said) => old.clone(),
            said => format!("{}\n", said.trim_end()),
        };
        text.replace_range(at..at + old.len(), &new);
        from = at + new.len();
    }
    text
}

#[test]
fn readme() {
    check("README.md", "");
}

#[test]
fn cookbook() {
    check("docs/COOKBOOK.md", ONE_MACHINE);
}

#[test]
fn several_managers() {
    check("docs/MANAGERS.md", ONE_MACHINE);
}

#[test]
fn operators_and_contexts() {
    check("docs/OPERATORS.md", ONE_MACHINE);
}

#[test]
fn the_keys() {
    check("docs/KEYS.md", ONE_MACHINE);
}

#[test]
fn the_audit() {
    check("docs/AUDIT.md", ONE_MACHINE);
}

#[test]
fn backup_and_restore() {
    check("docs/BACKUP.md", ONE_MACHINE);
}

#[test]
fn troubleshooting() {
    check("docs/TROUBLESHOOTING.md", ONE_MACHINE);
}

#[test]
fn coming_from_docker_swarm() {
    check("docs/FROM-DOCKER-SWARM.md", ONE_MACHINE);
}

#[test]
fn coming_from_vault_agent() {
    check("docs/FROM-VAULT-AGENT.md", ONE_MACHINE);
}

#[test]
fn coming_from_kubernetes_secrets() {
    check("docs/FROM-KUBERNETES.md", ONE_MACHINE);
}

#[test]
fn no_document_with_commands_is_left_out() {
    let mut documents: Vec<PathBuf> =
        vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/adr"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("it is there");
        documents.extend(entries.map(|entry| entry.expect("it is readable").path()));
    }
    let checked = include_str!("docs.rs");
    for path in documents.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(path).expect("it is there");
        let has = blocks(&text).iter().any(|b| ["console", "sh"].contains(&b.language.as_str()));
        let name = path.strip_prefix(root()).expect("it is below").display().to_string();
        assert!(!has || checked.contains(&format!("check(\"{name}\"")), "{name} is not checked");
    }
}
