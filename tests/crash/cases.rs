//! Cases by number that need a clock, a disk or a crash of our own.

use std::path::PathBuf;
use std::time::Duration;

use super::oracle::{DIR, open};
use crate::disk::Disk;
use crate::disk::sim::{Fate, Op, SimDisk, SyncFailure};
use crate::planted::{Bug, with};
use crate::{Durability, Item, PutOptions, Queue, QueueOptions, QueueSet};

fn set_of(disk: &SimDisk) -> QueueSet {
    open(disk, Durability::Sync).expect("opens")
}

fn text(item: Option<Item>) -> Option<String> {
    item.map(|item| String::from_utf8_lossy(item.data()).into_owned())
}

fn next(queue: &Queue) -> Option<String> {
    text(queue.try_get().expect("reads"))
}

fn expiring(ms: u64) -> PutOptions {
    PutOptions::new().expires_in(Duration::from_millis(ms))
}

#[test]
fn s09_a_get_is_done_after_a_kill_and_may_come_back_after_a_power_cut() {
    let disk = SimDisk::new(1);
    let queue = set_of(&disk).queue("q").expect("opens");
    queue.put("a").expect("room");
    queue.put("b").expect("room");
    assert_eq!(next(&queue).as_deref(), Some("a"));
    assert_eq!(next(&set_of(&disk.kill()).queue("q").expect("opens")).as_deref(), Some("b"));
    let cut = set_of(&disk.power_cut(Fate::None)).queue("q").expect("opens");
    assert_eq!((next(&cut).as_deref(), next(&cut).as_deref()), (Some("a"), Some("b")));
    queue.sync().expect("syncs");
    assert_eq!(next(&set_of(&disk.power_cut(Fate::None)).queue("q").expect("opens")).as_deref(), Some("b"));
}

#[test]
fn s30_s31_an_item_is_alive_at_its_expiry_and_gone_behind_it() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put_with("a", &expiring(100)).expect("room");
    queue.put_with("b", &expiring(100)).expect("room");
    disk.advance_ms(100);
    assert_eq!(next(&queue).as_deref(), Some("a"), "equal is still alive");
    disk.advance_ms(1);
    assert_eq!(next(&queue), None);
    // Never later than the queue's age allows, and the limit outlives the process.
    let short = QueueOptions::default().max_age(Duration::from_millis(50));
    queue.set_options(short).expect("stored");
    queue.put_with("c", &expiring(10_000)).expect("room");
    let after = disk.kill();
    after.advance_ms(51);
    assert_eq!(next(&set_of(&after).queue("q").expect("opens")), None);
}

#[test]
fn k129_an_expired_item_behind_a_live_head_counts_until_it_is_met() {
    let disk = SimDisk::new(1);
    let queue = set_of(&disk).queue("q").expect("opens");
    queue.put("head").expect("room");
    queue.put_with("short", &expiring(10)).expect("room");
    disk.advance_ms(11);
    assert_eq!(queue.len(), 2);
    assert_eq!(text(queue.peek().expect("reads")).as_deref(), Some("head"));
    assert_eq!(next(&queue).as_deref(), Some("head"));
    assert_eq!(next(&queue), None);
    assert_eq!((queue.len(), queue.stats().expired_items), (0, 1));
}

#[test]
fn k114_a_clear_costs_the_same_however_many_items_there_are() {
    let calls = |items: u32| {
        let disk = SimDisk::new(1);
        let set = open(&disk, Durability::Os).expect("opens");
        let queue = set.queue("q").expect("opens");
        for n in 0..items {
            queue.put(n.to_le_bytes()).expect("room");
        }
        let before = disk.steps();
        assert_eq!(queue.clear().expect("stored"), items.into());
        disk.steps() - before
    };
    assert_eq!(calls(1_000), calls(10));
}

#[test]
fn k132_a_sweep_of_all_queues_returns_the_sum() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    for (name, count) in [("a", 3), ("b", 4), ("c", 0)] {
        let queue = set.queue(name).expect("opens");
        queue.put("stays").expect("room");
        for _ in 0..count {
            queue.put_with("goes", &expiring(10)).expect("room");
        }
        // Only what stands at the head can go without being looked for behind live items.
        assert_eq!(next(&queue).as_deref(), Some("stays"));
    }
    assert_eq!(set.discard_expired(100).expect("sweeps"), 0, "a clock that stands sweeps nothing");
    disk.advance_ms(11);
    assert_eq!(set.discard_expired(100).expect("sweeps"), 7);
    assert_eq!(set.discard_expired(100).expect("sweeps"), 0);
}

