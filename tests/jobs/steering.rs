//! Cancel, promote, pause, lists, and numbers that a recount must find.

use std::collections::BTreeMap;

use kestrel_core::jobs::{
    Cancelled, Done, Event, Fail, Filter, JobError, JobId, JobState, Outcome, Priority, Push, QueueOrder, Status,
};

use crate::common::*;

job!(Task(u32) = "task", |o| o.max_attempts(2));

fn seen(w: &World) -> Vec<u32> {
    let log = Log::new();
    let noted = log.clone();
    w.run(move |_, job: Task| {
        noted.add(job.0);
        Ok(Done::Complete)
    });
    log.take()
}

#[test]
fn a_job_that_waits_is_cancelled_wherever_it_waits() {
    let w = world();
    let fresh = w.jobs.push(&Task(1)).unwrap().id;
    let high = w.jobs.push_with(&Task(2), &Push::new().priority(Priority::High)).unwrap().id;
    let delayed = w.jobs.push_with(&Task(3), &Push::after(HOUR)).unwrap().id;
    let retrying = w.jobs.push_with(&Task(4), &Push::new().queue("retries")).unwrap().id;
    let snoozed = w.jobs.push_with(&Task(5), &Push::new().queue("retries")).unwrap().id;
    let other = w.jobs.push(&Task(6)).unwrap().id;
    let runner = w
        .jobs
        .worker()
        .queues("retries")
        .on(|_, job: Task| if job.0 == 4 { Err(Fail::retry("no")) } else { Ok(Done::Snooze(SEC)) })
        .runner()
        .unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 2);
    let events = w.jobs.events();
    for id in [fresh, high, delayed, retrying, snoozed] {
        assert_eq!(w.jobs.cancel(id).unwrap(), Cancelled::Removed);
        assert_eq!(w.status(id), Status::Finished, "no record is kept");
        assert_eq!(w.jobs.cancel(id).unwrap(), Cancelled::TooLate);
    }
    let cancelled: Vec<_> = told(&events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Cancelled { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(cancelled, [fresh, high, delayed, retrying, snoozed]);
    assert_eq!((w.stats("default").cancelled, w.stats("retries").cancelled), (3, 2));
    for w in [w.killed(), w.reopened()] {
        w.pass(2 * HOUR);
        assert_eq!(seen(&w), [6]);
        assert_eq!(w.status(other), Status::Finished);
    }
}

#[test]
fn a_cancelled_job_in_the_midst_of_others_leaves_them_be() {
    let w = world();
    let ids: Vec<_> = (0..9).map(|n| w.jobs.push(&Task(n)).unwrap().id).collect();
    for n in [0, 3, 4, 8] {
        assert_eq!(w.jobs.cancel(ids[n]).unwrap(), Cancelled::Removed);
    }
    assert_eq!(w.stats("default").waiting, 5);
    assert_eq!(seen(&w.killed()), [1, 2, 5, 6, 7]);
    assert_eq!(seen(&w), [1, 2, 5, 6, 7]);
}

#[test]
fn a_job_that_runs_is_told() {
    let w = world();
    let log = Log::new();
    for (n, expected) in [(0, Outcome::Done(Vec::new())), (1, Outcome::Cancelled), (2, Outcome::Cancelled)] {
        let id = w.jobs.push(&Task(n)).unwrap().id;
        let seen = log.clone();
        let mut wait = std::pin::pin!(w.jobs.wait_async(id));
        assert_eq!(now_or_never(wait.as_mut()), None);
        let starts = w.run(move |ctx, job: Task| {
            assert!(!ctx.is_cancelled());
            assert_eq!(ctx.jobs().cancel(ctx.id()).unwrap(), Cancelled::Signalled);
            seen.add(ctx.is_cancelled());
            match job.0 {
                0 => Ok(Done::Complete),
                1 => Err(Fail::retry("stopped")),
                _ => panic!("stopped"),
            }
        });
        assert_eq!(starts, 1);
        assert_eq!(now_or_never(wait), Some(expected), "{n}");
        assert_eq!(w.status(id), Status::Finished);
        w.pass(HOUR);
        assert_eq!(w.run(ok::<Task>), 0, "it is not started again");
    }
    assert_eq!(log.take(), [true; 3]);
    assert_eq!((w.stats("default").cancelled, w.dead().len()), (2, 0));
}

#[test]
fn a_cancelled_job_that_is_handed_back_is_not_started_again() {
    let w = world();
    let id = w.jobs.push(&Task(1)).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Task>).runner().unwrap();
    let held = runner.try_next().unwrap().unwrap();
    assert_eq!(w.jobs.cancel(id).unwrap(), Cancelled::Signalled);
    drop(held);
    assert_eq!(w.jobs.wait(id, MS), Some(Outcome::Finished), "handed back, it is cancelled");
    assert_eq!(seen(&w), [0; 0]);
}

