//! Who does the jobs: [`WorkerBuilder`] and [`Worker`].

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use event_listener::Listener;

use crate::jobs::Jobs;
use crate::jobs::ending;
use crate::jobs::envelope::ms;
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::handler::{Ctx, Done, Fail, Next};
use crate::jobs::id::JobId;
use crate::jobs::job::Job;
use crate::jobs::names::{self, Patterns};
use crate::jobs::order::QueueOrder;
use crate::jobs::pushing::check_kind;
use crate::jobs::run::{DROPPED, Run, STOPPING};
use crate::jobs::runner::Runner;
use crate::jobs::team::{Around, Handler, Order, Team};
use crate::jobs::working;

/// Which jobs are done by whom: [`Jobs::worker`](crate::jobs::Jobs::worker).
///
/// A worker takes a job only when somebody is free to do it, so nothing waits behind a long one.
#[must_use = "a builder does nothing until `start` or `runner`"]
pub struct WorkerBuilder {
    jobs: Jobs,
    order: QueueOrder,
    threads: usize,
    limits: HashMap<String, usize>,
    rates: HashMap<String, (Duration, u32)>,
    aging: Duration,
    /// By each kind and alias that they take.
    handlers: Vec<(Vec<&'static str>, Arc<Handler>)>,
    around: Vec<Around>,
    has_async: bool,
    has_small_batch: bool,
}

/// After how long a waiting job overtakes those of the next higher priority.
const AGING: Duration = Duration::from_secs(60);
const WEIGHT_MAX: u32 = 10_000;

impl WorkerBuilder {
    pub(crate) fn new(jobs: Jobs) -> WorkerBuilder {
        WorkerBuilder {
            jobs,
            order: QueueOrder::default(),
            threads: 1,
            limits: HashMap::new(),
            rates: HashMap::new(),
            aging: AGING,
            handlers: Vec::new(),
            around: Vec::new(),
            has_async: false,
            has_small_batch: false,
        }
    }

    fn with<J: Job>(mut self, handler: Handler) -> Self {
        let mut kinds = vec![J::KIND];
        kinds.extend_from_slice(J::ALIASES);
        self.handlers.push((kinds, Arc::new(handler)));
        self
    }

    /// From which queues, and in which order. Default: all job queues of the set, in the order of their names.
    pub fn queues(mut self, order: impl Into<QueueOrder>) -> Self {
        self.order = order.into();
        self
    }

    /// How many jobs at once: threads of a [`Worker`], permits of a [`Runner`]. Default: 1.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = n;
        self
    }

    /// How many jobs of a queue at once, in this worker.
    pub fn limit(mut self, queue: &str, n: usize) -> Self {
        self.limits.insert(queue.to_owned(), n);
        self
    }

    /// How many jobs of a queue may be started within `per`, in this worker: a bucket of `n` tokens that fills evenly. In memory; it
    /// is full at the start.
    pub fn rate(mut self, queue: &str, per: Duration, n: u32) -> Self {
        self.rates.insert(queue.to_owned(), (per, n));
        self
    }

    /// After how long a waiting job overtakes those of the next higher priority; of the second higher after twice that. Zero: never,
    /// so that jobs of a low priority starve while there are others. Default: 60 s.
    pub fn aging(mut self, step: Duration) -> Self {
        self.aging = step;
        self
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
        self.with::<J>(working::blocking(f))
    }

