//! Limits, batches, memory, segments, clear and delete.

use std::time::Duration;

use kestrel_core::{Durability, Limit, OptionsError, PutError, PutOptions, QueueSet, SyncError, WhenFull};

use crate::common::{drain, fast, put_all, text, timeless, until, world, world_with};

fn is_full(answer: Result<kestrel_core::ItemId, PutError>, wanted: Limit) -> bool {
    matches!(answer, Err(PutError::Full { limit, .. }) if limit == wanted)
}

#[test]
fn s35_k99_k112_a_refused_put_leaves_no_trace() {
    let w = world_with(fast().max_items(1));
    let q = w.queue("q");
    q.put("a").expect("room");
    let before = timeless(&q);
    assert!(is_full(q.put("b"), Limit::Items));
    assert_eq!(timeless(&q), before);
    q.get().expect("there");
    q.put("b").expect("room again");
}

#[test]
fn k100_max_bytes_is_never_exceeded() {
    let w = world_with(fast().max_bytes(510));
    let q = w.queue("q");
    q.put([0; 256]).expect("room");
    assert!(is_full(q.put([0; 256]), Limit::Bytes));
    q.put([0; 254]).expect("exactly full");
    assert_eq!(q.stats().bytes, 510);
}

#[test]
fn k101_s36_k106_drop_oldest_drops_waiting_items_and_never_open_ones() {
    let w = world_with(fast().max_items(3).when_full(WhenFull::DropOldest));
    let q = w.queue("q");
    put_all(&q, &["1", "2", "3", "4"]);
    assert_eq!(q.stats().discarded, 1);
    let held = q.open().expect("2");
    put_all(&q, &["5", "6", "7"]);
    assert_eq!(text(held.data()), "2");
    held.abort();
    assert_eq!(drain(&q), ["2", "5", "6", "7"]);
}

#[test]
fn k102_a_limit_of_nothing_refuses_at_once() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::Wait] {
        let w = world_with(fast().max_items(0).when_full(when_full));
        let q = w.queue("q");
        assert!(is_full(q.put("a"), Limit::Items));
        assert!(is_full(q.put_timeout("a", Duration::MAX), Limit::Items));
        let w = world_with(fast().max_bytes(0).when_full(when_full));
        let q = w.queue("q");
        assert!(is_full(q.put("a"), Limit::Bytes));
    }
}

#[test]
fn k107_s37_k108_limits_on_a_live_queue() {
    let w = world_with(fast().max_items(1));
    let q = w.queue("q");
    q.put("a").expect("room");
    let held = q.open().expect("there");
    q.put("b").expect("open items do not count");
    held.abort();
    assert_eq!(q.len(), 2);
    assert!(q.put("c").is_err());
    q.set_options(q.options().max_items(5)).expect("valid");
    put_all(&q, &["c", "d"]);
    q.set_options(q.options().max_items(2)).expect("valid");
    assert_eq!(q.len(), 4);
    assert!(q.put("e").is_err());
    q.set_options(q.options().when_full(WhenFull::DropOldest)).expect("valid");
    q.put("e").expect("trims");
    assert_eq!(drain(&q), ["d", "e"]);
}

#[test]
fn k109_sixty_four_threads_never_overshoot_a_limit() {
    let w = world_with(fast().max_items(10));
    let q = w.queue("q");
    let accepted: usize = std::thread::scope(|scope| {
        let puts: Vec<_> = (0..64).map(|_| scope.spawn(|| q.put("x").is_ok())).collect();
        puts.into_iter().map(|put| usize::from(put.join().expect("no panic"))).sum()
    });
    assert_eq!((accepted, q.len()), (10, 10));
}

#[test]
fn s38_k111_a_batch_goes_in_whole_or_not_at_all() {
    let w = world_with(fast().max_items(3));
    let q = w.queue("q");
    q.put("a").expect("room");
    assert!(matches!(q.put_batch(["b", "c", "d"]), Err(PutError::Full { .. })));
    assert_eq!(q.len(), 1);
    assert_eq!(q.put_batch(["b", "c"]).expect("room").len(), 2);
    assert!(q.put_batch(Vec::<&str>::new()).expect("nothing").is_empty());
    assert_eq!(drain(&w.killed().queue("q")), ["a", "b", "c"]);
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_that_fits() {
    let w = world_with(fast().segment_bytes(64 << 10));
    let q = w.queue("q");
    let batch: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; 5_000]).collect();
    q.put_batch(&batch).expect("room");
    q.put(vec![7; 900_000]).expect("so does an item");
    let killed = w.killed();
    let after = killed.queue("q");
    for data in &batch {
        assert_eq!(after.get().expect("there").data(), data);
    }
    assert_eq!(after.get().expect("there").data().len(), 900_000);
}

