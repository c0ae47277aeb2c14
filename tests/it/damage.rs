//! Damage on the real disk: foreign, missing, cut and later files. The bit-by-bit sweeps run on the simulated disk.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use kestrel_core::{GetError, OnDamage, OpenError, QueueSet};

use crate::common::{World, fast, segments, until, world, world_with};

/// A queue of a dozen segments, some items taken, closed in good order.
fn written() -> World {
    let w = world_with(fast().segment_bytes(64 << 10));
    let q = w.queue("q");
    for n in 0..120u32 {
        q.put([n.to_le_bytes().to_vec(), vec![n as u8; 6_000]].concat()).expect("room");
    }
    q.get().expect("there");
    drop(q);
    let w = w.reopen();
    w.set.clone().close().expect("closes");
    w
}

fn open(w: &World, choice: OnDamage) -> Result<QueueSet, OpenError> {
    QueueSet::builder().defaults(fast().segment_bytes(64 << 10)).on_damage(choice).open(w.path())
}

fn numbers(set: &QueueSet) -> Vec<u32> {
    let q = set.queue("q").expect("salvaged");
    let mut all = Vec::new();
    while let Some(item) = q.try_get().expect("what is left is good") {
        all.push(u32::from_le_bytes(item.data()[..4].try_into().expect("four")));
    }
    all
}

#[test]
fn f27_k57_a_missing_segment_is_named_and_its_ids_are_told() {
    let w = written();
    let all = segments(w.path(), "q");
    assert!(all.len() > 5);
    std::fs::remove_file(&all[3]).expect("removed");
    let refused = open(&w, OnDamage::Refuse).expect("opens").queue("q").map(|_| ());
    assert!(matches!(refused, Err(OpenError::MissingSegment { segment: 4, .. })), "{refused:?}");
    let set = open(&w, OnDamage::Salvage).expect("opens");
    let report = set.queue("q").expect("salvaged").recovery();
    let left = numbers(&set);
    let gone: Vec<u32> = (1..120).filter(|n| !left.contains(n)).collect();
    assert_eq!(report.lost.len(), 1);
    // Ids begin with 1, numbers with 0.
    assert_eq!(
        (report.lost[0].first.get() - 1, report.lost[0].last.get() - 1),
        (u64::from(gone[0]), u64::from(gone[gone.len() - 1]))
    );
    assert!(gone.windows(2).all(|pair| pair[0] + 1 == pair[1]));
}

#[test]
fn f28_f29_a_segment_of_another_number_queue_or_set_is_foreign() {
    let w = written();
    let all = segments(w.path(), "q");
    let last =
        u64::from_str_radix(all[all.len() - 1].file_stem().expect("a stem").to_str().expect("utf-8"), 16).expect("hex");
    std::fs::copy(&all[2], all[0].with_file_name(format!("{:016x}.seg", last + 1))).expect("copied");
    let answer = open(&w, OnDamage::Refuse).expect("opens").queue("q").map(|_| ());
    assert!(matches!(answer, Err(OpenError::ForeignSegment { .. })), "{answer:?}");

    let (w, other) = (written(), written());
    let (ours, theirs) = (segments(w.path(), "q"), segments(other.path(), "q"));
    std::fs::copy(&theirs[2], &ours[2]).expect("copied");
    let answer = open(&w, OnDamage::Refuse).expect("opens").queue("q").map(|_| ());
    assert!(matches!(answer, Err(OpenError::ForeignSegment { segment: 3, .. })), "{answer:?}");
}

#[test]
fn f31_a_later_version_is_refused_and_left_alone() {
    for file in ["set", "queues/q/meta"] {
        let w = written();
        let path = w.path().join(file);
        let mut bytes = std::fs::read(&path).expect("readable");
        for slot in [0, 4096] {
            bytes[slot + 8] = 9;
            let sum = crc32fast::hash(&bytes[slot..slot + 4092]);
            bytes[slot + 4092..slot + 4096].copy_from_slice(&sum.to_le_bytes());
        }
        std::fs::write(&path, &bytes).expect("written");
        let answer = open(&w, OnDamage::Salvage).and_then(|set| set.queue("q").map(|_| ()));
        assert!(matches!(answer, Err(OpenError::UnsupportedVersion { found: 9, supported: 1, .. })), "{answer:?}");
        assert_eq!(std::fs::read(&path).expect("readable"), bytes);
    }
}

