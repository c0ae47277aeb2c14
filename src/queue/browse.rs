//! The story of looking for an item by its id, and of looking through a queue without taking anything.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::GetError;
use crate::ids::ItemId;
use crate::item::{Item, at};
use crate::journal::find::{Fate, Found, Looked};
use crate::journal::lane::Lane;
use crate::queue::Queue;
use crate::queue::core::Core;
use crate::queue::open_item::OpenItem;
use crate::queue::take::{Given, Mode, item_of};
use crate::reader::TakeError;

/// What a queue knows of an item by its id: [`Queue::state_of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ItemState {
    /// No item of the queue had this id yet.
    NeverPut,
    /// It waits, or is deferred.
    Waiting,
    /// A consumer holds it open.
    Open,
    /// It is done, or was moved, dropped, cleared or lost. An expired item that nobody has met yet waits.
    Gone,
}

/// Looks through the items of a queue: [`Queue::browse`].
#[must_use = "iterators do nothing unless asked"]
pub struct Browse<'a> {
    queue: &'a Queue,
    looked: Looked,
    until: u64,
    failed: bool,
}

impl<'a> Browse<'a> {
    pub(super) fn new(queue: &'a Queue, from: ItemId) -> Browse<'a> {
        let until = queue.core.journal.appended();
        Browse { queue, looked: Looked::from(from.get().max(1)), until, failed: false }
    }
}

impl Iterator for Browse<'_> {
    type Item = Result<Item, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let core = &self.queue.core;
        let next = core.may_look().and_then(|()| core.next_there(&mut self.looked, self.until));
        self.failed = next.is_err();
        next.transpose()
    }
}

impl fmt::Debug for Browse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browse")
            .field("queue", &self.queue.core.name)
            .field("next", &self.looked.id)
            .finish_non_exhaustive()
    }
}

impl Core {
    fn may_look(&self) -> Result<(), GetError> {
        if self.is_forked() {
            return Err(GetError::Forked);
        }
        if self.reader.lock().closed {
            return Err(GetError::Closed);
        }
        self.shared.states.may_get()
    }

    fn look_error(&self, error: io::Error) -> GetError {
        self.take_error(TakeError::Io { segment: 0, offset: 0, error })
    }

    pub(super) fn state_of(&self, id: u64) -> Result<ItemState, GetError> {
        self.may_look()?;
        if self.reader.lock().open.get(&id).is_some_and(|held| !held.cleared) {
            return Ok(ItemState::Open);
        }
        match self.journal.fate(id, self.fanout.lanes.as_ref()) {
            Ok(Fate::NeverPut) => Ok(ItemState::NeverPut),
            Ok(Fate::Gone) => Ok(ItemState::Gone),
            Ok(Fate::There) => Ok(ItemState::Waiting),
            Err(error) => Err(self.look_error(error)),
        }
    }

    pub(super) fn peek_id(&self, id: u64) -> Result<Option<Item>, GetError> {
        self.may_look()?;
        match self.journal.find(id, self.fanout.lanes.as_ref()) {
            Ok(Some(found)) if !self.is_over(&found) => self.item_at(&found).map(Some),
            Ok(_) => Ok(None),
            Err(error) => Err(self.look_error(error)),
        }
    }

    /// Whether its time is over, so that nobody will be given it.
    fn is_over(&self, found: &Found) -> bool {
        self.reader.lock().is_over(&found.place, self.rules())
    }

