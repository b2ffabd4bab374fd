//! `keyhole cluster backup` and `restore`: one encrypted file out, and a new cluster from one.
//!
//! Invariant: a passphrase is in locked memory or sealed to the manager; a file is there whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use keyhole_manager::app;
use keyhole_manager::backup::Unlock;
use keyhole_proto::v1;
use keyhole_secmem::SecretBytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tonic::Streaming;

use super::Manager;
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::prompt::hidden_line;
use crate::render::time;
use crate::value::{Operation, protect_process};

/// The longest passphrase, and the longest file of identities.
const LONGEST_PASSPHRASE: usize = 4096;
const LONGEST_IDENTITIES: usize = 64 << 10;

/// `backup`
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Encrypt to this age recipient (age1...); can be given several times
    #[arg(short, long, value_name = "AGE1...", conflicts_with = "passphrase_file")]
    recipient: Vec<String>,
    /// Encrypt to the passphrase in this file, or - for standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    overwrite: bool,
    /// Where to write it; - for standard output
    file: PathBuf,
}

/// `restore`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("unlock"))]
pub(crate) struct Restore {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The folder for the manager's store; empty, or not there yet
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The passphrase that it was encrypted to, or - for standard input
    #[arg(long, value_name = "FILE", group = "unlock")]
    passphrase_file: Option<PathBuf>,
    /// The age identities (AGE-SECRET-KEY-1...) of a recipient that it was encrypted to
    #[arg(long, value_name = "FILE", group = "unlock")]
    identity_file: Option<PathBuf>,
    /// The key that wraps this manager's keys, a 0600 file; by default in the data folder
    #[arg(long, value_name = "FILE")]
    kek_file: Option<PathBuf>,
}

impl Backup {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        protect_process()?;
        let to_stdout = self.file.as_os_str() == "-";
        if to_stdout && io::stdout().is_terminal() {
            return Err(Failure::usage(
                "a backup is not written to a terminal; give a file, or a pipe",
            ));
        }
        let passphrase = match (&self.passphrase_file, self.recipient.is_empty()) {
            (Some(source), _) => Some(passphrase_from(console, source)?),
            (None, true) => Some(asked_twice(console)?),
            (None, false) => None,
        };
        let mut manager = Manager::connect(global).await?;
        let passphrase = match passphrase {
            Some(passphrase) => {
                let receiver = manager.receiver().await?;
                Some(receiver.seal(Operation::Backup, "passphrase", &passphrase)?)
            }
            None => None,
        };
        let request = v1::BackupRequest { recipients: self.recipient, passphrase };
        if to_stdout {
            let parts = manager.api.backup(request).await?.into_inner();
            return take(parts, &mut io::stdout().lock()).await.map(drop);
        }
        let mut file = NewFile::beside(&self.file, self.overwrite)?;
        let parts = manager.api.backup(request).await?.into_inner();
        let header = take(parts, &mut file.file).await?;
        file.put_in_place()?;
        console.line(&format!(
            "{}: cluster {} at revision {}.{}",
            self.file.display(),
            header.cluster,
            header.incarnation,
            header.index
        ))
    }
}

/// Writes all parts; what the backup is of.
async fn take(
    mut parts: Streaming<v1::BackupPart>,
    out: &mut impl Write,
) -> Result<v1::BackupHeader, Failure> {
    let mut header = v1::BackupHeader::default();
    while let Some(part) = parts.message().await? {
        header = part.header.unwrap_or(header);
        out.write_all(&part.data)
            .map_err(|error| Failure::new(format!("cannot write the backup: {error}")))?;
    }
    out.flush()?;
    Ok(header)
}

/// A file that is not in its place yet; removed unless it gets there.
struct NewFile {
    file: File,
    work: PathBuf,
    place: PathBuf,
    overwrite: bool,
}

impl NewFile {
    fn beside(place: &Path, overwrite: bool) -> Result<Self, Failure> {
        let failed = |error: io::Error| failed(place, &error);
        if !overwrite && place.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let work = place.with_file_name(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&work).map_err(failed)?;
        Ok(Self { file, work, place: place.to_owned(), overwrite })
    }

