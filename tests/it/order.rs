//! Put, get, open, close, abort: order, counts, restarts.

use std::time::Duration;

use kestrel_core::{CloseError, PutError, QueueOptions};

use crate::common::{drain, fast, put_all, text, world, world_with};

#[test]
fn s01_k03_items_leave_in_the_order_of_their_puts() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["a", "b", "c"]);
    assert_eq!(text(q.get().expect("there").data()), "a");
    put_all(&q, &["d", "e"]);
    assert_eq!(drain(&q), ["b", "c", "d", "e"]);
}

#[test]
fn k09_large_batches_behind_a_sync_are_whole_here_and_after_a_kill_and_a_close() {
    let w = world_with(QueueOptions::default());
    let q = w.queue("q");
    let mut expected = Vec::new();
    for round in 0..12u32 {
        let sizes = (0..90u32).map(|n| (n * 37 + round * 11) % 2_000);
        let batch: Vec<Vec<u8>> = sizes.zip(0u8..).map(|(size, n)| vec![n ^ round as u8; size as usize]).collect();
        q.put_batch(&batch).expect("room");
        expected.extend(batch);
        let single = vec![round as u8; 7];
        q.put(&single).expect("room");
        expected.push(single);
    }
    let items = |queue: kestrel_core::Queue| -> Vec<Vec<u8>> {
        std::iter::from_fn(|| queue.try_get().expect("undamaged")).map(|item| item.data().to_vec()).collect()
    };
    assert!(items(w.killed().queue("q")) == expected, "after a kill");
    drop(q);
    let w = w.reopen();
    assert!(items(w.queue("q")) == expected, "after a close");
}

#[test]
fn k01_an_empty_queue_gives_nothing_and_counts_it() {
    let w = world();
    let q = w.queue("q");
    assert!(q.try_get().expect("no error").is_none());
    assert!(q.peek().expect("no error").is_none());
    let stats = q.stats();
    assert_eq!((stats.get_misses, stats.items, stats.age_ms), (2, 0, 0));
}

#[test]
fn k02_lengths_bytes_and_totals_follow_each_step() {
    let w = world();
    let q = w.queue("q");
    q.put("hello world").expect("room");
    let stats = q.stats();
    assert_eq!((stats.items, stats.bytes, stats.total_items, stats.put_bytes), (1, 11, 1, 11));
    assert_eq!(q.get().expect("there").data(), b"hello world");
    let stats = q.stats();
    assert_eq!((stats.items, stats.bytes, stats.total_items, stats.get_hits), (0, 0, 1, 1));
}

#[test]
fn k05_payloads_of_every_kind_come_back_equal() {
    let w = world();
    let q = w.queue("q");
    let all: Vec<u8> = (0..=255).collect();
    let payloads: [&[u8]; 7] = [b"", b"\r\n", b"\0", b"text\0", &all, b"END\r\n", &[0; 5000]];
    for payload in payloads {
        q.put(payload).expect("room");
    }
    for payload in payloads {
        assert_eq!(q.get().expect("there").data(), payload);
    }
}

#[test]
fn k06_k07_the_largest_size_is_exact_and_drops_nothing() {
    for options in [fast(), fast().max_items(2).when_full(kestrel_core::WhenFull::DropOldest)] {
        let w = world_with(options.max_item_size(128));
        let q = w.queue("q");
        q.put([1; 127]).expect("below");
        q.put([2; 128]).expect("at");
        let log_size = q.stats().log_size;
        assert!(matches!(q.put([3; 129]), Err(PutError::TooLarge { len: 129, max: 128 })));
        let stats = q.stats();
        assert_eq!((stats.total_items, stats.items, stats.log_size), (2, 2, log_size));
    }
}

