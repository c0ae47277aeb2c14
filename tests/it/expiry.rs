//! Where expired items go, and queues that have become too old; on a simulated disk, for its clock.

use std::time::Duration;

use kestrel_core::testing::{Fate, SimDisk};
use kestrel_core::{Durability, PutOptions, Queue, QueueOptions, QueueSet, State};

use crate::common::drain;

const DIR: &str = "/set";

fn open(disk: &SimDisk, options: &[(&str, QueueOptions)]) -> QueueSet {
    let mut builder = QueueSet::builder().simulated(disk).defaults(sync());
    for (name, options) in options {
        builder = builder.queue_options(name, options.clone());
    }
    builder.open(DIR).expect("opens")
}

fn sync() -> QueueOptions {
    QueueOptions::default().segment_bytes(64 << 10)
}

fn expiring(ms: u64) -> PutOptions {
    PutOptions::new().expires_in(Duration::from_millis(ms)).flags(9)
}

fn put_expiring(queue: &Queue, items: &[&str]) {
    for item in items {
        queue.put_with(item, &expiring(10)).expect("room");
    }
}

/// Lets the time of a sweep come, and all that it leads to.
fn sweep(disk: &SimDisk, set: &QueueSet) {
    // What was asked for counts its time from here.
    set.run_chores();
    disk.advance_ms(1001);
    set.run_chores();
    set.run_chores();
}

#[test]
fn k134_expired_items_move_in_order_without_an_expiry() {
    let disk = SimDisk::new(1);
    let late = sync().max_age(Duration::from_secs(10));
    let set = open(&disk, &[("a", sync().expire_to("late")), ("late", late)]);
    let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
    a.put("head").expect("room");
    put_expiring(&a, &["1", "2"]);
    a.put("live").expect("room");
    put_expiring(&a, &["3"]);
    disk.advance_ms(11);
    // Met by a get, and by the sweep.
    assert_eq!(drain(&a), ["head", "live"]);
    assert_eq!((a.len(), a.stats().open_items, a.stats().expiring_items), (0, 0, 3));
    sweep(&disk, &set);
    assert_eq!((late.len(), a.stats().expired_items, a.stats().expiring_items), (3, 3, 0));
    let first = late.open().expect("there");
    assert_eq!((first.data(), first.flags(), first.attempts()), (&b"1"[..], 9, 1));
    first.abort();
    // Its age counts from the move.
    disk.advance_ms(8_000);
    assert_eq!(late.peek().expect("reads").map(|item| item.data().to_vec()), Some(b"1".to_vec()));
    disk.advance_ms(2_500);
    assert_eq!(drain(&late), [""; 0]);
}

#[test]
fn k65_what_expires_while_the_process_is_down_is_moved_once() {
    for cut in [None, Some(Fate::None), Some(Fate::All)] {
        let disk = SimDisk::new(1);
        let options = [("a", sync().expire_to("late"))];
        let set = open(&disk, &options);
        let a = set.queue("a").expect("opens");
        put_expiring(&a, &["1", "2"]);
        a.put("live").expect("room");
        let mut disk = match cut {
            None => disk.kill(),
            Some(fate) => disk.power_cut(fate),
        };
        disk.advance_ms(60_000);
        // Opened again and again, each time after another end.
        for round in 0..4 {
            let set = open(&disk, &options);
            let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
            let next = a.open().expect("the live one");
            assert_eq!(next.data(), b"live", "round {round}: never delivered");
            next.abort();
            sweep(&disk, &set);
            assert_eq!((a.len(), late.len()), (1, 2), "round {round}");
            let _ = late.peek().expect("reads");
            disk = if round % 2 == 0 { disk.kill() } else { disk.power_cut(Fate::None) };
        }
    }
}

#[test]
fn s34_a_full_target_keeps_the_item_for_the_next_sweep() {
    let disk = SimDisk::new(1);
    let small = sync().max_items(1).max_item_size(5);
    let options = [("a", sync().expire_to("late")), ("late", small)];
    let set = open(&disk, &options);
    let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
    put_expiring(&a, &["too long", "1", "2", "3"]);
    a.put("live").expect("room");
    disk.advance_ms(11);
    assert_eq!(a.discard_expired(10).expect("sweeps"), 1);
    assert_eq!((late.len(), a.len(), a.stats().expiring_items, a.stats().expired_items), (1, 1, 3, 1));
    assert_eq!(drain(&a), ["live"]);
    for left in ["1", "2"] {
        for _ in 0..3 {
            sweep(&disk, &set);
            assert_eq!(drain(&a), [""; 0], "never delivered");
        }
        assert_eq!(drain(&late), [left]);
    }
    // Not lost by an end of the process, orderly or not; and gone with a clear.
    drop((a, late));
    set.close().expect("closes");
    let set = open(&disk.kill(), &options);
    let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
    assert_eq!(drain(&a), [""; 0]);
    set.run_chores();
    assert_eq!((late.len(), a.stats().expiring_items), (1, 1));
    a.clear().expect("stored");
    assert_eq!(a.stats().expiring_items, 0);
    a.set_options(sync()).expect("stored");
    sweep(&disk, &set);
    assert_eq!(drain(&late), ["3"]);
}

