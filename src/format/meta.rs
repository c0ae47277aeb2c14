//! The two small files that are rewritten in place: a set's and a queue's.
//!
//! Each is two slots of one page. A write goes to the slot that does not hold the newest valid content, with the next
//! sequence number, and is synced; so a torn write leaves the other slot, and no space is ever needed, not even on a full
//! disk. (The idea of double meta pages is LMDB's.)

use super::{Bytes, Fault, REQUIRED_KNOWN, VERSION, crc};

pub(crate) const SLOT: usize = 4096;
pub(crate) const FILE_LEN: usize = 2 * SLOT;
const SET_MAGIC: &[u8; 8] = b"KESTRSET";
const QUEUE_MAGIC: &[u8; 8] = b"KESTRQUE";
const FIXED: usize = 8 + 12 + 8;

/// Ranges of freed segments above the floor that a queue's file can hold; more islands than that wait for the floor.
pub(crate) const FREED_MAX: usize = 150;

/// What a set remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetMeta {
    pub(crate) set_id: u128,
    /// No id up to this one is given out again by a new queue.
    pub(crate) id_floor: u64,
    /// 0 up, 1 read-only, 2 quiescent.
    pub(crate) state: u8,
}

/// What a queue remembers beside its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueMeta {
    pub(crate) set_id: u128,
    pub(crate) queue_id: u64,
    pub(crate) create_ms: u64,
    /// Segments below are gone, all their items done.
    pub(crate) segment_floor: u64,
    /// The newest segment when the queue was last closed in good order; 0: none.
    pub(crate) segment_last: u64,
    /// Where its frames ended, all durable.
    pub(crate) last_end: u32,
    /// Ids below may have been given out.
    pub(crate) next_id: u64,
    /// Items up to this id were cleared.
    pub(crate) clear_id: u64,
    /// `false`: ids from `next_id` on may have been given out since, in the boot named.
    pub(crate) clean: bool,
    pub(crate) boot_id: u128,
    /// Freed segments above the floor: first, last.
    pub(crate) freed: Vec<(u64, u64)>,
    pub(crate) name: String,
    /// Options by tag: see [`crate::options`].
    pub(crate) options: Vec<u8>,
}

impl QueueMeta {
    pub(crate) fn is_freed(&self, number: u64) -> bool {
        number < self.segment_floor || self.freed.iter().any(|&(first, last)| (first..=last).contains(&number))
    }

    /// Adds a freed segment and merges what touches; `false` if there is no room for one more island.
    pub(crate) fn add_freed(&mut self, number: u64) -> bool {
        self.add_freed_run(number, number)
    }

    /// The same for a row of numbers.
    pub(crate) fn add_freed_run(&mut self, first: u64, last: u64) -> bool {
        let first = first.max(self.segment_floor);
        if first > last {
            return true;
        }
        let mut freed = self.freed.clone();
        freed.push((first, last));
        freed.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(freed.len());
        for &(first, last) in &freed {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        let begins = merged.first().copied().filter(|&(first, _)| first == self.segment_floor);
        if merged.len() - usize::from(begins.is_some()) > FREED_MAX {
            return false;
        }
        if let Some((_, last)) = begins {
            self.segment_floor = last + 1;
            merged.remove(0);
        }
        self.freed = merged;
        true
    }
}

/// Content and sequence number of the newest valid slot; the slot the next write goes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Slots<T> {
    pub(crate) newest: T,
    pub(crate) sequence: u64,
    pub(crate) next_slot: usize,
}

pub(super) fn seal_slot(magic: &[u8; 8], sequence: u64, body: &[u8]) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(magic);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    // 12..20: required and ignorable features, none.
    slot[20..28].copy_from_slice(&sequence.to_le_bytes());
    slot[FIXED..FIXED + body.len()].copy_from_slice(body);
    let sum = crc(0, &slot[..SLOT - 4]);
    slot[SLOT - 4..].copy_from_slice(&sum.to_le_bytes());
    slot
}

