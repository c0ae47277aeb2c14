//! Whole sets under a random scheduler: threads and tasks put, take, give back, sync, clear, pause and close over a simulated
//! disk, in an order that one number decides; what they were answered is held to the rules, also after kills and power cuts.
//! One number in three is for a chain of queues, in which items move on, leases end, letters die, queues are deleted, and an
//! archive takes what is spent ([`chain`]).
//!
//! `cargo run --release --manifest-path tests/models/schedules/Cargo.toml -- [SECONDS [SEED]]` tries as many numbers as the time allows, from `SEED` on, and then
//! shows that planted bugs are found. `-- replay SEED` repeats one and tells what happened.
//!
//! What it does not show: what only a weaker order of memory than one for all would allow (the models do); what the system's
//! own disks do.

#![allow(dead_code, unused_imports, reason = "schedules use a part of what they include")]
#![allow(clippy::collapsible_match, reason = "planted lines are not for reading")]

mod chain;
mod check;
mod engine;
mod history;
mod links;
#[path = "../../src/plant.rs"]
mod plant;
#[path = "../../src/sync.rs"]
mod sync;
mod work;

include!(concat!(env!("OUT_DIR"), "/root.rs"));

mod testing {
    pub use crate::disk::sim::*;
}

pub use error::{CloseError, Error, GetError, Limit, MoveFault, OpenError, OptionsError, PutError, SyncError};
pub use ids::ItemId;
pub use item::{DeadLetter, Item};
pub use options::{Durability, OnDamage, PutOptions, QueueOptions, WhenFull};
pub use queue::Queue;
pub use queue::archive::RetiredSegment;
pub use queue::futures::{GetFuture, OpenFuture, SyncedFuture};
pub use queue::open_item::{MoveError, OpenItem, OpenToken};
pub use set::{QueueSet, QueueSetBuilder};
pub use stats::{LostRange, QueueStats, RecoveryProgress, RecoveryReport, SetStats};
pub use typed::{Codec, DecodeError, TypedGetError, TypedOpenItem, TypedPutError, TypedQueue};

use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use check::{Judge, Verdict};
use engine::{Random, Seeded};
use work::{Kind, World};

fn kind_of(seed: u64) -> Kind {
    match Random::new(seed ^ 0x71).below(8) {
        0..=3 => Kind::Counted,
        4..=6 => Kind::Loose,
        _ => Kind::Failing,
    }
}

/// One execution: the work, and then the rules.
fn execute() {
    let seed = engine::seed();
    sync::time::begin();
    if Random::new(seed ^ 0x72).chance(3) {
        if let Err(error) = chain::execute(seed) {
            panic!("{error}");
        }
        return;
    }
    let kind = kind_of(seed);
    let world = World::new(kind, seed);
    world.log.note(|| format!("{kind:?}, {:?}", world.options));
    let world = world.run(seed);
    if let Err(error) = judge(&world, seed) {
        panic!("{error}");
    }
}

fn judge(world: &World, seed: u64) -> Verdict {
    let mut random = Random::new(seed ^ 0xE0D);
    world.cut(&mut random);
    let judge = Judge::new(world);
    judge.live()?;
    let is_closed = judge_is_closed(world);
    // Taken out first, or left for the next open.
    if !is_closed && (world.kind == Kind::Counted || (world.kind == Kind::Loose && random.chance(2))) {
        let left = world.drain(&world.queues);
        if world.kind == Kind::Counted && left.iter().any(|left| !left.is_empty()) {
            return Err(format!("more than was put: {left:?}"));
        }
        judge.rest(&left)?;
        world.close();
    } else {
        world.close();
        let closed = world.log.write().closed;
        if let Some(closed) = closed {
            Judge::new(world).reopened(closed)?;
        } else if world.kind != Kind::Failing {
            return Err("no close on a healthy disk".into());
        }
    }
    let cuts = world.cuts.lock().expect("not poisoned");
    cuts.iter().try_for_each(|cut| judge.cut(cut))
}

fn judge_is_closed(world: &World) -> bool {
    world.set.sync().is_err_and(|error| matches!(error, SyncError::Closed))
}

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = shuttle::MaxSteps::FailAfter(300_000);
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.silence_warnings = true;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}

/// Tries the numbers from `first` to `end` in a process of its own, until `seconds` are over; the first that breaks a rule ends
/// it. After that, what is dropped may abort.
fn worker(words: &[String]) -> ExitCode {
    let number = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let (first, end, seconds) = (number(0), number(1), number(2));
    if let Some(bug) = words.get(3) {
        plant::set(Box::leak(bug.clone().into_boxed_str()));
    }
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        println!("violation: seed {}: {}", engine::seed(), panic.to_string().replace('\n', " "));
        let _ = std::io::stdout().flush();
        if history::tells() {
            tell(panic);
        }
    }));
    let mut config = config();
    config.max_time = Some(Duration::from_secs(seconds));
    let seeds = Arc::new(AtomicU64::new(first));
    let tried = shuttle::Runner::new(Seeded::new(seeds, end), config).run(execute);
    println!("tried: {tried} schedules, {} steps", engine::steps());
    ExitCode::SUCCESS
}

