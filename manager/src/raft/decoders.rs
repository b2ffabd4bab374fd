//! What reads records of the log and calls of other managers, for tests that try any bytes on it.
//!
//! Invariant: nothing is decided here; each function is what the store or the port calls, and forgets what it gave.
use super::peer_codec as peer;
use super::wire;
use crate::elsewhere;
use keyhole_proto::v1;
use prost::Message;
use std::io;

fn decode<M: Message + Default>(bytes: &[u8]) -> io::Result<M> {
    M::decode(bytes).map_err(|e| wire::invalid(e.to_string()))
}

/// A record of the log.
pub fn log_entry(bytes: &[u8]) -> io::Result<()> {
    let entry = wire::entry_in(decode(bytes)?)?;
    wire::entry_in(wire::entry_out(&entry)).map(drop)
}

/// A kept vote.
pub fn vote(bytes: &[u8]) -> io::Result<()> {
    wire::vote_from(bytes).map(drop)
}

/// What the state's rows stand for.
pub fn applied(bytes: &[u8]) -> io::Result<()> {
    wire::meta_from(bytes).map(drop)
}

/// A call that brings entries.
pub fn append(bytes: &[u8]) -> io::Result<()> {
    peer::append_in(decode::<v1::AppendRequest>(bytes)?).map(drop)
}

/// A call for a vote.
pub fn ballot(bytes: &[u8]) -> io::Result<()> {
    peer::ballot_in(decode::<v1::VoteRequest>(bytes)?).map(drop)
}

/// A call that hands the lead over.
pub fn transfer(bytes: &[u8]) -> io::Result<()> {
    peer::transfer_in(decode::<v1::TransferLeaderRequest>(bytes)?).map(drop)
}

/// What another manager answers to those three.
pub fn answers(bytes: &[u8]) -> io::Result<()> {
    let appended = peer::appended_in(decode(bytes)?).map(drop);
    let voted = peer::voted_in(decode(bytes)?).map(drop);
    appended.and(voted).and(peer::transferred_in(decode(bytes)?).map(drop))
}

/// What another manager says of the nodes that are connected to it.
pub fn sessions(bytes: &[u8]) -> io::Result<()> {
    let reply: v1::SessionsReply = decode(bytes)?;
    reply.nodes.into_iter().for_each(|node| drop(elsewhere::session_in(node)));
    Ok(())
}
