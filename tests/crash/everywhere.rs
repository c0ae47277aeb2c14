//! Crash at every step of small workloads, under every fate, also inside recovery; errors at every step; then long random
//! workloads.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::oracle::{Cut, Ledger, Run, SYNC, Setting, Stop, Verdict, judge, open_with};
use super::rules::Rules;
use crate::Durability;
use crate::disk::sim::{Call, Fate, Op, SimDisk, SyncFailure, When};
use crate::planted::{Bug, with};

/// One workload.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) setting: Setting,
    pub(super) work: fn(&mut Run, u64) -> Result<(), Stop>,
}

const OS: Setting = SYNC.with(Durability::Os);
const EVERY: Setting = SYNC.with(Durability::Every(Duration::from_millis(100)));
/// Most items are read behind the ring.
const SMALL: Setting = Setting { memory_bytes: 64, ..SYNC };
const EXPIRING: Setting = Setting { expire_to_b: true, ..SYNC };
/// Fewer than there are queues.
const FEW: Setting = Setting { open_files: 4, ..SYNC };
const POSITIONAL: Setting = Setting { may_map: false, ..SYNC };
const PADDED: Setting = Setting { pad_to: Some(512), ..SYNC };
const PADDED_OS: Setting = Setting { durability: Durability::Os, ..PADDED };

const fn workload(name: &'static str, setting: Setting, work: fn(&mut Run, u64) -> Result<(), Stop>) -> Workload {
    Workload { name, setting, work }
}

pub(super) const WORKLOADS: &[Workload] = &[
    workload("single puts", SYNC, single_puts),
    workload("single puts, positional", POSITIONAL, single_puts),
    workload("single puts, os", OS, single_puts),
    workload("batches", SYNC, batches),
    workload("batches, os", OS, batches),
    workload("open and end", SYNC, open_and_end),
    workload("open and end, os", OS, open_and_end),
    workload("rolls", SYNC, rolls),
    workload("rolls, os", OS, rolls),
    workload("rolls, every", EVERY, rolls),
    workload("rolls, positional", POSITIONAL, rolls),
    workload("recycle", SYNC, recycle),
    workload("recycle, os", OS, recycle),
    workload("recycle, synced marks", OS, recycle_synced),
    workload("recycle, without a pool", Setting { pool_bytes: 0, ..SYNC }, recycle),
    workload("clear", SYNC, clear),
    workload("clear, os", OS, clear),
    workload("clear and synced", OS, clear_synced),
    workload("delete", SYNC, delete),
    workload("delete, os", OS, delete),
    workload("delete a long name", SYNC, long_name),
    workload("two queues", SYNC, two_queues),
    workload("few files", FEW, few_files),
    workload("few files, os", Setting { durability: Durability::Os, ..FEW }, few_files),
    workload("append", SYNC, append),
    workload("middle freed", SYNC, middle_freed),
    workload("many lanes", SYNC, many_lanes),
    workload("many lanes, os", OS, many_lanes),
    workload("thin out", SYNC, thin_out),
    workload("thin out, os", OS, thin_out),
    workload("left behind", SYNC, left_behind),
    workload("left behind, os", OS, left_behind),
    workload("left behind, every", EVERY, left_behind),
    workload("own durability", SYNC, own_durability),
    workload("own durability, os", OS, own_durability),
    workload("time", SYNC, time),
    workload("time, every", EVERY, time),
    workload("read behind", SMALL, read_behind),
    workload("drop oldest", Setting { max_items: Some(3), ..SYNC }, drop_oldest),
    workload("drop oldest, os", Setting { max_items: Some(3), ..OS }, drop_oldest),
    workload("expiry", SYNC, expiry),
    workload("options", SYNC, options),
    workload("orderly lives", SYNC, orderly_lives),
    workload("orderly lives, os", OS, orderly_lives),
    workload("short lives", SYNC, short_lives),
    workload("short lives, os", OS, short_lives),
    workload("short lives, every", EVERY, short_lives),
    workload("power cuts", SYNC, power_cuts),
    workload("power cuts, os", OS, power_cuts),
    workload("cut and roll", OS, cut_and_roll),
    workload("torn off, os", OS, torn_off),
    workload("moves", SYNC, moves),
    workload("moves, os", OS, moves),
    workload("moves, every", EVERY, moves),
    workload("moves within", SYNC, moves_within),
    workload("moves within, os", OS, moves_within),
    workload("moves and lives", SYNC, moves_and_lives),
    workload("moves and lives, os", OS, moves_and_lives),
    workload("moves expire_to", EXPIRING, moves_expire_to),
    workload("moves expire_to, os", Setting { durability: Durability::Os, ..EXPIRING }, moves_expire_to),
    workload("moves expire_to, read behind", Setting { memory_bytes: 64, ..EXPIRING }, moves_expire_to),
    workload("moves expire_to and lives", EXPIRING, moves_expire_to_and_lives),
    workload(
        "moves expire_to and lives, os",
        Setting { durability: Durability::Os, ..EXPIRING },
        moves_expire_to_and_lives,
    ),
    workload("sectors", PADDED, sectors),
    workload("sectors, os", PADDED_OS, sectors),
    workload("sectors, positional", Setting { may_map: false, ..PADDED }, sectors),
    workload("sectors of 4096", Setting { pad_to: Some(4096), ..SYNC }, sectors),
    workload("short lives, padded", PADDED, short_lives),
    workload("power cuts, padded", PADDED, power_cuts),
    workload("many lanes, padded", PADDED, many_lanes),
    workload("delays", SYNC, delays),
    workload("delays, os", OS, delays),
    workload("delays, every", EVERY, delays),
    workload("delays, given back", SYNC, delays_given_back),
    workload("delays, given back, os", OS, delays_given_back),
    workload("delays and lives", SYNC, delays_and_lives),
    workload("delays and lives, os", OS, delays_and_lives),
    workload("delays and expire_to", EXPIRING, delays_and_expiry),
    workload("delays and expire_to, os", Setting { durability: Durability::Os, ..EXPIRING }, delays_and_expiry),
];

