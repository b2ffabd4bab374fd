//! Options from a TOML file and from the environment: the command line first, then `KEYHOLE_*`, then the file.
//!
//! Every long option takes part by its place: `--listen` of `keyhole manager run` is `KEYHOLE_MANAGER_RUN_LISTEN`,
//! and `listen` in the table `[manager.run]`. A key of the file that no option has is an error.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::failure::Failure;

/// The file that `--config` or `KEYHOLE_CONFIG` names, found before anything else is parsed.
pub(crate) fn file_of(argv: &[OsString], environment: Option<OsString>) -> Option<PathBuf> {
    let own = argv.iter().skip(1).take_while(|word| *word != "--");
    let words: Vec<_> = own.collect();
    let named = words.iter().enumerate().find_map(|(at, word)| {
        let word = word.to_str()?;
        match word.strip_prefix("--config") {
            Some("") => words.get(at + 1).map(|next| PathBuf::from(*next)),
            Some(rest) => rest.strip_prefix('=').map(PathBuf::from),
            None => None,
        }
    });
    named.or_else(|| environment.filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// Reads a file of options.
pub(crate) fn read(path: &std::path::Path) -> Result<Table, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read the options in {shown}: {error}")))?;
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        Failure::new(format!("{shown}, line {line}: {}", error.message()))
    })
}

/// Gives every option of `command` its variable, and its default from `options`.
pub(crate) fn layer(command: Command, options: Table) -> Result<Command, Failure> {
    let mut layers = Layers { errors: Vec::new() };
    let command = layers.command(command, &[], normal(options));
    match layers.errors.into_iter().next() {
        None => Ok(command),
        Some(error) => Err(Failure::new(error)),
    }
}

/// `node_socket` is as good as `node-socket`.
fn normal(table: Table) -> Table {
    table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)).collect()
}

struct Layers {
    errors: Vec<String>,
}

impl Layers {
    fn command(&mut self, command: Command, path: &[String], mut options: Table) -> Command {
        let command = command.mut_args(|arg| {
            let value = arg.get_long().and_then(|long| options.remove(long));
            self.arg(arg, path, value)
        });
        let command = command.mut_subcommands(|sub| {
            let name = sub.get_name().to_owned();
            let table = match options.remove(&name) {
                None => Table::new(),
                Some(Value::Table(table)) => normal(table),
                Some(_) => {
                    self.errors.push(format!("option file: {name:?} must be a table: [{name}]"));
                    Table::new()
                }
            };
            let path: Vec<_> = path.iter().cloned().chain([name]).collect();
            self.command(sub, &path, table)
        });
        if let Some(key) = options.keys().next() {
            let place =
                if path.is_empty() { String::new() } else { format!(" in [{}]", path.join(".")) };
            self.errors.push(format!("option file: {key:?}{place} is no option or command"));
        }
        command
    }

    fn arg(&mut self, arg: Arg, path: &[String], value: Option<Value>) -> Arg {
        let Some(long) = arg.get_long().map(str::to_owned) else {
            return arg;
        };
        if matches!(arg.get_action(), ArgAction::Help | ArgAction::Version) {
            return arg;
        }
        let arg = match arg.get_env() {
            Some(_) => arg,
            None => arg.env(variable(path, &long)).hide_env(true),
        };
        match value {
            None => arg,
            Some(value) => match texts(&value) {
                Some(texts) => {
                    let valued = arg.get_action().takes_values();
                    let arg = arg.default_values(texts).required(false);
                    if valued { arg.hide_default_value(true) } else { arg }
                }
                None => {
                    self.errors.push(format!(
                        "option file: {long:?} must be a text, a number, true or false, or a list"
                    ));
                    arg
                }
            },
        }
    }
}

/// `KEYHOLE_MANAGER_RUN_LISTEN`
fn variable(path: &[String], long: &str) -> String {
    let words = ["keyhole"].into_iter().chain(path.iter().map(String::as_str)).chain([long]);
    let words: Vec<_> = words.map(|word| word.replace('-', "_").to_uppercase()).collect();
    words.join("_")
}

fn texts(value: &Value) -> Option<Vec<String>> {
    Some(match value {
        Value::String(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Boolean(flag) => vec![flag.to_string()],
        Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(texts).collect();
            items?.concat()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::args::{Cli, Command as Verb};
    use crate::manager::ManagerCommand;

    fn parse(toml: &str, argv: &[&str]) -> Result<Cli, String> {
        let command = layer(Cli::command(), toml.parse().unwrap()).map_err(|e| e.to_string())?;
        let matches = command.try_get_matches_from(argv).map_err(|e| e.to_string())?;
        Cli::from_arg_matches(&matches).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        layer(Cli::command(), Table::new()).unwrap().debug_assert();
    }

    #[test]
    fn a_file_gives_options_and_the_command_line_wins() {
        let toml = "host = 'tcp://a:1'\nnode_socket = '/n'\n[manager.run]\ndata-dir = '/d'\nlisten = '1.2.3.4:5'\n\
                    init = true\n";
        let cli = parse(toml, &["keyhole", "manager", "run", "--listen", "0.0.0.0:9"]).unwrap();
        assert_eq!(cli.global.host.to_string(), "tcp://a:1");
        assert_eq!(cli.global.node_socket, PathBuf::from("/n"));
        let Verb::Manager(ManagerCommand::Run(run)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(run.data_dir, PathBuf::from("/d"));
        assert_eq!(run.listen.to_string(), "0.0.0.0:9");
        assert!(run.init);
    }

    #[test]
    fn unknown_keys_are_errors_that_name_their_place() {
        let argv = &["keyhole", "secret", "ls"];
        assert!(parse("hots = 'x'", argv).unwrap_err().contains("hots"));
        let error = parse("[manager.run]\ncolour = 1", argv).unwrap_err();
        assert!(error.contains("colour") && error.contains("[manager.run]"), "{error}");
        assert!(parse("manager = 1", argv).unwrap_err().contains("manager"));
        assert!(parse("host = 1.5", argv).unwrap_err().contains("host"));
    }

    #[test]
    fn the_file_is_found_before_parsing() {
        let argv = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let env = || Some(OsString::from("/env"));
        let found = |words: &[&str]| file_of(&argv(words), env());
        assert_eq!(found(&["keyhole", "--config", "/a", "run"]), Some("/a".into()));
        assert_eq!(found(&["keyhole", "run", "--config=/b"]), Some("/b".into()));
        assert_eq!(found(&["keyhole", "run", "--", "x", "--config", "/c"]), Some("/env".into()));
        assert_eq!(file_of(&argv(&["keyhole"]), None), None);
    }

    #[test]
    fn variables_are_named_by_their_place() {
        let path = ["manager".to_owned(), "run".to_owned()];
        assert_eq!(variable(&path, "data-dir"), "KEYHOLE_MANAGER_RUN_DATA_DIR");
        assert_eq!(variable(&[], "host"), "KEYHOLE_HOST");
    }

    #[test]
    fn a_broken_file_is_named_with_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "host = 'a'\nlisten =\n").unwrap();
        let error = read(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(
            read("/nonexistent/x".as_ref()).unwrap_err().to_string().contains("/nonexistent/x")
        );
    }
}
