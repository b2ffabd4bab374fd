//! `keyhole context`: several clusters, each by an operator's certificate, as `docker context` has them.
//!
//! Invariant: what is kept of a context is the file that `operator create` made; only its words can be other, and where the
//! managers are.

pub(crate) mod bundle;
pub(crate) mod kept;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::host::MANAGER_HOST;
use crate::render::datum::Datum;
use crate::render::filter::{Filter, Subject};
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines};
use crate::render::listing::{Columns, ListOptions, Listing, cell};
use crate::render::time;
use bundle::Bundle;
use kept::{Contexts, DEFAULT};

static COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("Endpoint", "KEYHOLE ENDPOINT"),
        ("Operator", "OPERATOR"),
        ("Role", "ROLE"),
        ("Expires", "EXPIRES"),
        ("Current", "CURRENT"),
        ("Error", "ERROR"),
    ],
    table: &["Name", "Description", "Endpoint", "Operator", "Expires", "Error"],
    filters: &["id", "name", "names"],
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Keep a cluster under a name, by the file of 'operator create'
    #[command(after_help = "Examples:\n  \
        keyhole context create prod --from ann.toml\n  \
        keyhole context create prod --from ann.toml --managers 10.0.0.1:7070,10.0.0.2:7070 --description 'the shop'")]
    Create(Create),
    /// List contexts; the one in use has a star
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  \
        keyhole context ls\n  \
        keyhole context ls --format '{{.Name}} {{.Expires}}'\n\n\
        Fields: .ID .Name .Description .Endpoint .Operator .Role .Expires .Current .Error"
    )]
    Ls(ListOptions),
    /// Print the name of the context in use
    #[command(after_help = "Examples:\n  keyhole context show")]
    Show,
    /// Use a context for the commands to come
    #[command(after_help = "Examples:\n  \
        keyhole context use prod\n  \
        keyhole context use default          (the socket on this machine)\n  \
        keyhole --context prod secret ls     (for one command)\n\n\
        --host and KEYHOLE_HOST count before the context in use.")]
    Use(Use),
    /// Show everything about contexts but their keys
    #[command(after_help = "Examples:\n  \
        keyhole context inspect\n  \
        keyhole context inspect --format '{{.Managers}}' prod")]
    Inspect(Inspect),
    /// Forget contexts; the operators stay
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  \
        keyhole context rm prod\n  \
        keyhole context rm --force prod     (also the one in use)"
    )]
    Rm(Rm),
}

/// `create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name on this machine
    name: String,
    /// The file of 'keyhole operator create'
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Where the managers are, whatever the file and they themselves say: HOST:PORT,HOST:PORT
    #[arg(long = "managers", value_name = "HOST:PORT", value_delimiter = ',')]
    managers: Vec<String>,
    /// Words for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
}

/// `use`
#[derive(Debug, Args)]
pub(crate) struct Use {
    /// The context
    #[arg(value_name = "CONTEXT")]
    context: String,
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    options: InspectOptions,
    /// The contexts; by default the one in use
    #[arg(value_name = "CONTEXT")]
    contexts: Vec<String>,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Also the one in use
    #[arg(short, long)]
    force: bool,
    /// The contexts
    #[arg(required = true, value_name = "CONTEXT")]
    contexts: Vec<String>,
}

impl ContextCommand {
    /// Does it.
    pub(crate) fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let contexts = Contexts::of(global)?;
        match self {
            Self::Create(create) => create.run(&contexts, console),
            Self::Ls(options) => list(&contexts, &options, console),
            Self::Show => console.line(&contexts.current()?),
            Self::Use(chosen) => {
                contexts.choose(&chosen.context)?;
                if global.host.is_some() {
                    console.warn(
                        "--host or KEYHOLE_HOST is set, and counts before the context in use",
                    );
                }
                console.line(&chosen.context)
            }
            Self::Inspect(inspect) => inspect.run(&contexts, console),
            Self::Rm(rm) => rm.run(&contexts, console),
        }
    }
}

