//! Durable background jobs in one's own process: typed, retried, scheduled, with a status by id.
//!
//! ```
//! # #[cfg(feature = "postcard")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # use kestrel_core::{Postcard, QueueSet, jobs::{Job, Jobs}};
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct SendMail { to: String }
//! # impl Job for SendMail { const KIND: &'static str = "send-mail"; type Codec = Postcard; }
//! # fn send(_: &str) -> std::io::Result<()> { Ok(()) }
//! # let set = QueueSet::open(dir.path())?;
//! let jobs = Jobs::new(&set)?;
//! let worker = jobs.worker().threads(4).on(|_, mail: SendMail| send(&mail.to)).start()?;
//! jobs.push(&SendMail { to: "ada@example.org".into() })?;
//! # assert!(worker.drain(std::time::Duration::from_secs(10)));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "postcard"))]
//! # fn main() {}
//! ```
//!
//! # What happens to a job
//!
//! ```text
//!             due             claim            Ok
//!  Scheduled ─────► Waiting ─────────► Running ─────► Done / Finished
//!                      ▲                │  │ Err, panic, timeout, death of the process
//!                      │ due            │  ▼
//!                      └──────────── Retrying ─────► Dead ─────► (requeue_dead) Waiting
//!                                       attempts used up, rejected, …
//! ```
//!
//! | | an *attempt* | a *crash* |
//! |---|---|---|
//! | counts | starts, the first included | starts that ended with the death of the process |
//! | not counted | starts ended by [`shutdown`](Worker::shutdown), by a dropped [`RunningJob`], by a snooze | deaths after [`quiet`](Worker::quiet) |
//! | limit | [`max_attempts`](JobOptions::max_attempts), 20 | [`max_crashes`](JobOptions::max_crashes), 3 |
//! | survives | the death of the process; a power cut takes at most the newest ones | the same |
//!
//! A job whose start ended with the death of the process is a *suspect*: from then on it runs only while no other suspect does, so
//! that a job which kills the process dies alone, and those that ran beside it do not die with it.
//!
//! # Delivery
//!
//! At least once: a job whose process dies between its effect and its end is started again. [`Ctx::finish_with`] makes its end and
//! the jobs that follow one act; for effects elsewhere, write [`Ctx::id`] beside them.
//!
//! # Queues of the set
//!
//! A job queue `mail` is the queue `mail` of the set with some others beside it: `mail!later` (delays and retries), `mail!high`
//! (priorities), `mail!suspects`, `mail.dead`, `mail.done`, made when first needed. Do not put to them by other means: what is no job
//! goes to the dead, unchanged.

mod error;
mod events;
mod filter;
mod handler;
mod id;
mod job;
mod names;
mod order;
mod push;
mod runner;
mod stats;
mod status;
mod worker;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

pub use error::JobError;
pub use events::{Event, JobEvents};
pub use filter::Filter;
pub use handler::{CancelFuture, Ctx, Done, Fail, Next};
pub use id::{JobId, ParseJobIdError};
pub use job::{Backoff, CustomBackoff, Job, JobOptions, Keep, Priority, Unique};
pub use order::QueueOrder;
pub use push::{OnConflict, Push, Pushed, Transaction, When};
pub use runner::{NextJob, Runner, RunningJob};
pub use stats::{JobQueueStats, JobStats};
pub use status::{Cancelled, Cause, DeadReason, Failure, JobInfo, JobState, Outcome, Progress, Status};
pub use worker::{Shutdown, Worker, WorkerBuilder};

use crate::set::QueueSet;

/// The jobs of a set: a cheap handle, to be cloned at will. See the [module](self).
///
/// However often it is made, there is one state for all handles of a set.
#[derive(Clone)]
pub struct Jobs {}

/// How jobs are to be opened: [`Jobs::builder`].
#[must_use = "a builder does nothing until `open`"]
#[derive(Debug)]
pub struct JobsBuilder {}

impl JobsBuilder {
    /// Most delayed jobs of a queue, retries included in the count but never refused. Each takes some 40 bytes of memory. Default:
    /// 1,000,000.
    pub fn max_delayed(self, most: u64) -> Self {
        let _ = most;
        unimplemented!()
    }

