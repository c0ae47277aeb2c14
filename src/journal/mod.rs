//! A queue's journal: a row of segments, appended to at one end, freed wherever everything is done.
//!
//! The contract upward: [`Journal::append`] stores items, in the order of ids, under the tail lock;
//! [`Journal::read`] gives a payload back or says that it is damaged; a segment all of whose items are done is freed by
//! [`Journal::free_spent`]; [`Journal::sync`] makes everything so far durable. What a queue's files mean after a crash is
//! [`recovery`]'s.
//!
//! Names on disk: `<number>.new` from the segment's first frame on; `<number>.seg` once a sync has covered it and its name,
//! and everything before it. So a `.seg` is proof, and a damaged header of one is damage, never an interrupted creation.

pub(crate) mod all;
mod append;
pub(crate) mod commit;
mod durable;
pub(crate) mod files;
pub(crate) mod find;
mod free;
pub(crate) mod front;
pub(crate) mod holes;
pub(crate) mod lane;
pub(crate) mod letters;
pub(crate) mod moves;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod readers;
pub(crate) mod recovery;
mod resting;
mod roll;
pub(crate) mod segment;
mod slots;
pub(crate) mod verdict;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use crate::disk::Disk;
pub(crate) use crate::disk::is_no_space;
pub(crate) use crate::format::frame::NAMED_READERS;
use crate::format::frame::{self, Frame};
use crate::format::header::{Extent, Previous, SegmentHeader};
use crate::format::meta::QueueMeta;
use crate::ids::Place;
use crate::planted::{self, Bug};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
pub(crate) use append::{AppendError, Moved, NewItem};
use commit::Commit;
use durable::CHECKPOINT_BYTES;
use files::Keeper;
use front::{Front, Intake};
use holes::Holes;
use pool::{Pool, Spare};
use readers::ReaderLanes;
pub(crate) use resting::Unrest;
use segment::{FRAMES_AT, LEN_MIN, Segment};
pub(crate) use slots::{MetaFile, SlotFile, write_new_file};

/// What a journal is told at birth.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) disk: Disk,
    pub(crate) pool: Arc<Pool>,
    /// `None`: memory only.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) set_id: u128,
    pub(crate) boot_id: u128,
    pub(crate) queue: String,
    pub(crate) read_only: bool,
}

#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) context: Context,
    pub(crate) front: Arc<Front>,
    /// Lock 2. Everything that a put changes. No I/O under it but stores into the map and, at a roll, a rename.
    pub(crate) tail: Mutex<Tail>,
    pub(crate) commit: Commit,
    /// Who closes its segments when the set holds too many open.
    keeper: OnceLock<Weak<dyn Keeper>>,
    /// Lock 5. All segments by number.
    table: Mutex<BTreeMap<u64, Entry>>,
    /// Lock 6. The queue's header file.
    meta: Mutex<MetaFile>,
    /// The named readers, which a segment waits for before it is freed.
    readers: RwLock<Vec<Arc<ReaderLanes>>>,
    /// Held while files of spent segments are given away; `true` once the queue was deleted. Comes before the table's.
    giving: Mutex<bool>,
    /// Shared by those who give space back, whole segments or pages; taken alone by a reader that begins with what is there.
    /// Comes before the tail lock.
    giving_back: RwLock<()>,
    /// Frame bytes appended, written under the tail lock, and made durable: for the gauge.
    appended_bytes: AtomicU64,
    durable_bytes: AtomicU64,
}

/// The end of a journal where items are appended.
#[derive(Debug)]
pub(crate) struct Tail {
    segment: Option<Arc<Segment>>,
    /// The number of the segment, if it was closed because nobody used it; then there is none above.
    resting: Option<u64>,
    /// Where the next frame goes, and the ordinal of its item.
    end: u32,
    ordinal: u32,
    /// Frames must end here; falls as lanes grow.
    limit: u32,
    /// What the segment's reach says.
    reach: u32,
    payload_bytes: u64,
    last_ms: u64,
    intake: Intake,
    pub(crate) next_id: u64,
    next_number: u64,
    /// Length of the next segment.
    next_len: u32,
    len_max: u32,
    /// What a sync covers ends at a multiple of so many bytes; 0: anywhere.
    pad_to: u32,
    /// The segment before the next one.
    previous: Option<Previous>,
    /// Sealed segments that no sync has covered, lowest first.
    unsynced: Vec<u64>,
    spare: Option<Spare>,
    spare_asked: bool,
    /// The newest frame says that everything before it is durable.
    proven: bool,
    /// No put may follow.
    pub(crate) closed: bool,
    /// The header says that ids are being given out.
    marked: bool,
    /// A segment was sealed whose items were all done by then; cleared by who has it freed.
    pub(crate) spent: bool,
    /// A segment was opened beyond what the set may hold open; cleared by who has others closed.
    pub(crate) crowded: bool,
}

