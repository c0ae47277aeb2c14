//! Jobs for an executor of one's own, and for tests: [`Runner`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use crate::jobs::error::JobError;
use crate::jobs::handler::Ctx;
use crate::jobs::status::Status;
use crate::jobs::worker::Shutdown;

/// Hands out jobs to be run where the caller likes: [`WorkerBuilder::runner`](crate::jobs::WorkerBuilder::runner).
///
/// ```ignore
/// while let Some(job) = runner.next_async().await {
///     tokio::spawn(job.run());
/// }
/// ```
///
/// In tests [`run_until_empty`](Runner::run_until_empty) does everything on the test's own thread. On a simulated disk (feature
/// `testing`) time passes only when the test says so, and jobs come due with it.
#[must_use = "a runner that is dropped takes no more jobs"]
#[derive(Debug)]
pub struct Runner {}

impl Runner {
    /// The next job, waiting for one. `None` after [`quiet`](Runner::quiet) or [`shutdown`](Runner::shutdown), and when the set is
    /// closed.
    ///
    /// The job holds one of the [`threads`](crate::jobs::WorkerBuilder::threads) permits until it has ended, so that no more run at
    /// once on any executor.
    ///
    /// # Cancel safety
    /// Dropping the future at any moment loses nothing.
    pub fn next_async(&self) -> NextJob<'_> {
        unimplemented!()
    }

    /// The next job, if one may be started now.
    ///
    /// # Errors
    /// What opening an item answers.
    pub fn try_next(&self) -> Result<Option<RunningJob>, JobError> {
        unimplemented!()
    }

    /// Runs one job after the other on this thread, those that they push included, until none may be started now; returns how many
    /// starts that were. Delayed jobs and retries that are not due stay: see [`next_due`](Runner::next_due).
    ///
    /// # Errors
    /// What opening an item answers. That jobs fail is no error.
    pub fn run_until_empty(&self) -> Result<usize, JobError> {
        unimplemented!()
    }

    /// When the next job comes due that is not yet; `None`: there is none.
    pub fn next_due(&self) -> Option<SystemTime> {
        unimplemented!()
    }

    /// How many jobs run.
    pub fn busy(&self) -> usize {
        unimplemented!()
    }

    /// Hands out no more jobs; who waits for one is told. As [`Worker::quiet`](crate::jobs::Worker::quiet).
    pub fn quiet(&self) {
        unimplemented!()
    }

    /// As [`Worker::shutdown`](crate::jobs::Worker::shutdown), for the jobs that were handed out. Blocks up to `grace`, if any still
    /// run.
    pub fn shutdown(self, grace: Duration) -> Shutdown {
        let _ = grace;
        unimplemented!()
    }
}

/// Waits for the next job: [`Runner::next_async`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct NextJob<'a> {
    #[expect(dead_code, reason = "skeleton")]
    runner: &'a Runner,
}

impl Future for NextJob<'_> {
    type Output = Option<RunningJob>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<RunningJob>> {
        unimplemented!()
    }
}

/// A job that was taken to be run. Dropped before it has ended, it is handed back, and the start does not count.
#[must_use = "run it; dropped, it is handed back"]
#[derive(Debug)]
pub struct RunningJob {}

impl RunningJob {
    /// Its context.
    pub fn ctx(&self) -> &Ctx {
        unimplemented!()
    }

    /// Runs its handler and ends it as that says; the status is the one it has then. A handler for threads blocks the task that polls
    /// this; give it to [`run_blocking`](RunningJob::run_blocking) on a thread for that.
    ///
    /// # Cancel safety
    /// A future that is dropped hands the job back, without counting the start.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn run(self) -> Status {
        unimplemented!()
    }

    /// The same on this thread, also for asynchronous handlers.
    pub fn run_blocking(self) -> Status {
        unimplemented!()
    }
}
