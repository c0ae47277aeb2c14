//! Keys: what a push does where another job has the key.

use std::collections::BTreeSet;
use std::sync::Barrier;

use kestrel_core::jobs::{
    Backoff, Cancelled, Ctx, DeadReason, Done, Fail, Filter, JobId, OnConflict, Push, Pushed, Status, Transaction,
    Unique,
};

use crate::common::*;

fn key(value: &(String, u32)) -> Option<Vec<u8>> {
    Some(value.0.clone().into_bytes())
}

job!(
    UntilDone((String, u32)) = "until-done",
    |o| o.unique(Unique::UntilDone).max_attempts(2).backoff(Backoff::Fixed(SEC)),
    key
);
job!(
    UntilStarted((String, u32)) = "until-started",
    |o| o.unique(Unique::UntilStarted).backoff(Backoff::Fixed(SEC)),
    key
);
job!(Window((String, u32)) = "window", |o| o.unique(Unique::Window(60 * SEC)), key);
job!(Never((String, u32)) = "never", |o| o, key);

fn done(key: &str, n: u32) -> UntilDone {
    UntilDone((key.into(), n))
}

fn started(key: &str, n: u32) -> UntilStarted {
    UntilStarted((key.into(), n))
}

fn push(w: &World, n: u32) -> Pushed {
    w.jobs.push(&done("k", n)).unwrap()
}

#[test]
fn j22_a_key_is_taken_until_the_job_is_done() {
    let w = world();
    let first = push(&w, 1);
    assert!(!first.duplicate);
    let again = push(&w, 2);
    assert_eq!((again.id, again.duplicate), (first.id, true));
    let runner = w.jobs.worker().on(ok::<UntilDone>).runner().unwrap();
    let running = runner.try_next().unwrap().unwrap();
    let again = push(&w, 3);
    assert_eq!((again.id, again.duplicate), (first.id, true), "while it runs");
    assert_eq!(running.run_blocking(), Status::Finished);
    let third = push(&w, 4);
    assert!(!third.duplicate && third.id > first.id);
    assert_eq!((w.stats("default").pushed, w.stats("default").duplicates), (2, 2));
    // Another key and another kind are not the same.
    assert!(!w.jobs.push(&done("l", 5)).unwrap().duplicate);
    assert!(!w.jobs.push(&started("k", 6)).unwrap().duplicate);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: UntilDone| {
        seen.add(job.0.1);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [4, 5], "what was a duplicate is not stored");
}

#[test]
fn j22_retries_and_pauses_hold_the_key_and_every_end_frees_it() {
    type End = fn(&World, JobId);
    let ends: [(&str, End); 5] = [
        ("done", |w, _| assert_eq!(w.run(ok::<UntilDone>), 1)),
        ("dead", |w, id| {
            assert_eq!(w.run(|_, _: UntilDone| Err(Fail::retry("no"))), 1);
            assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
        }),
        ("rejected", |w, _| assert_eq!(w.run(|_, _: UntilDone| Err(Fail::reject("no"))), 1)),
        ("discarded", |w, _| assert_eq!(w.run(|_, _: UntilDone| Err(Fail::discard("no"))), 1)),
        ("cancelled", |w, id| assert_eq!(w.jobs.cancel(id).unwrap(), Cancelled::Removed)),
    ];
    for (name, end) in ends {
        let mut w = world();
        let id = w.jobs.push_with(&done("k", 1), &Push::after(SEC)).unwrap().id;
        let held = |w: &World, when: &str| {
            let again = push(w, 2);
            assert_eq!((again.id, again.duplicate), (id, true), "{name}: {when}");
        };
        held(&w, "delayed");
        w.pass(SEC);
        assert_eq!(w.run(|_, _: UntilDone| Ok(Done::Snooze(SEC))), 1);
        held(&w, "snoozed");
        w.pass(SEC);
        assert_eq!(w.run(|_, _: UntilDone| Err(Fail::retry("no"))), 1);
        held(&w, "retrying");
        w = w.reopened();
        held(&w, "after a restart");
        w = w.killed();
        held(&w, "after a kill");
        w.pass(SEC);
        end(&w, id);
        let w = w.reopened();
        let fresh = push(&w, 3);
        assert!(!fresh.duplicate && fresh.id != id, "{name}");
    }
}

