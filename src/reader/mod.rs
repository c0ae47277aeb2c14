//! What consumers see of a queue: which items wait, in which order, and who holds which.
//!
//! ```text
//!   aborted (by id) ─┐
//!                    ├─ take ─► in hand or open ─► done
//!   ring ────────────┘   ▲            │ abort
//!   ▲ refill, as it empties           │
//!   journal ─ cursor     └────────────┘
//! ```
//!
//! A put does not meet its reader: it appends to the journal, and the reader follows with its cursor as far as the journal's
//! [`Front`] shows items. The ring holds the places of the next items, read a few dozen at a time, never payloads. An item
//! that must be durable before it is delivered is shown by the group commit.

pub(crate) mod deferred;
pub(crate) mod leases;
mod pluck;
pub(crate) mod waiters;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;

use crate::clock::Clock;
use crate::format::frame::{self, Frame};
use crate::ids::{Cursor, NEVER_MS, Place};
use crate::journal::Journal;
use crate::journal::front::{Front, Intake};
use crate::journal::lane::Lane;
use crate::journal::readers::{ReaderLanes, View, is_for};
use crate::journal::segment::FRAMES_AT;
use deferred::Deferred;
use leases::{ENDLESS, Leases};
use waiters::{Line, Wakes};

/// Most places in the ring: 4 MiB.
const RING_MAX: usize = 1 << 16;
/// Most expired items that are kept aside while the queue that they are to move to takes none.
const ASIDE_MAX: usize = 1 << 16;
/// The ring is refilled when it holds fewer places than this, by as many frames: a take stays short, and a payload is read
/// while its header is still in the processor's cache.
const REFILL_STEP: usize = 64;
/// For consumers, no more once the ring holds places of so many payload bytes.
const REFILL_BYTES: u64 = 16 << 10;

/// An item that a consumer holds open.
#[derive(Debug)]
pub(crate) struct Held {
    /// Its segment is looked up when the opening ends, so that an item held for long keeps no file open.
    pub(crate) place: Place,
    /// The queue was cleared since: there is nothing left to mark.
    pub(crate) cleared: bool,
    pub(crate) starts: u32,
    /// Whether this opening is one of the starts.
    pub(crate) counts: bool,
    pub(crate) since_ms: u64,
    /// Tells this opening of the item from others.
    pub(crate) serial: u64,
    /// When its lease ends, by the monotonic clock in ms; [`ENDLESS`]: never.
    pub(crate) due_ms: u64,
}

/// What a reader has found to be done once its lock is released.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "nobody else finds it again"]
pub(crate) struct Finds {
    /// A segment became spent.
    pub(crate) spent: bool,
    /// Reading has gone on to another segment: one that it leaves behind may hold little.
    pub(crate) moved_on: bool,
    /// An item is to leave for the dead letters, or an expired one for another queue.
    pub(crate) doomed: bool,
    /// A segment was opened beyond what the set may hold open.
    pub(crate) crowded: bool,
    /// When the first deferred item is due.
    pub(crate) due_ms: Option<u64>,
}

/// Counters since the set was opened; see [`crate::QueueStats`] for their meaning.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) get_hits: u64,
    pub(crate) get_misses: u64,
    pub(crate) expired: u64,
    pub(crate) discarded: u64,
    pub(crate) transactions: u64,
    pub(crate) aborts: u64,
    pub(crate) clears: u64,
    pub(crate) redelivered: u64,
    pub(crate) damaged: u64,
    pub(crate) leases_ended: u64,
    pub(crate) dead_lettered: u64,
    /// What came and was for other readers.
    pub(crate) others_items: u64,
    pub(crate) others_bytes: u64,
    pub(crate) last_age_ms: u64,
}

/// Ids are well spread already; the standard hasher would cost more than the rest of an open.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}

/// Where a reader's counting begins: ids above `id` came later, and are counted by the journal.
#[derive(Clone, Copy, Debug)]
struct Began {
    id: u64,
    items: u64,
    bytes: u64,
    intake: Intake,
}

/// A queue's reader. Lock 3; no user code and no sync under it.
#[derive(Debug)]
pub(crate) struct Reader {
    front: Arc<Front>,
    /// `None`: the queue's own reader.
    lanes: Option<Arc<ReaderLanes>>,
    ring: VecDeque<Place>,
    ring_bytes: u64,
    /// Ring places with an expiry of their own, and the earliest of these (never later than the truth).
    expiring: u64,
    next_expiry_ms: u64,
    aborted: BTreeMap<u64, Place>,
    /// Items that were taken out of their turn before the cursor has reached them.
    ahead: BTreeSet<u64>,
    cursor: Cursor,
    /// The last id that the cursor has passed.
    read_id: u64,
    /// A hidden item up to here was shown to who drops it.
    shown_id: u64,
    /// What came up to here was cleared.
    cleared_id: u64,
    /// What there was to read when it began, and what it has read of that and of the intake since.
    began: Began,
    /// Items that came and wait no more, and their payload bytes.
    gone_items: u64,
    gone_bytes: u64,
    /// Items that came for other readers, and may be hidden yet; not among those gone. Their bytes are.
    others: VecDeque<u64>,
    /// Of those that came since, what the cursor has passed: items with an expiry, and those with a delay.
    passed_expiring: u64,
    passed_deferred: u64,
    passed_deferred_bytes: u64,
    deferred: Deferred,
    /// The segment that was read last.
    current: Option<View>,
    pub(crate) open: HashMap<u64, Held, BuildHasherDefault<IdHasher>>,
    next_serial: u64,
    /// A segment became spent, was read to its end, or was opened beyond the set's budget, since this was last looked at.
    pub(crate) spent: bool,
    moved_on: bool,
    crowded: bool,
    pub(crate) leases: Leases,
    /// Items of `open` that wait to be moved to the dead letters: id, serial.
    doomed: Vec<(u64, u64)>,
    doomed_since: bool,
    /// Expired items are kept to be moved elsewhere.
    pub(crate) keeps_expired: bool,
    /// Those that wait for it, by id, and how many there have been.
    aside: BTreeMap<u64, Place>,
    asides: u64,
    /// [`u32::MAX`]: no limit.
    pub(crate) max_attempts: u32,
    pub(crate) line: Line,
    /// Putters that wait for room.
    pub(crate) space: Line,
    pub(crate) paused: bool,
    pub(crate) closed: bool,
    pub(crate) counts: Counts,
    pub(crate) memory_bytes: u64,
    pub(crate) max_age_ms: u64,
}

