//! The state lane: one byte an item, from waiting to done.
//!
//! ```text
//!            start             start              start
//!  waiting ────────► in flight ◄──────► waiting ────────► …      done: from in flight or waiting, final
//!    0x00   abort   0x21..0x3F  abort   0x01..0x1F               0xE5
//! ```
//!
//! The low five bits count the starts so far (they stop at 31), 0x20 says that a consumer holds the item, and 0xE5 is two
//! bits away from every other legal value. A byte that is none of these is damage: the item counts as waiting, so that it
//! is delivered again and not dropped.
//!
//! Lanes lie at the end of a segment and grow downwards in blocks of one sector: an 8-byte tag made from the segment's salt,
//! then 504 lanes. The tag is written after the lanes of a new block were zeroed, so the marks of a file's earlier use never
//! count, whatever part of the block a power cut kept.

use crate::format::frame::Salt;

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCK_LANES: u32 = 504;
pub(crate) const TAG: usize = 8;
const DONE: u8 = 0xE5;
const IN_FLIGHT: u8 = 0x20;
pub(crate) const STARTS_MAX: u8 = 0x1F;

const _: () = assert!(TAG + BLOCK_LANES as usize == BLOCK);

/// What a lane says of its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Waiting { starts: u8 },
    InFlight { starts: u8 },
    Done,
}

impl Lane {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Lane::Waiting { starts } => starts.min(STARTS_MAX),
            Lane::InFlight { starts } => IN_FLIGHT | starts.clamp(1, STARTS_MAX),
            Lane::Done => DONE,
        }
    }

    /// `None`: no legal value.
    pub(crate) fn from_byte(byte: u8) -> Option<Lane> {
        match byte {
            0..=STARTS_MAX => Some(Lane::Waiting { starts: byte }),
            0x21..=0x3F => Some(Lane::InFlight { starts: byte & STARTS_MAX }),
            DONE => Some(Lane::Done),
            _ => None,
        }
    }

    pub(crate) fn starts(self) -> u8 {
        match self {
            Lane::Waiting { starts } | Lane::InFlight { starts } => starts,
            Lane::Done => 0,
        }
    }
}

/// The tag of a block in the current use of a file.
pub(crate) fn tag(salt: Salt, block: u32) -> u64 {
    (salt.0 ^ (u64::from(block) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1
}

/// Where block `block` begins in a segment of `segment_bytes`; `None` if the segment is too small for it.
#[inline]
pub(crate) fn block_at(segment_bytes: u32, block: u32) -> Option<u32> {
    let from_end = (u64::from(block) + 1) * BLOCK as u64;
    u64::from(segment_bytes).checked_sub(from_end).map(|at| at as u32)
}

/// The byte of the item with this ordinal.
#[inline]
pub(crate) fn lane_at(segment_bytes: u32, ordinal: u32) -> Option<usize> {
    let block = block_at(segment_bytes, ordinal / BLOCK_LANES)?;
    Some(block as usize + TAG + (ordinal % BLOCK_LANES) as usize)
}

/// How far frames may reach when the segment has `items` items. Frames and lanes never share a page, so that the
/// rewriting of a lane never rewrites a sector of an acknowledged frame.
#[inline]
pub(crate) fn frame_limit(segment_bytes: u32, items: u32) -> u32 {
    let blocks = items.div_ceil(BLOCK_LANES).max(1);
    block_at(segment_bytes, blocks - 1).map_or(0, |at| at & !4095)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_one_state_or_damage() {
        let mut legal = 0;
        for byte in 0..=255u8 {
            if let Some(lane) = Lane::from_byte(byte) {
                assert_eq!(lane.to_byte(), byte);
                legal += 1;
            }
        }
        assert_eq!(legal, 32 + 31 + 1);
    }

    #[test]
    fn done_is_two_bits_away_from_everything_else() {
        for byte in (0..=255u8).filter(|b| *b != DONE && Lane::from_byte(*b).is_some()) {
            assert!((byte ^ DONE).count_ones() >= 2);
        }
        assert!(DONE.count_ones() >= 2 && DONE.count_zeros() >= 2);
    }

    #[test]
    fn starts_stop_at_31() {
        assert_eq!(Lane::InFlight { starts: 40 }.to_byte(), 0x3F);
        assert_eq!(Lane::Waiting { starts: 40 }.to_byte(), 0x1F);
    }

    #[test]
    fn lanes_grow_down_and_never_share_a_page_with_frames() {
        assert_eq!(lane_at(65536, 0), Some(65536 - 512 + 8));
        assert_eq!(lane_at(65536, 503), Some(65535));
        assert_eq!(lane_at(65536, 504), Some(65536 - 1024 + 8));
        assert_eq!(frame_limit(65536, 1), 65536 - 4096);
        assert_eq!(frame_limit(65536, 504 * 8), 65536 - 4096);
        assert_eq!(frame_limit(65536, 504 * 8 + 1), 65536 - 8192);
        assert_eq!(lane_at(65536, u32::MAX), None);
        assert_eq!(frame_limit(65536, 1 << 26), 0);
    }
}