/// A segment as the journal knows it, open or not.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) header: SegmentHeader,
    pub(crate) open: Option<Arc<Segment>>,
    /// Has its final name.
    pub(crate) named: bool,
    /// Extent, done items, how far it is durable and newest put time, valid while it is not open.
    pub(crate) extent: Extent,
    pub(crate) synced_to: u32,
    pub(crate) done: u32,
    pub(crate) last_ms: u64,
    pub(crate) sealed: bool,
    /// Known durable up to here when found; what is above may never have reached the device.
    pub(crate) unproven_from: Option<u32>,
    /// Cleared: its items count no more.
    pub(crate) cleared: bool,
    /// Ordinals that the open told as lost; they count as done.
    pub(crate) lost: Vec<std::ops::Range<u32>>,
    pub(crate) marks_unsynced: bool,
    /// Its marks are an earlier process's, who may not have synced them.
    pub(crate) marks_unproven: bool,
    pub(crate) holes: Holes,
    /// Pages of the file may not be allocated: holes were punched, or an earlier process may have.
    pub(crate) may_have_holes: bool,
    /// Holes were punched before a sync has reached it: who scans it after a power cut takes them for its end, so the sync is
    /// to leave a seal that spares the scan.
    pub(crate) thinned: bool,
}

impl Entry {
    /// All its items are done, or cleared.
    fn is_spent(&self) -> bool {
        self.cleared
            || match &self.open {
                Some(segment) => segment.is_spent() || (planted::is(Bug::FreeBeforeDone) && segment.is_sealed()),
                None => self.sealed && self.done >= self.extent.count,
            }
    }

    fn count(&self) -> u32 {
        self.open.as_ref().map_or(self.extent.count, |segment| segment.count())
    }

    /// No item of it has this id or a higher one.
    fn ids_end(&self) -> u64 {
        self.header.first_id.saturating_add(self.count().into())
    }

    /// Somebody beside the table uses it.
    fn is_held(&self) -> bool {
        self.open.as_ref().is_some_and(|segment| Arc::strong_count(segment) > 1)
    }

    /// Bytes of the file, without what was given back.
    fn disk_bytes(&self) -> u64 {
        u64::from(self.header.segment_bytes - self.holes.bytes.min(self.header.segment_bytes))
    }

    /// The device has its marks, and its frames up to `end`. What an earlier process wrote and never proved is no worse for
    /// being closed: the next sync stores it again.
    fn is_durable(&self, segment: &Segment, end: u32) -> bool {
        segment.is_durable(if self.unproven_from.is_some() { 0 } else { end })
    }

    /// Closes a sealed segment that nobody uses and that is not to be freed; if others than the queue's own reader have a say
    /// in that, it may have long to wait.
    fn rest(&mut self, has_readers: bool) {
        let Some(segment) = &self.open else { return };
        if self.sealed && Arc::strong_count(segment) == 1 && (has_readers || !segment.is_spent()) {
            self.done = segment.done();
            self.synced_to = segment.synced_to.load(Ordering::Acquire);
            self.marks_unsynced = segment.marks_unsynced.load(Ordering::Acquire);
            self.open = None;
        }
    }
}

/// What recovery hands over.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) previous: Option<Previous>,
    pub(crate) next_id: u64,
    pub(crate) next_number: u64,
    pub(crate) next_len: u32,
    pub(crate) unsynced: Vec<u64>,
    pub(crate) meta: MetaFile,
}

pub(crate) fn file_name(number: u64, named: bool) -> String {
    format!("{number:016x}.{}", if named { "seg" } else { "new" })
}

