//! Between a job's bytes and its handler: codecs and kinds that changed, what is no job, batches, middleware, futures,
//! checkpoints, timeouts, the end with more jobs.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kestrel_core::Codec;
use kestrel_core::jobs::{
    Cause, Ctx, DeadReason, Done, Event, Fail, Filter, Job, JobError, JobId, Keep, Outcome, Push, Status, Transaction,
};

use crate::common::*;

job!(Number(u64) = "number");
job!(Note(String) = "note");
job!(Next(u32) = "next");

/// A codec whose name and answers the test chooses: 4 bytes, or an error.
#[derive(Debug)]
struct Refusal;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("these are not four bytes")
    }
}

impl std::error::Error for Refusal {}

#[derive(Default)]
struct Four<const ID: u32>;

macro_rules! four {
    ($name:ident, $id:literal) => {
        #[derive(Debug, PartialEq)]
        struct $name(u32);

        impl Job for $name {
            const KIND: &'static str = "four";
            type Codec = Four<$id>;
        }

        impl Codec<$name> for Four<$id> {
            type Error = Refusal;

            fn encode(&self, value: &$name, out: &mut Vec<u8>) -> Result<(), Refusal> {
                out.extend_from_slice(&value.0.to_le_bytes());
                if value.0 == 13 { Err(Refusal) } else { Ok(()) }
            }

            fn decode(&self, bytes: &[u8]) -> Result<$name, Refusal> {
                match u32::from_le_bytes(bytes.try_into().map_err(|_| Refusal)?) {
                    99 => panic!("the codec panics"),
                    value => Ok($name(value)),
                }
            }

            fn id(&self) -> u32 {
                $id
            }
        }
    };
}

four!(FourA, 1000);
four!(FourB, 1001);

#[test]
fn j25_bytes_that_do_not_decode_are_dead_with_the_codecs_words_and_run_untouched_later() {
    // The kind was a text, and is a number since.
    mod before {
        job!(Kind(String) = "kind");
        pub(super) fn push(w: &super::World) -> kestrel_core::jobs::JobId {
            w.jobs.push(&Kind("not a number".into())).unwrap().id
        }
    }
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Kind(u64, u64, String, u64);
    impl Job for Kind {
        const KIND: &'static str = "kind";
        type Codec = kestrel_core::Postcard;
    }
    job!(Repaired(String) = "kind");
    let w = world();
    let id = before::push(&w);
    let good = w.jobs.push(&Number(1)).unwrap().id;
    let events = w.jobs.events();
    let runner = w.jobs.worker().on(ok::<Kind>).on(ok::<Number>).runner().unwrap();
    runner.run_until_empty().unwrap();
    assert_eq!(w.status(good), Status::Finished, "the worker goes on");
    let w = w.reopened();
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::Undecodable });
    let info = w.info(id);
    assert_eq!((info.kind.as_str(), info.payload_len), ("kind", 13));
    let failure = info.failures.last().expect("a failure");
    assert_eq!(failure.cause, Cause::Undecodable);
    let words = postcard::from_bytes::<Kind>(b"\x0cnot a number").unwrap_err().to_string();
    assert!(failure.error.contains(&words), "{:?} does not say {words:?}", failure.error);
    assert!(told(&events).iter().any(|e| matches!(e, Event::Dead { reason: DeadReason::Undecodable, .. })));
    assert_eq!(w.jobs.requeue_dead(&Filter::new().reason(DeadReason::Undecodable)).unwrap(), 1);
    let log = Log::new();
    let seen = log.clone();
    assert_eq!(
        w.run(move |ctx, job: Repaired| {
            seen.add((ctx.id(), ctx.attempt(), job.0));
            Ok(Done::Complete)
        }),
        1
    );
    assert_eq!(log.take(), [(id, 1, "not a number".to_owned())]);
}

