//! What happens to jobs, as it happens: [`Event`].

use std::time::{Duration, SystemTime};

use crate::jobs::error::JobError;
use crate::jobs::id::JobId;
use crate::jobs::status::{Cause, DeadReason};

/// Something that happened to a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It was pushed.
    Pushed {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
    },
    /// A handler got it.
    Started {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// Which start, from 1.
        attempt: u32,
    },
    /// It ended well.
    Done {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// How long the last start took.
        took: Duration,
    },
    /// A start failed, and there will be another.
    Retrying {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// Starts that have failed.
        attempt: u32,
        /// What kind of failure.
        cause: Cause,
        /// Its text.
        error: String,
        /// When the next start is due.
        due: SystemTime,
    },
    /// It was put off by its handler.
    Snoozed {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// When it is due.
        due: SystemTime,
    },
    /// It is dead.
    Dead {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// Why.
        reason: DeadReason,
        /// The last error.
        error: String,
    },
    /// Its handler gave it up without a trace.
    Discarded {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// The error.
        error: String,
    },
    /// It was cancelled.
    Cancelled {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
    },
    /// It was handed back without counting the start: by a shutdown, or because nobody knew its kind.
    Returned {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
    },
    /// The last process died while it ran. Told when that is found, once, to who listens from the start
    /// ([`JobsBuilder::open`](crate::jobs::JobsBuilder::open) finds it).
    Crashed {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// How often by now.
        crashes: u32,
    },
    /// Its time is over, or it was told to end, and its thread goes on.
    Stuck {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
    },
    /// It was dead, and waits again.
    Requeued {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
    },
    /// A worker could not take or end a job. It tries again after a pause.
    Trouble {
        /// The queue.
        queue: String,
        /// Why.
        error: JobError,
    },
}

/// Events from the moment it was asked for: [`Jobs::events`](crate::jobs::Jobs::events).
///
/// Up to 65,536 events wait for a slow listener; then the oldest are dropped and counted.
#[derive(Debug)]
pub struct JobEvents {}

impl JobEvents {
    /// The next event, if there is one.
    pub fn try_next(&self) -> Option<Event> {
        unimplemented!()
    }

    /// The next event, waiting up to `timeout`.
    pub fn next_timeout(&self, timeout: Duration) -> Option<Event> {
        let _ = timeout;
        unimplemented!()
    }

    /// How many events were dropped because nobody took them.
    pub fn missed(&self) -> u64 {
        unimplemented!()
    }
}

impl Iterator for JobEvents {
    type Item = Event;

    /// Waits for the next event; `None` once the set is closed.
    fn next(&mut self) -> Option<Event> {
        unimplemented!()
    }
}
