//! The frame codec under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| microvm_fuzz::frames(data));
