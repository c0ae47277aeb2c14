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
