//! The space of done items in a segment that something old keeps: holes are punched where only they lie.
//!
//! An item that is held open for days must not keep the sixty megabytes around it. Its segment stays, with the lanes and the
//! pages that hold a waiting or open item; the file system gets the other pages back. Nothing moves, so there is no second copy
//! to be told from the first, and an id stays where it is. What was done must be durably done before its bytes go, and the
//! header says durably how far the frames reached, so that no recovery looks for them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::Journal;
use super::lane::{self, Lane};
use super::segment::{FRAMES_AT, Segment};
use crate::format::frame;
use crate::format::header::PAGE;
use crate::planted::{self, Bug};
use crate::sync::Ordering;

/// Fewer bytes than this are not worth a look through the segment.
const WORTH: u32 = 32 << 10;

/// What was given back of a segment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holes {
    pub(crate) bytes: u32,
    /// Items that were not done when it was last looked through; 0: it was not.
    live: u32,
}

/// A segment that holds little.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sparse {
    pub(crate) bytes: u64,
    /// The device has its frames and its name.
    pub(crate) durable: bool,
}

impl Journal {
    /// Segments below the number `below`, which no reader will read on in, that hold less than half of what they held when
    /// they were last looked through; their numbers, the bytes that they fill, and whether the device has those.
    pub(crate) fn sparse(&self, below: u64) -> BTreeMap<u64, Sparse> {
        if self.context.dir.is_none() || self.context.read_only || !self.context.pool.may_punch() {
            return BTreeMap::new();
        }
        let table = self.table.lock();
        let sparse = table.range(..below).filter(|(_, entry)| {
            let done = entry.open.as_ref().map_or(entry.done, |segment| segment.done());
            let (count, live) = (entry.extent.count, entry.extent.count.saturating_sub(done));
            let before = if entry.holes.live == 0 { count } else { entry.holes.live };
            entry.sealed && !entry.is_spent() && entry.extent.end > WORTH && live <= before / 2
        });
        let sparse = sparse.map(|(number, entry)| {
            let bytes = entry.extent.end.saturating_sub(entry.holes.bytes).into();
            (*number, Sparse { bytes, durable: entry.named && entry.unproven_from.is_none() })
        });
        sparse.collect()
    }

    /// Gives back what only done items use of a segment. Returns the bytes.
    pub(crate) fn punch(&self, number: u64) -> io::Result<u32> {
        let found = {
            let mut table = self.table.lock();
            let entry = table.get_mut(&number).filter(|entry| entry.sealed && entry.named && !entry.cleared);
            entry.map(|entry| {
                // Whatever comes of it: one hole may be there when the next one fails.
                entry.may_have_holes = true;
                (entry.extent, entry.last_ms)
            })
        };
        let Some((extent, last_ms)) = found else { return Ok(0) };
        let punched = self.with_segment(number, |segment| {
            if segment.synced_to.load(Ordering::Acquire) < extent.end {
                return Ok(None);
            }
            let Some((live, dead)) = dead_pages(segment)? else {
                return Ok(None);
            };
            // The marks that were just looked at, and where the frames end, before the first byte goes.
            segment.write_seal(extent, last_ms, true)?;
            if !planted::is(Bug::PunchBeforeSync) {
                segment.sync().map_err(|error| {
                    let kind = error.kind();
                    self.commit.fail(error);
                    io::Error::from(kind)
                })?;
            }
            let mut bytes = 0;
            for range in dead {
                if !segment.punch(range.clone())? {
                    self.context.pool.never_punch();
                    return Ok(None);
                }
                bytes += range.end - range.start;
            }
            Ok(Some(Holes { bytes, live: live.max(1) }))
        })?;
        let Some(holes) = punched.flatten() else { return Ok(0) };
        let mut table = self.table.lock();
        let Some(entry) = table.get_mut(&number) else { return Ok(0) };
        let more = holes.bytes.saturating_sub(entry.holes.bytes);
        entry.holes = holes;
        self.context.pool.forget(more);
        Ok(more)
    }
}

/// How many items are not done, and the whole pages in which none of them lies. `None`: an item that is not done has no valid
/// frame, and nobody knows where its bytes are.
fn dead_pages(segment: &Segment) -> io::Result<Option<(u32, Vec<Range<u32>>)>> {
    let (end, count) = (segment.end(), segment.count());
    let mut waiting = 0;
    for ordinal in 0..count {
        waiting += u32::from(segment.lane(ordinal)? != Some(Lane::Done));
    }
    let page = PAGE as u32;
    let (mut found, mut dead, mut free_from) = (0, Vec::new(), FRAMES_AT);
    let mut close = |from: u32, to: u32| {
        let (from, to) = (from.next_multiple_of(page), to & !(page - 1));
        if from < to {
            dead.push(from..to);
        }
    };
    let mut offset = FRAMES_AT;
    while offset < end {
        let Some(frame) = segment.frame_at(offset, end)? else {
            offset = segment.data_from(offset + frame::ALIGN, end)?;
            continue;
        };
        let next = offset + frame.total_len();
        if frame.kind.is_item() && segment.lane(frame.ordinal)? != Some(Lane::Done) {
            found += 1;
            close(free_from, offset);
            free_from = next;
        }
        offset = next;
    }
    // Also what lies between the last frame and the lanes, which nobody will write to.
    close(free_from, lane::frame_limit(segment.len, count));
    Ok((found == waiting).then_some((waiting, dead)))
}
