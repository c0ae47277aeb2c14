//! How the tail comes to the next segment: armed ahead, taken at the roll, the one before it sealed.

use std::io;
use std::sync::Arc;

use super::append::refused;
use super::files::Way;
use super::holes::Holes;
use super::pool::{NoSpare, Spare};
use super::segment::{FRAMES_AT, LEN_MAX, LEN_MIN, Segment};
use super::{AppendError, Entry, Journal, Tail, file_name, lane};
use crate::disk::Map;
use crate::format::frame::{self, Salt};
use crate::format::header::{Extent, Previous, SegmentHeader};
use crate::planted::{self, Bug};
use crate::sync::Ordering;

impl Journal {
    /// Takes the next segment into use, and seals the present one.
    #[cold]
    pub(super) fn roll(&self, tail: &mut Tail, items: u64, bytes: u64, put_ms: u64) -> Result<(), AppendError> {
        // Header page, frames, the lanes of all items, and up to a page lost between the two.
        let needed = (items / u64::from(lane::BLOCK_LANES) + 2)
            .checked_mul(lane::BLOCK as u64)
            .and_then(|lanes| lanes.checked_add(bytes)?.checked_add(2 * u64::from(FRAMES_AT)))
            .filter(|needed| *needed <= u64::from(LEN_MAX) && items <= u64::from(frame::ORDINAL_MAX))
            .ok_or(AppendError::TooLarge { max: u64::from(LEN_MAX) })?;
        let least = (needed as u32).next_power_of_two().max(LEN_MIN);
        let len = tail.next_len.max(least);

        self.discard_empty(tail);
        let number = tail.next_number;
        let extent = tail.extent();
        let previous = match &tail.segment {
            Some(segment) => Some(Previous {
                number: segment.number,
                salt: segment.salt,
                extent: if planted::is(Bug::RollWithoutExtent) {
                    Extent { end: FRAMES_AT, ..Extent::default() }
                } else {
                    extent
                },
                synced_to: segment.synced_to.load(Ordering::Acquire),
            }),
            None => tail.previous,
        };
        let refused = |error| refused(number, error);
        if !tail.marked {
            // Once per process, and before an id is told that a power cut could undo.
            let (next_id, boot_id) = (tail.next_id, self.context.boot_id);
            let marked = self.meta.lock().update(|meta| {
                if meta.clean || meta.boot_id != boot_id {
                    // After a power cut the present ids are above all earlier ones, and this makes that durable.
                    meta.next_id = meta.next_id.max(next_id);
                    meta.boot_id = boot_id;
                }
                meta.clean = false;
            });
            marked.map_err(refused)?;
            tail.marked = true;
        }
        let salt = Salt(self.context.disk.random_u64().map_err(refused)?);
        let spare = match (&self.context.dir, tail.spare.take()) {
            (_, Some(spare)) if spare.len == len => spare,
            (Some(_), other) => {
                if let Some(other) = other {
                    self.context.pool.put_back(other);
                }
                tail.crowded |= !self.context.pool.files.make_room();
                match self.take_spare(len, least) {
                    Ok(spare) => spare,
                    Err(no) => {
                        self.give_up_drained(tail);
                        return Err(match no {
                            NoSpare::Cap => AppendError::DiskCap,
                            NoSpare::Io(error) => refused(error),
                        });
                    }
                }
            }
            (None, _) => {
                let map = Map::anonymous(len as usize).map_err(refused)?;
                Spare { path: None, file: None, map, len, counted: None }
            }
        };
        let len = spare.len;
        let header = SegmentHeader {
            set_id: self.context.set_id,
            queue_id: self.meta.lock().meta.queue_id,
            number,
            segment_bytes: len,
            first_id: tail.next_id,
            base_ms: put_ms,
            salt,
            boot_id: self.context.boot_id,
            previous,
        };
        tail.spare_asked = false;
        // From here on the spare has left the pool: whatever fails, it is given back or removed.
        let from = spare.path.clone();
        let begun = Segment::begin(&header, spare.file, spare.map).and_then(|segment| {
            let segment = segment.counted(spare.counted);
            if let (Some(dir), Some(from)) = (&self.context.dir, &from) {
                self.context.disk.rename(from, &dir.join(file_name(number, false)))?;
            }
            Ok(Arc::new(segment))
        });
        let segment = match begun {
            Ok(segment) => segment,
            Err(error) => {
                if let Some(from) = from {
                    let _ = self.context.disk.unlink(&from);
                }
                self.context.pool.forget(len);
                return Err(refused(error));
            }
        };
        let _ = self.seal_tail(tail);
        self.table.lock().insert(
            number,
            Entry {
                header,
                open: Some(Arc::clone(&segment)),
                named: false,
                extent: Extent::default(),
                synced_to: 0,
                done: 0,
                last_ms: put_ms,
                sealed: false,
                unproven_from: None,
                cleared: false,
                lost: Vec::new(),
                marks_unsynced: false,
                marks_unproven: false,
                holes: Holes::default(),
                may_have_holes: false,
                thinned: false,
            },
        );
        self.enter(&segment);
        tail.segment = Some(segment);
        tail.end = FRAMES_AT;
        tail.ordinal = 0;
        tail.limit = lane::frame_limit(len, 1);
        tail.reach = 0;
        tail.payload_bytes = 0;
        tail.last_ms = put_ms;
        tail.next_number = number + 1;
        tail.next_len = len.saturating_mul(2).min(tail.len_max).max(LEN_MIN);
        tail.previous = previous;
        Ok(())
    }

