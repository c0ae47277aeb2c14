//! Any sequence of operations, failures and crashes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kestrel_core::testing::fuzz::operations(data));
