//! Cases of the semantics document that no other file has in full.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kestrel_core::{PutOptions, WhenFull};

use crate::common::{World, drain, fast, put_all, text, until, world, world_with};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn k12_two_producers_of_a_hundred_thousand_each_keep_their_order() {
    const ITEMS: u64 = 100_000;
    let w = world();
    let q = w.queue("q");
    std::thread::scope(|scope| {
        for producer in 0..2u64 {
            let q = &q;
            scope.spawn(move || {
                for n in 0..ITEMS {
                    q.put((producer << 32 | n).to_le_bytes()).expect("room");
                }
            });
        }
        let mut next = [0, 0];
        for _ in 0..2 * ITEMS {
            let item = q.get_timeout(LONG).expect("undamaged").expect("none is missing");
            let word = u64::from_le_bytes(item.data().try_into().expect("eight"));
            let producer = (word >> 32) as usize;
            assert_eq!(word & 0xffff_ffff, next[producer], "none twice, none out of order");
            next[producer] += 1;
        }
    });
    assert!(q.is_empty());
}

/// What the counters should say, kept beside the queue.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    total: u64,
    hits: u64,
    misses: u64,
    expired: u64,
    discarded: u64,
    canceled: u64,
    opens: u64,
}

#[test]
fn k13_counters_equal_a_model_after_a_random_run_and_never_fall() {
    const MOST: usize = 20;
    let w = world_with(fast().max_items(MOST as u64).when_full(WhenFull::DropOldest));
    let q = w.queue("q");
    let counted = || {
        let stats = q.stats();
        Counted {
            total: stats.total_items,
            hits: stats.get_hits,
            misses: stats.get_misses,
            expired: stats.expired_items,
            discarded: stats.discarded,
            canceled: stats.canceled_transactions,
            opens: stats.transactions,
        }
    };
    let (mut model, mut waiting, mut held) = (Counted::default(), VecDeque::new(), Vec::new());
    let mut before = counted();
    let mut state = 11u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for n in 0..3_000u64 {
        match dice(8) {
            // One in three has expired when it is put: it goes when somebody meets it, or a put wants its room.
            0..=3 => {
                let is_over = dice(3) == 0;
                let options = PutOptions::new();
                let options = if is_over { options.expires_at(std::time::UNIX_EPOCH) } else { options };
                if waiting.len() >= MOST {
                    model.expired += waiting.iter().filter(|(_, is_over)| *is_over).count() as u64;
                    waiting.retain(|(_, is_over)| !is_over);
                }
                while waiting.len() >= MOST {
                    waiting.pop_front();
                    model.discarded += 1;
                }
                q.put_with(n.to_le_bytes(), &options).expect("makes room");
                model.total += 1;
                waiting.push_back((n, is_over));
            }
            kind @ 4..=6 => {
                while waiting.front().is_some_and(|(_, is_over)| *is_over) {
                    waiting.pop_front();
                    model.expired += 1;
                }
                let wanted = waiting.pop_front().map(|(n, _)| n);
                *(if wanted.is_some() { &mut model.hits } else { &mut model.misses }) += 1;
                let found = if kind == 6 {
                    model.opens += 1;
                    let item = q.try_open().expect("undamaged");
                    let number = item.as_ref().map(|item| item.data().to_vec());
                    held.extend(item);
                    number
                } else {
                    q.try_get().expect("undamaged").map(|item| item.data().to_vec())
                };
                assert_eq!(found, wanted.map(|n| n.to_le_bytes().to_vec()));
            }
            _ if !held.is_empty() => {
                let item = held.swap_remove(dice(held.len() as u64) as usize);
                let number = u64::from_le_bytes(item.data().try_into().expect("eight"));
                if dice(2) == 0 {
                    item.close().expect("marked");
                } else {
                    item.abort();
                    model.canceled += 1;
                    // Before all others, by number.
                    let at = waiting.iter().position(|(other, _)| *other > number).unwrap_or(waiting.len());
                    waiting.insert(at, (number, false));
                }
            }
            _ => {}
        }
        let now = counted();
        let pairs = [(now.total, before.total), (now.hits, before.hits), (now.misses, before.misses)];
        let others =
            [(now.expired, before.expired), (now.discarded, before.discarded), (now.canceled, before.canceled)];
        assert!(pairs.iter().chain(&others).all(|(now, before)| now >= before), "{before:?} {now:?}");
        before = now;
    }
    // What has expired and was not met yet.
    model.expired += q.discard_expired(usize::MAX).expect("sweeps");
    assert_eq!(counted(), model);
}

#[test]
fn k31_of_a_close_and_two_aborts_by_three_threads_exactly_one_wins() {
    const ROUNDS: u32 = 100_000;
    let w = world();
    let q = w.queue("q");
    let (begin, end) = (Barrier::new(4), Barrier::new(4));
    let token = std::sync::Mutex::new(None);
    let wins = std::sync::atomic::AtomicU32::new(0);
    let mut wrong = None;
    std::thread::scope(|scope| {
        for ender in 0..3 {
            let (q, begin, end, token, wins) = (&q, &begin, &end, &token, &wins);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    begin.wait();
                    let token = token.lock().expect("no panic").expect("set");
                    let won = if ender == 0 { q.close_token(token).expect("no error") } else { q.abort_token(token) };
                    wins.fetch_add(won.into(), std::sync::atomic::Ordering::SeqCst);
                    end.wait();
                }
            });
        }
        for round in 1..=ROUNDS {
            q.put("x").expect("room");
            *token.lock().expect("no panic") = Some(q.open().expect("there").into_token());
            begin.wait();
            end.wait();
            // Told at the end: the other threads would wait for ever for one that panics.
            if (wins.load(std::sync::atomic::Ordering::SeqCst), q.stats().open_items) != (round, 0) {
                wrong.get_or_insert(round);
            }
            drain(&q);
        }
    });
    assert_eq!(wrong, None, "the round in which not one of three won");
}

