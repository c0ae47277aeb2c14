//! The space of done items in a segment that something old keeps: holes are punched where only they lie.
//!
//! An item that is held open for days must not keep the sixty megabytes around it. Its segment stays, with the lanes and the
//! pages that hold a waiting or open item; the file system gets the other pages back. Nothing moves, so there is no second copy
//! to be told from the first, and an id stays where it is. What was done must be durably done before its bytes go, for the queue
//! and for each of its named readers, and the header says durably how far the frames reached, so that no recovery looks for them.
//! Where no sync has reached the segment, nothing of it has to outlive the power, and the bytes go before they are ever written.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::lane::{self, Lane};
use super::readers::ReaderLanes;
use super::segment::{FRAMES_AT, Segment};
use super::{Entry, Journal};
use crate::format::frame;
use crate::format::header::{Extent, PAGE};
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

impl Journal {
    /// Segments below the number `below`, which no reader will read on in, that hold less than half of what they held when
    /// they were last looked through; their numbers, and the bytes that they fill.
    pub(crate) fn sparse(&self, below: u64) -> BTreeMap<u64, u64> {
        if self.context.dir.is_none() || self.context.read_only || !self.context.pool.may_punch() {
            return BTreeMap::new();
        }
        let readers = self.readers();
        let table = self.table.lock();
        let sparse = table.range(..below).filter(|(number, entry)| {
            let done = entry.open.as_ref().map_or(entry.done, |segment| segment.done());
            let count = entry.extent.count;
            // What waits for several readers counts for each of them: there is no more than this.
            let named = readers.iter().map(|reader| reader.left_in(**number, entry.header.first_id, count));
            let live = u64::from(count.saturating_sub(done)) + named.sum::<u64>();
            let before = if entry.holes.live == 0 { count } else { entry.holes.live };
            entry.sealed && !entry.cleared && live > 0 && entry.extent.end > WORTH && live <= u64::from(before / 2)
        });
        sparse.map(|(number, entry)| (*number, entry.extent.end.saturating_sub(entry.holes.bytes).into())).collect()
    }

    /// Whether a sync has reached all of a segment, or it is gone.
    pub(crate) fn is_synced(&self, number: u64) -> bool {
        !self.tail.lock().unsynced.contains(&number)
    }

    /// Gives back what only done items use of a segment that the device has. Returns the bytes.
    pub(crate) fn punch(&self, number: u64) -> io::Result<u32> {
        // From the look at the readers on: one that begins with the oldest item must not count what is about to go.
        let _giving_back = self.giving_back.read();
        let readers = self.readers();
        let Some((extent, last_ms)) = self.begin_holes(number, |entry| entry.named) else { return Ok(0) };
        let punched = self.with_segment(number, |segment| {
            if segment.synced_to.load(Ordering::Acquire) < extent.end {
                return Ok(None);
            }
            let (live, dead) = dead_pages(segment, &readers)?;
            let Some(dead) = dead else {
                return Ok(Some(Holes { bytes: 0, live: live.max(1) }));
            };
            // The marks that were just looked at, and where the frames end, before the first byte goes.
            if self.take_unproven_marks(number) && !planted::is(Bug::MarksOfOthers) {
                segment.dirty_marks_again()?;
            }
            segment.write_seal(extent, last_ms, true)?;
            if !planted::is(Bug::PunchBeforeSync) {
                segment.sync().map_err(|error| {
                    let kind = error.kind();
                    self.commit.fail(error);
                    io::Error::from(kind)
                })?;
            }
            if !planted::is(Bug::PunchBeforeReaderSync) {
                readers.iter().try_for_each(|reader| reader.sync(&self.commit))?;
            }
            self.punch_all(segment, live, dead)
        })?;
        Ok(self.note_holes(number, punched.flatten()))
    }

    /// The same for one that no sync has reached, and what is older than it is made durable; for the commit. What was done goes
    /// before it would be written. Returns the last id covered.
    ///
    /// Nothing in such a segment is promised to outlive the power: a cut in between ends the journal at the first hole. To a
    /// next process, whose page cache is whole, the seal says that the holes are no damage.
    pub(crate) fn sync_thinned(&self, number: u64) -> io::Result<u64> {
        self.told_of_loss(self.thin_and_sync(number))
    }

