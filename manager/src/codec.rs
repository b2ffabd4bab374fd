//! Between the disk format (`store.proto`) and the state's types: encode is total, decode checks everything.
//!
//! Bytes that decode here came from our own authenticated store or from another manager. A failure names the field, and
//! the caller treats it as corruption; nothing is ever guessed. An unset `oneof` means a newer format.

mod command;
mod row;

use std::collections::{BTreeMap, HashMap};

use keyhole_domain::{FileMode, GrantId, Labels, Timestamp, Version};
use keyhole_proto::v1;
use keyhole_state as state;
use prost::encoding::{DecodeContext, decode_key, skip_field};

pub use command::{decode_envelope, encode_envelope};
pub use row::{decode_row, encode_row, row_from_bytes};

/// What of a record could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {why}")]
pub struct DecodeError {
    field: &'static str,
    why: String,
}

impl DecodeError {
    fn new(field: &'static str, why: impl ToString) -> Self {
        Self { field, why: why.to_string() }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, format!("missing, or of a newer keyhole than this one, {VERSION}"))
    }

    /// As [`Self::missing`], when it is known that there is something, and of which kind.
    pub(crate) fn unknown(field: &'static str, kind: u32) -> Self {
        let why = format!(
            "it is of kind {kind}, which this keyhole {VERSION} does not know: a newer one wrote it; start that one here"
        );
        Self::new(field, why)
    }
}

/// Of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The number of the first field of a record that is none of `but`: what a newer keyhole wrote, where a `oneof` is unset.
pub(crate) fn first_field(record: &[u8], but: &[u32]) -> Option<u32> {
    fields(record).map(|(number, _)| number).find(|number| !but.contains(number))
}

/// The fields of a record: number, and all bytes from there on.
pub(crate) fn fields(mut record: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let (number, kind) = decode_key(&mut record).ok()?;
        let field = record;
        skip_field(kind, number, &mut record, DecodeContext::default()).ok()?;
        Some((number, field))
    })
}

type Result<T> = std::result::Result<T, DecodeError>;

fn parse<T>(field: &'static str, text: &str) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| DecodeError::new(field, error))
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| DecodeError::missing(field))
}

fn array32(field: &'static str, bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| DecodeError::new(field, "not 32 bytes"))
}

fn version(field: &'static str, number: u64) -> Result<Version> {
    Version::new(number).ok_or_else(|| DecodeError::new(field, "version 0"))
}

fn optional_version(number: u64) -> Option<Version> {
    Version::new(number)
}

fn version_number(version: Option<Version>) -> u64 {
    version.map_or(0, Version::get)
}

fn labels_in(labels: HashMap<String, String>) -> Result<Labels> {
    Labels::new(labels.into_iter().collect()).map_err(|error| DecodeError::new("labels", error))
}

