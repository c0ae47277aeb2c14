//! The story of a move: an open item is closed and another takes its place, in the same or another queue, once also across a
//! crash. What a crash in between means is [`crate::journal::moves`]'s.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{MoveFault, OpenError, PutError};
use crate::ids::{ItemId, Place};
use crate::journal::Moved;
use crate::journal::lane::Lane;
use crate::journal::letters;
use crate::journal::moves::Running;
use crate::journal::segment::Segment;
use crate::options::{Durability, PutOptions};
use crate::planted::{self, Bug};
use crate::queue::core::{Core, OS, Patience};
use crate::queue::put::{New, Room};
use crate::queue::take::item_of;
use crate::reader::leases::ENDLESS;
use crate::reader::waiters::Wakes;
use crate::sync::Ordering;

/// What a move puts in the place of an item.
pub(crate) struct Successor<'a> {
    /// One, or a batch.
    pub(crate) payloads: &'a [&'a [u8]],
    /// Bytes of a note before the one payload.
    pub(crate) note_len: usize,
    pub(crate) starts: u32,
    pub(crate) options: PutOptions,
}

/// The ids of what a move put.
pub(crate) struct NewIds {
    pub(crate) all: Vec<ItemId>,
    pub(crate) last: ItemId,
}

/// The new item is stored, as durably as it must be.
struct Put<'a> {
    ids: NewIds,
    running: Option<Running<'a>>,
    /// What a waker did, to be passed on at the end.
    panicked: Option<Box<dyn Any + Send>>,
}

/// Expired items on their way; what has not left goes back aside, also when a waker panics.
struct Hand<'a> {
    core: &'a Core,
    left: Vec<Place>,
}

impl Hand<'_> {
    /// Lets those go that have left for good.
    fn let_go(&mut self, mut has_left: impl FnMut(&Place) -> bool) {
        let before = self.left.len();
        self.left.retain(|place| !has_left(place));
        self.core.reader.lock().counts.expired += (before - self.left.len()) as u64;
    }
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        self.core.reader.lock().put_aside(self.left.drain(..));
    }
}

/// Expired items that move with one sync; a set that closes, or a queue that is deleted, waits for as many.
const EXPIRED_STEP: usize = 128;

/// The other queues of the set.
pub(crate) trait Neighbours: Send + Sync {
    /// Opens or creates a queue.
    fn queue(&self, name: &str) -> Result<Arc<Core>, OpenError>;

    /// Deletes a queue that is old and that nobody uses.
    fn expire(&self, core: &Core);

    /// Puts the stricter state of the set in force whose time has come.
    fn tighten(&self);
}

impl Core {
    /// Ends an opening by putting `successor` into `into`. On a fault the item is still open, unless the fault says otherwise.
    pub(crate) fn close_into(
        &self,
        id: u64,
        serial: u64,
        into: &Core,
        successor: &Successor<'_>,
        room: Room,
    ) -> Result<NewIds, MoveFault> {
        if self.is_forked() {
            return Err(MoveFault::Forked);
        }
        if !Arc::ptr_eq(&self.shared, &into.shared) {
            return Err(MoveFault::OtherSet);
        }
        // As long as the move takes, no lease may end it: the item must not be in two hands.
        let (due_ms, old) = {
            let mut reader = self.reader.lock();
            if reader.closed {
                return Err(MoveFault::Closed);
            }
            let Some(held) = reader.open.get(&id).filter(|held| held.serial == serial) else {
                return Err(MoveFault::LeaseEnded);
            };
            let (due_ms, place, cleared) = (held.due_ms, held.place, held.cleared);
            let old = if cleared {
                None
            } else {
                let found = reader.segment(&self.journal, place.segment);
                let found =
                    found.map_err(|error| MoveFault::Io { queue: self.name.clone(), source: Arc::new(error) })?;
                found.map(|segment| (Arc::clone(segment), place))
            };
            reader.lease(id, serial, ENDLESS);
            (due_ms, old)
        };
        if planted::is(Bug::MarkBeforeMoved) {
            self.mark_moved(id, serial, old.as_ref());
        }
        match self.put_successor(id, into, successor, room) {
            Ok(Put { ids, running, panicked }) => {
                if !self.mark_moved(id, serial, old.as_ref()) {
                    // The new item alone tells of it: it must stay to be found.
                    into.keep_all();
                    self.shared.unmarked.store(true, Ordering::Release);
                } else if into.journal.cleared() >= ids.last.get() {
                    // Perhaps before the device had it: no sync covers what is cleared, so the old one's mark alone tells. A
                    // failure is latched, and told to who asks next.
                    self.marks_durable();
                }
                // Only now: what the new item vouches for must be marked before its segment may be freed.
                drop(running);
                if let Some(panicked) = panicked {
                    resume_unwind(panicked);
                }
                Ok(ids)
            }
            Err(fault) => {
                self.resume_lease(id, serial, due_ms);
                Err(fault)
            }
        }
    }

