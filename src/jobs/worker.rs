//! Who does the jobs: [`WorkerBuilder`] and [`Worker`].

use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::jobs::error::JobError;
use crate::jobs::handler::{Ctx, Done, Fail, Next};
use crate::jobs::id::JobId;
use crate::jobs::job::Job;
use crate::jobs::order::QueueOrder;
use crate::jobs::runner::Runner;

/// Which jobs are done by whom: [`Jobs::worker`](crate::jobs::Jobs::worker).
///
/// A worker takes a job only when somebody is free to do it, so nothing waits behind a long one.
#[must_use = "a builder does nothing until `start` or `runner`"]
pub struct WorkerBuilder {}

impl WorkerBuilder {
    /// From which queues, and in which order. Default: all job queues of the set, in the order of their names.
    pub fn queues(self, order: impl Into<QueueOrder>) -> Self {
        let _ = order.into();
        unimplemented!()
    }

    /// How many jobs at once: threads of a [`Worker`], permits of a [`Runner`]. Default: 1.
    pub fn threads(self, n: usize) -> Self {
        let _ = n;
        unimplemented!()
    }

    /// How many jobs of a queue at once, in this worker.
    pub fn limit(self, queue: &str, n: usize) -> Self {
        let _ = (queue, n);
        unimplemented!()
    }

    /// How many jobs of a queue may be started within `per`, in this worker: a bucket of `n` tokens that fills evenly. In memory; it
    /// is full at the start.
    pub fn rate(self, queue: &str, per: Duration, n: u32) -> Self {
        let _ = (queue, per, n);
        unimplemented!()
    }

    /// After how long a waiting job overtakes those of the next higher priority; of the second higher after twice that. Zero: never,
    /// so that jobs of a low priority starve while there are others. Default: 60 s.
    pub fn aging(self, step: Duration) -> Self {
        let _ = step;
        unimplemented!()
    }

    /// Does jobs of the kind `J` with `f`, on a thread.
    ///
    /// `Err` is a failure, with `?` from any error; so is a panic.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postcard")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use kestrel_core::{Postcard, QueueSet, jobs::*};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Resize(std::path::PathBuf);
    /// # impl Job for Resize { const KIND: &'static str = "resize"; type Codec = Postcard; }
    /// # let jobs = Jobs::new(&QueueSet::open("data")?)?;
    /// let worker = jobs
    ///     .worker()
    ///     .threads(4)
    ///     .on(|ctx, job: Resize| -> Result<(), Fail> {
    ///         let bytes = std::fs::read(&job.0)?;
    ///         ctx.progress(1, 2);
    ///         std::fs::write(job.0.with_extension("small"), &bytes[..bytes.len() / 2])?;
    ///         Ok(())
    ///     })
    ///     .start()?;
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "postcard"))]
    /// # fn main() {}
    /// ```
    pub fn on<J, D, F>(self, f: impl Fn(&Ctx, J) -> Result<D, F> + Send + Sync + 'static) -> Self
    where
        J: Job,
        D: Into<Done>,
        F: Into<Fail>,
    {
        let _ = f;
        unimplemented!()
    }

    /// Does jobs of the kind `J` with the future that `f` returns: on the executor that runs
    /// [`RunningJob::run`](crate::jobs::RunningJob::run), or, one at a time, on a thread of a [`Worker`].
    pub fn on_async<J, D, F, Fut>(self, f: impl Fn(Ctx, J) -> Fut + Send + Sync + 'static) -> Self
    where
        J: Job,
        D: Into<Done>,
        F: Into<Fail>,
        Fut: Future<Output = Result<D, F>> + Send + 'static,
    {
        let _ = f;
        unimplemented!()
    }

    /// Does jobs of the kind `J` many at a time: up to `max` of one queue that wait behind each other, waiting up to `linger` for more
    /// once there is one. They are answered one by one, in the same order; answers that are missing are failures.
    pub fn on_batch<J: Job>(
        self,
        max: usize,
        linger: Duration,
        f: impl Fn(&[Ctx], Vec<J>) -> Vec<Result<Done, Fail>> + Send + Sync + 'static,
    ) -> Self {
        let _ = (max, linger, f);
        unimplemented!()
    }

    /// Runs `f` around each handler, on the same thread; the first one given is the outermost. Around a batch it runs once, with the
    /// first job's context, and what it answers counts only if it is an error, for all of them.
    ///
    /// A worker with asynchronous handlers and middleware has no [`runner`](WorkerBuilder::runner): there is no thread to run it on.
    pub fn around(self, f: impl Fn(&Ctx, Next<'_>) -> Result<Done, Fail> + Send + Sync + 'static) -> Self {
        let _ = f;
        unimplemented!()
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`JobError::Options`] names a limit, rate or weight that is out of range; [`JobError::Kind`] if two handlers take the same kind
    /// or there is none; [`JobError::Pattern`], [`JobError::QueueName`]; [`JobError::Thread`].
    pub fn start(self) -> Result<Worker, JobError> {
        unimplemented!()
    }

    /// The same without threads: for an executor of your own, or for tests.
    ///
    /// # Errors
    /// As [`start`](WorkerBuilder::start).
    pub fn runner(self) -> Result<Runner, JobError> {
        unimplemented!()
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").finish_non_exhaustive()
    }
}

/// Threads that do jobs: [`WorkerBuilder::start`].
///
/// Dropping it is [`quiet`](Worker::quiet), without waiting: each thread ends its job and leaves.
#[must_use = "a worker that is dropped takes no more jobs"]
#[derive(Debug)]
pub struct Worker {}

impl Worker {
    /// Takes no more jobs, from now on; those that run go on. If the process is killed after this, their starts do not count.
    pub fn quiet(&self) {
        unimplemented!()
    }

    /// How many jobs run.
    pub fn busy(&self) -> usize {
        unimplemented!()
    }

    /// Works until nothing is left to do: no job runs, and none in its queues waits. Delayed jobs that are not due and retries that
    /// pause do not count, nor do jobs in paused queues. `false`: the time was over first.
    pub fn drain(&self, limit: Duration) -> bool {
        let _ = limit;
        unimplemented!()
    }

    /// Ends the work in order: takes no more jobs, lets those that run finish, tells their handlers after nine tenths of `grace`
    /// ([`Ctx::is_cancelled`]), and hands back what has not ended by then, without counting the start.
    ///
    /// Futures are dropped at the end of the grace. Threads cannot be: those that still run are left alone, and what they return counts
    /// no more. Their jobs are started again by the next worker; they keep their checkpoints.
    pub fn shutdown(self, grace: Duration) -> Shutdown {
        let _ = grace;
        unimplemented!()
    }
}

/// What [`Worker::shutdown`] left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Jobs that ended during the grace.
    pub finished: usize,
    /// Jobs that were handed back.
    pub returned: usize,
    /// Of these, the ones whose threads still run.
    pub stuck: Vec<JobId>,
}
