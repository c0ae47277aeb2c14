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
pub(crate) mod commit;
pub(crate) mod files;
pub(crate) mod find;
pub(crate) mod front;
pub(crate) mod holes;
pub(crate) mod lane;
pub(crate) mod letters;
pub(crate) mod moves;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod readers;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

pub(crate) use crate::disk::is_no_space;
use crate::disk::{Disk, Map};
pub(crate) use crate::format::frame::NAMED_READERS;
use crate::format::frame::{self, Frame, Kind, Salt};
use crate::format::header::{Extent, Previous, SegmentHeader};
use crate::format::meta::{self, QueueMeta};
use crate::ids::{NEVER_MS, Place};
use crate::planted::{self, Bug};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock, fence};
use commit::Commit;
use files::{Keeper, Way};
use front::{Front, Intake};
use holes::Holes;
use pool::{NoSpare, Pool, Spare};
use readers::ReaderLanes;
use segment::{FRAMES_AT, LEN_MAX, LEN_MIN, Segment};

/// A frame without payload and extension.
const CHECKPOINT_BYTES: u32 = (frame::HEADER_BYTES as u32).next_multiple_of(frame::ALIGN);

/// The reach of a segment is raised in steps of this many bytes.
const REACH_STEP: u64 = 1 << 20;

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

/// Why an append did not happen. Nothing was stored.
#[derive(Debug)]
pub(crate) enum AppendError {
    NoSpace(io::Error),
    TooManyFiles(io::Error),
    DiskCap,
    TooLarge {
        max: u64,
    },
    Exhausted,
    Io {
        segment: u64,
        error: io::Error,
    },
    /// A store failed, and the segment could not be ended before it: only the next open knows.
    Undetermined(Arc<io::Error>),
}

/// What must be done before a segment may be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unrest {
    None,
    /// All its items are done.
    Spent,
    /// The device may not have all of it.
    Unsynced,
}

/// A segment to be freed.
struct Spent {
    /// The number of the one before it.
    after: u64,
    number: u64,
    len: u32,
}

/// One item to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewItem<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) expiry_ms: u64,
    /// Not delivered before; 0: at once.
    pub(crate) due_ms: u64,
    pub(crate) user_flags: u32,
    pub(crate) moved: Option<Moved>,
    /// The one reader that it is for, or [`frame::NAMED_READERS`].
    pub(crate) only: Option<u64>,
}

impl NewItem<'_> {
    /// What the journal takes in with it.
    #[inline]
    pub(crate) fn intake(&self) -> Intake {
        let bytes = self.payload.len() as u64;
        Intake {
            payload_bytes: bytes,
            expiring: u64::from(self.expiry_ms != NEVER_MS),
            deferred: u64::from(self.due_ms != 0),
            deferred_bytes: if self.due_ms == 0 { 0 } else { bytes },
        }
    }
}

/// What a frame says of the item that it takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Queue id, item id.
    pub(crate) origin: (u64, u64),
    pub(crate) starts: u32,
    /// The payload begins with a note.
    pub(crate) noted: bool,
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

/// A queue's header in memory, and the file behind it.
#[derive(Debug)]
pub(crate) struct MetaFile {
    pub(crate) meta: QueueMeta,
    /// `None`: memory only.
    pub(crate) slots: Option<SlotFile>,
    /// The set was closed: the file may be somebody else's by now.
    pub(crate) closed: bool,
}

/// A small header file that is there whole or not at all.
pub(crate) fn write_new_file(disk: &Disk, dir: &Path, name: &str, slot: &[u8]) -> io::Result<()> {
    let tmp = dir.join(format!("{name}.tmp"));
    match disk.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&tmp)?;
    let written = (|| {
        file.allocate(meta::FILE_LEN as u64)?;
        file.write_at(0, slot)?;
        file.sync_data()?;
        disk.rename(&tmp, &dir.join(name))?;
        disk.sync_dir(dir)
    })();
    if let Err(error) = written {
        let _ = disk.unlink(&tmp);
        return Err(error);
    }
    Ok(())
}

/// A file of two slots, written in turn; open only while it is written, since there is one for each queue.
#[derive(Debug)]
pub(crate) struct SlotFile {
    disk: Disk,
    path: PathBuf,
    sequence: u64,
    next_slot: usize,
    /// The newest slot is durable. One that an earlier process wrote may be in the page cache only.
    proven: bool,
}

impl SlotFile {
    pub(crate) fn new(disk: &Disk, path: PathBuf, sequence: u64, next_slot: usize, proven: bool) -> SlotFile {
        SlotFile { disk: disk.clone(), path, sequence, next_slot, proven }
    }

    /// Nothing was stored in it since it was made.
    pub(crate) fn is_first(&self) -> bool {
        self.sequence == 1
    }

    /// Makes the newest slot durable by writing it again where it stands: until then the other slot must stay as it is, or
    /// a power cut could leave neither.
    pub(crate) fn prove(&mut self, newest: impl FnOnce(u64) -> [u8; meta::SLOT]) -> io::Result<()> {
        if !self.proven && !planted::is(Bug::OverwriteUnprovenSlot) {
            self.write(1 - self.next_slot, &newest(self.sequence))?;
            self.proven = true;
        }
        Ok(())
    }

