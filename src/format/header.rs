//! The first page of a segment: who it is, what came before it, and its seal.
//!
//! ```text
//!     0  header                 1024  seal, written when the segment is closed to puts
//!                            1536  reach: no frame ends behind this, raised in steps before frames are written
//!  2048  the same header again  3072  seal, written when the set was closed in good order (says: all durable)
//! ```
//!
//! Two copies in sectors of their own, so that one damaged sector never takes a segment along.

use super::frame::Salt;
use super::{Bytes, Fault, REQUIRED_KNOWN, VERSION, crc};

pub(crate) const PAGE: usize = 4096;
pub(crate) const COPY_AT: [usize; 2] = [0, 2048];
pub(crate) const SEAL_AT: usize = 1024;
pub(crate) const REACH_AT: usize = 1536;
pub(crate) const CLEAN_SEAL_AT: usize = 3072;
pub(crate) const HEADER_LEN: usize = 140;
pub(crate) const SEAL_LEN: usize = 36;
const MAGIC: &[u8; 8] = b"KESTRSEG";

const _: () = assert!(HEADER_LEN <= 512 && SEAL_LEN <= 512);

/// Where a segment's frames end, and what they sum up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Extent {
    /// Offset behind the last frame.
    pub(crate) end: u32,
    /// Items.
    pub(crate) count: u32,
    /// Their payload bytes.
    pub(crate) payload_bytes: u64,
}

/// The segment before this one, as it stood when this one was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Previous {
    pub(crate) number: u64,
    pub(crate) salt: Salt,
    pub(crate) extent: Extent,
    /// How far it was durable then.
    pub(crate) synced_to: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) set_id: u128,
    pub(crate) queue_id: u64,
    pub(crate) number: u64,
    pub(crate) segment_bytes: u32,
    pub(crate) first_id: u64,
    pub(crate) base_ms: u64,
    pub(crate) salt: Salt,
    pub(crate) boot_id: u128,
    pub(crate) previous: Option<Previous>,
}

pub(crate) fn encode(header: &SegmentHeader) -> [u8; HEADER_LEN] {
    let mut out = Vec::with_capacity(HEADER_LEN);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes()); // required features
    out.extend_from_slice(&0u32.to_le_bytes()); // ignorable features
    out.extend_from_slice(&header.segment_bytes.to_le_bytes());
    out.extend_from_slice(&header.set_id.to_le_bytes());
    out.extend_from_slice(&header.queue_id.to_le_bytes());
    out.extend_from_slice(&header.number.to_le_bytes());
    out.extend_from_slice(&header.first_id.to_le_bytes());
    out.extend_from_slice(&header.base_ms.to_le_bytes());
    out.extend_from_slice(&header.salt.0.to_le_bytes());
    out.extend_from_slice(&header.boot_id.to_le_bytes());
    // Number 0 is never used, so it can say "none".
    let previous =
        header.previous.unwrap_or(Previous { number: 0, salt: Salt(0), extent: Extent::default(), synced_to: 0 });
    out.extend_from_slice(&previous.number.to_le_bytes());
    out.extend_from_slice(&previous.salt.0.to_le_bytes());
    out.extend_from_slice(&previous.extent.end.to_le_bytes());
    out.extend_from_slice(&previous.extent.count.to_le_bytes());
    out.extend_from_slice(&previous.extent.payload_bytes.to_le_bytes());
    out.extend_from_slice(&previous.synced_to.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    let sum = crc(0, &out);
    out.extend_from_slice(&sum.to_le_bytes());
    let mut bytes = [0; HEADER_LEN];
    bytes.copy_from_slice(&out);
    bytes
}

/// Decodes the header from a segment's first page; the second copy serves where the first is damaged.
pub(crate) fn decode(page: &[u8]) -> Result<SegmentHeader, Fault> {
    let mut fault = Fault::Invalid("segment header");
    for at in COPY_AT {
        match decode_copy(page.get(at..at + HEADER_LEN)) {
            Ok(header) => return Ok(header),
            Err(Fault::Version(found)) => fault = Fault::Version(found),
            Err(Fault::Invalid(_)) => {}
        }
    }
    Err(fault)
}

fn decode_copy(copy: Option<&[u8]>) -> Result<SegmentHeader, Fault> {
    let copy = copy.ok_or(Fault::Invalid("segment header"))?;
    let (body, sum) = copy.split_at(HEADER_LEN - 4);
    if body.get(..8) != Some(MAGIC) || sum != crc(0, body).to_le_bytes() {
        return Err(Fault::Invalid("segment header"));
    }
    let mut bytes = Bytes(&body[8..]);
    let parsed = (|| {
        let version = bytes.u32()?;
        let required = bytes.u32()?;
        let _ignorable = bytes.u32()?;
        if version != VERSION || required & !REQUIRED_KNOWN != 0 {
            return Some(Err(Fault::Version(version)));
        }
        let segment_bytes = bytes.u32()?;
        let set_id = bytes.u128()?;
        let queue_id = bytes.u64()?;
        let number = bytes.u64()?;
        let first_id = bytes.u64()?;
        let base_ms = bytes.u64()?;
        let salt = Salt(bytes.u64()?);
        let boot_id = bytes.u128()?;
        let previous_number = bytes.u64()?;
        let previous = Previous {
            number: previous_number,
            salt: Salt(bytes.u64()?),
            extent: Extent { end: bytes.u32()?, count: bytes.u32()?, payload_bytes: bytes.u64()? },
            synced_to: bytes.u32()?,
        };
        Some(Ok(SegmentHeader {
            set_id,
            queue_id,
            number,
            segment_bytes,
            first_id,
            base_ms,
            salt,
            boot_id,
            previous: (previous_number != 0).then_some(previous),
        }))
    })();
    parsed.unwrap_or(Err(Fault::Invalid("segment header")))
}