fn labels_out(labels: &Labels) -> HashMap<String, String> {
    labels.as_map().iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn value_in(value: v1::SealedValue) -> Result<state::SealedValue> {
    Ok(state::SealedValue {
        epoch: value.epoch,
        salt: array32("value.salt", &value.salt)?,
        ciphertext: value.ciphertext.into(),
    })
}

fn value_out(value: &state::SealedValue) -> v1::SealedValue {
    v1::SealedValue {
        epoch: value.epoch,
        salt: value.salt.to_vec().into(),
        ciphertext: value.ciphertext.clone().into(),
    }
}

fn seal_in(seal: v1::KeySeal) -> state::KeySeal {
    state::KeySeal { enc: seal.enc.into(), ciphertext: seal.ciphertext.into() }
}

fn seal_out(seal: &state::KeySeal) -> v1::KeySeal {
    v1::KeySeal { enc: seal.enc.clone().into(), ciphertext: seal.ciphertext.clone().into() }
}

fn key_in(key: v1::SealedKey) -> state::SealedKey {
    state::SealedKey { seals: key.seals.into_iter().map(|(id, key)| (id, seal_in(key))).collect() }
}

fn key_out(key: &state::SealedKey) -> v1::SealedKey {
    v1::SealedKey { seals: key.seals.iter().map(|(id, key)| (*id, seal_out(key))).collect() }
}

fn member_keys_in(keys: v1::MemberKeys) -> Result<state::MemberKeys> {
    Ok(state::MemberKeys {
        ca: seal_in(required("keys.ca", keys.ca)?),
        keyring: keys.keyring.into_iter().map(|(epoch, key)| (epoch, seal_in(key))).collect(),
        ca_number: keys.ca_number,
        unlock: keys.unlock.map(unlock_seal_in).transpose()?,
    })
}

fn member_keys_out(keys: &state::MemberKeys) -> v1::MemberKeys {
    v1::MemberKeys {
        ca: Some(seal_out(&keys.ca)),
        keyring: keys.keyring.iter().map(|(epoch, key)| (*epoch, seal_out(key))).collect(),
        ca_number: keys.ca_number,
        unlock: keys.unlock.as_ref().map(|unlock| v1::UnlockSeal {
            number: unlock.number,
            seal: Some(seal_out(&unlock.seal)),
        }),
    }
}

fn former_ca_in(former: v1::FormerCa) -> state::FormerCa {
    state::FormerCa {
        certificate: former.certificate.into(),
        cross: former.cross.into(),
        until: Timestamp(former.until),
    }
}

fn former_ca_out(former: &state::FormerCa) -> v1::FormerCa {
    v1::FormerCa {
        certificate: former.certificate.clone().into(),
        cross: former.cross.clone().into(),
        until: former.until.0,
    }
}

fn unlock_seal_in(unlock: v1::UnlockSeal) -> Result<state::UnlockSeal> {
    let seal = seal_in(required("keys.unlock.seal", unlock.seal)?);
    Ok(state::UnlockSeal { number: unlock.number, seal })
}

fn token_in(token: v1::TokenRecord) -> Result<state::TokenRecord> {
    Ok(state::TokenRecord {
        hash: array32("token.hash", &token.hash)?,
        salt: array32("token.salt", &token.salt)?,
        epoch: token.epoch,
    })
}

fn token_out(token: &state::TokenRecord) -> v1::TokenRecord {
    v1::TokenRecord {
        hash: token.hash.to_vec().into(),
        salt: token.salt.to_vec().into(),
        epoch: token.epoch,
    }
}

fn member_in(member: v1::Member) -> Result<state::Member> {
    Ok(state::Member {
        id: member.id,
        node: parse("member.node", &member.node)?,
        address: member.address,
        seal_key: array32("member.seal_key", &member.seal_key)?,
        hostname: member.hostname,
        voter: !member.demoted,
    })
}

fn member_out(member: &state::Member) -> v1::Member {
    v1::Member {
        id: member.id,
        node: member.node.to_string(),
        address: member.address.clone(),
        seal_key: member.seal_key.to_vec().into(),
        hostname: member.hostname.clone(),
        demoted: !member.voter,
    }
}

fn spec_in(spec: v1::ServiceSpecRecord) -> Result<state::ServiceSpec> {
    let grant = |grant: v1::GrantRecord| -> Result<state::Grant> {
        let request = request_in(&grant)?;
        Ok(state::Grant {
            id: GrantId(grant.id),
            secret: request.secret,
            target: request.target,
            uid: request.uid,
            gid: request.gid,
            mode: request.mode,
            pinned: request.pinned,
        })
    };
    Ok(state::ServiceSpec {
        labels: labels_in(spec.labels)?,
        grants: spec.grants.into_iter().map(grant).collect::<Result<_>>()?,
        constraints: constraints_in(&spec.constraints)?,
    })
}

fn spec_out(spec: &state::ServiceSpec) -> v1::ServiceSpecRecord {
    let grant = |grant: &state::Grant| v1::GrantRecord {
        id: grant.id.0,
        secret: grant.secret.to_string(),
        target: grant.target.to_string(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode.bits().into(),
        pinned: version_number(grant.pinned),
    };
    v1::ServiceSpecRecord {
        labels: labels_out(&spec.labels),
        grants: spec.grants.iter().map(grant).collect(),
        constraints: spec.constraints.iter().map(ToString::to_string).collect(),
    }
}

fn request_in(grant: &v1::GrantRecord) -> Result<state::GrantRequest> {
    Ok(state::GrantRequest {
        secret: parse("grant.secret", &grant.secret)?,
        target: parse("grant.target", &grant.target)?,
        uid: grant.uid,
        gid: grant.gid,
        mode: FileMode::new(grant.mode).map_err(|error| DecodeError::new("grant.mode", error))?,
        pinned: optional_version(grant.pinned),
    })
}

fn request_out(request: &state::GrantRequest) -> v1::GrantRecord {
    v1::GrantRecord {
        id: 0,
        secret: request.secret.to_string(),
        target: request.target.to_string(),
        uid: request.uid,
        gid: request.gid,
        mode: request.mode.bits().into(),
        pinned: version_number(request.pinned),
    }
}

fn constraints_in(texts: &[String]) -> Result<Vec<keyhole_domain::Constraint>> {
    texts.iter().map(|text| parse("constraint", text)).collect()
}

fn unconstrained_in(number: i32) -> Option<state::Unconstrained> {
    match v1::Unconstrained::try_from(number) {
        Ok(v1::Unconstrained::Allow) => Some(state::Unconstrained::Allow),
        Ok(v1::Unconstrained::Deny) => Some(state::Unconstrained::Deny),
        Ok(v1::Unconstrained::Unspecified) | Err(_) => None,
    }
}

/// The wire's word for a setting of the state.
pub fn unconstrained_out(setting: state::Unconstrained) -> v1::Unconstrained {
    match setting {
        state::Unconstrained::Allow => v1::Unconstrained::Allow,
        state::Unconstrained::Deny => v1::Unconstrained::Deny,
    }
}

fn availability_in(number: i32) -> Option<state::Availability> {
    match v1::Availability::try_from(number) {
        Ok(v1::Availability::Active) => Some(state::Availability::Active),
        Ok(v1::Availability::Pause) => Some(state::Availability::Pause),
        Ok(v1::Availability::Drain) => Some(state::Availability::Drain),
        Ok(v1::Availability::Unspecified) | Err(_) => None,
    }
}

/// The wire's word for an availability of the state.
pub fn availability_out(availability: state::Availability) -> v1::Availability {
    match availability {
        state::Availability::Active => v1::Availability::Active,
        state::Availability::Pause => v1::Availability::Pause,
        state::Availability::Drain => v1::Availability::Drain,
    }
}

/// The wire's word for an operator's role.
pub fn operator_role_out(role: state::Role) -> v1::OperatorRole {
    match role {
        state::Role::Admin => v1::OperatorRole::Admin,
        state::Role::Writer => v1::OperatorRole::Writer,
        state::Role::Auditor => v1::OperatorRole::Auditor,
    }
}

/// The role that a word of the wire means.
pub fn operator_role_in(number: i32) -> Option<state::Role> {
    match v1::OperatorRole::try_from(number) {
        Ok(v1::OperatorRole::Admin) => Some(state::Role::Admin),
        Ok(v1::OperatorRole::Writer) => Some(state::Role::Writer),
        Ok(v1::OperatorRole::Auditor) => Some(state::Role::Auditor),
        Ok(v1::OperatorRole::Unspecified) | Err(_) => None,
    }
}

fn operator_out(operator: &state::Operator) -> v1::OperatorRow {
    v1::OperatorRow {
        id: operator.id.to_string(),
        name: operator.name.to_string(),
        role: operator_role_out(operator.role).into(),
        secrets: operator.scope.secrets().iter().map(ToString::to_string).collect(),
        services: operator.scope.services().iter().map(ToString::to_string).collect(),
        public_key: operator.public_key.to_vec().into(),
        created_at: operator.created_at.0,
        seconds: operator.seconds,
        not_after: operator.not_after,
    }
}

fn operator_in(row: v1::OperatorRow) -> Result<state::Operator> {
    let scope = state::Scope::new(&row.secrets, &row.services);
    Ok(state::Operator {
        id: parse("operator.id", &row.id)?,
        name: parse("operator.name", &row.name)?,
        role: required("operator.role", operator_role_in(row.role))?,
        scope: scope.map_err(|error| DecodeError::new("operator.scope", error))?,
        public_key: array32("operator.public_key", &row.public_key)?,
        created_at: Timestamp(row.created_at),
        seconds: row.seconds,
        not_after: row.not_after,
    })
}

/// What a manager said of its audit, on disk and on the wire.
pub fn audit_head_out(head: &state::AuditHead) -> v1::AuditHead {
    v1::AuditHead { seq: head.seq, hash: head.hash.to_vec().into(), at: head.at.0 }
}

fn times(created: u64, updated: u64) -> (Timestamp, Timestamp) {
    (Timestamp(created), Timestamp(updated))
}

fn keyring_in(keys: BTreeMap<u32, v1::SealedKey>) -> BTreeMap<u32, state::SealedKey> {
    keys.into_iter().map(|(epoch, key)| (epoch, key_in(key))).collect()
}