#[test]
fn an_item_held_for_long_keeps_its_page_and_not_its_segment() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("held").expect("room");
    for _ in 0..9 {
        queue.put(vec![7; 7000]).expect("room");
    }
    let held = queue.try_open().expect("reads").expect("there");
    while next(&queue).is_some() {}
    let before = queue.stats().log_size;
    for _ in 0..3 {
        disk.advance_ms(1001);
        set.run_upkeep();
    }
    assert!(queue.stats().log_size < before - 40_000, "{} of {before}", queue.stats().log_size);
    for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
        let queue = set_of(&after).queue("q").expect("no damage");
        assert_eq!(next(&queue).as_deref(), Some("held"));
        assert_eq!((next(&queue), queue.recovery().lost.len()), (None, 0));
    }
    held.abort();
    assert_eq!(next(&queue).as_deref(), Some("held"));
}

/// What reading leaves behind keeps a few pages for each item that is held, also where no time passes and nobody syncs; and a
/// sync of what is held there, which has nothing left to do, has told the truth.
fn thinned_as_it_goes(durability: Durability) -> Result<(), String> {
    let disk = SimDisk::new(1);
    let set = open(&disk, durability).map_err(|e| e.to_string())?;
    let queue = set.queue("q").map_err(|e| e.to_string())?;
    let mut held = Vec::new();
    for n in 0..40_u64 {
        let id = queue.put([n as u8; 28_000]).map_err(|e| e.to_string())?;
        let item = queue.try_open().map_err(|e| e.to_string())?.ok_or("not there")?;
        // Two items fill a segment.
        if n % 2 == 0 {
            held.push((n as u8, id, item))
        } else {
            item.close().map_err(|e| e.to_string())?
        }
        set.run_upkeep();
        let (bytes, most) = (queue.stats().log_size, (held.len() as u64 + 4 + 6) * 65_536 / 2);
        if bytes > most {
            return Err(format!("{bytes} bytes for {} items that are held", held.len()));
        }
    }
    let cuts = [Fate::None, Fate::All].map(|fate| disk.power_cut(fate));
    let syncs = queue.stats().syncs;
    let is_synced = |id| queue.synced(id).is_ok() && queue.stats().syncs == syncs;
    let synced = held.iter().take_while(|(_, id, _)| is_synced(*id)).count();
    if synced < 10 {
        return Err(format!("{synced} are durable"));
    }
    for cut in cuts {
        let after = open(&cut, durability).map_err(|e| e.to_string())?;
        let queue = after.queue("q").map_err(|e| e.to_string())?;
        for (n, ..) in &held[..synced] {
            // What was done in between may come again: nobody has waited for that.
            while queue.try_get().map_err(|e| e.to_string())?.ok_or(format!("{n} is lost"))?.data() != [*n; 28_000] {}
        }
    }
    for (n, _, item) in held {
        item.abort();
        let again = queue.try_get().map_err(|e| e.to_string())?.ok_or("not there")?;
        if again.data() != [n; 28_000] {
            return Err(format!("{n} is another"));
        }
    }
    Ok(())
}

#[test]
fn what_reading_leaves_behind_is_thinned_out_as_it_goes() {
    for durability in [Durability::Sync, Durability::Os, Durability::Every(Duration::from_secs(60))] {
        assert_eq!(thinned_as_it_goes(durability), Ok(()), "{durability:?}");
    }
    let broken = with(Bug::ThinWithoutSeal, || thinned_as_it_goes(Durability::Os));
    assert!(broken.is_err(), "a planted bug was not caught");
}

