//! The `keyhole` binary: operator commands, the daemons and `run`; the only place that sees both sides.
//!
//! Reading order: `args` (the command line), `operator` (what is asked of managers), `context` (which ones), `run` and `task` (what is asked
//! of this machine's node), `audit` (this manager's files), `manager` and `node` (the daemons), `dev` (all of them), `render` (how answers look).

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, ValueEnum};
use keyhole_secmem::ZeroingAllocator;

use crate::args::{Cli, Command};
use crate::console::{Console, Output};
use crate::failure::Failure;
use crate::usage::Ending;

mod args;
mod audit;
mod complete;
mod config;
mod console;
mod context;
mod credentials;
mod dev;
mod failure;
mod host;
mod logs;
mod man;
mod manager;
mod node;
mod operator;
mod prompt;
mod render;
mod run;
mod task;
mod usage;
mod value;

/// For both daemons and for the CLI: what is freed is wiped.
#[global_allocator]
static ALLOCATOR: ZeroingAllocator = ZeroingAllocator;

fn main() -> ExitCode {
    keyhole_secmem::harden::install_panic_hook();
    let argv: Vec<OsString> = std::env::args_os().collect();
    if let Some(shell) = std::env::var_os(complete::VARIABLE) {
        return ExitCode::from(u8::from(!complete::answer(&shell, &argv)));
    }
    let mut console = Console::process();
    let is_run = is_run(&argv);
    let failure = match parse(&argv) {
        Ok(cli) => {
            console.output = cli.global.output;
            for (variable, meant) in config::mistyped_variables() {
                console.warn(&format!(
                    "the environment's {variable} sets no option; did you mean {meant}?"
                ));
            }
            match dispatch(cli, &mut console) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(failure) => failure,
            }
        }
        Err(unparsed) => {
            console.output = output_of(&argv);
            match unparsed {
                Unparsed::Clap(error) => match (usage::ending(&error), console.output) {
                    (Ending::Answer, _) => {
                        let _ = error.print();
                        return ExitCode::SUCCESS;
                    }
                    (Ending::HelpInstead, Output::Text) => {
                        let _ = error.print();
                        return ExitCode::from(2);
                    }
                    _ => usage::failure(&error),
                },
                Unparsed::Config(failure) => failure,
            }
        }
    };
    let exit = match is_run {
        true => failure.exit_code_of_run(),
        false => failure.exit_code(),
    };
    console.report(&failure, exit);
    ExitCode::from(exit)
}

/// What `--output` says, of a command line that does not parse.
fn output_of(argv: &[OsString]) -> Output {
    if let Some(word) = config::typed(argv, "--output") {
        return Output::from_str(&word.to_string_lossy(), true).unwrap_or_default();
    }
    let command = layered(argv).map(|command| command.ignore_errors(true));
    let matches = command.ok().and_then(|command| command.try_get_matches_from(&argv[..1]).ok());
    let output = matches.as_ref().and_then(|m| m.try_get_one::<Output>("output").ok().flatten());
    output.copied().unwrap_or_default()
}

/// Why there is nothing to do.
enum Unparsed {
    /// Help was asked for, or the words make no sense.
    Clap(Box<clap::Error>),
    /// The file of options is unusable.
    Config(Failure),
}

impl From<clap::Error> for Unparsed {
    fn from(error: clap::Error) -> Self {
        Self::Clap(Box::new(error))
    }
}

fn parse(argv: &[OsString]) -> Result<Cli, Unparsed> {
    let command = layered(argv).map_err(Unparsed::Config)?;
    let matches = command.try_get_matches_from(argv)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.global.settle(&matches).map_err(Unparsed::Config)?;
    Ok(cli)
}

/// The command line with what the environment and the file of options say.
fn layered(argv: &[OsString]) -> Result<clap::Command, Failure> {
    let file = config::file_of(argv, std::env::var_os("KEYHOLE_CONFIG"));
    let options = match file {
        // A worker gets all it needs from its supervisor; an options file edited since must not stop its restart.
        Some(_) if is_worker(argv) => toml::Table::new(),
        Some(file) => config::read(&file)?,
        None => toml::Table::new(),
    };
    config::layer(Cli::command(), options)
}

/// Whether this is the process that a supervisor starts.
fn is_worker(argv: &[OsString]) -> bool {
    argv.get(1..3).is_some_and(|words| words == ["node", "worker"])
}