#[test]
fn j23_a_key_that_is_freed_at_the_start_lets_one_wait_beside_the_one_that_runs() {
    let w = world();
    let first = w.jobs.push(&started("k", 1)).unwrap().id;
    assert!(w.jobs.push(&started("k", 2)).unwrap().duplicate);
    let runner = w.jobs.worker().threads(2).on(ok::<UntilStarted>).runner().unwrap();
    let running = runner.try_next().unwrap().unwrap();
    let pushes: Vec<_> = (3..6).map(|n| w.jobs.push(&started("k", n)).unwrap()).collect();
    assert_eq!(pushes.iter().map(|pushed| pushed.duplicate).collect::<Vec<_>>(), [false, true, true]);
    assert!(pushes.iter().all(|pushed| pushed.id == pushes[0].id && pushed.id != first));
    assert_eq!((w.stats("default").waiting, w.stats("default").running), (1, 1));
    running.run_blocking();
    assert!(w.jobs.push(&started("k", 6)).unwrap().duplicate, "the end of the first does not free the second's key");
    assert_eq!(runner.run_until_empty().unwrap(), 1);
    assert!(!w.jobs.push(&started("k", 7)).unwrap().duplicate);
}

#[test]
fn j23_a_start_frees_the_key_for_good() {
    let w = world();
    let first = w.jobs.push(&started("k", 1)).unwrap().id;
    assert_eq!(w.run(|_, _: UntilStarted| Err(Fail::retry("no"))), 1);
    let w = w.reopened();
    assert!(matches!(w.status(first), Status::Retrying { .. }));
    let second = w.jobs.push(&started("k", 2)).unwrap();
    assert!(!second.duplicate);
    assert!(w.jobs.push(&started("k", 3)).unwrap().duplicate);
    w.pass(SEC);
    assert_eq!(w.run(ok::<UntilStarted>), 2);
}

#[test]
fn j24_a_job_that_is_replaced_keeps_its_id_and_gets_the_new_bytes_and_time() {
    let w = world();
    let first = w.jobs.push_with(&done("k", 1), &Push::after(HOUR)).unwrap().id;
    w.pass(60 * SEC);
    let replace = Push::after(10 * SEC).on_conflict(OnConflict::Replace);
    let second = w.jobs.push_with(&done("k", 2), &replace).unwrap();
    assert_eq!((second.id, second.duplicate), (first, true));
    let due = w.now() + 10 * SEC;
    assert_eq!(w.status(first), Status::Scheduled { due });
    for w in [w.killed(), w.reopened()] {
        assert_eq!(w.status(first), Status::Scheduled { due });
        assert_eq!(w.ids(&Filter::all()), [first]);
        w.pass(9999 * MS);
        let log = Log::new();
        for (time, expected) in [(MS, 1), (2 * HOUR, 0)] {
            w.pass(time);
            let seen = log.clone();
            let starts = w.run(move |ctx, job: UntilDone| {
                seen.add((ctx.id(), job.0.1));
                Ok(Done::Complete)
            });
            assert_eq!(starts, expected);
        }
        assert_eq!(log.take(), [(first, 2)]);
        assert_eq!(w.status(first), Status::Finished);
    }
}

#[test]
fn j24_the_last_of_many_replacements_holds() {
    let w = world();
    let replace = Push::after(10 * SEC).on_conflict(OnConflict::Replace);
    let id = w.jobs.push_with(&done("k", 0), &replace).unwrap().id;
    for n in 1..50 {
        w.pass(5 * SEC);
        assert_eq!(w.run(ok::<UntilDone>), 0, "put off again and again");
        assert_eq!(w.jobs.push_with(&done("k", n), &replace).unwrap().id, id);
    }
    // Now, in place of later, and one that waits already.
    let now = Push::new().on_conflict(OnConflict::Replace);
    assert!(w.jobs.push_with(&done("k", 50), &now).unwrap().duplicate);
    assert_eq!(w.status(id).code(), Some(1));
    assert!(w.jobs.push_with(&done("k", 51), &now).unwrap().duplicate);
    let w = w.killed();
    let log = Log::new();
    let seen = log.clone();
    assert_eq!(
        w.run(move |_, job: UntilDone| {
            seen.add(job.0.1);
            Ok(Done::Complete)
        }),
        1
    );
    assert_eq!((log.take(), w.status(id)), (vec![51], Status::Finished));
    assert_eq!(w.stats("default").waiting, 0);
}