#[test]
fn k09_items_of_all_sizes_from_several_threads_keep_each_producers_order() {
    let w = world_with(fast().max_item_size(9 << 20));
    let q = w.queue("q");
    let sizes = [1usize, 1025, 100_000, 8 << 20];
    std::thread::scope(|scope| {
        for producer in 0..4u64 {
            let q = &q;
            scope.spawn(move || {
                for n in 0..60u64 {
                    let size = 16 + sizes[if n % 50 == 7 { 3 } else { n as usize % 3 }];
                    let mut data = [producer.to_le_bytes(), n.to_le_bytes()].concat();
                    data.resize(size, (producer * 60 + n) as u8);
                    q.put(&data).expect("room");
                }
            });
        }
        let mut next = [0u64; 4];
        for _ in 0..240 {
            let item = q.get().expect("undamaged");
            let producer = u64::from_le_bytes(item.data()[..8].try_into().expect("eight"));
            let n = u64::from_le_bytes(item.data()[8..16].try_into().expect("eight"));
            assert_eq!(n, next[producer as usize]);
            assert!(item.data()[16..].iter().all(|byte| *byte == (producer * 60 + n) as u8));
            next[producer as usize] += 1;
        }
    });
    assert!(q.is_empty());
}

#[test]
fn s10_k10_k11_a_peek_takes_nothing_and_passes_over_open_items() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["a", "b"]);
    for _ in 0..3 {
        assert_eq!(text(q.peek().expect("undamaged").expect("there").data()), "a");
        assert_eq!(q.len(), 2);
    }
    let held = q.open().expect("there");
    assert_eq!(text(q.peek().expect("undamaged").expect("there").data()), "b");
    drop(held);
    assert_eq!(drain(&q), ["a", "b"]);
    assert!(q.peek().expect("undamaged").is_none());
}

#[test]
fn s02_s03_k16_k17_an_open_item_is_nobody_elses_and_closed_it_is_gone_for_good() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let item = q.open().expect("there");
    let stats = q.stats();
    assert_eq!((stats.items, stats.bytes, stats.open_items), (0, 0, 1));
    assert!(q.try_get().expect("undamaged").is_none());
    item.close().expect("marked");
    assert_eq!(q.stats().open_items, 0);
    assert!(w.reopen().queue("q").is_empty());
}

#[test]
fn s04_k18_k20_aborted_items_come_first_and_in_the_order_of_ids() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["a", "b", "c", "d"]);
    let (a, b, c) = (q.open().expect("a"), q.open().expect("b"), q.open().expect("c"));
    c.abort();
    b.abort();
    assert_eq!(text(q.get().expect("b").data()), "b");
    assert_eq!(text(q.get().expect("c").data()), "c");
    a.abort();
    assert_eq!(drain(&q), ["a", "d"]);
    assert_eq!(q.stats().canceled_transactions, 3);
}

#[test]
fn s05_k27_k49_k50_f03_after_a_kill_open_items_are_back_in_the_order_of_ids() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["1", "2", "3", "4", "5"]);
    let mut held: Vec<_> = (0..4).map(|_| q.open().expect("there")).collect();
    held.remove(3).close().expect("marked");
    held.remove(1).close().expect("marked");
    held.remove(0).abort();
    held.insert(0, q.open().expect("the first again"));
    let after = w.killed();
    assert_eq!(drain(&after.queue("q")), ["1", "3", "5"]);
}

#[test]
fn s06_k23_a_token_ends_an_opening_once() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let token = q.open().expect("there").into_token();
    assert_eq!(q.stats().open_items, 1);
    assert!(q.abort_token(token));
    assert!(!q.abort_token(token));
    assert!(!q.close_token(token).expect("no error"));
    let newer = q.open().expect("there").into_token();
    assert_eq!(newer.id(), token.id());
    assert!(!q.close_token(token).expect("no error"), "an old token is no token of the new opening");
    assert!(q.close_token(newer).expect("no error"));
    assert!(!q.close_token(newer).expect("no error"));
    let stats = q.stats();
    assert_eq!((stats.items, stats.open_items, stats.canceled_transactions), (0, 0, 1));
}