/// An item taken out of the waiting ones.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) place: Place,
    pub(crate) segment: View,
}

/// Why no item could be taken, though one waits.
#[derive(Debug)]
pub(crate) enum TakeError {
    Damaged { segment: u64, offset: u32, id: u64 },
    Io { segment: u64, offset: u32, error: io::Error },
}

/// What becomes of expired items that the cursor meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expired {
    /// Marked done, since the caller is after an item that is not.
    Done,
    /// Read as others: the caller looks at them, or only tells what there is.
    Kept,
}

/// What the caller of a take decides, and the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    clock: &'a Clock,
    /// Coarse, and a few nanoseconds to read.
    pub(crate) now_ms: u64,
    pub(crate) salvage: bool,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(clock: &'a Clock, salvage: bool) -> Self {
        Rules { clock, now_ms: clock.now_ms(), salvage }
    }

    fn exact_ms(&self) -> u64 {
        self.clock.exact_ms()
    }
}

impl Reader {
    /// `first`: the first waiting item that recovery found; `newest`: the number of the newest segment.
    pub(crate) fn new(front: Arc<Front>, first: Option<Cursor>, newest: u64, items: u64, bytes: u64) -> Reader {
        Self::beginning(front, None, first, Cursor::behind(newest), items, bytes)
    }

    /// A reader with lanes of its own, or the queue's. `first`: at or before the first waiting item; `end`: behind all of them.
    /// For one that begins beside others, the tail's holder knows these.
    pub(crate) fn beginning(
        front: Arc<Front>,
        lanes: Option<Arc<ReaderLanes>>,
        first: Option<Cursor>,
        end: Cursor,
        items: u64,
        bytes: u64,
    ) -> Reader {
        let last_id = front.appended();
        let (cursor, read_id) = match first {
            Some(cursor) => (cursor, 0),
            None => (end, last_id),
        };
        let (shown_id, intake) = (front.visible(), front.intake());
        Reader {
            lanes,
            others: VecDeque::new(),
            line: Line::known_to(Arc::clone(&front)),
            front,
            ring: VecDeque::new(),
            ring_bytes: 0,
            expiring: 0,
            next_expiry_ms: NEVER_MS,
            aborted: BTreeMap::new(),
            ahead: BTreeSet::new(),
            cursor,
            read_id,
            shown_id,
            cleared_id: 0,
            began: Began { id: last_id, items, bytes, intake },
            gone_items: 0,
            gone_bytes: 0,
            passed_expiring: 0,
            passed_deferred: 0,
            passed_deferred_bytes: 0,
            deferred: Deferred::default(),
            current: None,
            open: HashMap::default(),
            next_serial: 0,
            spent: false,
            moved_on: false,
            crowded: false,
            leases: Leases::default(),
            doomed: Vec::new(),
            doomed_since: false,
            keeps_expired: false,
            aside: BTreeMap::new(),
            asides: 0,
            max_attempts: u32::MAX,
            space: Line::default(),
            paused: false,
            closed: false,
            counts: Counts::default(),
            memory_bytes: 0,
            max_age_ms: NEVER_MS,
        }
    }

    /// Items that wait, hidden and deferred ones too.
    pub(crate) fn stored_items(&self) -> u64 {
        let gone = self.gone_items + self.others.len() as u64;
        (self.began.items + (self.front.appended() - self.began.id)).saturating_sub(gone)
    }

