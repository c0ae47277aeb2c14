//! The dead: what is kept of them and for how long, how they are found, let again and removed; records of other ends.

use kestrel_core::jobs::{
    Backoff, Ctx, DeadReason, Done, Event, Fail, Filter, JobError, JobId, JobState, Keep, Outcome, Push, Status,
};
use kestrel_core::testing::SimDisk;
use kestrel_core::{Durability, QueueOptions};

use crate::common::*;

job!(Frail(u32) = "frail", |o| o.max_attempts(1));
job!(Other(u32) = "other", |o| o.max_attempts(1).queue("second"));
job!(Few(u32) = "few", |o| o.max_attempts(1).keep_dead(Keep::last(3)));
job!(Short(u32) = "short", |o| o.max_attempts(1).keep_dead(Keep::last(100).for_at_most(HOUR)));
job!(Gone(u32) = "gone", |o| o.max_attempts(1).keep_dead(Keep::none()));
job!(Noted(u32) = "noted", |o| o.keep_done(Keep::last(10)));

/// Fails with a text of two.
fn two_texts(_: &Ctx, job: Frail) -> Result<Done, Fail> {
    Err(Fail::retry(if job.0.is_multiple_of(4) { "timed out" } else { "refused by the server" }))
}

#[test]
fn j27_dead_jobs_are_let_again_by_the_text_of_their_error() {
    const COUNT: u32 = 10_000;
    let w = World::with(SimDisk::new(1), QueueOptions::default().durability(Durability::Os));
    let jobs: Vec<_> = (0..COUNT).map(Frail).collect();
    let ids: Vec<_> = w.jobs.push_all(&jobs).unwrap().into_iter().map(|pushed| pushed.id).collect();
    assert_eq!(w.run(two_texts), COUNT as usize);
    assert_eq!((w.stats("default").dead, w.stats("default").died), (10_000, 10_000));
    for empty in [Filter::new(), Filter::new().limit(3)] {
        assert!(matches!(w.jobs.requeue_dead(&empty), Err(JobError::EmptyFilter)));
        assert!(matches!(w.jobs.purge_dead(&empty), Err(JobError::EmptyFilter)));
    }
    assert_eq!(w.jobs.requeue_dead(&Filter::new().error_contains("timed")).unwrap(), 2_500);
    let stats = w.stats("default");
    assert_eq!((stats.dead, stats.waiting), (7_500, 2_500));
    for (n, id) in ids.iter().enumerate().step_by(97) {
        let info = w.info(*id);
        if n % 4 == 0 {
            assert_eq!((w.status(*id), info.attempts, info.crashes, info.dead), (Status::Waiting, 0, 0, None));
        } else {
            assert_eq!((info.dead, info.attempts), (Some(DeadReason::Attempts), 1));
        }
    }
    let log = Log::new();
    let seen = log.clone();
    let starts = w.run(move |ctx, job: Frail| {
        seen.add((ctx.id(), ctx.attempt(), job.0));
        Ok(Done::Complete)
    });
    assert_eq!(starts, 2_500);
    let expected: Vec<_> = (0..COUNT).step_by(4).map(|n| (ids[n as usize], 1, n)).collect();
    assert!(log.take() == expected, "other jobs, or in another order");
    assert_eq!(w.jobs.requeue_dead(&Filter::new().error_contains("timed")).unwrap(), 0);
}

#[test]
fn j27_the_same_is_so_after_a_restart() {
    let w = world();
    let ids: Vec<_> = (0..8).map(|n| w.jobs.push(&Frail(n)).unwrap().id).collect();
    w.run(two_texts);
    let w = w.reopened();
    assert_eq!(w.jobs.requeue_dead(&Filter::new().error_contains("timed")).unwrap(), 2);
    let w = w.killed();
    assert_eq!((w.status(ids[0]), w.status(ids[4])), (Status::Waiting, Status::Waiting));
    assert_eq!((w.dead().len(), w.stats("default").dead), (6, 6));
    let w = w.reopened();
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 6);
    assert_eq!(w.run(ok::<Frail>), 8);
    assert!(ids.iter().all(|id| w.status(*id) == Status::Finished));
}

#[test]
fn jobs_that_are_let_again_run_before_the_fresh_ones() {
    let w = world();
    for n in 0..3 {
        w.jobs.push(&Frail(n)).unwrap();
    }
    w.run(two_texts);
    w.jobs.push(&Frail(10)).unwrap();
    let events = w.jobs.events();
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 3);
    assert_eq!(told(&events).iter().filter(|event| matches!(event, Event::Requeued { .. })).count(), 3);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Frail| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [0, 1, 2, 10]);
}