    /// Does jobs of the kind `J` with the future that `f` returns: on the executor that runs
    /// [`RunningJob::run`](crate::jobs::RunningJob::run), or, one at a time, on a thread of a [`Worker`].
    pub fn on_async<J, D, F, Fut>(mut self, f: impl Fn(Ctx, J) -> Fut + Send + Sync + 'static) -> Self
    where
        J: Job,
        D: Into<Done>,
        F: Into<Fail>,
        Fut: Future<Output = Result<D, F>> + Send + 'static,
    {
        self.has_async = true;
        self.with::<J>(working::asynchronous(f))
    }

    /// Does jobs of the kind `J` many at a time: up to `max` of one queue that wait behind each other, waiting up to `linger` for more
    /// once there is one. They are answered one by one, in the same order; answers that are missing are failures.
    pub fn on_batch<J: Job>(
        mut self,
        max: usize,
        linger: Duration,
        f: impl Fn(&[Ctx], Vec<J>) -> Vec<Result<Done, Fail>> + Send + Sync + 'static,
    ) -> Self {
        self.has_small_batch |= max == 0;
        self.with::<J>(working::batched(max, linger, f))
    }

    /// Runs `f` around each handler, on the same thread; the first one given is the outermost. Around a batch it runs once, with the
    /// first job's context, and what it answers counts only if it is an error, for all of them.
    ///
    /// A worker with asynchronous handlers and middleware has no [`runner`](WorkerBuilder::runner): there is no thread to run it on.
    pub fn around(mut self, f: impl Fn(&Ctx, Next<'_>) -> Result<Done, Fail> + Send + Sync + 'static) -> Self {
        self.around.push(Box::new(f));
        self
    }

    /// Checks all that was said.
    fn team(self) -> Result<(Jobs, Arc<Team>), JobError> {
        let wrong = |field, reason| Err(JobError::Options { field, reason });
        if self.threads == 0 {
            return wrong("threads", "at least 1");
        }
        if self.has_small_batch {
            return wrong("on_batch", "at least 1 job");
        }
        if self.limits.values().any(|n| *n == 0) {
            return wrong("limit", "at least 1; pause the queue to start none");
        }
        if self.rates.values().any(|(per, n)| per.is_zero() || *n == 0) {
            return wrong("rate", "at least 1 job in more than no time");
        }
        for queue in self.limits.keys().chain(self.rates.keys()) {
            names::check(queue)?;
        }
        let mut handlers = HashMap::new();
        for (kinds, handler) in self.handlers {
            for kind in kinds {
                check_kind(kind)?;
                if handlers.insert(kind.to_owned(), Arc::clone(&handler)).is_some() {
                    return Err(JobError::Kind { kind: kind.to_owned(), reason: "two handlers take it" });
                }
            }
        }
        if handlers.is_empty() {
            return Err(JobError::Kind { kind: String::new(), reason: "a worker without a handler does nothing" });
        }
        let hub = &self.jobs.hub;
        let mut seen = std::collections::HashSet::new();
        let order = match self.order {
            QueueOrder::Strict(queues) => Order::Strict(queues),
            QueueOrder::Weighted(queues) => Order::Weighted(queues),
            QueueOrder::Matching(patterns) => Order::Matching(Patterns::parse(&patterns)?),
        };
        match &order {
            Order::Strict(queues) if queues.is_empty() => return wrong("queues", "at least one"),
            Order::Weighted(queues) if queues.is_empty() => return wrong("queues", "at least one"),
            Order::Weighted(queues) if queues.iter().any(|(_, weight)| !(1..=WEIGHT_MAX).contains(weight)) => {
                return wrong("queues", "weights of 1 to 10,000");
            }
            Order::Strict(queues) => {
                for queue in queues {
                    hub.ensure_room(queue)?;
                    if !seen.insert(queue.clone()) {
                        return wrong("queues", "each one once");
                    }
                }
            }
            Order::Weighted(queues) => {
                for (queue, _) in queues {
                    hub.ensure_room(queue)?;
                    if !seen.insert(queue.clone()) {
                        return wrong("queues", "each one once");
                    }
                }
            }
            Order::Matching(_) => {}
        }
        let number = hub.next_team.fetch_add(1, Ordering::Relaxed);
        let aging_ms = ms(self.aging);
        let team = Team::new(number, order, self.threads, aging_ms, self.limits, self.rates, handlers, self.around);
        let team = Arc::new(team);
        hub.teams.lock().push(Arc::downgrade(&team));
        Ok((self.jobs, team))
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`JobError::Options`] names a limit, rate or weight that is out of range; [`JobError::Kind`] if two handlers take the same kind
    /// or there is none; [`JobError::Pattern`], [`JobError::QueueName`]; [`JobError::Thread`].
    pub fn start(self) -> Result<Worker, JobError> {
        let (jobs, team) = self.team()?;
        let alive = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::with_capacity(team.threads);
        for n in 0..team.threads {
            let (of_thread, its_team, its_alive) = (jobs.clone(), Arc::clone(&team), Arc::clone(&alive));
            alive.fetch_add(1, Ordering::AcqRel);
            let spawned = std::thread::Builder::new().name(format!("kestrel-worker-{n}")).spawn(move || {
                work(&of_thread, &its_team);
                its_alive.fetch_sub(1, Ordering::AcqRel);
                of_thread.hub.ended.notify(usize::MAX);
            });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    team.quiet(&jobs.hub);
                    return Err(JobError::Thread(Arc::new(error)));
                }
            }
        }
        Ok(Worker { jobs, team, alive, threads })
    }

    /// The same without threads: for an executor of your own, or for tests.
    ///
    /// # Errors
    /// As [`start`](WorkerBuilder::start).
    pub fn runner(self) -> Result<Runner, JobError> {
        if self.has_async && !self.around.is_empty() {
            let reason = "no middleware around asynchronous handlers in a runner";
            return Err(JobError::Options { field: "around", reason });
        }
        let (jobs, team) = self.team()?;
        Ok(Runner::new(jobs, team))
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").finish_non_exhaustive()
    }
}

/// A pause before the next try where something could not be read or stored.
const TROUBLE_PAUSE: Duration = Duration::from_millis(200);

