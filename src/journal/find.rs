//! Where an item is, by its id: for who looks for one, not for who takes the next.
//!
//! Ids of a segment follow each other, so its lane is found by reckoning. Where a frame begins is known only from the one before it:
//! a segment that was asked once remembers where every so many-th begins.

use std::io;
use std::sync::Arc;

use crate::format::frame::{self, Frame};
use crate::ids::Place;
use crate::journal::Journal;
use crate::journal::lane::Lane;
use crate::journal::segment::{FRAMES_AT, Segment};

/// Frames between two that are remembered.
const STEP: u32 = 128;

/// What is known of an item by its id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No item had this id yet.
    NeverPut,
    /// It is done, cleared or lost, or the id was passed over.
    Gone,
    /// It is there, in the hands of a consumer or not.
    There,
}

/// A frame of an item that is there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) segment: Arc<Segment>,
    pub(crate) place: Place,
}

/// How far somebody has looked through a journal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looked {
    segment: u64,
    offset: u32,
    /// The id that is looked for next.
    pub(crate) id: u64,
}

impl Looked {
    pub(crate) fn from(id: u64) -> Looked {
        Looked { id, ..Looked::default() }
    }
}

impl Segment {
    /// The frame of the item with this ordinal. `None`: it is damaged.
    fn frame_of(&self, ordinal: u32) -> io::Result<Option<(u32, Frame)>> {
        let end = self.end();
        let (mut offset, mut next) = {
            let marks = self.marks.lock();
            let at = marks.partition_point(|(known, _)| *known <= ordinal);
            at.checked_sub(1).and_then(|at| marks.get(at)).map_or((FRAMES_AT, 0), |(known, offset)| (*offset, *known))
        };
        while offset < end {
            let Some(frame) = self.frame_at(offset, end)? else {
                offset = self.data_from(offset + frame::ALIGN, end)?;
                continue;
            };
            if frame.kind.is_item() {
                if frame.ordinal >= ordinal {
                    return Ok((frame.ordinal == ordinal).then_some((offset, frame)));
                }
                if frame.ordinal >= next + STEP {
                    next = frame.ordinal;
                    let mut marks = self.marks.lock();
                    if marks.last().is_none_or(|(known, _)| *known < next) {
                        marks.push((next, offset));
                    }
                }
            }
            offset += frame.total_len();
        }
        Ok(None)
    }

    fn is_there(&self, ordinal: u32) -> io::Result<bool> {
        Ok(self.lane(ordinal)? != Some(Lane::Done))
    }
}

impl Journal {
    /// The segment that has or had the item, and its ordinal there.
    fn segment_of(&self, id: u64) -> io::Result<Option<(Arc<Segment>, u32)>> {
        if id <= self.cleared() {
            return Ok(None);
        }
        let mut table = self.table.lock();
        // Segments have their ids in the order of their numbers.
        let found = table.values_mut().rev().find(|entry| entry.header.first_id <= id);
        let Some(entry) = found.filter(|entry| !entry.cleared && id < entry.ids_end()) else {
            return Ok(None);
        };
        let segment = self.open_entry(entry)?;
        drop(table);
        let ordinal = u32::try_from(id - segment.first_id).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some((segment, ordinal)))
    }

    /// What became of an item.
    pub(crate) fn fate(&self, id: u64) -> io::Result<Fate> {
        if id == 0 || id > self.appended() {
            return Ok(Fate::NeverPut);
        }
        Ok(match self.segment_of(id)? {
            Some((segment, ordinal)) if segment.is_there(ordinal)? => Fate::There,
            _ => Fate::Gone,
        })
    }

    /// An item that is there and not damaged.
    pub(crate) fn find(&self, id: u64) -> io::Result<Option<Found>> {
        let Some((segment, ordinal)) = self.segment_of(id)? else {
            return Ok(None);
        };
        if !segment.is_there(ordinal)? {
            return Ok(None);
        }
        Ok(segment.frame_of(ordinal)?.map(|(offset, frame)| {
            let place = segment.place(offset, &frame);
            Found { segment, place }
        }))
    }

    /// The next item that is there, at or behind where `looked` is, up to the id `until`.
    pub(crate) fn find_next(&self, looked: &mut Looked, until: u64) -> io::Result<Option<Found>> {
        loop {
            looked.id = looked.id.max(self.cleared() + 1);
            if looked.id > until {
                return Ok(None);
            }
            let next = {
                let mut table = self.table.lock();
                match table.values_mut().find(|entry| !entry.cleared && entry.ids_end() > looked.id) {
                    Some(entry) => Some(self.open_entry(entry)?),
                    None => None,
                }
            };
            let Some(segment) = next else {
                return Ok(None);
            };
            if looked.segment != segment.number {
                let skipped = looked.id.saturating_sub(segment.first_id);
                let at = segment.frame_of(u32::try_from(skipped).unwrap_or(u32::MAX))?.map_or(FRAMES_AT, |(at, _)| at);
                (looked.segment, looked.offset) = (segment.number, at);
            }
            let end = segment.end();
            while looked.offset < end {
                let offset = looked.offset;
                let Some(frame) = segment.frame_at(offset, end)? else {
                    looked.offset = segment.data_from(offset + frame::ALIGN, end)?;
                    continue;
                };
                looked.offset += frame.total_len();
                if !frame.kind.is_item() {
                    continue;
                }
                let place = segment.place(offset, &frame);
                if place.id < looked.id {
                    continue;
                }
                if place.id > until {
                    return Ok(None);
                }
                looked.id = place.id + 1;
                if segment.is_there(frame.ordinal)? {
                    return Ok(Some(Found { segment, place }));
                }
            }
            // What is left of it is damaged, or still to come.
            looked.id = looked.id.max(segment.first_id + u64::from(segment.count()));
        }
    }
}
