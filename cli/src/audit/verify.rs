//! `audit verify`: reads the files and says what is wrong with them, a line each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;
use keyhole_manager::audit::{Finding, Head, Noted, Report, Verifier};
use keyhole_proto::v1;

use super::{Place, unreadable};
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::Manager;
use crate::render::time;

/// `verify`
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    place: Place,
    /// Look at the files alone: lines cut off at the end, or a chain made anew, are not found
    #[arg(long)]
    offline: bool,
    /// These files, oldest first, instead of all in the data folder
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Verify {
    /// Does it.
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        // First, so that the files have all that was noted.
        let noted = match self.offline {
            true => None,
            false => Some(noted(global).await?),
        };
        let all = self.files.is_empty();
        let files = match all {
            true => self.place.files()?.into_iter().map(|(_, path)| path).collect(),
            false => self.files,
        };
        let mut verifier = Verifier::new(noted, all);
        for path in &files {
            read(&mut verifier, path).map_err(|error| unreadable(path, &error))?;
        }
        let report = verifier.finish();
        for note in &report.notes {
            console.line(&format!("note: {}", text(note)))?;
        }
        for problem in &report.problems {
            console.line(&text(problem))?;
        }
        match report.problems.len() {
            0 => console.line(&summary(&report, self.offline, console.now())),
            count => Err(Failure::new(format!(
                "the audit of manager {} is not whole: {count} found",
                if report.manager.is_empty() { "(unknown)" } else { &report.manager }
            ))),
        }
    }
}

/// What the cluster knows, by manager.
async fn noted(global: &Global) -> Result<BTreeMap<String, Vec<Noted>>, Failure> {
    let mut manager = Manager::connect(global).await.map_err(|failure| {
        Failure::new(format!("{failure}; --offline looks at the files alone"))
    })?;
    let reply = manager.api.audit_heads(v1::AuditHeadsRequest {}).await?.into_inner();
    let heads = |audit: v1::ManagerAudit| {
        let heads = audit.heads.iter().map(head).collect::<Result<_, _>>()?;
        Ok((audit.id, heads))
    };
    reply.managers.into_iter().map(heads).collect()
}

fn head(head: &v1::AuditHead) -> Result<Noted, Failure> {
    let hash = head.hash.as_ref().try_into();
    let hash =
        hash.map_err(|_| Failure::new("the manager answered with a hash that is not 32 bytes"))?;
    Ok(Noted { head: Head { seq: head.seq, hash }, at: head.at })
}

fn read(verifier: &mut Verifier, path: &Path) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    verifier.file(&name, BufReader::new(File::open(path)?))
}

fn text(finding: &Finding) -> String {
    format!("{}:{}: {}", finding.file, finding.line, finding.what)
}

fn summary(report: &Report, offline: bool, now: u64) -> String {
    let files =
        if report.files == 1 { "1 file".to_owned() } else { format!("{} files", report.files) };
    let heads = match &report.newest {
        _ if offline => "not compared with what the cluster noted (--offline)".to_owned(),
        None => "the cluster has noted none of them yet".to_owned(),
        Some(newest) => format!(
            "the cluster noted {} of them, last line {}, {}",
            report.matching,
            newest.head.seq,
            time::ago(newest.at, now).to_lowercase()
        ),
    };
    format!("whole: {} lines in {files} of manager {}; {heads}", report.lines, report.manager)
}
