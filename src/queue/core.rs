//! What a queue is made of, and the stories that cross its rooms: put, take, finish, wait, look after.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::clock::Clock;
use crate::disk::{self, Disk, ForkGuard};
use crate::error::{CloseError, GetError, Limit, PutError, SyncError};
use crate::ids::{ItemId, NEVER_MS, Place};
use crate::item::Item;
use crate::journal::lane::Lane;
use crate::journal::{AppendError, Journal, NewItem};
use crate::options::{Durability, Expiry, PutOptions, QueueOptions, WhenFull};
use crate::planted::{self, Bug};
use crate::reader::waiters::{Ticket, Wakes};
use crate::reader::{Held, Reader, Rules, TakeError, Taken};
use crate::stats::{QueueStats, RecoveryReport};
use crate::upkeep::{Chore, Upkeep};

/// How long a queue that has something to do by time is left alone.
const TEND_MS: u64 = 1000;
const HOUR_MS: u64 = 3_600_000;

/// What all queues of a set share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    pub(crate) fork: ForkGuard,
    pub(crate) upkeep: Upkeep,
    pub(crate) closed: AtomicBool,
    pub(crate) read_only: bool,
    pub(crate) salvage: bool,
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) journal: Journal,
    /// Lock 3; the tail lock of the journal comes before it.
    pub(crate) reader: Mutex<Reader>,
    pub(crate) options: RwLock<QueueOptions>,
    /// What a put needs of the options, under the tail lock's eyes: read without a lock, written with it.
    durability: AtomicU64,
    pub(crate) limits: RwLock<Limits>,
    pub(crate) report: RecoveryReport,
    pub(crate) create_ms: u64,
    has_journal: bool,
    /// A `Tend` is on its way or waits.
    tending: AtomicBool,
    sync_rung: AtomicBool,
    /// What was appended when the queue was last looked after.
    tended_id: AtomicU64,
    me: Weak<Core>,
}

/// The limits of a put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    max_items: u64,
    max_bytes: u64,
    max_item_size: u32,
    when_full: WhenFull,
    max_age_ms: u64,
    bounded: bool,
}

impl Limits {
    fn of(options: &QueueOptions) -> Limits {
        Limits {
            max_items: options.max_items.unwrap_or(u64::MAX),
            max_bytes: options.max_bytes.unwrap_or(u64::MAX),
            max_item_size: options.max_item_size,
            when_full: options.when_full,
            max_age_ms: options.max_age_ms(),
            bounded: options.max_items.is_some() || options.max_bytes.is_some(),
        }
    }

    /// The limit that `items` more items of `bytes` would break.
    fn broken(&self, reader: &Reader, items: u64, bytes: u64) -> Option<Limit> {
        if reader.items.saturating_add(items) > self.max_items {
            return Some(Limit::Items);
        }
        (reader.bytes.saturating_add(bytes) > self.max_bytes).then_some(Limit::Bytes)
    }

    /// Whether no queue, however empty, could take them.
    fn hopeless(&self, items: u64, bytes: u64) -> Option<Limit> {
        if items > self.max_items {
            return Some(Limit::Items);
        }
        (bytes > self.max_bytes).then_some(Limit::Bytes)
    }
}

/// How long a put waits for room.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Room {
    /// As the queue's `when_full` says.
    ByPolicy,
    /// As its caller says.
    Within(Patience),
}

impl Room {
    fn may_wait(self, when_full: WhenFull) -> bool {
        match self {
            Room::ByPolicy => when_full == WhenFull::Wait,
            Room::Within(patience) => !matches!(patience, Patience::None),
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Room::ByPolicy => None,
            Room::Within(patience) => patience.deadline(),
        }
    }
}

/// How long a get or a put may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Not at all.
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    /// A span that ends beyond what an `Instant` can say has no end.
    pub(crate) fn lasting(span: std::time::Duration) -> Patience {
        if span.is_zero() {
            return Patience::None;
        }
        disk::instant_now().checked_add(span).map_or(Patience::Forever, Patience::Until)
    }

    pub(crate) fn until(deadline: Instant) -> Patience {
        if deadline <= disk::instant_now() { Patience::None } else { Patience::Until(deadline) }
    }

    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Patience::Until(deadline) => Some(deadline),
            _ => None,
        }
    }
}

/// Whether a taken item is done at once or held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Get,
    Open,
}

/// What a consumer is given; `serial` names the opening.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) item: Item,
    pub(crate) serial: u64,
}

const SYNC: u64 = 0;
const OS: u64 = 1;

