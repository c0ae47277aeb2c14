//! A consumer's hold on an item: [`OpenItem`], and its number for session tables: [`OpenToken`].

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CloseError, Error, MoveFault};
use crate::ids::ItemId;
use crate::item::Item;
use crate::options::PutOptions;
use crate::queue::Queue;
use crate::queue::core::{Core, Patience};
use crate::queue::handoff::Successor;
use crate::queue::put::Room;

/// An item that this consumer holds: nobody else gets it until it is closed, aborted or dropped.
///
/// - [`close`](OpenItem::close): done, for good.
/// - [`abort`](OpenItem::abort), or dropping it: back in its place, before all younger items. No I/O but one byte stored.
/// - [`close_into`](OpenItem::close_into): done, and another item put in its place as one act.
/// - [`dead_letter`](OpenItem::dead_letter): given up, moved aside with the reason.
/// - Held beyond the queue's [`lease`](crate::QueueOptions::lease): back in its place by itself.
/// - Leaked (`mem::forget`): held until the set is opened anew; shown in
///   [`QueueStats::open_items`](crate::QueueStats::open_items).
///
/// It is owned and `Send`: it may be ended by another thread, and may outlive the queue handle and the set. After
/// [`QueueSet::close`](crate::QueueSet::close) it can no longer be ended; the item is there again after a reopen, without
/// counting this start.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let set = kestrel_core::QueueSet::open(dir.path())?;
/// let jobs = set.queue("jobs")?;
/// jobs.put(b"resize 17.png")?;
/// let job = jobs.open()?;
/// assert_eq!(jobs.len(), 0);
/// drop(job); // the worker gave up
/// let job = jobs.open()?;
/// assert_eq!(job.attempts(), 2);
/// job.close()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "an open item that is dropped goes back to its queue; close it when it is done"]
pub struct OpenItem {
    core: Arc<Core>,
    /// `None` once it has been ended or parked.
    item: Option<Item>,
    serial: u64,
}

/// The number of an open item, for servers that keep open items in a session table:
/// [`Queue::close_token`](crate::Queue::close_token), [`Queue::abort_token`](crate::Queue::abort_token).
///
/// A token names one opening of an item: after the item came back and was opened again, the old token ends nothing. Nor does
/// one of another queue, or of this one before its set was opened anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpenToken {
    pub(crate) id: u64,
    pub(crate) serial: u64,
    pub(crate) life: u64,
}

impl OpenToken {
    /// The item's id.
    pub fn id(&self) -> ItemId {
        ItemId(self.id)
    }
}

impl OpenItem {
    pub(crate) fn new(core: Arc<Core>, item: Item, serial: u64) -> OpenItem {
        OpenItem { core, item: Some(item), serial }
    }

    fn id_number(&self) -> u64 {
        self.item.as_ref().map_or(0, |item| item.id)
    }

    /// Ends the item: it is done and will not be delivered again.
    ///
    /// # Durability
    /// The mark survives the death of the process at once, and a power cut from the queue's next sync on (within a second,
    /// unless the queue's durability is `Os`). A close that a power cut undoes means that the item is delivered again: at
    /// least once. [`close_synced`](OpenItem::close_synced) waits for the device.
    ///
    /// Does not block for the device. After [`Queue::clear`](crate::Queue::clear) there is nothing left to end, and the answer
    /// is `Ok`.
    ///
    /// # Errors
    /// [`CloseError::Closed`] after the set was closed or the queue deleted; [`CloseError::LeaseEnded`] if the item was given
    /// back before; [`CloseError::Io`] if the mark could not be stored: the item goes back to its queue;
    /// [`CloseError::Forked`] in a forked child.
    #[doc(alias = "ack")]
    #[doc(alias = "commit")]
    #[doc(alias = "confirm")]
    pub fn close(mut self) -> Result<(), CloseError> {
        let id = self.id_number();
        self.item = None;
        if self.core.close_item(id, self.serial)? { Ok(()) } else { Err(CloseError::LeaseEnded) }
    }

    /// As [`close`](OpenItem::close), and waits until the device has it.
    ///
    /// # Errors
    /// As `close`; [`CloseError::Sync`] if the close was stored and its sync failed, or the set was closed before it.
    pub fn close_synced(self) -> Result<(), CloseError> {
        let core = Arc::clone(&self.core);
        self.close()?;
        // Also where the set is closed by now: the item is done, and does not come again as the other answers say.
        core.sync().map_err(CloseError::Sync)
    }

