//! The fault cases that need the disk seam, by their numbers.

use std::io::ErrorKind;
use std::time::Duration;

use super::oracle::{DIR, options, payload};
use crate::disk::Disk;
use crate::disk::sim::{Fate, Op, SimDisk, SyncFailure};
use crate::{
    CloseError, Durability, GetError, OpenError, PutError, PutOptions, QueueOptions, QueueSet, SyncError, WhenFull,
};

fn open(disk: &SimDisk) -> QueueSet {
    super::oracle::open(disk, Durability::Sync).expect("opens")
}

fn with_options(disk: &SimDisk, options: QueueOptions) -> QueueSet {
    QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options).open(DIR).expect("opens")
}

#[test]
fn f14_a_full_disk_refuses_puts_and_nothing_else() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    disk.set_space(100_000);
    let mut stored = 0;
    let refused = loop {
        match queue.put(payload(stored, 20_000)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PutError::NoSpace { .. }), "{refused:?}");
    assert!(stored >= 2);
    let put_files = disk.list_files();
    assert!(matches!(queue.put(payload(9, 20_000)), Err(PutError::NoSpace { .. })));
    assert_eq!(disk.list_files(), put_files, "a refused put leaves no file");
    for key in 0..stored {
        let item = queue.try_open().expect("undamaged").expect("there");
        assert_eq!(item.data(), payload(key, 20_000));
        item.close().expect("a full disk can be drained");
    }
    disk.set_space(u64::MAX);
    queue.put(b"again").expect("room without a reopen");
    assert_eq!(queue.get().expect("there").data(), b"again");
}

#[test]
fn f15_a_thousand_open_items_are_closed_on_a_full_disk_and_stay_closed() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put_batch((0..1000u32).map(|n| n.to_le_bytes())).expect("room");
    let items = queue.open_batch(1000, Duration::ZERO).expect("undamaged");
    assert_eq!(items.len(), 1000);
    disk.set_space(0);
    for item in items {
        item.close().expect("needs no space");
    }
    queue.sync().expect("needs no space");
    let after = disk.power_cut(Fate::None);
    drop(set);
    assert_eq!(open(&after).queue("q").expect("opens").len(), 0);
}

#[test]
fn f16_f20_the_first_failed_sync_is_final_and_durable_items_can_be_read() {
    for how in [SyncFailure::KeepsContent, SyncFailure::RevertsContent] {
        let disk = SimDisk::new(1);
        let set = open(&disk);
        let queue = set.queue("q").expect("opens");
        queue.put(b"durable").expect("room");
        disk.set_sync_failure(how);
        disk.fail(Op::Sync, 0, 1, ErrorKind::Other);
        assert!(matches!(queue.put(b"lost?"), Err(PutError::Indeterminate { .. })));
        assert!(matches!(queue.put(b"next"), Err(PutError::Failed { .. })), "the disk would succeed now");
        assert!(matches!(queue.sync(), Err(SyncError::Failed { .. })));
        let item = queue.try_open().expect("undamaged").expect("there");
        assert_eq!(item.data(), b"durable");
        assert!(queue.try_get().expect("undamaged").is_none(), "what is undetermined is not delivered");
        drop(item);
        let reopened = open(&disk.kill());
        let queue = reopened.queue("q").expect("opens");
        assert_eq!(queue.get().expect("there").data(), b"durable");
        queue.put(b"works").expect("a new open is a new start");
        drop(set);
    }
}

/// A sync fails, and the file system takes back what it could not write. After that the queue is cleared, which seals its last
/// segment: the seal tells of frames that are no more. The next open believed it, since the page cache had not gone.
#[test]
fn f16_frames_that_a_failed_sync_took_back_are_not_believed_to_be_there() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put(b"durable").expect("room");
    disk.set_sync_failure(SyncFailure::RevertsContent);
    disk.fail(Op::Sync, 0, 1, ErrorKind::Other);
    assert!(matches!(queue.put(b"lost"), Err(PutError::Indeterminate { .. })));
    queue.clear().expect("the header is another file");
    let reopened = open(&disk.kill());
    let queue = reopened.queue("q").expect("opens");
    assert!(queue.try_get().expect("undamaged").is_none());
    queue.put(b"works").expect("a new open is a new start");
    drop(set);
}

