//! Moves under crashes that no workload has: two in a row, and what is done between a move and the sync of its mark.

use std::path::Path;

use super::oracle::{DIR, options};
use crate::disk::Disk;
use crate::disk::sim::{Fate, SimDisk, When};
use crate::journal::moves::Moves;
use crate::journal::segment::FRAMES_AT;
use crate::{Durability, OnDamage, Queue, QueueSet};

/// Queue `a` is synced, `b` is in the page cache only.
fn open(disk: &SimDisk) -> (QueueSet, Queue, Queue) {
    let builder = QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options(Durability::Sync));
    let set = builder.queue_options("b", options(Durability::Os)).open(DIR).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    (set, a, b)
}

fn items(queue: &Queue) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| queue.try_get().expect("undamaged").map(|item| item.data().to_vec())).collect()
}

/// A process dies between the append to `b` and the sync that the move waits for. The next one finds the new item in the page
/// cache and marks the old one, durably: a power cut then took both.
#[test]
fn a_move_that_a_kill_interrupted_survives_a_power_cut_after_the_next_open() {
    let mut found_new = false;
    for step in 0..100 {
        let disk = SimDisk::new(3);
        let (set, a, b) = open(&disk);
        b.put(b"first").expect("room");
        a.put(b"old").expect("room");
        let item = a.open().expect("there");
        disk.crash_at(disk.steps() + step, When::Before);
        let moved = item.close_into(&b, b"new");
        if !disk.has_crashed() {
            assert!(moved.is_ok() && found_new, "the crash came at every step of the move");
            return;
        }
        let after = disk.kill();
        drop((set, moved));
        let disk = after;
        let (set, a, b) = open(&disk);
        let is_new = b.len() == 2;
        found_new |= is_new;
        assert_eq!(a.len() + b.len(), 2, "step {step}");
        let cut = disk.power_cut(Fate::None);
        drop(set);
        let (_set, a, b) = open(&cut);
        let left: Vec<Vec<u8>> = items(&a).into_iter().chain(items(&b)).filter(|data| data != b"first").collect();
        assert!(left == [b"new"] || left == [b"old"], "step {step}: {left:?}, found new {is_new}");
    }
    panic!("a move has fewer steps");
}

/// The clear is durable at once, the mark of what had moved there is not.
#[test]
fn what_was_moved_and_cleared_does_not_come_back() {
    let disk = SimDisk::new(4);
    let set = super::oracle::open(&disk, Durability::Sync).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    a.put(b"old").expect("room");
    a.open().expect("there").close_into(&b, b"new").expect("moves");
    b.clear().expect("stored");
    b.put(b"next").expect("room");
    for (fate, disk) in disk.power_cuts(8, 20, 4) {
        let set = super::oracle::open(&disk, Durability::Sync).expect("opens");
        let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
        assert_eq!((a.len(), items(&b)), (0, vec![b"next".to_vec()]), "{fate:?}");
    }
}

/// The note of where items move is renewed as ids rise; what moved below it must be marked durably by then, also where nobody
/// promised to sync.
#[test]
fn a_renewed_note_leaves_nothing_behind_that_could_come_twice() {
    let disk = SimDisk::new(5);
    let set = super::oracle::open(&disk, Durability::Os).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    a.put_batch(["1", "2"]).expect("room");
    a.sync().expect("no fault");
    a.open().expect("there").close_into(&b, "new 1").expect("moves");
    for _ in 0..70 {
        b.put_batch(vec![b"x"; 1000]).expect("room");
    }
    a.open().expect("there").close_into(&b, "new 2").expect("moves");
    b.sync().expect("no fault");
    let disk = disk.power_cut(Fate::None);
    let set = super::oracle::open(&disk, Durability::Os).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    assert_eq!((a.len(), b.len()), (0, 70_002));
}

/// What moved away and was cleared is not counted out a second time when the next open looks for what moved.
#[test]
fn an_item_that_moved_from_a_queue_that_was_cleared_is_not_missed_twice() {
    let disk = SimDisk::new(10);
    let set = super::oracle::open(&disk, Durability::Sync).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    let _held = {
        a.put("held").expect("room");
        a.open().expect("there")
    };
    a.put("old").expect("room");
    a.open().expect("there").close_into(&b, "new").expect("moves");
    a.clear().expect("stored");
    a.put("next").expect("room");
    let set = super::oracle::open(&disk.power_cut(Fate::None), Durability::Sync).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    assert_eq!((a.len(), a.stats().bytes), (1, 4));
    assert_eq!((items(&a), items(&b)), (vec![b"next".to_vec()], vec![b"new".to_vec()]));
}

