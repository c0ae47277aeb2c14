//! Failures: the verdicts of handlers, panics, pauses, limits of attempts, what is remembered of them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::jobs::{
    Backoff, Cause, Ctx, DeadReason, Done, Event, Fail, Filter, JobId, JobOptions, JobState, Outcome, Push, Status,
};

use crate::common::*;

job!(Plain(u32) = "plain");
job!(Three(u32) = "three", |o| o.max_attempts(3));
job!(Other(u32) = "other");

#[derive(Debug)]
struct Nested(&'static str, Option<Box<Nested>>);

impl fmt::Display for Nested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Nested {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|below| below as _)
    }
}

fn fails(_: &Ctx, _: Three) -> Result<Done, Fail> {
    Err(Nested("could not send", None))?
}

/// How long a retrying job pauses from now.
fn pause(w: &World, id: JobId) -> Duration {
    match w.status(id) {
        Status::Retrying { due, .. } => w.ahead(due),
        other => panic!("{other:?}"),
    }
}

#[test]
fn j11_a_job_that_fails_pauses_longer_and_longer_and_is_dead_after_its_last_attempt() {
    let w = world();
    let id = w.jobs.push(&Three(1)).unwrap().id;
    for (attempt, least, most) in [(1, 500 * MS, SEC), (2, SEC, 2 * SEC)] {
        assert_eq!(w.run(fails), 1);
        let status = w.status(id);
        let Status::Retrying { attempt: failed, due, error } = &status else { panic!("{status:?}") };
        assert_eq!((*failed, error.as_str(), status.code()), (attempt, "could not send", Some(1)));
        let pause = w.ahead(*due);
        assert_within(pause, least, most);
        let runner = w.jobs.worker().on(fails).runner().unwrap();
        assert_eq!(runner.next_due(), Some(*due));
        w.pass(pause - MS);
        assert_eq!(runner.run_until_empty().unwrap(), 0, "not yet");
        w.pass(MS);
    }
    assert_eq!(w.run(fails), 1);
    let judge = |w: &World| {
        assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
        let info = w.info(id);
        assert_eq!(
            (info.state, info.dead, info.attempts, info.crashes),
            (JobState::Dead, Some(DeadReason::Attempts), 3, 0)
        );
        let failures: Vec<_> = info.failures.iter().map(|f| (f.attempt, f.cause, f.error.as_str())).collect();
        assert_eq!(failures, [1, 2, 3].map(|attempt| (attempt, Cause::Error, "could not send")));
        assert_eq!(info.first_failure, Some(info.failures[0].at));
        assert_eq!(info.ended, Some(info.failures[2].at));
        assert_eq!(w.dead(), [info]);
    };
    judge(&w);
    let w = w.reopened();
    judge(&w);
    w.pass(24 * HOUR);
    assert_eq!(w.run(fails), 0, "it is not tried again");
    judge(&w);
}

#[test]
fn j11_twenty_starts_spread_over_the_default_pauses() {
    let w = world();
    let ids: Vec<_> = (0..30).map(|n| w.jobs.push(&Plain(n)).unwrap().id).collect();
    let fail = |_: &Ctx, _: Plain| -> Result<Done, Fail> { Err(Fail::retry("no")) };
    for attempt in 1..20u32 {
        assert_eq!(w.run(fail), 30, "start {attempt}");
        let full = Duration::from_secs((1u64 << (attempt - 1)).min(3600));
        let pauses: BTreeSet<_> = ids.iter().map(|id| pause(&w, *id)).collect();
        for pause in &pauses {
            assert_within(*pause, full / 2, full);
        }
        // By chance, so that what failed together does not come again together.
        assert!(pauses.len() > 5, "{pauses:?}");
        w.pass(full);
    }
    assert_eq!(w.run(fail), 30);
    assert!(ids.iter().all(|id| w.status(*id) == Status::Dead { reason: DeadReason::Attempts }));
}

#[test]
fn the_pauses_of_each_backoff() {
    type Range = fn(u32) -> (Duration, Duration);
    job!(None_(u32) = "none", |o| o.max_attempts(5).backoff(Backoff::None));
    job!(Fixed(u32) = "fixed", |o| o.backoff(Backoff::Fixed(90 * SEC)));
    job!(Doubling(u32) = "doubling", |o| o.backoff(Backoff::Exponential { first: 100 * MS, max: SEC }));
    job!(Poly(u32) = "polynomial", |o| o.backoff(Backoff::Polynomial));
    fn check<J: kestrel_core::jobs::Job>(job: &J, range: Range) {
        let w = world();
        let id = w.jobs.push(job).unwrap().id;
        for failures in 1..20 {
            assert_eq!(w.run(|_, _: J| Err(Fail::retry("no"))), 1);
            let pause = pause(&w, id);
            let (least, most) = range(failures);
            assert_within(pause, least, most);
            // They survive a restart.
            w.pass(pause - MS);
            assert_eq!(w.run(ok::<J>), 0);
            w.pass(MS);
        }
    }
    let w = world();
    let id = w.jobs.push(&None_(1)).unwrap().id;
    assert_eq!(w.run(|_, _: None_| Err(Fail::retry("no"))), 5, "without a pause it is due at once");
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
    check(&Fixed(1), |_| (90 * SEC, 90 * SEC));
    check(&Doubling(1), |n| {
        let full = (100 * MS * (1 << (n - 1).min(10))).min(SEC);
        (full / 2, full)
    });
    check(&Poly(1), |n| {
        let least = Duration::from_secs(u64::from(n - 1).pow(4) + 15);
        (least, least + 10 * n * SEC)
    });
}

