//! Whose turn it is: order of pushes, priorities and their aging, orders of queues, limits and rates.

use std::time::Duration;

use kestrel_core::jobs::{Backoff, Ctx, Done, Fail, Priority, Push, QueueOrder, Runner, WorkerBuilder};

use crate::common::*;

job!(Named(String) = "named", |o| o.backoff(Backoff::Fixed(SEC)));

fn push(w: &World, queue: &str, names: &[&str]) {
    for name in names {
        w.jobs.push_with(&Named((*name).to_owned()), &Push::new().queue(queue)).unwrap();
    }
}

fn push_many(w: &World, queue: &str, count: usize) {
    (0..count).for_each(|_| push(w, queue, &[queue]));
}

/// Notes the jobs' names.
fn noting(builder: WorkerBuilder, log: &Log<String>) -> WorkerBuilder {
    let log = log.clone();
    builder.on(move |_: &Ctx, job: Named| -> Result<(), Fail> {
        log.add(job.0);
        Ok(())
    })
}

/// Starts so many jobs, and tells their names.
fn take(runner: &Runner, log: &Log<String>, count: usize) -> Vec<String> {
    for n in 0..count {
        runner.try_next().unwrap().unwrap_or_else(|| panic!("job {n} of {count} is missing")).run_blocking();
    }
    log.take()
}

fn all(w: &World, order: impl Into<QueueOrder>) -> Vec<String> {
    let log = Log::new();
    noting(w.jobs.worker().queues(order), &log).runner().unwrap().run_until_empty().unwrap();
    log.take()
}

#[test]
fn j02_jobs_of_one_lane_run_in_the_order_of_their_pushes() {
    let w = world();
    push(&w, "q", &["1", "2", "3"]);
    assert_eq!(all(&w, "q"), ["1", "2", "3"]);
    push(&w, "q", &["4", "5", "6"]);
    assert_eq!(all(&w.reopened(), "q"), ["4", "5", "6"]);
    // The same on a thread.
    let w = real();
    let (log, seen) = (Log::new(), Log::new());
    let noted = seen.clone();
    for n in 0..200 {
        w.jobs.push(&Named(n.to_string())).unwrap();
        log.add(n.to_string());
    }
    let worker = w
        .jobs
        .worker()
        .on(move |_, job: Named| -> Result<(), Fail> {
            noted.add(job.0);
            Ok(())
        })
        .start()
        .unwrap();
    assert!(worker.drain(LONG));
    assert_eq!(seen.take(), log.take());
}

fn push_priorities(w: &World, priorities: &[Priority]) {
    for priority in priorities {
        w.jobs.push_with(&Named(format!("{priority:?}")), &Push::new().priority(*priority)).unwrap();
    }
}

#[test]
fn j03_high_before_normal_before_low_before_idle() {
    use Priority::{High, Idle, Low, Normal};
    for reopened in [false, true] {
        let mut w = world();
        push_priorities(&w, &[Idle, Low, Normal, High, High, Idle, Normal, Low]);
        if reopened {
            w = w.reopened();
        }
        w.pass(1000 * HOUR);
        let log = Log::new();
        let starts = noting(w.jobs.worker().aging(Duration::ZERO), &log).runner().unwrap().run_until_empty().unwrap();
        assert_eq!(starts, 8);
        assert_eq!(log.take(), ["High", "High", "Normal", "Normal", "Low", "Low", "Idle", "Idle"]);
    }
}

#[test]
fn a_kind_has_a_priority_and_a_push_another() {
    job!(Slow(String) = "slow", |o| o.priority(Priority::Low));
    let w = world();
    let log = Log::new();
    for (name, how) in [("low", Push::new()), ("high", Push::new().priority(Priority::High)), ("low too", Push::new())]
    {
        w.jobs.push_with(&Slow(name.into()), &how).unwrap();
    }
    w.jobs.push_with(&Slow("normal".into()), &Push::new().priority(Priority::Normal)).unwrap();
    let seen = log.clone();
    w.run(move |_, job: Slow| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), ["high", "normal", "low", "low too"]);
}

