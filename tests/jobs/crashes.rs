//! Deaths of the process, on the simulated disk: what ran then is known at the next open, counted, and met one at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kestrel_core::QueueSet;
use kestrel_core::jobs::{
    Backoff, Cause, Ctx, DeadReason, Done, Event, Fail, Filter, JobId, JobState, Jobs, Push, Runner, RunningJob,
    Status, Unique,
};
use kestrel_core::testing::SimDisk;

use crate::common::*;

job!(Work(u32) = "work", |o| o.backoff(Backoff::None));
job!(Paused(u32) = "paused");

fn runner(w: &World, threads: usize) -> Runner {
    w.jobs.worker().threads(threads).on(ok::<Work>).on(ok::<Paused>).runner().unwrap()
}

/// All jobs that may run at once.
fn take_all(runner: &Runner) -> Vec<RunningJob> {
    std::iter::from_fn(|| runner.try_next().expect("takes")).collect()
}

fn ids(running: &[RunningJob]) -> Vec<JobId> {
    running.iter().map(|job| job.ctx().id()).collect()
}

#[test]
fn j18_a_job_that_ran_when_the_process_died_is_retried_with_the_crash_counted() {
    let w = world();
    let id = w.jobs.push(&Paused(1)).unwrap().id;
    let waiting = w.jobs.push(&Paused(2)).unwrap().id;
    let runner = runner(&w, 1);
    let held = runner.try_next().unwrap().unwrap();
    assert_eq!(held.ctx().id(), id);
    let disk = w.disk.kill();
    let set = QueueSet::builder().simulated(&disk).defaults(defaults()).open("/set").unwrap();
    let (builder, events) = Jobs::builder(&set).events();
    let jobs = builder.open().unwrap();
    let status = jobs.status(id);
    let Status::Retrying { attempt: 1, due, error } = &status else { panic!("{status:?}") };
    assert!(!error.is_empty());
    let now = w.now();
    // The normal pause.
    assert_within(due.duration_since(now).unwrap(), 500 * MS, SEC);
    let info = jobs.info(id).unwrap();
    assert_eq!((info.attempts, info.crashes, info.state), (1, 1, JobState::Retrying));
    assert_eq!(info.failures.iter().map(|f| (f.attempt, f.cause)).collect::<Vec<_>>(), [(1, Cause::Crash)]);
    assert_eq!(jobs.status(waiting), Status::Waiting);
    let crashed: Vec<_> = told(&events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Crashed { id, crashes, queue } => Some((id, crashes, queue)),
            _ => None,
        })
        .collect();
    assert_eq!(crashed, [(id, 1, "default".to_owned())]);
    assert_eq!(jobs.stats().queues["default"].crashed, 1);
    // It is told and counted once.
    set.close().unwrap();
    let w = World::on(disk);
    let info = w.info(id);
    assert_eq!((info.attempts, info.crashes, w.stats("default").crashed), (1, 1, 0));
    w.pass(SEC);
    let log = Log::new();
    let seen = log.clone();
    assert_eq!(
        w.run(move |ctx, job: Paused| {
            seen.add((job.0, ctx.attempt(), ctx.crashes()));
            Ok(Done::Complete)
        }),
        2
    );
    let mut seen = log.take();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 2, 1), (2, 1, 0)]);
}

#[test]
fn a_start_that_had_ended_is_no_crash() {
    let w = world();
    let ids: Vec<_> = (0..4).map(|n| w.jobs.push(&Work(n)).unwrap().id).collect();
    let runner = w
        .jobs
        .worker()
        .on(|_, job: Work| match job.0 {
            0 => Ok(Done::Complete),
            1 => Err(Fail::retry_in("no", SEC)),
            2 => Ok(Done::Snooze(SEC)),
            _ => Err(Fail::reject("never")),
        })
        .runner()
        .unwrap();
    assert_eq!(runner.run_until_empty().unwrap(), 4);
    let w = w.killed();
    assert_eq!(w.status(ids[0]), Status::Finished);
    assert!(matches!(w.status(ids[1]), Status::Retrying { attempt: 1, .. }));
    assert!(matches!(w.status(ids[2]), Status::Scheduled { .. }));
    assert!(matches!(w.status(ids[3]), Status::Dead { reason: DeadReason::Rejected }));
    for id in &ids[1..] {
        assert_eq!(w.info(*id).crashes, 0);
    }
    assert_eq!(w.stats("default").crashed, 0);
}

