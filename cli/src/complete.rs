//! Shell completion: words of the command line from clap, names of secrets, services, nodes and tasks from the live
//! cluster.
//!
//! A shell's script calls this program with [`VARIABLE`] set and the words so far after `--`. Which arguments take
//! which names is told by the arguments' ids. Invariant: whatever is wrong, nothing is said but candidates.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, CommandFactory, FromArgMatches, ValueEnum};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use keyhole_proto::v1;

use crate::args::{Cli, Global};
use crate::console::Console;
use crate::context::kept::Contexts;
use crate::failure::Failure;
use crate::operator::Manager;
use crate::{config, host};

/// Set by a shell's script to the shell's name when it wants candidates.
pub(crate) const VARIABLE: &str = "KEYHOLE_COMPLETE";

/// After `keyhole completion --help`.
pub(crate) const EXAMPLES: &str = "Examples:\n  \
    source <(keyhole completion bash)                                     (in this shell)\n  \
    keyhole completion bash > /etc/bash_completion.d/keyhole              (for every shell to come)\n  \
    keyhole completion zsh > \"${fpath[1]}/_keyhole\"\n  \
    keyhole completion fish > ~/.config/fish/completions/keyhole.fish\n\n\
    Names are asked of the cluster that --host on the line, KEYHOLE_HOST or the file of options means.";

/// A person at a prompt waits no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// Bash 4 or newer
    Bash,
    /// Zsh
    Zsh,
    /// Fish
    Fish,
}

/// `completion`
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Prints the shell's script.
    pub(crate) fn run(self, console: &mut Console) -> Result<(), Failure> {
        let register = |shell: &dyn EnvCompleter| {
            let mut script = Vec::new();
            shell.write_registration(VARIABLE, "keyhole", "keyhole", "keyhole", &mut script)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&script).into_owned())
        };
        let script = match self.shell {
            Shell::Bash => include_str!("complete/keyhole.bash").to_owned(),
            Shell::Zsh => register(&Zsh)?,
            Shell::Fish => register(&Fish)?,
        };
        console.print(&script)
    }
}

/// Writes the candidates that a shell's script asks for with `argv`; false if there can be none.
pub(crate) fn answer(shell: &OsStr, argv: &[OsString]) -> bool {
    let Some(start) = argv.iter().position(|word| word == "--") else {
        return false;
    };
    let shell: &dyn EnvCompleter = match shell.to_str() {
        Some("bash") => &Bash,
        Some("zsh") => &Zsh,
        Some("fish") => &Fish,
        _ => return false,
    };
    let words = argv[start + 1..].to_vec();
    let typed: Arc<[OsString]> = words.clone().into();
    let mut command = equipped(Cli::command(), "", &typed);
    let mut candidates = Vec::new();
    let folder = std::env::current_dir().ok();
    shell.write_complete(&mut command, words, folder.as_deref(), &mut candidates).is_ok()
        && std::io::stdout().write_all(&candidates).is_ok()
}

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secret,
    /// `NAME FILE` or `NAME=FILE`
    Rotation,
    Service,
    Node,
    Manager,
    Task,
    Operator,
    Context,
}

/// Told by the argument's id; a name that is yet to be given is nothing to complete.
fn kind(verb: &str, id: &str) -> Option<Kind> {
    Some(match (verb, id) {
        ("service create", "service") | ("dev", "secret") => return None,
        // These are patterns.
        ("operator create", _) => return None,
        ("secret rotate", "what") => Kind::Rotation,
        (_, "secret" | "secrets" | "secret_add" | "secret_rm") => Kind::Secret,
        (_, "service" | "services") => Kind::Service,
        (_, "node" | "nodes") => Kind::Node,
        (_, "manager" | "managers") => Kind::Manager,
        (_, "tasks") => Kind::Task,
        (_, "operators") => Kind::Operator,
        (_, "context" | "contexts") => Kind::Context,
        _ => return None,
    })
}

/// The command line, its arguments knowing where to find names.
fn equipped(command: Command, verb: &str, typed: &Arc<[OsString]>) -> Command {
    let command = command.mut_args(|arg| match kind(verb, arg.get_id().as_str()) {
        Some(kind) => arg.add(ArgValueCompleter::new(Completer { kind, typed: Arc::clone(typed) })),
        None => arg,
    });
    command.mut_subcommands(|sub| {
        let verb = format!("{verb} {}", sub.get_name());
        equipped(sub, verb.trim_start(), typed)
    })
}