impl Core {
    #[expect(clippy::too_many_arguments, reason = "called once, by the set")]
    pub(crate) fn new(
        name: String,
        shared: Arc<Shared>,
        journal: Journal,
        mut reader: Reader,
        options: QueueOptions,
        report: RecoveryReport,
        create_ms: u64,
        has_journal: bool,
    ) -> Arc<Core> {
        reader.memory_bytes = options.memory_bytes;
        reader.max_age_ms = options.max_age_ms();
        Arc::new_cyclic(|me| Core {
            name,
            shared,
            journal,
            reader: Mutex::new(reader),
            durability: AtomicU64::new(durability_code(&options)),
            limits: RwLock::new(Limits::of(&options)),
            options: RwLock::new(options),
            report,
            create_ms,
            has_journal,
            tending: AtomicBool::new(false),
            sync_rung: AtomicBool::new(false),
            tended_id: AtomicU64::new(0),
            me: me.clone(),
        })
    }

    /// Puts new options in force. The caller has checked and stored them.
    pub(crate) fn apply(&self, options: QueueOptions) {
        let mut wakes = Wakes::default();
        {
            let mut tail = self.journal.tail.lock();
            self.journal.set_segment_bytes(&mut tail, options.segment_bytes);
            self.durability.store(durability_code(&options), Ordering::Relaxed);
            *self.limits.write() = Limits::of(&options);
            let mut reader = self.reader.lock();
            reader.memory_bytes = options.memory_bytes;
            reader.max_age_ms = options.max_age_ms();
            reader.room(&mut wakes);
            *self.options.write() = options;
        }
        wakes.wake();
        self.ring_tend();
    }

