//! What an open tells, to the item and to the byte; and what small mistakes in the bookkeeping would change without losing
//! anything at once. Each of these was written for a mutant that no other test noticed.

use std::path::PathBuf;
use std::time::Duration;

use super::oracle::{DIR, options, payload};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::format::frame::{self, HEADER_BYTES};
use crate::journal::segment::FRAMES_AT;
use crate::stats::RecoveryReport;
use crate::{Durability, GetError, OnDamage, OpenError, PutOptions, Queue, QueueSet};

const SIZE: usize = 100;

fn set_of(disk: &SimDisk, durability: Durability, choice: OnDamage) -> QueueSet {
    let builder = QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options(durability));
    builder.on_damage(choice).open(DIR).expect("opens")
}

fn frame_bytes() -> u64 {
    frame::frame_len(HEADER_BYTES as u32, SIZE as u32).into()
}

/// Where the frame of the item with this ordinal begins.
fn frame_at(ordinal: u64) -> u64 {
    u64::from(FRAMES_AT) + ordinal * frame_bytes()
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "seg" || ending == "new");
    let mut all: Vec<PathBuf> = disk.list_files().into_iter().filter(is_segment).collect();
    all.sort();
    all
}

fn flip(disk: &SimDisk, at: u64) {
    let path = segments(disk).remove(0);
    let mut bytes = disk.read_file(&path).expect("there");
    bytes[at as usize] ^= 0x40;
    disk.write_file(&path, &bytes);
}

fn put(queue: &Queue, count: u64) {
    for key in 0..count {
        queue.put(payload(key, SIZE)).expect("room");
    }
}

/// A process that put `count` items into the page cache and died.
fn killed_after(count: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    put(&set.queue("q").expect("opens"), count);
    disk.kill()
}

fn recovered(disk: &SimDisk, choice: OnDamage) -> Result<(Queue, RecoveryReport), OpenError> {
    let queue = set_of(disk, Durability::Os, choice).queue("q")?;
    let report = queue.recovery();
    Ok((queue, report))
}

#[test]
fn a_torn_end_is_told_to_the_item_and_to_the_byte() {
    let disk = killed_after(4);
    flip(&disk, frame_at(3) + HEADER_BYTES as u64 + 5);
    let (queue, report) = recovered(&disk, OnDamage::Refuse).expect("torn");
    assert_eq!((queue.len(), report.items, report.segments), (3, 3, 1));
    assert_eq!((report.discarded_items, report.discarded_bytes), (1, frame_bytes()));
    assert_eq!(report.scanned_bytes, 3 * frame_bytes());
    assert!(!report.clean && report.lost.is_empty());

    let (queue, report) = recovered(&killed_after(4), OnDamage::Refuse).expect("whole");
    assert_eq!((queue.len(), report.discarded_items, report.discarded_bytes), (4, 0, 0));
    assert_eq!(report.scanned_bytes, 4 * frame_bytes());
}

#[test]
fn a_batch_that_broke_off_is_told_whole() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    put(&queue, 2);
    queue.put_batch((2..6).map(|key| payload(key, SIZE))).expect("room");
    let disk = disk.kill();
    flip(&disk, frame_at(5) + HEADER_BYTES as u64);
    let (queue, report) = recovered(&disk, OnDamage::Refuse).expect("torn");
    assert_eq!(queue.len(), 2);
    assert_eq!((report.discarded_items, report.discarded_bytes), (4, 4 * frame_bytes()));
}

/// Items 2 and 3 of six are damaged, in what says how long they are or in what they hold. The open counted them as done, and
/// the reader that met them counted them again: of four items two were not delivered, and their segment was freed under them.
fn salvage_is_exact(at: u64) {
    let disk = killed_after(6);
    for ordinal in [1, 2] {
        flip(&disk, frame_at(ordinal) + at);
    }
    match recovered(&disk.clone_state(), OnDamage::Refuse) {
        Err(OpenError::Corrupt { segment: Some(1), offset, .. }) => assert_eq!(offset, frame_at(1)),
        other => panic!("{other:?}"),
    }
    let (queue, report) = recovered(&disk, OnDamage::Salvage).expect("salvaged");
    let lost: Vec<_> = report.lost.iter().map(|l| (l.segment, l.offset, l.first.get(), l.last.get())).collect();
    assert_eq!(lost, [(1, frame_at(1), 2, 3)]);
    assert_eq!((report.items, report.discarded_items, report.discarded_bytes), (4, 0, 0));
    for (left, key) in [0, 3, 4, 5].into_iter().enumerate() {
        let stats = queue.stats();
        assert_eq!((stats.items, stats.bytes), (4 - left as u64, (4 - left as u64) * SIZE as u64), "before {key}");
        assert_eq!(queue.try_get().expect("reads").expect("there").data(), payload(key, SIZE));
        queue.core.free_spent();
    }
    assert!(queue.is_empty());
    assert_eq!(queue.stats().damaged_items, 0, "what the open told is not told again");
}