    fn put_in_place(self) -> Result<(), Failure> {
        let failed = |error: io::Error| failed(&self.place, &error);
        self.file.sync_all().map_err(failed)?;
        let placed = match self.overwrite {
            true => fs::rename(&self.work, &self.place),
            false => rename_new(&self.work, &self.place),
        };
        placed.map_err(failed)?;
        let folder = self.place.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        folder.sync_all().map_err(failed)
    }
}

/// Gives a file a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems rename only in place of what is there, NFS among them.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_new(from, to),
        renamed => Ok(renamed?),
    }
}

/// The same where it takes two steps: both names are there for a moment, and neither step replaces anything.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = fs::remove_file(&self.work);
    }
}

fn failed(place: &Path, error: &io::Error) -> Failure {
    let mend = match error.kind() {
        io::ErrorKind::AlreadyExists => "; give another name, or --overwrite",
        _ => "",
    };
    Failure::new(format!("cannot write {}: {error}{mend}", place.display()))
}

impl Restore {
    /// Does it.
    pub(crate) async fn run(self, console: &mut Console) -> Result<(), Failure> {
        protect_process()?;
        let unlock = match (&self.passphrase_file, &self.identity_file) {
            (_, Some(source)) => {
                let identities = read(source, "the identities", LONGEST_IDENTITIES)?;
                Unlock::Identities(identities)
            }
            (Some(source), None) => Unlock::Passphrase(passphrase_from(console, source)?),
            (None, None) => Unlock::Passphrase(asked(console, "Passphrase of the backup: ")?),
        };
        let options = app::Restore {
            data_dir: self.data_dir.clone(),
            from: self.from,
            unlock,
            kek_file: self.kek_file,
        };
        let restored = app::restore(options).await;
        let restored = restored.map_err(|error| Failure::new(error.to_string()))?;
        let app::Restored { cluster, incarnation, taken_at, secrets, services, nodes } = restored;
        console.line(&format!(
            "restored cluster {cluster} as of {}: incarnation {incarnation}, {secrets} secrets, {services} services, {nodes} nodes",
            time::rfc3339(taken_at.0)
        ))?;
        console.hint(&format!(
            "Start it with: keyhole manager run --data-dir {} --listen HOST:PORT",
            self.data_dir.display()
        ));
        Ok(())
    }
}

fn passphrase_from(console: &mut Console, source: &Path) -> Result<SecretBytes, Failure> {
    if source.as_os_str() == "-" && io::stdin().is_terminal() {
        return asked(console, "Passphrase: ");
    }
    read(source, "the passphrase", LONGEST_PASSPHRASE)
}

fn read(source: &Path, what: &str, limit: usize) -> Result<SecretBytes, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot read {what} from {}: {error}", source.display()))
    };
    if source.as_os_str() == "-" {
        return SecretBytes::read_from(io::stdin().as_fd(), limit).map_err(|e| failed(&e));
    }
    let file = File::open(source).map_err(|e| failed(&e))?;
    SecretBytes::read_from(file.as_fd(), limit).map_err(|e| failed(&e))
}

fn asked_twice(console: &mut Console) -> Result<SecretBytes, Failure> {
    let first = asked(console, "Passphrase for the backup: ")?;
    match asked(console, "The same once more: ")? == first {
        true => Ok(first),
        false => Err(Failure::new("the two passphrases differ; nothing was written")),
    }
}

/// One line from the terminal, which does not show it.
fn asked(console: &mut Console, question: &str) -> Result<SecretBytes, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(
            "no passphrase: give --passphrase-file FILE, or run it at a terminal to be asked for one",
        ));
    }
    hidden_line(console, question, LONGEST_PASSPHRASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_replaces_nothing_whichever_way_the_file_system_knows() {
        for way in [rename_new, link_new] {
            let folder = tempfile::tempdir().unwrap();
            let (from, to) = (folder.path().join("b.age.1.part"), folder.path().join("b.age"));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "there before").unwrap();
            let refused = way(&from, &to).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{refused}");
            assert_eq!(fs::read_to_string(&to).unwrap(), "there before");
            assert_eq!(fs::read_to_string(&from).unwrap(), "new");
            fs::remove_file(&to).unwrap();
            way(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), "new");
            assert!(!from.exists(), "one name is left");
        }
    }
}
