//! What a job is: [`Job`], and how jobs of a kind are treated: [`JobOptions`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::jobs::error::JobError;
use crate::jobs::status::Failure;
use crate::typed::Codec;

/// A unit of work. The value is what is stored; the work itself is a closure at the [`worker`](crate::jobs::Jobs::worker), so
/// who pushes need not link it.
///
/// ```
/// # #[cfg(feature = "postcard")] {
/// use kestrel_core::Postcard;
/// use kestrel_core::jobs::{Job, JobOptions};
/// use std::time::Duration;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendMail {
///     to: String,
/// }
///
/// impl Job for SendMail {
///     const KIND: &'static str = "send-mail";
///     type Codec = Postcard;
///     fn options() -> JobOptions {
///         JobOptions::default().queue("mail").max_attempts(5).timeout(Duration::from_secs(30))
///     }
/// }
/// # }
/// ```
pub trait Job: Sized + Send + 'static {
    /// The name of this kind on disk, 1 to 100 bytes. It must never change: put the old one into
    /// [`ALIASES`](Job::ALIASES) if you rename the kind.
    const KIND: &'static str;

    /// Earlier names of this kind, which its handler takes too.
    const ALIASES: &'static [&'static str] = &[];

    /// How a value becomes bytes. The codec's [`id`](Codec::id) is stored with each job, so that bytes of another codec are told
    /// from damaged ones.
    type Codec: Codec<Self> + Default + 'static;

    /// How jobs of this kind are treated, unless a push says otherwise.
    fn options() -> JobOptions {
        JobOptions::default()
    }

    /// What makes this job the same as another of its kind, up to 1,024 bytes; used as [`JobOptions::unique`] says. `None`: it is
    /// like no other.
    fn unique_key(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Which of the waiting jobs of a queue are started first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Before all others.
    High,
    /// The default.
    #[default]
    Normal,
    /// After the normal ones.
    Low,
    /// When nothing else is to be done.
    Idle,
}

impl Priority {
    pub(crate) const ALL: [Priority; 4] = [Priority::High, Priority::Normal, Priority::Low, Priority::Idle];
}

/// Whether a job is pushed though another one of its kind with the same key is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unique {
    /// Keys mean nothing.
    #[default]
    No,
    /// The key is taken until the job is started for the first time: at most one waits beside the one that runs.
    UntilStarted,
    /// The key is taken until the job has ended, well or badly; retries and pauses between them included.
    UntilDone,
    /// The key is taken for this long after the push, whatever becomes of the job, also across a restart.
    Window(Duration),
}

/// How many records of ended jobs are kept, and for how long. The oldest go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub(crate) count: u64,
    pub(crate) age: Option<Duration>,
    pub(crate) output: bool,
}

impl Keep {
    /// None.
    pub const fn none() -> Keep {
        Keep { count: 0, age: None, output: false }
    }

    /// The last `count` of a queue. Where the kinds of a queue ask for different counts, the highest holds.
    pub const fn last(count: u64) -> Keep {
        Keep { count, age: None, output: false }
    }

    /// None older than this.
    #[must_use]
    pub const fn for_at_most(mut self, age: Duration) -> Keep {
        self.age = Some(age);
        self
    }

    /// With what the handler gave as [`Done::Output`](crate::jobs::Done::Output), for later
    /// [`wait`](crate::jobs::Jobs::wait)s. Only for jobs that are done.
    #[must_use]
    pub const fn with_output(mut self) -> Keep {
        self.output = true;
        self
    }
}

/// What computes a pause from the number of failures so far, from 1, and the last of them.
pub type CustomBackoff = Arc<dyn Fn(u32, &Failure) -> Duration + Send + Sync>;

/// How long a failed job pauses before its next start, by the number n of its failures so far, from 1.
///
/// The pause survives a restart. Exponential pauses are cut by up to a half, by chance, so that jobs which failed together do
/// not come again together.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Backoff {
    /// 1 s, 2 s, 4 s, … to 1 h: 20 starts spread over 6 hours on average.
    #[default]
    Default,
    /// No pause.
    None,
    /// Always the same.
    Fixed(Duration),
    /// Doubling.
    Exponential {
        /// The first pause.
        first: Duration,
        /// No pause is longer.
        max: Duration,
    },
    /// (n-1)⁴ + 15 s, and up to 10 n s more by chance: 25 starts over three weeks, for teams that fix and deploy meanwhile.
    Polynomial,
    /// What the function says. It runs after each failure, on the worker's thread; if it panics, and after a crash of the
    /// process, [`Backoff::Default`] holds.
    Custom(CustomBackoff),
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backoff::Default => f.write_str("Default"),
            Backoff::None => f.write_str("None"),
            Backoff::Fixed(pause) => f.debug_tuple("Fixed").field(pause).finish(),
            Backoff::Exponential { first, max } => {
                f.debug_struct("Exponential").field("first", first).field("max", max).finish()
            }
            Backoff::Polynomial => f.write_str("Polynomial"),
            Backoff::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// How jobs of a kind are treated.
