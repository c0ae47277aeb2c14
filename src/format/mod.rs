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

pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}
