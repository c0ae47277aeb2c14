//! The two files of a named reader: its header, two slots as those of [`super::meta`], and the head of a file of lanes.

use super::meta::{SLOT, Slots, read_slots, seal_slot};
use super::{Bytes, Fault, REQUIRED_KNOWN, VERSION, crc};

const MAGIC: &[u8; 8] = b"KESTRRDR";
const LANES_MAGIC: &[u8; 8] = b"KESTRLAN";

/// Ids whose lanes stand in one file.
pub(crate) const RANGE_IDS: u64 = 1 << 16;
/// Where they begin.
pub(crate) const LANES_AT: usize = 4096;
pub(crate) const LANES_LEN: usize = LANES_AT + RANGE_IDS as usize;
/// What of the first page says what the file is.
pub(crate) const LANES_HEAD: usize = 64;

/// What a queue remembers of a named reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReaderMeta {
    pub(crate) set_id: u128,
    pub(crate) queue_id: u64,
    pub(crate) reader_id: u64,
    pub(crate) create_ms: u64,
    /// Items up to this id are none of its: they came before it, or were cleared.
    pub(crate) start_id: u64,
    pub(crate) name: String,
    /// Those of its own; the others are its queue's. See [`crate::options`].
    pub(crate) options: Vec<u8>,
}

/// `name` and `options` are bounded by their own rules so that they fit the slot.
pub(crate) fn encode(meta: &ReaderMeta, sequence: u64) -> [u8; SLOT] {
    let mut body = Vec::with_capacity(512);
    body.extend_from_slice(&meta.set_id.to_le_bytes());
    for word in [meta.queue_id, meta.reader_id, meta.create_ms, meta.start_id] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(&(meta.name.len() as u16).to_le_bytes());
    body.extend_from_slice(meta.name.as_bytes());
    body.extend_from_slice(&(meta.options.len() as u16).to_le_bytes());
    body.extend_from_slice(&meta.options);
    seal_slot(MAGIC, sequence, &body)
}

pub(crate) fn decode(file: &[u8]) -> Result<Slots<ReaderMeta>, Fault> {
    read_slots(file, MAGIC, "reader header", |bytes| {
        let set_id = bytes.u128()?;
        let [queue_id, reader_id, create_ms, start_id] = [bytes.u64()?, bytes.u64()?, bytes.u64()?, bytes.u64()?];
        let name_len = bytes.u16()?;
        let name = String::from_utf8(bytes.take(name_len.into())?.to_vec()).ok()?;
        let options_len = bytes.u16()?;
        let options = bytes.take(options_len.into())?.to_vec();
        Some(ReaderMeta { set_id, queue_id, reader_id, create_ms, start_id, name, options })
    })
}

/// Whose lanes a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LanesHead {
    pub(crate) set_id: u128,
    pub(crate) queue_id: u64,
    pub(crate) reader_id: u64,
    pub(crate) first_id: u64,
}

pub(crate) fn encode_lanes(head: &LanesHead) -> [u8; LANES_HEAD] {
    let mut out = [0; LANES_HEAD];
    out[..8].copy_from_slice(LANES_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    // 12..20: required and ignorable features, none.
    out[20..36].copy_from_slice(&head.set_id.to_le_bytes());
    out[36..44].copy_from_slice(&head.queue_id.to_le_bytes());
    out[44..52].copy_from_slice(&head.reader_id.to_le_bytes());
    out[52..60].copy_from_slice(&head.first_id.to_le_bytes());
    let sum = crc(0, &out[..60]);
    out[60..].copy_from_slice(&sum.to_le_bytes());
    out
}

pub(crate) fn decode_lanes(bytes: &[u8]) -> Result<LanesHead, Fault> {
    let invalid = Fault::Invalid("lanes of a reader");
    let head = bytes.get(..LANES_HEAD).ok_or(invalid)?;
    let (body, sum) = head.split_at(60);
    if body.get(..8) != Some(LANES_MAGIC) || sum != crc(0, body).to_le_bytes() {
        return Err(invalid);
    }
    let mut bytes = Bytes(&body[8..]);
    let read = |bytes: &mut Bytes<'_>| {
        let (version, required, _) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
        let head = LanesHead {
            set_id: bytes.u128()?,
            queue_id: bytes.u64()?,
            reader_id: bytes.u64()?,
            first_id: bytes.u64()?,
        };
        Some((version, required, head))
    };
    match read(&mut bytes) {
        Some((VERSION, required, head)) if required & !REQUIRED_KNOWN == 0 => Ok(head),
        Some((version, ..)) => Err(Fault::Version(version)),
        None => Err(invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ReaderMeta {
        ReaderMeta {
            set_id: 1,
            queue_id: 2,
            reader_id: 3,
            create_ms: 4,
            start_id: 5,
            name: "n".repeat(200),
            options: vec![9; 512],
        }
    }

    #[test]
    fn the_newest_valid_slot_of_a_reader_counts() {
        let mut file = encode(&sample(), 1).to_vec();
        file.extend(encode(&ReaderMeta { start_id: 50, ..sample() }, 2));
        assert_eq!(decode(&file).map(|slots| slots.newest.start_id), Ok(50));
        file[SLOT + 70] ^= 1;
        assert_eq!(decode(&file).map(|slots| slots.newest), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_of_a_lane_head_is_told() {
        let head = LanesHead { set_id: 1, queue_id: 2, reader_id: 3, first_id: 1 << 16 };
        let bytes = encode_lanes(&head);
        assert_eq!(decode_lanes(&bytes), Ok(head));
        for bit in 0..LANES_HEAD * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_lanes(&bytes).is_err(), "bit {bit}");
        }
        assert!(decode_lanes(&[0; LANES_HEAD]).is_err());
    }
}
