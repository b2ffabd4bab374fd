//! All options and where each can be set: the table of docs/CONFIGURATION.md, and the names that the environment may
//! have. Made of the command line itself, so that none can be missing.

use clap::{Arg, Command, CommandFactory};

use super::{is_option, variable};
use crate::args::Cli;

/// Variables of the environment that are one or two letters beside an option's, each with that one.
pub(crate) fn mistyped_variables() -> Vec<(String, String)> {
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let set: Vec<String> = set.filter(|name| name.starts_with("KEYHOLE_")).collect();
    if set.is_empty() {
        return Vec::new();
    }
    let mut known = Vec::new();
    each(&Cli::command(), &[], &mut |path, arg, long| known.push(variable_of(path, arg, long)));
    beside(&set, &known)
}

fn beside(set: &[String], known: &[String]) -> Vec<(String, String)> {
    let unknown = set.iter().filter(|name| !known.contains(name));
    let near = |name: &&String| {
        let near = known.iter().find(|known| strsim::damerau_levenshtein(name, known) <= 2);
        near.map(|known| ((*name).clone(), known.clone()))
    };
    unknown.filter_map(|name| near(&name)).collect()
}

/// Shows every option of a command line that is not built yet, with its command's words, in the order of the help.
fn each(command: &Command, path: &[String], see: &mut impl FnMut(&[String], &Arg, &str)) {
    for arg in command.get_arguments().filter(|arg| is_option(arg) && !arg.is_hide_set()) {
        if let Some(long) = arg.get_long() {
            see(path, arg, long);
        }
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path: Vec<_> = path.iter().cloned().chain([sub.get_name().to_owned()]).collect();
        each(sub, &path, see);
    }
}

fn variable_of(path: &[String], arg: &Arg, long: &str) -> String {
    match arg.get_env() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => variable(path, long),
    }
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;
    use crate::config::in_file;

    #[test]
    fn mistyped_variables_are_noticed_and_others_left_alone() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let known = names(&["KEYHOLE_HOST", "KEYHOLE_SECRET_LS_QUIET"]);
        let set = names(&[
            "KEYHOLE_HOTS",
            "KEYHOLE_HOST",
            "KEYHOLE_BIN_FOLDER",
            "KEYHOLE_SECRET_LS_QIET",
        ]);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            beside(&set, &known),
            [
                pair("KEYHOLE_HOTS", "KEYHOLE_HOST"),
                pair("KEYHOLE_SECRET_LS_QIET", "KEYHOLE_SECRET_LS_QUIET")
            ]
        );
    }

    /// The table as docs/CONFIGURATION.md has to have it.
    fn table() -> String {
        let code = |text: &str| match text {
            "" => String::new(),
            text => format!("`{}`", text.replace('|', "\\|")),
        };
        let mut text = String::from(
            "| command | option | environment | file | default | meaning |\n|---|---|---|---|---|---|\n",
        );
        each(&Cli::command(), &[], &mut |path, arg, long| {
            let command = match path {
                [] => "(every command)".to_owned(),
                words => code(&words.join(" ")),
            };
            let option = match arg.get_short() {
                Some(short) => format!("-{short}, --{long}"),
                None => format!("--{long}"),
            };
            let file = match (in_file(arg, long), path) {
                (false, _) => String::new(),
                (true, []) => long.to_owned(),
                (true, path) => format!("[{}] {long}", path.join(".")),
            };
            let defaults = arg.get_default_values().iter().map(|text| text.to_string_lossy());
            let default = match arg.get_action() {
                ArgAction::SetTrue => String::new(),
                _ => defaults.collect::<Vec<_>>().join(" "),
            };
            let meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let cells = [
                command,
                code(&option),
                code(&variable_of(path, arg, long)),
                code(&file),
                code(&default),
                meaning.replace('|', "\\|"),
            ];
            text.push_str(&format!("| {} |\n", cells.join(" | ").replace("  ", " ")));
        });
        text
    }

    #[test]
    fn the_document_has_every_option_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIGURATION.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- options: begin -->\n", "<!-- options: end -->\n");
        let start = text.find(begin).unwrap() + begin.len();
        let stop = text.find(end).unwrap();
        let (found, right) = (&text[start..stop], table());
        if std::env::var_os("KEYHOLE_WRITE_DOCS").is_some() {
            let whole = format!("{}{right}{}", &text[..start], &text[stop..]);
            std::fs::write(path, whole).unwrap();
            return;
        }
        for (line, wanted) in found.lines().zip(right.lines()) {
            assert_eq!(line, wanted, "write it anew: set KEYHOLE_WRITE_DOCS=1 and run this test");
        }
        assert_eq!(found.lines().count(), right.lines().count());
    }
}
