//! One file of frames: header page, frames growing up, lanes growing down.
//!
//! Upward it promises: a frame is visible to readers only when it is whole; marks are one byte, by any thread, without a
//! lock; `done` reaches `count` exactly once per item.

use std::io;
use std::sync::Arc;

use crate::disk::{File, Map};
use crate::format::frame::{self, Frame, Salt};
use crate::format::header::{self, CLEAN_SEAL_AT, COPY_AT, Extent, PAGE, SEAL_AT, Seal, SegmentHeader};
use crate::ids::{NEVER_MS, Place};
use crate::journal::files::Counted;
use crate::journal::lane::{self, Lane};
use crate::journal::progress::Progress;
use crate::planted::{self, Bug};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, fence};

pub(crate) const LEN_MIN: u32 = 64 << 10;
pub(crate) const LEN_MAX: u32 = 1 << 30;
pub(crate) const FRAMES_AT: u32 = PAGE as u32;

/// A batch of so many bytes is written in one call. Of less in tests, so that everything that is tried there tries it too.
const AT_ONCE: u64 = if cfg!(test) { 256 } else { 64 << 10 };

/// A line of the processor's cache, the frames and payloads from which on it is told what comes, and how much of it.
const LINE: usize = 64;
const LARGE: u32 = 192;
const EXPECTED: u32 = 1024;

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) len: u32,
    pub(crate) salt: Salt,
    pub(crate) first_id: u64,
    pub(crate) base_ms: u64,
    /// `None`: memory only.
    file: Option<Arc<File>>,
    map: Map,
    progress: Progress,
    /// Up to where the device is known to have it.
    pub(crate) synced_to: AtomicU32,
    /// Marks were stored since the last sync.
    pub(crate) marks_unsynced: AtomicBool,
    /// The clock tick at which the file was last seen whole.
    checked_ms: AtomicU64,
    /// Where some of the frames begin, by ordinal: for who looks for one.
    pub(super) marks: Mutex<Vec<(u32, u32)>>,
    /// One of the set's open files; `None`: memory only, or not the set's to close.
    counted: Option<Counted>,
}

impl Segment {
    /// Writes both header copies: the first use of the file under this salt.
    pub(crate) fn begin(header: &SegmentHeader, file: Option<Arc<File>>, map: Map) -> io::Result<Segment> {
        // A seal of the file's earlier use does not pass under the new salt, so only the copies need writing.
        let bytes = header::encode(header);
        for at in COPY_AT {
            map.copy_in(at, &bytes)?;
        }
        Ok(Self::resume(header, file, map, FRAMES_AT, 0, 0))
    }

    pub(crate) fn resume(
        header: &SegmentHeader,
        file: Option<Arc<File>>,
        map: Map,
        end: u32,
        count: u32,
        done: u32,
    ) -> Segment {
        Segment {
            number: header.number,
            len: header.segment_bytes,
            salt: header.salt,
            first_id: header.first_id,
            base_ms: header.base_ms,
            file,
            map,
            progress: Progress::new(end, count, done),
            synced_to: AtomicU32::new(0),
            marks_unsynced: AtomicBool::new(false),
            checked_ms: AtomicU64::new(0),
            marks: Mutex::new(Vec::new()),
            counted: None,
        }
    }

    /// Counts among the set's open files from here on.
    pub(crate) fn counted(self, counted: Option<Counted>) -> Segment {
        Segment { counted, ..self }
    }

    /// Tells this opening of the file from others.
    pub(crate) fn opening(&self) -> Option<u64> {
        self.counted.as_ref().map(Counted::opening)
    }

    /// A number that changes with its frames and its done items.
    pub(crate) fn usage(&self) -> u64 {
        (u64::from(self.end()) << 32) + u64::from(self.done())
    }

    /// The device has its frames up to `end`, and its marks.
    pub(crate) fn is_durable(&self, end: u32) -> bool {
        self.synced_to.load(Ordering::Acquire) >= end && !self.marks_unsynced.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self) -> u32 {
        self.progress.end()
    }

    pub(crate) fn count(&self) -> u32 {
        self.progress.count()
    }

    pub(crate) fn done(&self) -> u32 {
        self.progress.done()
    }

