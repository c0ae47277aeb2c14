//! When open items come back by themselves.

use std::collections::BTreeSet;

/// The due time of an item that is held as long as its consumer likes.
pub(crate) const ENDLESS: u64 = u64::MAX;

/// The open items whose lease ends some time: due ms by the monotonic clock, id.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    due: BTreeSet<(u64, u64)>,
    /// When the timers ring that were asked for and have not rung: each is earlier than all that were there before it.
    timers: BTreeSet<u64>,
}

impl Leases {
    /// Returns whether a timer must be asked for.
    pub(crate) fn begin(&mut self, due_ms: u64, id: u64) -> bool {
        if due_ms == ENDLESS {
            return false;
        }
        self.due.insert((due_ms, id));
        self.asks(due_ms)
    }

    fn asks(&mut self, due_ms: u64) -> bool {
        self.timers.first().is_none_or(|timer_ms| due_ms < *timer_ms) && self.timers.insert(due_ms)
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

    /// A timer rang: when the next one must, unless one will that was asked for before.
    pub(crate) fn next_timer(&mut self, now_ms: u64) -> Option<u64> {
        self.timers = self.timers.split_off(&now_ms.saturating_add(1));
        let next = self.due.first().map(|(due_ms, _)| *due_ms);
        next.filter(|due_ms| self.asks(*due_ms))
    }

    pub(crate) fn clear(&mut self) {
        self.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each short lease beside a long one left a timer behind, and all of them rang whenever one did.
    #[test]
    fn a_timer_that_waits_is_not_asked_for_again() {
        let mut leases = Leases::default();
        assert!(leases.begin(1_000, 0));
        for now_ms in (0..900).step_by(10) {
            assert!(leases.begin(now_ms + 5, 1));
            leases.end(now_ms + 5, 1);
            assert_eq!(leases.next_timer(now_ms + 5), None, "the long one's timer waits");
        }
        assert!(leases.begin(950, 2) && !leases.begin(960, 3) && leases.timers.len() == 2);
        leases.end(950, 2);
        assert_eq!(leases.next_timer(950), Some(960));
        assert_eq!((leases.overdue(959), leases.overdue(960)), (None, Some(3)));
        leases.end(960, 3);
        assert_eq!((leases.next_timer(960), leases.timers.len()), (None, 1));
        leases.end(1_000, 0);
        assert_eq!((leases.next_timer(1_000), leases.timers.len()), (None, 0));
        assert!(leases.begin(2_000, 4));
    }
}