#[test]
fn a_job_that_has_waited_long_overtakes_those_of_a_higher_priority() {
    use Priority::{High, Low, Normal};
    let w = world();
    let log = Log::new();
    let runner = noting(w.jobs.worker().aging(60 * SEC), &log).runner().unwrap();
    push_priorities(&w, &[Low, Low]);
    w.pass(59 * SEC);
    push_priorities(&w, &[Normal, High]);
    assert_eq!(take(&runner, &log, 2), ["High", "Normal"], "not yet");
    w.pass(2 * SEC);
    push_priorities(&w, &[Normal, High]);
    // A minute overtakes one step, not two.
    assert_eq!(take(&runner, &log, 2), ["High", "Low"]);
    assert_eq!(take(&runner, &log, 2), ["Low", "Normal"]);
    push_priorities(&w, &[Low]);
    w.pass(121 * SEC);
    push_priorities(&w, &[High, High]);
    assert_eq!(take(&runner, &log, 3), ["Low", "High", "High"]);
}

#[test]
fn aging_is_a_minute_a_step_by_default() {
    use Priority::{High, Low};
    let w = world();
    let log = Log::new();
    let runner = noting(w.jobs.worker(), &log).runner().unwrap();
    push_priorities(&w, &[Low]);
    w.pass(110 * SEC);
    push_priorities(&w, &[High]);
    assert_eq!(take(&runner, &log, 2), ["High", "Low"]);
    push_priorities(&w, &[Low]);
    w.pass(130 * SEC);
    push_priorities(&w, &[High]);
    assert_eq!(take(&runner, &log, 2), ["Low", "High"]);
}

#[test]
fn j04_of_a_strict_order_the_first_queue_is_emptied_first() {
    let w = world();
    push(&w, "b", &["b1", "b2", "b3"]);
    push(&w, "a", &["a1", "a2", "a3"]);
    let log = Log::new();
    let seen = log.clone();
    let runner = w
        .jobs
        .worker()
        .queues(QueueOrder::strict(["a", "b"]))
        .on(move |ctx, job: Named| -> Result<(), Fail> {
            // Jobs keep arriving in a while it is worked on.
            if let "a1" | "a2" | "b1" = job.0.as_str() {
                ctx.jobs().push_with(&Named(format!("a after {}", job.0)), &Push::new().queue("a"))?;
            }
            seen.add(job.0);
            Ok(())
        })
        .runner()
        .unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 9);
    assert_eq!(log.take(), ["a1", "a2", "a3", "a after a1", "a after a2", "b1", "a after b1", "b2", "b3"]);
    push(&w, "c", &["c1"]);
    assert_eq!(runner.run_until_empty().unwrap(), 0, "of no other queue");
}

#[test]
fn j05_of_a_weighted_order_each_queue_has_its_share() {
    let w = world();
    push_many(&w, "a", 400);
    push_many(&w, "b", 400);
    let log = Log::new();
    let runner = noting(w.jobs.worker().queues(QueueOrder::weighted([("a", 3), ("b", 1)])), &log).runner().unwrap();
    let names = take(&runner, &log, 400);
    let mut of_a = 0;
    for (n, name) in names.iter().enumerate() {
        of_a += usize::from(name == "a");
        // Not by chance: every beginning has its share, but for one turn of each queue.
        let (done, share) = (n + 1, of_a * 4);
        assert!(share.abs_diff(done * 3) <= 8, "{of_a} of the first {done} are from a");
    }
    assert_within(of_a, 299, 301);
    // All the rest is done, too.
    assert_eq!(runner.run_until_empty().unwrap(), 400);
}

