//! The numbers that a set tells of itself, against a recount; on a simulated disk, whose files can be listed at any moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kestrel_core::testing::SimDisk;
use kestrel_core::{PutOptions, QueueOptions, QueueSet, QueueStats, SetStats};

const DIR: &str = "/set";
const NAMES: [&str; 4] = ["a", "b", "late", "short"];

fn open(disk: &SimDisk) -> QueueSet {
    let options = QueueOptions::default().segment_bytes(64 << 10);
    let builder = QueueSet::builder().simulated(disk).pool_bytes(256 << 10).defaults(options.clone());
    let aged = options.clone().max_queue_age(Duration::from_secs(5));
    builder.queue_options("a", options.expire_to("late")).queue_options("short", aged).open(DIR).expect("opens")
}

fn bytes_of(disk: &SimDisk, is_meant: impl Fn(&Path) -> bool) -> (u64, u64) {
    let files: Vec<PathBuf> = disk.list_files().into_iter().filter(|path| is_meant(path)).collect();
    let bytes = files.iter().filter_map(|path| disk.read_file(path)).map(|bytes| bytes.len() as u64).sum();
    (files.len() as u64, bytes)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| endings.contains(&ending))
}

/// What a process that finds the same disk can take, by queue: items and bytes, those that are held open here among them.
fn there(disk: &SimDisk) -> BTreeMap<String, (u64, u64)> {
    let set = open(&disk.kill());
    let count = |name: String| {
        let queue = set.queue(&name).expect("opens");
        let (mut items, mut bytes) = (0, 0);
        while let Some(item) = queue.try_open().expect("reads") {
            (items, bytes) = (items + 1, bytes + item.data().len() as u64);
            let _ = item.into_token();
        }
        (name, (items, bytes))
    };
    set.names().into_iter().map(count).collect()
}

fn recount(disk: &SimDisk, set: &QueueSet, held: &BTreeMap<&str, (u64, u64)>) {
    // Expired items count until they are met.
    set.discard_expired(usize::MAX).expect("sweeps");
    set.run_chores();
    let stats = set.stats();
    let there = there(disk);
    assert_eq!(there.keys().cloned().collect::<Vec<_>>(), set.names());
    let (mut items, mut bytes, mut holes) = (0, 0, 0);
    for name in set.names() {
        let own = set.queue(&name).expect("loaded").stats();
        let (held_items, held_bytes) = held.get(&*name).copied().unwrap_or_default();
        let (there_items, there_bytes) = there[&name];
        assert_eq!((own.items, own.bytes), (there_items - held_items, there_bytes - held_bytes), "{name}");
        assert_eq!((own.open_items, own.expiring_items), (held_items, 0), "{name}");
        let dir = PathBuf::from(DIR).join("queues").join(&name);
        let files = bytes_of(disk, |path| path.starts_with(&dir) && has_ending(path, &["seg", "new"]));
        // Less than the length of the files where holes were punched.
        assert!(
            own.segments == files.0 && own.log_size <= files.1 && own.log_size >= own.bytes,
            "{name}: {own:?}, {files:?}"
        );
        holes += files.1 - own.log_size;
        assert_eq!(own.waiters, 0);
        (items, bytes) = (items + own.items, bytes + own.bytes);
    }
    assert_eq!((stats.curr_items, stats.bytes), (items, bytes));
    assert_eq!((stats.queues, stats.open_queues), (there.len() as u64, there.len() as u64));
    assert_eq!((stats.pool_segments, stats.pool_bytes), bytes_of(disk, |path| has_ending(path, &["spare"])));
    assert_eq!(stats.disk_bytes + holes, bytes_of(disk, |path| has_ending(path, &["seg", "new", "spare"])).1);
}

/// The counters, in one order.
fn counters(stats: &SetStats, queues: &[QueueStats]) -> Vec<u64> {
    let mut all = vec![stats.queue_creates, stats.queue_deletes, stats.queue_expires];
    for own in queues {
        all.extend([own.total_items, own.put_bytes, own.get_hits, own.get_misses, own.expired_items, own.discarded]);
        all.extend([own.transactions, own.canceled_transactions, own.total_flushes, own.redelivered, own.syncs]);
        all.extend([own.damaged_items, own.leases_ended, own.dead_lettered]);
    }
    all
}

#[test]
fn s50_the_gauges_of_a_set_equal_a_recount_and_counters_never_fall() {
    let disk = SimDisk::new(1);
    let mut set = open(&disk);
    let mut x = 0x2545_F491_4F6C_DD1Du64;
    let mut dice = |sides: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % sides
    };
    let mut held = Vec::new();
    let mut before = Vec::new();
    for round in 0..600 {
        for name in NAMES {
            set.queue(name).expect("opens");
        }
        let name = NAMES[dice(4) as usize];
        let queue = set.queue(name).expect("opens");
        match dice(14) {
            0..=3 => drop(queue.put(vec![7; dice(20_000) as usize]).expect("room")),
            4 | 5 => {
                let options = PutOptions::new().expires_in(Duration::from_millis(dice(3_000)));
                queue.put_with(vec![8; 1 + dice(9_000) as usize], &options).expect("room");
            }
            6 => drop(set.alias("all", &["a", "b"]).expect("set").put(vec![9; 500]).expect("room")),
            // What expires while it is held is there for its holder alone.
            7 | 8 => {
                let opened = queue.try_open().expect("reads").filter(|item| item.data().first() != Some(&8));
                held.extend(opened.map(|item| (name, item)));
            }
            9 if !held.is_empty() => held.swap_remove(dice(held.len() as u64) as usize).1.close().expect("closes"),
            10 if !held.is_empty() => held.swap_remove(dice(held.len() as u64) as usize).1.abort(),
            11 => drop(queue.try_get().expect("reads")),
            12 => disk.advance_ms(dice(2_000)),
            13 => match dice(12) {
                0 => {
                    queue.clear().expect("stored");
                    held.retain(|(of, _)| *of != name);
                }
                1 => {
                    set.delete(name).expect("gone");
                    held.retain(|(of, _)| *of != name);
                }
                2 => {
                    held.clear();
                    drop(queue);
                    set.close().expect("closes");
                    set = open(&disk);
                    before.clear();
                    continue;
                }
                _ => {}
            },
            _ => {}
        }
        // One look lets upkeep begin, the next ones see through what it has begun.
        for _ in 0..3 {
            set.run_chores();
        }
        if round % 10 == 0 {
            for name in NAMES {
                set.queue(name).expect("opens");
            }
            let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for (name, item) in &held {
                let sum = sums.entry(*name).or_default();
                *sum = (sum.0 + 1, sum.1 + item.data().len() as u64);
            }
            recount(&disk, &set, &sums);
        }
        let stats = set.stats();
        let now = counters(&stats, &[set.queue("b").expect("opens").stats()][..usize::from(stats.queue_deletes == 0)]);
        assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} {now:?}");
        before = now;
    }
}