    pub(crate) fn has_journal(&self) -> bool {
        self.has_journal
    }

    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.shared.fork.forked()
    }

    fn rules(&self) -> Rules<'_> {
        Rules::new(&self.shared.clock, self.shared.salvage)
    }

    // ---- put

    /// Stores one item, or a batch whole, and waits as long as its durability says unless `no_wait`.
    pub(crate) fn put(
        &self,
        payloads: &[&[u8]],
        options: &PutOptions,
        room: Room,
        no_wait: bool,
        ids: &mut Vec<ItemId>,
    ) -> Result<ItemId, PutError> {
        if self.is_forked() {
            return Err(PutError::Forked);
        }
        if self.shared.read_only {
            return Err(PutError::ReadOnly);
        }
        let must_sync = self.must_sync(options.durability);
        let total = payloads.iter().map(|p| p.len() as u64).sum::<u64>();
        let mut ticket: Option<SpaceTicket<'_>> = None;
        loop {
            let tried = self.try_put(payloads, total, options, must_sync, &mut ticket, room, ids);
            match tried {
                Err(PutError::Full { limit: Limit::Disk, .. }) if self.make_disk_room() => {}
                Err(error) => return Err(error),
                Ok(Some(last)) => {
                    drop(ticket);
                    if must_sync && !no_wait {
                        self.wait_durable(last.0)?;
                    } else if must_sync {
                        self.ring_sync();
                    }
                    return Ok(last);
                }
                Ok(None) => {
                    // Refused for now, and in the line of those who wait for room.
                    let waits = ticket.as_ref().is_some_and(|t| t.ticket.sleep(room.deadline()));
                    if !waits {
                        return Err(PutError::Full { queue: self.name.clone(), limit: self.broken(payloads, total) });
                    }
                }
            }
        }
    }

    /// The set's disk is full: where the policy is to drop, drops oldest items until a segment is free. `false`: none is.
    fn make_disk_room(&self) -> bool {
        if self.limits.read().when_full != WhenFull::DropOldest {
            return false;
        }
        let spent = {
            let mut reader = self.reader.lock();
            while !reader.spent && matches!(reader.drop_oldest(&self.journal, self.rules()), Ok(true)) {}
            std::mem::take(&mut reader.spent)
        };
        if spent {
            self.free_spent();
        }
        spent
    }

    fn broken(&self, payloads: &[&[u8]], total: u64) -> Limit {
        let limits = *self.limits.read();
        limits.broken(&self.reader.lock(), payloads.len() as u64, total).unwrap_or(Limit::Items)
    }

    fn must_sync(&self, asked: Option<Durability>) -> bool {
        self.has_journal
            && match asked {
                None => self.durability.load(Ordering::Relaxed) == SYNC,
                Some(asked) => asked == Durability::Sync,
            }
    }

    /// `Ok(None)`: no room; `ticket` stands in the line.
    #[expect(clippy::too_many_arguments, reason = "one story; its callers are the two lines above")]
    fn try_put<'a>(
        &'a self,
        payloads: &[&[u8]],
        total: u64,
        options: &PutOptions,
        must_sync: bool,
        ticket: &mut Option<SpaceTicket<'a>>,
        room: Room,
        ids: &mut Vec<ItemId>,
    ) -> Result<Option<ItemId>, PutError> {
        let mut wakes = Wakes::default();
        let mut tail = self.journal.tail.lock();
        let limits = *self.limits.read();
        for payload in payloads {
            if payload.len() as u64 > u64::from(limits.max_item_size) {
                return Err(PutError::TooLarge { len: payload.len() as u64, max: limits.max_item_size.into() });
            }
        }
        if tail.closed {
            return Err(PutError::Closed);
        }
        let full = |limit| PutError::Full { queue: self.name.clone(), limit };
        if let Some(source) = self.journal.commit.failure() {
            return Err(PutError::Failed { queue: self.name.clone(), source });
        }
        if limits.bounded || ticket.is_some() {
            let items = payloads.len() as u64;
            if let Some(limit) = limits.hopeless(items, total) {
                return Err(full(limit));
            }
            let mut reader = self.reader.lock();
            let mut broken = limits.broken(&reader, items, total);
            if broken.is_some() {
                // Expired items are no reason to refuse.
                let rules = self.rules();
                let _ = reader.sweep(&self.journal, rules, u64::MAX);
                broken = limits.broken(&reader, items, total);
            }
            while let Some(limit) = broken
                && limits.when_full == WhenFull::DropOldest
            {
                let rules = self.rules();
                match reader.drop_oldest(&self.journal, rules) {
                    Ok(true) => broken = limits.broken(&reader, items, total),
                    _ => return Err(full(limit)),
                }
            }
            let overtakes = match &ticket {
                Some(own) => !reader.space.is_called(&own.ticket),
                None => !reader.space.is_empty(),
            };
            let may_wait = room.may_wait(limits.when_full);
            if let Some(limit) = broken.or(overtakes.then_some(Limit::Items)) {
                if limits.when_full == WhenFull::DropOldest || (!may_wait && broken.is_some()) {
                    return Err(full(limit));
                }
                if may_wait {
                    match ticket {
                        Some(own) => reader.space.rejoin(&own.ticket),
                        None => *ticket = Some(SpaceTicket { core: self, ticket: reader.space.join() }),
                    }
                    // Room that is promised to nobody goes to the first in the line.
                    if broken.is_none() {
                        reader.room(&mut wakes);
                    }
                    drop(reader);
                    drop(tail);
                    wakes.wake();
                    return Ok(None);
                }
            }
            let spent = std::mem::take(&mut reader.spent);
            drop(reader);
            if spent {
                self.ring_free();
            }
        }

        let put_ms = self.shared.clock.now_ms();
        let expiry_ms = expiry_ms(options.expiry, put_ms, limits.max_age_ms, &self.shared.clock);
        let item = |payload| NewItem { payload, expiry_ms, user_flags: options.flags };
        let hide = must_sync && !planted::is(Bug::AckBeforeSync);
        let last = if let [payload] = payloads {
            let place = self.journal.append(&mut tail, item(payload), put_ms).map_err(|e| self.append_error(e))?;
            let mut reader = self.reader.lock();
            reader.offer(place, hide, &mut wakes);
            place.id
        } else {
            let items: Vec<NewItem<'_>> = payloads.iter().map(|payload| item(payload)).collect();
            let places = self.journal.append_batch(&mut tail, &items, put_ms).map_err(|e| self.append_error(e))?;
            let mut reader = self.reader.lock();
            for place in &places {
                reader.offer(*place, hide, &mut wakes);
                ids.push(ItemId(place.id));
            }
            places.last().map_or(0, |place| place.id)
        };
        let arm = self.journal.wants_spare(&mut tail);
        let spent = std::mem::take(&mut tail.spent);
        drop(tail);
        wakes.wake();
        if spent {
            self.ring_free();
        }
        if arm {
            self.shared.upkeep.ring(Chore::Arm(self.me.clone()));
        }
        if !must_sync && self.has_journal && self.durability.load(Ordering::Relaxed) == SYNC {
            // It may have come behind an item that waits for a sync which is not its own.
            let hidden = self.reader.lock().has_hidden();
            if hidden {
                self.ring_sync();
            }
        }
        if expiry_ms != NEVER_MS || self.durability.load(Ordering::Relaxed) != OS {
            self.ring_tend();
        }
        Ok(Some(ItemId(last)))
    }

    fn append_error(&self, error: AppendError) -> PutError {
        let queue = self.name.clone();
        match error {
            AppendError::NoSpace(source) => PutError::NoSpace { queue, source: Arc::new(source) },
            AppendError::DiskCap => PutError::Full { queue, limit: Limit::Disk },
            AppendError::TooLarge { max } => PutError::TooLarge { len: u64::MAX, max },
            AppendError::Exhausted => PutError::Exhausted,
            AppendError::Io { segment, error } => PutError::Io { queue, segment, source: Arc::new(error) },
        }
    }

    fn wait_durable(&self, id: u64) -> Result<(), PutError> {
        self.journal
            .commit
            .wait(id, || self.journal.sync(false), |durable| self.publish(durable))
            .map_err(|source| PutError::Indeterminate { queue: self.name.clone(), source })
    }

    fn publish(&self, durable: u64) {
        let mut wakes = Wakes::default();
        self.reader.lock().publish(durable, &mut wakes);
        wakes.wake();
    }

    // ---- take

    /// Takes an item for a consumer who does not wait, or for one whose ticket was called.
    pub(crate) fn take(&self, mode: Mode, ticket: Option<&Ticket>) -> Result<Took, GetError> {
        let mut ticket = ticket;
        loop {
            let mut reader = self.reader.lock();
            if reader.closed {
                if let Some(ticket) = ticket {
                    reader.line.leave(ticket);
                }
                return Err(GetError::Closed);
            }
            match ticket {
                Some(ticket) if !reader.line.is_called(ticket) => return Ok(Took::NotYet),
                Some(ticket) if reader.paused => {
                    reader.line.rejoin(ticket);
                    return Ok(Took::NotYet);
                }
                None if !reader.has_unpromised() => return Ok(Took::Nothing),
                _ => {}
            }
            let rules = self.rules();
            let ahead = ticket.map_or(0, |ticket| reader.line.ahead(ticket));
            let taken = match reader.take_after(&self.journal, rules, ahead) {
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    let spent = std::mem::take(&mut reader.spent);
                    if let Some(ticket) = ticket {
                        reader.line.rejoin(ticket);
                    }
                    let mut wakes = Wakes::default();
                    reader.room(&mut wakes);
                    drop(reader);
                    wakes.wake();
                    if spent {
                        self.ring_free();
                    }
                    return Ok(if ticket.is_some() { Took::NotYet } else { Took::Nothing });
                }
                Err(error) => {
                    let mut wakes = Wakes::default();
                    if let Some(ticket) = ticket {
                        reader.line.leave(ticket);
                        reader.promise(&mut wakes);
                    }
                    drop(reader);
                    wakes.wake();
                    return Err(self.take_error(error));
                }
            };
            // From here the ticket is spent, also if the item turns out damaged: the next round goes without.
            if let Some(ticket) = ticket.take() {
                reader.line.leave(ticket);
            }
            let before = match taken.segment.lane(taken.place.ordinal) {
                Ok(lane) => lane.unwrap_or(Lane::Waiting { starts: 0 }),
                Err(error) => {
                    let place = taken.place;
                    reader.return_waiting(place);
                    drop(reader);
                    return Err(self.take_error(TakeError::Io { segment: place.segment, offset: place.offset, error }));
                }
            };
            let starts = u32::from(before.starts()) + 1;
            reader.counts.last_age_ms = rules.now_ms.saturating_sub(taken.place.put_ms);
            reader.counts.get_hits += 1;
            reader.counts.redelivered += u64::from(starts > 1);
            let mut wakes = Wakes::default();
            reader.room(&mut wakes);
            let mut serial = 0;
            if mode == Mode::Open {
                reader.counts.transactions += 1;
                serial = reader.hold(&taken, starts, rules.now_ms);
                let lane = Lane::InFlight { starts: u8::try_from(starts).unwrap_or(u8::MAX) };
                // A start that cannot be counted is still a start; the close will tell of the medium.
                let _ = taken.segment.mark(taken.place.ordinal, lane);
            }
            let spent = std::mem::take(&mut reader.spent);
            drop(reader);
            wakes.wake();
            if spent {
                self.ring_free();
            }

            // The payload is copied without the lock: the segment cannot be freed while it is in hand.
            match self.journal.read(&taken.segment, &taken.place) {
                Ok(Some(payload)) => {
                    let place = taken.place;
                    if mode == Mode::Get {
                        self.finish(&taken.segment, &place)
                            .map_err(|error| self.undo(&taken, mode, serial, before, Some(error)))?;
                    }
                    let item = Item {
                        id: place.id,
                        payload,
                        put_ms: place.put_ms,
                        expiry_ms: place.expiry_ms,
                        user_flags: place.user_flags,
                        attempts: starts,
                    };
                    return Ok(Took::Item(Given { item, serial }));
                }
                Ok(None) if self.shared.salvage => {
                    let mut reader = self.reader.lock();
                    reader.release(taken.place.id, serial);
                    reader.counts.damaged += 1;
                    reader.counts.get_hits -= 1;
                    drop(reader);
                    let _ = self.finish(&taken.segment, &taken.place);
                }
                Ok(None) => return Err(self.undo(&taken, mode, serial, before, None)),
                Err(error) => return Err(self.undo(&taken, mode, serial, before, Some(error))),
            }
        }
    }

    /// An item that was taken and could not be read waits again, as if it had not been touched.
    fn undo(&self, taken: &Taken, mode: Mode, serial: u64, before: Lane, error: Option<std::io::Error>) -> GetError {
        let place = taken.place;
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if mode == Mode::Open {
            reader.release(place.id, serial);
            let _ = taken.segment.mark(
                place.ordinal,
                match before {
                    Lane::Done => Lane::Waiting { starts: 0 },
                    lane => lane,
                },
            );
        }
        reader.counts.get_hits -= 1;
        reader.return_waiting(place);
        reader.promise(&mut wakes);
        drop(reader);
        // Not woken: whoever came next would meet the same item and the same error, round and round.
        drop(wakes);
        self.take_error(match error {
            Some(error) => TakeError::Io { segment: place.segment, offset: place.offset, error },
            None => TakeError::Damaged { segment: place.segment, offset: place.offset, id: place.id },
        })
    }

    fn take_error(&self, error: TakeError) -> GetError {
        let queue = self.name.clone();
        match error {
            TakeError::Damaged { segment, offset, id } => {
                GetError::Corrupt { queue, segment, offset: offset.into(), id: Some(ItemId(id)) }
            }
            TakeError::Io { segment, offset, error } => {
                GetError::Io { queue, segment, offset: offset.into(), source: Arc::new(error) }
            }
        }
    }

    fn finish(&self, segment: &crate::journal::segment::Segment, place: &Place) -> std::io::Result<()> {
        if segment.mark_done(place.ordinal)? {
            self.ring_free();
        }
        if self.durability.load(Ordering::Relaxed) != OS {
            self.ring_tend();
        }
        Ok(())
    }

    /// Takes an item, waiting in line if `patience` says so. `Ok(None)`: none came.
    pub(crate) fn take_waiting(&self, mode: Mode, patience: Patience) -> Result<Option<Given>, GetError> {
        self.may_take()?;
        match self.take(mode, None)? {
            Took::Item(given) => return Ok(Some(given)),
            Took::Nothing | Took::NotYet if matches!(patience, Patience::None) => {
                self.missed(mode);
                return Ok(None);
            }
            Took::Nothing | Took::NotYet => {}
        }
        let place = self.join();
        loop {
            // Look again after joining: what came in between was promised to nobody.
            match self.take(mode, Some(&place.ticket))? {
                Took::Item(given) => return Ok(Some(given)),
                Took::Nothing | Took::NotYet => {}
            }
            if !place.ticket.sleep(patience.deadline()) {
                // Called at the very end: the promise is there to be kept.
                if let Took::Item(given) = self.take(mode, Some(&place.ticket))? {
                    return Ok(Some(given));
                }
                drop(place);
                self.missed(mode);
                return Ok(None);
            }
        }
    }

    pub(crate) fn may_take(&self) -> Result<(), GetError> {
        if self.is_forked() {
            return Err(GetError::Forked);
        }
        if self.shared.read_only {
            return Err(GetError::ReadOnly);
        }
        Ok(())
    }

    pub(crate) fn missed(&self, mode: Mode) {
        let mut reader = self.reader.lock();
        reader.counts.get_misses += 1;
        reader.counts.transactions += u64::from(mode == Mode::Open);
    }

    /// Joins the line of consumers; leaves it when dropped, passing a promise on.
    pub(crate) fn join(&self) -> LinePlace {
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        let ticket = reader.line.join();
        reader.promise(&mut wakes);
        if reader.closed {
            reader.line.end(&mut wakes);
        }
        drop(reader);
        wakes.wake();
        LinePlace { core: self.me.clone(), ticket }
    }

    /// For futures: an item, or registered to be woken.
    pub(crate) fn poll_take(
        &self,
        mode: Mode,
        place: &mut Option<LinePlace>,
        waker: &Waker,
    ) -> Result<Option<Given>, GetError> {
        self.may_take()?;
        if place.is_none() {
            if let Took::Item(given) = self.take(mode, None)? {
                return Ok(Some(given));
            }
            *place = Some(self.join());
        }
        let Some(waiting) = place else {
            return Ok(None);
        };
        loop {
            let result = self.take(mode, Some(&waiting.ticket));
            match result {
                Ok(Took::Item(given)) => {
                    *place = None;
                    return Ok(Some(given));
                }
                Err(error) => {
                    *place = None;
                    return Err(error);
                }
                Ok(Took::Nothing | Took::NotYet) => {}
            }
            if !waiting.ticket.register(waker) {
                return Ok(None);
            }
        }
    }

    // ---- the end of an open item

    /// Closes an opening. `Ok(false)`: it had ended before.
    pub(crate) fn close_item(&self, id: u64, serial: u64) -> Result<bool, CloseError> {
        if self.is_forked() {
            return Err(CloseError::Forked);
        }
        let mut reader = self.reader.lock();
        if reader.closed {
            return Err(CloseError::Closed);
        }
        let Some(held) = reader.release(id, serial) else {
            return Ok(false);
        };
        let Some(segment) = &held.segment else {
            return Ok(true);
        };
        if let Err(error) = self.finish(segment, &held.place) {
            let number = segment.number;
            let wakes = self.give_back(&mut reader, held);
            drop(reader);
            wakes.wake();
            return Err(CloseError::Io { queue: self.name.clone(), segment: number, source: Arc::new(error) });
        }
        Ok(true)
    }

    /// Ends an opening without success: the item waits again. `false`: it had ended before.
    pub(crate) fn abort_item(&self, id: u64, serial: u64) -> bool {
        if self.is_forked() {
            return false;
        }
        let mut reader = self.reader.lock();
        if reader.closed {
            return false;
        }
        let Some(held) = reader.release(id, serial) else {
            return false;
        };
        reader.counts.aborts += 1;
        let wakes = self.give_back(&mut reader, held);
        drop(reader);
        wakes.wake();
        true
    }

    fn give_back(&self, reader: &mut Reader, held: Held) -> Wakes {
        let mut wakes = Wakes::default();
        // After a clear there is no place to come back to.
        if let Some(segment) = &held.segment {
            let starts = u8::try_from(held.starts).unwrap_or(u8::MAX);
            let _ = segment.mark(held.place.ordinal, Lane::Waiting { starts });
            reader.return_waiting(held.place);
            reader.promise(&mut wakes);
        }
        wakes
    }

    pub(crate) fn peek(&self) -> Result<Option<Item>, GetError> {
        if self.is_forked() {
            return Err(GetError::Forked);
        }
        let mut reader = self.reader.lock();
        if reader.closed {
            return Err(GetError::Closed);
        }
        let rules = self.rules();
        let taken = if reader.paused {
            None
        } else {
            reader.peek(&self.journal, rules).map_err(|error| self.take_error(error))?
        };
        let Some(taken) = taken else {
            reader.counts.get_misses += 1;
            return Ok(None);
        };
        // Under the lock, so that the item is still there when it is shown.
        let place = taken.place;
        let starts = taken.segment.lane(place.ordinal).ok().flatten().map_or(0, Lane::starts);
        match self.journal.read(&taken.segment, &place) {
            Ok(Some(payload)) => Ok(Some(Item {
                id: place.id,
                payload,
                put_ms: place.put_ms,
                expiry_ms: place.expiry_ms,
                user_flags: place.user_flags,
                attempts: starts.into(),
            })),
            Ok(None) => {
                Err(self.take_error(TakeError::Damaged { segment: place.segment, offset: place.offset, id: place.id }))
            }
            Err(error) => Err(self.take_error(TakeError::Io { segment: place.segment, offset: place.offset, error })),
        }
    }

    // ---- all at once

    pub(crate) fn clear(&self) -> std::io::Result<u64> {
        let mut wakes = Wakes::default();
        let cleared = {
            let mut tail = self.journal.tail.lock();
            let mut reader = self.reader.lock();
            self.journal.clear(&mut tail)?;
            let cleared = reader.clear();
            reader.room(&mut wakes);
            cleared
        };
        wakes.wake();
        self.ring_free();
        Ok(cleared)
    }

    pub(crate) fn sweep(&self, max: u64) -> Result<u64, GetError> {
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if reader.closed {
            return Err(GetError::Closed);
        }
        let rules = self.rules();
        let swept = reader.sweep(&self.journal, rules, max);
        reader.room(&mut wakes);
        let spent = std::mem::take(&mut reader.spent);
        drop(reader);
        wakes.wake();
        if spent {
            self.ring_free();
        }
        swept.map_err(|error| self.take_error(error))
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        reader.paused = paused;
        reader.promise(&mut wakes);
        drop(reader);
        wakes.wake();
    }

    /// Waits until the item `id` is on the device.
    pub(crate) fn synced(&self, id: u64) -> Result<(), SyncError> {
        self.may_sync()?;
        if id > self.journal.appended() {
            return Err(SyncError::UnknownId { id: ItemId(id) });
        }
        self.journal
            .commit
            .wait(id, || self.journal.sync(false), |durable| self.publish(durable))
            .map_err(|source| self.sync_error(source))
    }

    /// One sync of everything, marks included.
    pub(crate) fn sync(&self) -> Result<(), SyncError> {
        self.may_sync()?;
        self.sync_round()
    }

    pub(crate) fn sync_round(&self) -> Result<(), SyncError> {
        if !self.journal.is_unsynced() {
            return match self.journal.commit.failure() {
                Some(source) => Err(self.sync_error(source)),
                None => Ok(()),
            };
        }
        self.journal
            .commit
            .round(|| self.journal.sync(true), |durable| self.publish(durable))
            .map_err(|source| self.sync_error(source))
    }

    pub(crate) fn may_sync(&self) -> Result<(), SyncError> {
        if self.is_forked() {
            return Err(SyncError::Forked);
        }
        if self.shared.read_only {
            return Err(SyncError::ReadOnly);
        }
        if self.reader.lock().closed {
            return Err(SyncError::Closed);
        }
        Ok(())
    }

    pub(crate) fn sync_error(&self, source: Arc<std::io::Error>) -> SyncError {
        SyncError::Failed { queue: self.name.clone(), source }
    }

    // ---- upkeep

    pub(crate) fn ring_free(&self) {
        self.shared.upkeep.ring(Chore::Free(self.me.clone()));
    }

    /// Asks for a sync by the upkeep thread, for those who do not wait for one.
    pub(crate) fn ring_sync(&self) {
        if !self.sync_rung.swap(true, Ordering::AcqRel) {
            self.shared.upkeep.ring(Chore::Sync(self.me.clone()));
        }
    }

    /// Asks to be looked after, once until that has happened.
    #[inline]
    fn ring_tend(&self) {
        if self.has_journal_or_expiry() && !self.tending.load(Ordering::Relaxed) {
            self.ring_tend_now();
        }
    }

    fn has_journal_or_expiry(&self) -> bool {
        !self.shared.read_only
    }

    #[cold]
    fn ring_tend_now(&self) {
        if !self.tending.swap(true, Ordering::AcqRel) {
            self.shared.upkeep.ring(Chore::Tend(self.me.clone(), self.tend_after_ms()));
        }
    }

    fn tend_after_ms(&self) -> u64 {
        match self.options.read().durability {
            Durability::Every(period) => u64::try_from(period.as_millis()).unwrap_or(u64::MAX).clamp(1, TEND_MS),
            _ => TEND_MS,
        }
    }

    pub(crate) fn sync_appended(&self) {
        self.sync_rung.store(false, Ordering::Release);
        // A failure is latched and told to everyone who asks.
        let _ = self.journal.commit.wait(
            self.journal.appended(),
            || self.journal.sync(false),
            |durable| self.publish(durable),
        );
    }

    /// Frees spent segments; `true`: one was still held and should be looked at again.
    pub(crate) fn free_spent(&self) -> bool {
        let above = {
            let mut reader = self.reader.lock();
            if reader.closed {
                return false;
            }
            reader.let_go();
            reader.reading()
        };
        let left = self.journal.free_spent(|_| false);
        self.journal.rest_unused(above);
        let mut wakes = Wakes::default();
        self.reader.lock().room(&mut wakes);
        wakes.wake();
        left.unwrap_or(false)
    }

    /// What there is to do by time. `None`: nothing more, until somebody rings again.
    pub(crate) fn tend(&self) -> Option<u64> {
        if self.is_forked() || self.reader.lock().closed {
            return None;
        }
        // From now on whoever changes something rings again.
        self.tending.store(false, Ordering::Release);
        let (durability, max_sweep) = {
            let options = self.options.read();
            (options.durability, options.max_expire_sweep)
        };
        if durability != Durability::Os && self.has_journal {
            let _ = self.sync_round();
            let appended = self.journal.appended();
            if self.tended_id.swap(appended, Ordering::AcqRel) == appended {
                let _ = self.journal.checkpoint();
            } else {
                self.ring_later();
            }
        }
        let can_expire = self.reader.lock().can_expire();
        if can_expire {
            let _ = self.sweep(max_sweep.into());
            self.ring_later();
        }
        self.free_spent();
        None
    }

    fn ring_later(&self) {
        self.ring_tend_now();
    }

    // ---- the end

    /// Ends all waiting; every later operation answers `Closed`. With `refund`, items held open get their start back.
    pub(crate) fn shut(&self, refund: bool) {
        let mut wakes = Wakes::default();
        let mut tail = self.journal.tail.lock();
        let mut reader = self.reader.lock();
        if reader.closed {
            return;
        }
        tail.closed = true;
        reader.closed = true;
        reader.line.end(&mut wakes);
        reader.space.end(&mut wakes);
        if refund {
            for held in reader.open.values() {
                if let Some(segment) = &held.segment {
                    let starts = u8::try_from(held.starts.saturating_sub(1)).unwrap_or(u8::MAX);
                    let _ = segment.mark(held.place.ordinal, Lane::Waiting { starts });
                }
            }
        }
        reader.open.clear();
        reader.let_go();
        drop(reader);
        drop(tail);
        wakes.wake();
    }

    /// Leaves the journal in good order: all durable, sealed.
    pub(crate) fn settle(&self) -> Result<(), SyncError> {
        if self.shared.read_only || !self.has_journal {
            return Ok(());
        }
        let untouched = !self.journal.is_unsynced() && self.journal.is_untouched();
        if untouched {
            self.journal.disarm();
            return Ok(());
        }
        self.sync_round()?;
        let _ = self.journal.free_spent(|_| false);
        self.journal.seal_clean().map_err(|error| self.sync_error(Arc::new(error)))
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let (segments, log_size, unsynced_bytes) = self.journal.gauges();
        let now_ms = self.shared.clock.exact_ms();
        let reader = self.reader.lock();
        let (mem_items, mem_bytes) = reader.in_memory();
        let counts = &reader.counts;
        QueueStats {
            items: reader.items,
            bytes: reader.bytes,
            total_items: counts.total_items,
            put_bytes: counts.put_bytes,
            get_hits: counts.get_hits,
            get_misses: counts.get_misses,
            mem_items,
            mem_bytes,
            age_ms: if reader.items == 0 { 0 } else { counts.last_age_ms },
            oldest_age_ms: match reader.oldest_put_ms() {
                Some(put_ms) if reader.items > 0 => now_ms.saturating_sub(put_ms),
                _ => 0,
            },
            expired_items: counts.expired,
            discarded: counts.discarded,
            waiters: reader.line.len(),
            open_items: reader.open.len() as u64,
            transactions: counts.transactions,
            canceled_transactions: counts.aborts,
            total_flushes: counts.clears,
            create_time_ms: self.create_ms,
            log_size: if self.has_journal { log_size } else { 0 },
            segments,
            redelivered: counts.redelivered,
            unsynced_bytes,
            syncs: self.journal.commit.syncs.load(Ordering::Relaxed),
            leaked_open_items: reader
                .open
                .values()
                .filter(|held| now_ms.saturating_sub(held.since_ms) > HOUR_MS)
                .count() as u64,
            damaged_items: counts.damaged,
        }
    }
}

