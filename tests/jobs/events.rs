//! What listeners are told.

use std::time::Duration;

use kestrel_core::jobs::{Done, Event, Fail, Jobs, Push};

use crate::common::*;

job!(Tale(u32) = "tale", |o| o.max_attempts(2));

fn name(event: &Event) -> String {
    match event {
        Event::Pushed { queue, .. } => format!("pushed {queue}"),
        Event::Started { queue, attempt, .. } => format!("started {queue} {attempt}"),
        Event::Done { queue, .. } => format!("done {queue}"),
        Event::Retrying { queue, attempt, cause, error, .. } => format!("retrying {queue} {attempt} {cause:?} {error}"),
        Event::Snoozed { queue, .. } => format!("snoozed {queue}"),
        Event::Dead { queue, reason, error, .. } => format!("dead {queue} {reason:?} {error}"),
        Event::Discarded { queue, error, .. } => format!("discarded {queue} {error}"),
        Event::Cancelled { queue, .. } => format!("cancelled {queue}"),
        Event::Returned { queue, .. } => format!("returned {queue}"),
        Event::Crashed { queue, crashes, .. } => format!("crashed {queue} {crashes}"),
        Event::Stuck { queue, .. } => format!("stuck {queue}"),
        Event::Requeued { queue, .. } => format!("requeued {queue}"),
        other => format!("{other:?}"),
    }
}

fn names(events: &kestrel_core::jobs::JobEvents) -> Vec<String> {
    told(events).iter().map(name).collect()
}

#[test]
fn what_happens_to_a_job_is_told_in_order() {
    let w = world();
    let events = w.jobs.events();
    let late = {
        w.jobs.push_with(&Tale(0), &Push::new().queue("q")).unwrap();
        w.run(|_, _: Tale| Ok(Done::Complete));
        w.jobs.events()
    };
    assert_eq!(names(&events), ["pushed q", "started q 1", "done q"]);
    assert_eq!(names(&late), [""; 0], "from the moment it was asked for");
    w.jobs.push(&Tale(1)).unwrap();
    w.run(|_, _: Tale| Err(Fail::retry_in("no", SEC)));
    w.pass(SEC);
    w.run(|_, _: Tale| panic!("again"));
    let expected = [
        "pushed default",
        "started default 1",
        "retrying default 1 Error no",
        "started default 2",
        "dead default Attempts again",
    ];
    assert_eq!(names(&events), expected);
    assert_eq!(names(&late), expected, "each listener is told all");
    w.jobs.requeue_dead(&kestrel_core::jobs::Filter::all()).unwrap();
    w.run(|_, _: Tale| Ok(Done::Snooze(SEC)));
    w.pass(SEC);
    w.run(|_, _: Tale| Err(Fail::discard("enough")));
    assert_eq!(
        names(&events),
        ["requeued default", "started default 1", "snoozed default", "started default 1", "discarded default enough"]
    );
    let id = w.jobs.push(&Tale(2)).unwrap().id;
    drop(w.jobs.worker().on(ok::<Tale>).runner().unwrap().try_next().unwrap());
    w.jobs.cancel(id).unwrap();
    assert_eq!(names(&events), ["pushed default", "started default 1", "returned default", "cancelled default"]);
    assert_eq!(events.missed(), 0);
}

#[test]
fn a_slow_listener_misses_the_oldest_and_knows_how_many() {
    const KEPT: usize = 65_536;
    let w = world();
    let events = w.jobs.events();
    let jobs: Vec<_> = (0..u32::try_from(KEPT).unwrap() + 100).map(Tale).collect();
    for part in jobs.chunks(10_000) {
        w.jobs.push_all(part).unwrap();
    }
    assert_eq!(events.missed(), 100);
    let first = events.try_next();
    assert!(matches!(first, Some(Event::Pushed { .. })));
    assert_eq!(told(&events).len(), KEPT - 1);
}

#[test]
fn a_listener_waits_for_what_comes() {
    let w = real();
    let events = w.jobs.events();
    assert!(events.next_timeout(MS).is_none());
    let pusher = {
        let jobs = w.jobs.clone();
        std::thread::spawn(move || {
            std::thread::sleep(20 * MS);
            jobs.push(&Tale(1)).unwrap();
        })
    };
    assert!(matches!(events.next_timeout(LONG), Some(Event::Pushed { .. })));
    assert!(events.next_timeout(Duration::ZERO).is_none());
    pusher.join().unwrap();
    let mut events = events;
    w.jobs.push(&Tale(2)).unwrap();
    assert!(matches!(events.next(), Some(Event::Pushed { .. })));
    w.set.clone().close().unwrap();
    assert!(events.next().is_none());
    drop(w);
}

#[test]
fn the_end_of_a_start_tells_how_long_it_took() {
    let w = world();
    let events = w.jobs.events();
    w.jobs.push(&Tale(1)).unwrap();
    let disk = w.disk.clone();
    w.run(move |_, _: Tale| {
        disk.advance_ms(1234);
        Ok(Done::Complete)
    });
    let took = told(&events).into_iter().find_map(|event| match event {
        Event::Done { took, .. } => Some(took),
        _ => None,
    });
    assert_eq!(took, Some(1234 * MS));
}

#[test]
fn a_listener_from_the_start_is_told_of_the_crashes_once() {
    let w = world();
    let id = w.jobs.push(&Tale(1)).unwrap().id;
    let runner = w.jobs.worker().on(ok::<Tale>).runner().unwrap();
    let _held = runner.try_next().unwrap().unwrap();
    let disk = w.disk.kill();
    for expected in [vec!["crashed default 1"], vec![]] {
        let set = kestrel_core::QueueSet::builder().simulated(&disk).defaults(defaults()).open("/set").unwrap();
        let (builder, events) = Jobs::builder(&set).events();
        let jobs = builder.open().unwrap();
        let told = names(&events);
        let crashes: Vec<_> = told.iter().filter(|name| name.starts_with("crashed")).collect();
        assert_eq!(crashes, expected);
        assert_eq!(jobs.info(id).unwrap().crashes, 1);
        set.close().unwrap();
    }
}