#[test]
fn j16_a_job_that_kills_the_process_is_dead_after_three_deaths_and_all_others_are_done() {
    let mut w = world();
    let pill = w.jobs.push(&Work(0)).unwrap().id;
    let others: Vec<_> = (1..20).map(|n| w.jobs.push(&Work(n)).unwrap().id).collect();
    let mut deaths = 0;
    let after = loop {
        // The pill is eaten while others run beside it; what follows its bite never happened.
        let corpse: Arc<Mutex<Option<SimDisk>>> = Arc::default();
        let (bitten, disk) = (Arc::clone(&corpse), w.disk.clone());
        let runner = w
            .jobs
            .worker()
            .threads(4)
            .on(move |_: &Ctx, job: Work| -> Result<(), Fail> {
                if job.0 == 0 {
                    bitten.lock().unwrap().get_or_insert_with(|| disk.kill());
                }
                Ok(())
            })
            .runner()
            .unwrap();
        loop {
            let mut running = take_all(&runner);
            if running.is_empty() || corpse.lock().unwrap().is_some() {
                break;
            }
            // The one that may bite runs first, beside the others.
            running.sort_by_key(|job| job.ctx().id() != pill);
            running.into_iter().for_each(|job| drop(job.run_blocking()));
        }
        let disk = corpse.lock().unwrap().take();
        match disk {
            Some(disk) => {
                deaths += 1;
                assert!(deaths <= 3, "it goes on");
                w = World::on(disk);
                w.pass(SEC);
            }
            None => break w,
        }
    };
    assert_eq!(deaths, 3);
    assert_eq!(after.status(pill), Status::Dead { reason: DeadReason::Crashes });
    let info = after.info(pill);
    assert_eq!((info.attempts, info.crashes), (3, 3));
    assert!(info.failures.iter().all(|failure| failure.cause == Cause::Crash));
    for id in others {
        assert_eq!(after.status(id), Status::Finished);
    }
}

#[test]
fn j17_suspects_run_one_at_a_time_and_normal_work_beside_them() {
    let w = world();
    for n in 0..4 {
        w.jobs.push(&Work(n)).unwrap();
    }
    let held = take_all(&runner(&w, 4));
    let suspects = ids(&held);
    assert_eq!(suspects.len(), 4);
    let w = w.killed();
    for id in &suspects {
        assert_eq!(w.info(*id).crashes, 1);
    }
    let normal: Vec<_> = (10..14).map(|n| w.jobs.push(&Work(n)).unwrap().id).collect();
    w.pass(SEC);
    let first = runner(&w, 8);
    let second = runner(&w, 8);
    let mut met = Vec::new();
    let mut running = Vec::new();
    for round in 0..4 {
        running.extend(take_all(&first));
        running.extend(take_all(&second));
        // Of all workers of the process together.
        let now: Vec<_> = ids(&running).into_iter().filter(|id| suspects.contains(id)).collect();
        assert_eq!(now.len(), 1, "round {round}: {now:?}");
        if round == 0 {
            assert_eq!(running.len(), 5, "normal work goes on beside it");
        }
        met.extend(now);
        let at = running.iter().position(|job| suspects.contains(&job.ctx().id())).unwrap();
        assert_eq!(running.remove(at).run_blocking(), Status::Finished);
    }
    met.sort_unstable();
    assert_eq!(met, suspects);
    running.into_iter().for_each(|job| drop(job.run_blocking()));
    assert!(normal.iter().all(|id| w.status(*id) == Status::Finished));
    assert!(take_all(&first).is_empty());
}

#[test]
fn j17_suspects_of_different_queues_do_not_run_together_either() {
    let w = world();
    for (n, queue) in ["a", "b", "c"].into_iter().enumerate() {
        w.jobs.push_with(&Work(n as u32), &Push::new().queue(queue)).unwrap();
    }
    let before = runner(&w, 4);
    let held = take_all(&before);
    assert_eq!(held.len(), 3);
    let w = w.killed();
    w.pass(SEC);
    let runner = runner(&w, 4);
    for _ in 0..3 {
        let mut running = take_all(&runner);
        assert_eq!(running.len(), 1);
        running.remove(0).run_blocking();
    }
    assert_eq!(runner.run_until_empty().unwrap(), 0);
}

#[test]
fn j17_a_suspect_remains_one_until_it_has_ended() {
    let w = world();
    let one = w.jobs.push(&Work(1)).unwrap().id;
    let two = w.jobs.push(&Work(2)).unwrap().id;
    let _held = take_all(&runner(&w, 2));
    let w = w.killed();
    w.pass(SEC);
    // Both fail by themselves, in order: they are not cleared by that.
    assert_eq!(w.run(|_, _: Work| Err(Fail::retry_in("no", SEC))), 2);
    let w = w.reopened();
    w.pass(SEC);
    let runner = runner(&w, 2);
    assert_eq!(take_all(&runner).len(), 1);
    assert_eq!((w.info(one).crashes, w.info(two).crashes), (1, 1));
    assert_eq!(runner.run_until_empty().unwrap(), 2);
    assert_eq!((w.status(one), w.status(two)), (Status::Finished, Status::Finished));
}