#[test]
fn what_has_ended_or_never_was_cannot_be_cancelled() {
    let w = world();
    let id = w.jobs.push(&Task(1)).unwrap().id;
    let dead = w.jobs.push(&Task(2)).unwrap().id;
    w.run(|_, job: Task| if job.0 == 1 { Ok(Done::Complete) } else { Err(Fail::reject("no")) });
    for id in [id, dead, renumbered(dead, |n| n + 5), "0badf00d-1".parse().unwrap()] {
        assert_eq!(w.jobs.cancel(id).unwrap(), Cancelled::TooLate);
        assert!(!w.jobs.promote(id).unwrap());
    }
    assert_eq!(w.dead().len(), 1);
}

#[test]
fn a_job_that_pauses_is_made_due() {
    let w = world();
    let delayed = w.jobs.push_with(&Task(1), &Push::after(HOUR)).unwrap().id;
    let at = w.jobs.push_with(&Task(2), &Push::at(w.now() + HOUR)).unwrap().id;
    let retrying = w.jobs.push(&Task(3)).unwrap().id;
    let snoozed = w.jobs.push(&Task(4)).unwrap().id;
    w.run(|_, job: Task| if job.0 == 3 { Err(Fail::retry_in("no", HOUR)) } else { Ok(Done::Snooze(HOUR)) });
    let waiting = w.jobs.push(&Task(5)).unwrap().id;
    assert!(!w.jobs.promote(waiting).unwrap(), "it waits for nothing but a worker");
    for id in [snoozed, delayed, retrying, at] {
        assert!(w.jobs.promote(id).unwrap());
    }
    assert_eq!(w.stats("default").delayed, 0);
    let w = w.killed();
    let log = Log::new();
    let noted = log.clone();
    w.run(move |ctx, job: Task| {
        noted.add((job.0, ctx.attempt()));
        Ok(Done::Complete)
    });
    let mut seen = log.take();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1), (2, 1), (3, 2), (4, 1), (5, 1)]);
}

#[test]
fn a_thread_that_sleeps_is_woken_by_a_promotion() {
    let w = real();
    let worker = w.jobs.worker().on(ok::<Task>).start().unwrap();
    let id = w.jobs.push_with(&Task(1), &Push::after(HOUR)).unwrap().id;
    assert!(worker.drain(LONG), "what is not due is nothing to wait for");
    assert!(w.jobs.promote(id).unwrap());
    assert!(w.jobs.wait(id, LONG).is_some());
    drop(worker);
}

