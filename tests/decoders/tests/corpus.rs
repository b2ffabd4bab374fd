//! The corpus of the fuzz targets: each function of this crate reads every file of it, so that neither can rot.
//!
//! The files called `seed-N` are made from the golden files and a few lines here; `KEYHOLE_GOLDEN=write` writes them anew.
//! What a fuzzer found stays under another name.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keyhole_decoders::{ALL, ROOT_KEY, call, joined};
use keyhole_proto::v1;
use keyhole_secmem::Key32;
use keyhole_wire::token::JoinToken;
use keyhole_wire::unlock_key::unlock_key_text;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints,
};

/// All of it together.
const MOST_BYTES: u64 = 300_000;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn corpus() -> PathBuf {
    repository().join("fuzz/corpus")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The records of a golden file: kind and bytes.
fn records(path: &str) -> Vec<(String, Vec<u8>)> {
    let record = |line: &str| {
        let (kind, hex) = line.split_once(' ').expect("kind and digits");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimals");
        (kind.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
    };
    read(path).lines().map(record).collect()
}

fn of_kind(records: &[(String, Vec<u8>)], kind: &str) -> Vec<Vec<u8>> {
    let all = records.iter().filter(|(found, _)| found == kind);
    all.map(|(_, bytes)| bytes.clone()).collect()
}

/// Several pieces as one input.
fn together(pieces: &[Vec<u8>]) -> Vec<u8> {
    joined(pieces.iter().map(Vec::as_slice))
}

/// The inputs that a fuzzer starts from.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let golden = records("manager/src/codec/golden.txt");
    let (commands, rows) = (of_kind(&golden, "command"), of_kind(&golden, "row"));
    let dispatch = records("tests/golden/dispatch.txt");
    let identity = fs::read(repository().join("tests/golden/node.identity")).expect("it is there");
    let kept = v1::NodeIdentity::decode(&*identity).expect("it is one");
    let text = |lines: &[&str]| lines.iter().map(|line| line.as_bytes().to_vec()).collect();
    match name {
        "command" => {
            let each = commands
                .iter()
                .chain(&rows)
                .step_by(4)
                .map(|one| together(std::slice::from_ref(one)));
            [together(&commands)].into_iter().chain(each).collect()
        }
        "snapshot" => vec![snapshot(&rows)],
        "backup" => vec![backup(&rows), b"age-encryption.org/v1\n-> X25519 x\n".to_vec()],
        "peer" => peer_calls(&commands),
        "assignment" => vec![assignment(&dispatch)],
        "node_state" => {
            let part = v1::AssignmentPart::decode(&*of_kind(&dispatch, "part")[0]).expect("a part");
            let state = v1::NodeState { tasks: part.tasks, mounted: 3, ..Default::default() };
            vec![state.encode_to_vec(), memory(4096, 8), memory(u64::MAX, u64::MAX)]
        }
        "identity" => vec![identity, TASKS.as_bytes().to_vec()],
        "certificate" => {
            let chain: Vec<_> =
                kept.chain.iter().chain([&kept.key]).map(|der| der.to_vec()).collect();
            vec![kept.chain[0].to_vec(), kept.roots[0].to_vec(), together(&chain)]
        }
        "root" => roots(&kept),
        "key" => {
            let key = Key32::from_bytes(&mut [7; 32]).expect("there is memory");
            let typed = unlock_key_text(&key).expect("there is memory").as_slice().to_vec();
            vec![format!("KH-KEK-1-{}\n", "0f".repeat(32)).into_bytes(), typed]
        }
        "seal" => vec![together(&[vec![9; 32], vec![1; 40]]), [vec![1], vec![2; 60]].concat()],
        "audit" => vec![AUDIT.as_bytes().to_vec(), last_line(u64::MAX), last_line(7)],
        "store" => store_changes(),
        "proc" => text(&[
            MOUNTS,
            "0::/system.slice/docker-0123456789abcdef.scope\n",
            "0::/a/b (deleted)\n",
        ]),
        "text" => text(&[
            &JoinToken::from_secret(b"root", &mut [5; 16]).reveal(),
            "source=pw,target=db/pw,uid=1000,gid=7,mode=0440",
            "node.labels.zone!=eu",
            "db/password",
        ]),
        other => panic!("the target {other} has no seeds"),
    }
}

const TASKS: &str = r#"{"format":1,"boot":"boot","tasks":[{"id":"0123456789abcdefghijklmno","service":"web",
"cgroup":77,"path":"/sys/fs/cgroup/x","own":true,"since":5}]}"#;

const MOUNTS: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 master:2 - cgroup2 cgroup2 rw\n\
77 23 0:51 / /run/a\\040b ro,nosuid - fuse.keyhole keyhole-12-34 rw,user_id=0\n";

const AUDIT: &str = include_str!("audit.jsonl");

/// A line that may be the last one of a file, which then ends in a piece of another.
fn last_line(seq: u64) -> Vec<u8> {
    let hash = "0".repeat(64);
    format!("{{\"index\":9,\"seq\":{seq},\"hash\":\"{hash}\"}}\n{{\"index").into_bytes()
}

