//! Any bytes as the name of a queue, and as the names of its directories.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kestrel_core::testing::fuzz::queue_name(data));
