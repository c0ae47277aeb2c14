//! Delays and moments, and clocks that jump.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kestrel_core::jobs::{
    DeadReason, Done, Fail, Filter, JobError, JobState, Jobs, Outcome, Push, Status, Transaction,
};
use kestrel_core::{Durability, QueueSet};

use crate::common::*;

job!(Tick(u32) = "tick");
job!(Brief(u32) = "brief", |o| o.expires_in(10 * SEC));

fn wall_ms(time: Duration) -> u64 {
    u64::try_from((WALL + time).as_millis()).unwrap()
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn j07_a_delayed_job_starts_when_it_is_due_and_not_before() {
    let w = world();
    let id = w.jobs.push_with(&Tick(1), &Push::after(10 * SEC)).unwrap().id;
    let due = w.now() + 10 * SEC;
    assert_eq!((w.status(id), w.status(id).code()), (Status::Scheduled { due }, Some(1)));
    let runner = w.jobs.worker().on(ok::<Tick>).runner().unwrap();
    assert_eq!(runner.next_due(), Some(due));
    w.pass(9999 * MS);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    assert_eq!((w.stats("default").delayed, w.stats("default").waiting), (1, 0));
    w.pass(MS);
    assert_eq!(w.status(id).code(), Some(1));
    assert_eq!(runner.run_until_empty().unwrap(), 1);
    assert_eq!((w.status(id), runner.next_due()), (Status::Finished, None));
}

#[test]
fn j07_a_thread_starts_a_delayed_job_by_itself() {
    let w = real();
    let worker = w.jobs.worker().threads(2).on(ok::<Tick>).start().unwrap();
    let start = SystemTime::now();
    let later = w.jobs.push_with(&Tick(1), &Push::after(120 * MS)).unwrap().id;
    // An earlier one wakes who sleeps until the later one.
    let sooner = w.jobs.push_with(&Tick(2), &Push::after(40 * MS)).unwrap().id;
    assert!(matches!(w.jobs.wait(sooner, LONG), Some(Outcome::Done(_) | Outcome::Finished)));
    assert!(start.elapsed().unwrap() >= 40 * MS);
    assert!(matches!(w.jobs.wait(later, LONG), Some(Outcome::Done(_) | Outcome::Finished)));
    assert!(start.elapsed().unwrap() >= 120 * MS);
    drop(worker);
}

#[test]
fn j08_a_clock_set_back_while_the_process_was_down_does_not_lengthen_a_delay() {
    let w = world();
    let id = w.jobs.push_with(&Tick(1), &Push::after(HOUR)).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Tick>).runner().unwrap();
    w.pass(HOUR / 2);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    drop(runner);
    for killed in [false, true] {
        let disk = w.disk.kill();
        let before = World::on(disk.clone());
        if !killed {
            before.set.close().unwrap();
        }
        let disk = disk.kill();
        disk.set_wall_ms(wall_ms(HOUR / 2) - 86_400_000);
        let w = World::on(disk);
        // Half an hour is left in truth; nobody can know more than that the whole hour is not yet over.
        assert_eq!(w.run(ok::<Tick>), 0);
        w.pass(HOUR / 2 - MS);
        assert_eq!(w.run(ok::<Tick>), 0);
        w.pass(HOUR / 2 + MS);
        assert_eq!(w.run(ok::<Tick>), 1, "an hour after the open at the latest");
        assert_eq!(w.status(id), Status::Finished);
    }
}

#[test]
fn j09_a_job_that_came_due_while_nobody_was_there_starts_at_once() {
    let w = world();
    let id = w.jobs.push_with(&Tick(1), &Push::after(HOUR)).unwrap().id;
    let not_yet = w.jobs.push_with(&Tick(2), &Push::after(3 * HOUR)).unwrap().id;
    let judge = |w: World| {
        assert_eq!(w.run(ok::<Tick>), 1);
        assert_eq!((w.status(id), w.status(not_yet).code()), (Status::Finished, Some(1)));
        w.pass(HOUR);
        assert_eq!(w.run(ok::<Tick>), 1);
    };
    let killed = w.disk.kill();
    killed.advance_ms(7_200_000);
    judge(World::on(killed));
    let disk = w.disk.clone();
    w.set.close().unwrap();
    disk.advance_ms(7_200_000);
    judge(World::on(disk));
}

