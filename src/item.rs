//! What a consumer gets: [`Item`].

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ids::{ItemId, NEVER_MS};

/// A payload with its id, put time, expiry, user flags and number of starts.
///
/// `Debug` shows the length, never the payload.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let set = kestrel_core::QueueSet::open(dir.path())?;
/// let mail = set.queue("mail")?;
/// mail.put(b"to: ada")?;
/// let item = mail.get()?;
/// assert_eq!(item.data(), b"to: ada");
/// assert_eq!(item.attempts(), 1);
/// assert!(item.expires_at().is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Item {
    pub(crate) id: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) put_ms: u64,
    pub(crate) expiry_ms: u64,
    pub(crate) user_flags: u32,
    pub(crate) attempts: u32,
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
}

/// Where a dead letter comes from and why it was given up: [`Item::dead_letter`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The queue in which it could not be done.
    pub queue: String,
    /// Its id there.
    pub id: ItemId,
    /// How often it was started there; counted up to 31.
    pub attempts: u32,
    /// The reason given with [`OpenItem::dead_letter`](crate::OpenItem::dead_letter), up to 4,096 bytes of it; `max_attempts`
    /// where the queue gave it up.
    pub reason: String,
}

impl Item {
    /// The item's id in its queue.
    pub fn id(&self) -> ItemId {
        ItemId(self.id)
    }

    /// The payload, as it was put.
    pub fn data(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, without a copy.
    pub fn into_vec(self) -> Vec<u8> {
        self.payload
    }

    /// When the item was put, to the resolution of a coarse clock (a few ms).
    pub fn put_time(&self) -> SystemTime {
        at(self.put_ms)
    }

    /// When the item expires, if ever: the earlier of its own expiry and put time + `max_age` as it was at the put.
    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.expiry_ms != NEVER_MS).then(|| at(self.expiry_ms))
    }

    /// How often a consumer has been given this item, this time included.
    ///
    /// The count outlives the process, also one that dies with the item open, so that an item which kills its consumer
    /// can be told. An orderly [`QueueSet::close`](crate::QueueSet::close) does not count the starts it interrupts. On
    /// disk the count stops at 31. A [`peek`](crate::Queue::peek) does not count.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Where this item comes from and why, if it was moved here as a dead letter.
    ///
    /// Its payload and flags are those it was put with; id, put time and attempts are of the queue that it is in now.
    pub fn dead_letter(&self) -> Option<&DeadLetter> {
        self.dead_letter.as_deref()
    }

    /// The 32 bits given with [`PutOptions::flags`](crate::PutOptions::flags), else 0.
    pub fn flags(&self) -> u32 {
        self.user_flags
    }
}

pub(crate) fn at(ms: u64) -> SystemTime {
    // Far enough for any clock; a damaged time must not panic.
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("id", &self.id)
            .field("bytes", &self.payload.len())
            .field("attempts", &self.attempts)
            .field("flags", &self.user_flags)
            .finish_non_exhaustive()
    }
}
