#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| l0_monitor::fuzz::run("decode", data));
