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

mod asking;
mod backoff;
mod dying;
mod ending;
mod envelope;
mod error;
mod events;
mod filter;
mod handler;
mod hub;
mod id;
mod job;
mod keys;
mod names;
mod opening;
mod order;
mod passing;
mod picks;
mod push;
mod pushing;
mod records;
mod room;
mod run;
mod runner;
mod stats;
mod status;
mod steering;
mod team;
mod timer;
mod watch;
mod worker;
mod working;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use event_listener::{EventListener, Listener};

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
use asking::Walk;
use events::Feed;
use hub::{Hub, Waiter};

/// The jobs of a set: a cheap handle, to be cloned at will. See the [module](self).
///
/// However often it is made, there is one state for all handles of a set.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) hub: Arc<Hub>,
}

/// How jobs are to be opened: [`Jobs::builder`].
#[must_use = "a builder does nothing until `open`"]
#[derive(Debug)]
pub struct JobsBuilder {
    set: QueueSet,
    max_delayed: u64,
    feed: Feed,
}

const MAX_DELAYED: u64 = 1_000_000;

impl JobsBuilder {
    /// Most delayed jobs of a queue, retries included in the count but never refused. Each takes some 50 bytes of memory. Default:
    /// 1,000,000.
    pub fn max_delayed(mut self, most: u64) -> Self {
        self.max_delayed = most;
        self
    }

    /// A listener that misses nothing of the open, crashes of the last process among it.
    pub fn events(self) -> (Self, JobEvents) {
        let events = self.feed.listen();
        (self, events)
    }

    /// Opens the jobs of the set: finds which of them ran when the last process died, and counts that.
    ///
    /// The settings are those of the first open of a set in a process.
    ///
    /// # Errors
    /// [`JobError::ReadOnly`], [`JobError::Open`] if a queue of jobs does not open, [`JobError::Put`] or [`JobError::NotMoved`] if a crash
    /// could not be counted.
    pub fn open(self) -> Result<Jobs, JobError> {
        Ok(Jobs { hub: opening::open(&self.set, self.max_delayed, self.feed)? })
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
        JobsBuilder { set: set.clone(), max_delayed: MAX_DELAYED, feed: Feed::default() }
    }

    /// The set.
    pub fn set(&self) -> &QueueSet {
        &self.hub.set
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
        pushing::push(&self.hub, &pushing::parcel(&self.hub, job, how)?)
    }

