//! Any bytes as requests to the example server, whole and in pieces.
#![no_main]

#[path = "../../tests/server/parser.rs"]
mod parser;
#[allow(dead_code)]
#[path = "../../examples/memcache_server/server/protocol.rs"]
mod protocol;

libfuzzer_sys::fuzz_target!(|data: &[u8]| parser::check(data));
