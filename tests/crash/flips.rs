//! Damage, bit by bit: an error, a discarded end that was never promised, or the same result; never other data.

use std::path::{Path, PathBuf};

use super::oracle::{DIR, Verdict, key_of, open, payload};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::{Durability, OnDamage, OpenError, QueueSet};

const ITEMS: u64 = 12;

/// A queue with single items and a batch, some done, closed in good order or killed.
fn written(durability: Durability, clean: bool) -> SimDisk {
    let disk = SimDisk::new(5);
    let set = open(&disk, durability).expect("opens");
    let queue = set.queue("q").expect("opens");
    for key in 0..ITEMS - 3 {
        queue.put(payload(key, 100 + key as usize)).expect("room");
    }
    queue.put_batch((ITEMS - 3..ITEMS).map(|key| payload(key, 50))).expect("room");
    for _ in 0..2 {
        queue.try_get().expect("undamaged").expect("there");
    }
    if clean {
        set.close().expect("no fault");
        return disk;
    }
    let killed = disk.kill();
    drop(set);
    killed
}

/// Reads what is there, ends at the first error. `Err`: something that was never put, or out of order.
fn read(set: &QueueSet) -> Result<(Vec<u64>, bool), String> {
    let mut keys = Vec::new();
    let queue = match set.get_queue("q") {
        Ok(Some(queue)) => queue,
        Ok(None) => return Ok((keys, false)),
        Err(_) => return Ok((keys, true)),
    };
    loop {
        match queue.try_get() {
            Ok(Some(item)) => {
                let key = key_of(item.data()).ok_or("a payload that was never put")?;
                let size = if key < ITEMS - 3 { 100 + key as usize } else { 50 };
                if key >= ITEMS || item.data() != payload(key, size) {
                    return Err(format!("key {key} has other bytes"));
                }
                if keys.last().is_some_and(|last| *last >= key) {
                    return Err(format!("key {key} after {keys:?}"));
                }
                keys.push(key);
            }
            Ok(None) => return Ok((keys, false)),
            Err(_) => return Ok((keys, true)),
        }
    }
}

fn segment(disk: &SimDisk) -> PathBuf {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "seg" || ending == "new");
    disk.list_files().into_iter().find(|path| path.starts_with(DIR) && is_segment(path)).expect("one segment")
}

/// Opens the damaged disk and judges: every item that a `Sync` put was answered for is there, or an error was given.
fn judge(disk: &SimDisk, what: &dyn std::fmt::Display, durable: bool) -> Verdict {
    for salvage in [false, true] {
        let disk = disk.kill();
        let choice = if salvage { OnDamage::Salvage } else { OnDamage::Refuse };
        let set = QueueSet::builder().disk(Disk::Sim(disk.clone())).on_damage(choice).open(DIR);
        let Ok(set) = set else { continue };
        let (keys, error) = read(&set).map_err(|e| format!("{what}: {e}"))?;
        let missing: Vec<u64> = (2..ITEMS).filter(|key| !keys.contains(key)).collect();
        if salvage {
            continue;
        }
        if durable && !error && !missing.is_empty() {
            return Err(format!("{what}: items {missing:?} are gone without a word"));
        }
    }
    Ok(())
}

/// The payload of an early, synced item changes: opening or reading must tell.
pub(super) fn damage_is_told() -> Verdict {
    let disk = written(Durability::Sync, false);
    let path = segment(&disk);
    let mut bytes = disk.read_file(&path).expect("there");
    // The third item's payload: two are done.
    let at = 4096 + 128 + 128 + 30;
    bytes[at] ^= 1;
    disk.write_file(&path, &bytes);
    judge(&disk, &"a flipped bit in the third item", true)
}

fn sweep(durability: Durability, clean: bool, durable: bool) {
    let disk = written(durability, clean);
    let path = segment(&disk);
    let good = disk.read_file(&path).expect("there");
    let used = 4096 + 12 * 200;
    let interesting = (0..used).chain(good.len() - 520..good.len());
    let mut tried = 0u64;
    for byte in interesting {
        for bit in [0, 5] {
            let mut bytes = good.clone();
            bytes[byte] ^= 1 << bit;
            disk.write_file(&path, &bytes);
            // A mark that was done may wait again; a mark that waits must never be done.
            if let Err(violation) = judge(&disk, &format_args!("byte {byte} bit {bit}"), durable) {
                // The last items of a killed process have nothing behind them that proves them.
                panic!("{violation}");
            }
            tried += 1;
        }
    }
    println!("flips: {tried} of {durability:?}, clean {clean}: 0 wrong");
}

