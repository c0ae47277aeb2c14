//! Crash at every step of small workloads, under every fate, also inside recovery; then long random ones.

use super::oracle::{Cut, Ledger, Put, Run, Stop, Verdict, judge, open};
use crate::Durability;
use crate::disk::sim::{Fate, Op, SimDisk, SyncFailure, When};

/// One workload.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) durability: Durability,
    pub(super) may_map: bool,
    pub(super) work: fn(&mut Run<'_>, u64) -> Result<(), Stop>,
}

const EVERY: Durability = Durability::Every(std::time::Duration::from_millis(100));

pub(super) const WORKLOADS: &[Workload] = &[
    Workload { name: "single puts", durability: Durability::Sync, may_map: true, work: single_puts },
    Workload { name: "single puts, positional", durability: Durability::Sync, may_map: false, work: single_puts },
    Workload { name: "single puts, os", durability: Durability::Os, may_map: true, work: single_puts },
    Workload { name: "batches", durability: Durability::Sync, may_map: true, work: batches },
    Workload { name: "batches, os", durability: Durability::Os, may_map: true, work: batches },
    Workload { name: "open and end", durability: Durability::Sync, may_map: true, work: open_and_end },
    Workload { name: "open and end, os", durability: Durability::Os, may_map: true, work: open_and_end },
    Workload { name: "rolls", durability: Durability::Sync, may_map: true, work: rolls },
    Workload { name: "rolls, os", durability: Durability::Os, may_map: true, work: rolls },
    Workload { name: "rolls, every", durability: EVERY, may_map: true, work: rolls },
    Workload { name: "recycle", durability: Durability::Sync, may_map: true, work: recycle },
    Workload { name: "recycle, os", durability: Durability::Os, may_map: true, work: recycle },
    Workload { name: "recycle, synced marks", durability: Durability::Os, may_map: true, work: recycle_synced },
    Workload { name: "clear", durability: Durability::Sync, may_map: true, work: clear },
    Workload { name: "clear, os", durability: Durability::Os, may_map: true, work: clear },
    Workload { name: "delete", durability: Durability::Sync, may_map: true, work: delete },
    Workload { name: "two queues", durability: Durability::Sync, may_map: true, work: two_queues },
    Workload { name: "append", durability: Durability::Sync, may_map: true, work: append },
    Workload { name: "middle freed", durability: Durability::Sync, may_map: true, work: middle_freed },
];

fn single_puts(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for size in [8, 100, 5000, 64] {
        run.put("q", size)?;
    }
    Ok(())
}

fn batches(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    run.put("q", 50)?;
    run.batch("q", &[3000, 3000, 3000])?;
    run.batch("q", &[10, 10])?;
    run.put("q", 10)
}

fn open_and_end(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for _ in 0..5 {
        run.put("q", 40)?;
    }
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.extend(run.open("q")?);
    }
    run.close(keys[1])?;
    run.abort(keys[0]);
    run.close(keys[3])?;
    run.sync("q")?;
    run.open("q")?;
    run.put("q", 40)
}

fn rolls(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for _ in 0..4 {
        run.put("q", 25_000)?;
    }
    run.drain("q", 1)?;
    run.put("q", 70_000)?;
    run.drain("q", 1)
}

fn recycle(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for _ in 0..6 {
        run.put("q", 22_000)?;
        run.put("q", 22_000)?;
        run.drain("q", 2)?;
        run.upkeep();
    }
    run.put("q", 10)
}

/// Marks reach the device before the file is used again, so that a power cut can bring them back under new frames.
fn recycle_synced(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for _ in 0..2 {
        run.put("q", 22_000)?;
        run.put("q", 22_000)?;
        run.drain("q", 2)?;
        run.sync("q")?;
    }
    run.put("q", 22_000)?;
    run.upkeep();
    for _ in 0..4 {
        run.put("q", 22_000)?;
    }
    Ok(())
}

fn clear(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    for _ in 0..3 {
        run.put("q", 25_000)?;
    }
    run.open("q")?;
    run.clear("q")?;
    run.put("q", 20)?;
    run.upkeep();
    run.put("q", 20)
}

