//! One frame: the 24 bytes in front of a payload, what may follow them, and when a frame is valid.
//!
//! ```text
//!  0        4         8           12             16      20         24
//!  | header | payload | kind:4    | flags:6      | time  | synced   | extension | payload … | pad to 8
//!  | crc    | crc     | length:28 | ordinal:26   | delta | to / 8   | by flags, |
//!                                                                  | kind      |
//! ```
//!
//! A frame at offset X of a segment is valid if and only if
//! 1. X is a multiple of 8, and the frame ends at or before the limit given,
//! 2. the kind is known and no unknown flag is set,
//! 3. `synced_to` is not above X,
//! 4. the header checksum, seeded with one half of the segment's salt and the offset (so that a frame is valid only where it
//!    was written), covers bytes 4 to the end of the extension,
//! 5. the payload checksum, seeded with the other half, covers the payload.
//!
//! [`decode`] checks 1 to 4, [`payload_valid`] checks 5. That the ordinal continues the sequence is the caller's check.

use super::{Bytes, crc};

pub(crate) const HEADER_BYTES: usize = 24;
/// Behind the word of kind and length: in a frame, not all bytes before are zero.
pub(crate) const KIND_END: u32 = 12;
pub(crate) const EXTENSION_MAX: usize = 56;
pub(crate) const PAYLOAD_MAX: u32 = (1 << 28) - 1;
pub(crate) const ORDINAL_MAX: u32 = (1 << 26) - 1;
pub(crate) const ALIGN: u32 = 8;

/// Flag bits, and the extension each one adds, in this order.
const FLAG_ID: u32 = 1;
const FLAG_EXPIRY: u32 = 2;
const FLAG_USER: u32 = 4;
const FLAG_ORIGIN: u32 = 8;
/// No extension: the payload begins with a note ([`super::moved`]).
const FLAG_NOTE: u32 = 16;
const FLAGS_KNOWN: u32 = FLAG_ID | FLAG_EXPIRY | FLAG_USER | FLAG_ORIGIN | FLAG_NOTE;

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN as usize));
const _: () = assert!(EXTENSION_MAX == 8 + 8 + 8 + 16 + 8 + 8);

/// The kind's highest bit: the item is not for everybody, and 8 bytes behind the other extensions say for whom it is.
const ADDRESSED: u32 = 8;

/// Addressed to every reader but the queue's own.
pub(crate) const NAMED_READERS: u64 = u64::MAX;
const _: () = assert!(crate::journal::segment::LEN_MAX / ALIGN <= 1 << 27);

/// The secret of one use of a segment file: it seeds every checksum in it, so that frames of an earlier use never pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(pub(crate) u64);

impl Salt {
    pub(crate) fn header_seed(self) -> u32 {
        if crate::planted::is(crate::planted::Bug::IgnoreSalt) { 0 } else { (self.0 >> 32) as u32 }
    }

    pub(crate) fn payload_seed(self) -> u32 {
        if crate::planted::is(crate::planted::Bug::IgnoreSalt) { 0 } else { self.0 as u32 }
    }
}

/// What a frame is, by the lower three of the four bits on disk; the fourth says that an item is addressed. 4 (an abandoned
/// reservation) and 5 (a closing frame) are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One item.
    Item = 1,
    /// An item of a batch that goes on in the next frame.
    BatchPart = 2,
    /// The last item of a batch; its parts count only with it.
    BatchEnd = 3,
    /// No item: says how far the device has everything, while a queue is idle, or fills the rest of a sector with its payload.
    Checkpoint = 6,
    /// One item that is not delivered before a time of its own, which stands behind the extensions of the flags.
    Deferred = 7,
}

impl Kind {
    fn from_bits(bits: u32) -> Option<Kind> {
        match bits {
            1 => Some(Kind::Item),
            2 => Some(Kind::BatchPart),
            3 => Some(Kind::BatchEnd),
            6 => Some(Kind::Checkpoint),
            7 => Some(Kind::Deferred),
            _ => None,
        }
    }

    pub(crate) fn is_item(self) -> bool {
        self != Kind::Checkpoint
    }
}