#[test]
fn a_backoff_of_ones_own_is_asked_with_the_count_and_the_failure() {
    fn own() -> JobOptions {
        JobOptions::default().backoff(Backoff::Custom(Arc::new(|n, failure| {
            assert_eq!((failure.attempt, failure.cause), (n, Cause::Error));
            assert_eq!(failure.error, format!("failure {n}"));
            match n {
                1..=3 => n * 100 * SEC,
                4 => Duration::MAX,
                _ => panic!("no idea"),
            }
        })))
    }
    job!(Custom(u32) = "custom", |_| own());
    let w = world();
    let id = w.jobs.push(&Custom(1)).unwrap().id;
    let fail = |ctx: &Ctx, _: Custom| -> Result<Done, Fail> { Err(Fail::retry(format!("failure {}", ctx.attempt()))) };
    for n in 1..=3 {
        assert_eq!(w.run(fail), 1);
        assert_eq!(pause(&w, id), n * 100 * SEC);
        w.pass(n * 100 * SEC);
    }
    // A pause without end is a pause all the same, and can be ended.
    assert_eq!(w.run(fail), 1);
    assert!(pause(&w, id) > 1000 * HOUR);
    assert!(w.jobs.promote(id).unwrap());
    // One that panics is the default.
    assert_eq!(w.run(fail), 1);
    assert_within(pause(&w, id), 8 * SEC, 16 * SEC);
}

#[test]
fn j12_a_rejected_job_is_dead_at_once() {
    let w = world();
    let id = w.jobs.push(&Plain(1)).unwrap().id;
    let events = w.jobs.events();
    assert_eq!(w.run(|_, _: Plain| Err(Fail::reject("nothing in it"))), 1);
    assert_eq!((w.status(id), w.status(id).code()), (Status::Dead { reason: DeadReason::Rejected }, Some(3)));
    let info = w.info(id);
    assert_eq!((info.attempts, info.failures.len(), info.failures[0].error.as_str()), (1, 1, "nothing in it"));
    let dead = Outcome::Dead { reason: DeadReason::Rejected, error: "nothing in it".into() };
    assert_eq!(w.jobs.wait(id, MS), Some(dead));
    let died: Vec<_> = told(&events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Dead { id, reason, error, queue } => Some((id, reason, error, queue)),
            _ => None,
        })
        .collect();
    assert_eq!(died, [(id, DeadReason::Rejected, "nothing in it".into(), "default".into())]);
    assert_eq!((w.stats("default").died, w.stats("default").dead, w.stats("default").failed), (1, 1, 1));
}

#[test]
fn j13_retry_in_pauses_as_it_says_whatever_the_policy_says() {
    let w = world();
    let id = w.jobs.push(&Plain(1)).unwrap().id;
    assert_eq!(w.run(|_, _: Plain| Err(Fail::retry_in("busy", 7 * SEC))), 1);
    assert_eq!(pause(&w, id), 7 * SEC);
    w.pass(6999 * MS);
    assert_eq!(w.run(ok::<Plain>), 0);
    w.pass(MS);
    assert_eq!(w.run(|_, _: Plain| Err(Fail::retry_in("busy", Duration::ZERO))), 19, "at once, up to the last attempt");
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
}

#[test]
fn j13_a_pause_without_end_is_taken_as_one() {
    let w = world();
    let id = w.jobs.push(&Plain(1)).unwrap().id;
    assert_eq!(w.run(|_, _: Plain| Err(Fail::retry_in("busy", Duration::MAX))), 1);
    assert!(matches!(w.status(id), Status::Retrying { .. }));
    let w = w.reopened();
    w.pass(1000 * HOUR);
    assert_eq!(w.run(ok::<Plain>), 0);
    assert!(w.jobs.promote(id).unwrap());
    assert_eq!(w.run(ok::<Plain>), 1);
}

