//! Plain numbers with a meaning: [`ItemId`], and the place of an item inside a journal.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names an item of a queue.
///
/// Ids rise with each put of a queue. They are never given out twice: not after a restart, a crash, [`clear`], or
/// [`delete`] and re-creation of the queue. They need not be consecutive: after a power cut they jump, so that ids of puts
/// which the cut undid are not used again. Only a queue without a journal, which keeps nothing, begins anew with each process.
///
/// [`clear`]: crate::Queue::clear
/// [`delete`]: crate::QueueSet::delete
///
/// ```
/// use kestrel_core::ItemId;
/// let id = ItemId::from(7);
/// assert_eq!(id.get(), 7);
/// assert_eq!(format!("{id} {id:x}"), "7 7");
/// assert!(id < ItemId::from(8));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct ItemId(pub(crate) u64);

impl ItemId {
    /// An id from its number, for callers that stored one.
    pub const fn new(number: u64) -> Self {
        ItemId(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::LowerHex for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl From<u64> for ItemId {
    fn from(number: u64) -> Self {
        ItemId(number)
    }
}

impl From<ItemId> for u64 {
    fn from(id: ItemId) -> Self {
        id.0
    }
}

/// Where an item's frame is, and what must be known of it without reading it: what the ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    /// Counts the items of the segment: the index into its lane.
    pub(crate) ordinal: u32,
    pub(crate) payload_len: u32,
    /// Bytes from the frame's offset to its payload.
    pub(crate) head_len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) user_flags: u32,
    pub(crate) put_ms: u64,
    /// Absolute ms; `u64::MAX`: never.
    pub(crate) expiry_ms: u64,
}

/// Where a reader reads on: behind the last frame that it has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    pub(crate) ordinal: u32,
}

impl Cursor {
    /// Behind everything in the segment `number`.
    pub(crate) fn behind(number: u64) -> Cursor {
        Cursor { segment: number, offset: u32::MAX, ordinal: u32::MAX }
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.offset == u32::MAX
    }
}

/// `expiry_ms` of an item that never expires.
pub(crate) const NEVER_MS: u64 = u64::MAX;

/// A number that no earlier call in this process was given.
pub(crate) fn next_life() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
