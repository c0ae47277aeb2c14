//! The bytes on disk, apart from what they mean: pure functions without I/O, clock or locks.
//!
//! The layout is documented field by field in [`crate::docs::format`]; the constants here are the ones that page names.
//! All integers are little-endian. All zeros is never valid: every structure carries a magic or a non-zero kind under a
//! checksum.

pub(crate) mod alias;
pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod meta;
pub(crate) mod moved;
pub(crate) mod name;
pub(crate) mod reader;

/// The version that this crate writes and the highest it reads.
pub(crate) const VERSION: u32 = 1;

/// Feature bits a reader must know to read a file; version 1 knows none.
pub(crate) const REQUIRED_KNOWN: u32 = 0;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not this structure at all, or a checksum that does not hold.
    Invalid(&'static str),
    /// Written by a later version, or with a feature that this version must not ignore.
    Version(u32),
}

/// A cursor over bytes that came from disk; running off the end is a `None`, never a panic.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).and_then(|b| b.first().copied())
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }
}

/// CRC-32 (that of zlib and Ethernet), going on from `seed`.
#[inline]
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    if bytes.len() < SHORT { short_crc(seed, bytes) } else { long_crc(seed, bytes) }
}

/// Below this, what a wide checksum takes to begin and to end is more than the bytes themselves take: a frame's header has 20.
const SHORT: usize = 32;

fn long_crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Eight bytes at a time, each by the table for its distance from the end of the eight.
#[inline]
fn short_crc(seed: u32, bytes: &[u8]) -> u32 {
    let at = |distance: usize, byte: u32| TABLES[distance][(byte & 0xFF) as usize];
    let four = |distance: usize, word: u32| {
        at(distance + 3, word) ^ at(distance + 2, word >> 8) ^ at(distance + 1, word >> 16) ^ at(distance, word >> 24)
    };
    let (eights, rest) = bytes.as_chunks::<8>();
    let mut crc = !seed;
    for [a, b, c, d, e, f, g, h] in eights {
        crc = four(4, crc ^ u32::from_le_bytes([*a, *b, *c, *d])) ^ four(0, u32::from_le_bytes([*e, *f, *g, *h]));
    }
    let (fours, rest) = rest.as_chunks::<4>();
    for word in fours {
        crc = four(0, crc ^ u32::from_le_bytes(*word));
    }
    for byte in rest {
        crc = at(0, crc ^ u32::from(*byte)) ^ crc >> 8;
    }
    !crc
}

/// `TABLES[n][byte]`: the remainder of `byte` with `n` zero bytes behind it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    const POLYNOMIAL: u32 = 0xEDB8_8320;
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut distance = 1;
    while distance < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[distance - 1][byte];
            tables[distance][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        distance += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_one_of_the_format_page() {
        assert_eq!(crc(0, b"123456789"), 0xCBF4_3926);
        assert_eq!(crc(0, b""), 0);
    }

    proptest! {
        #[test]
        fn short_and_long_checksums_agree(seed in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(short_crc(seed, &bytes), long_crc(seed, &bytes));
        }
    }
}
