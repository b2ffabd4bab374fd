//! Values that say what they are: secret, sequence number, length, a body of one repeated byte, and a checksum.
//!
//! Depends on nothing. Invariant: [`read`] accepts exactly the bytes that [`value`] makes, so a value that is cut, mixed
//! of two, or of another secret never passes.

/// Four letters, secret (4 bytes), sequence (8), length (4).
const HEADER: usize = 20;
const TRAILER: usize = 8;

/// What a value says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// Which secret.
    pub secret: u32,
    /// Its how manieth value.
    pub sequence: u64,
}

/// The value of a label. Neighbours differ in length; one in eight has up to four pages.
pub fn value(label: Label) -> Vec<u8> {
    let spread = mix(label, 1);
    let most = if label.sequence.is_multiple_of(8) { 12_000 } else { 600 };
    let length = HEADER + TRAILER + 1 + (spread % most) as usize;
    let mut bytes = vec![(spread >> 32) as u8; length];
    bytes[..4].copy_from_slice(b"KHL1");
    bytes[4..8].copy_from_slice(&label.secret.to_le_bytes());
    bytes[8..16].copy_from_slice(&label.sequence.to_le_bytes());
    bytes[16..20].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[length - TRAILER..].copy_from_slice(&mix(label, length as u64).to_le_bytes());
    bytes
}

/// What bytes are the value of, wholly; else what is wrong with them.
pub fn read(bytes: &[u8]) -> Result<Label, String> {
    let number = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        u64::from_le_bytes(word)
    };
    if bytes.len() < HEADER || bytes[..4] != *b"KHL1" {
        return Err(format!("{} bytes that are no labelled value", bytes.len()));
    }
    let label = Label { secret: number(4, 4) as u32, sequence: number(8, 8) };
    let expected = value(label);
    if bytes == expected {
        return Ok(label);
    }
    let same = bytes.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let (got, wanted) = (bytes.len(), expected.len());
    Err(format!(
        "begins as {label:?}, but is {got} bytes instead of {wanted}, other from byte {same}"
    ))
}

/// Scatters (splitmix64).
fn mix(label: Label, salt: u64) -> u64 {
    let mut x = label.sequence ^ (u64::from(label.secret) << 40) ^ (salt << 20);
    for _ in 0..2 {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_value_of_one_label_passes() {
        let label = Label { secret: 3, sequence: 70 };
        let whole = value(label);
        assert_eq!(read(&whole), Ok(label));
        assert!(read(&[]).is_err() && read(&whole[..whole.len() - 1]).is_err());
        let other = value(Label { secret: 3, sequence: 71 });
        assert_ne!(other.len(), whole.len());
        let half = whole.len().min(other.len()) / 2;
        let mixed = [&whole[..half], &other[half..]].concat();
        assert!(read(&mixed).is_err());
        for at in [0, 5, 9, 17, half, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert!(read(&flipped).is_err(), "byte {at}");
        }
    }
}
