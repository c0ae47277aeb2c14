//! The story of a take: the first item out, the wait in line, and how an open item ends.

use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use crate::disk;
use crate::error::{CloseError, GetError};
use crate::ids::{ItemId, Place};
use crate::item::{DeadLetter, Item};
use crate::journal::lane::Lane;
use crate::journal::letters;
use crate::journal::readers::View;
use crate::journal::segment::Segment;
use crate::planted::{self, Bug};
use crate::queue::core::{Core, OS, Patience};
use crate::queue::put::due_ms;
use crate::reader::leases::ENDLESS;
use crate::reader::waiters::{Ticket, Wakes};
use crate::reader::{Held, Reader, TakeError, Taken};
use crate::sync::{MutexGuard, Ordering, spin_until};
use crate::upkeep::Chore;

/// Whether a taken item is done at once or held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Get,
    Open,
    /// Held open by who does something about the item, not with it: no start.
    Pick,
}

/// What a consumer is given; `serial` names the opening.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) item: Item,
    pub(crate) serial: u64,
}

impl Core {
    /// Takes an item for a consumer who does not wait, or for one whose ticket was called.
    #[inline(never)]
    pub(crate) fn take(&self, mode: Mode, ticket: Option<&Ticket>) -> Result<Took, GetError> {
        let mut given = None;
        let nothing = self.take_into(mode, ticket, &mut given)?;
        Ok(given.map_or(nothing, Took::Item))
    }