/// One argument's candidates.
struct Completer {
    kind: Kind,
    typed: Arc<[OsString]>,
}

impl ValueCompleter for Completer {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(current) = current.to_str() else {
            return Vec::new();
        };
        match self.kind {
            Kind::Rotation => self.rotation(current),
            Kind::Secret => {
                // Of a spec only the source is a name.
                let head = ["source=", "src="].into_iter().find(|head| current.starts_with(head));
                let head = head.unwrap_or_default();
                let found = self.names(Kind::Secret, &current[head.len()..]);
                found.into_iter().map(|name| name.add_prefix(head)).collect()
            }
            kind => self.names(kind, current),
        }
    }
}

impl Completer {
    /// `NAME FILE` or `NAME=FILE NAME=FILE …`; the first word decides.
    fn rotation(&self, current: &str) -> Vec<CompletionCandidate> {
        let files = |text: &str| PathCompleter::any().stdio().complete(OsStr::new(text));
        if let Some((name, file)) = current.split_once('=') {
            let found = files(file).into_iter();
            return found.map(|path| path.add_prefix(format!("{name}="))).collect();
        }
        match self.before(current).as_slice() {
            [] => self.names(Kind::Secret, current),
            [first, ..] if first.contains('=') => {
                let found = self.names(Kind::Secret, current).into_iter();
                let pair = |name: CompletionCandidate| {
                    let mut name = name.get_value().to_owned();
                    name.push("=");
                    CompletionCandidate::new(name)
                };
                found.map(pair).collect()
            }
            [_] => files(current),
            _ => Vec::new(),
        }
    }

    /// What `rotate` was given before the word at hand.
    fn before(&self, current: &str) -> Vec<String> {
        let at = self.typed.iter().rposition(|word| word == current);
        let words = &self.typed[..at.unwrap_or(self.typed.len())];
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok();
        let rotate = matches
            .as_ref()
            .and_then(|matches| matches.subcommand_matches("secret")?.subcommand_matches("rotate"));
        let given = rotate.and_then(|rotate| rotate.try_get_many::<String>("what").ok().flatten());
        given.into_iter().flatten().cloned().collect()
    }

    fn names(&self, kind: Kind, beginning: &str) -> Vec<CompletionCandidate> {
        let mut names = names(&self.typed, kind).unwrap_or_default();
        names.retain(|(name, _)| name.starts_with(beginning));
        names.sort_by(|(a, _), (b, _)| crate::render::natural::compare(a, b));
        let candidate = |(name, about): (String, String)| {
            CompletionCandidate::new(name).help(Some(about.into()))
        };
        names.into_iter().map(candidate).collect()
    }
}