#[test]
fn j10_delayed_jobs_run_in_the_order_of_their_times_and_ties_in_that_of_their_pushes() {
    const COUNT: u32 = 100_000;
    let options = kestrel_core::QueueOptions::default().durability(Durability::Os);
    let w = World::with(kestrel_core::testing::SimDisk::new(1), options);
    // A fixed walk over times with many ties.
    let mut state = 1u64;
    let mut delay = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(1 + (state >> 33) % 20_000)
    };
    let mut expected = Vec::new();
    let mut n = 0;
    while n < COUNT {
        let mut tx = Transaction::new();
        while n < COUNT && tx.len() < 1_000 {
            let delay = delay();
            w.jobs.stage(&mut tx, &Tick(n), &Push::after(delay)).unwrap();
            expected.push((delay, n));
            n += 1;
        }
        let pushed = w.jobs.commit(tx).unwrap();
        assert!(pushed.iter().all(|pushed| !pushed.duplicate));
    }
    assert_eq!(w.stats("default").delayed, u64::from(COUNT));
    expected.sort();
    let log = Log::new();
    // In two parts, so that not all are due at once.
    let mut starts = 0;
    for time in [7 * SEC, 14 * SEC] {
        w.pass(time);
        let seen = log.clone();
        starts += w.run(move |_, job: Tick| {
            seen.add(job.0);
            Ok(Done::Complete)
        });
        let due = expected.iter().take_while(|(delay, _)| *delay <= 7 * SEC).count();
        assert_eq!(starts, if time == 7 * SEC { due } else { COUNT as usize });
    }
    let (seen, expected): (_, Vec<u32>) = (log.take(), expected.into_iter().map(|(_, n)| n).collect());
    let wrong = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
    assert_eq!((seen.len(), wrong), (expected.len(), None));
}

#[test]
fn j10_the_same_after_a_restart() {
    let w = world();
    for (n, delay) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 30), (6, 1)] {
        w.jobs.push_with(&Tick(n), &Push::after(delay * SEC)).unwrap();
    }
    let w = w.reopened();
    w.pass(5 * SEC);
    let w = w.killed();
    w.pass(40 * SEC);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Tick| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [6, 2, 4, 3, 1, 5]);
}

#[test]
fn a_clock_that_jumps_moves_no_delay() {
    let w = world();
    let id = w.jobs.push_with(&Tick(1), &Push::after(HOUR)).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Tick>).runner().unwrap();
    w.disk.set_wall_ms(wall_ms(1000 * HOUR));
    assert_eq!(runner.run_until_empty().unwrap(), 0, "set forward");
    w.disk.set_wall_ms(wall_ms(Duration::ZERO) - 86_400_000);
    w.pass(HOUR - MS);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    w.pass(MS);
    assert_eq!(runner.run_until_empty().unwrap(), 1, "set back");
    assert_eq!(w.status(id), Status::Finished);
}

#[test]
fn a_clock_that_jumps_moves_no_retry() {
    let w = world();
    w.jobs.push(&Tick(1)).unwrap();
    let runner = w
        .jobs
        .worker()
        .on(|ctx, _: Tick| if ctx.attempt() == 1 { Err(Fail::retry_in("no", 10 * SEC)) } else { Ok(()) })
        .runner()
        .unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 1);
    w.disk.set_wall_ms(wall_ms(1000 * HOUR));
    w.pass(9999 * MS);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    w.disk.set_wall_ms(wall_ms(Duration::ZERO) - 86_400_000);
    w.pass(MS);
    assert_eq!(runner.run_until_empty().unwrap(), 1);
}

