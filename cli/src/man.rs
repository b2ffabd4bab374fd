//! `keyhole man`: a manual page for every command, made of the same words as its `--help`.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::console::Console;
use crate::failure::Failure;

/// After `keyhole man --help`.
pub(crate) const EXAMPLES: &str = "Examples:\n  \
    keyhole man /usr/local/share/man/man1     (then: man keyhole-secret-rotate)\n  \
    keyhole man . && man ./keyhole.1";

/// `man`
#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// The folder to write them to; made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Manual {
    /// Writes the pages and prints their names.
    pub(crate) fn run(self, console: &mut Console) -> Result<(), Failure> {
        let Self { folder } = self;
        let cannot = |path: &Path, error: std::io::Error| {
            Failure::new(format!("cannot write manual pages to {}: {error}", path.display()))
        };
        std::fs::create_dir_all(&folder).map_err(|error| cannot(&folder, error))?;
        for page in pages(Cli::command()) {
            let file = folder.join(&page.file);
            std::fs::write(&file, &page.text).map_err(|error| cannot(&file, error))?;
            console.line(&file.display().to_string())?;
        }
        Ok(())
    }
}

/// One page.
struct Page {
    file: String,
    text: Vec<u8>,
}

fn pages(command: Command) -> Vec<Page> {
    let mut command = whole(command.disable_help_subcommand(true));
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages);
    pages
}

/// Also the options that the short help leaves out.
fn whole(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_short_help(false)).mut_subcommands(whole)
}

fn add(command: &Command, pages: &mut Vec<Page>) {
    let man = Man::new(command.clone());
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let version = env!("CARGO_PKG_VERSION");
    // No date, so that the same version always has the same pages.
    let title = format!(".TH \"{name}\" \"1\" \"\" \"keyhole {version}\" \"Keyhole\"\n");
    let mut text = title.into_bytes();
    // Writing to memory does not fail.
    let _ = man
        .render_name_section(&mut text)
        .and_then(|()| man.render_synopsis_section(&mut text))
        .and_then(|()| man.render_description_section(&mut text))
        .and_then(|()| man.render_options_section(&mut text));
    if command.has_subcommands() {
        let _ = man.render_subcommands_section(&mut text);
    }
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    text.extend(examples_section(&examples).bytes());
    pages.push(Page { file: man.get_filename(), text });
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        add(sub, pages);
    }
}

/// The examples line by line, as they stand in the help.
fn examples_section(text: &str) -> String {
    let text = text.strip_prefix("Examples:\n").unwrap_or(text);
    if text.is_empty() {
        return String::new();
    }
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A dot or a quote at the start would be a request to the formatter.
        if line.starts_with(['.', '\'']) { format!("\\&{line}\n") } else { format!("{line}\n") }
    });
    format!(".SH EXAMPLES\n.nf\n{}.fi\n", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let pages = pages(Cli::command());
        let text = |file: &str| {
            let page = pages.iter().find(|page| page.file == file);
            let page = page.unwrap_or_else(|| panic!("no page {file}"));
            String::from_utf8(page.text.clone()).unwrap()
        };
        let rotate = text("keyhole-secret-rotate.1");
        for part in [
            ".TH \"keyhole-secret-rotate\" \"1\" \"\" \"keyhole ",
            "CA certificate (PEM)",
            "keyhole\\-secret\\-rotate \\- Give secrets a new value",
            "\\-\\-wait\\-timeout",
            ".SH EXAMPLES\n.nf\n  keyhole secret rotate db_password ./new_password\n",
        ] {
            assert!(rotate.contains(part), "{part}\n{rotate}");
        }
        assert!(text("keyhole.1").contains("keyhole\\-secret(1)"));
        assert!(pages.iter().all(|page| !page.file.contains("worker")), "what is hidden stays so");
        assert!(pages.len() > 30, "{}", pages.len());
    }

    #[test]
    fn examples_are_no_requests_to_the_formatter() {
        assert_eq!(
            examples_section("Examples:\n  a -b\n.x\n'y \\t"),
            ".SH EXAMPLES\n.nf\n  a \\-b\n\\&.x\n\\&'y \\et\n.fi\n"
        );
        assert_eq!(examples_section(""), "");
    }
}
