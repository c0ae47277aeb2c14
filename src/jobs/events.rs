//! What happens to jobs, as it happens: [`Event`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};

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

/// Most events that wait for a listener.
const WAITING_MAX: usize = 65_536;

/// Whom events are told.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    listeners: Mutex<Vec<Weak<Listener>>>,
    /// Whether there is any.
    is_heard: AtomicBool,
    has_ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Listener {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    missed: u64,
    has_ended: bool,
}

impl Feed {
    #[inline]
    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        if self.is_heard.load(Ordering::Acquire) {
            self.tell(&event());
        }
    }

    #[cold]
    fn tell(&self, event: &Event) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| {
            let Some(listener) = listener.upgrade() else {
                return false;
            };
            let mut waiting = listener.waiting.lock();
            if waiting.events.len() >= WAITING_MAX {
                waiting.events.pop_front();
                waiting.missed += 1;
            }
            waiting.events.push_back(event.clone());
            listener.came.notify_one();
            true
        });
        self.is_heard.store(!listeners.is_empty(), Ordering::Release);
    }

    /// Those who listen to another feed listen to this one from now on.
    pub(crate) fn adopt(&self, other: &Feed) {
        let adopted = std::mem::take(&mut *other.listeners.lock());
        if !adopted.is_empty() {
            self.listeners.lock().extend(adopted);
            if self.has_ended.load(Ordering::Acquire) {
                self.end();
            }
            self.is_heard.store(true, Ordering::Release);
        }
    }

    pub(crate) fn listen(&self) -> JobEvents {
        let listener = Arc::new(Listener::default());
        let mut listeners = self.listeners.lock();
        listeners.push(Arc::downgrade(&listener));
        self.is_heard.store(true, Ordering::Release);
        // Under the lock: the end is told to those who are there, and seen by those who come later.
        listener.waiting.lock().has_ended = self.has_ended.load(Ordering::Acquire);
        drop(listeners);
        JobEvents { listener }
    }
}

impl Feed {
    /// Nothing more comes.
    pub(crate) fn end(&self) {
        let listeners = self.listeners.lock();
        self.has_ended.store(true, Ordering::Release);
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            listener.waiting.lock().has_ended = true;
            listener.came.notify_all();
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
    }
}

/// Events from the moment it was asked for: [`Jobs::events`](crate::jobs::Jobs::events).
///
/// Up to 65,536 events wait for a slow listener; then the oldest are dropped and counted.
#[derive(Debug)]
pub struct JobEvents {
    listener: Arc<Listener>,
}

impl JobEvents {
    /// The next event, if there is one.
    pub fn try_next(&self) -> Option<Event> {
        self.listener.waiting.lock().events.pop_front()
    }

    /// The next event, waiting up to `timeout`.
    pub fn next_timeout(&self, timeout: Duration) -> Option<Event> {
        let mut waiting = self.listener.waiting.lock();
        if waiting.events.is_empty() && !waiting.has_ended {
            let is_there = |waiting: &mut Waiting| waiting.events.is_empty() && !waiting.has_ended;
            self.listener.came.wait_while_for(&mut waiting, is_there, timeout);
        }
        waiting.events.pop_front()
    }

    /// How many events were dropped because nobody took them.
    pub fn missed(&self) -> u64 {
        self.listener.waiting.lock().missed
    }
}

impl Iterator for JobEvents {
    type Item = Event;

    /// Waits for the next event; `None` once the set is closed, or no handle, worker or runner of its jobs is left.
    fn next(&mut self) -> Option<Event> {
        let mut waiting = self.listener.waiting.lock();
        self.listener.came.wait_while(&mut waiting, |waiting| waiting.events.is_empty() && !waiting.has_ended);
        waiting.events.pop_front()
    }
}
