//! Orderly ends: quiet, drain, shutdown and its report, handlers that never end, and what comes late.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kestrel_core::jobs::{Ctx, Fail, JobError, JobId, Outcome, Push, Shutdown, Status};

use crate::common::*;

job!(Long(u32) = "long");

/// A worker whose jobs above 0 wait at a gate, and those of 0 for a moment.
fn worker(w: &Real, threads: usize, gate: Gate, attempts: Log<(u32, u32)>) -> kestrel_core::jobs::Worker {
    w.jobs
        .worker()
        .threads(threads)
        .on(move |ctx: &Ctx, job: Long| -> Result<(), Fail> {
            attempts.add((job.0, ctx.attempt()));
            if job.0 == 0 {
                std::thread::sleep(100 * MS);
            } else {
                gate.wait();
            }
            Ok(())
        })
        .start()
        .unwrap()
}

/// Waits for the end; who asks after it is told less.
fn ended_well(w: &Real, id: JobId) -> bool {
    matches!(w.jobs.wait(id, LONG), Some(Outcome::Done(_) | Outcome::Finished))
}

#[test]
fn j20_a_shutdown_lets_finish_what_can_and_hands_back_the_rest() {
    let w = real();
    let (endless, short) = (w.jobs.push(&Long(1)).unwrap().id, w.jobs.push(&Long(0)).unwrap().id);
    let waiting = w.jobs.push(&Long(0)).unwrap().id;
    let (gate, door) = Gate::new();
    let log = Log::new();
    let running = worker(&w, 2, gate.clone(), log.clone());
    until("both run", || log.len() == 2);
    // The short one may end before the shutdown begins on a loaded machine, and another be started.
    w.jobs.pause("default").unwrap();
    let shutdown = running.shutdown(2 * SEC);
    assert_eq!((shutdown.returned, &shutdown.stuck[..]), (1, &[endless][..]));
    assert!(shutdown.finished <= 2, "{shutdown:?}");
    assert_eq!(w.jobs.status(short), Status::Finished);
    assert_eq!((w.jobs.status(endless), w.jobs.info(endless).unwrap().attempts), (Status::Waiting, 0));
    let w = w.reopened();
    w.jobs.resume("default").unwrap();
    let log = Log::new();
    // The old thread is at the gate still.
    let (open, _) = Gate::new();
    let running = worker(&w, 1, open, log.clone());
    assert!(w.jobs.wait(endless, LONG).is_some());
    assert!(running.drain(LONG));
    assert_eq!(log.take()[0], (1, 1), "with attempt 1");
    assert_eq!((w.jobs.status(waiting), w.jobs.status(endless)), (Status::Finished, Status::Finished));
    door.open();
}

#[test]
fn j20_the_short_job_is_counted_as_finished() {
    let w = real();
    let (endless, _short) = (w.jobs.push(&Long(1)).unwrap().id, w.jobs.push(&Long(0)).unwrap().id);
    let (gate, door) = Gate::new();
    let told = Arc::new(AtomicBool::new(false));
    let (seen, started) = (Arc::clone(&told), Log::new());
    let begun = started.clone();
    let running = w
        .jobs
        .worker()
        .threads(2)
        .on(move |ctx, job: Long| -> Result<(), Fail> {
            begun.add(job.0);
            if job.0 == 0 {
                // Ends when it is told to, within the grace.
                until("it is told", || ctx.is_cancelled());
                seen.store(true, Ordering::SeqCst);
            } else {
                gate.wait();
            }
            Ok(())
        })
        .start()
        .unwrap();
    until("both run", || started.len() == 2);
    let shutdown = running.shutdown(2 * SEC);
    assert_eq!((shutdown.finished, shutdown.returned, &shutdown.stuck[..]), (1, 1, &[endless][..]));
    assert!(told.load(Ordering::SeqCst));
    door.open();
}