fn single_puts(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [8, 100, 5000, 64] {
        run.put("q", size)?;
    }
    Ok(())
}

fn batches(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 50)?;
    run.batch("q", &[3000, 3000, 3000])?;
    run.batch("q", &[10, 10])?;
    run.put("q", 10)
}

fn open_and_end(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..5 {
        run.put("q", 40)?;
    }
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.extend(run.open("q")?);
    }
    if let [first, second, _, fourth] = keys[..] {
        run.close(second)?;
        run.abort(first);
        run.close(fourth)?;
    }
    run.sync("q")?;
    run.open("q")?;
    run.get("q")?;
    run.put("q", 40)
}

fn move_next(run: &mut Run, from: &'static str, into: &'static str, size: usize) -> Result<(), Stop> {
    match run.open(from)? {
        Some(key) => run.close_into(key, into, size),
        None => Ok(()),
    }
}

/// Items move from one queue to another, whose segments are freed in between.
fn moves(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..5 {
        run.put("a", 40)?;
    }
    move_next(run, "a", "b", 30_000)?;
    move_next(run, "a", "b", 30_000)?;
    run.drain("b", 2)?;
    let held = run.open("a")?;
    run.put("b", 30_000)?;
    run.upkeep()?;
    if let Some(held) = held {
        run.close_into(held, "b", 10)?;
    }
    run.drain("b", 1)?;
    move_next(run, "b", "a", 20)?;
    run.upkeep()
}

/// Items take each other's place in one queue.
fn moves_within(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 25_000)?;
    run.put("q", 30)?;
    for size in [25_000, 40, 25_000, 25_000] {
        move_next(run, "q", "q", size)?;
        run.upkeep()?;
    }
    run.sync("q")?;
    move_next(run, "q", "q", 10)?;
    run.drain("q", 1)
}

/// Each process finds what the last one was moving.
fn moves_and_lives(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..4 {
        run.put("a", 100)?;
    }
    move_next(run, "a", "b", 50)?;
    run.die()?;
    move_next(run, "a", "b", 40_000)?;
    run.reopen()?;
    run.drain("b", 1)?;
    move_next(run, "a", "b", 40_000)?;
    run.die()?;
    run.drain("b", 2)?;
    run.upkeep()?;
    run.delete("b")?;
    move_next(run, "a", "b", 10)
}

/// Expired items move by the sweep, over several segments of both queues, which are freed behind them.
fn moves_expire_to(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("b", 20)?;
    run.drain("b", 1)?;
    for size in [40, 25_000, 25_000] {
        run.put_expiring("a", size, 10)?;
    }
    run.put("a", 40)?;
    run.put_expiring("a", 25_000, 10)?;
    run.upkeep()?;
    run.pass(1001);
    run.upkeep()?;
    run.drain("b", 2)?;
    run.put_expiring("a", 40, 10)?;
    run.upkeep()?;
    run.pass(1001);
    run.upkeep()?;
    run.drain("a", 1)?;
    run.drain("b", 1)?;
    run.upkeep()
}

/// Each process finds what expired in the last one, or was on its way.
fn moves_expire_to_and_lives(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("b", 20)?;
    run.drain("b", 1)?;
    for round in 0..3 {
        run.put_expiring("a", 100, 10)?;
        run.put_expiring("a", 30_000, 10)?;
        run.put("a", 30)?;
        run.pass(11);
        if round == 1 {
            run.reopen()?
        } else {
            run.die()?
        }
        run.drain("a", 1)?;
        run.upkeep()?;
        run.pass(1001);
        run.upkeep()?;
        run.drain("b", 1)?;
    }
    run.put("a", 30)
}

/// Delayed items wait in their segments while others come, go, and free what is around them.
fn delays(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put_delayed("q", 40, 300, None)?;
    run.put("q", 30)?;
    run.put_delayed("q", 25_000, 100, None)?;
    run.put_delayed("q", 50, 200, Some(150))?;
    run.drain("q", 2)?;
    run.put("q", 25_000)?;
    run.put_delayed("q", 25_000, 1500, None)?;
    run.pass(100);
    run.drain("q", 1)?;
    run.put("q", 30_000)?;
    run.upkeep()?;
    run.pass(1001);
    run.upkeep()?;
    run.put("q", 20)?;
    run.drain("q", 3)?;
    run.sync("q")?;
    run.put_delayed("q", 10, 50, None)?;
    run.upkeep()
}

/// Items come back for later, also delayed ones.
fn delays_given_back(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [40, 25_000, 25_000] {
        run.put("q", size)?;
    }
    run.put_delayed("q", 60, 20, None)?;
    for ms in [500, 10] {
        if let Some(key) = run.open("q")? {
            run.abort_after(key, ms);
        }
    }
    run.drain("q", 2)?;
    run.pass(20);
    run.upkeep()?;
    if let Some(key) = run.open("q")? {
        run.abort_after(key, 2000);
    }
    run.drain("q", 1)?;
    run.put("q", 25_000)?;
    run.pass(1001);
    run.upkeep()?;
    run.drain("q", 1)?;
    run.put("q", 10)
}

/// Each process finds what an earlier one has deferred: as long as it was, or no more where it was only given back for later.
fn delays_and_lives(run: &mut Run, _: u64) -> Result<(), Stop> {
    for round in 0..3 {
        run.put_delayed("q", 100, 1000, None)?;
        run.put_delayed("q", 30_000, 30, None)?;
        run.put("q", 30)?;
        if let Some(key) = run.open("q")? {
            run.abort_after(key, 100_000);
        }
        run.open("q")?;
        if round == 1 {
            run.reopen()?
        } else {
            run.die()?
        }
        run.drain("q", 1)?;
        run.pass(30);
        run.open("q")?;
        run.upkeep()?;
        run.drain("q", 1)?;
    }
    run.die()?;
    run.pass(1000);
    run.drain("q", 2)?;
    run.put("q", 30)
}

