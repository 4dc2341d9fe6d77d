#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fbgemm_hardening::derive(data));