fn delete(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    run.put("q", 100)?;
    run.put("q", 100)?;
    run.delete("q")?;
    run.put("q", 30)?;
    run.put("q", 30)
}

fn two_queues(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    run.put("a", 30_000)?;
    run.put("b", 30_000)?;
    run.put("a", 30_000)?;
    run.drain("a", 2)?;
    run.put("a", 30_000)?;
    run.upkeep();
    run.put("b", 30_000)?;
    run.put("b", 30_000)
}

fn append(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    run.append("q", 100)?;
    run.append("q", 5000)?;
    run.sync("q")?;
    run.append("q", 100)?;
    run.upkeep();
    run.put("q", 10)
}

/// One item stays open at the beginning, so that segments are freed behind it.
fn middle_freed(run: &mut Run<'_>, _: u64) -> Result<(), Stop> {
    run.put("q", 25_000)?;
    run.open("q")?;
    for _ in 0..6 {
        run.put("q", 25_000)?;
    }
    run.drain("q", 4)?;
    run.upkeep();
    run.put("q", 25_000)
}

/// Everything, by chance.
pub(super) fn random(run: &mut Run<'_>, seed: u64) -> Result<(), Stop> {
    let mut state = seed | 1;
    let mut next = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let names = ["q", "r"];
    let mut held = Vec::new();
    for _ in 0..30 {
        let name = names[next(4).min(1) as usize];
        match next(20) {
            0..=5 => run.put(name, [8, 200, 3000, 20_000, 40_000][next(5) as usize])?,
            6 | 7 => {
                let sizes: Vec<usize> = (0..=next(4)).map(|_| [16, 900, 6000][next(3) as usize]).collect();
                run.batch(name, &sizes)?;
            }
            8 => {
                run.append(name, 300)?;
            }
            9..=11 => held.extend(run.open(name)?),
            12 | 13 => {
                if !held.is_empty() {
                    let key = held.swap_remove(next(held.len() as u64) as usize);
                    run.close(key)?;
                }
            }
            14 => {
                if !held.is_empty() {
                    let key = held.swap_remove(next(held.len() as u64) as usize);
                    run.abort(key);
                }
            }
            15 | 16 => run.drain(name, 1 + next(4) as usize)?,
            17 => run.sync(name)?,
            18 => {
                if next(4) == 0 {
                    run.clear(name)?;
                    held.retain(|key| run.ledger.entries.get(key).is_some_and(|entry| entry.queue != name));
                }
            }
            _ => run.upkeep(),
        }
    }
    Ok(())
}

/// Runs a workload on a disk until it ends or the disk crashes.
pub(super) fn run_on(disk: &SimDisk, workload: &Workload, seed: u64) -> Ledger {
    let mut ledger = Ledger::default();
    disk.set_may_map(workload.may_map);
    if let Ok(set) = open(disk, workload.durability) {
        let mut run = Run::new(&set, &mut ledger, workload.durability, disk);
        let _ = (workload.work)(&mut run, seed);
        run.leave();
        ledger.closing = true;
    }
    ledger
}

/// Counts what was tried.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) states: u64,
    pub(super) recoveries: u64,
}

/// How much to try at each crash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Unsynced changes of which all subsets are tried.
    pub(super) exhaustive: usize,
    pub(super) random: u64,
    /// Also crash the recovery of every so many-th state, at each of its steps.
    pub(super) depth_2_every: u64,
    /// Only every so many-th step.
    pub(super) stride: u64,
}

pub(super) fn explore(workload: &Workload, seed: u64, effort: Effort, tally: &mut Tally) -> Verdict {
    let whole = SimDisk::new(seed);
    run_on(&whole, workload, seed);
    let steps = whole.steps();
    let mut step = seed % effort.stride;
    while step <= steps {
        for when in [When::Before, When::During] {
            let disk = SimDisk::new(seed);
            disk.crash_at(step, when);
            let ledger = run_on(&disk, workload, seed);
            let tell = |fate: &dyn std::fmt::Debug, what: String| {
                format!("{}: seed {seed}, step {step} {when:?}, {fate:?}: {what}", workload.name)
            };
            tally.states += 1;
            judge_state(&disk.kill(), &ledger, workload, Cut::Kill, effort, tally).map_err(|e| tell(&"kill", e))?;
            for fate in disk.fates(effort.exhaustive, effort.random, seed ^ step) {
                tally.states += 1;
                let after = disk.power_cut(fate);
                judge_state(&after, &ledger, workload, Cut::Power, effort, tally).map_err(|e| tell(&fate, e))?;
            }
        }
        step += effort.stride;
    }
    Ok(())
}

