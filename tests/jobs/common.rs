//! A set with jobs on a simulated disk or in a directory of its own, and short words for what tests do with them.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kestrel_core::jobs::{
    Ctx, Done, Event, Fail, Filter, Job, JobEvents, JobId, JobInfo, JobQueueStats, JobState, Jobs, Status,
};
use kestrel_core::testing::{Fate, SimDisk};
use kestrel_core::{Durability, QueueOptions, QueueSet};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SEC: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Nothing takes this long but a hang.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A kind of job with one field: its name, the field's type, its name on disk, and where they differ its options and key.
macro_rules! job {
    ($name:ident($of:ty) = $kind:literal) => {
        job!($name($of) = $kind, |options| options);
    };
    ($name:ident($of:ty) = $kind:literal, $options:expr) => {
        job!($name($of) = $kind, $options, |_| None);
    };
    ($name:ident($of:ty) = $kind:literal, $options:expr, $key:expr) => {
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct $name($of);

        impl kestrel_core::jobs::Job for $name {
            const KIND: &'static str = $kind;
            type Codec = kestrel_core::Postcard;

            fn options() -> kestrel_core::jobs::JobOptions {
                type Options = kestrel_core::jobs::JobOptions;
                let options: fn(Options) -> Options = $options;
                options(Options::default())
            }

            fn unique_key(&self) -> Option<Vec<u8>> {
                let key: fn(&$of) -> Option<Vec<u8>> = $key;
                key(&self.0)
            }
        }
    };
}

/// What handlers have seen, in order.
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Log(Arc::clone(&self.0))
    }
}

impl<T> Log<T> {
    pub(crate) fn new() -> Log<T> {
        Log(Arc::default())
    }

    pub(crate) fn add(&self, what: T) {
        self.0.lock().unwrap().push(what);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// What was seen since this was asked last.
    pub(crate) fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A set on a simulated disk.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) set: QueueSet,
    pub(crate) jobs: Jobs,
    wall: Cell<Duration>,
}

pub(crate) fn defaults() -> QueueOptions {
    QueueOptions::default().segment_bytes(256 << 10)
}

pub(crate) fn world() -> World {
    World::on(SimDisk::new(1))
}

impl World {
    pub(crate) fn on(disk: SimDisk) -> World {
        World::with(disk, defaults())
    }

    pub(crate) fn with(disk: SimDisk, options: QueueOptions) -> World {
        let set = QueueSet::builder().simulated(&disk).defaults(options).open("/set").expect("opens");
        let jobs = Jobs::new(&set).expect("opens");
        World { disk, set, jobs, wall: Cell::new(WALL) }
    }

    fn later(&self, disk: SimDisk) -> World {
        let next = World::on(disk);
        next.wall.set(self.wall.get());
        next
    }

    /// As the death of the process now leaves it. This one goes on unharmed.
    pub(crate) fn killed(&self) -> World {
        self.later(self.disk.kill())
    }

    pub(crate) fn cut(&self, fate: Fate) -> World {
        self.later(self.disk.power_cut(fate))
    }

    /// Closes in good order and opens again.
    pub(crate) fn reopened(self) -> World {
        let World { disk, set, jobs, wall } = self;
        set.close().expect("closes");
        drop(jobs);
        let next = World::on(disk);
        next.wall.set(wall.get());
        next
    }

    /// Lets time pass, and what is due in the background happen.
    pub(crate) fn pass(&self, time: Duration) {
        self.disk.advance_ms(u64::try_from(time.as_millis()).unwrap());
        self.wall.set(self.wall.get() + time);
        self.set.run_chores();
    }

    /// Does jobs of a kind until none may be started now; how many starts that were.
    pub(crate) fn run<J: Job>(&self, f: impl Fn(&Ctx, J) -> Result<Done, Fail> + Send + Sync + 'static) -> usize {
        self.jobs.worker().on(f).runner().expect("a runner").run_until_empty().expect("runs")
    }

