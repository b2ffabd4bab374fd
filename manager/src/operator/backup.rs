//! Backups, as a stream of parts of one age file. Invariant: it is recorded before the first byte is sent; keys leave
//! this process only within age's encryption.

use std::io::{self, Write};
use std::sync::Arc;

use keyhole_proto::v1;
use keyhole_state::Command;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::authz::{Authorized, act};
use crate::backup::{Backup, SealTo};
use crate::clock;
use crate::seal::{InputFor, input_aad, input_info, open_input};
use crate::shell::Shell;
use crate::status::{internal, invalid};

type Parts = mpsc::Sender<Result<v1::BackupPart, Status>>;

/// Bytes of a part.
const PART: usize = 256 << 10;
/// Parts on their way to the operator.
const IN_FLIGHT: usize = 4;
/// More recipients than this nobody has.
const MOST_RECIPIENTS: usize = 64;

pub(super) async fn start(
    shell: Arc<Shell>,
    by: Authorized<act::Backup>,
    request: v1::BackupRequest,
) -> Result<ReceiverStream<Result<v1::BackupPart, Status>>, Status> {
    let to = sealed_to(&shell, &by, &request)?;
    let command = Command::NoteBackup { recipients: request.recipients };
    shell.propose(&by, command).await?;
    let rows = shell.rows(&by).await?;
    let (parts, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let backup = Backup::of(rows, shell.keyring.own(), clock::now());
        let written = backup.and_then(|backup| {
            let first =
                v1::BackupPart { header: Some(backup.header().clone()), data: Vec::new().into() };
            let mut out = PartWriter { parts: parts.clone(), part: first, bytes: Vec::new() };
            backup.write(to, &mut out)
        });
        if let Err(error) = written.map_err(|error| internal("cannot make the backup", error)) {
            // Who has left does not want to know.
            let _ = parts.blocking_send(Err(error));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

fn sealed_to(
    shell: &Shell,
    by: &Authorized<act::Backup>,
    request: &v1::BackupRequest,
) -> Result<SealTo, Status> {
    match (&request.passphrase, request.recipients.as_slice()) {
        (None, []) => Err(invalid("a backup is encrypted to a passphrase or to recipients")),
        (Some(_), [_, ..]) => {
            Err(invalid("a backup is encrypted to a passphrase or to recipients, not to both"))
        }
        (None, all) if all.len() > MOST_RECIPIENTS => {
            Err(invalid(format!("{} recipients given; the limit is {MOST_RECIPIENTS}", all.len())))
        }
        (None, all) => SealTo::recipients(all).map_err(invalid),
        (Some(input), []) => {
            let exporter = by.subject().exporter();
            let info = input_info(&shell.own.cluster, shell.own.manager.as_str(), exporter);
            let aad = input_aad(InputFor::Backup, "passphrase");
            let opened = open_input(&shell.input_key, &info, &aad, input).map_err(|error| {
                Status::failed_precondition(format!(
                    "the passphrase does not open ({error}); if the manager was started anew just now, repeat the command"
                ))
            })?;
            SealTo::passphrase(&opened).map_err(invalid)
        }
    }
}

/// Cuts what is written into parts, and waits while the operator is slow.
struct PartWriter {
    parts: Parts,
    /// The next one, but for its data.
    part: v1::BackupPart,
    bytes: Vec<u8>,
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        let part = v1::BackupPart { data: std::mem::take(&mut self.bytes).into(), ..part };
        let left = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the operator has left");
        self.parts.blocking_send(Ok(part)).map_err(left)
    }
}
