//! When open items come back by themselves.

use std::collections::BTreeSet;

/// The due time of an item that is held as long as its consumer likes.
pub(crate) const ENDLESS: u64 = u64::MAX;

/// The open items whose lease ends some time: due ms by the monotonic clock, id.
#[derive(Debug)]
pub(crate) struct Leases {
    due: BTreeSet<(u64, u64)>,
    /// When the earliest timer rings that was asked for.
    timer_ms: u64,
}

impl Default for Leases {
    fn default() -> Self {
        Leases { due: BTreeSet::new(), timer_ms: ENDLESS }
    }
}

impl Leases {
    /// Returns whether a timer must be asked for.
    pub(crate) fn begin(&mut self, due_ms: u64, id: u64) -> bool {
        if due_ms == ENDLESS {
            return false;
        }
        self.due.insert((due_ms, id));
        let earlier = due_ms < self.timer_ms;
        if earlier {
            self.timer_ms = due_ms;
        }
        earlier
    }

    pub(crate) fn end(&mut self, due_ms: u64, id: u64) {
        if due_ms != ENDLESS {
            self.due.remove(&(due_ms, id));
        }
    }

    /// The first one that is over.
    pub(crate) fn overdue(&self, now_ms: u64) -> Option<u64> {
        self.due.first().filter(|(due_ms, _)| *due_ms <= now_ms).map(|(_, id)| *id)
    }

    /// The timer rang: when the next one must.
    pub(crate) fn next_timer(&mut self) -> Option<u64> {
        let next = self.due.first().map(|(due_ms, _)| *due_ms);
        self.timer_ms = next.unwrap_or(ENDLESS);
        next
    }

    pub(crate) fn clear(&mut self) {
        self.due.clear();
    }
}