    /// Does one job more than `run` may: so many, and no more.
    pub(crate) fn run_some<J: Job>(
        &self,
        most: usize,
        f: impl Fn(&Ctx, J) -> Result<Done, Fail> + Send + Sync + 'static,
    ) -> usize {
        let runner = self.jobs.worker().on(f).runner().expect("a runner");
        for n in 0..most {
            let Some(job) = runner.try_next().expect("takes") else { return n };
            job.run_blocking();
        }
        most
    }

    pub(crate) fn status(&self, id: JobId) -> Status {
        self.jobs.status(id)
    }

    pub(crate) fn info(&self, id: JobId) -> JobInfo {
        self.jobs.info(id).unwrap_or_else(|| panic!("nothing is known of {id}: {:?}", self.status(id)))
    }

    pub(crate) fn stats(&self, queue: &str) -> JobQueueStats {
        self.jobs.stats().queues.get(queue).cloned().unwrap_or_default()
    }

    pub(crate) fn list(&self, filter: &Filter) -> Vec<JobInfo> {
        self.jobs.list(filter).collect::<Result<_, _>>().expect("lists")
    }

    pub(crate) fn ids(&self, filter: &Filter) -> Vec<JobId> {
        self.list(filter).into_iter().map(|info| info.id).collect()
    }

    pub(crate) fn dead(&self) -> Vec<JobInfo> {
        self.list(&Filter::all().state(JobState::Dead))
    }

    /// How far a moment is ahead on the wall clock, which nobody has set.
    pub(crate) fn ahead(&self, due: SystemTime) -> Duration {
        due.duration_since(self.now()).unwrap_or_default()
    }

    /// The wall clock, if nobody has set it.
    pub(crate) fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.wall.get()
    }
}

/// Where the wall clock of a simulated disk begins.
pub(crate) const WALL: Duration = Duration::from_millis(1_700_000_000_000);

pub(crate) fn ok<J: Job>(_: &Ctx, _: J) -> Result<Done, Fail> {
    Ok(Done::Complete)
}

/// A set in a directory, for threads and real time. Pushes do not wait for the device.
pub(crate) struct Real {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) set: QueueSet,
    pub(crate) jobs: Jobs,
}

pub(crate) fn real() -> Real {
    Real::at(tempfile::tempdir().expect("a directory"))
}

pub(crate) fn quick() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os)
}

impl Real {
    pub(crate) fn at(dir: tempfile::TempDir) -> Real {
        let set = QueueSet::builder().defaults(quick()).open(dir.path()).expect("opens");
        let jobs = Jobs::new(&set).expect("opens");
        Real { dir, set, jobs }
    }

    pub(crate) fn reopened(self) -> Real {
        let Real { dir, set, jobs } = self;
        set.close().expect("closes");
        drop(jobs);
        Real::at(dir)
    }
}

/// Waits until something is so; gives up after a long time, so that a hang is a failure.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LONG, "never: {what}");
        std::thread::sleep(MS);
    }
}

/// All events so far.
pub(crate) fn told(events: &JobEvents) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

/// A door that handlers wait at until the test opens it, at the latest when it is dropped.
#[derive(Clone)]
pub(crate) struct Gate(Arc<(Mutex<bool>, std::sync::Condvar)>);

pub(crate) struct GateGuard(Gate);

impl Gate {
    pub(crate) fn new() -> (Gate, GateGuard) {
        let gate = Gate(Arc::default());
        (gate.clone(), GateGuard(gate))
    }

    pub(crate) fn wait(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }
}

impl GateGuard {
    pub(crate) fn open(&self) {
        *self.0.0.0.lock().unwrap() = true;
        self.0.0.1.notify_all();
    }
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        self.open();
    }
}

#[track_caller]
pub(crate) fn assert_within<T: PartialOrd + Debug>(what: T, least: T, most: T) {
    assert!(what >= least && what <= most, "{what:?} is not in {least:?} to {most:?}");
}

/// An id like this one with another number in its queue.
pub(crate) fn renumbered(id: JobId, change: impl Fn(u64) -> u64) -> JobId {
    let text = id.to_string();
    let (lane, item) = text.split_once('-').unwrap();
    format!("{lane}-{:x}", change(u64::from_str_radix(item, 16).unwrap())).parse().unwrap()
}

/// What a future answers when it is polled once.
pub(crate) fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}
