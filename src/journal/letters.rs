//! Dead letters: items that carry a note of where they come from and why.

use crate::format::{frame, moved};
use crate::ids::Place;
use crate::journal::segment::Segment;

/// A frame with an origin has at least this long a head.
const HEAD_MIN: u32 = frame::HEADER_BYTES as u32 + 16;

/// What a dead letter says of itself.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) queue: String,
    pub(crate) reason: String,
    pub(crate) id: u64,
    pub(crate) starts: u32,
    /// Where the item's own payload begins.
    pub(crate) len: usize,
}

/// `payload` as it is stored for a dead letter.
pub(crate) fn write(queue: &str, reason: &str, payload: &[u8]) -> Vec<u8> {
    moved::encode_note(queue, reason, payload)
}

/// The note of the item at `place` with this stored payload, if it is a dead letter.
#[inline]
pub(crate) fn read(segment: &Segment, place: &Place, payload: &[u8]) -> Option<Note> {
    // Few other frames have a head as long; of those the head is read again.
    if place.head_len < HEAD_MIN { None } else { read_again(segment, place, payload) }
}

#[cold]
fn read_again(segment: &Segment, place: &Place, payload: &[u8]) -> Option<Note> {
    let frame = segment.frame_at(place.offset, segment.end()).ok().flatten().filter(|frame| frame.noted)?;
    let (queue, reason, len) = moved::decode_note(payload)?;
    let id = frame.origin.map_or(0, |(_, id)| id);
    Some(Note { queue: queue.to_owned(), reason: reason.to_owned(), id, starts: frame.starts_before, len })
}