/// The beginning of what a worker leaves to the next: the header of a record that is there or is not.
fn memory(offset: u64, length: u64) -> Vec<u8> {
    let numbers = [2, 1, offset, length].map(u64::to_le_bytes);
    let mut bytes = [b"keyhole\0".as_slice(), numbers.as_flattened(), &[5; 48]].concat();
    bytes.resize(4096, 0);
    [bytes, vec![6; 8]].concat()
}

/// As organisations make them, with a key that fits the first two.
fn roots(kept: &v1::NodeIdentity) -> Vec<Vec<u8>> {
    let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", ROOT_KEY));
    let key = KeyPair::from_pem(&pem).expect("it is one");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let leaf = kept.chain[0].to_vec();
    let input = |root: Vec<u8>| together(&[root, pem.clone().into_bytes(), leaf.clone()]);
    let root = |params: &CertificateParams| {
        let signed = params.self_signed(&key).expect("it can be signed");
        signed.der().to_vec()
    };
    let plain = root(&params);
    for (kind, value) in [
        (DnType::CountryName, DnValue::PrintableString("CH".try_into().expect("ASCII"))),
        (DnType::OrganizationName, DnValue::Utf8String("Beispiel für alle".to_owned())),
        (
            DnType::CustomDnType(vec![2, 5, 4, 5]),
            DnValue::Ia5String("7".try_into().expect("ASCII")),
        ),
    ] {
        params.distinguished_name.push(kind, value);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let below = |name: &str| GeneralSubtree::DnsName(name.to_owned());
    let (permitted_subtrees, excluded_subtrees) = (vec![below("manager")], vec![below("a.org")]);
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
    vec![input(plain), input(root(&params)), input(kept.roots[0].to_vec())]
}

fn snapshot(rows: &[Vec<u8>]) -> Vec<u8> {
    use v1::snapshot_chunk::Chunk;
    let batch: Vec<_> = rows.iter().map(|row| v1::Row::decode(&**row).expect("a row")).collect();
    let header = v1::SnapshotHeader { format: 1, rows: batch.len() as u64, ..Default::default() };
    let chunks = [Chunk::Header(header), Chunk::Rows(v1::RowBatch { rows: batch })];
    together(&chunks.map(|chunk| v1::SnapshotChunk { chunk: Some(chunk) }.encode_to_vec()))
}

fn backup(rows: &[Vec<u8>]) -> Vec<u8> {
    use v1::backup_record::Record;
    let rows: Vec<_> =
        rows.iter().take(3).map(|row| v1::Row::decode(&**row).expect("a row")).collect();
    let header = v1::BackupHeader { format: 1, rows: rows.len() as u64, ..Default::default() };
    let keys =
        v1::BackupKeys { keyring: [(1, vec![5; 32].into())].into(), ca_key: vec![6; 40].into() };
    let trailer = v1::BackupTrailer { sha256: vec![0; 32].into() };
    let mut bytes = b"keyhole backup\n".to_vec();
    for record in [
        Record::Header(header),
        Record::Keys(keys),
        Record::Rows(v1::RowBatch { rows }),
        Record::Trailer(trailer),
    ] {
        let record = v1::BackupRecord { record: Some(record) }.encode_to_vec();
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&record);
    }
    bytes
}

fn peer_calls(commands: &[Vec<u8>]) -> Vec<Vec<u8>> {
    use v1::log_entry::Payload;
    let log = || Some(v1::LogRef { leader: Some(v1::LeaderRef { term: 3, member: 0 }), index: 9 });
    let vote = || {
        let leader = Some(v1::LeaderRef { term: 3, member: 2 });
        Some(v1::Vote { leader, committed: true })
    };
    let node = v1::RaftNode { address: "10.0.0.1:7070".into(), name: "m1".into() };
    let membership = v1::Membership {
        voters: vec![v1::MemberSet { members: vec![1, 2] }, v1::MemberSet { members: vec![2] }],
        nodes: [(1, node.clone()), (2, node)].into(),
    };
    let command = v1::Envelope::decode(&*commands[1]).expect("a command");
    let payloads = [Payload::Command(command), Payload::Membership(membership.clone())];
    let entries: Vec<_> = payloads
        .map(|payload| v1::LogEntry { log: log(), payload: Some(payload), proposal: 7 })
        .into();
    let applied = v1::SnapshotHeader {
        format: 1,
        last: log(),
        membership: Some(v1::StoredMembership { log: log(), membership: Some(membership) }),
        rows: 0,
    };
    vec![
        entries[0].encode_to_vec(),
        applied.encode_to_vec(),
        vote().unwrap_or_default().encode_to_vec(),
        v1::AppendRequest { to: 1, vote: vote(), previous: log(), entries, committed: log() }
            .encode_to_vec(),
        v1::VoteRequest { to: 1, vote: vote(), last: log(), leadership_transfer: true }
            .encode_to_vec(),
        v1::TransferLeaderRequest { from: vote(), to: 1, last: log() }.encode_to_vec(),
    ]
}