    /// Payload first, header last, so that a half-written frame never has a valid header before its payload is there.
    #[inline(always)]
    pub(crate) fn write_frame(&self, offset: u32, head: &[u8], payload: &[u8]) -> io::Result<()> {
        self.map.copy_in(offset as usize + head.len(), payload)?;
        fence(Ordering::Release);
        self.map.copy_in(offset as usize, head)
    }

    /// Whether frames of so many bytes are better written in one call than stored through the map: after a sync each page
    /// faults at its next store, armed or not.
    pub(crate) fn writes_at_once(&self, bytes: u64) -> bool {
        bytes >= AT_ONCE && self.file.is_some() && self.synced_to.load(Ordering::Relaxed) != 0
    }

    /// Writes the frames of a batch in the order in which they lie. What a dying process leaves of it is a first part: the one
    /// frame in it that may be torn is the last, as if it were the last one stored.
    pub(crate) fn write_run(&self, offset: u32, frames: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(file) if offset as usize + frames.len() <= self.len as usize => file.write_at(offset.into(), frames),
            _ => self.map.copy_in(offset as usize, frames),
        }
    }

    /// Zeroes the lanes of a block and then writes its tag.
    pub(crate) fn begin_lane_block(&self, block: u32) -> io::Result<()> {
        let at = self.lane_bounds(lane::block_at(self.len, block))?;
        self.map.copy_in(at as usize + lane::TAG, &[0; lane::BLOCK - lane::TAG])?;
        fence(Ordering::Release);
        self.map.copy_in(at as usize, &lane::tag(self.salt, block).to_le_bytes())
    }

    #[inline]
    fn lane_bounds<T>(&self, at: Option<T>) -> io::Result<T> {
        at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "lane outside of the segment"))
    }

    /// Makes frames up to `end` visible: the last step of an append.
    #[inline]
    pub(crate) fn publish(&self, end: u32, count: u32) {
        self.progress.publish(end, count);
    }

    /// No frame will follow. Returns whether all items are done already.
    pub(crate) fn seal(&self) -> bool {
        self.progress.seal()
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.progress.is_sealed()
    }

    /// Sealed, and every item done.
    pub(crate) fn is_spent(&self) -> bool {
        self.progress.is_spent()
    }

    pub(crate) fn write_seal(&self, extent: Extent, last_ms: u64, durable: bool) -> io::Result<()> {
        let at = if durable { CLEAN_SEAL_AT } else { SEAL_AT };
        self.map.copy_in(at, &header::encode_seal(&Seal { extent, last_ms, durable, thinned: false }, self.salt))
    }

    /// Takes back a seal that was to be durable. After a sync that failed it may be in the page cache for good and on the device
    /// never: the next recovery shall not believe it.
    pub(crate) fn revoke_seal(&self) -> io::Result<()> {
        self.map.copy_in(CLEAN_SEAL_AT, &[0; header::SEAL_LEN])
    }

    /// Says that it is about to be thinned out before anything in it is durable.
    pub(crate) fn write_thin_seal(&self, extent: Extent, last_ms: u64) -> io::Result<()> {
        let seal = Seal { extent, last_ms, durable: false, thinned: true };
        self.map.copy_in(SEAL_AT, &header::encode_seal(&seal, self.salt))
    }

    /// Says that frames will reach up to `reach`, before any does.
    pub(crate) fn write_reach(&self, reach: u32) -> io::Result<()> {
        self.map.copy_in(header::REACH_AT, &header::encode_reach(reach, self.salt))?;
        fence(Ordering::Release);
        Ok(())
    }

    #[inline]
    pub(crate) fn lane(&self, ordinal: u32) -> io::Result<Option<Lane>> {
        let at = self.lane_bounds(lane::lane_at(self.len, ordinal))?;
        Ok(Lane::from_byte(self.map.load_byte(at)?))
    }

    #[inline]
    fn store_lane(&self, ordinal: u32, lane: Lane) -> io::Result<()> {
        let at = self.lane_bounds(lane::lane_at(self.len, ordinal))?;
        self.map.store_byte(at, lane.to_byte())?;
        if !self.marks_unsynced.load(Ordering::Relaxed) {
            self.marks_unsynced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Marks an item waiting or in flight.
    #[inline]
    pub(crate) fn mark(&self, ordinal: u32, lane: Lane) -> io::Result<()> {
        debug_assert!(lane != Lane::Done, "done is counted: mark_done");
        self.store_lane(ordinal, lane)
    }

    /// Marks an item done; `true` if that was the last one of a sealed segment. Called once per item.
    #[inline]
    pub(crate) fn mark_done(&self, ordinal: u32) -> io::Result<bool> {
        self.store_lane(ordinal, Lane::Done)?;
        Ok(self.progress.done_one())
    }

    /// Counts items of the tail that were marked done as they were written.
    pub(crate) fn count_done(&self, count: u32) {
        for _ in 0..count {
            self.progress.done_one();
        }
    }

    /// Marks an item done that was counted as done already, or is to be.
    pub(crate) fn mark_lost(&self, ordinal: u32) -> io::Result<()> {
        self.store_lane(ordinal, Lane::Done)
    }

    /// As [`Segment::frame_at`], and in place where the frame is a header and a payload, as most are.
    #[inline(always)]
    pub(crate) fn next_frame(&self, offset: u32, limit: u32, found: &mut Option<Frame>) -> io::Result<()> {
        if u64::from(offset) + frame::HEADER_BYTES as u64 <= u64::from(self.len) {
            let mut head = [0; frame::HEADER_BYTES];
            self.map.copy_array(offset as usize, &mut head)?;
            *found = frame::decode_plain(&head, self.salt, offset, limit);
            if found.is_some() {
                return Ok(());
            }
        }
        *found = self.frame_at(offset, limit)?;
        Ok(())
    }

    /// Reads the frame at `offset`, which must end before `limit`. `Ok(None)`: the bytes there are no frame.
    #[inline(never)]
    pub(crate) fn frame_at(&self, offset: u32, limit: u32) -> io::Result<Option<Frame>> {
        let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
        let available = (self.len.saturating_sub(offset) as usize).min(head.len());
        let head = &mut head[..available];
        self.map.copy_out(offset as usize, head)?;
        Ok(frame::decode(head, self.salt, offset, limit))
    }

    /// Behind a frame that is large enough for the next header to lie in no cache line that was just read: has the headers
    /// fetched that are there if the next items are as long as this one.
    #[inline]
    pub(crate) fn expect_like(&self, frame: &Frame, next: u32) {
        let len = frame.total_len();
        if len >= LARGE {
            self.map.prefetch(next as usize + len as usize);
            self.map.prefetch(next as usize + 2 * len as usize);
        }
    }

    /// Has the first part of a payload fetched that is read soon; what comes behind it the processor foresees.
    #[inline]
    pub(crate) fn expect_payload(&self, place: &Place) {
        if place.payload_len >= LARGE {
            let from = place.offset as usize + place.head_len as usize;
            for at in (0..place.payload_len.min(EXPECTED) as usize).step_by(LINE) {
                self.map.prefetch(from + at);
            }
        }
    }

    /// Where the item of the frame at `offset` is.
    #[inline(always)]
    pub(crate) fn place(&self, offset: u32, frame: &Frame) -> Place {
        Place {
            id: frame.id.unwrap_or(self.first_id + u64::from(frame.ordinal)),
            segment: self.number,
            offset,
            ordinal: frame.ordinal,
            payload_len: frame.payload_len,
            head_len: frame.head_len(),
            payload_crc: frame.payload_crc,
            user_flags: frame.user_flags,
            put_ms: self.base_ms + u64::from(frame.time_delta),
            expiry_ms: frame.expiry_ms.unwrap_or(NEVER_MS),
        }
    }

    /// Copies a payload out and checks the copy. `Ok(None)`: it is not what was put.
    pub(crate) fn payload(&self, offset: u32, head_len: u32, len: u32, crc: u32) -> io::Result<Option<Vec<u8>>> {
        let mut payload = Vec::new();
        Ok(self.payload_into(offset, head_len, len, crc, &mut payload)?.then_some(payload))
    }

    /// As [`Segment::payload`], into a vector where the payload is to stay; `false`: it is not what was put.
    #[inline]
    pub(crate) fn payload_into(
        &self,
        offset: u32,
        head_len: u32,
        len: u32,
        crc: u32,
        payload: &mut Vec<u8>,
    ) -> io::Result<bool> {
        self.map.copy_into(offset as usize + head_len as usize, len as usize, payload)?;
        Ok(frame::payload_valid(self.salt, crc, payload))
    }

    /// Whether [`Segment::check_whole`] would have nothing to look at.
    #[inline]
    pub(crate) fn is_checked(&self, tick_ms: u64) -> bool {
        self.checked_ms.load(Ordering::Relaxed) == tick_ms
    }

    /// An error if the file is no longer as long as it was, looked at once per tick of the coarse clock: a mapped page
    /// behind the end of a truncated file would be a signal, not an error.
    #[inline]
    pub(crate) fn check_whole(&self, tick_ms: u64) -> io::Result<()> {
        if self.is_checked(tick_ms) {
            return Ok(());
        }
        self.check_whole_now(tick_ms)
    }

    #[cold]
    fn check_whole_now(&self, tick_ms: u64) -> io::Result<()> {
        if let Some(file) = &self.file
            && file.len()? < u64::from(self.len)
        {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment file was truncated"));
        }
        self.checked_ms.store(tick_ms, Ordering::Relaxed);
        Ok(())
    }

    /// From `offset` on, where the next bytes that are not zero are, as far as whole pages tell; for who looks for frames
    /// behind a hole.
    pub(crate) fn data_from(&self, offset: u32, end: u32) -> io::Result<u32> {
        let mut at = offset;
        let mut page = [0; PAGE];
        while at < end && at.is_multiple_of(PAGE as u32) {
            let bytes = &mut page[..((end - at) as usize).min(PAGE)];
            self.map.copy_out(at as usize, bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                break;
            }
            at += bytes.len() as u32;
        }
        Ok(at)
    }

    /// Gives whole pages back to the file system; they read as zeros afterwards. `false`: it cannot.
    pub(crate) fn punch(&self, range: std::ops::Range<u32>) -> io::Result<bool> {
        match &self.file {
            Some(file) => file.punch(range.start.into(), (range.end - range.start).into()),
            None => Ok(false),
        }
    }

    /// Makes everything stored so far durable, marks included.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // Before the sync: a mark stored during it counts as unsynced again.
        self.marks_unsynced.store(false, Ordering::SeqCst);
        match &self.file {
            Some(file) => {
                let result = file.sync_data();
                if result.is_err() {
                    self.marks_unsynced.store(true, Ordering::SeqCst);
                }
                result
            }
            None => Ok(()),
        }
    }

    /// Begins anew every lane block that is not of this use of the file: a power cut kept the frames and lost the block.
    pub(crate) fn mend_lane_blocks(&self) -> io::Result<()> {
        for block in 0..self.count().div_ceil(lane::BLOCK_LANES) {
            let at = self.lane_bounds(lane::block_at(self.len, block))?;
            let mut tag = [0; lane::TAG];
            self.map.copy_out(at as usize, &mut tag)?;
            if !block_is_ours(self.salt, block, &tag) {
                self.begin_lane_block(block)?;
            }
        }
        Ok(())
    }

    /// Stores every page in use again as it is, so that the next sync writes it: for a segment that an earlier process
    /// stored, of which nobody knows whether it reached the device.
    pub(crate) fn dirty_again(&self) -> io::Result<()> {
        self.dirty_pages(0, self.end())?;
        self.dirty_marks_again()
    }

    /// The same for its lanes only.
    pub(crate) fn dirty_marks_again(&self) -> io::Result<()> {
        let blocks = self.count().div_ceil(lane::BLOCK_LANES).max(1);
        self.dirty_pages(lane::block_at(self.len, blocks - 1).unwrap_or(0), self.len)
    }

    fn dirty_pages(&self, from: u32, to: u32) -> io::Result<()> {
        let mut at = from as usize & !(PAGE - 1);
        while at < to as usize {
            let byte = self.map.load_byte(at)?;
            self.map.store_byte(at, byte)?;
            at += PAGE;
        }
        Ok(())
    }
}

/// Whether the block's tag is the one of this use, read from a copy of the lane area.
pub(crate) fn block_is_ours(salt: Salt, block: u32, bytes: &[u8]) -> bool {
    planted::is(Bug::LaneWithoutTag) || bytes.get(..lane::TAG) == Some(&lane::tag(salt, block).to_le_bytes()[..])
}
