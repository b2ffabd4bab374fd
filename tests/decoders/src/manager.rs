//! What managers read: their log and rows, each other's calls and snapshots, backups, the audit.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::sync::LazyLock;

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use keyhole_domain::Timestamp;
use keyhole_manager::audit::{AuditLog, Head, LEAST_FILE_BYTES, Report, Verifier, Writer, files};
use keyhole_manager::backup::{BackupReader, Unlock};
use keyhole_manager::codec::{
    decode_envelope, decode_row, encode_envelope, encode_row, row_from_bytes,
};
use keyhole_manager::raft::{SnapshotData, SnapshotInput, decoders};
use keyhole_proto::v1;
use keyhole_secmem::SecretBytes;
use keyhole_state::{Actor, AuditRecord, State};
use prost::Message;
use tempfile::TempDir;

use crate::pieces;

/// Commands one after the other, each applied to what the last one left; and each piece as a row.
pub(crate) fn command(bytes: &[u8]) {
    let mut state = State::default();
    for (index, piece) in (1..).zip(pieces(bytes)) {
        if let Ok(row) = row_from_bytes(piece) {
            assert_eq!(decode_row(encode_row(&row)).as_ref(), Ok(&row));
        }
        let Ok(envelope) = v1::Envelope::decode(piece).map(decode_envelope) else { continue };
        let Ok(envelope) = envelope else { continue };
        assert_eq!(decode_envelope(encode_envelope(&envelope)).as_ref(), Ok(&envelope));
        // Whether it is accepted is the state's matter.
        let _ = state.apply(index, &envelope);
        let rows = state.row_keys().into_iter().filter_map(|key| state.row(key));
        let again = rows.map(|row| decode_row(encode_row(&row)).expect("what is applied is kept"));
        assert!(State::from_rows(index, again) == state, "a restart changes the state");
    }
}

/// A record of the log, the vote, and every call that managers make to each other.
pub(crate) fn peer(bytes: &[u8]) {
    let all = [
        decoders::sessions,
        decoders::log_entry,
        decoders::vote,
        decoders::applied,
        decoders::append,
        decoders::ballot,
        decoders::transfer,
        decoders::answers,
    ];
    // Refusals are as good as answers.
    all.iter().for_each(|decoder| drop(decoder(bytes)));
}

/// A snapshot from its chunks, and the state that it is.
pub(crate) fn snapshot(bytes: &[u8]) {
    let mut input = SnapshotInput::default();
    for piece in pieces(bytes) {
        let Ok(chunk) = v1::SnapshotChunk::decode(piece) else { return };
        if input.push(chunk).is_err() {
            return;
        }
    }
    if let Ok((_, SnapshotData::Received(rows))) = input.finish() {
        let state = State::from_rows(1, rows);
        // It may be one that no cluster ever was in, and has to be one that can be looked at.
        let _ = (state.invariants(), state.row_keys());
    }
}

static RECIPIENT: LazyLock<Identity> = LazyLock::new(Identity::generate);

/// A backup: first as a file that nobody encrypted, then as what is within the encryption.
pub(crate) fn backup(bytes: &[u8]) {
    let identity = RECIPIENT.to_string();
    let unlock = || {
        let copy = SecretBytes::copy_from(&mut identity.expose_secret().as_bytes().to_vec());
        Unlock::Identities(copy.expect("there is memory"))
    };
    read_backup(bytes, &unlock());
    let mut sealed = Vec::new();
    let recipient = RECIPIENT.to_public();
    let to = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient));
    let mut out = to.expect("a recipient").wrap_output(&mut sealed).expect("to memory");
    out.write_all(bytes).expect("to memory");
    out.finish().expect("to memory");
    read_backup(&sealed, &unlock());
}

fn read_backup(bytes: &[u8], unlock: &Unlock) {
    let Ok(mut reader) = BackupReader::open(bytes, unlock) else { return };
    let mut seen = 0;
    while let Ok(Some(rows)) = reader.rows(seen) {
        seen += rows.len() as u64;
    }
}

/// Where an audit's files are.
static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a tmpfs"));

/// The files of an audit, apart at each zero byte: verified, and gone on with by the next manager.
pub(crate) fn audit(bytes: &[u8]) {
    let folder = FOLDER.path();
    fs::remove_dir_all(folder).expect("it is ours");
    fs::create_dir(folder).expect("it is ours");
    for (number, file) in (1..).zip(bytes.split(|byte| *byte == 0)) {
        fs::write(folder.join(format!("audit-{number:06}.jsonl")), file).expect("it is ours");
    }
    let found = [false, true].map(verify);
    assert!(found.iter().flat_map(|it| &it.problems).all(|problem| !problem.what.is_empty()));
    let audit = AuditLog::open(folder, LEAST_FILE_BYTES, None).expect("any bytes are followed");
    let writer = Writer { cluster: "c".into(), manager: "m".into(), member: 1 };
    audit.begin(writer, Head { seq: 3, hash: [7; 32] });
    audit.applied(&AuditRecord {
        index: LAST_INDEX,
        at: Timestamp(1),
        actor: Actor::Manager(1),
        via: 0,
        action: "x",
        objects: Vec::new(),
        refused: None,
    });
    // A change that has a line already gets no other.
    let has_line = bytes.windows(20).any(|part| part == LAST_INDEX.to_string().as_bytes());
    assert!(has_line || verify(false).lines > found[0].lines, "it has no line");
}

const LAST_INDEX: u64 = u64::MAX;

fn verify(all: bool) -> Report {
    let mut verifier = Verifier::new(None, all);
    for (_, path) in files(FOLDER.path()).expect("the folder is ours") {
        let file = BufReader::new(File::open(&path).expect("it is there"));
        verifier.file(&path.display().to_string(), file).expect("it is in memory");
    }
    verifier.finish()
}
