//! Named readers over one journal: S40 to S48, and the cases K67, K93, K112, K124, K151 to K155, K158 to K162.

use std::time::Duration;

use kestrel_core::{
    Durability, Error, ItemId, OpenError, OptionsError, PutError, PutOptions, Queue, QueueOptions, QueueOverrides,
    ReaderOptions, State, WhenFull,
};

use crate::common::{World, drain, fast, put_all, text, timeless, until, world, world_with};

fn reader(queue: &Queue, name: &str) -> Queue {
    queue.reader(name).expect("created")
}

fn from_oldest() -> ReaderOptions {
    ReaderOptions::new().from_oldest(true)
}

/// What stands in a queue's directory beside its segments and its header.
fn reader_files(world: &World, queue: &str) -> Vec<String> {
    let dir = world.path().join("queues").join(queue);
    let names = std::fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".reader") || name.ends_with(".lanes"));
    names.sort();
    names
}

fn small() -> QueueOptions {
    fast().segment_bytes(64 << 10)
}

#[test]
fn s40_k151_k162_a_reader_starts_with_what_is_put_later() {
    let world = world();
    let queue = world.queue("q");
    put_all(&queue, &["a", "b"]);
    let r = reader(&queue, "r");
    put_all(&queue, &["c"]);
    assert_eq!((queue.len(), r.len(), r.stats().lag), (3, 1, 1));
    assert_eq!(drain(&r), ["c"]);
    assert_eq!(drain(&queue), ["a", "b", "c"]);
}

#[test]
fn s40_from_oldest_starts_with_the_oldest_kept() {
    let world = world();
    let queue = world.queue("q");
    put_all(&queue, &["a", "b", "c"]);
    assert_eq!(drain(&queue).len(), 3);
    put_all(&queue, &["d"]);
    let late = queue.reader_with("late", &from_oldest()).expect("created");
    assert_eq!((late.len(), late.stats().bytes, queue.len()), (4, 4, 1));
    assert_eq!(drain(&late), ["a", "b", "c", "d"]);
    assert_eq!(queue.len(), 1);
}

#[test]
fn s41_each_reader_has_every_item_once_in_order_with_a_state_of_its_own() {
    let world = world();
    let queue = world.queue("q");
    let (a, b) = (reader(&queue, "a"), reader(&queue, "b"));
    put_all(&queue, &["1", "2", "3"]);
    let first = a.open().expect("there");
    assert_eq!((text(first.data()), first.attempts()), ("1".into(), 1));
    drop(first);
    let first = a.open().expect("there");
    assert_eq!(first.attempts(), 2);
    let other = b.open().expect("there");
    assert_eq!((text(other.data()), other.attempts()), ("1".into(), 1));
    assert_eq!((a.stats().open_items, b.stats().open_items, queue.stats().open_items), (1, 1, 0));
    first.close().expect("closes");
    other.abort();
    a.pause();
    assert!(a.try_get().expect("reads").is_none());
    assert_eq!(drain(&b), ["1", "2", "3"]);
    a.resume();
    assert_eq!(drain(&a), ["2", "3"]);
    assert_eq!(drain(&queue), ["1", "2", "3"]);
}

#[test]
fn s42_disk_is_freed_when_all_are_done_and_not_before() {
    let world = world_with(small());
    let queue = world.queue("q");
    let (slow, fast) = (reader(&queue, "slow"), reader(&queue, "fast"));
    for n in 0..400u32 {
        queue.put([&n.to_le_bytes()[..], &[7; 1_000]].concat()).expect("room");
    }
    let segments = queue.stats().segments;
    assert!(segments >= 6, "{segments}");
    assert_eq!((drain(&queue).len(), drain(&fast).len()), (400, 400));
    queue.sync().expect("syncs");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(queue.stats().segments, segments, "the slow one has all of them before it");
    for n in 0..400u32 {
        let item = slow.get().expect("there");
        assert_eq!(item.data()[..4], n.to_le_bytes());
    }
    until("space comes back", || queue.stats().segments <= 1);
}

