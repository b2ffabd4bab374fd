//! Wiping and comparing bytes without telling anything: a memset that the compiler may not drop, and
//! an equality whose time depends on lengths only.

use subtle::ConstantTimeEq;

/// Overwrites `bytes` with zeros, also when nobody reads them afterwards.
pub fn memzero(bytes: &mut [u8]) {
    bytes.fill(0);
    keep_stores(bytes.as_ptr());
}

/// Compares in a time that depends on the lengths only.
#[must_use]
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Tells the compiler that everything reachable from `address` is looked at here, so that stores made
/// before are kept.
#[expect(unsafe_code, reason = "an empty asm block is the barrier that a compiler must respect")]
pub(crate) fn keep_stores(address: *const u8) {
    // SAFETY: the block holds no instruction; it only claims to read and write memory.
    unsafe {
        core::arch::asm!("/* {0} */", in(reg) address, options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memzero_wipes_every_byte() {
        let mut bytes = [0xa5_u8; 777];
        memzero(&mut bytes);
        assert!(bytes.iter().all(|b| *b == 0));
    }

    #[test]
    fn ct_eq_tells_equal_from_different_and_shorter() {
        assert!(ct_eq(b"same", b"same"));
        assert!(!ct_eq(b"same", b"sane"));
        assert!(!ct_eq(b"same", b"sam"));
        assert!(ct_eq(b"", b""));
    }
}