fn judge_state(
    disk: &SimDisk,
    ledger: &Ledger,
    workload: &Workload,
    cut: Cut,
    effort: Effort,
    tally: &mut Tally,
) -> Verdict {
    tally.recoveries += 2;
    if effort.depth_2_every > 0 && tally.states.is_multiple_of(effort.depth_2_every) {
        // How many steps does this recovery take? Crash it at each.
        let trial = disk.kill();
        recover_all(&trial, workload, ledger);
        for step in 0..trial.steps() {
            let second = disk.kill();
            second.crash_at(step, When::Before);
            recover_all(&second, workload, ledger);
            tally.states += 2;
            tally.recoveries += 4;
            let told = |e| format!("recovery crashed at its step {step}: {e}");
            judge(&second.kill(), ledger, workload.durability, cut).map_err(told)?;
            let fate = Fate::Random(step.wrapping_mul(7919) ^ tally.states);
            judge(&second.power_cut(fate), ledger, workload.durability, Cut::Power).map_err(told)?;
        }
    }
    judge(disk, ledger, workload.durability, cut)
}

fn recover_all(disk: &SimDisk, workload: &Workload, ledger: &Ledger) {
    if let Ok(set) = open(disk, workload.durability) {
        let names: std::collections::BTreeSet<&str> = ledger.entries.values().map(|entry| entry.queue).collect();
        for name in names {
            let _ = set.get_queue(name);
        }
    }
}

/// Each sync of a workload fails in turn, in both ways; then the process dies, another one recovers, syncs, believes it,
/// and the power goes.
pub(super) fn failed_syncs(seed: u64) -> Verdict {
    for workload in WORKLOADS.iter().filter(|w| w.durability == Durability::Sync) {
        for how in [SyncFailure::KeepsContent, SyncFailure::RevertsContent] {
            for nth in 0..60 {
                let disk = SimDisk::new(seed);
                disk.set_sync_failure(how);
                disk.fail(Op::Sync, nth, 1, std::io::ErrorKind::Other);
                let ledger = run_on(&disk, workload, seed);
                let told = |what: &str, e: String| format!("{}: sync {nth} fails, {how:?}, {what}: {e}", workload.name);
                let mut ledger = ledger;
                // What the orderly close then does is no part of this.
                ledger.closing = true;
                judge(&disk.power_cut(Fate::None), &ledger, workload.durability, Cut::Power)
                    .map_err(|e| told("cut", e))?;
                let second = disk.kill();
                {
                    let Ok(set) = open(&second, workload.durability) else {
                        continue;
                    };
                    settle_ledger(&second, &mut ledger, workload.durability);
                    for name in set.names() {
                        match set.queue(&name).map(|queue| queue.sync()) {
                            Ok(Ok(())) => {}
                            other => return Err(told("second life", format!("{other:?}"))),
                        }
                    }
                    let after = second.power_cut(Fate::None);
                    drop(set);
                    judge(&after, &ledger, workload.durability, Cut::Power)
                        .map_err(|e| told("cut in the second life", e))?;
                }
            }
        }
    }
    Ok(())
}

/// Looks what is there after a recovery: that counts as answered and durable, and what is not there must never come back.
fn settle_ledger(disk: &SimDisk, ledger: &mut Ledger, durability: Durability) {
    let Ok(set) = open(&disk.kill(), durability) else {
        return;
    };
    let mut there = std::collections::BTreeMap::new();
    for name in set.names() {
        let Ok(queue) = set.queue(&name) else {
            continue;
        };
        while let Ok(Some(item)) = queue.try_open() {
            if let Some(key) = super::oracle::key_of(item.data()) {
                there.insert(key, (item.id().get(), item.attempts() - 1));
            }
            let _ = item.into_token();
        }
    }
    for (key, entry) in &mut ledger.entries {
        match there.get(key) {
            Some((id, starts)) => {
                entry.put = Put::Ok;
                entry.durable = true;
                (entry.id, entry.starts) = (*id, *starts);
                (entry.close_asked, entry.close_ok, entry.clear_asked) = (false, false, false);
            }
            None if entry.put != Put::Ok || !(entry.close_ok || entry.clear_ok) => {
                entry.put = Put::Refused;
                entry.close_asked = true;
            }
            None => {}
        }
    }
    ledger.held.clear();
}