#[test]
fn s14_k113_k114_clear_empties_now_and_after_a_restart() {
    let w = world();
    let q = w.queue("q");
    q.put_batch((0..50_000u32).map(|n| n.to_le_bytes())).expect("room");
    assert_eq!(q.clear().expect("stored"), 50_000);
    let stats = q.stats();
    assert_eq!((stats.items, stats.bytes, stats.total_flushes), (0, 0, 1));
    q.put("new").expect("room");
    assert_eq!(drain(&w.killed().queue("q")), ["new"]);
    drop(q);
    assert_eq!(drain(&w.reopen().queue("q")), ["new"]);
}

#[test]
fn k26_k119_k120_a_deleted_queue_stays_away_and_nothing_is_created_by_looking() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let held = q.open().expect("there");
    assert!(w.set.delete("q").expect("removed"));
    held.abort();
    assert!(w.set.names().is_empty());
    assert!(w.set.get_queue("q").expect("no error").is_none());
    assert!(!w.set.delete("q").expect("no error"));
    assert!(!w.path().join("queues/q").exists());
    let q = w.queue("q");
    assert_eq!((q.len(), q.stats().total_items), (0, 0));
}

#[test]
fn k143_k144_k146_a_backlog_beyond_memory_keeps_order_and_bounds() {
    let w = world_with(fast().memory_bytes(1024).segment_bytes(64 << 10));
    let q = w.queue("q");
    for n in 0..10u8 {
        q.put([n; 128]).expect("room");
    }
    assert_eq!((q.stats().mem_items, q.len()), (8, 10));
    for n in 0..10u8 {
        assert_eq!(q.get().expect("there").data(), [n; 128]);
        assert!(q.stats().mem_bytes <= 1024);
    }
    // Many segments, restarts in the middle, puts while behind.
    for n in 0..1_000u32 {
        q.put([n.to_le_bytes().to_vec(), vec![9; 1_000]].concat()).expect("room");
    }
    let mut expected = 0u32;
    let mut take = |q: &kestrel_core::Queue, count: u32| {
        for _ in 0..count {
            assert_eq!(q.get().expect("there").data()[..4], expected.to_le_bytes());
            expected += 1;
        }
    };
    take(&q, 333);
    drop(q);
    let w = w.reopen();
    let q = w.queue("q");
    q.put([1_000u32.to_le_bytes().to_vec(), vec![9; 1_000]].concat()).expect("room");
    take(&q, 600);
    take(&w.killed().queue("q"), 68);
}

#[test]
fn segments_are_freed_wherever_their_items_are_done() {
    let w = world_with(fast().segment_bytes(64 << 10));
    let q = w.queue("q");
    for n in 0..200u32 {
        q.put([n.to_le_bytes().to_vec(), vec![0; 5_000]].concat()).expect("room");
    }
    let first = q.open().expect("the first stays open");
    for _ in 0..150 {
        q.get().expect("there");
    }
    // The first, the segments of what waits, and the last one.
    until("the middle is freed", || q.stats().segments <= 8);
    let after = w.killed();
    let q = after.queue("q");
    assert_eq!(q.recovery().redelivered, 1);
    assert_eq!((q.len(), q.get().expect("the first").data()[..4].to_vec()), (50, 0u32.to_le_bytes().to_vec()));
    assert_eq!(q.get().expect("the next").data()[..4], 151u32.to_le_bytes());
    first.close().expect("marked");
}

#[test]
fn put_options_travel_with_the_item() {
    let w = world();
    let q = w.queue("q");
    let expiry = std::time::SystemTime::now() + Duration::from_secs(3600);
    q.put_with("a", &PutOptions::new().flags(0xdead_beef).expires_at(expiry)).expect("room");
    let after = w.killed();
    let item = after.queue("q").get().expect("there");
    assert_eq!(item.flags(), 0xdead_beef);
    let off = item.expires_at().expect("one").duration_since(expiry).unwrap_or_else(|e| e.duration());
    assert!(off <= Duration::from_millis(1));
    assert!(item.put_time() <= expiry);
}

#[test]
fn k125_an_expiry_in_the_past_is_accepted_and_never_delivered() {
    let w = world();
    let q = w.queue("q");
    q.put_with("a", &PutOptions::new().expires_at(std::time::UNIX_EPOCH)).expect("accepted");
    q.put("b").expect("room");
    assert_eq!(drain(&q), ["b"]);
    assert_eq!(q.stats().expired_items, 1);
}

#[test]
fn append_is_durable_once_synced_and_mixed_durabilities_keep_order() {
    let w = world_with(fast().durability(Durability::Sync));
    let q = w.queue("q");
    let id = q.append("1").expect("room");
    q.put_with("2", &PutOptions::new().durability(Durability::Os)).expect("room");
    q.synced(id).expect("synced");
    q.put("3").expect("synced");
    until("all are visible", || q.peek().expect("undamaged").is_some());
    let all: Vec<String> =
        (0..3).map(|_| text(q.get_timeout(Duration::from_secs(9)).expect("ok").expect("there").data())).collect();
    assert_eq!(all, ["1", "2", "3"]);
    assert!(matches!(q.synced(kestrel_core::ItemId::new(99)), Err(SyncError::UnknownId { .. })));
    assert!(q.stats().syncs >= 1);
}