/// A sync of marks fails, and the page cache keeps them; the next process believes them, and gives back what they allow.
fn thinned_in_the_next_life() -> Result<(), String> {
    let disk = SimDisk::new(1);
    disk.set_sync_failure(SyncFailure::KeepsContent);
    let set = open(&disk, Durability::Os).map_err(|e| e.to_string())?;
    let large = QueueOptions::default().durability(Durability::Os).segment_bytes(512 << 10);
    let queue = set.queue_with("q", large).map_err(|e| e.to_string())?;
    // More than a page of marks, or the mark of what is held would take all of them along.
    let items: Vec<&[u8]> = std::iter::once(&b"held"[..]).chain((0..5_000).map(|_| &[7; 8][..])).collect();
    queue.put_batch(&items).map_err(|e| e.to_string())?;
    // In the next segment, whose name proves this one.
    queue.put(vec![7; 400_000]).map_err(|e| e.to_string())?;
    queue.sync().map_err(|e| e.to_string())?;
    let held = queue.try_open().map_err(|e| e.to_string())?;
    while queue.try_get().map_err(|e| e.to_string())?.is_some() {}
    // The newest segment's passes.
    disk.fail(Op::Sync, 1, u64::MAX, std::io::ErrorKind::Other);
    if queue.sync().is_ok() {
        return Err("a sync that was to fail has not".into());
    }
    let disk = disk.kill();
    disk.heal();
    let set = open(&disk, Durability::Os).map_err(|e| e.to_string())?;
    let queue = set.queue("q").map_err(|e| e.to_string())?;
    let again = queue.try_open().map_err(|e| e.to_string())?;
    let before = queue.stats().log_size;
    for _ in 0..6 {
        // Only what may expire has such a queue looked after.
        queue.put_with("short", &expiring(1)).map_err(|e| e.to_string())?;
        disk.advance_ms(1001);
        set.run_upkeep();
    }
    if queue.stats().log_size >= before {
        return Err("nothing was given back".into());
    }
    let after = open(&disk.power_cut(Fate::All), Durability::Os).map_err(|e| e.to_string())?;
    let queue = after.queue("q").map_err(|e| e.to_string())?;
    let first = text(queue.try_get().map_err(|e| e.to_string())?);
    while queue.try_get().map_err(|e| e.to_string())?.is_some() {}
    drop((held, again));
    if first.as_deref() == Some("held") { Ok(()) } else { Err(format!("{first:?} instead of what was held")) }
}

#[test]
fn bytes_go_only_with_marks_that_this_process_has_stored() {
    assert_eq!(thinned_in_the_next_life(), Ok(()));
    assert!(with(Bug::MarksOfOthers, thinned_in_the_next_life).is_err(), "a planted bug was not caught");
}

#[test]
fn a_file_whose_holes_were_not_all_punched_is_allocated_again_before_it_is_used() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    // Held in the middle, so that there are holes on both sides of it.
    let mut held = None;
    for n in 0..10 {
        queue.put(vec![7; 7000]).expect("room");
        let item = queue.try_open().expect("reads").expect("there");
        if n == 4 { held = Some(item) } else { item.close().expect("open") }
    }
    disk.fail(Op::Punch, 1, u64::MAX, std::io::ErrorKind::Other);
    disk.record();
    for _ in 0..3 {
        disk.advance_ms(1001);
        set.run_upkeep();
    }
    assert!(disk.take_calls().iter().any(|call| call.op == Op::Punch), "one hole is there");
    disk.heal();
    held.expect("the fifth").close().expect("open");
    set.run_upkeep();
    assert_eq!(set.stats().pool_segments, 1, "it is a spare now");
    // The next segments are made until one needs a file of that length.
    queue.set_options(queue.options().segment_bytes(64 << 10)).expect("valid");
    for _ in 0..40 {
        queue.put(vec![7; 7000]).expect("room");
    }
    assert_eq!(set.stats().pool_segments, 0, "the spare is in use");
    let calls = disk.take_calls();
    let created = calls.iter().filter(|call| call.op == Op::Create).count();
    let allocated = calls.iter().filter(|call| call.op == Op::Allocate).count();
    assert_eq!(allocated, created + 1, "the spare, too");
}

fn delayed(ms: u64) -> PutOptions {
    PutOptions::new().delay(Duration::from_millis(ms))
}

