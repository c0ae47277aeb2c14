//! A consumer's hold on an item: [`OpenItem`], and its number for session tables: [`OpenToken`].

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::{CloseError, SyncError};
use crate::ids::ItemId;
use crate::item::Item;
use crate::queue::core::Core;

/// An item that this consumer holds: nobody else gets it until it is closed, aborted or dropped.
///
/// - [`close`](OpenItem::close): done, for good.
/// - [`abort`](OpenItem::abort), or dropping it: back in its place, before all younger items. No I/O but one byte stored.
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
    /// [`CloseError::Closed`] after the set was closed or the queue deleted; [`CloseError::Io`] if the mark could not be
    /// stored: the item goes back to its queue; [`CloseError::Forked`] in a forked child.
    #[doc(alias = "ack")]
    #[doc(alias = "commit")]
    #[doc(alias = "confirm")]
    pub fn close(mut self) -> Result<(), CloseError> {
        let id = self.id_number();
        self.item = None;
        self.core.close_item(id, self.serial).map(|_| ())
    }

    /// As [`close`](OpenItem::close), and waits until the device has it.
    ///
    /// # Errors
    /// As `close`; [`CloseError::Sync`] if the close was stored and its sync failed.
    pub fn close_synced(self) -> Result<(), CloseError> {
        let core = Arc::clone(&self.core);
        self.close()?;
        core.sync().map_err(|error| match error {
            SyncError::Closed => CloseError::Closed,
            SyncError::Forked => CloseError::Forked,
            other => CloseError::Sync(other),
        })
    }

    /// Gives the item back: it is the next to be delivered, unless older items were given back too, which come first.
    ///
    /// The same as dropping it, said aloud. Wakes one waiting consumer. Never fails and never blocks for the device.
    #[doc(alias = "nack")]
    #[doc(alias = "rollback")]
    pub fn abort(self) {
        drop(self);
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
        static EMPTY: Item = Item { id: 0, payload: Vec::new(), put_ms: 0, expiry_ms: 0, user_flags: 0, attempts: 0 };
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