    /// An item is written where the caller wants it: it is large, and each return would copy it. Without one, the answer says why.
    #[inline(always)]
    fn take_into(&self, mode: Mode, ticket: Option<&Ticket>, given: &mut Option<Given>) -> Result<Took, GetError> {
        let mut ticket = ticket;
        let mut relieved = false;
        loop {
            let mut reader = self.reader.lock();
            if reader.closed {
                if let Some(ticket) = ticket {
                    reader.line.leave(ticket);
                }
                return Err(GetError::Closed);
            }
            let rules = self.rules();
            if let Err(error) = self.shared.states.may_get() {
                if let Some(ticket) = ticket {
                    reader.line.leave(ticket);
                }
                return Err(error);
            }
            match ticket {
                Some(ticket) if !reader.line.is_called(ticket) => return Ok(Took::NotYet),
                Some(ticket) if reader.paused => {
                    reader.line.rejoin(ticket);
                    let seen = reader.seen();
                    drop(reader);
                    self.look_once_more(Some(seen));
                    return Ok(Took::NotYet);
                }
                None if !reader.has_unpromised(rules) => return Ok(Took::Nothing),
                _ => {}
            }
            // Who comes without a ticket leaves all that is promised: else a consumer could be given what another one, called
            // before it, has left for its turn, after something younger.
            let ahead = match ticket {
                Some(ticket) => reader.line.ahead(ticket),
                None => usize::try_from(reader.line.promised()).unwrap_or(usize::MAX),
            };
            // Before the look: what is shown after this, and missed by it, is promised when the ticket is back in the line.
            let seen = ticket.map(|_| reader.seen());
            let mut taken = None;
            let looked = reader.take_after(&self.journal, rules, ahead, &mut taken);
            let taken = match looked.map(|()| &taken) {
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    let finds = reader.finds();
                    if let Some(ticket) = ticket {
                        reader.line.rejoin(ticket);
                    }
                    let mut wakes = Wakes::default();
                    reader.room(&mut wakes);
                    drop(reader);
                    wakes.wake();
                    self.ring_for(finds);
                    if ticket.is_none() {
                        return Ok(Took::Nothing);
                    }
                    self.look_once_more(seen);
                    return Ok(Took::NotYet);
                }
                Err(TakeError::Io { error, .. }) if disk::is_too_many_files(&error) && !relieved => {
                    drop(reader);
                    self.relieve_all();
                    relieved = true;
                    continue;
                }
                Err(error) => {
                    let finds = reader.finds();
                    let mut wakes = Wakes::default();
                    if let Some(ticket) = ticket {
                        reader.line.leave(ticket);
                        reader.promise(&mut wakes);
                    }
                    drop(reader);
                    wakes.wake();
                    self.ring_for(finds);
                    return Err(self.take_error(error));
                }
            };
            // From here the ticket is spent, also if the item turns out damaged: the next round goes without.
            if let Some(ticket) = ticket.take() {
                reader.line.leave(ticket);
            }
            if self.hand_out(reader, taken, rules.now_ms, mode, given)? {
                return Ok(Took::Nothing);
            }
        }
    }

    /// Gives a consumer what was taken out of the waiting items. `false`: it is damaged and was given up.
    #[inline]
    pub(super) fn hand_out(
        &self,
        mut reader: MutexGuard<'_, Reader>,
        taken: &Taken,
        now_ms: u64,
        mode: Mode,
        given: &mut Option<Given>,
    ) -> Result<bool, GetError> {
        let place = &taken.place;
        let before = match taken.segment.lane(place.ordinal) {
            Ok(lane) => lane.unwrap_or(Lane::Waiting { starts: 0 }),
            Err(error) => {
                reader.return_waiting(*place);
                drop(reader);
                return Err(self.take_error(TakeError::Io { segment: place.segment, offset: place.offset, error }));
            }
        };
        let starts = u32::from(before.starts()) + u32::from(mode != Mode::Pick);
        reader.counts.last_age_ms = now_ms.saturating_sub(place.put_ms);
        reader.counts.get_hits += 1;
        reader.counts.redelivered += u64::from(starts > 1 && mode != Mode::Pick);
        let mut wakes = Wakes::default();
        reader.room(&mut wakes);
        let mut serial = 0;
        if mode != Mode::Get {
            reader.counts.transactions += 1;
            serial = reader.hold(*place, starts, now_ms);
            if mode == Mode::Pick
                && let Some(held) = reader.open.get_mut(&place.id)
            {
                held.counts = false;
            }
            let lease_ms = self.lease_ms.load(Ordering::Relaxed);
            if lease_ms != ENDLESS {
                self.begin_lease(&mut reader, place.id, serial, lease_ms);
            }
            let lane = Lane::InFlight { starts: u8::try_from(starts).unwrap_or(u8::MAX) };
            // A start that cannot be counted is still a start; the close will tell of the medium.
            if mode == Mode::Open && !planted::is(Bug::StartNotMarked) {
                let _ = taken.segment.mark(place.ordinal, lane);
            }
        }
        let finds = reader.finds();
        drop(reader);
        wakes.wake();
        self.ring_for(finds);
        if finds.crowded {
            self.relieve();
        }

        // The payload is copied without the lock: the segment cannot be freed while it is in hand.
        *given = Some(Given { item: unread(place, starts), serial });
        let Some(Given { item, .. }) = given else {
            return Ok(false);
        };
        let error = match self.journal.read_into(&taken.segment, place, &mut item.payload) {
            Ok(true) => {
                note_of(&taken.segment, place, item);
                if mode != Mode::Get {
                    return Ok(true);
                }
                match self.finish(&taken.segment, place) {
                    Ok(()) => return Ok(true),
                    Err(error) => Some(error),
                }
            }
            Ok(false) if self.shared.salvage => {
                *given = None;
                let mut reader = self.reader.lock();
                reader.release(place.id, serial);
                reader.counts.damaged += 1;
                reader.counts.get_hits -= 1;
                drop(reader);
                let _ = self.finish(&taken.segment, place);
                return Ok(false);
            }
            Ok(false) => None,
            Err(error) => Some(error),
        };
        *given = None;
        Err(self.undo(taken, mode, serial, before, error))
    }

    /// An item that was taken and could not be read waits again, as if it had not been touched.
    #[cold]
    fn undo(&self, taken: &Taken, mode: Mode, serial: u64, before: Lane, error: Option<std::io::Error>) -> GetError {
        let place = taken.place;
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        let is_held = mode == Mode::Get || reader.release(place.id, serial).is_some();
        if mode == Mode::Open && is_held {
            let _ = taken.segment.mark(
                place.ordinal,
                match before {
                    Lane::Done => Lane::Waiting { starts: 0 },
                    lane => lane,
                },
            );
        }
        reader.counts.get_hits -= 1;
        // Else its lease ended while it was read, which has given it back.
        if is_held {
            reader.return_waiting(place);
            reader.promise(&mut wakes);
        }
        drop(reader);
        // Not woken: whoever came next would meet the same item and the same error, round and round.
        drop(wakes);
        self.take_error(match error {
            Some(error) => TakeError::Io { segment: place.segment, offset: place.offset, error },
            None => TakeError::Damaged { segment: place.segment, offset: place.offset, id: place.id },
        })
    }

    pub(super) fn take_error(&self, error: TakeError) -> GetError {
        let queue = self.name.clone();
        match error {
            TakeError::Damaged { segment, offset, id } => {
                GetError::Corrupt { queue, segment, offset: offset.into(), id: Some(ItemId(id)) }
            }
            TakeError::Io { segment, error, .. } if disk::is_too_many_files(&error) => {
                GetError::TooManyFiles { queue, segment, source: Arc::new(error) }
            }
            TakeError::Io { segment, offset, error } => {
                GetError::Io { queue, segment, offset: offset.into(), source: Arc::new(error) }
            }
        }
    }

    #[inline]
    pub(super) fn finish(&self, segment: &View, place: &Place) -> std::io::Result<()> {
        if segment.mark_done(place.ordinal)? {
            self.ring_free();
        }
        if self.durability.load(Ordering::Relaxed) != OS {
            self.ring_tend();
        }
        Ok(())
    }

    /// Takes an item, waiting in line if `patience` says so. `None` is left where none came.
    #[inline]
    pub(crate) fn take_waiting(
        &self,
        mode: Mode,
        patience: Patience,
        given: &mut Option<Given>,
    ) -> Result<(), GetError> {
        self.may_take()?;
        self.take_into(mode, None, given)?;
        if given.is_none() {
            *given = self.wait(mode, patience)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn wait(&self, mode: Mode, patience: Patience) -> Result<Option<Given>, GetError> {
        if matches!(patience, Patience::None) {
            self.missed(mode);
            return Ok(None);
        }
        // Not yet in line, so that the put that answers has nobody to call. Nobody stands behind it there: who comes meanwhile
        // and does not look ends this look.
        let read_to = self.reader.lock().read_to();
        let front = &self.journal.front;
        if spin_until(|| front.visible() > read_to || front.has_waiting())
            && let Took::Item(given) = self.take(mode, None)?
        {
            return Ok(Some(given));
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
        let ticket = self.reader.lock().line.join();
        let place = LinePlace { core: self.me.clone(), ticket };
        self.look_once_more(None);
        place
    }

    /// Promises what came before somebody stood in line, but not what was `seen` and is not to be had. The tail lock parts
    /// all puts in two: those that came before it have shown their items to the look below, those after it see who waits.
    fn look_once_more(&self, seen: Option<u64>) {
        drop(self.journal.tail.lock());
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if seen.is_none_or(|seen| seen < reader.seen()) {
            reader.promise(&mut wakes);
        }
        if reader.closed {
            reader.line.end(&mut wakes);
        }
        drop(reader);
        wakes.wake();
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
        if let Some(number) = reader.held_in(id, serial)
            && let Err(error) = reader.segment(&self.journal, number)
            && disk::is_too_many_files(&error)
        {
            // Met again below if this does not help.
            drop(reader);
            self.relieve_all();
            reader = self.reader.lock();
        }
        if reader.closed {
            return Err(CloseError::Closed);
        }
        let Some(held) = reader.release(id, serial) else {
            return Ok(false);
        };
        if held.cleared {
            return Ok(true);
        }
        let number = held.place.segment;
        let finished = match reader.segment(&self.journal, number) {
            Ok(Some(segment)) => self.finish(segment, &held.place),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            let mut wakes = Wakes::default();
            self.give_back(&mut reader, held, &mut wakes);
            let finds = reader.finds();
            drop(reader);
            wakes.wake();
            self.ring_for(finds);
            return Err(CloseError::Io { queue: self.name.clone(), segment: number, source: Arc::new(error) });
        }
        Ok(true)
    }

    /// Ends an opening without success: the item waits again. `false`: it had ended before.
    pub(crate) fn abort_item(&self, id: u64, serial: u64) -> bool {
        self.abort_item_after(id, serial, Duration::ZERO)
    }

    /// The same, and the item waits for `delay` before it waits for a consumer.
    pub(crate) fn abort_item_after(&self, id: u64, serial: u64, delay: Duration) -> bool {
        self.end_opening(id, serial, delay, true)
    }

    /// The same, as if it had not been opened.
    pub(crate) fn give_back_uncounted(&self, id: u64, serial: u64, delay: Duration) -> bool {
        self.end_opening(id, serial, delay, false)
    }

    fn end_opening(&self, id: u64, serial: u64, delay: Duration, counts: bool) -> bool {
        if self.is_forked() {
            return false;
        }
        let mut reader = self.reader.lock();
        if reader.closed {
            return false;
        }
        let Some(mut held) = reader.release(id, serial) else {
            return false;
        };
        if !counts && held.counts {
            held.starts = held.starts.saturating_sub(1);
        }
        reader.counts.aborts += 1;
        let mut wakes = Wakes::default();
        let due_ms = if delay.is_zero() { 0 } else { due_ms(delay, &self.shared.clock) };
        self.give_back_at(&mut reader, held, due_ms, &mut wakes);
        let finds = reader.finds();
        drop(reader);
        wakes.wake();
        self.ring_for(finds);
        true
    }

    /// An item that was released waits again, or leaves if it was its last start.
    pub(super) fn give_back(&self, reader: &mut Reader, held: Held, wakes: &mut Wakes) {
        self.give_back_at(reader, held, 0, wakes);
    }

    /// The same, but not before `due_ms`.
    fn give_back_at(&self, reader: &mut Reader, held: Held, due_ms: u64, wakes: &mut Wakes) {
        // After a clear there is no place to come back to.
        if held.cleared {
            return;
        }
        let starts = u8::try_from(held.starts).unwrap_or(u8::MAX);
        if let Ok(Some(segment)) = reader.segment(&self.journal, held.place.segment) {
            let _ = segment.mark(held.place.ordinal, Lane::Waiting { starts });
        }
        if held.starts >= reader.max_attempts {
            reader.doom_released(held);
        } else if due_ms != 0 {
            reader.return_deferred(held.place, due_ms);
        } else {
            reader.return_waiting(held.place);
            reader.promise(wakes);
        }
    }

    // ---- leases

    pub(super) fn begin_lease(&self, reader: &mut Reader, id: u64, serial: u64, lease_ms: u64) -> bool {
        let now_ms = self.shared.disk.mono_exact_ms();
        let begun = reader.lease(id, serial, now_ms.saturating_add(lease_ms));
        if begun == Some(true) {
            self.shared.upkeep.ring(Chore::EndLeases(self.me.clone(), lease_ms));
        }
        begun.is_some()
    }

    /// Ends an opening `lease` from now, instead of when it would have ended. `false`: it has ended before.
    pub(crate) fn extend_lease(&self, id: u64, serial: u64, lease: Duration) -> bool {
        if self.is_forked() {
            return false;
        }
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(ENDLESS);
        let mut reader = self.reader.lock();
        !reader.closed && self.begin_lease(&mut reader, id, serial, lease_ms)
    }

    /// Gives back what was held too long, and asks for the next timer.
    pub(crate) fn end_leases(&self) {
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if self.is_forked() || reader.closed {
            return;
        }
        let now_ms = self.shared.disk.mono_exact_ms();
        while let Some(held) = reader.release_overdue(now_ms) {
            reader.counts.aborts += 1;
            reader.counts.leases_ended += 1;
            self.give_back(&mut reader, held, &mut wakes);
        }
        if let Some(due_ms) = reader.leases.next_timer(now_ms) {
            self.shared.upkeep.ring(Chore::EndLeases(self.me.clone(), due_ms - now_ms));
        }
        let finds = reader.finds();
        drop(reader);
        self.ring_for(finds);
        // At last: a waker may panic, and nobody else asks for the timer.
        wakes.wake();
    }

    pub(crate) fn peek(&self) -> Result<Option<Item>, GetError> {
        if self.is_forked() {
            return Err(GetError::Forked);
        }
        let mut relieved = false;
        let (mut reader, taken) = loop {
            let mut reader = self.reader.lock();
            if reader.closed {
                return Err(GetError::Closed);
            }
            self.shared.states.may_get()?;
            let rules = self.rules();
            let taken = if reader.paused { Ok(None) } else { reader.peek(&self.journal, rules) };
            match &taken {
                Err(TakeError::Io { error, .. }) if disk::is_too_many_files(error) && !relieved => {
                    drop(reader);
                    self.relieve_all();
                    relieved = true;
                }
                _ => break (reader, taken),
            }
        };
        let finds = reader.finds();
        self.ring_for(finds);
        let Some(taken) = taken.map_err(|error| self.take_error(error))? else {
            reader.counts.get_misses += 1;
            return Ok(None);
        };
        // Under the lock, so that the item is still there when it is shown.
        let place = taken.place;
        let starts = taken.segment.lane(place.ordinal).ok().flatten().map_or(0, Lane::starts);
        match self.journal.read(&taken.segment, &place) {
            Ok(Some(payload)) => Ok(Some(item_of(&taken.segment, &place, payload, starts.into()))),
            Ok(None) => {
                Err(self.take_error(TakeError::Damaged { segment: place.segment, offset: place.offset, id: place.id }))
            }
            Err(error) => Err(self.take_error(TakeError::Io { segment: place.segment, offset: place.offset, error })),
        }
    }
}

/// The item at `place` with its stored payload.
pub(super) fn item_of(segment: &Segment, place: &Place, payload: Vec<u8>, attempts: u32) -> Item {
    let mut item = Item { payload, ..unread(place, attempts) };
    note_of(segment, place, &mut item);
    item
}

/// The item at `place` before its payload is read.
#[inline]
fn unread(place: &Place, attempts: u32) -> Item {
    Item {
        id: place.id,
        payload: Vec::new(),
        put_ms: place.put_ms,
        expiry_ms: place.expiry_ms,
        user_flags: place.user_flags,
        attempts,
        dead_letter: None,
    }
}

/// Parts what is noted of a dead letter from the payload behind it.
#[inline]
fn note_of(segment: &Segment, place: &Place, item: &mut Item) {
    if let Some(note) = letters::read(segment, place, &item.payload) {
        item.payload.drain(..note.len);
        let id = ItemId(note.id);
        item.dead_letter =
            Some(Box::new(DeadLetter { queue: note.queue, id, attempts: note.starts, reason: note.reason }));
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