#[test]
fn j24_a_staged_job_replaces_too_in_a_commit_and_at_the_end_of_another() {
    let w = world();
    let replace = Push::after(10 * SEC).on_conflict(OnConflict::Replace);
    let id = w.jobs.push_with(&done("k", 1), &Push::after(HOUR)).unwrap().id;
    let mut tx = Transaction::new();
    w.jobs.stage(&mut tx, &done("k", 2), &replace).unwrap();
    w.jobs.stage(&mut tx, &done("free", 3), &replace).unwrap();
    let pushed = w.jobs.commit(tx).unwrap();
    assert_eq!((pushed[0].id, pushed[0].duplicate, pushed[1].duplicate), (id, true, false));
    let due = w.now() + 10 * SEC;
    assert_eq!(w.status(id), Status::Scheduled { due });
    // The job that ends would put both off.
    let ends = |ctx: &Ctx, _: UntilStarted| {
        let mut next = Transaction::new();
        ctx.jobs().stage(&mut next, &done("k", 4), &Push::after(20 * SEC).on_conflict(OnConflict::Replace))?;
        ctx.jobs().stage(&mut next, &done("free", 5), &Push::after(20 * SEC))?;
        Ok(ctx.finish_with(next)?)
    };
    w.jobs.push(&started("other", 0)).unwrap();
    assert_eq!(w.run(ends), 1);
    assert_eq!(w.status(id), Status::Scheduled { due: w.now() + 20 * SEC });
    for w in [w.killed(), w.reopened()] {
        let log = Log::new();
        for (time, starts) in [(10 * SEC, 1), (10 * SEC, 1), (HOUR, 0)] {
            w.pass(time);
            let seen = log.clone();
            let run = w.run(move |ctx, job: UntilDone| {
                seen.add((ctx.id(), job.0.1));
                Ok(Done::Complete)
            });
            assert_eq!(run, starts);
        }
        assert_eq!(log.take(), [(pushed[1].id, 3), (id, 4)], "the one that was not to be replaced is as it was");
    }
}

#[test]
fn j24_a_job_that_was_started_is_not_replaced() {
    let w = world();
    let id = push(&w, 1).id;
    let replace = Push::after(HOUR).on_conflict(OnConflict::Replace);
    let runner = w.jobs.worker().on(|_, _: UntilDone| Err::<(), _>(Fail::retry("no"))).runner().unwrap();
    let running = runner.try_next().unwrap().unwrap();
    let again = w.jobs.push_with(&done("k", 2), &replace).unwrap();
    assert_eq!((again.id, again.duplicate), (id, true));
    running.run_blocking();
    let again = w.jobs.push_with(&done("k", 3), &replace).unwrap();
    assert_eq!((again.id, again.duplicate), (id, true), "one that retries was started");
    w.pass(SEC);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: UntilDone| {
        seen.add(job.0.1);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [1]);
    let fresh = w.jobs.push_with(&done("k", 4), &replace).unwrap();
    assert!(!fresh.duplicate, "where nobody has the key it is pushed");
}

#[test]
fn a_window_holds_its_key_whatever_becomes_of_the_job() {
    let w = world();
    let window = |n| Window(("k".into(), n));
    let first = w.jobs.push(&window(1)).unwrap().id;
    assert_eq!(w.run(ok::<Window>), 1);
    let held = |w: &World| {
        let again = w.jobs.push(&window(2)).unwrap();
        assert_eq!((again.id, again.duplicate), (first, true));
    };
    held(&w);
    w.pass(30 * SEC);
    held(&w);
    let w = w.reopened();
    held(&w);
    let w = w.killed();
    w.pass(29 * SEC);
    held(&w);
    w.pass(2 * SEC);
    let second = w.jobs.push(&window(3)).unwrap();
    assert!(!second.duplicate && second.id != first, "it counts from the push that was stored");
    // A job that outlives its window does not hold the key any longer.
    w.pass(61 * SEC);
    let third = w.jobs.push(&window(4)).unwrap();
    assert!(!third.duplicate);
    assert_eq!(w.run(ok::<Window>), 2);
}

