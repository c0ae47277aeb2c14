//! What a push says beside the value: [`Push`]; several as one act: [`Transaction`].

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::jobs::error::JobError;
use crate::jobs::id::JobId;
use crate::jobs::job::Priority;
use crate::options::Durability;

/// When a job may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum When {
    /// As soon as a worker is free.
    #[default]
    Now,
    /// Not before this much time has passed. A clock that is set back never lengthens it; time passes too while no process has
    /// the set open.
    In(Duration),
    /// Not before the wall clock shows this moment, which is looked at again at least once a minute, so that a clock that is set
    /// meanwhile counts.
    At(SystemTime),
}

/// What a push does where another job has its key: see [`Unique`](crate::jobs::Unique).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// Nothing is stored; the answer names the other job.
    #[default]
    Keep,
    /// The other job, if it was not started yet, gets the new value and time and keeps its id (debounce). One that was started
    /// is kept as it is.
    Replace,
}

/// What one push asks for beyond the options of its kind: [`Jobs::push_with`](crate::jobs::Jobs::push_with).
///
/// ```
/// use kestrel_core::jobs::{Priority, Push};
/// use std::time::Duration;
/// let how = Push::after(Duration::from_secs(60)).priority(Priority::High).tag("customer 17");
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Push {
    pub(crate) when: When,
    pub(crate) queue: Option<String>,
    pub(crate) priority: Option<Priority>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) conflict: OnConflict,
    pub(crate) durability: Option<Durability>,
    pub(crate) tag: Option<String>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) expires_in: Option<Duration>,
}

impl Push {
    /// Nothing beyond the options of the kind.
    pub fn new() -> Push {
        Push::default()
    }

    /// Not before `delay` has passed: [`When::In`].
    pub fn after(delay: Duration) -> Push {
        Push::new().when(When::In(delay))
    }

    /// Not before `time`: [`When::At`].
    pub fn at(time: SystemTime) -> Push {
        Push::new().when(When::At(time))
    }

    /// When it may be started.
    #[must_use]
    pub fn when(mut self, when: When) -> Push {
        self.when = when;
        self
    }

    /// Another queue than the kind's.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Push {
        self.queue = Some(queue.into());
        self
    }

    /// Another priority than the kind's.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Push {
        self.priority = Some(priority);
        self
    }

    /// A key in place of [`Job::unique_key`](crate::jobs::Job::unique_key), up to 1,024 bytes. A kind whose options say
    /// [`Unique::No`](crate::jobs::Unique::No) holds it until the job is done.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Push {
        self.key = Some(key.into());
        self
    }

    /// What happens where another job has the key.
    #[must_use]
    pub fn on_conflict(mut self, conflict: OnConflict) -> Push {
        self.conflict = conflict;
        self
    }

    /// Another durability than the queue's: what this push survives.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Push {
        self.durability = Some(durability);
        self
    }

    /// A text to find the job by ([`Filter::tag`](crate::jobs::Filter::tag)), up to 200 bytes.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Push {
        self.tag = Some(tag.into());
        self
    }

    /// Another limit of starts than the kind's.
    #[must_use]
    pub fn max_attempts(mut self, most: u32) -> Push {
        self.max_attempts = Some(most);
        self
    }

    /// Another expiry than the kind's.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Push {
        self.expires_in = Some(time);
        self
    }
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pushed {
    /// The job: the one stored, or the one that has the key.
    pub id: JobId,
    /// Another job has the key: nothing was stored, unless it was to be replaced.
    pub duplicate: bool,
}

/// Jobs that are pushed together, all or none, also across a crash: staged with [`Jobs::stage`](crate::jobs::Jobs::stage),
/// pushed with [`Jobs::commit`](crate::jobs::Jobs::commit), or together with the end of a running job by
/// [`Ctx::finish_with`](crate::jobs::Ctx::finish_with).
///
/// They may go to different queues. Up to 1,000 jobs of 64 MiB in all. Keys are looked at when they are pushed; a job whose key
/// is taken then is left out, or takes the place of the other one ([`OnConflict::Replace`]).
#[derive(Default)]
pub struct Transaction {
    /// Envelopes, as they are put into the outbox.
    pub(crate) staged: Vec<Vec<u8>>,
    pub(crate) bytes: usize,
    pub(crate) output: Option<Vec<u8>>,
}

const STAGED_MAX: usize = 1000;
const BYTES_MAX: usize = 64 << 20;

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("jobs", &self.staged.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Transaction {
    /// Nothing yet.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// How many jobs are staged.
    pub fn len(&self) -> usize {
        self.staged.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    pub(crate) fn check(&self) -> Result<(), JobError> {
        if self.staged.len() > STAGED_MAX {
            return Err(JobError::TooLarge { what: "jobs of a transaction", len: self.staged.len(), max: STAGED_MAX });
        }
        if self.bytes > BYTES_MAX {
            return Err(JobError::TooLarge { what: "transaction", len: self.bytes, max: BYTES_MAX });
        }
        Ok(())
    }

    /// The result of the job that finishes with this, as [`Done::Output`](crate::jobs::Done::Output).
    pub fn set_output(&mut self, output: impl Into<Vec<u8>>) {
        self.output = Some(output.into());
    }
}
