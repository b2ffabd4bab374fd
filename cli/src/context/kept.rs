//! Where contexts are: `~/.keyhole/contexts`, one file each, and which one is in use.
//!
//! Invariant: a context's name is a plain file name, and `default`, the socket on this machine, is in no file. Where the
//! managers are by now stands beside an operator's file: whoever learns it never writes a key.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use keyhole_wire::tls::{ConnectError, Exporter};
use tonic::transport::Channel;

use super::bundle::{Bundle, NewFile};
use crate::args::Global;
use crate::failure::Failure;
use crate::host::{self, Unfit};
use crate::render::time;

/// The one that is always there.
pub(crate) const DEFAULT: &str = "default";
/// In a context's folder.
const FILE: &str = "operator.toml";
/// Beside it, once they are others than in it: where the managers are, one in each line.
const MANAGERS: &str = "managers";
/// Beside the contexts' folders.
const CURRENT: &str = ".current";

/// The folder of contexts.
pub(crate) struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// `--context-dir`, or the one in the home folder.
    pub(crate) fn of(global: &Global) -> Result<Self, Failure> {
        if let Some(folder) = &global.context_dir {
            return Ok(Self { folder: folder.clone() });
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or_else(|| {
            Failure::new("cannot tell where contexts are kept: set HOME or KEYHOLE_CONTEXT_DIR")
        })?;
        Ok(Self { folder: PathBuf::from(home).join(".keyhole/contexts") })
    }

    /// The context that counts for a command; none is the socket on this machine.
    pub(crate) fn chosen(global: &Global) -> Result<Option<Context>, Failure> {
        if global.host.is_some() {
            return Ok(None);
        }
        let contexts = match Self::of(global) {
            Ok(contexts) => contexts,
            // Without a home nobody has chosen one.
            Err(_) if global.context.is_none() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let name = match &global.context {
            Some(name) => name.clone(),
            None => contexts.current()?,
        };
        if name == DEFAULT {
            return Ok(None);
        }
        contexts.read(&name).map(Some)
    }

    /// The name of the one in use.
    pub(crate) fn current(&self) -> Result<String, Failure> {
        match fs::read_to_string(self.folder.join(CURRENT)) {
            Ok(name) => Ok(name.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DEFAULT.to_owned()),
            Err(error) => Err(self.failed("read", CURRENT, &error)),
        }
    }

    /// Makes a context the one in use.
    pub(crate) fn choose(&self, name: &str) -> Result<(), Failure> {
        let file = self.folder.join(CURRENT);
        if name == DEFAULT {
            return match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failed("remove", CURRENT, &error))
                }
                _ => Ok(()),
            };
        }
        self.read(name)?;
        let new = self.folder.join(".current.new");
        let written = fs::write(&new, format!("{name}\n")).and_then(|()| fs::rename(&new, file));
        written.map_err(|error| self.failed("write", CURRENT, &error))
    }

    /// All names but the default one, in order.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("list", "", &error)),
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> =
            entries.filter_map(name).filter(|n| check(n).is_ok()).collect();
        names.sort();
        Ok(names)
    }

    /// A context.
    pub(crate) fn read(&self, name: &str) -> Result<Context, Failure> {
        check(name)?;
        let folder = self.folder.join(name);
        let path = folder.join(FILE);
        if !path.exists() {
            let failure = Failure::new(format!(
                "context {name} not found; make it with 'keyhole context create {name} --from FILE'"
            ));
            return Err(failure.about(name));
        }
        let mut bundle = Bundle::read(&path)?;
        // One that can't be read is written anew.
        let learned = fs::read_to_string(folder.join(MANAGERS)).unwrap_or_default();
        if !bundle.managers_given && !learned.is_empty() {
            bundle.managers = learned.lines().map(str::to_owned).collect();
        }
        Ok(Context { name: name.to_owned(), folder, bundle })
    }

    /// Keeps a new context.
    pub(crate) fn create(&self, name: &str, bundle: &Bundle) -> Result<(), Failure> {
        check(name)?;
        let folder = self.folder.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| self.failed("make", "", &error))?;
        DirBuilder::new().mode(0o700).create(&folder).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Failure::new(format!("context {name} already exists")).about(name)
            }
            _ => self.failed("make", name, &error),
        })?;
        let write = || {
            let mut file = NewFile::create(&folder.join(FILE))?;
            file.write(bundle)?;
            file.keep();
            Ok(())
        };
        write().inspect_err(|_: &Failure| drop(fs::remove_dir(&folder)))
    }

    /// Writes a context anew.
    pub(crate) fn replace(&self, context: &Context) -> Result<(), Failure> {
        context.bundle.replace(&self.folder.join(&context.name).join(FILE))
    }

    /// Forgets a context.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        check(name)?;
        // Another folder that happens to be there is nobody's context.
        if !self.folder.join(name).join(FILE).exists() {
            return Err(Failure::new(format!("context {name} not found")).about(name));
        }
        fs::remove_dir_all(self.folder.join(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(format!("context {name} not found")).about(name)
            }
            _ => self.failed("remove", name, &error),
        })
    }

    fn failed(&self, doing: &str, what: &str, error: &io::Error) -> Failure {
        Failure::new(format!("cannot {doing} {}: {error}", self.folder.join(what).display()))
    }
}