#[test]
fn what_a_thread_returns_after_the_shutdown_counts_no_more() {
    let w = real();
    let id = w.jobs.push(&Long(1)).unwrap().id;
    let (gate, door) = Gate::new();
    let (returned, after) = mpsc::channel();
    let worker = w
        .jobs
        .worker()
        .on(move |ctx, _: Long| -> Result<(), Fail> {
            gate.wait();
            let refused = ctx.checkpoint(b"late").is_err();
            ctx.progress(9, 9);
            returned.send(refused).unwrap();
            Ok(())
        })
        .start()
        .unwrap();
    until("it runs", || worker.busy() == 1);
    assert_eq!(worker.shutdown(10 * MS).stuck, [id]);
    // Started again by the next worker, and then the old thread comes back.
    let (second_gate, second_door) = Gate::new();
    let next = w
        .jobs
        .worker()
        .on(move |ctx, _: Long| -> Result<(), Fail> {
            assert_eq!((ctx.attempt(), ctx.resume_from()), (1, None));
            second_gate.wait();
            Err(Fail::retry_in("the second start failed", HOUR))
        })
        .start()
        .unwrap();
    until("it runs again", || next.busy() == 1);
    door.open();
    assert!(after.recv_timeout(LONG).unwrap(), "a late checkpoint is refused");
    std::thread::sleep(50 * MS);
    let status = w.jobs.status(id);
    let Status::Running { attempt: 1, progress, .. } = &status else { panic!("{status:?}") };
    assert_eq!(progress.done, 0, "nor does it tell progress");
    second_door.open();
    until("it has failed", || matches!(w.jobs.status(id), Status::Retrying { attempt: 1, .. }));
    drop(next);
}

#[test]
fn a_shutdown_hands_back_a_job_that_fails_because_it_was_told() {
    let w = real();
    let id = w.jobs.push(&Long(1)).unwrap().id;
    let worker = w
        .jobs
        .worker()
        .on(|ctx, _: Long| -> Result<(), Fail> {
            ctx.checkpoint(b"half")?;
            until("it is told", || ctx.is_cancelled());
            Err(Fail::retry("interrupted"))
        })
        .start()
        .unwrap();
    until("it runs", || worker.busy() == 1);
    let shutdown = worker.shutdown(500 * MS);
    assert_eq!((shutdown.finished, shutdown.returned, shutdown.stuck.len()), (0, 1, 0));
    let info = w.jobs.info(id).unwrap();
    assert_eq!((w.jobs.status(id), info.attempts, info.failures.len()), (Status::Waiting, 0, 0));
    let w = w.reopened();
    let worker = w
        .jobs
        .worker()
        .on(|ctx, _: Long| -> Result<(), Fail> {
            assert_eq!((ctx.attempt(), ctx.resume_from()), (1, Some(&b"half"[..])), "its checkpoint is kept");
            Ok(())
        })
        .start()
        .unwrap();
    assert!(ended_well(&w, id));
    drop(worker);
}

#[test]
fn a_shutdown_with_nothing_to_do_is_at_once_and_empty() {
    let w = real();
    w.jobs.push_with(&Long(1), &Push::after(HOUR)).unwrap();
    let (gate, _door) = Gate::new();
    let start = Instant::now();
    assert_eq!(worker(&w, 4, gate, Log::new()).shutdown(Duration::MAX), Shutdown::default());
    assert!(start.elapsed() < LONG);
}

