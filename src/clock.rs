//! Time as items see it.

use crate::disk::Disk;
use crate::sync::{AtomicU64, Ordering};

/// Wall time that never goes back: the wall clock at the open, never before the newest put, plus time that passed.
#[derive(Debug)]
pub(crate) struct Clock {
    disk: Disk,
    /// Added to the monotonic clock.
    offset_ms: AtomicU64,
}

impl Clock {
    pub(crate) fn new(disk: Disk) -> Clock {
        let offset_ms = disk.wall_ms().saturating_sub(disk.mono_exact_ms());
        Clock { disk, offset_ms: AtomicU64::new(offset_ms) }
    }

    /// To the resolution of a coarse clock.
    #[inline]
    pub(crate) fn now_ms(&self) -> u64 {
        self.disk.mono_ms() + self.offset_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn exact_ms(&self) -> u64 {
        self.disk.mono_exact_ms() + self.offset_ms.load(Ordering::Relaxed)
    }

    /// A put time from before: time has not been earlier since.
    pub(crate) fn observe(&self, ms: u64) {
        let behind = ms.saturating_sub(self.exact_ms());
        self.offset_ms.fetch_add(behind, Ordering::Relaxed);
    }
}
