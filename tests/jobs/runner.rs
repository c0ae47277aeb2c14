//! Jobs on an executor of one's own: permits, hand-backs, wake-ups, the end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use kestrel_core::jobs::{Ctx, Done, Fail, Push, Runner, Status};

use crate::common::*;

job!(Step(u32) = "step");

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn count() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

fn runner(w: &World, threads: usize) -> Runner {
    w.jobs.worker().threads(threads).on(ok::<Step>).runner().unwrap()
}

#[test]
fn a_job_holds_a_permit_until_it_has_ended() {
    let w = world();
    let ids: Vec<_> = (0..4).map(|n| w.jobs.push(&Step(n)).unwrap().id).collect();
    let runner = runner(&w, 2);
    let one = runner.try_next().unwrap().unwrap();
    let two = runner.try_next().unwrap().unwrap();
    assert_eq!(runner.busy(), 2);
    assert!(runner.try_next().unwrap().is_none(), "no permit is left");
    assert_eq!(now_or_never(runner.next_async()).map(|job| job.is_some()), None);
    assert_eq!(one.run_blocking(), Status::Finished);
    assert_eq!(runner.busy(), 1);
    let three = runner.try_next().unwrap().unwrap();
    drop(two);
    assert_eq!((runner.busy(), w.status(ids[1])), (1, Status::Waiting));
    drop(three);
    assert_eq!(runner.run_until_empty().unwrap(), 3);
}

#[test]
fn a_job_that_is_dropped_is_handed_back_and_its_start_does_not_count() {
    let w = world();
    let id = w.jobs.push(&Step(1)).unwrap().id;
    let runner = runner(&w, 1);
    for _ in 0..50 {
        let job = runner.try_next().unwrap().unwrap();
        assert_eq!((job.ctx().id(), job.ctx().attempt()), (id, 1));
        assert!(matches!(w.status(id), Status::Running { attempt: 1, .. }));
        drop(job);
        assert_eq!(w.status(id), Status::Waiting);
    }
    assert_eq!(w.info(id).attempts, 0);
    assert_eq!(w.stats("default").returned, 50);
    let w = w.killed();
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (0, 0));
}

#[test]
fn a_run_that_is_dropped_in_the_middle_hands_the_job_back() {
    let w = world();
    let id = w.jobs.push(&Step(1)).unwrap().id;
    let runner = w
        .jobs
        .worker()
        .on_async(|_, _: Step| async {
            std::future::pending::<()>().await;
            Ok::<_, Fail>(())
        })
        .runner()
        .unwrap();
    let job = runner.try_next().unwrap().unwrap();
    assert_eq!(now_or_never(job.run()), None);
    assert_eq!((w.status(id), w.info(id).attempts, runner.busy()), (Status::Waiting, 0, 0));
    // Never polled, the same.
    drop(runner.try_next().unwrap().unwrap().run());
    assert_eq!((w.status(id), runner.busy()), (Status::Waiting, 0));
}