#[test]
fn f32_a_huge_sparse_file_as_a_segment_is_an_error_at_once() {
    let w = written();
    let path = segments(w.path(), "q").remove(0).with_file_name("00000000000000ff.seg");
    let file = std::fs::File::create(&path).expect("made");
    if file.set_len(1 << 40).is_err() {
        return;
    }
    let answer = open(&w, OnDamage::Refuse).expect("opens").queue("q").map(|_| ());
    assert!(answer.is_err(), "{answer:?}");
}

#[test]
fn f26_damage_in_a_sealed_segment_is_told_when_it_is_read() {
    let w = written();
    let path = segments(w.path(), "q").remove(4);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[4096 + 3_000] ^= 0x10;
    std::fs::write(&path, &bytes).expect("written");
    {
        let set = open(&w, OnDamage::Refuse).expect("opens");
        let q = set.queue("q").expect("sealed segments are not scanned");
        let mut read = 0;
        let error = loop {
            match q.try_get() {
                Ok(Some(_)) => read += 1,
                Ok(None) => panic!("nothing was told"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, GetError::Corrupt { segment: 5, offset: 4096, .. }), "{error:?}");
        assert!(read > 10);
        assert!(q.try_get().is_err(), "it stays at the head");
    }
    let set = open(&w, OnDamage::Salvage).expect("opens");
    let left = numbers(&set);
    assert_eq!(left.last(), Some(&119));
    assert_eq!(set.queue("q").expect("open").stats().damaged_items, 1);
}

#[test]
fn f30_a_file_truncated_under_a_running_queue_is_an_error() {
    let w = world_with(fast());
    let q = w.queue("q");
    q.put("x").expect("room");
    let path = w.segments("q").remove(0);
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.set_len(0).expect("cut");
    // Looked at once per tick of a coarse clock.
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(matches!(q.try_get(), Err(GetError::Io { segment: 1, .. })));
    assert!(q.put("y").is_err());
    file.set_len(65_536).expect("restored, so that the close finds a file");
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let w = written();
    let strange = ["queues/q/notes.txt", "queues/q/0000000000000001.bak", "queues/README", "pool/x", "hello"];
    for name in strange {
        std::fs::write(w.path().join(name), "mine").expect("written");
    }
    std::fs::create_dir(w.path().join("queues/Not Ours")).expect("made");
    let set = open(&w, OnDamage::Refuse).expect("opens");
    assert_eq!(set.names(), ["q"]);
    assert_eq!(numbers(&set).len(), 119);
    set.close().expect("closes");
    for name in strange {
        assert_eq!(std::fs::read(w.path().join(name)).expect("there"), b"mine");
    }
}

#[test]
fn golden_a_journal_of_format_version_1_still_opens() {
    let dir = tempfile::tempdir().expect("a directory");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    crate::common::copy_dir(&golden, dir.path()).expect("copied");
    let set = QueueSet::builder().defaults(fast()).open(dir.path()).expect("opens");
    assert_eq!(set.names(), ["Names & más", "jobs"]);
    let jobs = set.queue("jobs").expect("opens");
    assert_eq!((jobs.len(), jobs.recovery().redelivered), (5, 0));
    let first = jobs.get().expect("there");
    assert_eq!((first.id().get(), first.data(), first.attempts()), (2, &b"two"[..], 2));
    let flagged = jobs.get().expect("there");
    assert_eq!((flagged.id().get(), flagged.flags()), (3, 7));
    let rest: Vec<String> = jobs
        .try_iter()
        .map(|item| {
            let item = item.expect("undamaged");
            let data = crate::common::text(item.data());
            item.close().expect("marked");
            data
        })
        .collect();
    assert_eq!(rest, ["batch a", "batch b", "six"]);
    assert!(jobs.put("new").expect("room").get() > 6);
    assert_eq!(set.queue("Names & más").expect("opens").get().expect("there").data(), [0; 5000]);
}

/// Writes the files that the test above reads. Run once per format version, never again:
/// `KESTREL_GOLDEN=<empty directory> cargo test --test it golden_write`
#[test]
fn golden_write() {
    let Some(dir) = std::env::var_os("KESTREL_GOLDEN") else {
        return;
    };
    let set = QueueSet::builder().defaults(fast().segment_bytes(64 << 10)).open(&dir).expect("opens");
    let jobs = set.queue("jobs").expect("opens");
    jobs.put("one").expect("room");
    jobs.put("two").expect("room");
    jobs.put_with("three", &kestrel_core::PutOptions::new().flags(7)).expect("room");
    jobs.put_batch(["batch a", "batch b"]).expect("room");
    jobs.put("six").expect("room");
    jobs.get().expect("one");
    jobs.open().expect("two").abort();
    set.queue("Names & más").expect("opens").put([0; 5000]).expect("room");
    drop(jobs);
    set.close().expect("closes");
}

#[test]
fn a_waiter_that_met_a_damaged_item_leaves_the_line_for_good() {
    let w = world_with(fast());
    w.queue("q").put(vec![7; 1_000]).expect("room");
    w.set.clone().close().expect("closes");
    let path = segments(w.path(), "q").remove(0);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[4096 + 500] ^= 0x10;
    std::fs::write(&path, &bytes).expect("written");
    let set = open(&w, OnDamage::Salvage).expect("opens");
    let q = set.queue("q").expect("sealed segments are not scanned");
    q.pause();
    let waiter = {
        let q = q.clone();
        std::thread::spawn(move || q.get_timeout(Duration::from_millis(300)).expect("salvaged").is_none())
    };
    until("it waits", || q.stats().waiters == 1);
    q.resume();
    assert!(waiter.join().expect("no panic"));
    assert_eq!((q.stats().damaged_items, q.stats().waiters), (1, 0));
    q.put("next").expect("room");
    assert!(q.try_get().expect("undamaged").is_some());
}

#[test]
fn a_queue_that_does_not_open_counts_no_bytes_however_often_it_is_tried() {
    let w = written();
    std::fs::remove_file(&segments(w.path(), "q")[3]).expect("removed");
    let set = open(&w, OnDamage::Refuse).expect("opens");
    for _ in 0..3 {
        assert!(set.queue("q").is_err());
        assert_eq!(set.stats().disk_bytes, set.stats().pool_bytes);
    }
}

#[test]
fn a_damaged_item_that_was_cleared_while_it_was_read_does_not_come_back() {
    let options = || fast().max_item_size(64 << 20).segment_bytes(128 << 20);
    let w = world_with(options());
    w.queue("q").put(vec![7; 60 << 20]).expect("room");
    w.set.clone().close().expect("closes");
    let path = segments(w.path(), "q").remove(0);
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.write_all_at(&[0x17], 10_000).expect("written");
    let set = QueueSet::builder().defaults(options()).open(w.path()).expect("opens");
    let q = set.queue("q").expect("sealed segments are not scanned");
    let get = {
        let q = q.clone();
        std::thread::spawn(move || q.try_get().map(|item| item.is_some()))
    };
    until("it is taken", || q.is_empty());
    q.clear().expect("stored");
    assert!(matches!(get.join().expect("no panic"), Err(GetError::Corrupt { .. })));
    assert_eq!(q.len(), 0);
    assert!(q.try_get().expect("nothing waits").is_none());
}

/// The header is stored in one slot and then in the other, so that an interrupted write leaves one of them.
#[test]
fn either_slot_of_a_header_opens_the_queue_without_the_other() {
    let w = world();
    let q = w.queue("q");
    for items in 1..4 {
        q.set_options(q.options().max_items(items)).expect("stored");
    }
    q.put("a").expect("room");
    drop(q);
    let slot = 4096;
    for damaged in [0, slot] {
        let copy = w.copied();
        let path = copy.path().join("queues/q/meta");
        let mut bytes = std::fs::read(&path).expect("there");
        bytes[damaged..damaged + slot].fill(0);
        std::fs::write(&path, bytes).expect("stored");
        let set = QueueSet::open(copy.path()).expect("opens");
        assert_eq!(set.queue("q").expect("the other slot").len(), 1, "without the slot at {damaged}");
    }
}