#[test]
fn j14_a_snooze_counts_no_attempt() {
    let mut w = world();
    let id = w.jobs.push(&Three(1)).unwrap().id;
    let attempts = Log::new();
    for n in 1..=50 {
        let seen = attempts.clone();
        assert_eq!(
            w.run(move |ctx, _: Three| {
                seen.add(ctx.attempt());
                Ok(Done::Snooze(5 * SEC))
            }),
            1
        );
        assert_eq!(w.status(id), Status::Scheduled { due: w.now() + 5 * SEC });
        if n % 20 == 0 {
            w = w.reopened();
        }
        let info = w.info(id);
        assert_eq!((info.snoozes, info.attempts, info.failures.len(), info.state), (n, 0, 0, JobState::Scheduled));
        w.pass(4999 * MS);
        assert_eq!(w.run(ok::<Three>), 0);
        w.pass(MS);
    }
    assert_eq!(attempts.take(), [1; 50]);
    // Between failures neither: two more fail, the third is the last.
    for n in 1..=3 {
        assert_eq!(w.run(fails), 1);
        w.pass(10 * SEC);
        if n < 3 {
            assert_eq!(w.run(|_, _: Three| Ok(Done::Snooze(SEC))), 1);
            assert_eq!(w.info(id).attempts, n);
            w.pass(SEC);
        }
    }
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
    assert_eq!(w.info(id).snoozes, 52);
}

#[test]
fn j15_a_panic_is_a_failure_and_the_thread_lives() {
    let w = real();
    let bad = w.jobs.push(&Three(1)).unwrap().id;
    let worse = w.jobs.push(&Three(2)).unwrap().id;
    let worst = w.jobs.push(&Three(3)).unwrap().id;
    let good = w.jobs.push(&Plain(1)).unwrap().id;
    let worker = w
        .jobs
        .worker()
        .threads(1)
        .on(|_, job: Three| -> Result<(), Fail> {
            match job.0 {
                1 => panic!("{} is not a number", "x"),
                2 => panic!("plain text"),
                _ => std::panic::panic_any(17u8),
            }
        })
        .on(|_, _: Plain| Ok::<_, Fail>(()))
        .start()
        .unwrap();
    assert!(w.jobs.wait(good, LONG).is_some(), "the only thread lives on");
    for (id, text) in [(bad, "x is not a number"), (worse, "plain text")] {
        let status = w.jobs.status(id);
        let Status::Retrying { attempt: 1.., error, .. } = &status else { panic!("{status:?}") };
        assert_eq!(error, text);
        let info = w.jobs.info(id).unwrap();
        assert_eq!((info.failures[0].cause, info.failures[0].error.as_str()), (Cause::Panic, text));
    }
    assert_eq!(w.jobs.info(worst).unwrap().failures[0].cause, Cause::Panic);
    drop(worker);
}

#[test]
fn a_discarded_job_is_gone_without_a_trace() {
    let w = world();
    let id = w.jobs.push(&Three(1)).unwrap().id;
    assert_eq!(w.run(|_, _: Three| Err(Fail::discard("pointless"))), 1);
    assert_eq!((w.status(id), w.jobs.info(id), w.dead().len()), (Status::Finished, None, 0));
    let stats = w.stats("default");
    assert_eq!((stats.discarded, stats.died, stats.done, stats.waiting), (1, 0, 0, 0));
    assert_eq!(w.reopened().status(id), Status::Finished);
}

#[test]
fn the_last_three_failures_are_kept_with_a_bounded_text() {
    job!(Five(u32) = "five", |o| o.max_attempts(5).backoff(Backoff::Fixed(10 * SEC)));
    let w = world();
    let id = w.jobs.push(&Five(1)).unwrap().id;
    for _ in 0..5 {
        let fail = |ctx: &Ctx, _: Five| -> Result<Done, Fail> {
            Err(Fail::retry(format!("{}: {}", ctx.attempt(), "ü".repeat(3000))))
        };
        assert_eq!(w.run(fail), 1);
        w.pass(10 * SEC);
    }
    let info = w.info(id);
    assert_eq!(info.failures.iter().map(|f| f.attempt).collect::<Vec<_>>(), [3, 4, 5]);
    for failure in &info.failures {
        assert!(failure.error.starts_with(&format!("{}: üüü", failure.attempt)));
        assert_within(failure.error.len(), 1000, 1024);
    }
    assert_eq!(info.first_failure, Some(UNIX_EPOCH + WALL));
    assert_eq!(info.failures[0].at, UNIX_EPOCH + WALL + 20 * SEC);
}

#[test]
fn an_error_is_told_with_what_caused_it() {
    let below = Nested("connection reset", None);
    let error = Nested("could not send", Some(Box::new(Nested("could not connect", Some(Box::new(below))))));
    assert_eq!(Fail::from(error).error(), "could not send: could not connect: connection reset");
    assert_eq!(Fail::reject("x").error(), "x");
}