#[derive(Default)]
struct Told {
    schedules: u64,
    steps: u64,
    violation: Option<String>,
}

fn number_before(line: &str, word: &str) -> u64 {
    line.split(word).next().and_then(|head| head.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
}

fn run_worker(first: u64, end: u64, seconds: u64, bug: Option<&str>) -> Told {
    let words = ["worker".to_owned(), first.to_string(), end.to_string(), seconds.to_string()];
    let run = std::env::current_exe().and_then(|me| Command::new(me).args(words).args(bug).output());
    let mut told = Told::default();
    match run {
        Ok(output) => {
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                if line.starts_with("tried: ") {
                    told.schedules = number_before(line, " schedules");
                    told.steps = number_before(line, " steps");
                }
                if line.starts_with("violation: ") {
                    told.violation.get_or_insert_with(|| line.to_owned());
                }
            }
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                told.violation.get_or_insert_with(|| format!("violation: {}: {said}", output.status));
            }
        }
        Err(error) => told.violation = Some(error.to_string()),
    }
    told
}

/// Bugs that must be found, each within `PLANTED_MAX` executions.
const PLANTED: &[&str] = &[
    "AckBeforeSync",
    "BatchWithoutEnd",
    "ClearInMemory",
    "EagerMark",
    "FreeBeforeDone",
    "FreeBeforeMeta",
    "FreeUnpaid",
    "MarkBeforeMoved",
    "MoveWithoutRoute",
    "RetryFailedSync",
    "StartNotMarked",
    "SyncTailOnly",
    "a called waiter is not alone",
    "a close is denied",
    "a lease ends in a move",
    "an old opening ends a new one",
    "cleared by half",
    "cleared in the middle of a move",
    "deleted before an answer",
    "deleted ids come again",
    "deleted while it is created",
    "deleted in the middle of a move",
    "extended in vain",
    "given back in silence",
    "last come first served",
    "not synced since it was cleared",
    "promise leaks",
    "resumed in silence",
    "room is kept",
    "settled without a sync",
    "tasks are not told",
    "the archive is not asked",
];
const PLANTED_MAX: u64 = 200_000;
/// Where to begin with bugs that only a rare order shows; what comes before was looked through once.
const RARE: &[(&str, u64)] = &[("cleared in the middle of a move", 54_500), ("deleted while it is created", 21_000)];
const SEEDS_APART: u64 = 1 << 40;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("worker") => return worker(&words[1..]),
        Some("replay") => {
            let Some(seed) = words.get(1).and_then(|word| word.parse::<u64>().ok()) else { return ExitCode::from(2) };
            let me = std::env::current_exe().expect("this program");
            let bug = words.get(2);
            let words = ["worker".to_owned(), seed.to_string(), (seed + 1).to_string(), "600".into()];
            let run = Command::new(me).args(words).args(bug).env("KESTREL_SCHEDULES_TELL", "").status();
            return if run.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        _ => {}
    }
    let number = |place: usize, default: u64| words.get(place).and_then(|word| word.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number(0, 30), number(1, 1));
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (mut passed, mut failed) = (0, 0);

    let runs: Vec<Told> = std::thread::scope(|scope| {
        let run = |n: u64| {
            let first = seed + n * SEEDS_APART;
            scope.spawn(move || run_worker(first, first + SEEDS_APART, seconds, None))
        };
        let running: Vec<_> = (0..workers).map(run).collect();
        running.into_iter().map(|run| run.join().unwrap_or_default()).collect()
    });
    let (mut schedules, mut steps) = (0, 0);
    for run in runs {
        schedules += run.schedules;
        steps += run.steps;
        match run.violation {
            None => passed += 1,
            Some(violation) => {
                println!("schedules: {violation}");
                failed += 1;
            }
        }
    }

    let next = AtomicU64::new(0);
    let found: Vec<(&str, Option<String>)> = std::thread::scope(|scope| {
        let run = || {
            let mut found = Vec::new();
            while let Some(bug) = PLANTED.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                let first = seed + RARE.iter().find(|(rare, _)| rare == bug).map_or(0, |(_, from)| *from);
                found.push((*bug, run_worker(first, first + PLANTED_MAX, 240, Some(bug)).violation));
            }
            found
        };
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        running.into_iter().flat_map(|run| run.join().unwrap_or_default()).collect()
    });
    let mut caught = 0;
    for (bug, violation) in found {
        match violation.as_deref().map(|told| told.trim_start_matches("violation: ")) {
            Some(told) => {
                println!("schedules: with {bug:?} planted: {}", told.chars().take(160).collect::<String>());
                caught += 1;
            }
            None => {
                println!("schedules: with {bug:?} planted: NOT FOUND");
                failed += 1;
            }
        }
    }
    passed += caught;
    println!("schedules: {caught} planted bugs found");
    println!("schedules: {schedules} schedules, {steps} steps");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
