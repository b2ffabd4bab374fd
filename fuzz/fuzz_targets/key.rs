//! Feeds bytes to the decoder `key` of `keyhole-decoders`, which says what it is and what must hold.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyhole_decoders::call("key", bytes));