#[test]
fn f19_an_error_on_any_write_is_told_and_corrupts_nothing() {
    for may_map in [true, false] {
        for nth in 0..80 {
            let disk = SimDisk::new(nth);
            disk.set_may_map(may_map);
            disk.fail(Op::Write, nth, 1, ErrorKind::Other);
            let Ok(set) = super::oracle::open(&disk, Durability::Sync) else {
                continue;
            };
            let Ok(queue) = set.queue("q") else { continue };
            let mut stored = Vec::new();
            for key in 0..8 {
                if queue.put(payload(key, 30_000)).is_ok() {
                    stored.push(key);
                }
            }
            let mut read = Vec::new();
            while let Ok(Some(item)) = queue.try_open() {
                read.push(super::oracle::key_of(item.data()).expect("a key"));
                assert_eq!(item.data(), payload(read[read.len() - 1], 30_000));
                let _ = item.into_token();
            }
            assert_eq!(read, stored, "write {nth} failed");
        }
    }
}

#[test]
fn f21_a_read_error_names_the_segment_and_leaves_other_queues_alone() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let (bad, good) = (set.queue("bad").expect("opens"), set.queue("good").expect("opens"));
    bad.put(b"x").expect("room");
    good.put(b"y").expect("room");
    disk.fail(Op::Read, 0, 3, ErrorKind::Other);
    assert!(matches!(bad.try_get(), Err(GetError::Io { segment: 1, .. })));
    disk.heal();
    assert_eq!(good.get().expect("there").data(), b"y");
    assert_eq!(bad.get().expect("still there").data(), b"x");
}

#[test]
fn f24_errors_while_opening_are_typed_and_leave_no_lock_behind() {
    for op in [Op::Mkdir, Op::Create, Op::Sync, Op::SyncDir, Op::Rename, Op::Allocate, Op::Write] {
        for nth in 0..6 {
            let disk = SimDisk::new(1);
            disk.fail(op, nth, 1, ErrorKind::Other);
            match super::oracle::open(&disk, Durability::Sync) {
                Ok(set) => drop(set.queue("q")),
                Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{error:?}"),
            }
            disk.heal();
            let set = open(&disk);
            set.queue("q").expect("opens").put(b"x").expect("works");
        }
    }
}

#[test]
fn f22_k142_a_clock_set_back_lengthens_nothing_while_the_process_lives() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put_with(b"x", &PutOptions::new().expires_in(Duration::from_millis(200))).expect("room");
    disk.set_wall_ms(1);
    disk.advance_ms(201);
    assert!(queue.try_get().expect("undamaged").is_none());
    assert_eq!(queue.stats().expired_items, 1);
}

#[test]
fn f38_a_clock_that_was_set_back_between_two_opens_does_not_go_back() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Sync).max_age(Duration::from_secs(60)));
    set.queue("q").expect("opens").put(b"x").expect("room");
    set.close().expect("closed");
    disk.set_wall_ms(5);
    let set = with_options(&disk, options(Durability::Sync).max_age(Duration::from_secs(60)));
    let queue = set.queue("q").expect("opens");
    disk.advance_ms(59_000);
    assert!(queue.peek().expect("undamaged").is_some());
    disk.advance_ms(2_000);
    assert!(queue.peek().expect("undamaged").is_none(), "60 s have passed since the put");
}