#[test]
fn k141_s39_a_delayed_item_is_not_there_before_its_time_and_then_before_what_came_later() {
    for durability in [Durability::Sync, Durability::Os] {
        let disk = SimDisk::new(1);
        let set = open(&disk, durability).expect("opens");
        let queue = set.queue("q").expect("opens");
        queue.put_with("late", &delayed(300)).expect("room");
        queue.put_with("never", &delayed(300).expires_in(Duration::from_millis(100))).expect("room");
        queue.put_with("soon", &delayed(200)).expect("room");
        assert_eq!((queue.len(), queue.stats().deferred_items, queue.stats().bytes), (0, 3, 0));
        assert!(queue.peek().expect("reads").is_none());
        assert_eq!(next(&queue), None);
        disk.advance_ms(199);
        queue.put("before").expect("room");
        assert_eq!(queue.len(), 1);
        let after = disk.kill();
        for (disk, queue) in [(disk, queue), (after.clone(), set_of(&after).queue("q").expect("opens"))] {
            assert_eq!((queue.len(), queue.stats().deferred_items), (1, 3), "{durability:?}");
            disk.advance_ms(1);
            queue.put("after").expect("room");
            assert_eq!((queue.len(), queue.stats().deferred_items), (3, 2));
            assert_eq!(next(&queue).as_deref(), Some("soon"));
            disk.advance_ms(100);
            assert_eq!(text(queue.peek().expect("reads")).as_deref(), Some("late"));
            for wanted in [Some("late"), Some("before"), Some("after"), None] {
                assert_eq!(next(&queue).as_deref(), wanted);
            }
            assert_eq!((queue.len(), queue.stats().deferred_items, queue.stats().expired_items), (0, 0, 1));
        }
    }
}

#[test]
fn delayed_items_come_by_due_time_also_if_nobody_looked_before_all_were_due() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    for ms in [300, 100, 200, 100] {
        queue.put_with(format!("{ms}"), &delayed(ms)).expect("room");
    }
    let after = disk.kill();
    for (disk, queue) in [(disk, queue), (after.clone(), set_of(&after).queue("q").expect("opens"))] {
        disk.advance_ms(1000);
        for wanted in [Some("100"), Some("100"), Some("200"), Some("300"), None] {
            assert_eq!(next(&queue).as_deref(), wanted);
        }
    }
}

#[test]
fn k142_a_clock_that_is_set_back_lengthens_no_delay() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    disk.advance_ms(7_200_000);
    queue.put_with("a", &delayed(200)).expect("room");
    queue.put_with("b", &delayed(200)).expect("room");
    disk.set_wall_ms(disk.wall_ms() - 3_600_000);
    disk.advance_ms(200);
    assert_eq!(next(&queue).as_deref(), Some("a"));
    set.close().expect("closes");
    let again = set_of(&disk.restart());
    let queue = again.queue("q").expect("opens");
    disk.advance_ms(200);
    assert_eq!(next(&queue).as_deref(), Some("b"));
}

#[test]
fn an_item_given_back_with_a_delay_waits_so_long_and_keeps_its_attempts() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("a").expect("room");
    queue.put("b").expect("room");
    queue.try_open().expect("reads").expect("a").abort_after(Duration::from_millis(500));
    assert_eq!((queue.len(), queue.stats().deferred_items), (1, 1));
    assert_eq!(next(&queue).as_deref(), Some("b"));
    assert_eq!(next(&queue), None);
    // A restart ends the delay.
    let other = set_of(&disk.kill()).queue("q").expect("opens");
    assert_eq!(next(&other).as_deref(), Some("a"));
    disk.advance_ms(500);
    let item = queue.try_open().expect("reads").expect("due");
    assert_eq!((item.data(), item.attempts()), (&b"a"[..], 2));
    item.abort_after(Duration::from_millis(1));
    assert_eq!(queue.clear().expect("clears"), 1);
    disk.advance_ms(5);
    assert_eq!((next(&queue), queue.stats().deferred_items), (None, 0));
}

#[test]
fn k56_zeros_behind_the_last_frame_are_the_end_and_no_damage() {
    for size in [1usize, 100, 40_000, 60_000, 60_301, 60_350, 60_400, 9 << 20] {
        let disk = SimDisk::new(1);
        let options = QueueOptions::default().max_item_size(16 << 20);
        let set = QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options).open(DIR).expect("opens");
        set.queue("q").expect("opens").put(vec![7; size]).expect("room");
        for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
            let queue = set_of(&after).queue("q").expect("no damage");
            let report = queue.recovery();
            assert_eq!((report.items, report.discarded_items, report.lost.len()), (1, 0, 0), "{size}");
            assert_eq!(queue.try_get().expect("reads").map(|item| item.data().len()), Some(size));
        }
    }
}