/// Crash, recover, put again, crash again: what the first recovery discarded must not come back with the second.
pub(super) fn two_lives(seed: u64) -> Verdict {
    for workload in &WORKLOADS[..5] {
        let whole = SimDisk::new(seed);
        run_on(&whole, workload, seed);
        for step in (0..whole.steps()).step_by(3) {
            let first = SimDisk::new(seed);
            first.crash_at(step, When::During);
            let first_ledger = run_on(&first, workload, seed);
            for fate in first.fates(3, 4, seed ^ step) {
                let cut = first.power_cut(fate);
                let mut ledger = first_ledger.clone();
                {
                    // The first recovery, by a process that dies at once; what it shows is what counts.
                    let Ok(set) = open(&cut, workload.durability) else {
                        continue;
                    };
                    for name in set.names() {
                        let _ = set.queue(&name);
                    }
                    settle_ledger(&cut, &mut ledger, workload.durability);
                }
                let second = cut.kill();
                let Ok(set) = open(&second, workload.durability) else {
                    continue;
                };
                let mut run = Run::new(&set, &mut ledger, workload.durability, &second);
                for _ in 0..2 {
                    let _ = run.put("q", 40);
                }
                run.leave();
                let tell = |what: &str, e: String| {
                    format!("{}: two lives, seed {seed}, step {step}, {fate:?}, {what}: {e}", workload.name)
                };
                judge(&second.kill(), &ledger, workload.durability, Cut::Kill).map_err(|e| tell("killed", e))?;
                for fate in [Fate::None, Fate::All, Fate::Random(step)] {
                    let after = second.power_cut(fate);
                    judge(&after, &ledger, workload.durability, Cut::Power).map_err(|e| tell("cut", e))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn every_step_of_every_workload_under_every_fate() {
    let seed = from_env("KESTREL_SEED", 1);
    // The long form is for the release build: `KESTREL_CRASH_STATES=200000 cargo test --release --lib crash::`.
    let long = from_env("KESTREL_CRASH_STATES", 0) >= 200_000;
    let effort = Effort {
        exhaustive: if long { 8 } else { 5 },
        random: if long { 2 } else { 1 },
        depth_2_every: if long { 97 } else { 397 },
        stride: if long { 1 } else { 4 },
    };
    let mut tally = Tally::default();
    for workload in WORKLOADS {
        let before = tally.states;
        if let Err(violation) = explore(workload, seed, effort, &mut tally) {
            panic!("{violation}");
        }
        println!("crash: {}: {} states", workload.name, tally.states - before);
    }
    println!("crash: {} states, {} recoveries, 0 lost, 0 invented, seed {seed}", tally.states, tally.recoveries);
}

#[test]
fn long_random_workloads() {
    let seed = from_env("KESTREL_SEED", 1);
    let wanted = from_env("KESTREL_CRASH_STATES", 3_000).min(50_000);
    let mut tally = Tally::default();
    let mut round = 0;
    while tally.states < wanted {
        let durability = [Durability::Sync, Durability::Os, EVERY][(round % 3) as usize];
        let workload = Workload { name: "random", durability, may_map: round % 5 != 4, work: random };
        let effort = Effort { exhaustive: 5, random: 4, depth_2_every: 61, stride: 7 };
        if let Err(violation) = explore(&workload, seed.wrapping_add(round * 1_000_003), effort, &mut tally) {
            panic!("{durability:?}: {violation}");
        }
        round += 1;
    }
    println!("crash: {} states, {} recoveries, 0 lost, 0 invented, seed {seed}", tally.states, tally.recoveries);
}