    /// A listener that misses nothing of the open, crashes of the last process among it.
    pub fn events(self) -> (Self, JobEvents) {
        unimplemented!()
    }

    /// Opens the jobs of the set: finds which of them ran when the last process died, and counts that.
    ///
    /// The settings are those of the first open of a set in a process.
    ///
    /// # Errors
    /// [`JobError::ReadOnly`], [`JobError::Open`] if a queue of jobs does not open, [`JobError::Put`] or [`JobError::Move`] if a crash
    /// could not be counted.
    pub fn open(self) -> Result<Jobs, JobError> {
        unimplemented!()
    }
}

impl Jobs {
    /// Opens the jobs of the set.
    ///
    /// # Errors
    /// As [`JobsBuilder::open`].
    pub fn new(set: &QueueSet) -> Result<Jobs, JobError> {
        Jobs::builder(set).open()
    }

    /// A builder, for what differs from the defaults.
    pub fn builder(set: &QueueSet) -> JobsBuilder {
        let _ = set;
        unimplemented!()
    }

    /// The set.
    pub fn set(&self) -> &QueueSet {
        unimplemented!()
    }

    /// Pushes a job as its kind's options say.
    ///
    /// # Durability
    /// As the queue's: with [`Durability::Sync`](crate::Durability::Sync), the set's default, the job is on the device when this
    /// returns.
    ///
    /// # Errors
    /// [`JobError::Encode`], [`JobError::Options`], [`JobError::Put`] as for any item, [`JobError::TooManyDelayed`], [`JobError::Closed`].
    #[doc(alias = "enqueue")]
    pub fn push<J: Job>(&self, job: &J) -> Result<Pushed, JobError> {
        self.push_with(job, &Push::new())
    }

    /// Pushes a job with a delay, a priority, a key, … of its own.
    ///
    /// # Errors
    /// As [`push`](Jobs::push); [`JobError::TooLarge`] for a key or tag.
    pub fn push_with<J: Job>(&self, job: &J, how: &Push) -> Result<Pushed, JobError> {
        let _ = (job, how);
        unimplemented!()
    }