#[test]
fn k28_interleaved_aborts_and_closes_leave_what_they_should() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["house", "cat"]);
    let (house, cat) = (q.open().expect("house"), q.open().expect("cat"));
    house.abort();
    cat.close().expect("marked");
    assert_eq!(text(q.get().expect("house").data()), "house");
    assert!(w.reopen().queue("q").is_empty());
}

#[test]
fn k36_attempts_count_starts_also_across_restarts_and_kills() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    for attempt in 1..=3 {
        let item = q.open().expect("there");
        assert_eq!(item.attempts(), attempt);
        item.abort();
    }
    let w = w.reopen();
    let q = w.queue("q");
    let held = q.open().expect("there");
    assert_eq!(held.attempts(), 4);
    let after = w.killed();
    assert_eq!(after.queue("q").recovery().redelivered, 1);
    assert_eq!(after.queue("q").get().expect("there").attempts(), 5, "a start that a kill ended counts");
}

#[test]
fn k41_a_guard_dropped_by_a_panic_gives_its_item_back() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let panicked = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let _item = q.open().expect("there");
                panic!("planted");
            })
            .join()
    });
    assert!(panicked.is_err());
    assert_eq!(q.get().expect("back").attempts(), 2);
}

#[test]
fn s08_k42_f40_a_leaked_guard_shows_and_the_item_is_back_after_a_reopen() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let _ = q.open().expect("there").into_token();
    assert_eq!(q.stats().open_items, 1);
    drop(q);
    assert_eq!(drain(&w.reopen().queue("q")), ["a"]);
}

#[test]
fn s11_k44_k45_a_batch_opens_what_is_there_and_ends_one_by_one() {
    let w = world();
    let q = w.queue("q");
    assert!(q.open_batch(3, Duration::from_millis(10)).expect("no error").is_empty());
    assert!(q.open_batch(0, Duration::MAX).expect("no error").is_empty());
    put_all(&q, &["1", "2", "3", "4", "5"]);
    let mut items = q.open_batch(9, Duration::MAX).expect("undamaged");
    assert_eq!(items.len(), 5);
    items.remove(3).close().expect("marked");
    items.remove(1).close().expect("marked");
    drop(items);
    assert_eq!(drain(&q), ["1", "3", "5"]);
}

#[test]
fn k44_a_batch_with_a_minimum_waits_for_it_and_takes_what_there_is_when_the_time_is_over() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["1", "2"]);
    let wait = Duration::from_millis(50);
    let start = std::time::Instant::now();
    let batch = q.open_at_least(3, 9, wait).expect("undamaged");
    assert!(start.elapsed() >= wait);
    assert_eq!(batch.len(), 2);
    drop(batch);
    // With the third the wait is over; what is there besides comes along, up to the most.
    let batch = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| q.open_at_least(3, 4, Duration::MAX));
        put_all(&q, &["3", "4", "5"]);
        waiter.join().expect("no panic").expect("undamaged")
    });
    assert!((3..=4).contains(&batch.len()), "{}", batch.len());
    assert_eq!(batch.iter().map(|item| text(item.data())).collect::<String>(), &"1234"[..batch.len()]);
    drop(batch);
    assert_eq!(q.open_at_least(9, 2, Duration::MAX).expect("undamaged").len(), 2, "at least all that may come");
    assert_eq!(q.open_at_least(0, 9, Duration::MAX).expect("undamaged").len(), 5, "those that are there");
    assert_eq!(q.stats().open_items, 0);
}

#[test]
fn k46_k47_many_open_items_end_in_any_order() {
    let w = world();
    let q = w.queue("q");
    q.put_batch((0..100_000u32).map(|n| n.to_le_bytes())).expect("room");
    let mut items = q.open_batch(100_000, Duration::ZERO).expect("undamaged");
    let mut state = 7usize;
    while items.len() > 50_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = state % items.len();
        items.swap_remove(index).close().expect("marked");
    }
    assert_eq!(q.stats().open_items, 50_000);
    drop(items);
    assert_eq!(q.len(), 50_000);
    let mut last = 0;
    while let Some(item) = q.try_get().expect("undamaged") {
        assert!(item.id().get() > last);
        last = item.id().get();
    }
}

