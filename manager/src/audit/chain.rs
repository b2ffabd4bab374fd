//! The chain of an audit's lines: each one has its number and a hash over itself and the hash before it.
//!
//! Pure. Invariant: a line is `BODY,"hash":"HASH"}`, where BODY is all of its bytes before, `,"seq":NUMBER` at their
//! end, and HASH is SHA-256 over the 32 bytes of the hash before it and BODY, as 64 hexadecimals. Before the first line
//! are 32 zeros.

use sha2::{Digest, Sha256};

const SEQ: &str = ",\"seq\":";
const HASH: &str = ",\"hash\":\"";
const END: &str = "\"}";
const HASH_DIGITS: usize = 64;

/// A line's number in its chain, and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// From 1 on; 0 is before the first line.
    pub seq: u64,
    /// SHA-256.
    pub hash: [u8; 32],
}

impl Head {
    /// The line of a record (one JSON object) after this one, without a line break, and its head.
    pub(super) fn extend(&self, record: &str) -> (String, Self) {
        // A forged line can have the last number there is; what comes after it is then seen to be wrong.
        let seq = self.seq.saturating_add(1);
        let body = format!("{}{SEQ}{seq}", record.strip_suffix('}').unwrap_or(record));
        let head = Self { seq, hash: link(&self.hash, body.as_bytes()) };
        (format!("{body}{HASH}{}{END}", hex(&head.hash)), head)
    }
}

/// A line that has its place in a chain, right or wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chained<'a> {
    /// All before the hash.
    pub(super) body: &'a [u8],
    /// What it says of itself.
    pub(super) head: Head,
}

impl<'a> Chained<'a> {
    /// Nothing if these bytes are no line of a chain.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let (rest, digits) =
            line.strip_suffix(END.as_bytes())?.split_last_chunk::<HASH_DIGITS>()?;
        let body = rest.strip_suffix(HASH.as_bytes())?;
        let colon = body.iter().rposition(|byte| *byte == b':')?;
        let (start, number) = body.split_at_checked(colon + 1)?;
        let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
        let whole = start.ends_with(SEQ.as_bytes()) && body.starts_with(b"{");
        whole.then_some(Self { body, head: Head { seq, hash: unhex(digits)? } })
    }

    /// The hash that it must have after the line with that one.
    pub(super) fn hash_after(&self, before: &[u8; 32]) -> [u8; 32] {
        link(before, self.body)
    }
}

fn link(before: &[u8; 32], body: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(before).chain_update(body).finalize().into()
}

pub(super) fn hex(bytes: &[u8; 32]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(HASH_DIGITS), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The hash that 64 lower-case hexadecimals are.
pub(super) fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect::<Option<_>>()?;
    rest.is_empty().then(|| bytes.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format for ever: computed here with other words than the code's.
    #[test]
    fn a_line_hashes_the_hash_before_it_and_all_of_its_bytes_before_its_own() {
        let (first, head) = Head::default().extend("{\"index\":1}");
        let mut bytes = vec![0; 32];
        bytes.extend_from_slice(b"{\"index\":1,\"seq\":1");
        let wanted: [u8; 32] = Sha256::digest(&bytes).into();
        assert_eq!(first, format!("{{\"index\":1,\"seq\":1,\"hash\":\"{}\"}}", hex(&wanted)));
        assert_eq!(head, Head { seq: 1, hash: wanted });
        let (second, _) = head.extend("{\"x\":\",\\\"seq\\\":9\"}");
        let line = Chained::parse(second.as_bytes()).unwrap();
        assert_eq!((line.head.seq, line.hash_after(&wanted)), (2, line.head.hash));
    }

    #[test]
    fn other_bytes_are_no_line_of_a_chain() {
        let (line, _) = Head::default().extend("{\"a\":1}");
        assert!(Chained::parse(line.as_bytes()).is_some());
        for cut in 0..line.len() {
            assert!(Chained::parse(&line.as_bytes()[..cut]).is_none(), "{cut}");
        }
        for other in [
            "",
            "{}",
            "\"}",
            "{\"a\":1}",
            &line.replace("seq\":1", "seq\":x"),
            &line.replace("seq", "sag"),
        ] {
            assert!(Chained::parse(other.as_bytes()).is_none(), "{other}");
        }
        assert_eq!(unhex(hex(&[7; 32]).as_bytes()), Some([7; 32]));
        assert_eq!(unhex(b"0"), None);
    }
}
