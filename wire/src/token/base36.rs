//! Big-endian numbers as base-36 digits of a fixed count, most significant first.

use zeroize::Zeroizing;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The text is no number, or one too large for the bytes.
#[derive(Debug)]
pub(crate) struct BadDigits;

/// Appends `bytes` as `digits` digits; leading zeros fill up. `36^digits` must exceed `256^len`.
pub(crate) fn encode(bytes: &[u8], digits: usize, text: &mut String) {
    let mut number = Zeroizing::new(bytes.to_vec());
    let mut reversed = Zeroizing::new(Vec::with_capacity(digits));
    for _ in 0..digits {
        reversed.push(DIGITS[usize::from(divide_by_36(&mut number))]);
    }
    text.extend(reversed.iter().rev().map(|digit| char::from(*digit)));
}

/// Reads all of `text` into `bytes`.
pub(crate) fn decode(text: &str, bytes: &mut [u8]) -> Result<(), BadDigits> {
    bytes.fill(0);
    for character in text.bytes() {
        let digit = match character {
            b'0'..=b'9' => character - b'0',
            b'a'..=b'z' => character - b'a' + 10,
            _ => return Err(BadDigits),
        };
        multiply_by_36_and_add(bytes, digit)?;
    }
    Ok(())
}

fn divide_by_36(number: &mut [u8]) -> u8 {
    let mut remainder = 0_u16;
    for byte in number {
        let value = remainder * 256 + u16::from(*byte);
        // The quotient is below 256 because the remainder was below 36.
        *byte = (value / 36) as u8;
        remainder = value % 36;
    }
    remainder as u8
}

fn multiply_by_36_and_add(number: &mut [u8], digit: u8) -> Result<(), BadDigits> {
    let mut carry = u16::from(digit);
    for byte in number.iter_mut().rev() {
        let value = u16::from(*byte) * 36 + carry;
        *byte = (value & 0xff) as u8;
        carry = value >> 8;
    }
    if carry == 0 { Ok(()) } else { Err(BadDigits) }
}