#[test]
fn k126_an_item_is_alive_at_its_expiry_and_gone_a_millisecond_later() {
    let disk = SimDisk::new(1);
    let queue = open(&disk).queue("q").expect("opens");
    queue.put_with(b"x", &PutOptions::new().expires_in(Duration::from_millis(10))).expect("room");
    disk.advance_ms(10);
    assert!(queue.peek().expect("undamaged").is_some());
    disk.advance_ms(1);
    assert!(queue.peek().expect("undamaged").is_none());
}

#[test]
fn k127_the_earlier_of_own_expiry_and_max_age_counts() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Sync).max_age(Duration::from_secs(2)));
    let queue = set.queue("q").expect("opens");
    queue.put_with(b"five", &PutOptions::new().expires_in(Duration::from_secs(5))).expect("room");
    queue.put_with(b"one", &PutOptions::new().expires_in(Duration::from_secs(1))).expect("room");
    disk.advance_ms(1_500);
    assert_eq!(queue.discard_expired(10).expect("undamaged"), 1);
    assert_eq!(queue.peek().expect("undamaged").expect("there").data(), b"five");
    disk.advance_ms(1_000);
    assert!(queue.peek().expect("undamaged").is_none());
}

#[test]
fn k128_a_lowered_max_age_reaches_waiting_items_and_a_raised_one_does_not() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Sync).max_age(Duration::from_secs(60)));
    let queue = set.queue("q").expect("opens");
    queue.put(b"x").expect("room");
    disk.advance_ms(5_000);
    queue.set_options(queue.options().max_age(Duration::from_secs(1))).expect("valid");
    assert!(queue.try_get().expect("undamaged").is_none());
    queue.put(b"short").expect("room");
    queue.set_options(queue.options().max_age(Duration::from_secs(60))).expect("valid");
    disk.advance_ms(2_000);
    assert!(queue.try_get().expect("undamaged").is_none(), "fixed at the put");
}

#[test]
fn k130_a_sweep_stops_at_its_limit_and_a_get_never_gives_an_expired_item() {
    let disk = SimDisk::new(1);
    let queue = open(&disk).queue("q").expect("opens");
    for _ in 0..4 {
        queue.put_with(b"old", &PutOptions::new().expires_in(Duration::from_millis(1))).expect("room");
    }
    queue.put(b"live").expect("room");
    disk.advance_ms(10);
    assert_eq!(queue.discard_expired(3).expect("undamaged"), 3);
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.get().expect("there").data(), b"live");
    assert_eq!(queue.stats().expired_items, 4);
}

#[test]
fn s32_an_item_that_expires_while_open_can_be_closed_and_expires_when_it_comes_back() {
    let disk = SimDisk::new(1);
    let queue = open(&disk).queue("q").expect("opens");
    let soon = PutOptions::new().expires_in(Duration::from_millis(5));
    queue.put_with(b"closed", &soon).expect("room");
    queue.put_with(b"back", &soon).expect("room");
    let (first, second) = (queue.open().expect("there"), queue.open().expect("there"));
    disk.advance_ms(50);
    first.close().expect("its consumer was in time");
    second.abort();
    assert_eq!(queue.len(), 1);
    assert!(queue.try_get().expect("undamaged").is_none());
    assert_eq!(queue.stats().expired_items, 1);
}

#[test]
fn s33_the_background_sweep_removes_expired_items_behind_a_live_head() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put(b"head").expect("room");
    queue.put_with(b"old", &PutOptions::new().expires_in(Duration::from_millis(5))).expect("room");
    for _ in 0..3 {
        disk.advance_ms(1_001);
        set.run_upkeep();
    }
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.peek().expect("undamaged").expect("there").data(), b"head");
}

#[test]
fn k140_expired_heads_of_a_backlog_beyond_memory_are_swept_through_the_disk() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Sync).memory_bytes(1024));
    let queue = set.queue("q").expect("opens");
    let soon = PutOptions::new().expires_in(Duration::from_millis(5));
    for _ in 0..100 {
        queue.put_with([0; 128], &soon).expect("room");
    }
    queue.put(b"live").expect("room");
    disk.advance_ms(10);
    assert_eq!(queue.discard_expired(usize::MAX).expect("undamaged"), 100);
    assert!(queue.stats().mem_bytes <= 1024);
    assert_eq!(queue.get().expect("there").data(), b"live");
}