#[test]
fn s13_k116_k117_open_items_survive_a_clear_as_values_only() {
    for kill in [false, true] {
        let w = world();
        let q = w.queue("q");
        put_all(&q, &["a", "b", "c"]);
        let (a, b) = (q.open().expect("a"), q.open().expect("b"));
        assert_eq!(q.clear().expect("stored"), 1);
        assert_eq!(text(a.data()), "a");
        if kill {
            assert!(w.killed().queue("q").is_empty());
        }
        a.close().expect("nothing left to end");
        b.abort();
        assert!(q.is_empty());
    }
}

#[test]
fn k14_k48_counters_start_anew_and_nothing_grows_by_reopening() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["1", "2", "3", "4", "5"]);
    q.get().expect("there");
    q.get().expect("there");
    drop(q);
    let w = w.reopen();
    let stats = w.queue("q").stats();
    assert_eq!((stats.total_items, stats.items, stats.bytes), (0, 3, 3));
    let log_size = stats.log_size;
    let w = w.reopen().reopen();
    assert_eq!(w.queue("q").stats().log_size, log_size);
    assert!(w.queue("q").recovery().clean);
    assert_eq!(drain(&w.queue("q")), ["3", "4", "5"]);
}

#[test]
fn k69_s15_k119_ids_rise_over_restart_clear_and_delete() {
    let w = world();
    let mut highest = w.queue("q").put("a").expect("room");
    let mut next = |w: &crate::common::World| {
        let id = w.queue("q").put("x").expect("room");
        assert!(id > highest, "{id} after {highest}");
        highest = id;
    };
    next(&w);
    w.queue("q").clear().expect("stored");
    next(&w);
    let w = w.reopen();
    next(&w);
    assert!(w.set.delete("q").expect("removed"));
    next(&w);
    assert_eq!(w.queue("q").stats().total_items, 1);
    let w = w.reopen();
    next(&w);
    drain(&w.queue("q"));
    let w = w.reopen();
    next(&w);
}

#[test]
fn s50_gauges_equal_a_recount_after_random_work() {
    let w = world_with(fast().segment_bytes(64 << 10).memory_bytes(10_000));
    let q = w.queue("q");
    let mut state = 3u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut held = Vec::new();
    let mut before = q.stats();
    for _ in 0..5_000 {
        match next(6) {
            0..=2 => drop(q.put(vec![1; next(600) as usize]).expect("room")),
            3 => held.extend(q.try_open().expect("undamaged")),
            4 if !held.is_empty() => {
                let index = next(held.len() as u64) as usize;
                let item = held.swap_remove(index);
                if next(2) == 0 { item.abort() } else { item.close().expect("marked") }
            }
            _ => drop(q.try_get().expect("undamaged")),
        }
        let now = q.stats();
        assert!(now.total_items >= before.total_items && now.get_hits >= before.get_hits);
        assert!(now.get_misses >= before.get_misses && now.canceled_transactions >= before.canceled_transactions);
        before = now;
    }
    let stats = q.stats();
    assert_eq!(stats.open_items, held.len() as u64);
    let (mut items, mut bytes) = (0, 0);
    while let Some(item) = q.try_get().expect("undamaged") {
        items += 1;
        bytes += item.data().len() as u64;
    }
    assert_eq!((stats.items, stats.bytes), (items, bytes));
}

#[test]
fn an_item_of_a_closed_set_is_closed_to_its_holder() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let item = q.open().expect("there");
    w.set.clone().close().expect("closes");
    assert!(matches!(item.close(), Err(CloseError::Closed)));
    assert!(matches!(q.put("b"), Err(PutError::Closed)));
}