/// The meaning of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    /// Counts the items of the segment from 0; for a frame without an item, the ordinal of the next one.
    pub(crate) ordinal: u32,
    /// Put time in ms after the segment's base time.
    pub(crate) time_delta: u32,
    /// How far this segment was known durable when the frame was composed.
    pub(crate) synced_to: u32,
    /// The item's id where it is not the segment's first id + ordinal.
    pub(crate) id: Option<u64>,
    /// Absolute ms since 1970.
    pub(crate) expiry_ms: Option<u64>,
    /// Of a [`Kind::Deferred`]: absolute ms since 1970, before which it is not delivered.
    pub(crate) due_ms: u64,
    /// The user's 32 bits.
    pub(crate) user_flags: u32,
    /// Starts that an item brought from its earlier place.
    pub(crate) starts_before: u32,
    /// Where a moved item came from: queue id, item id.
    pub(crate) origin: Option<(u64, u64)>,
    /// The payload begins with a note.
    pub(crate) noted: bool,
    /// The one reader that it is for, or [`NAMED_READERS`]; `None`: it is for all.
    pub(crate) only: Option<u64>,
}

impl Frame {
    #[inline(always)]
    fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.id.is_some() {
            flags |= FLAG_ID;
        }
        if self.expiry_ms.is_some() {
            flags |= FLAG_EXPIRY;
        }
        if self.user_flags != 0 || self.starts_before != 0 {
            flags |= FLAG_USER;
        }
        if self.origin.is_some() {
            flags |= FLAG_ORIGIN;
        }
        if self.noted {
            flags |= FLAG_NOTE;
        }
        flags
    }

    /// Bytes between the frame's offset and its payload.
    #[inline(always)]
    pub(crate) fn head_len(&self) -> u32 {
        HEADER_BYTES as u32 + extension_len(self.kind, self.flags(), self.only.is_some())
    }

    /// Bytes from the frame's offset to the next frame's.
    #[inline(always)]
    pub(crate) fn total_len(&self) -> u32 {
        frame_len(self.head_len(), self.payload_len)
    }
}

#[inline(always)]
fn extension_len(kind: Kind, flags: u32, is_addressed: bool) -> u32 {
    let eights = (flags & FLAG_ID != 0) as u32 + (flags & FLAG_EXPIRY != 0) as u32 + (flags & FLAG_USER != 0) as u32;
    let behind = (kind == Kind::Deferred) as u32 + is_addressed as u32;
    (eights + behind) * 8 + (flags & FLAG_ORIGIN != 0) as u32 * 16
}

/// `payload_len` is at most 2^28, so nothing overflows.
#[inline]
pub(crate) fn frame_len(head_len: u32, payload_len: u32) -> u32 {
    (head_len + payload_len).next_multiple_of(ALIGN)
}

pub(crate) fn payload_crc(salt: Salt, payload: &[u8]) -> u32 {
    crc(salt.payload_seed(), payload)
}

pub(crate) fn payload_valid(salt: Salt, frame_crc: u32, payload: &[u8]) -> bool {
    crate::planted::is(crate::planted::Bug::SkipPayloadCrc) || payload_crc(salt, payload) == frame_crc
}

