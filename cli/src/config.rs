//! Options from a TOML file and from the environment: the command line first, then `KEYHOLE_*`, then the file.
//!
//! Every long option takes part by its place: `--listen` of `keyhole manager run` is `KEYHOLE_MANAGER_RUN_LISTEN`,
//! and `listen` in the table `[manager.run]`. A key of the file that no option has is an error. docs/CONFIGURATION.md
//! has the table of all of them; a test compares it with [`table`].

mod table;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::failure::Failure;

pub(crate) use table::mistyped_variables;

/// What was typed for a global option, found before anything else is parsed; the last one counts.
pub(crate) fn typed(argv: &[OsString], option: &str) -> Option<OsString> {
    let words: Vec<_> = argv.iter().skip(1).take_while(|word| *word != "--").collect();
    let mut found = None;
    for (at, word) in words.iter().enumerate() {
        match word.to_str().and_then(|word| word.strip_prefix(option)) {
            Some("") => found = words.get(at + 1).map(|next| (*next).clone()).or(found),
            Some(rest) => found = rest.strip_prefix('=').map(OsString::from).or(found),
            None => {}
        }
    }
    found
}

/// The file that `--config` or `KEYHOLE_CONFIG` names.
pub(crate) fn file_of(argv: &[OsString], environment: Option<OsString>) -> Option<PathBuf> {
    let named = typed(argv, "--config").map(PathBuf::from);
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
    let options = layers.normal(&[], options);
    let command = layers.command(command, &[], options);
    match layers.errors.into_iter().next() {
        None => Ok(command),
        Some(error) => Err(Failure::new(error)),
    }
}

struct Layers {
    errors: Vec<String>,
}

impl Layers {
    /// `node_socket` is as good as `node-socket`.
    fn normal(&mut self, path: &[String], table: Table) -> Table {
        let mut normal = Table::new();
        for (key, value) in table {
            let key = key.replace('_', "-");
            if normal.insert(key.clone(), value).is_some() {
                self.errors.push(format!("option file: {key:?}{} is there twice", place(path)));
            }
        }
        normal
    }

    fn command(&mut self, command: Command, path: &[String], mut options: Table) -> Command {
        let known = keys(&command);
        let command = command.mut_args(|arg| {
            let long = arg.get_long().filter(|long| in_file(&arg, long));
            // `[context.ls]` is about the command of that name, `context = 'prod'` about the option.
            let value = long.and_then(|long| match options.get(long) {
                Some(Value::Table(_)) => None,
                _ => options.remove(long),
            });
            self.arg(arg, path, value)
        });
        let command = command.mut_subcommands(|sub| {
            let name = sub.get_name().to_owned();
            let path: Vec<_> = path.iter().cloned().chain([name.clone()]).collect();
            let table = match options.remove(&name) {
                None => Table::new(),
                Some(Value::Table(table)) => self.normal(&path, table),
                Some(_) => {
                    let table = path.join(".");
                    self.errors.push(format!("option file: {name:?} must be a table: [{table}]"));
                    Table::new()
                }
            };
            self.command(sub, &path, table)
        });
        if let Some(key) = options.keys().next() {
            let mend = match nearest(key, known.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None if known.is_empty() => "nothing can be set here".to_owned(),
                None => format!("known here are {}", known.join(", ")),
            };
            let place = place(path);
            self.errors
                .push(format!("option file: {key:?}{place} is no option or command; {mend}"));
        }
        command
    }

    fn arg(&mut self, arg: Arg, path: &[String], value: Option<Value>) -> Arg {
        let Some(long) = arg.get_long().filter(|_| is_option(&arg)).map(str::to_owned) else {
            return arg;
        };
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

/// Whether it can be set elsewhere than on the command line.
fn is_option(arg: &Arg) -> bool {
    arg.get_long().is_some() && !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
}

/// A file cannot name another file.
fn in_file(arg: &Arg, long: &str) -> bool {
    is_option(arg) && long != "config"
}

/// What a table of the file may have: options, and the tables of commands.
fn keys(command: &Command) -> Vec<String> {
    let longs = command.get_arguments().filter_map(|arg| {
        let long = arg.get_long()?;
        in_file(arg, long).then(|| long.to_owned())
    });
    let subs = command.get_subcommands().filter(|sub| !sub.is_hide_set() && settable(sub));
    longs.chain(subs.map(|sub| sub.get_name().to_owned())).collect()
}

fn settable(command: &Command) -> bool {
    command.get_arguments().any(is_option) || command.get_subcommands().any(settable)
}

/// ` in [manager.run]`
fn place(path: &[String]) -> String {
    if path.is_empty() { String::new() } else { format!(" in [{}]", path.join(".")) }
}

/// The word that was probably meant.
fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|word| (strsim::jaro_winkler(typed, word), word));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(score, _)| *score > 0.85).map(|(_, word)| word)
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
        assert_eq!(cli.global.host.unwrap().to_string(), "tcp://a:1");
        assert_eq!(cli.global.node_socket, PathBuf::from("/n"));
        let Verb::Manager(ManagerCommand::Run(run)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(run.data_dir, PathBuf::from("/d"));
        assert_eq!(run.listen.to_string(), "0.0.0.0:9");
        assert!(run.init);
    }

    #[test]
    fn an_option_and_a_command_of_one_name_are_told_apart() {
        let argv = &["keyhole", "context", "ls"];
        let named = parse("context = 'prod'", argv).unwrap();
        assert_eq!(named.global.context.as_deref(), Some("prod"));
        let quiet = parse("[context.ls]\nquiet = true", argv).unwrap();
        assert_eq!(quiet.global.context, None);
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
    fn unknown_keys_are_met_with_the_nearest_name() {
        let argv = &["keyhole", "secret", "ls"];
        for (toml, line) in [
            ("hots = 'x'", "option file: \"hots\" is no option or command; did you mean \"host\"?"),
            (
                "[manager.run]\ndata_dri = '/d'",
                "option file: \"data-dri\" in [manager.run] is no option or command; did you mean \"data-dir\"?",
            ),
            (
                "[sceret.ls]\nquiet = true",
                "option file: \"sceret\" is no option or command; did you mean \"secret\"?",
            ),
            (
                "[cluster.join-token]\nzzz = 1",
                "option file: \"zzz\" in [cluster.join-token] is no option or command; known here are quiet, rotate",
            ),
            (
                "[secret.rm]\nforce = true",
                "option file: \"force\" in [secret.rm] is no option or command; nothing can be set here",
            ),
            (
                "config = '/x'",
                "option file: \"config\" is no option or command; known here are host, context, context-dir, cert, \
                 key, ca, node-socket, output, secret, service, node, cluster, operator, context, manager, audit, run, \
                 task, dev",
            ),
            (
                "node-socket = '/a'\nnode_socket = '/b'",
                "option file: \"node-socket\" is there twice",
            ),
        ] {
            assert_eq!(parse(toml, argv).unwrap_err(), line, "{toml}");
        }
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
