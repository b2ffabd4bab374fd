//! `keyhole audit`: the audit files of a manager on this machine, verified and shown.
//!
//! What a whole audit is, is the manager's matter ([`keyhole_manager::audit`]); here is only what a command line adds.

mod tail;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keyhole_manager::audit::files;

use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use tail::Tail;
use verify::Verify;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Find lines that were changed, left out, put in or cut off
    #[command(after_help = "Examples:\n  \
        keyhole audit verify                                 (this machine's manager, against what the cluster noted)\n  \
        keyhole audit verify --data-dir /var/lib/keyhole/m2\n  \
        keyhole audit verify --offline old/audit-*.jsonl     (the chain alone, of copies)")]
    Verify(Verify),
    /// Print the last lines, and follow
    #[command(after_help = "Examples:\n  \
        keyhole audit tail -n 100\n  \
        keyhole audit tail -f | grep --line-buffered '\"outcome\":\"refused\"'")]
    Tail(Tail),
}

/// Whose audit.
#[derive(Debug, Args)]
struct Place {
    /// The manager's data folder
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keyhole/manager")]
    data_dir: PathBuf,
}

impl AuditCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Verify(verify) => verify.run(global, console).await,
            Self::Tail(tail) => tail.run(console).await,
        }
    }
}

impl Place {
    /// The files, oldest first; there is at least one.
    fn files(&self) -> Result<Vec<(u32, PathBuf)>, Failure> {
        let folder = self.data_dir.join("audit");
        let files = files(&folder).map_err(|error| unreadable(&folder, &error))?;
        match files.is_empty() {
            false => Ok(files),
            true => {
                Err(Failure::new(format!("there is no file of an audit in {}", folder.display())))
            }
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let mend = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; run this as root",
        std::io::ErrorKind::NotFound => "; --data-dir says where the manager's data is",
        _ => "",
    };
    Failure::new(format!("cannot read the audit in {}: {error}{mend}", path.display()))
}
