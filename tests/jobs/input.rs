//! Bad input: options that contradict, names that are patterns, what is too large, too early, or not what it says.

use std::time::Duration;

use kestrel_core::QueueSet;
use kestrel_core::jobs::{
    Backoff, Ctx, Done, Fail, Job, JobError, JobOptions, Jobs, Keep, Push, QueueOrder, Status, Transaction, Unique,
    WorkerBuilder,
};
use kestrel_core::testing::{Op, SimDisk};

use crate::common::*;

job!(Fine(u32) = "fine");

fn field(error: Result<impl std::fmt::Debug, JobError>) -> &'static str {
    match error {
        Err(JobError::Options { field, reason }) => {
            assert!(!reason.is_empty());
            field
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn options_that_contradict_are_named_and_nothing_is_stored() {
    macro_rules! wrong {
        ($($field:literal: $options:expr;)*) => {
            $({
                job!(Wrong(u32) = "wrong", $options);
                let w = world();
                let options: fn(JobOptions) -> JobOptions = $options;
                assert_eq!(field(options(JobOptions::default()).check()), $field);
                assert_eq!(field(w.jobs.push(&Wrong(1))), $field);
                assert_eq!(field(w.jobs.push_all(&[Wrong(1)])), $field);
                let mut tx = Transaction::new();
                assert_eq!(field(w.jobs.stage(&mut tx, &Wrong(1), &Push::new())), $field);
                assert!(w.jobs.queues().is_empty(), "{:?}", w.jobs.queues());
            })*
        };
    }
    wrong! {
        "max_attempts": |o| o.max_attempts(0);
        "max_crashes": |o| o.max_crashes(0);
        "backoff": |o| o.backoff(Backoff::Exponential { first: Duration::ZERO, max: SEC });
        "backoff": |o| o.backoff(Backoff::Exponential { first: 2 * SEC, max: SEC });
        "timeout": |o| o.timeout(Duration::ZERO);
        "unique": |o| o.unique(Unique::Window(Duration::ZERO));
        "keep_done": |o| o.keep_done(Keep::none().with_output());
        "keep_dead": |o| o.keep_dead(Keep::last(5).with_output());
    }
    assert_eq!(field(world().jobs.push_with(&Fine(1), &Push::new().max_attempts(0))), "max_attempts");
    assert!(JobOptions::default().check().is_ok());
}

#[test]
fn names_that_are_patterns_or_parts_of_other_queues_are_no_job_queues() {
    let w = world();
    let long = "x".repeat(1000);
    for name in ["", "mail*", "*", "!mail", "a!b", "a,b", "a.dead", "a.done", "mail!later", "a+b", "a\0b", &long] {
        let push = Push::new().queue(name);
        assert!(matches!(w.jobs.push_with(&Fine(1), &push), Err(JobError::QueueName { .. })), "{name:?}");
        let mut tx = Transaction::new();
        assert!(matches!(w.jobs.stage(&mut tx, &Fine(1), &push), Err(JobError::QueueName { .. })), "{name:?}");
        let order = QueueOrder::strict([name]);
        let refused = w.jobs.worker().queues(order).on(ok::<Fine>).runner();
        assert!(matches!(refused, Err(JobError::QueueName { .. })), "{name:?}: {refused:?}");
        let refused = w.jobs.worker().queues(QueueOrder::weighted([(name, 1)])).on(ok::<Fine>).runner();
        assert!(matches!(refused, Err(JobError::QueueName { .. })), "{name:?}: {refused:?}");
    }
    assert!(
        w.jobs.queues().is_empty() && w.set.names().iter().all(|name| name.starts_with('!')),
        "{:?}",
        w.set.names()
    );
    for name in ["mail", "mail.bulk", "größe", "with space", "a/b", "..", "-", "dead", "a.deadly"] {
        let id = w.jobs.push_with(&Fine(1), &Push::new().queue(name)).unwrap().id;
        assert_eq!(w.info(id).queue, name);
    }
    assert_eq!(w.run(ok::<Fine>), 9);
}

#[test]
fn patterns_with_empty_parts_or_a_mark_inside_are_refused() {
    let w = world();
    for pattern in ["", ",", "a,,b", "!", "a!b", "!!a", "a,", " "] {
        let refused = w.jobs.worker().queues(QueueOrder::matching(pattern)).on(ok::<Fine>).runner();
        assert!(matches!(refused, Err(JobError::Pattern { .. })), "{pattern:?}: {refused:?}");
        assert!(matches!(w.jobs.worker().queues(pattern).on(ok::<Fine>).start(), Err(JobError::Pattern { .. })));
    }
    for pattern in ["*", "a*,!a.b", "!a", "**", "a*b*c", "größe*"] {
        assert!(w.jobs.worker().queues(pattern).on(ok::<Fine>).runner().is_ok(), "{pattern:?}");
    }
}

#[test]
fn a_pattern_of_many_stars_is_matched_in_no_time() {
    let w = world();
    w.jobs.push_with(&Fine(1), &Push::new().queue("a".repeat(180))).unwrap();
    let pattern = format!("{}b", "a*".repeat(2000));
    let start = std::time::Instant::now();
    assert_eq!(w.jobs.worker().queues(pattern.as_str()).on(ok::<Fine>).runner().unwrap().run_until_empty().unwrap(), 0);
    assert!(start.elapsed() < LONG);
}

#[test]
fn a_worker_whose_settings_make_no_sense_is_not_started() {
    let w = world();
    let on = || w.jobs.worker().on(ok::<Fine>);
    let settings: [(&str, WorkerBuilder); 9] = [
        ("threads", on().threads(0)),
        ("limit", on().limit("q", 0)),
        ("rate", on().rate("q", SEC, 0)),
        ("rate", on().rate("q", Duration::ZERO, 5)),
        ("weight 0", on().queues(QueueOrder::weighted([("a", 0)]))),
        ("weight 10001", on().queues(QueueOrder::weighted([("a", 10_001)]))),
        ("no queues", on().queues(QueueOrder::Strict(Vec::new()))),
        ("no weights", on().queues(QueueOrder::Weighted(Vec::new()))),
        ("batch of 0", w.jobs.worker().on_batch(0, SEC, |_, _: Vec<Fine>| Vec::new())),
    ];
    for (what, builder) in settings {
        let refused = builder.runner();
        assert!(matches!(refused, Err(JobError::Options { .. })), "{what}: {refused:?}");
    }
    for name in ["a*", "", "a!b"] {
        for refused in [on().limit(name, 1).runner(), on().rate(name, SEC, 1).runner()] {
            assert!(matches!(refused, Err(JobError::QueueName { .. })), "{name}: {refused:?}");
        }
    }
    assert_eq!(w.jobs.stats().workers, 0);
    assert!(on().queues(QueueOrder::weighted([("a", 1), ("b", 10_000)])).runner().is_ok());
}

#[test]
fn each_kind_has_one_handler_and_a_worker_has_some() {
    struct Same;
    impl Job for Same {
        const KIND: &'static str = "same";
        const ALIASES: &'static [&'static str] = &["fine"];
        type Codec = Nothing;
    }
    struct Nameless;
    impl Job for Nameless {
        const KIND: &'static str = "";
        type Codec = Nothing;
    }
    struct Endless;
    impl Job for Endless {
        const KIND: &'static str =
            "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789x";
        type Codec = Nothing;
    }
    #[derive(Default)]
    struct Nothing;
    macro_rules! nothing {
        ($($of:ident)*) => {
            $(impl kestrel_core::Codec<$of> for Nothing {
                type Error = std::fmt::Error;
                fn encode(&self, _: &$of, _: &mut Vec<u8>) -> Result<(), std::fmt::Error> {
                    Ok(())
                }
                fn decode(&self, _: &[u8]) -> Result<$of, std::fmt::Error> {
                    Ok($of)
                }
            })*
        };
    }
    nothing!(Same Nameless Endless);
    let w = world();
    for refused in [
        w.jobs.worker().runner(),
        w.jobs.worker().on(ok::<Fine>).on(ok::<Fine>).runner(),
        w.jobs.worker().on(ok::<Fine>).on(ok::<Same>).runner(),
        w.jobs.worker().on(ok::<Fine>).on_async(|_, _: Fine| async { Ok::<_, Fail>(()) }).runner(),
        w.jobs.worker().on(ok::<Nameless>).runner(),
        w.jobs.worker().on(ok::<Endless>).runner(),
    ] {
        assert!(matches!(refused, Err(JobError::Kind { .. })), "{refused:?}");
    }
    assert!(matches!(w.jobs.push(&Nameless), Err(JobError::Kind { .. })));
    assert!(matches!(w.jobs.push(&Endless), Err(JobError::Kind { .. })));
    // A value of no bytes is a value.
    let id = w.jobs.push(&Same).unwrap().id;
    assert_eq!((w.run(ok::<Same>), w.status(id)), (1, Status::Finished));
}

#[test]
fn keys_and_tags_and_transactions_have_limits() {
    job!(Keyed(usize) = "keyed", |o| o.unique(Unique::UntilDone), |len| Some(vec![1; *len]));
    let w = world();
    let too_large = |error: Result<kestrel_core::jobs::Pushed, JobError>, expected: (usize, usize)| match error {
        Err(JobError::TooLarge { len, max, .. }) => assert_eq!((len, max), expected),
        other => panic!("{other:?}"),
    };
    too_large(w.jobs.push(&Keyed(1025)), (1025, 1024));
    too_large(w.jobs.push_with(&Fine(1), &Push::new().key(vec![0; 1025])), (1025, 1024));
    too_large(w.jobs.push_with(&Fine(1), &Push::new().tag("x".repeat(201))), (201, 200));
    w.jobs.push(&Keyed(1024)).unwrap();
    w.jobs.push_with(&Fine(1), &Push::new().tag("ä".repeat(100)).key(vec![0; 1024])).unwrap();
    let mut tx = Transaction::new();
    for n in 0..1_000 {
        w.jobs.stage(&mut tx, &Fine(n), &Push::new()).unwrap();
    }
    let refused = w.jobs.stage(&mut tx, &Fine(1_000), &Push::new());
    assert!(matches!(refused, Err(JobError::TooLarge { .. })), "{refused:?}");
    assert_eq!((tx.len(), w.jobs.commit(tx).unwrap().len()), (1_000, 1_000));
    assert_eq!(w.jobs.worker().on(ok::<Fine>).on(ok::<Keyed>).runner().unwrap().run_until_empty().unwrap(), 1_002);
}

#[test]
fn a_transaction_that_outgrows_its_limit_is_refused_where_it_does() {
    struct Large;
    #[derive(Default)]
    struct TenMiB;
    impl Job for Large {
        const KIND: &'static str = "large";
        type Codec = TenMiB;
    }
    impl kestrel_core::Codec<Large> for TenMiB {
        type Error = std::fmt::Error;
        fn encode(&self, _: &Large, out: &mut Vec<u8>) -> Result<(), std::fmt::Error> {
            out.resize(10 << 20, 7);
            Ok(())
        }
        fn decode(&self, _: &[u8]) -> Result<Large, std::fmt::Error> {
            Ok(Large)
        }
    }
    let w = World::with(SimDisk::new(1), kestrel_core::QueueOptions::default());
    let mut tx = Transaction::new();
    let mut staged = 0;
    let refused = loop {
        match w.jobs.stage(&mut tx, &Large, &Push::new()) {
            Ok(()) => staged += 1,
            Err(error) => break error,
        }
        assert!(staged <= 6, "64 MiB in all");
    };
    assert!(matches!(refused, JobError::TooLarge { .. }), "{refused:?}");
    assert_eq!((staged, tx.len()), (6, 6));
}

#[test]
fn a_job_larger_than_its_queue_takes_is_refused_and_others_go_on() {
    job!(Large(Vec<u8>) = "large");
    let w = World::with(SimDisk::new(1), defaults().max_item_size(10_000));
    let refused = w.jobs.push(&Large(vec![0; 20_000]));
    assert!(matches!(refused, Err(JobError::Put(_))), "{refused:?}");
    let id = w.jobs.push(&Large(vec![0; 5_000])).unwrap().id;
    // Nothing that is added to it later makes it too large to be moved.
    let long = "e".repeat(2_000);
    assert_eq!(w.run(move |_, _: Large| Err(Fail::reject(&long))), 1);
    assert!(matches!(w.status(id), Status::Dead { .. }));
    assert_eq!(w.jobs.requeue_dead(&kestrel_core::jobs::Filter::all()).unwrap(), 1);
    assert_eq!((w.run(ok::<Large>), w.status(id)), (1, Status::Finished));
}

#[test]
fn a_queue_that_was_made_by_other_means_and_holds_items_is_not_taken_for_jobs() {
    let w = world();
    w.set.queue("plain").unwrap().put("not a job").unwrap();
    let refused = w.jobs.push_with(&Fine(1), &Push::new().queue("plain"));
    assert!(matches!(&refused, Err(JobError::NotJobs { queue }) if queue == "plain"), "{refused:?}");
    let plain = w.set.queue("plain").unwrap();
    assert_eq!(plain.len(), 1);
    // Emptied it may be used.
    plain.get().unwrap();
    w.jobs.push_with(&Fine(1), &Push::new().queue("plain")).unwrap();
    assert_eq!(w.run(ok::<Fine>), 1);
}

#[test]
fn a_set_that_is_open_for_reading_only_has_no_jobs() {
    let w = real();
    w.jobs.push(&Fine(1)).unwrap();
    let set = QueueSet::open_read_only(w.dir.path()).unwrap();
    assert!(matches!(Jobs::new(&set), Err(JobError::ReadOnly)));
    drop(w.set);
}

#[test]
fn a_closed_set_has_no_jobs() {
    let w = world();
    let set = w.set.clone();
    w.set.close().unwrap();
    assert!(matches!(Jobs::new(&set), Err(JobError::Closed)) || matches!(w.jobs.push(&Fine(1)), Err(JobError::Closed)));
}

#[test]
fn texts_that_are_no_ids_are_refused() {
    use kestrel_core::jobs::JobId;
    for text in ["", "-", "mail", "7f3a9c01", "7f3a9c01-", "7f3a9c01-00", "7F3A9C01-1", " 7f3a9c01-1", "7f3a9c01-1 "] {
        assert!(text.parse::<JobId>().is_err(), "{text:?}");
    }
    let id: JobId = "7f3a9c01-2a".parse().unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"7f3a9c01-2a\"");
    assert_eq!(serde_json::from_str::<JobId>("\"7f3a9c01-2a\"").unwrap(), id);
    assert!(serde_json::from_str::<JobId>("\"mail\"").is_err());
}