    /// A file of `len` bytes or, where there is no room for so many, of as many as there is for, but not under `least`.
    pub(super) fn take_spare(&self, mut len: u32, least: u32) -> Result<Spare, NoSpare> {
        let files = &self.context.pool.files;
        let mut is_first = true;
        loop {
            match self.context.pool.take(len) {
                Err(NoSpare::Io(error)) if is_first && crate::disk::is_too_many_files(&error) => {
                    is_first = false;
                    files.close_half(Way::AsIs);
                }
                Err(NoSpare::Cap) if len > least => len /= 2,
                Err(NoSpare::Io(error)) if len > least && crate::disk::is_no_space(&error) => len /= 2,
                taken => return taken,
            }
        }
    }

    /// Where there is no room for a next segment, a tail that is used up and whose items are all done is the room: sealed, it
    /// can be freed. Nobody would seal it otherwise, and an empty queue would refuse puts for ever.
    pub(super) fn give_up_drained(&self, tail: &mut Tail) {
        let is_drained = |segment: &Arc<Segment>| tail.ordinal > 0 && segment.done() >= tail.ordinal;
        if tail.segment.as_ref().is_some_and(is_drained) {
            // If the seal cannot be stored, the header still says that the segment is gone.
            let _ = self.seal_tail(tail);
        }
    }

    /// Takes a tail that never held an item out of the journal: nobody would sync it, and what comes behind it would stand on
    /// a segment that a power cut can take.
    pub(super) fn discard_empty(&self, tail: &mut Tail) {
        let Some(dir) = &self.context.dir else { return };
        let Some(segment) = tail.segment.take_if(|_| tail.ordinal == 0) else { return };
        let number = segment.number;
        let mut has_room = false;
        let freed = self.meta.lock().update(|meta| has_room = meta.add_freed(number));
        let entry = if freed.is_ok() && has_room { self.table.lock().remove(&number) } else { None };
        match entry {
            Some(entry) => {
                // If it stays, the next open removes it.
                let _ = self.context.disk.unlink(&dir.join(file_name(number, entry.named)));
                self.context.pool.forget(segment.len);
                segment.seal();
                (tail.end, tail.limit) = (0, 0);
            }
            None => tail.segment = Some(segment),
        }
    }

    /// Closes the tail segment to puts; the next append begins a new one.
    ///
    /// An error says that the segment itself does not tell where it ends: its successor does.
    pub(super) fn seal_tail(&self, tail: &mut Tail) -> io::Result<()> {
        let Some(segment) = tail.segment.take() else { return Ok(()) };
        let extent = tail.extent();
        let written = segment.write_seal(extent, tail.last_ms, false);
        tail.previous = Some(Previous {
            number: segment.number,
            salt: segment.salt,
            extent,
            synced_to: segment.synced_to.load(Ordering::Acquire),
        });
        if segment.synced_to.load(Ordering::Acquire) < extent.end && self.context.dir.is_some() {
            tail.unsynced.push(segment.number);
        }
        if let Some(entry) = self.table.lock().get_mut(&segment.number) {
            entry.extent = extent;
            entry.last_ms = tail.last_ms;
            entry.sealed = true;
        }
        tail.spent |= segment.seal();
        tail.end = 0;
        tail.ordinal = 0;
        tail.limit = 0;
        tail.payload_bytes = 0;
        written
    }

    /// Whether it is time to have the next segment armed; `true` once a segment.
    #[inline]
    pub(crate) fn wants_spare(&self, tail: &mut Tail) -> bool {
        let ask = !tail.spare_asked
            && tail.end > tail.limit / 2
            && tail.next_len >= 4 * LEN_MIN
            && self.context.dir.is_some();
        tail.spare_asked |= ask;
        ask
    }

    /// Prepares the next segment: allocated, and its pages faulted in, so that the roll costs a rename.
    pub(crate) fn arm(&self) {
        let len = {
            let tail = self.tail.lock();
            if tail.spare.is_some() || tail.closed {
                return;
            }
            tail.next_len
        };
        if self.context.pool.files.is_tight() {
            self.context.pool.files.relieve();
        }
        // A failure here is no news: the roll meets it again and reports it.
        let Ok(spare) = self.context.pool.take(len) else {
            return;
        };
        spare.map.populate();
        let mut tail = self.tail.lock();
        match tail.spare {
            // Not for a queue that was deleted meanwhile: nobody would take it from there.
            None if tail.next_len == len && !tail.closed => tail.spare = Some(spare),
            _ => self.context.pool.put_back(spare),
        }
    }
}
