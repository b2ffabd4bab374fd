//! Raft's calls between openraft's types and `peer.proto`.
//!
//! Depends on the codec of the log. Invariant: what arrives is checked whole before openraft sees any of it.
use super::types::{LogId, TypeConfig, Vote};
use super::wire::{entry_in, entry_out, invalid, log_in, log_out, vote_in, vote_out};
use crate::codec::DecodeError;
use keyhole_proto::v1;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::io;

type Append = AppendEntriesRequest<TypeConfig>;
type Appended = AppendEntriesResponse<TypeConfig>;

fn log(log: &Option<LogId>) -> Option<v1::LogRef> {
    log.as_ref().map(log_out)
}

fn vote(vote: Option<v1::Vote>) -> io::Result<Vote> {
    vote_in(vote.ok_or_else(|| invalid("a call without a vote".to_owned()))?)
}

pub(super) fn append_out(to: u64, call: Append) -> v1::AppendRequest {
    v1::AppendRequest {
        to,
        vote: Some(vote_out(&call.vote)),
        previous: log(&call.prev_log_id),
        entries: call.entries.iter().map(entry_out).collect(),
        committed: log(&call.leader_commit),
    }
}

pub(super) fn append_in(call: v1::AppendRequest) -> io::Result<Append> {
    Ok(Append {
        vote: vote(call.vote)?,
        prev_log_id: call.previous.as_ref().map(log_in),
        entries: call.entries.into_iter().map(entry_in).collect::<io::Result<_>>()?,
        leader_commit: call.committed.as_ref().map(log_in),
    })
}

pub(super) fn appended_out(reply: Appended) -> v1::AppendReply {
    use v1::append_reply::{Outcome, PartialSuccess};
    let outcome = match reply {
        Appended::Success => Outcome::Success(true),
        Appended::PartialSuccess(last) => Outcome::Partial(PartialSuccess { last: log(&last) }),
        Appended::Conflict => Outcome::Conflict(true),
        Appended::HigherVote(vote) => Outcome::Higher(vote_out(&vote)),
    };
    v1::AppendReply { outcome: Some(outcome) }
}

pub(super) fn appended_in(reply: v1::AppendReply) -> io::Result<Appended> {
    use v1::append_reply::Outcome;
    Ok(match reply.outcome {
        Some(Outcome::Success(_)) => Appended::Success,
        Some(Outcome::Partial(partial)) => {
            Appended::PartialSuccess(partial.last.as_ref().map(log_in))
        }
        Some(Outcome::Conflict(_)) => Appended::Conflict,
        Some(Outcome::Higher(vote)) => Appended::HigherVote(vote_in(vote)?),
        None => return Err(invalid(DecodeError::missing("outcome").to_string())),
    })
}

pub(super) fn ballot_out(to: u64, call: &VoteRequest<TypeConfig>) -> v1::VoteRequest {
    v1::VoteRequest {
        to,
        vote: Some(vote_out(&call.vote)),
        last: log(&call.last_log_id),
        leadership_transfer: call.leadership_transfer,
    }
}

pub(super) fn ballot_in(call: v1::VoteRequest) -> io::Result<VoteRequest<TypeConfig>> {
    let mut ballot = VoteRequest::new(vote(call.vote)?, call.last.as_ref().map(log_in));
    ballot.leadership_transfer = call.leadership_transfer;
    Ok(ballot)
}

pub(super) fn voted_out(reply: &VoteResponse<TypeConfig>) -> v1::VoteReply {
    v1::VoteReply {
        vote: Some(vote_out(&reply.vote)),
        granted: reply.vote_granted,
        last: log(&reply.last_log_id),
    }
}

pub(super) fn voted_in(reply: v1::VoteReply) -> io::Result<VoteResponse<TypeConfig>> {
    Ok(VoteResponse::new(vote(reply.vote)?, reply.last.as_ref().map(log_in), reply.granted))
}

pub(super) fn transfer_out(call: &TransferLeaderRequest<TypeConfig>) -> v1::TransferLeaderRequest {
    v1::TransferLeaderRequest {
        to: *call.to_node_id(),
        from: Some(vote_out(call.from_leader())),
        last: call.last_log_id().map(log_out),
    }
}

pub(super) fn transfer_in(
    call: v1::TransferLeaderRequest,
) -> io::Result<TransferLeaderRequest<TypeConfig>> {
    Ok(TransferLeaderRequest::new(vote(call.from)?, call.to, call.last.as_ref().map(log_in)))
}

pub(super) fn transferred_out(
    reply: TransferLeaderResponse<TypeConfig>,
) -> v1::TransferLeaderReply {
    use v1::transfer_leader_reply::{LogNotFlushed, Outcome, VoteChanged};
    let outcome = match reply {
        Ok(()) => Outcome::Accepted(true),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            let (expected, actual) = (Some(vote_out(&expected)), Some(vote_out(&actual)));
            Outcome::VoteChanged(VoteChanged { expected, actual })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            Outcome::LogNotFlushed(LogNotFlushed { expected: log(&expected), actual: log(&actual) })
        }
    };
    v1::TransferLeaderReply { outcome: Some(outcome) }
}

pub(super) fn transferred_in(
    reply: v1::TransferLeaderReply,
) -> io::Result<TransferLeaderResponse<TypeConfig>> {
    use v1::transfer_leader_reply::Outcome;
    Ok(match reply.outcome {
        Some(Outcome::Accepted(_)) => Ok(()),
        Some(Outcome::VoteChanged(changed)) => Err(TransferLeaderError::VoteChanged {
            expected: vote(changed.expected)?,
            actual: vote(changed.actual)?,
        }),
        Some(Outcome::LogNotFlushed(log)) => Err(TransferLeaderError::LogNotFlushed {
            expected: log.expected.as_ref().map(log_in),
            actual: log.actual.as_ref().map(log_in),
        }),
        None => return Err(invalid(DecodeError::missing("outcome").to_string())),
    })
}