#[test]
fn a_paused_queue_starts_nothing_until_it_is_resumed_also_after_a_restart() {
    let mut w = world();
    w.jobs.push(&Task(1)).unwrap();
    w.jobs.push_with(&Task(2), &Push::new().queue("other")).unwrap();
    w.jobs.push_with(&Task(3), &Push::after(SEC)).unwrap();
    assert!(!w.jobs.is_paused("default"));
    w.jobs.pause("default").unwrap();
    w.jobs.pause("default").unwrap();
    w.pass(SEC);
    assert_eq!(seen(&w), [2], "others go on");
    for round in 0..3 {
        assert!(w.jobs.is_paused("default") && !w.jobs.is_paused("other"));
        assert!(w.stats("default").paused && !w.stats("other").paused);
        let id = w.jobs.push(&Task(10 + round)).unwrap().id;
        assert_eq!(w.status(id), Status::Waiting, "pushes go on");
        assert_eq!(seen(&w), [0; 0]);
        w = match round {
            0 => w.reopened(),
            1 => w.killed(),
            _ => w,
        };
    }
    assert!(w.cut(kestrel_core::testing::Fate::None).jobs.is_paused("default"));
    w.jobs.resume("default").unwrap();
    assert!(!w.jobs.is_paused("default"));
    let w = w.reopened();
    assert!(!w.jobs.is_paused("default"));
    assert_eq!(seen(&w).len(), 5);
}

#[test]
fn a_pause_holds_for_jobs_that_run_no_longer_than_to_their_end() {
    let w = real();
    let (gate, door) = Gate::new();
    let worker = w
        .jobs
        .worker()
        .threads(1)
        .on(move |_, _: Task| -> Result<(), Fail> {
            gate.wait();
            Ok(())
        })
        .start()
        .unwrap();
    let running = w.jobs.push(&Task(1)).unwrap().id;
    until("it runs", || worker.busy() == 1);
    w.jobs.pause("default").unwrap();
    let waiting = w.jobs.push(&Task(2)).unwrap().id;
    door.open();
    assert!(w.jobs.wait(running, LONG).is_some());
    assert!(worker.drain(LONG), "what is paused is nothing to wait for");
    assert_eq!(w.jobs.status(waiting), Status::Waiting);
    w.jobs.resume("default").unwrap();
    assert!(w.jobs.wait(waiting, LONG).is_some(), "who sleeps is woken");
    drop(worker);
}

#[test]
fn a_pause_of_a_name_that_no_queue_can_have_is_refused() {
    let w = world();
    for name in ["", "a*", "a!b", "a,b", "a.dead", "a.done"] {
        assert!(matches!(w.jobs.pause(name), Err(JobError::QueueName { .. })), "{name}");
        assert!(matches!(w.jobs.resume(name), Err(JobError::QueueName { .. })), "{name}");
        assert!(!w.jobs.is_paused(name));
    }
}

