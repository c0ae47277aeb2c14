//! Shuttle, driven by a scheduler of our own: every choice of one execution, of threads and of work, comes from one number.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

pub use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
pub use shuttle::thread::{ThreadId, yield_now};
pub use shuttle::thread_local;

pub mod threads {
    pub use shuttle::thread::{Builder, JoinHandle, spawn};
}

pub fn thread_id() -> ThreadId {
    shuttle::thread::current().id()
}

/// Shuttle has one order of everything, which is stronger.
pub fn in_order(_: atomic::Ordering) {}

/// Whoever sleeps until a moment may be late, and all others may be slow: time passes while somebody waits for it.
pub const TIME_PASSES: bool = true;

/// How much of the time that somebody waits for passes now.
pub fn span(left: Duration) -> Duration {
    match draw(4) {
        0 => left,
        _ => left.min(Duration::from_millis(1)),
    }
}

/// splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

// All threads of an execution share one thread of the system.
std::thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
    static DRAWN: RefCell<Random> = const { RefCell::new(Random(0)) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// The number of this execution.
pub fn seed() -> u64 {
    SEED.get()
}

/// Choices made so far in all executions of this thread of the system.
pub fn steps() -> u64 {
    STEPS.get()
}

fn draw(end: u64) -> u64 {
    DRAWN.with_borrow_mut(|random| random.below(end))
}

/// How the next thread is chosen.
#[derive(Debug)]
enum Way {
    /// Any that can run.
    Any,
    /// The same one as long as it can run, mostly.
    Sticky,
    /// By priorities that change at a few moments (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of
    /// Finding Bugs", ASPLOS 2010); who yields goes last.
    Priorities { of: Vec<u64>, changes: Vec<u64>, lowest: u64 },
}

/// Gives each execution the next number of `seeds`, until `end`.
#[derive(Debug)]
pub struct Seeded {
    seeds: Arc<AtomicU64>,
    end: u64,
    random: Random,
    way: Way,
    step: u64,
}

/// Steps among which priorities change; a usual execution has a few thousand.
const CHANGES_WITHIN: u64 = 3000;

impl Seeded {
    pub fn new(seeds: Arc<AtomicU64>, end: u64) -> Seeded {
        Seeded { seeds, end, random: Random(0), way: Way::Any, step: 0 }
    }
}

impl Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        if seed >= self.end {
            return None;
        }
        SEED.set(seed);
        // Threads and work draw from different rows, so that the same work is not bound to the same orders.
        self.random = Random::new(seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x5C4E_D01E);
        DRAWN.set(Random::new(!seed));
        self.step = 0;
        self.way = match self.random.below(4) {
            0 => Way::Any,
            1 => Way::Sticky,
            _ => {
                let changes = (0..1 + self.random.below(5)).map(|_| self.random.below(CHANGES_WITHIN)).collect();
                Way::Priorities { of: Vec::new(), changes, lowest: u64::MAX >> 1 }
            }
        };
        Some(Schedule::new(seed))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        self.step += 1;
        STEPS.set(STEPS.get() + 1);
        let any = |random: &mut Random| runnable[random.below(runnable.len() as u64) as usize].id();
        let still = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
        match &mut self.way {
            Way::Any => Some(any(&mut self.random)),
            Way::Sticky => match still {
                Some(current) if !is_yielding && !self.random.chance(12) => Some(current),
                _ => Some(any(&mut self.random)),
            },
            Way::Priorities { of, changes, lowest } => {
                let last = runnable.iter().map(|task| usize::from(task.id())).max().unwrap_or(0);
                while of.len() <= last {
                    of.push(self.random.next() >> 2);
                }
                if let Some(current) = still
                    && (is_yielding || changes.contains(&self.step))
                {
                    *lowest += 1;
                    of[usize::from(current)] = *lowest;
                }
                runnable.iter().map(|task| task.id()).min_by_key(|id| of[usize::from(*id)])
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next()
    }
}
