//! Waiting: who is woken, in which order, and who is never forgotten.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{GetError, PutError, PutOptions, WhenFull};

use crate::common::{drain, fast, put_all, text, until, world, world_with};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn s20_k75_k76_a_timed_get_answers_at_once_or_when_an_item_comes() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    assert_eq!(text(q.get_timeout(LONG).expect("undamaged").expect("there").data()), "a");
    std::thread::scope(|scope| {
        let got = scope.spawn(|| q.get_timeout(LONG).expect("undamaged").expect("in time"));
        until("it waits", || q.stats().waiters == 1);
        q.put("b").expect("room");
        assert_eq!(text(got.join().expect("no panic").data()), "b");
    });
    assert_eq!(q.stats().waiters, 0);
}

#[test]
fn s20_k77_a_timed_get_never_ends_early_and_leaves_the_line() {
    let w = world();
    let q = w.queue("q");
    let start = Instant::now();
    assert!(q.get_timeout(Duration::from_millis(120)).expect("no error").is_none());
    assert!(start.elapsed() >= Duration::from_millis(120));
    let stats = q.stats();
    assert_eq!((stats.waiters, stats.get_misses), (0, 1));
}

#[test]
fn s25_k78_zero_and_past_are_tries_and_max_waits() {
    let w = world();
    let q = w.queue("q");
    assert!(q.get_timeout(Duration::ZERO).expect("no error").is_none());
    let past = Instant::now().checked_sub(Duration::from_millis(5)).unwrap_or_else(Instant::now);
    assert!(q.get_deadline(past).expect("no error").is_none());
    assert!(q.open_deadline(past).expect("no error").is_none());
    std::thread::scope(|scope| {
        let got = scope.spawn(|| q.open_timeout(Duration::MAX).expect("undamaged").expect("there").close());
        until("it waits", || q.stats().waiters == 1);
        q.put("a").expect("room");
        got.join().expect("no panic").expect("marked");
    });
}

#[test]
fn s21_k79_waiters_are_served_in_the_order_in_which_they_began() {
    let w = world();
    let q = w.queue("q");
    let order = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut waiters = Vec::new();
        for n in 0..5u64 {
            let (q, order) = (&q, &order);
            waiters.push(scope.spawn(move || {
                let item = q.get().expect("undamaged");
                order.fetch_add(1, Ordering::SeqCst);
                (n, text(item.data()))
            }));
            until("it waits", || q.stats().waiters == n + 1);
        }
        for n in 0..5 {
            q.put(n.to_string()).expect("room");
        }
        for waiter in waiters {
            let (n, got) = waiter.join().expect("no panic");
            assert_eq!(got, n.to_string());
        }
    });
}

#[test]
fn k80_a_hundred_waiters_and_a_hundred_puts_from_four_threads() {
    let w = world();
    let q = w.queue("q");
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..100).map(|_| scope.spawn(|| q.get().expect("undamaged").id())).collect();
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    q.put("x").expect("room");
                }
            });
        }
        let mut ids: Vec<_> = waiters.into_iter().map(|w| w.join().expect("no panic")).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 100);
    });
    assert_eq!((q.len(), q.stats().waiters), (0, 0));
}

#[test]
fn s07_k22_an_abort_wakes_one_waiter() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let held = q.open().expect("there");
    std::thread::scope(|scope| {
        let got = scope.spawn(|| q.get().expect("undamaged"));
        until("it waits", || q.stats().waiters == 1);
        held.abort();
        assert_eq!(text(got.join().expect("no panic").data()), "a");
    });
}

#[test]
fn s26_k90_closing_or_deleting_wakes_all_with_closed() {
    for delete in [false, true] {
        let w = world_with(fast().max_items(1).when_full(WhenFull::Wait));
        let (q, full) = (w.queue("q"), w.queue("full"));
        full.put("x").expect("room");
        std::thread::scope(|scope| {
            let gets: Vec<_> = (0..3).map(|_| scope.spawn(|| q.get().map(|_| ()))).collect();
            let put = scope.spawn(|| full.put("y").map(|_| ()));
            until("all wait", || q.stats().waiters == 3);
            std::thread::sleep(Duration::from_millis(20));
            if delete {
                assert!(w.set.delete("q").expect("removed"));
                assert!(w.set.delete("full").expect("removed"));
            } else {
                w.set.clone().close().expect("closes");
            }
            for get in gets {
                assert!(matches!(get.join().expect("no panic"), Err(GetError::Closed)));
            }
            assert!(matches!(put.join().expect("no panic"), Err(PutError::Closed)));
        });
        assert!(matches!(q.try_get(), Err(GetError::Closed)));
    }
}

#[test]
fn s26_k91_pause_hides_items_and_keeps_places() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    q.pause();
    assert!(q.is_paused());
    assert!(q.try_get().expect("no error").is_none());
    assert!(q.peek().expect("no error").is_none());
    q.put("b").expect("puts go on");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| q.get().expect("undamaged"));
        until("it waits", || q.stats().waiters == 1);
        let second = scope.spawn(|| q.get().expect("undamaged"));
        until("they wait", || q.stats().waiters == 2);
        q.resume();
        assert_eq!(text(first.join().expect("no panic").data()), "a");
        assert_eq!(text(second.join().expect("no panic").data()), "b");
    });
}

#[test]
fn k88_k89_refused_puts_and_clears_wake_nobody() {
    let w = world_with(fast().max_item_size(4));
    let q = w.queue("q");
    std::thread::scope(|scope| {
        let got = scope.spawn(|| q.get().expect("undamaged"));
        until("it waits", || q.stats().waiters == 1);
        assert!(q.put("too long").is_err());
        q.clear().expect("stored");
        assert_eq!(q.stats().waiters, 1);
        q.put("ok").expect("room");
        assert_eq!(text(got.join().expect("no panic").data()), "ok");
    });
}

