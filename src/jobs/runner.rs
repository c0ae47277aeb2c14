//! Jobs for an executor of one's own, and for tests: [`Runner`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use event_listener::EventListener;

use crate::jobs::Jobs;
use crate::jobs::ending;
use crate::jobs::envelope::at;
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::handler::Ctx;
use crate::jobs::status::Status;
use crate::jobs::team::{Claimed, Team};
use crate::jobs::worker::{Shutdown, shut_down};
use crate::jobs::working;

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
pub struct Runner {
    jobs: Jobs,
    team: Arc<Team>,
}

impl Runner {
    pub(crate) fn new(jobs: Jobs, team: Arc<Team>) -> Runner {
        Runner { jobs, team }
    }

    fn running(&self, claimed: Claimed) -> RunningJob {
        let ctx = Ctx { run: Arc::clone(&claimed.run) };
        RunningJob { ctx, claimed: Some(claimed), team: Arc::clone(&self.team) }
    }

    /// The next job, waiting for one. `None` after [`quiet`](Runner::quiet), and when it finds the set closed.
    ///
    /// The job holds one of the [`threads`](crate::jobs::WorkerBuilder::threads) permits until it has ended, so that no more run at
    /// once on any executor.
    ///
    /// # Cancel safety
    /// Dropping the future at any moment loses nothing.
    pub fn next_async(&self) -> NextJob<'_> {
        NextJob { runner: self, listener: None }
    }

    /// The next job, if one may be started now.
    ///
    /// # Errors
    /// What opening an item answers.
    pub fn try_next(&self) -> Result<Option<RunningJob>, JobError> {
        Ok(self.team.claim(&self.jobs)?.map(|claimed| self.running(claimed)))
    }

    /// Runs one job after the other on this thread, those that they push included, until none may be started now; returns how many
    /// starts that were. Delayed jobs and retries that are not due stay: see [`next_due`](Runner::next_due).
    ///
    /// # Errors
    /// What opening an item answers. That jobs fail is no error.
    pub fn run_until_empty(&self) -> Result<usize, JobError> {
        self.jobs.hub.meet_clock();
        let before = self.team.ended.load(Ordering::Acquire);
        while let Some(claimed) = self.team.claim(&self.jobs)? {
            working::run_here(&self.jobs, &self.team, claimed);
        }
        Ok(self.team.ended.load(Ordering::Acquire) - before)
    }

    /// When the next job comes due that is not yet; `None`: there is none.
    pub fn next_due(&self) -> Option<SystemTime> {
        self.team.next_due(&self.jobs.hub).map(at)
    }

    /// How many jobs run.
    pub fn busy(&self) -> usize {
        self.team.busy.load(Ordering::Acquire)
    }

    /// Hands out no more jobs; who waits for one is told. As [`Worker::quiet`](crate::jobs::Worker::quiet).
    pub fn quiet(&self) {
        self.team.quiet(&self.jobs.hub);
    }

    /// As [`Worker::shutdown`](crate::jobs::Worker::shutdown), for the jobs that were handed out. Blocks up to `grace`, if any still
    /// run.
    pub fn shutdown(self, grace: Duration) -> Shutdown {
        shut_down(&self.jobs, &self.team, grace)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.team.quiet(&self.jobs.hub);
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("busy", &self.busy()).finish_non_exhaustive()
    }
}

/// Where something could not be read or stored, the next try is after this many ms.
const TROUBLE_MS: u64 = 200;

/// Waits for the next job: [`Runner::next_async`].
#[must_use = "futures do nothing unless polled"]
pub struct NextJob<'a> {
    runner: &'a Runner,
    listener: Option<EventListener>,
}

impl Future for NextJob<'_> {
    type Output = Option<RunningJob>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RunningJob>> {
        let (jobs, team) = (&self.runner.jobs, &self.runner.team);
        loop {
            if team.is_quiet.load(Ordering::Acquire) {
                return Poll::Ready(None);
            }
            match team.claim(jobs) {
                Ok(Some(claimed)) => return Poll::Ready(Some(self.runner.running(claimed))),
                Ok(None) => {}
                Err(JobError::Closed) => return Poll::Ready(None),
                Err(error) => {
                    jobs.hub.emit(|| Event::Trouble { queue: String::new(), error });
                    jobs.hub.timer.wake_at(&jobs.hub, jobs.hub.now_ms().saturating_add(TROUBLE_MS));
                }
            }
            match &mut self.listener {
                // Listen, then look again.
                None => {
                    self.listener = Some(team.bell.listen());
                    team.arm(&jobs.hub);
                }
                Some(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

/// A job that was taken to be run. Dropped before it has ended, it is handed back, and the start does not count.
#[must_use = "run it; dropped, it is handed back"]
pub struct RunningJob {
    ctx: Ctx,
    claimed: Option<Claimed>,
    team: Arc<Team>,
}

impl fmt::Debug for NextJob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NextJob").finish_non_exhaustive()
    }
}

impl fmt::Debug for RunningJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningJob").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        // Nothing, if it has ended.
        ending::take_back(&self.ctx.run);
        self.team.leave(&self.ctx.run);
    }
}

impl RunningJob {
    /// Its context.
    pub fn ctx(&self) -> &Ctx {
        &self.ctx
    }

    /// Runs its handler and ends it as that says; the status is the one it has then. A handler for threads blocks the task that polls
    /// this; give it to [`run_blocking`](RunningJob::run_blocking) on a thread for that.
    ///
    /// # Cancel safety
    /// A future that is dropped hands the job back, without counting the start.
    pub async fn run(mut self) -> Status {
        match self.claimed.take() {
            Some(claimed) => working::run_as_task(self.ctx.jobs(), &self.team, claimed).await,
            None => self.ctx.jobs().status(self.ctx.id()),
        }
    }

    /// The same on this thread, also for asynchronous handlers.
    pub fn run_blocking(mut self) -> Status {
        match self.claimed.take() {
            Some(claimed) => working::run_here(self.ctx.jobs(), &self.team, claimed),
            None => self.ctx.jobs().status(self.ctx.id()),
        }
    }
}