#[test]
fn k68_a_last_segment_without_a_whole_header_opens_as_empty() {
    let disk = SimDisk::new(1);
    set_of(&disk).queue("q").expect("opens").put("kept").expect("room");
    let dir = PathBuf::from(DIR).join("queues/q");
    let begun = disk.list_files().into_iter().find(|path| path.extension().is_some_and(|e| e == "seg"));
    let header = disk.read_file(&begun.expect("a segment")).expect("readable");
    for bytes in [Vec::new(), header[..70].to_vec(), vec![0; 64 << 10], header[..4096].to_vec()] {
        let after = disk.power_cut(Fate::None);
        after.write_file(&dir.join("0000000000000002.new"), &bytes);
        let queue = set_of(&after).queue("q").expect("opens");
        assert_eq!((queue.len(), queue.recovery().lost.len()), (1, 0), "{} bytes", bytes.len());
        queue.put("more").expect("room");
        assert_eq!((next(&queue).as_deref(), next(&queue).as_deref()), (Some("kept"), Some("more")));
    }
}

#[test]
fn a_close_that_waits_for_the_device_waits_for_the_sync_that_took_its_mark() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("a").expect("room");
    let item = queue.open().expect("there");
    let core = &queue.core;
    std::thread::scope(|scope| {
        let (begun, begins) = std::sync::mpsc::channel();
        let (answer, device) = std::sync::mpsc::channel::<()>();
        let (closed, closes) = std::sync::mpsc::channel();
        let id = item.id().get();
        assert!(core.close_item(id, item.into_token().serial).expect("marked"));
        scope.spawn(move || {
            let slow = || {
                let synced = core.journal.sync(true);
                begun.send(()).expect("somebody waits");
                device.recv().expect("the test tells when");
                synced
            };
            core.journal.commit.round(slow, |_| {}).expect("no failure planted");
        });
        begins.recv().expect("it has begun");
        scope.spawn(move || closed.send(core.sync().is_ok()).expect("somebody waits"));
        let early = closes.recv_timeout(Duration::from_millis(100));
        answer.send(()).expect("somebody waits");
        assert!(early.is_err(), "answered while the device was still at it");
        assert_eq!(closes.recv(), Ok(true));
    });
}

#[test]
fn what_was_armed_for_a_deleted_queue_goes_back_to_the_pool() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let options = QueueOptions::default().durability(Durability::Os);
    let queue = set.queue_with("q", options).expect("opens");
    // More than half of the second segment: the third is asked for, and the chore waits.
    for _ in 0..145 {
        queue.put([7; 1_000]).expect("room");
    }
    set.delete("q").expect("removed");
    set.run_upkeep();
    let stats = set.stats();
    assert_eq!((stats.disk_bytes, stats.queues), (stats.pool_bytes, 0));
}

#[test]
fn a_sweep_that_fails_in_the_middle_loses_count_of_nothing() {
    let disk = SimDisk::new(1);
    disk.set_may_map(false);
    let queue = set_of(&disk).queue("q").expect("opens");
    for _ in 0..5 {
        queue.put_with("x", &expiring(10)).expect("room");
    }
    queue.put("alive").expect("room");
    disk.advance_ms(20);
    disk.fail(Op::Write, 2, 1, std::io::ErrorKind::Other);
    assert!(queue.discard_expired(100).is_err());
    disk.heal();
    let _ = queue.discard_expired(100).expect("healed");
    assert_eq!((queue.len(), queue.stats().bytes, queue.stats().expired_items), (1, 5, 5));
    assert_eq!(next(&queue).as_deref(), Some("alive"));
}

#[test]
fn a_set_closes_while_queues_are_being_opened_and_deleted() {
    for round in 0..2_000 {
        let set = set_of(&SimDisk::new(round));
        let options = QueueOptions::default().journal(false);
        let (told, ended) = std::sync::mpsc::channel();
        for thread in 0..3 {
            let (set, told, options) = (set.clone(), told.clone(), options.clone());
            std::thread::spawn(move || {
                for n in 0.. {
                    let name = format!("{thread}-{n}");
                    if set.queue_with(&name, options.clone()).is_err() || (n % 2 == 0 && set.delete(&name).is_err()) {
                        break;
                    }
                }
                let _ = told.send(());
            });
        }
        std::thread::spawn(move || {
            std::thread::yield_now();
            let _ = set.close();
            let _ = told.send(());
        });
        for _ in 0..4 {
            ended.recv_timeout(Duration::from_secs(20)).expect("they wait for each other");
        }
    }
}