/// The names there are, each with a word about it; none if nobody answers soon.
fn names(typed: &[OsString], kind: Kind) -> Option<Vec<(String, String)>> {
    let global = global(typed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asked = async { tokio::time::timeout(PATIENCE, ask(&global, kind)).await };
    runtime.block_on(asked).ok()?.ok()
}

/// The global options, as far as the words so far have them.
fn global(typed: &[OsString]) -> Option<Global> {
    let file = config::file_of(typed, std::env::var_os("KEYHOLE_CONFIG"));
    let options = match file {
        Some(file) => config::read(&file).ok()?,
        None => toml::Table::new(),
    };
    let command = config::layer(Cli::command(), options).ok()?.ignore_errors(true);
    let matches = command.try_get_matches_from(typed).ok()?;
    let mut global = Global::from_arg_matches(&matches).ok()?;
    global.settle(&matches).ok()?;
    Some(global)
}

async fn ask(global: &Global, kind: Kind) -> Result<Vec<(String, String)>, Failure> {
    if kind == Kind::Task {
        let mut node = host::node(&global.node_socket).await?;
        let tasks = node.list_tasks(v1::ListTasksRequest {}).await?.into_inner().tasks;
        return Ok(tasks.into_iter().map(|task| (task.id, task.service)).collect());
    }
    if kind == Kind::Context {
        let names = Contexts::of(global)?.names()?;
        return Ok(names.into_iter().map(|name| (name, "context".to_owned())).collect());
    }
    let mut api = Manager::connect(global).await?.api;
    Ok(match kind {
        Kind::Secret | Kind::Rotation => {
            let secrets = api.list_secrets(v1::ListRequest {}).await?.into_inner().secrets;
            let about = |secret: v1::SecretInfo| {
                (secret.name, format!("secret, version {}", secret.current))
            };
            secrets.into_iter().map(about).collect()
        }
        Kind::Service | Kind::Task | Kind::Context => {
            let services = api.list_services(v1::ListRequest {}).await?.into_inner().services;
            let about = |service: v1::ServiceInfo| {
                (service.name, format!("service, {} tasks", service.running))
            };
            services.into_iter().map(about).collect()
        }
        Kind::Node => {
            let nodes = api.list_nodes(v1::ListRequest {}).await?.into_inner().nodes;
            nodes.into_iter().map(|node| (node.hostname, format!("node {}", node.id))).collect()
        }
        Kind::Operator => {
            let found = api.list_operators(v1::ListRequest {}).await?.into_inner().operators;
            found.into_iter().map(|one| (one.name, format!("operator {}", one.id))).collect()
        }
        Kind::Manager => {
            let managers = api.list_managers(v1::ListRequest {}).await?.into_inner().managers;
            let about = |manager: v1::ManagerInfo| {
                (manager.hostname, format!("manager {} at {}", manager.id, manager.address))
            };
            managers.into_iter().map(about).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_that_names_something_is_known() {
        fn look(command: &Command, verb: &str, unknown: &mut Vec<String>) {
            for arg in command.get_arguments() {
                let id = arg.get_id().as_str();
                let named = arg.get_value_names().unwrap_or_default().join(" ");
                let names =
                    ["SECRET", "SERVICE", "NODE", "MANAGER", "TASK", "SPEC", "OPERATOR", "CONTEXT"]
                        .iter()
                        .any(|word| named.starts_with(word));
                if names && kind(verb, id).is_none() && verb != "service create" {
                    unknown.push(format!("{verb}: {id}"));
                }
            }
            for sub in command.get_subcommands() {
                let verb = format!("{verb} {}", sub.get_name());
                look(sub, verb.trim_start(), unknown);
            }
        }
        let mut unknown = Vec::new();
        look(&Cli::command(), "", &mut unknown);
        assert!(unknown.is_empty(), "these are not completed: {unknown:?}");
    }

    #[test]
    fn options_count_wherever_they_are_typed() {
        let host = |words: &[&str]| {
            let typed: Vec<_> = words.iter().map(OsString::from).collect();
            global(&typed).and_then(|global| global.host).map(|host| host.to_string())
        };
        let there = Some("unix:///x".to_owned());
        assert_eq!(host(&["keyhole", "--host", "unix:///x", "secret", "rm", ""]), there);
        assert_eq!(host(&["keyhole", "secret", "rm", "--host=unix:///x", "a"]), there);
        assert_eq!(host(&["keyhole", "-Hunix:///x", "secret", "rotate", "--nonsense"]), there);
    }

    #[test]
    fn a_rotation_takes_names_and_files_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("value"), "x").unwrap();
        let beginning = format!("{}/va", folder.path().display());
        let complete = |typed: &[&str], current: &str| {
            // Nobody listens there, so names are none.
            let host = ["keyhole", "--host", "unix:///nonexistent", "secret", "rotate"].iter();
            let typed = host.chain(typed).chain(&[current]).map(OsString::from).collect();
            let completer = Completer { kind: Kind::Rotation, typed };
            let found = completer.complete(OsStr::new(current));
            let text = |c: &CompletionCandidate| c.get_value().to_string_lossy().into_owned();
            found.iter().map(text).collect::<Vec<_>>()
        };
        let whole = format!("{}/value", folder.path().display());
        assert_eq!(complete(&["db"], &beginning), [whole.as_str()]);
        assert_eq!(complete(&["--wait", "db"], &beginning), [whole.as_str()]);
        assert_eq!(complete(&[], &format!("db={beginning}")), [format!("db={whole}")]);
        assert_eq!(complete(&["db=x"], &format!("k={beginning}")), [format!("k={whole}")]);
        assert!(complete(&[], &beginning).is_empty());
        assert!(complete(&["db", "x"], &beginning).is_empty());
    }
}
