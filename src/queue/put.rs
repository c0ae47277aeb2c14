//! The story of a put: limits, append, and the wait for room or for the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::{Limit, PutError};
use crate::ids::{ItemId, NEVER_MS};
use crate::journal::files::Way;
use crate::journal::{AppendError, Moved, NewItem, Tail};
use crate::options::{Durability, Expiry, PutOptions, QueueOptions, WhenFull};
use crate::planted::{self, Bug};
use crate::queue::core::{Core, OS, Patience, SYNC};
use crate::queue::fanout::Goal;
use crate::reader::waiters::{Ticket, Wakes};
use crate::reader::{Finds, Reader};
use crate::sync::{MutexGuard, Ordering};
use crate::upkeep::Chore;

/// What is put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New<'a> {
    /// One item, or a batch.
    pub(crate) payloads: &'a [&'a [u8]],
    /// What the one item takes the place of.
    pub(crate) moved: Option<Moved>,
    /// Bytes before the one payload that the limit of its size does not count.
    pub(crate) note_len: usize,
}

impl<'a> New<'a> {
    pub(crate) fn items(payloads: &'a [&'a [u8]]) -> New<'a> {
        New { payloads, moved: None, note_len: 0 }
    }

    fn bytes(&self) -> u64 {
        self.payloads.iter().map(|p| p.len() as u64).sum()
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

/// The limits of a put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    max_items: u64,
    max_bytes: u64,
    pub(super) max_item_size: u32,
    pub(super) when_full: WhenFull,
    pub(super) max_age_ms: u64,
    pub(super) bounded: bool,
}

impl Limits {
    pub(super) fn of(options: &QueueOptions) -> Limits {
        Limits {
            max_items: options.max_items.unwrap_or(u64::MAX),
            max_bytes: options.max_bytes.unwrap_or(u64::MAX),
            max_item_size: options.max_item_size,
            when_full: options.when_full,
            max_age_ms: options.max_age_ms(),
            bounded: options.max_items.is_some() || options.max_bytes.is_some(),
        }
    }

    /// The largest payload, if nothing else limits a put; else 0.
    pub(super) fn only_size(&self) -> u32 {
        if self.bounded || self.max_age_ms != NEVER_MS { 0 } else { self.max_item_size }
    }

    /// No limit but that of a payload.
    fn of_size(max_item_size: u32) -> Limits {
        Limits {
            max_items: u64::MAX,
            max_bytes: u64::MAX,
            max_item_size,
            when_full: WhenFull::Refuse,
            max_age_ms: NEVER_MS,
            bounded: false,
        }
    }

    /// The limit that `items` more items of `bytes` would break.
    pub(super) fn broken(&self, reader: &Reader, items: u64, bytes: u64) -> Option<Limit> {
        if reader.stored_items().saturating_add(items) > self.max_items {
            return Some(Limit::Items);
        }
        (reader.stored_bytes().saturating_add(bytes) > self.max_bytes).then_some(Limit::Bytes)
    }

    /// Whether no queue, however empty, could take them.
    pub(super) fn hopeless(&self, items: u64, bytes: u64) -> Option<Limit> {
        if items > self.max_items {
            return Some(Limit::Items);
        }
        (bytes > self.max_bytes).then_some(Limit::Bytes)
    }
}

impl Core {
    /// Stores one item, or a batch whole, and waits as long as its durability says unless `no_wait`.
    pub(crate) fn put(
        &self,
        new: New<'_>,
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
        let tried = match new.payloads {
            [payload] if new.moved.is_none() && options.is_plain() => self.put_plain(payload, must_sync),
            _ => None,
        };
        let last = match tried {
            Some(Ok(last)) => last,
            Some(Err(error)) => self.put_any(Some(error), new, options, must_sync, room, ids)?,
            None => self.put_any(None, new, options, must_sync, room, ids)?,
        };
        if must_sync && !no_wait {
            self.wait_durable(last.0)?;
        } else if must_sync {
            self.ring_sync();
        }
        Ok(last)
    }

