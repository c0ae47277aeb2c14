//! What the fuzz target of the example server's parser calls; the tests replay its corpus.

use crate::protocol::{Parser, Step};

/// The requests in `input` as the parser sees them when the bytes come in pieces of `size`, the first byte of what the fuzz target
/// is given.
pub(crate) fn requests(input: &[u8], size: usize) -> Vec<String> {
    let mut parser = Parser::new(100);
    let mut found = Vec::new();
    let (mut start, mut end) = (0, 0);
    while end < input.len() {
        end = input.len().min(end + size);
        loop {
            let left = end - start;
            match parser.next(&input[start..end]) {
                Step::More => break,
                Step::Skip(used) => {
                    assert!(used > 0 && used <= left, "skips {used} of {left} bytes");
                    start += used;
                }
                Step::Request(request, quiet, used) => {
                    assert!(used > 0 && used <= left, "uses {used} of {left} bytes");
                    found.push(format!("{request:?} {quiet}"));
                    start += used;
                }
                Step::Broken(reply) => {
                    assert!(reply.starts_with("CLIENT_ERROR "), "{reply:?}");
                    found.push(reply.to_owned());
                    return found;
                }
            }
        }
        assert!(end - start < 2048 + 250 + 100 + 2, "asks for more than the longest request");
    }
    found
}

/// Fuzzes the parser: however the bytes are cut, the same requests come out. The first byte is the size of the pieces.
pub(crate) fn check(data: &[u8]) {
    let Some((&size, input)) = data.split_first() else {
        return;
    };
    let whole = requests(input, 4096);
    assert_eq!(whole, requests(input, usize::from(size).max(1)), "pieces of {size} bytes");
}