/// Writes header and extension into `out` and returns their length.
#[inline(always)]
pub(crate) fn encode(frame: &Frame, salt: Salt, offset: u32, out: &mut [u8; HEADER_BYTES + EXTENSION_MAX]) -> usize {
    let flags = frame.flags();
    let words = [
        frame.payload_crc,
        frame.payload_len | (frame.kind as u32 | if frame.only.is_some() { ADDRESSED } else { 0 }) << 28,
        frame.ordinal | flags << 26,
        frame.time_delta,
        frame.synced_to / ALIGN,
    ];
    for (i, word) in words.iter().enumerate() {
        out[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    let mut end = HEADER_BYTES;
    if flags != 0 || frame.kind == Kind::Deferred || frame.only.is_some() {
        let mut push = |bytes: &[u8]| {
            out[end..end + bytes.len()].copy_from_slice(bytes);
            end += bytes.len();
        };
        if let Some(id) = frame.id {
            push(&id.to_le_bytes());
        }
        if let Some(expiry_ms) = frame.expiry_ms {
            push(&expiry_ms.to_le_bytes());
        }
        if flags & FLAG_USER != 0 {
            push(&frame.user_flags.to_le_bytes());
            push(&frame.starts_before.to_le_bytes());
        }
        if let Some((queue, item)) = frame.origin {
            push(&queue.to_le_bytes());
            push(&item.to_le_bytes());
        }
        if frame.kind == Kind::Deferred {
            push(&frame.due_ms.to_le_bytes());
        }
        if let Some(only) = frame.only {
            push(&only.to_le_bytes());
        }
    }
    let sum = crc(salt.header_seed() ^ offset, &out[4..end]);
    out[0..4].copy_from_slice(&sum.to_le_bytes());
    end
}

/// Decodes a frame without an extension from its header alone. `None`: it may still be a frame, to be asked of [`decode`].
#[inline(always)]
pub(crate) fn decode_plain(head: &[u8; HEADER_BYTES], salt: Salt, offset: u32, limit: u32) -> Option<Frame> {
    // The flags are the six highest bits of the ordinal's word, the kind the four of the length's: a delayed item and one that
    // is not for everybody have an extension.
    let is_plain = head[15] >> 2 == 0 && head[11] >> 4 < Kind::Deferred as u8;
    if is_plain { decode(head, salt, offset, limit) } else { None }
}

/// Decodes the frame whose first bytes are `head` (as many as there are, up to 80), at `offset`, ending at or before
/// `limit`. Rules 1 to 4; the cheap ones first, because the search behind damage tries every eighth byte.
#[inline(always)]
pub(crate) fn decode(head: &[u8], salt: Salt, offset: u32, limit: u32) -> Option<Frame> {
    let mut bytes = Bytes(head);
    let header_crc = bytes.u32()?;
    let payload_crc = bytes.u32()?;
    let kind_len = bytes.u32()?;
    let is_addressed = kind_len >> 28 & ADDRESSED != 0;
    let kind = Kind::from_bits(kind_len >> 28 & !ADDRESSED).filter(|kind| kind.is_item() || !is_addressed)?;
    let payload_len = kind_len & PAYLOAD_MAX;
    let flags_ordinal = bytes.u32()?;
    let flags = flags_ordinal >> 26;
    if flags & !FLAGS_KNOWN != 0 {
        return None;
    }
    let time_delta = bytes.u32()?;
    let synced_to = bytes.u32()?;
    if synced_to > offset / ALIGN {
        return None;
    }
    let head_len = HEADER_BYTES as u32 + extension_len(kind, flags, is_addressed);
    let total = frame_len(head_len, payload_len);
    if offset.checked_add(total).is_none_or(|end| end > limit) {
        return None;
    }
    if crc(salt.header_seed() ^ offset, head.get(4..head_len as usize)?) != header_crc {
        return None;
    }
    let id = if flags & FLAG_ID != 0 { Some(bytes.u64()?) } else { None };
    let expiry_ms = if flags & FLAG_EXPIRY != 0 { Some(bytes.u64()?) } else { None };
    let (user_flags, starts_before) = if flags & FLAG_USER != 0 { (bytes.u32()?, bytes.u32()?) } else { (0, 0) };
    let origin = if flags & FLAG_ORIGIN != 0 { Some((bytes.u64()?, bytes.u64()?)) } else { None };
    let due_ms = if kind == Kind::Deferred { bytes.u64()? } else { 0 };
    let only = if is_addressed { Some(bytes.u64()?) } else { None };
    Some(Frame {
        kind,
        payload_len,
        payload_crc,
        ordinal: flags_ordinal & ORDINAL_MAX,
        time_delta,
        synced_to: synced_to * ALIGN,
        id,
        expiry_ms,
        due_ms,
        user_flags,
        starts_before,
        origin,
        noted: flags & FLAG_NOTE != 0,
        only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        (
            (0u8..5, 0..=PAYLOAD_MAX, any::<u32>(), 0..=ORDINAL_MAX),
            (any::<u32>(), 0u32..1 << 20, any::<Option<u64>>(), any::<Option<u64>>()),
            (any::<u32>(), any::<u32>(), any::<Option<(u64, u64)>>(), any::<bool>(), any::<Option<u64>>()),
        )
            .prop_map(
                |((kind, payload_len, payload_crc, ordinal), (time_delta, synced, id, expiry_ms), rest)| Frame {
                    kind: [Kind::Item, Kind::BatchPart, Kind::BatchEnd, Kind::Checkpoint, Kind::Deferred]
                        [kind as usize],
                    due_ms: if kind == 4 { rest.0.into() } else { 0 },
                    payload_len,
                    payload_crc,
                    ordinal,
                    time_delta,
                    synced_to: synced * ALIGN,
                    id,
                    expiry_ms,
                    user_flags: rest.0,
                    starts_before: rest.1,
                    origin: rest.2,
                    noted: rest.3,
                    only: rest.4.filter(|_| kind != 3),
                },
            )
    }

    proptest! {
        #[test]
        fn decode_returns_what_encode_wrote(frame in any_frame(), salt in any::<u64>()) {
            let mut out = [0; HEADER_BYTES + EXTENSION_MAX];
            let len = encode(&frame, Salt(salt), 1 << 23, &mut out);
            prop_assert_eq!(len as u32, frame.head_len());
            let header = out[..HEADER_BYTES].try_into().expect("as long as said");
            let is_plain = len == HEADER_BYTES && !frame.noted;
            prop_assert_eq!(decode_plain(&header, Salt(salt), 1 << 23, u32::MAX), is_plain.then_some(frame));
            prop_assert_eq!(decode(&out[..len], Salt(salt), 1 << 23, u32::MAX), Some(frame));
            prop_assert_eq!(decode(&out[..len], Salt(salt ^ 1 << 40), 1 << 23, u32::MAX), None);
            prop_assert_eq!(decode(&out[..len], Salt(salt), (1 << 23) + 512, u32::MAX), None);
        }

        #[test]
        fn one_flipped_bit_is_never_accepted(frame in any_frame(), bit in 0usize..192) {
            let mut out = [0; HEADER_BYTES + EXTENSION_MAX];
            let len = encode(&frame, Salt(7), 1 << 23, &mut out);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&out[..len], Salt(7), 1 << 23, u32::MAX), None);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..90), at in 0u32..1 << 30) {
            let _ = decode(&bytes, Salt(0), at, 1 << 30);
        }
    }

    #[test]
    fn zeros_are_never_a_frame() {
        for salt in [0, 1, u64::MAX] {
            assert_eq!(decode(&[0; 64], Salt(salt), 4096, 1 << 20), None);
            // Sealed as a frame would be, so that its kind alone speaks against it.
            let mut head = [0; HEADER_BYTES];
            head[KIND_END as usize..].fill(1);
            let header_crc = crc(Salt(salt).header_seed() ^ 4096, &head[4..]);
            head[..4].copy_from_slice(&header_crc.to_le_bytes());
            assert_eq!(decode(&head, Salt(salt), 4096, 1 << 20), None);
        }
    }

    #[test]
    fn a_frame_must_end_before_the_limit() {
        let frame = Frame {
            kind: Kind::Item,
            payload_len: 100,
            payload_crc: 0,
            ordinal: 0,
            time_delta: 0,
            synced_to: 0,
            id: None,
            expiry_ms: None,
            user_flags: 0,
            starts_before: 0,
            origin: None,
            noted: false,
            due_ms: 0,
            only: None,
        };
        let mut out = [0; HEADER_BYTES + EXTENSION_MAX];
        let len = encode(&frame, Salt(1), 4096, &mut out);
        assert_eq!(frame.total_len(), 128);
        assert!(decode(&out[..len], Salt(1), 4096, 4096 + 128).is_some());
        assert!(decode(&out[..len], Salt(1), 4096, 4096 + 127).is_none());
        assert!(decode(&out[..len], Salt(1), u32::MAX - 7, u32::MAX).is_none());
    }
}
