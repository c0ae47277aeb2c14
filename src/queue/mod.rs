//! Every public verb of a queue, each a short story over the rooms below.

pub(crate) mod all;
pub(crate) mod archive;
pub(crate) mod browse;
pub(crate) mod core;
pub(crate) mod fanout;
pub(crate) mod futures;
pub(crate) mod handoff;
pub(crate) mod open_item;
pub(crate) mod put;
pub(crate) mod state;
pub(crate) mod take;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::core::{Core, Patience};
use self::put::{New, Room};
use self::take::{Mode, Took};
use crate::error::{CloseError, Error, GetError, OpenError, OptionsError, PutError, SyncError};
use crate::ids::ItemId;
use crate::item::Item;
use crate::options::{PutOptions, QueueOptions, QueueOverrides, ReaderOptions};
use crate::set::QueueSet;
use crate::stats::{QueueStats, RecoveryReport};
use crate::typed::{Codec, TypedQueue};
use futures::{GetFuture, OpenFuture, SyncedFuture};
use open_item::{OpenItem, OpenToken};

/// A named FIFO of items: a cheap handle, to be cloned into every thread and task that uses it.
///
/// Any number of producers and consumers may use a queue at once. Items leave in the order of their puts; items given back
/// ([`OpenItem::abort`]) come before all others, lowest id first. Consumers that wait, threads and tasks alike, stand in one
/// line and are served in the order in which they began to wait.
///
/// # Blocking
/// Puts with [`Durability::Sync`](crate::Durability::Sync) block for the device (about 0.1 to 10 ms), and puts in a full queue
/// under [`WhenFull::Wait`](crate::WhenFull::Wait) block for room; [`append`](Queue::append) and all other puts do not wait.
/// `get` and `open` block until there is an item, their `try_` forms never do.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use std::time::Duration;
/// let set = kestrel_core::QueueSet::open(dir.path())?;
/// let jobs = set.queue("jobs")?;
/// jobs.put(b"hello")?;
/// if let Some(job) = jobs.open_timeout(Duration::from_secs(1))? {
///     assert_eq!(job.data(), b"hello");
///     job.close()?;
/// }
/// assert!(jobs.try_get()?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Queue {
    pub(crate) core: Arc<Core>,
    /// Keeps the set open as long as anyone holds one of its queues.
    pub(crate) _set: QueueSet,
}