#[test]
fn j25_bytes_of_another_codec_are_not_taken_for_the_handlers() {
    let w = world();
    let id = w.jobs.push(&FourA(7)).unwrap().id;
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: FourB| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!((log.len(), w.status(id)), (0, Status::Dead { reason: DeadReason::Undecodable }));
    w.jobs.requeue_dead(&Filter::all()).unwrap();
    let seen = log.clone();
    w.run(move |_, job: FourA| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!((log.take(), w.status(id)), (vec![7], Status::Finished));
}

#[test]
fn j25_a_codec_that_panics_takes_no_worker_with_it() {
    let w = world();
    let bad = w.jobs.push(&FourA(99)).unwrap().id;
    let good = w.jobs.push(&FourA(1)).unwrap().id;
    w.run(ok::<FourA>);
    assert_eq!(w.status(good), Status::Finished);
    assert!(
        matches!(w.status(bad), Status::Dead { reason: DeadReason::Undecodable } | Status::Retrying { .. }),
        "{:?}",
        w.status(bad)
    );
    assert_eq!(w.stats("default").running, 0);
}

#[test]
fn a_value_that_does_not_encode_is_refused_and_nothing_is_stored() {
    let w = world();
    let refused = w.jobs.push(&FourA(13));
    let Err(JobError::Encode { kind: "four", source }) = &refused else { panic!("{refused:?}") };
    assert_eq!(source.to_string(), "these are not four bytes");
    let mut tx = Transaction::new();
    assert!(matches!(w.jobs.stage(&mut tx, &FourA(13), &Push::new()), Err(JobError::Encode { .. })));
    assert!(tx.is_empty());
    let all = w.jobs.push_all(&[FourA(1), FourA(13), FourA(2)]);
    assert!(matches!(all, Err(JobError::Encode { .. })), "{all:?}");
    assert_eq!(w.list(&Filter::all()).len(), 0, "all or none");
}

#[test]
fn j26_a_job_of_an_unknown_kind_is_put_back_uncounted_and_others_behind_it_are_served() {
    let w = world();
    let unknown = w.jobs.push(&Note("later".into())).unwrap().id;
    let known: Vec<_> = (0..3).map(|n| w.jobs.push(&Number(n)).unwrap().id).collect();
    let events = w.jobs.events();
    let runner = w.jobs.worker().on(ok::<Number>).runner().unwrap();
    runner.run_until_empty().unwrap();
    assert!(known.iter().all(|id| w.status(*id) == Status::Finished));
    assert_eq!(w.status(unknown).code(), Some(1));
    let info = w.info(unknown);
    assert_eq!((info.attempts, info.crashes, info.dead), (0, 0, None));
    assert!(told(&events).iter().any(|event| matches!(event, Event::Returned { id, .. } if *id == unknown)));
    // It is met again after half a minute, and not before.
    let due = runner.next_due().expect("it pauses");
    assert_within(w.ahead(due), 29 * SEC, 31 * SEC);
    w.pass(28 * SEC);
    assert_eq!(w.run(ok::<Note>), 0);
    w.pass(3 * SEC);
    let log = Log::new();
    let seen = log.clone();
    assert_eq!(
        w.run(move |ctx, job: Note| {
            seen.add((ctx.attempt(), job.0));
            Ok(Done::Complete)
        }),
        1
    );
    assert_eq!((log.take(), w.status(unknown)), (vec![(1, "later".to_owned())], Status::Finished));
}

#[test]
fn j26_a_job_that_nobody_knew_for_a_day_is_dead() {
    let mut w = world();
    let id = w.jobs.push(&Note("never".into())).unwrap().id;
    // That nobody looked for it does not count.
    w.pass(48 * HOUR);
    let mut met = Duration::ZERO;
    while met < 23 * HOUR {
        w.jobs.worker().on(ok::<Number>).runner().unwrap().run_until_empty().unwrap();
        assert_eq!(w.status(id).code(), Some(1), "after {met:?}");
        w.pass(HOUR / 2);
        met += HOUR / 2;
        if met == 12 * HOUR {
            w = w.reopened();
        }
    }
    w.pass(HOUR + 60 * SEC);
    w.jobs.worker().on(ok::<Number>).runner().unwrap().run_until_empty().unwrap();
    assert_eq!(w.status(id), Status::Dead { reason: DeadReason::UnknownKind });
    assert_eq!(w.info(id).attempts, 0);
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 1);
    assert_eq!(w.run(ok::<Note>), 1);
}