#[test]
fn k65_an_item_that_expires_while_the_process_is_down_is_never_delivered() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put_with(b"x", &PutOptions::new().expires_in(Duration::from_secs(1))).expect("room");
    drop(queue);
    set.close().expect("closed");
    disk.advance_ms(2_000);
    assert!(open(&disk).queue("q").expect("opens").try_get().expect("undamaged").is_none());
}

#[test]
fn an_expired_item_is_no_reason_to_refuse_a_put() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Sync).max_items(1));
    let queue = set.queue("q").expect("opens");
    queue.put_with(b"old", &PutOptions::new().expires_in(Duration::from_millis(5))).expect("room");
    disk.advance_ms(10);
    queue.put(b"new").expect("the expired one is swept first");
    assert!(matches!(queue.put(b"third"), Err(PutError::Full { .. })));
}

#[test]
fn the_disk_cap_refuses_or_drops_and_closing_makes_room() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let disk = SimDisk::new(1);
        let set = QueueSet::builder()
            .disk(Disk::Sim(disk.clone()))
            .defaults(options(Durability::Os).when_full(when_full))
            .max_disk_bytes(256 << 10)
            .open(DIR)
            .expect("opens");
        let queue = set.queue("q").expect("opens");
        let mut stored = 0;
        while stored < 40 && queue.put(payload(stored, 20_000)).is_ok() {
            stored += 1;
        }
        assert!(set.stats().disk_bytes <= 256 << 10);
        match when_full {
            WhenFull::DropOldest => assert_eq!(stored, 40),
            _ => {
                assert!(matches!(queue.put(payload(0, 20_000)), Err(PutError::Full { limit: crate::Limit::Disk, .. })));
                queue.try_iter().for_each(|item| item.expect("undamaged").close().expect("marked"));
                set.run_upkeep();
                queue.put(payload(0, 20_000)).expect("freed segments make room");
            }
        }
    }
}

#[test]
fn f17_a_file_system_that_is_not_trusted_is_never_mapped_and_works_the_same() {
    let disk = SimDisk::new(1);
    disk.set_may_map(false);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    for key in 0..10 {
        queue.put(payload(key, 30_000)).expect("room");
    }
    drop(queue);
    set.close().expect("closed");
    disk.set_may_map(true);
    let queue = open(&disk).queue("q").expect("the same format");
    for key in 0..10 {
        assert_eq!(queue.get().expect("there").data(), payload(key, 30_000));
    }
}

#[test]
fn k43_a_guard_that_outlives_its_set_says_closed_and_its_item_is_there_again() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put(b"x").expect("room");
    let item = queue.open().expect("there");
    set.close().expect("closed");
    assert!(matches!(item.close(), Err(CloseError::Closed)));
    assert!(matches!(queue.put(b"y"), Err(PutError::Closed)));
    let queue = open(&disk).queue("q").expect("opens");
    assert_eq!(queue.get().expect("there").attempts(), 1, "an orderly stop gives the start back");
}

#[test]
fn idle_queues_prove_their_tail_with_a_checkpoint() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put(payload(1, 100)).expect("room");
    let mut damaged = Vec::new();
    for _ in 0..4 {
        disk.advance_ms(1_001);
        set.run_upkeep();
        let copy = disk.kill();
        let path = copy.list_files().into_iter().find(|p| p.extension().is_some_and(|e| e == "seg")).expect("synced");
        let mut bytes = copy.read_file(&path).expect("there");
        bytes[4096 + 50] ^= 1;
        copy.write_file(&path, &bytes);
        damaged.push(matches!(open(&copy).queue("q"), Err(OpenError::Corrupt { .. })));
    }
    assert_eq!(damaged.last(), Some(&true), "damage to the last synced item is told from a torn write: {damaged:?}");
}