/// Whether the noun is `run` or `dev`, whose own failures have other exit codes; also when the rest does not parse.
fn is_run(argv: &[OsString]) -> bool {
    const WITH_VALUE: [&str; 11] = [
        "-H",
        "--host",
        "-c",
        "--context",
        "--context-dir",
        "--cert",
        "--key",
        "--ca",
        "--node-socket",
        "--config",
        "--output",
    ];
    let mut words = argv.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word.as_ref()) {
            words.next();
        } else if !word.starts_with('-') {
            return matches!(word.as_ref(), "run" | "dev");
        }
    }
    false
}

fn dispatch(cli: Cli, console: &mut Console) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let command = match command {
        Command::Run(run) => return run.run(&global, console),
        Command::Dev(dev) => return dev.run(&global, console),
        Command::DevPart(part) => return part.run(),
        Command::Manager(manager) => match manager.daemon() {
            Ok(outcome) => return outcome,
            Err(manager) => Command::Manager(manager),
        },
        Command::Completion(completion) => return completion.run(console),
        Command::Man(manual) => return manual.run(console),
        Command::Node(node) => match node.daemon() {
            Ok(outcome) => return outcome,
            Err(node) => Command::Node(node),
        },
        other => other,
    };
    // Another thread looks after the connection: this one may wait for a person, or for who reads what is printed, for longer
    // than the manager waits for a sign of life.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    runtime.block_on(ask(command, &global, console))
}

/// The commands that ask somebody and show the answer.
async fn ask(
    command: Command,
    global: &args::Global,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::Secret(secret) => secret.run(global, console).await,
        Command::Service(service) => service.run(global, console).await,
        Command::Node(node) => node.run(global, console).await,
        Command::Cluster(cluster) => cluster.run(global, console).await,
        Command::Task(task) => task.run(global, console).await,
        Command::Manager(manager) => manager.ask(global, console).await,
        Command::Operator(operator) => operator.run(global, console).await,
        Command::Context(context) => context.run(global, console),
        Command::Audit(audit) => audit.run(global, console).await,
        Command::Run(_)
        | Command::Dev(_)
        | Command::DevPart(_)
        | Command::Completion(_)
        | Command::Man(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_reads_no_options_file() {
        let argv: Vec<OsString> =
            ["keyhole", "node", "worker", "--config", "/nonexistent", "--config-fd", "3"]
                .map(OsString::from)
                .to_vec();
        assert!(parse(&argv).is_ok());
        assert!(matches!(
            parse(&argv[..2].iter().cloned().chain(argv[3..5].iter().cloned()).collect::<Vec<_>>()),
            Err(Unparsed::Config(_))
        ));
    }

    #[test]
    fn the_output_is_known_of_mistakes_too() {
        let of = |words: &[&str]| output_of(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["keyhole", "secret", "--output", "json", "ls", "--bad"]), Output::Json);
        assert_eq!(of(&["keyhole", "secret", "ls", "--bad", "--output=json"]), Output::Json);
        assert_eq!(of(&["keyhole", "--output", "json"]), Output::Json);
        assert_eq!(of(&["keyhole", "--output", "json", "nothing"]), Output::Json);
        assert_eq!(of(&["keyhole", "secret", "ls", "--output", "xml"]), Output::Text);
        assert_eq!(of(&["keyhole", "run", "--", "x", "--output", "json"]), Output::Text);
    }

    #[test]
    fn every_verb_has_examples() {
        fn look(command: &clap::Command, path: &str, lacking: &mut Vec<String>) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                if sub.has_subcommands() {
                    look(sub, &path, lacking);
                } else if !help.starts_with("Examples:") || !help.contains(&path) {
                    lacking.push(path);
                }
            }
        }
        let mut lacking = Vec::new();
        look(&Cli::command(), "keyhole", &mut lacking);
        assert!(lacking.is_empty(), "no examples in the help of {lacking:?}");
    }

    #[test]
    fn run_is_known_by_its_place() {
        let is = |words: &[&str]| is_run(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(is(&["keyhole", "run", "--bad"]));
        assert!(is(&["keyhole", "--host", "unix:///x", "run"]));
        assert!(is(&["keyhole", "--output=json", "run"]));
        assert!(is(&["keyhole", "dev", "--bad"]));
        assert!(!is(&["keyhole", "node", "run"]));
        assert!(!is(&["keyhole", "--config", "run", "secret", "ls"]));
        assert!(!is(&["keyhole"]));
    }
}