#[test]
fn a_renamed_kind_is_known_by_its_earlier_names() {
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Renamed(u64);
    impl Job for Renamed {
        const KIND: &'static str = "renamed";
        const ALIASES: &'static [&'static str] = &["number", "nombre"];
        type Codec = kestrel_core::Postcard;
    }
    let w = world();
    w.jobs.push(&Number(1)).unwrap();
    w.jobs.push(&Renamed(2)).unwrap();
    let log = Log::new();
    let seen = log.clone();
    assert_eq!(
        w.run(move |ctx, job: Renamed| {
            seen.add((ctx.kind().to_owned(), job.0));
            Ok(Done::Complete)
        }),
        2
    );
    assert_eq!(log.take(), [("number".to_owned(), 1), ("renamed".to_owned(), 2)]);
}

#[test]
fn what_is_no_job_goes_to_the_dead_unchanged() {
    let w = world();
    w.jobs.push(&Number(1)).unwrap();
    let raw = w.set.queue("default").unwrap();
    let foreign: [&[u8]; 5] = [b"", b"\0", b"hello, this is no job", &[0xff; 300], &[7; 5000]];
    for payload in foreign {
        raw.put(payload).unwrap();
    }
    w.jobs.push(&Number(2)).unwrap();
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Number| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [1, 2]);
    let w = w.reopened();
    let dead = w.dead();
    assert_eq!(dead.len(), 5);
    for (info, payload) in dead.iter().zip(foreign) {
        assert_eq!((info.kind.as_str(), info.dead), ("", Some(DeadReason::Undecodable)));
        assert_eq!((info.queue.as_str(), info.payload_len), ("default", payload.len()));
        assert_eq!(w.status(info.id), Status::Dead { reason: DeadReason::Undecodable });
    }
    // Let again they are dead again, and no worker is the worse for it.
    assert_eq!(w.jobs.requeue_dead(&Filter::all()).unwrap(), 5);
    w.run(ok::<Number>);
    assert_eq!(w.dead().len(), 5);
    let kept = w.set.queue("default.dead").unwrap();
    for payload in foreign {
        let item = kept.get().unwrap();
        let found = payload.is_empty() || item.data().windows(payload.len()).any(|part| part == payload);
        assert!(found, "{} bytes are not as they were", payload.len());
    }
}

