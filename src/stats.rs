//! Numbers for operators: [`QueueStats`], [`SetStats`], and what recovery found: [`RecoveryReport`].

use crate::ids::ItemId;

/// A queue's counters and gauges at one moment. Counters are since the set was opened and never fall.
///
/// The names are Kestrel's where it had one. Kestrel's `open_transactions` is `open_items` here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct QueueStats {
    /// Gauge: items waiting. Includes expired ones that no get or sweep has met yet.
    pub items: u64,
    /// Gauge: their payload bytes.
    pub bytes: u64,
    /// Counter: items put, but for those put to other readers alone.
    pub total_items: u64,
    /// Counter: payload bytes put.
    pub put_bytes: u64,
    /// Counter: gets and opens that gave an item.
    pub get_hits: u64,
    /// Counter: gets, opens and peeks that found none (a wait that ends empty counts once).
    pub get_misses: u64,
    /// Gauge: items held ready in memory (as places, not payloads).
    pub mem_items: u64,
    /// Gauge: the payload bytes they stand for; bounded by `memory_bytes`, aborted items excepted.
    pub mem_bytes: u64,
    /// Gauge: ms that the item fetched last had waited; 0 when nothing waits.
    pub age_ms: u64,
    /// Gauge: ms that the oldest waiting item has waited; 0 when nothing waits.
    pub oldest_age_ms: u64,
    /// Counter: items removed, or moved to [`expire_to`](crate::QueueOptions::expire_to), because their time was over.
    pub expired_items: u64,
    /// Counter: items dropped by `DropOldest`.
    pub discarded: u64,
    /// Gauge: threads and tasks that wait for an item.
    pub waiters: u64,
    /// Gauge: items that a consumer holds open, and such as are on their way to the dead letters.
    pub open_items: u64,
    /// Counter: attempts to open, with or without an item.
    pub transactions: u64,
    /// Counter: open items that came back, by abort or drop.
    pub canceled_transactions: u64,
    /// Counter: clears.
    pub total_flushes: u64,
    /// When the queue was created, in ms since 1970.
    pub create_time_ms: u64,
    /// Gauge: bytes of the queue's segment files.
    pub log_size: u64,
    /// Gauge: segment files.
    pub segments: u64,
    /// Counter: items given out that had been given out before.
    pub redelivered: u64,
    /// Gauge: journal bytes not yet known to be durable.
    pub unsynced_bytes: u64,
    /// Counter: syncs asked of the device.
    pub syncs: u64,
    /// Gauge: items open for more than an hour: probably leaked.
    pub leaked_open_items: u64,
    /// Counter: damaged items skipped under [`OnDamage::Salvage`](crate::OnDamage::Salvage) while reading.
    pub damaged_items: u64,
    /// Counter: open items that came back because their lease ended; they count as canceled transactions too.
    pub leases_ended: u64,
    /// Counter: items moved to the dead letters.
    pub dead_lettered: u64,
    /// Gauge: items whose delay has not ended; not in `items`.
    pub deferred_items: u64,
    /// Gauge: expired items that do not wait any more and could not be moved to
    /// [`expire_to`](crate::QueueOptions::expire_to) yet. After a reopen they count among `items` again until they are met.
    pub expiring_items: u64,
    /// Gauge: items put that this queue, or this reader, is not done with, waiting, deferred, held open or about to move.
    pub lag: u64,
    /// Gauge: a queue's named readers.
    pub readers: u64,
    /// Counter: items put under [`fanout_only`](crate::QueueOptions::fanout_only) while there was no reader; they are not
    /// stored, and not among `total_items`.
    pub unread_items: u64,
}

/// A set's counters and gauges at one moment. Counters are since the set was opened and never fall; the names are Kestrel's where
/// it had one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SetStats {
    /// Gauge: queues in the directory.
    pub queues: u64,
    /// Gauge: queues that have been used since the set was opened, and so are loaded.
    pub open_queues: u64,
    /// Gauge: items waiting in the loaded queues, for each of their readers.
    pub curr_items: u64,
    /// Gauge: their payload bytes.
    pub bytes: u64,
    /// Counter: queues created.
    pub queue_creates: u64,
    /// Counter: queues deleted by [`QueueSet::delete`](crate::QueueSet::delete).
    pub queue_deletes: u64,
    /// Counter: queues deleted by the set itself because of their [`max_queue_age`](crate::QueueOptions::max_queue_age).
    pub queue_expires: u64,
    /// Gauge: spare segments kept for re-use.
    pub pool_segments: u64,
    /// Gauge: their bytes.
    pub pool_bytes: u64,
    /// Gauge: bytes of all segment files of the loaded queues, and of the pool.
    pub disk_bytes: u64,
    /// Gauge: segment files that are open: see [`QueueSetBuilder::open_files`](crate::QueueSetBuilder::open_files).
    pub open_files: u64,
}

/// What opening a queue found, and what it did.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let set = kestrel_core::QueueSet::open(dir.path())?;
/// let report = set.queue("new")?.recovery();
/// assert!(report.clean && report.lost.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The queue had been closed in good order, or was new.
    pub clean: bool,
    /// Segment files found.
    pub segments: u64,
    /// Items waiting after the open.
    pub items: u64,
    /// Of these, items that a consumer held open when the process ended; they come first.
    pub redelivered: u64,
    /// The ids of those.
    pub held: Vec<ItemId>,
    /// Items of an interrupted write at the end. Their puts were never answered as durable.
    pub discarded_items: u64,
    /// The bytes of their frames.
    pub discarded_bytes: u64,
    /// Items whose bytes were once durable and are damaged ([`OnDamage::Salvage`](crate::OnDamage::Salvage) only).
    pub lost: Vec<LostRange>,
    /// Items that were not proven durable and were written anew, and synced, before being served.
    pub copied_items: u64,
    /// Items whose state byte was damaged; they are delivered again.
    pub damaged_marks: u64,
    /// Bytes of segment files that were read through.
    pub scanned_bytes: u64,
}

/// Items lost to damage, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LostRange {
    /// The segment.
    pub segment: u64,
    /// Where the damage begins, in bytes.
    pub offset: u64,
    /// The first id lost.
    pub first: ItemId,
    /// The last id lost.
    pub last: ItemId,
}

/// How far the recovery of one queue has come, for [`QueueSetBuilder::on_recovery`](crate::QueueSetBuilder::on_recovery).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// The queue.
    pub queue: String,
    /// Segments dealt with.
    pub segments_done: u64,
    /// Segments found.
    pub segments_total: u64,
}