    fn put_successor<'a>(
        &'a self,
        id: u64,
        into: &Core,
        successor: &Successor<'_>,
        room: Room,
    ) -> Result<Put<'a>, MoveFault> {
        let mut options = successor.options.clone();
        let running = self.begin_moves(into)?;
        // The new item must be as durable as the old one, before the old one's mark can be.
        if self.is_durable(id) {
            options = options.durability(Durability::Sync);
        }
        let moved =
            Moved { origin: (self.journal.queue_id(), id), starts: successor.starts, noted: successor.note_len > 0 };
        let new = New { payloads: successor.payloads, moved: Some(moved), note_len: successor.note_len };
        let mut ids = Vec::with_capacity(successor.payloads.len());
        let put = catch_unwind(AssertUnwindSafe(|| into.put(new, &options, room, false, &mut ids)));
        match (put, ids.last().copied()) {
            (Ok(put), _) => Ok(Put { ids: NewIds { last: put?, all: ids }, running, panicked: None }),
            // A waker panicked, and the new item is there all the same: once it is durable, the old one must not stay.
            (Err(panicked), Some(last))
                if matches!(catch_unwind(AssertUnwindSafe(|| into.sync_round())), Ok(Ok(()))) =>
            {
                Ok(Put { ids: NewIds { all: ids, last }, running, panicked: Some(panicked) })
            }
            (Err(panicked), _) => resume_unwind(panicked),
        }
    }

    /// Whether a power cut can no longer take the item.
    fn is_durable(&self, id: u64) -> bool {
        self.has_journal() && (self.durability.load(Ordering::Relaxed) != OS || self.journal.commit.durable() >= id)
    }

    /// Notes that items of this queue move into `into`; `None`: there is no crash that they could survive.
    fn begin_moves<'a>(&'a self, into: &Core) -> Result<Option<Running<'a>>, MoveFault> {
        if self.has_journal() && !into.has_journal() {
            return Err(MoveFault::NoJournal { queue: into.name.clone() });
        }
        if self.has_journal() {
            if let Some(source) = self.journal.commit.failure() {
                // Its marks cannot be made durable any more, so nothing new may come to vouch for them.
                return Err(MoveFault::Sync(self.sync_error(source)));
            }
            // A mark that could not be stored is found by the old note alone; and no promise is too weak to be kept here: what
            // the note no longer covers comes twice after a power cut.
            let settle = || !self.shared.unmarked.load(Ordering::Acquire) && self.sync_round().is_ok();
            let begun = self.shared.moves.begin(&self.name, &into.name, into.journal.appended() + 1, settle);
            let begun = begun.map_err(|source| MoveFault::Io { queue: self.name.clone(), source: Arc::new(source) })?;
            // Only now that the move counts as running: who pays before that takes the debt for paid, and the mark is still to
            // come.
            into.owe(self);
            Ok(Some(begun.ok_or(MoveFault::Closed)?))
        } else {
            Ok(None)
        }
    }

    /// Whether a power cut can no longer undo what is marked now; trivially so where marks are never promised.
    fn marks_durable(&self) -> bool {
        self.durability.load(Ordering::Relaxed) == OS || self.sync_round().is_ok()
    }

    /// The old item is done. Should the mark fail, this process has done with it all the same, and the next one finds the new.
    /// Whatever became of the queue meanwhile: a set that closes waits for this.
    fn mark_moved(&self, id: u64, serial: u64, old: Option<&(Arc<Segment>, Place)>) -> bool {
        let _held = self.reader.lock().release(id, serial);
        old.is_none_or(|(segment, place)| self.finish(segment, place).is_ok())
    }

    /// The segments that are there now are not freed before the next open.
    pub(crate) fn keep_all(&self) {
        self.unpaid.fetch_max(self.journal.newest(), Ordering::AcqRel);
    }

    fn resume_lease(&self, id: u64, serial: u64, due_ms: u64) {
        if due_ms != ENDLESS {
            let left = due_ms.saturating_sub(self.shared.disk.mono_exact_ms()).max(1);
            self.extend_lease(id, serial, Duration::from_millis(left));
        }
    }

    // ---- dead letters

    /// Moves an open item to the queue's dead letters.
    pub(crate) fn dead_letter(
        &self,
        id: u64,
        serial: u64,
        payload: &[u8],
        flags: u32,
        reason: &str,
    ) -> Result<ItemId, MoveFault> {
        let into = self.dead_letters()?;
        let starts = {
            let reader = self.reader.lock();
            reader.open.get(&id).filter(|held| held.serial == serial).map(|held| held.starts)
        };
        let bytes = letters::write(&self.name, reason, payload);
        let successor = Successor {
            payloads: &[&bytes],
            note_len: bytes.len() - payload.len(),
            starts: starts.unwrap_or(0).min(crate::journal::lane::STARTS_MAX.into()),
            options: PutOptions::new().flags(flags),
        };
        let moved = self.close_into(id, serial, &into, &successor, Room::Within(Patience::None))?;
        self.reader.lock().counts.dead_lettered += 1;
        Ok(moved.last)
    }

    fn dead_letters(&self) -> Result<Arc<Core>, MoveFault> {
        let name = self.options.read().dead_letters.clone();
        let name = name.filter(|name| *name != self.name).ok_or(MoveFault::NoDeadLetters)?;
        let neighbours = self.shared.neighbours.get().and_then(std::sync::Weak::upgrade).ok_or(MoveFault::Closed)?;
        neighbours.queue(&name).map_err(|source| MoveFault::Open { queue: name, source })
    }

    /// Moves what has used up its attempts. What cannot be moved now is tried again when the queue is next looked after.
    pub(crate) fn bury(&self) {
        let doomed = {
            let reader = self.reader.lock();
            if self.is_forked() || reader.closed {
                return;
            }
            reader.doomed()
        };
        if !doomed.is_empty() {
            // Before anything is tried: a waker may panic in between, and nobody else rings for the rest.
            self.ring_later();
        }
        for (id, serial) in doomed {
            let held = {
                let mut wakes = Wakes::default();
                let mut reader = self.reader.lock();
                let most = reader.max_attempts;
                let held = reader.open.get(&id).filter(|held| held.serial == serial);
                let held = held.filter(|held| !held.cleared && held.starts >= most).map(|held| held.place);
                if held.is_none() {
                    // Cleared or moved meanwhile, or new options let it be tried again.
                    reader.end_doom(id, serial);
                    if let Some(spared) = reader.release(id, serial) {
                        self.give_back(&mut reader, spared, &mut wakes);
                    }
                }
                drop(reader);
                wakes.wake();
                held
            };
            let Some(place) = held else {
                continue;
            };
            let Ok(Some(segment)) = self.journal.segment(place.segment) else {
                continue;
            };
            let buried = match self.journal.read(&segment, &place) {
                Ok(Some(payload)) => {
                    // Without the note of its own, if it is a dead letter already.
                    let item = item_of(&segment, &place, payload, 0);
                    self.dead_letter(id, serial, item.data(), item.flags(), "max_attempts").is_ok()
                }
                _ => false,
            };
            if buried {
                self.reader.lock().end_doom(id, serial);
            }
        }
    }

    // ---- expired items that go elsewhere

    pub(crate) fn max_expire_sweep(&self) -> u64 {
        self.options.read().max_expire_sweep.into()
    }

    /// Moves up to `max` of the expired items that were set aside to where the options say, and returns how many left. What is
    /// refused stays aside.
    pub(crate) fn move_expired(&self, max: u64) -> u64 {
        let mut moved = 0;
        // What cannot be moved by itself does not hold the others up.
        let mut stuck = Hand { core: self, left: Vec::new() };
        while moved < max && !self.shared.settling.load(Ordering::Acquire) {
            let step = usize::try_from(max - moved).unwrap_or(usize::MAX).min(EXPIRED_STEP);
            let mut hand = Hand { core: self, left: self.reader.lock().take_aside(step) };
            if hand.left.is_empty() {
                break;
            }
            let before = hand.left.len();
            let goes_on = self.move_step(&mut hand);
            moved += (before - hand.left.len()) as u64;
            if !goes_on {
                self.ring_later();
                break;
            }
            stuck.left.append(&mut hand.left);
        }
        if !stuck.left.is_empty() {
            self.ring_later();
        }
        drop(stuck);
        if moved > 0 {
            // It may have been their number that held the others up.
            let mut wakes = Wakes::default();
            self.reader.lock().promise(&mut wakes);
            wakes.wake();
        }
        moved
    }

    /// One sync of the other queue for all of them; only then are the old places marked. `false`: it takes no more now.
    fn move_step(&self, hand: &mut Hand<'_>) -> bool {
        let into = self.options.read().expire_to.clone();
        let Some(into) = into else {
            // Nobody wants them any more.
            hand.let_go(|place| match self.journal.segment(place.segment) {
                Ok(Some(segment)) => self.finish(&segment, place).is_ok(),
                found => found.is_ok(),
            });
            return true;
        };
        let neighbours = self.shared.neighbours.get().and_then(std::sync::Weak::upgrade);
        let Some(Ok(into)) = neighbours.map(|neighbours| neighbours.queue(&into)) else {
            return false;
        };
        let Ok(running) = self.begin_moves(&into) else {
            return false;
        };
        let mut stored: Vec<(Arc<Segment>, Place)> = Vec::new();
        let mut newest = None;
        // A waker may panic: what is stored by then is seen through first.
        let put = catch_unwind(AssertUnwindSafe(|| {
            hand.left.iter().all(|place| match self.put_expired(place, &into, &mut stored, &mut newest) {
                Ok(()) | Err(PutError::TooLarge { .. }) => true,
                Err(_) => false,
            })
        }));
        let synced = match newest {
            Some(newest) => catch_unwind(AssertUnwindSafe(|| into.wait_durable(newest))),
            None => Ok(Ok(())),
        };
        let is_durable = matches!(synced, Ok(Ok(())));
        if is_durable {
            for (segment, place) in &stored {
                if self.finish(segment, place).is_err() {
                    // The new item alone tells of it: it must stay to be found.
                    into.keep_all();
                    self.shared.unmarked.store(true, Ordering::Release);
                }
            }
            let gone: BTreeSet<u64> = stored.iter().map(|(_, place)| place.id).collect();
            hand.let_go(|place| gone.contains(&place.id));
        }
        // Only now: what the new items vouch for must be marked before their segments may be freed.
        drop(running);
        drop(stored);
        match (put, synced) {
            (Ok(goes_on), Ok(_)) => goes_on && is_durable,
            (Err(panicked), _) | (_, Err(panicked)) => resume_unwind(panicked),
        }
    }

    /// Puts an expired item's successor, without waiting for the device.
    fn put_expired(
        &self,
        place: &Place,
        into: &Core,
        stored: &mut Vec<(Arc<Segment>, Place)>,
        newest: &mut Option<u64>,
    ) -> Result<(), PutError> {
        let Ok(Some(segment)) = self.journal.segment(place.segment) else {
            return Ok(());
        };
        // What is damaged stays where it is, as it does for who takes it.
        let Ok(Some(payload)) = self.journal.read(&segment, place) else {
            return Ok(());
        };
        let item = item_of(&segment, place, payload, 0);
        let mut options = PutOptions::new().flags(item.flags());
        let durable = self.is_durable(place.id);
        if durable {
            options = options.durability(Durability::Sync);
        }
        let moved = Moved { origin: (self.journal.queue_id(), place.id), starts: 0, noted: false };
        let new = New { payloads: &[item.data()], moved: Some(moved), note_len: 0 };
        let mut ids = Vec::new();
        let put =
            catch_unwind(AssertUnwindSafe(|| into.put(new, &options, Room::Within(Patience::None), true, &mut ids)));
        // Also where a waker panicked, the item is there.
        if let Some(id) = ids.first() {
            stored.push((segment, *place));
            if into.must_sync(options.durability) {
                *newest = Some(id.0);
            }
        }
        match put {
            Ok(put) => put.map(drop),
            Err(panicked) => resume_unwind(panicked),
        }
    }

    // ---- what a crash between the two steps left

    /// The items of queue `from_id` whose successors this journal holds at or above the id `floor`.
    pub(crate) fn successors_of(&self, from_id: u64, floor: u64) -> std::io::Result<BTreeSet<u64>> {
        let mut moved = BTreeSet::new();
        self.journal.walk(floor, |_, _, _, frame| {
            if let Some((queue, id)) = frame.origin
                && queue == from_id
            {
                moved.insert(id);
            }
            Ok(())
        })?;
        Ok(moved)
    }

    /// Marks those of the items done that still wait. Called before anybody has the queue.
    pub(crate) fn forget_moved(&self, ids: &BTreeSet<u64>) -> std::io::Result<()> {
        let Some(&lowest) = ids.first() else {
            return Ok(());
        };
        let cleared = self.journal.cleared();
        let mut marked = 0u64;
        self.journal.walk(lowest, |segment, id, offset, frame| {
            if !ids.contains(&id) || id <= cleared || segment.lane(frame.ordinal)? == Some(Lane::Done) {
                return Ok(());
            }
            let mut reader = self.reader.lock();
            reader.spent |= segment.mark_done(frame.ordinal)?;
            reader.forget(&segment.place(offset, frame));
            marked += 1;
            Ok(())
        })?;
        let mut report = self.report.lock();
        report.items -= marked;
        report.held.retain(|held| !ids.contains(&held.0));
        report.redelivered = report.held.len() as u64;
        Ok(())
    }

    // ---- whose marks the items here vouch for

    /// Items of `from` come here: their old places must be marked durably before anything here is freed.
    fn owe(&self, from: &Core) {
        let mut debts = self.debts.lock();
        if !debts.iter().any(|known| known.ptr_eq(&from.me)) {
            debts.push(from.me.clone());
        }
    }

    /// Makes the marks durable that items here vouch for, and says which segments may be freed by that.
    pub(crate) fn pay(&self) -> Paid {
        if planted::is(Bug::FreeUnpaid) {
            return Paid { above: 0, below: u64::MAX };
        }
        let owed = std::mem::take(&mut *self.debts.lock());
        let mut below = u64::MAX;
        for debt in owed {
            let Some(from) = debt.upgrade() else {
                continue;
            };
            if let Some(first) = self.shared.moves.first_running(&from.name, &self.name) {
                self.owe(&from);
                below = below.min(first);
            }
            if !from.marks_durable() {
                // Nothing moves from it any more.
                self.keep_all();
            }
        }
        Paid { above: self.unpaid.load(Ordering::Acquire), below }
    }
}

/// What of a journal vouches for no mark that a power cut could still undo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paid {
    /// Segments up to this number vouch for marks of a queue whose sync has failed, and wait for the next open.
    pub(crate) above: u64,
    /// Ids from this one on may be of moves that are still on their way.
    pub(crate) below: u64,
}