/// What each thread does: takes a job, does it, and waits while there is none.
fn work(jobs: &Jobs, team: &Arc<Team>) {
    let hub = &jobs.hub;
    loop {
        if team.is_quiet.load(Ordering::Acquire) {
            return;
        }
        match team.claim(jobs) {
            Ok(Some(claimed)) => {
                working::run_here(jobs, team, claimed);
                continue;
            }
            Ok(None) => {}
            Err(JobError::Closed) => return,
            Err(error) => {
                hub.emit(|| Event::Trouble { queue: String::new(), error });
                let _ = team.bell.listen().wait_timeout(TROUBLE_PAUSE);
                continue;
            }
        }
        // Listen, then look again: what came in between rang for nobody.
        let listener = team.bell.listen();
        if team.is_quiet.load(Ordering::Acquire) {
            return;
        }
        team.arm(hub);
        if let Ok(Some(claimed)) = team.claim(jobs) {
            drop(listener);
            working::run_here(jobs, team, claimed);
            continue;
        }
        listener.wait();
    }
}

/// Waits up to `limit` until something is so that changes when jobs end.
pub(crate) fn wait_until(jobs: &Jobs, limit: Duration, so: impl Fn() -> bool) -> bool {
    let hub = &jobs.hub;
    let begun = hub.set.now();
    loop {
        let listener = hub.ended.listen();
        if so() {
            return true;
        }
        let passed = hub.set.now().duration_since(begun).unwrap_or_default();
        let left = limit.saturating_sub(passed);
        if left.is_zero() {
            return false;
        }
        // `None`: it waited all of that, whatever the set's clock says.
        if listener.wait_timeout(left).is_none() {
            return so();
        }
    }
}

/// Ends the work of a team in order.
pub(crate) fn shut_down(jobs: &Jobs, team: &Arc<Team>, grace: Duration) -> Shutdown {
    let hub = &jobs.hub;
    let (ended, returned) = (team.ended.load(Ordering::Acquire), team.returned.load(Ordering::Acquire));
    team.quiet(hub);
    let is_idle = || team.busy.load(Ordering::Acquire) == 0;
    let running = || -> Vec<Arc<Run>> { team.running.lock().values().cloned().collect() };
    let warning = grace / 10 * 9;
    if !wait_until(jobs, warning, is_idle) {
        running().iter().for_each(|run| run.tell(STOPPING));
        wait_until(jobs, grace.saturating_sub(warning), is_idle);
    }
    let mut stuck = Vec::new();
    for run in running() {
        run.tell(STOPPING | DROPPED);
        if ending::take_back(&run) && !run.is_async {
            stuck.push(run.id);
        }
        team.leave(&run);
    }
    let trouble = hub.set.sync().map_err(JobError::from).and_then(|()| team.forget_stopping(hub));
    if let Err(error) = trouble {
        hub.emit(|| Event::Trouble { queue: String::new(), error });
    }
    let returned = team.returned.load(Ordering::Acquire) - returned;
    let finished = (team.ended.load(Ordering::Acquire) - ended).saturating_sub(returned);
    stuck.sort();
    Shutdown { finished, returned, stuck }
}

/// Threads that do jobs: [`WorkerBuilder::start`].
///
/// Dropping it is [`quiet`](Worker::quiet), without waiting: each thread ends its job and leaves.
#[must_use = "a worker that is dropped takes no more jobs"]
pub struct Worker {
    jobs: Jobs,
    team: Arc<Team>,
    alive: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Worker {
    /// Takes no more jobs, from now on; those that run go on. If the process is killed after this, their starts do not count.
    pub fn quiet(&self) {
        self.team.quiet(&self.jobs.hub);
    }

    /// How many jobs run.
    pub fn busy(&self) -> usize {
        self.team.busy.load(Ordering::Acquire)
    }

    /// Works until nothing is left to do: no job runs, and none in its queues waits. Delayed jobs that are not due and retries that
    /// pause do not count, nor do jobs in paused queues. `false`: the time was over first.
    pub fn drain(&self, limit: Duration) -> bool {
        wait_until(&self.jobs, limit, || self.team.is_through(&self.jobs.hub))
    }

    /// Ends the work in order: takes no more jobs, lets those that run finish, tells their handlers after nine tenths of `grace`
    /// ([`Ctx::is_cancelled`]), and hands back what has not ended by then, without counting the start.
    ///
    /// Futures are dropped at the end of the grace. Threads cannot be: those that still run are left alone, and what they return counts
    /// no more. Their jobs are started again by the next worker; they keep their checkpoints.
    pub fn shutdown(mut self, grace: Duration) -> Shutdown {
        let told = shut_down(&self.jobs, &self.team, grace);
        // All but those that are stuck leave by themselves.
        let stuck = told.stuck.len();
        wait_until(&self.jobs, THREADS_LEAVE, || self.alive.load(Ordering::Acquire) <= stuck);
        for thread in std::mem::take(&mut self.threads) {
            if thread.is_finished() || stuck == 0 {
                let _ = thread.join();
            }
        }
        told
    }
}

/// How long a thread that runs no job may take to leave.
const THREADS_LEAVE: Duration = Duration::from_secs(5);

impl Drop for Worker {
    fn drop(&mut self) {
        self.team.quiet(&self.jobs.hub);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("threads", &self.threads.len())
            .field("busy", &self.busy())
            .finish_non_exhaustive()
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