#[test]
fn salvage_tells_the_ids_of_damaged_payloads() {
    salvage_is_exact(HEADER_BYTES as u64 + 5);
}

#[test]
fn salvage_tells_the_ids_of_damaged_headers() {
    salvage_is_exact(4);
}

#[test]
fn salvage_of_a_closed_segment_tells_what_it_passes_over() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    put(&queue, 6);
    queue.get().expect("there");
    drop(queue);
    set.close().expect("closes");
    flip(&disk, frame_at(2) + 4);
    assert!(matches!(recovered(&disk.clone_state(), OnDamage::Refuse), Err(OpenError::Corrupt { .. })));
    let (queue, report) = recovered(&disk.kill(), OnDamage::Salvage).expect("salvaged");
    let lost: Vec<_> = report.lost.iter().map(|l| (l.segment, l.offset, l.first.get(), l.last.get())).collect();
    assert_eq!(lost, [(1, frame_at(2), 3, 3)]);
    for (left, key) in [1, 3, 4, 5].into_iter().enumerate() {
        assert_eq!(queue.stats().items, 4 - left as u64);
        assert_eq!(queue.try_get().expect("reads").expect("there").data(), payload(key, SIZE));
        queue.core.free_spent();
    }
    assert!(queue.is_empty());
}

#[test]
fn a_mark_that_is_no_state_is_counted_and_its_item_comes_again() {
    let disk = killed_after(3);
    let path = segments(&disk).remove(0);
    let mut bytes = disk.read_file(&path).expect("there");
    let lane = crate::journal::lane::lane_at(bytes.len() as u32, 1).expect("inside");
    bytes[lane] = 0xFF;
    disk.write_file(&path, &bytes);
    let (queue, report) = recovered(&disk, OnDamage::Refuse).expect("no damage to an item");
    assert_eq!((queue.len(), report.damaged_marks, report.redelivered), (3, 1, 0));
}

#[test]
fn a_batch_uses_the_room_that_is_left_in_a_segment() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    queue.put_batch((0..400u64).map(u64::to_le_bytes)).expect("room");
    queue.put_batch((0..104u64).map(u64::to_le_bytes)).expect("room");
    assert_eq!(segments(&disk).len(), 1, "504 items of 8 bytes, and the lanes of as many");
    assert_eq!(queue.stats().log_size, 64 << 10);
}

#[test]
fn bytes_not_yet_durable_are_counted_until_the_sync() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    put(&queue, 3);
    assert_eq!(queue.stats().unsynced_bytes, 3 * frame_bytes());
    queue.sync().expect("no fault");
    assert_eq!(queue.stats().unsynced_bytes, 0);
    put(&queue, 1);
    assert_eq!(queue.stats().unsynced_bytes, frame_bytes());
}

/// A sync holds a segment that meanwhile becomes spent: were its file given to the pool, the next segment would be synced
/// instead of it.
#[test]
fn a_spent_segment_that_somebody_holds_is_left_until_he_lets_go() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    let held = loop {
        queue.put(payload(1, 20_000)).expect("room");
        if segments(&disk).len() > 1 {
            break queue.core.journal.segment(1).expect("opens").expect("there");
        }
    };
    while queue.len() > 1 {
        queue.get().expect("there");
    }
    let first = segments(&disk).remove(0);
    assert!(held.is_spent());
    assert!(queue.core.free_spent(), "it says that one had to be left");
    assert!(disk.list_files().contains(&first));
    drop(held);
    assert!(!queue.core.free_spent());
    assert!(!disk.list_files().contains(&first));
}

#[test]
fn a_shorter_segment_length_counts_from_the_next_segment_on() {
    let disk = SimDisk::new(1);
    let builder = QueueSet::builder().disk(Disk::Sim(disk.clone()));
    let long = options(Durability::Os).segment_bytes(1 << 20);
    let set = builder.defaults(long).open(DIR).expect("opens");
    let queue = set.queue("q").expect("opens");
    let lengths = |disk: &SimDisk| -> Vec<usize> {
        segments(disk).iter().map(|path| disk.read_file(path).expect("there").len()).collect()
    };
    while lengths(&disk).len() < 3 {
        queue.put(payload(1, 20_000)).expect("room");
    }
    assert_eq!(lengths(&disk), [64 << 10, 128 << 10, 256 << 10]);
    queue.set_options(options(Durability::Os).segment_bytes(128 << 10)).expect("stored");
    while lengths(&disk).len() < 5 {
        queue.put(payload(1, 20_000)).expect("room");
    }
    assert_eq!(lengths(&disk)[3..], [128 << 10, 128 << 10]);
}