///
/// Start from the default and set what differs, by field or by the method of the same name. What is stored with the job holds
/// for it as it was at the push: the limits, the expiry, `unique`, the keeping, the backoff but for [`Backoff::Custom`]. The
/// `timeout` is the worker's.
///
/// ```
/// use kestrel_core::jobs::{Backoff, JobOptions, Priority, Unique};
/// let options = JobOptions::default().priority(Priority::Low).max_attempts(3).backoff(Backoff::None).unique(Unique::UntilDone);
/// assert_eq!(options.max_attempts, 3);
/// assert!(options.check().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobOptions {
    /// The job queue. Default: `default`.
    pub queue: String,
    /// Default: normal.
    pub priority: Priority,
    /// How often a job is started, the first time included, until it is dead. Starts that an orderly
    /// [`shutdown`](crate::jobs::Worker::shutdown) or a snooze ended do not count. Default: 20.
    pub max_attempts: u32,
    /// How often the process may die while the job runs, until the job is dead. Default: 3.
    pub max_crashes: u32,
    /// The pause between a failure and the next start.
    pub backoff: Backoff,
    /// How long a start may take. An asynchronous handler is dropped then, and the job has failed. A thread cannot be ended: the
    /// handler is told ([`Ctx::is_cancelled`](crate::jobs::Ctx::is_cancelled)), and an
    /// [event](crate::jobs::Event::Stuck) says so if it goes on. Default: without end.
    pub timeout: Option<Duration>,
    /// A job that was not started for the first time by then, counted from the push, never is:
    /// [`DeadReason::Expired`](crate::jobs::DeadReason::Expired). Default: never.
    pub expires_in: Option<Duration>,
    /// What [`Job::unique_key`] means. Default: nothing.
    pub unique: Unique,
    /// Records of jobs that ended well, were cancelled or expired, in the queue `<queue>.done`. Default: none.
    pub keep_done: Keep,
    /// Dead jobs, in the queue `<queue>.dead`, whole and to be had again
    /// ([`requeue_dead`](crate::jobs::Jobs::requeue_dead)). Default: the last 10,000, none older than 180 days.
    pub keep_dead: Keep,
}

impl Default for JobOptions {
    fn default() -> Self {
        JobOptions {
            queue: "default".to_owned(),
            priority: Priority::Normal,
            max_attempts: 20,
            max_crashes: 3,
            backoff: Backoff::Default,
            timeout: None,
            expires_in: None,
            unique: Unique::No,
            keep_done: Keep::none(),
            keep_dead: Keep::last(10_000).for_at_most(Duration::from_secs(180 * 86_400)),
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty => $wrap:expr;)*) => {
        impl JobOptions {
            $(
                #[doc = concat!("Sets [`JobOptions::", stringify!($name), "`](#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$name = ($wrap)(value);
                    self
                }
            )*
        }
    };
}

setters! {
    queue: impl Into<String> => Into::into;
    priority: Priority => std::convert::identity;
    max_attempts: u32 => std::convert::identity;
    max_crashes: u32 => std::convert::identity;
    backoff: Backoff => std::convert::identity;
    timeout: Duration => Some;
    expires_in: Duration => Some;
    unique: Unique => std::convert::identity;
    keep_done: Keep => std::convert::identity;
    keep_dead: Keep => std::convert::identity;
}

impl JobOptions {
    /// Whether every value is in its range and none contradicts another: what a push checks first.
    ///
    /// # Errors
    /// [`JobError::Options`] names the first field that is not; [`JobError::QueueName`] for the queue.
    pub fn check(&self) -> Result<(), JobError> {
        let wrong = |field, reason| Err(JobError::Options { field, reason });
        crate::jobs::names::check(&self.queue)?;
        if self.max_attempts == 0 {
            return wrong("max_attempts", "at least 1: the first start counts");
        }
        if self.max_crashes == 0 {
            return wrong("max_crashes", "at least 1");
        }
        match self.backoff {
            Backoff::Exponential { first, .. } if first.is_zero() => {
                return wrong("backoff", "a first pause of zero; say Backoff::None");
            }
            Backoff::Exponential { first, max } if first > max => {
                return wrong("backoff", "a first pause beyond the longest");
            }
            _ => {}
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return wrong("timeout", "more than zero");
        }
        if matches!(self.unique, Unique::Window(window) if window.is_zero()) {
            return wrong("unique", "a window of zero");
        }
        if self.keep_done.output && self.keep_done.count == 0 {
            return wrong("keep_done", "output of no records");
        }
        if self.keep_dead.output {
            return wrong("keep_dead", "a dead job has no output");
        }
        Ok(())
    }
}
