//! Feeds bytes to the decoder `store` of `keyhole-decoders`, which says what it is and what must hold.
#![no_main]
libfuzzer_sys::fuzz_target!(
    init: keyhole_decoders::panic_as_daemons_do(),
    |bytes: &[u8]| keyhole_decoders::call("store", bytes)
);