#[test]
fn a_list_is_of_a_queue_a_state_a_kind_or_a_tag() {
    job!(Second(u32) = "second");
    let w = world();
    let mut ids = BTreeMap::new();
    let mut push = |name: &'static str, id: JobId| ids.insert(name, id);
    push("waiting", w.jobs.push_with(&Task(1), &Push::new().tag("t")).unwrap().id);
    push("delayed", w.jobs.push_with(&Task(2), &Push::after(HOUR).tag("t")).unwrap().id);
    push("high", w.jobs.push_with(&Task(3), &Push::new().priority(Priority::High)).unwrap().id);
    push("second", w.jobs.push_with(&Second(4), &Push::new().queue("b")).unwrap().id);
    push("running", w.jobs.push_with(&Task(5), &Push::new().queue("c")).unwrap().id);
    push("dead", w.jobs.push_with(&Task(6), &Push::new().queue("d")).unwrap().id);
    push("retrying", w.jobs.push_with(&Task(7), &Push::new().queue("e")).unwrap().id);
    let runner = w
        .jobs
        .worker()
        .queues(QueueOrder::strict(["d", "e"]))
        .on(|_, job: Task| -> Result<(), _> { Err(if job.0 == 6 { Fail::reject("no") } else { Fail::retry("again") }) })
        .runner()
        .unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 2);
    let held = w.jobs.worker().queues("c").on(ok::<Task>).runner().unwrap();
    let held = held.try_next().unwrap().unwrap();
    let names = |filter: Filter| -> Vec<&str> {
        let found = w.ids(&filter);
        let mut names: Vec<_> =
            found.iter().map(|id| *ids.iter().find(|(_, known)| *known == id).expect("one of them").0).collect();
        assert_eq!(found.len(), names.len());
        names.sort_unstable();
        names
    };
    assert_eq!(names(Filter::new()), ["dead", "delayed", "high", "retrying", "running", "second", "waiting"]);
    assert_eq!(names(Filter::all()), names(Filter::new()));
    assert_eq!(names(Filter::new().state(JobState::Waiting)), ["high", "second", "waiting"]);
    assert_eq!(names(Filter::new().state(JobState::Scheduled)), ["delayed"]);
    assert_eq!(names(Filter::new().state(JobState::Running)), ["running"]);
    assert_eq!(names(Filter::new().state(JobState::Retrying)), ["retrying"]);
    assert_eq!(names(Filter::new().state(JobState::Dead)), ["dead"]);
    assert_eq!(names(Filter::new().queue("default")), ["delayed", "high", "waiting"]);
    assert_eq!(names(Filter::new().kind("second")), ["second"]);
    assert_eq!(names(Filter::new().tag("t")), ["delayed", "waiting"]);
    assert_eq!(names(Filter::new().tag("t").state(JobState::Waiting)), ["waiting"]);
    assert_eq!(names(Filter::new().error_contains("again")), ["retrying"]);
    assert_eq!(names(Filter::new().ids([ids["high"], ids["second"]])), ["high", "second"]);
    assert_eq!(w.list(&Filter::all().limit(3)).len(), 3);
    assert_eq!(w.list(&Filter::all().limit(0)).len(), 0);
    assert_eq!(names(Filter::new().older_than(SEC)), [""; 0]);
    w.pass(2 * SEC);
    assert_eq!(names(Filter::new().older_than(SEC)).len(), 7);
    // Every line says what a look by id says.
    for info in w.list(&Filter::all()) {
        assert_eq!(w.info(info.id), info);
    }
    drop(held);
}

#[test]
fn a_list_goes_queue_by_queue_in_the_order_of_the_ids_and_the_dead_at_the_end() {
    let w = world();
    let mut expected = Vec::new();
    for queue in ["a", "b"] {
        let dead: Vec<_> = (0..3).map(|n| w.jobs.push_with(&Task(n), &Push::new().queue(queue)).unwrap().id).collect();
        let worker = w.jobs.worker().queues(queue).on(|_, _: Task| Err::<(), _>(Fail::reject("no")));
        assert_eq!(worker.runner().unwrap().run_until_empty().unwrap(), 3);
        let live: Vec<_> = (0..3).map(|n| w.jobs.push_with(&Task(n), &Push::new().queue(queue)).unwrap().id).collect();
        expected.extend(live);
        expected.extend(dead);
    }
    assert_eq!(w.ids(&Filter::all()), expected);
}