#[test]
fn k15_age_is_of_the_item_fetched_last_and_nothing_when_the_queue_is_empty() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put(b"a").expect("room");
    queue.put(b"b").expect("room");
    disk.advance_ms(1000);
    queue.get().expect("there");
    assert_eq!((queue.stats().age_ms, queue.stats().oldest_age_ms), (1000, 1000));
    disk.advance_ms(9000);
    assert_eq!((queue.stats().age_ms, queue.stats().oldest_age_ms), (1000, 10_000));
    queue.get().expect("there");
    assert_eq!((queue.stats().age_ms, queue.stats().oldest_age_ms), (0, 0));
}

#[test]
fn k96_a_wall_clock_that_jumps_neither_shortens_nor_lengthens_a_wait() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    let now_ms = disk.wall_ms();
    for jumped_ms in [now_ms + 3_600_000, now_ms - 3_600_000] {
        let wait = Duration::from_millis(60);
        let start = std::time::Instant::now();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.get_timeout(wait));
            disk.set_wall_ms(jumped_ms);
            assert!(waiter.join().expect("no panic").expect("undamaged").is_none());
        });
        assert!(start.elapsed() >= wait);
    }
}

#[test]
fn k98_waits_on_ten_thousand_queues_need_no_thread_each_and_leave_nothing_behind() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Os).journal(false));
    let queues: Vec<_> = (0..10_000).map(|n| set.queue(&format!("q{n}")).expect("opens")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let waits: Vec<_> = queues
            .iter()
            .map(|queue| tokio::task::spawn(tokio::time::timeout(Duration::from_millis(20), queue.get_async())))
            .collect();
        for wait in waits {
            assert!(wait.await.expect("no panic").is_err(), "nothing comes");
        }
    });
    assert_eq!(queues.iter().map(|queue| queue.stats().waiters).sum::<u64>(), 0);
    queues[7].put(b"x").expect("room");
    assert_eq!(queues[7].stats().items, 1, "nobody was promised it");
}

#[test]
fn k145_segments_change_while_the_reader_is_behind_and_order_is_kept() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Os).memory_bytes(512));
    let queue = set.queue("q").expect("opens");
    for key in 0..10 {
        queue.put(payload(key, 20_000)).expect("room");
    }
    assert!(queue.stats().segments > 3);
    for key in 0..10 {
        assert_eq!(queue.get().expect("there").data(), payload(key, 20_000));
        set.run_upkeep();
    }
    assert!(queue.stats().segments <= 1);
}

#[test]
fn k149_open_items_that_stay_do_not_make_later_ones_dearer() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Os));
    let queue = set.queue("q").expect("opens");
    for key in 0..2000 {
        queue.put(payload(key, 8)).expect("room");
    }
    let held = queue.open_batch(2000, Duration::ZERO).expect("undamaged");
    let mut steps = Vec::new();
    for round in 0..6 {
        let before = disk.steps();
        for key in 0..2000 {
            queue.put(payload(round << 32 | key, 8)).expect("room");
            queue.get().expect("there");
        }
        set.run_upkeep();
        steps.push(disk.steps() - before);
    }
    let (least, most) = (steps.iter().min().expect("six"), steps.iter().max().expect("six"));
    assert!(most - least < least / 10, "calls of each round: {steps:?}");
    assert!(queue.stats().segments < 10, "what is done between is freed");
    drop(held);
}

/// What the reservation of a frame would guard against cannot arise: payloads are taken before the lock.
#[test]
fn f02_a_writer_that_panics_leaves_no_hole() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    let panics = (0..3).map(|n| if n == 2 { panic!("planted") } else { [n] });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.put_batch(panics))).is_err());
    queue.put(b"after").expect("room");
    let reopened = open(&disk.kill());
    let queue = reopened.queue("q").expect("opens");
    assert_eq!(queue.recovery().discarded_items, 0);
    assert_eq!(queue.get().expect("there").data(), b"after");
    assert!(queue.try_get().expect("undamaged").is_none());
}

