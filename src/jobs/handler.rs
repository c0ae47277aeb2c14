//! What a handler is given and gives back: [`Ctx`], [`Done`], [`Fail`]; and what stands around it: [`Next`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::jobs::Jobs;
use crate::jobs::envelope::cut;
use crate::jobs::error::JobError;
use crate::jobs::id::JobId;
use crate::jobs::push::Transaction;
use crate::jobs::run::{CANCELLED, Run, STOPPING, TIMED_OUT, Told};
use crate::jobs::status::Cause;
use crate::options::PutOptions;

/// How a handler ended well. `()` is [`Done::Complete`].
#[non_exhaustive]
pub enum Done {
    /// The job is done.
    Complete,
    /// The job is done, with a result: for who [waits](Jobs::wait) for it, and kept where
    /// [`Keep::with_output`](crate::jobs::Keep::with_output) says so.
    Output(Vec<u8>),
    /// Not now: it is started again after this time. The start does not count.
    Snooze(Duration),
    /// The job is done, and the staged jobs are pushed, as one act: [`Ctx::finish_with`].
    With(Transaction),
}

impl fmt::Debug for Done {
    /// Without the bytes of an output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Done::Complete => f.write_str("Complete"),
            Done::Output(output) => write!(f, "Output({} bytes)", output.len()),
            Done::Snooze(time) => f.debug_tuple("Snooze").field(time).finish(),
            Done::With(next) => f.debug_tuple("With").field(next).finish(),
        }
    }
}

impl From<()> for Done {
    fn from((): ()) -> Done {
        Done::Complete
    }
}

/// How a handler failed. Any error becomes one, so that `?` means: try again, as the backoff says.
///
/// ```
/// # #[cfg(feature = "postcard")] {
/// # use kestrel_core::jobs::{Ctx, Fail};
/// fn handle(ctx: &Ctx, path: String) -> Result<(), Fail> {
///     let text = std::fs::read_to_string(&path)?; // failed: again later
///     if text.is_empty() {
///         return Err(Fail::reject("nothing in it")); // no retry will help
///     }
///     Ok(())
/// }
/// # }
/// ```
///
/// A boxed error, or anyhow's, is no [`Error`](std::error::Error) itself and is turned by a word:
///
/// ```
/// # use kestrel_core::jobs::{Ctx, Fail};
/// fn parse(text: &str) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
///     Ok(text.trim().parse()?)
/// }
///
/// fn handle(ctx: &Ctx, text: String) -> Result<(), Fail> {
///     let port = parse(&text).map_err(|error| Fail::retry(format!("{error:#}")))?;
///     assert_ne!(port, 0);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "return it"]
pub struct Fail {
    pub(crate) verdict: Verdict,
    pub(crate) cause: Cause,
    pub(crate) error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    RetryIn(Duration),
    Reject,
    Discard,
    /// The bytes are no value of the kind.
    Undecodable,
}

impl Fail {
    /// Again after the pause of the kind's [`Backoff`](crate::jobs::Backoff), or dead if it was the last attempt.
    pub fn retry(error: impl fmt::Display) -> Fail {
        Fail { verdict: Verdict::Retry, cause: Cause::Error, error: error.to_string() }
    }

    /// Again after this pause, whatever the backoff says, or dead if it was the last attempt.
    pub fn retry_in(error: impl fmt::Display, pause: Duration) -> Fail {
        Fail { verdict: Verdict::RetryIn(pause), cause: Cause::Error, error: error.to_string() }
    }

    /// Dead at once.
    pub fn reject(error: impl fmt::Display) -> Fail {
        Fail { verdict: Verdict::Reject, cause: Cause::Error, error: error.to_string() }
    }

    /// Gone without a trace but for a count and an event.
    pub fn discard(error: impl fmt::Display) -> Fail {
        Fail { verdict: Verdict::Discard, cause: Cause::Error, error: error.to_string() }
    }

    /// The text of the error.
    pub fn error(&self) -> &str {
        &self.error
    }
}

impl<E: std::error::Error> From<E> for Fail {
    /// With the texts of what caused it, joined by colons.
    fn from(error: E) -> Fail {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(below) = cause {
            let more = below.to_string();
            // Transparent errors tell their cause's text as their own.
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = below.source();
        }
        Fail { verdict: Verdict::Retry, cause: Cause::Error, error: text }
    }
}

/// Most bytes of a checkpoint.
const CHECKPOINT_MAX: usize = 64 << 10;
/// Most bytes of a note.
const NOTE_MAX: usize = 1024;

/// A job in the hands of its handler. A cheap clone.
///
/// Its methods are safe to call at any time from any thread; once the job has ended they change nothing.
#[derive(Clone)]
pub struct Ctx {
    pub(crate) run: Arc<Run>,
}

impl Ctx {
    /// The job.
    ///
    /// It is the same at each start, so it serves as idempotency key: a handler that writes it beside its effects can tell that it
    /// was here before.
    pub fn id(&self) -> JobId {
        self.run.id
    }

    /// The job queue.
    pub fn queue(&self) -> &str {
        &self.run.room.name
    }

    /// The kind, as it was pushed.
    pub fn kind(&self) -> &str {
        &self.run.envelope.kind
    }

    /// The text given with [`Push::tag`](crate::jobs::Push::tag).
    pub fn tag(&self) -> Option<&str> {
        self.run.envelope.tag.as_deref()
    }