impl Queue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// The options in force.
    pub fn options(&self) -> QueueOptions {
        self.core.options.read().clone()
    }

    /// Puts other options in force, now and after a restart, without disturbing anyone. All of them are the queue's own then;
    /// [`set_overrides`](Queue::set_overrides) leaves some to the set's defaults.
    ///
    /// A lowered limit applies to the next put and drops nothing. A lowered `max_age` applies to the items that wait.
    ///
    /// # Errors
    /// [`OptionsError::Invalid`] names the field that is out of range, or that a [reader](Queue::reader) shares with its queue
    /// and has otherwise; [`OptionsError::Queue`] the reader in which they would be wrong together with its own;
    /// [`OptionsError::Journal`] if `journal` differs; [`OptionsError::Io`] if the options could not be stored. Nothing is
    /// changed then.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// jobs.set_options(jobs.options().max_items(2))?;
    /// jobs.put_batch(["a", "b"])?;
    /// assert!(jobs.put("c").is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_options(&self, options: QueueOptions) -> Result<(), OptionsError> {
        self.set_overrides(options.into())
    }

    /// As [`set_options`](Queue::set_options) for the options that are given; the others follow the set's defaults from now on, or
    /// a [reader](Queue::reader)'s its queue, also those that were its own before.
    ///
    /// # Errors
    /// As `set_options`, for the options that would be in force.
    pub fn set_overrides(&self, own: QueueOverrides) -> Result<(), OptionsError> {
        if self.core.is_forked() {
            return Err(OptionsError::Forked);
        }
        if self.core.shared.read_only {
            return Err(OptionsError::ReadOnly);
        }
        if self.core.reader.lock().closed {
            return Err(OptionsError::Closed);
        }
        let _changing = self.core.shared.changing_options.lock();
        if self.core.fanout.home.is_some() {
            return self.core.set_reader_overrides(own);
        }
        let options = self.core.options_over(&own, &self.core.shared.defaults.read())?;
        let bytes = own.to_bytes();
        let stored = self.core.journal.update_meta(|meta| meta.options = bytes);
        stored.map_err(|source| match self.core.reader.lock().closed {
            true => OptionsError::Closed,
            false => OptionsError::Io {
                path: self.core.journal.context.dir.clone().unwrap_or_default().join("meta"),
                source,
            },
        })?;
        *self.core.own.lock() = own;
        self.core.apply(options);
        Ok(())
    }

    /// What of the options is this queue's own, and does not follow the set's defaults.
    pub fn overrides(&self) -> QueueOverrides {
        self.core.own.lock().clone()
    }

    /// Puts an item at the end.
    ///
    /// # Durability
    /// As the queue's [`Durability`](crate::Durability) says: with `Sync`, the default, the item is on the device when this
    /// returns. A put that fails has stored nothing, except for [`PutError::Indeterminate`].
    ///
    /// # Errors
    /// `Full`, `TooLarge`, `NoSpace`, `Failed`, `Indeterminate`, `Closed`, …: see [`PutError`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// let first = jobs.put("one")?;
    /// let second = jobs.put(vec![2u8; 1000])?;
    /// assert!(first < second);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "enqueue")]
    #[doc(alias = "push")]
    pub fn put(&self, data: impl AsRef<[u8]>) -> Result<ItemId, PutError> {
        self.put_with(data, &PutOptions::new())
    }

    /// As [`put`](Queue::put), but does not wait for the device: [`synced`](Queue::synced) does.
    ///
    /// So one thread can have thousands of durable puts on their way. With durability `Sync` the item is delivered only once
    /// it is durable; a background sync starts at once.
    ///
    /// # Errors
    /// As [`put`](Queue::put), never `Indeterminate`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// let mut last = None;
    /// for n in 0..100u32 {
    ///     last = Some(jobs.append(n.to_le_bytes())?);
    /// }
    /// if let Some(id) = last {
    ///     jobs.synced(id)?; // and with it all before it
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn append(&self, data: impl AsRef<[u8]>) -> Result<ItemId, PutError> {
        self.append_with(data, &PutOptions::new())
    }

    /// As [`append`](Queue::append), with an expiry, a durability or flags of the item's own.
    ///
    /// # Errors
    /// As [`append`](Queue::append).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use kestrel_core::PutOptions;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// let id = jobs.append_with("one", &PutOptions::new().flags(7))?;
    /// jobs.synced(id)?;
    /// assert_eq!(jobs.get()?.flags(), 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn append_with(&self, data: impl AsRef<[u8]>, options: &PutOptions) -> Result<ItemId, PutError> {
        self.core.put(New::items(&[data.as_ref()]), options, Room::ByPolicy, true, &mut Vec::new())
    }

    /// Puts an item with an expiry, a durability or flags of its own.
    ///
    /// # Errors
    /// As [`put`](Queue::put).
    pub fn put_with(&self, data: impl AsRef<[u8]>, options: &PutOptions) -> Result<ItemId, PutError> {
        self.core.put(New::items(&[data.as_ref()]), options, Room::ByPolicy, false, &mut Vec::new())
    }

    /// As [`put`](Queue::put), but in a full queue waits for room until the time is over, whatever `when_full` says (under
    /// `DropOldest` it makes room at once). Putters that wait are served in order.
    ///
    /// # Errors
    /// As [`put`](Queue::put); [`PutError::Full`] if there was no room in time, [`PutError::Closed`] if the queue went away.
    pub fn put_timeout(&self, data: impl AsRef<[u8]>, timeout: Duration) -> Result<ItemId, PutError> {
        let room = Room::Within(Patience::lasting(timeout));
        self.core.put(New::items(&[data.as_ref()]), &PutOptions::new(), room, false, &mut Vec::new())
    }

    /// Puts all items, next to each other, or none: also across a crash, and also against the limits.
    ///
    /// A batch and its frames must fit one segment of at most 1 GiB. An empty batch is `Ok`.
    ///
    /// # Errors
    /// As [`put`](Queue::put), for the batch as a whole.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// let ids = jobs.put_batch(["a", "b", "c"])?;
    /// assert_eq!(ids.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn put_batch<I>(&self, items: I) -> Result<Vec<ItemId>, PutError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        // The caller's iterator runs to its end before anything is locked.
        let items: Vec<I::Item> = items.into_iter().collect();
        let payloads: Vec<&[u8]> = items.iter().map(AsRef::as_ref).collect();
        let mut ids = Vec::with_capacity(payloads.len());
        if payloads.is_empty() {
            return Ok(ids);
        }
        let last = self.core.put(New::items(&payloads), &PutOptions::new(), Room::ByPolicy, false, &mut ids)?;
        if ids.is_empty() {
            ids.push(last);
        }
        Ok(ids)
    }

    /// Waits until an item is on the device, and with it everything put before it.
    ///
    /// Works with every durability; with `Every` and `Os` it asks for a sync.
    ///
    /// # Errors
    /// [`SyncError::Failed`] if the sync failed, now or earlier; [`SyncError::UnknownId`] for an id that was never given out.
    pub fn synced(&self, id: ItemId) -> Result<(), SyncError> {
        self.core.synced(id.get())
    }

    /// As [`synced`](Queue::synced), for tasks; the sync runs on the set's background thread.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the sync goes on.
    pub fn synced_async(&self, id: ItemId) -> SyncedFuture {
        SyncedFuture::new(Arc::clone(&self.core), id)
    }

    fn take(&self, patience: Patience) -> Result<Option<Item>, GetError> {
        let mut given = None;
        self.core.take_waiting(Mode::Get, patience, &mut given)?;
        Ok(given.map(|given| given.item))
    }

    fn take_open(&self, patience: Patience) -> Result<Option<OpenItem>, GetError> {
        let mut given = None;
        self.core.take_waiting(Mode::Open, patience, &mut given)?;
        Ok(given.map(|given| OpenItem::new(Arc::clone(&self.core), given.item, given.serial)))
    }

    /// Takes the next item, waiting for one as long as it takes. The item is done at once; [`open`](Queue::open) keeps it
    /// safe until it is closed.
    ///
    /// # Durability
    /// That the item is done survives the death of the process at once, a power cut from the next sync on.
    ///
    /// # Errors
    /// [`GetError::Closed`] when the set is closed or the queue deleted, also while waiting; [`GetError::Corrupt`] if the
    /// item's bytes are damaged.
    #[doc(alias = "dequeue")]
    #[doc(alias = "pop")]
    pub fn get(&self) -> Result<Item, GetError> {
        loop {
            if let Some(item) = self.take(Patience::Forever)? {
                return Ok(item);
            }
        }
    }

    /// Takes the next item if one is there.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn try_get(&self) -> Result<Option<Item>, GetError> {
        self.take(Patience::None)
    }

    /// Takes the next item, waiting up to `timeout`. `None`: the time is over. Zero is [`try_get`](Queue::try_get),
    /// `Duration::MAX` waits without end.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<Option<Item>, GetError> {
        self.take(Patience::lasting(timeout))
    }

    /// Takes the next item, waiting until `deadline`; one in the past is [`try_get`](Queue::try_get).
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn get_deadline(&self, deadline: Instant) -> Result<Option<Item>, GetError> {
        self.take(Patience::until(deadline))
    }

    /// Takes the next item, for tasks of any executor. Its place in the line is taken at the first poll.
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready loses no item and no wake-up. Once it has answered, the item is done: an output
    /// that is dropped unseen is gone. [`open_async`](Queue::open_async) has no such gap.
    pub fn get_async(&self) -> GetFuture {
        GetFuture::new(Arc::clone(&self.core))
    }

    /// Opens the next item, waiting for one as long as it takes. See [`OpenItem`] for how it ends.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    #[doc(alias = "reserve")]
    #[doc(alias = "receive")]
    pub fn open(&self) -> Result<OpenItem, GetError> {
        loop {
            if let Some(item) = self.take_open(Patience::Forever)? {
                return Ok(item);
            }
        }
    }

    /// Opens the next item if one is there.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn try_open(&self) -> Result<Option<OpenItem>, GetError> {
        self.take_open(Patience::None)
    }

    /// Opens the next item, waiting up to `timeout`. `None`: the time is over.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn open_timeout(&self, timeout: Duration) -> Result<Option<OpenItem>, GetError> {
        self.take_open(Patience::lasting(timeout))
    }

    /// Opens the next item, waiting until `deadline`.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn open_deadline(&self, deadline: Instant) -> Result<Option<OpenItem>, GetError> {
        self.take_open(Patience::until(deadline))
    }

    /// Opens the next item, for tasks of any executor.
    ///
    /// # Cancel safety
    /// Dropping the future at any moment loses nothing: a wake-up passes to the next in line, and an output that is dropped is
    /// an abort.
    pub fn open_async(&self) -> OpenFuture {
        OpenFuture::new(Arc::clone(&self.core))
    }

    /// Opens up to `max` items: those that are there, waiting up to `timeout` only for the first. An empty vector means that
    /// none came.
    ///
    /// # Errors
    /// As [`get`](Queue::get); items opened before the error are given back.
    pub fn open_batch(&self, max: usize, timeout: Duration) -> Result<Vec<OpenItem>, GetError> {
        self.open_at_least(1, max, timeout)
    }

    /// Opens up to `max` items, waiting until `min` of them have come or `timeout` is over: then those that are there. Each is
    /// open from the moment at which it came, so that a [lease](crate::QueueOptions::lease) runs while others are waited for.
    ///
    /// Blocks up to `timeout`; zero waits for nothing, `Duration::MAX` without end. A `min` beyond `max` is `max`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let set = kestrel_core::QueueSet::open(dir.path())?;
    /// use std::time::Duration;
    ///
    /// let rows = set.queue("rows")?;
    /// rows.put_batch(["a", "b"])?;
    /// let batch = rows.open_at_least(100, 500, Duration::from_millis(20))?;
    /// assert_eq!(batch.len(), 2); // what there was when the time was over
    /// for row in batch {
    ///     row.close()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Queue::get); items opened before the error are given back.
    pub fn open_at_least(&self, min: usize, max: usize, timeout: Duration) -> Result<Vec<OpenItem>, GetError> {
        let patience = Patience::lasting(timeout);
        let mut items = Vec::new();
        while items.len() < min.min(max) {
            match self.take_open(patience)? {
                Some(item) => items.push(item),
                None => return Ok(items),
            }
        }
        while items.len() < max {
            match self.core.take(Mode::Open, None)? {
                Took::Item(given) => {
                    items.push(OpenItem::new(Arc::clone(&self.core), given.item, given.serial));
                }
                _ => break,
            }
        }
        Ok(items)
    }

    /// Shows the next item without taking it. `None` if nothing waits, or while paused. Never blocks for an item.
    ///
    /// # Errors
    /// As [`get`](Queue::get); works in a set opened read-only.
    pub fn peek(&self) -> Result<Option<Item>, GetError> {
        self.core.peek()
    }

    /// Opens item after item, waiting for each. Ends when the queue is closed.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// jobs.put_batch(["a", "b"])?;
    /// for job in jobs.iter().take(2) {
    ///     job?.close()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter(&self) -> Iter<'_> {
        Iter { queue: self }
    }

    /// Opens item after item while there are any.
    pub fn try_iter(&self) -> TryIter<'_> {
        TryIter { queue: self }
    }

    /// Opens item after item as a stream that ends when the queue is closed.
    ///
    /// # Cancel safety
    /// As [`open_async`](Queue::open_async).
    #[cfg(feature = "async")]
    #[cfg_attr(docsrs, doc(cfg(feature = "async")))]
    pub fn stream(&self) -> futures::OpenStream {
        futures::OpenStream::new(Arc::clone(&self.core))
    }

    /// Items waiting; open and deferred ones do not count. May include expired ones that nobody has met yet, and, after an open
    /// with a backlog of more than some dozens, deferred ones that lie behind it.
    pub fn len(&self) -> u64 {
        self.core.reader_ahead().items()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stops deliveries: gets and opens behave as on an empty queue, and who waits keeps place and deadline. Puts go on.
    /// Lasts until [`resume`](Queue::resume) or the end of the process.
    pub fn pause(&self) {
        if !self.core.is_forked() {
            self.core.set_paused(true);
        }
    }

    /// Ends a [`pause`](Queue::pause), waking as many consumers as there are items.
    pub fn resume(&self) {
        if !self.core.is_forked() {
            self.core.set_paused(false);
        }
    }

    /// Whether deliveries are stopped.
    pub fn is_paused(&self) -> bool {
        self.core.reader.lock().paused
    }

    /// Removes every item put so far and returns how many waited. The time does not depend on their number. What a queue forgets is
    /// gone for its [readers](Queue::reader) too; clearing a reader clears it alone.
    ///
    /// Items that are open stay in their consumers' hands: closing them answers `Ok`, aborting them discards them. After a
    /// crash during the call either all or none of the items are gone; when it returns, they are gone durably.
    ///
    /// # Errors
    /// [`Error::Io`] if it could not be stored; nothing is changed then.
    #[doc(alias = "flush")]
    #[doc(alias = "purge")]
    pub fn clear(&self) -> Result<u64, Error> {
        self.may_change()?;
        self.core.clear()
    }

    /// Removes up to `max` expired items now and returns how many. The background does this once a second by itself.
    ///
    /// # Errors
    /// As [`get`](Queue::get).
    pub fn discard_expired(&self, max: usize) -> Result<u64, Error> {
        self.may_change()?;
        Ok(self.core.sweep(max as u64)?)
    }

    fn may_change(&self) -> Result<(), Error> {
        if self.core.is_forked() {
            return Err(Error::Forked);
        }
        if self.core.shared.read_only {
            return Err(Error::ReadOnly);
        }
        if self.core.reader.lock().closed {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Makes everything done so far durable: puts of every durability, closes, gets. Blocks for the device.
    ///
    /// # Errors
    /// [`SyncError::Failed`] if the sync failed, now or earlier.
    #[doc(alias = "fsync")]
    pub fn sync(&self) -> Result<(), SyncError> {
        self.core.sync()
    }

    /// The queue's counters and gauges.
    pub fn stats(&self) -> QueueStats {
        self.core.stats()
    }

    /// What opening this queue found.
    pub fn recovery(&self) -> RecoveryReport {
        self.core.report.lock().clone()
    }

    /// The reader of this name, created if there is none: a queue over the same items with a state of its own, also found as
    /// `queue+reader` in the set.
    ///
    /// A reader gets every item that is put after its creation, in order, once, whatever becomes of the item in the queue itself
    /// or with other readers; items are stored once for all of them. Its handle is used as any queue's: opens, closes, leases,
    /// attempts, expiry, [`pause`](Queue::pause), [`stats`](Queue::stats) and the line of those who wait are its own, and
    /// [`clear`](Queue::clear) clears it alone. A segment's space comes back when the queue and all readers are done with it:
    /// a slow reader never stops the others, its [`lag`](crate::QueueStats::lag) grows.
    ///
    /// A put to the reader goes to it alone. Its options are the queue's, also when these change, but for its own: by
    /// [`reader_with`](Queue::reader_with), [`set_overrides`](Queue::set_overrides) or
    /// [`QueueSetBuilder::queue_overrides`](crate::QueueSetBuilder::queue_overrides). Its own can be limits, `when_full`, `max_age`,
    /// `expire_to`, `lease`, `max_attempts`, `dead_letters`, `memory_bytes` and `max_expire_sweep`; the journal is common to all. A
    /// limit with [`DropOldest`](crate::WhenFull::DropOldest) drops the reader's own oldest; with another policy it holds for puts
    /// to the reader alone, since a reader stops no put to the queue.
    ///
    /// # Durability
    /// When this returns, the reader survives a power cut; after a crash during the call it is there or not. Blocks for the
    /// device where it is created.
    ///
    /// # Errors
    /// [`OpenError::InvalidName`] if the name does not have 1 to 200 bytes without NUL, or this is a reader itself;
    /// [`OpenError::NoSpace`], [`OpenError::Io`] if it could not be stored: it is not there then; [`OpenError::ReadOnly`],
    /// [`OpenError::State`], [`OpenError::Closed`], [`OpenError::Forked`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let orders = set.queue("orders")?;
    /// let audit = orders.reader("audit")?;
    /// orders.put("17 apples")?;
    /// assert_eq!(orders.get()?.data(), b"17 apples");
    /// assert_eq!(audit.stats().lag, 1);
    /// assert_eq!(set.queue("orders+audit")?.get()?.data(), b"17 apples");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "fanout")]
    #[doc(alias = "subscribe")]
    pub fn reader(&self, name: &str) -> Result<Queue, OpenError> {
        self.reader_with(name, &ReaderOptions::new())
    }

    /// As [`reader`](Queue::reader), with options that apply if it is created: where it starts, and what differs from the
    /// queue's options. A reader that is there stays as it is.
    ///
    /// # Errors
    /// As `reader`, and [`OpenError::Options`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use kestrel_core::ReaderOptions;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let orders = set.queue("orders")?;
    /// orders.put("17 apples")?;
    /// let late = orders.reader_with("late", &ReaderOptions::new().from_oldest(true))?;
    /// assert_eq!((orders.len(), late.len()), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn reader_with(&self, name: &str, options: &ReaderOptions) -> Result<Queue, OpenError> {
        let core = self.core.named_or_new(name, options)?;
        Ok(Queue { core, _set: self._set.clone() })
    }

    /// The reader of this name if there is one.
    pub fn get_reader(&self, name: &str) -> Option<Queue> {
        Some(Queue { core: self.core.named(name)?, _set: self._set.clone() })
    }

    /// The names of this queue's readers, sorted, without the queue's own name before them.
    pub fn readers(&self) -> Vec<String> {
        self.core.names()
    }

    /// Removes a reader with its state; `false` if there was none. The queue and its other readers are not touched.
    ///
    /// Who waits on it gets `Closed`, and so does every later use of its handles. Space that it alone held comes back. After a
    /// crash during the call it is there or not. A new reader of the same name starts anew.
    ///
    /// # Errors
    /// [`Error::Io`] if that could not be stored: then the next open tells whether it is there. [`Error::ReadOnly`],
    /// [`Error::State`], [`Error::Closed`], [`Error::Forked`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let orders = set.queue("orders")?;
    /// orders.reader("audit")?;
    /// assert!(orders.delete_reader("audit")?);
    /// assert!(orders.readers().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_reader(&self, name: &str) -> Result<bool, Error> {
        self.may_change()?;
        self.core.delete_named(name)
    }

    /// Closes the open item that a token names. `false`: it was ended before, or never was.
    ///
    /// # Errors
    /// As [`OpenItem::close`].
    pub fn close_token(&self, token: OpenToken) -> Result<bool, CloseError> {
        if token.life != self.core.life {
            return Ok(false);
        }
        self.core.close_item(token.id, token.serial)
    }

    /// Sets the lease of the open item that a token names, as [`OpenItem::extend`] does.
    pub fn extend_token(&self, token: OpenToken, lease: Duration) -> bool {
        token.life == self.core.life && self.core.extend_lease(token.id, token.serial, lease)
    }

    /// Aborts the open item that a token names. `false`: it was ended before, or never was.
    pub fn abort_token(&self, token: OpenToken) -> bool {
        token.life == self.core.life && self.core.abort_item(token.id, token.serial)
    }

    /// This queue for values of one type.
    pub fn typed<T, C: Codec<T>>(&self, codec: C) -> TypedQueue<T, C> {
        TypedQueue::new(self.clone(), codec)
    }

    /// The same queue, not another of the same name.
    pub(crate) fn is(&self, core: &Arc<Core>) -> bool {
        Arc::ptr_eq(&self.core, core)
    }
}

impl PartialEq for Queue {
    /// Handles are equal if they are of one and the same queue.
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.core)
    }
}

impl Eq for Queue {}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.core.name).finish_non_exhaustive()
    }
}

/// Opens item after item, waiting for each: [`Queue::iter`].
#[derive(Debug)]
pub struct Iter<'a> {
    queue: &'a Queue,
}

impl Iterator for Iter<'_> {
    type Item = Result<OpenItem, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.queue.open() {
            Err(GetError::Closed) => None,
            other => Some(other),
        }
    }
}

/// Opens item after item while there are any: [`Queue::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a> {
    queue: &'a Queue,
}

impl Iterator for TryIter<'_> {
    type Item = Result<OpenItem, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.queue.try_open().transpose()
    }
}