fn all_kinds(w: &World) -> Vec<JobId> {
    let mut ids = Vec::new();
    for n in 0..3 {
        let tag = Push::new().tag(format!("tag {n}"));
        ids.push(w.jobs.push_with(&Frail(n), &tag).unwrap().id);
        ids.push(w.jobs.push_with(&Other(n), &tag).unwrap().id);
        w.jobs
            .worker()
            .on(two_texts)
            .on(|_, _: Other| Err::<(), _>(Fail::reject("never")))
            .runner()
            .unwrap()
            .run_until_empty()
            .unwrap();
        w.pass(HOUR);
    }
    ids
}

#[test]
fn each_condition_of_a_filter_holds_and_all_of_them_together() {
    type Pick = fn(&[JobId]) -> (Filter, Vec<JobId>);
    let picks: [Pick; 11] = [
        |ids| (Filter::all(), ids.to_vec()),
        |ids| (Filter::new().queue("second"), vec![ids[1], ids[3], ids[5]]),
        |ids| (Filter::new().kind("frail"), vec![ids[0], ids[2], ids[4]]),
        |ids| (Filter::new().tag("tag 1"), vec![ids[2], ids[3]]),
        |_| (Filter::new().tag("tag"), vec![]),
        |ids| (Filter::new().reason(DeadReason::Rejected), vec![ids[1], ids[3], ids[5]]),
        |ids| (Filter::new().older_than(HOUR * 3 / 2), vec![ids[0], ids[1], ids[2], ids[3]]),
        |ids| (Filter::new().ids([ids[4], ids[1]]), vec![ids[1], ids[4]]),
        |ids| (Filter::new().ids([ids[4], ids[1]]).queue("default"), vec![ids[4]]),
        |ids| (Filter::new().queue("default").limit(2), vec![ids[0], ids[2]]),
        |ids| (Filter::all().state(JobState::Dead).error_contains("e").tag("tag 2").kind("other"), vec![ids[5]]),
    ];
    for (n, pick) in picks.into_iter().enumerate() {
        let sorted = |mut ids: Vec<JobId>| {
            ids.sort_unstable();
            ids
        };
        let w = world();
        let ids = all_kinds(&w);
        let (filter, expected) = pick(&ids);
        assert_eq!(sorted(w.ids(&filter)), sorted(expected.clone()), "{n}");
        assert_eq!(w.jobs.requeue_dead(&filter).unwrap(), expected.len() as u64, "{n}");
        let waiting = w.ids(&Filter::new().state(JobState::Waiting));
        assert_eq!(sorted(waiting), sorted(expected.clone()), "{n}");
        assert_eq!(w.dead().len(), 6 - expected.len());
        let w = world();
        let ids = all_kinds(&w);
        let (filter, expected) = pick(&ids);
        assert_eq!(w.jobs.purge_dead(&filter).unwrap(), expected.len() as u64, "{n}");
        let w = w.reopened();
        for id in ids {
            let purged = expected.contains(&id);
            assert_eq!(w.status(id) == Status::Finished, purged, "{n}: {id} is {:?}", w.status(id));
        }
        assert_eq!(w.stats("default").dead + w.stats("second").dead, 6 - expected.len() as u64);
    }
}

#[test]
fn a_filter_of_another_state_means_no_dead_job() {
    let w = world();
    all_kinds(&w);
    for state in [JobState::Waiting, JobState::Running, JobState::Done, JobState::Cancelled] {
        assert_eq!(w.jobs.requeue_dead(&Filter::new().state(state)).unwrap(), 0);
        assert_eq!(w.jobs.purge_dead(&Filter::new().state(state)).unwrap(), 0);
    }
    assert_eq!(w.jobs.purge_dead(&Filter::new().ids([])).unwrap(), 0, "none is a condition");
    assert_eq!(w.jobs.purge_dead(&Filter::new().queue("no such queue")).unwrap(), 0);
    assert_eq!(w.dead().len(), 6);
}

#[test]
fn the_dead_are_a_queue_of_the_set() {
    let w = world();
    w.jobs.push(&Frail(1)).unwrap();
    w.run(two_texts);
    assert!(w.set.names().contains(&"default.dead".to_owned()), "{:?}", w.set.names());
    assert_eq!(w.set.queue("default.dead").unwrap().len(), 1);
    assert_eq!(w.jobs.queues(), ["default"], "and no job queue");
}

#[test]
fn of_the_dead_the_last_are_kept() {
    let w = world();
    let ids: Vec<_> = (0..5).map(|n| w.jobs.push(&Few(n)).unwrap().id).collect();
    assert_eq!(w.run(|_, _: Few| Err(Fail::retry("no"))), 5);
    let judge = |w: &World| {
        assert_eq!(w.ids(&Filter::new().state(JobState::Dead)), ids[2..]);
        assert_eq!((w.status(ids[0]), w.status(ids[1])), (Status::Finished, Status::Finished));
        assert_eq!(w.stats("default").dead, 3);
    };
    judge(&w);
    assert_eq!(w.stats("default").died, 5);
    let w = w.reopened();
    judge(&w);
    judge(&w.killed());
}