/// The figure is printed by the benchmark `marks`, too; here it is what the open reads that must not grow.
#[test]
fn k70_an_open_reads_no_more_of_a_larger_backlog() {
    let mut read = Vec::new();
    for items in [1_000u32, 1_000_000] {
        let w = world_with(fast().segment_bytes(1 << 20));
        let q = w.queue("q");
        for part in 0..items / 1_000 {
            q.put_batch((0..1_000).map(|n| (part * 1_000 + n).to_le_bytes())).expect("room");
        }
        let killed = w.killed();
        let start = Instant::now();
        let report = killed.queue("q").recovery();
        println!(
            "K70: {items} items after a kill: opened in {:?}, {} bytes read",
            start.elapsed(),
            report.scanned_bytes
        );
        assert_eq!((report.items, report.clean), (items.into(), false));
        read.push(report.scanned_bytes);
        drop(q);
        let start = Instant::now();
        let w = w.reopen();
        let q = w.queue("q");
        println!("K70: {items} items after a close: opened in {:?}", start.elapsed());
        assert_eq!((q.len(), q.recovery().clean, q.recovery().scanned_bytes), (items.into(), true, 0));
        assert_eq!(q.get().expect("there").data(), 0u32.to_le_bytes());
    }
    assert!(read[1] <= 2 << 20, "of a thousand times as much, only the last segments are read: {read:?}");
}

#[test]
fn k86_a_long_wait_that_ends_early_leaves_nothing_behind() {
    let w = world();
    let q = w.queue("q");
    let hour = Duration::from_secs(3600);
    std::thread::scope(|scope| {
        let got = scope.spawn(|| q.get_timeout(hour).expect("undamaged").expect("in time"));
        until("it waits", || q.stats().waiters == 1);
        q.put("x").expect("room");
        assert_eq!(text(got.join().expect("no panic").data()), "x");
    });
    assert_eq!(q.stats().waiters, 0);
    let mut waiting = Box::pin(q.get_async());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(waiting.as_mut(), &mut context).is_pending());
    assert_eq!(q.stats().waiters, 1);
    drop(waiting);
    assert_eq!((q.stats().waiters, q.len()), (0, 0));
    q.put("y").expect("room");
    assert_eq!(drain(&q), ["y"], "nobody was promised it");
}

/// Five wait; what brings three items wakes three, and two go on waiting.
fn wakes_three(w: &World, what: &str, bring: impl FnOnce()) {
    let q = w.queue("q");
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..5).map(|_| scope.spawn(|| q.get_timeout(LONG).expect("undamaged"))).collect();
        until("all wait", || q.stats().waiters == 5);
        bring();
        until(what, || q.stats().waiters == 2 && q.is_empty());
        assert_eq!(q.stats().get_hits, 3, "{what}");
        put_all(&q, &["more", "more"]);
        assert!(waiters.into_iter().all(|waiter| waiter.join().expect("no panic").is_some()), "{what}");
    });
}

#[test]
fn k95_an_abort_a_resume_and_a_sweep_wake_as_many_as_there_are_items() {
    let w = world();
    let late = w.set.queue_with("late", fast().expire_to("q")).expect("opens");
    for _ in 0..3 {
        late.put_with("x", &PutOptions::new().expires_at(std::time::UNIX_EPOCH)).expect("accepted");
    }
    wakes_three(&w, "a sweep into it", || assert_eq!(late.discard_expired(9).expect("sweeps"), 3));

    let w = world();
    let q = w.queue("q");
    q.pause();
    put_all(&q, &["a", "b", "c"]);
    wakes_three(&w, "a resume", || q.resume());

    let w = world();
    let q = w.queue("q");
    put_all(&q, &["a", "b", "c"]);
    let held = q.open_batch(3, LONG).expect("undamaged");
    let before = q.stats().get_hits;
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..5).map(|_| scope.spawn(|| q.get_timeout(LONG).expect("undamaged"))).collect();
        until("all wait", || q.stats().waiters == 5);
        drop(held);
        until("an abort of three", || q.stats().waiters == 2 && q.is_empty());
        assert_eq!(q.stats().get_hits - before, 3);
        put_all(&q, &["more", "more"]);
        assert!(waiters.into_iter().all(|waiter| waiter.join().expect("no panic").is_some()));
    });
}

#[test]
fn s51_counters_begin_anew_with_each_open_and_gauges_are_exact() {
    let w = world();
    let q = w.queue("q");
    put_all(&q, &["one", "two", "three"]);
    q.get().expect("there");
    q.open().expect("there").abort();
    q.clear().expect("stored");
    put_all(&q, &["four", "fifth"]);
    for w in [w.killed(), w.killed().reopen()] {
        let q = w.queue("q");
        let stats = q.stats();
        assert_eq!((stats.total_items, stats.put_bytes, stats.get_hits, stats.get_misses), (0, 0, 0, 0));
        assert_eq!((stats.transactions, stats.canceled_transactions, stats.total_flushes, stats.age_ms), (0, 0, 0, 0));
        assert_eq!((stats.items, stats.bytes), (2, 9));
        let on_disk: u64 = w.segments("q").iter().map(|path| path.metadata().expect("there").len()).sum();
        assert_eq!(stats.log_size, on_disk);
        assert_eq!(drain(&q), ["four", "fifth"]);
    }
}