#[test]
fn s42_a_slow_reader_stops_nobody_and_its_lag_is_told() {
    let world = world_with(small());
    let queue = world.queue("q");
    let (slow, quick) = (reader(&queue, "slow"), reader(&queue, "quick"));
    for _ in 0..1_000 {
        queue.put([7; 500]).expect("room");
        assert!(quick.try_get().expect("reads").is_some());
        assert!(queue.try_get().expect("reads").is_some());
    }
    assert_eq!((slow.stats().lag, quick.stats().lag, queue.stats().lag), (1_000, 0, 0));
    assert_eq!((queue.stats().readers, slow.stats().items), (2, 1_000));
}

#[test]
fn s43_k155_a_put_to_a_reader_goes_to_it_alone() {
    for durability in [Durability::Os, Durability::Sync] {
        let world = world_with(small().durability(durability));
        let queue = world.queue("q");
        let (a, b) = (reader(&queue, "a"), reader(&queue, "b"));
        put_all(&queue, &["1"]);
        put_all(&a, &["only"]);
        a.put_batch(["x", "y"]).expect("room");
        put_all(&queue, &["2"]);
        assert_eq!((queue.len(), a.len(), b.len()), (2, 5, 2));
        assert_eq!((queue.stats().bytes, a.stats().bytes, b.stats().bytes), (2, 8, 2));
        let world = world.killed();
        let queue = world.queue("q");
        let (a, b) = (reader(&queue, "a"), reader(&queue, "b"));
        assert_eq!((queue.len(), a.len(), b.len()), (2, 5, 2));
        assert_eq!(drain(&b), ["1", "2"]);
        assert_eq!(drain(&queue), ["1", "2"]);
        assert_eq!(drain(&a), ["1", "only", "x", "y", "2"]);
        let world = world.reopen();
        let queue = world.queue("q");
        assert_eq!((queue.len(), reader(&queue, "a").len(), reader(&queue, "b").len()), (0, 0, 0));
    }
}

#[test]
fn s44_k152_a_deleted_reader_frees_what_only_it_held_and_a_new_one_starts_empty() {
    let world = world_with(small());
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    for _ in 0..300 {
        queue.put([7; 1_000]).expect("room");
    }
    let held = r.open().expect("there");
    assert!(r.try_get().expect("reads").is_some());
    assert_eq!(drain(&queue).len(), 300);
    assert!(queue.stats().segments >= 4);
    assert_eq!(reader_files(&world, "q").len(), 2);
    let waits = std::thread::spawn({
        let r = r.clone();
        move || {
            while r.get().is_ok() {}
            r.get().err().map(|error| format!("{error:?}"))
        }
    });
    assert!(queue.delete_reader("r").expect("removed"));
    assert!(!queue.delete_reader("r").expect("there is none"));
    assert_eq!(waits.join().expect("no panic").as_deref(), Some("Closed"));
    assert!(held.close().is_err() && matches!(r.put("x"), Err(PutError::Closed)));
    until("space comes back", || queue.stats().segments <= 1);
    assert!(reader_files(&world, "q").is_empty());
    put_all(&queue, &["a"]);
    assert!(queue.readers().is_empty() && queue.get_reader("r").is_none());
    let again = reader(&queue, "r");
    put_all(&queue, &["b"]);
    assert_eq!(drain(&again), ["b"]);
    assert_eq!(drain(&queue), ["a", "b"]);
}

#[test]
fn s44_deleting_the_queue_deletes_its_readers() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["a"]);
    assert!(world.set.delete("q").expect("removed"));
    assert!(r.try_get().is_err() && r.put("x").is_err());
    let queue = world.queue("q");
    assert!(queue.readers().is_empty());
    assert_eq!(reader(&queue, "r").len(), 0);
}

