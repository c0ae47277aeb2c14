//! Any bytes as options, and as headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kestrel_core::testing::fuzz::options(data));