/// Items expire before their delay ends, and behind it.
fn delays_and_expiry(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("b", 20)?;
    run.drain("b", 1)?;
    run.put_delayed("a", 40, 500, Some(10))?;
    run.put_delayed("a", 25_000, 100, Some(1500))?;
    run.put_delayed("a", 25_000, 2000, None)?;
    run.put("a", 30)?;
    run.upkeep()?;
    run.pass(100);
    if let Some(key) = run.open("a")? {
        run.abort_after(key, 300);
    }
    run.pass(1001);
    run.upkeep()?;
    run.drain("a", 1)?;
    run.die()?;
    run.drain("a", 1)?;
    run.pass(1001);
    run.upkeep()?;
    run.pass(1001);
    run.upkeep()?;
    run.drain("b", 1)?;
    run.drain("a", 1)?;
    run.upkeep()
}

fn rolls(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..4 {
        run.put("q", 25_000)?;
    }
    run.drain("q", 1)?;
    run.put("q", 70_000)?;
    run.drain("q", 1)
}

/// Puts alone: frames that end anywhere in a sector, at its end, and too close to it for another one.
fn sectors(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [8, 200, 488 - 24, 488, 472, 8] {
        run.put("q", size)?;
    }
    run.batch("q", &[100, 700, 8])?;
    run.append("q", 30)?;
    run.put("q", 40)?;
    for size in [25_000, 20_000, 20_000, 8] {
        run.put("q", size)?;
    }
    run.sync("q")?;
    run.put("q", 8)
}

fn recycle(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..6 {
        run.put("q", 22_000)?;
        run.put("q", 22_000)?;
        run.drain("q", 2)?;
        run.upkeep()?;
    }
    run.put("q", 10)
}

/// Marks reach the device before the file is used again, so that a power cut can bring them back under new frames.
fn recycle_synced(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..2 {
        run.put("q", 22_000)?;
        run.put("q", 22_000)?;
        run.drain("q", 2)?;
        run.sync("q")?;
    }
    run.put("q", 22_000)?;
    run.upkeep()?;
    for _ in 0..4 {
        run.put("q", 22_000)?;
    }
    Ok(())
}

fn clear(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..3 {
        run.put("q", 25_000)?;
    }
    let held = run.open("q")?;
    run.clear("q")?;
    run.put("q", 20)?;
    if let Some(held) = held {
        run.abort(held);
    }
    run.upkeep()?;
    run.put("q", 20)
}

/// What comes after a clear is durable, and what was cleared is not.
fn clear_synced(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..3 {
        run.put("q", 25_000)?;
    }
    run.clear("q")?;
    run.put("q", 30)?;
    run.sync("q")?;
    run.clear("q")?;
    run.clear("q")?;
    run.put("q", 25_000)?;
    run.put("q", 25_000)?;
    run.put("q", 25_000)?;
    run.sync("q")
}

fn delete(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 100)?;
    run.put("q", 100)?;
    run.delete("q")?;
    run.put("q", 30)?;
    run.put("q", 30)
}

const LONG: &str = "ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄ";

/// Its directory lies in another one.
fn long_name(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put(LONG, 100)?;
    run.delete(LONG)?;
    run.put(LONG, 30)
}

fn two_queues(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("a", 30_000)?;
    run.put("b", 30_000)?;
    run.put("a", 30_000)?;
    run.drain("a", 2)?;
    run.put("a", 30_000)?;
    run.upkeep()?;
    run.put("b", 30_000)?;
    run.put("b", 30_000)
}

/// More queues than files that may be open: their segments are closed, the last ones too, and opened again to be put to and read.
fn few_files(run: &mut Run, _: u64) -> Result<(), Stop> {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    // The next frame, a checkpoint, ends with a sector.
    for name in NAMES {
        run.put(name, 464)?;
    }
    for _ in 0..3 {
        run.pass(1001);
        run.upkeep()?;
    }
    for name in NAMES {
        run.append(name, 700)?;
    }
    for name in NAMES {
        run.put(name, 30_000)?;
        run.put(name, 30_000)?;
    }
    run.drain("b", 3)?;
    run.open("a")?;
    for name in NAMES {
        run.get(name)?;
        run.put(name, 40)?;
    }
    run.upkeep()
}

fn append(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.append("q", 100)?;
    run.append("q", 5000)?;
    run.sync("q")?;
    run.append("q", 100)?;
    run.upkeep()?;
    run.put("q", 10)
}

/// One item stays open at the beginning, so that segments are freed behind it.
fn middle_freed(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 25_000)?;
    run.open("q")?;
    for _ in 0..6 {
        run.put("q", 25_000)?;
    }
    run.drain("q", 4)?;
    run.upkeep()?;
    run.put("q", 25_000)
}

/// One item is held while everything around it is done, and its segment is given back to a few pages; later it is whole again.
fn thin_out(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 5000)?;
    let held = run.open("q")?;
    for _ in 0..8 {
        run.put("q", 7000)?;
    }
    run.drain("q", 8)?;
    for _ in 0..3 {
        run.pass(1001);
        run.upkeep()?;
    }
    run.put("q", 7000)?;
    run.pass(1001);
    run.upkeep()?;
    if let Some(held) = held {
        run.abort(held);
    }
    run.drain("q", 2)?;
    run.pass(1001);
    run.upkeep()?;
    run.put("q", 40_000)?;
    run.put("q", 40_000)
}