    fn next_there(&self, looked: &mut Looked, until: u64) -> Result<Option<Item>, GetError> {
        loop {
            match self.journal.find_next(looked, until, self.fanout.lanes.as_ref()) {
                Ok(Some(found)) if self.is_over(&found) => {}
                Ok(Some(found)) => return self.item_at(&found).map(Some),
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.look_error(error)),
            }
        }
    }

    fn item_at(&self, found: &Found) -> Result<Item, GetError> {
        let Found { segment, place } = found;
        let starts = segment.lane(place.ordinal).ok().flatten().map_or(0, Lane::starts);
        match self.journal.read(segment, place) {
            Ok(Some(payload)) => Ok(item_of(segment, place, payload, starts.into())),
            Ok(None) => {
                Err(self.take_error(TakeError::Damaged { segment: place.segment, offset: place.offset, id: place.id }))
            }
            Err(error) => Err(self.take_error(TakeError::Io { segment: place.segment, offset: place.offset, error })),
        }
    }

    pub(super) fn open_id(&self, id: u64) -> Result<Option<Given>, GetError> {
        self.may_take()?;
        self.shared.states.may_get()?;
        let mut reader = self.reader.lock();
        if reader.closed {
            return Err(GetError::Closed);
        }
        let rules = self.rules();
        match reader.pluck(&self.journal, rules, id) {
            Ok(Some(taken)) => {
                let mut given = None;
                self.hand_out(reader, &taken, rules.now_ms, Mode::Pick, &mut given)?;
                Ok(given)
            }
            Ok(None) => Ok(None),
            Err(error) => {
                drop(reader);
                Err(self.look_error(error))
            }
        }
    }

    /// When the first deferred item is due that is not yet.
    pub(super) fn next_due(&self) -> Option<SystemTime> {
        let mut reader = self.reader_ahead();
        reader.finds().due_ms.map(at)
    }
}

impl Queue {
    /// What became of an item. Takes a look at one byte of the journal, however many items there are.
    ///
    /// # Errors
    /// As [`peek`](Queue::peek).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use kestrel_core::ItemState;
    /// let jobs = kestrel_core::QueueSet::open(dir.path())?.queue("jobs")?;
    /// let id = jobs.put("one")?;
    /// assert_eq!(jobs.state_of(id)?, ItemState::Waiting);
    /// jobs.get()?;
    /// assert_eq!(jobs.state_of(id)?, ItemState::Gone);
    /// # Ok(())
    /// # }
    /// ```
    pub fn state_of(&self, id: ItemId) -> Result<ItemState, GetError> {
        self.core.state_of(id.get())
    }

    /// Shows an item by its id, if it waits, is deferred or is held open, and has not expired.
    ///
    /// # Errors
    /// As [`peek`](Queue::peek).
    pub fn peek_id(&self, id: ItemId) -> Result<Option<Item>, GetError> {
        self.core.peek_id(id.get())
    }

    /// Opens an item by its id, out of its turn: one that waits or is deferred. `None`: it is not one of these, or has expired, or
    /// waits for a sync. A paused queue does not keep it back.
    ///
    /// For who does something about the item, not with it: moves it, removes it. It is not a start: the attempts stay what they were,
    /// also if the process dies meanwhile.
    ///
    /// Does not depend on how many items wait before it, but for a first look at its segment; one that is deferred is found among
    /// the deferred ones one by one.
    ///
    /// # Errors
    /// As [`open`](Queue::open).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let jobs = kestrel_core::QueueSet::open(dir.path())?.queue("jobs")?;
    /// let ids = jobs.put_batch(["one", "two", "three"])?;
    /// if let Some(unwanted) = jobs.open_id(ids[1])? {
    ///     unwanted.close()?;
    /// }
    /// assert_eq!((jobs.get()?.id(), jobs.get()?.id()), (ids[0], ids[2]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_id(&self, id: ItemId) -> Result<Option<OpenItem>, GetError> {
        let given = self.core.open_id(id.get())?;
        Ok(given.map(|given| OpenItem::new(Arc::clone(&self.core), given.item, given.serial)))
    }

    /// Looks through the items that are there, in the order of their ids from `from` on, without taking any: those that wait, are
    /// deferred or are held open, as they are when they are met, up to the newest at the time of this call. Reads each of them, and
    /// shows no expired one.
    ///
    /// # Errors
    /// As [`peek`](Queue::peek); the iterator ends behind an error.
    pub fn browse(&self, from: ItemId) -> Browse<'_> {
        Browse::new(self, from)
    }

    /// When the first deferred item is due that is not yet; `None`: there is none.
    pub fn next_due(&self) -> Option<SystemTime> {
        self.core.next_due()
    }
}