#[test]
fn j17_two_pills_die_alone_in_at_most_six_deaths() {
    for threads in [1, 2, 4, 8, 32] {
        let mut w = world();
        let all: Vec<_> = (0..32).map(|n| w.jobs.push(&Work(n)).unwrap().id).collect();
        let pills = [all[7], all[11]];
        let mut deaths = 0;
        loop {
            let runner = runner(&w, threads);
            let corpse = loop {
                let running = take_all(&runner);
                if running.is_empty() {
                    break None;
                }
                if running.iter().any(|job| pills.contains(&job.ctx().id())) {
                    // All that was taken runs, and the pill bites.
                    break Some(w.disk.kill());
                }
                running.into_iter().for_each(|job| drop(job.run_blocking()));
            };
            let Some(disk) = corpse else { break };
            deaths += 1;
            assert!(deaths <= 6, "{threads} threads");
            drop(runner);
            w = World::on(disk);
            w.pass(SEC);
        }
        for id in &all {
            let expected =
                if pills.contains(id) { Status::Dead { reason: DeadReason::Crashes } } else { Status::Finished };
            assert_eq!(w.status(*id), expected, "{threads} threads");
        }
        assert_eq!(w.dead().iter().map(|info| info.crashes).collect::<Vec<_>>(), [3, 3]);
    }
}

#[test]
fn the_limit_of_crashes_is_the_kinds_and_attempts_limit_them_too() {
    job!(Once(u32) = "once", |o| o.max_crashes(1).backoff(Backoff::None));
    job!(Twice(u32) = "twice", |o| o.max_attempts(2).backoff(Backoff::None));
    let mut w = world();
    let once = w.jobs.push_with(&Once(1), &Push::new().queue("a")).unwrap().id;
    let twice = w.jobs.push_with(&Twice(1), &Push::new().queue("b")).unwrap().id;
    let mut after = Vec::new();
    for _ in 0..2 {
        let runner = w.jobs.worker().threads(2).on(ok::<Once>).on(ok::<Twice>).runner().unwrap();
        let _held = take_all(&runner);
        w = w.killed();
        w.pass(SEC);
        after.push((w.status(once), w.status(twice)));
    }
    let crashes = Status::Dead { reason: DeadReason::Crashes };
    assert_eq!(after[0].0, crashes);
    assert!(matches!(after[0].1, Status::Retrying { attempt: 1, .. }), "{:?}", after[0].1);
    assert_eq!(after[1], (crashes, Status::Dead { reason: DeadReason::Attempts }));
    assert_eq!((w.info(once).crashes, w.info(twice).crashes, w.info(twice).attempts), (1, 2, 2));
}

#[test]
fn deaths_after_quiet_are_not_counted() {
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    let runner = runner(&w, 1);
    let _held = runner.try_next().unwrap().unwrap();
    runner.quiet();
    let w = w.killed();
    assert_eq!(w.status(id), Status::Waiting);
    let info = w.info(id);
    assert_eq!((info.attempts, info.crashes, info.failures.len()), (0, 0, 0));
    let log = Log::new();
    let seen = log.clone();
    w.run(move |ctx, _: Work| {
        seen.add((ctx.attempt(), ctx.crashes()));
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [(1, 0)]);
}

#[test]
fn a_quiet_worker_does_not_excuse_another_or_a_later_one() {
    // One is quiet, the other is not: the process went on working.
    let w = world();
    let first = w.jobs.push(&Work(1)).unwrap().id;
    let second = w.jobs.push(&Work(2)).unwrap().id;
    let (quiet, busy) = (runner(&w, 1), runner(&w, 1));
    let _a = quiet.try_next().unwrap().unwrap();
    quiet.quiet();
    let _b = busy.try_next().unwrap().unwrap();
    let after = w.killed();
    assert_eq!(after.info(second).crashes, 1, "started after the quiet of another");
    assert!(after.info(first).crashes <= 1);
    // One was shut down long ago.
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    runner(&w, 1).shutdown(SEC);
    drop(runner(&w, 1));
    let later = runner(&w, 1);
    let _held = later.try_next().unwrap().unwrap();
    assert_eq!(w.killed().info(id).crashes, 1);
}

#[test]
fn the_quiet_of_an_earlier_process_excuses_nothing_in_this_one() {
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    let quiet = runner(&w, 1);
    let _held = quiet.try_next().unwrap().unwrap();
    quiet.quiet();
    for w in [w.killed(), w.reopened()] {
        let runner = runner(&w, 1);
        let _held = runner.try_next().unwrap().unwrap();
        assert_eq!(w.killed().info(id).crashes, 1);
    }
}

#[test]
fn an_orderly_close_counts_nothing() {
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    let runner = runner(&w, 1);
    let held = runner.try_next().unwrap().unwrap();
    let w = {
        let World { disk, set, .. } = w;
        set.close().unwrap();
        drop((held, runner));
        World::on(disk)
    };
    assert_eq!(w.status(id), Status::Waiting);
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (0, 0));
}