#[test]
fn s45_k112_k160_the_queues_limit_refuses_for_all_and_leaves_no_trace() {
    let world = world_with(small().max_items(2));
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["a", "b"]);
    let before = (timeless(&queue), timeless(&r));
    assert!(matches!(queue.put("c"), Err(PutError::Full { .. })));
    assert_eq!((timeless(&queue), timeless(&r)), before);
    assert!(queue.try_get().expect("reads").is_some());
    put_all(&queue, &["c"]);
    assert_eq!((queue.len(), r.len()), (2, 3));
    assert!(matches!(r.put("own"), Err(PutError::Full { .. })), "for a put to the reader its own limit holds");
    assert_eq!(drain(&r), ["a", "b", "c"]);
}

#[test]
fn s45_k160_a_reader_that_drops_drops_its_own_oldest() {
    let world = world();
    let queue = world.queue("q");
    let options = ReaderOptions::new().max_items(2).when_full(WhenFull::DropOldest);
    let r = queue.reader_with("r", &options).expect("created");
    let other = reader(&queue, "other");
    put_all(&queue, &["a", "b", "c", "d"]);
    assert_eq!((r.len(), r.stats().discarded), (2, 2));
    assert_eq!((queue.stats().discarded, other.stats().discarded), (0, 0));
    assert_eq!(drain(&r), ["c", "d"]);
    assert_eq!((drain(&queue).len(), drain(&other).len()), (4, 4));
    let held = {
        put_all(&queue, &["e"]);
        r.open().expect("there")
    };
    put_all(&queue, &["f", "g", "h"]);
    assert_eq!((drain(&r), text(held.data())), (vec!["g".to_owned(), "h".into()], "e".into()));
}

#[test]
fn s45_bytes_are_limited_per_reader() {
    let world = world();
    let queue = world.queue("q");
    let options = ReaderOptions::new().max_bytes(10).when_full(WhenFull::DropOldest);
    let r = queue.reader_with("r", &options).expect("created");
    put_all(&queue, &["12345", "67890", "abc"]);
    assert_eq!((r.stats().bytes, queue.stats().bytes), (8, 13));
    queue.put([7; 20]).expect("a reader refuses nothing");
    assert_eq!((r.len(), r.stats().bytes), (1, 20), "what is too large for it alone is all it holds");
}

#[test]
fn s46_k154_a_fanout_only_queue_gets_nothing_itself() {
    let world = world();
    let queue = world.set.queue_with("q", small().fanout_only(true)).expect("created");
    for _ in 0..200 {
        assert_eq!(queue.put([7; 1_000]).expect("answered"), ItemId::from(0));
    }
    queue.put_batch(["x", "y"]).expect("answered");
    let stats = queue.stats();
    assert_eq!((stats.items, stats.unread_items, stats.total_items, stats.segments, stats.log_size), (0, 202, 0, 0, 0));
    let r = reader(&queue, "r");
    put_all(&queue, &["a", "b"]);
    assert_eq!((queue.len(), queue.stats().lag, r.len()), (0, 0, 2));
    assert!(queue.try_get().expect("reads").is_none() && queue.peek().expect("reads").is_none());
    let world = world.killed();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    assert_eq!((queue.len(), r.len()), (0, 2));
    assert!(queue.try_get().expect("reads").is_none());
    assert_eq!(drain(&r), ["a", "b"]);
    for _ in 0..300 {
        queue.put([7; 1_000]).expect("room");
        assert!(r.try_get().expect("reads").is_some());
    }
    until("space comes back", || queue.stats().segments <= 2);
}

#[test]
fn s46_what_a_queue_held_before_it_was_fanout_only_stays() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["a"]);
    queue.set_options(fast().fanout_only(true)).expect("stored");
    put_all(&queue, &["b"]);
    queue.set_options(fast()).expect("stored");
    put_all(&queue, &["c"]);
    assert_eq!((queue.len(), r.len()), (2, 3));
    assert_eq!(drain(&queue), ["a", "c"]);
    assert_eq!(drain(&r), ["a", "b", "c"]);
}