    /// Whatever is put, and whatever is in its way; `refused`: what was at the first try.
    #[inline(never)]
    fn put_any(
        &self,
        mut refused: Option<PutError>,
        new: New<'_>,
        options: &PutOptions,
        must_sync: bool,
        room: Room,
        ids: &mut Vec<ItemId>,
    ) -> Result<ItemId, PutError> {
        let mut ticket: Option<SpaceTicket<'_>> = None;
        let mut relieved = false;
        loop {
            let tried = match refused.take() {
                Some(error) => Err(error),
                None => self.try_put(new, options, must_sync, &mut ticket, room, ids),
            };
            match tried {
                Err(PutError::Full { limit: Limit::Disk, .. }) if self.free_drained() || self.make_disk_room() => {}
                Err(PutError::NoSpace { .. }) if self.free_drained() => {}
                Err(PutError::TooManyFiles { .. }) if !std::mem::replace(&mut relieved, true) => self.relieve_all(),
                Err(error) => return Err(error),
                Ok(Some(last)) => return Ok(last),
                Ok(None) => {
                    // Refused for now, and in the line of those who wait for room.
                    let waits = ticket.as_ref().is_some_and(|t| t.ticket.sleep(room.deadline()));
                    if !waits {
                        return Err(PutError::Full { queue: self.name.clone(), limit: self.broken(new) });
                    }
                }
            }
        }
    }

    /// Closes segments that nobody uses, in any queue of the set, after a sync where one is needed: their number has met the
    /// budget. The put that met it does it, so that a late upkeep thread is no reason to fail.
    #[cold]
    pub(super) fn relieve(&self) {
        self.journal.context.pool.files.relieve();
    }

    /// The same, where the system has met its own limit.
    #[cold]
    pub(super) fn relieve_all(&self) {
        self.journal.context.pool.files.close_half(Way::Synced);
    }

    /// Frees the last segment, if it was sealed because there was no room for another and nothing waited in it.
    pub(super) fn free_drained(&self) -> bool {
        let is_sealed = std::mem::take(&mut self.journal.tail.lock().spent);
        if is_sealed && self.free_spent() {
            // Somebody was just leaving it.
            self.ring_free();
        }
        is_sealed
    }

    /// The set's disk is full: where the policy is to drop, drops oldest items until a segment is free, or all are gone.
    /// `false`: there was none to drop.
    pub(super) fn make_disk_room(&self) -> bool {
        // One who keeps everything keeps it for all: no room would come of what others drop.
        let mut keeps = self.limits.read().when_full != WhenFull::DropOldest;
        let (mut dropped, mut spent) = (false, false);
        self.each(|core| keeps |= core.limits.read().when_full != WhenFull::DropOldest && !core.fanout.is_passed());
        if keeps {
            return false;
        }
        self.each(|core| {
            let mut reader = core.reader.lock();
            while !reader.closed && !reader.spent && matches!(reader.drop_oldest(&core.journal, core.rules()), Ok(true))
            {
                dropped = true;
            }
            let finds = reader.finds();
            drop(reader);
            core.ring_for(Finds { spent: false, ..finds });
            spent |= finds.spent;
        });
        if spent {
            let listed = self.journal.spent();
            self.free_spent();
            if self.keeps(&listed) {
                // To drop more would give no room either.
                return false;
            }
        }
        spent || dropped
    }

    /// Readers that drop their oldest make room for an item that all get. The others take it whatever their limits say: a
    /// reader stops no put but one to itself. Under the tail lock.
    #[cold]
    pub(super) fn make_way(&self, items: u64, bytes: u64) {
        self.each_named(|core| {
            let limits = *core.limits.read();
            if !limits.bounded || limits.when_full != WhenFull::DropOldest {
                return;
            }
            let rules = core.rules();
            let mut reader = core.reader.lock();
            if limits.broken(&reader, items, bytes).is_some() {
                let _ = reader.sweep(&core.journal, rules, u64::MAX);
            }
            while limits.broken(&reader, items, bytes).is_some()
                && matches!(reader.drop_oldest(&core.journal, rules), Ok(true))
            {}
            let finds = reader.finds();
            drop(reader);
            core.ring_for(finds);
        });
    }

    /// The age that the oldest may reach whom a put is for: each applies its own to what it meets. Under the tail lock.
    #[cold]
    pub(super) fn longest_age_ms(&self) -> u64 {
        let own = if self.fanout.is_passed() { 0 } else { self.limits.read().max_age_ms };
        let mut longest = own;
        self.each_named(|core| longest = longest.max(core.limits.read().max_age_ms));
        longest
    }

    /// Has what expires for this reader found, after a put that may have brought it.
    pub(super) fn ring_expiry(&self, expiry_ms: u64) {
        if expiry_ms != NEVER_MS || self.limits.read().max_age_ms != NEVER_MS {
            self.ring_tend();
        }
    }

    fn broken(&self, new: New<'_>) -> Limit {
        let limits = *self.limits.read();
        limits.broken(&self.reader.lock(), new.payloads.len() as u64, new.bytes()).unwrap_or(Limit::Items)
    }