    /// Closes the item and puts `payload` into `into` as one act: after a crash at any moment there is either the old item or
    /// the new one, never both and never neither. `into` is any queue of the same set, also the item's own.
    ///
    /// This is what one step of a chain does with its result. Kestrel called it *continue*.
    ///
    /// # Durability
    /// The new item is put with `into`'s durability, or better: where the old one was durable, this waits for the device, so
    /// that no power cut takes both. Under [`Durability::Os`](crate::Durability::Os) a power cut may, as it may take any item.
    /// The first move between two queues costs one more sync.
    ///
    /// # Errors
    /// [`MoveError`], with the item still open in it: `into` is full (this never waits for room), the medium is, the item's
    /// lease has ended, ….
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let (fetch, index) = (set.queue("fetch")?, set.queue("index")?);
    /// fetch.put("page 1")?;
    /// let job = fetch.open()?;
    /// job.close_into(&index, "text of page 1")?;
    /// assert_eq!((fetch.len(), index.len()), (0, 1));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "continue")]
    #[doc(alias = "forward")]
    pub fn close_into(self, into: &Queue, payload: impl AsRef<[u8]>) -> Result<ItemId, MoveError> {
        self.close_into_with(into, payload, &PutOptions::new())
    }

    /// As [`close_into`](OpenItem::close_into), with an expiry, flags or a durability of the new item's own.
    ///
    /// # Errors
    /// As `close_into`.
    pub fn close_into_with(
        mut self,
        into: &Queue,
        payload: impl AsRef<[u8]>,
        options: &PutOptions,
    ) -> Result<ItemId, MoveError> {
        if let Err(refused) = self.core.shared.states.may_put() {
            return Err(MoveError::new(self, refused.into()));
        }
        let payloads = [payload.as_ref()];
        let successor = Successor { payloads: &payloads, note_len: 0, starts: 0, options: options.clone() };
        let room = Room::Within(Patience::None);
        match self.core.close_into(self.id_number(), self.serial, &into.core, &successor, room) {
            Ok(ids) => {
                self.item = None;
                Ok(ids.last)
            }
            Err(fault) => Err(MoveError::new(self, fault)),
        }
    }

    /// As [`close_into`](OpenItem::close_into), with several items in the place of one: all of them, next to each other, or none,
    /// as by [`Queue::put_batch`]. With no payload this closes the item.
    ///
    /// # Errors
    /// As `close_into`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let (pages, links) = (set.queue("pages")?, set.queue("links")?);
    /// pages.put("a page with two links")?;
    /// assert_eq!(pages.open()?.close_into_batch(&links, ["one", "two"])?.len(), 2);
    /// assert_eq!((pages.len(), links.len()), (0, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn close_into_batch<I>(mut self, into: &Queue, payloads: I) -> Result<Vec<ItemId>, MoveError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        if let Err(refused) = self.core.shared.states.may_put() {
            return Err(MoveError::new(self, refused.into()));
        }
        let items: Vec<I::Item> = payloads.into_iter().collect();
        let payloads: Vec<&[u8]> = items.iter().map(AsRef::as_ref).collect();
        let (id, serial) = (self.id_number(), self.serial);
        if payloads.is_empty() {
            return match self.core.close_item(id, serial) {
                Ok(true) => {
                    self.item = None;
                    Ok(Vec::new())
                }
                Ok(false) => Err(MoveError::new(self, MoveFault::LeaseEnded)),
                Err(error) => Err(MoveError::new(self, error.into())),
            };
        }
        let successor = Successor { payloads: &payloads, note_len: 0, starts: 0, options: PutOptions::new() };
        let room = Room::Within(Patience::None);
        match self.core.close_into(id, serial, &into.core, &successor, room) {
            Ok(ids) => {
                self.item = None;
                Ok(ids.all)
            }
            Err(fault) => Err(MoveError::new(self, fault)),
        }
    }

    /// Moves the item to the queue's [`dead_letters`](crate::QueueOptions::dead_letters), with the reason, as one act; it can
    /// be read there with [`Item::dead_letter`]. For items that no retry will help.
    ///
    /// # Durability
    /// As [`close_into`](OpenItem::close_into).
    ///
    /// # Errors
    /// As `close_into`; [`MoveFault::NoDeadLetters`](crate::MoveFault::NoDeadLetters) if the option is not set.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use kestrel_core::{QueueOptions, QueueSet};
    /// let set = QueueSet::open(dir.path())?;
    /// let mail = set.queue_with("mail", QueueOptions::default().dead_letters("undelivered"))?;
    /// mail.put("to: nobody@nowhere")?;
    /// mail.open()?.dead_letter("no such host")?;
    /// let letter = set.queue("undelivered")?.get()?;
    /// assert_eq!(letter.data(), b"to: nobody@nowhere");
    /// assert_eq!(letter.dead_letter().map(|dead| dead.reason.as_str()), Some("no such host"));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "reject")]
    #[doc(alias = "bury")]
    pub fn dead_letter(mut self, reason: &str) -> Result<ItemId, MoveError> {
        if let Err(refused) = self.core.shared.states.may_put() {
            return Err(MoveError::new(self, refused.into()));
        }
        let flags = self.flags();
        match self.core.dead_letter(self.id_number(), self.serial, self.data(), flags, reason) {
            Ok(id) => {
                self.item = None;
                Ok(id)
            }
            Err(fault) => Err(MoveError::new(self, fault)),
        }
    }

    /// Sets the item's lease anew: it comes back by itself when `lease` from now is over, whatever
    /// [`QueueOptions::lease`](crate::QueueOptions::lease) says. `Duration::MAX`: never.
    ///
    /// `false`: too late, the lease has ended (or the queue is closed) and nothing was changed; the item may be in other hands.
    #[doc(alias = "touch")]
    #[doc(alias = "heartbeat")]
    pub fn extend(&self, lease: Duration) -> bool {
        self.core.extend_lease(self.id_number(), self.serial, lease)
    }

    /// Gives the item back: it is the next to be delivered, unless older items were given back too, which come first.
    ///
    /// The same as dropping it, said aloud. Wakes one waiting consumer. Never fails and never blocks for the device.
    #[doc(alias = "nack")]
    #[doc(alias = "rollback")]
    pub fn abort(self) {
        drop(self);
    }

    /// Gives the item back, not to be delivered before `delay` has passed; its attempts stay counted. Not before all others then:
    /// it stands before what is put after its due time.
    ///
    /// The delay is this process's: after a restart the item is there at once. To have it outlive that, put it anew with
    /// [`close_into_with`](OpenItem::close_into_with) and [`PutOptions::delay`].
    pub fn abort_after(mut self, delay: Duration) {
        if let Some(item) = self.item.take() {
            self.core.abort_item_after(item.id, self.serial, delay);
        }
    }

    /// Gives the item back as [`abort_after`](OpenItem::abort_after) does, and this start does not count: for who finds that it is
    /// not the one to do it. A delay of zero is none.
    pub fn give_back(mut self, delay: Duration) {
        if let Some(item) = self.item.take() {
            self.core.give_back_uncounted(item.id, self.serial, delay);
        }
    }

    /// Parks the hold as a number: the item stays open until the token is closed or aborted.
    pub fn into_token(mut self) -> OpenToken {
        let token = OpenToken { id: self.id_number(), serial: self.serial, life: self.core.life };
        self.item = None;
        token
    }
}