#[test]
fn s47_k153_after_a_restart_all_readers_are_there_with_their_state() {
    let world = world_with(small());
    let queue = world.queue("q");
    put_all(&queue, &["before"]);
    let (a, b) = (reader(&queue, "a"), reader(&queue, "b+c"));
    put_all(&queue, &["1", "2", "3", "4"]);
    a.open().expect("there").close().expect("closes");
    let held = a.open().expect("there");
    a.open().expect("there").close().expect("closes");
    b.open().expect("there").abort();
    let check = |world: &World, starts: u32| {
        let queue = world.queue("q");
        assert_eq!(queue.readers(), ["a", "b+c"]);
        let (a, b) = (reader(&queue, "a"), world.queue("q+b+c"));
        assert_eq!((queue.len(), a.len(), b.len()), (5, 2, 4));
        assert_eq!((a.stats().bytes, b.stats().bytes), (2, 4));
        let again = a.peek().expect("reads").expect("there");
        assert_eq!((text(again.data()), again.attempts()), ("2".into(), starts));
        assert_eq!(b.peek().expect("reads").expect("there").attempts(), 1);
    };
    let after = world.killed();
    check(&after, 1);
    assert_eq!(after.queue("q+a").recovery().held, [held.id()]);
    check(&after.killed(), 1);
    let world = world.reopen();
    drop(held);
    // An orderly close gives the start back.
    check(&world, 0);
    assert_eq!(drain(&world.queue("q+a")), ["2", "4"]);
    let world = world.reopen();
    assert_eq!((world.queue("q+a").len(), world.queue("q+b+c").len()), (0, 4));
}

#[test]
fn s47_a_reader_far_behind_goes_on_where_it_was() {
    let world = world_with(small());
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    for n in 0..2_000u32 {
        queue.put([&n.to_le_bytes()[..], &[7; 200]].concat()).expect("room");
    }
    for n in 0..700u32 {
        assert_eq!(r.get().expect("there").data()[..4], n.to_le_bytes());
    }
    let world = world.killed();
    let (queue, r) = (world.queue("q"), world.queue("q+r"));
    assert_eq!((r.len(), r.stats().bytes, queue.len()), (1_300, 1_300 * 204, 2_000));
    for n in 700..2_000u32 {
        assert_eq!(r.get().expect("there").data()[..4], n.to_le_bytes());
    }
    assert_eq!(drain(&queue).len(), 2_000);
    until("space comes back", || queue.stats().segments <= 1);
}

#[test]
fn k93_a_waiter_of_a_reader_is_woken_by_a_put_to_the_queue() {
    for durability in [Durability::Os, Durability::Sync] {
        let world = world_with(fast().durability(durability));
        let queue = world.queue("q");
        let r = reader(&queue, "r");
        let (own, theirs) = std::thread::scope(|scope| {
            let own = scope.spawn(|| queue.get_timeout(Duration::from_secs(20)));
            let theirs = scope.spawn(|| r.get_timeout(Duration::from_secs(20)));
            until("both wait", || queue.stats().waiters == 1 && r.stats().waiters == 1);
            put_all(&queue, &["a"]);
            (own.join().expect("no panic"), theirs.join().expect("no panic"))
        });
        assert!(own.expect("reads").is_some() && theirs.expect("reads").is_some());
    }
}

#[test]
fn k93_nobody_is_woken_for_an_item_of_another_reader() {
    let world = world();
    let queue = world.queue("q");
    let (a, b) = (reader(&queue, "a"), reader(&queue, "b"));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| b.get_timeout(Duration::from_secs(20)));
        until("it waits", || b.stats().waiters == 1);
        put_all(&a, &["for a"]);
        put_all(&queue, &["for all"]);
        let got = waits.join().expect("no panic").expect("reads").expect("there");
        assert_eq!(got.data(), b"for all");
    });
    assert_eq!(drain(&a), ["for a", "for all"]);
    assert_eq!(drain(&queue), ["for all"]);
}