#[test]
fn s34_without_the_option_what_was_kept_is_removed() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("late", sync().max_items(0))]);
    let a = set.queue_with("a", sync().expire_to("late")).expect("opens");
    put_expiring(&a, &["1", "2"]);
    sweep(&disk, &set);
    assert_eq!((a.stats().expiring_items, a.stats().expired_items), (2, 0));
    a.set_options(sync()).expect("stored");
    assert_eq!(a.discard_expired(10).expect("sweeps"), 2);
    assert_eq!((a.stats().expiring_items, a.stats().expired_items), (0, 2));
    let set = open(&disk.kill(), &[]);
    assert_eq!(set.queue("a").expect("opens").len(), 0);
}

#[test]
fn s34_refused_puts_make_room_by_moving_what_has_expired() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("a", sync().expire_to("late").max_items(2))]);
    let a = set.queue("a").expect("opens");
    put_expiring(&a, &["1", "2"]);
    assert!(a.put("3").is_err());
    disk.advance_ms(11);
    a.put("3").expect("the expired ones are no reason to refuse");
    set.run_chores();
    assert_eq!(drain(&set.queue("late").expect("opens")), ["1", "2"]);
    assert_eq!(drain(&a), ["3"]);
}

#[test]
fn k136_a_queue_that_names_itself_and_a_ring_of_three_come_to_rest() {
    let disk = SimDisk::new(1);
    let ring = [("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")].map(|(name, to)| (name, sync().expire_to(to)));
    let set = open(&disk, &ring);
    let own = set.queue("self").expect("opens");
    put_expiring(&own, &["1", "2"]);
    own.put("3").expect("room");
    for name in ["a", "b", "c"] {
        let queue = set.queue(name).expect("opens");
        for n in 0..300 {
            queue.put_with(format!("{name}{n}"), &expiring(10)).expect("room");
        }
    }
    for _ in 0..5 {
        sweep(&disk, &set);
    }
    assert_eq!(drain(&own), ["3", "1", "2"]);
    for (from, into) in [("a", "b"), ("b", "c"), ("c", "a")] {
        let expected: Vec<String> = (0..300).map(|n| format!("{from}{n}")).collect();
        assert_eq!(drain(&set.queue(into).expect("opens")), expected);
    }
    // With an age of its own each goes on round and round, one step a sweep at most.
    let aged = ring.map(|(name, options)| (name, options.max_age(Duration::from_millis(500))));
    drop((own, set));
    let set = open(&disk, &aged);
    let all: Vec<Queue> = ["a", "b", "c"].iter().map(|name| set.queue(name).expect("opens")).collect();
    all[0].put("x").expect("room");
    for _ in 0..7 {
        sweep(&disk, &set);
        assert_eq!(all.iter().map(|queue| queue.len()).sum::<u64>(), 1);
    }
    assert!(all.iter().map(|queue| queue.stats().expired_items).sum::<u64>() >= 3);
}

#[test]
fn k137_a_target_that_was_deleted_is_made_anew() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("a", sync().expire_to("late"))]);
    let a = set.queue("a").expect("opens");
    put_expiring(&a, &["1"]);
    sweep(&disk, &set);
    let old = set.queue("late").expect("opens");
    assert_eq!(old.len(), 1);
    assert!(set.delete("late").expect("gone"));
    put_expiring(&a, &["2"]);
    sweep(&disk, &set);
    assert_eq!(drain(&set.get_queue("late").expect("opens").expect("there")), ["2"]);
    set.delete("late").expect("gone");
    set.queue("late").expect("made anew").put("own").expect("room");
    put_expiring(&a, &["3"]);
    sweep(&disk, &set);
    assert_eq!(drain(&set.queue("late").expect("opens")), ["own", "3"]);
}

