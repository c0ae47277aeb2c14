//! [`Kestrel`]: the jobs of a set as a backend for apalis' workers.
//!
//! A job is claimed here and done there. Its handler here is a future that hands the job to apalis as a task, with a way to answer,
//! and waits; the layer that this backend puts around apalis' service answers when the service has. So everything that
//! counts is counted once, by the queue: attempts, crashes, pauses, dead letters. Leave apalis' own retry layers out.
//!
//! | apalis | becomes |
//! |---|---|
//! | `Ok` | done |
//! | `AbortError` | rejected: dead at once |
//! | `RetryAfterError` | another attempt after that time |
//! | `DeferredError` | handed back, uncounted, and started again |
//! | any other error, and a task that is dropped | another attempt by the kind's backoff |

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::{AbortError, BoxDynError, DeferredError, RetryAfterError};
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use apalis_core::task::{ExecutionContext, Task};
use apalis_core::worker::context::WorkerContext;
use apalis_core::worker::ext::ack::{Acknowledge, AcknowledgeLayer};
use futures_channel::{mpsc, oneshot};
use futures_sink::Sink;
use futures_util::future::{BoxFuture, FutureExt, Ready, ready};
use futures_util::stream::{self, BoxStream, FuturesUnordered, StreamExt};
use kestrel_core::jobs::{Ctx, Done, Fail, Job, JobError, JobId, Jobs, Push, RunningJob, Status, When};

type End = Result<Done, Fail>;

/// The jobs of the kind `J`: a source of tasks, and a sink for them.
pub struct Kestrel<J: Job> {
    jobs: Jobs,
    claimed: BoxStream<'static, RunningJob>,
    /// Those that apalis has, each waiting for its answer.
    running: FuturesUnordered<BoxFuture<'static, Status>>,
    tasks: mpsc::UnboundedReceiver<Task<J>>,
}

impl<J: Job> Kestrel<J> {
    /// At most `at_once` tasks are in apalis' hands.
    pub fn new(jobs: &Jobs, at_once: usize) -> Result<Self, JobError> {
        let (hand_over, tasks) = mpsc::unbounded();
        let handler = move |ctx: Ctx, job: J| {
            let hand_over = hand_over.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let task = TaskBuilder::new(job)
                    .task_id(TaskId::from_string(ctx.id().to_string()))
                    .attempt(ctx.attempt() as usize - 1) // apalis counts this one when it starts
                    .data(Answer(Arc::new(Mutex::new(Some(answer)))))
                    .data(ctx)
                    .build();
                let gone = |_| Fail::retry("the task was dropped");
                hand_over.unbounded_send(task).map_err(|_| Fail::retry("the worker is gone"))?;
                answered.await.map_err(gone)?
            }
        };
        let runner = jobs.worker().threads(at_once).on_async(handler).runner()?;
        let next = |runner: kestrel_core::jobs::Runner| async move {
            let job = runner.next_async().await?;
            Some((job, runner))
        };
        let claimed = stream::unfold(runner, next).boxed();
        Ok(Kestrel { jobs: jobs.clone(), claimed, running: FuturesUnordered::new(), tasks })
    }

    /// Lets jobs end whose answer has come.
    fn poll_running(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(_)) = self.running.poll_next_unpin(cx) {}
    }
}

impl<J: Job> Backend for Kestrel<J> {
    type Task = Task<J>;
    type Error = JobError;

    fn poll_ready(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), JobError>> {
        self.poll_running(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Option<Result<Task<J>, JobError>>> {
        loop {
            self.poll_running(cx);
            if let Poll::Ready(task) = self.tasks.poll_next_unpin(cx) {
                return Poll::Ready(task.map(Ok));
            }
            match self.claimed.poll_next_unpin(cx) {
                Poll::Ready(Some(job)) => self.running.push(job.run().boxed()), // its first poll hands it over
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), JobError>> {
        self.poll_running(cx);
        // What was claimed and not begun goes back, uncounted.
        self.running.clear();
        Poll::Ready(Ok(()))
    }
}

impl<J: Job> BackendConfig for Kestrel<J> {
    type Args = J;
    type Id = JobId;
    type Kind = Ephemeral; // in apalis' words: encoding is not its business
    type Config = ();
    type Layer = AcknowledgeLayer<Tell>;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        AcknowledgeLayer::new(Tell)
    }
}

/// The way back to the job, on its task.
#[derive(Clone)]
struct Answer(Arc<Mutex<Option<oneshot::Sender<End>>>>);

/// Tells the job how its task ended.
#[derive(Clone)]
pub struct Tell;

impl<R> Acknowledge<R> for Tell {
    type Error = JobError;
    type Future = Ready<Result<(), JobError>>;

    fn ack(&mut self, ended: &Result<R, BoxDynError>, task: &ExecutionContext) -> Self::Future {
        let answer = task.data().get::<Answer>().and_then(|answer| answer.0.lock().ok()?.take());
        if let Some(answer) = answer {
            let _ = answer.send(end(ended.as_ref().err())); // the job was taken back: cancelled, or over its time
        }
        ready(Ok(()))
    }
}

fn end(error: Option<&BoxDynError>) -> End {
    let Some(error) = error else { return Ok(Done::Complete) };
    if error.is::<DeferredError>() {
        return Ok(Done::Snooze(Duration::ZERO));
    }
    Err(match error.downcast_ref::<RetryAfterError>() {
        Some(later) => Fail::retry_in(later, later.get_duration()),
        None if error.is::<AbortError>() => Fail::reject(error),
        None => Fail::retry(error),
    })
}

/// A push waits for the device as the queue's durability says: on an executor's thread choose [`kestrel_core::Durability`]
/// accordingly, or push from threads for that.
impl<J: Job> Sink<Task<J>> for Kestrel<J> {
    type Error = JobError;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, task: Task<J>) -> Result<(), JobError> {
        let mut how = Push::new();
        if let Some(seconds) = task.run_at() {
            how = how.when(When::At(UNIX_EPOCH + Duration::from_secs(seconds)));
        }
        if let Some(key) = task.idempotency_key() {
            how = how.key(key);
        }
        if let Some(most) = task.max_attempts() {
            how = how.max_attempts(u32::try_from(most).unwrap_or(u32::MAX));
        }
        if let Some(queue) = task.queue() {
            how = how.queue(queue.as_ref());
        }
        self.jobs.push_with(&task.args, &how).map(drop)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        Poll::Ready(Ok(()))
    }
}