/// A queue that does not open leaves its moves unsettled. What tells of them must outlive a close in good order, and the
/// freeing of what the other queue has done with.
#[test]
fn what_could_not_be_settled_is_settled_by_a_later_open() {
    let disk = SimDisk::new(6);
    let set = super::oracle::open(&disk, Durability::Sync).expect("opens");
    let (a, b) = (set.queue("a").expect("opens"), set.queue("b").expect("opens"));
    for data in ["damaged", "old", "other"] {
        a.put(data).expect("room");
    }
    let _held = a.open().expect("there");
    a.open().expect("there").close_into(&b, vec![7; 50_000]).expect("moves");
    let disk = disk.power_cut(Fate::None);
    let is_of_a = |path: &&std::path::PathBuf| path.to_string_lossy().contains("/a/") && !path.ends_with("meta");
    let path = disk.list_files().iter().find(is_of_a).expect("a segment").clone();
    let mut bytes = disk.read_file(&path).expect("there");
    bytes[FRAMES_AT as usize + 4] ^= 0x40;
    disk.write_file(&path, &bytes);
    for _ in 0..2 {
        let set = super::oracle::open(&disk, Durability::Sync).expect("opens");
        assert!(set.queue("a").is_err(), "damaged");
        let b = set.queue("b").expect("opens");
        while b.try_get().expect("undamaged").is_some() {}
        // The first segment is spent.
        b.put(vec![8; 50_000]).expect("room");
        set.run_upkeep();
        drop(b);
        set.close().expect("closes");
    }
    let builder = QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options(Durability::Sync));
    let set = builder.on_damage(OnDamage::Salvage).open(DIR).expect("opens");
    assert_eq!(items(&set.queue("a").expect("salvaged")), [b"other"]);
    drop(set);
    assert!(!disk.list_files().iter().any(|path| path.ends_with("moves")), "settled");
}

/// Queues that come and go, each with its own move: the file of routes grew by all of them.
#[test]
fn routes_of_deleted_queues_are_not_kept_for_ever() {
    let disk = SimDisk::new(7);
    let set = super::oracle::open(&disk, Durability::Os).expect("opens");
    let b = set.queue("b").expect("opens");
    for n in 0..700 {
        let name = format!("{n:0200}");
        let a = set.queue(&name).expect("opens");
        a.put(b"x").expect("room");
        a.open().expect("there").close_into(&b, b"y").expect("moves");
        set.delete(&name).expect("goes");
    }
    let a = set.queue("a").expect("opens");
    a.put(b"x").expect("room");
    a.open().expect("there").close_into(&b, b"last").expect("moves");
    assert_eq!(disk.read_file(&Path::new(DIR).join("moves")).expect("there").len(), 1 << 16);
    // And what is there still tells of the last.
    let set = super::oracle::open(&disk.kill(), Durability::Os).expect("opens");
    assert_eq!((set.queue("a").expect("opens").len(), set.queue("b").expect("opens").len()), (0, 701));
}

/// No sync had covered the segment before it was cleared. The end of the set named it as the last one, and the queue did not
/// open after a power cut.
#[test]
fn what_is_cleared_and_kept_for_an_archive_outlives_a_close_and_a_power_cut() {
    let disk = SimDisk::new(9);
    let builder = || QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options(Durability::Os));
    let set = builder().archive(|_| Err(std::io::Error::other("not now"))).open(DIR).expect("opens");
    let queue = set.queue("q").expect("opens");
    queue.put("x").expect("room");
    queue.clear().expect("stored");
    drop(queue);
    set.close().expect("closes");
    let shown = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let book = std::sync::Arc::clone(&shown);
    let builder = QueueSet::builder().disk(Disk::Sim(disk.power_cut(Fate::None))).defaults(options(Durability::Os));
    let builder = builder.archive(move |segment| {
        book.lock().expect("no panic").extend(segment.items().flatten().map(|item| item.into_vec()));
        Ok(())
    });
    let set = builder.open(DIR).expect("opens");
    assert_eq!(set.queue("q").expect("opens").len(), 0);
    set.close().expect("closes");
    assert_eq!(*shown.lock().expect("no panic"), [b"x"]);
}

/// Who has passed all checks before the set was closed, and notes his move only then.
#[test]
fn nothing_is_noted_after_the_close() {
    let disk = SimDisk::new(8);
    let _set = super::oracle::open(&disk, Durability::Os).expect("opens");
    let moves = Moves::new(Disk::Sim(disk.clone()), Path::new(DIR), 1);
    let running = moves.begin("a", "b", 1, || true).expect("noted").expect("open");
    assert_eq!((moves.first_running("a", "b"), moves.first_running("b", "a")), (Some(1), None));
    assert!(!moves.close(), "a move is on its way");
    drop(running);
    assert!(moves.close());
    moves.forget().expect("removed");
    assert!(moves.begin("a", "b", 2, || true).expect("no fault").is_none());
    assert!(!disk.list_files().iter().any(|path| path.ends_with("moves")));
}