    /// Writes the next content, durably.
    pub(crate) fn store(&mut self, slot: impl FnOnce(u64) -> [u8; meta::SLOT]) -> io::Result<()> {
        debug_assert!(
            self.proven || planted::is(Bug::OverwriteUnprovenSlot),
            "the newest slot is proven before the other is overwritten"
        );
        self.write(self.next_slot, &slot(self.sequence + 1))?;
        self.sequence += 1;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }

    fn write(&self, index: usize, slot: &[u8; meta::SLOT]) -> io::Result<()> {
        self.disk.write(&self.path, (index * meta::SLOT) as u64, slot, !planted::is(Bug::FreeBeforeMeta))
    }
}

impl MetaFile {
    /// Applies `change` and makes it durable; on an error nothing is changed. Needs no space on the medium.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut QueueMeta)) -> io::Result<()> {
        let mut meta = self.meta.clone();
        change(&mut meta);
        if meta == self.meta {
            return Ok(());
        }
        if self.closed {
            return Err(io::Error::other("the set is closed"));
        }
        self.prove()?;
        if let Some(slots) = &mut self.slots {
            slots.store(|sequence| meta::encode_queue(&meta, sequence))?;
        }
        self.meta = meta;
        Ok(())
    }

    /// Makes the present content durable.
    pub(crate) fn prove(&mut self) -> io::Result<()> {
        match &mut self.slots {
            Some(slots) => slots.prove(|sequence| meta::encode_queue(&self.meta, sequence)),
            None => Ok(()),
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

    /// Appends one item. On success it is in the page cache and the tail has moved past it. Returns its id.
    #[inline]
    pub(crate) fn append(&self, tail: &mut Tail, item: NewItem<'_>, put_ms: u64) -> Result<u64, AppendError> {
        let mut write = self.make_room(tail, 1, frame_bytes(&item), put_ms)?;
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let kind = if item.due_ms == 0 { Kind::Item } else { Kind::Deferred };
        if let Err(error) = write_item(segment, &mut write, item, kind, put_ms, None) {
            return Err(self.abandon(tail, error));
        }
        self.advance(tail, write);
        Ok(write.next_id - 1)
    }

    /// Appends an item of which nothing is to be said but its bytes, where the segment has room. `None`: nothing is done, and
    /// [`append`](Self::append) takes it. What most items do not have is no question here, and is answered by the compiler.
    #[inline]
    pub(crate) fn append_plain(
        &self,
        tail: &mut Tail,
        payload: &[u8],
        put_ms: u64,
    ) -> Option<Result<u64, AppendError>> {
        let item = NewItem { payload, expiry_ms: NEVER_MS, due_ms: 0, user_flags: 0, moved: None, only: None };
        let segment = tail.segment.as_deref()?;
        let reach = u64::from(tail.end) + frame_bytes(&item);
        let has_room = reach <= u64::from(tail.limit.min(tail.reach))
            && !tail.ordinal.is_multiple_of(lane::BLOCK_LANES)
            && put_ms.saturating_sub(segment.base_ms) <= u64::from(u32::MAX)
            && tail.next_id < u64::MAX - 1
            && segment.is_checked(put_ms);
        if !has_room {
            return None;
        }
        let mut write = Write::behind(tail);
        if let Err(error) = write_item(segment, &mut write, item, Kind::Item, put_ms, None) {
            return Some(Err(self.abandon(tail, error)));
        }
        self.advance(tail, write);
        Some(Ok(write.next_id - 1))
    }

    /// Appends all items or, after a crash at any point, none. Returns the last one's id.
    pub(crate) fn append_batch(&self, tail: &mut Tail, items: &[NewItem<'_>], put_ms: u64) -> Result<u64, AppendError> {
        let bytes = items.iter().map(frame_bytes).sum();
        let mut write = self.make_room(tail, items.len() as u64, bytes, put_ms)?;
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let from = write.end;
        let mut run = segment.writes_at_once(bytes).then(|| Vec::with_capacity(bytes as usize));
        for (i, item) in items.iter().enumerate() {
            let kind = match (items.len(), i + 1 == items.len()) {
                (1, _) => Kind::Item,
                (_, true) => Kind::BatchEnd,
                (_, false) => Kind::BatchPart,
            };
            if let Err(error) = write_item(segment, &mut write, *item, kind, put_ms, run.as_mut()) {
                return Err(self.abandon(tail, error));
            }
        }
        if let Some(run) = run
            && let Err(error) = segment.write_run(from, &run)
        {
            let error = refused(segment.number, error);
            return Err(self.abandon(tail, error));
        }
        self.advance(tail, write);
        Ok(write.next_id - 1)
    }

    /// A store failed, so what stands behind the tail is not known: parts of a batch may, which frames of another length would
    /// leave behind them as valid ones. So nothing is written there again, and the segment says where it ends. If it cannot
    /// say that, nobody knows what the next open finds.
    #[cold]
    fn abandon(&self, tail: &mut Tail, error: AppendError) -> AppendError {
        self.discard_empty(tail);
        match self.seal_tail(tail) {
            Ok(()) => error,
            Err(second) => AppendError::Undetermined(self.commit.fail(second)),
        }
    }

    /// A writer over the tail segment, which has room for `items` items of `bytes` frame bytes; rolls if it must.
    #[inline]
    fn make_room(&self, tail: &mut Tail, items: u64, bytes: u64, put_ms: u64) -> Result<Write, AppendError> {
        if tail.next_id.checked_add(items).is_none_or(|next| next == u64::MAX) {
            return Err(AppendError::Exhausted);
        }
        let fits = |tail: &Tail| {
            let Some(segment) = &tail.segment else {
                return false;
            };
            let last = u64::from(tail.ordinal) + items;
            let limit = if last <= u64::from(tail.ordinal.next_multiple_of(lane::BLOCK_LANES)) {
                tail.limit
            } else {
                u32::try_from(last).map_or(0, |last| lane::frame_limit(segment.len, last))
            };
            u64::from(tail.end) + bytes <= u64::from(limit)
                && put_ms.saturating_sub(segment.base_ms) <= u64::from(u32::MAX)
        };
        // The last segment may have been closed with room left in it.
        let fits_now = fits(tail) || (self.wake_tail(tail)? && fits(tail));
        if !fits_now {
            self.roll(tail, items, bytes, put_ms)?;
        }
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let reach = u64::from(tail.end) + bytes;
        let checked = segment.check_whole(put_ms).and_then(|()| {
            if reach > u64::from(tail.reach) {
                let reach = u32::try_from(reach + REACH_STEP).unwrap_or(u32::MAX).min(segment.len);
                segment.write_reach(reach)?;
                tail.reach = reach;
            }
            Ok(())
        });
        checked.map_err(|error| refused(segment.number, error))?;
        Ok(Write::behind(tail))
    }

    /// Moves the tail behind what was written: only now do the frames exist for anyone else. Had a writer died before, the
    /// next one would write over its frames, so no hole can arise.
    #[inline]
    fn advance(&self, tail: &mut Tail, write: Write) {
        let Some(segment) = &tail.segment else { return };
        let appended_bytes = self.appended_bytes.load(Ordering::Relaxed) + u64::from(write.end - tail.end);
        self.appended_bytes.store(appended_bytes, Ordering::Relaxed);
        segment.publish(write.end, write.ordinal);
        tail.limit = match write.ordinal.is_multiple_of(lane::BLOCK_LANES) {
            true => lane::frame_limit(segment.len, write.ordinal + 1),
            false => lane::frame_limit(segment.len, write.ordinal),
        };
        tail.end = write.end;
        tail.ordinal = write.ordinal;
        tail.next_id = write.next_id;
        tail.payload_bytes = write.payload_bytes;
        tail.last_ms = write.last_ms;
        tail.intake = write.intake;
        tail.proven = false;
        if write.addressed > 0 {
            segment.count_done(write.addressed);
        }
        self.front.advance(write.next_id - 1, write.intake);
    }

    /// Takes the next segment into use, and seals the present one.
    #[cold]
    fn roll(&self, tail: &mut Tail, items: u64, bytes: u64, put_ms: u64) -> Result<(), AppendError> {
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
    fn take_spare(&self, mut len: u32, least: u32) -> Result<Spare, NoSpare> {
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
    fn give_up_drained(&self, tail: &mut Tail) {
        let is_drained = |segment: &Arc<Segment>| tail.ordinal > 0 && segment.done() >= tail.ordinal;
        if tail.segment.as_ref().is_some_and(is_drained) {
            // If the seal cannot be stored, the header still says that the segment is gone.
            let _ = self.seal_tail(tail);
        }
    }

    /// Takes a tail that never held an item out of the journal: nobody would sync it, and what comes behind it would stand on
    /// a segment that a power cut can take.
    fn discard_empty(&self, tail: &mut Tail) {
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
    fn seal_tail(&self, tail: &mut Tail) -> io::Result<()> {
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

    /// The open segment of this number; `None` if it is gone.
    pub(crate) fn segment(&self, number: u64) -> io::Result<Option<Arc<Segment>>> {
        match self.table.lock().get(&number) {
            Some(Entry { open: Some(segment), .. }) => return Ok(Some(Arc::clone(segment))),
            Some(_) => {}
            None => return Ok(None),
        }
        let files = &self.context.pool.files;
        files.make_room();
        let open = || self.table.lock().get_mut(&number).map(|entry| self.open_entry(entry)).transpose();
        let opened = match open() {
            Err(error) if crate::disk::is_too_many_files(&error) => {
                files.close_half(Way::AsIs);
                open()
            }
            opened => opened,
        }?;
        if let Some(segment) = &opened {
            self.enter(segment);
        }
        Ok(opened)
    }

    /// Whether the set holds as many segments open as it may, or more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.context.pool.files.is_full()
    }

    /// Lets the set close a segment that was opened when nobody uses it.
    fn enter(&self, segment: &Segment) {
        if let (Some(keeper), Some(opening)) = (self.keeper.get(), segment.opening()) {
            self.context.pool.files.enter(keeper, segment.number, opening);
        }
    }

    /// Who closes its segments, told once, before any is open.
    pub(crate) fn kept_by(&self, keeper: Weak<dyn Keeper>) {
        debug_assert!(self.table.lock().values().all(|entry| entry.open.is_none()), "nothing is open yet");
        let _ = self.keeper.set(keeper);
    }

    /// See [`Keeper::usage`].
    pub(crate) fn usage(&self, number: u64, opening: u64) -> Option<u64> {
        let table = self.table.lock();
        let segment = table.get(&number)?.open.as_ref()?;
        (segment.opening() == Some(opening)).then(|| segment.usage())
    }

    /// Whether a sync is needed before a segment may be closed, and whether all its items are done.
    pub(crate) fn keeps_open(&self, number: u64) -> Unrest {
        let tail = self.tail.lock();
        let table = self.table.lock();
        let Some((entry, segment)) = table.get(&number).and_then(|entry| Some((entry, entry.open.as_ref()?))) else {
            return Unrest::None;
        };
        if entry.is_spent() {
            return Unrest::Spent;
        }
        match tail.is_durable(entry, segment) {
            true => Unrest::None,
            false => Unrest::Unsynced,
        }
    }

    /// Closes a segment that is durable and that nobody uses, be it the one that is appended to. `false`: it is still open.
    ///
    /// The tail's lock is only tried, since the caller may hold any other.
    pub(crate) fn rest(&self, number: u64) -> bool {
        let Some(mut tail) = self.tail.try_lock() else { return false };
        let mut table = self.table.lock();
        let Some(entry) = table.get_mut(&number) else { return true };
        let Some(segment) = &entry.open else { return true };
        let is_tail = tail.segment.as_ref().is_some_and(|own| own.number == number);
        let users = Arc::strong_count(segment) - 1 - usize::from(is_tail);
        if users > 0 || !tail.is_durable(entry, segment) {
            return false;
        }
        if is_tail {
            if tail.ordinal == 0 || !entry.named {
                return false;
            }
            (entry.extent, entry.last_ms) = (tail.extent(), tail.last_ms);
            tail.segment = None;
            tail.resting = Some(number);
            tail.spare_asked = false;
            if let Some(spare) = tail.spare.take() {
                self.context.pool.put_back(spare);
            }
        }
        entry.done = segment.done();
        entry.synced_to = segment.synced_to.load(Ordering::Acquire);
        entry.marks_unsynced = false;
        entry.open = None;
        true
    }

    /// Opens the last segment again, if it was closed because nobody used it. `false`: it was not.
    #[cold]
    fn wake_tail(&self, tail: &mut Tail) -> Result<bool, AppendError> {
        let Some(number) = tail.resting else { return Ok(false) };
        tail.segment = self.segment(number).map_err(|error| refused(number, error))?;
        tail.resting = None;
        tail.crowded |= self.is_crowded();
        Ok(tail.segment.is_some())
    }

    fn open_entry(&self, entry: &mut Entry) -> io::Result<Arc<Segment>> {
        if let Some(segment) = &entry.open {
            return Ok(Arc::clone(segment));
        }
        let dir = self.context.dir.as_deref().ok_or(io::ErrorKind::NotFound)?;
        let path = dir.join(file_name(entry.header.number, entry.named));
        let file = Arc::new(self.context.disk.open(&path, !self.context.read_only)?);
        let len = entry.header.segment_bytes;
        if file.len()? != u64::from(len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment file was truncated"));
        }
        let mapped = self.context.pool.mapped() && !self.context.read_only;
        let map = self.context.disk.open_map(&file, len as usize, mapped)?;
        let segment = Segment::resume(&entry.header, Some(file), map, entry.extent.end, entry.extent.count, entry.done);
        if entry.unproven_from.is_none() {
            let to = if planted::is(Bug::WokenAsSynced) { entry.extent.end } else { entry.synced_to };
            segment.synced_to.store(to, Ordering::Release);
        }
        segment.marks_unsynced.store(entry.marks_unsynced, Ordering::Release);
        if !self.context.read_only {
            segment.mend_lane_blocks()?;
            for ordinal in entry.lost.iter().cloned().flatten() {
                segment.mark_lost(ordinal)?;
            }
            entry.lost.clear();
        }
        if entry.sealed {
            segment.seal();
        }
        let segment = Arc::new(segment.counted(Some(self.context.pool.files.count())));
        entry.open = Some(Arc::clone(&segment));
        Ok(segment)
    }

    /// The lowest segment with a number above `number`.
    pub(crate) fn segment_after(&self, number: u64) -> io::Result<Option<Arc<Segment>>> {
        let after = || {
            let table = self.table.lock();
            let next = table.range(number.saturating_add(1)..).find(|(_, entry)| !entry.cleared);
            next.map(|(number, _)| *number)
        };
        while let Some(next) = after() {
            // Freed in between: there may be one behind it.
            if let Some(segment) = self.segment(next)? {
                return Ok(Some(segment));
            }
        }
        Ok(None)
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

    /// Closes sealed segments above `above` that nobody uses, so that a long backlog holds neither maps nor descriptors; those
    /// that a sync has covered, for an error of writing back is told to descriptors that were open.
    pub(crate) fn rest_unused(&self, above: u64) {
        if self.context.dir.is_none() {
            return;
        }
        let has_readers = self.has_readers();
        for entry in self.table.lock().range_mut(above.saturating_add(1)..).map(|(_, entry)| entry) {
            if entry.open.as_ref().is_some_and(|segment| entry.is_durable(segment, segment.end())) {
                entry.rest(has_readers);
            }
        }
    }

    /// Opens a segment for what `with` does to it, and closes it again if it was not open: there may be more of them than
    /// descriptors. `None`: it is gone.
    fn with_segment<T>(&self, number: u64, with: impl FnOnce(&Segment) -> io::Result<T>) -> io::Result<Option<T>> {
        let has_readers = self.has_readers();
        let was_open = self.table.lock().get(&number).is_some_and(|entry| entry.open.is_some());
        let Some(segment) = self.segment(number)? else {
            return Ok(None);
        };
        let done = with(&segment)?;
        drop(segment);
        if !was_open && let Some(entry) = self.table.lock().get_mut(&number) {
            entry.rest(has_readers);
        }
        Ok(Some(done))
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

    /// Makes everything appended so far durable, and with `marks` also every lane; returns the last id covered.
    ///
    /// The order is what recovery relies on: sealed segments from the lowest up, the tail, the names, then the final names.
    pub(crate) fn sync(&self, marks: bool) -> io::Result<u64> {
        let synced = self.sync_all(marks);
        if synced.is_err() {
            // Some systems take back what they could not write (btrfs), so the next open may not find the ids that were told.
            // If this fails too, nothing was promised that it breaks.
            let next_id = self.tail.lock().next_id;
            let _ = self.update_meta(|meta| meta.next_id = meta.next_id.max(ids_after_loss(next_id)));
        }
        synced
    }

    fn sync_all(&self, marks: bool) -> io::Result<u64> {
        let (segment, end, unsynced, bytes, appended) = {
            let tail = self.tail.lock();
            (
                tail.segment.clone(),
                tail.end,
                tail.unsynced.clone(),
                self.appended_bytes.load(Ordering::Relaxed),
                tail.next_id - 1,
            )
        };
        let Some(dir) = &self.context.dir else {
            return Ok(appended);
        };
        let mut covered = Vec::with_capacity(unsynced.len() + 1);
        for number in unsynced.iter().filter(|_| !planted::is(Bug::SyncTailOnly)) {
            let is_unproven = self.unproven_from(*number).is_some();
            let end = self.with_segment(*number, |sealed| {
                if is_unproven {
                    sealed.dirty_again()?;
                }
                sealed.sync()?;
                Ok(sealed.end())
            })?;
            covered.extend(end.map(|end| (*number, end, true)));
        }
        if let Some(segment) = &segment {
            segment.sync()?;
            covered.push((segment.number, end, false));
        }
        let nameless: Vec<u64> = {
            let table = self.table.lock();
            covered.iter().map(|(n, ..)| *n).filter(|n| table.get(n).is_some_and(|e| !e.named)).collect()
        };
        if !nameless.is_empty() && !planted::is(Bug::SkipDirSync) {
            self.context.disk.sync_dir(dir)?;
        }
        for number in nameless {
            let mut table = self.table.lock();
            if let Some(entry) = table.get_mut(&number) {
                let renamed =
                    self.context.disk.rename(&dir.join(file_name(number, false)), &dir.join(file_name(number, true)));
                // Only evidence for recovery hangs on the final name, so a failure is no failed sync.
                entry.named = renamed.is_ok();
            }
        }
        if marks {
            for number in self.with_unsynced_marks() {
                let is_unproven = self.take_unproven_marks(number);
                self.with_segment(number, |segment| {
                    if is_unproven && !planted::is(Bug::MarksOfOthers) {
                        segment.dirty_marks_again()?;
                    }
                    segment.sync()
                })?;
            }
        }
        {
            let mut tail = self.tail.lock();
            tail.unsynced.retain(|number| !unsynced.contains(number));
            let mut table = self.table.lock();
            for (number, to, sealed) in covered {
                let Some(entry) = table.get_mut(&number) else { continue };
                match &entry.open {
                    Some(segment) => _ = segment.synced_to.fetch_max(to, Ordering::AcqRel),
                    None => entry.synced_to = entry.synced_to.max(to),
                }
                if sealed {
                    entry.unproven_from = None;
                }
            }
        }
        self.durable_bytes.fetch_max(bytes, Ordering::Relaxed);
        Ok(appended)
    }

    fn unproven_from(&self, number: u64) -> Option<u32> {
        self.table.lock().get(&number).and_then(|entry| entry.unproven_from)
    }

    fn with_unsynced_marks(&self) -> Vec<u64> {
        let is_dirty = |entry: &Entry| match &entry.open {
            Some(segment) => segment.marks_unsynced.load(Ordering::Acquire),
            None => entry.marks_unsynced,
        };
        let table = self.table.lock();
        table.iter().filter(|(_, entry)| is_dirty(entry) && !entry.cleared).map(|(number, _)| *number).collect()
    }

    /// Whether its marks are an earlier process's and must be stored again to be synced.
    fn take_unproven_marks(&self, number: u64) -> bool {
        self.table.lock().get_mut(&number).is_some_and(|entry| std::mem::take(&mut entry.marks_unproven))
    }

    /// Whether a sync would have anything to do.
    pub(crate) fn is_unsynced(&self) -> bool {
        if self.context.dir.is_none() {
            return false;
        }
        if self.commit.durable() < self.appended() || !self.tail.lock().unsynced.is_empty() {
            return true;
        }
        self.table.lock().values().any(|entry| match &entry.open {
            Some(segment) => segment.marks_unsynced.load(Ordering::Acquire),
            None => entry.marks_unsynced,
        })
    }

    /// Whether the journal is as a close in good order left it: nothing was appended, armed or found unproven since.
    pub(crate) fn is_untouched(&self) -> bool {
        if !self.meta.lock().meta.clean {
            return false;
        }
        let tail = self.tail.lock();
        tail.segment.is_none() && tail.spare.is_none() && self.appended_bytes.load(Ordering::Relaxed) == 0
    }

    /// After a while without puts: a frame that says that everything is durable, so that damage to the last synced items
    /// is told from an interrupted write.
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        let mut tail = self.tail.lock();
        if tail.proven || self.commit.durable() < tail.next_id - 1 || self.commit.failure().is_some() {
            return Ok(());
        }
        let _ = self.wake_tail(&mut tail);
        let Some(segment) = tail.segment.clone() else {
            return Ok(());
        };
        let synced_to = segment.synced_to.load(Ordering::Acquire);
        let frame = Frame {
            kind: Kind::Checkpoint,
            payload_len: 0,
            payload_crc: frame::payload_crc(segment.salt, &[]),
            ordinal: tail.ordinal,
            time_delta: u32::try_from(tail.last_ms.saturating_sub(segment.base_ms)).unwrap_or(u32::MAX),
            synced_to,
            id: None,
            expiry_ms: None,
            user_flags: 0,
            starts_before: 0,
            origin: None,
            noted: false,
            due_ms: 0,
            only: None,
        };
        if synced_to < tail.end || tail.end + frame.total_len() > tail.limit {
            return Ok(());
        }
        let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
        let head_len = frame::encode(&frame, segment.salt, tail.end, &mut head);
        segment.write_frame(tail.end, &head[..head_len], &[])?;
        tail.end += frame.total_len();
        tail.proven = true;
        segment.publish(tail.end, tail.ordinal);
        Ok(())
    }

    /// The segments whose items are all done, or cleared.
    pub(crate) fn spent(&self) -> BTreeSet<u64> {
        let readers = self.readers();
        let table = self.table.lock();
        let spent = table.iter().filter(|(_, entry)| entry.is_spent());
        spent
            .filter(|(number, entry)| self.is_read_by_all(&readers, **number, entry))
            .map(|(number, _)| *number)
            .collect()
    }

    /// Whether a segment holds no item from the id `id` on.
    pub(crate) fn ends_before(&self, number: u64, id: u64) -> bool {
        self.table.lock().get(&number).is_none_or(|entry| entry.ids_end() <= id)
    }

    /// Frees those segments of `listed` whose items are all done, wherever they lie. Returns whether one had to be left
    /// because somebody holds it.
    pub(crate) fn free_spent(&self, listed: &BTreeSet<u64>) -> io::Result<bool> {
        let mut left = false;
        // From the look on: a reader that begins with the oldest item must not count what is about to leave.
        let _giving_back = self.giving_back.read();
        let readers = self.readers();
        let spent: Vec<Spent> = {
            let table = self.table.lock();
            let spent = table.iter().filter(|(number, entry)| {
                if !listed.contains(*number) || !entry.is_spent() || !self.is_read_by_all(&readers, **number, entry) {
                    return false;
                }
                let held = entry.is_held();
                left |= held;
                !held
            });
            spent
                .map(|(number, entry)| Spent {
                    after: entry.header.previous.map_or(0, |previous| previous.number),
                    number: *number,
                    len: entry.header.segment_bytes,
                })
                .collect()
        };
        if spent.is_empty() || self.context.read_only {
            return Ok(left);
        }
        let next_id = self.tail.lock().next_id;
        let mut freed = Vec::new();
        self.meta.lock().update(|meta| {
            meta.next_id = meta.next_id.max(next_id);
            // Numbers between a segment and the one that it names as its predecessor are explained by its header alone.
            freed.extend(spent.into_iter().filter(|s| meta.add_freed_run(s.number.min(s.after + 1), s.number)));
        })?;
        self.tail.lock().unsynced.retain(|number| !freed.iter().any(|freed| freed.number == *number));
        let mut first_error = Ok(());
        let mut gone = Vec::with_capacity(freed.len());
        let _giving = self.giving.lock();
        for Spent { number, len, .. } in freed {
            // The header took its time. Meanwhile a sync may have got hold of the segment, which then must not be used for
            // something else, or given it its final name; or somebody else may have freed it.
            let entry = {
                let mut table = self.table.lock();
                if table.get(&number).is_some_and(Entry::is_held) {
                    left = true;
                    continue;
                }
                table.remove(&number)
            };
            gone.push(number);
            if let (Some(entry), Some(dir)) = (entry, &self.context.dir) {
                self.context.pool.add_disk_bytes(entry.holes.bytes.into());
                let whole = !entry.may_have_holes;
                let given = self.context.pool.give(&dir.join(file_name(number, entry.named)), len, whole);
                // The header says that it is gone; the next open removes what is left of it.
                first_error = first_error.and(given);
            }
        }
        self.forget_lanes(&gone);
        first_error.map(|()| left)
    }

    /// Clears everything appended so far: one small durable write, whatever the number of items. The tail lock keeps puts
    /// out.
    pub(crate) fn clear(&self, tail: &mut Tail) -> io::Result<()> {
        self.wake_tail(tail).map_err(|error| match error {
            AppendError::Io { error, .. } | AppendError::NoSpace(error) | AppendError::TooManyFiles(error) => error,
            _ => io::ErrorKind::Other.into(),
        })?;
        let clear_id = tail.next_id - 1;
        self.meta.lock().update(|meta| {
            meta.clear_id = if planted::is(Bug::ClearInMemory) { meta.clear_id } else { clear_id };
            meta.next_id = meta.next_id.max(clear_id + 1);
        })?;
        self.discard_empty(tail);
        let _ = self.seal_tail(tail);
        tail.unsynced.clear();
        for entry in self.table.lock().values_mut() {
            entry.cleared = true;
        }
        Ok(())
    }

    /// Stores other content in the queue's header.
    pub(crate) fn update_meta(&self, change: impl FnOnce(&mut QueueMeta)) -> io::Result<()> {
        self.meta.lock().update(change)
    }

    /// Waits until nobody holds a segment but the journal itself. No take may begin any more; one that began before still marks
    /// its item, which must not happen once somebody else has the files.
    pub(crate) fn await_takers(&self) {
        let is_taken = || {
            let tail = self.tail.lock();
            let own = tail.segment.as_ref().map(|segment| segment.number);
            self.table
                .lock()
                .values()
                .filter_map(|entry| entry.open.as_ref())
                .any(|segment| Arc::strong_count(segment) > 1 + usize::from(own == Some(segment.number)))
        };
        while is_taken() {
            crate::disk::give_way();
        }
        // Pairs with the drop of what was held.
        fence(Ordering::Acquire);
    }

    /// Makes durable what was cleared and is still there, since an archive has not taken it or a move needs it: the header is
    /// about to say that it is.
    fn sync_cleared(&self) -> io::Result<()> {
        let cleared: Vec<u64> = {
            let table = self.table.lock();
            table.iter().filter(|(_, entry)| entry.cleared).map(|(number, _)| *number).collect()
        };
        for number in &cleared {
            self.with_segment(*number, Segment::sync)?;
        }
        match &self.context.dir {
            Some(dir) if !cleared.is_empty() => self.context.disk.sync_dir(dir),
            _ => Ok(()),
        }
    }

    /// Leaves the journal so that the next open needs no scan: everything durable, the last segment sealed.
    pub(crate) fn seal_clean(&self) -> io::Result<()> {
        if self.context.dir.is_none() || self.context.read_only {
            return Ok(());
        }
        self.sync_cleared()?;
        let last = {
            let mut tail = self.tail.lock();
            if let Some(spare) = tail.spare.take() {
                self.context.pool.put_back(spare);
            }
            self.discard_empty(&mut tail);
            match &tail.segment {
                Some(segment) => Some((Arc::clone(segment), tail.extent(), tail.last_ms)),
                None => None,
            }
        };
        let last = match last {
            Some(last) => Some(last),
            None => {
                let last = {
                    let table = self.table.lock();
                    table.iter().next_back().map(|(number, entry)| (*number, entry.extent, entry.last_ms))
                };
                match last {
                    Some((number, extent, last_ms)) => self.segment(number)?.map(|segment| (segment, extent, last_ms)),
                    None => None,
                }
            }
        };
        let mut sealed = None;
        if let Some((segment, extent, last_ms)) = last {
            segment.write_seal(extent, last_ms, true)?;
            segment.sync()?;
            sealed = Some((segment.number, extent.end));
        }
        let (next_id, last_number) = {
            let tail = self.tail.lock();
            (tail.next_id, tail.newest())
        };
        self.tail.lock().marked = false;
        self.meta.lock().update(|meta| {
            meta.clean = true;
            meta.next_id = meta.next_id.max(next_id);
            (meta.segment_last, meta.last_end) = sealed.unwrap_or((last_number, 0));
        })
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

/// Where a writer is, before the tail follows.
#[derive(Clone, Copy)]
struct Write {
    end: u32,
    ordinal: u32,
    next_id: u64,
    payload_bytes: u64,
    last_ms: u64,
    intake: Intake,
    /// Items that are done for the queue's own reader from the start.
    addressed: u32,
}

impl Write {
    #[inline]
    fn behind(tail: &Tail) -> Write {
        Write {
            end: tail.end,
            ordinal: tail.ordinal,
            next_id: tail.next_id,
            payload_bytes: tail.payload_bytes,
            last_ms: tail.last_ms,
            intake: tail.intake,
            addressed: 0,
        }
    }
}

/// Writes the next frame behind what was written, or puts it at the end of what is to be written there. Inlined, so that who
/// puts a plain item pays for nothing else.
#[inline(always)]
fn write_item(
    segment: &Segment,
    write: &mut Write,
    item: NewItem<'_>,
    kind: Kind,
    put_ms: u64,
    run: Option<&mut Vec<u8>>,
) -> Result<(), AppendError> {
    let time_delta = u32::try_from(put_ms.saturating_sub(segment.base_ms)).unwrap_or(u32::MAX);
    let frame = Frame {
        kind,
        payload_len: item.payload.len() as u32,
        payload_crc: frame::payload_crc(segment.salt, item.payload),
        ordinal: write.ordinal,
        time_delta,
        synced_to: match planted::is(Bug::EagerMark) {
            true => write.end,
            false => segment.synced_to.load(Ordering::Acquire).min(write.end),
        },
        id: None,
        expiry_ms: (item.expiry_ms != NEVER_MS).then_some(item.expiry_ms),
        user_flags: item.user_flags,
        starts_before: item.moved.map_or(0, |moved| moved.starts),
        origin: item.moved.map(|moved| moved.origin),
        noted: item.moved.is_some_and(|moved| moved.noted),
        due_ms: item.due_ms,
        only: item.only,
    };
    let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let head_len = frame::encode(&frame, segment.salt, write.end, &mut head);
    store(segment, write, &item, &head[..head_len], run).map_err(|error| refused(segment.number, error))?;
    write.end += frame.total_len();
    write.ordinal += 1;
    write.next_id += 1;
    write.payload_bytes += u64::from(frame.payload_len);
    write.last_ms = write.last_ms.max(segment.base_ms + u64::from(time_delta));
    write.intake.payload_bytes += u64::from(frame.payload_len);
    write.intake.expiring += u64::from(item.expiry_ms != NEVER_MS);
    if item.due_ms != 0 {
        write.intake.deferred += 1;
        write.intake.deferred_bytes += u64::from(frame.payload_len);
    }
    write.addressed += u32::from(item.only.is_some());
    Ok(())
}

#[inline(always)]
fn store(
    segment: &Segment,
    write: &Write,
    item: &NewItem<'_>,
    head: &[u8],
    run: Option<&mut Vec<u8>>,
) -> io::Result<()> {
    if write.ordinal.is_multiple_of(lane::BLOCK_LANES) {
        segment.begin_lane_block(write.ordinal / lane::BLOCK_LANES)?;
    }
    if item.only.is_some() {
        // None of the queue's own, and before there is a frame: a process that dies in between leaves nothing to be met.
        segment.mark_lost(write.ordinal)?;
    }
    match run {
        Some(run) => {
            run.extend_from_slice(head);
            run.extend_from_slice(item.payload);
            run.resize(run.len().next_multiple_of(frame::ALIGN as usize), 0);
            Ok(())
        }
        None => segment.write_frame(write.end, head, item.payload),
    }
}

/// Why the system did not do what an append needs.
#[cold]
fn refused(segment: u64, error: io::Error) -> AppendError {
    if crate::disk::is_no_space(&error) {
        return AppendError::NoSpace(error);
    }
    match crate::disk::is_too_many_files(&error) {
        true => AppendError::TooManyFiles(error),
        false => AppendError::Io { segment, error },
    }
}

/// At most this many bytes of frame.
#[inline(always)]
fn frame_bytes(item: &NewItem<'_>) -> u64 {
    let user = item.user_flags != 0 || item.moved.is_some_and(|moved| moved.starts != 0);
    let extension = if item.expiry_ms != NEVER_MS { 8 } else { 0 }
        + if user { 8 } else { 0 }
        + if item.moved.is_some() { 16 } else { 0 }
        + if item.due_ms != 0 { 8 } else { 0 }
        + if item.only.is_some() { 8 } else { 0 };
    (frame::HEADER_BYTES as u64 + extension + item.payload.len() as u64).next_multiple_of(u64::from(frame::ALIGN))
}

/// Above every id that can have been given out when `next_id` is all that is known to be durable, with room to spare.
pub(crate) fn ids_after_loss(next_id: u64) -> u64 {
    if planted::is(Bug::IdsAfterLoss) {
        return next_id;
    }
    (next_id | u64::from(u32::MAX)).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The room of an item is reckoned before its frame is made: one that is too small runs into the lanes.
    #[test]
    fn a_frame_takes_as_many_bytes_as_were_reckoned() {
        let origins = [None, Some(0), Some(3)];
        for (expiry_ms, user_flags, starts, (due_ms, only)) in [NEVER_MS, 7]
            .into_iter()
            .flat_map(|expiry_ms| [0, 5].map(|flags| (expiry_ms, flags)))
            .flat_map(|(expiry_ms, flags)| origins.map(|starts| (expiry_ms, flags, starts)))
            .flat_map(|(expiry_ms, flags, starts)| {
                [(0, None), (9, None), (0, Some(8)), (9, Some(NAMED_READERS))]
                    .map(|behind| (expiry_ms, flags, starts, behind))
            })
        {
            let moved = starts.map(|starts| Moved { origin: (1, 2), starts, noted: false });
            let item = NewItem { payload: &[1; 13], expiry_ms, due_ms, user_flags, moved, only };
            let frame = Frame {
                kind: if due_ms == 0 { Kind::Item } else { Kind::Deferred },
                payload_len: 13,
                payload_crc: 0,
                ordinal: 0,
                time_delta: 0,
                synced_to: FRAMES_AT,
                id: None,
                expiry_ms: (expiry_ms != NEVER_MS).then_some(expiry_ms),
                user_flags,
                starts_before: starts.unwrap_or(0),
                origin: moved.map(|moved| moved.origin),
                noted: false,
                due_ms,
                only,
            };
            assert_eq!(frame_bytes(&item), u64::from(frame.total_len()), "{item:?}");
        }
    }
}
