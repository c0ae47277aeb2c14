//! The story of one start: the handler with its middleware around it, on a thread or as a future.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use crate::jobs::Jobs;
use crate::jobs::ending::{self, panic_text};
use crate::jobs::handler::{Ctx, Done, Fail, Next};
use crate::jobs::job::{Job, JobOptions};
use crate::jobs::run::{DROPPED, Run, TIMED_OUT, Told};
use crate::jobs::status::{Cause, Status};
use crate::jobs::team::{Answer, Around, Batch, BoxedFuture, Claimed, Handler, Team, Work, undecodable};
use crate::typed::Codec;

fn decode<J: Job>(bytes: &[u8]) -> Result<J, Fail> {
    J::Codec::default().decode(bytes).map_err(undecodable)
}

fn handler<J: Job>(
    prepare: impl Fn(&[u8]) -> Result<Work, Fail> + Send + Sync + 'static,
    batch: Option<Batch>,
) -> Handler {
    let JobOptions { timeout, backoff, .. } = J::options();
    Handler { codec: J::Codec::default().id(), timeout, backoff, prepare: Box::new(prepare), batch }
}

pub(crate) fn blocking<J, D, F>(f: impl Fn(&Ctx, J) -> Result<D, F> + Send + Sync + 'static) -> Handler
where
    J: Job,
    D: Into<Done>,
    F: Into<Fail>,
{
    let f = Arc::new(f);
    handler::<J>(
        move |bytes| {
            let (f, job) = (Arc::clone(&f), decode::<J>(bytes)?);
            Ok(Work::Sync(Box::new(move |ctx| f(ctx, job).map(Into::into).map_err(Into::into))))
        },
        None,
    )
}

pub(crate) fn asynchronous<J, D, F, Fut>(f: impl Fn(Ctx, J) -> Fut + Send + Sync + 'static) -> Handler
where
    J: Job,
    D: Into<Done>,
    F: Into<Fail>,
    Fut: Future<Output = Result<D, F>> + Send + 'static,
{
    let f = Arc::new(f);
    handler::<J>(
        move |bytes| {
            let (f, job) = (Arc::clone(&f), decode::<J>(bytes)?);
            Ok(Work::Async(Box::new(move |ctx| {
                Box::pin(async move { f(ctx, job).await.map(Into::into).map_err(Into::into) })
            })))
        },
        None,
    )
}

pub(crate) fn batched<J: Job>(
    max: usize,
    linger: Duration,
    f: impl Fn(&[Ctx], Vec<J>) -> Vec<Answer> + Send + Sync + 'static,
) -> Handler {
    let run = move |ctxs: &[Ctx], values: Vec<Box<dyn Any + Send>>| {
        let jobs: Vec<J> = values.into_iter().filter_map(|value| value.downcast().ok()).map(|value| *value).collect();
        f(ctxs, jobs)
    };
    let batch = Batch { max, linger, run: Box::new(run) };
    handler::<J>(|bytes| Ok(Work::Value(Box::new(decode::<J>(bytes)?))), Some(batch))
}

/// What a handler answers, or a failure in place of its panic.
fn guarded(f: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> Fail {
    let mut fail = Fail::retry(panic_text(panic));
    fail.cause = Cause::Panic;
    fail
}

fn within(around: &[Around], ctx: &Ctx, inner: &mut dyn FnMut() -> Answer) -> Answer {
    match around.split_first() {
        None => guarded(inner),
        Some((first, rest)) => {
            let mut next = || within(rest, ctx, inner);
            guarded(|| first(ctx, Next { run: &mut next }))
        }
    }
}

/// Runs a job on this thread, and ends it.
pub(crate) fn run_here(jobs: &Jobs, team: &Arc<Team>, claimed: Claimed) -> Status {
    let Claimed { run, work, handler } = claimed;
    let ctx = Ctx { run: Arc::clone(&run) };
    let answer = match work {
        Work::Value(value) => return run_batch(jobs, team, run, value, &handler),
        Work::Sync(f) => {
            let mut f = Some(f);
            within(&team.around, &ctx, &mut || match f.take() {
                Some(f) => f(&ctx),
                None => Err(Fail::retry("the handler was run already")),
            })
        }
        Work::Async(f) => {
            let mut f = Some(f);
            let mut was_dropped = false;
            let answer = within(&team.around, &ctx, &mut || match f.take() {
                Some(f) => match block_on(Driven::new(&run, f)) {
                    Some(answer) => answer,
                    None => {
                        was_dropped = true;
                        Err(Fail::retry("the worker shuts down"))
                    }
                },
                None => Err(Fail::retry("the handler was run already")),
            });
            if was_dropped {
                ending::take_back(&run);
                team.leave(&run);
                return Status::Waiting;
            }
            answer
        }
    };
    let status = ending::end(&run, &handler, answer);
    team.leave(&run);
    status
}

fn run_batch(
    jobs: &Jobs,
    team: &Arc<Team>,
    first: Arc<Run>,
    value: Box<dyn Any + Send>,
    handler: &Arc<Handler>,
) -> Status {
    let Some(batch) = &handler.batch else {
        // A value without a batch is never made.
        ending::take_back(&first);
        team.leave(&first);
        return Status::Waiting;
    };
    let mut ctxs = vec![Ctx { run: Arc::clone(&first) }];
    let mut values = vec![value];
    let hub = &jobs.hub;
    let end = hub.set.now() + batch.linger;
    while ctxs.len() < batch.max {
        let listener = team.bell.listen();
        let more = team.claim_more(jobs, &first, batch.max - ctxs.len());
        let is_empty = more.is_empty();
        for claimed in more {
            if let Work::Value(value) = claimed.work {
                ctxs.push(Ctx { run: claimed.run });
                values.push(value);
            }
        }
        let left = end.duration_since(hub.set.now()).unwrap_or_default();
        if is_empty && (left.is_zero() || first.is_told(u8::MAX) || listener_timed_out(listener, left)) {
            break;
        }
    }
    let mut answers = Vec::new();
    let around = within(&team.around, &ctxs[0], &mut || {
        answers = (batch.run)(&ctxs, std::mem::take(&mut values));
        Ok(Done::Complete)
    });
    let mut answers = answers.into_iter();
    let mut status = Status::Waiting;
    for (index, ctx) in ctxs.iter().enumerate() {
        let answer = match (&around, answers.next()) {
            (Ok(_), Some(answer)) => answer,
            (Ok(_), None) => Err(Fail::retry("the batch has not answered for this job")),
            (Err(fail), _) => Err(Fail { verdict: fail.verdict, cause: fail.cause, error: fail.error.clone() }),
        };
        let ended = ending::end(&ctx.run, handler, answer);
        team.leave(&ctx.run);
        if index == 0 {
            status = ended;
        }
    }
    status
}

fn listener_timed_out(listener: event_listener::EventListener, left: Duration) -> bool {
    use event_listener::Listener;
    listener.wait_timeout(left).is_none()
}

/// Runs a job as a task, and ends it.
pub(crate) async fn run_as_task(jobs: &Jobs, team: &Arc<Team>, claimed: Claimed) -> Status {
    let Claimed { run, work, handler } = claimed;
    let f = match work {
        Work::Async(f) => f,
        work => return run_here(jobs, team, Claimed { run, work, handler }),
    };
    let status = match Driven::new(&run, f).await {
        Some(answer) => ending::end(&run, &handler, answer),
        None => {
            ending::take_back(&run);
            Status::Waiting
        }
    };
    team.leave(&run);
    status
}

/// A handler's future, which is dropped when its time is over. `None`: its worker shuts down.
struct Driven {
    run: Arc<Run>,
    begin: Option<Box<dyn FnOnce(Ctx) -> BoxedFuture + Send>>,
    future: Option<BoxedFuture>,
    told: Told,
}

impl Driven {
    fn new(run: &Arc<Run>, begin: Box<dyn FnOnce(Ctx) -> BoxedFuture + Send>) -> Driven {
        Driven { run: Arc::clone(run), begin: Some(begin), future: None, told: run.told(TIMED_OUT | DROPPED) }
    }
}

impl Future for Driven {
    type Output = Option<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        if Pin::new(&mut self.told).poll(cx).is_ready() {
            self.future = None;
            if self.run.is_told(DROPPED) {
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(Err(Fail::retry("its time is over"))));
        }
        let ctx = Ctx { run: Arc::clone(&self.run) };
        let begin = self.begin.take();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if let Some(begin) = begin {
                self.future = Some(begin(ctx));
            }
            self.future.as_mut().map(|future| future.as_mut().poll(cx))
        }));
        match polled {
            Ok(Some(Poll::Pending)) => Poll::Pending,
            Ok(Some(Poll::Ready(answer))) => Poll::Ready(Some(answer)),
            Ok(None) => Poll::Ready(Some(Err(Fail::retry("the handler was run already")))),
            Err(panic) => {
                self.future = None;
                Poll::Ready(Some(Err(panicked(&*panic))))
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread.
fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match Pin::new(&mut future).poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