#[test]
fn crashes_are_counted_for_retries_and_requeued_jobs_as_for_fresh_ones() {
    let mut w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    assert_eq!(w.run_some(1, |_, _: Work| Err(Fail::retry("no"))), 1);
    let mut crashes = BTreeMap::new();
    for round in 1..=3u32 {
        let runner = runner(&w, 1);
        let held = runner.try_next().unwrap().unwrap();
        assert_eq!((held.ctx().attempt(), held.ctx().crashes()), (round + 1, round - 1));
        w = w.killed();
        w.pass(SEC);
        let info = w.info(id);
        crashes.insert(round, (info.attempts, info.crashes));
    }
    assert_eq!(crashes.into_values().collect::<Vec<_>>(), [(2, 1), (3, 2), (4, 3)]);
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Crashes });
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 1);
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (0, 0));
    let runner = runner(&w, 1);
    let _held = runner.try_next().unwrap().unwrap();
    let w = w.killed();
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (1, 1));
}

#[test]
fn a_crash_frees_a_key_that_holds_until_the_start_and_no_other() {
    job!(Started(u32) = "started", |o| o.unique(Unique::UntilStarted), |_| Some(b"k".to_vec()));
    job!(Ended(u32) = "ended", |o| o.unique(Unique::UntilDone), |_| Some(b"k".to_vec()));
    let w = world();
    let (a, b) = (w.jobs.push(&Started(1)).unwrap().id, w.jobs.push(&Ended(1)).unwrap().id);
    let runner = w.jobs.worker().threads(2).on(ok::<Started>).on(ok::<Ended>).runner().unwrap();
    let held = take_all(&runner);
    assert_eq!(held.len(), 2);
    let w = w.killed();
    let (again, same) = (w.jobs.push(&Started(2)).unwrap(), w.jobs.push(&Ended(2)).unwrap());
    assert!(!again.duplicate && again.id != a);
    assert!(same.duplicate && same.id == b);
}

#[test]
fn a_checkpoint_outlives_the_death_of_the_process() {
    let w = world();
    w.jobs.push(&Work(1)).unwrap();
    let runner = runner(&w, 1);
    let held = runner.try_next().unwrap().unwrap();
    assert_eq!(held.ctx().resume_from(), None);
    held.ctx().checkpoint(b"page 1").unwrap();
    held.ctx().checkpoint(b"page 7").unwrap();
    for w in [w.killed(), w.cut(kestrel_core::testing::Fate::None)] {
        w.pass(SEC);
        let log = Log::new();
        let seen = log.clone();
        w.run(move |ctx, _: Work| {
            seen.add(ctx.resume_from().map(<[u8]>::to_vec));
            Ok(Done::Complete)
        });
        assert_eq!(log.take(), [Some(b"page 7".to_vec())]);
    }
}

#[test]
fn a_death_right_after_the_open_counts_nothing_twice() {
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    let runner = runner(&w, 1);
    let _held = runner.try_next().unwrap().unwrap();
    let mut disk = w.disk.kill();
    for _ in 0..5 {
        let w = World::on(disk.clone());
        assert_eq!((w.info(id).attempts, w.info(id).crashes), (1, 1));
        disk = disk.kill();
    }
    // And where the jobs were never opened in between.
    let set = QueueSet::builder().simulated(&disk).defaults(defaults()).open("/set").unwrap();
    for name in set.names() {
        set.queue(&name).unwrap();
    }
    let w = World::on(disk.kill());
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (1, 1));
}

#[test]
fn a_set_opened_without_its_jobs_forgets_no_crash() {
    let w = world();
    let id = w.jobs.push(&Work(1)).unwrap().id;
    let runner = runner(&w, 1);
    let _held = runner.try_next().unwrap().unwrap();
    let disk = w.disk.kill();
    {
        // Somebody looks at the set, with its queues loaded or not, and closes it in good order.
        let set = QueueSet::builder().simulated(&disk).defaults(defaults()).open("/set").unwrap();
        for name in set.names() {
            assert!(set.queue(&name).unwrap().len() <= 1);
        }
        set.close().unwrap();
    }
    let w = World::on(disk);
    assert_eq!((w.info(id).attempts, w.info(id).crashes), (1, 1));
}