#[test]
fn j05_a_queue_that_was_empty_gets_no_more_than_its_share_afterwards() {
    let w = world();
    push_many(&w, "b", 300);
    let log = Log::new();
    let runner = noting(w.jobs.worker().queues(QueueOrder::weighted([("a", 3), ("b", 1)])), &log).runner().unwrap();
    assert_eq!(take(&runner, &log, 100), vec!["b"; 100]);
    push_many(&w, "a", 100);
    let of_a = take(&runner, &log, 80).iter().filter(|name| *name == "a").count();
    assert_within(of_a, 58, 62);
    // And one that is empty for good leaves all to the others.
    let rest = take(&runner, &log, 220);
    assert_eq!(rest.iter().filter(|name| *name == "a").count(), 100 - of_a);
    assert!(runner.try_next().unwrap().is_none());
}

#[test]
fn j05_with_three_queues_and_any_weights() {
    let w = world();
    let weights = [("a", 7), ("b", 2), ("c", 1)];
    for (queue, _) in weights {
        push_many(&w, queue, 110);
    }
    let log = Log::new();
    let runner = noting(w.jobs.worker().queues(QueueOrder::weighted(weights)), &log).runner().unwrap();
    let names = take(&runner, &log, 100);
    for (queue, weight) in weights {
        let count = names.iter().filter(|name| *name == queue).count();
        assert!(count.abs_diff(weight as usize * 10) <= 1, "{queue}: {count}");
    }
}

#[test]
fn j06_patterns_take_queues_that_are_made_later_and_leave_what_is_excluded() {
    let w = world();
    push(&w, "mail", &["mail"]);
    push(&w, "mail.bulk", &["never"]);
    push(&w, "other", &["nor this"]);
    let log = Log::new();
    let runner = noting(w.jobs.worker().queues(QueueOrder::matching("mail*,!mail.bulk")), &log).runner().unwrap();
    assert_eq!((runner.run_until_empty().unwrap(), log.take()), (1, vec!["mail".to_owned()]));
    push(&w, "mail.new", &["new"]);
    push(&w, "mail.bulk", &["never"]);
    assert_eq!((runner.run_until_empty().unwrap(), log.take()), (1, vec!["new".to_owned()]));
    // In the order of the names, as Strict.
    push(&w, "mail.z", &["z1", "z2"]);
    push(&w, "mail.b", &["b1", "b2"]);
    push(&w, "mail", &["m"]);
    assert_eq!(runner.run_until_empty().unwrap(), 5);
    assert_eq!(log.take(), ["m", "b1", "b2", "z1", "z2"]);
    assert_eq!(w.jobs.queues(), ["mail", "mail.b", "mail.bulk", "mail.new", "mail.z", "other"]);
    assert_eq!(w.stats("mail.bulk").waiting, 2);
}

#[test]
fn j06_a_thread_that_waits_is_woken_by_a_queue_that_was_not_there() {
    let w = real();
    let log = Log::new();
    let worker = noting(w.jobs.worker().queues("mail*,!mail.bulk"), &log).start().unwrap();
    assert!(worker.drain(LONG));
    w.jobs.push_with(&Named("never".into()), &Push::new().queue("mail.bulk")).unwrap();
    let id = w.jobs.push_with(&Named("new".into()), &Push::new().queue("mail.new")).unwrap().id;
    assert!(w.jobs.wait(id, LONG).is_some());
    assert!(worker.drain(LONG), "what no worker takes is nothing to wait for");
    assert_eq!(log.take(), ["new"]);
}

#[test]
fn without_an_order_all_queues_are_worked_on_in_the_order_of_their_names() {
    let w = world();
    push(&w, "z", &["z"]);
    push(&w, "a", &["a"]);
    let log = Log::new();
    assert_eq!(noting(w.jobs.worker(), &log).runner().unwrap().run_until_empty().unwrap(), 2);
    assert_eq!(log.take(), ["a", "z"]);
}

