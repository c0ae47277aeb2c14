//! A job queue: the queues of the set that it consists of, and its counters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::jobs::envelope::Kept;
use crate::jobs::error::JobError;
use crate::jobs::job::Priority;
use crate::jobs::names;
use crate::jobs::records::plain;
use crate::jobs::stats::JobQueueStats;
use crate::options::WhenFull;
use crate::queue::Queue;
use crate::set::QueueSet;

/// What a queue of the set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Jobs that nobody has met: the id of each is that of its place.
    Fresh(Priority),
    /// Jobs that pause, or came here from elsewhere.
    Later(Priority),
    /// Jobs that ran when the process died.
    Suspects,
    Dead,
    /// Records of others that have ended.
    Done,
}

impl Part {
    /// Where jobs wait, in the order in which they are met at one priority.
    pub(crate) fn waiting() -> impl Iterator<Item = Part> {
        let lanes = Priority::ALL.into_iter().flat_map(|priority| [Part::Later(priority), Part::Fresh(priority)]);
        std::iter::once(Part::Suspects).chain(lanes)
    }

    pub(crate) fn all() -> impl Iterator<Item = Part> {
        Part::waiting().chain([Part::Dead, Part::Done])
    }

    fn index(self) -> usize {
        match self {
            Part::Fresh(priority) => priority as usize,
            Part::Later(priority) => 4 + priority as usize,
            Part::Suspects => 8,
            Part::Dead => 9,
            Part::Done => 10,
        }
    }

    pub(crate) fn name(self, queue: &str) -> String {
        match self {
            Part::Fresh(priority) => names::fresh(queue, priority),
            Part::Later(priority) => names::later(queue, priority),
            Part::Suspects => names::suspects(queue),
            Part::Dead => names::dead(queue),
            Part::Done => names::done(queue),
        }
    }
}

/// Counters, of what has happened since the open.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) pushed: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) died: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) snoozed: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) crashed: AtomicU64,
    /// A gauge.
    pub(crate) running: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A job queue.
pub(crate) struct Room {
    pub(crate) name: Arc<str>,
    parts: [OnceLock<Queue>; 11],
    /// By which the ids of jobs name each of these.
    numbers: [u32; 11],
    /// Held while a part is made.
    making: Mutex<()>,
    pub(crate) paused: AtomicBool,
    /// Some jobs have keys, and some are due by the wall clock.
    pub(crate) has_keys: AtomicBool,
    pub(crate) has_wall: AtomicBool,
    pub(crate) counters: Counters,
}

impl Room {
    pub(crate) fn new(name: &str) -> Room {
        let mut numbers = [0; 11];
        for part in Part::all() {
            numbers[part.index()] = names::number(&part.name(name));
        }
        Room {
            name: name.into(),
            parts: Default::default(),
            numbers,
            making: Mutex::new(()),
            paused: AtomicBool::new(false),
            has_keys: AtomicBool::new(false),
            has_wall: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    pub(crate) fn number(&self, part: Part) -> u32 {
        self.numbers[part.index()]
    }

    /// The queue of a part, if there is one.
    #[inline]
    pub(crate) fn part(&self, part: Part) -> Option<&Queue> {
        self.parts[part.index()].get()
    }

    /// Loads what is there.
    pub(crate) fn load(&self, set: &QueueSet) -> Result<(), JobError> {
        for part in Part::all() {
            if let Some(queue) = set.get_queue(&part.name(&self.name))? {
                let _ = self.parts[part.index()].set(queue);
            }
        }
        Ok(())
    }

    /// The queue of a part, made if there is none.
    pub(crate) fn make(&self, set: &QueueSet, part: Part) -> Result<&Queue, JobError> {
        let slot = &self.parts[part.index()];
        if let Some(queue) = slot.get() {
            return Ok(queue);
        }
        let _making = self.making.lock();
        if let Some(queue) = slot.get() {
            return Ok(queue);
        }
        let name = part.name(&self.name);
        let queue = match set.get_queue(&name)? {
            Some(queue) => queue,
            None => set.queue_with_overrides(&name, plain())?,
        };
        Ok(slot.get_or_init(|| queue))
    }

    /// The queue of the dead or of the records, taking at least as many as `kept` says.
    pub(crate) fn make_keeping(&self, set: &QueueSet, part: Part, kept: Kept) -> Result<&Queue, JobError> {
        let queue = self.make(set, part)?;
        let limit = queue.options().max_items;
        // One that its owner has given a limit keeps it, if that is higher.
        let too_low = limit.is_some_and(|limit| limit < kept.count);
        let unset = limit.is_none() && queue.overrides().max_items == Some(None);
        if (too_low || unset) && kept.count != u64::MAX {
            let own = queue.overrides().max_items(Some(kept.count)).when_full(WhenFull::DropOldest);
            queue.set_overrides(own).map_err(|error| JobError::Queue(Arc::new(error.into())))?;
        }
        Ok(queue)
    }

    /// Jobs that may be started now, and jobs that are not due.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        let parts = Part::waiting().filter_map(|part| self.part(part));
        parts
            .map(Queue::stats)
            .fold((0, 0), |(waiting, delayed), stats| (waiting + stats.items, delayed + stats.deferred_items))
    }

    pub(crate) fn stats(&self) -> JobQueueStats {
        let mut stats = JobQueueStats { paused: self.paused.load(Ordering::Acquire), ..JobQueueStats::default() };
        for queue in Part::waiting().filter_map(|part| self.part(part)) {
            let of_part = queue.stats();
            stats.waiting += of_part.items;
            stats.delayed += of_part.deferred_items;
            let oldest = std::time::Duration::from_millis(of_part.oldest_age_ms);
            stats.oldest_waiting = stats.oldest_waiting.max(oldest);
        }
        stats.dead = self.part(Part::Dead).map_or(0, Queue::len);
        let counters = &self.counters;
        for (to, from) in [
            (&mut stats.running, &counters.running),
            (&mut stats.pushed, &counters.pushed),
            (&mut stats.duplicates, &counters.duplicates),
            (&mut stats.started, &counters.started),
            (&mut stats.done, &counters.done),
            (&mut stats.failed, &counters.failed),
            (&mut stats.died, &counters.died),
            (&mut stats.discarded, &counters.discarded),
            (&mut stats.cancelled, &counters.cancelled),
            (&mut stats.snoozed, &counters.snoozed),
            (&mut stats.returned, &counters.returned),
            (&mut stats.crashed, &counters.crashed),
        ] {
            *to = from.load(Ordering::Relaxed);
        }
        stats
    }
}

/// Which part of which job queue the queue of a number is.
#[derive(Clone)]
pub(crate) struct Lane {
    pub(crate) room: Arc<Room>,
    pub(crate) part: Part,
}

/// The lanes of job queues, by number.
pub(crate) type Lanes = HashMap<u32, Lane>;
