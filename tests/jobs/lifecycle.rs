//! From the push to the end: status by id, ids, what waits for the end, what is kept of it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use kestrel_core::jobs::{
    Backoff, DeadReason, Done, Fail, Filter, JobId, JobState, Keep, Outcome, Progress, Push, Status,
};

use crate::common::*;

job!(Text(String) = "text");
job!(Kept(u32) = "kept", |o| o.queue("kept").keep_done(Keep::last(3).with_output()));
job!(Bare(u32) = "bare", |o| o.queue("bare").keep_done(Keep::last(100)));

#[test]
fn j01_a_job_is_seen_once_and_its_status_goes_from_waiting_to_its_end() {
    let w = real();
    let pushed = w.jobs.push(&Text("hello".into())).unwrap();
    assert!(!pushed.duplicate);
    assert_eq!((w.jobs.status(pushed.id), w.jobs.status(pushed.id).code()), (Status::Waiting, Some(1)));
    let (seen_by_test, seen) = mpsc::channel();
    let (gate, door) = Gate::new();
    let worker = w
        .jobs
        .worker()
        .threads(1)
        .on(move |ctx, job: Text| -> Result<(), Fail> {
            seen_by_test.send((ctx.id(), ctx.attempt(), job.0)).unwrap();
            gate.wait();
            Ok(())
        })
        .start()
        .unwrap();
    assert_eq!(seen.recv_timeout(LONG).unwrap(), (pushed.id, 1, "hello".to_owned()));
    let status = w.jobs.status(pushed.id);
    let Status::Running { attempt: 1, since, progress } = &status else { panic!("{status:?}") };
    assert!(*since <= SystemTime::now() + SEC, "but for the coarseness of a clock");
    assert_eq!((progress, status.code(), worker.busy()), (&Progress::default(), Some(2), 1));
    assert_eq!(w.jobs.wait(pushed.id, MS), None);
    door.open();
    assert!(matches!(w.jobs.wait(pushed.id, LONG), Some(Outcome::Done(_) | Outcome::Finished)));
    assert_eq!((w.jobs.status(pushed.id), w.jobs.status(pushed.id).code()), (Status::Finished, Some(4)));
    assert!(worker.drain(LONG));
    assert_eq!(worker.busy(), 0);
    assert!(seen.try_recv().is_err(), "seen twice");
    assert_eq!(w.jobs.wait(pushed.id, MS), Some(Outcome::Finished), "no record is kept");
    assert_eq!(w.jobs.info(pushed.id), None);
}

#[test]
fn j01_without_threads_the_same() {
    let w = world();
    let id = w.jobs.push(&Text("hello".into())).unwrap().id;
    let log = Log::new();
    let (seen, jobs) = (log.clone(), w.jobs.clone());
    let starts = w.run(move |ctx, job: Text| {
        seen.add((job.0, ctx.attempt(), jobs.status(ctx.id()).code()));
        Ok(Done::Complete)
    });
    assert_eq!((starts, log.take()), (1, vec![("hello".to_owned(), 1, Some(2))]));
    assert_eq!(w.status(id), Status::Finished);
}

#[test]
fn j29_a_job_that_ended_long_ago_is_finished_and_one_that_never_was_is_unknown() {
    let w = world();
    let ids: Vec<JobId> = (0..500).map(|n| w.jobs.push(&Text(n.to_string())).unwrap().id).collect();
    let high = w.jobs.push_with(&Text("high".into()), &Push::new().priority(kestrel_core::jobs::Priority::High));
    let later = w.jobs.push_with(&Text("later".into()), &Push::after(SEC)).unwrap().id;
    w.pass(SEC);
    assert_eq!(w.run(ok::<Text>), 502);
    let last = ids[499];
    let judge = |w: &World| {
        for id in ids.iter().chain([&high.as_ref().unwrap().id, &later]) {
            assert_eq!((w.status(*id), w.jobs.info(*id)), (Status::Finished, None), "{id}");
        }
        for never in
            [renumbered(last, |n| n + 1_000_000), renumbered(last, |_| u64::MAX), "0badf00d-7".parse().unwrap()]
        {
            assert_eq!(w.status(never), Status::Unknown, "{never}");
            assert_eq!((w.status(never).code(), w.jobs.info(never)), (None, None));
            assert_eq!(w.jobs.wait(never, MS), Some(Outcome::Unknown));
        }
    };
    judge(&w);
    let w = w.reopened();
    judge(&w);
    judge(&w.killed());
    w.pass(1000 * HOUR);
    judge(&w);
}