#[test]
fn k124_clearing_the_queue_clears_its_readers_and_clearing_a_reader_only_it() {
    let world = world();
    let queue = world.queue("q");
    let (a, b) = (reader(&queue, "a"), reader(&queue, "b"));
    put_all(&queue, &["1", "2"]);
    let held = a.open().expect("there");
    assert_eq!(a.clear().expect("cleared"), 1);
    held.close().expect("nothing to do");
    put_all(&queue, &["3"]);
    assert_eq!((queue.len(), a.len(), b.len()), (3, 1, 3));
    let world = world.killed();
    let (queue, a, b) = (world.queue("q"), world.queue("q+a"), world.queue("q+b"));
    assert_eq!((queue.len(), a.len(), b.len()), (3, 1, 3));
    assert_eq!(queue.clear().expect("cleared"), 3);
    put_all(&queue, &["4"]);
    assert_eq!((queue.len(), a.len(), b.len()), (1, 1, 1));
    let world = world.killed();
    for name in ["q", "q+a", "q+b"] {
        assert_eq!(drain(&world.queue(name)), ["4"], "{name}");
    }
}

#[test]
fn k158_k159_the_first_plus_parts_queue_and_reader() {
    let world = world();
    let queue = world.queue("q");
    for bad in ["+r", "q+", "+", "q+\0", &format!("q+{}", "x".repeat(201))] {
        let error = world.set.queue(bad).expect_err("no such name");
        assert!(matches!(&error, OpenError::InvalidName { name, .. } if name == bad), "{bad:?}: {error:?}");
    }
    put_all(&queue, &["a"]);
    let r = world.queue("q+a+b");
    assert_eq!((r.name(), &queue.readers()[..]), ("q+a+b", &["a+b".to_owned()][..]));
    assert!(r == reader(&queue, "a+b"));
    assert!(matches!(r.reader("x"), Err(OpenError::InvalidName { .. })));
    assert!(world.set.get_queue("q+none").expect("no error").is_none());
    assert!(world.set.get_queue("none+r").expect("no error").is_none());
    assert_eq!(world.set.names(), ["q"]);
    let both = world.queue("new+r");
    put_all(&world.queue("new"), &["x"]);
    assert_eq!(drain(&both), ["x"]);
    assert!(world.set.delete("new+r").expect("removed") && !world.set.delete("new+r").expect("gone"));
    assert!(!world.set.delete("none+r").expect("there is none"));
    assert_eq!(world.set.names(), ["new", "q"]);
}

#[test]
fn k161_a_reader_has_the_queues_options_but_for_its_own() {
    let lease = Duration::from_secs(7);
    let world = world_with(fast().max_items(5));
    let queue = world.queue("q");
    let r = queue.reader_with("r", &ReaderOptions::new().lease(lease)).expect("created");
    assert_eq!(r.options(), fast().max_items(5).lease(lease));
    queue.set_options(fast().max_items(9)).expect("stored");
    assert_eq!(r.options(), fast().max_items(9).lease(lease));
    r.set_overrides(QueueOverrides::default().max_items(Some(3)).lease(Some(lease))).expect("stored");
    queue.set_options(fast().max_items(8).max_age(lease)).expect("stored");
    let expected = fast().max_items(3).lease(lease).max_age(lease);
    assert_eq!((r.options(), queue.options()), (expected.clone(), fast().max_items(8).max_age(lease)));
    let refused = r.set_options(r.options().segment_bytes(1 << 20));
    assert!(matches!(refused, Err(OptionsError::Invalid { field: "segment_bytes", .. })));
    let world = world.killed();
    assert_eq!(world.queue("q+r").options(), expected);
}

