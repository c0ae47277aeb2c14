//! Any frames, marks and seals with whole checksums, as one segment.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kestrel_core::testing::fuzz::segment(data));