#[test]
fn k54_every_flipped_byte_of_a_clean_journal_is_told() {
    sweep(Durability::Sync, true, true);
}

#[test]
fn k54_every_flipped_byte_of_a_killed_journal_gives_no_wrong_item() {
    sweep(Durability::Sync, false, false);
    sweep(Durability::Os, false, false);
}

#[test]
fn l14_zeroed_and_swapped_sectors_give_no_wrong_item() {
    let disk = written(Durability::Sync, true);
    let path = segment(&disk);
    let good = disk.read_file(&path).expect("there");
    let sectors: Vec<usize> = (0..16).chain(good.len() / 512 - 2..good.len() / 512).collect();
    for &a in &sectors {
        let mut bytes = good.clone();
        bytes[a * 512..(a + 1) * 512].fill(0);
        disk.write_file(&path, &bytes);
        if let Err(violation) = judge(&disk, &format_args!("sector {a} zeroed"), true) {
            panic!("{violation}");
        }
        for &b in &sectors {
            let mut bytes = good.clone();
            let (x, y) = (good[a * 512..][..512].to_vec(), good[b * 512..][..512].to_vec());
            bytes[b * 512..][..512].copy_from_slice(&x);
            bytes[a * 512..][..512].copy_from_slice(&y);
            disk.write_file(&path, &bytes);
            if let Err(violation) = judge(&disk, &format_args!("sectors {a} and {b} swapped"), true) {
                panic!("{violation}");
            }
        }
    }
}

#[test]
fn k52_a_segment_cut_anywhere_gives_a_beginning_or_an_error() {
    for clean in [false, true] {
        let disk = written(Durability::Sync, clean);
        let path = segment(&disk);
        let good = disk.read_file(&path).expect("there");
        for len in (0..4096 + 12 * 200).step_by(13).chain([good.len() - 1, good.len() - 600]) {
            disk.write_file(&path, &good[..len]);
            if let Err(violation) = judge(&disk, &format_args!("cut at {len}"), clean) {
                panic!("{violation}");
            }
        }
    }
}

#[test]
fn k55_hostile_lengths_and_counts_are_errors_without_big_allocations() {
    for name in ["meta", "set"] {
        let disk = written(Durability::Sync, true);
        let path = disk.list_files().into_iter().find(|p| p.ends_with(name)).expect("there");
        let good = disk.read_file(&path).expect("there");
        for byte in (0..300).chain(4096..4396).chain(8188..8192) {
            let mut bytes = good.clone();
            bytes[byte] ^= 0xFF;
            disk.write_file(&path, &bytes);
            if let Err(violation) = judge(&disk, &format_args!("{name}, byte {byte}"), false) {
                panic!("{violation}");
            }
        }
        disk.write_file(&path, &[0xFF; 8192]);
        let set = open(&disk, Durability::Sync);
        match (name, set) {
            ("set", Err(OpenError::Corrupt { .. })) => {}
            ("meta", Ok(set)) => assert!(matches!(set.queue("q"), Err(OpenError::Corrupt { .. }))),
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn f26_salvage_loses_exactly_the_damaged_items_and_names_them() {
    let disk = written(Durability::Sync, true);
    let path = segment(&disk);
    let mut bytes = disk.read_file(&path).expect("there");
    // Damage in the payloads of items 4 and 5 (each frame of the first ten is 24 + 100.. bytes, rounded to 8).
    let frame = |n: u64| -> usize { 4096 + (0..n).map(|k| (24 + 100 + k as usize).next_multiple_of(8)).sum::<usize>() };
    bytes[frame(4) + 40] ^= 1;
    bytes[frame(5) + 40] ^= 1;
    disk.write_file(&path, &bytes);
    let set = QueueSet::builder()
        .disk(Disk::Sim(disk.kill()))
        .on_damage(OnDamage::Salvage)
        .open(Path::new(DIR))
        .expect("opens");
    let queue = set.queue("q").expect("salvaged");
    let (keys, error) = read(&set).expect("no wrong item");
    assert!(!error);
    assert_eq!(keys, (2..ITEMS).filter(|key| *key != 4 && *key != 5).collect::<Vec<_>>());
    assert_eq!(queue.stats().damaged_items + queue.recovery().lost.len() as u64, 2);
    assert!(queue.is_empty());
}