#[test]
fn j29_the_next_id_is_unknown_until_it_is_given_out() {
    let w = world();
    let first = w.jobs.push(&Text("1".into())).unwrap().id;
    let second = w.jobs.push(&Text("2".into())).unwrap().id;
    let third = renumbered(second, |n| n + 1);
    assert_eq!(
        (w.status(first), w.status(second), w.status(third)),
        (Status::Waiting, Status::Waiting, Status::Unknown)
    );
}

#[test]
fn an_id_is_one_token_and_is_never_given_out_again() {
    let mut seen = BTreeSet::new();
    let mut w = world();
    for life in 0..4 {
        let mut last = None;
        for n in 0..10 {
            let id = w.jobs.push(&Text(n.to_string())).unwrap().id;
            assert!(seen.insert(id), "{id} came twice");
            assert!(last < Some(id), "ids fall");
            last = Some(id);
            let text = id.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{text}");
            assert_eq!(text.parse(), Ok(id));
        }
        assert_eq!(w.run(ok::<Text>), 10);
        w = if life % 2 == 0 { w.reopened() } else { w.killed() };
    }
    // Of two pushes with a delay the later one has the higher id too.
    let delayed: Vec<_> =
        (1..9).map(|n| w.jobs.push_with(&Text("late".into()), &Push::after((9 - n) * SEC)).unwrap().id).collect();
    assert!(delayed.is_sorted(), "{delayed:?}");
    assert!(delayed.iter().all(|id| seen.insert(*id)));
}

#[test]
fn an_id_outlives_retry_death_requeue_and_restart() {
    job!(Dies(u32) = "dies", |o| o.max_attempts(2).backoff(Backoff::Fixed(SEC)));
    let w = world();
    let id = w.jobs.push(&Dies(7)).unwrap().id;
    let log = Log::new();
    let fail = |log: &Log<JobId>| {
        let log = log.clone();
        move |ctx: &kestrel_core::jobs::Ctx, _: Dies| {
            log.add(ctx.id());
            Err(Fail::retry("no"))
        }
    };
    assert_eq!(w.run(fail(&log)), 1);
    let w = w.reopened();
    assert!(matches!(w.status(id), Status::Retrying { attempt: 1, .. }));
    w.pass(SEC);
    assert_eq!(w.run(fail(&log)), 1);
    let w = w.killed();
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Attempts });
    assert_eq!(w.jobs.requeue_dead(&Filter::new().ids([id])).unwrap(), 1);
    assert_eq!(w.status(id), Status::Waiting);
    assert_eq!(w.run(fail(&log)), 1);
    w.pass(SEC);
    let w = w.reopened();
    assert_eq!(w.run(fail(&log)), 1);
    assert_eq!(log.take(), [id; 4]);
    assert_eq!(w.dead().len(), 1);
}

#[test]
fn each_status_has_the_number_that_php_resque_gives_it() {
    let due = SystemTime::UNIX_EPOCH;
    for (status, code, ended) in [
        (Status::Scheduled { due }, Some(1), false),
        (Status::Waiting, Some(1), false),
        (Status::Retrying { attempt: 1, due, error: String::new() }, Some(1), false),
        (Status::Running { attempt: 1, since: due, progress: Progress::default() }, Some(2), false),
        (Status::Dead { reason: DeadReason::Attempts }, Some(3), true),
        (Status::Cancelled, Some(3), true),
        (Status::Expired, Some(3), true),
        (Status::Done, Some(4), true),
        (Status::Finished, Some(4), true),
        (Status::Unknown, None, true),
    ] {
        assert_eq!((status.code(), status.has_ended()), (code, ended), "{status:?}");
    }
}