impl Create {
    fn run(self, contexts: &Contexts, console: &mut Console) -> Result<(), Failure> {
        crate::value::protect_process()?;
        let mut bundle = Bundle::read(&self.from)?;
        if !self.managers.is_empty() {
            bundle.managers = self.managers;
            bundle.managers_given = true;
        }
        bundle.description = self.description;
        bundle
            .live()
            .map_err(|why| Failure::new(format!("cannot use {}: {why}", self.from.display())))?;
        contexts.create(&self.name, &bundle)?;
        console.hint(&format!("Use it with 'keyhole context use {}'.", self.name));
        console.line(&self.name)
    }
}

/// One line of the list.
struct Line {
    name: String,
    current: bool,
    /// What is known, or why nothing is.
    bundle: Option<Result<Bundle, Failure>>,
}

fn list(contexts: &Contexts, options: &ListOptions, console: &mut Console) -> Result<(), Failure> {
    let listing = Listing::new(&COLUMNS, options)?;
    let current = contexts.current()?;
    let default = Line { name: DEFAULT.to_owned(), current: current == DEFAULT, bundle: None };
    let kept = contexts.names()?.into_iter().map(|name| Line {
        current: name == current,
        bundle: Some(contexts.read(&name).map(|context| context.bundle)),
        name,
    });
    let mut lines: Vec<Line> = std::iter::once(default).chain(kept).collect();
    lines.retain(|line| {
        let subject = Subject { id: &line.name, name: &line.name, labels: None, others: &[] };
        Filter::admit(&options.filters, &subject)
    });
    let now = console.now();
    let rows: Vec<_> = lines.iter().map(|line| row(line, now)).collect();
    console.print(&listing.show(&rows)?)
}

fn row(line: &Line, now: u64) -> Datum {
    let star = if line.current { " *" } else { "" };
    let (known, error) = match &line.bundle {
        None => (None, String::new()),
        Some(Ok(bundle)) => (Some(bundle), String::new()),
        Some(Err(failure)) => (None, failure.to_string()),
    };
    let endpoint = match (&line.bundle, known) {
        (None, _) => MANAGER_HOST.to_owned(),
        (_, Some(bundle)) => bundle.managers.join(","),
        _ => String::new(),
    };
    let text = |of: fn(&Bundle) -> &str| known.map(of).unwrap_or_default();
    let description = match &line.bundle {
        None => "This machine's manager",
        Some(_) => text(|bundle| &bundle.description),
    };
    let expires = known.map_or(String::new(), |bundle| time::until(ends(bundle), now));
    Datum::Record(vec![
        ("ID", cell(&line.name)),
        ("Name", cell(&format!("{}{star}", line.name))),
        ("Description", cell(description)),
        ("Endpoint", cell(&endpoint)),
        ("Operator", cell(text(|bundle| &bundle.operator))),
        ("Role", cell(text(|bundle| &bundle.role))),
        ("Expires", expires.into()),
        ("Current", line.current.to_string().into()),
        ("Error", cell(&error)),
    ])
}

/// When its certificate ends, nanoseconds since 1970; 0 if it has none that can be read.
fn ends(bundle: &Bundle) -> u64 {
    bundle.identity().map_or(0, |own| own.subject().not_after.saturating_mul(1_000_000_000))
}

impl Inspect {
    fn run(self, contexts: &Contexts, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&self.options)?;
        let names = match self.contexts.is_empty() {
            true => vec![contexts.current()?],
            false => self.contexts,
        };
        let current = contexts.current()?;
        let read = |name: String| {
            let bundle = match name.as_str() {
                DEFAULT => None,
                kept => Some(contexts.read(kept)?.bundle),
            };
            Ok::<_, Failure>((name == current, name, bundle))
        };
        let found = names.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let now = console.now();
        console.print(&inspection.show(&found, datum, |found| pretty(found, now))?)
    }
}

type Found = (bool, String, Option<Bundle>);