pub(super) fn read_slots<T>(
    file: &[u8],
    magic: &[u8; 8],
    what: &'static str,
    parse: impl Fn(&mut Bytes<'_>) -> Option<T>,
) -> Result<Slots<T>, Fault> {
    let mut best: Option<Slots<T>> = None;
    let mut fault = Fault::Invalid(what);
    for index in 0..2 {
        let Some(slot) = file.get(index * SLOT..(index + 1) * SLOT) else {
            continue;
        };
        let (body, sum) = slot.split_at(SLOT - 4);
        if body.get(..8) != Some(magic) || sum != crc(0, body).to_le_bytes() {
            continue;
        }
        let mut bytes = Bytes(&body[8..]);
        let (Some(version), Some(required), Some(_), Some(sequence)) =
            (bytes.u32(), bytes.u32(), bytes.u32(), bytes.u64())
        else {
            continue;
        };
        if version != VERSION || required & !REQUIRED_KNOWN != 0 {
            fault = Fault::Version(version);
            continue;
        }
        if let Some(newest) = parse(&mut bytes)
            && best.as_ref().is_none_or(|b| sequence > b.sequence)
        {
            best = Some(Slots { newest, sequence, next_slot: 1 - index });
        }
    }
    // A slot of a later version beside one of ours: the later one may be the newer; do not guess.
    match (best, fault) {
        (_, Fault::Version(found)) => Err(Fault::Version(found)),
        (Some(slots), _) => Ok(slots),
        (None, fault) => Err(fault),
    }
}

pub(crate) fn encode_set(meta: &SetMeta, sequence: u64) -> [u8; SLOT] {
    let mut body = Vec::with_capacity(24);
    body.extend_from_slice(&meta.set_id.to_le_bytes());
    body.extend_from_slice(&meta.id_floor.to_le_bytes());
    body.push(meta.state);
    seal_slot(SET_MAGIC, sequence, &body)
}

pub(crate) fn decode_set(file: &[u8]) -> Result<Slots<SetMeta>, Fault> {
    read_slots(file, SET_MAGIC, "set header", |bytes| {
        let (set_id, id_floor, state) = (bytes.u128()?, bytes.u64()?, bytes.u8()?);
        (state <= 2).then_some(SetMeta { set_id, id_floor, state })
    })
}

/// `name` and `options` are bounded by their own rules so that they and all ranges fit the slot.
pub(crate) fn encode_queue(meta: &QueueMeta, sequence: u64) -> [u8; SLOT] {
    let mut body = Vec::with_capacity(512);
    body.extend_from_slice(&meta.set_id.to_le_bytes());
    for word in [meta.queue_id, meta.create_ms, meta.segment_floor, meta.segment_last, meta.next_id, meta.clear_id] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(&meta.last_end.to_le_bytes());
    body.push(u8::from(meta.clean));
    body.extend_from_slice(&meta.boot_id.to_le_bytes());
    body.extend_from_slice(&(meta.name.len() as u16).to_le_bytes());
    body.extend_from_slice(meta.name.as_bytes());
    body.extend_from_slice(&(meta.options.len() as u16).to_le_bytes());
    body.extend_from_slice(&meta.options);
    body.extend_from_slice(&(meta.freed.len() as u16).to_le_bytes());
    for &(first, last) in &meta.freed {
        body.extend_from_slice(&first.to_le_bytes());
        body.extend_from_slice(&last.to_le_bytes());
    }
    seal_slot(QUEUE_MAGIC, sequence, &body)
}

pub(crate) fn decode_queue(file: &[u8]) -> Result<Slots<QueueMeta>, Fault> {
    read_slots(file, QUEUE_MAGIC, "queue header", |bytes| {
        let set_id = bytes.u128()?;
        let queue_id = bytes.u64()?;
        let create_ms = bytes.u64()?;
        let segment_floor = bytes.u64()?;
        let segment_last = bytes.u64()?;
        let next_id = bytes.u64()?;
        let clear_id = bytes.u64()?;
        let last_end = bytes.u32()?;
        let clean = bytes.u8()? == 1;
        let boot_id = bytes.u128()?;
        let name_len = bytes.u16()?;
        let name = String::from_utf8(bytes.take(name_len.into())?.to_vec()).ok()?;
        let options_len = bytes.u16()?;
        let options = bytes.take(options_len.into())?.to_vec();
        let freed_len = bytes.u16()?;
        let freed = (0..freed_len).map(|_| Some((bytes.u64()?, bytes.u64()?))).collect::<Option<Vec<_>>>()?;
        Some(QueueMeta {
            set_id,
            queue_id,
            create_ms,
            segment_floor,
            segment_last,
            next_id,
            clear_id,
            last_end,
            clean,
            boot_id,
            freed,
            name,
            options,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> QueueMeta {
        QueueMeta {
            set_id: 1,
            queue_id: 2,
            create_ms: 3,
            segment_floor: 4,
            segment_last: 9,
            next_id: 5,
            clear_id: 6,
            last_end: 8,
            clean: true,
            boot_id: 7,
            freed: vec![(6, 7)],
            name: "n".repeat(200),
            options: vec![9; 200],
        }
    }

    #[test]
    fn the_newest_valid_slot_counts() {
        let mut file = encode_queue(&sample(), 7).to_vec();
        file.extend(encode_queue(&QueueMeta { next_id: 50, ..sample() }, 8));
        let slots = decode_queue(&file).expect("valid");
        assert_eq!((slots.newest.next_id, slots.sequence, slots.next_slot), (50, 8, 0));
        file[SLOT + 100] ^= 4;
        let slots = decode_queue(&file).expect("valid");
        assert_eq!((slots.newest, slots.sequence, slots.next_slot), (sample(), 7, 1));
        file[100] ^= 4;
        assert_eq!(decode_queue(&file), Err(Fault::Invalid("queue header")));
    }

    #[test]
    fn the_largest_content_fits_its_slot() {
        let freed = (0..FREED_MAX as u64).map(|i| (10 + 3 * i, 10 + 3 * i)).collect();
        let meta = QueueMeta { freed, options: vec![1; 700], ..sample() };
        let mut file = encode_queue(&meta, 1).to_vec();
        file.resize(FILE_LEN, 0);
        assert_eq!(decode_queue(&file).expect("valid").newest, meta);
    }

    #[test]
    fn freed_segments_merge_and_lift_the_floor() {
        let mut meta = QueueMeta { segment_floor: 1, freed: vec![], ..sample() };
        for number in [3, 5, 4] {
            assert!(meta.add_freed(number));
        }
        assert_eq!((meta.segment_floor, &meta.freed[..]), (1, &[(3, 5)][..]));
        assert!(meta.add_freed(1));
        assert_eq!((meta.segment_floor, &meta.freed[..]), (2, &[(3, 5)][..]));
        assert!(meta.add_freed(2));
        assert_eq!((meta.segment_floor, meta.freed.len()), (6, 0));
        assert!(meta.is_freed(5) && !meta.is_freed(6));
    }

    #[test]
    fn too_many_islands_are_refused_and_nothing_is_forgotten() {
        let mut meta = QueueMeta { segment_floor: 1, freed: vec![], ..sample() };
        for i in 0..FREED_MAX as u64 {
            assert!(meta.add_freed(10 + 2 * i));
        }
        assert!(!meta.add_freed(5000));
        assert!(!meta.is_freed(5000));
        assert_eq!(meta.freed.len(), FREED_MAX);
        assert!(meta.add_freed(11));
    }
}