#[test]
fn errors_say_what_happened_and_no_payload() {
    let w = world();
    let errors = [
        w.jobs.push_with(&Fine(1), &Push::new().queue("a*")).unwrap_err(),
        w.jobs.push_with(&Fine(1), &Push::new().tag("secret ".repeat(100))).unwrap_err(),
        w.jobs.requeue_dead(&kestrel_core::jobs::Filter::new()).unwrap_err(),
        w.jobs.push_with(&Fine(1), &Push::new().max_attempts(0)).unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.len() > 10 && text.len() < 300 && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_full_disk_refuses_pushes_and_lets_jobs_end() {
    job!(Bulky(Vec<u8>) = "bulky", |o| o.max_attempts(1));
    let w = world();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(w.jobs.push(&Bulky(vec![1; 20_000])).unwrap().id);
    }
    // Every list that ends need has been met once.
    w.run_some(1, |_, _: Bulky| Err(Fail::reject("first")));
    let used: u64 = w.disk.list_files().iter().map(|path| w.disk.read_file(path).unwrap().len() as u64).sum();
    w.disk.set_space(used);
    let refused = std::iter::repeat_with(|| w.jobs.push(&Bulky(vec![1; 60_000]))).take(200).find_map(Result::err);
    assert!(matches!(refused, Some(JobError::Put(_))), "{refused:?}");
    let done = w.run_some(10, |_, _: Bulky| Ok(Done::Complete));
    assert_eq!(done, 10, "jobs can end");
    assert!(ids[1..11].iter().all(|id| w.status(*id) == Status::Finished));
    w.disk.set_space(u64::MAX);
    w.jobs.push(&Bulky(vec![1; 60_000])).unwrap();
    w.run(ok::<Bulky>);
    assert!(ids[1..].iter().all(|id| w.status(*id) == Status::Finished));
}

#[test]
fn a_disk_that_fails_for_a_while_loses_no_job() {
    let w = world();
    let ids: Vec<_> = (0..10).map(|n| w.jobs.push(&Fine(n)).unwrap().id).collect();
    w.disk.fail(Op::Create, 0, 1_000, std::io::ErrorKind::Other);
    w.disk.fail(Op::Allocate, 0, 1_000, std::io::ErrorKind::Other);
    let fail = |_: &Ctx, _: Fine| -> Result<Done, Fail> { Err(Fail::retry_in("no", SEC)) };
    // Where a retry cannot be stored the job is where it was, and the worker goes on or says why not.
    let _ = w.jobs.worker().on(fail).runner().and_then(|runner| {
        for _ in 0..5 {
            if let Some(job) = runner.try_next()? {
                job.run_blocking();
            }
        }
        Ok(())
    });
    w.disk.heal();
    w.pass(120 * SEC);
    let w = w.killed();
    w.pass(3600 * SEC);
    for id in &ids {
        assert_eq!(w.status(*id).code(), Some(1), "{:?}", w.status(*id));
    }
    assert_eq!(w.run(ok::<Fine>), 10);
}