fn datum((current, name, bundle): &Found) -> Datum {
    let list = |texts: &[String]| Datum::List(texts.iter().map(Into::into).collect());
    let mut fields = vec![("Name", name.into()), ("Current", (*current).into())];
    match bundle {
        None => fields.push(("Host", MANAGER_HOST.into())),
        Some(bundle) => fields.extend([
            ("Description", (&bundle.description).into()),
            ("Cluster", (&bundle.cluster).into()),
            ("Managers", list(&bundle.managers)),
            ("Operator", (&bundle.operator).into()),
            ("OperatorID", (&bundle.id).into()),
            ("Role", (&bundle.role).into()),
            ("Secrets", list(&bundle.secrets)),
            ("Services", list(&bundle.services)),
            ("ExpiresAt", time::rfc3339(ends(bundle)).into()),
        ]),
    }
    Datum::Record(fields)
}

fn pretty((_, name, bundle): &Found, now: u64) -> String {
    let Some(bundle) = bundle else {
        return pretty_lines(&[("Name", name.clone()), ("Host", MANAGER_HOST.to_owned())]);
    };
    pretty_lines(&[
        ("Name", name.clone()),
        ("Description", bundle.description.clone()),
        ("Cluster", bundle.cluster.clone()),
        ("Managers", bundle.managers.join(", ")),
        ("Operator", format!("{} ({})", bundle.operator, bundle.id)),
        ("Role", bundle.role.clone()),
        ("Secrets", bundle.secrets.join(", ")),
        ("Services", bundle.services.join(", ")),
        ("Expires", time::until(ends(bundle), now)),
    ])
}