#[test]
fn upkeep_of_a_deleted_queue_keeps_its_hands_off_the_next_one_of_that_name() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let options = QueueOptions::default().segment_bytes(64 << 10);
    let old = set.queue_with("q", options.clone()).expect("opens");
    for _ in 0..100 {
        old.put([7; 1_000]).expect("room");
    }
    while old.try_get().expect("reads").is_some() {}
    set.delete("q").expect("removed");
    let new = set.queue_with("q", options).expect("opens");
    new.put("new").expect("room");
    // As if the upkeep thread had looked at the old one just before it was deleted.
    let _ = old.core.journal.free_spent(&old.core.journal.spent());
    let _ = old.core.journal.sync(true);
    assert_eq!(next(&set_of(&disk.kill()).queue("q").expect("opens")).as_deref(), Some("new"));
}

#[test]
fn nothing_is_stored_in_the_header_of_a_queue_once_its_set_is_closed() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("a").expect("room");
    set.clone().close().expect("closes");
    let after = set_of(&disk);
    let again = after.queue("q").expect("opens");
    // As if these had looked at the set just before it was closed.
    assert!(queue.core.clear().is_err());
    assert!(queue.core.journal.update_meta(|meta| meta.next_id += 5).is_err());
    assert_eq!(next(&again).as_deref(), Some("a"));
}

#[test]
fn f14_spares_of_another_size_make_room_on_a_full_disk() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let (big, other) = (set.queue("big").expect("opens"), set.queue("other").expect("opens"));
    for _ in 0..2 {
        big.put_batch(vec![vec![7; 1_000]; 600]).expect("room");
    }
    while big.try_get().expect("reads").is_some() {}
    set.run_upkeep();
    assert_eq!(set.stats().pool_bytes, 1 << 20);
    fill(&disk);
    other.put("x").expect("a spare can go");
    assert_eq!(set.stats().disk_bytes, (1 << 20) + (64 << 10));
}

/// Leaves no space beyond what is used.
fn fill(disk: &SimDisk) {
    let used: usize = disk.list_files().iter().filter_map(|path| disk.read_file(path)).map(|bytes| bytes.len()).sum();
    disk.set_space(used as u64);
}

#[test]
fn f14_a_drained_queue_takes_puts_again_on_a_full_disk() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("a").expect("room");
    fill(&disk);
    while queue.put([8; 1_000]).is_ok() {}
    while queue.try_get().expect("reads").is_some() {}
    queue.put([9; 1_000]).expect("its own space is free again");
    assert_eq!(queue.try_get().expect("reads").map(|item| item.data().to_vec()), Some(vec![9; 1_000]));
}

/// Where files are not mapped, a store into a segment that has its length may find the medium full. The way of plain items told the
/// caller at once.
#[test]
fn f14_a_store_that_finds_no_space_in_a_drained_queue_frees_its_segment_and_is_done_again() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    queue.put("a").expect("room");
    queue.try_get().expect("reads").expect("an item");
    disk.fail(Op::Write, 0, 1, std::io::ErrorKind::StorageFull);
    queue.put("b").expect("the segment of the first is free");
    assert_eq!(queue.try_get().expect("reads").map(|item| item.data().to_vec()), Some(b"b".to_vec()));
}

#[test]
fn k69_ids_that_a_power_cut_undid_stay_used_when_the_queue_is_deleted_unopened() {
    let disk = SimDisk::new(1);
    let os = QueueOptions::default().durability(Durability::Os);
    let queue = set_of(&disk).queue_with("q", os).expect("opens");
    queue.put("durable").expect("room");
    queue.sync().expect("syncs");
    let mut told = Vec::new();
    for _ in 0..8 {
        told.extend(queue.put_batch(vec![[7]; 10_000]).expect("room"));
    }
    let set = set_of(&disk.power_cut(Fate::None));
    assert!(set.delete("q").expect("removed"));
    let next = set.queue("q").expect("opens").put("new").expect("room");
    assert!(told.iter().all(|id| *id < next), "{next} was told before");
}