impl Drop for OpenItem {
    fn drop(&mut self) {
        if let Some(item) = self.item.take() {
            self.core.abort_item(item.id, self.serial);
        }
    }
}

impl Deref for OpenItem {
    type Target = Item;

    fn deref(&self) -> &Item {
        static EMPTY: Item =
            Item { id: 0, payload: Vec::new(), put_ms: 0, expiry_ms: 0, user_flags: 0, attempts: 0, dead_letter: None };
        // Only methods that consume the guard empty it, so that nobody can look afterwards.
        self.item.as_ref().unwrap_or(&EMPTY)
    }
}

impl AsRef<[u8]> for OpenItem {
    fn as_ref(&self) -> &[u8] {
        self.data()
    }
}

impl fmt::Debug for OpenItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenItem").field("queue", &self.core.name).field("item", &self.item).finish_non_exhaustive()
    }
}

/// Why an item could not be moved. Nothing has changed, unless the fault says otherwise; the item is still open.
#[derive(Debug)]
pub struct MoveError(Box<NotMoved>);

#[derive(Debug)]
struct NotMoved {
    item: Option<OpenItem>,
    fault: MoveFault,
}

impl MoveError {
    pub(crate) fn new(item: OpenItem, fault: MoveFault) -> MoveError {
        // What is no longer in this consumer's hands is not given back to it.
        let lost = matches!(fault, MoveFault::LeaseEnded | MoveFault::Closed | MoveFault::Forked);
        MoveError(Box::new(NotMoved { item: (!lost).then_some(item), fault }))
    }

    /// Why.
    pub fn fault(&self) -> &MoveFault {
        &self.0.fault
    }

    /// The item, still open, to be ended otherwise; dropping this error aborts it. `None` if it is no longer held: its lease
    /// has ended, or its queue is closed.
    pub fn into_item(self) -> Option<OpenItem> {
        self.0.item
    }
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the item was not moved")
    }
}

impl std::error::Error for MoveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.fault)
    }
}

impl From<MoveError> for Error {
    /// Gives the item back: an umbrella holds no open items.
    fn from(error: MoveError) -> Error {
        Error::Move(error.0.fault)
    }
}