    /// Pushes jobs of a kind, all or none, also across a crash. Those whose keys are taken are left out, as duplicates.
    ///
    /// # Errors
    /// As [`push`](Jobs::push), for all of them.
    pub fn push_all<'a, J: Job>(&self, jobs: impl IntoIterator<Item = &'a J>) -> Result<Vec<Pushed>, JobError> {
        let _ = jobs.into_iter().count();
        unimplemented!()
    }

    /// Adds a job to a transaction. Nothing is stored yet.
    ///
    /// # Errors
    /// As [`push_with`](Jobs::push_with), for what can be known now; [`JobError::TooLarge`] for a transaction of more than 1,000 jobs
    /// or 64 MiB.
    pub fn stage<J: Job>(&self, tx: &mut Transaction, job: &J, how: &Push) -> Result<(), JobError> {
        let _ = (tx, job, how);
        unimplemented!()
    }

    /// Pushes what is staged, all or none, also across a crash; the answers are in the order of the staging.
    ///
    /// # Errors
    /// As [`push`](Jobs::push). A transaction that is stored and cannot be passed on at once is passed on later, at the latest at the
    /// next open.
    pub fn commit(&self, tx: Transaction) -> Result<Vec<Pushed>, JobError> {
        let _ = tx;
        unimplemented!()
    }

    /// Where a job stands. Does not depend on how many jobs there are.
    ///
    /// ```
    /// # #[cfg(feature = "postcard")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # use kestrel_core::{Postcard, QueueSet, jobs::*};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Ping;
    /// # impl Job for Ping { const KIND: &'static str = "ping"; type Codec = Postcard; }
    /// let jobs = Jobs::new(&QueueSet::open(dir.path())?)?;
    /// let id = jobs.push(&Ping)?.id;
    /// assert_eq!(jobs.status(id), Status::Waiting);
    /// jobs.worker().on(|_, _: Ping| Ok::<_, Fail>(())).runner()?.run_until_empty()?;
    /// assert_eq!(jobs.status(id), Status::Finished);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "postcard"))]
    /// # fn main() {}
    /// ```
    pub fn status(&self, id: JobId) -> Status {
        let _ = id;
        unimplemented!()
    }

    /// All that is known of a job; `None` if it has ended and no record is kept.
    pub fn info(&self, id: JobId) -> Option<JobInfo> {
        let _ = id;
        unimplemented!()
    }

    /// Waits up to `timeout` until a job has ended; `None`: it has not.
    pub fn wait(&self, id: JobId, timeout: Duration) -> Option<Outcome> {
        let _ = (id, timeout);
        unimplemented!()
    }

    /// Waits until a job has ended.
    ///
    /// # Cancel safety
    /// It may be dropped and asked for anew at any moment; asked for anew after the end it knows what is kept.
    pub fn wait_async(&self, id: JobId) -> WaitFuture<'_> {
        let _ = id;
        unimplemented!()
    }

    /// Takes a job that waits out of its queue; tells the handler of one that runs. It is not started again in either case.
    ///
    /// # Errors
    /// If the end could not be stored: the job is where it was.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled, JobError> {
        let _ = id;
        unimplemented!()
    }

    /// Makes a scheduled, snoozed or retrying job due now. `false`: it is not one of these.
    ///
    /// # Errors
    /// If that could not be stored: the job is where it was.
    pub fn promote(&self, id: JobId) -> Result<bool, JobError> {
        let _ = id;
        unimplemented!()
    }

    /// The jobs that a filter means: queue by queue, in each those that wait or run in the order of their ids, then the dead, then
    /// the records. Reads what it passes: for looking, not for polling.
    pub fn list(&self, filter: &Filter) -> JobIter<'_> {
        let _ = filter;
        unimplemented!()
    }

    /// Lets dead jobs wait again, before the fresh ones of their priority. They keep their ids and bytes; attempts and crashes begin
    /// at 0 anew, and an expiry holds no more. Returns how many.
    ///
    /// # Errors
    /// [`JobError::EmptyFilter`]; else what stopped it, with the jobs before that moved.
    pub fn requeue_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        let _ = filter;
        unimplemented!()
    }

    /// Removes dead jobs for good. Returns how many.
    ///
    /// # Errors
    /// As [`requeue_dead`](Jobs::requeue_dead).
    pub fn purge_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        let _ = filter;
        unimplemented!()
    }

    /// Starts no more jobs of a queue until [`resume`](Jobs::resume), also after a restart. Pushes go on; so do jobs that run.
    ///
    /// # Errors
    /// [`JobError::QueueName`]; what storing it answers.
    pub fn pause(&self, queue: &str) -> Result<(), JobError> {
        let _ = queue;
        unimplemented!()
    }

    /// Ends a [`pause`](Jobs::pause).
    ///
    /// # Errors
    /// As `pause`.
    pub fn resume(&self, queue: &str) -> Result<(), JobError> {
        let _ = queue;
        unimplemented!()
    }

    /// Whether a queue is paused.
    pub fn is_paused(&self, queue: &str) -> bool {
        let _ = queue;
        unimplemented!()
    }

    /// The names of the job queues, sorted.
    pub fn queues(&self) -> Vec<String> {
        unimplemented!()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> JobStats {
        unimplemented!()
    }

    /// What happens to jobs from now on.
    pub fn events(&self) -> JobEvents {
        unimplemented!()
    }

    /// A worker, to be told what it does.
    pub fn worker(&self) -> WorkerBuilder {
        unimplemented!()
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

/// Waits until a job has ended: [`Jobs::wait_async`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct WaitFuture<'a> {
    #[expect(dead_code, reason = "skeleton")]
    jobs: &'a Jobs,
}

impl Future for WaitFuture<'_> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Outcome> {
        unimplemented!()
    }
}

/// Jobs, one after the other: [`Jobs::list`].
#[derive(Debug)]
pub struct JobIter<'a> {
    #[expect(dead_code, reason = "skeleton")]
    jobs: &'a Jobs,
}

impl Iterator for JobIter<'_> {
    type Item = Result<JobInfo, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}