#[test]
fn k130_a_round_of_the_background_moves_no_more_than_the_option_says() {
    let disk = SimDisk::new(1);
    let options = sync().expire_to("late").max_expire_sweep(3);
    let set = open(&disk, &[("a", options)]);
    let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
    put_expiring(&a, &["1", "2", "3", "4"]);
    a.put("live").expect("room");
    disk.advance_ms(11);
    assert_eq!(a.discard_expired(3).expect("sweeps"), 3);
    assert_eq!((a.len(), late.len()), (2, 3));
    assert_eq!(drain(&a), ["live"]);
    put_expiring(&a, &["5", "6", "7", "8", "9"]);
    set.run_chores();
    disk.advance_ms(1001);
    set.run_chores();
    assert!((4..=7).contains(&late.len()), "{}", late.len());
    for _ in 0..3 {
        sweep(&disk, &set);
    }
    assert_eq!(late.len(), 9);
}

#[test]
fn k140_expired_items_in_a_backlog_larger_than_memory_all_move() {
    let disk = SimDisk::new(1);
    let options = sync().expire_to("late").memory_bytes(1024).durability(Durability::Os);
    let set = open(&disk, &[("a", options), ("late", sync().durability(Durability::Os))]);
    let (a, late) = (set.queue("a").expect("opens"), set.queue("late").expect("opens"));
    for n in 0..2_000u32 {
        a.put_with(n.to_le_bytes().repeat(50), &expiring(10)).expect("room");
    }
    a.put("live").expect("room");
    for _ in 0..3 {
        sweep(&disk, &set);
        assert!(a.stats().mem_bytes <= 1024 + 200);
    }
    assert_eq!((a.len(), late.len()), (1, 2_000));
    let first = late.get().expect("there");
    assert_eq!(&first.data()[..4], &[0; 4]);
}

#[test]
fn k121_an_old_queue_is_deleted_once_it_is_empty() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let options = sync().max_queue_age(Duration::from_secs(90));
    let queue = set.queue_with("q", options.clone()).expect("opens");
    set.run_chores();
    assert_eq!(set.names(), ["q"], "young");
    queue.put("x").expect("room");
    disk.advance_ms(91_000);
    set.run_chores();
    assert_eq!(set.names(), ["q"], "not empty");
    queue.get().expect("there");
    disk.advance_ms(1_001);
    set.run_chores();
    assert_eq!(set.names(), [""; 0]);
    assert_eq!((set.stats().queue_expires, set.stats().queue_deletes), (1, 0));
    assert!(matches!(queue.put("y"), Err(kestrel_core::PutError::Closed)));
    assert!(disk.list_files().iter().all(|path| !path.to_string_lossy().contains("queues/q/")));
    // A new one of that name begins a life of its own, with ids above.
    let new = set.queue_with("q", options).expect("opens");
    assert!(new.put("z").expect("room").get() > 1);
}

#[test]
fn k122_an_old_queue_that_somebody_uses_stays() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[("late", sync().max_items(0))]);
    let options = sync().max_queue_age(Duration::from_secs(1)).expire_to("late");
    let queue = set.queue_with("q", options).expect("opens");
    let look = |expected: bool, why: &str| {
        for _ in 0..3 {
            sweep(&disk, &set);
        }
        assert_eq!(set.names().contains(&"q".to_owned()), expected, "{why}");
    };
    queue.put("x").expect("room");
    let held = queue.open().expect("there");
    look(true, "an open item");
    held.close().expect("closes");
    let mut waiter = Box::pin(queue.get_async());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(waiter.as_mut(), &mut context).is_pending());
    look(true, "a waiter");
    drop(waiter);
    put_expiring(&queue, &["about to move"]);
    look(true, "an expired item that its target refuses");
    set.queue("late").expect("opens").set_options(sync()).expect("stored");
    set.set_state(State::ReadOnly).expect("changes");
    look(true, "nothing is thrown away in this state");
    set.set_state(State::Up).expect("changes");
    look(false, "nobody uses it");
    assert_eq!(set.queue("late").expect("opens").len(), 1);
}

#[test]
fn k123_the_age_of_a_queue_goes_on_over_a_reopen() {
    let disk = SimDisk::new(1);
    let set = open(&disk, &[]);
    let queue = set.queue_with("q", sync().max_queue_age(Duration::from_secs(90))).expect("opens");
    queue.put("x").expect("room");
    queue.get().expect("there");
    disk.advance_ms(60_000);
    drop(queue);
    set.close().expect("closes");
    let set = open(&disk, &[]);
    set.queue("q").expect("opens");
    set.run_chores();
    disk.advance_ms(25_000);
    set.run_chores();
    assert_eq!(set.names(), ["q"], "85 s");
    disk.advance_ms(6_000);
    set.run_chores();
    assert_eq!(set.names(), [""; 0], "91 s since it was created");
}
