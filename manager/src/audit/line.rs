//! The text of the audit's lines. Invariant: a change's line begins with its index, which a restart looks for.

use std::time::{Duration, UNIX_EPOCH};

use keyhole_domain::Timestamp;
use keyhole_state::{Actor, AuditRecord};
use serde::Serialize;

use crate::clock;

pub(super) const CHANGE_START: &str = "{\"index\":";

#[derive(Serialize)]
struct Change<'a> {
    index: u64,
    at: String,
    actor: Who,
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
    action: &'a str,
    why: &'a str,
    /// Refusals before this one that have no line of their own.
    suppressed: u64,
}

#[derive(Serialize)]
struct Lost {
    lost: u64,
    at: String,
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
        action: record.action,
        objects: &record.objects,
        outcome: record.refused.as_ref().map_or("done", |_| "refused"),
        why: record.refused.as_deref(),
    })
}

pub(super) fn refusal(actor: &Actor, action: &str, why: &str, suppressed: u64) -> String {
    json(&Refusal {
        refused: Refused { at: time(clock::now()), actor: actor.into(), action, why, suppressed },
    })
}

pub(super) fn lost(lines: u64) -> String {
    json(&Lost { lost: lines, at: time(clock::now()) })
}