/// The first item of each segment is held, and reading goes on: what it leaves behind is thinned out before anything of it was
/// synced, but for one segment that a sync has reached two thirds of.
fn left_behind(run: &mut Run, _: u64) -> Result<(), Stop> {
    let mut held = Vec::new();
    for segment in 0..9 {
        run.put("q", 18_000)?;
        held.extend(run.open("q")?);
        run.put("q", 18_000)?;
        if segment == 1 {
            run.sync("q")?;
        }
        run.drain("q", 1)?;
        run.put("q", 18_000)?;
        run.drain("q", 1)?;
        run.upkeep()?;
    }
    if let Some(key) = held.pop() {
        run.close(key)?;
    }
    for key in held {
        run.abort(key);
    }
    run.drain("q", 3)?;
    run.sync("q")?;
    run.drain("q", 3)
}

/// More items than one block of lanes holds, with marks in both blocks.
fn many_lanes(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.batch("q", &[8; 500])?;
    run.put("q", 8)?;
    run.batch("q", &[8; 6])?;
    let mut keys = Vec::new();
    for _ in 0..506 {
        keys.extend(run.open("q")?);
    }
    for key in [0, 499, 503, 504, 505].into_iter().filter_map(|i| keys.get(i)) {
        run.close(*key)?;
    }
    run.sync("q")
}

fn own_durability(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put_durably("q", 100, Durability::Os)?;
    run.put_durably("q", 100, Durability::Os)?;
    run.put_durably("q", 50, Durability::Sync)?;
    run.put_durably("q", 5000, Durability::Os)?;
    run.drain("q", 1)?;
    run.put_durably("q", 50, Durability::Sync)?;
    run.put_durably("q", 10, Durability::Os)
}

/// The chores keep what is promised about time; a quiet queue proves its tail.
fn time(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..3 {
        run.put("q", 3000)?;
        run.upkeep()?;
        run.pass(60);
        run.upkeep()?;
    }
    run.drain("q", 1)?;
    run.upkeep()?;
    run.pass(1000);
    run.upkeep()?;
    run.pass(1000);
    run.upkeep()?;
    run.put("q", 10)?;
    run.drain("q", 1)?;
    for _ in 0..3 {
        run.pass(1001);
        run.upkeep()?;
    }
    Ok(())
}

fn read_behind(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [30, 25_000, 30, 25_000, 30, 25_000] {
        run.put("q", size)?;
    }
    let held = run.open("q")?;
    run.drain("q", 2)?;
    if let Some(held) = held {
        run.abort(held);
    }
    run.upkeep()?;
    run.drain("q", 1)?;
    run.put("q", 30)
}

fn drop_oldest(run: &mut Run, _: u64) -> Result<(), Stop> {
    for _ in 0..7 {
        run.put("q", 20_000)?;
    }
    run.upkeep()?;
    run.batch("q", &[10, 10])
}

fn expiry(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put_expiring("q", 50, 10)?;
    run.put("q", 50)?;
    run.put_expiring("q", 50, 10)?;
    run.pass(11);
    run.drain("q", 1)?;
    run.put_expiring("q", 50, 10)?;
    run.pass(1001);
    run.upkeep()?;
    run.pass(1001);
    run.upkeep()?;
    run.put("q", 50)
}

fn options(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 100)?;
    let options = super::oracle::options(Durability::Sync);
    run.set_options("q", options.clone().max_item_size(6000))?;
    run.put("q", 5000)?;
    run.set_options("q", options.max_age(Duration::from_secs(3600)))?;
    run.reopen()?;
    run.put("q", 100)
}

fn orderly_lives(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [100, 25_000, 40_000] {
        run.put("q", size)?;
        run.put("q", size)?;
        run.open("q")?;
        run.drain("q", 1)?;
        run.reopen()?;
    }
    run.drain("q", 2)?;
    run.reopen()?;
    run.reopen()?;
    run.put("q", 10)
}

fn short_lives(run: &mut Run, _: u64) -> Result<(), Stop> {
    for size in [100, 25_000, 40_000] {
        run.put("q", size)?;
        run.append("q", size)?;
        run.open("q")?;
        run.drain("q", 1)?;
        run.die()?;
    }
    run.drain("q", 2)?;
    run.die()?;
    run.put("q", 10)?;
    run.reopen()?;
    run.upkeep()?;
    run.die()?;
    run.put("q", 10)
}

fn power_cuts(run: &mut Run, _: u64) -> Result<(), Stop> {
    for (i, fate) in [Fate::None, Fate::All, Fate::Pages, Fate::Names].into_iter().enumerate() {
        run.put("q", 100 + 9000 * i)?;
        run.append("q", 100 + 9000 * i)?;
        run.append("q", 20_000)?;
        run.drain("q", 1)?;
        run.lose_power(fate)?;
        run.drain("q", 1)?;
    }
    run.put("q", 10)
}

/// What a power cut and its recovery made of the end is rolled away from, freed, and met again.
fn cut_and_roll(run: &mut Run, seed: u64) -> Result<(), Stop> {
    run.put("q", 25_000)?;
    run.put("q", 25_000)?;
    run.put("q", 25_000)?;
    run.sync("q")?;
    run.put("q", 5_000)?;
    run.put("q", 100)?;
    run.lose_power(Fate::Random(seed))?;
    run.put("q", 25_000)?;
    run.put("q", 25_000)?;
    run.drain("q", 4)?;
    run.upkeep()?;
    run.die()?;
    run.put("q", 100)?;
    run.lose_power(Fate::Random(seed + 1))?;
    run.put("q", 10)
}