#[test]
fn k161_the_defaults_reach_a_reader_through_its_queue() {
    let world = world_with(fast().max_items(5));
    let queue = world.queue("q");
    let r = queue.reader_with("r", &ReaderOptions::new().max_bytes(7)).expect("created");
    assert_eq!(r.options(), fast().max_items(5).max_bytes(7));
    world.set.set_defaults(fast().max_items(6).memory_bytes(1 << 20)).expect("in force");
    assert_eq!(r.options(), fast().max_items(6).memory_bytes(1 << 20).max_bytes(7));
    queue.set_overrides(QueueOverrides::default().max_items(None)).expect("stored");
    assert_eq!(r.options(), fast().memory_bytes(1 << 20).max_bytes(7));
    assert_eq!(r.overrides(), QueueOverrides::default().max_bytes(Some(7)));
    r.set_overrides(QueueOverrides::default()).expect("stored");
    assert_eq!(r.options(), queue.options());
    // What the queue alone has does not come down.
    queue.set_options(fast().max_queue_age(Duration::from_secs(1_000)).fanout_only(true)).expect("stored");
    assert_eq!(r.options(), fast());
    for (own, field) in [
        (QueueOverrides::default().fanout_only(true), "fanout_only"),
        (QueueOverrides::default().max_queue_age(Some(Duration::from_secs(1))), "max_queue_age"),
        (QueueOverrides::default().durability(Durability::Sync), "durability"),
        (QueueOverrides::default().pad_to(Some(512)), "pad_to"),
    ] {
        let refused = r.set_overrides(own.clone());
        assert!(matches!(refused, Err(OptionsError::Invalid { field: f, .. }) if f == field), "{field}");
        let refused = queue.reader_with("new", &ReaderOptions::new().overrides(own));
        assert!(matches!(refused, Err(OpenError::Options(OptionsError::Invalid { field: f, .. })) if f == field));
    }
    assert_eq!(queue.readers(), ["r"]);
}

#[test]
fn k161_a_queue_keeps_what_its_readers_need_of_it() {
    let world = world_with(fast().dead_letters("dead"));
    let queue = world.queue("q");
    let r = queue.reader_with("r", &ReaderOptions::new().max_attempts(3)).expect("created");
    let refused = queue.set_overrides(QueueOverrides::default().dead_letters(None));
    assert!(matches!(&refused, Err(OptionsError::Queue { queue, .. }) if queue == "q+r"), "{refused:?}");
    assert!(world.set.set_defaults(fast()).is_err());
    assert_eq!(
        (queue.options(), r.options()),
        (fast().dead_letters("dead"), fast().dead_letters("dead").max_attempts(3))
    );
    assert!(r.set_overrides(QueueOverrides::default().dead_letters(Some("q".into()))).is_err(), "its own queue");
}

#[test]
fn k161_the_builder_and_the_set_name_readers_as_they_name_queues() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = QueueOverrides::default().max_items(Some(3));
    let builder = || kestrel_core::QueueSet::builder().defaults(fast());
    let set = builder().queue_overrides("q+r", own.clone()).open(dir.path()).expect("opens");
    let r = set.queue_with_overrides("q+r", QueueOverrides::default().max_items(Some(9))).expect("created");
    assert_eq!(r.options(), fast().max_items(9), "what is set while it is open counts");
    drop(r);
    set.close().expect("closes");
    let set = builder().queue_overrides("q+r", own).open(dir.path()).expect("opens");
    assert_eq!(set.queue("q+r").expect("there").options(), fast().max_items(3), "the builder's before the stored ones");
    let s = set.queue_with("q+s", fast().max_bytes(5)).expect("created");
    assert_eq!((s.options(), s.name()), (fast().max_bytes(5), "q+s"));
    assert!(set.queue_with("q+t", fast().segment_bytes(1 << 20)).is_err());
    set.close().expect("closes");
    let set = builder().open(dir.path()).expect("opens");
    assert_eq!(set.queue("q+r").expect("there").options(), fast().max_items(9), "stored");
    assert_eq!(set.queue("q").expect("there").readers(), ["r", "s"]);
    for bad in ["+r", "q+"] {
        let refused = builder().queue_overrides(bad, QueueOverrides::default()).open(dir.path());
        assert!(matches!(refused, Err(OpenError::InvalidName { .. })), "{bad}");
    }
}