#[test]
fn records_of_the_last_done_are_kept_with_their_output_and_no_more() {
    let w = world();
    let ids: Vec<_> = (0..5).map(|n| w.jobs.push(&Kept(n)).unwrap().id).collect();
    assert_eq!(w.run(|_, job: Kept| Ok(Done::Output(vec![u8::try_from(job.0).unwrap(); 3]))), 5);
    let judge = |w: &World| {
        let statuses: Vec<_> = ids.iter().map(|id| w.status(*id)).collect();
        assert_eq!(
            statuses,
            [Status::Finished, Status::Finished, Status::Done, Status::Done, Status::Done],
            "the last three"
        );
        assert_eq!(w.jobs.wait(ids[4], MS), Some(Outcome::Done(vec![4; 3])));
        assert_eq!(w.jobs.wait(ids[0], MS), Some(Outcome::Finished));
        let info = w.info(ids[3]);
        assert_eq!(
            (info.state, info.attempts, info.queue.as_str(), info.kind.as_str()),
            (JobState::Done, 1, "kept", "kept")
        );
        assert!(info.ended.is_some() && info.dead.is_none());
        assert_eq!(w.ids(&Filter::new().state(JobState::Done)), ids[2..]);
    };
    judge(&w);
    let w = w.reopened();
    judge(&w);
    judge(&w.killed());
}

#[test]
fn a_record_without_output_tells_the_end_alone() {
    let w = world();
    let id = w.jobs.push(&Bare(1)).unwrap().id;
    assert_eq!(w.run(|_, _: Bare| Ok(Done::Output(vec![9]))), 1);
    assert_eq!(w.status(id), Status::Done);
    let w = w.reopened();
    assert_eq!((w.status(id), w.jobs.wait(id, MS)), (Status::Done, Some(Outcome::Done(Vec::new()))));
}

#[test]
fn records_go_when_they_are_old() {
    job!(Aged(u32) = "aged", |o| o.keep_done(Keep::last(100).for_at_most(10 * SEC)));
    let w = world();
    let old = w.jobs.push(&Aged(1)).unwrap().id;
    assert_eq!(w.run(ok::<Aged>), 1);
    w.pass(9 * SEC);
    let young = w.jobs.push(&Aged(2)).unwrap().id;
    assert_eq!(w.run(ok::<Aged>), 1);
    assert_eq!((w.status(old), w.status(young)), (Status::Done, Status::Done));
    w.pass(2 * SEC);
    assert_eq!((w.status(old), w.status(young)), (Status::Finished, Status::Done));
    assert_eq!(w.ids(&Filter::new().state(JobState::Done)), [young]);
    let w = w.reopened();
    assert_eq!((w.status(old), w.status(young)), (Status::Finished, Status::Done));
}

#[test]
fn who_waits_is_told_how_it_ended() {
    job!(Ends(u32) = "ends", |o| o.max_attempts(1));
    let w = world();
    let ids: Vec<_> = (0..5).map(|n| w.jobs.push(&Ends(n)).unwrap().id).collect();
    assert_eq!(w.jobs.wait(ids[0], MS), None);
    let mut waits: Vec<_> = ids.iter().map(|id| Box::pin(w.jobs.wait_async(*id))).collect();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut cx).is_pending()));
    w.jobs.cancel(ids[4]).unwrap();
    w.run(|_, job: Ends| match job.0 {
        0 => Ok(Done::Complete),
        1 => Ok(Done::Output(b"out".to_vec())),
        2 => Err(Fail::retry("last")),
        _ => Err(Fail::discard("never mind")),
    });
    let ends: Vec<_> = waits
        .iter_mut()
        .map(|wait| match wait.as_mut().poll(&mut cx) {
            Poll::Ready(end) => end,
            Poll::Pending => panic!("it has ended"),
        })
        .collect();
    assert_eq!(
        ends,
        [
            Outcome::Done(Vec::new()),
            Outcome::Done(b"out".to_vec()),
            Outcome::Dead { reason: DeadReason::Attempts, error: "last".into() },
            Outcome::Discarded,
            Outcome::Cancelled,
        ]
    );
    drop(waits);
    // The dead are kept, and so is what they died of.
    let dead = Some(Outcome::Dead { reason: DeadReason::Attempts, error: "last".into() });
    assert_eq!((w.jobs.wait(ids[2], MS), w.jobs.wait(ids[0], MS)), (dead.clone(), Some(Outcome::Finished)));
    let w = w.reopened();
    assert_eq!(w.jobs.wait(ids[2], MS), dead);
    assert_eq!(pin!(w.jobs.wait_async(ids[0])).poll(&mut cx), Poll::Ready(Outcome::Finished));
    assert_eq!(pin!(w.jobs.wait_async(renumbered(ids[4], |n| n + 77))).poll(&mut cx), Poll::Ready(Outcome::Unknown));
}