#[test]
fn a_kind_without_uniqueness_has_keys_only_by_the_push() {
    let w = world();
    let job = |n| Never(("k".into(), n));
    assert!(!w.jobs.push(&job(1)).unwrap().duplicate);
    assert!(!w.jobs.push(&job(2)).unwrap().duplicate, "its keys mean nothing");
    let first = w.jobs.push_with(&job(3), &Push::new().key("own")).unwrap();
    let again = w.jobs.push_with(&job(4), &Push::new().key("own")).unwrap();
    assert!(!first.duplicate && again.duplicate && again.id == first.id);
    let other = w.jobs.push_with(&job(5), &Push::new().key("other")).unwrap();
    assert!(!other.duplicate);
    assert_eq!(w.run(ok::<Never>), 4);
    assert!(!w.jobs.push_with(&job(6), &Push::new().key("own")).unwrap().duplicate, "held until it is done");
}

#[test]
fn a_pushs_key_stands_in_place_of_the_jobs() {
    let w = world();
    push(&w, 1);
    let own = Push::new().key("own");
    assert!(!w.jobs.push_with(&done("k", 2), &own).unwrap().duplicate);
    assert!(w.jobs.push_with(&done("l", 3), &own).unwrap().duplicate);
}

#[test]
fn keys_hold_within_one_push_of_many_and_within_a_transaction() {
    let w = world();
    let taken = push(&w, 0).id;
    let jobs: Vec<_> = [("k", 1), ("a", 2), ("a", 3), ("b", 4)].map(|(key, n)| done(key, n)).into();
    let pushed = w.jobs.push_all(&jobs).unwrap();
    assert_eq!(pushed.iter().map(|pushed| pushed.duplicate).collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!((pushed[0].id, pushed[2].id), (taken, pushed[1].id));
    let mut tx = Transaction::new();
    for (key, n) in [("b", 5), ("c", 6), ("c", 7)] {
        w.jobs.stage(&mut tx, &done(key, n), &Push::new()).unwrap();
    }
    // Keys are looked at when the staged jobs are pushed.
    let d = w.jobs.push(&done("c", 8)).unwrap();
    assert!(!d.duplicate);
    let staged = w.jobs.commit(tx).unwrap();
    assert!(staged.iter().all(|pushed| pushed.duplicate), "{staged:?}");
    assert_eq!((staged[0].id, staged[1].id, staged[2].id), (pushed[3].id, d.id, d.id));
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: UntilDone| {
        seen.add(job.0.1);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [0, 2, 4, 8]);
}

#[test]
fn of_many_threads_that_push_one_key_one_stores() {
    let w = real();
    for round in 0..20 {
        let barrier = Barrier::new(8);
        let pushed: Vec<Pushed> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let (jobs, barrier) = (&w.jobs, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        jobs.push(&done(&round.to_string(), n)).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(pushed.iter().filter(|pushed| !pushed.duplicate).count(), 1);
        assert_eq!(pushed.iter().map(|pushed| pushed.id).collect::<BTreeSet<_>>().len(), 1);
    }
    assert_eq!(w.jobs.stats().queues["default"].waiting, 20);
}

#[test]
fn a_job_that_waits_again_after_its_death_does_not_lose_or_double_a_key() {
    let w = world();
    let first = push(&w, 1).id;
    assert_eq!(w.run(|_, _: UntilDone| Err(Fail::reject("no"))), 1);
    assert_eq!(w.jobs.requeue_dead(&Filter::new().ids([first])).unwrap(), 1);
    let again = push(&w, 2);
    assert_eq!((again.id, again.duplicate), (first, true), "it has not ended any more");
    let w = w.killed();
    assert!(push(&w, 3).duplicate);
    assert_eq!(w.run(ok::<UntilDone>), 1);
    assert!(!push(&w, 4).duplicate);
}

#[test]
fn keys_may_be_any_bytes() {
    let w = world();
    let keys: [&[u8]; 5] = [b"", b"\0", b"\0\0", &[0xff; 1024], b"until-done"];
    for key in keys {
        assert!(!w.jobs.push_with(&done("k", 1), &Push::new().key(key)).unwrap().duplicate, "{key:?}");
    }
    let w = w.reopened();
    for key in keys {
        assert!(w.jobs.push_with(&done("k", 1), &Push::new().key(key)).unwrap().duplicate, "{key:?}");
    }
}