#[test]
fn a_future_is_run_where_it_is_polled() {
    let w = world();
    let id = w.jobs.push(&Step(1)).unwrap().id;
    let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
    let polls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&polls);
    let runner = w
        .jobs
        .worker()
        .on_async(move |ctx: Ctx, _: Step| {
            let (sender, polls) = (sender.clone(), Arc::clone(&seen));
            async move {
                std::future::poll_fn(|cx| {
                    sender.send(cx.waker().clone()).unwrap();
                    if polls.fetch_add(1, Ordering::SeqCst) == 0 { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                ctx.progress(1, 1);
                Ok::<_, Fail>(Done::Output(vec![1]))
            }
        })
        .runner()
        .unwrap();
    let (count, waker) = count();
    let mut cx = Context::from_waker(&waker);
    let mut run = pin!(runner.try_next().unwrap().unwrap().run());
    assert!(run.as_mut().poll(&mut cx).is_pending());
    assert!(matches!(w.status(id), Status::Running { .. }));
    receiver.recv().unwrap().wake();
    assert!(count.0.load(Ordering::SeqCst) >= 1);
    assert_eq!(run.as_mut().poll(&mut cx), Poll::Ready(Status::Finished));
}

#[test]
fn who_waits_for_a_job_is_woken_by_a_push_a_due_time_a_permit_and_the_end() {
    let w = world();
    let runner = runner(&w, 1);
    let (count, waker) = count();
    let mut cx = Context::from_waker(&waker);
    {
        let mut next = pin!(runner.next_async());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        w.jobs.push(&Step(1)).unwrap();
        assert!(count.0.load(Ordering::SeqCst) >= 1, "a push");
        let Poll::Ready(Some(job)) = next.as_mut().poll(&mut cx) else { panic!("it is there") };
        let mut second = pin!(runner.next_async());
        w.jobs.push(&Step(2)).unwrap();
        assert!(second.as_mut().poll(&mut cx).is_pending(), "no permit");
        let before = count.0.load(Ordering::SeqCst);
        job.run_blocking();
        assert!(count.0.load(Ordering::SeqCst) > before, "a permit");
        let Poll::Ready(Some(job)) = second.as_mut().poll(&mut cx) else { panic!("it is there") };
        job.run_blocking();
    }
    w.jobs.push_with(&Step(3), &Push::after(10 * SEC)).unwrap();
    {
        let mut next = pin!(runner.next_async());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        w.pass(9 * SEC);
        assert!(next.as_mut().poll(&mut cx).is_pending());
        let before = count.0.load(Ordering::SeqCst);
        w.pass(SEC);
        assert!(count.0.load(Ordering::SeqCst) > before, "a due time");
        let Poll::Ready(Some(job)) = next.as_mut().poll(&mut cx) else { panic!("it is due") };
        job.run_blocking();
    }
    let mut next = pin!(runner.next_async());
    assert!(next.as_mut().poll(&mut cx).is_pending());
    let before = count.0.load(Ordering::SeqCst);
    runner.quiet();
    assert!(count.0.load(Ordering::SeqCst) > before, "the end");
    assert!(matches!(next.as_mut().poll(&mut cx), Poll::Ready(None)));
    assert!(runner.try_next().unwrap().is_none());
    w.jobs.push(&Step(4)).unwrap();
    assert!(runner.try_next().unwrap().is_none());
}

#[test]
fn a_wake_up_that_is_dropped_is_passed_on() {
    let w = world();
    let (one, two) = (runner(&w, 1), runner(&w, 1));
    let ((first, first_waker), (second, second_waker)) = (count(), count());
    for n in 0..50 {
        let before = (first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst));
        let mut a = Box::pin(one.next_async());
        let mut b = Box::pin(two.next_async());
        assert!(a.as_mut().poll(&mut Context::from_waker(&first_waker)).is_pending());
        assert!(b.as_mut().poll(&mut Context::from_waker(&second_waker)).is_pending());
        w.jobs.push(&Step(n)).unwrap();
        drop(a);
        let woken = (first.0.load(Ordering::SeqCst) - before.0, second.0.load(Ordering::SeqCst) - before.1);
        assert!(woken.1 >= 1, "round {n}: {woken:?}");
        let Poll::Ready(Some(job)) = b.as_mut().poll(&mut Context::from_waker(&second_waker)) else {
            panic!("the job is there")
        };
        job.run_blocking();
    }
}

#[test]
fn a_set_that_is_closed_ends_the_wait() {
    let w = world();
    let runner = runner(&w, 1);
    let (count, waker) = count();
    let mut cx = Context::from_waker(&waker);
    let mut next = pin!(runner.next_async());
    assert!(next.as_mut().poll(&mut cx).is_pending());
    w.set.close().unwrap();
    assert!(count.0.load(Ordering::SeqCst) >= 1);
    assert!(matches!(next.as_mut().poll(&mut cx), Poll::Ready(None)));
}

#[test]
fn a_runners_shutdown_hands_back_what_was_handed_out() {
    let w = world();
    for n in 0..3 {
        w.jobs.push(&Step(n)).unwrap();
    }
    let runner = runner(&w, 2);
    let held = runner.try_next().unwrap().unwrap();
    let id = held.ctx().id();
    let shutdown = runner.shutdown(10 * MS);
    assert_eq!((shutdown.finished, shutdown.returned), (0, 1));
    assert!(held.ctx().is_cancelled());
    // It waits already; what is still held of it changes nothing.
    assert_eq!((w.status(id), w.info(id).attempts), (Status::Waiting, 0));
    let next = self::runner(&w, 1);
    let again = next.try_next().unwrap().unwrap();
    assert_eq!(again.ctx().id(), id);
    drop(held);
    assert!(matches!(w.status(id), Status::Running { attempt: 1, .. }), "a late hand-back is fenced");
    assert_eq!(again.run_blocking(), Status::Finished);
    assert_eq!(next.run_until_empty().unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_run_as_tasks_of_an_executor() {
    let w = real();
    let done = Arc::new(AtomicUsize::new(0));
    let at_once = Arc::new(AtomicUsize::new(0));
    let (counted, running) = (Arc::clone(&done), Arc::clone(&at_once));
    let runner = Arc::new(
        w.jobs
            .worker()
            .threads(3)
            .on_async(move |ctx, job: Step| {
                let (done, running) = (Arc::clone(&counted), Arc::clone(&running));
                async move {
                    assert!(running.fetch_add(1, Ordering::SeqCst) < 3);
                    tokio::time::sleep(MS).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    if job.0.is_multiple_of(10) && ctx.attempt() == 1 {
                        return Err(Fail::retry_in("once", MS));
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            })
            .runner()
            .unwrap(),
    );
    let taker = {
        let runner = Arc::clone(&runner);
        tokio::spawn(async move {
            while let Some(job) = runner.next_async().await {
                tokio::spawn(job.run());
            }
        })
    };
    let ids: Vec<_> = (0..100).map(|n| w.jobs.push(&Step(n)).unwrap().id).collect();
    for id in ids {
        let end = tokio::time::timeout(LONG, w.jobs.wait_async(id)).await.expect("no hang");
        assert!(!matches!(end, kestrel_core::jobs::Outcome::Dead { .. }), "{end:?}");
    }
    assert_eq!(done.load(Ordering::SeqCst), 100);
    runner.quiet();
    tokio::time::timeout(LONG, taker).await.expect("no hang").unwrap();
}