#[test]
fn k163_an_alias_reaches_each_queue_and_each_reader_once() {
    for durability in [Durability::Os, Durability::Sync] {
        let options = || fast().durability(durability);
        let world = world_with(options());
        let (a, q) = (world.queue("a"), world.queue("q"));
        let only = world.set.queue_with("only", options().fanout_only(true)).expect("created");
        let deaf = world.set.queue_with("deaf", options().fanout_only(true)).expect("created");
        let (r, s, t) = (reader(&q, "r"), reader(&q, "s"), reader(&only, "t"));
        let few = q.reader_with("few", &ReaderOptions::new().max_items(1).when_full(WhenFull::DropOldest));
        let few = few.expect("created");
        let alias = world.set.alias("all", &["a", "q", "only", "deaf"]).expect("set");
        let ids = alias.put("x").expect("room");
        alias.put("y").expect("room");
        assert_eq!((ids[3], deaf.stats().unread_items, deaf.stats().segments), (ItemId::from(0), 2, 0));
        assert_eq!((only.len(), only.stats().lag, only.try_get().expect("reads").is_none()), (0, 0, true));
        q.set_overrides(QueueOverrides::default().max_items(Some(2))).expect("stored");
        alias.put("z").expect_err("one is full");
        for queue in [&a, &q, &r, &s, &t] {
            assert_eq!(drain(queue), ["x", "y"], "{}", queue.name());
        }
        assert_eq!((drain(&few), few.stats().discarded, deaf.stats().unread_items), (vec!["y".to_owned()], 1, 2));
        assert!(matches!(world.set.queue("all+r"), Err(OpenError::Alias { .. })));
    }
}

#[test]
fn k167_readers_keep_to_the_state_of_the_set() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["1", "2"]);
    world.set.set_state(State::ReadOnly).expect("changes");
    assert!(matches!(queue.reader("new"), Err(OpenError::State { .. })));
    assert!(matches!(queue.delete_reader("r"), Err(Error::State { .. })));
    assert!(matches!(world.set.delete("q+r"), Err(Error::State { .. })));
    assert!(matches!(r.put("x"), Err(PutError::State { .. })) && r.clear().is_err());
    assert_eq!(r.get().expect("there").data(), b"1");
    world.set.set_state(State::Up).expect("changes");
    let waits = std::thread::spawn({
        let r = r.clone();
        move || {
            while r.get().is_ok() {}
            r.get().err().map(|error| format!("{error:?}"))
        }
    });
    until("it waits", || r.stats().waiters == 1);
    world.set.set_state(State::Quiescent).expect("changes");
    let told = waits.join().expect("no panic").expect("an error");
    assert!(told.contains("State"), "{told}");
}

#[test]
fn readers_are_shown_by_a_set_that_only_looks() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["1"]);
    put_all(&r, &["only"]);
    let dir = world.copied();
    let set = kestrel_core::QueueSet::open_read_only(dir.path()).expect("opens");
    let queue = set.queue("q").expect("there");
    assert_eq!(queue.readers(), ["r"]);
    let r = set.get_queue("q+r").expect("no error").expect("there");
    assert_eq!((r.len(), queue.len()), (2, 1));
    assert_eq!(r.peek().expect("reads").expect("there").data(), b"1");
    assert!(matches!(queue.reader("new"), Err(OpenError::ReadOnly { .. })));
    assert!(set.get_queue("q+none").expect("no error").is_none());
}

#[test]
fn s45_what_is_put_is_counted_for_whom_it_was() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["1", "22"]);
    put_all(&r, &["333"]);
    let (own, theirs) = (queue.stats(), r.stats());
    assert_eq!((own.total_items, own.put_bytes, theirs.total_items, theirs.put_bytes), (2, 3, 3, 6));
    assert_eq!((world.set.stats().curr_items, world.set.stats().bytes), (5, 9));
}

#[test]
fn s27_one_wait_over_queues_and_readers() {
    let world = world();
    let queue = world.queue("q");
    let both = [reader(&queue, "a"), reader(&queue, "b")];
    put_all(&both[1], &["for b"]);
    let (index, item) = world.set.open_any(&both, Duration::from_secs(1)).expect("reads").expect("there");
    assert_eq!((index, item.data()), (1, &b"for b"[..]));
    item.close().expect("closes");
}