    /// Which start this is, from 1. Starts that an orderly shutdown or a snooze ended do not count; those that ended with the death
    /// of the process do.
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// How often the process died while this job ran.
    pub fn crashes(&self) -> u32 {
        self.run.envelope.crashes
    }

    /// Tells how far the job is, for [`Jobs::status`]. In memory only, a few nanoseconds.
    pub fn progress(&self, done: u64, total: u64) {
        self.run.set_progress(done, total);
    }

    /// Tells what the job does, for [`Jobs::status`]. In memory only; up to 1,024 bytes of it.
    pub fn note(&self, text: &str) {
        self.run.set_note(cut(text, NOTE_MAX));
    }

    /// Stores how far a long job is, so that the next start can go on from there: after a failure, a shutdown or a crash. The newest
    /// one holds; it is gone when the job has ended.
    ///
    /// # Durability
    /// As the set's default; with `Sync` this waits for the device.
    ///
    /// # Errors
    /// [`JobError::TooLarge`] beyond 64 KiB, [`JobError::NotRunning`], or what a put answers. The one before it holds then.
    pub fn checkpoint(&self, state: &[u8]) -> Result<(), JobError> {
        if state.len() > CHECKPOINT_MAX {
            return Err(JobError::TooLarge { what: "checkpoint", len: state.len(), max: CHECKPOINT_MAX });
        }
        let (run, hub) = (&*self.run, &self.run.jobs.hub);
        if run.hold.lock().is_none() {
            return Err(JobError::NotRunning { id: run.id });
        }
        run.has_checkpoint.store(true, Ordering::Release);
        hub.checkpoints.put(&hub.set, &checkpoint_key(run.id), state, PutOptions::new())?;
        if run.hold.lock().is_none() && hub.whereabouts_known(run.id).is_none() {
            // It ended meanwhile, and nobody else comes for this.
            hub.checkpoints.remove(&checkpoint_key(run.id))?;
        }
        Ok(())
    }

    /// What the last checkpoint of an earlier start stored.
    pub fn resume_from(&self) -> Option<&[u8]> {
        self.run.resume.as_deref()
    }

    /// Whether the handler should come to an end: the job was cancelled, its timeout is over, or the worker shuts down. A job that
    /// returns an error after that is not failed by it: it was cancelled, has timed out, or is handed back without counting the
    /// start.
    pub fn is_cancelled(&self) -> bool {
        self.run.is_told(CANCELLED | TIMED_OUT | STOPPING)
    }

    /// Waits until [`is_cancelled`](Ctx::is_cancelled).
    ///
    /// # Cancel safety
    /// It may be dropped and asked for anew at any moment.
    pub fn cancelled(&self) -> CancelFuture {
        CancelFuture { told: self.run.told(CANCELLED | TIMED_OUT | STOPPING) }
    }

    /// The jobs of the set, to push more.
    pub fn jobs(&self) -> &Jobs {
        &self.run.jobs
    }

    /// What a handler returns so that its job ends and the staged jobs are pushed as one act: after a crash at any moment either all
    /// of that has happened or nothing.
    ///
    /// Happens when the handler has returned it. If a job cannot be pushed then, nothing is, and this job has failed.
    ///
    /// # Errors
    /// [`JobError::TooLarge`] if it is larger than a transaction may be.
    ///
    /// ```
    /// # #[cfg(feature = "postcard")] {
    /// # use kestrel_core::Postcard;
    /// # use kestrel_core::jobs::*;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Fetch(String);
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Index(String);
    /// # impl Job for Fetch { const KIND: &'static str = "fetch"; type Codec = Postcard; }
    /// # impl Job for Index { const KIND: &'static str = "index"; type Codec = Postcard; }
    /// fn fetch(ctx: &Ctx, page: Fetch) -> Result<Done, Fail> {
    ///     let mut next = Transaction::new();
    ///     for link in ["a", "b"] {
    ///         ctx.jobs().stage(&mut next, &Index(format!("{}/{link}", page.0)), &Push::new())?;
    ///     }
    ///     Ok(ctx.finish_with(next)?)
    /// }
    /// # }
    /// ```
    pub fn finish_with(&self, next: Transaction) -> Result<Done, JobError> {
        next.check()?;
        Ok(Done::With(next))
    }
}

/// The name of a job's checkpoint.
pub(crate) fn checkpoint_key(id: JobId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&id.lane.to_le_bytes());
    key[4..].copy_from_slice(&id.item.to_le_bytes());
    key
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx").field("id", &self.run.id).field("attempt", &self.run.attempt).finish_non_exhaustive()
    }
}

/// Waits until a job is to come to an end: [`Ctx::cancelled`].
#[must_use = "futures do nothing unless polled"]
pub struct CancelFuture {
    told: Told,
}

impl Future for CancelFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.told).poll(cx)
    }
}

impl fmt::Debug for CancelFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelFuture").finish_non_exhaustive()
    }
}

/// What stands further in: the other middleware and the handler. See
/// [`WorkerBuilder::around`](crate::jobs::WorkerBuilder::around).
pub struct Next<'a> {
    pub(crate) run: &'a mut dyn FnMut() -> Result<Done, Fail>,
}

impl Next<'_> {
    /// Runs it. Not to run it means that the job ends as the middleware says.
    ///
    /// # Errors
    /// What the handler failed with; a panic of it is an error here already.
    pub fn run(self) -> Result<Done, Fail> {
        (self.run)()
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").finish_non_exhaustive()
    }
}