#[test]
fn a_moment_is_that_of_the_wall_clock_also_when_it_is_set() {
    // Set forward: noticed within a minute.
    let w = world();
    let at = UNIX_EPOCH + WALL + 5 * HOUR;
    let id = w.jobs.push_with(&Tick(1), &Push::at(at)).unwrap().id;
    assert_eq!(w.status(id), Status::Scheduled { due: at });
    let runner = w.jobs.worker().on(ok::<Tick>).runner().unwrap();
    w.pass(HOUR);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    w.disk.set_wall_ms(wall_ms(6 * HOUR));
    let mut starts = 0;
    for _ in 0..61 {
        w.pass(SEC);
        starts += runner.run_until_empty().unwrap();
    }
    assert_eq!((starts, w.status(id)), (1, Status::Finished));

    // Set back: it waits until the clock shows the moment.
    let w = world();
    let id = w.jobs.push_with(&Tick(1), &Push::at(UNIX_EPOCH + WALL + HOUR)).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Tick>).runner().unwrap();
    w.disk.set_wall_ms(wall_ms(Duration::ZERO) - 86_400_000);
    for _ in 0..90 {
        w.pass(60 * SEC);
        assert_eq!(runner.run_until_empty().unwrap(), 0);
    }
    // 90 minutes of a day and an hour are over.
    w.pass(DAY - HOUR / 2 - SEC);
    assert_eq!(runner.run_until_empty().unwrap(), 0);
    for _ in 0..62 {
        w.pass(SEC);
        runner.run_until_empty().unwrap();
    }
    assert_eq!(w.status(id), Status::Finished);
}

#[test]
fn a_moment_that_is_over_is_now() {
    let w = world();
    for at in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1), w.now() - SEC, w.now()] {
        w.jobs.push_with(&Tick(1), &Push::at(at)).unwrap();
    }
    if let Some(before) = UNIX_EPOCH.checked_sub(1000 * DAY) {
        w.jobs.push_with(&Tick(1), &Push::at(before)).unwrap();
    }
    w.jobs.push_with(&Tick(1), &Push::after(Duration::ZERO)).unwrap();
    assert_eq!(w.run(ok::<Tick>), 6);
}

#[test]
fn a_time_beyond_all_clocks_is_never_reached_and_does_no_harm() {
    let w = world();
    let mut ids = vec![w.jobs.push_with(&Tick(1), &Push::after(Duration::MAX)).unwrap().id];
    ids.push(w.jobs.push_with(&Tick(1), &Push::after(Duration::from_secs(u64::MAX / 1000))).unwrap().id);
    if let Some(far) = UNIX_EPOCH.checked_add(Duration::from_secs(1 << 60)) {
        ids.push(w.jobs.push_with(&Tick(1), &Push::at(far)).unwrap().id);
    }
    let good = w.jobs.push(&Tick(2)).unwrap().id;
    assert_eq!(w.run(ok::<Tick>), 1);
    assert_eq!(w.status(good), Status::Finished);
    let w = w.reopened();
    w.pass(100_000 * HOUR);
    assert_eq!(w.run(ok::<Tick>), 0);
    for id in &ids {
        assert!(matches!(w.status(*id), Status::Scheduled { .. }), "{:?}", w.status(*id));
        assert!(w.info(*id).due.is_some());
    }
    assert!(w.jobs.promote(ids[0]).unwrap());
    assert_eq!(w.run(ok::<Tick>), 1);
}

#[test]
fn a_job_that_was_not_started_in_time_is_expired() {
    let w = world();
    let in_time = w.jobs.push(&Brief(1)).unwrap().id;
    w.pass(9 * SEC);
    assert_eq!(w.run(ok::<Brief>), 1);
    let late = w.jobs.push(&Brief(2)).unwrap().id;
    let own = w.jobs.push_with(&Brief(3), &Push::new().expires_in(HOUR)).unwrap().id;
    let delayed = w.jobs.push_with(&Brief(4), &Push::after(20 * SEC)).unwrap().id;
    w.pass(11 * SEC);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Brief| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    w.pass(10 * SEC);
    assert_eq!(w.run(ok::<Brief>), 0);
    w.pass(2 * SEC);
    assert_eq!(log.take(), [3]);
    let judge = |w: &World| {
        assert_eq!((w.status(in_time), w.status(own)), (Status::Finished, Status::Finished));
        for id in [late, delayed] {
            assert_eq!((w.status(id), w.status(id).code()), (Status::Expired, Some(3)), "{id}");
            assert_eq!(w.info(id).dead, Some(DeadReason::Expired));
            assert!(matches!(w.jobs.wait(id, MS), Some(Outcome::Dead { reason: DeadReason::Expired, .. })));
        }
        assert_eq!(w.ids(&Filter::new().reason(DeadReason::Expired)).len(), 2);
    };
    judge(&w);
    let w = w.reopened();
    judge(&w);
    // Let again, it has no time that it could miss.
    assert_eq!(w.jobs.requeue_dead(&Filter::new().reason(DeadReason::Expired)).unwrap(), 2);
    w.pass(HOUR);
    assert_eq!(w.run(ok::<Brief>), 2);
}