/// A segment that is freed lies between one that a power cut may tear and one that goes with it.
fn torn_off(run: &mut Run, _: u64) -> Result<(), Stop> {
    run.put("q", 500)?;
    run.sync("q")?;
    run.put("q", 20_000)?;
    run.put("q", 50_000)?;
    run.put("q", 900)?;
    run.put("q", 20_000)?;
    let first = run.open("q")?;
    let held = run.open("q")?;
    run.drain("q", 2)?;
    if let Some(key) = first {
        run.close(key)?;
    }
    run.upkeep()?;
    run.put("q", 60)?;
    if let Some(key) = held {
        run.abort(key);
    }
    run.drain("q", 1)
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Everything, by chance.
pub(super) fn random(run: &mut Run, seed: u64) -> Result<(), Stop> {
    let mut dice = Dice(seed | 1);
    let names = ["q", "r"];
    let mut held = Vec::new();
    for _ in 0..30 {
        let name = names[dice.roll(4).min(1) as usize];
        match dice.roll(24) {
            0..=5 => run.put(name, [8, 200, 3000, 20_000, 40_000][dice.roll(5) as usize])?,
            6 | 7 => {
                let sizes: Vec<usize> = (0..=dice.roll(4)).map(|_| [16, 900, 6000][dice.roll(3) as usize]).collect();
                run.batch(name, &sizes)?;
            }
            8 => run.append(name, 300)?,
            9..=11 => held.extend(run.open(name)?),
            12 | 13 if !held.is_empty() => {
                let key = held.swap_remove(dice.roll(held.len() as u64) as usize);
                match dice.roll(4) {
                    0 => run.close_synced(key)?,
                    _ => run.close(key)?,
                }
            }
            14 if !held.is_empty() => {
                let key = held.swap_remove(dice.roll(held.len() as u64) as usize);
                run.abort(key);
            }
            15 | 16 => run.drain(name, 1 + dice.roll(4) as usize)?,
            17 => run.sync(name)?,
            18 if dice.roll(4) == 0 => {
                run.clear(name)?;
                held.retain(|key| run.ledger.entries.get(key).is_some_and(|entry| entry.queue != name));
            }
            19 => run.get(name)?,
            20 => {
                let durability = [Durability::Sync, Durability::Os][dice.roll(2) as usize];
                run.put_durably(name, 500, durability)?;
            }
            21 => match dice.roll(6) {
                0 => run.reopen()?,
                1 | 2 => run.die()?,
                3 => {
                    let fate = Fate::Random(dice.roll(1 << 32));
                    run.lose_power(fate)?;
                }
                _ => run.upkeep()?,
            },
            22 if dice.roll(2) == 0 => run.put_delayed(name, 300, dice.roll(2000), None)?,
            22 => run.pass(dice.roll(1500)),
            _ => run.upkeep()?,
        }
        // An end of the process ends all opens.
        held.retain(|key| run.ledger.held.contains(key));
    }
    Ok(())
}

/// Runs a workload on a disk until it ends or the disk crashes.
fn run_on(disk: &SimDisk, workload: &Workload, seed: u64) -> Ledger {
    finish(Run::new(disk, workload.setting), workload, seed)
}

fn finish(mut run: Run, workload: &Workload, seed: u64) -> Ledger {
    if run.begin().is_ok() {
        let _ = (workload.work)(&mut run, seed);
    }
    run.end()
}

/// Counts what was tried.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Post-crash disks that were looked at; of these, `distinct` ones were recovered and judged.
    pub(super) states: u64,
    pub(super) distinct: u64,
    pub(super) recoveries: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.states += other.states;
        self.distinct += other.distinct;
        self.recoveries += other.recoveries;
    }

    fn tell(&self, seed: u64) {
        println!(
            "crash: {} states, {} of them distinct, {} recoveries, 0 lost, 0 invented, seed {seed}",
            self.states, self.distinct, self.recoveries
        );
    }
}

/// How much to try at each crash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Unsynced changes of which all subsets are tried.
    pub(super) exhaustive: usize,
    pub(super) random: u64,
    /// Also crash the recovery of every so many-th distinct state, at each of its steps.
    pub(super) depth_2_every: u64,
    /// Only every so many-th step.
    pub(super) stride: u64,
}

/// One workload under crashes, with the states that were judged already: many fates leave the same disk.
struct Explorer<'a> {
    workload: &'a Workload,
    seed: u64,
    effort: Effort,
    tally: &'a mut Tally,
    judged: HashSet<(u64, u64, Cut)>,
}

pub(super) fn explore(workload: &Workload, seed: u64, effort: Effort, tally: &mut Tally) -> Verdict {
    let whole = SimDisk::new(seed);
    whole.record();
    let ledger = run_on(&whole, workload, seed);
    let tell = |what: String| format!("{}: seed {seed}: {what}", workload.name);
    if let Some(violation) = ledger.violation {
        return Err(tell(violation));
    }
    let calls = whole.take_calls();
    Rules::check(&calls).map_err(tell)?;
    let mut explorer = Explorer { workload, seed, effort, tally, judged: HashSet::new() };
    // A large workload repeats itself: hundreds of marks in a row.
    let stride = effort.stride.max(whole.steps() / 300);
    for step in (seed % stride..=whole.steps()).step_by(stride as usize) {
        for when in whens(calls.iter().find(|call| call.step == step)) {
            explorer.crash(step, when)?;
        }
    }
    Ok(())
}

/// Where a crash at this call makes a difference.
fn whens(call: Option<&Call>) -> Vec<When> {
    match call {
        Some(call) if call.op == Op::Write && call.bytes.len() > 2048 => {
            vec![When::Before, When::Part(1), When::During, When::Part(63)]
        }
        Some(call) if call.op == Op::Write && call.bytes.len() > 1 => vec![When::Before, When::During],
        _ => vec![When::Before],
    }
}