impl Journal {
    pub(crate) fn new(context: Context, recovered: Recovered, segment_bytes: u32) -> Journal {
        let last_id = recovered.next_id - 1;
        let resumed = Self::resumed_by_mistake(&recovered);
        // Appended, and not durable as long as recovered segments are unproven: the first sync takes them along.
        let durable = if recovered.unsynced.is_empty() { last_id } else { 0 };
        let journal = Journal {
            context,
            front: Arc::new(Front::new(last_id)),
            tail: Mutex::new(Tail {
                segment: None,
                resting: None,
                end: 0,
                ordinal: 0,
                limit: 0,
                reach: 0,
                payload_bytes: 0,
                last_ms: 0,
                intake: Intake::default(),
                next_id: recovered.next_id,
                next_number: recovered.next_number,
                next_len: recovered.next_len.clamp(LEN_MIN, segment_bytes.max(LEN_MIN)),
                len_max: segment_bytes,
                pad_to: 0,
                previous: recovered.previous,
                unsynced: recovered.unsynced,
                spare: None,
                spare_asked: false,
                proven: true,
                closed: false,
                marked: false,
                spent: false,
                crowded: false,
            }),
            keeper: OnceLock::new(),
            commit: Commit::new(durable),
            table: Mutex::new(recovered.entries),
            meta: Mutex::new(recovered.meta),
            readers: RwLock::new(Vec::new()),
            giving: Mutex::new(false),
            giving_back: RwLock::new(()),
            appended_bytes: AtomicU64::new(0),
            durable_bytes: AtomicU64::new(0),
        };
        if let Some((number, extent)) = resumed {
            journal.append_to_recovered(number, extent);
        }
        journal
    }

    /// Planted: see [`Bug::AppendToRecoveredSegment`].
    fn resumed_by_mistake(recovered: &Recovered) -> Option<(u64, Extent)> {
        if !planted::is(Bug::AppendToRecoveredSegment) {
            return None;
        }
        recovered.entries.values().next_back().map(|entry| (entry.header.number, entry.extent))
    }

    fn append_to_recovered(&self, number: u64, extent: Extent) {
        if let Some(entry) = self.table.lock().get_mut(&number) {
            entry.sealed = false;
        }
        if let Ok(Some(segment)) = self.segment(number) {
            let mut tail = self.tail.lock();
            tail.limit = lane::frame_limit(segment.len, extent.count + 1);
            (tail.end, tail.ordinal, tail.payload_bytes) = (extent.end, extent.count, extent.payload_bytes);
            tail.segment = Some(segment);
        }
    }

    /// The last id given out.
    pub(crate) fn appended(&self) -> u64 {
        self.front.appended()
    }

    pub(crate) fn set_segment_bytes(&self, tail: &mut Tail, segment_bytes: u32) {
        tail.len_max = segment_bytes;
        tail.next_len = tail.next_len.min(segment_bytes);
    }

    pub(crate) fn set_pad_to(&self, tail: &mut Tail, pad_to: Option<u32>) {
        tail.pad_to = pad_to.unwrap_or(0);
    }

    /// The queue's number, which its frames are known by in other journals.
    pub(crate) fn queue_id(&self) -> u64 {
        self.meta.lock().meta.queue_id
    }

    /// Where a segment's file is now. `None`: it is gone, or there are no files.
    pub(crate) fn path_of(&self, number: u64) -> Option<PathBuf> {
        let named = self.table.lock().get(&number)?.named;
        Some(self.context.dir.as_ref()?.join(file_name(number, named)))
    }

    /// The number of the newest segment.
    pub(crate) fn newest(&self) -> u64 {
        self.tail.lock().newest()
    }

    /// Items up to this id were cleared.
    pub(crate) fn cleared(&self) -> u64 {
        self.meta.lock().meta.clear_id
    }

    /// Shows the frame of every item from the id `first` on that is still there, done ones too: segment, id, offset, frame.
    /// What is damaged is passed over.
    pub(crate) fn walk(
        &self,
        first: u64,
        mut show: impl FnMut(&Segment, u64, u32, &Frame) -> io::Result<()>,
    ) -> io::Result<()> {
        let numbers: Vec<u64> = {
            let table = self.table.lock();
            table.iter().filter(|(_, entry)| entry.ids_end() > first).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            self.walk_segment(number, |segment, id, offset, frame| match id >= first {
                true => show(segment, id, offset, frame),
                false => Ok(()),
            })?;
        }
        Ok(())
    }