/// A stream that the node follows: its first part has no values, for those would have to be sealed.
fn assignment(dispatch: &[(String, Vec<u8>)]) -> Vec<u8> {
    let part = v1::AssignmentPart::decode(&*of_kind(dispatch, "part")[0]).expect("a part");
    let mut first = v1::AssignmentPart {
        applies_to: None,
        removed_tasks: Vec::new(),
        values: Vec::new(),
        changed_grants: Vec::new(),
        more: false,
        enc: vec![9; 32].into(),
        ..part.clone()
    };
    first.tasks.iter_mut().for_each(|task| task.grants.clear());
    let second = v1::AssignmentPart {
        applies_to: first.results_in,
        results_in: Some(v1::RevisionRef { incarnation: 1, index: 8 }),
        enc: Vec::new().into(),
        removed_tasks: vec!["t".repeat(25)],
        tasks: Vec::new(),
        ..first.clone()
    };
    together(&[first.encode_to_vec(), second.encode_to_vec(), part.encode_to_vec()])
}

/// Changes of what a database is most easily confused by: its header's flags, which of its two commits is the last one,
/// counts and pages, the mark.
fn store_changes() -> Vec<Vec<u8>> {
    let write = |at: u32, new: &[u8]| [&[0], &at.to_le_bytes()[..], new].concat();
    let copy = |from: u32, to: u32, len: u16| {
        [&[1], &to.to_le_bytes()[..], &from.to_le_bytes(), &len.to_le_bytes()].concat()
    };
    vec![
        together(&[write(9, &[7])]),
        together(&[write(9, &[4])]),
        together(&[write(9, &[6]), copy(192, 64, 128), write(64, &[0xff])]),
        together(&[write(12, &[0xff; 20])]),
        together(&[copy(4096, 8192, 4096), write(5000, &[0; 64])]),
        together(&[write(565_248, &[0; 48])]),
    ]
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    files
}

/// "bad input": what the fuzzer starts from, and what it once found, breaks nothing any more.
#[test]
fn every_file_of_the_corpus_is_read_by_its_function() {
    let mut bytes = 0;
    for (name, decoder) in ALL {
        let folder = corpus().join(name);
        if std::env::var("KEYHOLE_GOLDEN").is_ok_and(|word| word == "write") {
            fs::create_dir_all(&folder).expect("the repository is ours");
            for (number, seed) in seeds(name).iter().enumerate() {
                fs::write(folder.join(format!("seed-{number}")), seed).expect("it is ours");
            }
        }
        let files = files(&folder);
        assert!(files.len() >= seeds(name).len(), "{name} lacks its seeds");
        for file in files {
            let input = fs::read(&file).expect("it can be read");
            bytes += input.len() as u64;
            println!("{}", file.display());
            decoder(&input);
            // Cut and with one bit flipped, too: what a fuzzer tries first.
            for at in (0..input.len()).step_by(input.len() / 40 + 1) {
                decoder(&input[..at]);
                let mut flipped = input.clone();
                flipped[at] ^= 1 << (at % 8);
                decoder(&flipped);
            }
        }
    }
    assert!(bytes < MOST_BYTES, "the corpus has {bytes} bytes");
}

/// A seed that its function refuses at once would teach the fuzzer nothing.
#[test]
fn seeds_are_what_their_functions_accept() {
    for seed in seeds("command").iter().skip(1) {
        let piece = &seed[2..];
        let command = v1::Envelope::decode(piece).map(keyhole_manager::codec::decode_envelope);
        let row = keyhole_manager::codec::row_from_bytes(piece);
        assert!(command.is_ok_and(|command| command.is_ok()) || row.is_ok());
    }
    let accepted = seeds("peer").into_iter().filter(|seed| {
        use keyhole_manager::raft::decoders as all;
        [all::log_entry, all::vote, all::applied, all::append, all::ballot, all::transfer]
            .iter()
            .any(|decoder| decoder(seed).is_ok())
    });
    assert_eq!(accepted.count(), seeds("peer").len());
    let text = seeds("text");
    let token = std::str::from_utf8(&text[0]).expect("text");
    JoinToken::parse(token).expect("a token");
}

/// Each function is a target, and each target has a function.
#[test]
fn targets_corpora_and_functions_are_the_same() {
    let named = |path: &PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    let functions: BTreeSet<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let of = |folder: &str| files(&repository().join(folder)).iter().map(named).collect();
    let targets: BTreeSet<String> = of("fuzz/fuzz_targets");
    let corpora: BTreeSet<String> = of("fuzz/corpus");
    assert_eq!((&targets, &corpora), (&functions, &functions));
    let manifest = read("fuzz/Cargo.toml");
    for name in &functions {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no target");
        let target = read(&format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(target.contains(&format!("call(\"{name}\"")), "{name} calls another one");
    }
    call("text", b"");
}