impl Explorer<'_> {
    fn crash(&mut self, step: u64, when: When) -> Verdict {
        let (workload, seed) = (self.workload, self.seed);
        let disk = SimDisk::new(seed);
        disk.crash_at(step, when);
        let ledger = run_on(&disk, workload, seed);
        let tell = |fate: &dyn std::fmt::Debug, what: String| {
            format!("{}: seed {seed}, step {step} {when:?}, {fate:?}: {what}", workload.name)
        };
        self.state(&disk.kill(), &ledger, Cut::Kill).map_err(|e| tell(&"kill", e))?;
        for fate in disk.fates(self.effort.exhaustive, self.effort.random, seed ^ step) {
            self.state(&disk.power_cut(fate), &ledger, Cut::Power).map_err(|e| tell(&fate, e))?;
        }
        Ok(())
    }

    fn state(&mut self, disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Verdict {
        self.tally.states += 1;
        if !self.judged.insert((disk.fingerprint(), ledger.digest(), cut)) {
            return Ok(());
        }
        self.tally.distinct += 1;
        self.tally.recoveries += 2;
        judge(disk, ledger, &self.workload.setting, cut)?;
        let every = self.effort.depth_2_every;
        if every > 0 && self.tally.distinct.is_multiple_of(every) {
            self.crash_recovery(disk, ledger, cut)?;
        }
        Ok(())
    }

    /// How many steps does this recovery take? Crashes it at each.
    fn crash_recovery(&mut self, disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Verdict {
        let setting = &self.workload.setting;
        let trial = disk.kill();
        recover_all(&trial, setting, ledger);
        for step in 0..trial.steps() {
            for when in [When::Before, When::During] {
                let second = disk.kill();
                second.crash_at(step, when);
                recover_all(&second, setting, ledger);
                let told = |what: &dyn std::fmt::Debug, e: String| {
                    format!("recovery crashed at its step {step} {when:?}, {what:?}: {e}")
                };
                self.tally.states += 1;
                self.tally.recoveries += 2;
                judge(&second.kill(), ledger, setting, cut).map_err(|e| told(&"kill", e))?;
                let by_chance = Fate::Random(step.wrapping_mul(7919) ^ self.tally.states);
                for fate in [Fate::None, Fate::Names, by_chance] {
                    self.tally.states += 1;
                    self.tally.recoveries += 2;
                    judge(&second.power_cut(fate), ledger, setting, Cut::Power).map_err(|e| told(&fate, e))?;
                }
            }
        }
        Ok(())
    }
}

fn recover_all(disk: &SimDisk, setting: &Setting, ledger: &Ledger) {
    if let Ok(set) = open_with(disk, setting) {
        for name in ledger.queues() {
            let _ = set.get_queue(name);
        }
    }
}

/// The power goes at each step of a workload, and the device spoils a sector of what was stored last.
pub(super) fn spoiled_sectors(workload: &Workload, seed: u64, cuts: u64, stride: usize, tally: &mut Tally) -> Verdict {
    let whole = SimDisk::new(seed);
    whole.record();
    run_on(&whole, workload, seed);
    let calls = whole.take_calls();
    for step in (0..=whole.steps()).step_by(stride) {
        for when in whens(calls.iter().find(|call| call.step == step)) {
            let disk = SimDisk::new(seed);
            disk.crash_at(step, when);
            let ledger = run_on(&disk, workload, seed);
            for cut in 0..cuts {
                let fate = Fate::Shorn(seed ^ (step << 8) ^ (cut << 40));
                tally.states += 1;
                tally.recoveries += 2;
                judge(&disk.power_cut(fate), &ledger, &workload.setting, Cut::Power)
                    .map_err(|e| format!("{}: seed {seed}, step {step} {when:?}, {fate:?}: {e}", workload.name))?;
            }
        }
    }
    Ok(())
}

/// Each step of a workload fails in turn, and the workload goes on; then the process dies, or the power goes. `syncs` picks
/// syncs, which fail in two ways, or everything else, which fails for want of space or of luck.
pub(super) fn failing_steps(workload: &Workload, seed: u64, syncs: bool, stride: usize, tally: &mut Tally) -> Verdict {
    {
        let whole = SimDisk::new(seed);
        whole.record();
        run_on(&whole, workload, seed);
        let calls = whole.take_calls();
        let aimed = calls.iter().filter(|call| matches!(call.op, Op::Sync | Op::SyncDir) == syncs);
        for call in aimed.skip(seed as usize % stride).step_by(stride) {
            let kinds: &[ErrorKind] = match call.op {
                Op::Write | Op::Create | Op::Allocate | Op::Mkdir => &[ErrorKind::Other, ErrorKind::StorageFull],
                _ => &[ErrorKind::Other],
            };
            let ways: &[SyncFailure] = match call.op {
                // `ToldLate` is not judged yet: what was answered in between cannot hold, and which error is owed is open.
                Op::Sync => &[SyncFailure::KeepsContent, SyncFailure::RevertsContent],
                _ => &[SyncFailure::KeepsContent],
            };
            for (kind, how) in kinds.iter().flat_map(|kind| ways.iter().map(move |how| (*kind, *how))) {
                fail_step(workload, seed, call.step, kind, how, tally).map_err(|e| {
                    format!(
                        "{}: seed {seed}, step {} {:?} fails, {kind:?}, {how:?}, {e}",
                        workload.name, call.step, call.op
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn fail_step(
    workload: &Workload,
    seed: u64,
    step: u64,
    kind: ErrorKind,
    how: SyncFailure,
    tally: &mut Tally,
) -> Verdict {
    let setting = &workload.setting;
    let disk = SimDisk::new(seed);
    disk.set_sync_failure(how);
    disk.fail_at(step, kind);
    let mut run = Run::new(&disk, *setting);
    run.ledger.tolerant = true;
    let lies = how == SyncFailure::ToldLate;
    run.lies_from = lies.then_some(step);
    run.ledger.lied_to = lies;
    run.ledger.reverted = how == SyncFailure::RevertsContent;
    let _ = run.begin().and_then(|()| (workload.work)(&mut run, seed));
    if run.ledger.reverted && run.ledger.life > 0 && setting.durability != Durability::Sync {
        // What was promised from the page cache alone, and taken back between two lives: the ledger cannot tell what is owed.
        return Ok(());
    }
    // Before the set is closed: at its end this process still has its word to keep.
    let disk = run.disk.clone();
    let ledger = run.ledger.clone();
    tally.states += 4;
    tally.recoveries += 8;
    judge(&disk.kill(), &ledger, setting, Cut::Kill).map_err(|e| format!("killed: {e}"))?;
    for fate in [Fate::None, Fate::All, Fate::Random(step)] {
        judge(&disk.power_cut(fate), &ledger, setting, Cut::Power).map_err(|e| format!("{fate:?}: {e}"))?;
    }
    if !lies {
        next_life(&disk, &ledger, setting)?;
    }
    let ledger = run.end();
    tally.states += 2;
    tally.recoveries += 4;
    judge(&disk.kill(), &ledger, setting, Cut::Kill).map_err(|e| format!("closed: {e}"))?;
    judge(&disk.power_cut(Fate::None), &ledger, setting, Cut::Power).map_err(|e| format!("closed and cut: {e}"))
}

/// Another process recovers, on the same boot, what a failed one left; it syncs and believes it, and the power goes.
fn next_life(disk: &SimDisk, ledger: &Ledger, setting: &Setting) -> Verdict {
    let second = disk.kill();
    let mut ledger = ledger.clone();
    ledger.settle_by(&second, setting, false);
    let told = |e| format!("cut in the second life: {e}");
    let set = open_with(&second, setting).map_err(|e| format!("second life: {e}"))?;
    for name in set.names() {
        let synced = set.queue(&name).map(|queue| queue.sync());
        if !matches!(synced, Ok(Ok(()))) {
            // The page cache was all the promise, and it was taken back: an error is an answer.
            if ledger.reverted && setting.durability != Durability::Sync {
                return Ok(());
            }
            return Err(format!("second life: {synced:?}"));
        }
    }
    ledger.entries.values_mut().for_each(|entry| {
        entry.durable |= entry.put == super::oracle::Put::Ok;
        entry.close_durable |= entry.close_ok;
    });
    let after = second.power_cut(Fate::None);
    drop(set);
    judge(&after, &ledger, setting, Cut::Power).map_err(told)
}

/// Crash, recover, put again, crash again: what the first recovery discarded must not come back with the second.
pub(super) fn two_lives(workload: &Workload, seed: u64, stride: usize, tally: &mut Tally) -> Verdict {
    {
        let setting = &workload.setting;
        let whole = SimDisk::new(seed);
        run_on(&whole, workload, seed);
        for step in (seed % stride as u64..whole.steps()).step_by(stride) {
            let first = SimDisk::new(seed);
            first.crash_at(step, When::During);
            let first_ledger = run_on(&first, workload, seed);
            for fate in first.fates(2, 3, seed ^ step) {
                let cut = first.power_cut(fate);
                let tell = |what: &str, e: String| {
                    format!("{}: two lives, seed {seed}, step {step}, {fate:?}, {what}: {e}", workload.name)
                };
                let mut run = Run::new(&cut, *setting);
                run.ledger = first_ledger.clone();
                run.ledger.settle_by(&cut, setting, true);
                // A queue that this process only opens is as the first one left it.
                run.ledger.life += 1;
                let name = run.ledger.queues().into_iter().next().unwrap_or("q");
                let _ = run.begin().and_then(|()| {
                    run.put(name, 40)?;
                    run.put(name, 40)?;
                    run.drain(name, 1)
                });
                tally.states += 5;
                tally.recoveries += 9;
                let (second, ledger) = (run.disk.clone(), run.ledger.clone());
                judge(&second.kill(), &ledger, setting, Cut::Kill).map_err(|e| tell("killed", e))?;
                for fate in [Fate::None, Fate::All, Fate::Random(step)] {
                    let after = second.power_cut(fate);
                    judge(&after, &ledger, setting, Cut::Power).map_err(|e| tell(&format!("{fate:?}"), e))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What a plain `cargo test` does in a minute, or all of it: `KESTREL_CRASH_STATES=200000 cargo test --release crash::`.
pub(super) fn is_long() -> bool {
    from_env("KESTREL_CRASH_STATES", 0) >= 100_000
}

/// Runs the jobs on all processors and panics with all their violations.
fn in_parallel<T: Sync>(jobs: &[T], job: impl Fn(&T, &mut Tally) -> Verdict + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut tally = Tally::default();
        let mut violations = Vec::new();
        while let Some(one) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(violation) = job(one, &mut tally) {
                println!("crash: violation: {violation}");
                violations.push(violation);
            }
        }
        (tally, violations)
    };
    let mut total = Tally::default();
    let mut violations = Vec::new();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok((tally, found)) => {
                    total.add(&tally);
                    violations.extend(found);
                }
                Err(panicked) => std::panic::resume_unwind(panicked),
            }
        }
    });
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    total
}

#[test]
fn f04_f05_f06_f07_f09_f10_k71_k118_every_step_of_every_workload_under_every_fate() {
    let seed = from_env("KESTREL_SEED", 1);
    let effort = match is_long() {
        true => Effort { exhaustive: 8, random: 4, depth_2_every: 97, stride: 1 },
        false => Effort { exhaustive: 4, random: 1, depth_2_every: 997, stride: 7 },
    };
    let tally = in_parallel(WORKLOADS, |workload, tally| {
        let (states, distinct) = (tally.states, tally.distinct);
        explore(workload, seed, effort, tally)?;
        println!("crash: {}: {} states, {} distinct", workload.name, tally.states - states, tally.distinct - distinct);
        Ok(())
    });
    tally.tell(seed);
}

/// Beside what `pad_to` promises, that it is needed: without it, durable items go with the sector.
#[test]
fn f11_a_spoiled_sector_takes_no_durable_item_along() {
    let seed = from_env("KESTREL_SEED", 1);
    let padded: Vec<Workload> = WORKLOADS.iter().filter(|work| work.name.starts_with("sectors")).copied().collect();
    assert_eq!(padded.len(), 4);
    let (cuts, stride) = if is_long() { (20, 1) } else { (3, 2) };
    in_parallel(&padded, |workload, tally| spoiled_sectors(workload, seed, cuts, stride, tally)).tell(seed);
    let plain = workload("sectors, not padded", SYNC, sectors);
    let lost = spoiled_sectors(&plain, seed, cuts, stride, &mut Tally::default());
    assert!(lost.is_err(), "a sector was spoiled that held durable items");
}

#[test]
fn f16_f19_f20_f24_every_step_fails_once() {
    let seed = from_env("KESTREL_SEED", 1);
    let stride = if is_long() { 1 } else { 29 };
    let tally = in_parallel(WORKLOADS, |workload, tally| {
        failing_steps(workload, seed, true, stride, tally)?;
        failing_steps(workload, seed, false, stride, tally)
    });
    tally.tell(seed);
}

/// A recovery moved the end of a segment into a new one and failed before it had sealed the old one; the next one served both, the
/// new one was drained and freed, and the one after that found what had been moved, and delivered it again.
#[test]
fn a_recovery_that_ends_behind_its_copy_leaves_nothing_that_is_found_twice() {
    let work = WORKLOADS.iter().find(|work| work.name == "delays and lives").expect("there");
    let mut tally = Tally::default();
    failing_steps(work, 1, true, 1, &mut tally).unwrap_or_else(|violation| panic!("{violation}"));
    tally.tell(1);
}

/// A recovery told where the torn segment ends now, and died before what was torn off was gone; with a freed segment between the
/// two the next one saw no tear, and served what had come after what was lost.
#[test]
fn a_recovery_that_ends_beside_a_tear_leaves_nothing_behind_it() {
    let work = WORKLOADS.iter().find(|work| work.name == "torn off, os").expect("there");
    let effort = Effort { exhaustive: 5, random: 4, depth_2_every: if is_long() { 1 } else { 23 }, stride: 1 };
    let mut tally = Tally::default();
    explore(work, 1, effort, &mut tally).unwrap_or_else(|violation| panic!("{violation}"));
    tally.tell(1);
    let broken = with(Bug::SealBeforeTear, || explore(work, 1, effort, &mut Tally::default()));
    assert!(broken.is_err(), "a planted bug was not caught");
}

#[test]
fn what_a_recovery_discards_never_comes_back() {
    let seed = from_env("KESTREL_SEED", 1);
    let stride = if is_long() { 7 } else { 149 };
    in_parallel(WORKLOADS, |workload, tally| two_lives(workload, seed, stride, tally)).tell(seed);
}

/// The workloads of `expire_to` at every step, and in every way.
#[test]
fn k65_expired_items_move_once_whatever_happens() {
    let seed = from_env("KESTREL_SEED", 1);
    let mine: Vec<Workload> =
        WORKLOADS.iter().filter(|work| work.name.starts_with("moves expire_to")).copied().collect();
    assert_eq!(mine.len(), 5);
    let (stride, thinned) = if is_long() { (1, 1) } else { (11, 13) };
    let effort = Effort { exhaustive: 5, random: 2, depth_2_every: 211, stride };
    let tally = in_parallel(&mine, |workload, tally| {
        explore(workload, seed, effort, tally)?;
        failing_steps(workload, seed, true, 2 * thinned, tally)?;
        failing_steps(workload, seed, false, 3 * thinned, tally)?;
        two_lives(workload, seed, 11 * thinned, tally)
    });
    tally.tell(seed);
}

/// The workloads of delays in every way.
#[test]
fn k141_s39_delays_hold_whatever_happens() {
    let seed = from_env("KESTREL_SEED", 1);
    let mine: Vec<Workload> = WORKLOADS.iter().filter(|work| work.name.starts_with("delays")).copied().collect();
    assert_eq!(mine.len(), 9);
    let effort = Effort { exhaustive: 4, random: 1, depth_2_every: 499, stride: if is_long() { 1 } else { 17 } };
    let thinned = if is_long() { 1 } else { 5 };
    let tally = in_parallel(&mine, |workload, tally| {
        explore(workload, seed, effort, tally)?;
        failing_steps(workload, seed, true, 7 * thinned, tally)?;
        failing_steps(workload, seed, false, 23 * thinned, tally)?;
        two_lives(workload, seed, 41 * thinned, tally)
    });
    tally.tell(seed);
}

#[test]
fn long_random_workloads() {
    let seed = from_env("KESTREL_SEED", 1);
    let wanted = from_env("KESTREL_CRASH_STATES", 3_000);
    let mut total = Tally::default();
    let mut round = 0;
    while total.states < wanted {
        let rounds: Vec<u64> = (round..round + 2).collect();
        let tally = in_parallel(&rounds, |round, tally| {
            let setting = [SYNC, OS, EVERY, SMALL, POSITIONAL, PADDED, PADDED_OS][(round % 7) as usize];
            let effort = Effort { exhaustive: 5, random: 4, depth_2_every: 61, stride: 7 };
            let seed = seed.wrapping_add(round * 1_000_003);
            explore(&workload("random", setting, random), seed, effort, tally)
                .map_err(|violation| format!("{setting:?}: {violation}"))
        });
        total.add(&tally);
        round += 2;
    }
    total.tell(seed);
}