#[test]
fn gauges_are_what_a_recount_finds() {
    let w = world();
    for n in 0..40u32 {
        let mut how = Push::new().queue(["a", "b"][n as usize % 2]);
        if n % 5 == 0 {
            how = Push::after(HOUR).queue("a");
        }
        if n % 7 == 0 {
            how = how.priority(Priority::Low);
        }
        w.jobs.push_with(&Task(n), &how).unwrap();
    }
    let runner = w
        .jobs
        .worker()
        .threads(8)
        .on(|_, job: Task| -> Result<Done, Fail> {
            match job.0 % 6 {
                0 => Ok(Done::Complete),
                1 => Err(Fail::retry("no")),
                2 => Err(Fail::reject("no")),
                3 => Ok(Done::Snooze(SEC)),
                4 => Err(Fail::discard("no")),
                _ => Ok(Done::Output(vec![1])),
            }
        })
        .runner()
        .unwrap();
    let recount = |w: &World, running: usize| {
        let mut counts: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for info in w.list(&Filter::all()) {
            let pauses = info.due.is_some_and(|due| due > w.now());
            let gauge = match info.state {
                JobState::Waiting => "waiting",
                // One that is due may be started, whatever it is called.
                JobState::Scheduled | JobState::Retrying if !pauses => "waiting",
                JobState::Scheduled | JobState::Retrying => "delayed",
                JobState::Running => "running",
                JobState::Dead => "dead",
                other => panic!("{other:?}"),
            };
            *counts.entry((info.queue, gauge)).or_default() += 1;
        }
        let mut total_running = 0;
        for (queue, stats) in &w.jobs.stats().queues {
            for (gauge, value) in [
                ("waiting", stats.waiting),
                ("delayed", stats.delayed),
                ("running", stats.running),
                ("dead", stats.dead),
            ] {
                assert_eq!(value, counts.get(&(queue.clone(), gauge)).copied().unwrap_or(0), "{queue} {gauge}");
            }
            total_running += stats.running;
        }
        assert_eq!(total_running, running as u64);
    };
    recount(&w, 0);
    for _ in 0..15 {
        runner.try_next().unwrap().unwrap().run_blocking();
        recount(&w, 0);
    }
    let held: Vec<_> = std::iter::from_fn(|| runner.try_next().unwrap()).collect();
    assert_eq!((held.len(), runner.busy()), (8, 8));
    recount(&w, 8);
    let killed = w.killed();
    recount(&killed, 0);
    assert_eq!(killed.stats("a").crashed + killed.stats("b").crashed, 8);
    drop(held);
    recount(&w, 0);
    let returned = w.stats("a").returned + w.stats("b").returned;
    assert_eq!(returned, 8);
    while runner.run_until_empty().unwrap() > 0 {
        recount(&w, 0);
    }
    w.pass(2 * SEC);
    recount(&w, 0);
    let stats = ["a", "b"].map(|queue| w.stats(queue));
    let sum = |f: fn(&kestrel_core::jobs::JobQueueStats) -> u64| stats.iter().map(f).sum::<u64>();
    assert_eq!(sum(|s| s.pushed), 40);
    // Each start is one of these; whether one that was given up has failed too is left open.
    let rest = sum(|s| s.started) - sum(|s| s.done) - sum(|s| s.snoozed) - sum(|s| s.returned);
    assert_within(rest, sum(|s| s.failed), sum(|s| s.failed) + sum(|s| s.discarded));
    let w = w.reopened();
    recount(&w, 0);
}

#[test]
fn how_long_the_first_has_waited_is_told() {
    let w = world();
    assert_eq!(w.stats("default").oldest_waiting, std::time::Duration::ZERO);
    w.jobs.push(&Task(1)).unwrap();
    w.pass(90 * SEC);
    w.jobs.push(&Task(2)).unwrap();
    w.pass(10 * SEC);
    assert_within(w.stats("default").oldest_waiting, 99 * SEC, 101 * SEC);
    assert_eq!(w.run_some(1, ok::<Task>), 1);
    assert_within(w.stats("default").oldest_waiting, 9 * SEC, 11 * SEC);
    assert_eq!(w.run(ok::<Task>), 1);
    assert_eq!(w.stats("default").oldest_waiting, std::time::Duration::ZERO);
}

#[test]
fn workers_are_counted() {
    let w = world();
    assert_eq!(w.jobs.stats().workers, 0);
    let runner = w.jobs.worker().on(ok::<Task>).runner().unwrap();
    let other = w.jobs.worker().on(ok::<Task>).runner().unwrap();
    assert_eq!(w.jobs.stats().workers, 2);
    drop(runner);
    assert_eq!(w.jobs.stats().workers, 1);
    other.shutdown(SEC);
    assert_eq!(w.jobs.stats().workers, 0);
}