fn check(name: &str) -> Result<(), Failure> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    let fits = name.len() <= 64 && name.bytes().all(known);
    if fits && name != DEFAULT && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Failure::new(match name {
        DEFAULT => "the context 'default' is this machine's socket; it is always there".to_owned(),
        _ => format!(
            "invalid context name {name:?}: only 1 to 64 characters of [a-zA-Z0-9_.+-] are allowed, and the first must be \
             [a-zA-Z0-9]"
        ),
    })
    .about(name))
}

/// One cluster, as one operator.
pub(crate) struct Context {
    /// Its name on this machine.
    pub(crate) name: String,
    /// Where it is kept.
    pub(crate) folder: PathBuf,
    /// All about it.
    pub(crate) bundle: Bundle,
}

impl Context {
    /// A channel to the first of its managers that serves.
    pub(crate) async fn connect(&self) -> Result<(Channel, Exporter), Failure> {
        let unusable =
            |why: String| Failure::new(format!("context {} is unusable: {why}", self.name));
        let live = self.bundle.live().map_err(unusable)?;
        let end = live.identity().map_or(0, |own| own.subject().not_after) * 1_000_000_000;
        let now = time::now();
        if end < now {
            return Err(Failure::new(format!(
                "the certificate of context {} expired {}; ask an administrator to remove operator {} and create it anew \
                 (or is this machine's clock wrong?)",
                self.name,
                time::until(end, now).to_lowercase(),
                self.bundle.operator
            )));
        }
        let serving = host::manager_over_tls(&self.bundle.managers, &live).await;
        let serving = serving.map_err(|failed| {
            let is_foreign =
                |unfit: &Unfit| matches!(unfit, Unfit::Connect(ConnectError::Foreign { .. }));
            let foreign = failed.iter().any(is_foreign);
            let mend = match foreign {
                true => {
                    "; if the cluster has another CA by now, ask an administrator for a new file"
                }
                false => "",
            };
            let each: Vec<_> = failed.iter().map(ToString::to_string).collect();
            let each = each.join("; ");
            Failure::new(format!("no manager of context {} serves: {each}{mend}", self.name))
        })?;
        self.learn(&serving.managers);
        Ok((serving.channel, serving.exporter))
    }

    /// Keeps where managers are by now, for the commands to come.
    fn learn(&self, managers: &[String]) {
        let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
        let known = set(managers) == set(&self.bundle.managers);
        if known || managers.is_empty() || self.bundle.managers_given {
            return;
        }
        let new = self.folder.join(format!("{MANAGERS}.{}", std::process::id()));
        let written = fs::write(&new, managers.join("\n") + "\n")
            .and_then(|()| fs::rename(&new, self.folder.join(MANAGERS)));
        // What was asked for can be done all the same; the next command learns it again.
        let _ = written.or_else(|_| fs::remove_file(&new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names() {
        for name in ["a", "prod-eu.1+x_y", &"a".repeat(64)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "-a", "default", "a b", &"a".repeat(65)] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
