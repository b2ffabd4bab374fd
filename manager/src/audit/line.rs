//! The records of the audit's lines, as JSON, before the chain adds their number and hash. Invariant: a change's record
//! begins with its index, which a restart looks for.

use std::num::NonZero;
use std::time::{Duration, UNIX_EPOCH};

use keyhole_domain::Timestamp;
use keyhole_state::{Actor, AuditRecord};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Writer;
use super::chain::{Head, hex, unhex};
use crate::clock;

const CHANGE_START: &str = "{\"index\":";

#[derive(Serialize)]
struct Change<'a> {
    index: u64,
    at: String,
    actor: Who,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<NonZero<u64>>,
    action: &'a str,
    objects: &'a [String],
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

#[derive(Serialize)]
struct Refusal<'a> {
    refused: Refused<'a>,
}

#[derive(Serialize)]
struct Refused<'a> {
    at: String,
    actor: Who,
    /// Who passed it on.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<NonZero<u64>>,
    action: &'a str,
    why: &'a str,
    /// Refusals before this one that have no line of their own.
    suppressed: u64,
}

#[derive(Serialize)]
struct Unlocked {
    unlocked: UnlockedBy,
}

#[derive(Serialize)]
struct UnlockedBy {
    at: String,
    actor: Who,
}

#[derive(Serialize)]
struct Lost {
    lost: u64,
    at: String,
}

#[derive(Serialize)]
struct Suppressed {
    suppressed: u64,
    at: String,
}

/// The format of files, raised with a change that an older reader would misread.
pub(super) const FORMAT: u32 = 1;

/// What the first line of a file says.
#[derive(Serialize, Deserialize)]
pub(super) struct FileStart {
    pub(super) number: u32,
    /// Earlier builds wrote none.
    #[serde(default = "first_format")]
    pub(super) format: u32,
    at: String,
    pub(super) cluster: String,
    pub(super) manager: String,
    pub(super) member: u64,
    /// The hash of the line before, in the file before.
    follows: String,
}

const fn first_format() -> u32 {
    1
}

impl FileStart {
    /// Whether a newer keyhole wrote the file.
    pub(super) fn is_newer(&self) -> bool {
        self.format > FORMAT
    }

    pub(super) fn follows(&self) -> Option<[u8; 32]> {
        unhex(self.follows.as_bytes())
    }
}

/// Bytes before this line that are no line of the chain: a piece that a crash left.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Unchained {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Lines that the cluster was told of, and that were not there any more when the manager started.
#[derive(Serialize, Deserialize)]
pub(super) struct Missing {
    from: u64,
    to: u64,
    at: String,
}

/// A line that the cluster was told of, and that was another one when the manager started.
#[derive(Serialize, Deserialize)]
pub(super) struct Rewritten {
    pub(super) line: u64,
    at: String,
}

/// A snapshot was taken in place of the changes at these log indexes.
#[derive(Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) from: u64,
    pub(super) to: u64,
    at: String,
}

/// What a line says of the audit itself; of other lines nothing.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OfItself {
    File(FileStart),
    Unchained(Unchained),
    Missing(Missing),
    Rewritten(Rewritten),
    Snapshot(Snapshot),
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
enum Who {
    Local { uid: u32, gid: u32, pid: u32 },
    Operator { id: String },
    Node { id: String },
    Joiner { address: String },
    Manager { member: u64 },
}

impl From<&Actor> for Who {
    fn from(actor: &Actor) -> Self {
        match actor {
            Actor::Local { uid, gid, pid } => Self::Local { uid: *uid, gid: *gid, pid: *pid },
            Actor::Operator(id) => Self::Operator { id: id.to_string() },
            Actor::Node(id) => Self::Node { id: id.to_string() },
            Actor::Joiner { address } => Self::Joiner { address: address.clone() },
            Actor::Manager(member) => Self::Manager { member: *member },
        }
    }
}

fn time(at: Timestamp) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(at.0)).to_string()
}

/// No field of these types can fail to be written as JSON.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn change(record: &AuditRecord) -> String {
    json(&Change {
        index: record.index,
        at: time(record.at),
        actor: (&record.actor).into(),
        via: NonZero::new(record.via),
        action: record.action,
        objects: &record.objects,
        outcome: record.refused.as_ref().map_or("done", |_| "refused"),
        why: record.refused.as_deref(),
    })
}

pub(super) fn refusal(
    (actor, via): (&Actor, u64),
    action: &str,
    why: &str,
    suppressed: u64,
) -> String {
    let (at, actor) = (time(clock::now()), actor.into());
    json(&Refusal {
        refused: Refused { at, actor, via: NonZero::new(via), action, why, suppressed },
    })
}

pub(super) fn unlocked(actor: &Actor) -> String {
    json(&Unlocked { unlocked: UnlockedBy { at: time(clock::now()), actor: actor.into() } })
}

pub(super) fn lost(lines: u64) -> String {
    json(&Lost { lost: lines, at: time(clock::now()) })
}

pub(super) fn suppressed(refusals: u64) -> String {
    json(&Suppressed { suppressed: refusals, at: time(clock::now()) })
}

pub(super) fn file(number: u32, writer: &Writer, before: &Head) -> String {
    json(&OfItself::File(FileStart {
        number,
        format: FORMAT,
        at: time(clock::now()),
        cluster: writer.cluster.clone(),
        manager: writer.manager.clone(),
        member: writer.member,
        follows: hex(&before.hash),
    }))
}

pub(super) fn unchained(bytes: &[u8]) -> String {
    json(&OfItself::Unchained(Unchained::new(bytes.len() as u64, Sha256::new_with_prefix(bytes))))
}

pub(super) fn missing(from: u64, to: u64) -> String {
    json(&OfItself::Missing(Missing { from, to, at: time(clock::now()) }))
}

pub(super) fn snapshot(from: u64, to: u64) -> String {
    json(&OfItself::Snapshot(Snapshot { from, to, at: time(clock::now()) }))
}

pub(super) fn rewritten(line: u64) -> String {
    json(&OfItself::Rewritten(Rewritten { line, at: time(clock::now()) }))
}

impl Unchained {
    pub(super) fn new(bytes: u64, hash: Sha256) -> Self {
        Self { bytes, sha256: hex(&hash.finalize().into()) }
    }
}

impl OfItself {
    /// Of a line without its hash.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        /// Whatever else is in the line.
        #[derive(Deserialize)]
        struct Line {
            #[serde(flatten)]
            of: OfItself,
        }
        let known = ["file", "unchained", "missing", "rewritten", "snapshot"];
        let first = body.strip_prefix(b"{\"").unwrap_or_default();
        if !known.iter().any(|word| first.starts_with(format!("{word}\":").as_bytes())) {
            return None;
        }
        serde_json::from_slice::<Line>(&[body, b"}"].concat()).ok().map(|line| line.of)
    }
}

/// The log index of a change's line; of other lines nothing.
pub(super) fn index(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(CHANGE_START.as_bytes())?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}
