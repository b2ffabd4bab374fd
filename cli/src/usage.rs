//! Mistakes in the command line, said by clap in several lines, as one line.
//!
//! Depends on clap's way of laying out a complaint: the mistake first, tips in lines of their own, then the usage.

use clap::error::ErrorKind;

use crate::failure::Failure;

/// What clap has to say when there is nothing to do.
pub(crate) enum Ending {
    /// Help or the version, asked for: it goes to standard output.
    Answer,
    /// A noun without its verb: help is the most useful complaint.
    HelpInstead,
    /// A mistake.
    Mistake,
}

/// Which of them an error is.
pub(crate) fn ending(error: &clap::Error) -> Ending {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ending::Answer,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Ending::HelpInstead,
        _ => Ending::Mistake,
    }
}

/// The mistake, the tips, and where to read on.
pub(crate) fn failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    match ending(error) {
        Ending::Mistake => Failure::usage(line(&text)),
        _ => {
            let page = page(&text).unwrap_or_else(|| "keyhole".to_owned());
            Failure::usage(format!("'{page}' needs a command; see '{page} --help'"))
        }
    }
}

fn line(text: &str) -> String {
    let end = text.find("\nUsage:").unwrap_or(text.len());
    let mut said = String::new();
    for part in text[..end].lines().map(str::trim).filter(|part| !part.is_empty()) {
        let (joint, part) = match part.strip_prefix("tip: ") {
            Some(tip) => ("; ", best_first(tip)),
            None if part.starts_with("For more information") => continue,
            None => (" ", part.strip_prefix("error: ").unwrap_or(part).to_owned()),
        };
        if !said.is_empty() {
            said.push_str(joint);
        }
        said.push_str(&cut(&part));
    }
    match page(text) {
        Some(page) => format!("{said}; see '{page} --help'"),
        None => format!("{said}; see --help"),
    }
}

/// Clap's list of similar words begins with the least similar one.
fn best_first(tip: &str) -> String {
    match tip.split_once(" exist: ") {
        Some((what, words)) => {
            let words: Vec<&str> = words.rsplit(", ").collect();
            format!("{what} exist: {}", words.join(", "))
        }
        None => tip.to_owned(),
    }
}

/// Clap repeats what was typed, however long it is.
fn cut(part: &str) -> String {
    const MOST: usize = 300;
    match part.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &part[..end]),
        None => part.to_owned(),
    }
}

/// `keyhole secret ls`, from the line that shows the usage.
fn page(text: &str) -> Option<String> {
    let usage = text.rsplit_once("Usage: ")?.1.lines().next()?;
    let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
    let words: Vec<_> = usage.split_whitespace().take_while(is_word).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn said(words: &[&str]) -> String {
        let argv = ["keyhole"].iter().chain(words);
        let command = crate::config::layer(Cli::command(), toml::Table::new()).unwrap();
        let failure = failure(&command.try_get_matches_from(argv).unwrap_err());
        assert_eq!(failure.exit_code(), 2, "{words:?}");
        failure.to_string()
    }

    #[test]
    fn mistyped_words_are_met_with_the_right_one() {
        for (words, line) in [
            (
                &["secert", "ls"][..],
                "unrecognized subcommand 'secert'; a similar subcommand exists: 'secret'; see 'keyhole --help'",
            ),
            (
                &["secret", "rotat", "db"],
                "unrecognized subcommand 'rotat'; some similar subcommands exist: 'rotate', 'status'; see 'keyhole secret --help'",
            ),
            (
                &["service", "creat"],
                "unrecognized subcommand 'creat'; a similar subcommand exists: 'create'; see 'keyhole service --help'",
            ),
            (
                &["secret", "create", "--lable", "a=b", "db", "-"],
                "unexpected argument '--lable' found; a similar argument exists: '--label'; see 'keyhole secret \
                 create --help'",
            ),
            (
                &["cluster", "join-token", "wroker"],
                "invalid value 'wroker' for '<ROLE>' [possible values: worker, manager]; a similar value exists: \
                 'worker'; see --help",
            ),
        ] {
            assert_eq!(said(words), line);
        }
    }

    #[test]
    fn what_is_missing_or_contradicts_itself_is_named() {
        for (words, parts) in [
            (&["secret", "create"][..], &["<NAME>", "'keyhole secret create --help'"][..]),
            (
                &["secret", "inspect", "--pretty", "-f", "x", "db"],
                &["--pretty", "cannot be used with"],
            ),
            (&["secret", "rollback", "db", "--to", "0"], &["'0'", "--to"]),
            (&["manager", "run", "--init", "--join", "a:1"], &["--init", "--join"]),
            (&["secret", "rotate", "db", "-", "--wait-timeout", "1s"], &["--wait"]),
            (&["secret", "ls", "--filter"], &["--filter", "value is required"]),
            (&["secret", "ls", "--filter", "name"], &["key=value"]),
            (&["run", "--service", "web"], &["<COMMAND>"]),
            (&["--host", "ftp://x", "secret", "ls"], &["ftp://x", "tcp://HOST:PORT"]),
        ] {
            let line = said(words);
            for part in parts {
                assert!(line.contains(part), "{words:?}: {part:?} in {line:?}");
            }
            assert!(!line.contains('\n') && !line.contains("error:"), "{line}");
        }
    }

    #[test]
    fn a_noun_alone_needs_a_verb() {
        assert_eq!(
            said(&["secret"]),
            "'keyhole secret' needs a command; see 'keyhole secret --help'"
        );
        assert_eq!(said(&[]), "'keyhole' needs a command; see 'keyhole --help'");
    }

    #[test]
    fn no_argument_breaks_the_line() {
        for text in ["a\nb", "a\nUsage: keyhole x", "\x1b[2J", "a\n\nerror: tip: "] {
            let line = said(&["secret", "ls", text]);
            assert!(!line.contains(char::is_control), "{line:?}");
        }
        let line = said(&["secret", "ls", &"é".repeat(100_000)]);
        assert!(line.len() < 1_000 && line.ends_with("see 'keyhole secret ls --help'"), "{line}");
    }
}
