//! The `keyhole` binary: operator commands, the daemons and `run`; the only place that sees both sides.
//!
//! Reading order: `args` (the command line), `operator` (what is asked of managers), `run` and `task` (what is asked
//! of this machine's node), `manager` and `node` (the daemons), `dev` (all of them), `render` (how answers look).

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use keyhole_secmem::ZeroingAllocator;

use crate::args::{Cli, Command};
use crate::console::Console;
use crate::failure::Failure;

mod args;
mod config;
mod console;
mod credentials;
mod dev;
mod failure;
mod host;
mod logs;
mod manager;
mod node;
mod operator;
mod render;
mod run;
mod task;
mod value;

/// For both daemons and for the CLI: what is freed is wiped.
#[global_allocator]
static ALLOCATOR: ZeroingAllocator = ZeroingAllocator;

fn main() -> ExitCode {
    keyhole_secmem::harden::install_panic_hook();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let mut console = Console::process();
    let is_run = is_run(&argv);
    let failure = match parse(&argv) {
        Ok(cli) => {
            console.output = cli.global.output;
            match dispatch(cli, &mut console) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(failure) => failure,
            }
        }
        Err(Unparsed::Clap(error)) => {
            let _ = error.print();
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if is_run => ExitCode::from(125),
                _ => ExitCode::from(2),
            };
        }
        Err(Unparsed::Config(failure)) => failure,
    };
    console.report(&failure);
    ExitCode::from(match is_run {
        true => failure.exit_code_of_run(),
        false => failure.exit_code(),
    })
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
    let file = config::file_of(argv, std::env::var_os("KEYHOLE_CONFIG"));
    let options = match file {
        // A worker gets all it needs from its supervisor; an options file edited since must not stop its restart.
        Some(_) if is_worker(argv) => toml::Table::new(),
        Some(file) => config::read(&file).map_err(Unparsed::Config)?,
        None => toml::Table::new(),
    };
    let command = config::layer(Cli::command(), options).map_err(Unparsed::Config)?;
    let matches = command.try_get_matches_from(argv)?;
    Ok(Cli::from_arg_matches(&matches)?)
}

/// Whether this is the process that a supervisor starts.
fn is_worker(argv: &[OsString]) -> bool {
    argv.get(1..3).is_some_and(|words| words == ["node", "worker"])
}

/// Whether the noun is `run` or `dev`, whose own failures have other exit codes; also when the rest does not parse.
fn is_run(argv: &[OsString]) -> bool {
    const WITH_VALUE: [&str; 8] =
        ["-H", "--host", "--cert", "--key", "--ca", "--node-socket", "--config", "--output"];
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
        Command::Run(run) => return run.run(&global),
        Command::Dev(dev) => return dev.run(&global, console),
        Command::DevPart(part) => return part.run(),
        Command::Manager(manager) => return manager.run(),
        Command::Node(node) => match node.daemon() {
            Ok(outcome) => return outcome,
            Err(node) => Command::Node(node),
        },
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
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
        Command::Manager(_) | Command::Run(_) | Command::Dev(_) | Command::DevPart(_) => Ok(()),
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