#[test]
fn f08_of_unsynced_pages_only_a_beginning_counts() {
    let disk = SimDisk::new(1);
    let set = with_options(&disk, options(Durability::Os));
    let queue = set.queue("q").expect("opens");
    queue.put(payload(0, 3000)).expect("room");
    queue.sync().expect("no fault");
    for key in 1..6 {
        queue.put(payload(key, 3000)).expect("room");
    }
    let mut fewest = u64::MAX;
    for (index, _) in (0..disk.unsynced_changes()).enumerate() {
        let set = with_options(&disk.power_cut(Fate::AllBut(index)), options(Durability::Os));
        let queue = set.queue("q").expect("opens");
        let (kept, report) = (queue.len(), queue.recovery());
        assert!(kept + report.discarded_items <= 6);
        fewest = fewest.min(kept);
        for key in 0..kept {
            assert_eq!(queue.get().expect("there").data(), payload(key, 3000), "a beginning");
        }
    }
    assert!((1..6).contains(&fewest), "some cut took something, and none what was synced");
}

#[test]
fn f18_an_exceeded_quota_is_no_space_and_keeps_its_code() {
    let disk = SimDisk::new(1);
    let set = open(&disk);
    let queue = set.queue("q").expect("opens");
    disk.fail(Op::Allocate, 0, 1, ErrorKind::QuotaExceeded);
    match queue.put(b"x") {
        Err(PutError::NoSpace { source, .. }) => assert_eq!(source.kind(), ErrorKind::QuotaExceeded),
        other => panic!("{other:?}"),
    }
    queue.put(b"x").expect("room again");
}

#[test]
fn a_write_that_fails_ends_its_segment_and_the_next_put_begins_another() {
    let disk = SimDisk::new(1);
    disk.set_may_map(false);
    let set = with_options(&disk, options(Durability::Os));
    let queue = set.queue("q").expect("opens");
    queue.put(b"before").expect("room");
    disk.fail(Op::Write, 9, 1, ErrorKind::Other);
    assert!(matches!(queue.put_batch([[1u8; 8]; 9]), Err(PutError::Io { .. })), "within the batch");
    queue.put(b"after, of another length").expect("room");
    let reopened = with_options(&disk.kill(), options(Durability::Os));
    let queue = reopened.queue("q").expect("what is left of the batch is no damage");
    assert_eq!(queue.get().expect("there").data(), b"before");
    assert_eq!(queue.get().expect("there").data(), b"after, of another length");
    assert!(queue.try_get().expect("undamaged").is_none());
}

#[test]
fn a_queue_whose_names_failed_to_sync_is_not_used_before_they_are() {
    for nth in 0..6 {
        let disk = SimDisk::new(1);
        let set = open(&disk);
        disk.fail(Op::SyncDir, nth, 1, ErrorKind::Other);
        let Ok(queue) = set.queue("q").or_else(|_| set.queue("q")) else { continue };
        if queue.put(b"answered").is_err() {
            continue;
        }
        let after = open(&disk.power_cut(Fate::None));
        assert_eq!(after.queue("q").expect("opens").len(), 1, "directory sync {nth}");
    }
}

#[test]
fn every_directory_made_for_a_set_is_durable_with_its_first_answer() {
    for dir in ["/a/b/c", "a/b/c", "a"] {
        let disk = SimDisk::new(1);
        let open = |disk: &SimDisk| QueueSet::builder().disk(Disk::Sim(disk.clone())).open(dir).expect("opens");
        let set = open(&disk);
        set.queue("q").expect("opens").put(b"answered").expect("room");
        assert_eq!(open(&disk.power_cut(Fate::None)).queue("q").expect("opens").len(), 1, "{dir}");
    }
}