    pub(super) fn must_sync(&self, asked: Option<Durability>) -> bool {
        self.has_journal
            && match asked {
                None => self.durability.load(Ordering::Relaxed) == SYNC,
                Some(asked) => asked == Durability::Sync,
            }
    }

    /// Stores an item like most: for all, at once, without expiry and flags, where nothing limits but an item's size and the
    /// segment has room. `None`: it is not like most, and nothing was done. What [`try_put`](Self::try_put) refuses, and what it
    /// does for readers, must be a reason for `None` here.
    #[inline]
    fn put_plain(&self, payload: &[u8], must_sync: bool) -> Option<Result<ItemId, PutError>> {
        let mut tail = self.journal.tail.lock();
        let max_item_size = self.only_limit.load(Ordering::Relaxed);
        let is_plain = max_item_size != 0
            && payload.len() as u64 <= u64::from(max_item_size)
            && !tail.closed
            && self.fanout.home.is_none()
            && matches!(self.goal(), Goal::All)
            && !self.fanout.has_named()
            && self.shared.states.may_put().is_ok()
            && self.journal.commit.failure().is_none();
        if !is_plain {
            return None;
        }
        let before = tail.next_id - 1;
        match self.journal.append_plain(&mut tail, payload, self.shared.clock.now_ms())? {
            Ok(last) => {
                self.show((tail, ()), before, last, must_sync, 0, NEVER_MS);
                Some(Ok(ItemId(last)))
            }
            Err(error) => Some(Err(self.append_error(error))),
        }
    }