    /// The same for one segment.
    fn walk_segment(
        &self,
        number: u64,
        mut show: impl FnMut(&Segment, u64, u32, &Frame) -> io::Result<()>,
    ) -> io::Result<()> {
        let walked = self.with_segment(number, |segment| {
            let (mut offset, end) = (FRAMES_AT, segment.end());
            while offset < end {
                let Some(frame) = segment.frame_at(offset, end)? else {
                    offset = segment.data_from(offset + frame::ALIGN, end)?;
                    continue;
                };
                if frame.kind.is_item() {
                    let id = frame.id.unwrap_or(segment.first_id + u64::from(frame.ordinal));
                    show(segment, id, offset, &frame)?;
                }
                offset += frame.total_len();
            }
            Ok(())
        });
        walked.map(|_| ())
    }

    /// Reads and checks a payload. `Ok(None)`: damaged.
    pub(crate) fn read(&self, segment: &Segment, place: &Place) -> io::Result<Option<Vec<u8>>> {
        segment.payload(place.offset, place.head_len, place.payload_len, place.payload_crc)
    }

    /// As [`Journal::read`], into a vector where the payload is to stay. `false`: damaged.
    #[inline]
    pub(crate) fn read_into(&self, segment: &Segment, place: &Place, payload: &mut Vec<u8>) -> io::Result<bool> {
        segment.payload_into(place.offset, place.head_len, place.payload_len, place.payload_crc, payload)
    }

    /// Stores other content in the queue's header.
    pub(crate) fn update_meta(&self, change: impl FnOnce(&mut QueueMeta)) -> io::Result<()> {
        self.meta.lock().update(change)
    }

    /// Closes all segments of a queue that was shut, and that nobody holds.
    pub(crate) fn close_files(&self) {
        self.tail.lock().segment = None;
        for entry in self.table.lock().values_mut() {
            entry.open = None;
        }
    }

    /// The queue's directory has left, and another queue may have its name soon: from here on no name there is touched, by
    /// upkeep or by a sync that is under way. Returns the bytes of its segments.
    pub(crate) fn leave(&self) -> u64 {
        self.close_meta();
        let mut left = self.giving.lock();
        *left = true;
        let mut table = self.table.lock();
        let bytes = table.values().map(Entry::disk_bytes).sum();
        table.clear();
        drop(table);
        self.close_readers();
        bytes
    }

    pub(crate) fn has_left(&self) -> bool {
        *self.giving.lock()
    }

    /// The last word on the header: who looked at the set before it was closed, and comes only now, stores nothing any more.
    pub(crate) fn close_meta(&self) {
        self.close_readers();
        self.meta.lock().closed = true;
    }

    /// Gives what was armed back to the pool: the queue is going away.
    pub(crate) fn disarm(&self) {
        if let Some(spare) = self.tail.lock().spare.take() {
            self.context.pool.put_back(spare);
        }
    }

    /// Segments, their bytes, and bytes not known to be durable.
    pub(crate) fn gauges(&self) -> (u64, u64, u64) {
        let table = self.table.lock();
        let bytes = table.values().map(Entry::disk_bytes).sum();
        let unsynced =
            self.appended_bytes.load(Ordering::Relaxed).saturating_sub(self.durable_bytes.load(Ordering::Relaxed));
        (table.len() as u64, bytes, if self.context.dir.is_some() { unsynced } else { 0 })
    }
}

impl Tail {
    /// The number of the newest segment.
    pub(crate) fn newest(&self) -> u64 {
        self.next_number - 1
    }

    /// The device has the segment, as far as anything depends on it: the checkpoint at the end of a proven tail may be lost.
    fn is_durable(&self, entry: &Entry, segment: &Segment) -> bool {
        let is_tail = self.segment.as_ref().is_some_and(|own| own.number == segment.number);
        let checkpoint = if is_tail && self.proven { CHECKPOINT_BYTES } else { 0 };
        entry.is_durable(segment, segment.end().saturating_sub(checkpoint))
    }

    fn extent(&self) -> Extent {
        Extent { end: self.end, count: self.ordinal, payload_bytes: self.payload_bytes }
    }
}

/// Above every id that can have been given out when `next_id` is all that is known to be durable, with room to spare.
pub(crate) fn ids_after_loss(next_id: u64) -> u64 {
    if planted::is(Bug::IdsAfterLoss) {
        return next_id;
    }
    (next_id | u64::from(u32::MAX)).saturating_add(1)
}