    fn thin_and_sync(&self, number: u64) -> io::Result<u64> {
        let durable = self.commit.durable();
        let unsynced: Vec<u64> = self.tail.lock().unsynced.iter().copied().filter(|older| *older <= number).collect();
        if !unsynced.contains(&number) {
            return Ok(durable);
        }
        let _giving_back = self.giving_back.read();
        let readers = self.readers();
        let mut covered = Vec::with_capacity(unsynced.len());
        for older in &unsynced {
            if *older == number {
                // What fails leaves fewer holes. That the device is well the sync tells.
                let _ = self.thin_unsynced(number, &readers);
            }
            covered.extend(self.sync_sealed(*older)?);
        }
        self.give_names(&covered)?;
        self.note_covered(&unsynced, &covered);
        let last = self.table.lock().get(&number).map_or(0, |entry| entry.ids_end() - 1);
        Ok(durable.max(last))
    }

    /// Punches the holes of a segment of which the device is not known to have anything.
    fn thin_unsynced(&self, number: u64, readers: &[Arc<ReaderLanes>]) -> io::Result<()> {
        let Some((extent, last_ms)) = self.begin_holes(number, |entry| entry.unproven_from.is_none()) else {
            return Ok(());
        };
        let punched = self.with_segment(number, |segment| {
            if segment.synced_to.load(Ordering::Acquire) > FRAMES_AT && !planted::is(Bug::ThinSynced) {
                return Ok(None);
            }
            let (live, dead) = dead_pages(segment, readers)?;
            let Some(dead) = dead else { return Ok(None) };
            if !planted::is(Bug::ThinUntold) {
                segment.write_thin_seal(extent, last_ms)?;
            }
            if let Some(entry) = self.table.lock().get_mut(&number) {
                entry.thinned = true;
            }
            self.punch_all(segment, live, dead)
        })?;
        self.note_holes(number, punched.flatten());
        Ok(())
    }

    /// Where the frames of a segment end that is about to get holes, and its newest put time; `None`: it may not.
    fn begin_holes(&self, number: u64, may: impl FnOnce(&Entry) -> bool) -> Option<(Extent, u64)> {
        let mut table = self.table.lock();
        let entry = table.get_mut(&number).filter(|entry| entry.sealed && !entry.cleared && may(entry))?;
        // Whatever comes of it: one hole may be there when the next one fails.
        entry.may_have_holes = true;
        Some((entry.extent, entry.last_ms))
    }

    /// `None`: the file system cannot.
    fn punch_all(&self, segment: &Segment, live: u32, dead: Vec<Range<u32>>) -> io::Result<Option<Holes>> {
        let mut bytes = 0;
        for range in dead {
            bytes += range.end - range.start;
            if !segment.punch(range)? {
                self.context.pool.never_punch();
                return Ok(None);
            }
        }
        Ok(Some(Holes { bytes, live: live.max(1) }))
    }

    fn note_holes(&self, number: u64, holes: Option<Holes>) -> u32 {
        let Some(holes) = holes else { return 0 };
        let mut table = self.table.lock();
        let Some(entry) = table.get_mut(&number) else { return 0 };
        let more = holes.bytes.saturating_sub(entry.holes.bytes);
        entry.holes = Holes { bytes: holes.bytes.max(entry.holes.bytes), ..holes };
        self.context.pool.forget(more);
        more
    }
}

/// How many items are not done for all, and the whole pages in which none of them lies. `None`: one of these items has no
/// valid frame, and nobody knows where its bytes are.
fn dead_pages(segment: &Segment, readers: &[Arc<ReaderLanes>]) -> io::Result<(u32, Option<Vec<Range<u32>>>)> {
    let (end, count) = (segment.end(), segment.count());
    let is_live = |ordinal: u32| -> io::Result<bool> {
        if segment.lane(ordinal)? != Some(Lane::Done) {
            return Ok(true);
        }
        for reader in readers.iter().filter(|_| !planted::is(Bug::PunchUnread)) {
            if reader.lane(segment.first_id + u64::from(ordinal))? != Some(Lane::Done) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let mut waiting = 0;
    for ordinal in 0..count {
        waiting += u32::from(is_live(ordinal)?);
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
        if frame.kind.is_item() && is_live(frame.ordinal)? {
            found += 1;
            close(free_from, offset);
            free_from = next;
        }
        offset = next;
    }
    // Also what lies between the last frame and the lanes, which nobody will write to.
    close(free_from, lane::frame_limit(segment.len, count));
    Ok((waiting, (found == waiting).then_some(dead)))
}