/// What a take found.
#[derive(Debug)]
pub(crate) enum Took {
    Item(Given),
    /// Nothing that is not promised to somebody.
    Nothing,
    /// The ticket's turn has not come.
    NotYet,
}

/// A place in the line of consumers; given up when dropped.
#[derive(Debug)]
pub(crate) struct LinePlace {
    core: Weak<Core>,
    pub(crate) ticket: Ticket,
}

impl Drop for LinePlace {
    fn drop(&mut self) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        if core.is_forked() {
            return;
        }
        let mut wakes = Wakes::default();
        let mut reader = core.reader.lock();
        reader.line.forget(&self.ticket);
        reader.promise(&mut wakes);
        drop(reader);
        wakes.wake();
    }
}

/// A place in the line of putters; given up when dropped.
#[derive(Debug)]
struct SpaceTicket<'a> {
    core: &'a Core,
    ticket: Ticket,
}

impl Drop for SpaceTicket<'_> {
    fn drop(&mut self) {
        let mut wakes = Wakes::default();
        let mut reader = self.core.reader.lock();
        reader.space.forget(&self.ticket);
        // Each wakes the next: one by one, as long as there is room.
        reader.room(&mut wakes);
        drop(reader);
        wakes.wake();
    }
}

fn durability_code(options: &QueueOptions) -> u64 {
    match options.durability {
        Durability::Sync => SYNC,
        Durability::Os => OS,
        Durability::Every(_) => 2,
    }
}

fn expiry_ms(own: Expiry, put_ms: u64, max_age_ms: u64, clock: &Clock) -> u64 {
    let own = match own {
        Expiry::Never => NEVER_MS,
        Expiry::In(span) => {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            clock.exact_ms().saturating_add(span)
        }
        Expiry::At(time) => time
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(NEVER_MS)),
    };
    own.min(put_ms.saturating_add(max_age_ms))
}