#[test]
fn k92_a_waiter_whose_time_is_over_does_not_swallow_the_item() {
    let w = world();
    let q = w.queue("q");
    std::thread::scope(|scope| {
        let short = scope.spawn(|| q.get_timeout(Duration::from_millis(10)).expect("no error"));
        until("it waits", || q.stats().waiters == 1);
        let long = scope.spawn(|| q.get_timeout(LONG).expect("no error"));
        assert!(short.join().expect("no panic").is_none());
        until("only one waits", || q.stats().waiters == 1);
        q.put("x").expect("room");
        assert!(long.join().expect("no panic").is_some());
    });
}

#[test]
fn k84_a_consumer_that_vanishes_hands_its_open_item_to_who_waits() {
    let w = world();
    let (q, other) = (w.queue("q"), w.queue("other"));
    q.put("x").expect("room");
    std::thread::scope(|scope| {
        let vanishing = scope.spawn(|| {
            let _held = q.open().expect("there");
            other.get_timeout(Duration::from_millis(60)).expect("no error")
        });
        until("it holds the item", || q.stats().open_items == 1);
        let waiting = scope.spawn(|| q.get().expect("undamaged"));
        assert!(vanishing.join().expect("no panic").is_none());
        assert_eq!(text(waiting.join().expect("no panic").data()), "x");
    });
}

#[test]
fn s27_open_any_takes_from_the_first_that_has_one_and_leaves_no_trace() {
    let w = world();
    let queues = [w.queue("a"), w.queue("b"), w.queue("c")];
    assert!(w.set.open_any(&queues, Duration::from_millis(5)).expect("no error").is_none());
    queues[2].put("c").expect("room");
    queues[1].put("b").expect("room");
    for expected in [1, 2] {
        let (index, item) = w.set.open_any(&queues, LONG).expect("undamaged").expect("there");
        assert_eq!(index, expected);
        item.close().expect("marked");
    }
    std::thread::scope(|scope| {
        let got = scope.spawn(|| w.set.open_any(&queues, LONG).expect("undamaged").expect("there").0);
        until("it waits on all", || queues.iter().all(|q| q.stats().waiters == 1));
        queues[1].put("x").expect("room");
        assert_eq!(got.join().expect("no panic"), 1);
    });
    assert!(queues.iter().all(|q| q.stats().waiters == 0));
}

#[test]
fn k110_puts_that_wait_are_released_in_order_and_within_their_time() {
    let w = world_with(fast().max_items(1).when_full(WhenFull::Wait));
    let q = w.queue("q");
    q.put("0").expect("room");
    let start = Instant::now();
    assert!(matches!(q.put_timeout("x", Duration::from_millis(50)), Err(PutError::Full { .. })));
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(matches!(q.put_timeout("x", Duration::ZERO), Err(PutError::Full { .. })));
    let begun = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for n in 1..=3u64 {
            let (q, begun) = (&q, &begun);
            scope.spawn(move || {
                begun.fetch_add(1, Ordering::SeqCst);
                q.put(n.to_string()).expect("released");
            });
            until("it begins", || begun.load(Ordering::SeqCst) == n);
            std::thread::sleep(Duration::from_millis(30));
        }
        for n in 0..=3u64 {
            assert_eq!(text(q.get().expect("undamaged").data()), n.to_string());
        }
    });
}

#[test]
fn k95_a_batch_wakes_as_many_as_there_are_items() {
    let w = world();
    let q = w.queue("q");
    std::thread::scope(|scope| {
        let waiters: Vec<_> =
            (0..5).map(|_| scope.spawn(|| q.get_timeout(Duration::from_millis(800)).expect("no error"))).collect();
        until("all wait", || q.stats().waiters == 5);
        q.put_batch(["a", "b", "c"]).expect("room");
        let got = waiters.into_iter().filter_map(|w| w.join().expect("no panic")).count();
        assert_eq!(got, 3);
    });
    assert!(q.is_empty());
}

#[test]
fn iterators_end_when_the_queue_is_empty_or_closed() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["a", "b"]);
    for item in q.try_iter() {
        item.expect("undamaged").close().expect("marked");
    }
    assert!(drain(&q).is_empty());
    std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            let mut count = 0;
            for item in q.iter() {
                item.expect("undamaged").close().expect("marked");
                count += 1;
            }
            count
        });
        q.put("c").expect("room");
        until("it is consumed", || q.stats().get_hits == 3);
        w.set.clone().close().expect("closes");
        assert_eq!(all.join().expect("no panic"), 1);
    });
}

#[test]
fn s21_k141_a_due_item_wakes_who_waits_and_limits_count_it_before() {
    for journal in [true, false] {
        let w = world_with(fast().journal(journal).max_items(2));
        let q = w.queue("q");
        let waiter = {
            let q = q.clone();
            std::thread::spawn(move || q.get_timeout(Duration::from_secs(30)).expect("reads").map(|item| item.id()))
        };
        let id = q.put_with("late", &PutOptions::new().delay(Duration::from_millis(100))).expect("room");
        let other = q.put_with("later", &PutOptions::new().delay(Duration::from_secs(3600))).expect("room");
        assert!(matches!(q.put("no"), Err(PutError::Full { .. })), "both count");
        assert_eq!(waiter.join().expect("no panic"), Some(id));
        assert_eq!((q.len(), q.stats().deferred_items), (0, 1));
        assert!(other > id);
        q.put("now").expect("room again");
    }
}