#[test]
fn f37_a_spare_that_does_not_open_takes_no_space_that_nobody_counts() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let (first, second) = (set.queue("first").expect("opens"), set.queue("second").expect("opens"));
    for _ in 0..100 {
        first.put([7; 1_000]).expect("room");
    }
    while first.try_get().expect("reads").is_some() {}
    set.run_upkeep();
    assert_eq!(set.stats().pool_bytes, 64 << 10);
    // The first is the queue's header.
    disk.fail(Op::Open, 1, 1, std::io::ErrorKind::Other);
    second.put("x").expect("there is another way");
    disk.heal();
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|e| e == "seg" || e == "new" || e == "spare");
    let files = disk.list_files();
    let bytes = files.iter().filter(is_segment).filter_map(|path| disk.read_file(path)).map(|bytes| bytes.len() as u64);
    assert_eq!(set.stats().disk_bytes, bytes.sum::<u64>());
}

#[test]
fn f23_a_get_does_not_wait_for_a_sync_that_stalls() {
    let disk = SimDisk::new(1);
    let queue = set_of(&disk).queue("q").expect("opens");
    queue.put("there").expect("room");
    let held = queue.open().expect("reads");
    queue.put("too").expect("room");
    disk.stall_syncs(true);
    std::thread::scope(|scope| {
        let putter = scope.spawn(|| queue.put("late"));
        while queue.stats().total_items < 3 {
            std::thread::yield_now();
        }
        // All of these would wait for ever if they waited for the sync.
        assert_eq!(text(queue.get_timeout(Duration::from_millis(100)).expect("reads")).as_deref(), Some("too"));
        assert_eq!(next(&queue), None, "what is not durable is not shown");
        held.abort();
        let again = queue.open_timeout(Duration::from_millis(100)).expect("reads").expect("there");
        again.close().expect("stores");
        assert_eq!((queue.len(), queue.peek().expect("reads").is_none()), (1, true));
        assert!(!putter.is_finished(), "the sync is still under way");
        disk.stall_syncs(false);
        putter.join().expect("no panic").expect("durable");
    });
    assert_eq!(next(&queue).as_deref(), Some("late"));
}

#[test]
fn k164_a_put_to_several_queues_that_meets_an_error_is_in_none_of_them_after_a_kill() {
    let (mut refused, mut stored) = (0, false);
    for skip in 0..60 {
        let disk = SimDisk::new(1);
        disk.set_may_map(false);
        let os = super::oracle::options(Durability::Os);
        let set = QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(os).open(DIR).expect("opens");
        for name in ["a", "b"] {
            set.queue(name).expect("opens").put("old").expect("room");
        }
        let both = set.alias("both", &["b", "a"]).expect("set");
        disk.fail(Op::Write, skip, 1, std::io::ErrorKind::Other);
        let put = both.put(vec![7; 3_000]);
        disk.heal();
        let expected = 1 + u64::from(put.is_ok());
        for set in [&set, &set_of(&disk.kill())] {
            let len = |name| set.queue(name).expect("opens").len();
            assert_eq!((len("a"), len("b")), (expected, expected), "write {skip}: {put:?}");
        }
        set.queue("a").expect("opens").put("new").expect("the queue goes on");
        match put {
            Ok(_) => stored = true,
            Err(_) => refused += 1,
        }
        if stored {
            break;
        }
    }
    assert!(refused > 2 && stored, "{refused} refused");
}

/// A crash on the way leaves the item in some of the queues, and whole wherever it is.
#[test]
fn k164_a_crash_on_the_way_leaves_the_item_in_each_queue_whole_or_not_at_all() {
    for step in 0..40 {
        let disk = SimDisk::new(1);
        let set = set_of(&disk);
        let both = set.alias("both", &["a", "b"]).expect("set");
        both.put("first").expect("room");
        disk.crash_at(disk.steps() + step, crate::disk::sim::When::During);
        let _ = both.put("second");
        let is_over = !disk.has_crashed();
        for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
            let set = set_of(&after);
            for name in ["a", "b"] {
                let queue = set.queue(name).expect("opens");
                assert_eq!(next(&queue).as_deref(), Some("first"), "step {step}");
                assert!([None, Some("second")].contains(&next(&queue).as_deref()), "step {step}");
            }
        }
        if is_over {
            return;
        }
    }
    panic!("a put has fewer steps");
}