/// The last word about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) extent: Extent,
    /// The newest put time in it.
    pub(crate) last_ms: u64,
    /// Whether everything in it was durable when the seal was written.
    pub(crate) durable: bool,
    /// Frames of done items may be missing though their marks need not be durable: as long as the page cache lives, what it
    /// tells is believed unread.
    pub(crate) thinned: bool,
}

pub(crate) fn encode_seal(seal: &Seal, salt: Salt) -> [u8; SEAL_LEN] {
    let mut out = [0; SEAL_LEN];
    out[0..4].copy_from_slice(b"SEAL");
    out[4..8].copy_from_slice(&seal.extent.end.to_le_bytes());
    out[8..12].copy_from_slice(&seal.extent.count.to_le_bytes());
    out[12..20].copy_from_slice(&seal.extent.payload_bytes.to_le_bytes());
    out[20..28].copy_from_slice(&seal.last_ms.to_le_bytes());
    let flags = u32::from(seal.durable) | u32::from(seal.thinned) << 1;
    out[28..32].copy_from_slice(&flags.to_le_bytes());
    let sum = crc(salt.header_seed(), &out[..32]);
    out[32..36].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The seal of a segment's first page, the one written in good order first.
pub(crate) fn decode_seal(page: &[u8], salt: Salt) -> Option<Seal> {
    [CLEAN_SEAL_AT, SEAL_AT].into_iter().find_map(|at| {
        let mut bytes = Bytes(page.get(at..at + SEAL_LEN)?);
        let body = bytes.0.get(..32)?;
        if bytes.take(4)? != b"SEAL" {
            return None;
        }
        let extent = Extent { end: bytes.u32()?, count: bytes.u32()?, payload_bytes: bytes.u64()? };
        let last_ms = bytes.u64()?;
        let flags = bytes.u32()?;
        let sum = bytes.u32()?;
        (sum == crc(salt.header_seed(), body) && flags <= 3).then_some(Seal {
            extent,
            last_ms,
            durable: flags & 1 != 0,
            thinned: flags & 2 != 0,
        })
    })
}

/// How far frames may have been written, for the search behind an invalid frame when the page cache is intact.
pub(crate) fn encode_reach(reach: u32, salt: Salt) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&reach.to_le_bytes());
    let sum = crc(salt.header_seed(), &out[..4]);
    out[4..].copy_from_slice(&sum.to_le_bytes());
    out
}

pub(crate) fn decode_reach(page: &[u8], salt: Salt) -> Option<u32> {
    let mut bytes = Bytes(page.get(REACH_AT..REACH_AT + 8)?);
    let sum = crc(salt.header_seed(), bytes.0.get(..4)?);
    let reach = bytes.u32()?;
    (bytes.u32()? == sum).then_some(reach)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            set_id: 0x1234_5678_9abc_def0_1122_3344_5566_7788,
            queue_id: 3,
            number: 9,
            segment_bytes: 65536,
            first_id: 77,
            base_ms: 1_700_000_000_000,
            salt: Salt(0xdead_beef_cafe_f00d),
            boot_id: 42,
            previous: Some(Previous {
                number: 8,
                salt: Salt(5),
                extent: Extent { end: 5000, count: 6, payload_bytes: 600 },
                synced_to: 4200,
            }),
        }
    }

    fn page(header: &SegmentHeader) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        for at in COPY_AT {
            page[at..at + HEADER_LEN].copy_from_slice(&encode(header));
        }
        page
    }

    #[test]
    fn either_copy_serves() {
        let good = page(&sample());
        assert_eq!(decode(&good), Ok(sample()));
        for bit in 0..PAGE * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), Ok(sample()), "bit {bit}");
        }
        assert_eq!(decode(&vec![0; PAGE]), Err(Fault::Invalid("segment header")));
        assert_eq!(decode(&[]), Err(Fault::Invalid("segment header")));
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = encode(&sample());
        bytes[8] = 2;
        let sum = crc(0, &bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        let mut page = vec![0; PAGE];
        page[..HEADER_LEN].copy_from_slice(&bytes);
        assert_eq!(decode(&page), Err(Fault::Version(2)));
    }

    #[test]
    fn a_seal_holds_only_under_its_salt() {
        let seal = Seal {
            extent: Extent { end: 9000, count: 4, payload_bytes: 321 },
            last_ms: 12,
            durable: true,
            thinned: false,
        };
        let mut page = vec![0; PAGE];
        page[SEAL_AT..SEAL_AT + SEAL_LEN].copy_from_slice(&encode_seal(&seal, Salt(1 << 40)));
        assert_eq!(decode_seal(&page, Salt(1 << 40)), Some(seal));
        assert_eq!(decode_seal(&page, Salt(1 << 41)), None);
        page[SEAL_AT + 9] ^= 1;
        assert_eq!(decode_seal(&page, Salt(1 << 40)), None);
    }
}
