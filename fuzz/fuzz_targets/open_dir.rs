//! Any damage to the files of a small set.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kestrel_core::testing::fuzz::open_dir(data));