    /// Their payload bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let came = self.front.intake().payload_bytes - self.began.intake.payload_bytes;
        (self.began.bytes + came).saturating_sub(self.gone_bytes)
    }

    /// Items that are not due, and their payload bytes. What the cursor has not reached counts as not due; an earlier process's
    /// delay is not known before that.
    pub(crate) fn deferred(&self) -> (u64, u64) {
        let intake = self.front.intake();
        let ahead = (intake.deferred - self.began.intake.deferred).saturating_sub(self.passed_deferred);
        let ahead_bytes =
            (intake.deferred_bytes - self.began.intake.deferred_bytes).saturating_sub(self.passed_deferred_bytes);
        (self.deferred.len() + ahead, self.deferred.bytes() + ahead_bytes)
    }

    /// Items that wait, hidden ones too.
    pub(crate) fn items(&self) -> u64 {
        self.stored_items().saturating_sub(self.deferred().0)
    }

    /// Their payload bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.stored_bytes().saturating_sub(self.deferred().1)
    }

    /// Up to which id it may read.
    fn visible_id(&self) -> u64 {
        self.front.visible().max(self.shown_id)
    }

    /// Items that may be delivered, and deferred ones that the cursor has not reached: who is called for one of these finds
    /// nothing, and goes back to its place. Ids of one process are consecutive.
    fn visible(&self) -> u64 {
        let visible_id = self.visible_id();
        let others = self.others.iter().take_while(|id| **id <= visible_id).count() as u64;
        // One that begins while items are hidden counts them as there.
        (self.began.items + visible_id).saturating_sub(self.began.id + self.gone_items + others + self.deferred.len())
    }

    fn has_room(&self, payload_len: u32) -> bool {
        self.ring.is_empty()
            || (self.ring.len() < RING_MAX && self.ring_bytes + u64::from(payload_len) <= self.memory_bytes)
    }

    #[inline(always)]
    fn push(&mut self, place: Place) {
        self.ring_bytes += u64::from(place.payload_len);
        if place.expiry_ms != NEVER_MS {
            self.expiring += 1;
            self.next_expiry_ms = self.next_expiry_ms.min(place.expiry_ms);
        }
        self.ring.push_back(place);
    }

    /// The cursor goes on behind an item. What came for others was counted off when it came.
    fn pass(&mut self, id: u64, frame: &Frame, next: Cursor) {
        self.read_id = id;
        if id > self.began.id && self.is_addressed(frame) {
            self.passed_expiring += u64::from(frame.expiry_ms.is_some());
            if frame.due_ms != 0 {
                self.passed_deferred += 1;
                self.passed_deferred_bytes += u64::from(frame.payload_len);
            }
        }
        self.cursor = next;
    }

    /// Whether an item that the cursor has not reached may have an expiry of its own.
    fn may_expire_ahead(&self) -> bool {
        self.read_id < self.began.id || self.front.intake().expiring - self.began.intake.expiring > self.passed_expiring
    }

    /// Whether items wait for a sync that nobody may be waiting for.
    pub(crate) fn has_hidden(&self) -> bool {
        self.visible_id() < self.front.appended()
    }

    /// What may be delivered was seen up to here.
    pub(crate) fn seen(&self) -> u64 {
        self.visible_id()
    }

    /// The last id that was read: a higher one that may be delivered is news.
    pub(crate) fn read_to(&self) -> u64 {
        self.read_id
    }

    /// Promises what may be delivered to those who wait.
    pub(crate) fn promise(&mut self, wakes: &mut Wakes) {
        if !self.paused {
            self.line.promise_up_to(self.visible(), wakes);
        }
    }

    /// Tells the first putter that there may be room.
    pub(crate) fn room(&mut self, wakes: &mut Wakes) {
        if !self.space.is_empty() {
            self.space.promise_up_to(1, wakes);
        }
    }

    /// Items that came and that it is not done with.
    pub(crate) fn lag(&self) -> u64 {
        let open = self.open.values().filter(|held| !held.cleared).count();
        self.stored_items() + self.aside() + open as u64
    }

    /// Whether someone without a promise may take.
    pub(crate) fn has_unpromised(&mut self, rules: Rules<'_>) -> bool {
        // What has become due counts from here on.
        self.deferred.has_ripe(rules);
        let promised = self.line.promised();
        // The ring first: what is in it may be delivered, and to know that takes no look at what putters write.
        !self.paused && (self.ring.len() as u64 > promised || self.visible() > promised)
    }

    pub(crate) fn segment(&mut self, journal: &Journal, number: u64) -> io::Result<Option<&View>> {
        if self.current.as_ref().is_none_or(|current| current.number != number) {
            self.current = journal.segment(number)?.map(|segment| View::new(segment, self.lanes.as_ref()));
            self.crowded |= journal.is_crowded();
        }
        Ok(self.current.as_ref())
    }

    /// Forgets the segment that was read last, so that it can be freed.
    pub(crate) fn let_go(&mut self) {
        self.current = None;
    }

    /// The same, if it was this one.
    pub(crate) fn let_go_of(&mut self, number: u64) {
        self.current.take_if(|segment| segment.number == number);
    }

    /// The segment below which everything was read.
    pub(crate) fn reading_from(&self) -> u64 {
        let cursor = self.cursor.segment + u64::from(self.cursor.is_behind());
        self.ring.front().map_or(cursor, |place| place.segment.min(cursor))
    }

    /// The segment above which nothing is about to be read.
    pub(crate) fn reading(&self) -> u64 {
        self.cursor.segment + 1
    }

    /// Takes the first waiting item but `ahead`, which are promised to others: aborted ones by id, then the ring. Nothing is
    /// left in `taken` where nothing may be delivered now.
    #[inline]
    pub(crate) fn take_after(
        &mut self,
        journal: &Journal,
        rules: Rules<'_>,
        ahead: usize,
        taken: &mut Option<Taken>,
    ) -> Result<(), TakeError> {
        if ahead != 0 {
            *taken = self.take_behind(journal, rules, ahead)?;
        } else if !self.take_plain(rules, taken) {
            *taken = self.take_any(journal, rules)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn take_behind(&mut self, journal: &Journal, rules: Rules<'_>, ahead: usize) -> Result<Option<Taken>, TakeError> {
        let mut passed = Vec::new();
        while passed.len() < ahead {
            match self.pop(journal, rules) {
                Ok(Some(place)) => passed.push(place),
                _ => break,
            }
        }
        let taken = self.take(journal, rules);
        for place in passed {
            self.put_back(place);
        }
        taken
    }

    /// Takes the first waiting item.
    pub(crate) fn take(&mut self, journal: &Journal, rules: Rules<'_>) -> Result<Option<Taken>, TakeError> {
        let mut taken = None;
        self.take_after(journal, rules, 0, &mut taken)?;
        Ok(taken)
    }

    /// The first waiting item, if it can only be the ring's first, nothing about it is to be judged, and its segment is at hand.
    #[inline]
    fn take_plain(&mut self, rules: Rules<'_>, taken: &mut Option<Taken>) -> bool {
        let may_be_other = !self.aborted.is_empty() || !self.deferred.is_empty();
        if may_be_other || self.max_age_ms != NEVER_MS || self.max_attempts != u32::MAX {
            return false;
        }
        let (Some(segment), Some(place)) = (&self.current, self.ring.front()) else {
            return false;
        };
        if place.expiry_ms != NEVER_MS || place.segment != segment.number || !segment.is_checked(rules.now_ms) {
            return false;
        }
        *taken = Some(Taken { place: *place, segment: segment.clone() });
        let Some(Taken { place, segment }) = taken else {
            return false;
        };
        self.ring.pop_front();
        self.ring_bytes -= u64::from(place.payload_len);
        if let Some(next) = self.ring.front().filter(|next| next.segment == segment.number) {
            segment.expect_payload(next);
        }
        self.gone(place);
        true
    }

    #[inline(never)]
    fn take_any(&mut self, journal: &Journal, rules: Rules<'_>) -> Result<Option<Taken>, TakeError> {
        loop {
            let Some(place) = self.pop(journal, rules)? else {
                return Ok(None);
            };
            let found = match self.segment(journal, place.segment) {
                Ok(Some(segment)) => segment.check_whole(rules.now_ms).map(|()| Some(segment.clone())),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let segment = match found {
                Ok(Some(segment)) => segment,
                Ok(None) => {
                    // Freed under a place that waits: cannot be; if it were, the item would be gone, not another's.
                    debug_assert!(false, "a waiting item's segment is gone");
                    self.gone(&place);
                    continue;
                }
                Err(error) => {
                    self.put_back(place);
                    return Err(TakeError::Io { segment: place.segment, offset: place.offset, error });
                }
            };
            self.gone(&place);
            if self.is_expired(&place, rules) && self.keeps_expired {
                if !self.set_aside(place) {
                    self.return_waiting(place);
                    return Ok(None);
                }
                continue;
            }
            if self.is_expired(&place, rules) {
                if let Err(error) = self.pass_over(journal, &segment, place.ordinal) {
                    self.return_waiting(place);
                    return Err(TakeError::Io { segment: place.segment, offset: place.offset, error });
                }
                self.counts.expired += 1;
                continue;
            }
            if self.max_attempts != u32::MAX
                && let Ok(Some(lane)) = segment.lane(place.ordinal)
                && u32::from(lane.starts()) >= self.max_attempts
            {
                // Its last start ended with the process, or the limit was lowered.
                let starts = lane.starts().into();
                self.hold(place, starts, rules.now_ms);
                self.doom(place.id);
                continue;
            }
            return Ok(Some(Taken { place, segment }));
        }
    }

    /// What is to be done since the last call, once the lock is released.
    pub(crate) fn finds(&mut self) -> Finds {
        Finds {
            spent: std::mem::take(&mut self.spent),
            moved_on: std::mem::take(&mut self.moved_on),
            doomed: std::mem::take(&mut self.doomed_since),
            crowded: std::mem::take(&mut self.crowded),
            due_ms: self.deferred.next_due_ms(),
        }
    }

    /// Marks an item done that nobody is given. A set opened for looking only changes no file for it.
    fn pass_over(&mut self, journal: &Journal, segment: &View, ordinal: u32) -> io::Result<()> {
        if !journal.context.read_only {
            self.spent |= segment.mark_done(ordinal)?;
        }
        Ok(())
    }

    /// Whether an item is for this reader, as it is unless it names others.
    fn is_addressed(&self, frame: &Frame) -> bool {
        is_for(frame, self.lanes.as_ref())
    }

    /// The item that was just appended is for others. Under the tail lock, and under this one's since before the append, so
    /// that nobody has counted it.
    pub(crate) fn leave_to_others(&mut self, id: u64, intake: Intake) {
        let visible_id = self.visible_id();
        while self.others.front().is_some_and(|first| *first <= visible_id) {
            self.others.pop_front();
            self.gone_items += 1;
        }
        self.counts.others_items += 1;
        self.counts.others_bytes += intake.payload_bytes;
        self.others.push_back(id);
        self.gone_bytes += intake.payload_bytes;
        self.passed_expiring += intake.expiring;
        self.passed_deferred += intake.deferred;
        self.passed_deferred_bytes += intake.deferred_bytes;
    }

    /// The item no longer waits.
    fn gone(&mut self, place: &Place) {
        self.gone_items += 1;
        self.gone_bytes += u64::from(place.payload_len);
    }

    /// A taken item waits again, before all others by the order of ids. Not if the queue was cleared meanwhile: its segment may
    /// be another one's by now.
    pub(crate) fn return_waiting(&mut self, place: Place) {
        if place.id <= self.cleared_id {
            return;
        }
        self.gone_items = self.gone_items.saturating_sub(1);
        self.gone_bytes = self.gone_bytes.saturating_sub(place.payload_len.into());
        self.put_back(place);
    }

    fn put_back(&mut self, place: Place) {
        self.aborted.insert(place.id, place);
    }

    /// Whether its time is over, by its own expiry or by the present `max_age`. At the very millisecond it is alive.
    fn is_expired(&self, place: &Place, rules: Rules<'_>) -> bool {
        if place.expiry_ms == NEVER_MS && self.max_age_ms == NEVER_MS {
            return false;
        }
        // The exact clock only where something may expire: it costs as much as a third of a get.
        let now_ms = rules.clock.exact_ms();
        now_ms > place.expiry_ms || now_ms.saturating_sub(place.put_ms) > self.max_age_ms
    }

    /// Whether any waiting item can expire at all, or has and is about to move.
    pub(crate) fn can_expire(&self) -> bool {
        let can =
            self.expiring > 0 || self.max_age_ms != NEVER_MS || !self.aborted.is_empty() || self.may_expire_ahead();
        (self.stored_items() > 0 && can) || !self.aside.is_empty()
    }

    fn pop(&mut self, journal: &Journal, rules: Rules<'_>) -> Result<Option<Place>, TakeError> {
        if let Some((_, place)) = self.aborted.pop_first() {
            return Ok(Some(place));
        }
        if self.ring.is_empty() {
            self.refill(journal, rules, Expired::Done)?;
        }
        if self.deferred.has_ripe(rules) {
            return self.pop_ripe(journal).map(Some);
        }
        let place = self.ring.pop_front();
        if let Some(place) = &place {
            self.pop_from_ring(place);
        }
        Ok(place)
    }

    /// Reckons with a place that has left the ring.
    fn pop_from_ring(&mut self, place: &Place) {
        self.ring_bytes -= u64::from(place.payload_len);
        self.expiring -= u64::from(place.expiry_ms != NEVER_MS);
    }

    /// The first item whose delay has ended.
    fn pop_ripe(&mut self, journal: &Journal) -> Result<Place, TakeError> {
        let Some((id, at)) = self.deferred.ripe() else {
            return Err(TakeError::Damaged { segment: 0, offset: 0, id: 0 });
        };
        let found = self.segment(journal, at.segment).and_then(|segment| match segment {
            Some(segment) => {
                Ok(segment.frame_at(at.offset, segment.end())?.map(|frame| segment.place(at.offset, &frame)))
            }
            None => Ok(None),
        });
        match found {
            Ok(Some(place)) if place.id == id => {
                self.deferred.pop_ripe();
                Ok(place)
            }
            Ok(_) => Err(TakeError::Damaged { segment: at.segment, offset: at.offset, id }),
            Err(error) => Err(TakeError::Io { segment: at.segment, offset: at.offset, error }),
        }
    }

    /// An item that was taken waits again, but not before `due_ms`.
    pub(crate) fn return_deferred(&mut self, place: Place, due_ms: u64) {
        if place.id > self.cleared_id {
            self.gone_items = self.gone_items.saturating_sub(1);
            self.gone_bytes = self.gone_bytes.saturating_sub(place.payload_len.into());
            let at = deferred::At { segment: place.segment, offset: place.offset, payload_len: place.payload_len };
            self.deferred.push(due_ms, place.id, at);
        }
    }

    /// Counts those as waiting whose delay has ended, and tells when the next one's does. `Some(0)`: perhaps soon, it waits for the
    /// device.
    pub(crate) fn ripen(&mut self, journal: &Journal, rules: Rules<'_>) -> Option<u64> {
        self.look_ahead(journal, rules);
        self.deferred.has_ripe(rules);
        let is_ahead = self.ring.is_empty() && self.deferred().0 > self.deferred.len();
        if is_ahead && self.has_hidden() { Some(0) } else { self.deferred.next_due_ms() }
    }

    /// Reads on in the journal while the ring has room. Damage is an error only once the ring is empty.
    fn refill(&mut self, journal: &Journal, rules: Rules<'_>, expired: Expired) -> Result<(), TakeError> {
        // Looked at first: what may be delivered by now is in the segments that are looked at below.
        let until = self.visible_id();
        if self.read_id >= until {
            return Ok(());
        }
        // Kept aside, so that it need not be counted for each frame.
        let mut current = self.current.take();
        let mut looked = 0;
        let mut result = Ok(());
        // Of large items fewer at a time, so that their headers and what was fetched of their payloads are still in the cache.
        let enough = |bytes| expired == Expired::Done && bytes >= REFILL_BYTES;
        while self.read_id < until && (self.ring.is_empty() || (looked < REFILL_STEP && !enough(self.ring_bytes))) {
            looked += 1;
            match self.read_next(journal, rules, until, expired, &mut current) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    if self.ring.is_empty() {
                        result = Err(error);
                    }
                    break;
                }
            }
        }
        self.current = current;
        result
    }

    /// Has the next places read, for who wants to tell of them.
    pub(crate) fn look_ahead(&mut self, journal: &Journal, rules: Rules<'_>) {
        if self.ring.len() < REFILL_STEP {
            // Who takes the item meets the error again.
            let _ = self.refill(journal, rules, Expired::Kept);
        }
    }

    /// Moves the cursor one frame on; `false`: no room, or nothing that may be delivered.
    #[inline]
    fn read_next(
        &mut self,
        journal: &Journal,
        rules: Rules<'_>,
        until: u64,
        expired: Expired,
        current: &mut Option<View>,
    ) -> Result<bool, TakeError> {
        let at = self.cursor;
        let io = |error| TakeError::Io { segment: at.segment, offset: at.offset, error };
        if at.is_behind() || current.as_ref().is_none_or(|current| current.number != at.segment) {
            let found = if at.is_behind() { None } else { journal.segment(at.segment).map_err(io)? };
            *current = found.map(|segment| View::new(segment, self.lanes.as_ref()));
            self.crowded |= journal.is_crowded();
        }
        let segment = match current {
            Some(segment) if at.offset < segment.end() => &*segment,
            // The frames end before the items do.
            Some(segment) if segment.is_sealed() && at.ordinal < segment.count() => {
                return self.read_over_damage(journal, segment, at.offset, rules);
            }
            Some(segment) if !segment.is_sealed() => {
                // Begun, and no frame in it yet: ids that a power cut took lie between it and the last item.
                let before = (segment.first_id + u64::from(at.ordinal)).saturating_sub(1);
                self.read_id = self.read_id.max(before).min(until);
                return Ok(false);
            }
            _ => match journal.segment_after(at.segment).map_err(io)? {
                Some(next) => {
                    self.moved_on |= !at.is_behind();
                    self.cursor = Cursor { segment: next.number, offset: FRAMES_AT, ordinal: 0 };
                    *current = Some(View::new(next, self.lanes.as_ref()));
                    return Ok(true);
                }
                None => {
                    // Only frames without items were left.
                    self.read_id = until;
                    return Ok(false);
                }
            },
        };
        segment.check_whole(rules.now_ms).map_err(io)?;
        let end = segment.end();
        let mut found = None;
        segment.next_frame(at.offset, end, &mut found).map_err(io)?;
        let Some(frame) = found.as_ref().filter(|frame| frame.ordinal == at.ordinal) else {
            return self.read_over_damage(journal, segment, end, rules);
        };
        let next = at.offset + frame.total_len();
        segment.expect_like(frame, next);
        if !frame.kind.is_item() {
            self.cursor.offset = next;
            return Ok(true);
        }
        let id = frame.id.unwrap_or(segment.first_id + u64::from(at.ordinal));
        if id > until {
            return Ok(false);
        }
        let next = Cursor { offset: next, ordinal: at.ordinal + 1, ..at };
        let lane = segment.lane(at.ordinal).map_err(io)?;
        if lane == Some(Lane::Done) || (!self.ahead.is_empty() && self.ahead.contains(&id)) {
            self.ahead.remove(&id);
            self.pass(id, frame, next);
            return Ok(true);
        }
        if !self.is_addressed(frame) {
            // It was marked when it was put, and a crash has taken the mark. Counted off then, if that was in this process.
            self.pass_over(journal, segment, at.ordinal).map_err(io)?;
            if id <= self.began.id {
                self.gone(&segment.place(at.offset, frame));
            }
            self.pass(id, frame, next);
            return Ok(true);
        }
        // Also where it is due by now: among those that are, the time at which they became it decides.
        if frame.due_ms != 0 {
            let at = deferred::At { segment: at.segment, offset: at.offset, payload_len: frame.payload_len };
            self.deferred.push(frame.due_ms, id, at);
            self.pass(id, frame, next);
            return Ok(true);
        }
        if !self.has_room(frame.payload_len) {
            return Ok(false);
        }
        let place = segment.place(at.offset, frame);
        if expired == Expired::Done && self.is_expired(&place, rules) {
            if self.keeps_expired {
                if !self.set_aside(place) {
                    return Ok(false);
                }
            } else {
                self.pass_over(journal, segment, place.ordinal).map_err(io)?;
                self.counts.expired += 1;
            }
            self.gone(&place);
        } else {
            self.push(place);
        }
        self.pass(id, frame, next);
        Ok(true)
    }

    /// At an invalid frame: goes on behind it if nothing that waits is lost by that, or if the caller salvages.
    #[cold]
    fn read_over_damage(
        &mut self,
        journal: &Journal,
        segment: &View,
        end: u32,
        rules: Rules<'_>,
    ) -> Result<bool, TakeError> {
        let at = self.cursor;
        let io = |error| TakeError::Io { segment: at.segment, offset: at.offset, error };
        let mut offset = at.offset + frame::ALIGN;
        let mut next = Cursor { offset: end, ordinal: segment.count(), ..at };
        while offset < end {
            let candidate = segment.frame_at(offset, end).map_err(io)?;
            if let Some(frame) = candidate
                && frame.ordinal >= at.ordinal
                && frame.ordinal <= segment.count()
                && segment
                    .payload(offset, frame.head_len(), frame.payload_len, frame.payload_crc)
                    .map_err(io)?
                    .is_some()
            {
                next = Cursor { offset, ordinal: frame.ordinal, ..at };
                break;
            }
            offset = segment.data_from(offset + frame::ALIGN, end).map_err(io)?;
        }
        let mut lost = Vec::new();
        for ordinal in at.ordinal..next.ordinal {
            if segment.lane(ordinal).map_err(io)? != Some(Lane::Done) {
                lost.push(ordinal);
            }
        }
        if let Some(first) = lost.first()
            && !rules.salvage
        {
            let id = segment.first_id + u64::from(*first);
            return Err(TakeError::Damaged { segment: at.segment, offset: at.offset, id });
        }
        for ordinal in lost {
            // Given up by the option that says so; marked, so that the rest can free the file.
            self.pass_over(journal, segment, ordinal).map_err(io)?;
            self.counts.damaged += 1;
            self.gone_items += 1;
        }
        self.cursor = next;
        if next.ordinal > at.ordinal {
            self.read_id = segment.first_id + u64::from(next.ordinal) - 1;
        }
        Ok(true)
    }

    /// Removes up to `max` expired items, or sets them aside, wherever in the ring they are, and on disk while the ring is empty
    /// of live ones.
    pub(crate) fn sweep(&mut self, journal: &Journal, rules: Rules<'_>, max: u64) -> Result<u64, TakeError> {
        let before = self.swept();
        let mut wanted = match self.keeps_expired {
            true => max.min((ASIDE_MAX - self.aside.len()) as u64),
            false => max,
        };
        let aborted: Vec<Place> = self.aborted.values().filter(|p| self.is_expired(p, rules)).copied().collect();
        for place in aborted {
            if wanted == 0 {
                break;
            }
            self.aborted.remove(&place.id);
            self.expire(journal, place)?;
            wanted -= 1;
        }
        loop {
            let due = self.next_expiry_ms < rules.clock.exact_ms() || self.max_age_ms != NEVER_MS;
            if due && wanted > 0 {
                wanted -= self.sweep_ring(journal, rules, wanted)?;
            }
            // By the age that all share, nothing behind an item is over that is not over itself.
            let by_age = self.max_age_ms != NEVER_MS && self.ring.back().is_none_or(|p| self.is_expired(p, rules));
            if wanted == 0 || !(by_age || self.may_expire_ahead()) || !self.has_room(0) {
                break;
            }
            let read = self.read_id;
            // A stretch at a time: each round looks through the whole ring.
            for _ in 0..16 {
                self.refill(journal, rules, Expired::Kept)?;
            }
            if self.read_id == read {
                break;
            }
        }
        Ok(self.swept() - before)
    }

    fn swept(&self) -> u64 {
        self.counts.expired + self.asides
    }

    /// Keeps an expired item to be moved elsewhere. `false`: there are too many already.
    fn set_aside(&mut self, place: Place) -> bool {
        let has_room = self.aside.len() < ASIDE_MAX;
        if has_room {
            self.aside.insert(place.id, place);
            self.asides += 1;
            self.doomed_since = true;
        }
        has_room
    }

    /// Up to `max` expired items that were set aside, into the caller's hand.
    pub(crate) fn take_aside(&mut self, max: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((_, place)) = self.aside.pop_first()
        {
            taken.push(place);
        }
        taken
    }

    /// Back from the caller's hand; not if the queue was cleared meanwhile.
    pub(crate) fn put_aside(&mut self, places: impl IntoIterator<Item = Place>) {
        let cleared_id = self.cleared_id;
        self.aside.extend(places.into_iter().filter(|place| place.id > cleared_id).map(|place| (place.id, place)));
    }

    /// How many are set aside.
    pub(crate) fn aside(&self) -> u64 {
        self.aside.len() as u64
    }

    /// Nothing waits, is held or is about to leave, and nobody waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.stored_items() == 0
            && self.open.is_empty()
            && self.aside.is_empty()
            && self.line.is_empty()
            && self.space.is_empty()
            && !self.has_hidden()
    }

    fn sweep_ring(&mut self, journal: &Journal, rules: Rules<'_>, max: u64) -> Result<u64, TakeError> {
        let mut swept = Vec::new();
        let mut kept = VecDeque::with_capacity(self.ring.len());
        let mut next_expiry_ms = NEVER_MS;
        for place in std::mem::take(&mut self.ring) {
            if (swept.len() as u64) < max && self.is_expired(&place, rules) {
                swept.push(place);
            } else {
                next_expiry_ms = next_expiry_ms.min(place.expiry_ms);
                kept.push_back(place);
            }
        }
        self.ring = kept;
        self.next_expiry_ms = next_expiry_ms;
        let count = swept.len() as u64;
        let mut result = Ok(count);
        for place in swept {
            self.ring_bytes -= u64::from(place.payload_len);
            self.expiring -= u64::from(place.expiry_ms != NEVER_MS);
            match result {
                Ok(_) => result = self.expire(journal, place).map(|()| count),
                Err(_) => self.put_back(place),
            }
        }
        result
    }

    /// On an error the item waits as before, and the next look meets it again.
    fn expire(&mut self, journal: &Journal, place: Place) -> Result<(), TakeError> {
        if self.keeps_expired {
            match self.set_aside(place) {
                true => self.gone(&place),
                false => self.put_back(place),
            }
            return Ok(());
        }
        if let Err(error) = self.finish(journal, &place) {
            self.put_back(place);
            return Err(error);
        }
        self.gone(&place);
        self.counts.expired += 1;
        Ok(())
    }

    fn finish(&mut self, journal: &Journal, place: &Place) -> Result<(), TakeError> {
        let io = |error| TakeError::Io { segment: place.segment, offset: place.offset, error };
        if let Some(segment) = self.segment(journal, place.segment).map_err(io)? {
            let is_spent = segment.mark_done(place.ordinal).map_err(io)?;
            self.spent |= is_spent;
        }
        Ok(())
    }

    /// Drops the oldest waiting item, durable or not; `false` if none is left.
    pub(crate) fn drop_oldest(&mut self, journal: &Journal, rules: Rules<'_>) -> Result<bool, TakeError> {
        let taken = loop {
            if let Some(taken) = self.take(journal, rules)? {
                break taken;
            }
            if !self.show_next() {
                return Ok(false);
            }
        };
        if let Err(error) = self.finish(journal, &taken.place) {
            self.return_waiting(taken.place);
            return Err(error);
        }
        self.counts.discarded += 1;
        Ok(true)
    }

    /// Shows the oldest hidden item to who drops it, and to nobody else: no promise is made. `false`: none is hidden.
    fn show_next(&mut self) -> bool {
        let shown = self.visible_id();
        let is_hidden = shown < self.front.appended();
        if is_hidden {
            self.shown_id = shown + 1;
        }
        is_hidden
    }

    /// The segment of an item that is held open and still there.
    pub(crate) fn held_in(&self, id: u64, serial: u64) -> Option<u64> {
        let held = self.open.get(&id).filter(|held| held.serial == serial && !held.cleared)?;
        Some(held.place.segment)
    }

    /// Notes that a consumer holds an item and returns the serial of this opening.
    pub(crate) fn hold(&mut self, place: Place, starts: u32, since_ms: u64) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        let held = Held { place, cleared: false, starts, counts: true, since_ms, serial, due_ms: ENDLESS };
        self.open.insert(place.id, held);
        serial
    }

    /// Ends an opening; `None`: it has ended before.
    pub(crate) fn release(&mut self, id: u64, serial: u64) -> Option<Held> {
        match self.open.entry(id) {
            Entry::Occupied(held) if held.get().serial == serial => {
                let held = held.remove();
                self.leases.end(held.due_ms, id);
                Some(held)
            }
            _ => None,
        }
    }

    /// Sets when an opening ends by itself; `None`: it has ended before. `Some(true)`: no timer runs that ends as early.
    pub(crate) fn lease(&mut self, id: u64, serial: u64, due_ms: u64) -> Option<bool> {
        let held = self.open.get_mut(&id).filter(|held| held.serial == serial)?;
        self.leases.end(held.due_ms, id);
        held.due_ms = due_ms;
        Some(self.leases.begin(due_ms, id))
    }

    /// Ends the first opening whose lease is over.
    pub(crate) fn release_overdue(&mut self, now_ms: u64) -> Option<Held> {
        let id = self.leases.overdue(now_ms)?;
        let serial = self.open.get(&id)?.serial;
        self.release(id, serial)
    }

    /// Takes an open item out of its consumer's hands, on its way to the dead letters.
    pub(crate) fn doom(&mut self, id: u64) {
        let serial = self.next_serial;
        if let Some(held) = self.open.get_mut(&id) {
            self.next_serial += 1;
            held.serial = serial;
            self.leases.end(held.due_ms, id);
            held.due_ms = ENDLESS;
            self.doomed.push((id, serial));
            self.doomed_since = true;
        }
    }

    /// As [`Reader::doom`], for an item that was just released.
    pub(crate) fn doom_released(&mut self, held: Held) {
        let id = held.place.id;
        self.open.insert(id, held);
        self.doom(id);
    }

    pub(crate) fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// The items that wait to be moved to the dead letters.
    pub(crate) fn doomed(&self) -> Vec<(u64, u64)> {
        self.doomed.clone()
    }

    /// One of them was moved, or waits again.
    pub(crate) fn end_doom(&mut self, id: u64, serial: u64) {
        self.doomed.retain(|doomed| *doomed != (id, serial));
    }

    /// An item that waits is done, by what another queue's journal says; called before anything was read or taken.
    pub(crate) fn forget(&mut self, place: &Place) {
        self.gone(place);
    }

    /// Everything that came so far is gone; returns how many waited. The tail's holder says where that `end`s.
    pub(crate) fn clear(&mut self, end: Cursor) -> u64 {
        let cleared = self.stored_items();
        self.deferred = Deferred::default();
        (self.passed_deferred, self.passed_deferred_bytes) = (0, 0);
        self.ring.clear();
        self.aborted.clear();
        self.ahead.clear();
        (self.ring_bytes, self.expiring, self.next_expiry_ms) = (0, 0, NEVER_MS);
        let last_id = self.front.appended();
        if self.lanes.is_none() {
            self.front.show(last_id);
        }
        self.others.clear();
        self.began = Began { id: last_id, items: 0, bytes: 0, intake: self.front.intake() };
        (self.gone_items, self.gone_bytes, self.passed_expiring) = (0, 0, 0);
        (self.read_id, self.shown_id, self.cleared_id) = (last_id, last_id, last_id);
        self.cursor = end;
        self.aside.clear();
        self.current = None;
        for held in self.open.values_mut() {
            held.cleared = true;
        }
        let doomed = std::mem::take(&mut self.doomed);
        for (id, serial) in doomed {
            self.release(id, serial);
        }
        self.counts.clears += 1;
        cleared
    }

    /// Items held ready and their bytes.
    pub(crate) fn in_memory(&self) -> (u64, u64) {
        let aborted: u64 = self.aborted.values().map(|p| u64::from(p.payload_len)).sum();
        ((self.ring.len() + self.aborted.len()) as u64, self.ring_bytes + aborted)
    }

    /// Put time of the first item that waits, as far as it is known without reading.
    pub(crate) fn oldest_put_ms(&self) -> Option<u64> {
        self.aborted.values().next().or_else(|| self.ring.front()).map(|place| place.put_ms)
    }

    /// The first waiting item, without taking it.
    pub(crate) fn peek(&mut self, journal: &Journal, rules: Rules<'_>) -> Result<Option<Taken>, TakeError> {
        let taken = self.take(journal, rules)?;
        if let Some(taken) = &taken {
            self.return_waiting(taken.place);
        }
        Ok(taken)
    }
}
