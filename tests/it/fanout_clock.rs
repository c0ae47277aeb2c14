//! Named readers and time: what expires, is delayed, is leased or grows old for each of them; on a simulated disk, for its clock.

use std::time::Duration;

use kestrel_core::testing::{Fate, SimDisk};
use kestrel_core::{PutOptions, Queue, QueueOptions, QueueOverrides, QueueSet, ReaderOptions};

use crate::common::{drain, put_all, text};

const DIR: &str = "/set";

fn small() -> QueueOptions {
    QueueOptions::default().segment_bytes(64 << 10)
}

fn open(disk: &SimDisk, options: &[(&str, QueueOptions)]) -> QueueSet {
    let mut builder = QueueSet::builder().simulated(disk).defaults(small());
    for (name, options) in options {
        builder = builder.queue_options(name, options.clone());
    }
    builder.open(DIR).expect("opens")
}

fn reader(queue: &Queue, name: &str) -> Queue {
    queue.reader(name).expect("created")
}

fn expiring(ms: u64) -> PutOptions {
    PutOptions::new().expires_in(Duration::from_millis(ms))
}

fn after(ms: u64) -> PutOptions {
    PutOptions::new().delay(Duration::from_millis(ms))
}

/// Lets the time of a sweep come, and all that it leads to.
fn sweep(disk: &SimDisk, set: &QueueSet) {
    set.run_chores();
    disk.advance_ms(1_001);
    set.run_chores();
    set.run_chores();
}

#[test]
fn k139_the_readers_of_the_queue_that_expired_items_move_to_get_them() {
    for cut in [None, Some(Fate::None), Some(Fate::All)] {
        let disk = SimDisk::new(1);
        let options = [("a", small().expire_to("late"))];
        let set = open(&disk, &options);
        let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
        let r = reader(&late, "r");
        for item in ["1", "2"] {
            a.put_with(item, &expiring(10)).expect("room");
        }
        disk.advance_ms(11);
        sweep(&disk, &set);
        assert_eq!((a.len(), late.len(), r.len()), (0, 2, 2));
        if let Some(fate) = cut {
            let after = disk.power_cut(fate);
            let set = open(&after, &options);
            let (late, r) = (set.queue("late").expect("opens"), set.queue("late+r").expect("opens"));
            assert_eq!((drain(&late), drain(&r)), (vec!["1".to_owned(), "2".into()], vec!["1".into(), "2".into()]));
            continue;
        }
        assert_eq!((drain(&r), drain(&late)), (vec!["1".to_owned(), "2".into()], vec!["1".into(), "2".into()]));
    }
}

#[test]
fn k139_what_expires_for_a_reader_moves_for_it_and_once_over_a_crash() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let q = set.queue("q").expect("opens");
    let r = q.reader_with("r", &ReaderOptions::new().expire_to("late")).expect("created");
    q.put_with("1", &expiring(10)).expect("room");
    disk.advance_ms(11);
    sweep(&disk, &set);
    let late = set.queue("late").expect("opens");
    assert_eq!((q.stats().expired_items, r.stats().expired_items, late.len()), (1, 1, 1));
    for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
        let set = open(&after, &[]);
        for _ in 0..2 {
            sweep(&after, &set);
        }
        assert_eq!((set.queue("q").expect("opens").len(), set.queue("q+r").expect("opens").len()), (0, 0));
        assert_eq!(drain(&set.queue("late").expect("opens")), ["1"]);
    }
}

#[test]
fn what_expires_into_its_own_queue_does_not_multiply_by_its_readers() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("q", small().expire_to("q").max_age(Duration::from_millis(500)))]);
    let q = set.queue("q").expect("opens");
    let r = reader(&q, "r");
    put_all(&r, &["1"]);
    for _ in 0..5 {
        sweep(&disk, &set);
        assert_eq!((q.len(), r.len()), (0, 1));
    }
    assert!(r.stats().expired_items >= 4);
    disk.advance_ms(100);
    assert_eq!(drain(&r).len(), 1);
}