#[test]
fn futures_are_dropped_at_the_end_of_the_grace() {
    struct Dropped(mpsc::Sender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let w = real();
    let id = w.jobs.push(&Long(1)).unwrap().id;
    let (sender, dropped) = mpsc::channel();
    let worker = w
        .jobs
        .worker()
        .on_async(move |_, _: Long| {
            let dropped = Dropped(sender.clone());
            async move {
                let _dropped = dropped;
                std::future::pending::<()>().await;
                Ok::<_, Fail>(())
            }
        })
        .start()
        .unwrap();
    until("it runs", || worker.busy() == 1);
    let shutdown = worker.shutdown(100 * MS);
    assert_eq!((shutdown.finished, shutdown.returned, shutdown.stuck.len()), (0, 1, 0));
    dropped.recv_timeout(LONG).expect("dropped");
    assert_eq!((w.jobs.status(id), w.jobs.info(id).unwrap().attempts), (Status::Waiting, 0));
}

#[test]
fn quiet_takes_no_more_and_lets_finish() {
    let w = real();
    let running = w.jobs.push(&Long(1)).unwrap().id;
    let (gate, door) = Gate::new();
    let worker = worker(&w, 2, gate, Log::new());
    until("it runs", || worker.busy() == 1);
    worker.quiet();
    let waiting = w.jobs.push(&Long(2)).unwrap().id;
    door.open();
    assert!(ended_well(&w, running));
    until("it is idle", || worker.busy() == 0);
    std::thread::sleep(20 * MS);
    assert_eq!(w.jobs.status(waiting), Status::Waiting);
}

#[test]
fn a_worker_that_is_dropped_ends_its_jobs_and_leaves() {
    let w = real();
    let running = w.jobs.push(&Long(1)).unwrap().id;
    let (gate, door) = Gate::new();
    let worker = worker(&w, 1, gate, Log::new());
    until("it runs", || worker.busy() == 1);
    // Does not wait: nobody has opened the gate.
    drop(worker);
    let waiting = w.jobs.push(&Long(2)).unwrap().id;
    door.open();
    assert!(ended_well(&w, running));
    assert_eq!(w.jobs.status(waiting), Status::Waiting);
}

#[test]
fn a_drain_gives_up_when_its_time_is_over_and_a_handler_never_ends() {
    let w = real();
    w.jobs.push(&Long(1)).unwrap();
    let (gate, door) = Gate::new();
    let worker = worker(&w, 1, gate, Log::new());
    until("it runs", || worker.busy() == 1);
    assert!(!worker.drain(20 * MS));
    assert!(!worker.drain(Duration::ZERO));
    door.open();
    assert!(worker.drain(LONG));
    assert!(worker.drain(Duration::ZERO));
    assert!(worker.drain(Duration::MAX));
}

#[test]
fn a_set_closes_though_a_handler_never_ends_and_the_job_is_not_lost() {
    let w = real();
    let id = w.jobs.push(&Long(1)).unwrap().id;
    let (gate, door) = Gate::new();
    let running = worker(&w, 1, gate, Log::new());
    until("it runs", || running.busy() == 1);
    let w = w.reopened();
    assert_eq!((w.jobs.status(id), w.jobs.info(id).unwrap().attempts), (Status::Waiting, 0));
    // What comes late reaches a set that is closed, and changes nothing in the new one.
    door.open();
    until("it is idle", || running.busy() == 0);
    assert_eq!(w.jobs.status(id), Status::Waiting);
    drop(running);
    let (open, _) = Gate::new();
    let log = Log::new();
    let next = worker(&w, 1, open, log.clone());
    assert!(w.jobs.wait(id, LONG).is_some());
    assert_eq!(log.take(), [(1, 1)]);
    drop(next);
}

#[test]
fn a_closed_set_takes_no_jobs_and_its_workers_leave() {
    let w = real();
    let (gate, _door) = Gate::new();
    let running = worker(&w, 2, gate, Log::new());
    let Real { set, jobs, .. } = w;
    let id = jobs.push_with(&Long(1), &Push::after(HOUR)).unwrap().id;
    let before = jobs.events();
    let waiter = std::thread::spawn(move || before.count());
    set.close().unwrap();
    assert!(waiter.join().is_ok(), "who listens is told of the end");
    let late = jobs.events();
    let (sender, told) = mpsc::channel();
    std::thread::spawn(move || sender.send(late.count()));
    assert_eq!(told.recv_timeout(LONG), Ok(0), "who asks after the end is told, too");
    assert!(matches!(jobs.push(&Long(2)), Err(JobError::Closed)));
    assert!(matches!(jobs.push_with(&Long(2), &Push::after(HOUR)), Err(JobError::Closed)));
    assert!(matches!(
        jobs.commit({
            let mut tx = kestrel_core::jobs::Transaction::new();
            let _ = jobs.stage(&mut tx, &Long(3), &Push::new());
            tx
        }),
        Err(JobError::Closed) | Ok(_)
    ));
    assert!(jobs.cancel(id).is_err() || jobs.status(id) == Status::Unknown);
    assert!(jobs.pause("default").is_err());
    assert!(jobs.worker().on(ok::<Long>).start().is_err() || running.busy() == 0);
    jobs.wait(id, MS);
    assert_eq!(running.shutdown(SEC), Shutdown::default());
}

#[test]
fn many_workers_share_the_queues_and_each_job_is_done_once() {
    let w = real();
    let log = Log::new();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let log = log.clone();
            w.jobs
                .worker()
                .threads(2)
                .on(move |_, job: Long| -> Result<(), Fail> {
                    log.add(job.0);
                    Ok(())
                })
                .start()
                .unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let jobs = &w.jobs;
            scope.spawn(move || {
                for n in 0..250 {
                    jobs.push(&Long(thread * 250 + n)).unwrap();
                }
            });
        }
    });
    for worker in &workers {
        assert!(worker.drain(LONG));
    }
    let mut done = log.take();
    done.sort_unstable();
    assert!(done.into_iter().eq(0..1000));
    for worker in workers {
        assert_eq!(worker.shutdown(SEC).stuck, []);
    }
}