#[test]
fn k64_a_queue_without_a_journal_leaves_no_files_and_is_empty_after_a_restart() {
    let w = world();
    let q = w.set.queue_with("q", fast().journal(false)).expect("opens");
    q.put_batch((0..10_000u32).map(|n| n.to_le_bytes())).expect("room");
    assert_eq!(q.get().expect("there").data(), 0u32.to_le_bytes());
    assert!(!w.path().join("queues/q").exists());
    assert!(matches!(q.set_options(fast()), Err(OptionsError::Journal { items: 9_999, .. })));
    drop(q);
    let w = w.reopen();
    assert!(w.set.names().is_empty());
    let journaled = w.queue("q");
    journaled.put("x").expect("room");
    assert!(matches!(journaled.set_options(fast().journal(false)), Err(OptionsError::Journal { .. })));
}

#[test]
fn options_are_stored_with_queue_with_and_followed_without() {
    let w = world();
    w.set.queue_with("own", fast().max_items(7)).expect("opens");
    w.queue("follows");
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    let set = QueueSet::builder().defaults(fast().max_items(3)).open(&path).expect("opens");
    assert_eq!(set.queue("own").expect("opens").options().max_items, Some(7));
    assert_eq!(set.queue("follows").expect("opens").options().max_items, Some(3));
    assert!(matches!(
        set.queue("own").expect("opens").set_options(fast().segment_bytes(1)),
        Err(OptionsError::Invalid { field: "segment_bytes", .. })
    ));
}

#[test]
fn a_drained_queue_takes_puts_again_under_the_cap_of_the_set() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().expect("a directory");
        let options = fast().segment_bytes(1 << 20).when_full(when_full);
        let set = QueueSet::builder().defaults(options).max_disk_bytes(1 << 20).open(dir.path()).expect("opens");
        let q = set.queue("q").expect("opens");
        for n in 0.. {
            assert!(n < 3_000, "the cap holds");
            if n == 2_000 || q.put([7; 1_000]).is_err() {
                break;
            }
        }
        while q.try_get().expect("undamaged").is_some() {}
        until("there is room again", || q.put([8; 1_000]).is_ok());
        assert!(set.stats().disk_bytes <= 1 << 20);
        assert_eq!(q.get().expect("there").data(), [8; 1_000]);
    }
}

/// One item in a thousand is never closed while tens of megabytes pass: what stays on the disk is theirs, not the others'.
#[cfg(target_os = "linux")]
#[test]
fn a_few_items_held_for_ever_keep_little_of_the_disk() {
    use std::os::unix::fs::MetadataExt;

    let w = world_with(fast().segment_bytes(1 << 20).max_item_size(4096));
    let q = w.queue("q");
    let mut held = Vec::new();
    for n in 0..20_000_u32 {
        q.put([n as u8; 1024]).expect("room");
        let item = q.try_open().expect("reads").expect("there");
        if n % 1000 == 0 { held.push(item) } else { item.close().expect("open") }
    }
    let used = || -> u64 {
        let files = std::fs::read_dir(w.dir.path().join("queues/q")).expect("there").flatten();
        files.map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
    };
    until("the space of what is done has come back", || q.stats().log_size < 4 << 20);
    assert!(used() < 6 << 20, "{} bytes on the disk", used());
    drop(held);
    for n in 0..20_u32 {
        assert_eq!(q.get().expect("came back").data(), [(n * 1000) as u8; 1024]);
    }
    assert!(q.is_empty());
}

/// A new segment is twice the one before; where the cap is too near for that, it is as large as fits.
#[test]
fn the_last_segment_under_the_cap_of_the_set_is_as_large_as_fits() {
    let dir = tempfile::tempdir().expect("a directory");
    let cap = 256 << 10;
    let set = QueueSet::builder().defaults(fast()).max_disk_bytes(cap).open(dir.path()).expect("opens");
    let q = set.queue("q").expect("opens");
    let answer = std::iter::from_fn(|| Some(q.put([7; 1_000]))).take(1_000).find(Result::is_err).expect("a cap");
    assert!(is_full(answer, Limit::Disk));
    // 64 KiB, 128 KiB, and not 256 KiB but 64.
    assert_eq!((set.stats().disk_bytes, q.stats().segments), (cap, 3));
}

#[test]
fn a_sync_without_anything_to_cover_does_not_ask_the_device() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    q.sync().expect("syncs");
    let syncs = q.stats().syncs;
    q.sync().expect("nothing to do");
    assert_eq!(q.stats().syncs, syncs);
    q.put("b").expect("room");
    q.sync().expect("syncs");
    assert!(q.stats().syncs > syncs);
}