#[test]
fn k161_each_reader_applies_an_age_of_its_own() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("q", small().max_age(Duration::from_millis(50)))]);
    let q = set.queue("q").expect("opens");
    let long = q.reader_with("long", &ReaderOptions::new().max_age(Duration::from_secs(100))).expect("created");
    let ever = QueueOverrides::default().max_age(None);
    let ever = q.reader_with("ever", &ReaderOptions::new().overrides(ever)).expect("created");
    let short = q.reader_with("short", &ReaderOptions::new().max_age(Duration::from_millis(20))).expect("created");
    put_all(&q, &["1"]);
    disk.advance_ms(30);
    assert_eq!((short.peek().expect("reads").is_some(), q.peek().expect("reads").is_some()), (false, true));
    disk.advance_ms(30);
    assert!(q.peek().expect("reads").is_none() && long.peek().expect("reads").is_some());
    disk.advance_ms(200_000);
    sweep(&disk, &set);
    assert_eq!((q.len(), short.len(), long.len(), ever.len()), (0, 0, 0, 1));
    assert_eq!(drain(&ever), ["1"]);
}

#[test]
fn k132_a_sweep_of_the_set_meets_what_has_expired_for_readers() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let q = set.queue("q").expect("opens");
    reader(&q, "a");
    reader(&q, "b");
    q.put_with("1", &expiring(10)).expect("room");
    disk.advance_ms(11);
    assert_eq!(set.stats().curr_items, 3);
    assert_eq!(set.discard_expired(100).expect("sweeps"), 3);
    assert_eq!(set.stats().curr_items, 0);
}

#[test]
fn k122_a_lagging_reader_or_one_with_an_open_item_keeps_an_old_queue() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("q", small().max_queue_age(Duration::from_millis(500)))]);
    let q = set.queue("q").expect("opens");
    let r = reader(&q, "r");
    put_all(&q, &["1"]);
    assert_eq!(drain(&q), ["1"]);
    for _ in 0..2 {
        sweep(&disk, &set);
    }
    assert_eq!(r.len(), 1, "the reader has not read it");
    let held = r.open().expect("there");
    sweep(&disk, &set);
    sweep(&disk, &set);
    held.close().expect("still there");
    assert_eq!(set.names(), ["q"]);
    for _ in 0..3 {
        sweep(&disk, &set);
    }
    assert!(set.names().is_empty(), "old, and empty for all");
    assert!(r.try_get().is_err() && q.put("x").is_err());
    assert_eq!(set.stats().queue_expires, 1);
    let set = open(&disk.kill(), &[]);
    assert!(set.get_queue("q+r").expect("no error").is_none());
}

#[test]
fn s39_a_delayed_item_is_due_for_each_reader_and_wakes_its_waiters() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let q = set.queue("q").expect("opens");
    let (a, b) = (reader(&q, "a"), reader(&q, "b"));
    q.put_with("late", &after(1_000)).expect("room");
    put_all(&q, &["now"]);
    a.put_with("late for a", &after(500)).expect("room");
    for (queue, deferred) in [(&q, 1), (&a, 2), (&b, 1)] {
        let stats = queue.stats();
        assert_eq!((stats.items, stats.deferred_items, stats.lag), (1, deferred, 1 + deferred), "{}", queue.name());
        assert_eq!(drain(queue), ["now"]);
    }
    std::thread::scope(|scope| {
        let waits = [&q, &a, &b].map(|queue| scope.spawn(|| queue.get_timeout(Duration::from_secs(20))));
        crate::common::until("all wait", || [&q, &a, &b].iter().all(|queue| queue.stats().waiters == 1));
        set.run_chores();
        disk.advance_ms(501);
        set.run_chores();
        disk.advance_ms(500);
        set.run_chores();
        let got = waits.map(|wait| text(wait.join().expect("no panic").expect("reads").expect("woken").data()));
        assert_eq!(got, ["late", "late for a", "late"]);
    });
    assert_eq!((drain(&a), q.stats().lag, b.stats().lag), (vec!["late".to_owned()], 0, 0));
}