    /// `Ok(None)`: no room; `ticket` stands in the line.
    fn try_put<'a>(
        &'a self,
        new: New<'_>,
        options: &PutOptions,
        must_sync: bool,
        ticket: &mut Option<SpaceTicket<'a>>,
        room: Room,
        ids: &mut Vec<ItemId>,
    ) -> Result<Option<ItemId>, PutError> {
        let mut tail = self.journal.tail.lock();
        let limits = match self.only_limit.load(Ordering::Relaxed) {
            0 => *self.limits.read(),
            max_item_size => Limits::of_size(max_item_size),
        };
        let New { payloads, moved, note_len } = new;
        for payload in payloads {
            let len = (payload.len() - note_len) as u64;
            if len > u64::from(limits.max_item_size) {
                return Err(PutError::TooLarge { len, max: limits.max_item_size.into() });
            }
        }
        if tail.closed || self.fanout.home.is_some() && self.reader.lock().closed {
            return Err(PutError::Closed);
        }
        if moved.is_none() {
            self.shared.states.may_put()?;
        }
        let full = |limit| PutError::Full { queue: self.name.clone(), limit };
        if let Some(source) = self.journal.commit.failure() {
            return Err(PutError::Failed { queue: self.name.clone(), source });
        }
        if limits.bounded || ticket.is_some() {
            let (items, total) = (payloads.len() as u64, new.bytes());
            if let Some(limit) = limits.hopeless(items, total) {
                return Err(full(limit));
            }
            let mut reader = self.reader.lock();
            let mut broken = limits.broken(&reader, items, total);
            if broken.is_some() {
                // Expired items are no reason to refuse.
                let rules = self.rules();
                let _ = reader.sweep(&self.journal, rules, u64::MAX);
                self.ring_for(reader.finds());
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
                    let mut wakes = Wakes::default();
                    if broken.is_none() {
                        reader.room(&mut wakes);
                    }
                    drop(reader);
                    drop(tail);
                    wakes.wake();
                    return Ok(None);
                }
            }
            let finds = reader.finds();
            drop(reader);
            self.ring_for(finds);
        }

        let only = match self.goal() {
            Goal::All => None,
            Goal::Only(readers) => Some(readers),
            Goal::Nobody => {
                let id = self.fanout.leave_unread(payloads.len() as u64);
                ids.extend(payloads.iter().map(|_| id));
                return Ok(Some(id));
            }
        };
        let mut max_age_ms = limits.max_age_ms;
        if self.fanout.has_named() {
            self.make_way(payloads.len() as u64, new.bytes());
            max_age_ms = self.longest_age_ms();
        }
        // Held over the append, so that nobody counts what is not for him.
        let others = only.map_or_else(Vec::new, |only| self.not_addressed(only));
        let mut passed: Vec<_> = others.iter().map(|core| core.reader.lock()).collect();

        let put_ms = self.shared.clock.now_ms();
        let expiry_ms = expiry_ms(options.expiry, put_ms, max_age_ms, &self.shared.clock);
        let due_ms = if options.delay.is_zero() { 0 } else { due_ms(options.delay, &self.shared.clock) };
        let item = |payload| NewItem { payload, expiry_ms, due_ms, user_flags: options.flags, moved, only };
        let before = tail.next_id - 1;
        let last = if let [payload] = payloads {
            let id = self.journal.append(&mut tail, item(payload), put_ms).map_err(|e| self.append_error(e))?;
            if moved.is_some() {
                // Known from here on, also to who is told of a panic.
                ids.push(ItemId(id));
            }
            id
        } else {
            debug_assert!(due_ms == 0, "a batch has no delay");
            let items: Vec<NewItem<'_>> = payloads.iter().map(|payload| item(payload)).collect();
            let last = self.journal.append_batch(&mut tail, &items, put_ms).map_err(|e| self.append_error(e))?;
            ids.extend((before + 1..=last).map(ItemId));
            last
        };
        for (core, reader) in others.iter().zip(&mut passed) {
            for (id, payload) in (before + 1..).zip(payloads) {
                reader.leave_to_others(id, item(payload).intake());
            }
            core.pass_by(&tail, payloads.len() as u64);
        }
        self.show((tail, passed), before, last, must_sync, due_ms, expiry_ms);
        self.each_named(|core| core.ring_expiry(expiry_ms));
        Ok(Some(ItemId(last)))
    }

    /// Shows what was appended behind `before`, unless it must be durable first, and has done what it gives reason for. Holds
    /// the tail until then, and what else was locked for the append.
    #[inline(always)]
    fn show(
        &self,
        (mut tail, others): (MutexGuard<'_, Tail>, impl Sized),
        before: u64,
        last: u64,
        must_sync: bool,
        due_ms: u64,
        expiry_ms: u64,
    ) {
        let hide = must_sync && !planted::is(Bug::AckBeforeSync);
        let front = &self.journal.front;
        let is_shown = !hide && front.show_next(before, last);
        let is_awaited = is_shown && front.has_waiting();
        let arm = self.journal.wants_spare(&mut tail);
        let spent = std::mem::take(&mut tail.spent);
        drop(others);
        let crowded = std::mem::take(&mut tail.crowded);
        drop(tail);
        if due_ms != 0 {
            self.each_addressed(|core| core.ring_due(due_ms));
        } else if is_awaited {
            self.announce();
        }
        if spent {
            self.ring_free();
        }
        if arm {
            self.shared.upkeep.ring(Chore::Arm(self.me.clone()));
            // Once a segment, also where nothing else asks for it.
            self.ring_tend();
        }
        if !must_sync && !is_shown {
            // It came behind an item that waits for a sync which is not its own.
            self.ring_sync();
        }
        if expiry_ms != NEVER_MS || self.durability.load(Ordering::Relaxed) != OS {
            self.ring_tend();
        }
        if crowded {
            self.relieve();
        }
    }

    pub(super) fn append_error(&self, error: AppendError) -> PutError {
        let queue = self.name.clone();
        match error {
            AppendError::NoSpace(source) => PutError::NoSpace { queue, source: Arc::new(source) },
            AppendError::TooManyFiles(source) => PutError::TooManyFiles { queue, source: Arc::new(source) },
            AppendError::DiskCap => PutError::Full { queue, limit: Limit::Disk },
            AppendError::TooLarge { max } => PutError::TooLarge { len: u64::MAX, max },
            AppendError::Exhausted => PutError::Exhausted,
            AppendError::Undetermined(source) => PutError::Indeterminate { queue, source },
            AppendError::Io { segment, error } => PutError::Io { queue, segment, source: Arc::new(error) },
        }
    }

    pub(super) fn wait_durable(&self, id: u64) -> Result<(), PutError> {
        self.commit(|commit, publish| commit.wait(id, || self.journal.sync(false), publish))
            .map_err(|source| PutError::Indeterminate { queue: self.name.clone(), source })
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

/// When an item is due that is put now.
pub(super) fn due_ms(delay: Duration, clock: &Clock) -> u64 {
    // Rounded up, and never 0: that means at once.
    let delay_ms = delay.as_nanos().div_ceil(1_000_000);
    clock.exact_ms().saturating_add(u64::try_from(delay_ms).unwrap_or(u64::MAX)).max(1)
}

pub(super) fn expiry_ms(own: Expiry, put_ms: u64, max_age_ms: u64, clock: &Clock) -> u64 {
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
