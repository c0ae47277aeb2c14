//! What was asked and what was answered, in one order of ticks.

use std::sync::{Arc, Mutex, MutexGuard};

pub type Tick = u64;

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not yet.
    None,
    Stored(u64),
    /// It is not there and never will be.
    Refused,
    /// It may be there after the next open.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Put {
    pub queue: usize,
    /// Names the payload.
    pub token: u64,
    /// Puts of one batch share it.
    pub batch: u64,
    pub began: Tick,
    pub ended: Option<Tick>,
    pub answer: Answer,
    /// The answer says that the device has it.
    pub synced: bool,
    pub expires: bool,
}

/// An item as a consumer got it.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    pub queue: usize,
    pub token: u64,
    pub id: u64,
    pub attempts: u64,
}

/// How an open item was ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub close: bool,
    pub began: Tick,
    pub ended: Option<Tick>,
    /// The device had it at this tick.
    pub synced: Option<Tick>,
}

#[derive(Clone, Debug)]
pub struct Take {
    /// Those that it may take from.
    pub queues: Vec<usize>,
    pub open: bool,
    pub began: Tick,
    /// It stood in line at this tick.
    pub in_line: Option<Tick>,
    pub ended: Option<Tick>,
    pub got: Option<Got>,
    pub end: Option<End>,
}

impl Take {
    /// Whether it was under way at some moment of `other`.
    pub fn overlaps(&self, other: &Take) -> bool {
        self.began < other.ended.unwrap_or(Tick::MAX) && other.began < self.ended.unwrap_or(Tick::MAX)
    }
}

#[derive(Clone, Debug)]
pub struct Clear {
    pub queue: usize,
    pub began: Tick,
    pub ended: Option<Tick>,
}

/// What a sync covers.
#[derive(Clone, Copy, Debug)]
pub enum Covers {
    /// Items up to this id.
    Id(u64),
    /// Everything that ended before this tick, marks too.
    Before(Tick),
}

#[derive(Clone, Debug)]
pub struct Sync {
    pub queue: usize,
    pub covers: Covers,
    pub ended: Tick,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    now: Tick,
    pub puts: Vec<Put>,
    pub takes: Vec<Take>,
    pub clears: Vec<Clear>,
    pub syncs: Vec<Sync>,
    /// When the end of the set was asked for, and when it was answered.
    pub closing: Option<Tick>,
    pub closed: Option<Tick>,
}

impl History {
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }
}

/// Shared by all threads of an execution. No thread is stopped while it writes, so an entry is one moment.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<History>>);

impl Log {
    pub fn write(&self) -> MutexGuard<'_, History> {
        self.0.lock().expect("nobody panics while writing")
    }

    pub fn now(&self) -> Tick {
        self.write().tick()
    }

    /// For whoever reads a failure.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if tells() {
            println!("{:4} {}", self.write().now, what());
        }
    }
}

/// Whether a run tells what it does: when it is repeated.
pub fn tells() -> bool {
    std::env::var_os("KESTREL_SCHEDULES_TELL").is_some()
}