/// Damage that comes while the queue is open, to headers, so that nobody knows where the next frame begins.
#[test]
fn damage_met_while_reading_is_told_or_counted_once() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    put(&queue, 6);
    for ordinal in [1, 2] {
        flip(&disk, frame_at(ordinal) + 4);
    }
    assert_eq!(queue.try_get().expect("reads").expect("there").data(), payload(0, SIZE));
    for _ in 0..2 {
        match queue.try_get() {
            Err(GetError::Corrupt { segment: 1, offset, id: Some(id), .. }) => {
                assert_eq!((offset, id.get()), (frame_at(1), 2));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((queue.stats().items, queue.stats().damaged_items), (5, 0), "it stays");

    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Salvage);
    let queue = set.queue("q").expect("opens");
    put(&queue, 6);
    for ordinal in [1, 2] {
        flip(&disk, frame_at(ordinal) + 4);
    }
    for (left, key) in [0, 3, 4, 5].into_iter().enumerate() {
        // The count looks ahead as far as the damage.
        assert_eq!((queue.stats().items, queue.stats().damaged_items), (4 - left as u64, 2), "before {key}");
        assert_eq!(queue.try_get().expect("reads").expect("there").data(), payload(key, SIZE));
    }
    assert!(queue.try_get().expect("reads").is_none() && queue.is_empty());
    let segment = queue.core.journal.segment(1).expect("opens").expect("there");
    assert_eq!((segment.count(), segment.done()), (6, 6), "what was given up keeps no file");
    put(&queue, 1);
    assert_eq!(queue.try_get().expect("reads").expect("there").id().get(), 7);
}

/// Damage behind which nothing waits is passed over in silence: what was done is no loss.
#[test]
fn damage_to_done_items_is_passed_over() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let queue = set.queue("q").expect("opens");
    put(&queue, 6);
    for _ in 0..3 {
        queue.get().expect("there");
    }
    drop(queue);
    set.close().expect("closes");
    for ordinal in [1, 2] {
        flip(&disk, frame_at(ordinal) + 4);
    }
    let (queue, report) = recovered(&disk.kill(), OnDamage::Refuse).expect("no loss");
    assert!(report.lost.is_empty());
    for key in 3..6 {
        assert_eq!(queue.try_get().expect("reads").expect("there").data(), payload(key, SIZE));
    }
    assert!(queue.try_get().expect("reads").is_none());
    assert_eq!(queue.stats().damaged_items, 0);
}

/// The room of a batch is reckoned before its segment is taken: the header's page, the frames, and the lanes of all items.
#[test]
fn a_batch_that_just_fits_keeps_off_the_lanes() {
    use crate::journal::lane::{BLOCK, BLOCK_LANES, frame_limit};
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    for items in [1, BLOCK_LANES, BLOCK_LANES + 1, 2 * BLOCK_LANES] {
        for short in (0..4 * 4096).step_by(1016) {
            let queue = set.queue(&format!("q{items}-{short}")).expect("opens");
            let (small, lanes) = (HEADER_BYTES + 8, items.div_ceil(BLOCK_LANES) as usize * BLOCK);
            let others = (items as usize - 1) * small;
            let first = (64 << 10) - short - lanes - others - HEADER_BYTES;
            let batch = std::iter::once(vec![1; first]).chain((1..items).map(|_| vec![2; 8]));
            queue.put_batch(batch).expect("room");
            let segment = queue.core.journal.segment(1).expect("opens").expect("there");
            let (end, limit) = (segment.end(), frame_limit(segment.len, segment.count()));
            assert!(end <= limit, "{items} items, {short} bytes short: frames to {end}, lanes from {limit}");
            let used = end as usize + lanes;
            assert!(used + 3 * 4096 + 2 * BLOCK > segment.len as usize / 2, "{used} of {} bytes", segment.len);
        }
    }
}

/// What asks to be looked after each second; a set in which nothing can expire sleeps.
#[test]
fn only_what_can_expire_is_looked_for() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk, Durability::Os, OnDamage::Refuse);
    let can = |queue: &Queue| queue.core.reader.lock().can_expire();
    let soon = || PutOptions::new().expires_in(Duration::from_secs(9));
    let queue = set.queue("q").expect("opens");
    assert!(!can(&queue), "nothing is there");
    queue.put("a").expect("room");
    assert!(!can(&queue), "no end, and not read yet");
    queue.peek().expect("reads");
    queue.get().expect("there");
    assert!(!can(&queue), "nothing is left");

    queue.put_with("b", &soon()).expect("room");
    assert!(can(&queue), "an end, and not read yet");
    let held = queue.open().expect("there");
    assert!(!can(&queue), "held open, it does not expire");
    held.abort();
    assert!(can(&queue), "waits again");
    queue.get().expect("there");
    assert!(!can(&queue));

    for text in ["c", "d"] {
        queue.put_with(text, &soon()).expect("room");
    }
    queue.get().expect("there");
    assert!(can(&queue), "an end, read ahead, and nothing behind it");
    queue.get().expect("there");

    let old = options(Durability::Os).max_age(Duration::from_secs(1));
    let aged = set.queue_with("aged", old.expire_to("q")).expect("opens");
    assert!(!can(&aged), "an age, and nothing to have it");
    aged.put("e").expect("room");
    assert!(can(&aged), "the age of all");
    disk.advance_ms(1001);
    assert!(aged.try_get().expect("reads").is_none());
    assert_eq!((aged.len(), can(&aged)), (0, true), "it is about to move");
}