#[test]
fn a_wait_in_another_thread_is_woken() {
    let w = real();
    let worker = w.jobs.worker().threads(2).on(ok::<Text>).start().unwrap();
    for n in 0..50 {
        let id = w.jobs.push(&Text(n.to_string())).unwrap().id;
        let end = w.jobs.wait(id, LONG);
        assert!(matches!(end, Some(Outcome::Done(_) | Outcome::Finished)), "{end:?}");
    }
    drop(worker);
}

#[test]
fn info_tells_what_was_pushed() {
    use kestrel_core::jobs::Priority;
    let w = world();
    w.pass(5 * SEC);
    let how = Push::after(HOUR).queue("post").priority(Priority::Low).tag("customer 17");
    let id = w.jobs.push_with(&Text("x".repeat(100)), &how).unwrap().id;
    let judge = |w: &World| {
        let info = w.info(id);
        assert_eq!((info.id, info.queue.as_str(), info.kind.as_str()), (id, "post", "text"));
        assert_eq!(
            (info.state, info.priority, info.tag.as_deref()),
            (JobState::Scheduled, Priority::Low, Some("customer 17"))
        );
        assert_eq!((info.attempts, info.crashes, info.snoozes, info.payload_len), (0, 0, 0, 101));
        let now = w.now();
        assert_eq!((info.pushed, info.due), (now, Some(now + HOUR)));
        assert_eq!((info.first_failure, info.failures.len(), info.dead, info.ended), (None, 0, None, None));
        assert_eq!(w.status(id), Status::Scheduled { due: now + HOUR });
        assert_eq!(w.list(&Filter::new().tag("customer 17")), [info]);
    };
    judge(&w);
    let w = w.reopened();
    judge(&w);
    judge(&w.killed());
}

#[test]
fn all_handles_of_a_set_share_one_state() {
    let w = world();
    let other = kestrel_core::jobs::Jobs::new(&w.set).unwrap();
    let id = other.push(&Text("x".into())).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Text>).runner().unwrap();
    let job = runner.try_next().unwrap().unwrap();
    assert!(matches!(other.status(id), Status::Running { .. }));
    assert_eq!(job.run_blocking(), Status::Finished);
    assert_eq!(other.stats(), w.jobs.stats());
    assert_eq!(other.stats().queues["default"].done, 1);
}

#[test]
fn progress_and_notes_are_told_and_gone_with_the_start() {
    let w = world();
    let id = w.jobs.push(&Text("x".into())).unwrap().id;
    let jobs = w.jobs.clone();
    let told = Log::new();
    let seen = told.clone();
    let starts = w.run(move |ctx, _: Text| {
        let look = || {
            let Status::Running { progress, .. } = jobs.status(ctx.id()) else { panic!("it runs") };
            seen.add((progress.done, progress.total, progress.note));
        };
        look();
        ctx.progress(3, 10);
        ctx.note("third of ten");
        look();
        ctx.progress(4, 10);
        look();
        ctx.note("");
        look();
        ctx.note(&"é".repeat(2000));
        look();
        Err(Fail::retry_in("again", SEC))
    });
    assert_eq!(starts, 1);
    let mut told = told.take();
    let long = told.pop().unwrap().2;
    assert!(long.len() <= 1024 && long.len() >= 1000 && long.chars().all(|c| c == 'é'), "{}", long.len());
    let note = "third of ten".to_owned();
    assert_eq!(told, [(0, 0, String::new()), (3, 10, note.clone()), (4, 10, note), (4, 10, String::new())]);
    w.pass(SEC);
    let runner = w.jobs.worker().on(ok::<Text>).runner().unwrap();
    let job = runner.try_next().unwrap().unwrap();
    let Status::Running { attempt: 2, progress, .. } = w.status(id) else { panic!("it runs") };
    assert_eq!(progress, Progress::default());
    job.run_blocking();
}