    /// Pushes jobs of a kind, all or none, also across a crash. Those whose keys are taken are left out, as duplicates.
    ///
    /// # Errors
    /// As [`push`](Jobs::push), for all of them.
    pub fn push_all<'a, J: Job>(&self, jobs: impl IntoIterator<Item = &'a J>) -> Result<Vec<Pushed>, JobError> {
        pushing::push_all(&self.hub, jobs)
    }

    /// Adds a job to a transaction. Nothing is stored yet.
    ///
    /// # Errors
    /// As [`push_with`](Jobs::push_with), for what can be known now; [`JobError::TooLarge`] for a transaction of more than 1,000 jobs
    /// or 64 MiB.
    pub fn stage<J: Job>(&self, tx: &mut Transaction, job: &J, how: &Push) -> Result<(), JobError> {
        pushing::stage(&self.hub, tx, pushing::parcel(&self.hub, job, how)?)
    }

    /// Pushes what is staged, all or none, also across a crash; the answers are in the order of the staging.
    ///
    /// # Errors
    /// As [`push`](Jobs::push). A transaction that is stored and cannot be passed on at once is passed on later, at the latest at the
    /// next open.
    pub fn commit(&self, tx: Transaction) -> Result<Vec<Pushed>, JobError> {
        passing::commit(&self.hub, &tx)
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
        self.hub.status_of(id)
    }

    /// All that is known of a job; `None` if it has ended and no record is kept.
    pub fn info(&self, id: JobId) -> Option<JobInfo> {
        self.hub.info_of(id)
    }

    /// Waits up to `timeout` until a job has ended; `None`: it has not.
    pub fn wait(&self, id: JobId, timeout: Duration) -> Option<Outcome> {
        let waits = Waits::new(&self.hub, id);
        let begun = self.hub.set.now();
        loop {
            let listener = waits.waiter.ended.listen();
            if let Some(outcome) = waits.outcome() {
                return Some(outcome);
            }
            let passed = self.hub.set.now().duration_since(begun).unwrap_or_default();
            let left = timeout.saturating_sub(passed);
            if left.is_zero() || listener.wait_timeout(left).is_none() {
                return waits.outcome();
            }
        }
    }

    /// Waits until a job has ended.
    ///
    /// # Cancel safety
    /// It may be dropped and asked for anew at any moment; asked for anew after the end it knows what is kept.
    pub fn wait_async(&self, id: JobId) -> WaitFuture<'_> {
        WaitFuture { waits: Waits::new(&self.hub, id), listener: None, jobs: PhantomData }
    }

    /// Takes a job that waits out of its queue; tells the handler of one that runs. It is not started again in either case.
    ///
    /// Blocks for the device with [`Durability::Sync`](crate::Durability). A delayed job is found by its id, however many there are;
    /// for one whose delay has ended, and that has not started, the time grows with the number of such jobs in its queue.
    ///
    /// # Errors
    /// If the end could not be stored: the job is where it was.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled, JobError> {
        self.hub.cancel(id)
    }

    /// Makes a scheduled, snoozed or retrying job due now. `false`: it is not one of these. Takes the time of a
    /// [`cancel`](Jobs::cancel).
    ///
    /// # Errors
    /// If that could not be stored: the job is where it was.
    pub fn promote(&self, id: JobId) -> Result<bool, JobError> {
        self.hub.promote(id)
    }

    /// The jobs that a filter means: queue by queue, in each those that wait or run in the order of their ids, then the dead, then
    /// the records. Reads what it passes: for looking, not for polling.
    pub fn list(&self, filter: &Filter) -> JobIter<'_> {
        JobIter { jobs: self, walk: Walk::new(&self.hub, filter) }
    }

    /// Lets dead jobs wait again, before the fresh ones of their priority. They keep their ids and bytes; attempts and crashes begin
    /// at 0 anew, and an expiry holds no more. Returns how many.
    ///
    /// Reads all dead jobs once. Each that is meant moves by itself, so that a crash leaves it in one place or the other: with
    /// [`Durability::Sync`](crate::Durability) each waits for the device.
    ///
    /// # Errors
    /// [`JobError::EmptyFilter`]; else what stopped it, with the jobs before that moved.
    pub fn requeue_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        self.hub.requeue_dead(filter)
    }

    /// Removes dead jobs for good. Returns how many.
    ///
    /// # Errors
    /// As [`requeue_dead`](Jobs::requeue_dead).
    pub fn purge_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        self.hub.purge_dead(filter)
    }

    /// Starts no more jobs of a queue until [`resume`](Jobs::resume), also after a restart. Pushes go on; so do jobs that run.
    ///
    /// # Errors
    /// [`JobError::QueueName`]; what storing it answers.
    pub fn pause(&self, queue: &str) -> Result<(), JobError> {
        self.hub.pause(queue)
    }

    /// Ends a [`pause`](Jobs::pause).
    ///
    /// # Errors
    /// As `pause`.
    pub fn resume(&self, queue: &str) -> Result<(), JobError> {
        self.hub.resume(queue)
    }

    /// Whether a queue is paused.
    pub fn is_paused(&self, queue: &str) -> bool {
        self.hub.room(queue).is_some_and(|room| room.paused.load(Ordering::Acquire))
    }

    /// The names of the job queues, sorted.
    pub fn queues(&self) -> Vec<String> {
        self.hub.rooms().iter().map(|room| room.name.to_string()).collect()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> JobStats {
        let queues = self.hub.rooms().iter().map(|room| (room.name.to_string(), room.stats())).collect();
        let workers = self.hub.teams.lock().iter().filter(|team| team.strong_count() > 0).count();
        JobStats { queues, workers }
    }

    /// What happens to jobs from now on.
    pub fn events(&self) -> JobEvents {
        self.hub.feed.listen()
    }

    /// A worker, to be told what it does.
    pub fn worker(&self) -> WorkerBuilder {
        WorkerBuilder::new(self.clone())
    }
}

const _: () = {
    const fn shareable<T: Send + Sync + 'static>() {}
    const fn sendable<T: Send + 'static>() {}
    shareable::<Jobs>();
    shareable::<Ctx>();
    shareable::<Worker>();
    shareable::<Runner>();
    sendable::<RunningJob>();
    sendable::<JobEvents>();
    sendable::<NextJob<'static>>();
    sendable::<WaitFuture<'static>>();
};

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

/// Waits until a job has ended: [`Jobs::wait_async`].
#[must_use = "futures do nothing unless polled"]
pub struct WaitFuture<'a> {
    waits: Waits,
    listener: Option<EventListener>,
    jobs: PhantomData<&'a Jobs>,
}

/// A place among those who wait for a job; given up when dropped.
struct Waits {
    hub: Arc<Hub>,
    id: JobId,
    waiter: Arc<Waiter>,
}

impl Waits {
    fn new(hub: &Arc<Hub>, id: JobId) -> Waits {
        Waits { hub: Arc::clone(hub), id, waiter: hub.waiter(id) }
    }

    /// How the job has ended. What was told says more than what is kept.
    fn outcome(&self) -> Option<Outcome> {
        let told = || self.hub.told(&self.waiter);
        told().or_else(|| {
            let kept = self.hub.outcome_of(self.id)?;
            Some(told().unwrap_or(kept))
        })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.hub.leave_waiter(self.id, &self.waiter);
    }
}

impl Future for WaitFuture<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            if let Some(outcome) = self.waits.outcome() {
                return Poll::Ready(outcome);
            }
            match &mut self.listener {
                // Listen, then look again.
                None => self.listener = Some(self.waits.waiter.ended.listen()),
                Some(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl fmt::Debug for WaitFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitFuture").field("id", &self.waits.id).finish_non_exhaustive()
    }
}

/// Jobs, one after the other: [`Jobs::list`].
pub struct JobIter<'a> {
    jobs: &'a Jobs,
    walk: Walk,
}

impl Iterator for JobIter<'_> {
    type Item = Result<JobInfo, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.walk.next(&self.jobs.hub)?;
        Some(found.map(|(info, _)| info))
    }
}

impl fmt::Debug for JobIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobIter").finish_non_exhaustive()
    }
}