#[test]
fn a_job_that_was_started_in_time_does_not_expire_while_it_retries() {
    let w = world();
    let id = w.jobs.push(&Brief(1)).unwrap().id;
    assert_eq!(w.run(|_, _: Brief| Err(Fail::retry_in("later", HOUR))), 1);
    w.pass(HOUR);
    assert_eq!(w.run(ok::<Brief>), 1);
    assert_eq!(w.status(id), Status::Finished);
}

#[test]
fn an_expired_job_that_nobody_looks_for_is_expired_all_the_same() {
    let w = world();
    let id = w.jobs.push(&Brief(1)).unwrap().id;
    w.pass(20 * SEC);
    // No worker has met it: it says nothing of a handler, and no handler gets it any more.
    assert!(matches!(w.status(id), Status::Waiting | Status::Expired), "{:?}", w.status(id));
    assert_eq!(w.run(ok::<Brief>), 0);
    assert_eq!(w.status(id), Status::Expired);
}

#[test]
fn no_more_jobs_are_delayed_than_the_limit_says_and_retries_are_never_refused() {
    let disk = kestrel_core::testing::SimDisk::new(1);
    let set = QueueSet::builder().simulated(&disk).defaults(defaults()).open("/set").unwrap();
    let jobs = Jobs::builder(&set).max_delayed(3).open().unwrap();
    for n in 0..3 {
        jobs.push_with(&Tick(n), &Push::after(HOUR)).unwrap();
    }
    let refused = jobs.push_with(&Tick(9), &Push::after(HOUR));
    assert!(matches!(refused, Err(JobError::TooManyDelayed { max: 3, .. })), "{refused:?}");
    // Another queue has its own, and what is not delayed goes on.
    jobs.push_with(&Tick(9), &Push::after(HOUR).queue("other")).unwrap();
    let retries: Vec<_> = (0..5).map(|n| jobs.push(&Tick(n)).unwrap().id).collect();
    let runner = jobs.worker().on(|_, _: Tick| Err::<(), _>(Fail::retry_in("no", SEC))).runner().unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 5);
    assert!(retries.iter().all(|id| matches!(jobs.status(*id), Status::Retrying { .. })));
    assert_eq!(jobs.stats().queues["default"].delayed, 8);
    let refused = jobs.push_with(&Tick(9), &Push::after(HOUR));
    assert!(matches!(refused, Err(JobError::TooManyDelayed { .. })), "retries count");
    disk.advance_ms(3_600_000);
    set.run_chores();
    let runner = jobs.worker().on(ok::<Tick>).runner().unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 9);
    jobs.push_with(&Tick(9), &Push::after(HOUR)).unwrap();
}

#[test]
fn delayed_jobs_are_listed_with_their_times() {
    let w = world();
    let ids: Vec<_> = (1..=3).map(|n| w.jobs.push_with(&Tick(n), &Push::after(n * SEC)).unwrap().id).collect();
    let list = w.list(&Filter::new().state(JobState::Scheduled));
    assert_eq!(list.iter().map(|info| info.id).collect::<Vec<_>>(), ids);
    assert_eq!(list.iter().map(|info| w.ahead(info.due.unwrap())).collect::<Vec<_>>(), [SEC, 2 * SEC, 3 * SEC]);
}