#[test]
fn a_push_may_have_a_limit_of_its_own() {
    let w = world();
    let once = w.jobs.push_with(&Three(1), &Push::new().max_attempts(1)).unwrap().id;
    let twice = w.jobs.push_with(&Three(2), &Push::new().max_attempts(2)).unwrap().id;
    assert_eq!(w.run(fails), 2);
    assert_eq!(w.status(once), Status::Dead { reason: DeadReason::Attempts });
    let w = w.reopened();
    w.pass(10 * SEC);
    assert_eq!(w.run(fails), 1);
    assert_eq!((w.status(twice), w.info(twice).attempts), (Status::Dead { reason: DeadReason::Attempts }, 2));
}

#[test]
fn what_the_options_said_at_the_push_holds() {
    // One kind, as two builds of a program know it.
    mod before {
        use kestrel_core::jobs::{Backoff, Keep};
        job!(Kind(u32) = "kind", |o| o
            .max_attempts(2)
            .backoff(Backoff::Fixed(std::time::Duration::from_secs(5)))
            .keep_done(Keep::last(9)));
        pub(super) fn push(w: &super::World) -> kestrel_core::jobs::JobId {
            w.jobs.push(&Kind(1)).unwrap().id
        }
    }
    job!(Kind(u32) = "kind", |o| o.max_attempts(7).backoff(Backoff::None));
    let w = world();
    let (id, good) = (before::push(&w), before::push(&w));
    assert_eq!(w.run_some(1, |_, _: Kind| Err(Fail::retry("no"))), 1);
    assert_eq!(pause(&w, id), 5 * SEC);
    assert_eq!(w.run(ok::<Kind>), 1);
    assert_eq!(w.status(good), Status::Done);
    w.pass(5 * SEC);
    assert_eq!(w.run(|_, _: Kind| Err(Fail::retry("no"))), 1);
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
}

#[test]
fn a_custom_pause_becomes_the_default_where_the_handlers_kind_has_none() {
    mod before {
        use std::sync::Arc;
        use std::time::Duration;

        use kestrel_core::jobs::Backoff;
        job!(Kind(u32) = "kind", |o| o.backoff(Backoff::Custom(Arc::new(|_, _| Duration::from_secs(500)))));
        pub(super) fn push(w: &super::World) -> kestrel_core::jobs::JobId {
            w.jobs.push(&Kind(1)).unwrap().id
        }
    }
    job!(Kind(u32) = "kind");
    let w = world();
    let id = before::push(&w);
    assert_eq!(w.run(|_, _: Kind| Err(Fail::retry("no"))), 1);
    assert_within(pause(&w, id), 500 * MS, SEC);
}

#[test]
fn each_failure_is_told_with_the_next_start() {
    let w = world();
    let id = w.jobs.push(&Three(1)).unwrap().id;
    let events = w.jobs.events();
    assert_eq!(w.run(fails), 1);
    let retrying: Vec<_> = told(&events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Retrying { id, attempt, cause, error, due, .. } => Some((id, attempt, cause, error, due)),
            _ => None,
        })
        .collect();
    let Status::Retrying { due, .. } = w.status(id) else { panic!("{:?}", w.status(id)) };
    assert_eq!(retrying, [(id, 1, Cause::Error, "could not send".into(), due)]);
    assert_eq!(w.ids(&Filter::new().state(JobState::Retrying).error_contains("not send")), [id]);
    assert_eq!(w.ids(&Filter::new().state(JobState::Retrying).error_contains("NOT SEND")), []);
}

#[test]
fn many_jobs_fail_and_run_beside_each_other() {
    let w = real();
    job!(Shaky(u32) = "shaky", |o| o.backoff(Backoff::Fixed(Duration::from_millis(5))));
    let ids: Vec<_> = (0..300).map(|n| w.jobs.push(&Shaky(n)).unwrap().id).collect();
    let worker = w
        .jobs
        .worker()
        .threads(4)
        .on(|ctx, job: Shaky| -> Result<(), Fail> {
            match (job.0 % 5, ctx.attempt()) {
                (0, 1..=2) => Err(Fail::retry("not yet")),
                (1, 1) => panic!("not so"),
                _ => Ok(()),
            }
        })
        .on(|_, _: Other| Ok::<_, Fail>(()))
        .start()
        .unwrap();
    for id in &ids {
        let end = w.jobs.wait(*id, LONG);
        assert!(matches!(end, Some(Outcome::Done(_) | Outcome::Finished)), "{id}: {end:?}");
    }
    assert!(worker.drain(LONG));
    let stats = w.jobs.stats().queues["default"].clone();
    assert_eq!((stats.done, stats.failed, stats.started), (300, 60 * 2 + 60, 300 + 180));
}