#[test]
fn the_dead_go_when_they_are_old() {
    let w = world();
    let old = w.jobs.push(&Short(1)).unwrap().id;
    let fail = |_: &Ctx, _: Short| -> Result<Done, Fail> { Err(Fail::retry("no")) };
    w.run(fail);
    w.pass(HOUR / 2);
    let young = w.jobs.push(&Short(2)).unwrap().id;
    w.run(fail);
    assert_eq!(w.dead().len(), 2);
    w.pass(HOUR / 2 + SEC);
    assert_eq!(w.ids(&Filter::new().state(JobState::Dead)), [young]);
    assert_eq!(w.status(old), Status::Finished);
    let w = w.reopened();
    assert_eq!((w.status(old), w.status(young)), (Status::Finished, Status::Dead { reason: DeadReason::Attempts }));
    w.pass(HOUR);
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 0);
    assert_eq!(w.status(young), Status::Finished);
}

#[test]
fn where_no_dead_are_kept_a_death_is_told_and_counted() {
    let w = world();
    let events = w.jobs.events();
    let id = w.jobs.push(&Gone(1)).unwrap().id;
    w.run(|_, _: Gone| Err(Fail::retry("no")));
    assert_eq!((w.status(id), w.dead().len()), (Status::Finished, 0));
    assert_eq!((w.stats("default").died, w.stats("default").dead), (1, 0));
    assert!(told(&events).iter().any(|event| matches!(event, Event::Dead { id: dead, .. } if *dead == id)));
}

#[test]
fn a_requeued_job_has_all_its_attempts_again() {
    job!(Two(u32) = "two", |o| o.max_attempts(2).backoff(Backoff::Fixed(SEC)));
    let w = world();
    let id = w.jobs.push(&Two(1)).unwrap().id;
    let fail = |_: &Ctx, _: Two| -> Result<Done, Fail> { Err(Fail::retry("no")) };
    for round in 0..3 {
        for attempt in 1..=2 {
            assert_eq!(w.run(fail), 1, "round {round}, attempt {attempt}");
            w.pass(SEC);
        }
        assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
        assert_eq!(w.info(id).attempts, 2);
        assert_eq!(w.jobs.requeue_dead(&Filter::new().ids([id])).unwrap(), 1);
        assert_eq!((w.info(id).attempts, w.info(id).ended, w.info(id).dead), (0, None, None));
    }
}

#[test]
fn who_waits_for_a_requeued_job_waits_for_its_next_end() {
    let w = world();
    let id = w.jobs.push(&Frail(1)).unwrap().id;
    w.run(two_texts);
    assert!(matches!(w.jobs.wait(id, MS), Some(Outcome::Dead { .. })));
    w.jobs.requeue_dead(&Filter::all()).unwrap();
    assert_eq!(w.jobs.wait(id, MS), None);
    w.run(ok::<Frail>);
    assert_eq!(w.jobs.wait(id, MS), Some(Outcome::Finished));
}

#[test]
fn a_cancelled_job_leaves_a_record_where_records_are_kept() {
    let w = world();
    let (kept, other) = (w.jobs.push(&Noted(1)).unwrap().id, w.jobs.push(&Frail(1)).unwrap().id);
    w.jobs.cancel(kept).unwrap();
    w.jobs.cancel(other).unwrap();
    for w in [w.killed(), w.reopened()] {
        assert_eq!((w.status(kept), w.status(kept).code()), (Status::Cancelled, Some(3)));
        assert_eq!(w.status(other), Status::Finished);
        assert_eq!(w.jobs.wait(kept, MS), Some(Outcome::Cancelled));
        assert_eq!(w.ids(&Filter::new().state(JobState::Cancelled)), [kept]);
        assert_eq!(w.run(ok::<Noted>), 0);
    }
}

#[test]
fn dead_jobs_take_their_priority_and_tag_with_them() {
    use kestrel_core::jobs::Priority;
    let w = world();
    let low = w.jobs.push_with(&Frail(1), &Push::new().priority(Priority::Low).tag("low")).unwrap().id;
    let high = w.jobs.push_with(&Frail(2), &Push::new().priority(Priority::High).tag("high")).unwrap().id;
    w.run(two_texts);
    let w = w.reopened();
    assert_eq!((w.info(low).priority, w.info(low).tag.as_deref()), (Priority::Low, Some("low")));
    w.jobs.push(&Frail(3)).unwrap();
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 2);
    assert_eq!((w.info(high).priority, w.info(high).tag.as_deref()), (Priority::High, Some("high")));
    let log = Log::new();
    let seen = log.clone();
    w.run(move |ctx, job: Frail| {
        seen.add((job.0, ctx.tag().map(str::to_owned)));
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [(2, Some("high".to_owned())), (3, None), (1, Some("low".to_owned()))]);
}
