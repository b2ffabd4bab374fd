#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyhole_decoders::call("node_state", bytes));