#[test]
fn s39_a_delay_for_readers_outlives_a_crash() {
    for fate in [Fate::None, Fate::All] {
        let disk = SimDisk::new(1);
        let set = open(&disk, &[("only", small().fanout_only(true))]);
        let only = set.queue("only").expect("opens");
        let r = reader(&only, "r");
        only.put_with("late", &after(1_000)).expect("room");
        only.put("now").expect("room");
        assert_eq!((r.stats().items, r.stats().deferred_items, only.stats().lag), (1, 1, 0));
        let disk = disk.power_cut(fate);
        let set = open(&disk, &[("only", small().fanout_only(true))]);
        let (only, r) = (set.queue("only").expect("opens"), set.queue("only+r").expect("opens"));
        assert_eq!(drain(&r), ["now"]);
        disk.advance_ms(1_001);
        assert_eq!((drain(&r), drain(&only)), (vec!["late".to_owned()], Vec::new()));
    }
}

#[test]
fn k34_leases_end_for_each_reader_by_its_own_time() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("q", small().lease(Duration::from_millis(100)))]);
    let q = set.queue("q").expect("opens");
    let r = q.reader_with("r", &ReaderOptions::new().lease(Duration::from_millis(10))).expect("created");
    put_all(&q, &["1"]);
    let (own, theirs) = (q.open().expect("there"), r.open().expect("there"));
    set.run_chores();
    disk.advance_ms(11);
    set.run_chores();
    assert_eq!((q.len(), r.len(), r.stats().leases_ended), (0, 1, 1));
    own.close().expect("in time");
    assert!(theirs.close().is_err());
    assert_eq!(r.open().expect("came back").attempts(), 2);
}

#[test]
fn attempts_are_counted_for_each_reader_and_its_dead_letters_do_not_come_back_to_it() {
    let disk = SimDisk::new(1);
    // The letters have the options of all queues, and a reader of their own.
    let defaults = small().max_attempts(2).dead_letters("dead");
    let set = QueueSet::builder().simulated(&disk).defaults(defaults).open(DIR).expect("opens");
    let (q, dead) = (set.queue("q").expect("opens"), set.queue("dead").expect("opens"));
    let (r, mourner) = (reader(&q, "r"), reader(&dead, "mourner"));
    put_all(&q, &["1"]);
    for _ in 0..2 {
        r.open().expect("there").abort();
    }
    set.run_chores();
    assert_eq!((q.len(), r.len(), r.stats().dead_lettered), (1, 0, 1));
    let letter = dead.get().expect("there");
    let told = letter.dead_letter().expect("a letter");
    assert_eq!((told.queue.as_str(), told.attempts, letter.data()), ("q+r", 2, &b"1"[..]));
    for _ in 0..5 {
        mourner.open().expect("there").abort();
        set.run_chores();
    }
    assert_eq!((mourner.len(), dead.len()), (1, 0));
    assert!(mourner.open().expect("there").dead_letter("again").is_err());
}

/// A reader that begins with the oldest has what is left where pages were given back, also after a power cut.
#[test]
fn s40_from_oldest_passes_over_what_was_given_back() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let q = set.queue("q").expect("opens");
    for n in 0..7u8 {
        q.put([n; 7_000]).expect("room");
    }
    q.put([7; 30_000]).expect("room");
    let held: Vec<_> = (0..8).map(|_| q.open().expect("there")).collect();
    for (n, item) in held.into_iter().enumerate() {
        if n == 3 {
            let _ = item.into_token();
        } else {
            item.close().expect("closes")
        }
    }
    assert!(q.try_get().expect("reads").is_none());
    let before = q.stats().log_size;
    for _ in 0..4 {
        q.put("x").expect("room");
        q.try_get().expect("reads");
        sweep(&disk, &set);
    }
    assert!(q.stats().log_size < before, "pages were given back");
    let r = q.reader_with("r", &ReaderOptions::new().from_oldest(true)).expect("created");
    let (items, bytes) = (r.len(), r.stats().bytes);
    for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
        let set = open(&after, &[]);
        let r = set.queue("q+r").expect("opens");
        assert_eq!((r.len(), r.stats().bytes), (items, bytes));
        let (mut found, mut len) = (Vec::new(), 0);
        while let Some(item) = r.try_get().expect("nothing is damaged") {
            len += item.data().len() as u64;
            found.push(item.data()[0]);
        }
        assert_eq!((found.len() as u64, len), (items, bytes));
        assert!(found.contains(&3) && found.contains(&7), "{found:?}");
        assert_eq!(set.queue("q").expect("opens").open().expect("came back").data(), [3; 7_000]);
    }
}