#[test]
fn bytes_made_to_look_like_a_job_do_no_harm() {
    let w = world();
    w.jobs.push_with(&Note("victim".into()), &Push::new().tag("tag").key("key").max_attempts(2)).unwrap();
    let raw = w.set.queue("default").unwrap();
    let whole = raw.peek().unwrap().unwrap().into_vec();
    let mut forged = 0;
    for cut in 0..whole.len() {
        raw.put(&whole[..cut]).unwrap();
        forged += 1;
    }
    for at in 0..whole.len() {
        for bit in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            raw.put(&bytes).unwrap();
            forged += 1;
        }
    }
    let mut longer = whole.clone();
    longer.extend_from_slice(b"more");
    raw.put(&longer).unwrap();
    // The very same bytes twice.
    raw.put(&whole).unwrap();
    forged += 2;
    let last = w.jobs.push(&Note("last".into())).unwrap().id;
    let lives = Arc::new(AtomicUsize::new(0));
    for round in 0..4 {
        let seen = Arc::clone(&lives);
        w.jobs
            .worker()
            .on(move |_, _: Note| -> Result<(), Fail> {
                seen.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .runner()
            .unwrap()
            .run_until_empty()
            .unwrap();
        if round == 0 {
            assert_eq!(w.status(last), Status::Finished);
        }
        for info in w.list(&Filter::all()) {
            w.status(info.id);
        }
        w.pass(1000 * HOUR);
    }
    assert!(lives.load(Ordering::SeqCst) >= 2);
    assert_within(w.list(&Filter::all()).len() + lives.load(Ordering::SeqCst), 2, forged + 2);
    let w = w.reopened();
    assert_eq!(w.status(last), Status::Finished);
    assert_eq!(w.stats("default").running, 0);
    w.jobs.purge_dead(&Filter::all()).unwrap();
    assert_eq!(w.dead().len(), 0);
}

#[test]
fn j21_a_checkpoint_is_there_at_the_next_start_and_gone_with_the_end() {
    let items = |w: &World| -> u64 { w.set.names().iter().map(|name| w.set.queue(name).unwrap().len()).sum() };
    let lens: Vec<u64> = [true, false]
        .into_iter()
        .map(|checkpoints| {
            let w = world();
            let id = w.jobs.push(&Number(1)).unwrap().id;
            let log = Log::new();
            for round in 0..3 {
                let seen = log.clone();
                w.run(move |ctx, _: Number| {
                    seen.add(ctx.resume_from().map(<[u8]>::to_vec));
                    if checkpoints && round == 0 {
                        ctx.checkpoint(b"page 6").unwrap();
                        ctx.checkpoint(b"page 7").unwrap();
                        // What the earlier start stored; not what this one did.
                        assert_eq!(ctx.resume_from(), None);
                    }
                    if round < 2 { Err(Fail::retry_in("no", SEC)) } else { Ok(Done::Complete) }
                });
                w.pass(SEC);
            }
            let page = checkpoints.then(|| b"page 7".to_vec());
            assert_eq!(log.take(), [None, page.clone(), page]);
            assert_eq!(w.status(id), Status::Finished);
            w.pass(10 * SEC);
            items(&w)
        })
        .collect();
    assert_eq!(lens[0], lens[1], "something of the checkpoint is left");
}

#[test]
fn a_checkpoint_has_a_limit_and_is_of_a_running_job_only() {
    let w = world();
    let id = w.jobs.push(&Number(1)).unwrap().id;
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    w.run(move |ctx, _: Number| {
        ctx.checkpoint(b"small").unwrap();
        let refused = ctx.checkpoint(&vec![0; (64 << 10) + 1]);
        assert!(matches!(refused, Err(JobError::TooLarge { max: 65_536, len: 65_537, .. })), "{refused:?}");
        *keep.lock().unwrap() = Some(ctx.clone());
        Err(Fail::retry_in("no", SEC))
    });
    let late: Ctx = kept.lock().unwrap().take().unwrap();
    assert!(matches!(late.checkpoint(b"late"), Err(JobError::NotRunning { id: named }) if named == id));
    late.progress(1, 2);
    late.note("late");
    assert!(matches!(w.status(id), Status::Retrying { .. }));
    w.pass(SEC);
    let largest = vec![9; 64 << 10];
    let stored = largest.clone();
    w.run(move |ctx, _: Number| {
        assert_eq!(ctx.resume_from(), Some(&b"small"[..]), "what was refused or came late holds not");
        ctx.checkpoint(&stored).unwrap();
        Err(Fail::retry_in("no", SEC))
    });
    let w = w.reopened();
    w.pass(SEC);
    w.run(move |ctx, _: Number| {
        assert_eq!(ctx.resume_from(), Some(&largest[..]));
        ctx.checkpoint(b"").unwrap();
        Err(Fail::retry_in("no", SEC))
    });
    w.pass(SEC);
    assert_eq!(
        w.run(|ctx, _: Number| {
            assert_eq!(ctx.resume_from(), Some(&b""[..]));
            Ok(Done::Complete)
        }),
        1
    );
    assert_eq!(w.status(id), Status::Finished);
}

fn texts(w: &World, count: u64) -> Vec<JobId> {
    (0..count).map(|n| w.jobs.push(&Number(n)).unwrap().id).collect()
}

#[test]
fn a_batch_is_of_one_queue_and_answered_one_by_one() {
    let w = world();
    let ids = texts(&w, 7);
    w.jobs.push_with(&Number(100), &Push::new().queue("other")).unwrap();
    let log = Log::new();
    let seen = log.clone();
    let runner = w
        .jobs
        .worker()
        .on_batch(4, Duration::ZERO, move |ctxs: &[Ctx], jobs: Vec<Number>| {
            assert_eq!(ctxs.len(), jobs.len());
            assert!(ctxs.iter().all(|ctx| ctx.queue() == ctxs[0].queue() && ctx.attempt() == 1));
            seen.add(jobs.iter().map(|job| job.0).collect::<Vec<_>>());
            // The last of them gets no answer.
            jobs.iter()
                .take(jobs.len().max(2) - 1)
                .map(|job| match job.0 {
                    1 => Err(Fail::reject("one")),
                    2 => Ok(Done::Snooze(HOUR)),
                    _ => Ok(Done::Complete),
                })
                .collect()
        })
        .runner()
        .unwrap();
    runner.run_until_empty().unwrap();
    assert_eq!(log.take(), [vec![0, 1, 2, 3], vec![4, 5, 6], vec![100]]);
    let statuses: Vec<_> = ids.iter().map(|id| w.status(*id)).collect();
    assert!(
        matches!(
            &statuses[..],
            [
                Status::Finished,
                Status::Dead { reason: DeadReason::Rejected },
                Status::Scheduled { .. },
                Status::Retrying { attempt: 1, .. },
                Status::Finished,
                Status::Finished,
                Status::Retrying { attempt: 1, .. },
            ]
        ),
        "{statuses:?}"
    );
}

#[test]
fn a_batch_that_panics_has_failed_for_all_and_a_bad_one_among_them_for_itself() {
    let w = world();
    let ids = texts(&w, 3);
    w.jobs
        .worker()
        .on_batch(10, Duration::ZERO, |_, jobs: Vec<Number>| panic!("all {} of them", jobs.len()))
        .runner()
        .unwrap()
        .run_until_empty()
        .unwrap();
    for id in &ids {
        let info = w.info(*id);
        assert_eq!((info.attempts, info.failures[0].cause), (1, Cause::Panic));
        assert_eq!(info.failures[0].error, "all 3 of them");
    }
    let w = world();
    let good = [w.jobs.push(&FourA(1)).unwrap().id];
    let other = w.jobs.push(&FourB(2)).unwrap().id;
    let third = w.jobs.push(&FourA(3)).unwrap().id;
    w.jobs
        .worker()
        .on_batch(10, Duration::ZERO, |_, jobs: Vec<FourA>| jobs.iter().map(|_| Ok(Done::Complete)).collect())
        .runner()
        .unwrap()
        .run_until_empty()
        .unwrap();
    assert_eq!((w.status(good[0]), w.status(third)), (Status::Finished, Status::Finished));
    assert_eq!(w.status(other), Status::Dead { reason: DeadReason::Undecodable });
}

#[test]
fn a_batch_lingers_for_more_on_a_thread() {
    let w = real();
    let (seen_by_test, seen) = std::sync::mpsc::channel();
    let worker = w
        .jobs
        .worker()
        .on_batch(3, LONG, move |_, jobs: Vec<Number>| {
            seen_by_test.send(jobs.iter().map(|job| job.0).collect::<Vec<_>>()).unwrap();
            jobs.iter().map(|_| Ok(Done::Complete)).collect()
        })
        .start()
        .unwrap();
    let mut last = None;
    for n in 0..3 {
        std::thread::sleep(10 * MS);
        last = Some(w.jobs.push(&Number(n)).unwrap().id);
    }
    assert!(w.jobs.wait(last.unwrap(), LONG).is_some());
    assert_eq!(seen.recv_timeout(LONG).unwrap(), [0, 1, 2]);
    drop(worker);
}

#[test]
fn middleware_stands_around_the_handler_the_first_outermost() {
    let w = world();
    let ids = texts(&w, 5);
    let log = Log::new();
    let (outer, inner, handler) = (log.clone(), log.clone(), log.clone());
    let runner = w
        .jobs
        .worker()
        .around(move |ctx, next| {
            outer.add(format!("outer {}", ctx.kind()));
            let answer = next.run();
            outer.add(match &answer {
                Ok(done) => format!("outer saw {done:?}"),
                Err(fail) => format!("outer saw {}", fail.error()),
            });
            answer
        })
        .around(move |ctx, next| {
            inner.add("inner".to_owned());
            match ctx.tag() {
                Some("skip") => Ok(Done::Complete),
                Some("panic") => panic!("in the middle"),
                _ => next.run(),
            }
        })
        .on(move |_, job: Number| -> Result<(), Fail> {
            handler.add(format!("handler {}", job.0));
            match job.0 {
                1 => Err(Fail::reject("one")),
                2 => panic!("two"),
                _ => Ok(()),
            }
        })
        .runner()
        .unwrap();
    runner.run_until_empty().unwrap();
    let mut seen = log.take().into_iter();
    let mut round = |n: u64, end: &str| {
        let expected = ["outer number".to_owned(), "inner".into(), format!("handler {n}"), format!("outer saw {end}")];
        assert_eq!(seen.by_ref().take(4).collect::<Vec<_>>(), expected);
    };
    round(0, "Complete");
    round(1, "one");
    round(2, "two");
    assert_eq!(w.status(ids[1]), Status::Dead { reason: DeadReason::Rejected });
    assert_eq!(w.info(ids[2]).failures[0].error, "two");
    w.jobs.cancel(ids[2]).unwrap();
    for tag in ["skip", "panic"] {
        let id = w.jobs.push_with(&Number(7), &Push::new().tag(tag)).unwrap().id;
        assert_eq!(runner.run_until_empty().unwrap(), 1);
        assert!(!log.take().contains(&"handler 7".to_owned()));
        if tag == "skip" {
            assert_eq!(w.status(id), Status::Finished);
        } else {
            assert!(matches!(w.status(id), Status::Retrying { .. }));
            assert_eq!(w.info(id).failures[0].error, "in the middle");
        }
    }
}

#[test]
fn middleware_around_futures_needs_threads() {
    let w = real();
    let builder = || w.jobs.worker().around(|_, next| next.run()).on_async(|_, _: Number| async { Ok::<_, Fail>(()) });
    assert!(builder().runner().is_err());
    let worker = builder().start().unwrap();
    let id = w.jobs.push(&Number(1)).unwrap().id;
    assert!(matches!(w.jobs.wait(id, LONG), Some(Outcome::Done(_) | Outcome::Finished)));
    drop(worker);
}

#[test]
fn futures_are_run_on_threads_too() {
    let w = real();
    let worker = w
        .jobs
        .worker()
        .threads(2)
        .on_async(|ctx, job: Number| async move {
            // Comes back to the executor a few times.
            for _ in 0..job.0 {
                let mut yielded = false;
                std::future::poll_fn(|cx| {
                    if yielded {
                        return std::task::Poll::Ready(());
                    }
                    yielded = true;
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await;
            }
            if job.0 == 3 && ctx.attempt() == 1 {
                return Err(Fail::retry_in("three", MS));
            }
            if job.0 == 4 && ctx.attempt() == 1 {
                panic!("four");
            }
            Ok(Done::Output(vec![job.0 as u8]))
        })
        .start()
        .unwrap();
    let ids: Vec<_> = (0..4).map(|n| w.jobs.push(&Number(n)).unwrap().id).collect();
    for (n, id) in ids.iter().enumerate() {
        let end = w.jobs.wait(*id, LONG);
        assert!(
            matches!(&end, Some(Outcome::Done(out)) if *out == [n as u8]) || end == Some(Outcome::Finished),
            "{end:?}"
        );
    }
    let panics = w.jobs.push(&Number(4)).unwrap().id;
    until("it has failed", || matches!(w.jobs.status(panics), Status::Retrying { .. }));
    assert_eq!(w.jobs.info(panics).unwrap().failures[0].cause, Cause::Panic);
    drop(worker);
}

#[test]
fn a_future_that_outlives_its_timeout_is_dropped_and_the_job_has_failed() {
    job!(Slow(u32) = "slow", |o| o.timeout(50 * MS));
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let w = real();
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&drops);
    let worker = w
        .jobs
        .worker()
        .on_async(move |_, _: Slow| {
            let dropped = Dropped(Arc::clone(&counted));
            async move {
                let _dropped = dropped;
                std::future::pending::<()>().await;
                Ok::<_, Fail>(())
            }
        })
        .on(|_, _: Number| Ok::<_, Fail>(()))
        .start()
        .unwrap();
    let id = w.jobs.push(&Slow(1)).unwrap().id;
    until("it has failed", || matches!(w.jobs.status(id), Status::Retrying { attempt: 1, .. }));
    assert_eq!(w.jobs.info(id).unwrap().failures[0].cause, Cause::Timeout);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    let good = w.jobs.push(&Number(1)).unwrap().id;
    assert!(w.jobs.wait(good, LONG).is_some(), "its thread is free");
    drop(worker);
}

#[test]
fn a_thread_is_told_of_its_timeout_and_reported_if_it_goes_on() {
    job!(Slow(u32) = "slow", |o| o.timeout(50 * MS));
    let w = real();
    let events = w.jobs.events();
    let (gate, door) = Gate::new();
    let worker = w
        .jobs
        .worker()
        .on(move |ctx, job: Slow| -> Result<(), Fail> {
            until("it is told", || ctx.is_cancelled());
            if job.0 == 2 {
                gate.wait();
            }
            Err(Fail::retry("stopped in the middle"))
        })
        .start()
        .unwrap();
    let obeys = w.jobs.push(&Slow(1)).unwrap().id;
    until("it has failed", || matches!(w.jobs.status(obeys), Status::Retrying { attempt: 1, .. }));
    assert_eq!(w.jobs.info(obeys).unwrap().failures[0].cause, Cause::Timeout);
    w.jobs.cancel(obeys).unwrap();
    let goes_on = w.jobs.push(&Slow(2)).unwrap().id;
    let start = std::time::Instant::now();
    loop {
        match events.next_timeout(LONG) {
            Some(Event::Stuck { id, .. }) if id == goes_on => break,
            Some(_) => assert!(start.elapsed() < LONG),
            None => panic!("nobody is told"),
        }
    }
    // No live job is taken from its thread.
    assert!(matches!(w.jobs.status(goes_on), Status::Running { attempt: 1, .. }));
    door.open();
    until("it has failed", || matches!(w.jobs.status(goes_on), Status::Retrying { attempt: 1, .. }));
    drop(worker);
}

#[test]
fn j28_the_end_and_the_jobs_that_follow_are_one_act() {
    job!(First(u32) = "first", |o| o.keep_done(Keep::last(5).with_output()));
    let w = world();
    let id = w.jobs.push(&First(1)).unwrap().id;
    let log = Log::new();
    let jobs = w.jobs.clone();
    let seen = log.clone();
    let wait_for_it = w.run_some(1, move |ctx, _: First| {
        let mut tx = Transaction::new();
        assert!(tx.is_empty());
        ctx.jobs().stage(&mut tx, &Next(1), &Push::new())?;
        ctx.jobs().stage(&mut tx, &Next(2), &Push::after(SEC).queue("elsewhere"))?;
        tx.set_output(b"result".to_vec());
        assert_eq!(tx.len(), 2);
        let done = ctx.finish_with(tx)?;
        seen.add(jobs.list(&Filter::new().kind("next")).count());
        Ok(done)
    });
    assert_eq!((wait_for_it, log.take()), (1, vec![0]), "nothing happens before the handler has returned");
    for w in [w.killed(), w.reopened()] {
        assert_eq!((w.status(id), w.jobs.wait(id, MS)), (Status::Done, Some(Outcome::Done(b"result".to_vec()))));
        let next = w.list(&Filter::new().kind("next"));
        assert_eq!(next.iter().map(|info| info.queue.as_str()).collect::<Vec<_>>(), ["default", "elsewhere"]);
        w.pass(SEC);
        assert_eq!(w.run(ok::<Next>), 2);
    }
}

#[test]
fn j28_what_is_staged_is_not_pushed_where_the_handler_fails_after_all() {
    let w = world();
    let id = w.jobs.push(&Number(1)).unwrap().id;
    w.run(|ctx, _: Number| {
        let mut tx = Transaction::new();
        ctx.jobs().stage(&mut tx, &Next(1), &Push::new())?;
        let _done = ctx.finish_with(tx)?;
        Err(Fail::retry("changed my mind"))
    });
    assert!(matches!(w.status(id), Status::Retrying { attempt: 1, .. }));
    assert_eq!(w.ids(&Filter::all()), [id]);
}

#[test]
fn j28_without_jobs_that_follow_it_is_an_end_like_any_other() {
    let w = world();
    let id = w.jobs.push(&Number(1)).unwrap().id;
    assert_eq!(w.run(|ctx, _: Number| Ok(ctx.finish_with(Transaction::new())?)), 1);
    assert_eq!((w.status(id), w.list(&Filter::all()).len()), (Status::Finished, 0));
}

#[test]
fn a_transaction_pushes_all_in_order_and_tells_their_ids() {
    let w = world();
    let mut tx = Transaction::new();
    for n in 0..10 {
        w.jobs.stage(&mut tx, &Number(n), &Push::new().queue(["a", "b"][n as usize % 2])).unwrap();
    }
    assert_eq!(w.list(&Filter::all()).len(), 0, "nothing is stored yet");
    let pushed = w.jobs.commit(tx).unwrap();
    assert_eq!(pushed.len(), 10);
    for (n, pushed) in pushed.iter().enumerate() {
        assert_eq!((w.info(pushed.id).queue.as_str(), pushed.duplicate), (["a", "b"][n % 2], false));
        assert_eq!(w.status(pushed.id), Status::Waiting);
    }
    let w = w.cut(kestrel_core::testing::Fate::None);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Number| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert_eq!(log.take(), [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]);
    assert_eq!(w.jobs.commit(Transaction::new()).unwrap(), []);
}

#[test]
fn many_jobs_pushed_at_once_are_all_there_in_order() {
    let w = world();
    let jobs: Vec<_> = (0..5_000).map(Number).collect();
    let pushed = w.jobs.push_all(&jobs).unwrap();
    assert_eq!(pushed.len(), 5_000);
    assert!(pushed.is_sorted_by(|a, b| a.id < b.id));
    assert_eq!(w.jobs.push_all::<Number>([]).unwrap(), []);
    let w = w.cut(kestrel_core::testing::Fate::None);
    let log = Log::new();
    let seen = log.clone();
    w.run(move |_, job: Number| {
        seen.add(job.0);
        Ok(Done::Complete)
    });
    assert!(log.take().into_iter().eq(0..5_000));
}

#[test]
fn a_job_pushed_by_a_handler_is_run_by_the_same_worker() {
    let w = world();
    w.jobs.push(&Number(5)).unwrap();
    let starts = w.run(|ctx, job: Number| {
        if job.0 > 0 {
            ctx.jobs().push(&Number(job.0 - 1))?;
        }
        Ok(Done::Complete)
    });
    assert_eq!(starts, 6);
}