impl Rm {
    fn run(self, contexts: &Contexts, console: &mut Console) -> Result<(), Failure> {
        let current = contexts.current()?;
        let mut outcome = Ok(());
        for name in &self.contexts {
            let removed = match *name == current && !self.force {
                true => Err(Failure::new(format!(
                    "context {name} is in use; use another one first, or --force"
                ))),
                false => contexts.remove(name),
            };
            match removed {
                Ok(()) if *name == current => contexts.choose(DEFAULT).and(console.line(name))?,
                Ok(()) => console.line(name)?,
                Err(failure) => {
                    console.report(&failure.about(name), 1);
                    outcome = Err(Failure::reported());
                }
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{self, Write};
    use std::os::unix::fs::MetadataExt;
    use std::sync::{Arc, Mutex};

    use clap::{CommandFactory, FromArgMatches};
    use tempfile::TempDir;

    use super::*;
    use crate::args::Cli;
    use crate::context::bundle::NewFile;

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A home of one operator's file, `ann.toml`, whose certificate ends a day after the clock of these tests.
    fn home() -> TempDir {
        let home = tempfile::tempdir().unwrap();
        let mut file = NewFile::create(&home.path().join("ann.toml")).unwrap();
        file.write(&bundle::tests::bundle("ann", 4_000_086_400)).unwrap();
        file.keep();
        home
    }

    fn keyhole(home: &TempDir, words: &[&str]) -> Result<String, String> {
        let folder = home.path().join("contexts").display().to_string();
        let argv = ["keyhole", "--context-dir", &folder].into_iter().chain(words.iter().copied());
        let matches = Cli::command().try_get_matches_from(argv).unwrap();
        let mut cli = Cli::from_arg_matches(&matches).unwrap();
        cli.global.settle(&matches).map_err(|failure| failure.to_string())?;
        let (out, err) = (Said::default(), Said::default());
        let now = || 4_000_000_000_000_000_000;
        let mut console = Console::of(Box::new(out.clone()), Box::new(err.clone()), now);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked = runtime.block_on(crate::ask(cli.command, &cli.global, &mut console));
        let text = |said: &Said| String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
        match asked {
            Ok(()) => Ok(text(&out)),
            Err(failure) => Err(format!("{}{failure}", text(&err))),
        }
    }

    fn create(home: &TempDir, name: &str) -> Result<String, String> {
        let from = home.path().join("ann.toml").display().to_string();
        keyhole(home, &["context", "create", name, "--from", &from, "--description", "the shop"])
    }

    #[test]
    fn contexts_are_made_chosen_listed_and_removed() {
        let home = home();
        let no_context = "NAME        DESCRIPTION             KEYHOLE ENDPOINT                    OPERATOR   \
                          EXPIRES   ERROR\n\
                          default *   This machine's manager   unix:///run/keyhole/manager.sock";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&keyhole(&home, &["context", "ls"]).unwrap()), squeeze(no_context));
        assert_eq!(create(&home, "prod").unwrap(), "prod\n");
        let file = home.path().join("contexts/prod/operator.toml");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(create(&home, "prod").unwrap_err(), "context prod already exists");
        assert!(create(&home, "default").unwrap_err().contains("always there"));
        assert!(create(&home, "../x").unwrap_err().contains("invalid context name"));
        assert_eq!(keyhole(&home, &["context", "use", "prod"]).unwrap(), "prod\n");
        assert_eq!(keyhole(&home, &["context", "show"]).unwrap(), "prod\n");
        let row =
            ["context", "ls", "--format", "{{.Name}}|{{.Endpoint}}|{{.Operator}}|{{.Expires}}"];
        assert_eq!(
            keyhole(&home, &row).unwrap(),
            "default|unix:///run/keyhole/manager.sock||\nprod *|127.0.0.1:1,127.0.0.1:2|ann|in 24 hours\n"
        );
        let inspect =
            ["context", "inspect", "--format", "{{.Name}} {{.Role}} {{.Managers}} {{.Secrets}}"];
        assert_eq!(
            keyhole(&home, &inspect).unwrap(),
            "prod writer [127.0.0.1:1 127.0.0.1:2] [web-*]\n"
        );
        let all = keyhole(&home, &["context", "inspect"]).unwrap();
        assert!(!all.contains("PRIVATE") && !all.contains("BEGIN"), "no key: {all}");
        let used = keyhole(&home, &["context", "rm", "prod"]).unwrap_err();
        assert!(used.contains("in use"), "{used}");
        assert_eq!(keyhole(&home, &["context", "rm", "--force", "prod"]).unwrap(), "prod\n");
        assert_eq!(keyhole(&home, &["context", "show"]).unwrap(), "default\n");
        assert!(keyhole(&home, &["context", "use", "prod"]).unwrap_err().contains("not found"));
    }

    #[test]
    fn what_is_typed_counts_before_what_is_in_use() {
        let home = home();
        create(&home, "prod").unwrap();
        keyhole(&home, &["context", "use", "prod"]).unwrap();
        let ls = ["secret", "ls"];
        let with = |words: &[&str]| keyhole(&home, &[words, &ls].concat()).unwrap_err();
        assert!(
            with(&[]).contains("no manager of context prod serves: 127.0.0.1:1: "),
            "{}",
            with(&[])
        );
        assert!(with(&["--context", "test"]).contains("context test not found"));
        assert!(with(&["--host", "unix:///nonexistent"]).contains("unix:///nonexistent"));
        let both = with(&["--host", "unix:///nonexistent", "--context", "prod"]);
        assert!(both.contains("either --host or --context"), "{both}");
        assert!(with(&["--context", "default"]).contains("unix:///run/keyhole/manager.sock"));
    }

    #[test]
    fn a_certificate_that_ended_is_told_with_the_mend() {
        let home = home();
        let path = home.path().join("old.toml");
        let mut file = NewFile::create(&path).unwrap();
        file.write(&bundle::tests::bundle("ann", 1_000_000_000)).unwrap();
        file.keep();
        let path = path.display().to_string();
        keyhole(&home, &["context", "create", "old", "--from", &path]).unwrap();
        let expired = keyhole(&home, &["--context", "old", "secret", "ls"]).unwrap_err();
        assert!(expired.contains("the certificate of context old expired"), "{expired}");
        assert!(expired.contains("remove operator ann and create it anew"), "{expired}");
    }
}
