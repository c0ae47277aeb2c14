//! Numbers for a page of figures: [`JobStats`].

use std::collections::BTreeMap;
use std::time::Duration;

/// Counters and gauges of all job queues. Counters are since [`Jobs`](crate::jobs::Jobs) was opened and never fall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobStats {
    /// Each queue's, by name.
    pub queues: BTreeMap<String, JobQueueStats>,
    /// Gauge: workers and runners.
    pub workers: usize,
}

/// One queue's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobQueueStats {
    /// Gauge: jobs that may be started now.
    pub waiting: u64,
    /// Gauge: jobs that are not due: scheduled, snoozed, retrying.
    pub delayed: u64,
    /// Gauge: jobs in a handler's hands.
    pub running: u64,
    /// Gauge: dead jobs that are kept.
    pub dead: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Gauge: how long the first waiting job of the longest line has waited.
    pub oldest_waiting: Duration,
    /// Counter: jobs pushed.
    pub pushed: u64,
    /// Counter: pushes that met a taken key.
    pub duplicates: u64,
    /// Counter: starts.
    pub started: u64,
    /// Counter: jobs that ended well.
    pub done: u64,
    /// Counter: starts that failed.
    pub failed: u64,
    /// Counter: jobs that died.
    pub died: u64,
    /// Counter: jobs given up by [`Fail::discard`](crate::jobs::Fail::discard).
    pub discarded: u64,
    /// Counter: jobs cancelled.
    pub cancelled: u64,
    /// Counter: jobs put off by their handlers.
    pub snoozed: u64,
    /// Counter: jobs handed back without counting the start.
    pub returned: u64,
    /// Counter: starts that ended with the death of an earlier process, found at the open.
    pub crashed: u64,
}