#[test]
fn a_queue_of_the_set_that_is_no_job_queue_is_left_alone() {
    let w = world();
    let plain = w.set.queue("plain").unwrap();
    plain.put("not a job").unwrap();
    push(&w, "q", &["job"]);
    assert_eq!(all(&w, "*"), ["job"]);
    assert_eq!(w.jobs.queues(), ["q"]);
    assert_eq!(plain.get().unwrap().data(), b"not a job");
}

#[test]
fn no_more_jobs_of_a_queue_run_at_once_than_its_limit_says() {
    let w = world();
    push_many(&w, "a", 4);
    push_many(&w, "b", 4);
    let runner = w.jobs.worker().threads(5).limit("a", 2).on(ok::<Named>).runner().unwrap();
    let mut running: Vec<_> = std::iter::from_fn(|| runner.try_next().unwrap()).collect();
    let queues = |running: &[kestrel_core::jobs::RunningJob]| -> Vec<String> {
        running.iter().map(|job| job.ctx().queue().to_owned()).collect()
    };
    assert_eq!(queues(&running), ["a", "a", "b", "b", "b"]);
    assert_eq!(runner.busy(), 5);
    running.remove(2).run_blocking();
    running.push(runner.try_next().unwrap().unwrap());
    assert_eq!(queues(&running), ["a", "a", "b", "b", "b"], "a place that is free is not for a");
    running.remove(0).run_blocking();
    running.push(runner.try_next().unwrap().unwrap());
    assert_eq!(queues(&running), ["a", "b", "b", "b", "a"]);
    drop(running);
    assert_eq!(runner.run_until_empty().unwrap(), 6);
}

#[test]
fn no_more_jobs_of_a_queue_are_started_in_a_while_than_its_rate_says() {
    let w = world();
    push_many(&w, "slow", 20);
    push_many(&w, "fast", 3);
    let log = Log::new();
    let runner = noting(w.jobs.worker().rate("slow", 10 * SEC, 5), &log).runner().unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 8, "the bucket is full at the start");
    assert_eq!(log.take().iter().filter(|name| *name == "slow").count(), 5);
    w.pass(1999 * MS);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    w.pass(2 * MS);
    assert_eq!(runner.run_until_empty().unwrap(), 1, "it fills evenly");
    w.pass(4001 * MS);
    assert_eq!(runner.run_until_empty().unwrap(), 2);
    w.pass(1000 * SEC);
    assert_eq!(runner.run_until_empty().unwrap(), 5, "and holds no more than its size");
    assert_eq!(w.stats("slow").waiting, 7);
}

#[test]
fn threads_that_wait_for_a_rate_go_on_when_it_allows() {
    let w = real();
    for _ in 0..6 {
        w.jobs.push(&Named("x".into())).unwrap();
    }
    let log = Log::new();
    let worker = noting(w.jobs.worker().threads(2).rate("default", 100 * MS, 2), &log).start().unwrap();
    assert!(worker.drain(LONG), "jobs that wait for the rate are work that is left");
    assert_eq!(log.len(), 6);
}

#[test]
fn a_retry_is_served_before_younger_work() {
    let w = world();
    push(&w, "q", &["fails"]);
    assert_eq!(w.run(|_, _: Named| Err(Fail::retry("once"))), 1);
    push(&w, "q", &["young"]);
    w.pass(2 * SEC);
    assert_eq!(all(&w, "q"), ["fails", "young"]);
}

#[test]
fn a_job_handed_back_keeps_its_place() {
    let w = world();
    push(&w, "q", &["1", "2", "3"]);
    let runner = w.jobs.worker().threads(2).on(ok::<Named>).runner().unwrap();
    let held = (runner.try_next().unwrap().unwrap(), runner.try_next().unwrap().unwrap());
    drop(held.1);
    drop(held.0);
    drop(runner);
    assert_eq!(all(&w, "q"), ["1", "2", "3"]);
}