#[test]
fn k67_a_damaged_header_of_a_reader_is_told_and_not_taken_for_a_new_reader() {
    let world = world();
    put_all(&world.queue("q"), &["a"]);
    reader(&world.queue("q"), "r");
    let dir = world.copied();
    let path = dir.path().join("queues/q");
    let name = reader_files(&world, "q").into_iter().find(|name| name.ends_with(".reader")).expect("there");
    std::fs::write(path.join(&name), [7; 8192]).expect("written");
    let set = kestrel_core::QueueSet::open(dir.path()).expect("opens");
    assert!(matches!(set.queue("q"), Err(OpenError::Corrupt { .. })));
}

#[test]
fn s41_expiry_is_met_by_each_reader_for_itself() {
    let world = world();
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    queue.put_with("short", &PutOptions::new().expires_in(Duration::ZERO)).expect("room");
    put_all(&queue, &["long"]);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(drain(&r), ["long"]);
    assert_eq!(r.stats().expired_items, 1);
    assert_eq!(drain(&queue), ["long"]);
}

#[test]
fn s41_a_lane_counts_65536_ids_and_more() {
    let world = world_with(fast().segment_bytes(1 << 20));
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    for n in 0..150u32 {
        queue.put_batch((0..1_000u32).map(|k| (n * 1_000 + k).to_le_bytes())).expect("room");
    }
    for n in 0..140_000u32 {
        assert_eq!(r.get().expect("there").data(), n.to_le_bytes());
    }
    r.sync().expect("syncs");
    let world = world.killed();
    let (queue, r) = (world.queue("q"), world.queue("q+r"));
    assert_eq!((r.len(), queue.len(), reader_files(&world, "q").len()), (10_000, 150_000, 4));
    for n in 140_000..150_000u32 {
        assert_eq!(r.get().expect("there").data(), n.to_le_bytes());
    }
    assert_eq!(drain(&queue).len(), 150_000);
    until("lanes go with their items", || queue.stats().segments <= 1 && reader_files(&world, "q").len() <= 2);
}

#[test]
fn a_queue_without_a_journal_has_readers_as_well() {
    let world = world_with(QueueOptions::default().journal(false));
    let queue = world.queue("q");
    let r = reader(&queue, "r");
    put_all(&queue, &["a", "b"]);
    put_all(&r, &["own"]);
    assert_eq!(drain(&r), ["a", "b", "own"]);
    assert_eq!(drain(&queue), ["a", "b"]);
    assert!(queue.delete_reader("r").expect("removed"));
}

#[test]
fn s12_items_move_from_a_reader_and_to_one() {
    let world = world_with(fast().durability(Durability::Sync));
    let (queue, next) = (world.queue("q"), world.queue("next"));
    let (a, b) = (reader(&queue, "a"), reader(&next, "b"));
    put_all(&queue, &["1"]);
    a.open().expect("there").close_into(&next, "for all").expect("moves");
    queue.open().expect("there").close_into(&b, "for b").expect("moves");
    let world = world.killed();
    assert_eq!((world.queue("q").len(), world.queue("q+a").len()), (0, 0));
    assert_eq!(drain(&world.queue("next")), ["for all"]);
    assert_eq!(drain(&world.queue("next+b")), ["for all", "for b"]);
}

#[test]
fn readers_that_come_and_go_beside_puts_miss_nothing_after_they_came() {
    let world = world_with(small());
    let queue = world.queue("q");
    std::thread::scope(|scope| {
        let putter = scope.spawn(|| {
            for n in 0..20_000u32 {
                queue.put([&n.to_le_bytes()[..], &[7; 60]].concat()).expect("room");
                let _ = queue.try_get().expect("reads");
            }
        });
        let mut rounds = 0;
        while !putter.is_finished() {
            let r = reader(&queue, "r");
            let mut last: Option<u32> = None;
            for _ in 0..50 {
                let Some(item) = r.get_timeout(Duration::from_millis(200)).expect("reads") else { break };
                let n = u32::from_le_bytes(item.data()[..4].try_into().expect("four bytes"));
                assert!(last.is_none_or(|last| n == last + 1), "{n} after {last:?}");
                last = Some(n);
            }
            assert!(queue.delete_reader("r").expect("removed"));
            rounds += 1;
        }
        assert!(rounds > 0);
    });
    until("space comes back", || queue.stats().segments <= 2);
}
