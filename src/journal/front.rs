//! How far a journal has come, for those who do not hold its tail: its readers, and who wants to know whether one waits.
//!
//! Written under the tail lock, but for [`Front::show`]. Two promises, for which the orderings stand: who sees an id in
//! [`Front::visible`] finds its frame, and every count includes it; and a put that does not see a waiting consumer is seen by
//! that consumer, which takes the tail lock once between joining its line and its last look ([`crate::queue`]).

use crate::sync::{AtomicU64, Ordering};

#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Front {
    /// The last id appended.
    appended: AtomicU64,
    /// Items up to this id may be delivered; what comes behind one that waits for the device waits too.
    visible: AtomicU64,
    /// Payload bytes appended by this process, items with an expiry of their own, items with a delay.
    payload_bytes: AtomicU64,
    expiring: AtomicU64,
    deferred: AtomicU64,
    deferred_bytes: AtomicU64,
    /// Consumers who stand in line without a promise.
    waiting: AtomicU64,
}

/// What a journal has taken in since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Intake {
    pub(crate) payload_bytes: u64,
    pub(crate) expiring: u64,
    pub(crate) deferred: u64,
    pub(crate) deferred_bytes: u64,
}

impl Front {
    pub(crate) fn new(last_id: u64) -> Front {
        Front {
            appended: AtomicU64::new(last_id),
            visible: AtomicU64::new(last_id),
            payload_bytes: AtomicU64::new(0),
            expiring: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            deferred_bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    pub(crate) fn intake(&self) -> Intake {
        Intake {
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
            expiring: self.expiring.load(Ordering::Relaxed),
            deferred: self.deferred.load(Ordering::Relaxed),
            deferred_bytes: self.deferred_bytes.load(Ordering::Relaxed),
        }
    }

    /// The frames up to the id `last` are there; by the tail's holder.
    #[inline]
    pub(crate) fn advance(&self, last: u64, intake: Intake) {
        self.payload_bytes.store(intake.payload_bytes, Ordering::Relaxed);
        self.expiring.store(intake.expiring, Ordering::Relaxed);
        self.deferred.store(intake.deferred, Ordering::Relaxed);
        self.deferred_bytes.store(intake.deferred_bytes, Ordering::Relaxed);
        self.appended.store(last, Ordering::Release);
    }

    /// Shows what the tail's holder has just appended behind `before`, unless something before it is hidden. A sync may show
    /// that something meanwhile: then nobody but the next sync shows the new items.
    #[inline]
    pub(crate) fn show_next(&self, before: u64, last: u64) -> bool {
        let is_next = self.visible.load(Ordering::Relaxed) >= before;
        if is_next {
            self.visible.store(last, Ordering::Release);
        }
        is_next
    }

    /// Shows everything up to `id`, which is durable, or gone.
    pub(crate) fn show(&self, id: u64) {
        self.visible.fetch_max(id.min(self.appended()), Ordering::AcqRel);
    }

    /// Whether a consumer may sleep that nothing was promised to. True also for a moment after it was.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Counts those who stand in line; under the lock of the reader whose line it is.
    pub(crate) fn count_waiting(&self, before: u64, now: u64) {
        self.waiting.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }
}
